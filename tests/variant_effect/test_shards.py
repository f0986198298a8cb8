"""Blocks of records: shares, storage, and one order whatever happened."""

import numpy as np
import pytest

from genosparse.errors import ConfigError, FileFormatError
from genosparse.readers import Variant
from genosparse.variant_effect.records import Record
from genosparse.variant_effect.scores import BLOCK_RECORDS, BlockScores
from genosparse.variant_effect.shards import (
    BlockStore,
    Shard,
    blocks_of,
    merge_blocks,
    score_blocks,
)


@pytest.mark.parametrize("text, shard", [("1/1", Shard(1, 1)), ("3/16", Shard(3, 16)), (" 16/16 ", Shard(16, 16))])
def test_parse_shard(text, shard):
    assert Shard.parse(text) == shard


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "1", "1/2/3", "-1/3", "a/b", "1.0/3", "", "٣/٤"])
def test_a_shard_that_is_none(text):
    with pytest.raises(ConfigError, match="expected i/n"):
        Shard.parse(text)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_each_block_is_in_exactly_one_shard(count):
    shards = [Shard(index, count) for index in range(1, count + 1)]
    for block in range(40):
        assert sum(block in shard for shard in shards) == 1


@pytest.mark.parametrize("num_records", [0, 1, BLOCK_RECORDS, BLOCK_RECORDS + 1])
def test_blocks_hold_all_records_in_order(num_records):
    blocks = list(blocks_of(iter(range(num_records))))
    assert [index for index, _ in blocks] == list(range(len(blocks)))
    assert all(0 < len(block) <= BLOCK_RECORDS for _, block in blocks)
    assert [item for _, block in blocks for item in block] == list(range(num_records))


def result_of(variants):
    num_alts = np.array([len(variant.alts) for variant in variants], np.int64)
    llr = np.array([variant.position0 for variant in variants for _ in variant.alts], np.float32)
    return BlockScores(num_alts=num_alts, status=np.full(num_alts.sum(), 8, np.uint8), scores={"llr": llr})


class PositionScorer:
    """Scores a variant with its position, and remembers which blocks it was given."""

    def __init__(self):
        self.first = []

    def score(self, variants):
        self.first.append(variants[0].position0)
        return result_of(variants)


class ListWriter:
    def __init__(self):
        self.written = []

    def write(self, record, rows):
        self.written.append((record.variant.position0, [(row.status, row.scores["llr"]) for row in rows]))


def records_of(num_records):
    return [
        Record("", Variant("c", index, "A", ("C", "G")[: index % 3], record_index=index))
        for index in range(num_records)
    ]


def test_store_gives_back_what_was_saved(tmp_path):
    store = BlockStore(tmp_path)
    saved = result_of([record.variant for record in records_of(7)])
    saved.scores["llr"][0] = np.nan
    assert store.load(3) is None
    store.save(3, saved)
    loaded = store.load(3)
    np.testing.assert_array_equal(loaded.num_alts, saved.num_alts)
    np.testing.assert_array_equal(loaded.status, saved.status)
    np.testing.assert_array_equal(loaded.scores["llr"], saved.scores["llr"])
    assert [path.name for path in (tmp_path / "blocks").iterdir()] == ["000003.npz"]


@pytest.mark.parametrize("kept", [0, 10, 200, -1])
def test_a_damaged_block_counts_as_not_there(tmp_path, kept):
    store = BlockStore(tmp_path)
    store.save(0, result_of([record.variant for record in records_of(50)]))
    path = tmp_path / "blocks" / "000000.npz"
    path.write_bytes(path.read_bytes()[:kept])
    assert store.load(0) is None


def test_a_block_with_a_changed_byte_counts_as_not_there(tmp_path):
    store = BlockStore(tmp_path)
    store.save(0, result_of([record.variant for record in records_of(50)]))
    path = tmp_path / "blocks" / "000000.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    assert store.load(0) is None


def test_shards_score_their_blocks_once_and_the_merge_has_the_input_order(tmp_path):
    records = records_of(2 * BLOCK_RECORDS + 5)
    store = BlockStore(tmp_path)
    scorer = PositionScorer()
    score_blocks(scorer, records, len(records), store, Shard(3, 3))
    assert scorer.first == [2 * BLOCK_RECORDS]
    score_blocks(scorer, records, len(records), store, Shard(1, 3))
    assert scorer.first == [2 * BLOCK_RECORDS, 0]
    score_blocks(scorer, iter(records), len(records), store, Shard())
    assert scorer.first == [2 * BLOCK_RECORDS, 0, BLOCK_RECORDS]
    score_blocks(scorer, iter(records), len(records), store, Shard())
    assert len(scorer.first) == 3

    writer = ListWriter()
    counts = merge_blocks(iter(records), store, ["llr"], writer)
    assert writer.written == [(index, [("scored", float(index))] * (index % 3)) for index in range(len(records))]
    assert counts == {"scored": sum(index % 3 for index in range(len(records)))}


def test_an_input_that_changed_is_an_error(tmp_path):
    store = BlockStore(tmp_path)
    score_blocks(PositionScorer(), records_of(5), 5, store, Shard())
    with pytest.raises(FileFormatError, match="changed while"):
        merge_blocks(records_of(6), store, ["llr"], ListWriter())
    with pytest.raises(FileFormatError, match="changed while"):
        merge_blocks(records_of(5)[::-1], store, ["llr"], ListWriter())
