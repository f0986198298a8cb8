"""The door to all backends: validate, choose, call."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, overload

import torch
from torch import Tensor

from genosparse.attention.cpu import native
from genosparse.attention.ops import attention, pack_pattern
from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern
from genosparse.attention.reference import reference_attention
from genosparse.errors import PatternError

__all__ = ["BACKENDS", "MAX_HEAD_DIM", "default_backend", "input_dtype", "sparse_attention"]

BACKENDS = ("auto", "triton", "cpu", "cpu-native", "cpu-aten", "flex", "reference")

MAX_HEAD_DIM = 256
MAX_TRITON_HEAD_DIM = 128
MAX_TRITON_GRID = 65_535  # an axis of CUDA's grids
MAX_TRITON_LENGTH = 1 << 29  # its positions are int32, and so are sums of two
_LARGEST_SCALE = 1e30  # of what float32 holds, with room for the scores
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@overload
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    *,
    key_mask: Tensor | None = None,
    extra_blocks: Tensor | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    *,
    key_mask: Tensor | None = None,
    extra_blocks: Tensor | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: SparsePattern,
    *,
    key_mask: Tensor | None = None,
    extra_blocks: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the pairs that a pattern names, in time and memory proportional to their number.

    Each pair counts once, however many rules name it. A row with no visible key gives 0, with zero gradients.

    Args:
        q: Queries ``[B, H, N, D]``, any length N.
        k: Keys ``[B, H_kv, N, D]``; query head ``h`` reads KV head ``h // (H // H_kv)``.
        v: Values ``[B, H_kv, N, D]``.
        pattern: Who attends to whom.
        key_mask: bool ``[B, N]``, True = visible.
        extra_blocks: int32 ``[H_kv or 1, ceil(N / 64), most]``: for each block of 64 queries, the indices of further
            blocks of 64 keys, padded with -1.
        scale: Of the scores; ``D ** -0.5`` when None.
        return_lse: Return the natural-log sum of the exponentials of each row's scores too.
        backend: ``"auto"`` takes ``"triton"`` on CUDA, else ``"cpu"``. ``"triton"``: the block-sparse kernels, on
            CUDA or, with ``TRITON_INTERPRET=1`` in the environment, in Triton's interpreter; ``"cpu"``: the best that
            the processor has of ``"cpu-native"``, kernels in C for float32, bfloat16 and float16, and ``"cpu-aten"``,
            torch's own operators; ``"flex"``: torch's FlexAttention, a rival to
            compare with at moderate lengths; ``"reference"``: dense float64. A backend asked for by name never falls
            back to another.

    Returns:
        ``out`` ``[B, H, N, D]`` in q's dtype, or ``(out, lse)`` with lse float32 ``[B, H, N]`` (float64 for float64
        input), without gradient; -inf in rows with no key.

    Raises:
        PatternError: Shapes, dtypes or devices do not fit together, the pattern names no pair, or the backend cannot
            serve the call.
    """
    _validate(q, k, v, pattern, key_mask, extra_blocks)
    backend = _choose(backend, q, k, pattern)
    scale = q.shape[3] ** -0.5 if scale is None else float(scale)
    if not abs(scale) <= _LARGEST_SCALE:
        raise PatternError(
            f"scale={scale}: expected a finite number up to {_LARGEST_SCALE:g}, or None for head size ** -0.5"
        )
    if backend == "reference":
        out, lse = reference_attention(
            q, k, v, pattern, key_mask=key_mask, extra_blocks=extra_blocks, scale=scale
        )  # fmt: skip
        out, lse = out.to(q.dtype), lse.detach().to(_lse_dtype(q.dtype))
    elif backend == "flex":
        from genosparse.attention.flex import flex_attention  # its torch modules take a while to import

        out, lse = flex_attention(q, k, v, pattern, key_mask=key_mask, extra_blocks=extra_blocks, scale=scale)
        lse = lse.detach()
    else:
        out, lse = attention(q, k, v, pack_pattern(pattern), scale, key_mask, extra_blocks, backend)
    return (out, lse) if return_lse else out


def input_dtype(dtype: torch.dtype, device: torch.device, head_dim: int) -> torch.dtype:
    """The dtype to hand q, k and v over in that are to be ``dtype``, where a caller can choose.

    ``dtype`` itself, but where no backend reads it: torch's operators on the CPU compute bfloat16 and float16 in
    float32, and are spared the way there and back.
    """
    is_short = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cpu" and is_short and native.why_not(dtype, head_dim, 1) is not None:
        return torch.float32
    return dtype


def default_backend(dtype: torch.dtype, device: torch.device, head_dim: int = 64) -> str:
    """The backend that ``backend="auto"`` takes for such tensors, or why there is none, in one line."""
    q = torch.empty(1, 1, 1, head_dim, dtype=dtype, device=device)
    try:
        return _choose("auto", q, q, SparsePattern(window=0))
    except PatternError as error:
        return f"none: {error}"


def _choose(backend: str, q: Tensor, k: Tensor, pattern: SparsePattern) -> str:
    """The one backend to call, or an error that says why the one asked for cannot serve."""
    if backend not in BACKENDS:
        raise PatternError(f"backend={backend!r} is not known; expected one of {', '.join(BACKENDS)}")
    device = q.device.type
    if backend == "auto":
        backend = "triton" if device == "cuda" else "cpu"
    if backend in ("cpu", "cpu-native", "cpu-aten"):
        if device != "cpu":
            raise PatternError(
                f"backend={backend!r} runs on the CPU and q is on {q.device}; move the tensors, or use "
                "backend='triton' on CUDA, backend='reference' elsewhere"
            )
        return _choose_cpu(backend, q)
    if backend == "triton":
        _require_triton(q, k.shape[1], pattern)
    return backend


