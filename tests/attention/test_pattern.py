"""Patterns: values, their limits, and the draw of random blocks."""

import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.attention.reference import attended_pairs
from genosparse.errors import PatternError


def keys_of(pattern: SparsePattern, length: int, query: int, head: int = 0, num_kv_heads: int = 1) -> list[int]:
    pairs = attended_pairs(pattern, length, num_kv_heads)
    return pairs[0, head, query].nonzero().flatten().tolist()


def test_window_reaches_both_sides_and_stops_at_the_ends() -> None:
    pattern = SparsePattern(window=2)
    assert keys_of(pattern, 10, 5) == [3, 4, 5, 6, 7]
    assert keys_of(pattern, 10, 0) == [0, 1, 2]
    assert keys_of(pattern, 10, 9) == [7, 8, 9]
    assert keys_of(SparsePattern(window=0), 10, 4) == [4]


def test_columns_are_the_same_for_every_query_and_staggered_by_head() -> None:
    assert keys_of(SparsePattern(stride=4), 10, 3) == [0, 4, 8]
    staggered = SparsePattern(stride=4, stagger=True)
    assert staggered.phases(2) == [0, 2]
    assert keys_of(staggered, 10, 3, head=1, num_kv_heads=2) == [2, 6]
    assert SparsePattern(stride=3, stagger=True).phases(4) == [0, 0, 1, 2]


def test_global_positions_see_and_are_seen_by_all() -> None:
    pattern = SparsePattern(window=0, num_global=2)
    assert keys_of(pattern, 6, 1) == [0, 1, 2, 3, 4, 5]
    assert keys_of(pattern, 6, 4) == [0, 1, 4]


def test_blocks_count_in_every_rule() -> None:
    assert keys_of(SparsePattern(window=1, block_size=2), 10, 5) == [2, 3, 4, 5, 6, 7]
    assert keys_of(SparsePattern(stride=2, block_size=2), 10, 9) == [0, 1, 4, 5, 8, 9]
    assert keys_of(SparsePattern(window=0, num_global=1, block_size=3), 9, 8) == [0, 1, 2, 6, 7, 8]


def test_causal_hides_later_keys_from_every_rule() -> None:
    pattern = SparsePattern(window=1, stride=4, num_global=2, causal=True)
    assert keys_of(pattern, 10, 0) == [0]
    assert keys_of(pattern, 10, 6) == [0, 1, 4, 5, 6]


def test_known_corners_count_as_transformers_does() -> None:
    assert SparsePattern.longformer(512).window == 256
    assert keys_of(SparsePattern.mistral(3), 10, 5) == [3, 4, 5]
    assert keys_of(SparsePattern.dense(), 5, 2) == [0, 1, 2, 3, 4]
    assert keys_of(SparsePattern.dense(causal=True), 5, 2) == [0, 1, 2]
    assert SparsePattern.bigbird(64, 3) == SparsePattern(window=1, num_global=1, num_random_blocks=3, block_size=64)


def test_random_blocks_are_drawn_without_replacement_from_all_blocks() -> None:
    blocks = SparsePattern(num_random_blocks=4, seed=7).random_blocks(64 * 500)
    assert blocks.shape == (500, 4)
    assert blocks.dtype == torch.int32
    assert (blocks[:, 1:] > blocks[:, :-1]).all()  # ascending, so none twice
    counts = torch.bincount(blocks.flatten(), minlength=500)
    # 2,000 draws over 500 blocks: the count of a block is near Poisson(4); 99.9 % of seeds give less than 14.
    assert counts.max() < 16
    assert (counts == 0).sum() < 30


def test_random_blocks_are_few_where_few_are_left() -> None:
    causal = SparsePattern(num_random_blocks=3, causal=True).random_blocks(64 * 6)
    assert causal[:4].tolist() == [[-1, -1, -1], [0, -1, -1], [0, 1, -1], [0, 1, 2]]
    assert all(block < row for row, blocks in enumerate(causal.tolist()) for block in blocks)
    assert SparsePattern(num_random_blocks=3).random_blocks(65).tolist() == [[0, 1, -1], [0, 1, -1]]


def test_random_blocks_never_change() -> None:
    """These very draws are part of every saved model that uses them."""
    pattern = SparsePattern(num_random_blocks=3, seed=1)
    assert pattern.random_blocks(64 * 1000)[[0, 1, 999]].tolist() == FROZEN_DRAWS
    assert (
        pattern.random_blocks(64 * 1000)[0].tolist()
        != SparsePattern(num_random_blocks=3).random_blocks(64 * 1000)[0].tolist()
    )


FROZEN_DRAWS = [[181, 357, 744], [364, 760, 946], [263, 299, 922]]


@pytest.mark.parametrize(
    "values",
    [
        {"window": -1},
        {"window": 1.5},
        {"window": True},
        {"stride": 0},
        {"num_global": -1},
        {"num_random_blocks": None},
        {"block_size": 0},
        {"stagger": True},
        {"stride": 4, "causal": 1},
    ],
)
def test_values_out_of_range_are_named(values: dict[str, object]) -> None:
    with pytest.raises(PatternError, match=next(reversed(values))):
        SparsePattern(**values)  # type: ignore[arg-type]  # wrong on purpose


def test_dict_round_trip_refuses_unknown_keys() -> None:
    pattern = SparsePattern(window=3, stride=9, stagger=True, causal=True, seed=4)
    assert SparsePattern.from_dict(pattern.to_dict()) == pattern
    with pytest.raises(PatternError, match="dilation"):
        SparsePattern.from_dict({"window": 3, "dilation": 2})
    with pytest.raises(PatternError, match="no 1, dilation"):
        SparsePattern.from_dict({1: 2, "dilation": 2})  # type: ignore[dict-item]  # as a YAML list might have it


@pytest.mark.parametrize("call", [lambda: SparsePattern.longformer(7), lambda: SparsePattern.mistral(0)])
def test_known_corners_refuse_impossible_sizes(call: object) -> None:
    with pytest.raises(PatternError, match="expected"):
        call()  # type: ignore[operator]
