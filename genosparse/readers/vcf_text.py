"""The text of VCF and BCF files.

VCF is read as text, because the columns of a record must be able to come out again as they went in: a parser rounds
QUAL and frequencies and refuses undeclared FILTERs. BCF has no such text; its records are read as htslib writes them.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import pysam

from genosparse.errors import FileFormatError
from genosparse.inputs import STANDARD_INPUT, Closing, TextLines, display_name, is_bgzf
from genosparse.intervals import position_1based
from genosparse.readers._htslib import quiet_htslib
from genosparse.readers.variant_index import VariantIndex, find_index

__all__ = ["VcfText", "is_bcf", "open_vcf_text"]

_EXPECTED = "a VCF or BCF file"
_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
_CONTIG = re.compile(r"##contig=<(.*)>\s*")
_FIELD = re.compile(r'([^=,]+)=("(?:[^"\\]|\\.)*"|[^,]*)')
_MOST_POSITION = 2**31 - 1  # of BCF's integers


class VcfText(Closing):
    """The text of a VCF or BCF file: its header at once, its record lines one by one; a context manager.

    Blank lines are passed over; ``\\r\\n`` line ends are read as ``\\n``. Bytes that are not UTF-8 are carried as
    surrogate escapes: write them with ``errors="surrogateescape"``.

    Args:
        path: A VCF file, plain or compressed by gzip or bgzip, or a BCF file, by content and not by name; ``-`` is VCF
            text, compressed or not, on standard input.
        lines: The file's text where it is open already, nothing of it read yet.

    Attributes:
        path: As given.
        place: What messages call the file.
        header_lines: The lines that begin with ``#``, the ``#CHROM`` line last.
        samples: Names of the samples, in the order of their columns.
        line_number: Number of the line given last, from 1; the header counts. After ``seek`` it counts from the place
            where reading began.
        contig_lengths: The contigs that the header declares, with their lengths in bases or None.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is not a VCF or BCF file; or, also while reading, it is truncated or damaged.
    """

    def __init__(self, path: str | Path, lines: TextLines | None = None) -> None:
        self.path = path
        self.place = display_name(path)
        self.line_number = 0
        self.header_lines: list[str] = []
        self._is_within = False  # reading began after the header
        self._bcf: pysam.VariantFile | None = None
        self._bcf_records: Iterator[pysam.VariantRecord] = iter(())
        self._lines = lines or TextLines(path, _EXPECTED, keep_bytes=True)
        try:
            # A pipe cannot be opened a second time, so htslib gets BCF from regular files alone.
            if is_bcf(self._lines) and Path(path).is_file():
                self._lines.close()
                self._open_bcf()
            else:
                self._read_header()
        except BaseException:
            self.close()
            raise
        columns = self.header_lines[-1].split("\t")
        self._num_columns = len(columns)
        self.samples = tuple(columns[9:])

    def _open_bcf(self) -> None:
        # From an open file, as by its name htslib would read the index beside it too, which may be in ruins.
        with quiet_htslib(), Path(self.path).open("rb") as stream:
            try:
                self._bcf = pysam.VariantFile(stream, "rb")
            except (OSError, ValueError):
                raise FileFormatError(f"{self.path} has a damaged BCF header; fetch or write the file again") from None
            # At "\n" alone: str.splitlines knows eight more ends of a line, which text in a header may hold.
            self.header_lines = str(self._bcf.header).removesuffix("\n").split("\n")
        self._bcf_records = iter(self._bcf)
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

    @cached_property
    def index(self) -> VariantIndex | None:
        """The index beside the file; None where there is none that can be trusted."""
        file = Path(self.path)
        if str(self.path) == STANDARD_INPUT or not file.is_file():
            return None
        with file.open("rb") as stream:
            return find_index(file) if is_bgzf(stream.read(18)) else None

    def seek(self, contig: str, start: int) -> bool:
        """Go where, by the index, the records of a contig that reach past a position begin.

        The records from there on are sorted; the first may end before the position.

        Args:
            contig: The file's name for it.
            start: 0-based position.

        Returns:
            False where the contig has no records.
        """
        assert self.index is not None
        place = f"{self.place}, read from {contig}:{position_1based(start)} on"
        if self._bcf is not None:
            self._seek_bcf(contig, start)
        else:
            offset = self.index.offset(contig, start) if contig in self.index.names else None
            if offset is None:
                return False
            self._lines.close()
            self._lines = TextLines(self.path, _EXPECTED, keep_bytes=True, virtual_offset=offset)
        self.place = place
        self.line_number = 0
        self._is_within = True
        return True

    def _seek_bcf(self, contig: str, start: int) -> None:
        assert self.index is not None
        self.close()
        with quiet_htslib():
            try:
                self._bcf = pysam.VariantFile(str(self.path), "rb", index_filename=str(self.index.path))
                self._bcf_records = self._bcf.fetch(contig, min(start, _MOST_POSITION - 1), _MOST_POSITION)
            except (OSError, ValueError):
                raise FileFormatError(
                    f"{self.path} cannot be read with its index {self.index.path}; delete the index, or make it anew"
                ) from None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._next_bcf_line() if self._bcf is not None else self._next_text_line()
        if line.startswith("#"):
            raise FileFormatError(
                f"{self.place}, line {self.line_number}: a header line among the records; "
                "join files with `bcftools concat`"
            )
        num_columns = line.count("\t") + 1
        # Tools that drop the samples often leave FORMAT in the header line.
        if num_columns != self._num_columns and (num_columns, self._num_columns) != (8, 9):
            raise FileFormatError(
                f"{self.place}, line {self.line_number}: {num_columns} columns where the header has "
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
        with quiet_htslib():
            try:
                line = str(next(self._bcf_records))
            except (OSError, ValueError):
                num_read = (
                    self.line_number - len(self.header_lines) if self.place == str(self.path) else self.line_number
                )
                raise FileFormatError(
                    f"{self.place} is truncated or damaged after record {num_read}; fetch or write the file again"
                ) from None
        self.line_number += 1
        return line.removesuffix("\n")

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._lines.close()
        if self._bcf is not None:
            # htslib says once more that it could not read, and pysam cannot say it of a file that has no name.
            with suppress(OSError, TypeError):
                self._bcf.close()


def open_vcf_text(path: str | Path) -> VcfText:
    """Open a VCF or BCF file as text: ``header_lines``, then an iteration over the record lines; see ``VcfText``."""
    return VcfText(path)


def is_bcf(lines: TextLines) -> bool:
    """Whether a file of which nothing has been read yet is BCF."""
    return lines.peek(3) == b"BCF"


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
