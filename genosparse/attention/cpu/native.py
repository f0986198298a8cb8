"""The native kernels: finding the library, and from tensors and a pattern to a call of it.

``kernels/`` is plain C, built with the package where there is a compiler, and compiled once for each of
``INSTRUCTION_SETS``; the best that the processor has is used. The library is called through ctypes, which lets go of
the interpreter's lock, and starts as many threads as torch is set to. All memory is torch's.
"""

from __future__ import annotations

import ctypes
import math
import platform
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern
from genosparse.attention.tables import Table, make_table
from genosparse.errors import GenosparseWarning

__all__ = [
    "INSTRUCTION_SETS",
    "MAX_HEAD_DIM",
    "MAX_LENGTH",
    "attention_backward",
    "attention_forward",
    "available_instruction_sets",
    "instruction_set",
    "instruction_set_for",
    "use_instruction_set",
    "warn_if_missing",
    "why_not",
]

INSTRUCTION_SETS = ("avx2", "avx512", "avx512_bf16", "amx_bf16")  # in ascending order; as processor.c numbers them
MAX_HEAD_DIM = 128
MAX_LENGTH = 1 << 29  # tables hold positions as int32
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # as problem.h numbers them

_TILE = 64
_MAX_THREADS = 1024
_SLAB_BYTES = 1 << 27  # of packed keys and their sums; at least one head
_MOST_KEPT_BYTES = 1 << 28  # of memory to work in, from call to call
_ITEMS = 64  # for the threads to share in the backward pass


class _Problem(ctypes.Structure):
    """``struct problem`` of problem.h, field by field."""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("q", "k", "v", "grad")]
        + [(f"{name}_stride", ctypes.c_int64 * 3) for name in ("q", "k", "v", "grad")]
        + [(name, ctypes.c_void_p) for name in ("key_mask", "out", "dq", "dk", "dv", "lse")]
        + [
            (name, ctypes.c_int64)
            for name in (
                *("batch", "num_heads", "num_kv_heads", "length", "head_dim", "dtype"),
                *("window", "num_global", "stride", "block_size", "stagger", "causal"),
            )
        ]
        + [("scale", ctypes.c_double)]
        + [(f"{by}_{what}", ctypes.c_void_p) for by in ("query", "key") for what in ("entries", "entry_first")]
        + [
            (name, ctypes.c_int64)
            for name in (
                *("query_entries_stride", "key_entries_stride", "entry_first_stride"),
                *("first_head", "last_head", "num_grid_tiles", "num_column_tiles"),
                *("num_splits", "chunk_tiles", "num_slots", "num_threads"),
            )
        ]
        + [
            (name, ctypes.c_void_p)
            for name in (
                *("k_columns", "k_cross", "v_columns", "v_cross", "visible", "is_column", "key_norm"),
                *("dk_sum", "dv_sum", "dk_columns", "dv_columns", "part", "part_lse", "scratch"),
            )
        ]
        + [("scratch_size", ctypes.c_int64)]
    )


