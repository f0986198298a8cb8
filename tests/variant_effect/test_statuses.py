"""Statuses: one per ALT, the first that fits in the documented order."""

import pytest

from genosparse.readers import Genome, Variant
from genosparse.variant_effect.statuses import Status, alt_status, record_status

SEQUENCE = "ACGTNRacgtU"  # R at 5 is A or G; U at 10 is T


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text(f">c\n{SEQUENCE}\n")
    with Genome(path) as opened:
        yield opened


def test_the_order_of_the_statuses_is_fixed():
    # The order is the precedence, and finished blocks store a status as its index.
    assert [str(status) for status in Status] == [
        "contig_missing",
        "out_of_bounds",
        "ambiguous_ref",
        "ref_mismatch",
        "symbolic",
        "ambiguous_alt",
        "too_long",
        "unsupported",
        "scored",
    ]


@pytest.mark.parametrize(
    "position0, ref, expected",
    [
        (0, "A", None),  # first base
        (10, "T", None),  # last base, which the genome writes as U
        (10, "u", None),
        (3, "t", None),
        (6, "ACGT", None),  # lower case in the genome
        (0, "ACGT", None),
        (0, "C", Status.REF_MISMATCH),
        (0, "ACGA", Status.REF_MISMATCH),
        (-1, "A", Status.OUT_OF_BOUNDS),
        (11, "A", Status.OUT_OF_BOUNDS),
        (10, "TA", Status.OUT_OF_BOUNDS),
        (2**40, "A", Status.OUT_OF_BOUNDS),
        (11, "N", Status.OUT_OF_BOUNDS),  # out of bounds comes before ambiguous
        (0, "N", Status.AMBIGUOUS_REF),
        (0, "R", Status.AMBIGUOUS_REF),
        (4, "N", Status.AMBIGUOUS_REF),
        (4, "A", Status.REF_MISMATCH),  # nothing matches an N of the genome
        (5, "A", None),  # R holds A and G
        (5, "G", None),
        (5, "C", Status.REF_MISMATCH),
    ],
)
def test_status_of_a_record(genome, position0, ref, expected):
    assert record_status(Variant("c", position0, ref, ("A",)), genome, "c") == expected


def test_a_contig_that_is_not_there_comes_first(genome):
    assert record_status(Variant("other", -1, "N", ("A",)), genome, None) is Status.CONTIG_MISSING


@pytest.mark.parametrize(
    "ref, alt, expected",
    [
        ("C", "C<ctg1>", Status.SYMBOLIC),
        ("C", "EXP", Status.SYMBOLIC),
        ("C", "(A)12", Status.SYMBOLIC),
        ("A", "C", None),
        ("A", "acgtu", None),
        ("A", "*", Status.SYMBOLIC),
        ("A", "<DEL>", Status.SYMBOLIC),
        ("A", "<*>", Status.SYMBOLIC),
        ("A", "G]17:198982]", Status.SYMBOLIC),
        ("A", "[13:123457[C", Status.SYMBOLIC),
        ("A", "C[<ctg1>:1[", Status.SYMBOLIC),
        ("A", "A.", Status.SYMBOLIC),
        ("A", ".TGCA", Status.SYMBOLIC),
        ("A", "N", Status.AMBIGUOUS_ALT),
        ("A", "CR", Status.AMBIGUOUS_ALT),
        ("A", "C" * 8, None),
        ("A", "C" * 9, Status.TOO_LONG),
        ("A" * 9, "C", Status.TOO_LONG),
        ("A", "N" * 9, Status.AMBIGUOUS_ALT),
        ("A" + "C" * 20, "G" + "C" * 20, None),  # what they share does not count
        ("A" + "CG" * 20, "A" + "CG" * 15, Status.TOO_LONG),
        ("A" + "CG" * 20, "A" + "CG" * 16, None),
    ],
)
def test_status_of_an_alt(ref, alt, expected):
    assert alt_status(ref, alt, max_length=8) == expected
