"""Registration with ``torch.library``: the forward and backward operators, their fakes and their autograd.

A pattern crosses the operator boundary as a list of integers, since operators take plain values alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genosparse.attention.cpu import aten
from genosparse.attention.pattern import SparsePattern

__all__ = ["attention", "pack_pattern"]

_OFF = -1  # a rule switched off (None), in a packed pattern


def pack_pattern(pattern: SparsePattern) -> list[int]:
    """A pattern as integers, in the order of its fields."""
    return [_OFF if value is None else int(value) for value in pattern.to_dict().values()]


def _unpack_pattern(packed: list[int]) -> SparsePattern:
    values: dict[str, Any] = dict(zip(SparsePattern().to_dict(), packed, strict=True))
    for name in ("window", "stride"):
        values[name] = None if values[name] == _OFF else values[name]
    return SparsePattern(**{**values, "stagger": bool(values["stagger"]), "causal": bool(values["causal"])})


@torch.library.custom_op("genosparse::attention", mutates_args=(), device_types="cpu")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of sparse attention; arguments as ``sparse_attention`` has them, validated there."""
    return aten.attention_forward(q, k, v, _unpack_pattern(pattern), scale, key_mask, extra_blocks)


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=lse_dtype)


@torch.library.custom_op("genosparse::attention_backward", mutates_args=(), device_types="cpu")
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    return aten.attention_backward(
        grad, q, k, v, out, lse, _unpack_pattern(pattern), scale, key_mask, extra_blocks
    )  # fmt: skip


@attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, pattern, scale, key_mask, extra_blocks = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, key_mask, extra_blocks)
    ctx.pattern, ctx.scale = pattern, scale


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, key_mask, extra_blocks = ctx.saved_tensors
    grads = attention_backward(grad_out, q, k, v, out, lse, ctx.pattern, ctx.scale, key_mask, extra_blocks)
    return (*grads, None, None, None, None)


attention.register_autograd(_backward, setup_context=_setup_context)
