"""Backward: the gradients of k and v; the formulas stand in ``backward``.

``_backward_dkv_window_kernel`` takes a tile of neighbouring keys and loops over the queries whose window has them.
That would be every query for the columns, and as many as name it for a block of a table: these loops are split over
programs of ``_backward_dkv_columns_kernel``, which write float32 partial sums. The window kernel adds the sums, in a
fixed order.

A row counts for nothing where its lse reads as inf: rows without keys, rows past the end.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genosparse.attention.triton import tiles
from genosparse.attention.triton.launch import Problem

__all__ = ["key_gradients"]


@triton.jit
def _add_queries(
    dk, dv, k, v, query_start, high, key, rule, q_ptr, grad_ptr, delta_ptr, lse2_ptr,
    stride_qh, stride_qn, stride_gh, stride_gn, scale_log2, length, rules,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CAUSAL: tl.constexpr, STRIDED: tl.constexpr,
    HAS_TABLE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add what a tile of queries, from ``query_start`` and before ``high``, gives to dk and dv of a tile of keys.

    The pointers stand at the first query head of the group; ``key`` is looked at where MASKED only.
    """
    query, head, is_row = tiles.query_rows(query_start, high, 0, GROUP, BLOCK_M)
    q_offset = head.to(tl.int64) * stride_qh + query.to(tl.int64) * stride_qn
    grad_offset = head.to(tl.int64) * stride_gh + query.to(tl.int64) * stride_gn
    index = head.to(tl.int64) * length + query
    q = tiles.load_rows(q_ptr, q_offset, is_row, HEAD_DIM, BLOCK_D, True)
    grad = tiles.load_rows(grad_ptr, grad_offset, is_row, HEAD_DIM, BLOCK_D, True)
    lse2 = tl.load(lse2_ptr + index, mask=is_row, other=float("inf"))
    delta = tl.load(delta_ptr + index, mask=is_row, other=0.0)
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")
    weights = tl.exp2(scores * scale_log2 - lse2[None, :])
    if MASKED:
        pairs = tiles.counts(query[None, :], key[:, None], rule, query_start, high, length, rules,
                             CAUSAL, STRIDED, HAS_TABLE, False, BLOCK_SIZE)  # fmt: skip
        weights = tl.where(pairs, weights, 0.0)
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision="ieee")
    grad_weights = tl.dot(v, tl.trans(grad), input_precision="ieee")
    grad_scores = weights * (grad_weights - delta[None, :])
    dk = tl.dot(grad_scores.to(q.dtype), q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=tiles.NOT_SPECIALIZED)
