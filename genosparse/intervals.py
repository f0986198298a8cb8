"""Places on contigs: intervals, BED files, region strings, and the only 1-based <-> 0-based conversions.

Inside genosparse coordinates are 0-based and half-open: the first base of a contig is 0, and ``end`` is the first
position that no longer belongs to the interval.
"""

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from genosparse.errors import FileFormatError, IntervalError
from genosparse.inputs import TextLines, display_name

__all__ = [
    "Interval",
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


_REGION = re.compile(r"(?P<contig>\S.*):(?P<start>[\d,]+)-(?P<end>[\d,]+)")


def parse_region(text: str) -> Interval:
    """Read a region string ``contig:first-last``, 1-based with both ends included, as samtools and genome browsers do.

    Commas in numbers are allowed, and colons in the contig's name.

    Raises:
        IntervalError: The text is not a region.
    """
    match = _REGION.fullmatch(text.strip())
    if match is None:
        raise IntervalError(f"{text!r} is not a region; expected contig:first-last, 1-based, as in chr1:1,001-2,000")
    digits = [match[key].replace(",", "") or "0" for key in ("start", "end")]
    if not all(map(_is_integer, digits)):
        raise IntervalError(f"{_shortened(text)} is not a region; expected contig:first-last, in digits from 0 to 9")
    first, last = map(int, digits)
    if not 1 <= first <= last:
        raise IntervalError(f"region {text!r} runs from {first} to {last}; expected 1 <= first <= last (1-based)")
    return Interval(match["contig"], position0_from_1based(first), last)


def read_bed(path: str | Path) -> Iterator[Interval]:
    """Read the intervals of a BED file, in its order.

    Columns are separated by tabs (by blanks in lines without a tab): contig, start, end and, where present, name,
    score, strand; further ones are not used. Empty lines and ``#``, ``track`` and ``browser`` lines are passed over.
    A file without intervals gives none.

    Args:
        path: A BED file, plain or compressed by gzip or bgzip; ``-`` is standard input.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: A line is not BED, named with its number; or the file is truncated.
    """
    return _parse_bed(TextLines(path, "a BED file"))


def _parse_bed(lines: TextLines) -> Iterator[Interval]:
    with lines:
        for line in lines:
            if not line.strip() or line.startswith("#") or re.match(r"(track|browser)(\s|$)", line):
                continue
            try:
                yield _parse_bed_line(line)
            except IntervalError as error:
                raise FileFormatError(f"{display_name(lines.path)}, line {lines.line_number}: {error}") from None


def _parse_bed_line(line: str) -> Interval:
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
    return Interval(contig, int(start), int(end), strand or ".", None if name in ("", ".") else name)


def _is_integer(text: str) -> bool:
    # int() refuses a number of thousands of digits.
    return text.isascii() and text.removeprefix("-").isdigit() and len(text) < 20


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
