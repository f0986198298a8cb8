import gzip
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pysam
import pytest

from genosparse.errors import (
    ContigNotFoundError,
    FileFormatError,
    GenosparseWarning,
    InputFileNotFoundError,
    IntervalError,
)
from genosparse.intervals import (
    ContigMatcher,
    Interval,
    contig_not_found,
    match_contigs,
    no_contig_matches,
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


@pytest.mark.parametrize(
    "wanted, available, expected",
    [
        (["chr1", "chrM"], ["chr1", "chrM"], {"chr1": "chr1", "chrM": "chrM"}),
        (["1", "X", "MT"], ["chr1", "chrX", "chrM"], {"1": "chr1", "X": "chrX", "MT": "chrM"}),
        (["1", "1", "M"], ["chr1", "chrX", "chrM"], {"1": "chr1", "M": "chrM"}),
        (["chr1", "chrM", "Chr2"], ["1", "MT", "2"], {"chr1": "1", "chrM": "MT", "Chr2": "2"}),
        (["chr1", "2"], ["chr1", "1"], {"chr1": "chr1", "2": None}),
        (["chr", "chr11"], ["chr1"], {"chr": None, "chr11": None}),
    ],
)
def test_contigs_match_by_name(wanted, available, expected):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert match_contigs(wanted, available) == expected
    translated = [name for name, found in expected.items() if found not in (None, name)]
    assert len(caught) == bool(translated)


def test_the_notice_names_both_sides():
    with pytest.warns(
        GenosparseWarning, match=r"contigs of in\.vcf are matched to ref\.fa by name: '1' is 'chr1', .* 2 more$"
    ):
        match_contigs(
            ["1", "2", "3", "4", "5"], [f"chr{n}" for n in range(9)], wanted_from="in.vcf", available_from="ref.fa"
        )


def test_an_ambiguous_name_is_an_error():
    with pytest.raises(ContigNotFoundError, match="'chrMT' of the input could be any of 'M', 'MT' of the genome"):
        match_contigs(["chrMT"], ["M", "MT"])


@pytest.mark.parametrize("wanted", [["chrM", "MT"], ["MT", "chrM"]])
def test_two_names_for_one_contig_are_an_error(wanted):
    message = rf"contigs '{wanted[0]}' and '{wanted[1]}' of in\.vcf would both be 'MT' of ref\.fa; rename"
    with pytest.raises(ContigNotFoundError, match=message):
        match_contigs(wanted, ["MT"], wanted_from="in.vcf", available_from="ref.fa")
    matcher = ContigMatcher(["MT"], wanted_from="in.vcf", available_from="ref.fa")
    with warnings.catch_warnings(action="ignore", category=GenosparseWarning):
        assert [matcher.match(wanted[0]) for _ in range(2)] == ["MT", "MT"]
        with pytest.raises(ContigNotFoundError, match=message):
            matcher.match(wanted[1])


def test_lengths_that_differ_forbid_another_name():
    lengths = {"chrM": 16571, "chr1": 1000, "chr2": None}
    genome = {"MT": 16569, "1": 1000, "2": 5}
    message = r"contig 'chrM' \(16571 bp\) of the input is not taken for 'MT' \(16569 bp\) of the genome: their lengths"
    with pytest.warns(GenosparseWarning) as caught:
        assert match_contigs([*lengths, "3"], genome, wanted_lengths=lengths) == {
            "chrM": None,
            "chr1": "1",
            "chr2": "2",
            "3": None,
        }
    assert [bool(re.match(message, str(notice.message))) for notice in caught] == [True, False]
    assert "'chr1' is '1', 'chr2' is '2'" in str(caught[1].message)
    matcher = ContigMatcher(genome, wanted_lengths=lengths)
    with pytest.warns(GenosparseWarning, match=message):
        assert matcher.match("chrM") is None
    assert matcher.match("chrM") is None  # a second notice would be an error here
    # Where hg19 has both, only the right one is taken; a name that is there is taken whatever its length.
    both = match_contigs(["chrM", "MT"], {"MT": 16569, "chrM": 16569}, wanted_lengths={"chrM": 16571, "MT": 16569})
    assert both == {"chrM": "chrM", "MT": "MT"}


def test_lengths_choose_between_names():
    with pytest.warns(GenosparseWarning, match="'chrMT' is 'M'"):
        found = match_contigs(["chrMT"], {"M": 16571, "MT": 16569}, wanted_lengths={"chrMT": 16571})
    assert found == {"chrMT": "M"}


def test_a_matcher_gives_one_notice_in_all():
    matcher = ContigMatcher(["chr1", "chr2", "chr3"])
    assert matcher.match("chr3") == "chr3"
    with pytest.warns(GenosparseWarning, match="contig '1' of the input is read as 'chr1'"):
        assert matcher.match("1") == "chr1"
    assert matcher.match("2") == "chr2"  # a second notice would be an error here
    assert matcher.match("4") is None


def test_errors_for_contigs_that_are_not_there():
    available = ["chr17", *(f"chr{n}" for n in range(1, 17))]
    assert str(contig_not_found("17", available, "hg38.fa")).startswith(
        "contig '17' is not in hg38.fa (it has 'chr17' and 16 others);"
    )
    assert "(it has 'a', 'b')" in str(contig_not_found("c", ["a", "b"], "x.fa"))
    assert "no contig of in.vcf ('1') is in x.fa ('a', 'b', 'c', 'd' and 1 other)" in str(
        no_contig_matches(["1"], list("abcde"), "in.vcf", "x.fa")
    )


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
