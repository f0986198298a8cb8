"""Normalised variants, beside bcftools norm and beside examples worked out by hand."""

import random

import pysam
import pysam.bcftools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genosparse.contigs import ContigMatcher
from genosparse.errors import GenosparseWarning
from genosparse.normalization import Step, normalize, normalize_variants
from genosparse.readers import Genome, Variant, read_variants

SEQUENCE = "GGGCACACACAGGGTTtTNNACGT"


def open_genome(folder, **contigs):
    path = folder / "g.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    return Genome(path)


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    with open_genome(tmp_path_factory.mktemp("genome"), c=SEQUENCE) as opened:
        yield opened


def normalized(genome, position0, ref, *alts, split=True):
    found = normalize(Variant("c", position0, ref, alts), genome, split=split)
    return [(item.variant.position0, item.variant.ref, *item.variant.alts) for item in found]


@pytest.mark.parametrize(
    "position0, ref, alt, expected, steps",
    [
        # Figure 1 of Tan et al.: one deletion of CA in GGGCACACACAGGG, written in five ways.
        (7, "CAC", "C", (2, "GCA", "G"), {Step.LEFT_ALIGNED}),
        (5, "CACA", "CA", (2, "GCA", "G"), {Step.TRIMMED, Step.LEFT_ALIGNED}),
        (1, "GGCA", "GG", (2, "GCA", "G"), {Step.TRIMMED}),
        (2, "GCACA", "GCA", (2, "GCA", "G"), {Step.TRIMMED}),
        (2, "GCA", "G", (2, "GCA", "G"), set()),
        (0, "G", "C", (0, "G", "C"), set()),
        (0, "GGG", "GCG", (1, "G", "C"), {Step.TRIMMED}),
        (3, "CAC", "TAG", (3, "CAC", "TAG"), set()),  # bases between two that differ stay
        (1, "G", "GG", (0, "G", "GG"), {Step.LEFT_ALIGNED}),  # to the contig's first base, and not beyond
        (0, "GG", "G", (0, "GG", "G"), set()),
        (0, "G", "GG", (0, "G", "GG"), set()),
        (0, "GGG", "GG", (0, "GG", "G"), {Step.TRIMMED}),
        (0, "GGGC", "C", (0, "GGGC", "C"), set()),
        (17, "T", "TT", (13, "G", "GT"), {Step.LEFT_ALIGNED}),  # across lower case
        (17, "t", "tt", (13, "G", "GT"), {Step.LEFT_ALIGNED}),
        (23, "T", "TACGT", (19, "N", "NACGT"), {Step.LEFT_ALIGNED}),
    ],
)
def test_examples_by_hand(genome, position0, ref, alt, expected, steps):
    (item,) = normalize(Variant("c", position0, ref, (alt,)), genome)
    assert (item.variant.position0, item.variant.ref, item.variant.alts[0]) == expected
    assert set(item.steps) == steps
    assert (item.skipped, item.allele) == (None, 1)


def test_alts_by_themselves_and_together(genome):
    assert normalized(genome, 7, "CAC", "C", "CACAC", "CAT") == [(2, "GCA", "G"), (2, "G", "GCA"), (9, "C", "T")]
    assert normalized(genome, 7, "CAC", "C", "CACAC", split=False) == [(2, "GCA", "G", "GCACA")]
    assert normalized(genome, 7, "CAC", "C", "CAT", split=False) == [(7, "CAC", "C", "CAT")]
    of_three = normalize(Variant("c", 7, "CAC", ("C", "<DEL>", "CAT"), id="rs1", info="AF=1,2,3"), genome)
    assert [(item.allele, item.skipped, item.steps[0]) for item in of_three] == [
        (1, None, Step.SPLIT),
        (2, "symbolic", Step.SPLIT),
        (3, None, Step.SPLIT),
    ]
    assert [(item.variant.id, item.variant.info) for item in of_three] == [("rs1", "AF=1,2,3")] * 3
    assert of_three[1].variant.alts == ("<DEL>",)
    (together,) = normalize(Variant("c", 7, "CAC", ("C", "<DEL>")), genome, split=False)
    assert (together.skipped, together.allele, together.variant.alts) == ("symbolic", None, ("C", "<DEL>"))
    assert normalize(Variant("c", 7, "CAC", ()), genome) == ()


