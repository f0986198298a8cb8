"""From tensors and a pattern to the arguments and grids that all kernels share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from torch import Tensor

from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern
from genosparse.attention.tables import ENTRIES_PER_ITEM, Table, make_table
from genosparse.attention.triton.configurations import (
    Configuration,
    find_configuration,
    group_size,
    padded_head_dim,
)

__all__ = ["Problem"]

_LOG2_E = 1.4426950408889634
_INTERPRETED = bool(triton.knobs.runtime.interpret)  # what the kernels were decorated under


@dataclass
class Problem:
    """One call: its tensors as the kernels read them, and the numbers made from its pattern."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: SparsePattern
    scale: float
    key_mask: Tensor | None
    extra_blocks: Tensor | None
    dtype: torch.dtype  # that the caller gave, and gets back
    group: int = field(init=False)  # query heads that share a tile of keys
    kv_repeat: int = field(init=False)  # groups that share a KV head

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pattern: SparsePattern,
        scale: float,
        key_mask: Tensor | None,
        extra_blocks: Tensor | None,
    ) -> Problem:
        """Take the arguments of a call."""
        q_, k_, v_ = (_prepare(x) for x in (q, k, v))
        # All positions are in the first block of a longer one too, and int32 holds it.
        pattern = replace(pattern, block_size=min(pattern.block_size, max(q.shape[2], TABLE_BLOCK)))
        return cls(q_, k_, v_, pattern, scale, key_mask, extra_blocks, q.dtype)

    def __post_init__(self) -> None:
        shared = self.num_heads // self.k.shape[1]
        self.group = group_size(shared)
        self.kv_repeat = shared // self.group

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]

    @property
    def num_groups(self) -> int:
        """Second axis of all grids."""
        return self.num_heads // self.group

    @property
    def length(self) -> int:
        return self.q.shape[2]

    @property
    def head_dim(self) -> int:
        return self.q.shape[3]

    @property
    def num_global(self) -> int:
        """Global positions."""
        return min(self.pattern.num_global_positions, self.length)

    @property
    def num_global_rows(self) -> int:
        """Rows that see all keys; with causal the other rules already say what these see."""
        return 0 if self.pattern.causal else self.num_global

    @property
    def num_columns(self) -> int:
        """Most columns of a KV head, global keys among them."""
        if self.pattern.stride is None:
            return self.num_global
        size = self.pattern.block_size
        period = self.pattern.stride * size

        def below(x: int, phase: int) -> int:
            return x // period * size + min(max(x % period - phase * size, 0), size)

        phases = set(self.pattern.phases(self.k.shape[1]))
        return self.num_global + max(below(self.length, phase) - below(self.num_global, phase) for phase in phases)

    def prepare(self, x: Tensor) -> Tensor:
        """A tensor as the kernels read it, like q, k and v."""
        return _prepare(x)

    def as_given(self, x: Tensor) -> Tensor:
        """A result in the caller's dtype."""
        return x.to(self.dtype)

    def empty(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for a result: each kernel writes all of its own."""
        return torch.empty(shape, dtype=dtype, device=self.q.device)

    def configuration(self, kernel: str) -> Configuration:
        return find_configuration(kernel, _arch(self.q.device), self.head_dim, self.q.dtype)

    def tile_m(self, kernel: str) -> int:
        """Positions of a tile of queries."""
        return self.configuration(kernel).block_m // self.group

    def num_row_tiles(self, kernel: str, num_rows: int) -> int:
        return triton.cdiv(num_rows, self.tile_m(kernel))

    def num_splits(self, num_tiles: int, num_positions: int) -> int:
        """Programs to share one tile's loop, so that the device is full: four per multiprocessor."""
        programs = num_tiles * self.num_groups * self.q.shape[0]
        wanted = triton.cdiv(4 * _num_multiprocessors(self.q.device), programs)
        share = triton.cdiv(num_positions, max(1, min(wanted, triton.cdiv(num_positions, 256))))
        return triton.cdiv(num_positions, share)  # none of them empty

    def table(self, kernel: str, *, by: str) -> Table | None:
        """The random and extra blocks as entries by tile of queries or of keys; None where there are none."""
        if not self.pattern.num_random_blocks and (self.extra_blocks is None or not self.extra_blocks.shape[2]):
            return None
        return make_table(
            self.pattern,
            self.length,
            self.extra_blocks,
            self.q.device,
            row_unit=self.tile_m(kernel),
            key_unit=self.configuration(kernel).block_n,
            by=by,
        )

    def launch(self, kernel: Any, name: str, num_programs: int, table: Table | None = None, **own: Any) -> None:
        """Launch ``kernel`` on ``num_programs`` x groups x batch with the shared arguments and its ``own``."""
        configuration = self.configuration(name)
        given = {
            **self._arguments(),
            **(table.arguments(self.k.shape[1]) if table else Table.no_arguments(self.q)),
            **own,
        }
        given |= {"BLOCK_M": configuration.block_m, "BLOCK_N": configuration.block_n, "HAS_TABLE": table is not None}
        arguments = {key: given[key] for key in kernel.arg_names}
        options = {
            "num_warps": configuration.num_warps,
            "num_stages": configuration.num_stages,
            "maxnreg": configuration.max_registers,
        }
        with torch.cuda.device_of(self.q):
            kernel[(num_programs, self.num_groups, self.q.shape[0])](**arguments, **options)

    def gradient_arguments(self, grad: Tensor, delta: Tensor, lse2: Tensor) -> dict[str, Any]:
        """The arguments that tell the backward kernels of the rows' gradients."""
        strides = dict(zip(("stride_gb", "stride_gh", "stride_gn"), grad.stride(), strict=False))
        return {"grad_ptr": grad, "delta_ptr": delta, "lse2_ptr": lse2, **strides}

    def _arguments(self) -> dict[str, Any]:
        pattern, length = self.pattern, self.length
        num_blocks = triton.cdiv(length, pattern.block_size)
        num_kv_heads = self.k.shape[1]
        assert length * (num_kv_heads if pattern.stagger else 1) < 1 << 31
        # Reaches and strides past the sequence are as good as its length, and keep int32 from overflowing.
        window = -1 if pattern.window is None else min(pattern.window, num_blocks)
        most = num_blocks * num_kv_heads if pattern.stagger else num_blocks
        stride = 1 if pattern.stride is None else min(pattern.stride, most)
        strides = {
            f"stride_{name}{axis}": size
            for name, x in (("q", self.q), ("k", self.k), ("v", self.v))
            for axis, size in zip("bhn", x.stride(), strict=False)
        }
        return {
            **strides,
            "q_ptr": self.q,
            "k_ptr": self.k,
            "v_ptr": self.v,
            "key_mask_ptr": self.q if self.key_mask is None else self.key_mask.contiguous().view(torch.uint8),
            "scale": self.scale,
            # A scale of 0, or one that float32 rounds to 0, would make NaN of scores of -inf: a small one makes the
            # same weights.
            "scale_log2": math.copysign(max(abs(self.scale), 1e-30), self.scale) * _LOG2_E,
            "length": length,
            "window": window,
            "num_global": self.num_global,
            "stride": stride,
            "GROUP": self.group,
            "KV_REPEAT": self.kv_repeat,
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": padded_head_dim(self.head_dim),
            "CAUSAL": pattern.causal,
            "STRIDED": pattern.stride is not None,
            "STAGGER": pattern.stagger,
            "BLOCK_SIZE": pattern.block_size,
            "HAS_KEY_MASK": self.key_mask is not None,
            "ENTRIES": ENTRIES_PER_ITEM,
        }


def _prepare(x: Tensor) -> Tensor:
    """Rows of neighbouring values; in the interpreter, whose bfloat16 is broken, float32 for bfloat16."""
    if _INTERPRETED and x.dtype == torch.bfloat16:
        x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _arch(device: torch.device) -> int:
    """Compute capability, as 90; 0 in the interpreter."""
    if _INTERPRETED:
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _num_multiprocessors(device: torch.device) -> int:
    # The interpreter runs one program after the other; a few splits there let tests see them.
    return 2 if _INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
