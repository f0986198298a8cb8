"""Places on contigs: intervals, BED files, region strings, and the only 1-based <-> 0-based conversions.

Inside genosparse coordinates are 0-based and half-open: the first base of a contig is 0, and ``end`` is the first
position that no longer belongs to the interval.
"""

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from genosparse.errors import FileFormatError, IntervalError
from genosparse.inputs import TextLines, display_name

__all__ = [
    "Interval",
    "interval_from_1based",
    "parse_bed",
    "parse_region",
    "position0_from_1based",
    "position_1based",
    "read_bed",
]

_STRANDS = ("+", "-", ".")


def position0_from_1based(position: int) -> int:
    """The 0-based position of a 1-based one; also the 0-based start of an interval that has 1-based ends."""
    return position - 1


def position_1based(position0: int) -> int:
    """The 1-based position of a 0-based one."""
    return position0 + 1


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of a contig of at least one base, 0-based and half-open.

    Args:
        contig: Name of the contig.
        start: First position, from 0.
        end: The position after the last one, at least ``start + 1``.
        strand: ``+``, ``-`` (the sequence is the reverse complement) or ``.`` (none; read as ``+``).
        name: A label, as in the fourth column of BED.

    Raises:
        IntervalError: A value that cannot be.
    """

    contig: str
    start: int
    end: int
    strand: str = "+"
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.contig, str) or not self.contig:
            raise IntervalError(f"an interval's contig is {self.contig!r}; expected a name")
        for field in ("start", "end"):
            value = getattr(self, field)
            try:
                object.__setattr__(self, field, operator.index(value))
            except TypeError:
                raise IntervalError(
                    f"{field} of an interval on {self.contig} is {value!r}; expected an integer"
                ) from None
        if self.start < 0:
            raise IntervalError(
                f"interval {self.contig}:{self.start}-{self.end} begins before the contig; positions count from 0"
            )
        if self.end <= self.start:
            raise IntervalError(
                f"interval {self.contig}:{self.start}-{self.end} holds no base; expected start < end (half-open)"
            )
        if self.strand not in _STRANDS:
            raise IntervalError(
                f"interval {self.contig}:{self.start}-{self.end} has strand {self.strand!r}; expected '+', '-' or '.'"
            )

    @property
    def length(self) -> int:
        """Number of bases."""
        return self.end - self.start

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.contig}:{self.start}-{self.end}({self.strand})"


def interval_from_1based(contig: str, first: int, last: int, strand: str = "+", name: str | None = None) -> Interval:
    """The interval of 1-based positions, both included, as region strings, GFF, GTF, GenBank and EMBL have them.

    Raises:
        IntervalError: Not ``1 <= first <= last``.
    """
    if not 1 <= first <= last:
        raise IntervalError(
            f"{contig}:{first}-{last} is no stretch of positions; expected 1 <= first <= last (1-based)"
        )
    return Interval(contig, position0_from_1based(first), last, strand, name)


_REGION = re.compile(r"(?P<contig>\S.*):(?P<start>[\d,]+)-(?P<end>[\d,]+)")
_OPEN_REGION = re.compile(r"(?P<contig>\S.*):(?P<start>[\d,]+)-?(?P<end>)")


def parse_region(text: str, lengths: Mapping[str, int] | None = None) -> Interval:
    """Read a region string ``contig:first-last``, 1-based with both ends included, as samtools and genome browsers do.

    Commas in numbers are allowed, and colons in the contig's name.

    Args:
        text: The region.
        lengths: Lengths of the contigs. With them, ``contig`` is the whole contig, and ``contig:first`` and
            ``contig:first-`` reach to its end.

    Raises:
        IntervalError: The text is not a region, or with ``lengths`` could mean two contigs.
    """
    text = text.strip()
    match = _REGION.fullmatch(text)
    if lengths is not None:
        match = match or _OPEN_REGION.fullmatch(text)
        if text in lengths:
            if match is not None and match["contig"] in lengths:
                raise IntervalError(
                    f"{text!r} is a contig, and a region of contig {match['contig']!r}; rename one of them"
                )
            return Interval(text, 0, lengths[text])
    if match is None:
        raise IntervalError(f"{text!r} is not a region; expected contig:first-last, 1-based, as in chr1:1,001-2,000")
    contig = match["contig"]
    digits = [match[key].replace(",", "") or "0" for key in ("start", "end")]
    if not all(map(_is_integer, digits)):
        raise IntervalError(f"{_shortened(text)} is not a region; expected contig:first-last, in digits from 0 to 9")
    first, last = map(int, digits)
    if lengths is not None and not match["end"]:
        if contig not in lengths:
            raise IntervalError(f"region {text!r} has no last position, and the length of {contig!r} is not known")
        last = lengths[contig]
    if not 1 <= first <= last:
        raise IntervalError(f"region {text!r} runs from {first} to {last}; expected 1 <= first <= last (1-based)")
    return interval_from_1based(contig, first, last)


def read_bed(path: str | Path, blocks: bool = False) -> Iterator[Interval]:
    """Read the intervals of a BED file, in its order.

    Columns are separated by tabs (by blanks in lines without a tab): contig, start, end and, where present, name,
    score, strand. Lines of twelve columns are BED12: their thick part and blocks must lie within the interval; further
    columns of other lines are not used. Empty lines and ``#``, ``track`` and ``browser`` lines are passed over. A file
    without intervals gives none.

    Args:
        path: A BED file, plain or compressed by gzip or bgzip; ``-`` is standard input.
        blocks: Give each block (exon) of a line of twelve columns or more as an interval, instead of the whole.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: A line is not BED, named with its number; or the file is truncated.
    """
    lines = TextLines(path, "a BED file")
    return parse_bed(lines, lines, blocks)


def parse_bed(rows: Iterable[str], lines: TextLines, blocks: bool = False) -> Iterator[Interval]:
    """The intervals of the lines of a BED file; ``lines``, which is closed at the end, tells where each stands."""
    with lines:
        for row in rows:
            if not row.strip() or row.startswith("#") or re.match(r"(track|browser)(\s|$)", row):
                continue
            try:
                yield from _parse_bed_line(row, blocks)
            except IntervalError as error:
                raise FileFormatError(f"{display_name(lines.path)}, line {lines.line_number}: {error}") from None


def _parse_bed_line(line: str, blocks: bool) -> list[Interval]:
    columns = line.split("\t") if "\t" in line else line.split()
    if len(columns) < 3:
        raise IntervalError(f"{len(columns)} columns in {_shortened(line)}; BED has at least contig, start and end")
    contig, start, end = (column.strip() for column in columns[:3])
    if not (_is_integer(start) and _is_integer(end)):
        raise IntervalError(
            f"start {_shortened(start)} and end {_shortened(end)} are not both whole numbers; "
            "put '#' before a header line"
        )
    name = columns[3].strip() if len(columns) > 3 else "."
    strand = columns[5].strip() if len(columns) > 5 else "+"
    whole = Interval(contig, int(start), int(end), strand or ".", None if name in ("", ".") else name)
    # Wider lines may be of another kind (bedMethyl), whose further columns mean other things.
    if len(columns) == 12 or (blocks and len(columns) > 12):
        parts = _bed12_blocks(whole, [column.strip() for column in columns[6:12]])
        return parts if blocks else [whole]
    return [whole]


def _bed12_blocks(whole: Interval, columns: list[str]) -> list[Interval]:
    """The blocks of a line of BED12, from its last six columns."""
    thick_start, thick_end, _, count, *lists = columns
    sizes, starts = (column.removesuffix(",").split(",") for column in lists)
    if not all(map(_is_integer, (thick_start, thick_end, count, *sizes, *starts))):
        raise IntervalError("columns 7, 8, 10, 11 and 12 of BED12 are not whole numbers, or lists of such with commas")
    if int(thick_start) != int(thick_end) and not whole.start <= int(thick_start) < int(thick_end) <= whole.end:
        raise IntervalError(f"thick part {thick_start}-{thick_end} does not lie within {whole}")
    if not int(count) == len(sizes) == len(starts):
        raise IntervalError(f"blockCount is {count}, with {len(sizes)} block sizes and {len(starts)} block starts")
    blocks = []
    for size, start in zip(map(int, sizes), map(int, starts), strict=True):
        if start < 0 or size < 1 or whole.start + start + size > whole.end:
            raise IntervalError(f"block of {size} bases, {start} after the start, does not lie within {whole}")
        begin = whole.start + start
        blocks.append(Interval(whole.contig, begin, begin + size, whole.strand, whole.name))
    return blocks


def _is_integer(text: str) -> bool:
    # int() refuses a number of thousands of digits.
    return text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
