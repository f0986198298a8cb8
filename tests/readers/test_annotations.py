"""Features and intervals from GFF3, GTF, GenBank, EMBL, BED and region strings."""

import gzip
from pathlib import Path

import pytest
from Bio import SeqIO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genosparse as gs
from genosparse.errors import FileFormatError, GenosparseWarning, InputFileNotFoundError, IntervalError
from genosparse.readers import Feature, read_features, read_intervals

GFF3 = """\
##gff-version 3
##sequence-region one 1 900
# a comment
one\tsrc\tgene\t101\t200\t.\t-\t.\tID=g1;Name=first%2C gene;Note=a,b
one\tsrc\tCDS\t101\t150\t.\t?\t0\tParent=g1
two%20b\tsrc\tregion\t1\t1\t.\t+\t.\t.

##FASTA
>one
ACGT
"""
GTF = """\
one\tsrc\texon\t11\t20\t.\t+\t.\tgene_id "g; 1"; transcript_id "t1"; tag "a"; tag "b"; exon_number 2;
one\tsrc\texon\t31\t40\t.\t-\t.\ttranscript_id "t1"
"""
GENBANK = """\
LOCUS       AB000001                  60 bp    DNA     circular BCT 01-JAN-2020
DEFINITION  Test.
ACCESSION   AB000001
VERSION     AB000001.2
FEATURES             Location/Qualifiers
     source          1..60
     gene            complement(11..20)
                     /gene="abc"
     CDS             join(21..30,41..45)
                     /locus_tag="L1"
                     /db_xref="x:1"
                     /db_xref="x:2"
ORIGIN
        1 acgtacgtac gtacgtacgt acgtacgtac gtacgtacgt acgtacgtac gtacgtacgt
//
"""


def written(folder: Path, text: str, name: str = "a.txt") -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_gff3(tmp_path: Path) -> None:
    gene, cds, region = read_features(written(tmp_path, GFF3))
    assert gene == Feature(
        gs.Interval("one", 100, 200, "-", "g1"), "gene", {"ID": "g1", "Name": "first, gene", "Note": "a,b"}
    )
    assert cds == Feature(gs.Interval("one", 100, 150, "."), "CDS", {"Parent": "g1"}, phase=0)
    assert region == Feature(gs.Interval("two b", 0, 1), "region", {})
    assert list(read_features(written(tmp_path, GFF3), {"CDS"})) == [cds]


def test_gtf(tmp_path: Path) -> None:
    first, second = read_features(written(tmp_path, GTF))
    attributes = {"gene_id": "g; 1", "transcript_id": "t1", "tag": "a,b", "exon_number": "2"}
    assert first == Feature(gs.Interval("one", 10, 20, "+", "g; 1"), "exon", attributes)
    assert second.interval == gs.Interval("one", 30, 40, "-", "t1")


def test_genbank_gives_a_feature_for_each_part(tmp_path: Path) -> None:
    source, gene, left, right = read_features(written(tmp_path, GENBANK))
    assert source == Feature(gs.Interval("AB000001.2", 0, 60), "source", {}, part=0)
    assert gene == Feature(gs.Interval("AB000001.2", 10, 20, "-", "abc"), "gene", {"gene": "abc"}, part=0)
    attributes = {"locus_tag": "L1", "db_xref": "x:1,x:2"}
    assert left == Feature(gs.Interval("AB000001.2", 20, 30, "+", "L1"), "CDS", attributes, phase=0, part=0)
    # Ten bases are three codons and a base of the next one, whose other two the second part begins with.
    assert right == Feature(gs.Interval("AB000001.2", 40, 45, "+", "L1"), "CDS", attributes, phase=2, part=1)
    with pytest.warns(GenosparseWarning, match="is GenBank"):
        genome = gs.Genome(tmp_path / "a.txt")
    assert genome.fetch(left.interval) == "ACGTACGTAC"


def test_phases_of_parts_on_the_minus_strand(tmp_path: Path) -> None:
    """The first part in the order of transcription is the one of the highest coordinates; it begins within a codon."""
    text = GENBANK.replace("join(21..30,41..45)", "complement(join(21..30,41..45))").replace(
        '/locus_tag="L1"', "/codon_start=2"
    )
    *_, first, second = read_features(written(tmp_path, text))
    assert [(first.interval.start, first.part, first.phase), (second.interval.start, second.part, second.phase)] == [
        (40, 0, 1),
        (20, 1, 2),
    ]


def test_intervals_of_any_file_by_content(tmp_path: Path) -> None:
    expected = [feature.interval for feature in read_features(written(tmp_path, GFF3))]
    packed = tmp_path / "b.bed"
    packed.write_bytes(gzip.compress(GFF3.encode()))
    assert list(read_intervals(packed)) == expected
    assert list(read_intervals(written(tmp_path, GTF), kinds={"gene"})) == []
    assert [interval.length for interval in read_intervals(written(tmp_path, GENBANK), kinds={"CDS"})] == [10, 5]
    bed = written(tmp_path, "one\t5\t9\tx\t0\t-\n")
    assert list(read_intervals(bed)) == [gs.Interval("one", 5, 9, "-", "x")]
    with pytest.raises(FileFormatError, match=r"is BED, which has no kinds of features \(CDS\)"):
        list(read_intervals(bed, kinds={"CDS"}))
    # Eight columns of numbers and a strand may be BED too.
    assert list(read_intervals(written(tmp_path, "one\t5\t9\tx\t0\t+\t5\t9\n"))) == [gs.Interval("one", 5, 9, "+", "x")]


