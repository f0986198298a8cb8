"""Whether an index belongs to its BAM or CRAM file.

Layouts: section 5.2 of the SAM specification (BAI), the CSI specification, section 12 of the CRAM specification (CRAI).
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from genosparse.inputs import is_gzip
from genosparse.readers._bgzf import BlockReader
from genosparse.readers._bgzf_chunks import Chunks, chunks_fit
from genosparse.readers.alignments.bam import BinIndex, first_record

__all__ = ["index_fits"]

_RECORD = struct.Struct("<iii")  # size, contig, position of a BAM record
_NUM_SAMPLED = 64


def index_fits(path: Path, index: Path, lengths: Sequence[int], changed: int) -> bool:
    """Check an index against its file, at a sample of places and at the file's end.

    Args:
        path: A BAM or CRAM file.
        index: Its BAI, CSI or CRAI file.
        lengths: Bases of each contig in the header of ``path``.
        changed: When ``path`` was changed, in nanoseconds.
    """
    try:
        if index.stat().st_mtime_ns < changed:
            return False
        if index.suffix == ".crai":
            data = index.read_bytes()
            return _crai_fits(path, gzip.decompress(data) if is_gzip(data) else data)
        bins = BinIndex.read(index, max(lengths, default=0))
        with BlockReader(path) as stream:
            return len(bins) == len(lengths) and _bins_fit(stream, bins)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, IndexError, OverflowError):
        return False


def _bins_fit(stream: BlockReader, index: BinIndex) -> bool:
    chunks = Chunks(index.num_bins)
    for contig in range(len(index)):
        bins = index.bins(contig)
        chunks.begin_contig()
        offsets = bins.chunks.ravel().tolist()
        for number, (first, end) in zip(bins.numbers.tolist(), pairwise(bins.first.tolist()), strict=True):
            chunks.add_bin(number, offsets[2 * first : 2 * end])
        chunks.add_places(bins.lows.tolist())
        chunks.add_linear(bins.linear.tolist())

    def contig_at(offset: int) -> int | None:
        stream.seek(offset)
        record = stream.read(_RECORD.size)
        return _RECORD.unpack(record)[1] if record else None

    def bin_at(offset: int) -> int:
        stream.seek(offset)
        return int.from_bytes(stream.read(16)[14:], "little")

    # BAM's records have the bin of a BAI.
    return chunks_fit(chunks, first_record(stream), contig_at, None if index.is_csi else bin_at)


def _crai_fits(path: Path, data: bytes) -> bool:
    """Each line names a container, which begins with its contig and ends where the next begins."""
    lines = [tuple(map(int, line.split(b"\t"))) for line in data.splitlines()]
    if not lines or any(len(line) != 6 for line in lines):
        return False
    offsets = sorted({line[3] for line in lines})
    contigs: dict[int, set[int]] = {}
    for line in lines:
        contigs.setdefault(line[3], set()).add(line[0])
    sampled = np.unique(np.linspace(0, len(offsets) - 1, min(len(offsets), _NUM_SAMPLED)).astype(int)).tolist()
    size = path.stat().st_size
    with path.open("rb") as stream:
        for number in sampled:
            stream.seek(offsets[number])
            head = stream.read(64)
            (length,) = struct.unpack_from("<i", head)
            contig, at = _itf8(head, 4)
            if contig != -2 and {contig} != contigs[offsets[number]]:  # -2: several contigs
                return False
            for _ in range(3):  # start, span, number of records
                _, at = _itf8(head, at)
            following = offsets[number + 1] if number + 1 < len(offsets) else size
            # The rest of the header, up to 60 bytes of numbers, has no length of its own.
            if not 0 <= following - offsets[number] - length - at <= 60:
                return False
    return True


def _itf8(data: bytes, at: int) -> tuple[int, int]:
    """An integer of CRAM's variable length, and where it ends."""
    first = data[at]
    extra = 4 if first >= 0xF0 else 3 if first >= 0xE0 else 2 if first >= 0xC0 else 1 if first >= 0x80 else 0
    if extra == 4:
        value = (first & 0xF) << 28 | int.from_bytes(data[at + 1 : at + 4], "big") << 4 | data[at + 4] & 0xF
    else:
        value = (first & (0xFF >> (extra + 1))) << 8 * extra | int.from_bytes(data[at + 1 : at + 1 + extra], "big")
    return (value - (1 << 32) if value >= 1 << 31 else value), at + 1 + extra
