"""Files as arrays that the operating system reads in when they are looked at."""

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["mapped"]

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_LIBRARY.mmap.restype = ctypes.c_void_p
_LIBRARY.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong,
]  # fmt: skip
_LIBRARY.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def mapped(file: Path) -> NDArray[np.uint8]:
    """The bytes of a file that is not empty, ``[size]``, read-only; they are unmapped with the last array on them.

    No descriptor stays open, as one does with Python's mmap before 3.13: there may be a thousand genomes.

    Raises:
        OSError: The file cannot be opened or mapped.
    """
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        address = _LIBRARY.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, stream.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(file))
    held = (ctypes.c_uint8 * size).from_address(address)
    # Not at exit, when other threads may still look at it.
    weakref.finalize(held, _LIBRARY.munmap, address, size).atexit = False
    array = np.frombuffer(memoryview(held), np.uint8)
    array.setflags(write=False)
    return array
