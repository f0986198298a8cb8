"""BAM without a Python object for each read: whole records out of BGZF's blocks, and where an interval's are.

Layouts: sections 4.2 and 5.2 of the SAM specification (BAM, BAI), the CSI specification. Offsets are virtual, those of
``BlockReader``.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from genosparse.inputs import is_gzip
from genosparse.readers._bgzf import BlockReader
from genosparse.readers.alignments.records import Records

__all__ = ["BAI_SHIFT", "BinIndex", "Bins", "DamagedIndexError", "first_record", "read_records"]

# Unpacked bytes that are taken at once. A piece costs some 0.1 ms whatever it holds, and half of an interval's last one
# is for nothing; from a few MB on it leaves the processor's caches.
_LEAST_PIECE_BYTES, _MOST_PIECE_BYTES = 1 << 18, 1 << 21
#: Of a BAI file, and of what samtools writes as CSI: log2 of the bases of the smallest bins.
BAI_SHIFT = 14
_BAI_DEPTH = 5
_MOST_DEPTH = 10  # numbers of bins have 32 bits
_MARGIN = 256  # bases behind a contig's end that samtools lets an index cover
_MOST_OFFSET = (1 << 63) - 1
_BAI_BIN = np.dtype([("number", "<u4"), ("num_chunks", "<i4")])
_CSI_BIN = np.dtype([("number", "<u4"), ("low", "<u8"), ("num_chunks", "<i4")])
_CHUNK_BYTES = 16


class DamagedIndexError(ValueError):
    """An index names a place where there is no record."""


@dataclass(frozen=True)
class Bins:
    """What an index says of one contig. Legend: B bins, C chunks, W windows of 16,384 bases.

    Attributes:
        numbers: The bins, as they rise, int64 ``[B]``.
        first: The first chunk of each bin, and behind the last one, int64 ``[B + 1]``.
        chunks: Begin and end of each chunk, bin by bin, int64 ``[C, 2]``.
        lows: CSI's least offset of a record that overlaps each bin, int64 ``[B]``; empty for BAI.
        linear: BAI's least offset for each window, 0 where nothing is, int64 ``[W]``; empty for CSI.
    """

    numbers: NDArray[np.int64]
    first: NDArray[np.int64]
    chunks: NDArray[np.int64]
    lows: NDArray[np.int64]
    linear: NDArray[np.int64]

    @cached_property
    def least(self) -> NDArray[np.int64]:
        """BAI's least offset for each window; samtools 0.1 left it out where nothing begins, ``[W]``."""
        return np.maximum.accumulate(self.linear)

    def low(self, number: int) -> int | None:
        """CSI's least offset of a bin, None where the bin is not there."""
        at = int(self.numbers.searchsorted(number))
        return int(self.lows[at]) if at < len(self.numbers) and self.numbers[at] == number else None


