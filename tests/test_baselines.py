"""k-mer baselines against counts made by hand and by slow, plain Python."""

import math
import tracemalloc

import numpy as np
import pytest

from genosparse import baselines
from genosparse.baselines import BaseCounts, flanks, kmer_baselines, kmer_probabilities
from genosparse.tokenizers import NucleotideTokenizer

encode = NucleotideTokenizer().encode
A, C, G, T = range(4)


def test_counts_by_hand_on_both_strands() -> None:
    """ACGT is its own reverse complement: A before C and after nothing, so each context counts twice."""
    table = BaseCounts(np.array([[A, 0, G], [C, 0, T], [A, 0, A]], np.uint8), 1)
    table.add(encode("ACGT"))
    found, known = table.counts()
    assert found.tolist() == [[0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    assert known.all()


@pytest.mark.parametrize("chunk", [150, 2**22])
@pytest.mark.parametrize("flank", [0, 1, 3, 5, 6, 8])
def test_counts_equal_those_of_plain_python(flank: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the sequence is beside the chunks that it is counted in."""
    monkeypatch.setattr(baselines, "_CHUNK", chunk)
    random = np.random.default_rng(flank)
    sequences = ["".join(random.choice(list("ACGTN"), p=[0.3, 0.2, 0.2, 0.28, 0.02], size=400)) for _ in range(2)]
    table: dict[tuple[str, str], int] = {}
    for sequence in sequences:
        for strand in (sequence, sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))):
            for at in range(flank, len(strand) - flank):
                around = strand[at - flank : at] + strand[at + 1 : at + 1 + flank]
                if "N" not in around + strand[at]:
                    table[around, strand[at]] = table.get((around, strand[at]), 0) + 1
    contexts = flanks(encode(sequences[0]), np.arange(400), 8)
    counts = BaseCounts(contexts, flank)
    for sequence in sequences:
        counts.add(encode(sequence))
    found, known = counts.counts()
    for at in range(400):
        around = sequences[0][max(at - flank, 0) : at] + sequences[0][at + 1 : at + 1 + flank]
        complete = len(around) == 2 * flank and "N" not in around
        assert known[at] == complete
        assert found[at].tolist() == [table.get((around, base), 0) if complete else 0 for base in "ACGT"]


def test_flanks_past_the_ends_are_unknown() -> None:
    assert flanks(encode("ACN"), np.array([0, 1]), 2).tolist() == [[4, 4, A, C, 4], [4, A, C, 4, 4]]


def test_bits_per_base_by_hand() -> None:
    """Training is AAAA (and TTTT): a site in poly-A is seen 2 of 2 times between As, plus one pseudocount each."""
    bits = kmer_baselines([encode("AAAA")], flanks(encode("AAAAAAAAA"), np.array([4])))
    assert bits["kmer_1"] == pytest.approx(-math.log2(3 / 6))
    assert bits["kmer_2"] == pytest.approx(2)  # no stretch of five to count
    assert bits["best_kmer"] == bits["kmer_1"]
    order_0 = (4 + 32 * 0.25) / (8 + 32)
    order_1 = (2 + 32 * order_0) / (2 + 32)
    assert bits["interpolated"] == pytest.approx(-math.log2(order_1))


def test_probabilities_by_site_by_hand() -> None:
    """As above, now of all four bases: two As and a pseudocount each; and what no context knows is alike for all."""
    contexts = flanks(encode("AAAAAAAAACG"), np.array([4, 10]))
    models = dict(kmer_probabilities([encode("AAAA")], contexts))
    assert list(models) == [*(f"kmer_{flank}" for flank in range(1, 7)), "interpolated"]
    assert models["kmer_1"].tolist() == [pytest.approx([3 / 6, 1 / 6, 1 / 6, 1 / 6]), [0.25] * 4]
    assert models["kmer_6"].tolist() == [[0.25] * 4] * 2
    for probabilities in models.values():
        np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_contigs_are_counted_alike_one_by_one_and_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """No context reaches from one contig into the next, whether contigs are longer or shorter than a chunk."""
    random = np.random.default_rng(0)
    contigs = [random.choice(np.array([1, 2, 4, 8], np.uint8), size) for size in (0, 1, 9, 40, 700, 16, 17, 3000)]
    contexts = flanks(np.concatenate(contigs), np.arange(1000))
    apart = [np.concatenate([contig, np.full(20, 15, np.uint8)]) for contig in contigs]
    expected = kmer_baselines([np.concatenate(apart)], contexts)
    assert kmer_baselines(contigs, contexts) == expected
    monkeypatch.setattr(baselines, "_CHUNK", 500)
    assert kmer_baselines(contigs, contexts) == expected


def test_memory_is_that_of_a_chunk_and_the_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_CHUNK", 2**14)
    training = np.random.default_rng(0).choice(np.array([1, 2, 4, 8], np.uint8), 4_000_000)
    contexts = flanks(training, np.arange(1000))
    for flank in (2, 8):
        tracemalloc.start()
        counts = BaseCounts(contexts, flank)
        counts.add(training)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(training) / 2  # bytes: less than half of what the sequence itself takes
        assert counts.counts()[0].sum() > 500


def test_no_site_at_all() -> None:
    counts = BaseCounts(np.empty((0, 17), np.uint8), 8)
    counts.add(encode("ACGT" * 10))
    assert [part.shape for part in counts.counts()] == [(0, 4), (0,)]


def test_random_sequence_has_two_bits() -> None:
    random = np.random.default_rng(0)
    training, held_out = (random.choice(np.array([1, 2, 4, 8], np.uint8), size) for size in (200_000, 20_000))
    bits = kmer_baselines([training], flanks(held_out, np.arange(20_000)))
    assert 1.99 < bits["best_kmer"] < 2.01
    assert 1.99 < bits["interpolated"] < 2.05


def test_known_figures_of_e_coli_536() -> None:
    """Last tenth held out: best single table 1.859 at 4 flanking bases, interpolated 1.835, as others computed them."""
    from genosparse.example_data import path
    from genosparse.intervals import Interval
    from genosparse.readers import Genome

    with Genome(path("ecoli536.fa.gz")) as genome:
        ((contig, length),) = genome.contigs.items()
        tokens = genome.tokens(Interval(contig, 0, length))
    cut = length - length // 10
    bits = kmer_baselines([tokens[:cut]], flanks(tokens, np.arange(cut + 8, length - 8)))
    assert bits["best_kmer"] == bits["kmer_4"] == pytest.approx(1.859, abs=0.002)
    assert bits["interpolated"] == pytest.approx(1.835, abs=0.002)
