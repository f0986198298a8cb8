"""Haplotypes, beside bcftools consensus and beside examples worked out by hand."""

import random
import shutil

import numpy as np
import pysam
import pysam.bcftools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import genosparse as gs
from genosparse.errors import (
    ConfigError,
    ContigNotFoundError,
    GenosparseError,
    GenosparseWarning,
    IntervalError,
)
from genosparse.haplotypes import haplotype
from genosparse.intervals import Interval
from genosparse.normalization import normalize_variants
from genosparse.readers import Genome, Variant, read_variants

#           0         1
#           0123456789012345
SEQUENCE = "ACGTTGCAAGTCCATG"


def open_genome(folder, **contigs):
    path = folder / "g.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in contigs.items()))
    return Genome(path)


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    with open_genome(tmp_path_factory.mktemp("genome"), c=SEQUENCE, d="ACGT") as opened:
        yield opened


def v(position0, ref, *alts, contig="c", gt=None, fields="GT"):
    columns = {} if gt is None else {"samples": ("S",), "sample_columns": f"{fields}\t{gt}"}
    return Variant(contig, position0, ref, alts, **columns)


def apply(genome, *variants, start=0, end=16, strand="+", **keywords):
    return haplotype(genome, variants, Interval("c", start, end, strand), **keywords)


def reasons(found):
    return [(skipped.variant.position0, skipped.alt, skipped.reason) for skipped in found.skipped]


def test_an_interval_over_the_end_of_a_circular_contig_is_refused(tmp_path):
    (tmp_path / "g.fa").write_text(f">c\n{SEQUENCE}\n")
    with (
        Genome(tmp_path / "g.fa", circular=True) as genome,
        pytest.raises(
            IntervalError, match=r"c:10-20\(\+\) goes on past the end of the circular contig 'c'; ask for each"
        ),
    ):
        apply(genome, v(2, "G", "T"), start=10, end=20)


def test_no_variants_give_the_reference(genome):
    found = apply(genome, start=3, end=9)
    assert found.sequence == "TTGCAA"
    assert found.to_reference.tolist() == [3, 4, 5, 6, 7, 8]
    assert found.from_reference.tolist() == [0, 1, 2, 3, 4, 5]
    assert (found.applied, found.skipped, found.phase_sets, len(found)) == ((), (), (), 6)
    minus = apply(genome, start=3, end=9, strand="-")
    assert minus.sequence == "TTGCAA"[::-1].translate(str.maketrans("ACGT", "TGCA"))
    assert minus.to_reference.tolist() == [8, 7, 6, 5, 4, 3]
    assert minus.from_reference.tolist() == [5, 4, 3, 2, 1, 0]


VARIANTS = [v(1, "C", "G"), v(4, "T", "TAA"), v(6, "CAA", "C"), v(11, "CCA", "GT")]


def test_one_variant_of_each_kind(genome):
    found = apply(genome, *VARIANTS)
    #                       A G G T T aa G C -- G T (CC -> GT, A deleted) T G
    assert found.sequence == "AGGTT" + "AA" + "GC" + "GT" + "GT" + "TG"
    assert found.to_reference.tolist() == [0, 1, 2, 3, 4, -1, -1, 5, 6, 9, 10, 11, 12, 14, 15]
    assert found.from_reference.tolist() == [0, 1, 2, 3, 4, 7, 8, -1, -1, 9, 10, 11, 12, -1, 13, 14]
    assert [found.sequence[one.start : one.end] for one in found.applied] == ["G", "AA", "", "GT"]
    assert [one.variant for one in found.applied] == VARIANTS
    assert [one.alt for one in found.applied] == ["G", "TAA", "C", "GT"]


