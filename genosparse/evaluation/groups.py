"""Which kind of sequence each site is in. Every grouping puts a site into at most one of its groups."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from genosparse.contigs import no_contig_matches
from genosparse.errors import FileFormatError, IntervalError
from genosparse.evaluation.sequences import TestedSequences
from genosparse.inputs import display_name
from genosparse.intervals import Interval
from genosparse.pretraining.evaluation import HeldOut
from genosparse.pretraining.windows import Span
from genosparse.readers import Feature, Genome, read_features, read_intervals

__all__ = ["Grouping", "SitePlaces", "annotation_groups", "repeat_groups", "soft_mask_groups"]

NO_GROUP = -1
_PIECE = 2**22  # bases read at a time
_MOST_CLASSES = 30  # of repeats; the rarer ones are one group
_SHORTEST_INTRON = 10  # bases; a shorter gap in a coding sequence is a ribosomal slippage or a frameshift

FEATURES = ("CDS", "noncoding_exon", "intron", "other", "intergenic")
CODON_POSITIONS = ("1", "2", "3", "several", "unknown")

_CDS, _EXON, _INTRON, _GENE = 1, 2, 4, 8
_UNKNOWN_POSITION = 8  # beside 1, 2 and 4 for the first, second and third base of a codon
_CDS_KINDS = {"CDS", "stop_codon"}  # GTF's CDS ends before the stop codon, GFF3's and GenBank's with it
_EXON_KINDS = {
    "exon", "noncoding_exon", "UTR", "five_prime_UTR", "three_prime_UTR", "5UTR", "3UTR", "5'UTR", "3'UTR",
}  # fmt: skip
_EXONS_OF_TRANSCRIPTS = {"exon", "noncoding_exon"}
_GENE_KINDS = {"gene", "pseudogene", "transcript", "primary_transcript", "pseudogenic_transcript", "mRNA"}
_GENE_ENDINGS = ("_gene", "_pseudogene", "gene_segment")


@dataclass(frozen=True, slots=True)
class Grouping:
    """A way to group sites.

    Attributes:
        name: What they are grouped by.
        groups: Names of the groups.
        numbers: The number of each site's group, -1 for none, int64 ``[sites]``.
    """

    name: str
    groups: tuple[str, ...]
    numbers: NDArray[np.int64]


class SitePlaces:
    """Where sites are.

    Args:
        held_out: The sites.
        genome: The genome that they are on.

    Attributes:
        contig_number: Number of each site's contig in the genome's order, int64 ``[sites]``.
        position0: Position on the contig, int64 ``[sites]``.
    """

    def __init__(self, held_out: HeldOut, genome: Genome) -> None:
        self.genome = genome
        numbers = {contig: number for number, contig in enumerate(genome.contigs)}
        counts = [len(sites) for _, sites in held_out.stretches]
        self.contig_number = np.repeat([numbers[span.contig] for span, _ in held_out.stretches], counts)
        lengths = np.repeat([genome.contigs[span.contig] for span, _ in held_out.stretches], counts)
        # A stretch may go on past the end of a circular contig.
        self.position0 = np.concatenate([span.start + sites for span, sites in held_out.stretches]) % lengths
        self._order = np.lexsort((self.position0, self.contig_number))
        self._positions = self.position0[self._order]
        ends = np.cumsum(np.bincount(self.contig_number, minlength=len(numbers))).tolist()
        self._ranges = {contig: (start, end) for contig, start, end in zip(numbers, [0, *ends], ends, strict=False)}

    def __len__(self) -> int:
        return len(self.position0)

    def within(self, contig: str, start: int, end: int) -> tuple[slice, NDArray[np.int64]]:
        """The sites of a stretch of a contig: as a slice of the sites sorted by place, and their positions."""
        first, last = self._ranges[contig]
        low, high = (first + np.searchsorted(self._positions[first:last], (start, end))).tolist()
        return slice(low, high), self._positions[low:high]

    def unsorted(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Values of the sites sorted by place, in the order that the sites have."""
        back = np.empty_like(values)
        back[self._order] = values
        return back


def soft_mask_groups(sequences: TestedSequences, held_out: HeldOut) -> Grouping:
    """Sites in lower case (as repeats are in soft-masked genomes) and in upper case."""
    found = []
    for span, sites in held_out.stretches:
        for start in range(0, span.length, _PIECE):
            inside = sites[slice(*np.searchsorted(sites, (start, start + _PIECE)))]
            if len(inside):
                first, end = span.start + int(inside[0]), span.start + int(inside[-1]) + 1
                soft_mask = sequences.soft_mask(Span(span.genome, span.contig, first, end))
                found.append(soft_mask[span.start + inside - first])
    return Grouping("soft_mask", ("upper_case", "lower_case"), np.concatenate(found).astype(np.int64))


