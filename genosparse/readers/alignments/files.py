"""BAM, CRAM and SAM files: what is in a file, its index, and its records many at a time."""

from __future__ import annotations

import contextlib
import os
import struct
import tempfile
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pysam

from genosparse.errors import (
    ContigNotFoundError,
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    InputFileNotFoundError,
    OutputError,
)
from genosparse.inputs import check_bgzf_end, check_input_file, is_bgzf, is_gzip, read_head
from genosparse.intervals import position_1based
from genosparse.readers._bgzf import BlockReader, DamagedBlockError, damaged_block
from genosparse.readers._cache import cache_stem, file_version
from genosparse.readers._htslib import PerThread, quiet_htslib, samtools
from genosparse.readers.alignments.bam import (
    BAI_SHIFT,
    BinIndex,
    DamagedIndexError,
    first_record,
    read_records,
)
from genosparse.readers.alignments.index_check import index_fits
from genosparse.readers.alignments.records import Records
from genosparse.readers.alignments.sam_text import check_records, header_problem, record_line
from genosparse.readers.fasta import Genome

__all__ = ["AlignmentFile"]

_Handle = TypeVar("_Handle", pysam.AlignmentFile, BlockReader)

_EXPECTED = "a BAM, CRAM or SAM file"
_BATCH_BYTES, _MOST_AT_ONCE = 1 << 22, 64
# An index costs a pass over the file. Of smaller files it is made anew rather than believed.
_SMALL_BYTES = 1 << 26
_HEAD_BYTES = 1 << 16
_BGZF_HEADER_BYTES, _BGZF_FOOTER_BYTES, _MOST_BLOCK_BYTES = 18, 8, 1 << 16
_STORED_HEADER_BYTES = 5  # of a block of DEFLATE that is not compressed
_SHORT_CONTIG = struct.Struct("<i9si")  # a contig's entry in the header that batches are written with
# The container that ends a CRAM file (CRAM specification, section 9).
_CRAM_ENDS = {
    3: bytes.fromhex("0f000000ffffffff0fe0454f4600000000010005bdd94f0001000606010001000100ee63014b"),
    2: bytes.fromhex("0b000000ffffffff0fe0454f460000000001000001000606010001000100"),
}
# SAM's first eleven columns: CRAM need not decode the tags. Without TLEN (0x100) htslib leaves out of FLAG which strand
# the mate is on.
_REQUIRED_FIELDS = 0x7FF
_SAM_HEADER = (b"@HD\t", b"@SQ\t", b"@RG\t", b"@PG\t", b"@CO\t")
_LEAST_SAM_COLUMNS = 11
_MOST_POSITION = 2**31 - 1


