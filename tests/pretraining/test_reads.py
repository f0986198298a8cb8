"""Windows from reads: every read once, mates together, bounded memory, a measure on held-out reads."""

from pathlib import Path

import numpy as np
import pytest
from sam_files import HEADER, sam_line, write_bam

import genosparse as gs
from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.pretraining import HeldOut, MaskingSettings, ReadCorpus
from genosparse.pretraining.masking import NO_TARGET, MaskedWindows
from genosparse.tokenizers import MASK, PAD, NucleotideTokenizer

decode = NucleotideTokenizer().decode


def write_reads(path: Path, lengths: list[int], *, seed: int = 0, names: list[str] | None = None) -> list[str]:
    """Unmapped reads of random bases."""
    random = np.random.default_rng(seed)
    texts = ["".join(random.choice(list("ACGT"), length)) for length in lengths]
    names = names or [f"r{index}" for index in range(len(lengths))]
    lines = [
        sam_line(name, 0, "*", flags=4, contig="*", bases=text, qualities="I" * len(text))
        for name, text in zip(names, texts, strict=True)
    ]
    path.write_text("@HD\tVN:1.6\n" + "".join(f"{line}\n" for line in lines))
    return texts


def corpus_of(*paths: Path, filters: gs.ReadFilters | None = None, **changes: object) -> ReadCorpus:
    settings = {"validation": 0.2, "context": 64, **changes}
    return ReadCorpus([gs.Alignments(path, filters=filters) for path in paths], **settings)  # type: ignore[arg-type]


def training_reads(corpus: ReadCorpus) -> list[str]:
    return [text for part in corpus.training_sequences() for text in decode(part).split("=") if text]


def held_out_reads(corpus: ReadCorpus) -> list[str]:
    return [decode(corpus.tokens(span)) for span in corpus.held_out]


