"""The command itself: its subcommands, and its answers to mistakes."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from genosparse import cli


def genosparse(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genosparse.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    for command in ("pretrain", "variant-effect", "embed", "evaluate", "quickstart"):
        assert command in output


def test_every_command_has_help_of_its_own() -> None:
    for command in ("pretrain", "variant-effect", "embed", "evaluate", "quickstart"):
        done = genosparse(command, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"genosparse {command}:")
        assert done.stderr == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"genosparse {version('genosparse')}\n"


@pytest.mark.parametrize(
    "given,words",
    [
        ("variant_effect", "did you mean variant-effect?"),
        ("emebd", "did you mean embed?"),
        ("app", "choose one of pretrain, variant-effect, embed, evaluate, quickstart"),
        ("genome=x", "choose one of"),
    ],
)
def test_unknown_command(given: str, words: str) -> None:
    done = genosparse(given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"genosparse: error: unknown command {given!r}; ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_errors_do_without_torch() -> None:
    script = "import sys; from genosparse import cli; cli.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False).returncode == 0