def _load() -> ctypes.CDLL | None:
    """The library, if there is one that can be loaded and is of these sources."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
            size = library.genosparse_problem_size()
        except (OSError, AttributeError):
            return None
        return library if size == ctypes.sizeof(_Problem) else None
    return None


_library = _load()
_BFLOAT16_SETS = INSTRUCTION_SETS[2:]  # which multiply bfloat16; the others turn it into float32
_available = tuple(
    name
    for number, name in enumerate(INSTRUCTION_SETS)
    if _library is not None and hasattr(_library, f"genosparse_forward_{name}") and _library.genosparse_has(number)
)


def _best() -> str | None:
    """The last that is available, but for bfloat16's products where they are no faster than float32's."""
    if _library is not None and _available and _available[-1] == "avx512_bf16" and not _library.genosparse_fast_bf16():
        return "avx512"
    return _available[-1] if _available else None


_chosen = _best()
_has_warned = False


def available_instruction_sets() -> tuple[str, ...]:
    """Those that the kernels are compiled for and that this processor has."""
    return _available


def instruction_set() -> str | None:
    """The one in use, or None where the native kernels cannot run."""
    return _chosen


def instruction_set_for(dtype: torch.dtype) -> str:
    """The one whose functions serve a dtype."""
    assert _chosen is not None
    return "avx512" if _chosen in _BFLOAT16_SETS and dtype != torch.bfloat16 else _chosen


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Run the kernels compiled for another instruction set that the processor has: for tests and measurements."""
    global _chosen
    assert name in _available, name
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def why_not(dtype: torch.dtype, head_dim: int, length: int) -> str | None:
    """Why the kernels cannot serve such a call, as the end of a sentence on them; None where they can."""
    if _library is None:
        return "is not built: the package was installed without a C compiler, or not on Linux on x86-64; reinstall it"
    if _chosen is None:
        return "needs a processor with AVX2 and FMA, and this one has not"
    if dtype not in DTYPES:
        return f"computes in float32, bfloat16 and float16, and q is {str(dtype).removeprefix('torch.')}"
    if head_dim > MAX_HEAD_DIM:
        return f"takes head sizes up to {MAX_HEAD_DIM} and q has {head_dim}"
    if length > MAX_LENGTH:
        return f"takes at most {MAX_LENGTH:,} positions and q has {length:,}"
    return None


def warn_if_missing() -> None:
    """Say once that attention is slower than it could be."""
    global _has_warned
    if _library is not None or _has_warned or platform.system() != "Linux" or platform.machine() != "x86_64":
        return
    _has_warned = True
    warnings.warn(
        "the native attention kernels are not built, so that attention runs on torch's own operators, several times "
        "slower; install a C compiler and reinstall genosparse",
        GenosparseWarning,
        stacklevel=4,
    )


