"""How much of the held-out sequence was seen in training, against sets of strings."""

from pathlib import Path

import numpy as np
import pytest

from genosparse.errors import GenosparseWarning
from genosparse.pretraining import Corpus
from genosparse.pretraining.leakage import canonical_kmers, kmer_leakage, leakage
from genosparse.readers import Genome
from genosparse.tokenizers import NucleotideTokenizer

TOKENIZER = NucleotideTokenizer()


def kmers_of(text: str) -> list[str]:
    """By plain strings, of one strand or the other."""
    found = [text[at : at + 32] for at in range(len(text) - 31)]
    other = str.maketrans("ACGT", "TGCA")
    return [min(kmer, kmer.translate(other)[::-1]) for kmer in found if not set(kmer) - set("ACGT")]


def numbered(kmer: str) -> int:
    return sum("ACGT".index(base) << 2 * (31 - at) for at, base in enumerate(kmer))


def test_kmers_equal_those_of_strings() -> None:
    """Over pieces' seams, around N and other codes, in short sequences and across none of their ends."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGT"), size)) for size in (70_000, 31, 32, 33, 0, 500)]
    for at in (0, 31, 32, 100, 32_767, 32_768, 32_800, 69_968):
        texts[0] = texts[0][:at] + "NRY"[at % 3] + texts[0][at + 1 :]
    texts.append(texts[5][:100] + "N" * 40 + texts[5][100:])
    found = np.concatenate(list(canonical_kmers([TOKENIZER.encode(text) for text in texts])))
    assert sorted(found.tolist()) == sorted(numbered(kmer) for text in texts for kmer in kmers_of(text))


@pytest.mark.parametrize("most_kmers", [10**6, 3000])
def test_share_equals_that_of_sets(most_kmers: int) -> None:
    random = np.random.default_rng(0)
    training = ["".join(random.choice(list("ACGT"), 20_000)) for _ in range(2)]
    new = "".join(random.choice(list("ACGT"), 12_000))
    other = training[1][3000:9000].translate(str.maketrans("ACGT", "TGCA"))[::-1]
    held_out = [new, training[0][5000:7000] * 2, "N".join([other[:3000], other[3000:]]), "ACG" * 9]
    result = kmer_leakage(
        [TOKENIZER.encode(text) for text in held_out],
        [TOKENIZER.encode(text) for text in training],
        most_kmers=most_kmers,
    )
    assert result is not None
    seen = {kmer for text in training for kmer in kmers_of(text)}
    wanted = [kmer for text in held_out for kmer in kmers_of(text)]
    share = sum(kmer in seen for kmer in wanted) / len(wanted)
    assert 0.4 < share < 0.5
    if most_kmers > 10**5:
        assert result.share == share
        assert result.num_kmers == len(wanted)
        assert str(result) == f"{share:.2%} of its 32-mers are in the training sequence too, on either strand"
    else:
        assert result.num_kmers == pytest.approx(3000, rel=0.1)
        assert result.share == pytest.approx(share, abs=0.04)
        assert result.sampled == pytest.approx(3000 / sum(map(len, held_out)))
        assert str(result).endswith(f"on either strand, by a sample of {result.num_kmers:,}")


def test_nothing_to_look_up_is_none() -> None:
    training = [TOKENIZER.encode("ACGT" * 50)]
    for held_out in ([], ["ACGT" * 7], ["N" * 90], ["N".join(["ACGTA" * 6] * 4)]):
        assert kmer_leakage([TOKENIZER.encode(text) for text in held_out], training) is None
    assert kmer_leakage([TOKENIZER.encode("AACGT" * 20)], []) == (0, 69, 1)


def test_low_complexity_takes_no_memory() -> None:
    """A row of one k-mer that the hash takes is one k-mer, however long."""
    result = kmer_leakage([TOKENIZER.encode("A" * 3_000_000)], [TOKENIZER.encode("T" * 40)], most_kmers=10**9)
    assert result == (1, 2_999_969, 1)


def test_a_corpus_tells_its_own(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    repeat = "".join(random.choice(list("ACGT"), 500))
    unlike = ["".join(random.choice(list("ACGT"), 2000)) for _ in range(2)]
    (tmp_path / "a.fa").write_text(f">a\n{unlike[0]}{repeat}\n>b\n{unlike[1]}{repeat}\n")
    corpus = Corpus([Genome(tmp_path / "a.fa")], validation=["b"], context=64)
    result = leakage(corpus)
    assert result is not None
    assert result.share == (500 - 31) / (2500 - 31)
    assert leakage(Corpus([Genome(tmp_path / "a.fa")], validation=0, context=64)) is None


@pytest.mark.realdata
def test_two_strains_share_much(test_data: Path) -> None:
    """E. coli K-12 beside 536: 43.65 per cent of K-12's 32-mers, counted by Python's own sets."""
    paths = ["ecoli_k12/GCF_000005845.2_ASM584v2_genomic.fna.gz", "bacteria/Escherichia_coli_536_NC_008253.fna.gz"]
    with pytest.warns(GenosparseWarning, match="a bgzip copy is made"):
        held_out, training = (Genome(test_data / path) for path in paths)
    corpus = Corpus([training], validation=None, validation_genomes=[held_out], context=1024)
    result = leakage(corpus)
    assert result is not None
    assert result.share == pytest.approx(0.4365, abs=0.002)