def test_the_minus_strand(genome):
    plus, minus = apply(genome, *VARIANTS), apply(genome, *VARIANTS, strand="-")
    assert minus.sequence == "CAACACGCTTAACCT"
    assert minus.to_reference.tolist() == plus.to_reference.tolist()[::-1]
    last = len(plus) - 1
    assert minus.from_reference.tolist() == [at if at < 0 else last - at for at in plus.from_reference.tolist()]
    assert [minus.sequence[one.start : one.end] for one in minus.applied] == ["C", "TT", "", "AC"]


def test_coordinates_both_ways(genome):
    found = apply(genome, *VARIANTS)
    assert [found.reference_position(index) for index in (0, 5, 7, 14)] == [0, None, 5, 15]
    assert [found.haplotype_index(position0) for position0 in (0, 5, 7, 13, 15)] == [0, 7, None, None, 14]
    assert found.reference_interval(4, 8) == Interval("c", 4, 6)
    assert found.reference_interval(8, 10) == Interval("c", 6, 10)  # across a deletion
    assert found.reference_interval(5, 7) is None  # inserted
    assert found.haplotype_span(Interval("c", 4, 6)) == (4, 8)  # with what is inserted between
    assert found.haplotype_span(Interval("c", 6, 9)) == (8, 9)
    assert found.haplotype_span(Interval("c", 7, 9)) is None  # deleted
    minus = apply(genome, *VARIANTS, strand="-")
    assert minus.haplotype_span(Interval("c", 4, 6)) == (7, 11)
    assert minus.reference_interval(7, 11) == Interval("c", 4, 6, "-")


def test_coordinates_that_are_not_there(genome):
    found = apply(genome, start=3, end=9)
    for call in (
        lambda: found.reference_position(6),
        lambda: found.reference_position(-1),
        lambda: found.reference_interval(2, 2),
        lambda: found.haplotype_index(2),
        lambda: found.haplotype_index(9),
        lambda: found.haplotype_span(Interval("c", 8, 10)),
        lambda: found.haplotype_span(Interval("d", 3, 4)),
    ):
        with pytest.raises(IntervalError):
            call()


@pytest.mark.parametrize(
    "variants, expected, skipped",
    [
        ([v(3, "TTG", "T"), v(4, "T", "C")], "ACGTCAAGTCCATG", [(4, "C", "overlap")]),
        ([v(4, "T", "C"), v(3, "TTG", "T")], "ACGTCGCAAGTCCATG", [(3, "T", "overlap")]),  # the first given
        ([v(3, "T", "A"), v(3, "TTG", "T")], "ACGACAAGTCCATG", []),  # the base before an indel is not changed
        ([v(3, "TTG", "T"), v(3, "T", "A")], "ACGACAAGTCCATG", []),
        ([v(4, "T", "TA"), v(4, "T", "TC")], "ACGTTAGCAAGTCCATG", [(4, "TC", "overlap")]),
        ([v(4, "T", "TA"), v(3, "TTG", "T")], "ACGTTAGCAAGTCCATG", [(3, "T", "overlap")]),
        ([v(3, "TTG", "T"), v(4, "T", "TA")], "ACGTCAAGTCCATG", [(4, "TA", "overlap")]),
        ([v(3, "TTG", "T"), v(5, "G", "GA")], "ACGTACAAGTCCATG", []),  # at a deletion's end
        ([v(3, "T", "TA"), v(3, "TTG", "T")], "ACGTACAAGTCCATG", []),  # at its beginning
        ([v(4, "TG", "CA"), v(5, "G", "T"), v(6, "C", "G")], "ACGTCAGAAGTCCATG", [(5, "T", "overlap")]),
        (
            [v(4, "TG", "CA"), v(4, "T", "TC"), v(3, "T", "TC")],
            "ACGTCCAGAAGTCCATG".replace("CCAG", "CCAC"),
            [(4, "TC", "overlap")],
        ),
        ([v(4, "T", "C"), v(4, "T", "C")], "ACGTCGCAAGTCCATG", [(4, "C", "overlap")]),
    ],
)
def test_overlaps(genome, variants, expected, skipped):
    found = apply(genome, *variants)
    assert found.sequence == expected
    assert reasons(found) == skipped


