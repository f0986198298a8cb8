"""Normalised variants: the one way to write an indel, so that two files can be compared.

An allele pair is normalised when it is parsimonious (no base that REF and ALT share could be taken off without leaving
one of them empty) and lies as far to the left as it can: Tan, Abecasis and Kang, "Unified representation of genetic
variants", Bioinformatics 31 (2015) 2202, as in `vt normalize` and `bcftools norm`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from genosparse.contigs import ContigMatcher
from genosparse.intervals import Interval
from genosparse.readers import Genome, Variant
from genosparse.readers.alleles import contig_matcher, no_sequence, place_problem, plain_bases
from genosparse.readers.genotypes import keep_allele

__all__ = ["NormalizedVariant", "NormalizedVariants", "Step", "normalize", "normalize_variants"]

_FIRST_BASES = 64  # bases to the left that are read at once, doubled as long as they do not suffice


class Step(StrEnum):
    """What was done to a variant."""

    SPLIT = "split"  # one ALT of several, by itself
    TRIMMED = "trimmed"  # bases that the alleles share were taken off
    LEFT_ALIGNED = "left_aligned"  # it begins further to the left than before


@dataclass(frozen=True, slots=True)
class NormalizedVariant:
    """A variant in its normalised form, and how it came to it.

    Args:
        variant: The normalised record. Its contig, ID, QUAL, FILTER and INFO are those of ``source``, also where INFO
            counts alleles that have been split off; its samples keep GT, where this ALT is 1 and another 0, and PS.
        source: The record as it was.
        allele: Which ALT of ``source`` this is, from 1; None where all of them were kept together.
        steps: What was done, in the order of ``Step``; without ``trimmed`` and ``left_aligned`` the alleles are as they
            were.
        skipped: Why its alleles were left as they were; None where they could be looked at: ``symbolic``,
            ``breakend``, ``spanning``, ``missing`` and ``no_variation`` (see ``AlleleKind``), ``contig_missing``,
            ``out_of_bounds``, ``ref_mismatch``.
    """

    variant: Variant
    source: Variant
    allele: int | None
    steps: tuple[Step, ...] = ()
    skipped: str | None = None


def normalize(
    variant: Variant, genome: Genome, *, split: bool = True, matcher: ContigMatcher | None = None
) -> tuple[NormalizedVariant, ...]:
    """Normalise a variant: take off the bases that its alleles share, and move it to the left as far as it goes.

    Bases that come from the genome are upper case; the others keep the case that the file has. Case is of no account.

    Args:
        variant: The record.
        genome: The reference; contigs match as ``chr1`` and ``1`` do.
        split: Normalise each ALT by itself, as `bcftools norm -m -` does. Otherwise the alleles of a record stay
            together, and move only as far as all of them can.
        matcher: Finds the genome's name of a contig; give one when normalising many, so that its notices come once.

    Returns:
        One ``NormalizedVariant`` per ALT, in their order; with ``split=False`` one for the record. None for a record
        without ALT.

    Raises:
        ContigNotFoundError: Several contigs of the genome could be meant.
    """
    if not variant.alts:
        return ()
    matcher = matcher or contig_matcher(genome)
    problem, contig = place_problem(variant, genome, matcher)
    if not split or len(variant.alts) == 1:
        return (_normalized(variant, variant, None if len(variant.alts) > 1 else 1, genome, contig, problem),)
    return tuple(
        _normalized(_single(variant, allele), variant, allele, genome, contig, problem)
        for allele in range(1, len(variant.alts) + 1)
    )


def normalize_variants(variants: Iterable[Variant], genome: Genome, *, split: bool = True) -> "NormalizedVariants":
    """Normalise variants one after the other; order is kept, though positions may no longer be in it.

    Args:
        variants: Iterable of ``Variant``.
        genome: The reference.
        split: As for ``normalize``.

    Returns:
        An iterator over ``NormalizedVariant``, whose ``counts`` tell what has been done so far.
    """
    return NormalizedVariants(variants, genome, split=split)


class NormalizedVariants:
    """An iterator over normalised variants that counts what it does.

    Attributes:
        counts: ``records`` read and ``written`` (one per ALT where they are split), ``no_alt`` (records that have none
            and are left out), then of what was written: ``unchanged``, each ``Step``, and ``skipped`` with a line
            ``skipped_<reason>`` for each reason.
    """

    def __init__(self, variants: Iterable[Variant], genome: Genome, *, split: bool = True) -> None:
        self.counts: Counter[str] = Counter()
        self._normalized = self._normalize(variants, genome, split)

    def _normalize(self, variants: Iterable[Variant], genome: Genome, split: bool) -> Iterator[NormalizedVariant]:
        matcher = contig_matcher(genome)
        for variant in variants:
            self.counts["records"] += 1
            if not variant.alts:
                self.counts["no_alt"] += 1
            for normalized in normalize(variant, genome, split=split, matcher=matcher):
                self._count(normalized)
                yield normalized

    def _count(self, normalized: NormalizedVariant) -> None:
        self.counts["written"] += 1
        self.counts.update(map(str, normalized.steps))
        if normalized.skipped:
            self.counts.update(["skipped", f"skipped_{normalized.skipped}"])
        elif not normalized.steps:
            self.counts["unchanged"] += 1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> NormalizedVariant:
        return next(self._normalized)


def _single(variant: Variant, allele: int) -> Variant:
    columns = None if variant.sample_columns is None else keep_allele(variant.sample_columns, allele)
    return replace(variant, alts=(variant.alts[allele - 1],), sample_columns=columns)


def _normalized(
    variant: Variant, source: Variant, allele: int | None, genome: Genome, contig: str | None, problem: str | None
) -> NormalizedVariant:
    steps = [Step.SPLIT] if variant is not source else []
    skipped = problem or next((kind for alt in variant.alts if (kind := no_sequence(variant.ref, alt))), None)
    if skipped is None and contig is not None:
        position0, (ref, *alts) = _left_align([variant.ref, *variant.alts], genome, contig, variant.position0)
        if len(ref) < len(variant.ref) or any(map(_is_shorter, alts, variant.alts)):
            steps.append(Step.TRIMMED)
        if position0 < variant.position0:
            steps.append(Step.LEFT_ALIGNED)
        variant = replace(variant, position0=position0, ref=ref, alts=tuple(alts))
    return NormalizedVariant(variant, source, allele, tuple(steps), skipped)


def _is_shorter(allele: str, than: str) -> bool:
    return len(allele) < len(than)


def _left_align(alleles: Sequence[str], genome: Genome, contig: str, position0: int) -> tuple[int, list[str]]:
    """Return the position and the alleles, normalised together.

    In the paper's words: the rightmost base is taken off all alleles as long as they share it, and a base of the genome
    is put before them whenever one is empty. Which is to take their longest common end off, once enough of the genome
    stands before all of them.
    """
    left = ""
    size = _FIRST_BASES
    while True:
        shortest = len(left) + min(map(len, alleles))
        shared = _common_start([(left + plain_bases(allele))[::-1] for allele in alleles])
        start = position0 - len(left)
        if shared < shortest or start == 0:
            break
        left = plain_bases(genome.fetch(Interval(contig, max(0, start - size), start))) + left
        size *= 2
    shared = min(shared, shortest - 1)  # at the contig's first base one base stays, after the change
    kept = [(left + allele)[: len(left) + len(allele) - shared] for allele in alleles]
    common = min(_common_start([plain_bases(allele) for allele in kept]), min(map(len, kept)) - 1)
    return start + common, [allele[common:] for allele in kept]


def _common_start(texts: Sequence[str]) -> int:
    """Number of letters that all texts begin with."""
    first, last = min(texts), max(texts)  # what these two share, those between them have too
    pairs = zip(first, last, strict=False)
    return next((count for count, (letter, other) in enumerate(pairs) if letter != other), len(first))
