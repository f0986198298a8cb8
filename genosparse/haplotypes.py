"""Haplotypes: the genome with a sample's variants in it, and the way from one's coordinates to the other's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from Bio.Seq import reverse_complement
from numpy.typing import NDArray

from genosparse.contigs import ContigMatcher, no_contig_matches
from genosparse.errors import ConfigError, GenosparseError, IntervalError
from genosparse.intervals import Interval, position_1based
from genosparse.readers import Genome, Variant
from genosparse.readers.alleles import changed_span, contig_matcher, no_sequence, place_problem

__all__ = ["AppliedVariant", "Haplotype", "SkippedVariant", "Unphased", "haplotype"]

Unphased = Literal["error", "ref", "alt", "as_written"]


class AppliedVariant(NamedTuple):
    """A variant that a haplotype has.

    Attributes:
        variant: The record.
        alt: The ALT that was applied.
        start: Where on ``Haplotype.sequence`` the bases begin that it put in, without those that REF and ALT share.
        end: Where they end, half-open; ``start`` where it only took bases out.
    """

    variant: Variant
    alt: str
    start: int
    end: int


class SkippedVariant(NamedTuple):
    """A variant that would have belonged on a haplotype and is not on it.

    Attributes:
        variant: The record.
        alt: The ALT that was not applied; None where it is not known which.
        reason: ``symbolic``, ``breakend``, ``spanning`` or ``no_variation`` (see ``AlleleKind``: an ALT without bases
            of its own), ``missing`` (the allele is not known), ``unphased``, ``ploidy`` (the genotype has fewer
            alleles), ``out_of_bounds``, ``ref_mismatch``, or ``overlap`` (a variant before it changed the same bases).
    """

    variant: Variant
    alt: str | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Haplotype:
    """The bases of an interval on one haplotype, and where each lies on the reference.

    Of a replacement by another number of bases the first ones correspond to one another, one to one from the left; what
    is left over was inserted or deleted. On the minus strand the sequence is the reverse complement, and the indices
    into it are too; reference positions always count along the contig.

    Attributes:
        sequence: The bases; of the genome and of ALT, in the case that the files have.
        interval: The interval of the reference.
        to_reference: For each base of ``sequence`` its 0-based position on the contig, -1 for an inserted one; int64
            ``[len(sequence)]``.
        from_reference: For each base of the interval along the contig its index in ``sequence``, -1 for a deleted one;
            int64 ``[interval.length]``.
        applied: The variants that were applied, in the order of their places on the contig.
        skipped: The variants that were not, in the order given, with the reason.
        phase_sets: Phase sets (PS) of the heterozygous genotypes that were applied: where there is more than one, the
            parts of the sequence do not come from one chromosome for certain.
    """

    sequence: str
    interval: Interval
    to_reference: NDArray[np.int64]
    from_reference: NDArray[np.int64]
    applied: tuple[AppliedVariant, ...]
    skipped: tuple[SkippedVariant, ...]
    phase_sets: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.sequence)

    def reference_position(self, index: int) -> int | None:
        """The 0-based position on the contig of a base of ``sequence``; None for an inserted one.

        Raises:
            IntervalError: The haplotype has no such base.
        """
        self._check(index, index + 1)
        position0 = int(self.to_reference[index])
        return None if position0 < 0 else position0

    def haplotype_index(self, position0: int) -> int | None:
        """The index in ``sequence`` of a position on the contig; None where it is deleted.

        Raises:
            IntervalError: The position is outside the interval.
        """
        index = int(self.from_reference[self._offset(position0)])
        return None if index < 0 else index

    def reference_interval(self, start: int, end: int) -> Interval | None:
        """The interval of the reference from the first to the last base that ``sequence[start:end]`` has there.

        Returns:
            An interval on the strand of ``self.interval``; None where all these bases were inserted.

        Raises:
            IntervalError: The haplotype has no such bases.
        """
        self._check(start, end)
        positions = self.to_reference[start:end]
        positions = positions[positions >= 0]
        if not positions.size:
            return None
        return Interval(self.interval.contig, int(positions.min()), int(positions.max()) + 1, self.interval.strand)

    def haplotype_span(self, interval: Interval) -> tuple[int, int] | None:
        """Where in ``sequence`` an interval of the reference lies: from its first base that is there to its last.

        Returns:
            ``(start, end)``, half-open; None where all its bases are deleted.

        Raises:
            IntervalError: The interval reaches outside the haplotype's own, or is on another contig.
        """
        if interval.contig != self.interval.contig:
            raise IntervalError(f"interval {interval} is on another contig than the haplotype, {self.interval}")
        first, last = self._offset(interval.start), self._offset(interval.end - 1)
        indices = self.from_reference[first : last + 1]
        indices = indices[indices >= 0]
        return (int(indices.min()), int(indices.max()) + 1) if indices.size else None

    def _offset(self, position0: int) -> int:
        if not self.interval.start <= position0 < self.interval.end:
            raise IntervalError(f"position {position0} (0-based) is outside the haplotype's interval, {self.interval}")
        return position0 - self.interval.start

    def _check(self, start: int, end: int) -> None:
        if not 0 <= start < end <= len(self.sequence):
            raise IntervalError(f"bases {start} to {end} are not on the haplotype, which has {len(self.sequence)}")


class _Edit(NamedTuple):
    """``reference[start:end]`` becomes ``bases``; an insertion has ``start == end``."""

    start: int
    end: int
    whole_end: int  # the end, also beyond the interval's
    bases: str
    variant: Variant
    alt: str


def haplotype(
    genome: Genome,
    variants: Iterable[Variant],
    interval: Interval,
    sample: str | None = None,
    phase: int = 0,
    *,
    unphased: Unphased = "error",
) -> Haplotype:
    """Apply variants to the reference sequence of an interval.

    Where variants overlap, the first in the order given is applied and the others are skipped, as in `bcftools
    consensus`. They overlap when they change the same base, or insert at the same place, or one inserts within what the
    other changes; a base that REF and ALT share, like the one before an indel, is not changed (bcftools counts it for
    all variants after the indel but indels). Of a variant that reaches over the interval's edge the part inside is
    applied; an insertion belongs to the base before it, so that the haplotypes of adjoining intervals join. Variants
    beside the interval are not looked at, and so overlap none.

    Args:
        genome: The reference; contigs match as ``chr1`` and ``1`` do.
        variants: Iterable of ``Variant``, as of ``read_variants(path, interval)``; those elsewhere are passed over.
        interval: Where; on the minus strand the haplotype is the reverse complement.
        sample: Name of the sample whose alleles to apply; None applies the first ALT of every variant.
        phase: Which allele of its genotypes, from 0: 0 and 1 are the two haplotypes of a diploid.
        unphased: What to apply of a genotype whose different alleles are in no order (``0/1``): ``"error"`` refuses,
            ``"ref"`` leaves the reference and lists the variant as skipped, ``"alt"`` takes its first allele that is
            not REF, ``"as_written"`` takes the one in the place of ``phase``, as `bcftools consensus -H` does.

    Returns:
        A ``Haplotype``: the sequence, coordinates both ways, and which variants were applied and skipped.

    Raises:
        ContigNotFoundError: The interval's contig is not in the genome, or no contig of the variants is.
        IntervalError: The interval reaches past the contig's end.
        ConfigError: There is no such sample, or ``phase`` or ``unphased`` cannot be used.
        GenosparseError: A genotype is unphased, and ``unphased`` is ``"error"``.
        FileFormatError: A genotype is malformed.
    """
    if unphased not in get_args(Unphased):
        raise ConfigError(f"unphased={unphased!r}: expected one of {', '.join(get_args(Unphased))}")
    if phase < 0:
        raise ConfigError(f"phase={phase}: expected 0 for the first haplotype, 1 for the second")
    contig = genome.matcher(wanted_from="the interval").match(interval.contig)
    on_genome = Interval(contig or interval.contig, interval.start, interval.end)
    if genome.wraps(on_genome):
        raise IntervalError(
            f"interval {interval} goes on past the end of the circular contig {contig!r}; ask for each of its parts"
        )
    reference = genome.fetch(on_genome)
    canvas = _Canvas(interval)
    skipped = []
    phase_sets: dict[int, None] = {}
    too_few = enough = 0
    matcher = contig_matcher(genome)
    for variant in _on_contig(variants, contig, genome, matcher):
        alt, reason, phase_set = _chosen_alt(variant, sample, phase, unphased)
        if (alt is None and reason is None) or not _touches(variant, alt, interval):
            continue
        if reason is None and alt is not None:
            reason = no_sequence(variant.ref, alt) or place_problem(variant, genome, matcher)[0]
            reason = reason or canvas.add(variant, alt)
        too_few += reason == "ploidy"
        enough += reason is None
        if reason is not None:
            skipped.append(SkippedVariant(variant, alt, reason))
        elif phase_set is not None:
            phase_sets[phase_set] = None
    if phase > 1 and too_few and not enough:  # a second one of a haploid is a question that may be asked
        raise ConfigError(
            f"phase={phase}: none of the {too_few} genotypes of sample {sample!r} in {interval} has so many alleles; "
            "phases count from 0, and are 0 and 1 of a diploid"
        )
    return canvas.finish(reference, tuple(skipped), tuple(phase_sets))


def _on_contig(
    variants: Iterable[Variant], contig: str | None, genome: Genome, matcher: ContigMatcher
) -> Iterator[Variant]:
    """Yield the variants on one of the genome's contigs."""
    found: dict[str, str | None] = {}
    for variant in variants:
        if variant.contig not in found:
            found[variant.contig] = matcher.match(variant.contig)
        if found[variant.contig] == contig:
            yield variant
    if found and not any(found.values()):
        raise no_contig_matches(found, genome.contigs, "the variants", str(genome.path))


