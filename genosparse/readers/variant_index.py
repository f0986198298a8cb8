"""Where in a bgzip or BCF file a region begins, by the tabix (.tbi) or CSI (.csi) index beside it.

An index is used only where it is not older than its file, ends exactly where the file ends, and leaves no gap.
Formats: the SAM/tabix and CSIv1 specifications of hts-specs.
"""

import gzip
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from genosparse.errors import GenosparseWarning
from genosparse.inputs import BGZF_EOF
from genosparse.readers._bgzf import BlockReader
from genosparse.readers._bgzf_chunks import Chunks, chunks_fit

__all__ = ["VariantIndex", "find_index"]

_LINEAR_SHIFT = 14
_TBI_DEPTH = 5
_MOST_DEPTH, _MOST_SHIFT = 10, 31
_NO_CONTIG = -2  # a line of none that the index knows
_BCF_RECORD = struct.Struct("<IIi")  # sizes of its two parts, then its contig
_BLOCK_HEADER = struct.Struct("<4s6xH2sHH")  # gzip magic, XLEN, then the BC subfield: its name, length and BSIZE


@dataclass(slots=True)
class _ContigIndex:
    begin: int = 0  # virtual offset of the contig's first record; 0 where it has none
    end: int = 0
    linear: tuple[int, ...] = ()  # tabix: virtual offsets per window of 2^14 bases
    bins: dict[int, int] = field(default_factory=dict)  # CSI: the least offset that matters to a bin


@dataclass(frozen=True, slots=True)
class VariantIndex:
    """An index that was found to fit its file.

    Attributes:
        path: The index file.
        names: Contigs with records, in the file's order; empty in the index of a BCF file, whose header has them.
    """

    path: Path
    names: tuple[str, ...]
    _contigs: tuple[_ContigIndex, ...]
    _min_shift: int
    _depth: int

    def offset(self, contig: str, start: int) -> int | None:
        """The virtual offset from which records of ``contig`` that reach past ``start`` are found; None: it has none.

        Args:
            contig: One of ``names``.
            start: 0-based position.
        """
        index = self._contigs[self.names.index(contig)]
        if not index.end:
            return None
        return max(index.begin, self._linear_offset(index, start) if index.linear else self._bin_offset(index, start))

    def _linear_offset(self, index: _ContigIndex, start: int) -> int:
        windows = index.linear[min(start >> _LINEAR_SHIFT, len(index.linear) - 1) :]
        # A window of 0 holds no record: what comes later begins with the first window that does.
        return next((offset for offset in windows if offset), 0)

    def _bin_offset(self, index: _ContigIndex, start: int) -> int:
        number = _first_bin(self._depth) + min(start >> self._min_shift, 8**self._depth - 1)
        while number not in index.bins and number:
            parent = (number - 1) >> 3
            number = number - 1 if number > (parent << 3) + 1 else parent
        return index.bins.get(number, 0)


def find_index(path: Path) -> VariantIndex | None:
    """The index beside a bgzip or BCF file, or None when there is none that can be trusted; one notice says why."""
    reason = ""
    for suffix in (".csi", ".tbi"):
        index = path.with_name(path.name + suffix)
        if not index.is_file():
            continue
        if index.stat().st_mtime < path.stat().st_mtime:
            reason = f"{index} is older than the file"
            continue
        try:
            found, chunks = _parse(index)
        except (OSError, EOFError, zlib.error, struct.error, ValueError, OverflowError):
            reason = f"{index} is truncated or damaged"
            continue
        if _fits(path, found, chunks):
            return found
        reason = f"{index} does not fit the file, or the file is damaged"
    if reason:
        message = f"{path} is read from its beginning: {reason}; index it again with `bcftools index --force`"
        warnings.warn(message, GenosparseWarning, stacklevel=4)
    return None


def _fits(path: Path, index: VariantIndex, chunks: Chunks) -> bool:
    if not _ends_with(path, max((contig.end for contig in index._contigs), default=0)):
        return False
    numbers = {name.encode("utf-8", "surrogateescape"): number for number, name in enumerate(index.names)}
    try:
        with BlockReader(path) as stream:
            is_bcf = stream.read(3) == b"BCF"

            def contig_at(offset: int) -> int | None:
                stream.seek(offset)
                if not is_bcf:
                    line = stream.read_line()
                    return None if line is None else numbers.get(line.split(b"\t", 1)[0], _NO_CONTIG)
                head = stream.read(_BCF_RECORD.size)
                return _BCF_RECORD.unpack(head)[2] if head else None

            return chunks_fit(chunks, _first_record(stream, is_bcf), contig_at)
    except (OSError, struct.error, ValueError, OverflowError):
        return False


