import gzip
import pickle
import subprocess
import sys

import numpy as np
import pysam
import pytest

from genosparse.errors import FileFormatError, InputFileNotFoundError, IntervalError
from genosparse.intervals import (
    Interval,
    parse_region,
    position0_from_1based,
    position_1based,
    read_bed,
)


def test_interval_is_half_open_and_a_value():
    interval = Interval("chr1", np.int64(0), np.int32(10), "-", "promoter")
    assert (len(interval), interval.length) == (10, 10)
    assert type(interval.start) is type(interval.end) is int
    assert str(interval) == "chr1:0-10(-)"
    assert interval == Interval("chr1", 0, 10, "-", "promoter")
    assert pickle.loads(pickle.dumps(interval)) == interval  # noqa: S301 - our own bytes
    with pytest.raises(AttributeError):
        interval.start = 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("chr1", -1, 5), "begins before the contig"),
        (("chr1", 5, 5), "holds no base"),
        (("chr1", 6, 5), "holds no base"),
        (("chr1", 0, 5, "*"), r"strand '\*'"),
        (("chr1", 0.0, 5), r"start of an interval on chr1 is 0\.0"),
        (("chr1", 0, "5"), "end of an interval on chr1 is '5'"),
        (("", 0, 5), "contig is ''"),
        ((7, 0, 5), "contig is 7"),
    ],
)
def test_interval_refuses_what_cannot_be(arguments, message):
    with pytest.raises(IntervalError, match=message):
        Interval(*arguments)


def test_conversions_of_positions():
    assert position0_from_1based(1) == 0
    assert position_1based(0) == 1


@pytest.mark.parametrize(
    "text, expected",
    [
        ("chr1:1-1", Interval("chr1", 0, 1)),
        ("chr1:1,000-2,000", Interval("chr1", 999, 2000)),
        (" HLA-A*01:01:01:5-7 ", Interval("HLA-A*01:01:01", 4, 7)),
    ],
)
def test_regions_are_1based_and_closed(text, expected):
    assert parse_region(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "chr1",
        "chr1:5",
        "chr1:0-5",
        "chr1:6-5",
        ":1-5",
        "chr1:a-5",
        "chr1:0-10(+)",
        "",
        "chr1:,-5",
        "chr1:1-²",
        "chr1:1-" + "9" * 5000,
    ],
)
def test_what_is_no_region_is_refused(text):
    with pytest.raises(IntervalError, match="region"):
        parse_region(text)


BED = (
    b"#comment\ntrack name=x\nbrowser position chr7\n\n"
    b"chr7\t127471196\t127472363\nchr7\t0\t1\tPos 1\nchr7 5 6 Neg1 0 -\r\n"
    b"trackless\t1\t2\t.\t0\t+\t1\t2\t0\t1\t1,\t0,\nchr7\t8\t9\tx\t0\t."
)
BED_INTERVALS = [
    Interval("chr7", 127471196, 127472363),
    Interval("chr7", 0, 1, name="Pos 1"),
    Interval("chr7", 5, 6, "-", "Neg1"),
    Interval("trackless", 1, 2),
    Interval("chr7", 8, 9, ".", "x"),
]


def test_bed_of_every_width(tmp_path):
    (tmp_path / "a.bed").write_bytes(BED)
    assert list(read_bed(tmp_path / "a.bed")) == BED_INTERVALS


def test_bed_compressed_whatever_its_name(tmp_path):
    (tmp_path / "gzip.bed").write_bytes(gzip.compress(BED))
    with pysam.BGZFile(str(tmp_path / "bgzip"), "wb") as stream:
        stream.write(BED)
    assert list(read_bed(tmp_path / "gzip.bed")) == BED_INTERVALS
    assert list(read_bed(tmp_path / "bgzip")) == BED_INTERVALS


@pytest.mark.parametrize("content", [BED, gzip.compress(BED, mtime=0)])
def test_bed_from_standard_input(content):
    code = "from genosparse.intervals import read_bed; print(*read_bed('-'), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [str(interval) for interval in BED_INTERVALS]


def test_bed_without_intervals_gives_none(tmp_path):
    for content in (b"", b"# nothing\n"):
        (tmp_path / "empty.bed").write_bytes(content)
        assert list(read_bed(tmp_path / "empty.bed")) == []


