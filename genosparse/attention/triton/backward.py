"""Backward: the gradient of q. That of k and v is in ``backward_dkv``.

The weights are computed again from the scores and the lse, p = exp(score - lse), and then, with
delta = rowsum(out * grad_out),

    dv = p^T grad_out,  ds = p * (grad_out v^T - delta),  dq = scale * ds k,  dk = scale * ds^T q.

dq runs over the same tiles of keys as the forward pass, and split over the keys for global rows. Nothing is added by
atomic operations, so that results do not change from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genosparse.attention.pattern import SparsePattern
from genosparse.attention.triton import tiles
from genosparse.attention.triton.backward_dkv import key_gradients
from genosparse.attention.triton.launch import Problem

__all__ = ["attention_backward"]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=tiles.NOT_SPECIALIZED)
def _backward_prepare_kernel(
    out_ptr, grad_ptr, lse_ptr, delta_ptr, lse2_ptr, stride_gb, stride_gh, stride_gn, length,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """delta, and the lse in base 2 with inf for rows without keys, so that their weights are 2 ** -inf = 0."""
    group, batch = tl.program_id(1), tl.program_id(2)
    first = tl.program_id(0) * (BLOCK_M // GROUP)
    query, head, is_row = tiles.query_rows(first, length, group, GROUP, BLOCK_M)
    index = (batch.to(tl.int64) * tl.num_programs(1) * GROUP + head) * length + query
    grad_offset = batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh + query.to(tl.int64) * stride_gn
    out = tiles.load_rows(out_ptr, index * HEAD_DIM, is_row, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    grad = tiles.load_rows(grad_ptr, grad_offset, is_row, HEAD_DIM, BLOCK_D, True).to(tl.float32)
    lse = tl.load(lse_ptr + index, mask=is_row, other=0.0)
    tl.store(delta_ptr + index, tl.sum(out * grad, 1), mask=is_row)
    tl.store(lse2_ptr + index, tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E), mask=is_row)


@triton.jit(do_not_specialize=tiles.NOT_SPECIALIZED)
def _backward_dq_kernel(
    q_ptr, k_ptr, v_ptr, key_mask_ptr, grad_ptr, delta_ptr, lse2_ptr, dq_ptr, entry_ptr, entry_first_ptr,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_gb, stride_gh, stride_gn, stride_entry, stride_entry_first,
    scale, scale_log2, length, num_out, split_size, window, num_global, stride,
    GROUP: tl.constexpr, KV_REPEAT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr, STRIDED: tl.constexpr, STAGGER: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr, HAS_TABLE: tl.constexpr, GLOBAL_ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of a tile of queries: rows and tiles of keys as in the forward kernel."""
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
    grad_offset = batch.to(tl.int64) * stride_gb + head.to(tl.int64) * stride_gh + query.to(tl.int64) * stride_gn
    q = tiles.load_rows(q_ptr, q_offset, is_row, HEAD_DIM, BLOCK_D, True)
    grad = tiles.load_rows(grad_ptr, grad_offset, is_row, HEAD_DIM, BLOCK_D, True)
    index = (batch.to(tl.int64) * num_heads + head) * length + query
    lse2 = tl.load(lse2_ptr + index, mask=is_row, other=float("inf"))
    delta = tl.load(delta_ptr + index, mask=is_row, other=0.0)

    k_ptr += batch.to(tl.int64) * stride_kb + kv_head.to(tl.int64) * stride_kh
    v_ptr += batch.to(tl.int64) * stride_vb + kv_head.to(tl.int64) * stride_vh
    key_mask_ptr += batch.to(tl.int64) * length

    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for MASKED in tl.static_range(2):
        for tile in range(num_masked if MASKED else num_full):
            key, rule, low, high = tiles.tile_keys(
                tile, plan, end, rules, entry_ptr, STRIDED, HAS_TABLE, BLOCK_SIZE, BLOCK_N, MASKED
            )
            is_key = key < end
            k = tiles.load_rows(k_ptr, key.to(tl.int64) * stride_kn, is_key, HEAD_DIM, BLOCK_D, MASKED)
            v = tiles.load_rows(v_ptr, key.to(tl.int64) * stride_vn, is_key, HEAD_DIM, BLOCK_D, MASKED)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            weights = tl.exp2(scores * scale_log2 - lse2[:, None])
            if MASKED:
                pairs = tiles.counts(query[:, None], key[None, :], rule, low, high, end, rules,
                                     CAUSAL, STRIDED, HAS_TABLE, GLOBAL_ROWS, BLOCK_SIZE)  # fmt: skip
                weights = tl.where(pairs, weights, 0.0)
            if HAS_KEY_MASK:
                visible = tl.load(key_mask_ptr + key, mask=is_key, other=0)
                weights = tl.where((visible != 0)[None, :], weights, 0.0)
            grad_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
            grad_scores = weights * (grad_weights - delta[:, None])
            dq = tl.dot(grad_scores.to(k.dtype), k, dq, input_precision="ieee")

    if not GLOBAL_ROWS and not CAUSAL:
        is_row = is_row & (query >= num_global)
    out_row = ((split * tl.num_programs(2) + batch).to(tl.int64) * num_heads + head) * num_out + query
    tiles.store_rows(dq_ptr, out_row * HEAD_DIM, dq * scale, is_row, HEAD_DIM, BLOCK_D)


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: SparsePattern,
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their dtypes, from what ``attention_forward`` returned."""
    problem = Problem.of(q, k, v, pattern, scale, key_mask, extra_blocks)
    grad, out = problem.prepare(grad), problem.prepare(out).contiguous()
    delta, lse2 = torch.empty_like(lse), torch.empty_like(lse)
    rows = problem.gradient_arguments(grad, delta, lse2)
    row_tiles = problem.num_row_tiles("backward_dq", problem.length)
    problem.launch(_backward_prepare_kernel, "backward_dq", row_tiles, **rows, out_ptr=out, lse_ptr=lse.contiguous())
    dk, dv = key_gradients(problem, rows)
    return problem.as_given(_dq(problem, rows)), problem.as_given(dk), problem.as_given(dv)


def _dq(problem: Problem, rows: dict[str, Any]) -> Tensor:
    dq = problem.empty(problem.q.shape, problem.q.dtype)
    _launch_dq(problem, rows, dq)
    if problem.num_global_rows:
        num_splits = problem.num_splits(problem.num_row_tiles("backward_dq", problem.num_global_rows), problem.length)
        shape = (num_splits, *dq.shape[:2], problem.num_global_rows, dq.shape[3])
        parts = problem.empty(shape, torch.float32)
        _launch_dq(problem, rows, parts, num_splits=num_splits)
        dq[:, :, : problem.num_global_rows] = parts.sum(dim=0)
    return dq


def _launch_dq(problem: Problem, rows: dict[str, Any], dq: Tensor, *, num_splits: int = 0) -> None:
    num_out = dq.shape[-2]
    problem.launch(
        _backward_dq_kernel,
        "backward_dq",
        problem.num_row_tiles("backward_dq", num_out) * max(1, num_splits),
        None if num_splits else problem.table("backward_dq", by="query"),
        **rows,
        dq_ptr=dq,
        num_out=num_out,
        split_size=triton.cdiv(problem.length, max(1, num_splits)),
        GLOBAL_ROWS=num_splits > 0,
    )
