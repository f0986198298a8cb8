"""BAM without a Python object for each read: whole records out of BGZF's blocks, and where an interval's are.

htslib inflates the blocks and checks their sums; records are found in what it gives.

Layouts: sections 4.2 and 5.2 of the SAM specification (BAM, BAI), the CSI specification. Offsets are virtual: a block's
place in the file << 16 | the place in the block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pysam
from numpy.typing import NDArray

from genosparse.readers._htslib import quiet_htslib
from genosparse.readers.alignments.records import Records

__all__ = ["BinIndex", "Bins", "first_record", "read_records"]

_LEAST_PIECE_BYTES, _MOST_PIECE_BYTES = 1 << 18, 1 << 21
_BAI_DEPTH, _BAI_SHIFT = 5, 14
_MOST_DEPTH = 10


@dataclass(frozen=True)
class Bins:
    """What an index says of one contig.

    Attributes:
        chunks: Begins and ends in turn of the chunks of each bin.
        lows: CSI's least offset of a record that overlaps each bin; empty for BAI.
        linear: BAI's least offset for each window of 16,384 bases, 0 where nothing is; empty for CSI.
    """

    chunks: dict[int, Sequence[int]]
    lows: dict[int, int]
    linear: Sequence[int]

    @cached_property
    def by_chunk(self) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
        """The bin, begin and end of each chunk."""
        numbers = np.repeat(np.array([*self.chunks], np.int64), [len(each) // 2 for each in self.chunks.values()])
        offsets = np.array([offset for each in self.chunks.values() for offset in each], np.uint64)
        return numbers, offsets[::2], offsets[1::2]


class BinIndex:
    """A BAI or CSI file.

    Args:
        data: What it holds, unpacked.

    Attributes:
        is_csi: Whether it is CSI.
        num_bins: Bins that a contig may have; their numbers are below.

    Raises:
        ValueError: It is no such file, or damaged.
        struct.error: It ends too early.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.is_csi = data[:4] == b"CSI\x01"
        if not self.is_csi and data[:4] != b"BAI\x01":
            raise ValueError("neither BAI nor CSI")
        at = 4
        self._shift, self._depth = _BAI_SHIFT, _BAI_DEPTH
        if self.is_csi:
            self._shift, self._depth, aux_bytes = struct.unpack_from("<iii", data, at)
            at += 12 + aux_bytes
        if not 0 <= self._depth <= _MOST_DEPTH or not 0 < self._shift + 3 * self._depth < 64 or at < 4:
            raise ValueError("a depth that cannot be")
        self.num_bins = ((1 << 3 * (self._depth + 1)) - 1) // 7
        self._bin_head = struct.Struct("<IQi" if self.is_csi else "<Ii")
        (count,) = struct.unpack_from("<i", data, at)
        if not 0 <= count <= len(data) // 4:
            raise ValueError("a number of contigs that cannot be")
        self._contigs_at = [at + 4]
        for _ in range(count):
            self._contigs_at.append(self._passed(self._contigs_at[-1]))
        # The number of reads without a place may follow.
        if self._contigs_at[-1] not in (len(data), len(data) - 8):
            raise ValueError("bytes that belong to nothing")
        self._last: tuple[int, Bins] | None = None

    def __len__(self) -> int:
        """Number of contigs."""
        return len(self._contigs_at) - 1

    def _passed(self, at: int) -> int:
        """Where the next contig begins."""
        data, head = self._data, self._bin_head
        (num_bins,) = struct.unpack_from("<i", data, at)
        at += 4
        if num_bins < 0:
            raise ValueError("a number of bins that cannot be")
        for _ in range(num_bins):
            num_chunks = head.unpack_from(data, at)[-1]
            if num_chunks < 0:
                raise ValueError("a number of chunks that cannot be")
            at += head.size + 16 * num_chunks
        if not self.is_csi:
            (num_windows,) = struct.unpack_from("<i", data, at)
            if num_windows < 0:
                raise ValueError("a number of windows that cannot be")
            at += 4 + 8 * num_windows
        return at

    def bins(self, contig: int) -> Bins:
        """The bins of a contig, by its number.

        Raises:
            ValueError: A bin is there twice.
        """
        last = self._last
        if last is not None and last[0] == contig:
            return last[1]
        data, head, at = self._data, self._bin_head, self._contigs_at[contig]
        (count,) = struct.unpack_from("<i", data, at)
        at += 4
        chunks: dict[int, Sequence[int]] = {}
        lows: dict[int, int] = {}
        pseudo_bins = 0
        for _ in range(count):
            number, *low, num_chunks = head.unpack_from(data, at)
            offsets = struct.unpack_from(f"<{2 * num_chunks}Q", data, at + head.size)
            at += head.size + 16 * num_chunks
            if number == self.num_bins + 1:  # the pseudo-bin: counts of records where others hold offsets
                pseudo_bins += 1
                if num_chunks != 2:
                    raise ValueError("a pseudo-bin that cannot be")
                continue
            chunks[number] = offsets
            if low:
                lows[number] = low[0]
        linear: Sequence[int] = ()
        if not self.is_csi:
            (num_windows,) = struct.unpack_from("<i", data, at)
            linear = struct.unpack_from(f"<{num_windows}Q", data, at + 4)
        if len(chunks) + pseudo_bins != count or pseudo_bins > 1:
            raise ValueError("a bin that is there twice")
        bins = Bins(chunks, lows, linear)
        self._last = contig, bins
        return bins

    def spans(self, contig: int, start: int, end: int) -> list[tuple[int, int]]:
        """Offsets between which the records are that overlap ``[start, end)``, in the order of the file."""
        bins = self.bins(contig)
        numbers, begins, ends = bins.by_chunk
        end = min(end, 1 << self._shift + 3 * self._depth)
        if start >= end:
            return []
        wanted = np.zeros(len(numbers), np.bool_)
        for level in range(self._depth + 1):
            first = ((1 << 3 * level) - 1) // 7
            shift = self._shift + 3 * (self._depth - level)
            wanted |= (numbers >= first + (start >> shift)) & (numbers <= first + (end - 1 >> shift))
        wanted &= ends > np.uint64(self._least_offset(bins, start))
        spans: list[tuple[int, int]] = []
        for begin, stop in sorted(zip(begins[wanted].tolist(), ends[wanted].tolist(), strict=True)):
            if spans and begin <= spans[-1][1]:
                spans[-1] = spans[-1][0], max(stop, spans[-1][1])
            else:
                spans.append((begin, stop))
        return spans

    def _least_offset(self, bins: Bins, start: int) -> int:
        """An offset before which no record reaches ``start``."""
        window = start >> self._shift
        if not self.is_csi:
            return bins.linear[window] if window < len(bins.linear) else 0
        # Of the nearest bin that is there: of the window, to its left, or around those.
        number = ((1 << 3 * self._depth) - 1) // 7 + window
        while number and number not in bins.lows:
            parent = (number - 1) >> 3
            number = number - 1 if number > (parent << 3) + 1 else parent
        return bins.lows.get(number, 0)


