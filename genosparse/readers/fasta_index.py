"""The index of a FASTA file: found, checked, made, kept in a cache.

htslib trusts an index blindly, so each is checked here against the file before it is used.
"""

import errno
import gzip
import hashlib
import os
import stat
import tempfile
import threading
import warnings
import zlib
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
import pysam
from numpy.typing import NDArray

from genosparse.errors import (
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    InputFileNotFoundError,
    OutputError,
)
from genosparse.inputs import (
    TextLines,
    check_bgzf_end,
    check_input_file,
    damaged_error,
    is_bgzf,
    is_gzip,
    read_head,
    truncated_error,
)
from genosparse.readers._htslib import quiet_htslib

__all__ = ["FileVersion", "IndexedFasta", "check_version", "find_or_make_index", "read_fai"]

_EXPECTED = "a FASTA file"
_HEAD_BYTES = 1 << 16
_OTHER_FORMATS = ((b"@", ", like FASTQ or SAM"), (b"LOCUS", ", like GenBank"), (b"##", ", like GFF or VCF"))
_NUM_RECORDS_SAMPLED = 64
_MOST_HEADER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16
_COPY_BYTES = 1 << 20

FileVersion = tuple[int, int]  # size in bytes and time of change in nanoseconds


class IndexedFasta(NamedTuple):
    """A FASTA file and its index; ``gzi`` where it is compressed by bgzip."""

    fasta: Path
    fai: Path
    gzi: Path | None


class _Record(NamedTuple):
    """A line of a .fai file, without the name."""

    length: int
    offset: int
    line_bases: int
    line_width: int

    def byte_offset(self, position0: int) -> int:
        return self.offset + position0 // self.line_bases * self.line_width + position0 % self.line_bases

    @property
    def end_offset(self) -> int:
        """The byte after the last base."""
        return self.byte_offset(self.length - 1) + 1


class _RawBytes:
    """The (uncompressed) bytes of an indexed file, line ends and headers included, in pieces; a context manager."""

    def __init__(self, index: IndexedFasta, name: Path) -> None:
        self._name = name
        self._starts = None if index.gzi is None else _read_gzi(index.gzi)
        self._stream = index.fasta.open("rb") if index.gzi is None else pysam.BGZFile(str(index.fasta), "rb")
        self._offset, self._piece = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes: fewer at the end of the file."""
        begin = offset - self._offset
        if not 0 <= begin <= begin + size <= len(self._piece):
            # From the byte before, which, unlike the end of the file, lies in a block of bgzip for sure.
            self._offset = max(0, offset - 1)
            begin = offset - self._offset
            try:
                self._stream.seek(self._place(self._offset))
                self._piece = self._stream.read(max(begin + size, _PIECE_BYTES))
            except (OSError, OverflowError):
                raise FileFormatError(f"{self._name} is damaged or does not fit its index") from None
        return self._piece[begin : begin + size]

    def _place(self, offset: int) -> int:
        """Where to seek for a byte: bgzip counts in the file's bytes times 65,536, plus the byte within the block."""
        if self._starts is None:
            return offset
        block = int(np.searchsorted(self._starts[:, 1], offset, side="right")) - 1
        compressed, start = self._starts[block].tolist()
        if offset - start >= 1 << 16:
            raise FileFormatError(f"{self._name} does not fit its bgzip index")
        return (compressed << 16) + offset - start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stream.close()


def _file_version(fasta: Path, name: Path) -> FileVersion:
    try:
        status = fasta.stat()
    except FileNotFoundError:
        raise InputFileNotFoundError(f"{name} does not exist any more") from None
    except OSError as error:
        raise InputFileNotFoundError(f"{name} cannot be read ({error.strerror})") from None
    return status.st_size, status.st_mtime_ns


def check_version(fasta: Path, name: Path, version: FileVersion) -> None:
    """Raise ``FileFormatError`` when a file, called ``name`` in messages, is not the one that was opened."""
    if _file_version(fasta, name) != version:
        raise FileFormatError(f"{name} has changed since it was opened; start again")


def find_or_make_index(path: Path) -> tuple[IndexedFasta, FileVersion]:
    """Find or make the index of a FASTA file, and a bgzip copy where the file needs one.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is not FASTA, is truncated, has lines of uneven length or two records of one name.
        OutputError: Neither beside the file nor in the cache folder can its index be written.
    """
    check_input_file(path, _EXPECTED)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a regular file; expected {_EXPECTED} that can be read at any place")
    _check_first_letter(path)
    fasta = path.absolute()
    with fasta.open("rb") as stream:
        head = stream.read(18)
    if is_bgzf(head):
        check_bgzf_end(path)
    elif is_gzip(head):
        fasta = _recompressed(path)
    compressed = is_gzip(head)
    version = _file_version(fasta, path)

    beside = _index_at(fasta, fasta, compressed)
    cached = _index_at(fasta, _cache_stem(fasta), compressed)
    for found in (beside, cached):
        if _is_usable(found, path):
            return found, version
    reason = None
    for wanted in (beside, cached):
        folder = wanted.fai.parent
        try:
            if wanted is cached:
                folder.mkdir(parents=True, exist_ok=True)
            elif _is_write_protected(folder):
                continue
            with tempfile.TemporaryDirectory(prefix=".genosparse-", dir=folder) as workspace:
                _build_index(wanted, Path(workspace), path, outdated=beside)
        except OSError as error:
            if isinstance(error, GenosparseError):
                raise
            reason = error.strerror
        else:
            return wanted, version
    raise OutputError(
        f"the index of {path} can be written neither beside it nor in {cached.fai.parent} ({reason}); "
        "set XDG_CACHE_HOME to a folder that can be written"
    )


