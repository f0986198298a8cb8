"""BAM files as no tool writes them: no crash, no hang, no loss without a word, and no more refused than need be."""

import gzip
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pysam
import pytest
from crafted_bam import CONTIGS, array_tag, pack_bgzf, record, write_crafted

import genosparse as gs
from genosparse.errors import FileFormatError, GenosparseError, InputFileNotFoundError
from genosparse.inputs import BGZF_EOF
from genosparse.readers.alignments import files

EVERY = gs.ReadFilters(exclude_flags=0)
WHOLE = gs.Interval("one", 0, CONTIGS["one"])


def names_of(path: Path, interval: gs.Interval | None = None) -> list[str]:
    with gs.Alignments(path, filters=EVERY) as alignments:
        return [read.name for read in alignments.reads(interval)]


def names_until_error(path: Path, interval: gs.Interval | None = None) -> tuple[list[str], str]:
    names: list[str] = []
    with gs.Alignments(path, filters=EVERY) as alignments, pytest.raises(FileFormatError) as caught:
        names.extend(read.name for read in alignments.reads(interval))
    assert "\n" not in str(caught.value)
    return names, str(caught.value)


def index_beside(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index of the file as it is, which is used even where the file is changed afterwards."""
    pysam.index("-c", "-o", f"{path}.csi", str(path))
    monkeypatch.setattr(files, "_SMALL_BYTES", 0)


def many(count: int, **changed_last: int) -> list[bytes]:
    records = [record(f"r{number}", 10 * number) for number in range(count)]
    if changed_last:
        records[-1] = record("bad", 10 * (count - 1), **changed_last)
    return records


# The file goes away, or has a name of another kind


def test_a_file_that_is_removed_while_it_is_open(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", many(20))
    with gs.Alignments(path) as alignments:
        started = alignments.reads(WHOLE)
        next(started)
        path.unlink()
        for read in (lambda: list(alignments.reads()), lambda: alignments.channels(WHOLE)):
            with pytest.raises(InputFileNotFoundError, match=r"a\.bam does not exist any more"):
                read()
        assert len(list(started)) == 19


def test_more_files_than_a_process_may_open(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", many(20))
    with gs.Alignments(path) as alignments:
        alignments.channels(WHOLE)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, limits[1]))
        kept: list[object] = []
        try:
            for read in (lambda: alignments.reads(WHOLE), alignments.reads):
                with pytest.raises(InputFileNotFoundError, match=r"cannot be read.*Too many open files"):
                    kept += [(reads, next(reads)) for reads in iter(read, None)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("name", ["data:x.bam", "file:x.bam", "http:x.bam", "s3:x.bam", "preload:x.bam", "one:5.bam"])
def test_names_that_look_like_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_crafted(tmp_path / name, many(20))
    monkeypatch.chdir(tmp_path)
    assert len(names_of(Path(name))) == len(names_of(Path(name), WHOLE)) == 20


# Long CIGARs behind a stand-in

ALIGNMENT = [(2, "M"), (7, "D"), (2, "M")]


@pytest.mark.parametrize(
    "cigar, bases, tags, expected",
    [
        ([(4, "S"), (11, "N")], 4, array_tag(b"CG", b"I", ALIGNMENT), "2M7D2M"),
        ([(4, "S"), (11, "N")], 4, array_tag(b"CG", b"i", ALIGNMENT), "2M7D2M"),
        ([(4, "S"), (11, "N")], 4, array_tag(b"CG", b"C", ALIGNMENT, 12), "4S11N"),
        ([(4, "S"), (11, "N")], 4, b"XXd" + bytes(8) + array_tag(b"CG", b"I", ALIGNMENT), "2M7D2M"),
        ([(4, "S"), (11, "N")], 4, array_tag(b"CG", b"I", [(4, "M")]), "4S11N"),
        ([(4, "S")], 4, array_tag(b"CG", b"I", ALIGNMENT), "2M7D2M"),
        ([(4, "S"), (2, "N"), (3, "D")], 4, array_tag(b"CG", b"I", ALIGNMENT), "2M7D2M"),
        ([(0, "S"), (11, "N")], 0, array_tag(b"CG", b"I", ALIGNMENT), "2M7D2M"),
        ([(3, "S"), (1, "M")], 4, array_tag(b"CG", b"I", ALIGNMENT), "3S1M"),
    ],
)
def test_the_cigar_is_htslibs(
    tmp_path: Path, cigar: list[tuple[int, str]], bases: int, tags: bytes, expected: str
) -> None:
    path = write_crafted(tmp_path / "a.bam", [record("r", 5, cigar, bases=bases, tags=tags)])
    with pysam.AlignmentFile(str(path)) as file:
        (theirs,) = file.fetch(until_eof=True)
    with gs.Alignments(path) as alignments:
        (read,) = alignments.reads()
        assert read.cigar == theirs.cigarstring == expected
        assert read.end == theirs.reference_end
        assert len(list(alignments.reads(gs.Interval("one", read.end - 1, read.end)))) == 1


@pytest.mark.parametrize(
    "tags",
    [
        b"XXBi" + struct.pack("<i", -2) + bytes(8),
        array_tag(b"CG", b"I", [(4, "M")], -1),
        array_tag(b"CG", b"I", [(4, "M")], 1_000),
        array_tag(b"CG", b"I", [(4, "M")], 1 << 30),
    ],
)
def test_arrays_that_are_longer_than_their_record(tmp_path: Path, tags: bytes) -> None:
    path = write_crafted(tmp_path / "a.bam", [record("a"), record("long", 5, [(4, "S"), (9, "N")], tags=tags)])
    assert "the tags of read 'long' cannot be read" in names_until_error(path)[1]


# Sizes that cannot be


def peak_of(path: Path) -> tuple[str, int]:
    script = """
import resource, sys
import genosparse as gs
with gs.Alignments(sys.argv[1]) as alignments:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        print([read.name for read in alignments.reads()])
    except gs.GenosparseError as error:
        print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    told, kilobytes = run.stdout.splitlines()
    return told, int(kilobytes) << 10


def test_a_huge_size_takes_no_memory(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", [record("good"), record("bad", 5, size=2**31 - 1, name_bytes=0)])
    zeros = pack_bgzf(bytes(65_280))
    path.write_bytes(path.read_bytes()[: -len(BGZF_EOF)] + zeros[: -len(BGZF_EOF)] * 4_000 + BGZF_EOF)
    told, grown = peak_of(path)
    assert "after read 'good' (the numbers of a record contradict each other)" in told
    assert grown < 64 << 20 < 4_000 * 65_280 / 3
    path = write_crafted(tmp_path / "b.bam", [record("good"), record("bad", 5, size=2**31 - 1)])
    path.write_bytes(path.read_bytes()[: -len(BGZF_EOF)] + zeros[: -len(BGZF_EOF)] * 4_000 + BGZF_EOF)
    told, grown = peak_of(path)  # numbers that could be: the record is waited for, but held once only
    assert "after read 'good' (the file ends within a record)" in told
    assert grown < 1.5 * 4_000 * 65_280


# Indexes in ruins


def change_shift(data: bytearray) -> None:
    struct.pack_into("<i", data, 4, 15)


def change_shift_to_negative(data: bytearray) -> None:
    struct.pack_into("<ii", data, 4, -3, 3)


def change_depth(data: bytearray) -> None:
    struct.pack_into("<i", data, 8, 1)


def double_bin(data: bytearray) -> None:
    at = first_bin(data)
    following = at + 16 + 16 * struct.unpack_from("<i", data, at + 12)[0]
    data[following : following + 4] = data[at : at + 4]


def misplace_chunk(data: bytearray) -> None:
    struct.pack_into("<Q", data, first_bin(data) + 16, 1 << 63)


def turn_chunk(data: bytearray) -> None:
    at = first_bin(data) + 16
    data[at : at + 16] = data[at + 8 : at + 16] + data[at : at + 8]


def move_chunk(data: bytearray) -> None:
    begin, end = struct.unpack_from("<QQ", data, first_bin(data) + 16)
    struct.pack_into("<QQ", data, first_bin(data) + 16, begin + (3 << 16), end)


def lead_past_the_end(data: bytearray) -> None:
    struct.pack_into("<QQ", data, first_bin(data) + 16, 1 << 40, 1 << 41)


def unknown_bin(data: bytearray) -> None:
    struct.pack_into("<I", data, first_bin(data), 1 << 31)


def first_bin(data: bytearray) -> int:
    return 16 + struct.unpack_from("<i", data, 12)[0] + 4 + 4


@pytest.mark.parametrize(
    "change",
    [
        change_shift, change_shift_to_negative, change_depth, double_bin, misplace_chunk, turn_chunk, move_chunk,
        lead_past_the_end, unknown_bin,
    ],
)  # fmt: skip
def test_a_damaged_index_in_the_cache(tmp_path: Path, cache_home: Path, change: Callable[[bytearray], None]) -> None:
    path = write_crafted(tmp_path / "a.bam", many(3_000))
    assert len(names_of(path, WHOLE)) == 3_000
    (index,) = cache_home.rglob("*.csi")
    data = bytearray(gzip.decompress(index.read_bytes()))
    change(data)
    index.write_bytes(gzip.compress(data))
    names, told = names_until_error(path, WHOLE)
    assert len(names) < 3_000
    assert f"the index {index} of {path} is damaged; remove it" in told
    index.unlink()
    assert len(names_of(path, WHOLE)) == 3_000


def test_an_index_that_does_not_reach_a_contigs_end_is_not_used(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", many(20))
    pysam.index("-c", "-o", f"{path}.csi", str(path))
    data = bytearray(gzip.decompress(Path(f"{path}.csi").read_bytes()))
    assert files.index_fits(path, Path(f"{path}.csi"), [*CONTIGS.values()], 0)
    assert not files.index_fits(path, Path(f"{path}.csi"), [1 << 40, 300], 0)
    change_depth(data)
    Path(f"{path}.csi").write_bytes(gzip.compress(data))
    assert not files.index_fits(path, Path(f"{path}.csi"), [*CONTIGS.values()], 0)


def test_a_linear_index_with_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """samtools 0.1 wrote 0 for windows in which nothing begins."""
    records = [record(f"r{n}", 2 * n, bases=4_000, cigar=[(4_000, "M")]) for n in range(1_000)]
    path = write_crafted(tmp_path / "a.bam", [*records, record("last", 390_000, bin=4681 + (390_000 >> 14))])
    pysam.index(str(path))
    index = Path(f"{path}.bai")
    data = bytearray(index.read_bytes())
    at = 12
    for _ in range(struct.unpack_from("<i", data, 8)[0]):
        at += 8 + 16 * struct.unpack_from("<i", data, at + 4)[0]
    windows = np.frombuffer(data, "<u8", struct.unpack_from("<i", data, at)[0], at + 4)
    filled = windows.copy()
    windows[1:23] = 0
    index.write_bytes(data)
    monkeypatch.setattr(files, "_SMALL_BYTES", 0)
    with gs.Alignments(path) as alignments:
        assert [read.name for read in alignments.reads(gs.Interval("one", 300_000, 400_000))] == ["last"]
        assert alignments._file._bins is not None
        assert alignments._file._bins[1] == index
        ((begin, _),) = alignments._file._bins[0].spans(0, 300_000, 400_000)
        assert begin >= int(filled[0]) > 0
        assert alignments._file._bins[0].bins(0).least[18] == filled[0]


# Records that htslib reads


@pytest.mark.parametrize(
    "odd",
    [
        record("odd", 50, [(7, "M")], flags=4),
        record(b"odd", 50),
        record("odd", 50, mate_position=-2),
    ],
    ids=["stale CIGAR", "no NUL", "mate position"],
)
def test_what_htslib_lets_pass(tmp_path: Path, odd: bytes) -> None:
    path = write_crafted(tmp_path / "a.bam", [record("a"), odd, record("z", 100)])
    assert names_of(path) == names_of(path, WHOLE) == ["a", "odd", "z"]
    with gs.Alignments(path, filters=EVERY) as alignments:
        assert alignments.channels(WHOLE)["depth"].sum() == (8 if b"\4\0\4\0" in odd else 12)
        hashes = np.concatenate([tokens.name_hashes for tokens in alignments.sequenced_tokens()])
    usual = write_crafted(tmp_path / "b.bam", [record("odd")])
    with gs.Alignments(usual) as alignments:
        (tokens,) = alignments.sequenced_tokens()
        assert tokens.name_hashes[0] == hashes[1]


def test_what_matters_only_where_it_is_looked_at(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", [record("a"), record("b", 5, [(4, "M"), (1, "B")]), record("c", -2)])
    with gs.Alignments(path) as alignments:
        assert sum(len(tokens.lengths) for tokens in alignments.sequenced_tokens()) == 3
        with pytest.raises(FileFormatError, match="read 'b' has an operation of the unknown kind 9"):
            list(alignments.reads())


# Damage and its place


@pytest.mark.parametrize("changed", [{"mate_contig": 77}, {"operations": 2, "size": 47}, {"name_bytes": 0}])
def test_all_before_a_bad_record_is_given(tmp_path: Path, changed: dict[str, int]) -> None:
    records = [*many(15_001, **changed), *(record("z", 200_000) for _ in range(2_000))]
    path = write_crafted(tmp_path / "a.bam", records)
    names, told = names_until_error(path)
    assert names == [f"r{number}" for number in range(15_000)]
    assert "after read 'r14999' (the numbers of a record contradict each other)" in told


def test_all_before_a_bad_cigar_is_given(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", [*many(500), record("bad", 5_000, [(3, "M")]), record("z", 6_000)])
    counts: list[int] = []
    with gs.Alignments(path) as alignments, pytest.raises(FileFormatError, match="of read 'bad' differ in length"):
        counts.extend(len(tokens.lengths) for tokens in alignments.sequenced_tokens())
    assert sum(counts) == 500


def test_damage_behind_an_interval_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = many(20_000)
    path = write_crafted(tmp_path / "a.bam", records, 8_000)
    index_beside(path, monkeypatch)
    data = bytearray(path.read_bytes())
    data[len(data) - 2_000] ^= 0xFF
    path.write_bytes(data)
    os.utime(f"{path}.csi")
    monkeypatch.setattr(files, "index_fits", lambda *_: True)
    assert len(names_of(path, gs.Interval("one", 0, 1_000))) == 100
    _, told = names_until_error(path, WHOLE)
    assert ", in the block at byte " in told
    records[1_500] = record("bad", 15_000, name_bytes=0)
    path = write_crafted(tmp_path / "b.bam", many(20_000))
    index_beside(path, monkeypatch)
    write_crafted(path, records)
    os.utime(f"{path}.csi")
    assert len(names_of(path, gs.Interval("one", 0, 1_000))) == 100
    names, told = names_until_error(path, WHOLE)
    assert len(names) == 1_500
    assert "after read 'r1499' (the numbers of a record contradict each other), or its index" in told


def test_a_record_that_reaches_past_its_span_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_crafted(tmp_path / "a.bam", many(2_000), 1_000)
    with gs.Alignments(path, filters=EVERY) as alignments:
        alignments.channels(WHOLE)
        assert alignments._file._bins is not None
        index = alignments._file._bins[0]
        ((begin, end),) = index.spans(0, 0, 400_000)
        monkeypatch.setattr(type(index), "spans", lambda *_: [(begin, end - 7)])
        names = [read.name for read in alignments.reads(WHOLE)]
    assert names == names_of(path)


# Little work for little


def test_a_small_interval_takes_few_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_crafted(tmp_path / "a.bam", [record(f"r{n}", n, [(100, "M")], bases=100) for n in range(16_000)])
    with gs.Alignments(path) as alignments:
        alignments.channels(WHOLE)
        sizes: list[int] = []
        parse = files.Records.parse.__func__  # type: ignore[attr-defined]
        monkeypatch.setattr(
            files.Records, "parse", classmethod(lambda *given: (sizes.append(len(given[1])), parse(*given))[1])
        )
        assert alignments.channels(gs.Interval("one", 8_000, 8_100))["depth"].sum() == 100 * 100
    assert sum(sizes) < 2 * (8_100 * 200 + (1 << 18))  # once for the depth, once for all


def test_contigs_are_parsed_once(tmp_path: Path) -> None:
    path = write_crafted(tmp_path / "a.bam", [record("a"), record("b", contig=1)])
    with gs.Alignments(path) as alignments:
        for contig in ("one", "two", "one"):
            alignments.channels(gs.Interval(contig, 0, 300))
        assert alignments._file._bins is not None
        index = alignments._file._bins[0]
        kept = [index.bins(number) for number in (0, 1)]
        alignments.channels(gs.Interval("two", 0, 300))
        assert all(index.bins(number) is bins for number, bins in enumerate(kept))


# Forks


@pytest.mark.parametrize("interval", [None, WHOLE])
def test_an_iterator_goes_on_in_both_processes(tmp_path: Path, interval: gs.Interval | None) -> None:
    random = np.random.default_rng(0)
    letters = [random.integers(65, 91, 200, dtype=np.uint8).tobytes() for _ in range(20_000)]
    records = [record(f"r{n}", n, tags=b"XXZ" + letters[n] + b"\0") for n in range(20_000)]
    path = write_crafted(tmp_path / "a.bam", records)
    expected = [f"r{n}" for n in range(20_000)]
    with gs.Alignments(path) as alignments:
        reads: Iterator[gs.Read] = alignments.reads(interval)
        head = [next(reads).name]
        come, go = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(go, b"1" if head + [read.name for read in reads] == expected else b"0")
            except GenosparseError:
                os.write(go, b"e")
            os._exit(0)
        assert head + [read.name for read in reads] == expected
        os.waitpid(child, 0)
        assert os.read(come, 1) == b"1"
        os.close(come)
        os.close(go)