def test_genotypes_follow_their_alt(genome):
    variant = Variant("c", 7, "CAC", ("C", "CAT"), samples=("S",), sample_columns="GT:PS\t1|2:7")
    first, second = normalize(variant, genome)
    assert first.variant.genotype("S").alleles == (1, 0)
    assert second.variant.genotype("S").alleles == (0, 1)
    assert second.variant.genotype("S").phase_set == 7
    (kept,) = normalize(variant, genome, split=False)
    assert kept.variant.genotype("S").alleles == (1, 2)


@pytest.mark.parametrize(
    "variant, reason",
    [
        (Variant("c", 3, "C", ("<INS:ME>",)), "symbolic"),
        (Variant("c", 3, "C", ("C]c:9]",)), "breakend"),
        (Variant("c", 3, "C", ("*",)), "spanning"),
        (Variant("c", 3, "C", ("c",)), "no_variation"),
        (Variant("c", 3, "A", ("AC",)), "ref_mismatch"),
        (Variant("c", -1, "N", ("NA",)), "out_of_bounds"),
        (Variant("c", 23, "TA", ("T",)), "out_of_bounds"),
        (Variant("d", 3, "C", ("CC",)), "contig_missing"),
    ],
)
def test_what_is_left_as_it_was(genome, variant, reason):
    (item,) = normalize(variant, genome)
    assert (item.variant, item.steps, item.skipped) == (variant, (), reason)


def test_a_report(genome):
    variants = [
        Variant("c", 7, "CAC", ("C", "CAT")),
        Variant("c", 0, "G", ("C",)),
        Variant("c", 0, "G", ("*",)),
        Variant("c", 0, "G", ()),
        Variant("c", 0, "A", ("C",)),
    ]
    iterator = normalize_variants(variants, genome)
    assert len(list(iterator)) == 5
    assert dict(iterator.counts) == {
        "records": 5, "no_alt": 1, "written": 5, "split": 2, "left_aligned": 1, "trimmed": 1, "unchanged": 1,
        "skipped": 2, "skipped_spanning": 1, "skipped_ref_mismatch": 1,
    }  # fmt: skip


def test_contigs_of_another_style(tmp_path):
    with open_genome(tmp_path, chr1=SEQUENCE) as genome:
        variants = [Variant("1", 7, "CAC", ("C",))] * 3
        with pytest.warns(GenosparseWarning, match="contig '1' of the variants is read as 'chr1'") as notices:
            found = list(normalize_variants(variants, genome))
        assert len(notices) == 1
        assert {(item.variant.contig, item.variant.position0) for item in found} == {("1", 2)}


def test_the_genome_is_read_in_pieces(tmp_path, monkeypatch):
    length = 100_000
    with open_genome(tmp_path, c="C" + "A" * length + "G") as genome:
        fetches = []
        fetch = genome.fetch
        monkeypatch.setattr(genome, "fetch", lambda interval: fetches.append(interval) or fetch(interval))
        (item,) = normalize(Variant("c", length, "A", ("AA",)), genome)
        assert (item.variant.position0, item.variant.ref, item.variant.alts) == (0, "C", ("CA",))
        assert len(fetches) < 20


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_normalising_twice_changes_nothing(tmp_path_factory, data):
    bases = data.draw(st.text("AC", min_size=2, max_size=30))
    start = data.draw(st.integers(0, len(bases) - 1))
    ref = bases[start : data.draw(st.integers(start + 1, len(bases)))]
    alts = tuple(data.draw(st.lists(st.text("AC", min_size=1, max_size=5), min_size=1, max_size=3)))
    with open_genome(tmp_path_factory.mktemp("genome"), c=bases) as genome:
        matcher = ContigMatcher(genome.contigs)
        for split in (True, False):
            for once in normalize(Variant("c", start, ref, alts), genome, split=split, matcher=matcher):
                (twice,) = normalize(once.variant, genome, split=split, matcher=matcher)
                assert twice.variant == once.variant
                assert twice.steps == ()
                sources = [once.source.alts[once.allele - 1]] if once.allele else once.source.alts
                for before, after in zip(sources, once.variant.alts, strict=True):
                    assert applied(bases, once.variant, after) == applied(bases, once.source, before)


