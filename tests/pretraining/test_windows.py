"""What is trained on, what is held out, and how windows are drawn."""

from pathlib import Path

import numpy as np
import pytest

from genosparse.errors import ConfigError, ContigNotFoundError, GenosparseWarning
from genosparse.intervals import Interval
from genosparse.pretraining import Corpus, MaskingSettings, Span
from genosparse.pretraining.masking import MaskedWindows
from genosparse.readers import Genome

CONTIGS = {"one": 1000, "two": 300, "three": 50}


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    random = np.random.default_rng(0)
    with (tmp_path / "ref.fa").open("w") as file:
        for name, length in CONTIGS.items():
            file.write(f">{name}\n{''.join(random.choice(list('ACGTacgt'), length))}\n")
    return Genome(tmp_path / "ref.fa")


def drawn(corpus: Corpus, count: int) -> list[str]:
    random = np.random.default_rng(1)
    return ["".join(map(chr, corpus.draw(random).tokens)) for _ in range(count)]


@pytest.mark.filterwarnings("ignore::genosparse.errors.GenosparseWarning")
def test_fraction_holds_out_the_end_of_each_contig(genome: Genome) -> None:
    corpus = Corpus([genome], validation=0.1, context=100)
    assert corpus.training == [Span(0, "one", 0, 900), Span(0, "two", 0, 270), Span(0, "three", 0, 45)]
    assert corpus.held_out == [Span(0, "one", 900, 1000), Span(0, "two", 270, 300), Span(0, "three", 45, 50)]


def test_contigs_hold_out_whole(genome: Genome) -> None:
    corpus = Corpus([genome], validation=["two", "three"], context=100)
    assert corpus.training == [Span(0, "one", 0, 1000)]
    assert [span.contig for span in corpus.held_out] == ["two", "three"]


def test_regions_and_exclusions_cut_the_training_alone(genome: Genome) -> None:
    corpus = Corpus(
        [genome],
        validation=["two", "three"],
        context=100,
        regions=[Interval("one", 0, 500), Interval("one", 400, 800)],
        exclude=[Interval("one", 200, 300), Interval("one", 780, 1000)],
    )
    assert corpus.training == [Span(0, "one", 0, 200), Span(0, "one", 300, 780)]


def test_windows_lie_within_training_spans_and_reach_every_start(genome: Genome) -> None:
    corpus = Corpus([genome], validation=["two", "three"], context=100, exclude=[Interval("one", 210, 880)])
    text = "".join(map(chr, corpus.tokens(Span(0, "one", 0, 1000))))
    starts = {text.find(window) for window in drawn(corpus, 3000)}
    assert starts == {*range(111), *range(880, 901)}


def test_window_shows_case_as_soft_mask(genome: Genome) -> None:
    corpus = Corpus(
        [genome],
        validation=0,
        context=1000 - 1,
        exclude=[Interval("one", 999, 1000)],
        regions=[Interval("one", 0, 999)],
    )
    window = corpus.draw(np.random.default_rng(0))
    letters = genome.fetch(Interval("one", 0, 999))
    assert window.soft_mask.tolist() == [letter.islower() for letter in letters]
    assert window.tokens.max() <= 8


def test_windows_of_n_are_drawn_again(tmp_path: Path) -> None:
    (tmp_path / "n.fa").write_text(">a\n" + "N" * 900 + "ACGT" * 50 + "\n")
    with Genome(tmp_path / "n.fa") as genome:
        corpus = Corpus([genome], validation=0, context=100, max_n=0.2)
        random = np.random.default_rng(0)
        assert max(np.count_nonzero(corpus.draw(random).tokens == 15) for _ in range(200)) == 20
        with pytest.raises(ConfigError, match=r"data\.max_n"):
            Corpus([genome], validation=0, context=100, max_n=0.0, regions=[Interval("a", 0, 500)]).draw(random)


def test_example_is_a_function_of_seed_and_index(genome: Genome) -> None:
    corpus = Corpus([genome], validation=["two", "three"], context=64)

    def examples(seed: int) -> MaskedWindows:
        return MaskedWindows(corpus, MaskingSettings(), seed)

    first, again = examples(1), examples(1)
    for index in (7, 0, 10**12):
        _ = again[3]  # what was drawn before must not matter
        assert all(a.equal(b) for a, b in zip(first[index], again[index], strict=True))
    assert not first[0][0].equal(first[1][0])
    assert not first[0][0].equal(examples(2)[0][0])


def test_what_is_too_short_is_told(genome: Genome) -> None:
    with pytest.warns(GenosparseWarning, match="350 bases are in stretches shorter"):
        assert Corpus([genome], validation=0, context=400).num_training_bases == 1000


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"context": 2000}, ConfigError, "longest stretch to train on has 900 bases"),
        ({"validation": 1.0}, ConfigError, r"data\.validation=1\.0"),
        ({"validation": -0.1}, ConfigError, r"data\.validation=-0\.1"),
        ({"validation": ["four"]}, ContigNotFoundError, "data.validation names contig 'four'"),
        ({"validation": list(CONTIGS)}, ConfigError, "every contig"),
        ({"regions": [Interval("chrX", 0, 5)]}, ContigNotFoundError, "data.regions names contig 'chrX'"),
        ({"exclude": [Interval("one", 0, 1000), Interval("two", 0, 300)]}, ConfigError, "no training window"),
    ],
)
def test_what_cannot_be_is_named(
    genome: Genome, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Corpus([genome], **{"validation": 0.1, "context": 100, **changes})  # type: ignore[arg-type]  # wrong on purpose