class AlignmentFile:
    """The records of one file, all in its order or those of an interval.

    What cannot be read at any place (SAM, or BAM that is not compressed by bgzip) is sorted once into the cache folder
    when an interval is asked for.

    Args:
        path: A BAM, CRAM or SAM file, by content and not by name.
        reference: Genome that CRAM was made with; None where it holds its own.

    Attributes:
        path: As given.
        contigs: Length in bases of each contig that the header declares, in its order.
        header: The header, by the kinds of its lines.
    """

    def __init__(self, path: str | os.PathLike[str], reference: Genome | None) -> None:
        self.path = Path(path)
        check_input_file(self.path, _EXPECTED)
        if not self.path.is_file():
            raise FileFormatError(f"{path} is not a regular file; expected {_EXPECTED} that can be read at any place")
        self.kind = _kind(self.path)
        self.reference = reference
        self._version = file_version(self.path)
        self._link: tempfile.TemporaryDirectory[str] | None = None
        self._handles: PerThread[pysam.AlignmentFile | BlockReader] | None = PerThread(self._open_indexed)
        self._index_lock = threading.Lock()
        self._bins: tuple[BinIndex, Path] | None = None
        with quiet_htslib(), self._opened(self._open) as handle:
            self.contigs = dict(zip(handle.references, handle.lengths, strict=True))
            self.header: Mapping[str, object] = self._header(handle)
            self._version_of_cram = handle.version[0] if self.kind == "CRAM" else None
        if self.kind == "CRAM":
            self._check_cram()

    def batches(self, contig: str | None = None, start: int = 0, end: int = 0) -> Iterator[Records]:
        """Records that overlap ``[start, end)`` of a contig, sorted by position; or all in the file's order.

        Raises:
            FileFormatError: The file is truncated or damaged.
        """
        if contig is None:
            yield from self._all_batches()
            return
        if self._handles is None:
            raise GenosparseError(f"{self.path} has been closed; open it again")
        self.check_reference(contig)
        with self._handles.borrowed() as handle:
            try:
                if isinstance(handle, BlockReader):
                    yield from self._overlapping(handle, self._numbers[contig], start, end)
                else:
                    with quiet_htslib():
                        reads = handle.fetch(contig, start, end)
                    yield from self._converted(handle, reads)
            except BaseException:  # a handle that failed, or was left in the middle, is not used again
                _close_quietly(handle)
                raise

    def _all_batches(self) -> Iterator[Records]:
        self._check_all_references()
        if self.kind == "BAM":
            with self._opened(self._open_blocks) as stream:
                for records in self._unpacked_records(stream):
                    # htslib refuses a CIGAR that is not as long as its sequence.
                    if 0 < records.num_sound < len(records):
                        yield records.first(records.num_sound)
                    records.check_cigars()
                    yield records
            return
        if self.kind == "SAM":
            check_records(self.path, self.contigs)
        with self._opened(self._open) as handle:
            yield from self._converted(handle, handle.fetch(until_eof=True))

    def _overlapping(self, stream: BlockReader, contig: int, start: int, end: int) -> Iterator[Records]:
        """The records of a BAM file sorted by position that overlap an interval."""
        assert self._bins is not None
        bins, index = self._bins
        try:
            spans = bins.spans(contig, start, end)
        except ValueError:
            raise self._damaged_index(index) from None
        for records in self._unpacked_records(stream, spans, (contig, start, end), index):
            earlier = records.fields["position0"] < start
            if not earlier.any():
                yield records
                continue
            overlaps = ~earlier
            overlaps[earlier] = records.where(earlier).ends > start
            if overlaps.any():
                yield records.where(overlaps)

    def _unpacked_records(
        self,
        stream: BlockReader,
        spans: Sequence[tuple[int, int | None]] | None = None,
        interval: tuple[int, int, int] | None = None,
        index: Path | None = None,
    ) -> Iterator[Records]:
        """``read_records``, of the whole file where ``spans``, which are an index's, is None."""
        last: Records | None = None
        try:
            if spans is None:
                spans = [(first_record(stream), None)]
            for records in read_records(stream, spans, len(self.contigs), self.path, interval):
                last = records
                yield records
        except (ValueError, struct.error) as error:
            if isinstance(error, GenosparseError) and not isinstance(error, DamagedBlockError):
                raise
            name = None if last is None else last.name(len(last) - 1)
            raise self._damaged_blocks(name, error, index) from None

    def _damaged_blocks(
        self, last: str | None, error: ValueError | struct.error, index: Path | None
    ) -> FileFormatError:
        """What is wrong with a BAM file after the read of a name (None: from the beginning), or with its index."""
        byte = error.byte if isinstance(error, DamagedBlockError) else None
        if index is not None and isinstance(error, DamagedBlockError | DamagedIndexError):
            byte = damaged_block(self.path)
            if byte is None:  # the index has led to where no block begins
                return self._damaged_index(index)
        first = "its first record" if index is None else "the first record of the interval"
        where = f"at {first}" if last is None else f"after read {last!r}"
        if byte is not None:
            cause = f", in the block at byte {byte}"
        else:
            cause = f" ({_reason(error)})" + ("" if index is None else f", or its index {index} is")
        return FileFormatError(f"{self.path} is truncated or damaged {where}{cause}; fetch or write the file again")

    def _damaged_index(self, index: Path) -> FileFormatError:
        return FileFormatError(f"the index {index} of {self.path} is damaged; remove it, and it is made anew")

    def close(self) -> None:
        """Close the file."""
        self._handles = None
        if self._link is not None:
            self._link.cleanup()

    def _open_blocks(self, path: Path) -> BlockReader:
        stream = BlockReader(path)
        self._check_unchanged(stream)
        return stream

    def _open(self, path: Path, index: Path | None = None) -> pysam.AlignmentFile:
        options: dict[str, object] = {}
        if self.kind == "CRAM":
            _forbid_downloads()
            options["format_options"] = [f"required_fields={_REQUIRED_FIELDS}".encode(), b"decode_md=0"]
            if self.reference is not None and hasattr(self, "contigs"):
                options["reference_filename"] = str(self._linked_reference(self.reference))
        with quiet_htslib(), contextlib.ExitStack() as stack:
            # By its number, as by its name htslib would read the index beside it too, which may be in ruins. (CRAM
            # that stores no names of reads makes them of the file's.)
            by_name = index is not None or self.kind == "CRAM"
            try:
                source = _for_htslib(path) if by_name else stack.enter_context(path.open("rb")).fileno()
            except OSError as error:
                raise InputFileNotFoundError(f"{self.path} cannot be read any more ({error.strerror})") from None
            try:
                handle = pysam.AlignmentFile(
                    source, check_sq=False, index_filename=None if index is None else str(index), **options
                )
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno is not None and not self.path.exists():
                    raise InputFileNotFoundError(f"{self.path} does not exist any more") from None
                problem = header_problem(self.path) if self.kind == "SAM" else None
                raise FileFormatError(
                    f"{self.path}, {problem}"
                    if problem
                    else f"{self.path} has a damaged or unfinished header; expected {_EXPECTED}"
                ) from None
        self._check_unchanged(handle)
        return handle

    def _check_unchanged(self, handle: pysam.AlignmentFile | BlockReader) -> None:
        if file_version(self.path) != self._version:
            _close_quietly(handle)
            raise FileFormatError(f"{self.path} has changed since it was opened; start again")

    @contextlib.contextmanager
    def _opened(self, open_handle: Callable[[Path], _Handle]) -> Iterator[_Handle]:
        handle = open_handle(self.path)
        try:
            yield handle
        except BaseException:
            _close_quietly(handle)
            raise
        try:
            handle.close()
        except (OSError, TypeError):  # pysam cannot say it of a file that has no name
            raise FileFormatError(f"{self.path} is truncated or damaged; fetch or write it again") from None

    def _open_indexed(self) -> pysam.AlignmentFile | BlockReader:
        with self._index_lock:
            path, index = self._indexed()
            if self.kind != "CRAM" and self._bins is None:
                self._bins = self._read_bins(index), index
        return self._open(path, index) if self.kind == "CRAM" else self._open_blocks(path)

    def _read_bins(self, index: Path) -> BinIndex:
        try:
            bins = BinIndex.read(index, max(self.contigs.values(), default=0))
        except (OSError, ValueError):
            raise self._damaged_index(index) from None
        # What is in the cache is samtools' own, and what it does not say itself is known.
        if len(bins) != len(self.contigs) or (index == self._cached("csi") and bins.shift != BAI_SHIFT):
            raise self._damaged_index(index)
        return bins

    def _header(self, handle: pysam.AlignmentFile) -> Mapping[str, object]:
        try:
            return handle.header.to_dict()
        except (ValueError, KeyError, AssertionError) as error:  # an assertion is how pysam refuses a line
            raise FileFormatError(f"{self.path} has a header line that cannot be read ({_reason(error)})") from None

    def _converted(self, handle: pysam.AlignmentFile, reads: Iterator[pysam.AlignedSegment]) -> Iterator[Records]:
        """Reads as BAM's bytes: htslib decodes CRAM and SAM, and hands the packed records over many at a time."""
        reads = iter(reads)
        last: pysam.AlignedSegment | None = None
        done, count = False, 1
        # A header of very many contigs goes with every batch, and the batch is as large as that at the least.
        header_bytes = _SHORT_CONTIG.size * len(self.contigs)
        most = header_bytes + max(_BATCH_BYTES, header_bytes)
        with _scratch_file() as scratch:
            while not done:
                scratch.seek(0)
                writer = pysam.AlignmentFile(scratch, "wbu", header=self._short_header)
                write = writer.write
                try:
                    with quiet_htslib():
                        size = header_bytes
                        while size < most and not done:
                            before, size_before = last, size
                            for last in islice(reads, count):
                                write(last)
                            done = last is before
                            # So many more at once as will not be far over: reads have a hundred bytes or a million,
                            # and the long ones may come when many short ones have been.
                            size = max(scratch.tell(), header_bytes)
                            more = max(size - size_before, 1 << 16)
                            count = max(1, min(2 * count, _MOST_AT_ONCE, count * (_BATCH_BYTES // 8) // more))
                except (OSError, ValueError, OverflowError) as error:
                    raise self._damaged(None if last is None else last.query_name, error) from None
                finally:
                    writer.close()
                data = _unpacked(scratch, scratch.tell())
                packed = data[_SHORT_CONTIG.size * len(self.contigs) :]
                records = Records.parse(packed, len(self.contigs), self.path).records
                if len(records):
                    yield records

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {contig: number for number, contig in enumerate(self.contigs)}

    @cached_property
    def _short_header(self) -> pysam.AlignmentHeader:
        """A header for what is read back at once: records refer to contigs by number."""
        names = [f"{number:08}" for number in range(len(self.contigs))]
        return pysam.AlignmentHeader.from_references(names, [1] * len(names), add_sq_text=False)

    def _damaged(self, last: str | None, error: Exception) -> FileFormatError:
        """What is wrong after the read of a name (None: from the beginning)."""
        with quiet_htslib():
            where = "at its first record" if last is None else f"after read {last!r}"
            if self.kind == "SAM":
                where = f"in line {self._damaged_line()}"
        if self.kind == "CRAM" and self.reference is None:
            return FileFormatError(
                f"{self.path} cannot be decoded {where}: it needs the genome that it was made with (pass reference=), "
                "or it is damaged"
            )
        hint = " or was made with another genome than reference=" if self.kind == "CRAM" else ""
        # Of what it could not decode, pysam knows a number at the most.
        reason = "" if isinstance(error, OSError) else f" ({_reason(error)})"
        return FileFormatError(
            f"{self.path} is truncated or damaged {where}{hint}{reason}; fetch or write the file again"
        )

    def _damaged_line(self) -> int:
        """The line of the first record that htslib refuses."""
        count = 0
        with (
            contextlib.suppress(OSError, ValueError),
            pysam.AlignmentFile(_for_htslib(self.path), check_sq=False) as again,
        ):
            for _ in again.fetch(until_eof=True):
                count += 1
        return record_line(self.path, count)

    # CRAM's reference

    def _linked_reference(self, reference: Genome) -> Path:
        """The reference beside an index that has the names of the alignments' contigs, as htslib wants it."""
        if self._link is None:
            self._link = tempfile.TemporaryDirectory(prefix="genosparse-")
            reference.link(Path(self._link.name) / "reference.fa", self._reference_names)
        return Path(self._link.name) / "reference.fa"

    @cached_property
    def _reference_names(self) -> dict[str, str]:
        """The reference's name of each contig that it has, as long as it is here."""
        assert self.reference is not None
        matcher = self.reference.matcher(wanted_from=str(self.path), wanted_lengths=self.contigs)
        names = {contig: name for contig, name in matcher.match_all(self.contigs).items() if name is not None}
        return {contig: name for contig, name in names.items() if self.reference.contigs[name] == self.contigs[contig]}

    def check_reference(self, contig: str) -> None:
        """Raise ``ContigNotFoundError`` where CRAM's reference lacks a contig, or has another length of it."""
        if self.kind == "CRAM" and self.reference is not None and contig not in self._reference_names:
            raise ContigNotFoundError(
                f"contig {contig!r} ({self.contigs[contig]} bp) of {self.path} is not in "
                f"reference={self.reference.path}, or has another length there; pass the genome that it was made with"
            )

    def _check_all_references(self) -> None:
        """Without a local reference htslib would go and look where the header says."""
        if self.kind != "CRAM":
            return
        known = set() if self.reference is None else set(self._reference_names)
        lines = self.header.get("SQ", [])
        assert isinstance(lines, list)
        for line in lines:
            if line["SN"] not in known and "://" in line.get("UR", "").removeprefix("file://"):
                raise ContigNotFoundError(
                    f"{self.path} names a remote reference for contig {line['SN']!r} ({line['UR']}), and nothing is "
                    "ever downloaded; pass reference= with all of its contigs"
                )

    def _check_cram(self) -> None:
        end = _CRAM_ENDS.get(self._version_of_cram or 0)
        if end is None:
            raise FileFormatError(f"{self.path} is CRAM of version {self._version_of_cram}; expected version 2 or 3")
        with self.path.open("rb") as stream:
            stream.seek(max(0, self._version[0] - len(end)))
            if stream.read() != end:
                raise FileFormatError(
                    f"{self.path} is truncated: the container that ends a CRAM file is missing; fetch or write it again"
                )
        if self.reference is None:
            self._check_all_references()

    # Index

    def _indexed(self) -> tuple[Path, Path]:
        """A file that can be read at any place, and its index."""
        if self.kind not in ("BAM", "CRAM"):
            path = self._cached("bam")
            if not path.exists():
                self._sort(path)
        else:
            path = self.path
        suffix = "crai" if self.kind == "CRAM" else "csi"
        cached = self._cached(suffix)
        if cached.exists():
            return path, cached
        beside = None if path is not self.path else _index_beside(path, suffix)
        if beside is not None and self._version[0] > _SMALL_BYTES:
            if index_fits(path, beside, [*self.contigs.values()], self._version[1]):
                return path, beside
            warnings.warn(
                f"the index {beside} is older than {path} or does not fit it; a new one is made in {cached.parent}",
                GenosparseWarning,
                stacklevel=6,
            )
        self._make(cached, lambda made: self._build_index(path, made))
        return path, cached

    def _cached(self, suffix: str) -> Path:
        return Path(f"{cache_stem(self.path, 'alignments')}.{suffix}")

    def _build_index(self, path: Path, made: Path) -> None:
        try:
            samtools("index", *([] if self.kind == "CRAM" else ["-c"]), "-o", str(made), _for_htslib(path))
        except pysam.SamtoolsError:
            self._explain_places()
            raise FileFormatError(
                f"{self.path} cannot be indexed, though it can be read from end to end; write it again with "
                "`samtools sort`"
            ) from None

    def _sort(self, sorted_path: Path) -> None:
        # Read to its end first, as that says better than samtools sort what is wrong with a file.
        deque(self.batches(), maxlen=0)
        warnings.warn(
            f"{self.path} cannot be read at any place; a sorted copy is made in {sorted_path.parent} "
            "(make it BAM with `samtools sort` to do without)",
            GenosparseWarning,
            stacklevel=6,
        )

        def sort(made: Path) -> None:
            try:
                samtools("sort", "-O", "bam", "-o", str(made), _for_htslib(self.path))
            except pysam.SamtoolsError:
                raise FileFormatError(
                    f"{self.path} cannot be sorted, though it can be read from end to end; run `samtools sort` on it"
                ) from None

        self._make(sorted_path, sort)

    def _make(self, path: Path, make: Callable[[Path], None]) -> None:
        """Let ``make`` write a file of the cache, which appears whole."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".genosparse-", dir=path.parent) as workspace:
                made = Path(workspace) / path.name
                make(made)
                made.replace(path)
        except OSError as error:
            if isinstance(error, GenosparseError):
                raise
            raise OutputError(
                f"{path.name}, which {self.path} needs, cannot be written in {path.parent} ({error.strerror}); "
                "set XDG_CACHE_HOME to a folder that can be written"
            ) from None

    def _explain_places(self) -> None:
        """Raise where the records are not sorted by position, or lie beyond what an index of their contigs covers."""
        last = (-1, -1)
        lengths = np.array([*self.contigs.values(), _MOST_POSITION])  # the last one is of contig -1
        for records in self.batches():
            contigs, positions = records.int64("contig"), records.position0
            contigs = np.where(contigs < 0, len(self.contigs), contigs)
            before = np.concatenate([[last[0]], contigs[:-1]]), np.concatenate([[last[1]], positions[:-1]])
            wrong = (contigs < before[0]) | ((contigs == before[0]) & (positions < before[1]))
            wrong &= contigs < len(self.contigs)
            if wrong.any():
                raise FileFormatError(
                    f"{self.path} is not sorted by position (read {records.name(int(np.argmax(wrong)))!r} comes too "
                    "late), so that an interval cannot be read from it; run `samtools sort`"
                )
            beyond = positions >= lengths[records.int64("contig")]
            if beyond.any():
                at = int(np.argmax(beyond))
                raise FileFormatError(
                    f"{self.path}: read {records.name(at)!r} begins past the end of its contig, at "
                    f"{position_1based(int(positions[at]))} (1-based), so that the file cannot be indexed; check that "
                    "the header is of the genome that the reads were aligned to"
                )
            last = int(contigs[-1]), int(positions[-1])


def _kind(path: Path) -> str:
    """BAM, CRAM, SAM, or "BAM stream" for BAM that bgzip did not compress."""
    with path.open("rb") as stream:
        raw = stream.read(_HEAD_BYTES)
    if raw.startswith(b"CRAM"):
        return "CRAM"
    if is_bgzf(raw):
        check_bgzf_end(path)
    head = read_head(path, _HEAD_BYTES)
    if head.startswith(b"BAM\x01"):
        if is_gzip(raw) and not is_bgzf(raw):
            raise FileFormatError(
                f"{path} is BAM compressed by ordinary gzip, which no tool reads; `gunzip -c {path} | bgzip` mends it"
            )
        return "BAM" if is_bgzf(raw) else "BAM stream"
    first = head.split(b"\n", 1)[0]
    if first.startswith(_SAM_HEADER) or first.count(b"\t") >= _LEAST_SAM_COLUMNS - 1:
        return "SAM"
    shown = repr(first[:40].decode("utf-8", "replace"))
    raise FileFormatError(f"{path} is not {_EXPECTED}: it begins with {shown}")


def _index_beside(path: Path, suffix: str) -> Path | None:
    suffixes = ["bai", "csi"] if suffix == "csi" else [suffix]
    names = [name for each in suffixes for name in (Path(f"{path}.{each}"), path.with_suffix(f".{each}"))]
    return next((name for name in names if name.is_file()), None)


@contextlib.contextmanager
def _scratch_file() -> Iterator[FileIO]:
    """A file in memory, or a temporary one where there are none."""
    if hasattr(os, "memfd_create"):
        with FileIO(os.memfd_create("genosparse"), "r+") as file:
            yield file
    else:
        with tempfile.TemporaryFile(buffering=0) as file:
            yield file


def _unpacked(scratch: FileIO, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """What a BAM file of ``size`` bytes holds behind the text of its header: its contigs and records."""
    blocks: list[bytes | memoryview] = []
    packed = memoryview(bytearray(size))
    scratch.seek(0)
    at = 0
    while at < size:
        at += scratch.readinto(packed[at:])
    at = 0
    while at < size:
        end = at + (packed[at + 16] | packed[at + 17] << 8) + 1
        block = packed[at + _BGZF_HEADER_BYTES : end - _BGZF_FOOTER_BYTES]
        # htslib leaves blocks uncompressed when told so, but for the empty one at the end.
        is_stored = (
            len(block) > _STORED_HEADER_BYTES
            and block[0] == 1
            and (block[1] | block[2] << 8) == len(block) - _STORED_HEADER_BYTES
        )
        blocks.append(
            block[_STORED_HEADER_BYTES:] if is_stored else zlib.decompress(block, -zlib.MAX_WBITS, _MOST_BLOCK_BYTES)
        )
        at = end
    data = np.frombuffer(b"".join(blocks), np.uint8)
    text_bytes = int(data[4:8].view("<i4")[0])
    return data[8 + text_bytes + 4 :]  # "BAM\1", length of the text, text, number of contigs


def _close_quietly(handle: pysam.AlignmentFile | BlockReader) -> None:
    """Close a handle that may have met with damage, of which its closing would tell once more."""
    with contextlib.suppress(OSError, TypeError):
        handle.close()


def _for_htslib(path: Path) -> str:
    """A name of a file that htslib does not take for a URL, whatever it begins with."""
    return str(path.absolute())


def _forbid_downloads() -> None:
    """htslib asks the servers that REF_PATH names for what it lacks to decode CRAM; before 1.22, one of its own too."""
    if "://" in os.environ.get("REF_PATH", "://"):
        os.environ["REF_PATH"] = os.devnull


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[-1][:120] if text else type(error).__name__