def repeat_groups(path: str | Path, places: SitePlaces) -> Grouping:
    """Classes of repeats: the names of BED, and of features ``rpt_family``, or else the kind.

    A site in several repeats counts for the first one of the file; one in none is ``no_repeat``. Of the classes, those
    with the most sites are groups of their own, and the others are ``other_repeats``.

    Raises:
        ContigNotFoundError: No contig of the file is in the genome.
        FileFormatError: The file is malformed or has nothing, or a repeat of BED has no name.
        IntervalError: A repeat reaches past the end of its contig.
    """
    numbers: dict[str, int] = {}
    found = np.full(len(places), NO_GROUP)
    for name, interval in _located(_repeats(path), places.genome, path):
        number = numbers.setdefault(name, len(numbers))
        for start, end, _ in _parts(interval, places.genome):
            here = found[places.within(interval.contig, start, end)[0]]  # a view
            here[here == NO_GROUP] = number
    counts = Counter({name: int(np.count_nonzero(found == number)) for name, number in numbers.items()})
    most = [name for name, count in counts.most_common(_MOST_CLASSES) if count]
    groups = ("no_repeat", *most, "other_repeats")
    # The last entry is for NO_GROUP, which is -1.
    new_numbers = np.array([*(most.index(name) + 1 if name in most else len(groups) - 1 for name in numbers), 0])
    return Grouping("repeat", groups, places.unsorted(new_numbers[found]))


def _repeats(path: str | Path) -> Iterator[tuple[str, Interval]]:
    if _is_bed(path):
        for interval in read_intervals(path):
            if interval.name is None:
                raise FileFormatError(f"{display_name(path)}: {interval} has no name; expected the class of the repeat")
            yield interval.name, interval
    else:
        for feature in read_features(path):
            yield feature.attributes.get("rpt_family") or feature.kind, feature.interval


def _is_bed(path: str | Path) -> bool:
    try:
        next(read_features(path), None)
    except FileFormatError:
        return True  # or damaged, which reading it as BED tells
    return False


def annotation_groups(path: str | Path, places: SitePlaces) -> list[Grouping]:
    """Groupings by annotated feature, and by position within the codon, whatever the strand.

    By ``feature``, a site is in the first of these that it is in by any feature of either strand: ``CDS`` (GTF's stop
    codons too); ``noncoding_exon``, that is UTRs, other parts of exons outside of CDS, and RNA genes; ``intron``, as
    annotated or between two exons (or parts of a CDS) of one transcript; ``other``, the rest of genes, and coding
    sequences marked as pseudo; ``intergenic``. An RNA counts whole unless the file has its exons. A gap of a CDS of
    less than ten bases is a frameshift and no intron.

    By ``codon_position``, sites in CDS are in ``1``, ``2`` or ``3`` where all coding sequences there agree, as those of
    two transcripts mostly do, and in ``several`` where they do not; in ``unknown`` where no part tells its phase. Parts
    of GFF3 and GTF are read by their own phase, those of GenBank and EMBL by ``codon_start`` and the parts before, so
    that slippage and introns within codons are right.

    Raises:
        ContigNotFoundError: No contig of the annotation is in the genome.
        FileFormatError: The file is malformed or has no features.
        IntervalError: A feature reaches past the end of its contig.
    """
    flags, codons = np.zeros(len(places), np.int64), np.zeros(len(places), np.int64)
    transcripts = _Transcripts()
    rnas: list[tuple[str, Interval]] = []  # of GFF3, which may have exons

    def mark(interval: Interval, flag: int) -> None:
        for start, end, _ in _parts(interval, places.genome):
            flags[places.within(interval.contig, start, end)[0]] |= flag

    features = ((feature, feature.interval) for feature in read_features(path))
    for feature, interval in _located(features, places.genome, path):
        flag = _flag(feature)
        if flag is not None:
            mark(interval, flag)
        if flag == _CDS:
            _mark_codons(codons, places, interval, feature.phase)
        if flag == _CDS or (flag == _EXON and (feature.part is not None or feature.kind in _EXONS_OF_TRANSCRIPTS)):
            transcripts.add(feature, interval)
        if flag is None and feature.part is None and feature.kind.endswith("RNA"):
            rnas.append((feature.attributes.get("ID", ""), interval))
    for name, interval in rnas:
        mark(interval, _GENE if name in transcripts.with_exons else _EXON)
    for interval in transcripts.introns():
        mark(interval, _INTRON)

    classes = np.full(len(places), FEATURES.index("intergenic"))
    for number, flag in reversed(list(enumerate((_CDS, _EXON, _INTRON, _GENE)))):
        classes[flags & flag > 0] = number
    return [
        Grouping("feature", FEATURES, places.unsorted(classes)),
        Grouping("codon_position", CODON_POSITIONS, places.unsorted(_CODON_GROUP[codons])),
    ]


