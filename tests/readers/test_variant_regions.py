"""Regions of variant files: with an index and without, the same records; never a gap."""

import os
import random
import shutil
import struct
from pathlib import Path

import pysam
import pysam.bcftools
import pytest

from genosparse.errors import ContigNotFoundError, FileFormatError, GenosparseWarning, IntervalError
from genosparse.intervals import Interval
from genosparse.readers import read_variants
from genosparse.readers.variant_index import find_index

HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=250000000>\n##contig=<ID=chr2>\n##contig=<ID=chr3>\n"
    '##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n'
    '##INFO=<ID=SVLEN,Number=.,Type=Integer,Description="Length">\n'
    '##ALT=<ID=DEL,Description="Deletion">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
# 1-based; REF of 4 bases at 16,382 spans a window of the index (2^14), and the deletion many of them.
RECORDS = [
    ("chr1", 1, "A", "C", "."),
    ("chr1", 100, "A", "<DEL>", "SVLEN=-199900;END=200000"),
    ("chr1", 16382, "ACGT", "A", "."),
    ("chr1", 16384, "A", "G", "."),
    ("chr1", 16385, "A", "G", "."),
    ("chr1", 500000, "A", "G", "."),
    ("chr1", 200000000, "ACGT", "A", "."),
    ("chr2", 5, "A", "G", "."),
]


