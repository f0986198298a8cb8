"""Outputs that are whole or absent, and run folders that know which run they hold."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genosparse.errors import ConfigError, InputFileNotFoundError, OutputError

__all__ = ["RUN_FILE", "atomic_output", "check_writable", "fingerprint", "holds_run", "open_run"]

RUN_FILE = "run.json"
_RUN_FORMAT = "genosparse-run-1"
_PARTIAL = ".genosparse-partial-"
# A temporary folder is locked right after it is made; a younger one than this, in seconds, may be in between.
_SETTLED = 60
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary path and move it to its own when it is complete.

    The temporary file has the same name (so that writers that go by the suffix work on it) in a hidden folder beside
    ``path``. It is flushed to disk and renamed on success, and removed on any exception, with whatever else was written
    beside it. What a run that was killed outright left behind is removed too. A pipe or a device (``/dev/stdout``) is
    written directly.

    Args:
        path: The output file; an existing file is replaced.

    Yields:
        The path to write to.

    Raises:
        OutputError: The folder is missing or cannot be written, ``path`` is a folder, or the disk is full.
    """
    check_writable(path)
    if _is_special(Path(path)):
        yield Path(path)
        return
    target = Path(os.path.realpath(path))
    _remove_leftovers(target.parent)
    folder = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=target.parent))
    lock = os.open(folder, os.O_RDONLY)
    try:
        # A held lock tells other runs that this folder is in use; it goes with the process, however that ends.
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder / target.name
        _sync(folder / target.name)
        (folder / target.name).replace(target)
        _sync(target.parent)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutputError(f"cannot write {path}: {os.strerror(error.errno)}; free some space first") from error
        raise
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise ``OutputError`` when a file cannot be written at ``path``; leave nothing behind."""
    if not os.fspath(path) or os.fspath(path).endswith("/") or os.path.isdir(path):
        raise OutputError(f"cannot write {str(path)!r}: it names a folder; give the name of a file")
    path = Path(path)
    if _is_special(path):
        return
    target = Path(os.path.realpath(path))
    if not os.path.isdir(target.parent):
        what = "is not a folder" if os.path.exists(target.parent) else "does not exist; create it first"
        raise OutputError(f"cannot write {path}: {target.parent} {what}")
    # Making the file is the only sure test: permission bits say nothing of root, quotas or read-only mounts.
    try:
        with tempfile.TemporaryDirectory(prefix=".genosparse-check-", dir=target.parent) as folder:
            (Path(folder) / target.name).touch()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; write to another folder") from error


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content in hex."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputFileNotFoundError(f"cannot read {path}: {error.strerror}; check the path") from error


@contextmanager
def open_run(
    run_dir: str | os.PathLike[str],
    identity: Mapping[str, Any],
    *,
    owns: Collection[str],
    overwrite: bool = False,
    shared: bool = False,
    inputs: Iterable[str | os.PathLike[str]] = (),
) -> Iterator[bool]:
    """Hold a run folder for one run, and say whether an earlier start of that same run is in it.

    The folder is locked while the block runs, where its file system can: two runs never mix in it.

    Args:
        run_dir: The folder; it is created when missing, its parents too.
        identity: All that decides the run's results (settings, fingerprints of inputs and model), as JSON values;
            ``pipeline`` among them.
        owns: Names of the files and folders that the run keeps in the folder; nothing else is ever removed.
        overwrite: Remove what an earlier run of the same pipeline left in the folder and start anew.
        shared: Let processes of the same run work in the folder at the same time.
        inputs: Files and folders that the run reads; what holds one of them is never removed.

    Yields:
        True when the folder holds the same run (resume), False when the run is fresh.

    Raises:
        ConfigError: The folder holds another run; names the settings that differ. Or another process is using it.
        OutputError: The folder cannot be written, or holds something that is not a run.
    """
    run_dir = Path(run_dir)
    wanted = json.loads(json.dumps(identity))
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        why = "it is a file" if run_dir.is_file() else error.strerror
        raise OutputError(f"cannot use run_dir={run_dir}: {why}; pass another run_dir=") from error
    try:
        if _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
            resumes = _claim(run_dir, wanted, owns, overwrite, inputs)
            _remove_leftovers(run_dir, settled=0)  # who else would write here waits for the lock
            if shared:
                _lock(folder, fcntl.LOCK_SH)
        elif shared and not overwrite and _lock_patiently(folder, fcntl.LOCK_SH):
            resumes = True
        else:
            raise ConfigError(f"another process is using run_dir={run_dir}; wait for it, or pass another run_dir=")
        if shared:  # another process may have claimed the folder before the lock was shared
            _check_same(run_dir, _read_record(run_dir / RUN_FILE) or {}, wanted)
        yield resumes
    finally:
        os.close(folder)


def holds_run(run_dir: str | os.PathLike[str], identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds a start of that very run; touches nothing."""
    return _read_record(Path(run_dir) / RUN_FILE) == json.loads(json.dumps(identity))


