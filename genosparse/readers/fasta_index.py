"""The index of a FASTA file: found, checked, or made.

samtools and htslib trust an index blindly; here each is checked against the file before it is used.
"""

import errno
import re
import stat
import tempfile
import warnings
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pysam

from genosparse.errors import (
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    OutputError,
)
from genosparse.inputs import Closing, check_bgzf_end, check_input_file, is_bgzf, is_gzip
from genosparse.readers._cache import FileVersion, cache_stem, file_version
from genosparse.readers._fasta_bytes import FastaBytes, FastaRecord, IndexedFasta
from genosparse.readers._htslib import samtools
from genosparse.readers.fasta_copies import (
    EXPECTED,
    ROOM,
    circular_contigs,
    copy_of,
    make_copy,
    sequence_format,
)

__all__ = ["FoundFasta", "check_version", "find_or_make_index"]

_NUM_RECORDS_SAMPLED = 64
_MOST_HEADER_BYTES = 1 << 20
_PIECE_BYTES = 1 << 16


class _LayoutError(FileFormatError):
    """A FASTA file has lines that samtools' index cannot describe."""


class FoundFasta(NamedTuple):
    """A FASTA file that can be read at any place, where its contigs are, and which are said to be circular."""

    files: IndexedFasta
    version: FileVersion
    records: dict[str, FastaRecord]
    circular: frozenset[str] = frozenset()


