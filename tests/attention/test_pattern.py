"""Patterns: values, their limits, and the draw of random blocks."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from problems import Problem, problems

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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(head_dims=(1,)))
def test_key_counts_are_those_of_the_attended_pairs(problem: Problem) -> None:
    pattern, (_, k, _), masks = problem
    num_kv_heads, length, extra_blocks = k.shape[1], k.shape[2], masks["extra_blocks"]
    expected = attended_pairs(pattern, length, num_kv_heads, extra_blocks=extra_blocks)[0].sum(dim=-1)
    counts = pattern.key_counts(length, num_kv_heads, extra_blocks=extra_blocks)
    assert counts.dtype == torch.int64
    assert torch.equal(counts, expected)
    assert pattern.num_pairs(length, num_kv_heads, extra_blocks=extra_blocks) == int(expected.sum())


@pytest.mark.parametrize("causal", [False, True])
def test_key_counts_where_every_rule_overlaps(causal: bool) -> None:
    """Blocks of 48 (window, columns, random) across blocks of 64 (extra), named twice, and global blocks in them."""
    pattern = SparsePattern(
        window=1, stride=5, stagger=True, num_global=2, num_random_blocks=4, causal=causal, block_size=48, seed=3
    )
    extra_blocks = torch.tensor([[[0, 7, 7, 6]] * 16, [[15, -1, 0, 1]] * 16], dtype=torch.int32)
    expected = attended_pairs(pattern, 1000, 2, extra_blocks=extra_blocks)[0].sum(dim=-1)
    assert torch.equal(pattern.key_counts(1000, 2, extra_blocks=extra_blocks), expected)


def test_num_pairs_at_a_million_positions() -> None:
    """Window 512 and columns every 1,024 of N = 1,048,576.

    1,024 columns, and a window of 1,025 keys with one column in it: 2,048 keys; a row in the middle between columns
    has one at each end of its window: 2,047. The window is cut short in the first and last 512 rows: there row i has
    1,024 + (i + 513) - 1 keys, and the d-th from the end (from 0) 1,024 + (d + 513), where d = 511 still reaches a
    column.
    """
    length, triangle = 1 << 20, 511 * 512 // 2
    first, last = 512 * 1536 + triangle, 512 * 1537 + triangle - 1
    middle = (length - 1024) * 2048 - 1023
    assert SparsePattern(window=512, stride=1024).num_pairs(length) == first + middle + last == 2_147_220_480
    # With a global token in column 0: its row gains all keys that it lacks, 1,048,576 - 1,536.
    with_global = SparsePattern(window=512, stride=1024, num_global=1)
    assert with_global.num_pairs(length, 3) == 3 * (2_147_220_480 + length - 1536)


def test_key_counts_of_sizes_beyond_the_sequence_and_beyond_int64() -> None:
    huge = 1 << 61
    assert SparsePattern(window=huge).key_counts(5).tolist() == [[5] * 5]
    assert SparsePattern(window=0, block_size=huge).key_counts(5).tolist() == [[5] * 5]
    assert SparsePattern(stride=huge, block_size=2, stagger=True).key_counts(5, 2).tolist() == [[2] * 5, [0] * 5]
    assert SparsePattern(num_random_blocks=2, block_size=huge, causal=True).key_counts(5).tolist() == [[0] * 5]
    assert SparsePattern(num_global=huge, block_size=huge, causal=True).key_counts(3).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("shape", [(3, 2, 1), (2, 3, 1), (2, 1)])
def test_key_counts_refuse_a_table_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(PatternError, match=r"\(2 or 1, 2, most\)"):
        SparsePattern(window=1).key_counts(100, 2, extra_blocks=torch.zeros(shape, dtype=torch.int32))


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