@pytest.mark.parametrize(
    "start, end, variant, expected",
    [
        (5, 9, v(3, "TTGC", "T"), "AA"),  # a deletion that begins before
        (5, 9, v(6, "CAAGT", "C"), "GC"),  # and one that ends after
        (5, 9, v(3, "TTGCAAGT", "T"), ""),  # and one of everything
        (5, 9, v(4, "T", "TCC"), "GCAA"),  # an insertion belongs to the base before
        (5, 9, v(5, "G", "GCC"), "GCCCAA"),
        (5, 9, v(8, "A", "ACC"), "GCAACC"),
        (0, 2, v(0, "A", "CCA"), "CCAC"),  # before the contig's first base
        (5, 9, v(4, "TG", "AC"), "CCAA"),
        (5, 9, v(4, "TG", "ACCC"), "CCCCAA"),  # G becomes C, and CC is inserted
        (5, 9, v(8, "AG", "CTTT"), "GCAC"),
        (5, 9, v(4, "TG", "A"), "CAA"),
        (5, 9, v(9, "G", "C"), "GCAA"),
        (5, 9, v(4, "T", "C"), "GCAA"),
    ],
)
def test_the_edges_of_an_interval(genome, start, end, variant, expected):
    found = apply(genome, variant, start=start, end=end)
    assert found.sequence == expected
    assert found.skipped == ()
    assert len(found.applied) == (expected != SEQUENCE[start:end])
    assert len(found.to_reference) == len(expected)


def test_what_cannot_be_applied(genome):
    variants = [
        v(0, "A", "<DEL>"),
        v(1, "C", "C]d:2]"),
        v(2, "G", "*"),
        v(3, "A", "C"),
        v(14, "TGA", "C"),
        v(15, "GA", "G"),  # changes nothing but what is beyond
        v(5, "G", "g"),
        v(6, "C"),
        v(7, "A", "T", "C"),
        v(0, "A", "C", contig="d"),
    ]
    found = apply(genome, *variants)
    assert found.sequence == SEQUENCE[:7] + "T" + SEQUENCE[8:]
    assert reasons(found) == [
        (0, "<DEL>", "symbolic"),
        (1, "C]d:2]", "breakend"),
        (2, "*", "spanning"),
        (3, "C", "ref_mismatch"),
        (14, "C", "out_of_bounds"),
        (5, "g", "no_variation"),
    ]
    far = Variant("c", 0, "A", ("<DEL>",), info="SVTYPE=DEL;END=9")
    assert reasons(apply(genome, far, start=8, end=12)) == [(0, "<DEL>", "symbolic")]
    assert reasons(apply(genome, far, start=9, end=12)) == []


def test_the_alleles_of_a_sample(genome):
    variants = [
        v(1, "C", "G", "T", gt="1|2"),
        v(4, "T", "TAA", gt="0|1"),
        v(6, "C", "A", gt="1/1"),
        v(8, "A", "C", gt="0/0"),
    ]
    first, second = (apply(genome, *variants, sample="S", phase=phase) for phase in (0, 1))
    assert first.sequence == "AGGTTGAAAGTCCATG"
    assert second.sequence == "ATGTTAAGAAAGTCCATG"
    assert first.skipped == second.skipped == ()
    with pytest.raises(ConfigError, match="sample 'T' is not among the samples; expected one of 'S'"):
        apply(genome, *variants, sample="T")