@dataclass
class _Call:
    """One call: the structure that the library reads, and the tensors that its pointers point into."""

    problem: _Problem
    tensors: dict[str, Tensor]
    variant: str  # whose functions are called

    @classmethod
    def of(
        cls,
        tensors: dict[str, Tensor],
        pattern: SparsePattern,
        scale: float,
        key_mask: Tensor | None,
        extra_blocks: Tensor | None,
    ) -> _Call:
        """Take the arguments of a call; ``tensors`` has q, k and v, and grad in the backward pass."""
        tensors = {name: x if x.stride(3) == 1 else x.contiguous() for name, x in tensors.items()}
        q, k = tensors["q"], tensors["k"]
        length, num_kv_heads = q.shape[2], k.shape[1]
        # All positions are in the first block of a longer one too; reaches and strides past the sequence are as good as
        # its length. So nothing overflows.
        pattern = replace(pattern, block_size=min(pattern.block_size, max(length, TABLE_BLOCK)))
        num_blocks = -(-length // pattern.block_size)
        most = num_blocks * num_kv_heads if pattern.stagger else num_blocks
        stride = 0 if pattern.stride is None else min(pattern.stride, most)
        variant = instruction_set_for(q.dtype)
        num_global = min(pattern.num_global_positions, length)
        problem = _Problem(
            batch=q.shape[0],
            num_heads=q.shape[1],
            num_kv_heads=num_kv_heads,
            length=length,
            head_dim=q.shape[3],
            dtype=DTYPES.index(q.dtype),
            window=-1 if pattern.window is None else min(pattern.window, num_blocks),
            num_global=num_global,
            stride=stride,
            block_size=pattern.block_size,
            stagger=pattern.stagger,
            causal=pattern.causal,
            # A scale of 0 would make NaN of hidden scores; a small one makes the same weights.
            scale=math.copysign(max(abs(scale), 1e-30), scale),
            num_threads=min(torch.get_num_threads(), _MAX_THREADS),
            num_column_tiles=-(-_most_columns(pattern, stride, num_kv_heads, length) // _TILE),
        )
        call = cls(problem, {}, variant)
        for name, x in tensors.items():
            call.hold(name, x)
            getattr(problem, f"{name}_stride")[:] = x.stride()[:3]
        if key_mask is not None:
            call.hold("key_mask", key_mask.contiguous().view(torch.uint8))
        has_table = pattern.num_random_blocks > 0 or (extra_blocks is not None and extra_blocks.shape[2] > 0)
        if has_table:
            for by in ("query", "key"):
                call.hold_table(
                    by, make_table(pattern, length, extra_blocks, q.device, row_unit=_TILE, key_unit=_TILE, by=by)
                )
        if pattern.window is not None or has_table or call.num_global_rows:
            problem.num_grid_tiles = -(-length // _TILE)
        return call

    @property
    def num_global_rows(self) -> int:
        return 0 if self.problem.causal else self.problem.num_global

    @property
    def dim(self) -> int:
        """The head size, padded as vectors.h does."""
        step = 32 if self.variant in _BFLOAT16_SETS else 16
        return -(-self.problem.head_dim // step) * step

    def hold(self, name: str, x: Tensor) -> None:
        self.tensors[name] = x
        setattr(self.problem, name, x.data_ptr())

    def hold_table(self, by: str, table: Table) -> None:
        self.hold(f"{by}_entries", table.entries)
        self.hold(f"{by}_entry_first", table.first)
        if table.entries.shape[0] > 1:
            setattr(self.problem, f"{by}_entries_stride", table.entries.stride(0))
            self.problem.entry_first_stride = table.first.stride(0)

    def run(self, function: str, *, packed: tuple[str, ...], num_sums: int) -> None:
        """Run forward or backward over the heads of keys, as many at once as bounded memory holds."""
        assert _library is not None
        problem, dim = self.problem, self.dim
        unit = 2 if self.variant in _BFLOAT16_SETS else 4
        num_tiles = problem.num_grid_tiles + problem.num_column_tiles
        num_heads = problem.batch * problem.num_kv_heads
        tile = _TILE * dim
        bytes_per_head = tile * (num_tiles * unit * len(packed) + problem.num_grid_tiles * 4 * num_sums)
        slab = max(1, min(num_heads, _SLAB_BYTES // max(1, bytes_per_head)))
        for name in packed:
            self.hold(name, _kept(name, slab * num_tiles * tile * unit))
        self.hold("visible", _empty(slab * num_tiles, torch.int64))
        self.hold("is_column", _empty(slab * num_tiles, torch.int64))
        if function == "forward":
            self.hold("key_norm", _empty(slab * num_tiles, torch.float32))
        self._share_global_rows(slab, dim)
        if num_sums:
            self._share_queries(slab)
        problem.scratch_size = -(-_function(f"{function}_scratch", self.variant)() // 64) * 64
        self.hold("scratch", _empty(problem.num_threads * problem.scratch_size, torch.uint8))
        for first in range(0, num_heads, slab):
            problem.first_head, problem.last_head = first, min(first + slab, num_heads)
            if num_sums:
                for name in ("dk", "dv"):
                    size = 4 * tile * slab
                    self.hold(f"{name}_sum", _kept(f"{name}_sum", size * problem.num_grid_tiles).zero_())
                    columns = size * problem.num_slots * problem.num_column_tiles
                    self.hold(f"{name}_columns", _kept(f"{name}_columns", columns).zero_())
            _function(function, self.variant)(ctypes.byref(problem))

    def _share_global_rows(self, slab: int, dim: int) -> None:
        """Split the keys of the global rows into shares, whose parts take no more memory than a few times q."""
        rows, problem = self.num_global_rows, self.problem
        problem.num_splits = max(1, min(problem.num_grid_tiles, 4 * problem.length // max(rows, 1), _ITEMS))
        if rows:
            parts = problem.num_splits * slab * (problem.num_heads // problem.num_kv_heads) * rows
            self.hold("part", _empty(parts * dim, torch.float32))
            self.hold("part_lse", _empty(parts, torch.float32))

    def _share_queries(self, slab: int) -> None:
        """Cut the queries into chunks: those of even number must not touch the same keys, nor those of odd number."""
        problem = self.problem
        num_tiles = -(-problem.length // _TILE)
        reach = -(-((problem.window + 1) * problem.block_size - 1) // _TILE) if problem.window >= 0 else 0
        slots = -(-_ITEMS // slab)
        if problem.num_column_tiles:  # whose sums take no more memory than a few times k
            slots = min(slots, max(1, 4 * num_tiles // problem.num_column_tiles))
        problem.chunk_tiles = max(1, reach if problem.causal else 2 * reach, -(-num_tiles // (2 * slots)))
        num_chunks = -(-num_tiles // problem.chunk_tiles)
        problem.num_slots = -(-num_chunks // 2)


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
    call = _Call.of({"q": q, "k": k, "v": v}, pattern, scale, key_mask, extra_blocks)
    out, lse = _empty(q.shape, q.dtype), _empty(q.shape[:3], torch.float32)
    call.hold("out", out)
    call.hold("lse", lse)
    call.run("forward", packed=("k_columns", "v_cross"), num_sums=0)
    return out, lse


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
    call = _Call.of({"q": q, "k": k, "v": v, "grad": grad}, pattern, scale, key_mask, extra_blocks)
    call.hold("out", out.contiguous())
    call.hold("lse", lse.contiguous())
    dq, dk, dv = (_empty(x.shape, x.dtype) for x in (q, k, v))
    for name, x in (("dq", dq), ("dk", dk), ("dv", dv)):
        call.hold(name, x)
    call.run("backward", packed=("k_columns", "k_cross", "v_columns"), num_sums=2)
    return dq, dk, dv


class _Kept(threading.local):
    """Memory to work in that a thread keeps from call to call, by name, as long as it is not much.

    The layers of an encoder ask for the same again and again, and to have it anew from the system costs a tenth of a
    call.
    """

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}


_kept_by_thread = _Kept()


def _kept(name: str, size: int) -> Tensor:
    """So many bytes to work in, with anything in them."""
    buffers = _kept_by_thread.buffers
    buffer = buffers.pop(name, None)
    if buffer is None or len(buffer) < size:
        del buffer
        if sum(map(len, buffers.values())) + size > _MOST_KEPT_BYTES:
            buffers.clear()  # those of other calls, it may be
        with torch.inference_mode(False):  # where it is written to later is another matter
            buffer = _empty(size, torch.uint8)
    if sum(map(len, buffers.values())) + len(buffer) <= _MOST_KEPT_BYTES:
        buffers[name] = buffer
    return buffer[:size]


def _empty(shape: Any, dtype: torch.dtype) -> Tensor:
    """Memory for a result: the kernels write all of it that they read."""
    return torch.empty(shape, dtype=dtype)


def _function(name: str, variant: str) -> Any:
    assert _library is not None
    function = getattr(_library, f"genosparse_{name}_{variant}")
    function.restype = ctypes.c_int64 if name.endswith("scratch") else None
    return function


def _most_columns(pattern: SparsePattern, stride: int, num_kv_heads: int, length: int) -> int:
    """Most columns of a head, global keys among them."""
    num_global = min(pattern.num_global_positions, length)
    if not stride:
        return num_global
    size, period = pattern.block_size, stride * pattern.block_size

    def below(x: int, phase: int) -> int:
        return x // period * size + min(max(x % period - phase * size, 0), size)

    phases = {head * stride // num_kv_heads if pattern.stagger else 0 for head in range(num_kv_heads)}
    return num_global + max(below(length, phase) - below(num_global, phase) for phase in phases)
