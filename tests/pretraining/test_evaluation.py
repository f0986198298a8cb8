"""Held-out sites, and the measure taken at them."""

import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.baselines import MAX_FLANK
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError
from genosparse.intervals import Interval
from genosparse.pretraining import Corpus, HeldOut, evaluate
from genosparse.pretraining.evaluation import site_log_probs
from genosparse.pretraining.masking import NO_TARGET
from genosparse.readers import Genome
from genosparse.tokenizers import MASK, NucleotideTokenizer


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    random = np.random.default_rng(0)
    with (tmp_path / "ref.fa").open("w") as file:
        for name, length in {"train": 2000, "held": 1030, "short": 70}.items():
            file.write(f">{name}\n{''.join(random.choice(list('ACGTN'), length, p=[0.24, 0.25, 0.25, 0.25, 0.01]))}\n")
    with Genome(tmp_path / "ref.fa") as genome:
        return Corpus([genome], validation=["held", "short"], context=100)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    encoder = Encoder(EncoderConfig(d_model=32, num_layers=1, num_heads=2, patterns=(pattern,), max_length=200))
    with torch.no_grad():
        encoder.head.linear.weight.normal_()
    return encoder


def test_sites_are_sparse_known_and_each_measured_once(corpus: Corpus) -> None:
    held_out = HeldOut(corpus, seed=3)
    total = 0
    for shown, classes, _ in held_out.batches(4):
        for row, truth in zip(shown.numpy(), classes.numpy(), strict=True):
            sites = np.flatnonzero(truth != NO_TARGET)
            assert (row[sites] == MASK).all()
            assert (row != MASK)[truth == NO_TARGET].all()
            assert (np.diff(sites) > MAX_FLANK).all()
            total += len(sites)
    assert total == held_out.num_sites == len(held_out.contexts)
    # One per 16 bases of 1,030 + 70, less the one per cent that are N.
    assert 60 <= total <= 70


def test_sites_depend_on_the_seed_alone(corpus: Corpus) -> None:
    same = [HeldOut(corpus, seed=3).contexts, HeldOut(corpus, seed=3).contexts]
    assert np.array_equal(*same)
    assert not np.array_equal(same[0], HeldOut(corpus, seed=4).contexts)


