"""What attention is measured against: genosparse's own backends, and what a user would otherwise call.

Legend: B batch, H query heads, G KV heads, R query heads per KV head, N positions, D head size; T query tiles, M rows
of a tile, L keys of a tile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.cpu import native
from genosparse.errors import PatternError

__all__ = ["OURS", "RIVALS", "Problem", "Rival", "chunked_window_attention"]

# Scores that are held at a time by the window in plain torch operations: 128 MiB in float32.
_SLAB_ELEMENTS = 1 << 25


@dataclass(frozen=True, slots=True)
class Problem:
    """The tensors and the pattern of one call: q ``[B, H, N, D]``, k and v ``[B, H_kv, N, D]``."""

    pattern: SparsePattern
    length: int
    batch: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def tensors(self, device: torch.device, *, requires_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Draw q, k and v from torch's generator."""
        q, k, v = (
            torch.randn(self.batch, heads, self.length, self.head_dim, dtype=self.dtype, device=device).requires_grad_(
                requires_grad
            )
            for heads in (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        )
        return q, k, v

    def count_pairs(self, pattern: SparsePattern) -> int:
        """Attended pairs of all query heads and batch rows under a pattern."""
        group = self.num_heads // self.num_kv_heads
        return self.batch * group * pattern.num_pairs(self.length, self.num_kv_heads)


Attend = Callable[[Tensor, Tensor, Tensor, Problem], Tensor]


@dataclass(frozen=True, slots=True)
class Rival:
    """A way to compute attention.

    Attributes:
        name: In tables.
        attend: ``(q, k, v, problem) -> out``; raises ``PatternError`` where it cannot serve.
        pattern: The part of a problem's pattern that it computes: what counts as useful of its work.
        growth: Exponent with which its time grows with length.
        executed_pairs: Pairs of a query head that it multiplies at the least, for a bound of its time.
        extra_bytes: ``(problem, training)``: memory for what it holds beside inputs, outputs and gradients.
        is_ours: Whether it is one of genosparse's backends, whose failures are bugs and not results.
    """

    name: str
    attend: Attend
    pattern: Callable[[SparsePattern], SparsePattern] = lambda pattern: pattern
    growth: int = 1
    executed_pairs: Callable[[Problem], float] = lambda problem: 0.0
    extra_bytes: Callable[[Problem, bool], float] = lambda problem, training: 0.0
    is_ours: bool = False


def _genosparse(backend: str) -> Attend:
    return lambda q, k, v, problem: sparse_attention(q, k, v, problem.pattern, backend=backend)


def _dense(q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, problem: Problem) -> Tensor:
    return scaled_dot_product_attention(
        q_BHND,
        k_BGND,
        v_BGND,
        is_causal=problem.pattern.causal,
        enable_gqa=problem.num_heads != problem.num_kv_heads,
    )


def _dense_pairs(problem: Problem) -> float:
    return problem.length**2 / (2 if problem.pattern.causal else 1)


def _window_only(pattern: SparsePattern) -> SparsePattern:
    if pattern.window is None:
        raise PatternError("the pattern has no window")
    return replace(pattern, stride=None, stagger=False, num_global=0, num_random_blocks=0)


def chunked_window_attention(q_BHND: Tensor, k_BGND: Tensor, v_BGND: Tensor, pattern: SparsePattern) -> Tensor:
    """The window of a pattern, and nothing else of it, in plain torch operations.

    As in Longformer (Beltagy et al. 2020), the sequence is cut into tiles of queries, each multiplied with the slice of
    keys that reaches a window further on both sides; pairs outside the window are masked before the softmax.

    Args:
        q_BHND: Queries ``[B, H, N, D]``.
        k_BGND: Keys ``[B, H_kv, N, D]``.
        v_BGND: Values ``[B, H_kv, N, D]``.
        pattern: Its ``window``, ``block_size`` and ``causal`` count.

    Returns:
        ``[B, H, N, D]``.
    """
    batch, num_heads, length, head_dim = q_BHND.shape
    num_kv_heads = k_BGND.shape[1]
    group = num_heads // num_kv_heads
    window = _window_only(pattern).window
    assert window is not None
    reach = min((window + 1) * pattern.block_size - 1, length)
    rows = _tile_rows(reach)
    num_tiles = -(-length // rows)
    keys = rows + 2 * reach
    padding = num_tiles * rows - length
    q = pad(q_BHND, (0, 0, 0, padding)).view(batch, num_kv_heads, group, num_tiles, rows, head_dim)
    q_BGTRMD = q.transpose(2, 3)
    # Overlapping slices, uncopied: [B, G, T, D, L].
    k_BGTDL, v_BGTDL = (pad(x, (0, 0, reach, reach + padding)).unfold(2, keys, rows) for x in (k_BGND, v_BGND))
    row = torch.arange(rows, device=q.device)[:, None]
    column = torch.arange(keys, device=q.device)[None, :] - reach
    tiles_at_once = max(1, _SLAB_ELEMENTS // (batch * num_heads * rows * keys))
    outs = []
    for start in range(0, num_tiles, tiles_at_once):
        tiles = slice(start, start + tiles_at_once)
        q_slab = q_BGTRMD[:, :, tiles].flatten(3, 4)
        scores = (q_slab * head_dim**-0.5) @ k_BGTDL[:, :, tiles]
        first = torch.arange(start, start + scores.shape[2], device=q.device)[:, None, None] * rows
        query, key = first + row, first + column
        seen = (key >= 0) & (key < length) & ((query // pattern.block_size - key // pattern.block_size).abs() <= window)
        if pattern.causal:
            seen &= key <= query
        # The least finite score, as rows of padding may see no key and would turn to NaN.
        scores = scores.masked_fill(~seen.repeat(1, group, 1), torch.finfo(scores.dtype).min)
        outs.append(scores.softmax(-1) @ v_BGTDL[:, :, tiles].transpose(3, 4))
    out = torch.cat(outs, 2).view(batch, num_kv_heads, num_tiles, group, rows, head_dim)
    return out.transpose(2, 3).reshape(batch, num_heads, num_tiles * rows, head_dim)[:, :, :length]


def _tile_rows(reach: int) -> int:
    return max(64, reach // 2)


def _chunked_keys(problem: Problem) -> int:
    """Keys per query that the window in plain operations multiplies."""
    window = problem.pattern.window
    if window is None:
        return 0
    reach = min((window + 1) * problem.pattern.block_size - 1, problem.length)
    return _tile_rows(reach) + 2 * reach


def _chunked_bytes(problem: Problem, training: bool) -> float:
    """In training, autograd keeps the weights, and the mask of the scores, of all tiles; else one slab is held."""
    scores = problem.batch * problem.num_heads * problem.length * _chunked_keys(problem)
    if not training:
        scores = min(scores, 3 * _SLAB_ELEMENTS)
    return scores * (problem.dtype.itemsize + 1.0)


_CPU_BACKENDS = ("cpu-native", "cpu-aten") if native.instruction_set() else ("cpu-aten",)

OURS = {
    "cpu": tuple(Rival(name, _genosparse(name), is_ours=True) for name in _CPU_BACKENDS),
    "cuda": (Rival("triton", _genosparse("triton"), is_ours=True),),
}
"""genosparse's backends by type of device, the one that ``auto`` takes first."""

RIVALS = {
    "sdpa": Rival("sdpa (dense)", _dense, growth=2, executed_pairs=_dense_pairs),
    "flex": Rival("flex", _genosparse("flex"), growth=2),
    "window": Rival(
        "window only",
        lambda q, k, v, problem: chunked_window_attention(q, k, v, problem.pattern),
        _window_only,
        executed_pairs=lambda problem: float(problem.length * _chunked_keys(problem)),
        extra_bytes=_chunked_bytes,
    ),
}
"""The others, by the name that ``rivals=`` knows: torch's dense ``scaled_dot_product_attention``, torch's
FlexAttention with the same pattern, and the pattern's window alone in plain torch operations."""
