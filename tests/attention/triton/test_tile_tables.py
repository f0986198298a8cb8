"""Tables of tiles: entries are disjoint, lie in one tile each, and together name just the pairs that the blocks do."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from genosparse.attention import SparsePattern
from genosparse.attention.reference import attended_pairs
from genosparse.attention.tables import ENTRIES_PER_ITEM, Table, make_table

CPU = torch.device("cpu")


def covered(table: Table, length: int) -> Tensor:
    """How often each pair is named: int64 [heads, N, N]."""
    times = torch.zeros(table.entries.shape[0], length, length, dtype=torch.int64)
    for head, first in enumerate(table.first.tolist()):
        for query_low, query_high, key_low, key_high in table.entries[head, : first[-1]].tolist():
            assert query_low < query_high <= length
            assert key_low < key_high <= length
            times[head, query_low:query_high, key_low:key_high] += 1
    return times


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_entries_name_the_pairs_of_the_blocks_once(data: st.DataObject) -> None:
    length = data.draw(st.sampled_from([1, 64, 65, 100, 200, 333]))
    pattern = SparsePattern(
        num_global=data.draw(st.sampled_from([0, 2])),
        num_random_blocks=data.draw(st.sampled_from([0, 1, 3])),
        block_size=data.draw(st.sampled_from([1, 16, 48, 64, 5])),
        causal=data.draw(st.booleans()),
    )
    extra = None
    if not pattern.num_random_blocks or data.draw(st.booleans()):
        blocks, heads = -(-length // 64), data.draw(st.sampled_from([1, 2]))
        extra = torch.randint(-1, blocks, (heads, blocks, data.draw(st.sampled_from([1, 4]))), dtype=torch.int32)
    units = {"row_unit": data.draw(st.sampled_from([5, 16, 64, 128])), "key_unit": data.draw(st.sampled_from([16, 64]))}
    by = data.draw(st.sampled_from(["query", "key"]))
    table = make_table(pattern, length, extra, CPU, **units, by=by)

    times = covered(table, length)
    assert times.max() <= 1
    # The pairs of the blocks alone; the kernel's mask takes the diagonal of causal blocks, and columns, out of entries.
    rules = SparsePattern(
        num_random_blocks=pattern.num_random_blocks, block_size=pattern.block_size, causal=pattern.causal
    )
    expected = attended_pairs(rules, length, times.shape[0], extra_blocks=extra)[0].clone()
    if pattern.causal:
        times &= torch.ones(length, length, dtype=torch.int64).tril()
    else:
        expected[:, : pattern.num_global_positions] = False
    assert torch.equal(times.bool(), expected)

    unit, column = (units["row_unit"], 0) if by == "query" else (units["key_unit"], 2)
    for head, first in enumerate(table.first.tolist()):
        assert len(first) == -(-length // unit) + 1
        for bucket, (start, end) in enumerate(itertools.pairwise(first)):
            entries = table.entries[head, start:end]
            assert (entries[:, column] // unit == bucket).all()
            assert ((entries[:, 1] - 1) // units["row_unit"] == entries[:, 0] // units["row_unit"]).all()
            assert ((entries[:, 3] - 1) // units["key_unit"] == entries[:, 2] // units["key_unit"]).all()


def test_popular_blocks_have_items_of_their_own() -> None:
    """All of 100 blocks of queries name block 3: four items of at most 32 entries, in order, and none elsewhere."""
    extra = torch.full((1, 100, 1), 3, dtype=torch.int32)
    table = make_table(SparsePattern(), 6400, extra, CPU, row_unit=64, key_unit=64, by="key")
    assert ENTRIES_PER_ITEM == 32
    assert table.item_first[0, :5].tolist() == [0, 0, 0, 0, 4]
    assert table.item_bucket[0, :4].tolist() == [3] * 4
    assert table.first[0, 3:5].tolist() == [0, 100]
    assert table.entries[0, :3, 0].tolist() == [0, 64, 128]


def test_sizes_depend_on_shapes_alone() -> None:
    """So that a GPU need not be waited for."""
    shapes = set()
    for blocks in (torch.full((2, 7, 3), -1), torch.randint(0, 7, (2, 7, 3))):
        table = make_table(
            SparsePattern(), 64 * 7, blocks.to(torch.int32), CPU, row_unit=64, key_unit=64, by="key"
        )  # fmt: skip
        shapes.add((table.entries.shape, table.item_bucket.shape))
    assert len(shapes) == 1


@pytest.mark.parametrize("by", ["query", "key"])
def test_a_million_positions_take_little(by: str) -> None:
    table = make_table(SparsePattern(num_random_blocks=3), 1 << 20, None, CPU, row_unit=64, key_unit=64, by=by)
    assert table.entries.shape == (1, 3 * (1 << 14) + 1, 4)
    assert int(table.first[0, -1]) == 3 * (1 << 14)
