"""Blocks, whole genomes, and how often each genome is drawn from."""

import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.intervals import Interval
from genosparse.pretraining import Corpus, HeldOut, MaskingSettings, Sampling, Span, ValidationBlocks
from genosparse.pretraining.masking import MaskedWindows
from genosparse.readers import Genome, read_tokens


def make_genome(path: Path, contigs: dict[str, int], seed: int = 0, **options: object) -> Genome:
    random = np.random.default_rng(seed)
    path.write_text(
        "".join(f">{name}\n{''.join(random.choice(list('ACGT'), size))}\n" for name, size in contigs.items())
    )
    return Genome(path, **options)  # type: ignore[arg-type]  # a plain dictionary


def covered(spans: list[Span], contig: str, length: int) -> np.ndarray:
    times = np.zeros(length, int)
    for span in spans:
        if span.contig == contig:
            assert 0 <= span.start < span.end <= length
            times[span.start : span.end] += 1
    return times


def test_blocks_lie_all_over_with_gaps(tmp_path: Path) -> None:
    genome = make_genome(tmp_path / "a.fa", {"long": 200_000, "short": 700})
    blocks = ValidationBlocks(size=500, gap=130)
    corpus = Corpus([genome], validation=0.1, validation_blocks=blocks, context=1)
    held_out, trained = covered(corpus.held_out, "long", 200_000), covered(corpus.training, "long", 200_000)
    assert held_out.max() == trained.max() == 1
    assert held_out.sum() == 40 * 500  # one in each of 40 cells
    assert (held_out.reshape(40, 5000).sum(axis=1) == 500).all()
    near = np.convolve(held_out, np.ones(261, int), "same")[:200_000] > 0
    assert (trained == ~near).all()
    starts = {span.start % 5000 for span in corpus.held_out}
    assert len(starts) > 30


def test_blocks_are_of_their_seed_alone(tmp_path: Path) -> None:
    genome = make_genome(tmp_path / "a.fa", {"one": 50_000, "two": 50_000})
    other = make_genome(tmp_path / "b.fa", {"one": 50_000, "two": 50_000}, seed=1)

    def held_out(genomes: list[Genome], **options: int) -> list[Span]:
        blocks = ValidationBlocks(size=1000, **options)
        return Corpus(genomes, validation=0.1, validation_blocks=blocks, context=64).held_out

    assert held_out([genome]) == held_out([other]) == held_out([genome], gap=5)
    assert held_out([genome]) != held_out([genome], seed=1)
    both = held_out([genome, other])
    assert both[:10] == held_out([genome])
    assert [span.start for span in both[:10]] != [span.start for span in both[10:]]


@pytest.mark.parametrize("size, fraction", [(1000, 0.1), (200, 0.35), (90, 0.02), (100, 0.5)])
def test_the_fraction_is_held_out_whatever_the_lengths(size: int, fraction: float) -> None:
    """Thousands of contigs shorter, as long as and longer than a block: the mean is right for each length."""
    for length in (60, 90, 150, 450, 5000):
        contigs = [Span(0, str(number), 0, length) for number in range(3000)]
        spans = list(ValidationBlocks(size=size).of(contigs, fraction))
        share = sum(span.length for span in spans) / (3000 * length)
        assert share == pytest.approx(fraction, abs=0.03), length
        assert all(span.length == length for span in spans if length <= size)