def _lock(descriptor: int, kind: int) -> bool:
    """Lock a folder; where its file system has no locks, act as if it were."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _lock_patiently(descriptor: int, kind: int) -> bool:
    """Lock a folder that another process holds for the moment in which it claims it."""
    for _ in range(200):
        if _lock(descriptor, kind | fcntl.LOCK_NB):
            return True
        time.sleep(0.05)
    return False


def _claim(
    run_dir: Path,
    wanted: Mapping[str, Any],
    owns: Collection[str],
    overwrite: bool,
    inputs: Iterable[str | os.PathLike[str]],
) -> bool:
    """Take a locked folder: True when the same run is in it."""
    record = run_dir / RUN_FILE
    if any(not entry.name.startswith(_PARTIAL) for entry in run_dir.iterdir()):
        held = _read_record(record)
        if held is None:
            raise OutputError(f"run_dir={run_dir} is not empty and holds no run of genosparse; pass another run_dir=")
        if held and held.get("pipeline") != wanted.get("pipeline"):
            raise ConfigError(f"run_dir={run_dir} holds a run of {held.get('pipeline')}; pass another run_dir=")
        if not overwrite:
            _check_same(run_dir, held, wanted)
            return True
        _clear(run_dir, owns, [*inputs, Path.cwd()])
    with atomic_output(record) as partial:
        partial.write_text(json.dumps({"format": _RUN_FORMAT, "identity": wanted}, indent=1, sort_keys=True) + "\n")
    return False


def _check_same(run_dir: Path, held: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if held != wanted:
        raise ConfigError(
            f"run_dir={run_dir} holds a run with other settings ({_differences(held, wanted)}); "
            "pass overwrite=true to start anew, or another run_dir="
        )


def _is_special(path: Path) -> bool:
    # os.path, as pathlib raises where a folder on the way cannot be read
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(folder: Path, settled: float = _SETTLED) -> None:
    """Remove the temporary folders of runs that were killed: those that no process holds locked, and not younger."""
    for leftover in folder.glob(f"{_PARTIAL}*/"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime < settled:
                continue
            lock = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(lock)


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the identity of the run in a folder: None when there is none, {} when it cannot be read."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return {}
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror}; pass another run_dir=") from error
    if not isinstance(record, dict) or record.get("format") != _RUN_FORMAT:
        return None
    return record["identity"]


def _clear(run_dir: Path, owns: Collection[str], keep: Iterable[str | os.PathLike[str]]) -> None:
    """Remove what a run owns, its record last, so that an interrupted clearing can be taken up again."""
    owned = [run_dir / name for name in owns]
    for path in keep:
        if any(Path(path).resolve().is_relative_to(entry.resolve()) for entry in owned):
            raise OutputError(f"will not clear run_dir={run_dir}: {path} is in it; pass another run_dir=")
    for entry in [*owned, run_dir / RUN_FILE]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    before, now = dict(_flatten(held)), dict(_flatten(wanted))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key) or (key in before) != (key in now)]
    shown = [f"{key} was {_show(before, key)}, now {_show(now, key)}" for key in keys[:4]]
    return "; ".join(shown) + (f"; and {len(keys) - 4} more" if len(keys) > 4 else "")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "absent"
    text = json.dumps(values[key], ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:20]}...{text[-12:]}"
