"""Channels against sums that are made one base at a time, and against samtools."""

import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sam_files import channels_by_hand, parts_of, sam_line, write_bam

import genosparse as gs
from genosparse.channels import CHANNELS
from genosparse.errors import ConfigError, ContigNotFoundError, GenosparseWarning, IntervalError, SequenceError

ALL = dict.fromkeys(CHANNELS, ...)


def channels_of(path: Path, lines: list[str], start: int, end: int, **filters: object) -> dict[str, list[float]]:
    alignments = gs.Alignments(write_bam(path / "reads.bam", lines), filters=gs.ReadFilters(**filters))
    channels = alignments.channels(gs.Interval("one", start, end))
    assert channels.values.dtype == np.float32
    assert channels.values.shape == (end - start, len(CHANNELS))
    return {name: channels[name].tolist() for name in CHANNELS}


def test_one_read(tmp_path: Path) -> None:
    """2 clipped, 3 aligned, 1 inserted, 2 aligned, 1 deleted, 2 aligned: from position 10 to 18."""
    line = sam_line("r", 11, "2S3M1I2M1D2M", flags=16, quality=30, bases="NNACGTTTAC", qualities="!!ABCDEFGH")
    found = channels_of(tmp_path, [line], 9, 19)
    assert found["depth"] == [0, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert found["A"] == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    assert found["C"] == [0, 0, 1, 0, 0, 0, 0, 0, 1, 0]
    assert found["G"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert found["T"] == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert found["deletion"] == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert found["insertion"] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert found["base_quality"] == [0, *(ord(x) - 33 for x in "ABCEF"), 0, *(ord(x) - 33 for x in "GH"), 0]
    assert found["mapping_quality"] == [0, *[30] * 8, 0]
    assert found["reverse_strand"] == [0, *[1] * 8, 0]
    assert found["soft_clip"] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_skipped_introns_ambiguous_bases_and_reads_without_bases(tmp_path: Path) -> None:
    lines = [
        sam_line("spliced", 11, "2M5N2M", bases="ACGT"),
        sam_line("ambiguous", 11, "2M", bases="RN"),
        sam_line("bare", 11, "2M", bases="*"),
        sam_line("unknown-quality", 11, "2M", bases="AC", qualities="*"),
    ]
    found = channels_of(tmp_path, lines, 10, 19, min_base_quality=10)
    assert found["depth"] == [4, 4, 0, 0, 0, 0, 0, 1, 1]
    assert found["A"] == [0.5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert found["base_quality"] == [40, 40, 0, 0, 0, 0, 0, 40, 40]


def test_overlapping_mates_count_once(tmp_path: Path) -> None:
    first = sam_line("pair", 11, "10M", flags=99, bases="A" * 10, mate=("=", 15))
    second = sam_line("pair", 15, "10M", flags=147, bases="C" * 10, mate=("=", 11))
    other = sam_line("pair", 40, "4M", flags=99 | 0x800, mate=("=", 15))
    found = channels_of(tmp_path, [first, second, other], 10, 24)
    assert found["depth"] == [1] * 14
    assert found["A"] == [1] * 10 + [0] * 4
    assert found["reverse_strand"] == [0] * 10 + [1] * 4
    twice = channels_of(tmp_path, [first, second, other], 10, 24, count_overlaps=True)
    assert twice["depth"] == [1] * 4 + [2] * 6 + [1] * 4
    written_twice = channels_of(tmp_path, [first, first, second], 10, 24)
    assert written_twice["depth"] == [2] * 10 + [1] * 4


OPERATIONS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from("MMMIDNSP=X")), min_size=1, max_size=7)


@st.composite
def cigars(draw: st.DrawFn) -> str:
    inner = [(length, kind) for length, kind in draw(OPERATIONS) if kind != "S"]
    clips = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    parts = [(draw(st.integers(0, 3)), "H"), (clips[0], "S"), *inner, (draw(st.integers(1, 9)), "M"), (clips[1], "S")]
    merged: list[tuple[int, str]] = []
    for length, kind in parts:
        if length and merged and merged[-1][1] == kind:
            merged[-1] = merged[-1][0] + length, kind
        elif length:
            merged.append((length, kind))
    return "".join(f"{length}{kind}" for length, kind in merged)


@st.composite
def reads(draw: st.DrawFn, number: int) -> list[str]:
    """One read, or two mates."""

    def line(flags: int, position: int, mate: tuple[str, int]) -> str:
        cigar = draw(cigars())
        size = 130
        bases = draw(st.one_of(st.text("ACGTACGTNR", min_size=size, max_size=size), st.just("*")))
        values = draw(st.binary(min_size=size, max_size=size)).translate(UPTO60)
        qualities = "".join(chr(33 + value) for value in values)
        length = sum(int(n) for n, kind in parts_of(cigar) if kind in "MIS=X")
        shown = draw(st.sampled_from([qualities[:length], "*"]))
        quality = draw(st.integers(0, 60))
        return sam_line(
            f"r{number}", position, cigar, flags=flags, quality=quality, bases=bases, qualities=shown, mate=mate
        )

    position = draw(st.integers(1, 120))
    extra = draw(st.sampled_from([0, 0, 0, 0, 0x100, 0x200, 0x400, 0x800]))
    if draw(st.booleans()):
        return [line(draw(st.sampled_from([0, 16])) | extra, position, ("*", 0))]
    mate = position + draw(st.integers(0, 30))
    return [line(99 | extra, position, ("=", mate)), line(147, mate, ("=", position))]


UPTO60 = bytes(value % 60 for value in range(256))


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_channel_is_what_one_base_at_a_time_gives(tmp_path: Path, data: st.DataObject) -> None:
    lines = [line for number in range(data.draw(st.integers(0, 8))) for line in data.draw(reads(number))]
    filters = gs.ReadFilters(
        min_base_quality=data.draw(st.sampled_from([0, 0, 20])),
        min_mapping_quality=data.draw(st.sampled_from([0, 0, 20])),
        count_overlaps=data.draw(st.booleans()),
        exclude_flags=data.draw(st.sampled_from([0x704, 0])),
    )
    path = write_bam(tmp_path / "reads.bam", lines)
    os.utime(path, ns=(0, int.from_bytes(hashlib.sha256("".join(lines).encode()).digest()[:6], "big")))
    start = data.draw(st.integers(0, 150))
    end = start + data.draw(st.integers(1, 200))
    with gs.Alignments(path, filters=filters) as alignments:
        found = alignments.channels(gs.Interval("one", start, end))
        expected = channels_by_hand(path, "one", start, end, filters)
        np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=0)
        # Any of the channels alone is what it is among all, and so is any part of the interval.
        name = data.draw(st.sampled_from(CHANNELS))
        np.testing.assert_array_equal(alignments.channels(found.interval, (name,))[name], found[name])
        cut = data.draw(st.integers(start, end))
        halves = [gs.Interval("one", *ends) for ends in ((start, cut), (cut, end)) if ends[0] < ends[1]]
        joined = np.concatenate([alignments.channels(half).values for half in halves])
        np.testing.assert_array_equal(joined, found.values)


