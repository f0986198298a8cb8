"""Embeddings of an encoder that takes channels of alignments."""

import numpy as np
import pytest
import torch
from sam_files import write_sample

import genosparse as gs
from genosparse.attention import SparsePattern
from genosparse.channels import CHANNELS, reverse_complement_channels
from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.readers import GenomeChannels
from genosparse.tokenizers import NucleotideTokenizer

CONTIGS = {"one": 300, "two": 120}


def encoder_of(*channels: str) -> gs.Encoder:
    torch.manual_seed(0)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    config = gs.EncoderConfig(
        d_model=16, num_layers=2, num_heads=2, patterns=(pattern,), max_length=300, channels=channels
    )
    encoder = gs.Encoder(config).eval()
    if channels:
        torch.nn.init.normal_(encoder.channel_projection.weight)
    return encoder


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[gs.Genome, gs.Alignments]:
    fasta, bam = write_sample(tmp_path_factory.mktemp("sample"), CONTIGS)
    return gs.Genome(fasta, circular=["two"]), gs.Alignments(bam)


def hidden_of(encoder: gs.Encoder, genome: gs.Genome, alignments: gs.Alignments, interval: gs.Interval) -> np.ndarray:
    """One interval of the plus strand in a call of its own, ``[length, d_model]``."""
    tokens = torch.from_numpy(genome.tokens(interval))[None]
    channels = torch.from_numpy(alignments.channels(interval, encoder.config.channels).values)[None]
    with torch.inference_mode():
        return encoder(tokens, channels=channels)[0].numpy()


@pytest.mark.parametrize("names", [CHANNELS, ("depth", "base_quality")])
def test_rows_are_those_of_single_calls(sample: tuple[gs.Genome, gs.Alignments], names: tuple[str, ...]) -> None:
    genome, alignments = sample
    encoder = encoder_of(*names)
    intervals = [gs.Interval("one", 20, 80), gs.Interval("two", 0, 33), gs.Interval("one", 299, 300)]
    found = gs.embed(encoder, genome, intervals, pool="base", alignments=alignments)
    expected = [hidden_of(encoder, genome, alignments, interval) for interval in intervals]
    np.testing.assert_allclose(found.embedding, np.concatenate(expected), atol=1e-5)
    with pytest.warns(GenosparseWarning, match="takes channels of alignments .* given none: all count as 0"):
        without = gs.embed(encoder, genome, intervals, pool="base")
    assert np.abs(without.embedding - found.embedding).max() > 0.1
    shared = GenomeChannels(alignments, genome, names)
    again = gs.embed(encoder, genome, intervals, pool="base", alignments=shared)
    np.testing.assert_array_equal(again.embedding, found.embedding)


def test_strands(sample: tuple[gs.Genome, gs.Alignments]) -> None:
    """Of the other strand both the bases and the channels are turned."""
    genome, alignments = sample
    encoder = encoder_of(*CHANNELS)
    plus, minus = gs.Interval("one", 20, 80), gs.Interval("one", 20, 80, "-")
    tokens = NucleotideTokenizer().reverse_complement(genome.tokens(plus))
    channels = reverse_complement_channels(alignments.channels(plus).values)
    with torch.inference_mode():
        other = encoder(torch.from_numpy(tokens)[None], channels=torch.from_numpy(channels)[None])[0].numpy()
    found = gs.embed(encoder, genome, [minus], pool="base", alignments=alignments)
    np.testing.assert_allclose(found.embedding, other, atol=1e-5)
    both = gs.embed(encoder, genome, [plus, minus], pool="base", both_strands=True, alignments=alignments)
    mean = (hidden_of(encoder, genome, alignments, plus) + other[::-1]) / 2
    np.testing.assert_allclose(both.embedding, np.concatenate([mean, mean[::-1]]), atol=1e-5)


def test_over_the_end_of_a_circular_contig(sample: tuple[gs.Genome, gs.Alignments]) -> None:
    genome, alignments = sample
    encoder = encoder_of(*CHANNELS)
    over = gs.Interval("two", 100, 150)
    found = gs.embed(encoder, genome, [over], pool="base", alignments=alignments)
    values = [alignments.channels(gs.Interval("two", *place)).values for place in ((100, 120), (0, 30))]
    with torch.inference_mode():
        expected = encoder(
            torch.from_numpy(genome.tokens(over))[None], channels=torch.from_numpy(np.concatenate(values))[None]
        )[0]
    np.testing.assert_allclose(found.embedding, expected.numpy(), atol=1e-5)


def test_refused(sample: tuple[gs.Genome, gs.Alignments]) -> None:
    genome, alignments = sample
    interval = [gs.Interval("one", 0, 10)]
    with pytest.raises(ConfigError, match="the model takes no channels of alignments; leave alignments= out"):
        gs.embed(encoder_of(), genome, interval, alignments=alignments)
    with pytest.raises(ConfigError, match="the channels are depth; the model takes base_quality, depth"):
        gs.embed(
            encoder_of("base_quality", "depth"),
            genome,
            interval,
            alignments=GenomeChannels(alignments, genome, ["depth"]),
        )