@pytest.mark.parametrize(
    "unphased, phase, bases, skipped",
    [
        ("ref", 0, "CT", [(1, None, "unphased"), (4, None, "unphased")]),
        ("alt", 0, "GA", []),
        ("alt", 1, "GA", []),
        ("as_written", 0, "CG", []),
        ("as_written", 1, "GA", []),
    ],
)
def test_unphased_genotypes(genome, unphased, phase, bases, skipped):
    variants = [v(1, "C", "G", gt="0/1"), v(4, "T", "G", "A", gt="1/2")]
    if unphased == "alt":
        variants[1] = v(4, "T", "A", "G", gt="1/2")
    found = apply(genome, *variants, sample="S", phase=phase, unphased=unphased)
    assert found.sequence[1] + found.sequence[4] == bases
    assert reasons(found) == skipped
    with pytest.raises(
        GenosparseError, match=r"sample 'S' at c:2 \(1-based\) is not phased; .*unphased='ref', 'alt' or"
    ):
        apply(genome, *variants, sample="S", phase=phase)


def test_other_genotypes(genome):
    variants = [
        v(1, "C", "G", gt="1"),
        v(2, "G", "A", gt=".|1"),
        v(3, "T", "A", gt="./."),
        v(4, "T", "A", gt="3", fields="DP"),
        v(5, "G", "A", gt="1|0:7", fields="GT:PS"),
        v(6, "C", "A", gt="1|1:8", fields="GT:PS"),
        v(7, "A", "C", gt="0|1:9", fields="GT:PS"),
        v(8, "A", "C", gt="0"),
    ]
    first = apply(genome, *variants, sample="S")
    assert first.sequence == "AGGTTAAAAGTCCATG"
    assert reasons(first) == [(2, None, "missing"), (3, None, "missing"), (4, None, "missing")]
    assert first.phase_sets == (7,)  # of what is heterozygous and applied
    second = apply(genome, *variants, sample="S", phase=1)
    assert second.sequence == "ACATTGACAGTCCATG"
    assert reasons(second) == [(1, None, "ploidy"), (3, None, "missing"), (4, None, "missing")]
    assert second.phase_sets == (9,)


def test_contigs_of_another_style(tmp_path):
    with open_genome(tmp_path, chr1=SEQUENCE) as genome:
        with pytest.warns(GenosparseWarning, match="is read as 'chr1'") as notices:
            found = haplotype(genome, [v(1, "C", "G", contig="1")] * 2, Interval("1", 0, 4))
        assert (found.sequence, found.interval.contig, len(notices)) == ("AGGT", "1", 2)  # of variants and interval
        with pytest.raises(ContigNotFoundError, match="no contig of the variants"):
            haplotype(genome, [v(1, "C", "G", contig="2")], Interval("chr1", 0, 4))
        with pytest.raises(ContigNotFoundError, match="contig '3' is not in"):
            haplotype(genome, [], Interval("3", 0, 4))


def test_arguments_that_cannot_be(genome):
    with pytest.raises(ConfigError, match="unphased='no': expected one of error, ref, alt, as_written"):
        apply(genome, unphased="no")
    with pytest.raises(ConfigError, match="phase=-1"):
        apply(genome, phase=-1)
    with pytest.raises(IntervalError, match="past the end"):
        apply(genome, end=17)


def test_the_public_name(genome):
    assert gs.haplotype is haplotype
    assert isinstance(apply(genome), gs.Haplotype)


BASES = st.text("ACGT", min_size=1, max_size=4)


