"""Where the readers keep what they make of a file that is not theirs to write beside."""

import hashlib
import os
from pathlib import Path

from genosparse.errors import InputFileNotFoundError

__all__ = ["FileVersion", "cache_folder", "cache_stem", "file_version"]

FileVersion = tuple[int, int]  # size in bytes and time of change in nanoseconds


def file_version(file: Path, name: Path | None = None) -> FileVersion:
    """What changes when a file, called ``name`` in messages, is written anew.

    Raises:
        InputFileNotFoundError: It does not exist or cannot be read.
    """
    try:
        status = file.stat()
    except FileNotFoundError:
        raise InputFileNotFoundError(f"{name or file} does not exist any more") from None
    except OSError as error:
        raise InputFileNotFoundError(f"{name or file} cannot be read ({error.strerror})") from None
    return status.st_size, status.st_mtime_ns


# Of a file's name, so many letters show whose the copy is; its own may be as long as a name can be.
_NAME_LETTERS = 100


def cache_folder(room: str) -> Path:
    """A folder of the cache, which is ``$XDG_CACHE_HOME/genosparse``, by default ``~/.cache/genosparse``."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.cache").expanduser()
    return base / "genosparse" / room


def cache_stem(file: Path, room: str) -> Path:
    """Where the cache keeps what belongs to a file: told apart by its place, size and time of change."""
    file = file.absolute()
    size, changed = file_version(file)
    digest = hashlib.sha256(f"{file.resolve()}\0{size}\0{changed}".encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return cache_folder(room) / f"{digest}-{file.name[-_NAME_LETTERS:]}"
