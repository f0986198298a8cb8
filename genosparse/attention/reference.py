"""The dense float64 truth: short, readable, slow, and the only place where something of size N x N is made.

Every other backend is tested against this one. Gradients come from autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern

__all__ = ["attended_pairs", "reference_attention"]


def attended_pairs(
    pattern: SparsePattern,
    length: int,
    num_kv_heads: int = 1,
    *,
    key_mask: Tensor | None = None,
    extra_blocks: Tensor | None = None,
) -> Tensor:
    """Which query attends to which key.

    Returns:
        bool ``[B or 1, num_kv_heads, N (query), N (key)]``.
    """
    position = torch.arange(length)
    block = position // pattern.block_size
    query, key = block[:, None], block[None, :]
    pairs = torch.zeros(num_kv_heads, length, length, dtype=torch.bool)
    if pattern.window is not None:
        pairs |= (query - key).abs() <= pattern.window
    for head, phase in enumerate(pattern.phases(num_kv_heads)):
        assert pattern.stride is not None
        pairs[head] |= key % pattern.stride == phase
    pairs |= (key < pattern.num_global) | (query < pattern.num_global)
    if pattern.num_random_blocks:
        pairs |= _table_pairs(pattern.random_blocks(length)[None], length, pattern.random_block_size)
    if extra_blocks is not None:
        pairs |= _table_pairs(extra_blocks.cpu(), length, TABLE_BLOCK)
    if pattern.causal:
        pairs &= position[None, :] <= position[:, None]
    if key_mask is None:
        return pairs[None]
    return pairs[None] & key_mask.cpu()[:, None, None, :]


def _table_pairs(table: Tensor, length: int, block_size: int) -> Tensor:
    """Expand a table of key blocks per query block, int32 ``[heads, blocks, most]``, to pairs ``[heads, N, N]``."""
    num_blocks = table.shape[1]
    named = torch.zeros(table.shape[0], num_blocks, num_blocks + 1, dtype=torch.bool)
    named.scatter_(2, torch.where(table < 0, num_blocks, table).long(), True)
    block = torch.arange(length) // block_size
    return named[:, block][:, :, block]


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    *,
    key_mask: Tensor | None = None,
    extra_blocks: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention by the definition, in float64.

    Args:
        q: Queries ``[B, H, N, D]``.
        k: Keys ``[B, H_kv, N, D]``; query head ``h`` reads KV head ``h // (H // H_kv)``.
        v: Values ``[B, H_kv, N, D]``.
        pattern: Who attends to whom.
        key_mask: bool ``[B, N]``, True = visible.
        extra_blocks: int32 ``[H_kv or 1, ceil(N / 64), most]``, further key blocks per query block, padded with -1.
        scale: Of the scores, ``D ** -0.5`` when None.

    Returns:
        ``(out, lse)``, float64 ``[B, H, N, D]`` and ``[B, H, N]``; a row with no key gives 0 and -inf.
    """
    group = q.shape[1] // k.shape[1]
    pairs = attended_pairs(pattern, q.shape[2], k.shape[1], key_mask=key_mask, extra_blocks=extra_blocks)
    pairs = pairs.to(q.device).repeat_interleave(group, dim=1)
    k = k.double().repeat_interleave(group, dim=1)
    v = v.double().repeat_interleave(group, dim=1)
    scores = q.double() @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    has_key = pairs.any(dim=-1)
    # Rows without keys take zeros, not -inf, through the softmax: its gradient would be NaN.
    scores = scores.masked_fill(~pairs, -torch.inf).masked_fill(~has_key[..., None], 0.0)
    lse = scores.logsumexp(dim=-1)
    out = (scores - lse[..., None]).exp() @ v
    return out.masked_fill(~has_key[..., None], 0.0), lse.masked_fill(~has_key, -torch.inf)
