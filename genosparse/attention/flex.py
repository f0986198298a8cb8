"""torch's FlexAttention as a backend: an independent rival, and an oracle at moderate lengths.

The pattern becomes a ``mask_mod``, written from the definition and sharing no code with the other backends. On CUDA
FlexAttention is compiled into a block-sparse kernel. On the CPU it runs eagerly, over all N x N scores, since its
compiled CPU kernel has neither a backward pass nor an lse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor
from torch._higher_order_ops.flex_attention import flex_attention as flex_attention_operator
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask
from torch.nn.attention.flex_attention import flex_attention as torch_flex_attention

from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern
from genosparse.errors import PatternError

__all__ = ["flex_attention"]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

_MAX_BYTES = 1 << 28  # of all scores, or of a table of blocks; a forward and backward pass peaks at a dozen times it
_MAX_KERNELS = 64  # one per shape, dtype and set of rules; torch's own limit is 8
_MIN_CUDA_HEAD_DIM = 16
_TILE = 128  # positions per tile of a BlockMask


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    *,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention by ``torch.nn.attention.flex_attention``; arguments as ``sparse_attention`` has them.

    Returns:
        ``(out, lse)``: ``[B, H, N, D]`` in q's dtype; natural log, float32 (float64 for float64 input) ``[B, H, N]``,
        without gradient. A row with no key gives 0 and -inf.

    Raises:
        PatternError: The device, dtype, head size or length is not for this backend.
    """
    on_cuda = _require_supported(q)
    _require_memory(q, pattern, key_mask, extra_blocks)
    if key_mask is None and extra_blocks is None:
        block_mask = _cached_block_mask(pattern, q.shape[1], k.shape[1], q.shape[2], q.device)
    else:
        block_mask = _block_mask(pattern, q.shape[1], k.shape[1], q.shape[2], q.device, key_mask, extra_blocks)
    with torch.autocast(q.device.type, enabled=False):  # it would take q's dtype from the result
        if on_cuda:
            out, aux = _compiled(torch_flex_attention)(
                q, k, v, block_mask=block_mask, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
            )
            return out, aux.lse.detach()
        # The operator itself, which has a backward pass on the CPU; the function around it refuses tensors that
        # require gradients there, and would trace anew for every pattern. Its logarithms are to base 2.
        out, lse, _ = flex_attention_operator(q, k, v, _unchanged, block_mask.as_tuple(), scale, {})
        return out, lse.detach() * math.log(2)


