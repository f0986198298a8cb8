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