def test_the_deepest_positions_keep_the_same_reads_everywhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for number in range(300):
        bases = "".join(rng.choice(list("ACGT"), 60))
        qualities = "".join(chr(33 + value) for value in rng.integers(2, 41, 60))
        cigar = rng.choice(["60M", "30M5D25M5S", "5S20M2I33M"])
        lines.append(sam_line(f"r{number}", int(rng.integers(1, 200)), str(cigar), bases=bases, qualities=qualities))
    path = write_bam(tmp_path / "reads.bam", lines)
    whole = gs.Interval("one", 0, 300)
    for least_quality in (0, 15):
        full = gs.Alignments(path, filters=gs.ReadFilters(min_base_quality=least_quality)).channels(whole)
        limited = gs.Alignments(path, filters=gs.ReadFilters(min_base_quality=least_quality, max_depth=20))
        found = limited.channels(whole)
        assert full["depth"].max() > 60
        np.testing.assert_array_equal(found["depth"], np.minimum(full["depth"], 20))
        shallow = full["depth"] <= 20
        np.testing.assert_array_equal(found.values[shallow], full.values[shallow])
        np.testing.assert_array_equal(limited.channels(gs.Interval("one", 77, 123)).values, found.values[77:123])
        bases = found.values[:, 1:6].sum(axis=1)
        np.testing.assert_allclose(bases[found["depth"] > 0], 1, rtol=1e-6)
        # The reads that stay are chosen without a look at what they say.
        deep = full["depth"] > 40
        assert abs(found["A"][deep].mean() - full["A"][deep].mean()) < 0.03
        assert abs(found["mapping_quality"][deep] - 60).max() == 0


