"""Bytes of BGZF files from any place on, beside what bgzip packed."""

import os
from pathlib import Path

import numpy as np
import pytest
from crafted_bam import bgzf_block, pack_bgzf

from genosparse.errors import GenosparseError, InputFileNotFoundError
from genosparse.inputs import BGZF_EOF
from genosparse.readers._bgzf import BlockReader, DamagedBlockError, KeptBlocks, damaged_block

DATA = np.random.default_rng(0).integers(0, 60, 300_000, dtype=np.uint8).tobytes()
SIZES = [1, 65_536, 0, 70, 40_000, 65_280, 129, 0, 30_000, 98_984]  # 0: an empty block; the last one fills two


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ends = np.cumsum(SIZES).tolist()
    assert ends[-1] == len(DATA)
    parts = [DATA[end - size : end] for size, end in zip(SIZES, ends, strict=True)]
    blocks = [pack_bgzf(part)[: -len(BGZF_EOF)] if part else BGZF_EOF for part in parts]
    (tmp_path / "x.gz").write_bytes(b"".join(blocks) + BGZF_EOF)
    return tmp_path / "x.gz"


@pytest.mark.parametrize("size", [1_000, 65_536, 70_001, 1_000_000])
def test_pieces_of_any_size_and_places_to_go_back_to(path: Path, size: int) -> None:
    with BlockReader(path) as stream:
        places, pieces = [stream.tell()], []
        while piece := stream.read(size):
            pieces.append(piece)
            places.append(stream.tell())
        assert b"".join(pieces) == DATA
        for number in np.random.default_rng(1).permutation(len(pieces)).tolist():
            stream.seek(places[number])
            assert stream.read(size) == pieces[number]
            stream.seek(places[number])
            buffer = bytearray(b"before")
            assert stream.read_onto(buffer, 1 << 30, places[number + 1]) == len(pieces[number])
            assert buffer == b"before" + pieces[number]
        assert (stream.seek(places[-1]), stream.read(5)) == (None, b"")


def test_lines(tmp_path: Path) -> None:
    lines = [b"x" * size for size in (0, 3, 100_000, 0, 65_535, 7)]
    (tmp_path / "x.gz").write_bytes(pack_bgzf(b"\n".join(lines)))
    with BlockReader(tmp_path / "x.gz") as stream:
        assert [stream.read_line() for _ in range(7)] == [*lines, None]


def test_readers_share_blocks_of_one_version_of_a_file(path: Path) -> None:
    kept = KeptBlocks(100)
    with BlockReader(path, kept) as first, BlockReader(path, kept) as second:
        assert first.read(1 << 30) == DATA
        path.write_bytes(pack_bgzf(DATA[:1_000]).ljust(path.stat().st_size, b"\0"))
        assert second.read(len(DATA)) == DATA  # from what the first one unpacked: the file has it no longer
    with BlockReader(path, kept) as third:
        assert third.read(1_000) == DATA[:1_000]
        with pytest.raises(DamagedBlockError):
            third.read(1)


def test_blocks_used_last_stay(path: Path) -> None:
    kept = KeptBlocks(3)
    for number in range(3):
        kept.put(number, (b"x", number))
    assert kept.get(0) == (b"x", 0)
    kept.put(3, (b"y", 3))
    assert [kept.get(number) is not None for number in range(4)] == [True, False, True, True]
    with BlockReader(path, kept) as stream:
        assert stream.read(1 << 30) == DATA
    assert len(kept) == 3


def test_nothing_is_unpacked_behind_an_end(path: Path) -> None:
    with BlockReader(path) as stream:
        stream.read(65_000)
        end = stream.tell()
    data = path.read_bytes()
    block = end >> 16
    following = block + int.from_bytes(data[block + 16 : block + 18], "little") + 1
    path.write_bytes(data[:following] + b"ruins" + data[following + 5 :])
    with BlockReader(path) as stream:
        buffer = bytearray()
        stream.read_onto(buffer, 1 << 30, end)
        assert buffer == DATA[:65_000]
        with pytest.raises(DamagedBlockError, match=rf"damaged in the block at byte {following};") as caught:
            stream.read(1 << 30)
    assert caught.value.byte == damaged_block(path) == following


@pytest.mark.parametrize("at", [0, 3, 12, 16, 17, 30, -1, -4, -5, -8])
def test_each_byte_of_a_block_counts(tmp_path: Path, at: int) -> None:
    first, second = bgzf_block(DATA[:1_000]), bytearray(bgzf_block(DATA[1_000:2_000]))
    second[at] ^= 0x11
    path = tmp_path / "x.gz"
    path.write_bytes(first + second + BGZF_EOF)
    with BlockReader(path) as stream, pytest.raises(DamagedBlockError) as caught:
        stream.read(2_000)
    assert caught.value.byte == damaged_block(path) == len(first)


@pytest.mark.parametrize("size", [1, 17, 18, 25, 500])
def test_a_block_that_is_cut_off(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(bgzf_block(DATA[:1_000])[:size])
    assert damaged_block(path) == 0


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputFileNotFoundError, match=r"none\.gz does not exist any more"):
        BlockReader(tmp_path / "none.gz")
    with pytest.raises(GenosparseError, match="cannot be read"), BlockReader(tmp_path) as stream:
        stream.read(1)


def test_no_descriptor_is_left_open(path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        BlockReader(path).read(10)
    assert len(os.listdir("/proc/self/fd")) == before
