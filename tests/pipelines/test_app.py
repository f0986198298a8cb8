"""What every pipeline does with its command line: settings, paths, mistakes, signals."""

import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.pipelines import app

PATHS = ("model", "genome", "intervals", "output", "run_dir")
MANDATORY = ["model=runs/ecoli/model", "genome=g.fa", "intervals=all", "output=e.parquet"]
Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def run(*arguments: str, task: Callable[[DictConfig], None] | None = None) -> tuple[int, list[DictConfig]]:
    seen: list[DictConfig] = []
    status = app.pipeline("embed", paths=PATHS)(task or seen.append)(list(arguments))
    return status, seen


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, task: Callable | None = None) -> str:
    """Run, and return the one line on standard error that a mistake of the user's ends in."""
    status, seen = run(*arguments, task=task)
    captured = capsys.readouterr()
    assert status == 2
    assert seen == []
    assert captured.out == ""
    assert re.fullmatch(r"genosparse embed: error: [^\n]+\n", captured.err), captured.err
    assert list(Path().iterdir()) == []
    return captured.err


def test_settings_reach_the_task() -> None:
    status, [config] = run(*MANDATORY, "layer=3", "pool=base")
    assert status == 0
    assert (config.layer, config.pool, config.genome, config.seed) == (3, "base", "g.fa", 0)
    assert (config.name, config.run_dir) == ("embed-ecoli", "runs/embed-ecoli")
    assert "hydra" not in config
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "a(1)=x.fa",
        "a b.fa",
        "a,b.fa",
        "{a}.fa",
        "$a.fa",
        "${a}.fa",
        r"\${a}.fa",
        r"\\${a}\.fa",
        "#a.fa",
        "'a'.fa",
        '"a".fa',
        "'a",
        "a'",
        "a\\",
        "a\\'b",
        "é\N{DNA DOUBLE HELIX}.fa",
        "a\nb.fa",
        "a:b@c!d.fa",
        "~a.fa",
        "-",
        "1e3",
        "true",
        "choice(a,b)",
        " a ",
        "a]",
        os.fsdecode(b"\xff.fa"),
    ],
)
def test_paths_are_taken_as_they_are(name: str) -> None:
    status, [config] = run("model=m", f"genome={name}", "intervals=all", f"output={name}")
    assert status == 0
    assert app.path(config, "genome") == name
    assert app.path(config, "output") == name
    assert app.paths(config, "genome") == [name]


def test_path_that_is_a_list_or_null_or_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/lab")
    _, [config] = run("model=m", "genome=[a.fa,'b(1).fa']", "intervals=null", "output=~/e.parquet")
    assert app.paths(config, "genome") == ["a.fa", "b(1).fa"]
    assert config.intervals is None
    assert app.path(config, "output") == "/home/lab/e.parquet"
    for key in ("genome", "intervals"):
        with pytest.raises(ConfigError, match=f"{key}=.* is not a path"):
            app.path(config, key)


