"""Copies of sequence files that cannot be read at any place as they are.

FASTA compressed by ordinary gzip or with lines of uneven length, 2bit, GenBank and EMBL are written once as FASTA of
one line a record, compressed by bgzip, into the cache folder. A copy is told by the place, size and time of change of
its file.
"""

import gzip
import io
import json
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pysam
from numpy.typing import NDArray

from genosparse.errors import FileFormatError, GenosparseError, GenosparseWarning, OutputError
from genosparse.inputs import TextLines, damaged_error, is_gzip, read_head, truncated_error
from genosparse.readers._cache import cache_stem
from genosparse.readers._flat_files import FLAT_FILE_STARTS, contig_name, flat_file_records

__all__ = ["EXPECTED", "ROOM", "circular_contigs", "copy_of", "make_copy", "sequence_format"]

ROOM = "fasta"  # of the cache
EXPECTED = "a FASTA file"

_HEAD_BYTES = 1 << 16
_COPY_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANKS = b" \t\r\n\v\f"
_LETTERS = bytes(range(33, 127))
_BYTES_BEFORE_NOTICE = 1 << 26
_TWOBIT_BASES = np.array([[ord("TCAG"[byte >> shift & 3]) for shift in (6, 4, 2, 0)] for byte in range(256)], np.uint8)
_TWOBIT_SIGNATURES = {b"\x43\x27\x41\x1a": "little", b"\x1a\x41\x27\x43": "big"}
_STARTS = ((b">", "fasta"), *((start.encode(), kind) for kind, start in FLAT_FILE_STARTS.items()))
_OTHER_FORMATS = ((b"@", ", like FASTQ or SAM"), (b"##", ", like GFF or VCF"))
_NAMES = {"fasta": "FASTA", "twobit": "2bit", "genbank": "GenBank", "embl": "EMBL"}


def sequence_format(path: Path) -> str:
    """``fasta``, ``twobit``, ``genbank`` or ``embl``, by the file's first bytes.

    Raises:
        FileFormatError: It is none of these, or empty.
    """
    head = read_head(path, _HEAD_BYTES)
    if head[:4] in _TWOBIT_SIGNATURES:
        return "twobit"
    text = head.removeprefix(_BYTE_ORDER_MARK).lstrip()
    if not text:
        raise FileFormatError(f"{path} is empty; expected {EXPECTED}")
    for start, kind in _STARTS:
        if text.startswith(start):
            return kind
    like = next((like for start, like in _OTHER_FORMATS if text.startswith(start)), "")
    shown = text.splitlines()[0]
    raise FileFormatError(
        f"{path} is not {EXPECTED}: it begins with {shown[:40].decode('utf-8', 'replace')!r}"
        f"{'...' if len(shown) > 40 else ''}{like}; expected '>' and a name, or a 2bit, GenBank or EMBL file"
    )


def copy_of(path: Path) -> Path:
    """Where the copy of a file is, if it has one."""
    return Path(f"{cache_stem(path, ROOM)}.bgz")


