"""What the readers share about pysam."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import pysam
from pysam.libcutils import set_encoding_error_handler

__all__ = ["PerThread", "quiet_htslib", "samtools"]

_Handle = TypeVar("_Handle")

_lock = threading.Lock()
_depth = 0
_verbosity = 0
_error_handler = "strict"


@contextmanager
def quiet_htslib() -> Iterator[None]:
    """Keep htslib's own messages off standard error while an error of ours will say the same thing better.

    pysam meanwhile carries bytes that are not UTF-8 as surrogate escapes, in what it gives and what it takes.
    """
    global _depth, _verbosity, _error_handler
    with _lock:
        if _depth == 0:
            _verbosity = pysam.set_verbosity(0)
            _error_handler = set_encoding_error_handler("surrogateescape")
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _restore()


def _restore() -> None:
    pysam.set_verbosity(_verbosity)
    set_encoding_error_handler(_error_handler)


def _after_fork() -> None:
    """Forget what the parent's other threads were in the midst of: they do not live on in the child."""
    global _depth, _lock
    _lock = threading.Lock()
    if _depth:
        _depth = 0
        _restore()


os.register_at_fork(after_in_child=_after_fork)


_samtools_lock = threading.Lock()  # samtools keeps its command line in globals


def samtools(command: str, *arguments: str) -> None:
    """Run a command of the samtools that pysam brings.

    Raises:
        pysam.SamtoolsError: It failed.
    """
    with _samtools_lock, quiet_htslib():
        getattr(pysam, command)(*arguments, catch_stdout=False)


class PerThread(Generic[_Handle]):
    """A handle for each thread of each process, opened when it is first asked for.

    A handle of htslib keeps a position, and after a fork it is the parent's.
    """

    def __init__(self, open_handle: Callable[[], _Handle]) -> None:
        self._open = open_handle
        self._local = threading.local()

    def get(self) -> _Handle:
        """This thread's handle."""
        process = os.getpid()
        if getattr(self._local, "process", None) != process:
            self._local.handle = self._open()
            self._local.process = process
        handle: _Handle = self._local.handle
        return handle

    def forget(self) -> None:
        """Open a new handle the next time."""
        self._local.process = None

    @contextmanager
    def borrowed(self) -> Iterator[_Handle]:
        """This thread's handle for as long as it is in use; who asks meanwhile gets another one.

        A handle that an exception ends the use of is not given again.
        """
        handle = self.get()
        self.forget()
        yield handle
        self._local.handle, self._local.process = handle, os.getpid()
