"""Places on contigs: intervals, BED files, region strings, contig names, and the only 1-based <-> 0-based conversions.

Inside genosparse coordinates are 0-based and half-open: the first base of a contig is 0, and ``end`` is the first
position that no longer belongs to the interval.
"""

import operator
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from genosparse.errors import ContigNotFoundError, FileFormatError, GenosparseWarning, IntervalError
from genosparse.inputs import TextLines, display_name

__all__ = [
    "ContigMatcher",
    "Interval",
    "contig_not_found",
    "match_contigs",
    "no_contig_matches",
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


def _bare_name(contig: str) -> str:
    """What chr1 and 1, or chrM, chrMT, M and MT have in common."""
    bare = contig[3:] if contig[:3].lower() == "chr" and len(contig) > 3 else contig
    return "M" if bare == "MT" else bare


class ContigMatcher:
    """Finds the contigs of one source (an input) under the names of another (a genome).

    A name that both have is itself. Otherwise ``chr1`` and ``1`` are the same, and so are ``chrM``, ``chrMT``, ``M``
    and ``MT``, when that leaves one candidate. The first name that had to be translated gives one notice. A name is not
    translated where both lengths are known and differ: hg19's chrM (16,571 bp) is not b37's MT (16,569 bp).

    Args:
        available: The genome's names; where it is a mapping, with their lengths in bases.
        wanted_lengths: Lengths in bases of the contigs to match, as far as they are known.
        wanted_from: Where the names to match come from, for messages.
        available_from: Where ``available`` comes from, for messages.
    """

    def __init__(
        self,
        available: Iterable[str],
        *,
        wanted_lengths: Mapping[str, int | None] | None = None,
        wanted_from: str = "the input",
        available_from: str = "the genome",
    ) -> None:
        self._available = frozenset(available)
        self._lengths: Mapping[str, int] = available if isinstance(available, Mapping) else {}
        self._wanted_lengths = wanted_lengths or {}
        self._names: dict[str, str] = {}
        self._by_bare_name: dict[str, list[str]] = {}
        for name in sorted(self._available):
            self._by_bare_name.setdefault(_bare_name(name), []).append(name)
        self._wanted_from = wanted_from
        self._available_from = available_from
        self._noticed = self._noticed_length = False

    def find(self, contig: str) -> str | None:
        """The same contig's name among the available ones, or None; gives no notice.

        Raises:
            ContigNotFoundError: Several available names could be meant.
        """
        if contig in self._available:
            return contig
        candidates = [name for name in self._namesakes(contig) if not self._differ(contig, name)]
        if len(candidates) > 1:
            raise ContigNotFoundError(
                f"contig {contig!r} of {self._wanted_from} could be any of {_listed(candidates)} of "
                f"{self._available_from}; rename it to the one that is meant"
            )
        return candidates[0] if candidates else None

    def match(self, contig: str) -> str | None:
        """As ``find``, with one notice when a name is translated for the first time, and one when lengths forbid it.

        Raises:
            ContigNotFoundError: Several available names could be meant, or another name was matched to the same one.
        """
        found = self.find(contig)
        if found is None:
            if not self._noticed_length and (reason := self._length_mismatch(contig)):
                self._noticed_length = True
                warnings.warn(reason, GenosparseWarning, stacklevel=2)
            return None
        self._claim(contig, found)
        if found != contig and not self._noticed:
            self._noticed = True
            warnings.warn(
                f"contig {contig!r} of {self._wanted_from} is read as {found!r} of {self._available_from}; "
                "other names are matched in the same way",
                GenosparseWarning,
                stacklevel=2,
            )
        return found

    def _length_mismatch(self, contig: str) -> str | None:
        """Say so where a contig is not matched to a name alike because of their lengths; None where that is not so."""
        namesakes = self._namesakes(contig)
        if not namesakes or self.find(contig) is not None:
            return None
        return (
            f"contig {contig!r} ({self._wanted_lengths[contig]} bp) of {self._wanted_from} is not taken for "
            f"{namesakes[0]!r} ({self._lengths[namesakes[0]]} bp) of {self._available_from}: their lengths differ"
        )

    def _namesakes(self, contig: str) -> list[str]:
        return self._by_bare_name.get(_bare_name(contig), [])

    def _differ(self, contig: str, name: str) -> bool:
        lengths = (self._wanted_lengths.get(contig), self._lengths.get(name))
        return None not in lengths and lengths[0] != lengths[1]

    def _claim(self, contig: str, found: str) -> None:
        other = self._names.setdefault(found, contig)
        if other != contig:
            raise ContigNotFoundError(
                f"contigs {other!r} and {contig!r} of {self._wanted_from} would both be {found!r} of "
                f"{self._available_from}; rename the one that is meant, and take the other out"
            )


def match_contigs(
    wanted: Iterable[str],
    available: Iterable[str],
    *,
    wanted_lengths: Mapping[str, int | None] | None = None,
    wanted_from: str = "the input",
    available_from: str = "the genome",
) -> dict[str, str | None]:
    """Match the contigs of an input to those of a genome, as ``ContigMatcher`` does, all at once.

    Returns:
        For each wanted name the available one, or None where there is none.

    Raises:
        ContigNotFoundError: A wanted name could be several available ones, or two wanted names are the same one.
    """
    matcher = ContigMatcher(
        available, wanted_lengths=wanted_lengths, wanted_from=wanted_from, available_from=available_from
    )
    names = {contig: matcher.find(contig) for contig in wanted}
    for contig, found in names.items():
        if found is not None:
            matcher._claim(contig, found)
    if mismatches := [reason for contig in names if (reason := matcher._length_mismatch(contig))]:
        more = f" (as with {_counted(len(mismatches) - 1, 'other')})" if len(mismatches) > 1 else ""
        warnings.warn(mismatches[0] + more, GenosparseWarning, stacklevel=2)
    translated = [f"{contig!r} is {found!r}" for contig, found in names.items() if found not in (None, contig)]
    if translated:
        more = f" and {len(translated) - 3} more" if len(translated) > 3 else ""
        warnings.warn(
            f"contigs of {wanted_from} are matched to {available_from} by name: {', '.join(translated[:3])}{more}",
            GenosparseWarning,
            stacklevel=2,
        )
    return names


def contig_not_found(contig: str, available: Collection[str], available_from: str) -> ContigNotFoundError:
    """The error for a contig that ``available_from`` does not have, naming the one that may be meant."""
    candidates = [name for name in available if _bare_name(name) == _bare_name(contig)]
    if len(candidates) == 1:
        others = len(available) - 1
        it_has = f"it has {candidates[0]!r}" + (f" and {_counted(others, 'other')}" if others else "")
        return ContigNotFoundError(
            f"contig {contig!r} is not in {available_from} ({it_has}); use that name, or rename the contigs of one file"
        )
    return ContigNotFoundError(
        f"contig {contig!r} is not in {available_from} (it has {_listed(candidates or available)}); "
        "check that both are of the same assembly"
    )


def no_contig_matches(
    wanted: Collection[str], available: Collection[str], wanted_from: str, available_from: str
) -> ContigNotFoundError:
    """The error for an input that shares no contig with the genome, naming both sides' contigs."""
    return ContigNotFoundError(
        f"no contig of {wanted_from} ({_listed(wanted)}) is in {available_from} ({_listed(available)}); "
        "check that both are of the same assembly, or rename the contigs of one of them"
    )


def _listed(names: Collection[str], most: int = 4) -> str:
    shown = [repr(name) for _, name in zip(range(most), names, strict=False)]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {_counted(rest, 'other')}" if rest else "") if shown else "none"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
