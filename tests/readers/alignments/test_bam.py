"""Records out of BGZF's blocks and the places that an index names, beside what htslib makes of the same files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pysam
import pytest
from sam_files import sam_line, write_bam

from genosparse.readers._bgzf import BlockReader
from genosparse.readers.alignments.bam import BinIndex, first_record, read_records
from genosparse.readers.alignments.records import Records

LENGTH = 3_000_000
HEADER = f"@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:empty\tLN:50\n@SQ\tSN:long\tLN:{LENGTH}\n@SQ\tSN:last\tLN:40000\n"
INDEXES = {"bai": [], "csi": ["-c"], "fine csi": ["-c", "-m", "9"]}


@pytest.fixture(scope="module")
def spliced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many short reads, with gaps where there are none, a few that span much, and some that have no place."""
    random = np.random.default_rng(0)
    qualities = ["".join(map(chr, row)) for row in random.integers(33, 74, (6000, 100)).tolist()]  # little to compress
    starts = np.concatenate([random.integers(1, 400_000, 3000), random.integers(2_000_000, LENGTH - 200, 3000)])
    lines = [
        sam_line(f"short{i}", start, "100M", contig="long", qualities=qualities[i])
        for i, start in enumerate(starts.tolist())
    ]
    for i, start in enumerate(random.integers(1, LENGTH // 2, 30).tolist()):
        lines.append(
            sam_line(f"spliced{i}", start, f"50M{int(random.integers(1_000, LENGTH // 2 - 200))}N50M", contig="long")
        )
    lines += [sam_line(f"last{i}", 1 + 70 * i, "40M", contig="last") for i in range(500)]
    lines += [sam_line(f"placed{i}", 1_000 * i, "*", contig="long", flags=4, bases="ACGT") for i in range(1, 50)]
    lines += [sam_line(f"nowhere{i}", 0, "*", contig="*", flags=4, bases="ACGT") for i in range(50)]
    return write_bam(tmp_path_factory.mktemp("bam") / "spliced.bam", lines, HEADER)


def index_of(path: Path, kind: str) -> BinIndex:
    index = path.with_suffix(f".{kind.replace(' ', '_')}")
    pysam.index(*INDEXES[kind], "-o", str(index), str(path))
    return BinIndex.read(index, LENGTH)


@pytest.mark.parametrize("kind", INDEXES)
def test_spans_of_an_index_hold_what_htslib_fetches(spliced: Path, kind: str) -> None:
    index = index_of(spliced, kind)
    random = np.random.default_rng(1)
    intervals = [("long", 0, LENGTH), ("last", 0, 40_000), ("empty", 0, 50), ("long", 1_000_000, 1_000_001)]
    for size in (1, 100, 5_000, 16_384, 300_000):
        intervals += [("long", start, start + size) for start in random.integers(0, LENGTH - size, 12).tolist()]
    with (
        BlockReader(spliced) as stream,
        pysam.AlignmentFile(
            str(spliced), index_filename=str(spliced.with_suffix(f".{kind.replace(' ', '_')}"))
        ) as file,
    ):
        assert len(index) == 3
        for contig, start, end in intervals:
            number = file.get_tid(contig)
            names = []
            for records in read_records(stream, index.spans(number, start, end), 3, spliced):
                within = (records.fields["contig"] == number) & (records.position0 < end) & (records.ends > start)
                names += [records.name(i) for i in np.flatnonzero(within).tolist()]
            assert names == [read.query_name for read in file.fetch(contig, start, end)]


@pytest.mark.parametrize("kind", INDEXES)
def test_little_is_read_for_a_little_interval(spliced: Path, kind: str) -> None:
    index = index_of(spliced, kind)
    whole = sum(end - begin >> 16 for begin, end in index.spans(1, 0, LENGTH))
    # Bins of less than a block are one with their neighbours: those of the second million here.
    assert sum(end - begin >> 16 for begin, end in index.spans(1, 2_900_000, 2_900_100)) < 0.55 * whole
    assert index.spans(0, 0, 50) == []


def test_all_records_in_pieces_of_any_size(spliced: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pysam.AlignmentFile(str(spliced)) as file:
        expected = [read.query_name for read in file.fetch(until_eof=True)]
    for least, most in ((7, 50), (1 << 10, 1 << 12), (1 << 20, 1 << 20)):  # the first is less than any record
        monkeypatch.setattr("genosparse.readers.alignments.bam._LEAST_PIECE_BYTES", least)
        monkeypatch.setattr("genosparse.readers.alignments.bam._MOST_PIECE_BYTES", most)
        with BlockReader(spliced) as stream:
            batches = list(read_records(stream, [(first_record(stream), None)], 3, spliced))
        assert [records.name(i) for records in batches for i in range(len(records))] == expected


def crafted(**changed: int) -> bytes:
    """A record of 4 bases on contig 0, with some of its numbers changed."""
    values = {
        "size": 0, "contig": 0, "position": 5, "name_bytes": 2, "quality": 60, "bin": 4681, "operations": 1, "flags": 0,
        "bases": 4, "mate_contig": -1, "mate_position": -1, "template": 0,
    }  # fmt: skip
    body = b"x\0" + struct.pack("<I", 4 << 4) + b"\x12\x48" + b"IIII"
    values["size"] = 32 + len(body)
    return struct.pack("<iiiBBHHHiiii", *{**values, **changed}.values()) + body


@pytest.mark.parametrize(
    "changed",
    [
        {"size": -1}, {"size": 0}, {"size": 31}, {"size": 41}, {"contig": 2}, {"contig": -2}, {"mate_contig": 2},
        {"bases": -1}, {"bases": 2**31 - 1}, {"operations": 0xFFFF}, {"name_bytes": 0}, {"name_bytes": 255},
        {"size": 2**31 - 1, "name_bytes": 0},
    ],
)  # fmt: skip
def test_numbers_that_contradict_each_other(changed: dict[str, int]) -> None:
    sound = np.frombuffer(crafted() * 2, np.uint8)
    parsed = Records.parse(sound, 2, Path("x"))
    assert (len(parsed.records), parsed.done, parsed.problem) == (2, len(sound), "")
    for rest in (crafted(), b""):  # whole or unfinished: its numbers are enough
        data = crafted() + crafted(**changed)[: None if rest else 36] + rest
        parsed = Records.parse(np.frombuffer(data, np.uint8), 2, Path("x"))
        assert (len(parsed.records), parsed.problem) == (1, "the numbers of a record contradict each other")


def test_what_is_beyond_an_interval_is_not_looked_at() -> None:
    data = crafted() + crafted(position=7) + crafted(position=8, name_bytes=0) + crafted(size=-1)
    parsed = Records.parse(np.frombuffer(data, np.uint8), 2, Path("x"), before=(0, 8))
    assert (len(parsed.records), parsed.is_last, parsed.problem) == (2, True, "")
    parsed = Records.parse(np.frombuffer(data, np.uint8), 2, Path("x"), before=(0, 9))
    assert (len(parsed.records), parsed.is_last, bool(parsed.problem)) == (2, False, True)
    assert Records.parse(np.frombuffer(crafted(contig=1), np.uint8), 2, Path("x"), before=(0, 9)).is_last


@pytest.mark.parametrize("cut", range(1, 90, 7))
def test_an_unfinished_record_waits_for_its_rest(cut: int) -> None:
    data = crafted() * 2
    parsed = Records.parse(np.frombuffer(data[:-cut], np.uint8), 2, Path("x"))
    size = len(crafted())
    assert len(parsed.records) == (len(data) - cut) // size
    assert parsed.done == size * len(parsed.records)
    rest = len(data) - cut - parsed.done
    assert parsed.lacking == (size - rest if rest >= 36 else 36 - rest)


@pytest.mark.parametrize("kind", INDEXES)
def test_a_damaged_index_is_an_error_and_no_endless_loop(spliced: Path, kind: str) -> None:
    index_of(spliced, kind)
    data = spliced.with_suffix(f".{kind.replace(' ', '_')}").read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    random = np.random.default_rng(2)
    for at in [*range(0, 60), *random.integers(60, len(data), 200).tolist()]:
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]):
            try:
                index = BinIndex(damaged)
                for contig in range(len(index)):
                    index.spans(contig, 0, LENGTH)
            except (ValueError, struct.error):
                continue
            assert len(damaged) == len(data) or at >= len(data) - 8  # a place may differ, nothing may be missing