def _flag(feature: Feature) -> int | None:
    """What a feature says of its bases by its kind alone; None where it says nothing, or its exons may say it."""
    kind = feature.kind
    if kind in _CDS_KINDS:
        return _GENE if "pseudo" in feature.attributes or "pseudogene" in feature.attributes else _CDS
    if kind in _EXON_KINDS:
        return _EXON
    if kind == "intron" or kind.endswith("_intron"):
        return _INTRON
    if feature.part is not None and kind.endswith("RNA"):
        return _EXON  # the parts of a location of GenBank are exons
    if kind in _GENE_KINDS or kind.endswith(_GENE_ENDINGS):
        return _GENE
    return None


# The group of each set of codon positions, bits as above: known positions go before unknown ones.
_CODON_GROUP = np.array([NO_GROUP, 0, 1, 3, 2, 3, 3, 3, 4, 0, 1, 3, 2, 3, 3, 3])


def _mark_codons(codons: NDArray[np.int64], places: SitePlaces, interval: Interval, phase: int | None) -> None:
    for start, end, before in _parts(interval, places.genome):
        inside, positions = places.within(interval.contig, start, end)
        if phase is None or interval.strand == ".":
            codons[inside] |= _UNKNOWN_POSITION
        elif interval.strand == "+":
            codons[inside] |= 1 << (positions - start + before - phase) % 3
        else:
            codons[inside] |= 1 << (interval.length - 1 - before - (positions - start) - phase) % 3


def _parts(interval: Interval, genome: Genome) -> Iterator[tuple[int, int, int]]:
    """Start and end on the contig, and the bases before: two parts of what passes the end of a circular contig."""
    length = genome.contigs[interval.contig]
    yield interval.start, min(interval.end, length), 0
    if interval.end > length:
        yield 0, interval.end - length, length - interval.start


class _Transcripts:
    """Exons, and parts of coding sequences, by transcript; some 30 bytes for each."""

    def __init__(self) -> None:
        self.with_exons: set[str] = set()
        self._numbers: dict[tuple[str, ...], int] = {}
        self._last: Interval | None = None
        self._location = 0
        self._contigs: dict[str, int] = {}
        self._columns = tuple(array("q") for _ in range(4))  # transcript, contig, start, end

    def add(self, feature: Feature, interval: Interval) -> None:
        """Add an exon, or a part of a coding sequence."""
        what = "CDS" if feature.kind in _CDS_KINDS else "exon"
        for name in self._names(feature, interval):
            number = self._numbers.setdefault((what, name, interval.contig, interval.strand), len(self._numbers))
            contig = self._contigs.setdefault(interval.contig, len(self._contigs))
            for column, value in zip(self._columns, (number, contig, interval.start, interval.end), strict=True):
                column.append(value)
            if what == "exon":
                self.with_exons.add(name)

    def _names(self, feature: Feature, interval: Interval) -> list[str]:
        if feature.part is not None:
            if feature.part == 0 or self._last is None or _goes_back(self._last, interval):
                self._location += 1
            self._last = interval
            return [f"location {self._location}"]
        attributes = feature.attributes
        name = attributes.get("Parent") or attributes.get("transcript_id") or attributes.get("ID")
        return name.split(",") if name else []

    def introns(self) -> Iterator[Interval]:
        """The gaps between neighbours of one transcript."""
        number, contig, start, end = (np.frombuffer(column, np.int64) for column in self._columns)
        order = np.lexsort((start, number))
        number, contig, start, end = number[order], contig[order], start[order], end[order]
        gap = (number[1:] == number[:-1]) & (start[1:] - end[:-1] >= _SHORTEST_INTRON)
        names = list(self._contigs)
        for where in np.flatnonzero(gap).tolist():
            yield Interval(names[contig[where]], int(end[where]), int(start[where + 1]))


def _goes_back(before: Interval, interval: Interval) -> bool:
    """Whether a location goes on against its strand: over the origin of a circular contig, or trans-spliced."""
    step = interval.start - before.start
    return interval.contig != before.contig or (step > 0 if interval.strand == "-" else step < 0)


_Thing = TypeVar("_Thing")


def _located(
    things: Iterable[tuple[_Thing, Interval]], genome: Genome, path: str | Path
) -> Iterator[tuple[_Thing, Interval]]:
    """Things with their places on the genome's contigs; those on contigs that it does not have are left out."""
    name = display_name(path)
    matcher = genome.matcher(wanted_from=name)
    contigs: dict[str, str | None] = {}
    for thing, interval in things:
        if interval.contig not in contigs:
            contigs[interval.contig] = matcher.match(interval.contig)
        contig = contigs[interval.contig]
        if contig is None:
            continue
        here = Interval(contig, interval.start, interval.end, interval.strand, interval.name)
        if here.end > genome.contigs[contig] and not genome.wraps(here):
            raise IntervalError(
                f"{name}: {interval} reaches past the end of {contig} in {genome.path}, which has "
                f"{genome.contigs[contig]} bases; check that both are of the same assembly, or name the contig in "
                "circular= if it is"
            )
        yield thing, here
    if not contigs:
        raise FileFormatError(f"{name} is empty; expected features on the contigs of {genome.path}")
    if not any(contigs.values()):
        raise no_contig_matches(list(contigs), genome.contigs, name, str(genome.path))