def test_the_gap_goes_around_a_circular_contig(tmp_path: Path) -> None:
    genome = make_genome(tmp_path / "a.fa", {"ring": 1000}, circular=True)
    blocks = ValidationBlocks(size=100, gap=50)
    assert list(blocks.surroundings(Span(0, "ring", 20, 120), 1000, True)) == [
        Span(0, "ring", 0, 170),
        Span(0, "ring", 970, 1000),
    ]
    assert list(blocks.surroundings(Span(0, "ring", 900, 990), 1000, True)) == [
        Span(0, "ring", 850, 1000),
        Span(0, "ring", 0, 40),
    ]
    assert list(blocks.surroundings(Span(0, "ring", 900, 990), 1000, False)) == [Span(0, "ring", 850, 1000)]
    # A whole corpus: wherever the block is, no base within 200 of it around the ring is trained on.
    for seed in range(20):
        blocks = ValidationBlocks(size=500, gap=200, seed=seed)
        corpus = Corpus([genome], validation=0.5, validation_blocks=blocks, context=1)
        held_out, trained = covered(corpus.held_out, "ring", 1000), covered(corpus.training, "ring", 1000)
        assert trained.sum() == 100
        assert not any((np.roll(held_out, shift) & trained).any() for shift in (-200, 0, 200))


def test_genomes_are_held_out_whole(tmp_path: Path) -> None:
    one = make_genome(tmp_path / "a.fa", {"chr1": 900})
    two = make_genome(tmp_path / "b.fa", {"chr1": 300, "chr2": 200}, seed=1)
    corpus = Corpus([one], validation=None, validation_genomes=[two], context=50, exclude=[Interval("chr1", 0, 400)])
    assert corpus.training == [Span(0, "chr1", 400, 900)]
    assert corpus.held_out == [Span(1, "chr1", 0, 300), Span(1, "chr2", 0, 200)]
    assert corpus.tokens(corpus.held_out[1]).tolist() == two.tokens(Interval("chr2", 0, 200)).tolist()
    assert HeldOut(corpus, 0).num_bases == 500
    with pytest.raises(ConfigError, match=r"data\.validation=0\.1 and data\.validation_genomes both"):
        Corpus([one], validation=0.1, validation_genomes=[two], context=50)
    (tmp_path / "n.fa").write_text(f">n\n{'N' * 200}\n")
    nothing = Corpus([one], validation=None, validation_genomes=[Genome(tmp_path / "n.fa")], context=50)
    with pytest.raises(ConfigError, match=r"data\.validation_genomes=.*n\.fa.* holds out 200 bases, too few"):
        HeldOut(nothing, 0)


def shares(corpus: Corpus, genomes: list[Genome], context: int | None = None) -> list[float]:
    """How often windows are of each genome, told by what only it has."""
    whole = [bytes(genome.tokens(Interval("a", 0, genome.contigs["a"]))) for genome in genomes]
    random = np.random.default_rng(0)
    windows = [corpus.draw(random, context).tokens for _ in range(3000)]
    assert {len(tokens) for tokens in windows} == {context or corpus.context}
    return [sum(bytes(tokens) in text for tokens in windows) / len(windows) for text in whole]


def test_genomes_are_drawn_as_asked(tmp_path: Path) -> None:
    """Lengths 1 to 4: by places 1 to 4 as well, by the square root 1 to 2; a part that is N changes no share."""
    small, large = make_genome(tmp_path / "a.fa", {"a": 1000}), make_genome(tmp_path / "b.fa", {"a": 4000}, seed=1)
    genomes = [small, large]
    for sampling, expected in (
        (Sampling(), 931 / (931 + 3931)), (Sampling(by="sqrt"), 1 / 3), (Sampling(by="weights", weights=(3, 1)), 0.75),
        (Sampling(by="weights", weights=(1.5e308, 0.5e308)), 0.75),
    ):  # fmt: skip
        corpus = Corpus(genomes, validation=0, context=70, sampling=sampling)
        first, second = shares(corpus, genomes)
        assert first == pytest.approx(expected, abs=0.03)
        assert first + second == 1
    assert shares(corpus, genomes, 20)[0] == pytest.approx(0.75, abs=0.03)
    text = (tmp_path / "a.fa").read_text()
    (tmp_path / "c.fa").write_text(text[:203] + "N" * 700 + text[903:])
    genomes[0] = Genome(tmp_path / "c.fa")
    corpus = Corpus(genomes, validation=0, context=70, sampling=Sampling(by="weights", weights=(3, 1)))
    assert shares(corpus, genomes)[0] == pytest.approx(0.75, abs=0.03)