def _backward_dkv_columns_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, delta_ptr, lse2_ptr, dk_ptr, dv_ptr,
    entry_ptr, entry_first_ptr, item_bucket_ptr, item_first_ptr,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn, stride_entry, stride_entry_first, stride_item,
    scale_log2, length, num_splits, num_partial, window, num_global, stride,
    GROUP: tl.constexpr, KV_REPEAT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, STRIDED: tl.constexpr, STAGGER: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_TABLE: tl.constexpr, ENTRIES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Partial dk and dv, float32, of a tile of columns over one share of the queries: [splits, B, G, num_partial, D].

    With HAS_TABLE: of a tile of keys over one item of its table, that is up to ENTRIES of its entries.
    """
    TILE_M: tl.constexpr = BLOCK_M // GROUP
    group, batch = tl.program_id(1), tl.program_id(2)
    kv_head = group // KV_REPEAT
    rules = tiles.rules_of(kv_head, tl.num_programs(1) // KV_REPEAT, window, num_global, stride, STAGGER)
    offset = tl.arange(0, BLOCK_N)
    if HAS_TABLE:
        split, partial = 0, tl.program_id(0) * BLOCK_N + offset
        bucket = tl.load(item_bucket_ptr + kv_head * stride_item + tl.program_id(0))
        own_key = bucket * BLOCK_N + offset
        entry_first_ptr += kv_head * stride_entry_first + bucket
        item = tl.program_id(0) - tl.load(item_first_ptr + kv_head * stride_entry_first + bucket)
        entry = tl.load(entry_first_ptr) + item * ENTRIES
        num_full, num_masked = 0, tl.minimum(tl.load(entry_first_ptr + 1) - entry, ENTRIES)
        entry_ptr += kv_head.to(tl.int64) * stride_entry + entry * 4
        rule = tiles.TABLE
    else:
        num_columns = tiles.columns_below(length, rules, STRIDED, BLOCK_SIZE)
        split = tl.program_id(0) % num_splits
        partial = tl.program_id(0) // num_splits * BLOCK_N + offset
        own_key = tl.where(partial < num_columns, tiles.column_position(partial, rules, STRIDED, BLOCK_SIZE), length)
        first = tl.min(own_key, 0)
        last = tl.max(tl.where(own_key < length, own_key, 0), 0)
        # Every query but the global rows, and with causal from the first column on; in equal shares.
        low = first if CAUSAL else num_global
        share = (tl.maximum(length - low, 0) + num_splits - 1) // num_splits
        share = (share + TILE_M - 1) // TILE_M * TILE_M
        low = tl.minimum(low + split * share, length)
        high = tl.minimum(low + share, length)
        # Queries that have one of these columns in their window, or before them, need a mask.
        masked_start, masked_end = tiles.window_span(first, last, 0, length, rules, BLOCK_SIZE)
        masked_end = tl.maximum(masked_end, last) if CAUSAL else masked_end
        masked_start = first if CAUSAL else masked_start
        num_tiles, masked_first, masked_last = tiles.interval_tiles(low, high, masked_start, masked_end, TILE_M)
        num_masked = masked_last - masked_first
        num_full = num_tiles - num_masked
        rule = tiles.COLUMN
    k_offset = batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh + own_key.to(tl.int64) * stride_kn
    v_offset = batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh + own_key.to(tl.int64) * stride_vn
    k = tiles.load_rows(k_ptr, k_offset, own_key < length, HEAD_DIM, BLOCK_D, True)
    v = tiles.load_rows(v_ptr, v_offset, own_key < length, HEAD_DIM, BLOCK_D, True)
    head = (group * GROUP).to(tl.int64)
    q_ptr += batch.to(tl.int64) * stride_qb + head * stride_qh
    grad_ptr += batch.to(tl.int64) * stride_gb + head * stride_gh
    row_start = (batch.to(tl.int64) * tl.num_programs(1) * GROUP + head) * length
    delta_ptr += row_start
    lse2_ptr += row_start

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for MASKED in tl.static_range(1 if HAS_TABLE else 0, 2):
        for tile in range(num_masked if MASKED else num_full):
            key = own_key
            if HAS_TABLE:
                query_start, high = tl.load(entry_ptr + tile * 4), tl.load(entry_ptr + tile * 4 + 1)
                key_low, key_high = tl.load(entry_ptr + tile * 4 + 2), tl.load(entry_ptr + tile * 4 + 3)
                key = tl.where((own_key >= key_low) & (own_key < key_high), own_key, length)
            else:
                at = masked_first + tile if MASKED else tiles.skip(tile, masked_first, masked_last)
                query_start = low + at * TILE_M
            dk, dv = _add_queries(
                dk, dv, k, v, query_start, high, key, rule, q_ptr, grad_ptr, delta_ptr, lse2_ptr,
                stride_qh, stride_qn, stride_gh, stride_gn, scale_log2, length, rules,
                GROUP, HEAD_DIM, BLOCK_D, CAUSAL, STRIDED, HAS_TABLE, BLOCK_SIZE, BLOCK_M, MASKED,
            )  # fmt: skip

    index = ((split * tl.num_programs(2) + batch).to(tl.int64) * tl.num_programs(1) + group) * num_partial + partial
    tiles.store_rows(dk_ptr, index * HEAD_DIM, dk, partial < num_partial, HEAD_DIM, BLOCK_D)
    tiles.store_rows(dv_ptr, index * HEAD_DIM, dv, partial < num_partial, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=tiles.NOT_SPECIALIZED)
def _backward_dkv_window_kernel(
    q_ptr, k_ptr, v_ptr, key_mask_ptr, grad_ptr, delta_ptr, lse2_ptr, dk_ptr, dv_ptr,
    column_dk_ptr, column_dv_ptr, table_dk_ptr, table_dv_ptr, item_first_ptr,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn, stride_entry_first,
    scale, scale_log2, length, num_columns, num_table_rows, window, num_global, stride,
    GROUP: tl.constexpr, KV_REPEAT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, STRIDED: tl.constexpr, STAGGER: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, HAS_COLUMNS: tl.constexpr, HAS_TABLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of neighbouring keys: its window's queries and the global rows, and the partial sums."""
    TILE_M: tl.constexpr = BLOCK_M // GROUP
    group, batch = tl.program_id(1), tl.program_id(2)
    kv_head = group // KV_REPEAT
    rules = tiles.rules_of(kv_head, tl.num_programs(1) // KV_REPEAT, window, num_global, stride, STAGGER)
    first = tl.program_id(0) * BLOCK_N
    last = tl.minimum(first + BLOCK_N, length) - 1
    key = first + tl.arange(0, BLOCK_N)
    is_key = key < length
    start, end = tiles.window_span(first, last, first if CAUSAL else num_global, length, rules, BLOCK_SIZE)
    num_tiles, full_first, full_last = tiles.window_tiles(
        first, last, start, end, last if CAUSAL else 0, length, rules, BLOCK_SIZE, TILE_M
    )
    num_window = full_last - full_first
    num_full = num_window if CAUSAL else num_window + (num_global + TILE_M - 1) // TILE_M
    num_masked = num_tiles - num_window
    k_offset = batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh + key.to(tl.int64) * stride_kn
    v_offset = batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh + key.to(tl.int64) * stride_vn
    k = tiles.load_rows(k_ptr, k_offset, is_key, HEAD_DIM, BLOCK_D, True)
    v = tiles.load_rows(v_ptr, v_offset, is_key, HEAD_DIM, BLOCK_D, True)
    head = (group * GROUP).to(tl.int64)
    q_ptr += batch.to(tl.int64) * stride_qb + head * stride_qh
    grad_ptr += batch.to(tl.int64) * stride_gb + head * stride_gh
    row_start = (batch.to(tl.int64) * tl.num_programs(1) * GROUP + head) * length
    delta_ptr += row_start
    lse2_ptr += row_start

    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for MASKED in tl.static_range(2):
        for tile in range(num_masked if MASKED else num_full):
            if MASKED:
                query_start, high = start + tiles.skip(tile, full_first, full_last) * TILE_M, length
            else:  # those that the window lets see the whole tile, then the global rows
                is_window = tile < num_window
                query_start = tl.where(is_window, start + (full_first + tile) * TILE_M, (tile - num_window) * TILE_M)
                high = tl.where(is_window, length, num_global)
            dk, dv = _add_queries(
                dk, dv, k, v, query_start, high, key, tiles.WINDOW, q_ptr, grad_ptr, delta_ptr, lse2_ptr,
                stride_qh, stride_qn, stride_gh, stride_gn, scale_log2, length, rules,
                GROUP, HEAD_DIM, BLOCK_D, CAUSAL, STRIDED, False, BLOCK_SIZE, BLOCK_M, MASKED,
            )  # fmt: skip

    out_row = (batch.to(tl.int64) * tl.num_programs(1) + group) * length + key
    if HAS_COLUMNS:
        is_column = is_key & tiles.is_column(key, rules, STRIDED, BLOCK_SIZE)
        number = tiles.columns_below(key, rules, STRIDED, BLOCK_SIZE)
        at = ((batch.to(tl.int64) * tl.num_programs(1) + group) * num_columns + number) * HEAD_DIM
        dk += tiles.load_rows(column_dk_ptr, at, is_column, HEAD_DIM, BLOCK_D, True)
        dv += tiles.load_rows(column_dv_ptr, at, is_column, HEAD_DIM, BLOCK_D, True)
    if HAS_TABLE:
        item_first_ptr += kv_head * stride_entry_first + tl.program_id(0)
        for item in range(tl.load(item_first_ptr), tl.load(item_first_ptr + 1)):
            row = item * BLOCK_N + tl.arange(0, BLOCK_N)
            at = ((batch.to(tl.int64) * tl.num_programs(1) + group) * num_table_rows + row) * HEAD_DIM
            dk += tiles.load_rows(table_dk_ptr, at, is_key, HEAD_DIM, BLOCK_D, True)
            dv += tiles.load_rows(table_dv_ptr, at, is_key, HEAD_DIM, BLOCK_D, True)
    if HAS_KEY_MASK:
        visible = tl.load(key_mask_ptr + batch.to(tl.int64) * length + key, mask=is_key, other=0)
        dk = tl.where((visible != 0)[:, None], dk, 0.0)
        dv = tl.where((visible != 0)[:, None], dv, 0.0)
    tiles.store_rows(dk_ptr, out_row * HEAD_DIM, dk * scale, is_key, HEAD_DIM, BLOCK_D)
    tiles.store_rows(dv_ptr, out_row * HEAD_DIM, dv, is_key, HEAD_DIM, BLOCK_D)


def key_gradients(problem: Problem, rows: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """dk and dv; ``rows`` as ``Problem.gradient_arguments`` has them.

    First the partial sums of the columns and of the table, then all of it.
    """
    batch, heads, length, head_dim = problem.k.shape
    groups = (batch, problem.num_groups)
    partial = {f"{name}_ptr": problem.q for name in ("column_dk", "column_dv", "table_dk", "table_dv")}
    if problem.num_columns:
        tiles_of_columns = triton.cdiv(problem.num_columns, problem.configuration("backward_dkv_columns").block_n)
        num_splits = problem.num_splits(tiles_of_columns, length)
        shape = (num_splits, *groups, problem.num_columns, head_dim)
        dk, dv = problem.empty(shape, torch.float32), problem.empty(shape, torch.float32)
        problem.launch(
            _backward_dkv_columns_kernel,
            "backward_dkv_columns",
            tiles_of_columns * num_splits,
            **rows,
            dk_ptr=dk,
            dv_ptr=dv,
            num_splits=num_splits,
            num_partial=problem.num_columns,
        )
        partial |= {"column_dk_ptr": dk.sum(dim=0), "column_dv_ptr": dv.sum(dim=0)}
    table = problem.table("backward_dkv_window", by="key")
    block_n = problem.configuration("backward_dkv_window").block_n
    num_table_rows = table.num_items * block_n if table else 0
    if table:
        dk, dv = (problem.empty((*groups, num_table_rows, head_dim), torch.float32) for _ in range(2))
        problem.launch(
            _backward_dkv_columns_kernel,
            "backward_dkv_window",
            table.num_items,
            table,
            **rows,
            dk_ptr=dk,
            dv_ptr=dv,
            num_splits=1,
            num_partial=num_table_rows,
        )
        partial |= {"table_dk_ptr": dk, "table_dv_ptr": dv}
    dtype = problem.k.dtype if problem.kv_repeat == 1 else torch.float32
    dk, dv = (problem.empty((*groups, length, head_dim), dtype) for _ in range(2))
    problem.launch(
        _backward_dkv_window_kernel,
        "backward_dkv_window",
        triton.cdiv(length, block_n),
        table,
        **rows,
        **partial,
        dk_ptr=dk,
        dv_ptr=dv,
        num_columns=problem.num_columns,
        num_table_rows=num_table_rows,
        HAS_COLUMNS=problem.num_columns > 0,
    )
    if problem.kv_repeat > 1:
        dk, dv = (x.unflatten(1, (heads, problem.kv_repeat)).sum(dim=2) for x in (dk, dv))
    return dk, dv