def test_regions(tmp_path: Path) -> None:
    lengths = {"chr1": 1000, "HLA:01:02": 50}
    assert list(read_intervals("chr1:1,001-2,000")) == [gs.Interval("chr1", 1000, 2000)]
    assert list(read_intervals("chr1", lengths=lengths)) == [gs.Interval("chr1", 0, 1000)]
    assert list(read_intervals("chr1:11-", lengths=lengths)) == [gs.Interval("chr1", 10, 1000)]
    assert list(read_intervals("HLA:01:02", lengths=lengths)) == [gs.Interval("HLA:01:02", 0, 50)]
    with pytest.raises(InputFileNotFoundError, match=r"none\.bed does not exist; expected a BED, GFF3, GTF, GenBank"):
        read_intervals(tmp_path / "none.bed")
    with pytest.raises(IntervalError, match="is not a region"):
        read_intervals("chr1:x-y")


@pytest.mark.parametrize(
    "text, message",
    [
        ("one\ts\tgene\t5\t4\t.\t+\t.\tID=a\n", "line 1: one:5-4 is no stretch of positions"),
        ("one\ts\tgene\t0\t4\t.\t+\t.\tID=a\n", "line 1: one:0-4 is no stretch of positions"),
        ("#x\none\ts\tgene\tx\t4\t.\t+\t.\tID=a\n", "line 2: start 'x' and end '4' are not both whole numbers"),
        ("one\ts\tgene\t1\t4\t.\tplus\t.\tID=a\n", "line 1: strand 'plus'"),
        ("##gff-version 3\none\ts\tgene\t1\t4\t.\t+\t.\tID=a;b\n", "line 2: attribute 'b' has no value"),
        ('one\ts\texon\t1\t4\t.\t+\t.\tgene_id "a; b\n', "line 1: attributes"),
        ("##gff-version 3\none\ts\tgene\t1\n", "line 2: 4 columns in"),
        (GENBANK.replace("60 bp", "61 bp"), "truncated or damaged GenBank"),
        (GENBANK.replace("complement(11..20)", "complement(11..x)"), "truncated or damaged GenBank"),
    ],
)
def test_malformed(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(FileFormatError, match=rf"{path}") as caught:
        list(read_features(path))
    assert message in str(caught.value)


def test_a_file_cut_off(tmp_path: Path) -> None:
    whole = gzip.compress(GFF3.encode())
    path = tmp_path / "a.gff.gz"
    for size in range(3, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(FileFormatError, match=r"a\.gff\.gz"):
            list(read_features(path))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 10**9), length=st.integers(1, 10**6), strand=st.sampled_from("+-"))
def test_every_format_names_the_same_interval(tmp_path: Path, start: int, length: int, strand: str) -> None:
    interval = gs.Interval("one", start, start + length, strand, "x")
    first, last = start + 1, start + length
    place = f"{first}..{last}" if strand == "+" else f"complement({first}..{last})"
    texts = [
        f"one\t{start}\t{start + length}\tx\t0\t{strand}\n",
        f"##gff-version 3\none\ts\tgene\t{first}\t{last}\t.\t{strand}\t.\tID=x\n",
        f'one\ts\tgene\t{first}\t{last}\t.\t{strand}\t.\tgene_id "x";\n',
        GENBANK.split("     source")[0].replace("AB000001.2", "one").replace("60 bp", f"{last} bp")
        + f'     gene            {place}\n                     /gene="x"\nCONTIG      join(x)\n//\n',
    ]
    for text in texts:
        assert list(read_intervals(written(tmp_path, text))) == [interval]
    (region,) = read_intervals(f"one:{first}-{last}")
    assert (region.start, region.end) == (start, start + length)


@pytest.mark.realdata
def test_real_annotations_agree(test_data: Path) -> None:
    """The GFF3 and the GenBank file of E. coli K-12 have the same coding sequences, and biopython reads them alike."""
    folder = test_data / "ecoli_k12"
    gff = folder / "GCF_000005845.2_ASM584v2_genomic.gff.gz"
    genbank = folder / "GCF_000005845.2_ASM584v2_genomic.gbff.gz"
    from_gff = {(i.start, i.end, i.strand) for i in read_intervals(gff, kinds={"CDS"})}
    from_genbank = {(i.start, i.end, i.strand) for i in read_intervals(genbank, kinds={"CDS"})}
    with gzip.open(genbank, "rt") as file:
        (record,) = SeqIO.parse(file, "genbank")
    parts = {
        (int(part.start), int(part.end), "+" if part.strand == 1 else "-")
        for feature in record.features
        if feature.type == "CDS"
        for part in feature.location.parts
    }
    assert from_genbank == parts
    assert len(from_gff & from_genbank) > 4200
    assert sum(1 for _ in read_features(test_data / "yeast" / "S_cerevisiae.gff3.gz")) == 23_058


def test_regions_have_no_kinds() -> None:
    with pytest.raises(IntervalError, match=r"chrM:1-100 is a region, which has no kinds of features \(gene\)"):
        read_intervals("chrM:1-100", kinds={"gene"})