@pytest.mark.filterwarnings("ignore::genosparse.errors.GenosparseWarning")
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampling": Sampling(by="weights", weights=(1,))}, r"data\.weights has 1 and data\.genome 2 entries"),
        (
            {"sampling": Sampling(by="weights", weights=(1, 2))},
            r"data\.weights gives 2 to .*short\.fa, which has no",
        ),
        (
            {"validation": 0, "validation_blocks": ValidationBlocks(size=9)},
            r"blocks=9 .* data\.validation=0 is no",
        ),
        ({"validation": None, "validation_blocks": ValidationBlocks(size=9)}, "is no fraction above 0"),
        (
            {"validation": ["a"], "validation_blocks": ValidationBlocks(size=9)},
            r"validation=\['a'\] is no fraction",
        ),
        (
            {"validation_blocks": ValidationBlocks(size=50, gap=2000)},
            "no training window of data.context=100",
        ),
        ({"validation": 1e-9, "validation_blocks": ValidationBlocks(size=50)}, "comes to no block in 2,040 bases"),
        ({"context": 3000}, "longest stretch to train on has 1800 bases"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    genomes = [make_genome(tmp_path / "long.fa", {"a": 2000}), make_genome(tmp_path / "short.fa", {"b": 40})]
    with pytest.raises(ConfigError, match=message):
        Corpus(genomes, **{"validation": 0.1, "context": 100, **changes})  # type: ignore[arg-type]  # wrong on purpose


def test_a_genome_of_n_is_named(tmp_path: Path) -> None:
    """Drawn by places it is never drawn; by weights it would be drawn without end."""
    genome = make_genome(tmp_path / "a.fa", {"a": 2000})
    (tmp_path / "n.fa").write_text(f">n\n{'N' * 2000}\n")
    genomes = [genome, Genome(tmp_path / "n.fa")]
    assert Corpus(genomes, validation=0, context=50).draw(np.random.default_rng(0)).tokens.max() < 15
    with pytest.raises(ConfigError, match=r"in a row of .*n\.fa had more than 10% of N; .* leave that genome out"):
        Corpus(genomes, validation=0, context=50, sampling=Sampling(by="sqrt"))
    with pytest.raises(ConfigError, match="1000 windows in a row had more than 10% of N"):
        Corpus(genomes[1:], validation=0, context=50)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"by": "area"}, r"data\.sampling=area is unknown; choose one of length, sqrt, weights"),
        ({"by": "weights"}, "needs data.weights="),
        ({"weights": (1, 2)}, "is of data.sampling=weights"),
        ({"by": "weights", "weights": (1, 0)}, r"data\.weights\[1\]=0: expected a finite number above 0"),
        ({"by": "weights", "weights": (float("nan"), 1)}, r"data\.weights\[0\]=nan"),
        ({"by": "weights", "weights": (1, "x")}, r"data\.weights\[1\]='x'"),
    ],
)
def test_samplings_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**values)  # type: ignore[arg-type]  # wrong on purpose


def test_windows_of_other_lengths(tmp_path: Path) -> None:
    """Shorter ones are of the stretches that hold a whole window; each place is as likely as any other."""
    genome = make_genome(tmp_path / "a.fa", {"a": 60, "b": 100, "c": 130})
    with pytest.warns(GenosparseWarning, match="60 bases are in stretches shorter"):
        corpus = Corpus([genome], validation=0, context=100)
    random = np.random.default_rng(0)
    text = {name: genome.fetch(Interval(name, 0, length)) for name, length in genome.contigs.items()}
    places = []
    for _ in range(4000):
        letters = "".join("=ACMGRSVTWYHKDBN"[token] for token in corpus.draw(random, 41).tokens)
        assert letters not in text["a"]
        places.append(text["b"].find(letters) if letters in text["b"] else 60 + text["c"].find(letters))
    times = np.bincount(places)
    assert len(times) == 150
    assert times.min() > 5
    assert len(corpus.draw(random, 120).tokens) == 120
    with pytest.raises(ConfigError, match=r"no training window of 131 bases fits: .* has 130 bases"):
        corpus.draw(random, 131)