@st.composite
def problems(draw):
    """A contig, variants that fit it, an interval."""
    bases = draw(st.text("ACGT", min_size=4, max_size=40))
    variants = []
    for _ in range(draw(st.integers(0, 8))):
        start = draw(st.integers(0, len(bases) - 1))
        ref = bases[start : start + draw(st.integers(1, 4))]
        alt = draw(BASES)
        if alt != ref:
            variants.append(Variant("c", start, ref, (alt,)))
    start = draw(st.integers(0, len(bases) - 1))
    end = draw(st.integers(start + 1, len(bases)))
    return bases, variants, Interval("c", start, end, draw(st.sampled_from("+-")))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_coordinates_round_trip(tmp_path_factory, problem):
    bases, variants, interval = problem
    with open_genome(tmp_path_factory.mktemp("genome"), c=bases) as genome:
        found = haplotype(genome, variants, interval)
        reference = genome.fetch(interval)
    assert len(found.to_reference) == len(found.sequence)
    assert len(found.from_reference) == interval.length
    for index in range(len(found)):
        position0 = found.reference_position(index)
        assert position0 is None or found.haplotype_index(position0) == index
    for position0 in range(interval.start, interval.end):
        index = found.haplotype_index(position0)
        assert index is None or found.reference_position(index) == position0
    there = found.to_reference[found.to_reference >= 0]
    assert (np.diff(there) * (-1 if interval.strand == "-" else 1) > 0).all()
    # Each base that is neither put in nor taken out by a variant is the reference's.
    put_in = {index for one in found.applied for index in range(one.start, one.end)}
    for index in set(range(len(found))) - put_in:
        offset = found.reference_position(index) - interval.start
        assert found.sequence[index] == (reference[::-1] if interval.strand == "-" else reference)[offset]
    num_changed = sum(one.end - one.start for one in found.applied)
    assert len(put_in) == num_changed


@settings(max_examples=100, deadline=None)
@given(problems(), st.data())
def test_haplotypes_of_adjoining_intervals_join(tmp_path_factory, problem, data):
    bases, variants, _ = problem
    middle = data.draw(st.integers(1, len(bases) - 1))
    # Of variants that overlap, the ones beside the interval are not seen in it.
    with open_genome(tmp_path_factory.mktemp("genome"), c=bases) as genome:
        whole = haplotype(genome, variants, Interval("c", 0, len(bases)))
        fitting = [one.variant for one in whole.applied]
        left = haplotype(genome, fitting, Interval("c", 0, middle))
        right = haplotype(genome, fitting, Interval("c", middle, len(bases)))
        assert left.sequence + right.sequence == haplotype(genome, fitting, whole.interval).sequence == whole.sequence
        assert left.to_reference.tolist() + right.to_reference.tolist() == whole.to_reference.tolist()
        assert left.skipped == right.skipped == ()


@settings(max_examples=100, deadline=None)
@given(problems())
def test_a_variant_by_itself_gives_its_alt(tmp_path_factory, problem):
    bases, variants, _ = problem
    with open_genome(tmp_path_factory.mktemp("genome"), c=bases) as genome:
        for variant in variants:
            found = haplotype(genome, [variant], Interval("c", 0, len(bases)))
            start, end = variant.position0, variant.position0 + len(variant.ref)
            assert found.sequence == bases[:start] + variant.alts[0] + bases[end:]
            (normalized,) = normalize_variants([variant], genome)
            again = haplotype(genome, [normalized.variant], Interval("c", 0, len(bases)))
            assert again.sequence == found.sequence
            after = len(bases) if end == len(bases) else found.haplotype_index(end)
            first = 0 if start == 0 else found.haplotype_index(start - 1) + 1
            assert found.sequence[first:after] == variant.alts[0] or end == len(bases)


def by_bcftools(genome, vcf, interval, *options):
    """What `bcftools consensus` makes of a stretch of the genome."""
    piece = vcf.with_name("piece.fa")
    piece.write_text(f">{interval.contig}:{interval.start + 1}-{interval.end}\n{genome.fetch(interval)}\n")
    text = pysam.bcftools.consensus("-f", str(piece), *options, str(vcf))
    return "".join(text.splitlines()[1:])


def first_difference(sequence, expected):
    """Where two sequences differ first, case aside; None where they do not."""
    pairs = zip(sequence.upper() + "$", expected.upper() + "$", strict=False)
    return next((index for index, (base, other) in enumerate(pairs) if base != other), None)


