"""Names of contigs: which contig of a genome an input's contig is, when two files name the same one differently."""

import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from genosparse.errors import ContigNotFoundError, FileFormatError, GenosparseWarning
from genosparse.inputs import TextLines, display_name

__all__ = ["ContigMatcher", "check_aliases", "contig_not_found", "match_contigs", "no_contig_matches", "read_aliases"]


def read_aliases(path: str | Path) -> dict[str, str]:
    """Read which names of contigs mean the same: two columns, separated by a tab or blanks, in either order.

    Empty lines and lines that begin with ``#`` are passed over. Several names in the first column may have one and the
    same in the second.

    Args:
        path: A text file, plain or compressed by gzip or bgzip; ``-`` is standard input.

    Returns:
        The second name for each first one.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: A line has not two columns, or names a contig that stands for two others.
    """
    aliases: dict[str, str] = {}
    with TextLines(path, "a file of two names of a contig on each line") as lines:
        for line in lines:
            if not line.strip() or line.startswith("#"):
                continue
            names = [name.strip() for name in line.split("\t")] if "\t" in line else line.split()
            where = f"{display_name(path)}, line {lines.line_number}"
            if len(names) != 2 or not all(names):
                raise FileFormatError(f"{where}: {len(names)} columns in {line[:40]!r}; expected two names of a contig")
            name, other = names
            if aliases.setdefault(name, other) != other:
                raise FileFormatError(f"{where}: contig {name!r} is both {aliases[name]!r} and {other!r}; keep one")
    check_aliases(aliases, display_name(path))
    return aliases


def check_aliases(aliases: Mapping[str, str], aliases_from: str) -> None:
    """Check that no name is the alias of one and has an alias itself.

    Raises:
        FileFormatError: The first such name, with both others.
    """
    for name, other in aliases.items():
        if name != other and aliases.get(other, other) != other:
            raise FileFormatError(
                f"{aliases_from}: contig {name!r} is {other!r}, which in turn is {aliases[other]!r}; "
                "put the name that the genome has into the second column of both"
            )


def _bare_name(contig: str) -> str:
    """What chr1 and 1, or chrM, chrMT, M and MT have in common."""
    bare = contig[3:] if contig[:3].lower() == "chr" and len(contig) > 3 else contig
    return "M" if bare == "MT" else bare


class ContigMatcher:
    """Finds the contigs of one source (an input) under the names of another (a genome).

    A name that both have is itself. Otherwise an alias says which is meant; and ``chr1`` and ``1`` are the same, and so
    are ``chrM``, ``chrMT``, ``M`` and ``MT``, when that leaves one candidate. The first name that had to be translated
    without an alias gives one notice. A name is not translated, by an alias either, where both lengths are known and
    differ: hg19's chrM (16,571 bp) is not b37's MT (16,569 bp).

    Args:
        available: The genome's names; where it is a mapping, with their lengths in bases.
        wanted_lengths: Lengths in bases of the contigs to match, as far as they are known.
        aliases: Further names, as ``read_aliases`` gives them: either of a pair may be the genome's.
        wanted_from: Where the names to match come from, for messages.
        available_from: Where ``available`` comes from, for messages.
    """

    def __init__(
        self,
        available: Iterable[str],
        *,
        wanted_lengths: Mapping[str, int | None] | None = None,
        aliases: Mapping[str, str] | None = None,
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
        self._aliases: dict[str, list[str]] = {}
        for name, other in (aliases or {}).items():
            self._aliases.setdefault(name, []).append(other)
            self._aliases.setdefault(other, []).append(name)
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
        candidates = [name for name in self._candidates(contig) if not self._differ(contig, name)]
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
        if not self._noticed and self._is_guess(contig, found):
            self._noticed = True
            warnings.warn(
                f"contig {contig!r} of {self._wanted_from} is read as {found!r} of {self._available_from}; "
                "other names are matched in the same way",
                GenosparseWarning,
                stacklevel=2,
            )
        return found

    def match_all(self, wanted: Iterable[str]) -> dict[str, str | None]:
        """As ``match`` for all names at once: one notice tells of all that were translated, one of all lengths.

        Returns:
            For each wanted name the available one, or None where there is none.

        Raises:
            ContigNotFoundError: A wanted name could be several available ones, or two wanted names are the same one.
        """
        names = {contig: self.find(contig) for contig in wanted}
        for contig, found in names.items():
            if found is not None:
                self._claim(contig, found)
        if mismatches := [reason for contig in names if (reason := self._length_mismatch(contig))]:
            more = f" (as with {_counted(len(mismatches) - 1, 'other')})" if len(mismatches) > 1 else ""
            warnings.warn(mismatches[0] + more, GenosparseWarning, stacklevel=2)
        translated = [
            f"{contig!r} is {found!r}" for contig, found in names.items() if found and self._is_guess(contig, found)
        ]
        if translated:
            more = f" and {len(translated) - 3} more" if len(translated) > 3 else ""
            warnings.warn(
                f"contigs of {self._wanted_from} are matched to {self._available_from} by name: "
                f"{', '.join(translated[:3])}{more}",
                GenosparseWarning,
                stacklevel=2,
            )
        return names

    def _length_mismatch(self, contig: str) -> str | None:
        """Say so where a contig is not matched to a name alike because of their lengths; None where that is not so."""
        candidates = self._candidates(contig)
        if not candidates or self.find(contig) is not None:
            return None
        return (
            f"contig {contig!r} ({self._wanted_lengths[contig]} bp) of {self._wanted_from} is not taken for "
            f"{candidates[0]!r} ({self._lengths[candidates[0]]} bp) of {self._available_from}: their lengths differ"
        )

    def _candidates(self, contig: str) -> list[str]:
        """The available names that may be meant; aliases go before names alike."""
        others = self._aliases.get(contig, [])
        by_alias = [name for name in others if name in self._available]
        return by_alias or sorted({name for other in [contig, *others] for name in self._namesakes(other)})

    def _namesakes(self, contig: str) -> list[str]:
        return self._by_bare_name.get(_bare_name(contig), [])

    def _is_guess(self, contig: str, found: str) -> bool:
        return found != contig and found not in self._aliases.get(contig, ())

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
    aliases: Mapping[str, str] | None = None,
    wanted_from: str = "the input",
    available_from: str = "the genome",
) -> dict[str, str | None]:
    """Match the contigs of an input to those of a genome: ``ContigMatcher(available, ...).match_all(wanted)``."""
    matcher = ContigMatcher(
        available,
        wanted_lengths=wanted_lengths,
        aliases=aliases,
        wanted_from=wanted_from,
        available_from=available_from,
    )
    return matcher.match_all(wanted)


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
