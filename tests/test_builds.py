import pysam
import pytest

from genosparse.builds import build_of_lengths, builds_named, check_build
from genosparse.errors import GenosparseWarning

GRCH37 = {"1": 249250621, "20": 63025520, "MT": 16569}
GRCH38 = {"chr1": 248956422, "chrM": 16569}


@pytest.mark.parametrize(
    "text, build",
    [
        ("file:///seq/references/Homo_sapiens_assembly19.fasta", None),
        ("ftp://ftp.1000genomes.ebi.ac.uk/technical/reference/human_g1k_v37.fasta.gz", "GRCh37 (hg19)"),
        ("/ref/hs37d5.fa", "GRCh37 (hg19)"),
        ("GRCh37.p13", "GRCh37 (hg19)"),
        ("b37", "GRCh37 (hg19)"),
        ("b370", None),
        ("lib38", None),
        ("GCA_000001405.15_GRCh38_no_alt_analysis_set", "GRCh38 (hg38)"),
        ("GCF_000001405.25", "GRCh37 (hg19)"),
        ("GCF_000001405.40", "GRCh38 (hg38)"),
        ("GCA_000001405.1", "GRCh37 (hg19)"),
        ("1000GenomesPilot-NCBI36", "NCBI36 (hg18)"),
        ("chm13v2.0_maskedY_rCRS.fa", "T2T-CHM13 (hs1)"),
        ("hs1", "T2T-CHM13 (hs1)"),
        ("mm10", "GRCm38 (mm10)"),
        ("mm100", None),
        ("GRCm39", "GRCm39 (mm39)"),
    ],
)
def test_builds_by_name(text, build):
    assert builds_named([text]) == ({build} if build else set())


def test_builds_by_length():
    assert build_of_lengths(GRCH37.values()) == "GRCh37 (hg19)"
    assert build_of_lengths([63025520]) == "GRCh37 (hg19)"
    assert build_of_lengths([248956422, None, 5]) == "GRCh38 (hg38)"
    assert build_of_lengths([16569, 1000, None]) is None


def test_another_build_gives_one_warning_that_names_both():
    message = (
        r"in\.vcf is of GRCh37 \(hg19\), as the lengths of its contigs say, and ref\.fa is GRCh38 \(hg38\): the same "
        "positions are other places"
    )
    with pytest.warns(GenosparseWarning, match=message) as caught:
        check_build([], GRCH37, GRCH38, wanted_from="in.vcf", available_from="ref.fa")
    assert len(caught) == 1
    with pytest.warns(GenosparseWarning, match=r"is of GRCh38 \(hg38\), as its header says, and .* is GRCh37"):
        check_build(["hg38.fa"], {"1": None}, GRCH37)


@pytest.mark.parametrize(
    "names, lengths, genome",
    [
        (["hg19"], GRCH37, GRCH37),
        (["hg19"], GRCH38, GRCH38),  # lifted over, with the line of before
        (["liftover of hg19 to hg38"], {}, GRCH38),
        (["hg19"], {}, {"plasmid": 5000}),
        (["hg19"], {"1": 249250621}, {"1": 1_000_000}),
        ([], {"1": None}, GRCH38),
        (["ecoli.fa"], {"1": 1234}, GRCH38),
    ],
)
def test_no_warning_without_two_known_builds_that_differ(names, lengths, genome):
    check_build(names, lengths, genome)


@pytest.mark.realdata
def test_headers_of_real_files(test_data):
    with pysam.VariantFile(
        str(test_data / "edge_cases/nucleus/nucleus/testdata/test_nist.b37_chr20_100kbp_at_10mb.vcf.gz")
    ) as file:
        lengths = {name: file.header.contigs[name].length for name in file.header.contigs}
    assert build_of_lengths(lengths.values()) == "GRCh37 (hg19)"
    with pytest.warns(GenosparseWarning, match=r"GRCh37 \(hg19\), as the lengths"):
        check_build([], lengths, GRCH38)
