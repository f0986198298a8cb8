"""Scores of an encoder that takes channels of alignments: what is seen of the reads, and what is not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sam_files import sam_line, write_bam, write_sample

import genosparse as gs
from genosparse.attention import SparsePattern
from genosparse.channels import CHANNELS, reverse_complement_channels
from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.tokenizers import MASK, NucleotideTokenizer

CONTIGS = {"one": 300, "two": 90}
SITE = 140


def encoder_of(*channels: str) -> gs.Encoder:
    torch.manual_seed(0)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    config = gs.EncoderConfig(
        d_model=16, num_layers=2, num_heads=2, patterns=(pattern,), max_length=300, channels=channels
    )
    encoder = gs.Encoder(config).eval()
    with torch.no_grad():
        encoder.head.linear.weight.normal_()
        if channels:
            encoder.channel_projection.weight.normal_()
    return encoder


def variants_of(genome: gs.Genome, *places: tuple[str, int]) -> list[gs.Variant]:
    refs = [genome.fetch(gs.Interval(contig, at, at + 1)) for contig, at in places]
    return [
        gs.Variant(contig, at, ref, tuple("ACGT".replace(ref, "")))
        for (contig, at), ref in zip(places, refs, strict=True)
    ]


def test_llr_equals_single_calls(tmp_path: Path) -> None:
    fasta, bam = write_sample(tmp_path, CONTIGS)
    genome, alignments, encoder = gs.Genome(fasta), gs.Alignments(bam), encoder_of(*CHANNELS)
    variants = variants_of(genome, ("one", SITE), ("one", 3), ("two", 89))
    table = gs.score_variants(encoder, genome, variants, context=64, batch_bases=300, alignments=alignments)
    rows = iter(table["llr"].tolist())
    for variant, (start, end) in zip(variants, ((108, 172), (0, 64), (26, 90)), strict=True):
        window = gs.Interval(variant.contig, start, end)
        tokens, channels = genome.tokens(window), alignments.channels(window).values
        tokens[variant.position0 - start] = MASK
        log_probs = []
        for shown, values, site in (
            (tokens, channels, variant.position0 - start),
            (
                NucleotideTokenizer().reverse_complement(tokens),
                reverse_complement_channels(channels),
                end - 1 - variant.position0,
            ),
        ):
            with torch.no_grad():
                logits = encoder.base_logits(torch.from_numpy(shown)[None], channels=torch.from_numpy(values)[None])
            log_probs.append(logits[0, site].double().log_softmax(0).numpy())
        mean = (log_probs[0] + log_probs[1][::-1]) / 2
        for alt in variant.alts:
            assert next(rows) == pytest.approx(mean["ACGT".index(alt)] - mean["ACGT".index(variant.ref)], abs=1e-5)
    with pytest.warns(GenosparseWarning, match="given none"):
        without = gs.score_variants(encoder, genome, variants, context=64, batch_bases=300)
    assert np.abs(without["llr"] - table["llr"]).min() > 1e-4


@pytest.mark.parametrize("score", ["llr", "delta_pll", "embedding_l2"])
@pytest.mark.parametrize("offset", [0, 1])
def test_reads_at_the_site_change_nothing_and_those_beside_it_do(tmp_path: Path, offset: int, score: str) -> None:
    def change(contig: str, start: int, bases: list[str], qualities: list[str]) -> None:
        place = SITE + offset - start
        if contig == "one" and 0 <= place < len(bases):
            bases[place], qualities[place] = "T" if bases[place] == "A" else "A", "#"

    fasta, bam = write_sample(tmp_path, CONTIGS)
    _, changed = write_sample(tmp_path, CONTIGS, change=change, name="changed")
    genome, encoder = gs.Genome(fasta), encoder_of(*CHANNELS)
    interval = gs.Interval("one", 0, 300)
    differ = np.flatnonzero(
        (gs.Alignments(bam).channels(interval).values != gs.Alignments(changed).channels(interval).values).any(1)
    )
    assert differ.tolist() == [SITE + offset]
    scores = [
        gs.score_variants(
            encoder,
            genome,
            variants_of(genome, ("one", SITE)),
            scores=score,
            context=64,
            alignments=gs.Alignments(path),
        )
        for path in (bam, changed)
    ]
    if offset == 0:
        np.testing.assert_array_equal(scores[0][score], scores[1][score])
    else:
        assert np.abs(scores[0][score] - scores[1][score]).max() > 1e-4


def test_where_a_circular_contig_begins_makes_no_difference(tmp_path: Path) -> None:
    """A genome turned by 20 bases, and reads that lie within both."""
    fasta, _ = write_sample(tmp_path, CONTIGS)
    encoder = encoder_of("depth", "mapping_quality")
    sequence = gs.Genome(fasta).fetch(gs.Interval("two", 0, 90))
    (tmp_path / "turned.fa").write_text(f">two\n{sequence[20:] + sequence[:20]}\n")
    header = "@SQ\tSN:two\tLN:90\n"
    first = write_bam(
        tmp_path / "a.bam", [sam_line("r", 31, "40M", contig="two"), sam_line("s", 3, "12M", contig="two")], header
    )
    second = write_bam(
        tmp_path / "b.bam", [sam_line("r", 11, "40M", contig="two"), sam_line("s", 73, "12M", contig="two")], header
    )
    found = []
    for path, bam, shift in ((fasta, first, 0), (tmp_path / "turned.fa", second, 20)):
        genome = gs.Genome(path, circular=["two"])
        variants = variants_of(genome, *(("two", (at - shift) % 90) for at in (0, 5, 19, 20, 50, 89)))
        found.append(gs.score_variants(encoder, genome, variants, context=64, alignments=gs.Alignments(bam))["llr"])
    np.testing.assert_allclose(*found, atol=1e-5)


def test_a_model_without_channels_refuses(tmp_path: Path) -> None:
    fasta, bam = write_sample(tmp_path, CONTIGS)
    genome = gs.Genome(fasta)
    with pytest.raises(ConfigError, match="the model takes no channels of alignments"):
        gs.score_variants(
            encoder_of(), genome, variants_of(genome, ("one", 9)), context=64, alignments=gs.Alignments(bam)
        )