def _index_at(fasta: Path, stem: Path, compressed: bool) -> IndexedFasta:
    return IndexedFasta(fasta, Path(f"{stem}.fai"), Path(f"{stem}.gzi") if compressed else None)


def _is_usable(index: IndexedFasta, name: Path) -> bool:
    """Whether an index exists, is not older than its FASTA file and fits it at a sample of its records."""
    parts = [index.fai] if index.gzi is None else [index.fai, index.gzi]
    try:
        if min(part.stat().st_mtime_ns for part in parts) < index.fasta.stat().st_mtime_ns:
            return False
    except OSError:
        return False
    try:
        _check_index(index, name, _NUM_RECORDS_SAMPLED)
    except FileFormatError:
        return False
    return True


_samtools_lock = threading.Lock()  # samtools keeps its command line in globals


def _build_index(index: IndexedFasta, workspace: Path, name: Path, outdated: IndexedFasta) -> None:
    """Index ``index.fasta`` in ``workspace``, check every record, and move the result into its place."""
    made = _index_at(index.fasta, workspace / "index", index.gzi is not None)
    options = ["--fai-idx", str(made.fai)] + (["--gzi-idx", str(made.gzi)] if made.gzi else [])
    with _samtools_lock, quiet_htslib():
        try:
            pysam.faidx(str(index.fasta), *options)
        except pysam.SamtoolsError:
            _explain_uneven_lines(index.fasta, name)
            raise OSError(errno.EIO, "samtools could not write it") from None
    _check_index(made, name, None)
    if outdated.fai.exists() and outdated.fai.read_bytes() != made.fai.read_bytes():
        warnings.warn(
            f"the index {outdated.fai} does not fit {name}; a new one is used, in {index.fai}",
            GenosparseWarning,
            stacklevel=4,
        )
    # Two processes may both come here: they move files of the same content. The .fai, which comes last, completes it.
    if made.gzi and index.gzi:
        made.gzi.replace(index.gzi)
    made.fai.replace(index.fai)