@pytest.mark.realdata
@pytest.mark.parametrize("sample", ["HG00096", "HG00105", "HG00130"])
def test_phased_samples_as_bcftools_consensus_has_them(test_data, tmp_path, sample):
    folder = test_data / "human_chr20_b37"
    name = "1000G_chr20_1-4Mb_300hap_shapeit4ref.vcf.gz"
    vcf = tmp_path / name
    shutil.copyfile(folder / name, vcf)
    pysam.tabix_index(str(vcf), preset="vcf")
    fasta = folder / "20.fa.gz"
    with Genome(fasta) as genome:
        for start, end in ((1_000_000, 1_400_000), (2_345_678, 2_456_789)):
            interval = Interval("20", start, end)
            variants = list(read_variants(vcf, interval, samples=[sample]))
            sequences = []
            for phase in (0, 1):
                found = haplotype(genome, variants, interval, sample=sample, phase=phase)
                options = ("-s", sample, "-H", str(phase + 1))
                assert first_difference(found.sequence, by_bcftools(genome, vcf, interval, *options)) is None
                assert len(found.applied) > 20
                sequences.append(found.sequence)
            assert sequences[0] != sequences[1]


@pytest.mark.realdata
def test_the_snps_of_a_yeast_strain_as_bcftools_consensus_has_them(test_data, tmp_path):
    fasta, vcf = (test_data / "yeast" / name for name in ("S_cerevisiae.fasta.gz", "SK1_vs_S288C_snps.vcf.gz"))
    copy = tmp_path / vcf.name
    shutil.copyfile(vcf, copy)
    pysam.tabix_index(str(copy), preset="vcf")
    with pytest.warns(GenosparseWarning, match="bgzip copy"):
        genome = Genome(fasta)
    with genome:
        interval = Interval("chrIV", 0, genome.contigs["chrIV"])
        found = haplotype(genome, read_variants(copy, interval), interval)
        assert first_difference(found.sequence, by_bcftools(genome, copy, interval)) is None
    assert len(found.applied) > 5000
    assert (found.to_reference == np.arange(interval.length)).all()


def test_random_variants_as_bcftools_consensus_has_them(tmp_path):
    rng = random.Random(3)
    bases = "".join(rng.choices("ACGT", k=20_000))
    lines = []
    last = -1
    for position0 in sorted(rng.sample(range(10, 19_900), 3000)):
        ref = bases[position0 : position0 + rng.choice([1, 1, 1, 2, 5])]
        alt = rng.choice([rng.choice("ACGT"), ref[0] + "".join(rng.choices("ACGT", k=rng.randint(0, 6)))])
        # bcftools counts all of REF as changed, the base before an indel too: so none shares a base with another here.
        if alt != ref and position0 > last:
            lines.append(f"c\t{position0 + 1}\t.\t{ref}\t{alt}\t.\t.\t.\tGT\t{rng.choice(['0|1', '1|0', '1|1'])}\n")
            last = position0 + len(ref) - 1
    header = (
        "##fileformat=VCFv4.2\n##contig=<ID=c,length=20000>\n"
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\n"
    )
    (tmp_path / "x.vcf").write_text(header + "".join(lines))
    vcf = tmp_path / "x.vcf.gz"
    pysam.tabix_compress(str(tmp_path / "x.vcf"), str(vcf))
    pysam.tabix_index(str(vcf), preset="vcf")
    with open_genome(tmp_path, c=bases) as genome:
        for phase in (0, 1):
            interval = Interval("c", 0, 20_000)
            ours = haplotype(genome, read_variants(vcf), interval, sample="S", phase=phase)
            theirs = by_bcftools(genome, vcf, interval, "-s", "S", "-H", str(phase + 1))
            assert first_difference(ours.sequence, theirs) is None
            assert len(ours.applied) > 800


def test_a_phase_that_no_genotype_has_is_refused(genome):
    variants = [v(2, "G", "A", gt="0|1"), v(6, "C", "A", gt="1|1")]
    with pytest.raises(ConfigError, match="phase=2: none of the 2 genotypes of sample 'S'"):
        apply(genome, *variants, sample="S", phase=2)
    assert apply(genome, *variants, sample="S", phase=1).applied
