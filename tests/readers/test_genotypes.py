"""Genotypes: every spelling of GT, phase sets, samples by name."""

import pysam
import pytest

from genosparse.errors import ConfigError, FileFormatError
from genosparse.readers import Genotype, Variant, read_variants
from genosparse.readers.genotypes import keep_allele

HEADER = (
    '##fileformat=VCFv4.4\n##contig=<ID=1>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2\n"
)


def with_samples(format_column, *columns, alts=("C", "G")):
    samples = tuple(f"S{number}" for number in range(1, len(columns) + 1))
    text = "\t".join([format_column, *columns])
    return Variant("1", 99, "A", alts, samples=samples, sample_columns=text)


@pytest.mark.parametrize(
    "text, alleles, phased",
    [
        ("0|1", (0, 1), True),
        ("0/1", (0, 1), False),
        ("1", (1,), True),
        (".", (None,), True),
        ("./.", (None, None), False),
        (".|1", (None, 1), True),
        ("0/1/1", (0, 1, 1), False),
        ("0|1|2", (0, 1, 2), True),
        ("0|1/2", (0, 1, 2), False),
        ("|0|1", (0, 1), True),
        ("|0/1", (0, 1), False),
        ("/1", (1,), False),
    ],
)
def test_genotypes_of_every_form(text, alleles, phased):
    assert with_samples("GT", "0|0", text).genotype("S2") == Genotype(alleles, phased, None)


def test_other_fields_and_phase_sets():
    variant = with_samples("DP:GT:PS:AD", "7:0|1:12345:3,4", "8:1|0:.:.", "9:1|1", ".")
    assert variant.genotype("S1") == Genotype((0, 1), True, 12345)
    assert variant.genotype("S2") == Genotype((1, 0), True, None)
    assert variant.genotype("S3") == Genotype((1, 1), True, None)  # trailing fields may be dropped
    assert variant.genotype("S4") == Genotype(())
    assert with_samples("DP", "7").genotype("S1") == Genotype(())


@pytest.mark.parametrize(
    "text, message",
    [
        ("0|3", r"sample 'S1' at 1:100 \(1-based\): GT is '0\|3', and the record has 2 ALT"),
        ("0|", r"GT is '0\|'; expected alleles"),
        ("A/B", "GT is 'A/B'"),
        ("0||1", "GT is"),
        ("-1", "GT is '-1'"),
        ("99999999999", "GT is '99999999999'"),
        ("\u0661", "GT is"),
    ],
)
def test_malformed_genotypes(text, message):
    with pytest.raises(FileFormatError, match=message):
        with_samples("GT", text).genotype("S1")
    with pytest.raises(FileFormatError, match="PS is 'x'"):
        with_samples("GT:PS", "0|1:x").genotype("S1")


def test_an_unknown_sample():
    with pytest.raises(ConfigError, match="sample 'S3' is not among the samples; expected one of 'S1', 'S2'"):
        with_samples("GT", "0|1", "0|0").genotype("S3")
    with pytest.raises(ConfigError, match=r"the variants have no samples; leave it out"):
        Variant("1", 0, "A", ("C",)).genotype("S1")


def test_two_samples_of_one_name(tmp_path):
    path = tmp_path / "x.vcf"
    path.write_text(HEADER.replace("S2", "S1") + "1\t5\t.\tA\tC\t.\t.\t.\tGT\t0|1\t1|1\n")
    message = r"sample 'S1' is the name of 2 samples.*; rename them, as with `bcftools reheader`"
    with pytest.raises(ConfigError, match=message):
        read_variants(path, samples="S1")
    (variant,) = read_variants(path)
    with pytest.raises(ConfigError, match=message):
        variant.genotype("S1")


def test_samples_of_a_file(tmp_path):
    path = tmp_path / "x.vcf"
    path.write_text(HEADER + "1\t5\t.\tA\tC\t.\t.\t.\tGT\t0|1\t1|1\n1\t9\t.\tA\tC\t.\t.\t.\tGT\t.\t1/0\n")
    for variants in (read_variants(path), read_variants(path, samples=["S2"]), read_variants(path, samples="S2")):
        assert [v.genotype("S2").alleles for v in variants] == [(1, 1), (1, 0)]
    assert [v.sample_columns for v in read_variants(path, samples=["S2"])] == ["GT\t1|1", "GT\t1/0"]
    assert [(v.samples, v.sample_columns) for v in read_variants(path, samples=())] == [((), None)] * 2
    with pytest.raises(ConfigError, match=r"sample 'S3' is not among the samples of .*x\.vcf; expected one of 'S1'"):
        read_variants(path, samples=["S3"])


def test_one_alt_by_itself():
    assert keep_allele("DP:GT:AD:PS\t7:0|2:1,2,3:12\t8:2/1\t9:.|1:.:.", 2) == "GT:PS\t0|1:12\t1/0:.\t.|0:."
    assert keep_allele("DP\t7\t8", 1) == ".\t.\t."


@pytest.mark.realdata
def test_real_genotypes_as_pysam_reads_them(test_data):
    path = test_data / "human_chr20_b37/1000G_chr20_1-4Mb_300hap_shapeit4ref.vcf.gz"
    sample = "HG00105"
    with pysam.VariantFile(str(path)) as source:
        expected = [record.samples[sample].allele_indices for record, _ in zip(source, range(5000), strict=False)]
    found = [variant.genotype(sample) for variant, _ in zip(read_variants(path), range(5000), strict=False)]
    assert [genotype.alleles for genotype in found] == expected
    assert {genotype.phased for genotype in found} == {True}
    assert any(1 in genotype.alleles for genotype in found)