def test_a_hundred_thousand_contigs(tmp_path: Path) -> None:
    """As many as a plant's draft assembly has: seconds to set up, and no longer to draw from than from a few."""
    letters = "".join(np.random.default_rng(0).choice(list("ACGTacgtN"), 4096).tolist())
    path = tmp_path / "draft.fa"
    with path.open("w") as file:
        for number in range(100_000):
            start, size = number * 37 % 3500, 100 + number % 300
            file.write(f">contig_{number}\n{letters[start : start + size]}\n")
    genome = Genome(path)
    started = time.process_time()
    tokens = read_tokens(genome, tmp_path / "cache")
    corpus = Corpus(
        [genome], validation=0.1, validation_blocks=ValidationBlocks(size=300), context=100, max_n=0.5,
        tokens=[tokens], sampling=Sampling(by="sqrt"),
    )  # fmt: skip
    assert time.process_time() - started < 30
    assert 0.08 < sum(span.length for span in corpus.held_out) / sum(genome.contigs.values()) < 0.12
    few = Corpus([make_genome(tmp_path / "few.fa", {"a": 5000})], validation=0, context=100)

    def seconds(of: Corpus) -> float:
        random = np.random.default_rng(0)
        started = time.process_time()
        for _ in range(2000):
            of.draw(random)
        return time.process_time() - started

    seconds(few)
    assert min(seconds(corpus) for _ in range(3)) < 4 * min(seconds(few) for _ in range(3))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_share_what_is_mapped(tmp_path: Path, start: str) -> None:
    genome = make_genome(tmp_path / "a.fa", {"a": 50_000})
    corpus = Corpus([genome], validation=0, context=64, tokens=[read_tokens(genome, tmp_path / "cache")])
    assert len(pickle.dumps(corpus)) < 5000
    examples = MaskedWindows(corpus, MaskingSettings(), seed=3)
    loader = DataLoader(examples, batch_sampler=[[0, 7], [10**9, 1]], num_workers=1, multiprocessing_context=start)
    batches = list(loader)
    for batch, indices in zip(batches, ((0, 7), (10**9, 1)), strict=True):
        for row, index in enumerate(indices):
            assert all(part[row].equal(alone) for part, alone in zip(batch, examples[index], strict=True))


_MEMORY_PROGRAM = """
import sys, numpy as np
from pathlib import Path
from genosparse.pretraining import Corpus
from genosparse.readers import Genome, read_tokens

def megabytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024

before, most = megabytes(), 0
genome = Genome(sys.argv[1])
for _ in range(2):  # made, then found
    tokens = read_tokens(genome, Path(sys.argv[2]) if sys.argv[2] else None)
    corpus = Corpus([genome], validation=0.1, context=1024, tokens=[tokens])
    random = np.random.default_rng(0)
    for _ in range(2000):
        corpus.draw(random)
    most = max(most, megabytes())
print(most - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_genome(tmp_path: Path) -> None:
    """120 Mb: 9/8 bytes each, 128.7 MiB, in memory, and next to none of the process's own with the cache."""
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 1_000_000).tolist())
    with (tmp_path / "large.fa").open("w") as file:
        for number in range(3):
            file.write(f">{number}\n" + letters * 40 + "\n")
    grown = {}
    for cache in ("", tmp_path / "cache"):
        command = [sys.executable, "-c", _MEMORY_PROGRAM, tmp_path / "large.fa", cache]
        grown[bool(cache)] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown[False] > 128.7
    assert grown[True] < 40