def _chosen_alt(
    variant: Variant, sample: str | None, phase: int, unphased: Unphased
) -> tuple[str | None, str | None, int | None]:
    """Return the ALT to apply, None for REF; why there is none to apply; and the phase set it belongs to."""
    if sample is None:
        return (variant.alts[0] if variant.alts else None), None, None
    genotype = variant.genotype(sample)
    alleles = genotype.alleles
    if not alleles:
        return None, "missing", None
    is_ordered = genotype.phased or len(set(alleles)) == 1
    if not is_ordered and unphased == "error":
        where = f"{variant.contig}:{position_1based(variant.position0)}"
        raise GenosparseError(
            f"the genotype of sample {sample!r} at {where} (1-based) is not phased; phase the file, or pass "
            "unphased='ref', 'alt' or 'as_written'"
        )
    if not is_ordered and unphased == "ref":
        return None, "unphased" if any(alleles) else None, None
    if not is_ordered and unphased == "alt":
        allele = next((allele for allele in alleles if allele), None if None in alleles else 0)
    elif phase < len(alleles):
        allele = alleles[phase]
    else:
        return None, "ploidy" if any(alleles) else None, None
    if allele is None:
        return None, "missing", None
    return (variant.alts[allele - 1] if allele else None), None, genotype.phase_set if len(set(alleles)) > 1 else None


