"""What is tested, each base once, and what baselines are counted on, none of it tested."""

from pathlib import Path

import numpy as np
import pytest

from genosparse.errors import ContigNotFoundError, IntervalError
from genosparse.evaluation import BaselineSequences, TestedSequences
from genosparse.intervals import Interval
from genosparse.pretraining.windows import Span
from genosparse.readers import Genome
from genosparse.tokenizers import NucleotideTokenizer

LENGTH = 1000
BASES = "".join(np.random.default_rng(3).choice(list("ACGT"), LENGTH))


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    (tmp_path / "ref.fa").write_text(f">ring\n{BASES}\n>line\n{BASES[::-1]}\n")
    return Genome(tmp_path / "ref.fa", circular="ring")


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 10), (5, 30), (30, 40), (700, 701)],
        [(900, 1100), (50, 200), (150, 160)],  # over the origin, on to what another one covers
        [(100, 950), (900, 1200)],  # meets itself
        [(500, 1500), (0, 20)],
    ],
)
def test_every_tested_base_is_tested_once_and_no_other_is(genome: Genome, pairs: list[tuple[int, int]]) -> None:
    tested = TestedSequences(genome, [Interval("ring", *pair, "-") for pair in pairs], context=100)
    covered = [position % LENGTH for span in tested.held_out for position in range(span.start, span.end)]
    wanted = {position % LENGTH for pair in pairs for position in range(*pair)}
    assert len(covered) == len(set(covered))
    assert set(covered) == wanted
    for span in tested.held_out:
        for start in range(span.start, span.end, 90):  # pieces past the origin as well
            piece = Span(0, "ring", start, min(start + 90, span.end))
            bases = "".join(BASES[position % LENGTH] for position in range(piece.start, piece.end))
            assert NucleotideTokenizer().decode(tested.tokens(piece)) == bases
    rest = "".join(BASES[position] if position not in wanted else "." for position in range(LENGTH))
    left = [NucleotideTokenizer().decode(tokens) for tokens in tested.training_sequences()]
    assert left == [*(part for part in rest.split(".") if part), BASES[::-1]]
    assert tested.training_sequences().num_bases == sum(map(len, left))


def test_tested_bases_are_left_out_of_any_file_and_name(genome: Genome, tmp_path: Path) -> None:
    (tmp_path / "other.fa").write_text(f">same\n{BASES.lower()}\n>new\n{'ACGT' * 250}\n")
    tested = TestedSequences(genome, [Interval("ring", 100, 1000)], context=100)
    with Genome(tmp_path / "other.fa") as other:
        sequences = BaselineSequences([other], genome, tested.held_out)
        assert [NucleotideTokenizer().decode(tokens) for tokens in sequences] == [BASES[:100], "ACGT" * 250]


def test_context_is_no_longer_than_the_stretches(genome: Genome) -> None:
    intervals = [Interval("line", 0, 30), Interval("line", 50, 90)]
    assert TestedSequences(genome, intervals, context=100).context == 40
    assert TestedSequences(genome, None, context=100).context == 100


def test_places_that_are_not_there(genome: Genome) -> None:
    with pytest.raises(ContigNotFoundError, match="'other' is not in"):
        TestedSequences(genome, [Interval("other", 0, 30)], context=100)
    with pytest.raises(IntervalError, match="reaches past the end of line"):
        TestedSequences(genome, [Interval("line", 990, 1001)], context=100)
