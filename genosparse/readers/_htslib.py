"""What the readers share about pysam."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pysam

__all__ = ["quiet_htslib"]

_lock = threading.Lock()
_depth = 0
_verbosity = 0


@contextmanager
def quiet_htslib() -> Iterator[None]:
    """Keep htslib's own messages off standard error while an error of ours will say the same thing better."""
    global _depth, _verbosity
    with _lock:
        if _depth == 0:
            _verbosity = pysam.set_verbosity(0)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                pysam.set_verbosity(_verbosity)