def circular_contigs(copy: Path) -> frozenset[str]:
    """The contigs that the original of a copy (GenBank, EMBL) says to be circular."""
    try:
        return frozenset(json.loads(_notes_of(copy).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return frozenset()


def make_copy(path: Path, kind: str) -> Path:
    """Write the copy of a sequence file, and give one notice.

    Args:
        path: The file.
        kind: What ``sequence_format`` says of it.

    Raises:
        FileFormatError: The file is truncated or damaged, has two records of one name, or a record without a name.
        OutputError: The cache folder cannot be written.
    """
    copy = copy_of(path)
    with path.open("rb") as stream:
        compressed = is_gzip(stream.read(2))
    reason, remedy = "has lines of uneven length", "rewrap the file, for instance with `seqkit seq -w 60`,"
    if kind != "fasta":
        reason, remedy = f"is {_NAMES[kind]}", "convert it to FASTA"
    elif compressed:
        reason, remedy = "is compressed by ordinary gzip", "compress the file itself with bgzip"
    notice = (
        f"{path} {reason}, which cannot be read at any place; a bgzip copy is made in {copy.parent} "
        f"({remedy} to do without)"
    )
    write = {"fasta": _write_fasta, "twobit": _write_twobit, "genbank": _write_flat_file, "embl": _write_flat_file}[
        kind
    ]
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".genosparse-", dir=copy.parent) as workspace:
            made = Path(workspace) / copy.name
            # Level 1: eight times the speed of the default for a seventh more space.
            with pysam.BGZFile(str(made), "wb1") as target:
                writer = _Writer(target, path, notice)
                write(path, kind, writer)
                writer.end()
            if writer.circular:
                notes = _notes_of(made)
                notes.write_text(json.dumps(writer.circular), encoding="utf-8")
                notes.replace(_notes_of(copy))  # before the copy, which is what tells that both are there
            made.replace(copy)
    except OSError as error:
        if isinstance(error, GenosparseError):
            raise
        raise OutputError(
            f"no bgzip copy of {path} can be written in {copy.parent} ({error.strerror}); "
            f"set XDG_CACHE_HOME to a folder that can be written, or {remedy.removesuffix(',')}"
        ) from None
    return copy


def _notes_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.circular")


class _Writer:
    """Writes records as they come, in pieces of any size; those without bases are left out.

    The notice comes when the file proves long or, so that an error stands alone, at the end.
    """

    def __init__(self, target: Any, name: Path, notice: str) -> None:
        self.circular: list[str] = []
        self._target, self._name, self._notice = target, name, notice
        self._bytes = 0
        self._contig: bytes | None = None
        self._has_bases = True
        self._seen: set[bytes] = set()

    def begin(self, contig: bytes) -> None:
        if not contig:
            raise FileFormatError(f"{self._name} has a record without a name: a line that is only '>'")
        if any(byte < 33 for byte in contig):
            raise FileFormatError(f"{self._name} has a record name with control characters: {contig!r}; it is damaged")
        self._contig, self._has_bases = contig, False

    def write(self, bases: bytes) -> None:
        if not bases:
            return
        if self._contig is None:
            raise FileFormatError(f"{self._name} has text before its first record; expected '>' and a name")
        if unprintable := bases.translate(None, _LETTERS):
            raise FileFormatError(
                f"{self._name}: contig {self._contig.decode('utf-8', 'replace')!r} has byte 0x{unprintable[0]:02x} "
                "among its bases; the file is damaged, or not text"
            )
        if not self._has_bases:
            if self._contig in self._seen:
                shown = self._contig.decode("utf-8", "replace")
                raise FileFormatError(f"{self._name} has two records of the name {shown!r}; rename one of them")
            self._target.write((b"\n>" if self._seen else b">") + self._contig + b"\n")
            self._seen.add(self._contig)
            self._has_bases = True
        self._target.write(bases)
        self._bytes += len(bases)
        if self._bytes > _BYTES_BEFORE_NOTICE:
            self._tell()

    def end(self) -> None:
        if not self._seen:
            raise FileFormatError(f"{self._name} has no sequence; expected {EXPECTED}")
        if not self._has_bases:
            shown = (self._contig or b"").decode("utf-8", "replace")
            raise FileFormatError(
                f"{self._name}: the last record, {shown!r}, has no sequence; the file may be truncated"
            )
        self._target.write(b"\n")
        self._tell()

    def _tell(self) -> None:
        if self._notice:
            warnings.warn(self._notice, GenosparseWarning, stacklevel=2)
            self._notice = ""


def _write_fasta(path: Path, kind: str, writer: _Writer) -> None:
    with _opened(path) as stream:
        # A line end in front, so that every header follows one; what a piece leaves unfinished goes before the next.
        rest, first = b"\n", True
        while piece := stream.read(_COPY_BYTES):
            text = rest + (piece.removeprefix(_BYTE_ORDER_MARK) if first else piece)
            rest, first = b"", False
            if text.endswith(b"\n"):
                text, rest = text[:-1], b"\n"
            sequence, *records = text.split(b"\n>")
            writer.write(sequence.translate(None, _BLANKS))
            for number, record in enumerate(records, start=1):
                header, line_end, sequence = record.partition(b"\n")
                if not line_end and number == len(records):
                    rest = b"\n>" + header + rest
                    break
                _begin(header, writer)
                writer.write(sequence.translate(None, _BLANKS))
            if len(rest) > _MOST_HEADER_BYTES:
                raise FileFormatError(f"{path} has a header line of more than {_MOST_HEADER_BYTES} bytes")
        if rest.startswith(b"\n>"):
            _begin(rest[2:], writer)


def _begin(header: bytes, writer: _Writer) -> None:
    words = header.split(maxsplit=1)
    writer.begin(words[0] if words else b"")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, uncompressed; what goes wrong with unpacking them is told as an error of the file's."""
    with path.open("rb") as raw:
        compressed = is_gzip(raw.read(2))
        raw.seek(0)
        try:
            yield gzip.GzipFile(fileobj=raw, mode="rb") if compressed else raw  # type: ignore[misc]
        except EOFError:
            raise truncated_error(path) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise damaged_error(path, error) from None


def _write_twobit(path: Path, kind: str, writer: _Writer) -> None:
    # Not by biopython: it takes blocks of N and of lower case unchecked, and damaged ones make it write where they say.
    with path.open("rb") as stream:
        reader = _TwoBitReader(stream, path)
        for contig, offset in reader.records():
            reader.copy(contig, offset, writer)


class _TwoBitReader:
    """Reads UCSC's 2bit, of either version and byte order (https://genome.ucsc.edu/FAQ/FAQformat.html#format7)."""

    def __init__(self, stream: BinaryIO, name: Path) -> None:
        self._stream, self._name = stream, name
        self._size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        signature = stream.read(4)
        if signature not in _TWOBIT_SIGNATURES:
            raise FileFormatError(f"{name} is compressed 2bit; unpack it: 2bit is read at several places at once")
        self._order = _TWOBIT_SIGNATURES[signature]

    def records(self) -> list[tuple[bytes, int]]:
        """Names and places in the file, in its order."""
        version, count, reserved = self._numbers(3)
        if version not in (0, 1):
            raise self._damaged(f"version {version}")
        self._check_reserved(reserved)
        places = []
        for _ in range(count):
            contig = self._bytes(self._bytes(1)[0])
            places.append((contig, int(self._numbers(1, width=8 if version else 4)[0])))
        return places

    def copy(self, contig: bytes, offset: int, writer: _Writer) -> None:
        """Write one record."""
        self._stream.seek(min(offset, self._size))
        length = int(self._numbers(1)[0])
        unknown, masked = self._blocks(length), self._blocks(length)
        self._check_reserved(self._numbers(1)[0])
        packed_from = self._stream.tell()
        if length:
            _begin(contig, writer)
        for start in range(0, length, _COPY_BYTES):
            end = min(start + _COPY_BYTES, length)
            self._stream.seek(packed_from + start // 4)
            packed = np.frombuffer(self._bytes((end - start + 3) // 4), np.uint8)
            bases = _TWOBIT_BASES[packed].reshape(-1)[: end - start]
            for first, last in _overlapping(unknown, start, end):
                bases[first:last] = ord("N")
            for first, last in _overlapping(masked, start, end):
                bases[first:last] |= 0x20
            writer.write(bases.tobytes())

    def _blocks(self, length: int) -> NDArray[np.int64]:
        """Starts and ends ``[num_blocks, 2]``."""
        count = int(self._numbers(1)[0])
        starts, sizes = self._numbers(count), self._numbers(count)
        ends = starts + sizes
        if count and ((starts[1:] < ends[:-1]).any() or ends[-1] > length):
            raise self._damaged("blocks of N or of lower case that overlap or reach past the sequence")
        return np.stack([starts, ends], axis=1)

    def _check_reserved(self, number: int) -> None:
        if number:
            raise self._damaged(f"{number} where the format has 0, near byte {self._stream.tell() - 4}")

    def _numbers(self, count: int, width: int = 4) -> NDArray[np.int64]:
        dtype = f"{'<' if self._order == 'little' else '>'}u{width}"
        return np.frombuffer(self._bytes(count * width), dtype).astype(np.int64)

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._stream.tell():
            raise self._damaged("it ends too early")
        return self._stream.read(count)

    def _damaged(self, what: str) -> FileFormatError:
        return FileFormatError(f"{self._name} is truncated or damaged 2bit ({what}); fetch or write the file again")


def _overlapping(blocks: NDArray[np.int64], start: int, end: int) -> list[list[int]]:
    """The blocks that touch a piece, counted from the piece's start; blocks are in order."""
    first, last = np.searchsorted(blocks[:, 1], start, "right"), np.searchsorted(blocks[:, 0], end, "left")
    return (blocks[first:last].clip(start, end) - start).tolist()


def _write_flat_file(path: Path, kind: str, writer: _Writer) -> None:
    with TextLines(path, EXPECTED, keep_bytes=True) as lines:
        for record in flat_file_records(lines, kind, features=False):
            contig = contig_name(record)
            if not len(record.seq) or not record.seq.defined:
                raise FileFormatError(
                    f"{path}: record {contig!r} has no sequence; fetch the file with its sequences "
                    "(NCBI: 'GenBank (full)')"
                )
            writer.begin(contig.encode("utf-8", "surrogateescape"))
            writer.write(bytes(record.seq))
            if record.annotations.get("topology") == "circular":
                writer.circular.append(contig)
