"""llr against a loop that makes one forward pass per ALT, strand and allele, and nothing shared."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import (
    ConfigError,
    ContigNotFoundError,
    GenosparseWarning,
    ModelFormatError,
    ReferenceMismatchError,
)
from genosparse.readers import Genome, Variant
from genosparse.variant_effect import SCORES, VariantScores, score_variants
from genosparse.variant_effect.registry import resolve_scores
from genosparse.variant_effect.scores import BLOCK_RECORDS
from genosparse.variant_effect.windows import site_window

CONTEXT = 64
SMALL = {"context": CONTEXT, "batch_bases": 8 * CONTEXT}
CODES = {letter: code for code, letter in enumerate("=ACMGRSVTWYHKDBN")}
COMPLEMENT = str.maketrans("ACGTRYKMNSWBVDH", "TGCAYRMKNSWVBHD")
MASK = 16


@pytest.fixture(scope="module")
def sequences():
    letters = np.random.default_rng(0).choice(list("ACGT"), size=(4, 200))
    long, mixed, short, other = ("".join(row) for row in letters)
    mixed = mixed[:90].lower() + "NNNNNRYK" + mixed[98:]
    return {"long": long, "mixed": mixed, "short": short[:41], "chr9": other}


@pytest.fixture(scope="module")
def genome(sequences, tmp_path_factory):
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in sequences.items()))
    with Genome(path) as opened:
        yield opened


def make_encoder(trained_context=None, max_length=256):
    torch.manual_seed(1)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    config = EncoderConfig(
        d_model=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        patterns=(pattern,),
        max_length=max_length,
        trained_context=trained_context,
    )
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():  # larger than at the start of training, so that scores differ clearly
            if parameter.ndim > 1:
                parameter.mul_(4)
    return encoder


@pytest.fixture(scope="module")
def encoder():
    return make_encoder()


def snv(sequences, contig, position0, *alts):
    ref = sequences[contig][position0]
    return Variant(contig, position0, ref, alts or ("ACGT".replace(ref.upper(), "")[0],))


def naive_log_prob(encoder, window, site, base):
    """log P(base) at a masked site of a window given as letters: one row, no padding."""
    tokens = torch.tensor([[CODES[letter] for letter in window]], dtype=torch.uint8)
    tokens[0, site] = MASK
    with torch.no_grad():
        logits = encoder.base_logits(tokens)[0, site].double().tolist()
    return logits["ACGT".index(base)] - np.log(np.sum(np.exp(logits)))


def naive_llr(encoder, sequence, position0, ref, alt, context=CONTEXT):
    sequence = sequence.upper()
    start = position0 - context // 2
    if start + context > len(sequence):
        start = len(sequence) - context
    start = max(start, 0)
    window = sequence[start : start + context]
    site = position0 - start
    reverse = window.translate(COMPLEMENT)[::-1]
    ref, alt = ref.upper(), alt.upper()
    strands = [
        naive_log_prob(encoder, window, site, alt) - naive_log_prob(encoder, window, site, ref),
        naive_log_prob(encoder, reverse, len(window) - 1 - site, alt.translate(COMPLEMENT))
        - naive_log_prob(encoder, reverse, len(window) - 1 - site, ref.translate(COMPLEMENT)),
    ]
    return sum(strands) / 2


@pytest.mark.parametrize(
    "position0, length, context, window",
    [
        (100, 200, 64, (68, 132)),  # centred: 32 bases before
        (100, 200, 65, (68, 133)),
        (0, 200, 64, (0, 64)),  # shifted at the start
        (32, 200, 64, (0, 64)),
        (33, 200, 64, (1, 65)),
        (199, 200, 64, (136, 200)),  # shifted at the end
        (168, 200, 64, (136, 200)),
        (5, 41, 64, (0, 41)),  # the contig is shorter
        (5, 64, 64, (0, 64)),
        (7, 200, 1, (7, 8)),
    ],
)
def test_window_of_a_site(position0, length, context, window):
    assert site_window(position0, length, context) == window


@pytest.mark.parametrize(
    "position0, length, context, window",
    [
        (100, 200, 64, (68, 132)),
        (0, 200, 64, (168, 232)),
        (31, 200, 64, (199, 263)),
        (32, 200, 64, (0, 64)),
        (199, 200, 64, (167, 231)),
        (168, 200, 64, (136, 200)),
        (5, 41, 64, (26, 67)),  # the contig is shorter: once round, the site in its middle
        (40, 41, 64, (20, 61)),
        (0, 200, 1, (0, 1)),
    ],
)
def test_window_of_a_site_on_a_circular_contig(position0, length, context, window):
    assert site_window(position0, length, context, circular=True) == window


@pytest.mark.parametrize("contig", ["long", "short"])
def test_where_a_circular_contig_begins_makes_no_difference(encoder, sequences, tmp_path, contig):
    sequence, context = sequences[contig], 64
    turned = sequence[20:] + sequence[:20]
    (tmp_path / "a.fa").write_text(f">{contig}\n{sequence}\n")
    (tmp_path / "b.fa").write_text(f">{contig}\n{turned}\n")
    places = [0, 5, 19, 20, 21, len(sequence) - 1]
    at_first = [snv(sequences, contig, place, "ACGT".replace(sequence[place], "")[0]) for place in places]
    at_second = [replace(variant, position0=(variant.position0 - 20) % len(sequence)) for variant in at_first]
    with Genome(tmp_path / "a.fa", circular=True) as first, Genome(tmp_path / "b.fa", circular=True) as second:
        tables = [
            score_variants(encoder, genome, variants, context=context)
            for genome, variants in ((first, at_first), (second, at_second))
        ]
    assert set(tables[0].status) == {"scored"}
    np.testing.assert_allclose(tables[0]["llr"], tables[1]["llr"], atol=1e-5)
    with Genome(tmp_path / "a.fa") as line:
        assert abs(score_variants(encoder, line, at_first, context=context)["llr"][0] - tables[0]["llr"][0]) > 1e-4


@pytest.mark.parametrize("contig", ["long", "mixed", "short"])
@pytest.mark.parametrize("batch_bases", [1, 5 * CONTEXT])
def test_llr_equals_the_naive_loop(encoder, genome, sequences, contig, batch_bases):
    length = len(sequences[contig])
    places = sorted(
        {0, 1, 31, 32, 33, length // 2, length - 33, length - 32, length - 2, length - 1} & set(range(length))
    )
    places = [place for place in places if sequences[contig][place].upper() in "ACGT"]
    variants = [
        snv(sequences, contig, place, *"ACGT".replace(sequences[contig][place].upper(), "")) for place in places
    ]
    table = score_variants(encoder, genome, variants, context=CONTEXT, batch_bases=batch_bases)
    assert set(table.status) == {"scored"}
    expected = [
        naive_llr(encoder, sequences[contig], variant.position0, variant.ref, alt)
        for variant in variants
        for alt in variant.alts
    ]
    np.testing.assert_allclose(table["llr"], expected, atol=1e-5)
    assert np.std(expected) > 0.05  # or nothing was compared


def test_case_makes_no_difference(encoder, genome, sequences):
    upper = [Variant("mixed", place, sequences["mixed"][place].upper(), ("A", "C")) for place in (3, 50)]
    lower = [Variant("mixed", variant.position0, variant.ref.lower(), ("a", "c")) for variant in upper]
    scores = [score_variants(encoder, genome, variants, **SMALL)["llr"] for variants in (upper, lower)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("contig, context", [("long", 63), ("mixed", 63), ("short", 64)])
def test_the_other_strand_of_the_genome_gives_the_same_llr(encoder, sequences, genome, tmp_path, contig, context):
    sequence = sequences[contig]
    path = tmp_path / "reverse.fa"
    path.write_text(f">{contig}\n{sequence.upper().translate(COMPLEMENT)[::-1]}\n")
    places = [place for place in range(0, len(sequence), 7) if sequence[place].upper() in "ACGT"]
    forward = [Variant(contig, place, sequence[place].upper(), ("A", "C", "G", "T")) for place in places]
    mirrored = [
        Variant(
            contig,
            len(sequence) - 1 - variant.position0,
            variant.ref.translate(COMPLEMENT),
            tuple(alt.translate(COMPLEMENT) for alt in variant.alts),
        )
        for variant in forward
    ]
    one = score_variants(encoder, genome, forward, context=context, batch_bases=512)
    with Genome(path) as reverse:
        other = score_variants(encoder, reverse, mirrored, context=context, batch_bases=512)
    np.testing.assert_allclose(one["llr"], other["llr"], atol=1e-5)
    assert np.nanstd(one["llr"]) > 0.05


def test_an_snv_written_with_its_neighbours_is_scored_at_its_own_base(encoder, genome, sequences):
    ref = sequences["long"][80:83]
    alt = "ACGT".replace(ref[1], "")[0]
    deletion = ref[0]
    padded = Variant("long", 80, ref, (deletion, ref[0] + alt + ref[2]))
    given = [padded, Variant("long", 81, ref[1], (alt,))]
    table = score_variants(encoder, genome, given, scores="llr", **SMALL)
    assert table.status.tolist() == ["unsupported", "scored", "scored"]
    assert np.isnan(table["llr"][0])
    assert table["llr"][1] == table["llr"][2]


def test_rows_statuses_and_columns(encoder, genome, sequences):
    long = sequences["long"]
    wrong = "ACGT".replace(long[5], "")[0]
    alt = "ACGT".replace(long[9], "")[0]
    variants = [
        Variant("long", 9, long[9], (alt, "*", "<DEL>", "N", long[9] + "A", "C" * 65)),
        Variant("nowhere", 9, "A", ("C",)),
        Variant("long", 200, "A", ("C",)),
        Variant("long", 3, long[3], ()),
        Variant("long", 5, wrong, ("A", "<INS>")),
        Variant("mixed", 92, "N", ("A",)),
        Variant("long", 9, long[9:11], ("AC" if long[9:11] not in ("AC", "CA") else "GT",)),
        Variant("long", 9, long[9], (long[9],)),
    ]
    table = score_variants(encoder, genome, variants, scores="llr", **SMALL)
    assert table.status.tolist() == [
        *("scored", "symbolic", "symbolic", "ambiguous_alt", "unsupported", "too_long"),
        "contig_missing",
        "out_of_bounds",
        *("ref_mismatch", "ref_mismatch"),
        "ambiguous_ref",
        "scored",
        "unsupported",
    ]
    assert table.record.tolist() == [0] * 6 + [1, 2, 4, 4, 5, 6, 7]
    assert table.contig.tolist() == ["long"] * 6 + ["nowhere", "long", "long", "long", "mixed", "long", "long"]
    assert table.position0.tolist() == [9] * 6 + [9, 200, 5, 5, 92, 9, 9]
    assert table.alt.tolist()[:3] == [alt, "*", "<DEL>"]
    assert table.ref[0] == long[9]
    np.testing.assert_array_equal(np.isnan(table["llr"]), table.status != "scored")
    assert table["llr"].dtype == np.float32
    assert len(table) == len(table.alt) == 13


def test_strict_stops_at_the_first_mismatch(encoder, genome, sequences):
    wrong = "ACGT".replace(sequences["long"][5], "")[0]
    given = [snv(sequences, "long", 4), Variant("long", 5, wrong, ()), Variant("nowhere", 5, "A", ("C",))]
    assert len(score_variants(encoder, genome, given, **SMALL, strict=True)) == 2
    given += [Variant("long", 5, wrong * 30, ("A",)), Variant("long", 6, wrong, ("A",))]
    told = rf"long:6 has the REF {wrong * 20}\.\.\. \(30 bases\) and .*g\.fa"
    with pytest.raises(ReferenceMismatchError, match=told):
        score_variants(encoder, genome, given, **SMALL, strict=True)


def test_contigs_are_matched_by_name_with_one_notice(encoder, genome, sequences):
    variants = [
        Variant("9", place, sequences["chr9"][place], ("A" if sequences["chr9"][place] != "A" else "C",))
        for place in (3, 4)
    ]
    with pytest.warns(GenosparseWarning, match=r"'9' is 'chr9'") as notices:
        table = score_variants(encoder, genome, variants, **SMALL)
    assert len(notices) == 1
    assert table.status.tolist() == ["scored", "scored"]
    assert table.contig.tolist() == ["9", "9"]


def test_no_contig_in_the_genome_is_an_error_that_names_both_sides(encoder, genome):
    with pytest.raises(ContigNotFoundError, match=r"'elsewhere'.*g\.fa.*'long'"):
        score_variants(encoder, genome, [Variant("elsewhere", 1, "A", ("C",))], **SMALL)


def test_no_variants_give_an_empty_table(encoder, genome):
    table = score_variants(encoder, genome, [], **SMALL)
    assert isinstance(table, VariantScores)
    assert len(table) == 0
    assert table["llr"].shape == (0,)


def test_a_generator_longer_than_a_block_keeps_its_order(encoder, genome, sequences):
    places = [index % 200 for index in range(BLOCK_RECORDS + 3)]
    variants = [snv(sequences, "long", place) for place in places]
    table = score_variants(encoder, genome, iter(variants), context=16, batch_bases=2048)
    assert table.position0.tolist() == places
    # The same site and ALT has the same score in both blocks, to rounding.
    np.testing.assert_allclose(table["llr"][BLOCK_RECORDS:], table["llr"][places[BLOCK_RECORDS:]], atol=1e-5)


def test_one_forward_pass_per_strand_serves_all_alts_of_a_site(encoder, genome, sequences):
    shapes = []
    handle = encoder.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    try:
        variants = [
            snv(sequences, "long", place, *"ACGT".replace(sequences["long"][place], "")) for place in (50, 51, 50)
        ]
        score_variants(encoder, genome, variants, context=CONTEXT, batch_bases=3 * CONTEXT)
    finally:
        handle.remove()
    assert shapes == [(3, CONTEXT)] * 2  # 2 sites on 2 strands, 3 rows at a time, one shape


def test_the_encoder_is_left_as_it_was(genome, sequences):
    encoder = make_encoder().train()
    score_variants(encoder, genome, [snv(sequences, "long", 50)], **SMALL)
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_bfloat16_is_near_float32(encoder, genome, sequences):
    variants = [snv(sequences, "long", place) for place in range(0, 200, 10)]
    exact = score_variants(encoder, genome, variants, **SMALL)["llr"]
    rounded = score_variants(encoder, genome, variants, **SMALL, precision="bfloat16")["llr"]
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(exact, rounded, atol=0.1 * np.abs(exact).max())


def test_settings_that_cannot_be_used(encoder, genome):
    with pytest.raises(ConfigError, match="context=257: expected 1 to 256"):
        score_variants(encoder, genome, [], context=257)
    with pytest.raises(ConfigError, match="context=0"):
        score_variants(encoder, genome, [], context=0)
    with pytest.raises(ConfigError, match="batch_bases=0"):
        score_variants(encoder, genome, [], context=CONTEXT, batch_bases=0)
    with pytest.raises(ConfigError, match="precision='half'"):
        score_variants(encoder, genome, [], context=CONTEXT, precision="half")
    with pytest.raises(ConfigError, match=r"'cadd' is not a score; expected auto, or some of llr"):
        score_variants(encoder, genome, [], context=CONTEXT, scores=["llr", "cadd"])
    with pytest.raises(ConfigError, match="no score"):
        resolve_scores([])
    with pytest.raises(ConfigError, match="max_allele_length=65: expected 1 to 64 bases"):
        score_variants(encoder, genome, [], context=CONTEXT, max_allele_length=65)
    assert resolve_scores("llr") == resolve_scores(["llr", "llr"])
    assert resolve_scores(["delta_pll", "llr"]).names == resolve_scores("auto").names == ("llr", "delta_pll")
    assert resolve_scores(["delta_pll", "llr"]) != resolve_scores("auto")


def test_a_context_beyond_training_gives_one_warning(genome):
    encoder = make_encoder(trained_context=32)
    with pytest.warns(GenosparseWarning, match="context=64 is longer than the 32") as notices:
        score_variants(encoder, genome, [], **SMALL)
    assert len(notices) == 1
    score_variants(encoder, genome, [], context=32)


def test_a_model_that_gives_nan_is_an_error_with_the_place(genome, sequences):
    encoder = make_encoder()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(ModelFormatError, match=r"long:51"):
        score_variants(encoder, genome, [snv(sequences, "long", 50)], **SMALL)


def test_each_score_says_what_it_means():
    for name, score in SCORES.items():
        assert score.name == name
        assert score.field == f"GS_{name.upper()}"
        assert score.units
        assert score.source
        assert "negative" in score.sign
        assert '"' not in score.description  # it goes into a VCF header
