"""Forward: one program per tile of queries, an online softmax over the tiles of keys that it meets.

Shape of a tile: BLOCK_M rows are BLOCK_M // GROUP positions times the GROUP query heads that read one KV head, so that
these share its keys. The kernel reads top-down: which rows, which tiles of keys, then for each tile scores, mask,
running maximum, rescale, accumulate. Global query rows, which see every key, run in a launch of their own (GLOBAL_ROWS)
that is split over the keys; their partial results are merged by lse.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from genosparse.attention.pattern import SparsePattern
from genosparse.attention.triton import tiles
from genosparse.attention.triton.launch import Problem

__all__ = ["attention_forward"]

LN2 = tl.constexpr(0.6931471805599453)
# Of a row that has met no key yet: finite, so that differences from it are never NaN.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit(do_not_specialize=tiles.NOT_SPECIALIZED)
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, key_mask_ptr, out_ptr, lse_ptr, entry_ptr, entry_first_ptr,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_entry, stride_entry_first,
    scale_log2, length, num_out, split_size, window, num_global, stride,
    GROUP: tl.constexpr, KV_REPEAT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, STRIDED: tl.constexpr, STAGGER: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, HAS_TABLE: tl.constexpr, GLOBAL_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    # Which rows, and which tiles of keys they meet.
    TILE_M: tl.constexpr = BLOCK_M // GROUP
    group, batch = tl.program_id(1), tl.program_id(2)
    kv_head = group // KV_REPEAT
    num_heads = tl.num_programs(1) * GROUP
    rules = tiles.rules_of(kv_head, tl.num_programs(1) // KV_REPEAT, window, num_global, stride, STAGGER)
    entry_ptr += kv_head.to(tl.int64) * stride_entry
    first, split, end, num_full, num_masked, plan = tiles.query_program(
        length, num_out, split_size, rules, entry_first_ptr + kv_head * stride_entry_first,
        CAUSAL, STRIDED, HAS_TABLE, GLOBAL_ROWS, BLOCK_SIZE, TILE_M, BLOCK_N,
    )  # fmt: skip
    query, head, is_row = tiles.query_rows(first, num_out, group, GROUP, BLOCK_M)
    q_offset = batch.to(tl.int64) * stride_qb + head.to(tl.int64) * stride_qh + query.to(tl.int64) * stride_qn
    q = tiles.load_rows(q_ptr, q_offset, is_row, HEAD_DIM, BLOCK_D, True)
    # The maximum of scaled scores is the scaled maximum of scores where the scale is positive.
    q = tl.where(scale_log2 < 0, -q, q)
    scale_log2 = tl.abs(scale_log2)

    k_ptr += batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh
    v_ptr += batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh
    key_mask_ptr += batch.to(tl.int64) * length

    row_max = tl.full([BLOCK_M], LOWEST, tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for MASKED in tl.static_range(2):  # full tiles, then those that need mask arithmetic: a loop for each
        for tile in range(num_masked if MASKED else num_full):
            key, rule, low, high = tiles.tile_keys(
                tile, plan, end, rules, entry_ptr, STRIDED, HAS_TABLE, BLOCK_SIZE, BLOCK_N, MASKED
            )
            is_key = key < end
            k = tiles.load_rows(k_ptr, key.to(tl.int64) * stride_kn, is_key, HEAD_DIM, BLOCK_D, MASKED)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            if MASKED:
                pairs = tiles.counts(query[:, None], key[None, :], rule, low, high, end, rules,
                                     CAUSAL, STRIDED, HAS_TABLE, GLOBAL_ROWS, BLOCK_SIZE)  # fmt: skip
                scores = tl.where(pairs, scores, float("-inf"))
            if HAS_KEY_MASK:
                visible = tl.load(key_mask_ptr + key, mask=is_key, other=0)
                scores = tl.where((visible != 0)[None, :], scores, float("-inf"))
            new_max = tl.maximum(row_max, tl.max(scores, 1) * scale_log2)
            weights = tl.exp2(scores * scale_log2 - new_max[:, None])
            rescale = tl.exp2(row_max - new_max)
            row_sum = row_sum * rescale + tl.sum(weights, 1)
            v = tiles.load_rows(v_ptr, key.to(tl.int64) * stride_vn, is_key, HEAD_DIM, BLOCK_D, MASKED)
            acc = tl.dot(weights.to(v.dtype), v, acc * rescale[:, None], input_precision="ieee")
            row_max = new_max

    is_empty = row_sum == 0  # a row without keys gives 0, and -inf
    row_sum = tl.where(is_empty, 1.0, row_sum)
    out = acc / row_sum[:, None]
    lse = tl.where(is_empty, float("-inf"), (row_max + tl.log2(row_sum)) * LN2)
    out_row = ((split * tl.num_programs(2) + batch).to(tl.int64) * num_heads + head) * num_out + query
    if not GLOBAL_ROWS and not CAUSAL:
        is_row = is_row & (query >= num_global)  # global rows come from their own launch
    tiles.store_rows(out_ptr, out_row * HEAD_DIM, out, is_row, HEAD_DIM, BLOCK_D)
    tl.store(lse_ptr + out_row, lse, mask=is_row)


def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend; arguments as ``sparse_attention`` has them, validated there.

    Returns:
        ``(out, lse)``: ``[B, H, N, D]`` in q's dtype and the natural-log lse, float32 ``[B, H, N]``.
    """
    problem = Problem.of(q, k, v, pattern, scale, key_mask, extra_blocks)
    out = problem.empty(q.shape, problem.q.dtype)
    lse = problem.empty(q.shape[:3], torch.float32)
    _launch(problem, out, lse)
    if problem.num_global_rows:
        num_splits = problem.num_splits(problem.num_row_tiles("forward", problem.num_global_rows), problem.length)
        shape = (num_splits, *q.shape[:2], problem.num_global_rows)
        parts = problem.empty((*shape, q.shape[3]), torch.float32), problem.empty(shape, torch.float32)
        _launch(problem, *parts, num_splits=num_splits)
        rows = slice(0, problem.num_global_rows)
        out[:, :, rows], lse[:, :, rows] = _merge(*parts)
    return problem.as_given(out), lse


def _launch(problem: Problem, out: Tensor, lse: Tensor, *, num_splits: int = 0) -> None:
    """Launch over all rows, or with ``num_splits`` over the global rows and that many shares of the keys."""
    num_out = out.shape[-2]
    problem.launch(
        _forward_kernel,
        "forward",
        problem.num_row_tiles("forward", num_out) * max(1, num_splits),
        None if num_splits else problem.table("forward", by="query"),
        out_ptr=out,
        lse_ptr=lse,
        num_out=num_out,
        split_size=triton.cdiv(problem.length, max(1, num_splits)),
        GLOBAL_ROWS=num_splits > 0,
    )


def _merge(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge partial results [splits, B, H, rows, D] by their lse; rows that no split has a key for give 0 and -inf."""
    total = lse.logsumexp(dim=0)
    share = (lse - total.clamp(min=torch.finfo(lse.dtype).min)).exp()
    return (share[..., None] * out).sum(dim=0), total