def _unchanged(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score


@cache
def _compiled(function: Callable) -> Callable:
    # Whole or not at all: past the limit of kernels torch would go on eagerly, and make the N x N scores.
    compiled = torch.compile(function, fullgraph=True, dynamic=False)
    return torch._dynamo.config.patch(recompile_limit=_MAX_KERNELS)(compiled)


def _require_supported(q: Tensor) -> bool:
    """Whether q is on CUDA; an error where FlexAttention cannot serve it."""
    device = q.device.type
    if device not in ("cpu", "cuda"):
        raise PatternError(f"backend='flex' runs on CUDA and the CPU and q is on {q.device}; move the tensors")
    if device == "cuda" and q.dtype == torch.float64:
        raise PatternError(
            "backend='flex' on CUDA computes in float32, float16 or bfloat16, and q is float64; convert q, k and v, "
            "or use backend='reference'"
        )
    if device == "cuda" and q.shape[3] < _MIN_CUDA_HEAD_DIM:
        raise PatternError(
            f"backend='flex' on CUDA takes head sizes of at least {_MIN_CUDA_HEAD_DIM} and q has {q.shape[3]}; use "
            "fewer heads, or another backend"
        )
    return device == "cuda"


def _require_memory(q: Tensor, pattern: SparsePattern, key_mask: Tensor | None, extra_blocks: Tensor | None) -> None:
    batch, num_heads, length, _ = q.shape
    if q.device.type == "cpu":
        what = f"all {batch} x {num_heads} x {length:,} x {length:,} scores"
        size = batch * num_heads * length**2 * (8 if q.dtype == torch.float64 else 4)
    else:
        num_masks = (1 if key_mask is None else batch) * (num_heads if _is_per_head(pattern, extra_blocks) else 1)
        num_tiles = math.ceil(length / _TILE) ** 2
        num_pairs = math.ceil(length / pattern.random_block_size) ** 2 if pattern.num_random_blocks else 0
        if extra_blocks is not None:
            num_pairs += num_heads * extra_blocks.shape[1] ** 2
        what = f"a table of all pairs of blocks of {length:,} positions"
        size = max(4 * num_masks * num_tiles, num_pairs)  # int32 indices of tiles, single bytes for named blocks
    if size > _MAX_BYTES:
        raise PatternError(
            f"backend='flex' on {q.device.type} holds {what} at once, {size / 2**30:,.2f} GiB, and takes at most "
            f"{_MAX_BYTES / 2**30} GiB; use backend='auto', or fewer or shorter sequences"
        )


def _is_per_head(pattern: SparsePattern, extra_blocks: Tensor | None) -> bool:
    return pattern.stagger or (extra_blocks is not None and extra_blocks.shape[0] > 1)


@lru_cache(maxsize=8)
def _cached_block_mask(
    pattern: SparsePattern, num_heads: int, num_kv_heads: int, length: int, device: torch.device
) -> BlockMask:
    with torch.inference_mode(False):  # or the next call could not save it for its backward pass
        return _block_mask(pattern, num_heads, num_kv_heads, length, device, None, None)


def _block_mask(
    pattern: SparsePattern,
    num_heads: int,
    num_kv_heads: int,
    length: int,
    device: torch.device,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> BlockMask:
    # Compiled, the making of the mask holds nothing of size N x N.
    create = create_block_mask if device.type == "cpu" else _compiled(create_block_mask)
    return create(
        _mask_mod(pattern, num_heads, num_kv_heads, length, device, key_mask, extra_blocks),
        None if key_mask is None else key_mask.shape[0],
        num_heads if _is_per_head(pattern, extra_blocks) else None,
        length,
        length,
        device=device,
        BLOCK_SIZE=_TILE,
    )


def _mask_mod(
    pattern: SparsePattern,
    num_heads: int,
    num_kv_heads: int,
    length: int,
    device: torch.device,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> MaskMod:
    """The pattern as FlexAttention asks for it: whether a query sees a key, by batch, query head and positions.

    Values are tensors, so that one compiled kernel serves all patterns with the same rules on.
    """

    def number(value: int) -> Tensor:
        # Past the sequence's end all values mean the same, and fit into 32 bits.
        return torch.tensor(min(value, length), dtype=torch.int32, device=device)

    block_size, random_block_size = number(pattern.block_size), number(pattern.random_block_size)
    group = num_heads // num_kv_heads
    window = stride = phase = num_global = drawn = extra = None
    if pattern.window is not None:
        window = number(pattern.window)
    if pattern.stride is not None:
        phases = [
            (head // group) * pattern.stride // num_kv_heads if pattern.stagger else 0 for head in range(num_heads)
        ]
        stride, phase = number(pattern.stride), torch.stack([number(phase) for phase in phases])
    if pattern.num_global:
        num_global = number(pattern.num_global)
    if pattern.num_random_blocks:
        drawn = _named_blocks(pattern.random_blocks(length)).to(device)
    if extra_blocks is not None:
        extra = _named_blocks(extra_blocks)
        extra = extra.repeat_interleave(num_heads // len(extra), dim=0)
    causal = pattern.causal

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query_block, key_block = query // block_size, key // block_size
        sees = query < 0  # by no rule yet
        if window is not None:
            sees = sees | ((query_block - key_block).abs() <= window)
        if stride is not None and phase is not None:
            sees = sees | (key_block % stride == phase[head])
        if num_global is not None:
            sees = sees | (key_block < num_global) | (query_block < num_global)
        if drawn is not None:
            sees = sees | drawn[query // random_block_size, key // random_block_size]
        if extra is not None:
            sees = sees | extra[head, query // TABLE_BLOCK, key // TABLE_BLOCK]
        if causal:
            sees = sees & (key <= query)
        if key_mask is not None:
            sees = sees & key_mask[batch, key]
        return sees

    return mask_mod


def _named_blocks(table: Tensor) -> Tensor:
    """bool ``[..., blocks, blocks]``: whether a row of a table ``[..., blocks, most]`` names a block."""
    block = torch.arange(table.shape[-2], device=table.device)
    named = torch.zeros(*table.shape[:-1], len(block), dtype=torch.bool, device=table.device)
    for column in table.unbind(dim=-1):
        named |= column[..., None] == block
    return named
