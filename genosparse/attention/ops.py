"""Registration with ``torch.library``: the forward and backward operators, their fakes, autograd and FLOP counts.

A pattern crosses the operator boundary as a list of integers, since operators take plain values alone, and so does the
name of the backend: ``api`` has chosen it, and nothing here chooses again.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from genosparse.attention.cpu import aten, native
from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern

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


def _module(backend: str) -> ModuleType:
    """The module with ``attention_forward`` and ``attention_backward`` of a backend."""
    if backend == "triton":
        from genosparse.attention import triton  # only where it is used: it imports triton

        return triton
    return {"cpu-native": native, "cpu-aten": aten}[backend]


@torch.library.custom_op("genosparse::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``(out, lse)`` of sparse attention; arguments as ``sparse_attention`` has them, validated there.

    ``backend`` is "cpu-native", "cpu-aten" or "triton".
    """
    forward = _module(backend).attention_forward
    return forward(q, k, v, _unpack_pattern(pattern), scale, key_mask, extra_blocks)


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=lse_dtype)


@torch.library.custom_op("genosparse::attention_backward", mutates_args=())
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    backward = _module(backend).attention_backward
    return backward(grad, q, k, v, out, lse, _unpack_pattern(pattern), scale, key_mask, extra_blocks)


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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, pattern, scale, key_mask, extra_blocks, backend = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, key_mask, extra_blocks)
    ctx.pattern, ctx.scale, ctx.backend = pattern, scale, backend


def _backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, key_mask, extra_blocks = ctx.saved_tensors
    grads = attention_backward(
        grad_out, q, k, v, out, lse, ctx.pattern, ctx.scale, key_mask, extra_blocks, ctx.backend
    )  # fmt: skip
    return (*grads, None, None, None, None, None)


attention.register_autograd(_backward, setup_context=_setup_context)


def _forward_flops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: list[int],
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
    backend: str,
    out_val: Any = None,
) -> int:
    """Two products over the pairs: scores and out."""
    return 4 * q.shape[3] * _num_pairs(q, k, pattern, extra_blocks)


def _backward_flops(
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
    backend: str,
    out_val: Any = None,
) -> int:
    """Five products over the pairs: the scores again, and the gradients of the weights, q, k and v."""
    return 10 * q.shape[3] * _num_pairs(q, k, pattern, extra_blocks)


def _num_pairs(q: Tensor, k: Tensor, packed: list[int], extra_blocks: Tensor | None) -> int:
    """Pairs of a query and a key over the batch and its query heads.

    ``key_mask`` is not looked at: what it hides counts, as padding does in torch's own formulas. Fake ``extra_blocks``
    have no values: each query is then taken to get as many further keys as the table has room for, at most all.
    """
    batch, num_heads, length, _ = q.shape
    num_kv_heads, pattern = k.shape[1], _unpack_pattern(packed)
    with unset_fake_temporarily():  # the counts themselves are to have values
        if extra_blocks is not None and (isinstance(extra_blocks, FakeTensor) or extra_blocks.is_meta):
            counts = pattern.key_counts(length, num_kv_heads) + extra_blocks.shape[2] * TABLE_BLOCK
            num_pairs = int(counts.clamp(max=length).sum())
        else:
            num_pairs = pattern.num_pairs(length, num_kv_heads, extra_blocks=extra_blocks)
    return batch * (num_heads // num_kv_heads) * num_pairs


_FLOP_COUNTER = "torch.utils.flop_counter"


def _register_flops(flop_counter: ModuleType) -> None:
    flop_counter.register_flop_formula(torch.ops.genosparse.attention, get_raw=True)(_forward_flops)
    flop_counter.register_flop_formula(torch.ops.genosparse.attention_backward, get_raw=True)(_backward_flops)


class _FlopCounterFinder(MetaPathFinder):
    """Registers the formulas when torch's counter is imported: to import it here would import triton, for 0.3 s."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _FLOP_COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register_flops(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _FLOP_COUNTER in sys.modules:
    _register_flops(sys.modules[_FLOP_COUNTER])
else:
    sys.meta_path.insert(0, _FlopCounterFinder())
