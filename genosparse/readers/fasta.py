"""Reference genomes in indexed FASTA files.

samtools' index (.fai, and .gzi for bgzip) says where each base lies; the bytes are then read in place with ``pread``,
which keeps no position, so that one open file serves threads and forked workers alike.
"""

import errno
import gzip
import hashlib
import os
import stat
import tempfile
import threading
import warnings
import weakref
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
import pysam
from numpy.typing import NDArray

from genosparse.errors import (
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    InputFileNotFoundError,
    IntervalError,
    OutputError,
    SequenceError,
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
from genosparse.intervals import Interval, contig_not_found
from genosparse.readers._htslib import quiet_htslib
from genosparse.tokenizers import ENCODE_TABLE, REFUSED, NucleotideTokenizer

__all__ = ["Genome"]

_EXPECTED = "a FASTA file"
_TOKENIZER = NucleotideTokenizer()
_NUCLEOTIDES = b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv"
_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVacgturyswkmbdhv", b"TGCAAYRSWMKVHDBtgcaayrswmkvhdb")
_HEAD_BASES = 1000
_HEAD_BYTES = 1 << 16
_OTHER_FORMATS = ((b"@", ", like FASTQ or SAM"), (b"LOCUS", ", like GenBank"), (b"##", ", like GFF or VCF"))
_SCAN_BASES = 1 << 22
_NUM_RECORDS_SAMPLED = 64
_MOST_HEADER_BYTES = 1 << 20
_BGZF_BYTES_PER_READ = 1 << 16
_PIECE_BYTES = 1 << 16

_Version = tuple[int, int]  # size in bytes and time of change in nanoseconds
_COPY_BYTES = 1 << 20


class Genome:
    """A reference genome: contigs of a FASTA file, read at any place.

    The file may be plain or compressed by bgzip. Its index is made beside it when it is missing, out of date or does
    not fit, or in the cache folder (``$XDG_CACHE_HOME/genosparse``, by default ``~/.cache/genosparse``) when it cannot
    be written there. A file compressed by ordinary gzip is recompressed once into that folder. Records without bases
    are left out.

    A genome can be used from several threads, after a fork, and pickled: it is opened again by its path.

    Args:
        path: The FASTA file.

    Attributes:
        path: As given.
        contigs: Length of each contig in bases, in the file's order.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is not FASTA, is truncated, has lines of uneven length or two records of one name.
        SequenceError: Its first bases are no nucleotides.
        OutputError: Neither beside the file nor in the cache folder can its index be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._files = _indexed(self.path)
        self._records = _read_fai(self._files.fai)
        self.contigs: dict[str, int] = {name: record.length for name, record in self._records.items()}
        self._version: _Version | None = None
        self._open()
        self.check_alphabet(most_bases=_HEAD_BASES, contigs=next(iter(self.contigs)))

    def _open(self) -> None:
        self._bytes: _Bytes | None = _open_bytes(self._files, self.path, self._version)
        self._version = self._bytes.version

    def fetch(self, interval: Interval, pad: bool = False) -> str:
        """The bases of an interval, in the case that the file has them.

        Args:
            interval: Where; an interval on the minus strand comes back as its reverse complement.
            pad: Fill what lies past the contig's end with N, instead of raising an error.

        Raises:
            ContigNotFoundError: The contig is not in the genome.
            IntervalError: The interval reaches past the contig's end.
        """
        letters: bytes | bytearray = self._letters(interval, pad)
        if interval.strand == "-":
            letters = letters.translate(_COMPLEMENT)[::-1]
        try:
            return letters.decode("ascii")
        except UnicodeDecodeError:
            # Said by the tokenizer in its own words, with contig and position.
            self.tokens(interval, pad)
            raise

    @overload
    def tokens(
        self, interval: Interval, pad: bool = False, *, return_soft_mask: Literal[False] = False
    ) -> NDArray[np.uint8]: ...

    @overload
    def tokens(
        self, interval: Interval, pad: bool = False, *, return_soft_mask: Literal[True]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]: ...

    def tokens(
        self, interval: Interval, pad: bool = False, *, return_soft_mask: bool = False
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The token ids of an interval: ``fetch`` and ``NucleotideTokenizer.encode`` in one, without the detour by str.

        Args:
            interval: Where; an interval on the minus strand comes back as its reverse complement.
            pad: Fill what lies past the contig's end with N, instead of raising an error.
            return_soft_mask: Also return which bases are in lower case.

        Returns:
            uint8 ids ``[length]``; with ``return_soft_mask`` a bool array ``[length]`` besides.

        Raises:
            ContigNotFoundError: The contig is not in the genome.
            IntervalError: The interval reaches past the contig's end.
            SequenceError: A letter that is no nucleotide code, named with contig and position.
        """
        reverse = interval.strand == "-"
        if not return_soft_mask:
            tokens = np.frombuffer(self._letters(interval, pad, ENCODE_TABLE), np.uint8)
            if tokens.max() != REFUSED:
                return _TOKENIZER.reverse_complement(tokens) if reverse else tokens
        try:
            tokens, soft_mask = _TOKENIZER.encode(
                self._letters(interval, pad), return_soft_mask=True, contig=interval.contig, offset=interval.start
            )
        except SequenceError as error:
            raise SequenceError(f"{self.path}: {error}") from None
        return (_TOKENIZER.reverse_complement(tokens), soft_mask[::-1].copy()) if reverse else (tokens, soft_mask)

    def check_alphabet(self, *, most_bases: int | None = None, contigs: str | list[str] | None = None) -> None:
        """Check that the genome holds nucleotide codes alone, at about the speed of reading it.

        Args:
            most_bases: Check the first bases of each contig alone, at most this many; None checks all.
            contigs: The contigs to check; None checks all.

        Raises:
            SequenceError: A letter that is no nucleotide code, named with contig and position.
            ContigNotFoundError: A contig is not in the genome.
        """
        names = [contigs] if isinstance(contigs, str) else self.contigs if contigs is None else contigs
        for contig in names:
            self._require(contig)
            length = min(self.contigs[contig], self.contigs[contig] if most_bases is None else most_bases)
            for start in range(0, length, _SCAN_BASES):
                interval = Interval(contig, start, min(length, start + _SCAN_BASES))
                if self._letters(interval, pad=False).translate(None, _NUCLEOTIDES):
                    self.tokens(interval)

    def _require(self, contig: str) -> None:
        if contig not in self.contigs:
            raise contig_not_found(contig, self.contigs, str(self.path))

    def _letters(self, interval: Interval, pad: bool, table: bytes | None = None) -> bytearray:
        """The bytes of an interval on the plus strand, translated by ``table``."""
        self._require(interval.contig)
        if self._bytes is None:
            raise GenosparseError(f"{self.path} has been closed; open it again with Genome(path)")
        length = self.contigs[interval.contig]
        if interval.end <= length:
            return self._bytes.sequence(self._records[interval.contig], interval.start, interval.end, table)
        if not pad:
            raise IntervalError(
                f"interval {interval} reaches past the end of contig {interval.contig!r} ({length} bp) in {self.path}; "
                "shorten it, or pass pad=True to fill with N"
            )
        letters = bytearray()
        if interval.start < length:
            letters = self._bytes.sequence(self._records[interval.contig], interval.start, length, table)
        return letters + (b"N" * (interval.length - len(letters))).translate(table)

    def __contains__(self, contig: object) -> bool:
        return contig in self.contigs

    def __repr__(self) -> str:
        return f"Genome({str(self.path)!r}: {len(self.contigs)} contigs, {sum(self.contigs.values())} bp)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None, "_was_open": self._bytes is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        was_open = state.pop("_was_open")
        self.__dict__.update(state)
        if was_open:
            self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; using the genome afterwards is an error."""
        if self._bytes is not None:
            self._bytes.close()
            self._bytes = None


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


class _Bytes:
    """The (uncompressed) bytes of a plain file, at any offset."""

    def __init__(self, file: Path, name: Path, version: _Version | None) -> None:
        try:
            self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise InputFileNotFoundError(f"{name} does not exist any more") from None
        except OSError as error:
            raise InputFileNotFoundError(f"{name} cannot be read ({error.strerror})") from None
        self.close = weakref.finalize(self, os.close, self._descriptor)
        self._name = name
        status = os.fstat(self._descriptor)
        self.version = (status.st_size, status.st_mtime_ns)
        if version not in (None, self.version):
            raise FileFormatError(f"{name} has changed since it was opened; start again")
        self.file_size = status.st_size
        self.size = self.file_size

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes: fewer at the end of the file."""
        buffer = np.empty(max(0, min(size, self.size - offset)), np.uint8)
        self._fill(buffer, offset)
        return buffer.tobytes()

    def sequence(self, record: _Record, start: int, end: int, table: bytes | None = None) -> bytearray:
        """The letters from ``start`` to ``end`` of a record, without line ends, translated by ``table``."""
        first_offset = record.byte_offset(start)
        num_bytes = record.byte_offset(end - 1) + 1 - first_offset
        if num_bytes == end - start:
            letters = bytearray(num_bytes)
            self._fill(np.frombuffer(letters, np.uint8), first_offset)
            letters = letters.translate(table) if table else letters
        else:
            # Whole lines as rows, of which the line ends are cut off as columns; in pieces that stay in the cache.
            skipped = start % record.line_bases
            num_lines = (end - 1) // record.line_bases - start // record.line_bases + 1
            letters = bytearray(num_lines * record.line_bases)
            rows = np.frombuffer(letters, np.uint8).reshape(num_lines, record.line_bases)
            step = -(-num_lines // -(-num_lines * record.line_width // _PIECE_BYTES))
            buffer = bytearray(step * record.line_width)
            piece = np.frombuffer(buffer, np.uint8)
            for line in range(0, num_lines, step):
                count = min(step, num_lines - line)
                begin = skipped if line == 0 else 0
                stop = min(count * record.line_width, skipped + num_bytes - line * record.line_width)
                self._fill(piece[begin:stop], first_offset - skipped + line * record.line_width + begin)
                read = np.frombuffer(buffer.translate(table), np.uint8) if table else piece
                rows[line : line + count] = read.reshape(-1, record.line_width)[:count, : record.line_bases]
            del rows, letters[skipped + end - start :], letters[:skipped]
        if table is None and (b"\n" in letters or b">" in letters):
            raise FileFormatError(f"{self._name} does not fit its index; delete the index, and it is made anew")
        return letters

    def _fill(self, buffer: NDArray[np.uint8], offset: int) -> None:
        self._read_file(buffer, offset)

    def _read_file(self, buffer: NDArray[np.uint8], offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = os.preadv(self._descriptor, [buffer[done:].data], offset + done)
            if count == 0:
                raise FileFormatError(f"{self._name} ends before its index does; it changed while it was in use")
            done += count


class _BgzfBytes(_Bytes):
    """The uncompressed bytes of a BGZF file, at any offset."""

    def __init__(self, file: Path, gzi: Path, name: Path, version: _Version | None) -> None:
        super().__init__(file, name, version)
        starts = _read_gzi(gzi)
        self._compressed_starts, self._starts = starts[:, 0], starts[:, 1]
        if int(self._compressed_starts[-1]) >= self.file_size:
            raise FileFormatError(f"{gzi} points past the end of {name}")
        self._last_block: tuple[int, bytes] = (-1, b"")
        self.size = int(self._starts[-1]) + sum(map(len, self._blocks(len(starts) - 1, len(starts))))

    def _blocks(self, first: int, stop: int) -> Iterator[bytes]:
        """The contents of indexed blocks ``first`` to ``stop - 1``, in order."""
        while first < stop:
            begin = int(self._compressed_starts[first])
            upto = int(np.searchsorted(self._compressed_starts, begin + _BGZF_BYTES_PER_READ))
            upto = min(max(upto, first + 1), stop)
            end = int(self._compressed_starts[upto]) if upto < len(self._compressed_starts) else self.file_size
            compressed = np.empty(end - begin, np.uint8)
            self._read_file(compressed, begin)
            yield from self._inflate(compressed.data, begin)
            first = upto

    def _inflate(self, compressed: memoryview, file_offset: int) -> Iterator[bytes]:
        position = 0
        while position < len(compressed):
            header = bytes(compressed[position : position + 18])
            if not is_bgzf(header):
                raise FileFormatError(f"{self._name} has no bgzip block at byte {file_offset + position}")
            end = position + int.from_bytes(header[16:18], "little") + 1
            begin = position + 12 + int.from_bytes(header[10:12], "little")
            try:
                block = zlib.decompress(compressed[begin : end - 8], wbits=-15, bufsize=1 << 16)
            except zlib.error:
                block = b""
            trailer = bytes(compressed[end - 8 : end])
            if trailer != zlib.crc32(block).to_bytes(4, "little") + len(block).to_bytes(4, "little"):
                raise FileFormatError(
                    f"{self._name} has a damaged bgzip block at byte {file_offset + position}; fetch or write it again"
                )
            yield block
            position = end

    def _fill(self, buffer: NDArray[np.uint8], offset: int) -> None:
        if not len(buffer):
            return
        first = int(np.searchsorted(self._starts, offset, side="right")) - 1
        stop = int(np.searchsorted(self._starts, offset + len(buffer), side="left"))
        index, last = self._last_block
        blocks = chain([last], self._blocks(first + 1, stop)) if index == first else self._blocks(first, stop)
        skipped = offset - int(self._starts[first])
        done = 0
        block = b""
        for block in blocks:
            piece = block[skipped : skipped + len(buffer) - done]
            buffer[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
            skipped = max(0, skipped - len(block))
        if done < len(buffer):
            raise FileFormatError(f"{self._name} ends before its index does; it changed while it was in use")
        # One assignment, so that threads see an index with its own block. The last indexed block may not be the last.
        if stop < len(self._starts):
            self._last_block = (stop - 1, block)


def _open_bytes(index: "_Indexed", name: Path, version: _Version | None = None) -> _Bytes:
    if index.gzi is None:
        return _Bytes(index.fasta, name, version)
    return _BgzfBytes(index.fasta, index.gzi, name, version)


class _Indexed(NamedTuple):
    fasta: Path
    fai: Path
    gzi: Path | None


def _indexed(path: Path) -> _Indexed:
    """Find or make the index of a FASTA file, and a bgzip copy where the file needs one."""
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

    beside = _index_at(fasta, fasta, compressed)
    cached = _index_at(fasta, _cache_stem(fasta), compressed)
    for found in (beside, cached):
        if _is_usable(found, path):
            return found
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
            return wanted
    raise OutputError(
        f"the index of {path} can be written neither beside it nor in {cached.fai.parent} ({reason}); "
        "set XDG_CACHE_HOME to a folder that can be written"
    )


def _index_at(fasta: Path, stem: Path, compressed: bool) -> _Indexed:
    return _Indexed(fasta, Path(f"{stem}.fai"), Path(f"{stem}.gzi") if compressed else None)


def _is_usable(index: _Indexed, name: Path) -> bool:
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


def _build_index(index: _Indexed, workspace: Path, name: Path, outdated: _Indexed) -> None:
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


def _read_fai(fai: Path) -> dict[str, _Record]:
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


def _check_index(index: _Indexed, name: Path, most_records: int | None) -> None:
    """Check that before each record of an index stands its own header line, and after the last one nothing.

    htslib reads past the end, and past a second record of the same name, without a word.
    """
    by_name = _read_fai(index.fai)
    records = sorted(by_name.items(), key=lambda item: item[1].offset)
    step = 1 if most_records is None else -(-len(records) // most_records)
    source = _open_bytes(index, name)
    try:
        for number in [*range(0, len(records), step), len(records)]:
            begin = records[number - 1][1].end_offset if number else 0
            contig, record = records[number] if number < len(records) else (None, None)
            end = record.offset if record else source.size
            if not begin <= end <= source.size:
                raise FileFormatError(f"{name}: its index points past the end of the file")
            between = source.read(begin, min(end - begin, _MOST_HEADER_BYTES))
            _check_between(between, contig, by_name, name)
            if record:
                _check_line_end(source, record, contig or "", name)
    finally:
        source.close()


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


def _check_line_end(source: _Bytes, record: _Record, contig: str, name: Path) -> None:
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