@pytest.mark.parametrize(
    "line, message",
    [
        (b"chr1\t5", "line 2: 2 columns"),
        (b"chrom\tstart\tend", "line 2: start 'start' and end 'end' are not both whole numbers; put '#'"),
        (b"chr1\t1.5\t3", "line 2: start '1.5'"),
        (b"chr1\t1\t" + b"9" * 5000, "line 2: start '1' and end '999"),
        (b"chr1\t-1\t3", "line 2: interval chr1:-1-3 begins before"),
        (b"chr1\t3\t3", "line 2: interval chr1:3-3 holds no base"),
        (b"chr1\t1\t3\tx\t0\tplus", "line 2: .* strand 'plus'"),
        (b"chr1\t1\t3\t\xff", "is not UTF-8 text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    (tmp_path / "bad.bed").write_bytes(b"chr1\t0\t1\n" + line + b"\n")
    with pytest.raises(FileFormatError, match=rf"bad\.bed.* {message}"):
        list(read_bed(tmp_path / "bad.bed"))


def test_bed_that_is_missing_a_folder_or_cut_off(tmp_path):
    with pytest.raises(InputFileNotFoundError, match=r"no\.bed does not exist; expected a BED file"):
        read_bed(tmp_path / "no.bed")
    with pytest.raises(FileFormatError, match="is a folder; expected a BED file"):
        read_bed(tmp_path)
    (tmp_path / "cut.bed.gz").write_bytes(gzip.compress((BED + b"\n") * 100)[:-20])
    with pytest.raises(FileFormatError, match=r"cut\.bed\.gz is truncated"):
        list(read_bed(tmp_path / "cut.bed.gz"))


@pytest.mark.realdata
def test_real_bed_files(test_data):
    blacklist = list(read_bed(test_data / "human_chr20_b37/encode_hg19-blacklist.v2.bed"))
    assert blacklist[0] == Interval("chr10", 38726200, 42489100, name="High Signal Region")
    with (test_data / "human_chr20_b37/encode_hg19-blacklist.v2.bed").open() as lines:
        assert len(blacklist) == sum(1 for _ in lines)
    (gene,) = read_bed(test_data / "edge_cases/pyfaidx/gene.bed12")
    assert gene == Interval("chr17", 6010, 31420, "-", "uc010vpx.1")
    for name in ("pyfaidx/malformed.bed", "nucleus/nucleus/testdata/malformed.bed"):
        with pytest.raises(FileFormatError, match=r"malformed\.bed, line \d+: "):
            list(read_bed(test_data / "edge_cases" / name))


BED12 = "one\t100\t200\tx\t0\t-\t110\t190\t0\t2\t10,20,\t0,80,"


def test_bed12_whole_or_by_block(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text(f"{BED12}\none\t5\t9\n")
    assert list(read_bed(path)) == [Interval("one", 100, 200, "-", "x"), Interval("one", 5, 9)]
    assert list(read_bed(path, blocks=True)) == [
        Interval("one", 100, 110, "-", "x"), Interval("one", 180, 200, "-", "x"), Interval("one", 5, 9),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("\t2\t10,", "\t3\t10,", "blockCount is 3, with 2 block sizes and 2 block starts"),
        ("10,20,", "10,21,", "block of 21 bases, 80 after the start, does not lie within"),
        ("0,80,", "-1,80,", "block of 10 bases, -1 after the start"),
        ("110\t190", "90\t190", "thick part 90-190 does not lie within"),
        ("10,20,", "10,x,", "are not whole numbers"),
    ],
)
def test_bed12_that_contradicts_itself(tmp_path, old, new, message):
    path = tmp_path / "a.bed"
    path.write_text(f"one\t1\t2\n{BED12.replace(old, new)}\n")
    with pytest.raises(FileFormatError, match=rf"a\.bed, line 2: .*{message}"):
        list(read_bed(path))


def test_regions_with_known_lengths():
    lengths = {"one": 50, "a:1-2": 9, "a": 5}
    assert parse_region("one", lengths) == Interval("one", 0, 50)
    assert parse_region("one:11", lengths) == parse_region("one:11-", lengths) == Interval("one", 10, 50)
    with pytest.raises(IntervalError, match=r"'a:1-2' is a contig, and a region of contig 'a'"):
        parse_region("a:1-2", lengths)
    with pytest.raises(IntervalError, match="the length of 'two' is not known"):
        parse_region("two:5-", lengths)
    with pytest.raises(IntervalError, match="is not a region"):
        parse_region("one:5-")
