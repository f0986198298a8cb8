"""Channels of alignments in training windows and held-out ones: of the right bases, and never at a target."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sam_files import write_sample

import genosparse as gs
from genosparse.attention import SparsePattern
from genosparse.channels import CHANNELS, reverse_complement_channels
from genosparse.errors import ConfigError, FileFormatError, GenosparseWarning
from genosparse.pretraining import Corpus, HeldOut, MaskingSettings, TrainerSettings, evaluate, mask_window
from genosparse.pretraining.loop import _batches
from genosparse.pretraining.masking import NO_TARGET, MaskedWindows
from genosparse.pretraining.windows import Window
from genosparse.readers import GenomeChannels
from genosparse.tokenizers import MASK, NucleotideTokenizer

CONTIGS = {"one": 900, "two": 400}


@pytest.fixture
def sample(tmp_path: Path) -> tuple[gs.Genome, GenomeChannels]:
    fasta, bam = write_sample(tmp_path, CONTIGS)
    genome = gs.Genome(fasta)
    return genome, GenomeChannels(gs.Alignments(bam), genome)


def corpus_of(sample: tuple[gs.Genome, GenomeChannels], **changes: object) -> Corpus:
    genome, channels = sample
    settings = {"validation": 0.2, "context": 64, "channels": [channels], **changes}
    return Corpus([genome], **settings)  # type: ignore[arg-type]  # a plain dictionary


def test_windows_have_the_channels_of_their_place(sample: tuple[gs.Genome, GenomeChannels]) -> None:
    genome, channels = sample
    corpus = corpus_of(sample)
    texts = {contig: genome.fetch(gs.Interval(contig, 0, length)) for contig, length in CONTIGS.items()}
    random = np.random.default_rng(0)
    for _ in range(50):
        window = corpus.draw(random)
        text = NucleotideTokenizer().decode(window.tokens)
        (place,) = [(contig, found) for contig in texts if (found := texts[contig].find(text)) >= 0]
        expected = channels.values(gs.Interval(place[0], place[1], place[1] + 64))
        assert np.array_equal(window.channels, expected)
        assert window.channel_names == CHANNELS


def test_genomes_without_alignments_have_zeros(sample: tuple[gs.Genome, GenomeChannels], tmp_path: Path) -> None:
    genome, channels = sample
    (tmp_path / "other.fa").write_text(f">other\n{'ACGTT' * 100}\n")
    other = gs.Genome(tmp_path / "other.fa")
    corpus = Corpus([other, genome], validation=0.2, context=64, channels=[None, channels])
    random = np.random.default_rng(0)
    windows = [corpus.draw(random) for _ in range(60)]
    is_other = ["ACGTTACGTT" in NucleotideTokenizer().decode(window.tokens) for window in windows]
    assert 0 < sum(is_other) < 60
    for window, zero in zip(windows, is_other, strict=True):
        assert window.channels.shape == (64, len(CHANNELS))
        assert window.channels.any() != zero


def test_other_strand_of_a_window(sample: tuple[gs.Genome, GenomeChannels]) -> None:
    window = corpus_of(sample).draw(np.random.default_rng(0))
    turned = window.reverse_complement()
    assert np.array_equal(turned.channels, reverse_complement_channels(window.channels))
    back = turned.reverse_complement()
    assert np.array_equal(back.tokens, window.tokens)
    np.testing.assert_allclose(back.channels, window.channels, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_hidden_at_every_target_and_nowhere_else(reverse: bool) -> None:
    """At what is shown as MASK, as a random base and as it is alike."""
    random = np.random.default_rng(0)
    tokens = random.choice(np.array([1, 2, 4, 8, 15], np.uint8), 20_000)
    channels = random.random((20_000, len(CHANNELS)), np.float32) + 0.5
    window = Window(tokens, np.zeros(20_000, bool), channels, CHANNELS)
    settings = MaskingSettings(reverse_complement=reverse, channel_dropout=0.0)
    masked = mask_window(window, settings, np.random.default_rng(2))
    is_target = masked.classes != NO_TARGET
    shown = window if np.array_equal(masked.tokens[~is_target], tokens[~is_target]) else window.reverse_complement()
    assert reverse == (shown is not window)
    for kind in (masked.tokens == 16, masked.tokens == shown.tokens, masked.tokens != shown.tokens):
        assert (kind & is_target).sum() > 100
        assert not masked.channels[kind & is_target].any()
    assert np.array_equal(masked.channels[~is_target], shown.channels[~is_target])


def test_absent_channels_do_not_tell_the_targets() -> None:
    """Most bases that are shown without channels are none to predict; some windows have none at all."""
    random = np.random.default_rng(0)
    tokens = random.choice(np.array([1, 2, 4, 8], np.uint8), 5_000)
    channels = random.random((5_000, len(CHANNELS)), np.float32) + 0.5
    window = Window(tokens, np.zeros(5_000, bool), channels, CHANNELS)
    dark_targets = dark = without = 0
    for index in range(200):
        masked = mask_window(window, MaskingSettings(), np.random.default_rng(index))
        assert masked.channels is not None
        is_dark = ~masked.channels.any(axis=1)
        assert is_dark[masked.classes != NO_TARGET].all()
        if is_dark.all():
            without += 1
            continue
        is_dark &= masked.tokens != MASK
        dark += int(is_dark.sum())
        dark_targets += int((is_dark & (masked.classes != NO_TARGET)).sum())
    assert 10 < without < 60
    assert 0 < dark_targets < 0.3 * dark
    with pytest.raises(ConfigError, match=r"data.masking.channel_dropout=1.5"):
        MaskingSettings(channel_dropout=1.5)


def test_what_goes_into_the_model_never_tells_a_target(sample: tuple[gs.Genome, GenomeChannels]) -> None:
    """The tensors of batches: the likeliest base of the reads is seen beside the targets, and not at them."""
    examples = MaskedWindows(corpus_of(sample), MaskingSettings(rate=0.3), seed=1)
    batches = _batches(examples, 0, 64, TrainerSettings(max_steps=1, batch_bases=640))
    seen = 0
    for _ in range(10):
        tokens, classes, _, channels = next(batches)
        assert channels.shape == (10, 64, len(CHANNELS))
        assert channels.dtype == torch.float32
        at = classes != NO_TARGET
        assert not channels[at].any()
        known = ~at & (channels[..., 0] > 3)
        bases = torch.tensor([1, 2, 4, 8])[channels[..., 1:5].argmax(-1)]
        assert (bases == tokens)[known].float().mean() > 0.9
        seen += int(known.sum())
    assert seen > 2000


@pytest.mark.parametrize("reverse", [False, True])
def test_hidden_at_held_out_sites(sample: tuple[gs.Genome, GenomeChannels], reverse: bool) -> None:
    genome, channels = sample
    held_out = HeldOut(corpus_of(sample), seed=0)
    texts = {contig: genome.fetch(gs.Interval(contig, 0, length)) for contig, length in CONTIGS.items()}
    for batch in held_out.batches(3, reverse=reverse):
        for shown, classes, values in zip(*(part.numpy() for part in batch), strict=True):
            sites = classes != NO_TARGET
            assert not values[sites].any()
            whole = np.where(sites, np.array([1, 2, 4, 8], np.uint8)[classes], shown)
            strand = NucleotideTokenizer().reverse_complement(whole) if reverse else whole
            text = NucleotideTokenizer().decode(strand)
            (place,) = [(contig, found) for contig in texts if (found := texts[contig].find(text)) >= 0]
            interval = gs.Interval(place[0], place[1], place[1] + 64, "-" if reverse else "+")
            expected = channels.values(interval)
            assert np.array_equal(values[~sites], expected[~sites])


def make_encoder() -> gs.Encoder:
    torch.manual_seed(0)
    pattern = SparsePattern(window=13, stride=32, num_global=1)
    config = gs.EncoderConfig(
        d_model=32, num_layers=2, num_heads=2, patterns=(pattern,), max_length=64, channels=CHANNELS
    )
    encoder = gs.Encoder(config)
    torch.nn.init.normal_(encoder.channel_projection.weight)
    return encoder


def test_reads_at_the_targets_alone_change_nothing(tmp_path: Path) -> None:
    """Two files of alignments that differ at the held-out sites alone: not a bit of the measure differs."""
    contigs = {"one": 960, "two": 320}  # whole windows are held out: in one that reaches back, others' sites are seen
    fasta, bam = write_sample(tmp_path, contigs)
    genome = gs.Genome(fasta)
    held_out = HeldOut(Corpus([genome], validation=0.2, context=64), seed=0)
    where: dict[str, set[int]] = {"one": set(), "two": set()}
    texts = {contig: genome.fetch(gs.Interval(contig, 0, length)) for contig, length in contigs.items()}
    for shown, classes, _ in held_out.batches(1):
        at = classes[0].numpy()
        whole = np.where(at != NO_TARGET, np.array([1, 2, 4, 8], np.uint8)[at], shown[0].numpy())
        text = NucleotideTokenizer().decode(whole)
        (place,) = [(contig, found) for contig in texts if (found := texts[contig].find(text)) >= 0]
        where[place[0]] |= {place[1] + site for site in np.flatnonzero(at != NO_TARGET).tolist()}
    assert sum(map(len, where.values())) == held_out.num_sites > 10

    def change(contig: str, start: int, bases: list[str], qualities: list[str]) -> None:
        for place in range(len(bases)):
            if start + place in where[contig]:
                bases[place], qualities[place] = "T" if bases[place] == "A" else "A", "#"

    _, changed = write_sample(tmp_path, contigs, change=change, name="changed")
    encoder = make_encoder()
    measured = []
    for path in (bam, changed):
        channels = GenomeChannels(gs.Alignments(path), genome)
        assert channels.values(gs.Interval("one", 0, 900)).any()
        held_out = HeldOut(Corpus([genome], validation=0.2, context=64, channels=[channels]), seed=0)
        measured.append(evaluate(encoder, held_out, batch_windows=3, both_strands=True))
    values = [
        GenomeChannels(gs.Alignments(path), genome).values(gs.Interval("one", 768, 960)) for path in (bam, changed)
    ]
    assert (values[0] != values[1]).any()
    assert measured[0] == measured[1]
    plain = evaluate(encoder, HeldOut(Corpus([genome], validation=0.2, context=64), seed=0), batch_windows=3)
    assert abs(plain["loss"] - evaluate(encoder, held_out, batch_windows=3)["loss"]) > 1e-3


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_met_on_the_way_is_one_line(sample: tuple[gs.Genome, GenomeChannels], workers: int) -> None:
    class Damaged(MaskedWindows):
        def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
            if index > 20:
                raise FileFormatError("reads.bam is truncated: fetch it again")
            return super().__getitem__(index)

    examples = Damaged(corpus_of(sample), MaskingSettings(), seed=1)
    batches = _batches(examples, 0, 64, TrainerSettings(max_steps=1, batch_bases=640, workers=workers))
    expected = [
        tensor.sum() for tensor in next(_batches(examples, 0, 64, TrainerSettings(max_steps=1, batch_bases=640)))
    ]
    assert [tensor.sum() for tensor in next(batches)] == expected
    with pytest.raises(FileFormatError, match=r"^reads\.bam is truncated: fetch it again$"):
        list(batches)


def test_contigs_without_alignments_are_told_once(sample: tuple[gs.Genome, GenomeChannels], tmp_path: Path) -> None:
    genome, _ = sample
    (tmp_path / "more.fa").write_text(genome.path.read_text() + f">three\n{'ACGTT' * 100}\n")
    more = gs.Genome(tmp_path / "more.fa")
    channels = GenomeChannels(gs.Alignments(tmp_path / "sample.bam"), more)
    with pytest.warns(
        GenosparseWarning, match=r"contig 'three' of .*more\.fa is not in .*sample\.bam: its channels are 0"
    ):
        corpus = corpus_of((more, channels))
    assert HeldOut(corpus, 0).num_sites > 0