def test_the_minus_strand_is_the_other_strand(tmp_path: Path) -> None:
    lines = [sam_line("r", 11, "4M1I3M", bases="AACGTTTT"), sam_line("s", 15, "9M", flags=16)]
    path = write_bam(tmp_path / "reads.bam", lines)
    with gs.Alignments(path) as alignments:
        plus = alignments.channels(gs.Interval("one", 8, 30))
        minus = alignments.channels(gs.Interval("one", 8, 30, "-"))
    for name, other in (("A", "T"), ("C", "G"), *((name, name) for name in ("depth", "insertion", "deletion"))):
        np.testing.assert_array_equal(minus[name], plus[other][::-1])
    covered = plus["depth"] > 0
    np.testing.assert_array_equal(minus["reverse_strand"][covered[::-1]], 1 - plus["reverse_strand"][covered][::-1])
    assert not minus["reverse_strand"][~covered[::-1]].any()


def test_bases_stored_as_equal_signs_are_the_references(tmp_path: Path) -> None:
    sequence = "ACGT" * 100
    (tmp_path / "ref.fa").write_text(f">one\n{sequence}\n>two\n{'A' * 300}\n")
    path = write_bam(tmp_path / "reads.bam", [sam_line("r", 11, "2S6M", bases="GG==A==T")])
    interval = gs.Interval("one", 10, 16)
    with gs.Alignments(path) as alignments, pytest.raises(SequenceError, match=r"pass reference="):
        alignments.channels(interval)
    with gs.Alignments(path) as alignments, pytest.raises(SequenceError, match=r"read 'r' stores bases as '='"):
        list(alignments.reads())
    with gs.Alignments(path, tmp_path / "ref.fa") as alignments:
        values = alignments.channels(interval).values[:, 1:5]
        assert "".join("ACGT"[base] for base in values.argmax(axis=1)) == "GTA" + sequence[13:15] + "T"
        (read,) = alignments.reads()
        assert gs.NucleotideTokenizer().decode(read.tokens) == "GG" + "GTA" + sequence[13:15] + "T"