class BinIndex:
    """A BAI or CSI file.

    Args:
        data: What it holds, unpacked.
        longest: Bases of the longest contig.

    Attributes:
        is_csi: Whether it is CSI.
        shift: Log2 of the bases of the smallest bins.
        num_bins: Bins that a contig may have; their numbers are below.

    Raises:
        ValueError: It is no such file, or damaged, or its bins do not fit contigs so long.
        struct.error: It ends too early.
    """

    def __init__(self, data: bytes, longest: int = 0) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self.is_csi = data[:4] == b"CSI\x01"
        if not self.is_csi and data[:4] != b"BAI\x01":
            raise ValueError("neither BAI nor CSI")
        at = 4
        self.shift, self._depth = BAI_SHIFT, _BAI_DEPTH
        if self.is_csi:
            self.shift, self._depth, aux_bytes = struct.unpack_from("<iii", data, at)
            at += 12 + aux_bytes
        if self.shift < 0 or not 0 <= self._depth <= _MOST_DEPTH or self.shift + 3 * self._depth >= 63 or at < 4:
            raise ValueError("bins that cannot be")
        # With another size of bins, records would be looked for where they are not. BAI's is fixed; else levels are
        # added until the longest contig is covered.
        most = self.shift + 3 * self._depth
        is_fixed = (self.shift, self._depth) == (BAI_SHIFT, _BAI_DEPTH)
        if longest > 1 << most or (self._depth > 1 and not is_fixed and longest + _MARGIN <= 1 << most - 6):
            raise ValueError("bins that do not fit the contigs")
        self.num_bins = ((1 << 3 * (self._depth + 1)) - 1) // 7
        self._bin = _CSI_BIN if self.is_csi else _BAI_BIN
        (count,) = struct.unpack_from("<i", data, at)
        if not 0 <= count <= len(data) // 4:
            raise ValueError("a number of contigs that cannot be")
        at += 4
        self._places: list[NDArray[np.int64]] = []  # of each contig's bins, and where they end
        for _ in range(count):
            places, at = self._passed(data, at)
            self._places.append(places)
        # The number of reads without a place may follow.
        if at not in (len(data), len(data) - 8):
            raise ValueError("bytes that belong to nothing")
        # All contigs that were asked for: intervals come in any order.
        self._bins: dict[int, Bins] = {}

    @classmethod
    def read(cls, path: Path, longest: int) -> BinIndex:
        """A file, compressed or not.

        Raises:
            OSError: It cannot be read.
            ValueError: It is no index, or damaged, or its bins do not fit contigs so long.
        """
        data = path.read_bytes()
        try:
            return cls(gzip.decompress(data) if is_gzip(data) else data, longest)
        except (EOFError, zlib.error, struct.error, gzip.BadGzipFile) as error:
            raise ValueError(str(error)) from None

    def __len__(self) -> int:
        """Number of contigs."""
        return len(self._places)

    def _passed(self, data: bytes, at: int) -> tuple[NDArray[np.int64], int]:
        """Where a contig's bins are and end, and where the next contig begins."""
        int32 = struct.Struct("<i")
        (num_bins,) = int32.unpack_from(data, at)
        at += 4
        if not 0 <= num_bins <= len(data):
            raise ValueError("a number of bins that cannot be")
        places = []
        head = self._bin.itemsize
        for _ in range(num_bins):
            places.append(at)
            (num_chunks,) = int32.unpack_from(data, at + head - 4)
            if num_chunks < 0:
                raise ValueError("a number of chunks that cannot be")
            at += head + _CHUNK_BYTES * num_chunks
        places.append(at)
        if at > len(data):
            raise ValueError("it ends within a bin")
        if not self.is_csi:
            (num_windows,) = int32.unpack_from(data, at)
            if num_windows < 0:
                raise ValueError("a number of windows that cannot be")
            at += 4 + 8 * num_windows
            if at > len(data):
                raise ValueError("it ends within a linear index")
        return np.array(places, np.int64), at

    def bins(self, contig: int) -> Bins:
        """The bins of a contig, by its number.

        Raises:
            ValueError: A bin is there twice or cannot be, or an offset cannot.
        """
        bins = self._bins.get(contig)
        if bins is None:
            bins = self._bins[contig] = self._parsed(self._places[contig])
        return bins

    def _parsed(self, places: NDArray[np.int64]) -> Bins:
        data, size = self._data, self._bin.itemsize
        end, places = int(places[-1]), places[:-1]
        heads = np.empty(0, self._bin)
        if len(places):
            heads = sliding_window_view(data, size)[places].view(self._bin)[:, 0]
        is_pseudo = heads["number"] == self.num_bins + 1  # counts of records where others hold offsets
        if (heads["num_chunks"][is_pseudo] != 2).any() or is_pseudo.sum() > 1:
            raise ValueError("a pseudo-bin that cannot be")
        heads, places = heads[~is_pseudo], places[~is_pseudo]
        order = np.argsort(heads["number"])
        heads, places = heads[order], places[order]
        numbers, num_chunks = heads["number"].astype(np.int64), heads["num_chunks"].astype(np.int64)
        if (np.diff(numbers) == 0).any():
            raise ValueError("a bin that is there twice")
        if (numbers >= self.num_bins).any():
            raise ValueError("a bin that does not exist")
        first = np.concatenate([[0], np.cumsum(num_chunks)])
        within = np.arange(first[-1]) - np.repeat(first[:-1], num_chunks)
        chunks = np.empty((0, 2), "<u8")
        if len(within):
            at = np.repeat(places + size, num_chunks) + _CHUNK_BYTES * within
            chunks = sliding_window_view(data, _CHUNK_BYTES)[at].view("<u8")
        lows, linear = np.empty(0, "<u8"), np.empty(0, "<u8")
        if self.is_csi:
            lows = heads["low"]
        else:
            num_windows = int(data[end : end + 4].view("<i4")[0])
            linear = data[end + 4 : end + 4 + 8 * num_windows].view("<u8")
        if any((offsets > _MOST_OFFSET).any() for offsets in (chunks, lows, linear)):
            raise ValueError("an offset that cannot be")
        if (chunks[:, 1] < chunks[:, 0]).any():
            raise ValueError("a chunk that ends before it begins")
        return Bins(numbers, first, chunks.astype(np.int64), lows.astype(np.int64), linear.astype(np.int64))

    def spans(self, contig: int, start: int, end: int) -> list[tuple[int, int]]:
        """Offsets between which the records are that overlap ``[start, end)``, in the order of the file.

        Raises:
            ValueError: What the index says of the contig cannot be.
        """
        bins = self.bins(contig)
        end = min(end, 1 << self.shift + 3 * self._depth)
        if start >= end:
            return []
        levels = [
            (((1 << 3 * level) - 1) // 7, self.shift + 3 * (self._depth - level)) for level in range(self._depth + 1)
        ]
        least = bins.numbers.searchsorted([number + (start >> shift) for number, shift in levels])
        most = bins.numbers.searchsorted([number + (end - 1 >> shift) for number, shift in levels], side="right")
        wanted = [bins.chunks[bins.first[low] : bins.first[high]] for low, high in zip(least, most, strict=True)]
        chunks = np.concatenate(wanted)
        chunks = chunks[chunks[:, 1] > self._least_offset(bins, start)]
        spans: list[tuple[int, int]] = []
        for begin, stop in sorted(map(tuple, chunks.tolist())):
            if spans and begin <= spans[-1][1]:
                spans[-1] = spans[-1][0], max(stop, spans[-1][1])
            else:
                spans.append((begin, stop))
        return spans

    def _least_offset(self, bins: Bins, start: int) -> int:
        """An offset before which no record reaches ``start``."""
        window = start >> self.shift
        if not self.is_csi:
            return int(bins.least[min(window, len(bins.least) - 1)]) if len(bins.least) else 0
        # Of the nearest bin that is there: of the window, to its left, or around those.
        number = ((1 << 3 * self._depth) - 1) // 7 + window
        while (low := bins.low(number)) is None and number:
            parent = (number - 1) >> 3
            number = number - 1 if number > (parent << 3) + 1 else parent
        return low or 0


def first_record(stream: BlockReader) -> int:
    """Offset of a BAM file's first record."""
    stream.seek(0)
    _, text_bytes = struct.unpack("<4si", stream.read(8))
    stream.read(text_bytes)
    (num_contigs,) = struct.unpack("<i", stream.read(4))
    for _ in range(num_contigs):
        (name_bytes,) = struct.unpack("<i", stream.read(4))
        stream.read(name_bytes + 4)
    return stream.tell()


def read_records(
    stream: BlockReader,
    spans: Sequence[tuple[int, int | None]],
    num_contigs: int,
    path: Path,
    interval: tuple[int, int, int] | None = None,
) -> Iterator[Records]:
    """The records between offsets, many at a time.

    Args:
        stream: The file.
        spans: Offsets of a first record, and of the one behind the last (None: the file's end); as they rise.
        num_contigs: Contigs in the header.
        path: The file, for messages.
        interval: Number of a contig, start and end: the records end with the first that does not begin on the one
            before the end, however far the spans go. None: they do not.

    Raises:
        DamagedBlockError: A block cannot be unpacked.
        DamagedIndexError: A span begins where the file ends.
        ValueError: The file ends within a record, or a record's sizes contradict each other. What comes before it has
            been given.
    """
    before = None if interval is None else (interval[0], interval[2])
    size = _LEAST_PIECE_BYTES
    for begin, end in spans:
        stream.seek(begin)
        buffer, lacking = bytearray(), 0  # from the beginning of a record that is not whole
        is_cut = False  # whether a record reaches past the span's end: an index may say so, and htslib reads it whole
        while buffer or not is_cut:
            # A record that is longer than a piece is read to its end at once.
            wanted = lacking if is_cut else max(size, lacking)
            if not stream.read_onto(buffer, wanted, None if is_cut else end):
                if not buffer:
                    if end is not None and stream.tell() == begin < end:
                        raise DamagedIndexError
                    break
                if is_cut or end is None:
                    raise ValueError("the file ends within a record")
                is_cut = True
                continue
            records, done, lacking, is_last, problem = Records.parse(
                np.frombuffer(buffer, np.uint8), num_contigs, path, before
            )
            # What lies before an interval and behind it is for nothing, and most of what is read for a small one.
            if interval is None or (len(records) and records.fields["position0"][-1] >= interval[1]):
                size = min(2 * size, _MOST_PIECE_BYTES)
            if len(records):
                yield records
            if problem:
                raise ValueError(problem)
            if is_last:
                return
            del records  # of the buffer, which then may grow where it is
            if done:
                buffer = buffer[done:]