def first_record(stream: pysam.BGZFile) -> int:
    """Offset of a BAM file's first record."""
    stream.seek(0)
    _, text_bytes = struct.unpack("<4si", stream.read(8))
    stream.read(text_bytes)
    (num_contigs,) = struct.unpack("<i", stream.read(4))
    for _ in range(num_contigs):
        (name_bytes,) = struct.unpack("<i", stream.read(4))
        stream.read(name_bytes + 4)
    return int(stream.tell())


def read_records(
    stream: pysam.BGZFile, spans: Sequence[tuple[int, int | None]], num_contigs: int, path: Path
) -> Iterator[Records]:
    """The records between offsets, many at a time, and some behind them.

    Args:
        stream: The file.
        spans: Offsets of a first record, and of the one behind the last (None: the file's end); as they rise.
        num_contigs: Contigs in the header.
        path: The file, for messages.

    Raises:
        OSError: A block cannot be read.
        ValueError: The file ends within a record, or a record's sizes contradict each other.
    """
    rest = b""
    size = _LEAST_PIECE_BYTES
    for index, (begin, end) in enumerate(spans):
        if index == 0 or begin > stream.tell():
            stream.seek(begin)
            rest = b""
        while end is None or stream.tell() < end:
            with quiet_htslib():
                piece = stream.read(size)
            if not piece:
                if rest:
                    raise ValueError("the file ends within a record")
                return
            buffer = np.frombuffer(rest + piece, np.uint8)
            records, done = Records.parse(buffer, num_contigs, path)
            rest = buffer[done:].tobytes()
            # A record that is longer than all pieces so far wants larger ones.
            size = max(min(2 * size, _MOST_PIECE_BYTES), len(rest))
            if len(records):
                yield records