def _first_record(stream: BlockReader, is_bcf: bool) -> int:
    stream.seek(0)
    if is_bcf:
        _, text_bytes = struct.unpack("<5sI", stream.read(9))
        stream.read(text_bytes)
        return stream.tell()
    while True:
        place = stream.tell()
        line = stream.read_line()
        if line is None or not line.startswith(b"#"):
            return place


def _parse(path: Path) -> tuple[VariantIndex, Chunks]:
    with gzip.open(path, "rb") as stream:
        reader = _Reader(stream.read())
    magic = reader.take("4s")[0]
    if magic == b"TBI\x01":
        (num_contigs,) = reader.take("i")
        names = reader.names()
        if len(names) != num_contigs:
            raise ValueError("names do not fit")
        chunks = Chunks(_first_bin(_TBI_DEPTH + 1))
        contigs = tuple(_tabix_contig(reader, chunks) for _ in range(num_contigs))
        reader.check_end()
        return VariantIndex(path, names, contigs, _LINEAR_SHIFT, _TBI_DEPTH), chunks
    if magic != b"CSI\x01":
        raise ValueError("no index")
    min_shift, depth, num_extra = reader.take("iii")
    extra = _Reader(reader.bytes(num_extra))
    names = extra.names() if num_extra else ()
    (num_contigs,) = reader.take("i")
    if names and len(names) != num_contigs:
        raise ValueError("names do not fit")
    if not (0 <= depth <= _MOST_DEPTH and 0 <= min_shift <= _MOST_SHIFT):
        raise ValueError("bins that cannot be")
    chunks = Chunks(_first_bin(depth + 1))
    contigs = tuple(_csi_contig(reader, _first_bin(depth + 1) + 1, chunks) for _ in range(num_contigs))
    reader.check_end()
    return VariantIndex(path, names, contigs, min_shift, depth), chunks


class _Reader:
    """Little-endian numbers, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> tuple:
        values = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return values

    def bytes(self, number: int) -> bytes:
        return self.take(f"{number}s")[0]

    def check_end(self) -> None:
        """Nothing but the number of records without a place may follow."""
        if len(self._data) - self._at not in (0, 8):
            raise ValueError("it goes on")

    def names(self) -> tuple[str, ...]:
        """Tabix's settings, which end with the names of the contigs."""
        *_, length = self.take("7i")
        return tuple(self.bytes(length).decode("utf-8", "surrogateescape").split("\0")[:-1])


def _tabix_contig(reader: _Reader, chunks: Chunks) -> _ContigIndex:
    contig = _ContigIndex()
    chunks.begin_contig()
    for _ in range(reader.take("i")[0]):
        number, num_chunks = reader.take("Ii")
        _extend(contig, number, reader.take(f"{2 * num_chunks}Q"), _first_bin(_TBI_DEPTH + 1) + 1, chunks)
    contig.linear = reader.take(f"{reader.take('i')[0]}Q")
    chunks.add_linear(contig.linear)
    return contig


def _csi_contig(reader: _Reader, pseudo_bin: int, chunks: Chunks) -> _ContigIndex:
    contig = _ContigIndex()
    chunks.begin_contig()
    for _ in range(reader.take("i")[0]):
        number, offset, num_chunks = reader.take("IQi")
        _extend(contig, number, reader.take(f"{2 * num_chunks}Q"), pseudo_bin, chunks)
        if number != pseudo_bin:
            contig.bins[number] = offset
    chunks.add_places(list(contig.bins.values()))
    return contig


def _extend(contig: _ContigIndex, number: int, offsets: tuple[int, ...], pseudo_bin: int, chunks: Chunks) -> None:
    # The pseudo-bin holds counts of records where others hold offsets.
    if number != pseudo_bin:
        chunks.add_bin(number, offsets)
        contig.begin = min([contig.begin or offsets[0], *offsets[::2]])
        contig.end = max([contig.end, *offsets[1::2]])


def _first_bin(depth: int) -> int:
    """Number of the first bin of the finest level."""
    return ((1 << 3 * depth) - 1) // 7


def _ends_with(path: Path, virtual_offset: int) -> bool:
    """Whether the last record of a BGZF file ends at a virtual offset."""
    block, within = virtual_offset >> 16, virtual_offset & 0xFFFF
    end = path.stat().st_size - len(BGZF_EOF)
    if block == end:
        return within == 0
    if not 0 < block < end:
        return False
    with path.open("rb") as stream:
        stream.seek(block)
        header = stream.read(_BLOCK_HEADER.size)
        if len(header) < _BLOCK_HEADER.size or not header.startswith(b"\x1f\x8b\x08\x04"):
            return False
        size = _BLOCK_HEADER.unpack(header)[4] + 1
        stream.seek(block + size - 4)
        return block + size == end and struct.unpack("<I", stream.read(4))[0] == within
