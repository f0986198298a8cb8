"""What is trained on, what is held out, and how windows are drawn."""

import time
from pathlib import Path

import numpy as np
import pytest

from genosparse.errors import ConfigError, ContigNotFoundError, GenosparseWarning, IntervalError
from genosparse.intervals import Interval
from genosparse.pretraining import Corpus, HeldOut, MaskingSettings, Span
from genosparse.pretraining.masking import MaskedWindows
from genosparse.readers import Genome
from genosparse.tokenizers import NucleotideTokenizer

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


@pytest.mark.parametrize("validation", [None, 0, 0.0, []])
def test_nothing_held_out(genome: Genome, validation: float | list[str] | None) -> None:
    corpus = Corpus([genome], validation=validation, context=50)
    assert corpus.held_out == []
    assert corpus.num_training_bases == 1350
    assert HeldOut(corpus, 0).num_sites == 0


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
        # Told when the corpus is made: a worker process could not tell it in one line.
        with pytest.raises(ConfigError, match=r"1000 windows in a row .* data\.max_n"):
            Corpus([genome], validation=0, context=100, max_n=0.0, regions=[Interval("a", 0, 500)])


def test_soft_mask_of_any_window(genome: Genome) -> None:
    """Case is kept eight bases to the byte: windows begin and end at any base."""
    corpus = Corpus([genome], validation=["two", "three"], context=37)
    letters = genome.fetch(Interval("one", 0, 1000))
    random = np.random.default_rng(0)
    starts = set()
    for _ in range(300):
        window = corpus.draw(random)
        start = letters.upper().find(NucleotideTokenizer().decode(window.tokens))
        assert window.soft_mask.tolist() == [letter.islower() for letter in letters[start : start + 37]]
        starts.add(start % 8)
    assert starts == set(range(8))


def test_spans_equal_those_of_a_mask_of_bases(tmp_path: Path) -> None:
    """Random regions and holes, overlapping and touching, on two genomes that share a contig's name."""
    random = np.random.default_rng(0)
    for name in ("first", "second"):
        (tmp_path / f"{name}.fa").write_text(f">one\n{'ACGT' * 250}\n>{name}\n{'ACGT' * 100}\n")

    def intervals(contig: str, length: int) -> list[Interval]:
        starts = random.integers(length, size=30)
        return [Interval(contig, int(at), int(min(at + random.integers(1, 60), length))) for at in starts]

    regions = [*intervals("one", 1000), *intervals("second", 400)]
    exclude = [*intervals("one", 1000), *intervals("first", 400)]
    with Genome(tmp_path / "first.fa") as first, Genome(tmp_path / "second.fa") as second:
        corpus = Corpus([first, second], validation=0.1, context=1, regions=regions, exclude=exclude)
    for genome, contig, length in ((0, "one", 1000), (0, "first", 400), (1, "one", 1000), (1, "second", 400)):
        expected, found = np.zeros(length, bool), np.zeros(length, int)
        for kept, several in ((True, regions), (False, exclude)):
            for interval in several:
                if interval.contig == contig:
                    expected[interval.start : interval.end] = kept
        expected[length - length // 10 :] = False
        for span in corpus.training:
            if (span.genome, span.contig) == (genome, contig):
                found[span.start : span.end] += 1
        assert found.tolist() == expected.astype(int).tolist()


def test_hundred_thousand_intervals_take_seconds(tmp_path: Path) -> None:
    (tmp_path / "ref.fa").write_text(f">one\n{'ACGT' * 250_000}\n")
    regions = [Interval("one", start, start + 9) for start in range(0, 1_000_000, 10)]
    exclude = [Interval("one", start + 4, start + 5) for start in range(0, 1_000_000, 10)]
    started = time.monotonic()
    with Genome(tmp_path / "ref.fa") as genome:
        corpus = Corpus([genome], validation=0, context=4, regions=regions, exclude=exclude)
    assert time.monotonic() - started < 30  # pairs compared one by one took minutes
    assert len(corpus.training) == 200_000
    assert corpus.num_training_bases == 800_000


def test_contigs_are_matched_by_name_in_each_genome(tmp_path: Path) -> None:
    """A region of chr1 is one of 1 too, and an exclusion leaves no genome out; one notice for each setting."""
    for name, contig in (("a", "chr1"), ("b", "1")):
        (tmp_path / f"{name}.fa").write_text(f">{contig}\n{'ACGT' * 50}\n>other_{name}\n{'ACGT' * 50}\n")
    with Genome(tmp_path / "a.fa") as a, Genome(tmp_path / "b.fa") as b:
        with pytest.warns(GenosparseWarning, match=r"'chr1' of data\.exclude is read as '1' of .*b\.fa"):
            corpus = Corpus([a, b], validation=0, context=10, exclude=[Interval("chr1", 0, 150)])
        assert corpus.training == [
            Span(0, "chr1", 150, 200), Span(0, "other_a", 0, 200), Span(1, "1", 150, 200), Span(1, "other_b", 0, 200),
        ]  # fmt: skip
        with pytest.warns(GenosparseWarning, match=r"'1' of data\.validation is read as 'chr1'"):
            corpus = Corpus([a, b], validation=["1"], context=10)
        assert corpus.held_out == [Span(0, "chr1", 0, 200), Span(1, "1", 0, 200)]


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


def test_intervals_go_past_the_end_of_a_circular_contig(tmp_path: Path) -> None:
    (tmp_path / "ring.fa").write_text(f">ring\n{'ACGTT' * 40}\n")
    with Genome(tmp_path / "ring.fa", circular=["ring"], aliases={"NC_1": "ring"}) as genome:
        over = [Interval("NC_1", 150, 230)]
        inside = Corpus([genome], validation=0, context=20, regions=over)
        assert sorted(inside.training, key=lambda span: span.start) == [
            Span(0, "ring", 0, 30),
            Span(0, "ring", 150, 200),
        ]
        outside = Corpus([genome], validation=0, context=20, exclude=over)
        assert outside.training == [Span(0, "ring", 30, 150)]
        with pytest.raises(IntervalError, match=r"data\.regions: .* reaches past the end of contig 'ring'"):
            Corpus([genome], validation=0, context=20, regions=[Interval("ring", 150, 351)])


def test_what_is_too_short_is_told(genome: Genome) -> None:
    with pytest.warns(GenosparseWarning, match="350 bases are in stretches shorter"):
        assert Corpus([genome], validation=0, context=400).num_training_bases == 1000


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"context": 2000}, ConfigError, "longest stretch to train on has 900 bases"),
        ({"validation": 1.0}, ConfigError, r"data\.validation=1\.0"),
        ({"validation": -0.1}, ConfigError, r"data\.validation=-0\.1"),
        ({"validation": False}, ConfigError, r"data\.validation=False: expected a fraction"),
        ({"validation": True}, ConfigError, r"data\.validation=True: expected a fraction"),
        ({"validation": float("nan")}, ConfigError, r"data\.validation=nan"),
        ({"regions": [Interval("two", 250, 301)]}, IntervalError, r"data\.regions: .*two:250-301.* \(300 bp\)"),
        ({"exclude": [Interval("two", 400, 500)]}, IntervalError, r"data\.exclude: .*two:400-500.* \(300 bp\)"),
        ({"exclude": [Interval("four", 400, 500)]}, ContigNotFoundError, r"data\.exclude names contig 'four'"),
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
