"""Outputs are whole or absent; run folders know which run they hold."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from genosparse.errors import ConfigError, InputFileNotFoundError, OutputError
from genosparse.outputs import atomic_output, check_writable, fingerprint, open_run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_output_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "scored.vcf.gz"
    with atomic_output(path) as partial:
        assert partial.name == "scored.vcf.gz"
        partial.write_text("new")
        Path(f"{partial}.tbi").write_text("an index that the writer made for itself")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["scored.vcf.gz"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_failure_leaves_the_old_output(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.tsv"
    path.write_text("old")

    def fail() -> None:
        with atomic_output(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out.tsv"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_text("")
    with atomic_output(atomic) as partial:
        partial.write_text("")
    assert atomic.stat().st_mode == plain.stat().st_mode


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "real").write_text("old")
    (tmp_path / "link").symlink_to("data/real")
    with atomic_output(tmp_path / "link") as partial:
        partial.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "data" / "real").read_text() == "new"


def test_devices_are_written_directly() -> None:
    for device in ("/dev/null", "/dev/full"):
        check_writable(device)
        with atomic_output(device) as partial:
            assert partial == Path(device)
        assert Path(device).is_char_device()


@pytest.mark.parametrize(
    "name,words",
    [
        ("missing/out.tsv", "missing does not exist"),
        ("file/out.tsv", "file is not a folder"),
        (".", "names a folder"),
        ("folder", "names a folder"),
        ("new/", "names a folder"),
        ("", "names a folder"),
        ("x" * 300, "too long"),
    ],
)
def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=words):
        check_writable(name)
    with pytest.raises(OutputError, match=words), atomic_output(name):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["file", "folder"]


def test_folder_that_refuses(tmp_path: Path) -> None:
    # /proc is a folder in which not even root can make a file.
    with pytest.raises(OutputError, match=r"cannot write /proc/out\.tsv"):
        check_writable("/proc/out.tsv")


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.tsv")
    assert names(tmp_path) == []


def test_full_disk_is_told(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
        with pytest.raises(OutputError, match="too large"), atomic_output(tmp_path / "out") as partial:
            partial.write_bytes(b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    script = (
        "import sys, time; from genosparse.outputs import atomic_output\n"
        "with atomic_output(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); print(partial, flush=True); time.sleep(60)"
    )
    path = tmp_path / "out.tsv"
    runs = []
    for _ in range(2):
        runs.append(subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True))
        runs[-1].stdout.readline()
    killed, living = runs
    try:
        assert len(names(tmp_path)) == 2
        killed.kill()
        killed.wait()
        for folder in tmp_path.iterdir():
            os.utime(folder, (0, 0))
        with atomic_output(path) as partial:
            partial.write_text("whole")
        assert len(names(tmp_path)) == 2
        assert path.read_text() == "whole"
    finally:
        living.terminate()
        living.wait()
        for folder in tmp_path.glob(".*"):
            os.utime(folder, (0, 0))
    with atomic_output(path) as partial:
        partial.write_text("again")
    assert names(tmp_path) == ["out.tsv"]


def test_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"ACGT" * 100_000)
    assert fingerprint(path) == hashlib.sha256(b"ACGT" * 100_000).hexdigest()
    with pytest.raises(InputFileNotFoundError, match="missing"):
        fingerprint(tmp_path / "missing")


IDENTITY = {"pipeline": "embed", "data": {"context": 4096, "genome": "ab" * 32}, "layer": -1}


def claim(run_dir: Path, identity: dict[str, object], **options: object) -> bool:
    with open_run(run_dir, identity, **{"owns": ("parts",), **options}) as resumes:  # type: ignore[arg-type]
        return resumes


def test_run_folder_is_fresh_then_resumed(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "a"
    assert claim(run_dir, IDENTITY) is False
    (run_dir / "parts").mkdir()
    (run_dir / "parts" / "1").write_text("done")
    assert claim(run_dir, {**IDENTITY, "layer": -1}) is True
    assert (run_dir / "parts" / "1").exists()
    assert claim(run_dir, IDENTITY, overwrite=True) is False
    assert names(run_dir) == ["run.json"]


def test_only_what_a_run_owns_is_ever_removed(tmp_path: Path) -> None:
    claim(tmp_path / "a", IDENTITY)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a" / "parts").mkdir()
    assert claim(tmp_path / "a", {**IDENTITY, "layer": 3}, overwrite=True) is False
    assert names(tmp_path / "a") == ["notes.txt", "run.json"]


def test_run_of_another_pipeline_is_never_replaced(tmp_path: Path) -> None:
    claim(tmp_path / "a", IDENTITY)
    (tmp_path / "a" / "parts").mkdir()
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="holds a run of embed"):
            claim(tmp_path / "a", {"pipeline": "pretrain"}, overwrite=overwrite)
    assert names(tmp_path / "a") == ["parts", "run.json"]


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    claim(tmp_path / "a", IDENTITY)
    changed = {"pipeline": "embed", "data": {"context": 8192, "genome": "cd" * 32}, "layer": -1, "pool": "mean"}
    with pytest.raises(ConfigError) as caught:
        claim(tmp_path / "a", changed)
    message = str(caught.value)
    assert "data.context was 4096, now 8192" in message
    assert 'pool was absent, now "mean"' in message
    assert "data.genome was" in message
    assert "layer" not in message
    assert "overwrite=true" in message
    assert "run_dir=" in message
    assert claim(tmp_path / "a", changed, overwrite=True) is False
    assert claim(tmp_path / "a", changed) is True


def test_a_second_process_is_kept_out_and_shares_come_in(tmp_path: Path) -> None:
    script = (
        "import sys; from genosparse.outputs import open_run\n"
        "with open_run(sys.argv[1], {'pipeline': 'embed'}, owns=(), shared=sys.argv[2] == 'shared'):\n"
        "    print('in', flush=True); sys.stdin.read()"
    )
    for shared in (False, True):
        run_dir = tmp_path / str(shared)
        command = [sys.executable, "-c", script, run_dir, "shared" if shared else "alone"]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout.readline() == "in\n"
            for overwrite in (False, True):
                with pytest.raises(ConfigError, match="another process is using"):
                    claim(run_dir, {"pipeline": "embed"}, overwrite=overwrite)
            if shared:
                assert claim(run_dir, {"pipeline": "embed"}, shared=True) is True
                with pytest.raises(ConfigError, match="other settings"):
                    claim(run_dir, {"pipeline": "embed", "layer": 2}, shared=True)
        finally:
            holder.communicate("")
        assert claim(run_dir, {"pipeline": "embed"}) is True


def test_run_killed_while_it_claimed_its_folder_can_start_again(tmp_path: Path) -> None:
    (tmp_path / "a" / ".genosparse-partial-xyz").mkdir(parents=True)
    assert claim(tmp_path / "a", IDENTITY) is False


def test_what_a_killed_run_was_writing_is_gone_with_the_next_one(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from genosparse.outputs import atomic_output, open_run\n"
        "with open_run(sys.argv[1], {'pipeline': 'embed'}, owns=()), atomic_output(sys.argv[1] + '/out') as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "a"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(names(tmp_path / "a")) == 2
    assert claim(tmp_path / "a", {"pipeline": "embed"}) is True
    assert names(tmp_path / "a") == ["run.json"]


def test_folders_of_others_beside_an_output_stay(tmp_path: Path) -> None:
    for name in (".partial-download", ".genosparse"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))
    with atomic_output(tmp_path / "out") as partial:
        partial.write_text("x")
    assert names(tmp_path) == [".genosparse", ".partial-download", "out"]


def test_tuples_and_lists_are_the_same_identity(tmp_path: Path) -> None:
    claim(tmp_path / "a", {"scores": ("llr",)})
    assert claim(tmp_path / "a", {"scores": ["llr"]}) is True


@pytest.mark.parametrize("content", [None, "{}", '{"identity": {}}'])
def test_a_folder_of_something_else_is_never_cleared(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "thesis.tex").write_text("")
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    before = names(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="not empty and holds no run"):
            claim(tmp_path, IDENTITY, overwrite=overwrite)
    assert names(tmp_path) == before


def test_an_input_or_the_user_is_never_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim(tmp_path / "a", IDENTITY)
    (tmp_path / "a" / "parts" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    changed = {"pipeline": "embed"}
    with pytest.raises(OutputError, match="model is in it"):
        claim(tmp_path / "a", changed, overwrite=True, inputs=[tmp_path / "link" / "parts" / "model"])
    monkeypatch.chdir(tmp_path / "a" / "parts")
    with pytest.raises(OutputError, match="is in it"):
        claim(tmp_path / "a", changed, overwrite=True)
    assert names(tmp_path / "a") == ["parts", "run.json"]


def test_damaged_record_can_be_overwritten(tmp_path: Path) -> None:
    claim(tmp_path / "a", IDENTITY)
    (tmp_path / "a" / "run.json").write_text('{"form')
    with pytest.raises(ConfigError, match="overwrite=true"):
        claim(tmp_path / "a", IDENTITY)
    assert claim(tmp_path / "a", IDENTITY, overwrite=True) is False


def test_run_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="run_dir="):
            claim(path, IDENTITY)