def test_odd_path_through_a_real_command_line(tmp_path: Path) -> None:
    name = "a(1)=x, {b} ${c} 'd' \"e\" \\.fa"
    script = tmp_path / "pipeline.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom genosparse.pipelines import app\n"
        "@app.pipeline('embed', paths=('genome',))\n"
        "def main(config):\n    print(Path(app.path(config, 'genome')).read_text())\n"
        "sys.exit(main())\n"
    )
    (tmp_path / name).write_text("found")
    command = [sys.executable, script, *MANDATORY, f"genome={name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "found\n", "")


@pytest.mark.parametrize(
    "arguments,words",
    [
        ([], "missing genome=, intervals=, model=, output= "),
        (["model=m", "genome=g", "output=o"], "missing intervals= "),
        ([*MANDATORY, "layr=3"], "unknown setting layr=; did you mean layer?"),
        ([*MANDATORY, "trainer.layer=3"], "unknown setting trainer.layer=; did you mean layer?"),
        ([*MANDATORY, "xyzzy=3"], "unknown setting xyzzy= "),
        ([*MANDATORY, "+layr=3"], "unknown setting layr=; did you mean layer?"),
        ([*MANDATORY, "++xyzzy=3"], "unknown setting xyzzy= "),
        ([*MANDATORY, "layer"], "'layer' is not a setting"),
        ([*MANDATORY, "layer=a(1"], "cannot read 'layer=a(1'"),
        ([*MANDATORY, "layer=1,2"], "layer has several values"),
        ([*MANDATORY, "layer=${nowhere}"], "nowhere"),
        ([*MANDATORY, "--layer", "3"], "--layer"),
        ([*MANDATORY, "--experimental-rerun", "x.pickle"], "pickle"),
        ([*MANDATORY, "--config-dir", "missing"], "missing"),
        ([*MANDATORY, "hydra/launcher=xyzzy"], "hydra/launcher=xyzzy is unknown; choose one of basic"),
        (["-m", *MANDATORY, "layr=1,2"], "unknown setting layr=; did you mean layer?"),
    ],
)
def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert words in error_of(capsys, *arguments)


def test_errors_of_the_task(capsys: pytest.CaptureFixture[str]) -> None:
    def bad_value(config: DictConfig) -> None:
        raise ConfigError("layer=9 is\nunknown")

    def bad_file(config: DictConfig) -> None:
        Path("missing.bed").read_text()

    def bad_key(config: DictConfig) -> None:
        print(config.nowhere)

    assert error_of(capsys, *MANDATORY, task=bad_value).endswith("error: layer=9 is unknown\n")
    assert error_of(capsys, *MANDATORY, task=bad_file).endswith("error: No such file or directory: missing.bed\n")
    assert "nowhere" in error_of(capsys, *MANDATORY, task=bad_key)


def test_our_own_bugs_show_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def bug(config: DictConfig) -> None:
        raise RuntimeError("a bug")

    status, _ = run(*MANDATORY, task=bug)
    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("Traceback")
    assert error.rstrip().endswith("RuntimeError: a bug")


def test_full_errors_on_request(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert run(*MANDATORY, "layr=3")[0] == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.endswith("(genosparse embed --help lists all)\n")
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_the_task_sees_the_environment_as_it_was() -> None:
    before = dict(os.environ)
    seen: list[dict[str, str]] = []
    assert run(*MANDATORY, task=lambda config: seen.append(dict(os.environ)))[0] == 0
    assert seen == [before]
    assert dict(os.environ) == before


def test_warnings_are_one_line_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    def warn(config: DictConfig) -> None:
        for text in ("contigs are renamed", "contigs are renamed", "too long"):
            warnings.warn(text, GenosparseWarning, stacklevel=1)

    assert run(*MANDATORY, task=warn)[0] == 0
    assert capsys.readouterr().err == (
        "genosparse embed: warning: contigs are renamed\ngenosparse embed: warning: too long\n"
    )


def test_help_and_config_are_hydras(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == (0, [])
    output = capsys.readouterr().out
    assert output.startswith("genosparse embed:")
    assert "batch_bases: 65536" in output
    assert run(*MANDATORY, "pool=32", "--cfg", "job") == (0, [])
    output = capsys.readouterr().out
    assert "pool: 32" in output
    assert "hydra" not in output
    assert run("--version") == (0, [])
    assert capsys.readouterr().out.startswith("genosparse ")
    assert list(Path().iterdir()) == []


def test_multirun_gives_each_job_its_own_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    status, configs = run("-m", *MANDATORY, "genome=a (1).fa", "layer=1,2", "pool=mean,8", "output=e_${layer}.parquet")
    assert status == 0
    assert [(config.layer, config.pool) for config in configs] == [(1, "mean"), (1, 8), (2, "mean"), (2, 8)]
    assert [config.run_dir for config in configs] == [
        "runs/embed-ecoli,layer=1,pool=mean",
        "runs/embed-ecoli,layer=1,pool=8",
        "runs/embed-ecoli,layer=2,pool=mean",
        "runs/embed-ecoli,layer=2,pool=8",
    ]
    assert {config.output for config in configs} == {"e_1.parquet", "e_2.parquet"}
    assert {config.genome for config in configs} == {"a (1).fa"}
    assert "job 3: layer=2,pool=8" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_multirun_over_paths_and_in_a_given_run_folder() -> None:
    _, configs = run("-m", *MANDATORY, "model=choice(runs/a/model,runs/b/model)")
    assert [config.model for config in configs] == ["runs/a/model", "runs/b/model"]
    assert [config.name for config in configs] == [
        "embed-a,model=runs_a_model",
        "embed-b,model=runs_b_model",
    ]
    _, configs = run(*MANDATORY, "-m", "layer=1,2", "run_dir=sweep")  # -m may stand anywhere
    assert [config.run_dir for config in configs] == ["sweep/layer=1", "sweep/layer=2"]
    _, configs = run("-m", *MANDATORY, "seed=1,2", "run_dir=choice(x,y)")
    assert [config.run_dir for config in configs] == ["x", "y", "x", "y"]


def test_multirun_stops_at_the_first_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def task(config: DictConfig) -> None:
        done.append(config.layer)
        if config.layer == 2:
            raise ConfigError("no layer 2")

    assert run("-m", *MANDATORY, "layer=1,2,3", task=task)[0] == 2
    assert done == [1, 2]
    assert capsys.readouterr().err.endswith("genosparse embed: error: no layer 2\n")


@pytest.mark.parametrize(
    "number,status,word", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals(tmp_path: Path, number: signal.Signals, status: int, word: str) -> None:
    script = tmp_path / "pipeline.py"
    script.write_text(
        "import sys, time\nfrom genosparse.outputs import atomic_output\nfrom genosparse.pipelines import app\n"
        "@app.pipeline('embed', paths=('output',))\n"
        "def main(config):\n"
        "    with atomic_output(config.output):\n"
        "        print('ready', flush=True)\n        time.sleep(60)\n"
        "sys.exit(main())\n"
    )
    (tmp_path / "work").mkdir()
    process = subprocess.Popen(
        [sys.executable, script, *MANDATORY, "output=work/e.parquet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert list((tmp_path / "work").iterdir())
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == status
    assert error == f"genosparse embed: {word}\n"
    assert list((tmp_path / "work").iterdir()) == []


def test_interrupted_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def stop(config: DictConfig) -> None:
        raise app.Interrupted(signal.SIGTERM, "stopped at step 7, saved")

    assert run(*MANDATORY, task=stop)[0] == 143
    assert capsys.readouterr().err == "genosparse embed: stopped at step 7, saved\n"


def test_reader_that_leaves_early(tmp_path: Path) -> None:
    script = tmp_path / "pipeline.py"
    script.write_text(
        "import sys\nfrom genosparse.pipelines import app\n"
        "@app.pipeline('embed')\n"
        "def main(config):\n    for line in range(1000000):\n        print(line)\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, script, *MANDATORY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 141


def setup_with(*arguments: str) -> app.Runtime:
    runtimes: list[app.Runtime] = []
    _, [config] = run(*MANDATORY, *arguments)
    runtimes.append(app.setup(config))
    return runtimes[0]


def test_setup() -> None:
    import torch

    before = torch.get_num_threads()
    try:
        runtime = setup_with("threads=1", "seed=7", "precision=bfloat16", "device=cpu")
        assert torch.get_num_threads() == runtime.threads == 1
        assert (runtime.device.type, runtime.precision, runtime.seed) == ("cpu", "bfloat16", 7)
        first = torch.rand(1)
        assert setup_with("seed=7").precision in ("float32", "bfloat16")
        assert torch.rand(1) == first
        with runtime.autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        with setup_with("precision=float32").autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "argument", ["device=tpu", "device=cuda:4096", "threads=0", "threads=two", "seed=-1", "seed=1.5", "precision=half"]
)
def test_setup_refuses(argument: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(argument)):
        setup_with(argument)


def test_values() -> None:
    _, [config] = run(*MANDATORY, "layer=3", "pool=1.5", "both_strands=true", "threads=true")
    assert app.integer(config, "layer", minimum=3, maximum=3) == 3
    assert app.number(config, "pool") == 1.5
    assert app.number(config, "layer") == 3.0
    assert app.flag(config, "both_strands") is True
    for check, key in ((app.integer, "pool"), (app.integer, "threads"), (app.number, "threads"), (app.flag, "layer")):
        with pytest.raises(ConfigError, match=f"{key}="):
            check(config, key)
    with pytest.raises(ConfigError, match="at least 4"):
        app.integer(config, "layer", minimum=4)
    with pytest.raises(ConfigError, match="at most 1"):
        app.number(config, "pool", maximum=1)
    with pytest.raises(ConfigError, match="choose one of a, b"):
        app.choice(config, "layer", ("a", "b"))


def test_works_as_a_script_from_the_checkout() -> None:
    """``python pipelines/embed.py`` is ``genosparse embed``."""
    script = Path(app.__file__).with_name("embed.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("genosparse embed: error: missing genome=, ")
