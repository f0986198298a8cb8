"""What becomes of each ALT: scored, or the reason why not."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from genosparse.errors import ReferenceMismatchError
from genosparse.intervals import Interval, position_1based
from genosparse.readers import Genome, Variant
from genosparse.readers.alleles import changed_span, is_sequence, plain_bases, reference_matches

__all__ = ["Status", "alt_status", "check_references", "record_status"]

_CONCRETE = frozenset("ACGT")
_SHOWN_BASES = 20  # of an allele in an error


class Status(StrEnum):
    """The status of one ALT.

    When several would fit, the earliest in this order is given: first where the record lies, then its REF, then the
    ALT, then what the scores can do. So the status names what has to be mended first.
    """

    CONTIG_MISSING = "contig_missing"  # the genome has no such contig
    OUT_OF_BOUNDS = "out_of_bounds"  # REF begins before the contig's first base or ends after its last
    AMBIGUOUS_REF = "ambiguous_ref"  # REF has a letter other than A C G T
    REF_MISMATCH = "ref_mismatch"  # REF is not what the genome has there
    SYMBOLIC = "symbolic"  # ALT is no sequence: <DEL>, *, a breakend
    AMBIGUOUS_ALT = "ambiguous_alt"  # ALT has a letter other than A C G T
    TOO_LONG = "too_long"  # more bases change than max_allele_length, or than the windows hold with known ones around
    UNSUPPORTED = "unsupported"  # no requested score is defined for this kind of variant
    SCORED = "scored"  # every requested score that is defined for this kind of variant is there


def record_status(variant: Variant, genome: Genome, contig: str | None) -> Status | None:
    """Return the status that a record's place and REF give to all its ALTs, or None when both are in order.

    Case is of no account. Where the genome has an ambiguity code, a REF among its members matches, as the VCF
    specification wants it, but nothing matches N.

    Args:
        variant: The record.
        genome: The reference.
        contig: The genome's name for the record's contig, None when it has none.
    """
    if contig is None:
        return Status.CONTIG_MISSING
    end = variant.position0 + len(variant.ref)
    if variant.position0 < 0 or end > genome.contigs[contig]:
        return Status.OUT_OF_BOUNDS
    if not _is_concrete(variant.ref):
        return Status.AMBIGUOUS_REF
    return None if reference_matches(variant.ref, genome, contig, variant.position0) else Status.REF_MISMATCH


def alt_status(ref: str, alt: str, max_length: int) -> Status | None:
    """Return the status that an ALT's form gives it, or None when it is a sequence that can be scored.

    Args:
        ref: The record's REF.
        alt: One of its ALTs.
        max_length: Most bases that it may change, of REF or to, without those that both share at their ends.
    """
    # Breakends hold brackets (mated) or begin or end with a dot (single), '*' is an allele deleted upstream.
    # What is no sequence of nucleotide codes is a symbol of some kind too, whatever the caller that wrote it meant.
    if not is_sequence(alt):
        return Status.SYMBOLIC
    if not _is_concrete(alt):
        return Status.AMBIGUOUS_ALT
    start, ref_end, alt_end = changed_span(ref, alt)
    if max(ref_end, alt_end) - start > max_length:
        return Status.TOO_LONG
    return None


def check_references(variants: Iterable[Variant], genome: Genome, contigs: Mapping[str, str | None]) -> None:
    """Stop at the first of some variants whose REF is not what the genome has.

    Args:
        variants: The variants; those without ALT are passed over.
        genome: The reference.
        contigs: The genome's name, or None, for each contig of the variants.

    Raises:
        ReferenceMismatchError: With the place, and both sequences.
    """
    for variant in variants:
        contig = contigs[variant.contig]
        if variant.alts and record_status(variant, genome, contig) is Status.REF_MISMATCH:
            assert contig is not None
            found = genome.fetch(Interval(contig, variant.position0, variant.position0 + len(variant.ref)))
            raise ReferenceMismatchError(
                f"{variant.contig}:{position_1based(variant.position0)} has the REF {_shortened(variant.ref)} and "
                f"{genome.path} has {_shortened(found)} there; give the genome that the variants were called on, or "
                "strict=false to give such variants a status"
            )


def _shortened(allele: str) -> str:
    return allele if len(allele) <= _SHOWN_BASES else f"{allele[:_SHOWN_BASES]}... ({len(allele)} bases)"


def _is_concrete(allele: str) -> bool:
    return _CONCRETE.issuperset(plain_bases(allele))