def test_wrong_places_names_and_filters(tmp_path: Path) -> None:
    alignments = gs.Alignments(write_bam(tmp_path / "reads.bam", [sam_line("r", 11, "6M")]))
    with pytest.raises(ContigNotFoundError, match=r"contig 'three' is not in .*reads\.bam"):
        alignments.channels(gs.Interval("three", 0, 10))
    with pytest.raises(IntervalError, match=r"reaches past the end of one in .*reads\.bam, which has 400"):
        alignments.channels(gs.Interval("one", 390, 401))
    with pytest.raises(ConfigError, match=r"'coverage' is no channel; expected some of depth, A, C"):
        alignments.channels(gs.Interval("one", 0, 10), ("depth", "coverage"))
    for wrong in (
        {"max_depth": 0}, {"min_base_quality": -1}, {"min_mapping_quality": 2.5}, {"exclude_flags": 1 << 16},
        {"require_flags": 0x400},
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            gs.ReadFilters(**wrong)


def test_alignments_go_through_pickle_and_a_closed_file_says_so(tmp_path: Path) -> None:
    alignments = gs.Alignments(
        write_bam(tmp_path / "reads.bam", [sam_line("r", 11, "6M")]), filters=gs.ReadFilters(max_depth=3)
    )
    copy = pickle.loads(pickle.dumps(alignments))  # noqa: S301
    assert copy.filters == alignments.filters
    interval = gs.Interval("one", 0, 30)
    np.testing.assert_array_equal(copy.channels(interval).values, alignments.channels(interval).values)
    alignments.close()
    with pytest.raises(gs.GenosparseError, match="has been closed"):
        alignments.channels(interval)


# Real reads


@pytest.fixture
def na12878(test_data: Path) -> Path:
    return test_data / "human_chr20_b37" / "NA12878_S1.chr20.10_10p1mb.bam"


REGION = gs.Interval("chr20", 9_999_900, 10_100_100)


@pytest.mark.realdata
def test_base_counts_are_those_of_pysam(na12878: Path) -> None:
    with pysam.AlignmentFile(str(na12878)) as file:
        expected = np.array(file.count_coverage(REGION.contig, REGION.start, REGION.end, quality_threshold=20)).T
    filters = gs.ReadFilters(count_overlaps=True, min_base_quality=20)
    with gs.Alignments(na12878, filters=filters) as alignments:
        found = alignments.channels(REGION)
    np.testing.assert_array_equal(np.rint(found.values[:, 1:5] * found["depth"][:, None]), expected)


@pytest.mark.realdata
def test_nanopore_reads_give_the_counts_of_pysam(test_data: Path) -> None:
    path = test_data / "nanopore_bam" / "Kpneumoniae_HS11286_ONT_0-1Mb.bam"
    interval = gs.Interval("NC_016845.1", 300_000, 350_000)
    with pysam.AlignmentFile(str(path)) as file:
        expected = np.array(file.count_coverage(interval.contig, interval.start, interval.end, quality_threshold=0)).T
    with gs.Alignments(path) as alignments:
        found = alignments.channels(interval)
    np.testing.assert_array_equal(np.rint(found.values[:, 1:5] * found["depth"][:, None]), expected)
    assert found["deletion"].max() > 0
    assert found["insertion"].max() > 0


@pytest.mark.realdata
def test_cram_gives_what_its_bam_gives(na12878: Path) -> None:
    cram = na12878.with_name("NA12878_S1.chr20.10_10p1mb.derived.cram")
    interval = gs.Interval("chr20", 10_020_000, 10_030_000)
    with (
        gs.Alignments(cram, na12878.with_name("ucsc.hg19.chr20.unittest.fasta.gz")) as packed,
        gs.Alignments(na12878) as alignments,
    ):
        names = {read.name for read in packed.reads(interval)}
        # The CRAM was made without the reads whose mates are on other contigs.
        expected = [read for read in alignments.reads(interval) if read.name in names]
        for found, read in zip(packed.reads(interval), expected, strict=True):
            assert (found.name, found.flags, found.position0, found.cigar) == (
                read.name, read.flags, read.position0, read.cigar,
            )  # fmt: skip
            np.testing.assert_array_equal(found.tokens, read.tokens)
            np.testing.assert_array_equal(found.qualities, read.qualities)
        assert len(expected) > 4000
        assert packed.channels(interval)["depth"].mean() > 40


def test_more_reads_at_a_position_than_sixteen_bits_count(tmp_path: Path) -> None:
    """Counts are kept in 16 bits until they are full."""
    places = [(101, "10M", 70_000, "A"), (105, "2M3I8M", 66_000, "C"), (300, "5M", 70_000, "G")]
    lines = [
        sam_line(f"{position}.{number}", position, cigar, bases=base * 13)
        for position, cigar, count, base in places
        for number in range(count)
    ]
    found = channels_of(tmp_path, lines, 90, 310)
    expected = np.zeros((3, 400))
    for row, (position, _, count, _) in enumerate(places):
        expected[row, position - 1 : position - 1 + (5 if row == 2 else 10)] = count
    depth = expected.sum(axis=0)
    fractions = (expected / np.maximum(depth, 1))[:, 90:310].astype(np.float32)
    assert found["depth"] == depth[90:310].tolist()
    for row, name in enumerate("ACG"):
        assert found[name] == fractions[row].tolist()


def test_long_reads_with_long_insertions(tmp_path: Path) -> None:
    """What is inserted is passed over, however long, among bases that are many enough for an array of their own."""
    random = np.random.default_rng(4)
    header = "@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:one\tLN:200000\n"
    lines = []
    for number, cigar in enumerate(
        ("3S40001M7I20000M", "30000M40000I30000M", "600M1I599M2D1I1000M" * 20, "150M1I150M")
    ):
        bases = "".join(random.choice(list("ACGTN"), 120_000))
        qualities = "".join(chr(33 + value) for value in random.integers(0, 40, 120_000))
        length = sum(int(size) for size, kind in parts_of(cigar) if kind in "MIS")
        lines.append(sam_line(f"r{number}", 1001 + 7 * number, cigar, bases=bases, qualities=qualities[:length]))
    path = write_bam(tmp_path / "reads.bam", lines, header)
    for filters in (gs.ReadFilters(), gs.ReadFilters(min_base_quality=12)):
        with gs.Alignments(path, filters=filters) as alignments:
            for start, end in ((0, 100_000), (1303, 1304), (30_500, 31_500)):
                found = alignments.channels(gs.Interval("one", start, end)).values
                np.testing.assert_allclose(found, channels_by_hand(path, "one", start, end, filters), rtol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_small_counters_pieces_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Counts that are full, pieces that end and batches that end after a few reads, in all orders."""
    monkeypatch.setattr("genosparse.readers.alignments.pileup._MOST_COUNT", 5)
    monkeypatch.setattr("genosparse.readers.alignments.pileup._PIECE_BASES", 64)
    monkeypatch.setattr("genosparse.readers.alignments.pileup._LONG_RUN", 16)
    monkeypatch.setattr("genosparse.readers.alignments.files._BATCH_BYTES", 2_000)
    random = np.random.default_rng(seed)
    lines = []
    for number in range(150):
        cigar = str(random.choice(["30M", "30M", "29M", "90M", "5M2I8M3D40M", "3S20M10N20M1I9M", "4M1I4M1I4M"]))
        bases = "".join(random.choice(list("ACGTN"), 120))
        qualities = "".join(chr(33 + value) for value in random.integers(0, 40, 120))
        length = sum(int(size) for size, kind in parts_of(cigar) if kind in "MIS")
        position = int(random.integers(1, 280))
        lines.append(sam_line(f"r{number}", position, cigar, bases=bases, qualities=qualities[:length]))
    path = write_bam(tmp_path / "reads.bam", lines)
    for filters in (gs.ReadFilters(), gs.ReadFilters(min_base_quality=12)):
        with gs.Alignments(path, filters=filters) as alignments:
            for start, end in ((0, 400), (100, 160), (133, 134), (0, 120)):
                found = alignments.channels(gs.Interval("one", start, end)).values
                np.testing.assert_allclose(found, channels_by_hand(path, "one", start, end, filters), rtol=1e-6)


def test_reads_without_a_name_are_reads_of_their_own(tmp_path: Path) -> None:
    lines = [sam_line("*", 1 + number % 7, "50M", bases="ACGT" * 20, quality=number % 60) for number in range(80)]
    path = write_bam(tmp_path / "reads.bam", lines)
    with gs.Alignments(path, filters=gs.ReadFilters(max_depth=10)) as alignments:
        depth = alignments.channels(gs.Interval("one", 10, 40))["depth"]
    assert 10 <= depth.min() <= depth.max() <= 14  # 80 records of which some are the same
    mates = [
        sam_line("*", 11, "10M", flags=99, mate=("=", 15)),
        sam_line("*", 15, "10M", flags=147, mate=("=", 11)),
    ]
    assert channels_of(tmp_path, mates, 10, 24)["depth"] == [1] * 4 + [2] * 6 + [1] * 4


def test_contigs_by_any_name_in_any_order(tmp_path: Path) -> None:
    header = "@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:chr20\tLN:400\n"
    path = write_bam(tmp_path / "reads.bam", [sam_line("r", 11, "50M", contig="chr20")], header)
    with gs.Alignments(path) as alignments:
        depths = []
        with pytest.warns(GenosparseWarning, match="20"):
            depths.append(alignments.channels(gs.Interval("20", 0, 100))["depth"].sum())
        depths += [alignments.channels(gs.Interval(name, 0, 100))["depth"].sum() for name in ("chr20", "20")]
    assert depths == [50, 50, 50]


def test_filters_are_checked() -> None:
    with pytest.raises(ConfigError, match="count_overlaps='no': expected True or False"):
        gs.ReadFilters(count_overlaps="no")