def applied(bases, variant, alt):
    assert bases[variant.position0 :].startswith(variant.ref)
    return bases[: variant.position0] + alt + bases[variant.position0 + len(variant.ref) :]


def write_sites(path, contig, length, sites):
    lines = [f"{contig}\t{position0 + 1}\t.\t{ref}\t{','.join(alts)}\t.\t.\t.\n" for position0, ref, alts in sites]
    header = f"##fileformat=VCFv4.2\n##contig=<ID={contig},length={length}>\n"
    path.write_text(header + "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" + "".join(lines))
    return path


def by_bcftools(fasta, vcf, *options):
    """What `bcftools norm` makes of a file: sorted, as it moves records past one another."""
    text = pysam.bcftools.norm("-f", str(fasta), *options, "--no-version", str(vcf))
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return sorted((int(row[1]) - 1, row[3], *row[4].split(",")) for row in rows)


@pytest.mark.parametrize("unit", ["A", "AC", "ACG", "AAC", "ACGTAC"])
@pytest.mark.parametrize("options", [("-m-",), ()])
def test_repeats_as_bcftools_norm_has_them(tmp_path, unit, options):
    rng = random.Random(unit)
    bases = "".join("".join(rng.choices("ACGT", k=rng.randint(0, 4))) + unit * rng.randint(1, 40) for _ in range(40))
    sites = []
    for _ in range(400):
        start = rng.randrange(len(bases))
        ref = bases[start : start + rng.choice([1, 1, 2, 3, 6, 20])]
        alts = set()
        for _ in range(rng.randint(1, 3)):
            alt = rng.choice(
                [ref[:1], ref + unit, ref[: rng.randint(1, len(ref))], ref + ref, rng.choice("ACGT") + ref[1:]]
            )
            alts.add(alt)
        alts.discard(ref)
        if alts:
            sites.append((start, ref, tuple(sorted(alts))))
    sites.sort()
    with open_genome(tmp_path, c=bases) as genome:
        vcf = write_sites(tmp_path / "x.vcf", "c", len(bases), sites)
        found = list(normalize_variants(read_variants(vcf), genome, split=bool(options)))
        expected = by_bcftools(genome.path, vcf, *options)
    assert sum(Step.LEFT_ALIGNED in item.steps for item in found) > 50
    assert sorted((item.variant.position0, item.variant.ref, *item.variant.alts) for item in found) == expected


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name, num_changed",
    [
        ("1000G_phase3_chr20_1000001-2000000_sites.vcf.gz", 38),
        ("1000G_chr20_1-4Mb_300hap_shapeit4ref.vcf.gz", 0),
        ("clinvar.b37.chr20.vcf.gz", 0),
        ("test_nist.b37_chr20_100kbp_at_10mb.vcf.gz", 2),
    ],
)
def test_real_variants_as_bcftools_norm_has_them(test_data, tmp_path, name, num_changed):
    folder = test_data / "human_chr20_b37"
    variants = list(read_variants(folder / name, samples=()))
    sites = [(variant.position0, variant.ref, variant.alts) for variant in variants]
    with Genome(folder / "20.fa.gz") as genome:
        vcf = write_sites(tmp_path / "x.vcf", "20", genome.contigs["20"], sites)
        iterator = normalize_variants(read_variants(vcf), genome)
        found = sorted((item.variant.position0, item.variant.ref, *item.variant.alts) for item in iterator)
        assert found == by_bcftools(genome.path, vcf, "-m-")
    assert iterator.counts["trimmed"] + iterator.counts["left_aligned"] == num_changed
    assert iterator.counts["written"] == sum(len(variant.alts) for variant in variants)
