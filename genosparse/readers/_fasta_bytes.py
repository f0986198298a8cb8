"""The bytes of an indexed FASTA file, plain or compressed by bgzip, by their places in what is unpacked."""

from __future__ import annotations

import contextlib
import os
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genosparse.errors import FileFormatError, InputFileNotFoundError
from genosparse.inputs import Closing
from genosparse.readers._bgzf import BlockReader, KeptBlocks

__all__ = ["FastaBytes", "FastaRecord", "ForeignIndexError", "IndexedFasta"]


class ForeignIndexError(FileFormatError):
    """bgzip's index has blocks elsewhere than the file has them."""


class IndexedFasta(NamedTuple):
    """A FASTA file and its index; ``gzi`` where it is compressed by bgzip."""

    fasta: Path
    fai: Path
    gzi: Path | None


class FastaRecord(NamedTuple):
    """A line of a .fai file, without the name: where a contig's bases are in what is unpacked."""

    length: int
    offset: int
    line_bases: int
    line_width: int

    def byte_offset(self, position0: int) -> int:
        """Where a base is."""
        return self.offset + position0 // self.line_bases * self.line_width + position0 % self.line_bases

    @property
    def end_offset(self) -> int:
        """The byte after the last base."""
        return self.byte_offset(self.length - 1) + 1


class FastaBytes(Closing):
    """The unpacked bytes of an indexed file, line ends and headers included; a context manager.

    The file is read at given places, so that processes may share its descriptor over a fork; threads may not share a
    reader of bgzip.

    Args:
        index: The file and its index.
        kept: Where bgzip's unpacked blocks stay; None for the reader's own.

    Attributes:
        file: The descriptor of a plain file; None for bgzip.

    Raises:
        InputFileNotFoundError: The file cannot be opened.
        FileFormatError: The .gzi is not bgzip's index.
        OSError: The .gzi cannot be read.
    """

    def __init__(self, index: IndexedFasta, kept: KeptBlocks | None = None) -> None:
        self.file: int | None = None
        self._blocks: BlockReader | None = None
        if index.gzi is not None:
            starts = _read_gzi(index.gzi)
            # Where blocks begin, packed and unpacked; of a memoryview a search takes out what it needs alone.
            self._packed, self._unpacked = (np.ascontiguousarray(column).data for column in starts.T)
            self._blocks = BlockReader(index.fasta, kept)
            return
        try:
            self.file = os.open(index.fasta, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InputFileNotFoundError(f"{index.fasta} does not exist any more") from None
        except OSError as error:
            raise InputFileNotFoundError(f"{index.fasta} cannot be read ({error.strerror})") from None

    def read(self, offset: int, size: int) -> bytearray:
        """The bytes from a place on, of which the first is within the file: fewer at its end.

        Raises:
            OSError: They cannot be read.
            OverflowError: No file has such a place.
            FileFormatError: bgzip's data are damaged.
            ForeignIndexError: bgzip's index is of another file.
        """
        buffer = bytearray()
        if self._blocks is not None:
            self._blocks.seek(self._place(offset))
            following = bisect_right(self._unpacked, offset + size - 1)
            # Nothing is read ahead behind the last block that is wanted.
            end = self._packed[following] << 16 if following < len(self._packed) else None
            self._blocks.read_onto(buffer, size, end)
            return buffer
        assert self.file is not None
        while len(buffer) < size and (piece := os.pread(self.file, size - len(buffer), offset + len(buffer))):
            buffer += piece
        return buffer

    def _place(self, offset: int) -> int:
        """Where to seek for a byte: bgzip counts in the file's bytes times 65,536, plus the byte within the block."""
        assert self._blocks is not None
        block = bisect_right(self._unpacked, offset) - 1
        begin, first = self._packed[block], self._unpacked[block]
        within: int = offset - first
        # A wrong entry would shift the bases without a word: the next one has to tell the block's true size.
        is_last = block + 1 == len(self._unpacked)
        if within > 0xFFFF or not (is_last or self._blocks.block_size(begin) == self._unpacked[block + 1] - first):
            raise ForeignIndexError("the bgzip index is of another file")
        return begin << 16 | within

    def close(self) -> None:
        """Close the file."""
        file, self.file = self.file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)
        if self._blocks is not None:
            self._blocks.close()

    def __del__(self) -> None:
        self.close()


def _read_gzi(gzi: Path) -> NDArray[np.int64]:
    """Compressed and uncompressed offsets of the blocks ``[num_blocks, 2]``, with the first, which the file omits."""
    numbers = np.frombuffer(gzi.read_bytes()[: gzi.stat().st_size // 8 * 8], "<u8").astype(np.int64)
    if not len(numbers) or len(numbers) != 1 + 2 * int(numbers[0]) or (numbers < 0).any():
        raise FileFormatError(f"{gzi} is not a bgzip index")
    starts = np.concatenate([np.zeros((1, 2), np.int64), numbers[1:].reshape(-1, 2)])
    if (np.diff(starts[:, 0]) <= 0).any() or (np.diff(starts[:, 1]) < 0).any():
        raise FileFormatError(f"{gzi} is not in order")
    return starts