def read_fai(fai: Path) -> dict[str, _Record]:
    """Read the records of a .fai file by their names, in its order."""
    records: dict[str, _Record] = {}
    text = fai.read_text(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        columns = line.split("\t")
        if len(columns) != 5 or not all(column.isdecimal() for column in columns[1:]) or columns[0] in records:
            raise FileFormatError(f"{fai}, line {number} is not a line of a FASTA index")
        length, offset, line_bases, line_width = map(int, columns[1:])
        if not (length and 0 < line_bases <= line_width):
            raise FileFormatError(f"{fai}, line {number} has no bases")
        records[columns[0]] = _Record(length, offset, line_bases, line_width)
    return records


def _read_gzi(gzi: Path) -> NDArray[np.int64]:
    """Compressed and uncompressed offsets of the blocks ``[num_blocks, 2]``, with the first, which the file omits."""
    numbers = np.frombuffer(gzi.read_bytes()[: gzi.stat().st_size // 8 * 8], "<u8").astype(np.int64)
    if not len(numbers) or len(numbers) != 1 + 2 * numbers[0]:
        raise FileFormatError(f"{gzi} is not a bgzip index")
    starts = np.concatenate([np.zeros((1, 2), np.int64), numbers[1:].reshape(-1, 2)])
    if (np.diff(starts[:, 0]) <= 0).any() or (np.diff(starts[:, 1]) < 0).any():
        raise FileFormatError(f"{gzi} is not in order")
    return starts


def _check_index(index: IndexedFasta, name: Path, most_records: int | None) -> None:
    """Check that before each record of an index stands its own header line, and after the last one nothing.

    htslib reads past the end, and past a second record of the same name, without a word.
    """
    by_name = read_fai(index.fai)
    records = sorted(by_name.items(), key=lambda item: item[1].offset)
    step = 1 if most_records is None else -(-len(records) // most_records)
    with quiet_htslib(), _RawBytes(index, name) as source:
        for number in [*range(0, len(records), step), len(records)]:
            begin = records[number - 1][1].end_offset if number else 0
            if number < len(records):
                contig, record = records[number]
                size = min(record.offset - begin, _MOST_HEADER_BYTES)
                between = source.read(begin, size) if size >= 0 else b""
                if size < 0 or len(between) < size:
                    raise FileFormatError(f"{name}: its index points past the end of the file")
                _check_between(between, contig, by_name, name)
                _check_line_end(source, record, contig, name)
            else:
                last_base, rest = source.read(begin - 1, 1), source.read(begin, _MOST_HEADER_BYTES)
                if not last_base.strip():
                    raise FileFormatError(f"{name}: its index points past the end of the file")
                _check_between(rest, None, by_name, name)


def _check_between(between: bytes, contig: str | None, records: dict[str, _Record], name: Path) -> None:
    headers: list[str] = []
    for line in between.split(b"\n"):
        if not line.strip():
            continue
        if not line.startswith(b">"):
            if headers and headers[-1] in records:
                raise FileFormatError(f"{name} has two records of the name {headers[-1]!r}; rename one of them")
            raise FileFormatError(f"{name} has text outside the records of its index: {_shown(line)}")
        words = line[1:].split(maxsplit=1)
        headers.append(words[0].decode("utf-8", "surrogateescape") if words else "")
    if contig is None:
        return
    if not headers or headers[-1] != contig:
        raise FileFormatError(f"{name} does not have {contig!r} where its index says")
    if not contig:
        raise FileFormatError(f"{name} has a record without a name: a line that is only '>'")


def _check_line_end(source: _RawBytes, record: _Record, contig: str, name: Path) -> None:
    line_end = source.read(record.offset + record.line_bases, record.line_width - record.line_bases)
    if line_end.strip() or (record.length > record.line_bases and not line_end.endswith(b"\n")):
        raise FileFormatError(f"{name}: the lines of contig {contig!r} hold blanks or other bytes that are no letters")


def _check_first_letter(path: Path) -> None:
    """Refuse what is not FASTA before anything is made of it."""
    head = read_head(path, _HEAD_BYTES).lstrip()
    if not head:
        raise FileFormatError(f"{path} is empty; expected {_EXPECTED}")
    if not head.startswith(b">"):
        kind = next((kind for start, kind in _OTHER_FORMATS if head.startswith(start)), "")
        raise FileFormatError(
            f"{path} is not {_EXPECTED}: it begins with {_shown(head.splitlines()[0])}{kind}; expected '>' and a name"
        )


def _explain_uneven_lines(fasta: Path, name: Path) -> None:
    """Say why samtools cannot index a FASTA file, if the file is to blame."""
    contig = ""
    length = odd_line = 0
    with TextLines(fasta, _EXPECTED, keep_bytes=True) as lines:
        for line in lines:
            if line.startswith(">"):
                contig = (line[1:].split(maxsplit=1) or [""])[0]
                length = odd_line = 0
            elif len(line) > length > 0 or (odd_line and line.strip()):
                raise FileFormatError(
                    f"{name}, line {odd_line or lines.line_number}: lines of contig {contig!r} differ in length; "
                    "all but the last must be alike: rewrap the file, for instance with `seqkit seq -w 60`"
                )
            elif len(line) < length or not line:
                odd_line = odd_line or lines.line_number
            else:
                length = len(line)
    if not length:
        raise FileFormatError(f"{name}: the last record, {contig!r}, has no sequence; the file may be truncated")


def _recompressed(path: Path) -> Path:
    """The bgzip copy of a file that ordinary gzip compressed."""
    copy = Path(f"{_cache_stem(path.absolute())}.bgz")
    if copy.exists():
        return copy
    warnings.warn(
        f"{path} is compressed by ordinary gzip, which cannot be read at any place; a bgzip copy is made in "
        f"{copy.parent} (compress the file itself with bgzip to do without)",
        GenosparseWarning,
        stacklevel=4,
    )
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".genosparse-", dir=copy.parent) as workspace:
            made = Path(workspace) / copy.name
            # Level 1: eight times the speed of the default for a seventh more space.
            with gzip.open(path, "rb") as source, pysam.BGZFile(str(made), "wb1") as target:
                while piece := source.read(_COPY_BYTES):
                    target.write(piece)
            made.replace(copy)
    except EOFError:
        raise truncated_error(path) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise damaged_error(path, error) from None
    except OSError as error:
        raise OutputError(
            f"no bgzip copy of {path} can be written in {copy.parent} ({error.strerror}); "
            "set XDG_CACHE_HOME to a folder that can be written, or compress the file with bgzip"
        ) from None
    return copy


def _cache_stem(fasta: Path) -> Path:
    """Where the cache keeps what belongs to a file: told apart by its place, size and time of change."""
    status = fasta.stat()
    key = f"{fasta.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:20]
    return _cache_folder() / f"{digest}-{fasta.name}"


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(home) if home.startswith("/") else Path("~/.cache").expanduser()
    return base / "genosparse" / "fasta"


def _is_write_protected(folder: Path) -> bool:
    """Whether nobody may write in a folder; root could, and must not."""
    return not folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)


def _shown(line: bytes) -> str:
    return repr(line[:40].decode("utf-8", "replace")) + ("..." if len(line) > 40 else "")