def _choose_cpu(backend: str, q: Tensor) -> str:
    if backend == "cpu-aten":
        return backend
    reason = native.why_not(q.dtype, q.shape[3], q.shape[2])
    if reason is None:
        return "cpu-native"
    if backend == "cpu-native":
        raise PatternError(f"backend='cpu-native' {reason}; or use backend='cpu', which takes the best there is")
    if not torch.compiler.is_compiling():  # a graph does not warn
        native.warn_if_missing()
    return "cpu-aten"


def _require_triton(q: Tensor, num_kv_heads: int, pattern: SparsePattern) -> None:
    if importlib.util.find_spec("triton") is None:
        raise PatternError("backend='triton' needs the package triton, which is not installed; pip install triton")
    if q.device.type != "cuda" and not (q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        raise PatternError(
            f"backend='triton' runs on CUDA and q is on {q.device}; move the tensors, use backend='cpu', or set "
            "TRITON_INTERPRET=1 before the start to run the kernels in Triton's interpreter (slowly)"
        )
    if q.dtype == torch.float64:
        raise PatternError(
            "backend='triton' computes in float32, float16 or bfloat16, and q is float64; convert q, k and v, or use "
            "backend='reference'"
        )
    if q.shape[3] > MAX_TRITON_HEAD_DIM:
        raise PatternError(
            f"backend='triton' takes head sizes up to {MAX_TRITON_HEAD_DIM} and q has {q.shape[3]}; use more heads, or "
            "another backend"
        )
    for size, what in ((q.shape[0], "sequences"), (q.shape[1], "query heads")):
        if size > MAX_TRITON_GRID:
            raise PatternError(f"backend='triton' takes at most {MAX_TRITON_GRID:,} {what} at once and q has {size:,}")
    most = min(MAX_TRITON_LENGTH, (1 << 31) // num_kv_heads - 1) if pattern.stagger else MAX_TRITON_LENGTH
    if q.shape[2] > most:
        raise PatternError(
            f"backend='triton' takes at most {most:,} positions and q has {q.shape[2]:,}; cut the sequence"
        )


def _lse_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _validate(
    q: Tensor, k: Tensor, v: Tensor, pattern: SparsePattern, key_mask: Tensor | None, extra_blocks: Tensor | None
) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise PatternError(f"expected q [B, H, N, D] and k, v [B, H_kv, N, D], got {shapes}")
    batch, num_heads, length, head_dim = q.shape
    if k.shape != v.shape or k.shape[0] != batch or k.shape[2:] != q.shape[2:]:
        raise PatternError(f"q, k and v differ in batch, length or head size (k and v in heads too): {shapes}")
    if 0 in q.shape or not k.shape[1]:
        raise PatternError(f"nothing to attend over: {shapes} has an empty dimension; expected at least one of each")
    if num_heads % k.shape[1]:
        raise PatternError(f"{num_heads} query heads cannot share {k.shape[1]} KV heads evenly: expected H % H_kv == 0")
    if head_dim > MAX_HEAD_DIM:
        raise PatternError(f"head size {head_dim} is too large: expected at most {MAX_HEAD_DIM}; use more heads")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise PatternError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: expected one dtype for all, of {names}")
    if not q.device == k.device == v.device:
        raise PatternError(f"q, k, v are on {q.device}, {k.device}, {v.device}: expected one device")
    if pattern.is_empty and extra_blocks is None:
        raise PatternError(
            "the pattern has every rule off, so no position attends to any; give it window=, stride=, num_global= or "
            "num_random_blocks=, or pass extra_blocks="
        )
    if key_mask is not None and (
        key_mask.dtype != torch.bool or key_mask.shape != (batch, length) or key_mask.device != q.device
    ):
        raise PatternError(
            f"key_mask is {key_mask.dtype} {tuple(key_mask.shape)} on {key_mask.device}: expected torch.bool "
            f"{(batch, length)} on {q.device}, True where a key is visible"
        )
    if extra_blocks is not None:
        _validate_extra_blocks(extra_blocks, k.shape[1], length, q.device)


def _validate_extra_blocks(extra_blocks: Tensor, num_kv_heads: int, length: int, device: torch.device) -> None:
    num_blocks = -(-length // TABLE_BLOCK)
    if (
        extra_blocks.dtype != torch.int32
        or extra_blocks.ndim != 3
        or extra_blocks.shape[0] not in (1, num_kv_heads)
        or extra_blocks.shape[1] != num_blocks
        or extra_blocks.device != device
    ):
        raise PatternError(
            f"extra_blocks is {extra_blocks.dtype} {tuple(extra_blocks.shape)} on {extra_blocks.device}: expected "
            f"torch.int32 ({num_kv_heads} or 1, {num_blocks}, most) on {device}, blocks of {TABLE_BLOCK} keys"
        )
    if torch.compiler.is_compiling():
        return  # a graph cannot turn on values
    if extra_blocks.numel() and (int(extra_blocks.min()) < -1 or int(extra_blocks.max()) >= num_blocks):
        raise PatternError(
            f"extra_blocks names blocks {int(extra_blocks.min())} to {int(extra_blocks.max())}: expected 0 to "
            f"{num_blocks - 1}, and -1 for padding"
        )