class _Source(Closing):
    """An indexed file's bytes, in pieces."""

    def __init__(self, index: IndexedFasta, name: Path) -> None:
        self._name = name
        self._bytes = FastaBytes(index)
        self._offset, self._piece = 0, b""

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes: fewer at the end of the file."""
        begin = offset - self._offset
        if not 0 <= begin <= begin + size <= len(self._piece):
            # From the byte before, which, unlike the end of the file, lies in a block of bgzip for sure.
            self._offset = max(0, offset - 1)
            begin = offset - self._offset
            try:
                self._piece = bytes(self._bytes.read(self._offset, max(begin + size, _PIECE_BYTES)))
            except (OSError, OverflowError, FileFormatError):
                raise FileFormatError(f"{self._name} is damaged or does not fit its index") from None
        return self._piece[begin : begin + size]

    def close(self) -> None:
        self._bytes.close()


def check_version(fasta: Path, name: Path, version: FileVersion) -> None:
    """Raise ``FileFormatError`` when a file, called ``name`` in messages, is not the one that was opened."""
    if file_version(fasta, name) != version:
        raise FileFormatError(f"{name} has changed since it was opened; start again")


def find_or_make_index(path: Path) -> FoundFasta:
    """Find or make the index of a FASTA file, or of its copy where the file cannot be indexed as it is.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is neither FASTA nor 2bit, GenBank or EMBL, is truncated, or has two records of one name.
        OutputError: Neither beside the file nor in the cache folder can its index be written.
    """
    check_input_file(path, EXPECTED)
    if not path.is_file():
        raise FileFormatError(f"{path} is not a regular file; expected {EXPECTED} that can be read at any place")
    kind = sequence_format(path)
    with path.open("rb") as stream:
        head = stream.read(18)
    if is_bgzf(head):
        check_bgzf_end(path)
    copy = copy_of(path)
    if not copy.exists():
        if kind == "fasta" and (is_bgzf(head) or not is_gzip(head)):
            try:
                return _find_or_build(path.absolute(), path, compressed=is_gzip(head))
            except _LayoutError:
                pass  # its copy will do
        make_copy(path, kind)
    return _find_or_build(copy, path, compressed=True)._replace(circular=circular_contigs(copy))


def _find_or_build(fasta: Path, path: Path, *, compressed: bool) -> FoundFasta:
    version = file_version(fasta, path)
    beside = _index_at(fasta, fasta, compressed)
    cached = _index_at(fasta, cache_stem(fasta, ROOM), compressed)
    for found in (beside, cached):
        if (records := _usable_records(found, path)) is not None:
            return FoundFasta(found, version, records)
    reason = None
    for wanted in (beside, cached):
        folder = wanted.fai.parent
        try:
            if wanted is cached:
                folder.mkdir(parents=True, exist_ok=True)
            elif _is_write_protected(folder):
                continue
            with tempfile.TemporaryDirectory(prefix=".genosparse-", dir=folder) as workspace:
                records = _build_index(wanted, Path(workspace), path, outdated=beside)
        except OSError as error:
            if isinstance(error, GenosparseError):
                raise
            reason = error.strerror
        else:
            return FoundFasta(wanted, version, records)
    raise OutputError(
        f"the index of {path} can be written neither beside it nor in {cached.fai.parent} ({reason}); "
        "set XDG_CACHE_HOME to a folder that can be written"
    )


def _index_at(fasta: Path, stem: Path, compressed: bool) -> IndexedFasta:
    return IndexedFasta(fasta, Path(f"{stem}.fai"), Path(f"{stem}.gzi") if compressed else None)


def _usable_records(index: IndexedFasta, name: Path) -> dict[str, FastaRecord] | None:
    """The records of an index that exists, is not older than its FASTA file and fits it at a sample of its records."""
    parts = [index.fai] if index.gzi is None else [index.fai, index.gzi]
    try:
        if min(part.stat().st_mtime_ns for part in parts) < index.fasta.stat().st_mtime_ns:
            return None
    except OSError:
        return None
    try:
        return _check_index(index, name, _NUM_RECORDS_SAMPLED)
    except FileFormatError:
        return None


def _build_index(index: IndexedFasta, workspace: Path, name: Path, outdated: IndexedFasta) -> dict[str, FastaRecord]:
    """Index ``index.fasta`` in ``workspace``, check every record, and move the result into its place."""
    made = _index_at(index.fasta, workspace / "index", index.gzi is not None)
    options = ["--fai-idx", str(made.fai)] + (["--gzi-idx", str(made.gzi)] if made.gzi else [])
    try:
        samtools("faidx", str(index.fasta), *options)
    except pysam.SamtoolsError:
        # It opens its files once it has gone through the sequence.
        if made.fai.exists() or (made.gzi and made.gzi.exists()):
            raise OSError(errno.EIO, "samtools could not write it") from None
        raise _LayoutError(f"{name} has lines that cannot be indexed") from None
    records = _check_index(made, name, None)
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
    return records


_FAI_LINE = re.compile(r"([^\t\n]*)\t([0-9]{1,18})\t([0-9]{1,18})\t([0-9]{1,18})\t([0-9]{1,18})")


def _read_fai(fai: Path) -> dict[str, FastaRecord]:
    records: dict[str, FastaRecord] = {}
    text = fai.read_text(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        match = _FAI_LINE.fullmatch(line)
        if match is None or match[1] in records:
            raise FileFormatError(f"{fai}, line {number} is not a line of a FASTA index")
        record = FastaRecord(int(match[2]), int(match[3]), int(match[4]), int(match[5]))
        if not (record.length and 0 < record.line_bases <= record.line_width):
            raise FileFormatError(f"{fai}, line {number} has no bases")
        records[match[1]] = record
    return records


def _check_index(index: IndexedFasta, name: Path, most_records: int | None) -> dict[str, FastaRecord]:
    """Check that before each record of an index stands its own header line, and after the last one nothing.

    htslib reads past the end, and past a second record of the same name, without a word.
    """
    by_name = _read_fai(index.fai)
    records = sorted(by_name.items(), key=lambda item: item[1].offset)
    # All of them, as this needs no look at the file: what one says of its length is then no more than the file has.
    for (_, before), (contig, after) in pairwise(records):
        if before.end_offset > after.offset:
            raise FileFormatError(f"{name}: its index has {contig!r} within the record before")
    step = 1 if most_records is None else -(-len(records) // most_records)
    with _Source(index, name) as source:
        for number in [*range(0, len(records), step), len(records)]:
            begin = records[number - 1][1].end_offset if number else 0
            if number < len(records):
                contig, record = records[number]
                size = min(record.offset - begin, _MOST_HEADER_BYTES)
                between = source.read(begin, size)
                if len(between) < size:
                    raise FileFormatError(f"{name}: its index points past the end of the file")
                _check_between(between, contig, by_name, name)
                _check_line_end(source, record, contig, name)
            else:
                last_base, rest = source.read(begin - 1, 1), source.read(begin, _MOST_HEADER_BYTES)
                if not last_base.strip():
                    raise FileFormatError(f"{name}: its index points past the end of the file")
                _check_between(rest, None, by_name, name)
    return by_name


def _check_between(between: bytes, contig: str | None, records: dict[str, FastaRecord], name: Path) -> None:
    headers: list[str] = []
    for line in between.split(b"\n"):
        if not line.strip():
            continue
        if not line.startswith(b">"):
            if headers and headers[-1] in records:
                raise FileFormatError(f"{name} has two records of the name {headers[-1]!r}; rename one of them")
            raise _LayoutError(f"{name} has text outside the records of its index")
        words = line[1:].split(maxsplit=1)
        headers.append(words[0].decode("utf-8", "surrogateescape") if words else "")
    if contig is None:
        return
    if not headers or headers[-1] != contig:
        raise FileFormatError(f"{name} does not have {contig!r} where its index says")
    if not contig:
        raise FileFormatError(f"{name} has a record without a name: a line that is only '>'")


def _check_line_end(source: _Source, record: FastaRecord, contig: str, name: Path) -> None:
    size = record.line_width - record.line_bases
    line_end = source.read(record.offset + record.line_bases, min(size, _MOST_HEADER_BYTES + 1))
    is_cut = record.length > record.line_bases and not line_end.endswith(b"\n")
    if len(line_end) > _MOST_HEADER_BYTES or line_end.strip() or is_cut:
        raise _LayoutError(f"{name}: the lines of contig {contig!r} hold blanks or other bytes that are no letters")


def _is_write_protected(folder: Path) -> bool:
    """Whether nobody may write in a folder; root could, and must not."""
    return not folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