def _touches(variant: Variant, alt: str | None, interval: Interval) -> bool:
    """Whether a variant changes a base of the interval, or might where its ALT has no bases."""
    start, end = variant.position0, variant.end
    if alt is not None and no_sequence(variant.ref, alt) is None:
        offset, ref_end, _ = changed_span(variant.ref, alt)
        start, end = variant.position0 + offset, variant.position0 + ref_end
    if start == end:
        return interval.start < start <= interval.end or start == interval.start == 0
    return start < interval.end and end > interval.start


class _Canvas:
    """The changes to an interval, none over another."""

    def __init__(self, interval: Interval) -> None:
        self._interval = interval
        self._edits: list[_Edit] = []
        self._is_changed = np.zeros(interval.length, bool)
        self._is_inserted = np.zeros(interval.length + 1, bool)  # before each base, and after the last

    def add(self, variant: Variant, alt: str) -> str | None:
        """Add a variant; return ``overlap``, and add nothing, where it overlaps an earlier one."""
        edit = self._clipped(variant, alt)
        start, end, whole_end = (at - self._interval.start for at in (edit.start, edit.end, edit.whole_end))
        if start == end:
            if self._is_inserted[start] or self._is_within_one(edit.start):
                return "overlap"
            self._is_inserted[start] = True
        else:
            if self._is_changed[start:end].any() or self._is_inserted[start + 1 : whole_end].any():
                return "overlap"
            self._is_changed[start:end] = True
        self._edits.append(edit)
        return None

    def _is_within_one(self, position0: int) -> bool:
        before = position0 - 1 - self._interval.start
        if before < 0 or not self._is_changed[before]:
            return False
        return any(edit.start < position0 < edit.whole_end for edit in self._edits)

    def _clipped(self, variant: Variant, alt: str) -> _Edit:
        offset, ref_end, alt_end = changed_span(variant.ref, alt)
        start, whole_end, bases = variant.position0 + offset, variant.position0 + ref_end, alt[offset:alt_end]
        end = min(whole_end, self._interval.end)
        outside = max(0, self._interval.start - start)
        start, bases = start + outside, bases[outside:]
        if end < whole_end:
            bases = bases[: end - start]
        return _Edit(start, end, whole_end, bases, variant, alt)

    def finish(self, reference: str, skipped: tuple[SkippedVariant, ...], phase_sets: tuple[int, ...]) -> Haplotype:
        """Write the haplotype out."""
        first = self._interval.start
        pieces: list[str] = []
        positions: list[NDArray[np.int64]] = []
        applied: list[AppliedVariant] = []
        at, length = first, 0
        for edit in sorted(self._edits, key=lambda edit: (edit.start, edit.end)):
            kept = reference[at - first : edit.start - first]
            paired = min(edit.end - edit.start, len(edit.bases))
            pieces += [kept, edit.bases]
            positions += [
                np.arange(at, edit.start),
                np.arange(edit.start, edit.start + paired),
                np.full(len(edit.bases) - paired, -1),
            ]
            length += len(kept)
            applied.append(AppliedVariant(edit.variant, edit.alt, length, length + len(edit.bases)))
            length += len(edit.bases)
            at = edit.end
        pieces.append(reference[at - first :])
        positions.append(np.arange(at, self._interval.end))
        sequence, to_reference = "".join(pieces), np.concatenate(positions).astype(np.int64)
        if self._interval.strand == "-":
            sequence, to_reference = reverse_complement(sequence), to_reference[::-1].copy()
            applied = [one._replace(start=len(sequence) - one.end, end=len(sequence) - one.start) for one in applied]
        from_reference = np.full(self._interval.length, -1, np.int64)
        (there,) = np.nonzero(to_reference >= 0)
        from_reference[to_reference[there] - first] = there
        return Haplotype(sequence, self._interval, to_reference, from_reference, tuple(applied), skipped, phase_sets)
