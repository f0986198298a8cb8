"""Kinds of alleles, what REF and ALT share, and REF beside the genome."""

import pytest

from genosparse.readers import AlleleKind, Genome, allele_kind
from genosparse.readers.alleles import changed_span, reference_matches


@pytest.mark.parametrize(
    "ref, alt, kind",
    [
        ("A", "C", AlleleKind.SNV),
        ("a", "C", AlleleKind.SNV),
        ("A", "N", AlleleKind.SNV),
        ("A", "a", AlleleKind.NO_VARIATION),
        ("T", "U", AlleleKind.NO_VARIATION),
        ("AC", "AT", AlleleKind.SNV),
        ("ACG", "ATG", AlleleKind.SNV),
        ("AC", "GT", AlleleKind.MNV),
        ("ACG", "TCA", AlleleKind.MNV),
        ("AC", "A", AlleleKind.DELETION),
        ("CTT", "CT", AlleleKind.DELETION),
        ("AC", "C", AlleleKind.DELETION),  # at a contig's first base, the base after comes along
        ("A", "AC", AlleleKind.INSERTION),
        ("CTT", "CTTT", AlleleKind.INSERTION),
        ("ACG", "T", AlleleKind.DELINS),
        ("ACG", "TCGG", AlleleKind.DELINS),
        ("ACG", "AT", AlleleKind.DELINS),
        ("A", "<DEL>", AlleleKind.SYMBOLIC),
        ("A", "<INS:ME>", AlleleKind.SYMBOLIC),
        ("A", "<*>", AlleleKind.SYMBOLIC),
        ("A", "<NON_REF>", AlleleKind.SYMBOLIC),
        ("C", "C<ctg1>", AlleleKind.SYMBOLIC),
        ("C", "(A)12", AlleleKind.SYMBOLIC),
        ("C", "EXP", AlleleKind.SYMBOLIC),
        ("G", "G]17:198982]", AlleleKind.BREAKEND),
        ("C", "C[<ctg1>:1[", AlleleKind.BREAKEND),
        ("A", ".A", AlleleKind.BREAKEND),
        ("A", "A.", AlleleKind.BREAKEND),
        ("A", "*", AlleleKind.SPANNING),
        ("A", ".", AlleleKind.MISSING),
        ("A", "", AlleleKind.MISSING),
    ],
)
def test_kind_of_an_allele(ref, alt, kind):
    assert allele_kind(ref, alt) is kind


@pytest.mark.parametrize(
    "ref, alt, expected",
    [
        ("A", "C", (0, 1, 1)),
        ("CTT", "CT", (2, 3, 2)),  # after what they share
        ("CT", "CTT", (2, 2, 3)),
        ("GGGC", "C", (0, 3, 0)),
        ("ACT", "AT", (1, 2, 1)),
        ("ACGT", "AGGT", (1, 2, 2)),
        ("acgu", "ACGT", (4, 4, 4)),
        ("AA", "AAA", (2, 2, 3)),
    ],
)
def test_what_is_changed(ref, alt, expected):
    assert changed_span(ref, alt) == expected


def test_ref_beside_the_genome(tmp_path):
    (tmp_path / "g.fa").write_text(">c\nACGTNRacgu\n")
    with Genome(tmp_path / "g.fa") as genome:
        matching = [(0, "ACGT"), (0, "a"), (6, "ACGT"), (9, "t"), (4, "N"), (5, "A"), (5, "g"), (5, "R"), (3, "TNG")]
        others = [(0, "C"), (0, "ACGA"), (4, "A"), (5, "C"), (5, "N"), (0, "N"), (3, "TA")]
        assert [reference_matches(ref, genome, "c", at) for at, ref in matching] == [True] * len(matching)
        assert [reference_matches(ref, genome, "c", at) for at, ref in others] == [False] * len(others)
