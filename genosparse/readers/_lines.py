"""Bytes of FASTA lines to letters, token ids and soft mask, natively or by numpy.

``native/fasta.c`` is plain C, built with the package where there is a compiler, and compiled once for each of
``INSTRUCTION_SETS``; the best that the processor has is used. It is called through ctypes, which lets go of the
interpreter's lock, and writes into arrays of numpy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genosparse.readers._fasta_bytes import FastaRecord
from genosparse.tokenizers import ENCODE_TABLE

__all__ = [
    "INSTRUCTION_SETS",
    "Layout",
    "address",
    "instruction_set",
    "letters_of_bytes",
    "use_instruction_set",
    "why_not",
    "write_bases",
]

INSTRUCTION_SETS = ("plain", "avx2")  # in ascending order; as setup.py names the variants

_MOST_OFFSET = 1 << 62  # that the library can reckon with
_CODES = ENCODE_TABLE[0x40:0x60]  # by a letter's five low bits


class Layout(ctypes.Structure):
    """``struct layout`` of fasta.c: where a contig's letters are, and what their token ids are."""

    _fields_ = (
        ("offset", ctypes.c_int64),
        ("line_bases", ctypes.c_int64),
        ("line_width", ctypes.c_int64),
        ("codes", ctypes.c_uint8 * 32),
    )

    @classmethod
    def of(cls, record: FastaRecord) -> Layout | None:
        """That of a contig; None where its places in the file are beyond what the library can reckon with."""
        if max(record.end_offset, record.line_width) > _MOST_OFFSET:
            return None
        return cls(record.offset, record.line_bases, record.line_width, (ctypes.c_uint8 * 32)(*_CODES))


def _functions_of(library: ctypes.CDLL) -> dict[str, tuple[Any, Any]]:
    """By instruction set that the processor has, the two functions of a library, if it is of these sources."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in INSTRUCTION_SETS:
        layout_size = getattr(library, f"genosparse_fasta_layout_size_{name}", None)
        if layout_size is not None and layout_size() == ctypes.sizeof(Layout):
            of_file = getattr(library, f"genosparse_bases_of_file_{name}")
            of_bytes = getattr(library, f"genosparse_bases_of_bytes_{name}")
            places = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3]
            of_file.argtypes, of_bytes.argtypes = [ctypes.c_int, *places], [ctypes.c_void_p, *places]
            found[name] = of_file, of_bytes
    return found


def _load() -> dict[str, tuple[Any, Any]]:
    """Those of the library that was built with the package, if there is one that can be loaded."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            try:
                return _functions_of(ctypes.CDLL(str(path)))
            except (OSError, AttributeError):
                return {}
    return {}


_functions = _load()
_chosen: str | None = next(reversed(_functions), None)


def instruction_set() -> str | None:
    """The one in use, or None where numpy serves."""
    return _chosen


@contextmanager
def use_instruction_set(name: str | None) -> Iterator[None]:
    """Use another one that there is, or numpy for None: for tests and measurements."""
    global _chosen
    assert name is None or name in _functions, name
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def why_not() -> str | None:
    """Why the library cannot serve, as a sentence's end; None where it can."""
    return None if _functions else "the package was installed without a C compiler; install one, and reinstall it"


def address(array: NDArray[Any] | bytearray) -> int:
    """Where the bytes of a contiguous array, which can be written to, begin in memory."""
    buffer = array if isinstance(array, bytearray) else array.data
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # faster than array.ctypes.data by far


def write_bases(
    source: int | bytearray,
    layout: Layout,
    start: int,
    end: int,
    tokens: int | None,
    soft_mask: int | None,
    letters: int | None,
) -> bool:
    """Write bases ``[start, end)`` of a contig to where addresses point, a byte each.

    There is an instruction set in use.

    Args:
        source: The descriptor of its plain file; or all bytes between the first base and the last one.
        layout: Where the contig is.
        start: First position.
        end: The position after the last one, within the contig.
        tokens: Where token ids go, if they are wanted.
        soft_mask: Where 1 goes for lower case, else 0, if it is wanted beside ``tokens``.
        letters: Where letters go as they are in the file, whatever they are, if they are wanted.

    Returns:
        Whether it was done: not where bases cannot be read, or line ends are not where they must be, or (with
        ``tokens``) a letter is no nucleotide code. What is written then is of no use.
    """
    assert _chosen is not None
    of_file, of_bytes = _functions[_chosen]
    function, given = (of_file, source) if isinstance(source, int) else (of_bytes, address(source))
    done: int = function(given, ctypes.addressof(layout), start, end, tokens, soft_mask, letters)
    return done == 1


def letters_of_bytes(raw: bytearray, record: FastaRecord, start: int) -> bytearray | None:
    """The letters among the bytes from the base ``start`` to another one; None where line ends are not as they must be.

    The same in numpy; letters are as they are in the file, whatever they are.
    """
    line_bases, line_width = record.line_bases, record.line_width
    column = start % line_bases
    if column + len(raw) <= line_bases:
        return raw
    num_lines = -(-(column + len(raw)) // line_width)
    lines = np.full((num_lines, line_width), ord("\n"), np.uint8)
    lines.reshape(-1)[column : column + len(raw)] = np.frombuffer(raw, np.uint8)
    ends = lines[:, line_bases:]
    is_blank = (ends == ord(" ")) | ((ends >= ord("\t")) & (ends <= ord("\r")))
    if not is_blank.all() or (line_width > line_bases and (ends[:, -1] != ord("\n")).any()):
        return None
    missing = num_lines * line_width - column - len(raw) - (line_width - line_bases)  # of the last line's letters
    letters = lines[:, :line_bases].reshape(-1)
    return bytearray(letters[column : len(letters) - missing])