def test_every_read_is_on_one_side(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    texts = write_reads(tmp_path / "a.sam", random.integers(1, 300, 400).tolist())
    more = write_reads(tmp_path / "b.sam", random.integers(1, 300, 100).tolist(), seed=2)
    corpus = corpus_of(tmp_path / "a.sam", tmp_path / "b.sam")
    assert sorted(training_reads(corpus) + held_out_reads(corpus)) == sorted(texts + more)
    assert 60 < len(corpus.held_out) < 140
    assert (corpus.num_reads, corpus.num_bases) == (500, sum(map(len, texts + more)))
    assert corpus_of(tmp_path / "a.sam", validation=0).held_out == []
    assert corpus_of(tmp_path / "a.sam", validation=None).held_out == []


def test_mates_are_on_one_side(tmp_path: Path) -> None:
    names = [f"pair{index // 2}" for index in range(400)]
    texts = write_reads(tmp_path / "a.sam", [40] * 400, names=names)
    held = set(held_out_reads(corpus_of(tmp_path / "a.sam", context=40)))
    assert held
    assert all((texts[at] in held) == (texts[at + 1] in held) for at in range(0, 400, 2))


def test_windows_are_parts_of_reads_and_reach_every_base(tmp_path: Path) -> None:
    texts = write_reads(tmp_path / "a.sam", [200, 64, 20, 90])
    corpus = corpus_of(tmp_path / "a.sam", validation=0)
    random = np.random.default_rng(0)
    drawn = [decode(corpus.draw(random).tokens) for _ in range(4000)]
    seen = [np.zeros(len(text)) for text in texts]
    for window in drawn:
        (read,) = [index for index, text in enumerate(texts) if window in text]
        start = texts[read].find(window)
        assert len(window) == min(64, len(texts[read]))
        seen[read][start : start + len(window)] += 1
    # A read is drawn by its length, or by the context where it is shorter: its bases are seen alike, but near its ends.
    middle = [seen[0][60:140].mean(), seen[1].mean(), seen[2].mean()]
    assert max(middle) / min(middle) < 1.6
    assert all(counts.min() > 0 for counts in seen)


def test_short_reads_are_padded_and_padding_is_no_target(tmp_path: Path) -> None:
    write_reads(tmp_path / "a.sam", [20] * 30 + [64] * 30)
    examples = MaskedWindows(corpus_of(tmp_path / "a.sam"), MaskingSettings(rate=0.5), seed=0)
    lengths = set()
    for index in range(60):
        tokens, classes, weights = (tensor.numpy() for tensor in examples[index])
        assert tokens.shape == classes.shape == weights.shape == (64,)
        length = int((tokens != PAD).sum())
        lengths.add(length)
        assert (tokens[:length] != PAD).all()
        assert (classes[length:] == NO_TARGET).all()
        assert not weights[length:].any()
        assert (classes[:length] != NO_TARGET).any()
    assert lengths == {20, 64}
    again = MaskedWindows(corpus_of(tmp_path / "a.sam"), MaskingSettings(rate=0.5), seed=0)
    assert all(a.equal(b) for a, b in zip(again[7], examples[7], strict=True))


def test_context_and_padding_are_told(tmp_path: Path) -> None:
    write_reads(tmp_path / "a.sam", [50] * 20)
    with pytest.warns(GenosparseWarning, match=r"data\.context=64 is more than the longest read has; windows have 50"):
        assert corpus_of(tmp_path / "a.sam").context == 50
    write_reads(tmp_path / "b.sam", [10] * 200 + [64])
    with pytest.warns(GenosparseWarning, match=r"84% of what is computed is padding"):
        assert corpus_of(tmp_path / "b.sam", validation=0).context == 64


def test_held_out_sites_and_baselines_are_those_of_the_reads(tmp_path: Path) -> None:
    """Held-out reads are of the repeat that is trained on: k-mers know it, and reach over no read's end."""
    repeat = "ACGTTGCAAGTC" * 40
    lines = [
        sam_line(f"r{at}", 0, "*", flags=4, contig="*", bases=repeat[at % 12 : at % 12 + 30 + at % 90])
        for at in range(400)
    ]
    lines = [line.rsplit("\t", 1)[0] + "\t*" for line in lines]
    (tmp_path / "a.sam").write_text("@HD\tVN:1.6\n" + "".join(f"{line}\n" for line in lines))
    corpus = corpus_of(tmp_path / "a.sam")
    held_out = HeldOut(corpus, seed=0)
    truth = set(held_out_reads(corpus))
    total = 0
    for shown, classes, channels in held_out.batches(5):
        assert channels is None
        for row, at in zip(shown.numpy(), classes.numpy(), strict=True):
            sites = at != NO_TARGET
            total += int(sites.sum())
            assert (row[sites] == MASK).all()
            whole = np.where(sites, np.array([1, 2, 4, 8], np.uint8)[at], row)
            assert any(decode(whole[whole != PAD]) in text for text in truth)
    assert total == held_out.num_sites > 100
    assert held_out.baselines()["best_kmer"] < 0.4


def test_no_more_bases_than_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the lowest hashes of names, mates together, whatever the sizes of the batches."""
    monkeypatch.setattr("genosparse.readers.alignments.files._BATCH_BYTES", 1 << 12)
    random = np.random.default_rng(3)
    lengths = random.integers(20, 120, 1000).tolist()
    names = [f"pair{index % 500}" for index in range(1000)]
    texts = write_reads(tmp_path / "a.sam", lengths, names=names)
    with gs.Alignments(tmp_path / "a.sam") as alignments:
        batches = list(alignments.sequenced_tokens())
    assert len(batches) > 2
    hashes = np.concatenate([batch.name_hashes for batch in batches])
    for most in (20_000, 60_000):
        with pytest.warns(GenosparseWarning, match=rf"more than data\.max_read_bases={most:,} bases; .* are taken"):
            corpus = corpus_of(tmp_path / "a.sam", max_bases=most)
        taken = sorted(training_reads(corpus) + held_out_reads(corpus))
        pairs = np.argsort(hashes[:500])
        sums = np.cumsum([lengths[pair] + lengths[pair + 500] for pair in pairs])
        chosen = pairs[: int(np.searchsorted(sums, most, side="right"))]
        assert taken == sorted(texts[at] for pair in chosen for at in (pair, pair + 500))
        assert most - 240 < corpus.num_bases <= most
        # Which reads are held out has nothing to do with which are taken.
        assert 0.12 < len(corpus.held_out) / corpus.num_reads < 0.28
    assert corpus_of(tmp_path / "a.sam", max_bases=sum(lengths)).num_reads == 1000


def test_reads_of_n_are_passed_over(tmp_path: Path) -> None:
    lines = [
        sam_line("weak", 0, "*", flags=4, contig="*", bases="ACGT" * 10, qualities="#" * 40),
        sam_line("good", 0, "*", flags=4, contig="*", bases="AACC" * 10, qualities="I" * 40),
    ]
    bam = write_bam(tmp_path / "a.bam", lines, HEADER)
    corpus = corpus_of(bam, filters=gs.ReadFilters(min_base_quality=20), validation=0, context=40)
    random = np.random.default_rng(0)
    assert {decode(corpus.draw(random).tokens) for _ in range(50)} == {"AACC" * 10}
    with pytest.raises(ConfigError, match=r"1000 windows in a row .*lower data\.filters\.min_base_quality"):
        corpus_of(bam, filters=gs.ReadFilters(min_base_quality=60), validation=0, context=40)


def test_refused(tmp_path: Path) -> None:
    write_reads(tmp_path / "a.sam", [50, 50])
    with pytest.raises(ConfigError, match=r"names contigs, and reads are held out by their names; give a fraction"):
        corpus_of(tmp_path / "a.sam", validation=["chr1"])
    with pytest.raises(ConfigError, match=r"data\.validation=1\.5: expected a fraction .* of the reads"):
        corpus_of(tmp_path / "a.sam", validation=1.5)
    with pytest.raises(ConfigError, match=r"holds out all of the 2 reads"):
        corpus_of(tmp_path / "a.sam", validation=0.999999)
    with pytest.raises(ConfigError, match=r"data\.max_read_bases=49 is less than a read of .*a\.sam has"):
        corpus_of(tmp_path / "a.sam", max_bases=49)
    with pytest.raises(ConfigError, match=r"no read of .*a\.sam counts"):
        corpus_of(tmp_path / "a.sam", filters=gs.ReadFilters(require_flags=1))
    empty = write_bam(tmp_path / "empty.bam", [])
    with pytest.raises(ConfigError, match=r"no read of .*empty\.bam counts"):
        corpus_of(empty)