def test_sites_are_the_same_in_whatever_pieces_they_are_read(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = HeldOut(corpus, seed=3)
    monkeypatch.setattr("genosparse.pretraining.evaluation._PIECE", 48)
    pieces = HeldOut(corpus, seed=3)
    for (span, sites), (other, others) in zip(whole.stretches, pieces.stretches, strict=True):
        assert span == other
        assert np.array_equal(sites, others)
    assert np.array_equal(whole.contexts, pieces.contexts)


def test_windows_of_any_length_have_the_same_sites(corpus: Corpus, encoder: Encoder) -> None:
    """Each site once and in order, so that figures with one context and another are of the same bases."""
    held_out = HeldOut(corpus, seed=3)
    truth = held_out.contexts[:, MAX_FLANK]
    for context in (17, 64, 100, 200):
        batches = list(site_log_probs(encoder, held_out, batch_windows=3, context=context, both_strands=True))
        assert torch.cat([batch.truth for batch in batches]).tolist() == truth.tolist()
        windows = [shown for shown, *_ in held_out.batches(1, context=context)]
        assert len(windows) == held_out.num_windows(context)
        assert {window.shape[1] for window in windows} == {context}
    part = list(site_log_probs(encoder, held_out, batch_windows=3, context=200, windows=slice(2, 5)))
    whole = torch.cat([batch.one_strand for batch in site_log_probs(encoder, held_out, batch_windows=3, context=200)])
    skipped = sum(
        int((classes != NO_TARGET).sum()) for _, classes, _ in held_out.batches(2, context=200, windows=slice(2))
    )
    found = torch.cat([batch.one_strand for batch in part])
    torch.testing.assert_close(found, whole[skipped : skipped + len(found)])


@pytest.mark.parametrize("most", [1, 5, 20, 40, 1000])
def test_fewer_sites_are_those_of_windows_spread_evenly(corpus: Corpus, most: int) -> None:
    whole, fewer = HeldOut(corpus, seed=3), HeldOut(corpus, seed=3, max_sites=most)
    assert fewer.num_sites == min(whole.num_sites, fewer.num_sites) <= most
    assert fewer.num_sites > min(most, whole.num_sites) - 2 * 7  # a window has up to seven
    everything = {(span, site) for span, sites in whole.stretches for site in sites.tolist()}
    for span, sites in fewer.stretches:
        assert {(span, site) for site in sites.tolist()} <= everything
    if most > 5:  # whole windows
        counts = {id(span): np.bincount(sites // 100, minlength=11) for span, sites in whole.stretches}
        spans = {span: id(span) for span, _ in whole.stretches}
        for span, sites in fewer.stretches:
            found = np.bincount(sites // 100, minlength=11)
            assert ((found == 0) | (found == counts[spans[span]])).all()


def test_sites_are_as_sparse_as_asked(corpus: Corpus) -> None:
    (_, sites), *_ = HeldOut(corpus, seed=3, spacing=50).stretches
    assert (np.diff(sites) > 25).all()
    assert 15 <= len(sites) <= 21
    with pytest.raises(ConfigError, match="site_spacing=15 is too small"):
        HeldOut(corpus, seed=3, spacing=15)


def test_measure_equals_a_site_by_site_count(corpus: Corpus, encoder: Encoder) -> None:
    held_out = HeldOut(corpus, seed=3)
    losses, hits = [], []
    with torch.no_grad():
        for shown, classes, _ in held_out.batches(1):
            logits = encoder.base_logits(shown)[0].log_softmax(-1)
            for site in (classes[0] != NO_TARGET).nonzero().flatten().tolist():
                losses.append(-float(logits[site, classes[0, site]]))
                hits.append(int(logits[site].argmax()) == int(classes[0, site]))
    metrics = evaluate(encoder, held_out, batch_windows=5)
    assert metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["bits_per_base"] == pytest.approx(np.mean(losses) / math.log(2), abs=1e-5)
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))


def test_both_strands_average_the_log_probabilities_of_the_same_site(corpus: Corpus, encoder: Encoder) -> None:
    held_out = HeldOut(corpus, seed=3)
    reverse_complement = NucleotideTokenizer().reverse_complement
    losses = []
    with torch.no_grad():
        for shown, classes, _ in held_out.batches(1):
            length = int((shown[0] != 0).sum())  # without the padding of a short contig
            tokens = shown[0, :length].numpy()
            forward = encoder.base_logits(torch.from_numpy(tokens)[None])[0].log_softmax(-1)
            turned = torch.from_numpy(reverse_complement(tokens).copy())[None]
            backward = encoder.base_logits(turned)[0].log_softmax(-1).flip(0, 1)
            both = ((forward + backward) / 2).log_softmax(-1)
            sites = (classes[0] != NO_TARGET).nonzero().flatten()
            losses += (-both[sites, classes[0, sites]]).tolist()
    metrics = evaluate(encoder, held_out, batch_windows=5, both_strands=True)
    assert metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_fewer_windows_are_spread_over_all(corpus: Corpus) -> None:
    held_out = HeldOut(corpus, seed=3)
    windows = [shown for shown, *_ in held_out.batches(1)]
    picked = [shown for shown, *_ in held_out.batches(1, most_windows=3)]
    assert [next(n for n, window in enumerate(windows) if window.equal(pick)) for pick in picked] == [0, 6, 11]


def test_model_stays_in_training_mode(corpus: Corpus, encoder: Encoder) -> None:
    evaluate(encoder.train(), HeldOut(corpus, seed=3), batch_windows=8)
    assert encoder.training


def test_baselines_never_see_held_out_sequence(tmp_path: Path) -> None:
    """Held out is a poly-A that training lacks altogether: a model that peeked would know it."""
    random = np.random.default_rng(0)
    train = "".join(random.choice(list("CG"), 5000))
    (tmp_path / "ref.fa").write_text(f">train\n{train}\n>held\n{'A' * 500}\n")
    with Genome(tmp_path / "ref.fa") as genome:
        assert genome.fetch(Interval("held", 0, 3)) == "AAA"
        baselines = HeldOut(Corpus([genome], validation=["held"], context=100), seed=0).baselines()
    assert min(baselines.values()) >= 2


@pytest.mark.parametrize("validation", [0.001, 0.2, ["unknown"]])
def test_held_out_sequence_without_a_site_is_told(tmp_path: Path, validation: float | list[str]) -> None:
    """A fraction that rounds to no base, and held-out stretches of N alone."""
    (tmp_path / "ref.fa").write_text(f">one\n{'ACGT' * 40}{'N' * 40}\n>unknown\n{'N' * 300}\n")
    with Genome(tmp_path / "ref.fa") as genome:
        corpus = Corpus([genome], validation=validation, context=50)
    with pytest.raises(ConfigError, match=r"data\.validation=.* to measure at"):
        HeldOut(corpus, seed=0)


def test_one_strand_makes_no_reversed_batches(
    corpus: Corpus, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    batches = HeldOut.batches

    def counted(self: HeldOut, *arguments: int, **settings: bool) -> object:
        made.append(settings.get("reverse", False))
        return batches(self, *arguments, **settings)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(HeldOut, "batches", counted)
    held_out = HeldOut(corpus, seed=3)
    evaluate(encoder, held_out, batch_windows=5)
    assert made == [False]
    evaluate(encoder, held_out, batch_windows=5, both_strands=True)
    assert made == [False, False, True]


def test_many_short_windows_take_seconds(tmp_path: Path) -> None:
    (tmp_path / "ref.fa").write_text(f">train\n{'ACGT' * 50}\n>held\n{'ACGT' * 500_000}\n")
    with Genome(tmp_path / "ref.fa") as genome:
        corpus = Corpus([genome], validation=["held"], context=16)
    started = time.monotonic()
    assert HeldOut(corpus, seed=0).num_sites == 125_000
    assert time.monotonic() - started < 8  # every site looked at for every window took many times as long