def write_vcf(path, records=RECORDS, index=None, header=HEADER):
    lines = [f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t{info}\n" for contig, pos, ref, alt, info in records]
    with pysam.BGZFile(str(path), "wb") as stream:
        stream.write((header + "".join(lines)).encode())
    if index:
        pysam.tabix_index(str(path), preset="vcf", csi=index == "csi")
    return path


def write_bcf(path, vcf, index=True):
    pysam.bcftools.view("--no-version", "-Ob", "-o", str(path), str(vcf), catch_stdout=False)
    if index:
        pysam.bcftools.index("-c", str(path))
    return path


def places(path, start, end, contig="chr1"):
    return [variant.position0 + 1 for variant in read_variants(path, Interval(contig, start, end))]


@pytest.fixture(params=["scan", "tbi", "csi", "bcf"])
def path(request, tmp_path):
    if request.param == "bcf":
        return write_bcf(tmp_path / "x.bcf", write_vcf(tmp_path / "for_bcf.vcf.gz"))
    return write_vcf(tmp_path / "x.vcf.gz", index=None if request.param == "scan" else request.param)


@pytest.mark.parametrize(
    "start, end, expected",
    [
        (0, 1, [1]),
        (1, 99, []),
        (98, 100, [100]),
        (16380, 16381, [100]),
        (16381, 16382, [100, 16382]),
        (16384, 16385, [100, 16382, 16385]),  # the fourth base of ACGT, and A at the same place
        (16385, 16386, [100]),
        (199_999, 200_000, [100]),  # END=200000 is the last base of the deletion
        (200_000, 499_999, []),
        (499_999, 500_000, [500_000]),
        (199_999_999, 200_000_000, [200_000_000]),
        (200_000_002, 200_000_003, [200_000_000]),
        (200_000_003, 2**40, []),
        (240_000_000, 240_000_001, []),
        (0, 2**40, [1, 100, 16382, 16384, 16385, 500_000, 200_000_000]),
    ],
)
def test_records_that_span_a_base_of_the_region(path, start, end, expected):
    assert places(path, start, end) == expected


def test_other_contigs(path):
    assert places(path, 4, 5, "chr2") == [5]
    assert places(path, 0, 4, "chr2") == []
    assert places(path, 0, 100, "chr3") == []  # declared, and without records
    with pytest.raises(ContigNotFoundError, match=r"contig 'chr9' is not in .*x\.(vcf\.gz|bcf) \(it has 'chr1', "):
        places(path, 0, 100, "chr9")
    with pytest.warns(GenosparseWarning, match="contig 'chr2' of .* is read as '2' of the region"):
        assert places(path, 0, 100, "2") == [5]


def test_a_region_is_an_interval(path):
    with pytest.raises(IntervalError, match="region is 'chr1:1-5'; expected an Interval: parse_region makes one"):
        read_variants(path, "chr1:1-5")


def test_record_index_counts_within_the_region(path):
    variants = list(read_variants(path, Interval("chr1", 16381, 16385, "-")))
    assert [variant.record_index for variant in variants] == [0, 1, 2, 3]
    assert [variant.ref for variant in variants] == ["A", "ACGT", "A", "A"]


def test_an_index_spares_reading_the_whole_file(tmp_path):
    records = [("chr1", 10 * n + 1, "A", "C" if n != 40_000 else "C,,", ".") for n in range(50_000)]
    path = write_vcf(tmp_path / "x.vcf.gz", records, "tbi")
    assert places(path, 100_000, 100_020) == [100_001, 100_011]
    with pytest.raises(FileFormatError, match=r"x\.vcf\.gz, read from chr1:399981 on, line \d+: ALT is 'C,,'"):
        places(path, 399_980, 400_010)
    (tmp_path / "x.vcf.gz.tbi").unlink()
    with pytest.raises(FileFormatError, match=r"x\.vcf\.gz, line 40009: ALT is 'C,,'"):
        places(path, 100_000, 100_020)


@pytest.mark.parametrize("kind", ["tbi", "csi"])
def test_an_index_that_is_out_of_date(tmp_path, kind):
    path = write_vcf(tmp_path / "x.vcf.gz", RECORDS[:3], kind)
    write_vcf(path)  # the index now knows nothing of the later records
    os.utime(tmp_path / f"x.vcf.gz.{kind}", (1, 1))
    with pytest.warns(GenosparseWarning, match=rf"x\.vcf\.gz is read from its beginning: .*\.{kind} is older"):
        assert places(path, 499_999, 500_000) == [500_000]


@pytest.mark.parametrize("kind", ["tbi", "csi", "bcf"])
def test_an_index_of_another_file_or_in_ruins(tmp_path, kind):
    path = write_vcf(tmp_path / "x.vcf.gz", index=None if kind == "bcf" else kind)
    if kind == "bcf":
        path = write_bcf(tmp_path / "x.bcf", path)
    index = path.with_name(path.name + (".csi" if kind == "bcf" else f".{kind}"))
    whole = index.read_bytes()
    other = write_vcf(tmp_path / "other.vcf.gz", RECORDS[:4], None if kind == "bcf" else kind)
    if kind == "bcf":
        other = write_bcf(tmp_path / "other.bcf", other)
    of_other = other.with_name(other.name + index.suffix).read_bytes()
    for content, reason in (
        (of_other, "does not fit the file"),
        (whole[: len(whole) // 2], "is truncated or damaged"),
        (b"", "is truncated or damaged|does not fit"),
        (b"no index at all", "is truncated or damaged"),
    ):
        index.write_bytes(content)
        with pytest.warns(GenosparseWarning, match=f"read from its beginning: .*{index.name} ({reason})"):
            assert places(path, 499_999, 500_000) == [500_000], content


@pytest.mark.filterwarnings(
    "ignore:.*does not fit the file, or the file is damaged:genosparse.errors.GenosparseWarning"
)
@pytest.mark.parametrize("kind", ["tbi", "csi", "bcf"])
def test_damage_within_the_region_is_an_error(tmp_path, kind):
    rng = random.Random(5)
    records = [
        ("chr1", 7 * n + 1, "ACGT"[n % 4], rng.choice("ACGT"), f"END={8 * n + rng.randint(9, 9999)}")
        for n in range(30_000)
    ]
    path = write_vcf(tmp_path / "x.vcf.gz", records, None if kind == "bcf" else kind)
    if kind == "bcf":
        path = write_bcf(tmp_path / "x.bcf", path)
    index = path.with_name(path.name + (".csi" if kind == "bcf" else f".{kind}"))
    whole = path.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    os.utime(index)
    with pytest.raises(
        FileFormatError, match=rf"{path.name}(, read from chr1:35001 on)?(,| has| is) .*(damaged|line \d+)"
    ):
        places(path, 7 * 5000, 7 * 29_000)
    path.write_bytes(whole[:-28])
    os.utime(index)
    with pytest.raises(FileFormatError, match=rf"{path.name} is truncated"):
        places(path, 0, 100)


def test_a_region_of_a_table_and_of_an_unsorted_file(tmp_path):
    table = tmp_path / "x.tsv"
    table.write_text("chr1\t20\tA\tC\nchr1\t10\tA\tC\nchr2\t10\tA\tC\n1\t21\tA\tC\n")
    with pytest.raises(ContigNotFoundError, match="contigs 'chr1' and '1' of"), pytest.warns(GenosparseWarning):
        places(table, 0, 100, "1")
    assert places(table, 0, 100) == [20, 10]
    with pytest.raises(ContigNotFoundError, match="contig 'chr3' is not in"):
        places(table, 0, 100, "chr3")


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name, kind",
    [
        ("1000G_phase3_chr20_1000001-2000000_sites.vcf.gz", "tbi"),
        ("1000G_phase3_chr20_1000001-2000000_sites.vcf.gz", "csi"),
        ("1000G_phase3_chr20_1000001-2000000_sites.vcf.gz", "bcf"),
        ("clinvar.b37.chr20.vcf.gz", "tbi"),
        ("clinvar.b37.chr20.vcf.gz", "csi"),
    ],
)
def test_regions_of_real_files_as_bcftools_gives_them(test_data, tmp_path, name, kind):
    path = shutil.copyfile(test_data / "human_chr20_b37" / name, tmp_path / name)
    if kind == "bcf":
        path = tmp_path / "x.bcf"
        pysam.bcftools.view("-Ob", "-o", str(path), str(tmp_path / name), catch_stdout=False)
    pysam.bcftools.index("-t" if kind == "tbi" else "-c", "-f", str(path))
    everything = list(read_variants(path))
    rng = random.Random(1)
    for _ in range(25):
        at = rng.choice(everything)
        start = max(0, at.position0 - rng.choice([0, 1, 5, 1000]))
        region = Interval("20", start, start + rng.choice([1, 2, 10, 5000]))
        found = [(v.position0 + 1, v.ref, v.alts) for v in read_variants(path, region)]
        listed = pysam.bcftools.view("-H", "-r", f"20:{region.start + 1}-{region.end}", str(path)).splitlines()
        expected = [line.split("\t")[:5] for line in listed]
        assert found == [
            (int(pos), ref, () if alt == "." else tuple(alt.split(","))) for _, pos, _, ref, alt in expected
        ]


@pytest.mark.parametrize("depth", [5, 6])
def test_csi_of_other_shapes(tmp_path, depth):
    # Bins of 2^12 and 2^16 bases instead of 2^14.
    path = write_vcf(tmp_path / "x.vcf.gz")
    pysam.bcftools.index("-c", "-m", "12" if depth == 6 else "16", str(path))
    shift = struct.unpack_from("<4sii", pysam.BGZFile(str(path) + ".csi").read(12))[1]
    assert shift == (12 if depth == 6 else 16)
    assert places(path, 499_999, 500_000) == [500_000]
    assert places(path, 150_000, 150_001) == [100]
    assert places(path, 200_000_002, 200_000_003) == [200_000_000]


@pytest.mark.parametrize("index", ["tbi", "csi"])
def test_names_that_look_like_urls(tmp_path, monkeypatch, index):
    for found in write_vcf(tmp_path / "x.vcf.gz", index=index).parent.glob("x.vcf.gz*"):
        found.rename(tmp_path / f"data:{found.name}")
    monkeypatch.chdir(tmp_path)
    assert find_index(Path("data:x.vcf.gz")) is not None
    assert places(Path("data:x.vcf.gz"), 499_990, 500_010) == [500_000]
