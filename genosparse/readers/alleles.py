"""What an allele is, and whether REF is what the genome has: the one place for both."""

import re
from enum import StrEnum

from genosparse.contigs import ContigMatcher
from genosparse.intervals import Interval
from genosparse.readers.fasta import Genome
from genosparse.readers.variants import Variant
from genosparse.tokenizers import N, NucleotideTokenizer

__all__ = [
    "AlleleKind",
    "allele_kind",
    "changed_span",
    "contig_matcher",
    "is_sequence",
    "no_sequence",
    "place_problem",
    "plain_bases",
    "reference_matches",
]

_SEQUENCE = re.compile(r"[ACGTUNRYSWKMBDHVacgtunryswkmbdhv]+")
_TOKENIZER = NucleotideTokenizer()


class AlleleKind(StrEnum):
    """What an ALT is, beside its REF."""

    SNV = "snv"  # one base differs
    MNV = "mnv"  # equal length, more bases differ
    INSERTION = "insertion"  # bases are added and none is changed
    DELETION = "deletion"  # bases are taken out and none is changed
    DELINS = "delins"  # other bases in place of some, of another length
    NO_VARIATION = "no_variation"  # ALT equals REF
    SYMBOLIC = "symbolic"  # <DEL>, <INS:ME>, <*>, <NON_REF>, C<ctg1>, and whatever else is no sequence
    BREAKEND = "breakend"  # G]17:198982], .A, A.
    SPANNING = "spanning"  # *: the allele is lost to a deletion that begins upstream
    MISSING = "missing"  # . or nothing


_NO_SEQUENCE = frozenset(
    {AlleleKind.SYMBOLIC, AlleleKind.BREAKEND, AlleleKind.SPANNING, AlleleKind.MISSING, AlleleKind.NO_VARIATION}
)


def allele_kind(ref: str, alt: str) -> AlleleKind:
    """Return what an ALT is, beside its REF.

    Case is of no account, and U is T. Bases that REF and ALT share at their ends do not count, as in htslib: the ALT of
    ``AC>AT``, which multi-allelic records beside a deletion need, is an SNV.

    Args:
        ref: REF, as in the file.
        alt: One ALT, as in the file.
    """
    if not is_sequence(alt):
        return _kind_of_symbol(alt)
    start, ref_end, alt_end = changed_span(ref, alt)
    num_ref, num_alt = ref_end - start, alt_end - start
    if not num_ref:
        return AlleleKind.INSERTION if num_alt else AlleleKind.NO_VARIATION
    if not num_alt:
        return AlleleKind.DELETION
    if num_ref != num_alt:
        return AlleleKind.DELINS
    return AlleleKind.SNV if num_ref == 1 else AlleleKind.MNV


def _kind_of_symbol(alt: str) -> AlleleKind:
    if alt in ("", "."):
        return AlleleKind.MISSING
    if alt == "*":
        return AlleleKind.SPANNING
    if "[" in alt or "]" in alt or alt.startswith(".") or alt.endswith("."):
        return AlleleKind.BREAKEND
    return AlleleKind.SYMBOLIC


def is_sequence(allele: str) -> bool:
    """Whether an allele is nucleotide codes alone."""
    return _SEQUENCE.fullmatch(allele) is not None


def no_sequence(ref: str, alt: str) -> str | None:
    """Why an ALT has no bases to put in REF's place: the ``AlleleKind`` that says so, or None where it has."""
    kind = allele_kind(ref, alt)
    return str(kind) if kind in _NO_SEQUENCE else None


def plain_bases(allele: str) -> str:
    """The bases of an allele in upper case, U as T, to compare them by."""
    return allele.upper().replace("U", "T")


def changed_span(ref: str, alt: str) -> tuple[int, int, int]:
    """Return what is left of REF and ALT without the bases that they share at their ends.

    Shared bases are taken off the left end first, as VCF puts the base before an indel in front of it.

    Returns:
        ``(start, ref_end, alt_end)``: REF's ``ref[start:ref_end]`` becomes ``alt[start:alt_end]``.
    """
    ref, alt = plain_bases(ref), plain_bases(alt)
    start, ref_end, alt_end = 0, len(ref), len(alt)
    while start < min(ref_end, alt_end) and ref[start] == alt[start]:
        start += 1
    while min(ref_end, alt_end) > start and ref[ref_end - 1] == alt[alt_end - 1]:
        ref_end -= 1
        alt_end -= 1
    return start, ref_end, alt_end


def reference_matches(ref: str, genome: Genome, contig: str, position0: int) -> bool:
    """Whether REF is what the genome has at a place within one of its contigs.

    Case is of no account. Where the genome has an ambiguity code, a REF among its members matches, as the VCF
    specification wants it; the genome's N matches N alone.

    Args:
        ref: REF, nucleotide codes.
        genome: The reference.
        contig: The genome's name for the contig.
        position0: 0-based position of REF's first base.
    """
    interval = Interval(contig, position0, position0 + len(ref))
    if plain_bases(genome.fetch(interval)) == plain_bases(ref):
        return True
    reference, tokens = genome.tokens(interval), _TOKENIZER.encode(ref)
    return bool(((tokens == reference) | ((tokens & reference == tokens) & (reference != N))).all())


def contig_matcher(genome: Genome) -> ContigMatcher:
    """What finds the genome's names of the contigs of variants."""
    return genome.matcher(wanted_from="the variants")


def place_problem(variant: Variant, genome: Genome, matcher: ContigMatcher) -> tuple[str | None, str | None]:
    """What is wrong with the place of a variant and its REF.

    Args:
        variant: The record.
        genome: The reference.
        matcher: As from ``contig_matcher``.

    Returns:
        ``(problem, contig)``: ``contig_missing``, ``out_of_bounds`` or ``ref_mismatch``, or None where all is well; and
        the genome's name of the contig, None where it has none.

    Raises:
        ContigNotFoundError: Several contigs of the genome could be meant.
    """
    contig = matcher.match(variant.contig)
    if contig is None:
        return "contig_missing", None
    if variant.position0 < 0 or variant.position0 + len(variant.ref) > genome.contigs[contig]:
        return "out_of_bounds", contig
    if not reference_matches(variant.ref, genome, contig, variant.position0):
        return "ref_mismatch", contig
    return None, contig
