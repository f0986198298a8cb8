"""VCF and BCF.

VCF is read as text, because the columns of a record must be able to come out again as they went in: a parser rounds
QUAL and frequencies and refuses undeclared FILTERs. BCF has no such text; its records are read as htslib writes them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import pysam

from genosparse.errors import FileFormatError
from genosparse.inputs import TextLines, display_name
from genosparse.intervals import position0_from_1based
from genosparse.readers._htslib import quiet_htslib

__all__ = ["Variant", "VcfText", "open_vcf_text", "parse_vcf_line", "read_variants"]

_EXPECTED = "a VCF or BCF file"
_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
_BASES = re.compile(r"[ACGTUNRYSWKMBDHVacgtunryswkmbdhv]+")
# float() takes 1_0, blanks and the digits of every script.
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_MOST_POSITION = 2**31 - 1  # of VCF's integers, of BCF and of BAM
_CONTIG = re.compile(r"##contig=<(.*)>\s*")
_FIELD = re.compile(r'([^=,]+)=("(?:[^"\\]|\\.)*"|[^,]*)')


@dataclass(frozen=True, slots=True)
class Variant:
    """One record of a VCF or BCF file.

    Args:
        contig: Name of the contig, as in the file.
        position0: 0-based position of REF's first base; -1 for VCF's POS 0, the telomere.
        ref: REF, as in the file.
        alts: ALT alleles, as in the file: bases, or whatever else is there, like ``*``, symbolic alleles (``<DEL>``),
            breakends and insertions of assembled contigs (``C<ctg1>``); empty when ALT is ``.``.
        id: ID, or None when it is ``.``.
        qual: QUAL, or None when it is ``.``.
        filter: FILTER as text, or None when it is ``.``.
        info: INFO as text, or None when it is ``.``.
        record_index: How many records come before this one in the file.
    """

    contig: str
    position0: int
    ref: str
    alts: tuple[str, ...]
    id: str | None = None
    qual: float | None = None
    filter: str | None = None
    info: str | None = None
    record_index: int = 0


class VcfText:
    """The text of a VCF or BCF file: its header at once, its record lines one by one; a context manager.

    Blank lines are passed over; ``\\r\\n`` line ends are read as ``\\n``. Bytes that are not UTF-8 are carried as
    surrogate escapes: write them with ``errors="surrogateescape"``.

    Args:
        path: A VCF file, plain or compressed by gzip or bgzip, or a BCF file, by content and not by name; ``-`` is VCF
            text, compressed or not, on standard input.

    Attributes:
        path: As given.
        header_lines: The lines that begin with ``#``, the ``#CHROM`` line last.
        line_number: Number of the line given last, from 1; the header counts.
        contig_lengths: The contigs that the header declares, with their lengths in bases or None.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is not a VCF or BCF file; or, also while reading, it is truncated or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.line_number = 0
        self.header_lines: list[str] = []
        self._bcf: pysam.VariantFile | None = None
        self._lines = TextLines(path, _EXPECTED, keep_bytes=True)
        try:
            # A pipe cannot be opened a second time, so htslib gets BCF from regular files alone.
            if self._lines.peek(3) == b"BCF" and Path(path).is_file():
                self._lines.close()
                self._open_bcf()
            else:
                self._read_header()
        except BaseException:
            self.close()
            raise
        self._num_columns = self.header_lines[-1].count("\t") + 1

    def _open_bcf(self) -> None:
        with quiet_htslib():
            try:
                self._bcf = pysam.VariantFile(str(self.path), "rb")
            except (OSError, ValueError):
                raise FileFormatError(f"{self.path} has a damaged BCF header; fetch or write the file again") from None
            # At "\n" alone: str.splitlines knows eight more ends of a line, which text in a header may hold.
            self.header_lines = str(self._bcf.header).removesuffix("\n").split("\n")
        self.line_number = len(self.header_lines)

    @cached_property
    def contig_lengths(self) -> dict[str, int | None]:
        """The contigs that the header declares, in its order, with their lengths in bases; None where it has none."""
        lengths: dict[str, int | None] = {}
        for line in self.header_lines:
            if match := _CONTIG.fullmatch(line):
                fields = {key.strip(): value for key, value in _FIELD.findall(match[1])}
                length = fields.get("length", "")
                if contig := fields.get("ID"):
                    lengths[contig] = int(length) if re.fullmatch(r"[0-9]{1,18}", length) else None
        return lengths

    def _read_header(self) -> None:
        name = display_name(self.path)
        for line in self._lines:
            if not line.startswith("##"):
                break
            self.header_lines.append(line)
        else:
            if not self.header_lines:
                raise FileFormatError(f"{name} is empty; expected {_EXPECTED}")
            raise FileFormatError(f"{name} ends within its header: there is no #CHROM line; expected {_EXPECTED}")
        if line.startswith("BCF\x02"):
            raise FileFormatError(
                f"{name} is BCF; expected VCF text: give the file, or pipe it through `bcftools view`"
            )
        number = self._lines.line_number
        if self.header_lines and (version := re.match(r"##fileformat=(.*)", self.header_lines[0])):
            if not re.fullmatch(r"VCFv4\.\d+", version[1].strip()):
                raise FileFormatError(
                    f"{name} has fileformat {version[1]!r}; expected VCFv4.1 to VCFv4.4: convert it first"
                )
        elif not line.startswith("#"):
            raise FileFormatError(f"{name} is not {_EXPECTED}: line {number} is {_shortened(line)}")
        if not line.startswith("#"):
            raise FileFormatError(f"{name}, line {number}: the #CHROM line is missing before the first record")
        if tuple(line.split("\t")[:8]) != _COLUMNS:
            raise FileFormatError(
                f"{name}, line {number}: the header line is {_shortened(line)}; expected {' '.join(_COLUMNS)}, "
                "separated by tabs"
            )
        self.header_lines.append(line)
        self.line_number = number

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._next_bcf_line() if self._bcf is not None else self._next_text_line()
        if line.startswith("#"):
            raise FileFormatError(
                f"{display_name(self.path)}, line {self.line_number}: a header line among the records; "
                "join files with `bcftools concat`"
            )
        num_columns = line.count("\t") + 1
        # Tools that drop the samples often leave FORMAT in the header line.
        if num_columns != self._num_columns and (num_columns, self._num_columns) != (8, 9):
            raise FileFormatError(
                f"{display_name(self.path)}, line {self.line_number}: {num_columns} columns where the header has "
                f"{self._num_columns}; columns are separated by tabs, and the last line may have been cut off"
            )
        return line

    def _next_text_line(self) -> str:
        line = next(self._lines)
        while not line or line.isspace():
            line = next(self._lines)
        self.line_number = self._lines.line_number
        return line

    def _next_bcf_line(self) -> str:
        assert self._bcf is not None  # noqa: S101 - our own invariant
        with quiet_htslib():
            try:
                line = str(next(self._bcf))
            except (OSError, ValueError):
                raise FileFormatError(
                    f"{self.path} is truncated or damaged after record {self.line_number - len(self.header_lines)}; "
                    "fetch or write the file again"
                ) from None
        self.line_number += 1
        return line.removesuffix("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._lines.close()
        if self._bcf is not None:
            self._bcf.close()


def open_vcf_text(path: str | Path) -> VcfText:
    """Open a VCF or BCF file as text: ``header_lines``, then an iteration over the record lines; see ``VcfText``."""
    return VcfText(path)


def read_variants(path: str | Path) -> Iterator[Variant]:
    """Read the records of a VCF or BCF file, in its order, without loading the file.

    Args:
        path: A VCF file, plain or compressed by gzip or bgzip, or a BCF file; ``-`` is VCF text on standard input.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is not a VCF or BCF file, a record is malformed (named with its line), or it is truncated.
    """
    return _parse_records(open_vcf_text(path))


def _parse_records(text: VcfText) -> Iterator[Variant]:
    with text:
        for index, line in enumerate(text):
            yield parse_vcf_line(line, text.path, text.line_number, record_index=index)


def parse_vcf_line(line: str, path: str | Path, line_number: int, *, record_index: int = 0) -> Variant:
    """Parse the first eight columns of a record line.

    Args:
        line: The line, without its end.
        path: The file, for messages.
        line_number: The line's number, for messages.
        record_index: Goes into the ``Variant``.

    Raises:
        FileFormatError: The line is not a VCF record.
    """

    def malformed(what: str) -> FileFormatError:
        return FileFormatError(f"{display_name(path)}, line {line_number}: {what}")

    columns = line.split("\t", 8)
    if len(columns) < 8:
        raise malformed(f"{len(columns)} columns; a VCF record has at least 8, separated by tabs")
    contig, position, identifier, ref, alt, qual, filters, info = columns[:8]
    if not contig or contig == "." or " " in contig:
        raise malformed(f"CHROM is {contig!r}; expected the name of a contig")
    # Its digits are counted first: int() refuses a number of thousands of them.
    is_number = position.isascii() and position.isdigit() and len(position.lstrip("0")) <= len(str(_MOST_POSITION))
    if not is_number or int(position) > _MOST_POSITION:
        raise malformed(f"POS is {_shortened(position)}; expected a whole number up to {_MOST_POSITION}")
    if not _BASES.fullmatch(ref):
        raise malformed(f"REF is {_shortened(ref)}; expected bases")
    alts = () if alt == "." else tuple(alt.split(","))
    # What an allele that is not bases means is not for the reader to judge; it must only be one.
    if not all(alts) or any(map(str.isspace, alt)):
        raise malformed(f"ALT is {_shortened(alt)}; expected alleles without blanks, separated by commas, or '.'")
    if qual != "." and not _NUMBER.fullmatch(qual):
        raise malformed(f"QUAL is {_shortened(qual)}; expected a number or '.'")
    return Variant(
        contig=contig,
        position0=position0_from_1based(int(position)),
        ref=ref,
        alts=alts,
        id=None if identifier == "." else identifier,
        qual=None if qual == "." else float(qual),
        filter=None if filters == "." else filters,
        info=None if info == "." else info,
        record_index=record_index,
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
