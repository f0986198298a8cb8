"""Sparse attention on torch's own CPU flash kernel, forward and backward.

The attended pairs are cut into *runs*: a batch of equal query tiles, each against its keys, in one call of the library
operator. The runs of a query row name each of its pairs exactly once, so their results merge by their lse. A run is one
of

- window: consecutive tiles against the overlapping slices of keys around them, uncopied. The columns and global keys
  inside a slice are masked out here, where the mask repeats from tile to tile, so that the columns' runs need no mask;
- columns: all rows against one compact copy of the global and strided keys, which also gives the gradient of columns
  that a million rows share a float32 accumulator of its own;
- table: tiles of one block against the gathered random and extra blocks, less the pairs that a rule above has;
- global rows: the first rows against slices of all keys, merged over the slices.

The backward pass is the same runs with the *merged* out and lse: each run then returns its share of the gradient.

16-bit inputs are computed in float32: on the processors measured the operator is no faster in bfloat16 (its backward,
with small windows, half as fast), and it would sum the gradients of columns in bfloat16.

Legend: B batch, H query heads, G KV heads, N positions, D head size; T tiles, M rows of a tile, L keys of a tile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern

__all__ = ["attention_backward", "attention_forward"]

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

# Masked scores get this rather than -inf: a row masked throughout in one run then comes back with a hugely negative lse
# and merges with weight 0, where the operator would have reported lse 0 or NaN.
_HIDDEN = -1e30

_COLUMN_ROWS = 256  # rows of a tile in runs of columns and global rows
_SLICE = 4096  # most keys of a tile, so that a wide window does not make a wide mask
_MASK_ELEMENTS = 1 << 22  # of one mask: 16 MiB in float32
_CHUNK_ELEMENTS = 1 << 21  # of a chunk's accumulator: 8 MiB, about the cache


def attention_forward(
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    pattern: SparsePattern,
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attend; arguments as ``sparse_attention`` has them, validated there.

    Returns:
        ``(out, lse)``: ``[B, H, N, D]`` in q's dtype and the natural-log lse ``[B, H, N]``, float32 (float64 for
        float64).
    """
    out = torch.empty(q_BHND.shape, dtype=q_BHND.dtype, device=q_BHND.device)
    lse = torch.empty(q_BHND.shape[:3], dtype=_accumulator_dtype(q_BHND.dtype), device=q_BHND.device)
    for rows, hidden in _batches(key_mask, q_BHND.shape[0]):
        q, k, v = (_fold_heads(x[rows]) for x in (q_BHND, k_BGND, v_BGND))
        k, v = k.to(lse.dtype), v.to(lse.dtype)
        plan = _Plan(pattern, q, k, k_BGND.shape[1], hidden, extra_blocks)
        out_rows, lse_rows = out[rows].flatten(0, 1), lse[rows].flatten(0, 1)  # views: both are contiguous
        columns = plan.columns.gather(k), plan.columns.gather(v)
        for chunk in plan.chunks():
            merged = _Merge(chunk, q.shape[0], v)
            for run in chunk.runs:
                keys, values = (run.keys_of(x, packed) for x, packed in zip((k, v), columns, strict=True))
                rows_q = run.rows_of(q).to(lse.dtype)
                merged.add(run, *_flash(rows_q, keys, values, attn_mask=run.mask, scale=scale))
            merged.write(out_rows, lse_rows)
    return out, lse


def attention_backward(
    grad_BHND: Tensor,
    q_BHND: Tensor,
    k_BGND: Tensor,
    v_BGND: Tensor,
    out_BHND: Tensor,
    lse_BHN: Tensor,
    pattern: SparsePattern,
    scale: float,
    key_mask: Tensor | None,
    extra_blocks: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, in their dtypes, from what ``attention_forward`` returned."""
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BHND, k_BGND, v_BGND))
    for rows, hidden in _batches(key_mask, q_BHND.shape[0]):
        grad, q, k, v, out = (_fold_heads(x[rows]) for x in (grad_BHND, q_BHND, k_BGND, v_BGND, out_BHND))
        # exp(score - lse) must be 0 in rows without keys.
        lse = lse_BHN[rows].flatten(0, 1)
        lse = torch.where(lse.isneginf(), -_HIDDEN, lse)
        k, v = k.to(lse.dtype), v.to(lse.dtype)
        plan = _Plan(pattern, q, k, k_BGND.shape[1], hidden, extra_blocks)
        columns = plan.columns.gather(k), plan.columns.gather(v)
        sums = torch.zeros(q.shape, dtype=lse.dtype, device=q.device), torch.zeros_like(k), torch.zeros_like(v)
        column_sums = torch.zeros_like(columns[0]), torch.zeros_like(columns[1])
        table_sums = plan.table_sums(k)
        for chunk in plan.chunks():
            for run in chunk.runs:
                keys, values = (run.keys_of(x, packed) for x, packed in zip((k, v), columns, strict=True))
                rows_grad, rows_q, rows_out = (run.rows_of(x).to(lse.dtype) for x in (grad, q, out))
                grad_q, grad_k, grad_v = _flash_backward(
                    rows_grad,
                    rows_q,
                    keys,
                    values,
                    rows_out,
                    run.rows_of(lse),
                    0.0,
                    False,
                    attn_mask=run.mask,
                    scale=scale,
                )
                run.add_rows(sums[0], grad_q)
                run.add_keys(sums[1], column_sums[0], table_sums[0], grad_k)
                run.add_keys(sums[2], column_sums[1], table_sums[1], grad_v)
        for total, column_sum, table_sum in zip(sums[1:], column_sums, table_sums, strict=True):
            plan.columns.scatter(total, column_sum)
            for blocks in table_sum.values():
                total += blocks.view(total.shape[0], -1, total.shape[2])[:, : total.shape[1]]
        for result, total in zip(grads, sums, strict=True):
            result[rows].flatten(0, 1).copy_(total)
    return grads[0], grads[1], grads[2]


def _accumulator_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _batches(key_mask: Tensor | None, batch: int) -> Iterator[tuple[slice, Tensor | None]]:
    """Split the batch where rows hide different keys: slices of the batch, each with its hidden keys (bool [N])."""
    hides = [False] * batch if key_mask is None else (~key_mask.all(dim=1)).tolist()
    row = 0
    while row < batch:
        if hides[row]:
            assert key_mask is not None
            yield slice(row, row + 1), ~key_mask[row]
            row += 1
        else:  # rows that hide nothing go together
            end = next((other for other in range(row, batch) if hides[other]), batch)
            yield slice(row, end), None
            row = end


def _fold_heads(x_BHND: Tensor) -> Tensor:
    """[B, H, N, D] to [B * H, N, D], uncopied where the strides allow it."""
    if x_BHND.stride(3) != 1:
        x_BHND = x_BHND.contiguous()
    return x_BHND.flatten(0, 1)


def _tiles(x: Tensor, start: int, count: int, size: int) -> Tensor:
    """View rows [start, start + count * size) of ``x`` [heads, N, ...] as tiles [T, heads, M, ...]."""
    return x.narrow(1, start, count * size).unflatten(1, (count, size)).transpose(0, 1)


@dataclass(slots=True)
class _Run:
    """One call of the operator: T tiles of ``size`` rows from ``start``, each against its own keys.

    Rows of a ``shared`` run are the same M for all tiles (global rows against slices of all keys).
    """

    start: int
    count: int
    size: int
    mask: Tensor | None  # added to the scores: [T or 1, heads or 1, M or 1, L]
    shared: bool = False

    def rows_of(self, x: Tensor) -> Tensor:
        if self.shared:
            return x[None, :, self.start : self.start + self.size].expand(self.count, *[-1] * x.ndim)
        return _tiles(x, self.start, self.count, self.size)

    def add_rows(self, total: Tensor, part: Tensor) -> None:
        if self.shared:
            total[:, self.start : self.start + self.size] += part.sum(0, dtype=total.dtype)
        else:
            _tiles(total, self.start, self.count, self.size).add_(part)

    def keys_of(self, x: Tensor, columns: Tensor) -> Tensor:
        raise AssertionError("a run names its keys")

    def add_keys(self, total: Tensor, columns: Tensor, tables: dict[int, Tensor], part: Tensor) -> None:
        raise AssertionError("a run names its keys")


@dataclass(slots=True)
class _SliceRun(_Run):
    """Tile t reads the ``length`` keys from ``key_start + t * key_step``; slices may overlap."""

    key_start: int = 0
    key_step: int = 0
    length: int = 0

    def keys_of(self, x: Tensor, columns: Tensor) -> Tensor:
        span = (self.count - 1) * self.key_step + self.length
        tiles = x.narrow(1, self.key_start, span).unfold(1, self.length, self.key_step)  # [heads, T, D, L]
        return tiles.permute(1, 0, 3, 2)

    def add_keys(self, total: Tensor, columns: Tensor, tables: dict[int, Tensor], part: Tensor) -> None:
        # Pieces no longer than the step do not overlap between tiles, so that each is one addition.
        for offset in range(0, self.length, self.key_step):
            size = min(self.key_step, self.length - offset)
            span = (self.count - 1) * self.key_step + size
            target = total.narrow(1, self.key_start + offset, span).unfold(1, size, self.key_step)
            target.permute(1, 0, 3, 2).add_(part[:, :, offset : offset + size])


@dataclass(slots=True)
class _ColumnRun(_Run):
    """All tiles read the packed columns [first, last)."""

    first: int = 0
    last: int = 0

    def keys_of(self, x: Tensor, columns: Tensor) -> Tensor:
        return columns[None, :, self.first : self.last].expand(self.count, -1, -1, -1)

    def add_keys(self, total: Tensor, columns: Tensor, tables: dict[int, Tensor], part: Tensor) -> None:
        columns[:, self.first : self.last] += part.sum(0, dtype=columns.dtype)


@dataclass(slots=True)
class _TableRun(_Run):
    """Tile t reads the blocks ``blocks[g, t]`` of KV head g."""

    blocks: Tensor | None = None  # int64 [B * G, T, most]
    block_size: int = 0

    def keys_of(self, x: Tensor, columns: Tensor) -> Tensor:
        assert self.blocks is not None
        offsets = torch.arange(self.block_size, device=x.device)
        position = (self.blocks[..., None] * self.block_size + offsets).flatten(2).clamp_(max=x.shape[1] - 1)
        head = torch.arange(x.shape[0], device=x.device)[:, None, None]
        return x[head, position].transpose(0, 1)

    def add_keys(self, total: Tensor, columns: Tensor, tables: dict[int, Tensor], part: Tensor) -> None:
        assert self.blocks is not None
        # A block is one row, so that the serial (hence repeatable) index_add_ moves whole blocks.
        blocks = part.transpose(0, 1).unflatten(2, (-1, self.block_size)).flatten(3).flatten(1, 2)
        for head, table in enumerate(tables[self.block_size]):
            table.index_add_(0, self.blocks[head].flatten(), blocks[head].to(table.dtype))


@dataclass(slots=True)
class _Chunk:
    """Query rows [start, end) and the runs that cover all their pairs."""

    start: int
    end: int
    runs: Iterator[_Run]


class _Merge:
    """The results of a chunk's runs, merged by lse in float32."""

    def __init__(self, chunk: _Chunk, heads: int, v: Tensor) -> None:
        shape = (heads, chunk.end - chunk.start)
        self.start, self.end = chunk.start, chunk.end
        self.out = v.new_zeros(*shape, v.shape[2])
        self.lse = v.new_full(shape, -torch.inf)

    def add(self, run: _Run, out: Tensor, lse: Tensor) -> None:
        if run.shared:
            total = lse.logsumexp(dim=0, keepdim=True)
            out, lse = ((lse - total).exp()[..., None] * out).sum(0, keepdim=True, dtype=self.out.dtype), total
        count = 1 if run.shared else run.count
        merged_out = _tiles(self.out, run.start - self.start, count, run.size)
        merged_lse = _tiles(self.lse, run.start - self.start, count, run.size)
        total = torch.logaddexp(merged_lse, lse)
        merged_out.mul_((merged_lse - total).exp_()[..., None]).addcmul_(out, (lse - total).exp_()[..., None])
        merged_lse.copy_(total)

    def write(self, out: Tensor, lse: Tensor) -> None:
        keyless = self.lse < _HIDDEN / 2
        self.out.masked_fill_(keyless[..., None], 0.0)
        self.lse.masked_fill_(keyless, -torch.inf)
        out[:, self.start : self.end] = self.out
        lse[:, self.start : self.end] = self.lse


class _Columns:
    """The global and strided keys, packed: those that every row attends to."""

    def __init__(self, pattern: SparsePattern, length: int, batch_kv_heads: int, num_kv_heads: int) -> None:
        num_global = min(pattern.num_global_positions, length)
        phases = pattern.phases(num_kv_heads) or [0]
        per_phase = {phase: _column_positions(pattern, phase, num_global, length) for phase in set(phases)}
        heads = [per_phase[phase] for phase in (phases if len(per_phase) > 1 else phases[:1])]
        self.count = max(len(positions) for positions in heads)
        # Staggered heads may have one column more or fewer; the missing ones are hidden.
        self.positions = torch.full((len(heads), self.count), length, dtype=torch.int64)  # [G or 1, columns]
        for row, positions in zip(self.positions, heads, strict=True):
            row[: len(positions)] = positions
        self.is_padded = bool((self.positions == length).any())
        self._gathered = self.positions.clamp(max=length - 1).expand(num_kv_heads, -1)
        self._gathered = self._gathered.repeat(batch_kv_heads // num_kv_heads, 1)
        self._lengths = [len(positions) for positions in heads] * (batch_kv_heads // len(heads))

    def gather(self, x: Tensor) -> Tensor:
        """[heads, N, D] to [heads, columns, D]."""
        if self.positions.shape[0] == 1:
            return x.index_select(1, self.positions[0])
        return x[torch.arange(x.shape[0])[:, None], self._gathered]

    def scatter(self, total: Tensor, columns: Tensor) -> None:
        """Add [heads, columns, D] to [heads, N, D]; a column stands once per head, so the order cannot matter."""
        for head, count in enumerate(self._lengths):
            total[head, self._gathered[head, :count]] += columns[head, :count]


def _column_positions(pattern: SparsePattern, phase: int, num_global: int, length: int) -> Tensor:
    """Ascending positions of the columns of one phase, global ones included."""
    parts = [torch.arange(num_global)]
    if pattern.stride is not None:
        size = pattern.block_size
        starts = torch.arange(min(phase * size, length), length, pattern.stride * size)
        strided = (starts[:, None] + torch.arange(size)).flatten()
        parts.append(strided[(strided >= num_global) & (strided < length)])
    return torch.cat(parts)


class _Plan:
    """The chunks and runs of one problem."""

    def __init__(
        self,
        pattern: SparsePattern,
        q: Tensor,
        k: Tensor,
        num_kv_heads: int,
        hidden: Tensor | None,
        extra_blocks: Tensor | None,
    ) -> None:
        self.length, self.head_dim, self.dtype = q.shape[1], q.shape[2], k.dtype
        batch_heads, batch_kv_heads = q.shape[0], k.shape[0]
        # With stride 1 every pair is a column's: the other rules add nothing.
        self.pattern = SparsePattern(stride=1, causal=pattern.causal) if pattern.stride == 1 else pattern
        self.batch_heads, self.batch_kv_heads = batch_heads, batch_kv_heads
        self.num_kv_heads = num_kv_heads
        self.group = batch_heads // batch_kv_heads
        self.hidden = hidden
        self.hidden_before = None if hidden is None else torch.cat([hidden.new_zeros(1), hidden]).long().cumsum(0)
        self.num_global = min(self.pattern.num_global_positions, self.length)
        self.columns = _Columns(self.pattern, self.length, batch_kv_heads, num_kv_heads)
        self.tables = [] if pattern.stride == 1 else self._tables(extra_blocks)
        if self.pattern.window is not None:
            self.reach = min(self.pattern.window * self.pattern.block_size, self.length)
            self.reach = -(-self.reach // self.pattern.block_size) * self.pattern.block_size
            self.tile, self.period = _tile_size(self.pattern, self.reach)

    def chunks(self) -> Iterator[_Chunk]:
        """All query rows, once; table blocks and window tiles never straddle two chunks."""
        start = 0
        if self.num_global and not self.pattern.causal:
            for first in range(0, self.num_global, _COLUMN_ROWS):
                end = min(first + _COLUMN_ROWS, self.num_global)
                yield _Chunk(first, end, self._global_row_runs(first, end))
            start = self.num_global
        unit = math.lcm(*(size for size, _ in self.tables), 1 if self.pattern.window is None else self.tile)
        rows = max(unit, _CHUNK_ELEMENTS // (self.batch_heads * self.head_dim) // unit * unit)
        while start < self.length:
            end = min(start // rows * rows + rows, self.length)
            yield _Chunk(start, end, self._runs(start, end))
            start = end

    def _runs(self, start: int, end: int) -> Iterator[_Run]:
        if self.pattern.window is not None:
            yield from self._window_runs(start, end)
        if self.columns.count:
            yield from self._column_runs(start, end)
        for index in range(len(self.tables)):
            yield from self._table_runs(index, start, end)

    # --- global rows ---

    def _global_row_runs(self, start: int, end: int) -> Iterator[_Run]:
        size = min(_SLICE // 2, self.length)
        for first, count, length in _split(0, self.length, size):
            mask = None
            if self._hides(first, first + count * length):
                assert self.hidden is not None
                keys = self.hidden[first : first + count * length].view(count, 1, 1, length)
                mask = _as_bias(keys, self.dtype)
            yield _SliceRun(start, count, end - start, mask, True, first, length, length)

    # --- window ---

    def _window_runs(self, start: int, end: int) -> Iterator[_Run]:
        tile, reach = self.tile, self.reach
        after = 0 if self.pattern.causal else reach
        heads = self.num_kv_heads if self.pattern.stagger else 1
        piece = min(_SLICE, tile + reach + after)
        most = max(1, _MASK_ELEMENTS // (heads * tile * piece))
        if self.period <= most:
            most -= most % self.period
        for first, count, size in _split(start, end, tile):
            if size < tile:
                yield from self._window_edge(first, first + size)
                continue
            stop = first + count * tile
            # Tiles whose slice lies within the sequence and past the global keys have masks that repeat.
            inner_start = max(first, -(-(self.num_global + reach) // tile) * tile)
            inner_end = min(stop, (self.length - after) // tile * tile)
            if inner_start >= inner_end:
                inner_start = inner_end = stop
            for edge in (*range(first, inner_start, tile), *range(inner_end, stop, tile)):
                yield from self._window_edge(edge, edge + tile)
            for tile_start in _aligned(inner_start, inner_end, most * tile):
                tiles = (min(tile_start // (most * tile) * most * tile + most * tile, inner_end) - tile_start) // tile
                yield from self._window_batch(tile_start, tiles, most, after)

    def _window_batch(self, start: int, count: int, most: int, after: int) -> Iterator[_Run]:
        """``count`` whole tiles from ``start``, whose slices lie within the sequence."""
        tile, reach = self.tile, self.reach
        width = tile + reach + after
        repeats = self.period <= most
        for offset in range(0, width, _SLICE):
            length = min(_SLICE, width - offset)
            key_start = start - reach + offset
            if repeats:
                heads = self.num_kv_heads if self.pattern.stagger else 1
                mask = _repeating_window_mask(
                    self.pattern,
                    tile,
                    self.period if self.period == 1 else most,
                    offset - reach,
                    length,
                    heads,
                    self.dtype,
                )
                if mask is not None and mask.shape[0] > 1:
                    skip = start // tile % most
                    mask = mask[skip : skip + count]
            else:
                mask = _window_mask(self.pattern, start, count, tile, key_start, length, self.num_kv_heads, self.dtype)
            if self._hides(key_start, key_start + (count - 1) * tile + length):
                assert self.hidden is not None
                span = self.hidden[key_start : key_start + (count - 1) * tile + length]
                bias = _as_bias(span.unfold(0, length, tile), self.dtype)[:, None, None, :]
                mask = bias if mask is None else mask + bias
            yield _SliceRun(start, count, tile, self._for_heads(mask), False, key_start, tile, length)

    def _window_edge(self, start: int, end: int) -> Iterator[_Run]:
        """One tile near an end of the sequence, or cut by one."""
        tile_start = start // self.tile * self.tile
        key_first = max(tile_start - self.reach, 0)
        key_last = min(tile_start + self.tile + (0 if self.pattern.causal else self.reach), self.length)
        for key_start in range(key_first, key_last, _SLICE):
            length = min(_SLICE, key_last - key_start)
            mask = _window_mask(self.pattern, start, 1, end - start, key_start, length, self.num_kv_heads, self.dtype)
            if self._hides(key_start, key_start + length):
                assert self.hidden is not None
                bias = _as_bias(self.hidden[key_start : key_start + length], self.dtype)
                mask = bias[None, None, None] if mask is None else mask + bias
            yield _SliceRun(start, 1, end - start, self._for_heads(mask), False, key_start, length, length)

    # --- columns ---

    def _column_runs(self, start: int, end: int) -> Iterator[_Run]:
        positions, count = self.columns.positions, self.columns.count
        always_hidden = positions == self.length if self.columns.is_padded else None  # [G or 1, columns]
        if self.hidden is not None:
            masked = self.hidden[positions.clamp(max=self.length - 1)]
            always_hidden = masked if always_hidden is None else always_hidden | masked
        step = end - start
        if self.pattern.causal:
            # Columns inside the rows' own range need a mask per row: keep that range short where they are dense.
            density = max(1, count * 1.0 / self.length * 256)
            step = max(_COLUMN_ROWS, int(step / density) // _COLUMN_ROWS * _COLUMN_ROWS)
        for row_start in range(start, end, step):
            row_end = min(row_start + step, end)
            bounds = [0, count]
            if self.pattern.causal:
                whole = int((positions <= row_start).sum(1).min())
                bounds = [0, whole, int((positions < row_end).sum(1).max())]
            for part, (low, high) in enumerate(itertools.pairwise(bounds)):
                for first in range(low, high, _SLICE):
                    last = min(first + _SLICE, high)
                    hidden = None if always_hidden is None else always_hidden[:, first:last]
                    later = positions[:, first:last] if part == 1 else None
                    yield from self._column_tiles(row_start, row_end, first, last, hidden, later)

    def _column_tiles(
        self, start: int, end: int, first: int, last: int, hidden: Tensor | None, later: Tensor | None
    ) -> Iterator[_Run]:
        """Rows [start, end) against columns [first, last); ``later``: positions of columns that some rows precede."""
        budget = 4 * _MASK_ELEMENTS // (self.batch_kv_heads * (last - first) * self.head_dim)
        if later is not None:
            budget = min(budget, _MASK_ELEMENTS // (later.shape[0] * (last - first) * _COLUMN_ROWS))
        for row, count, size in _split(start, end, min(_COLUMN_ROWS, end - start), aligned=False):
            for skip in range(0, count, max(1, budget)):
                tiles = min(max(1, budget), count - skip)
                tile_start = row + skip * size
                mask = None if hidden is None else hidden[None, :, None, :]
                if later is not None:
                    query = torch.arange(tile_start, tile_start + tiles * size).view(tiles, 1, size, 1)
                    above = later[None, :, None, :] > query
                    mask = above if mask is None else mask | above
                bias = None if mask is None or not bool(mask.any()) else _as_bias(mask, self.dtype)
                yield _ColumnRun(tile_start, tiles, size, self._for_heads(bias), False, first, last)

    # --- tables ---

    def _tables(self, extra_blocks: Tensor | None) -> list[tuple[int, Tensor]]:
        """Tables of key blocks, int64 [G or 1, query blocks, most], each with its block size; duplicates removed."""
        tables: dict[int, Tensor] = {}
        if self.pattern.num_random_blocks:
            tables[self.pattern.random_block_size] = self.pattern.random_blocks(self.length).long()[None]
        if extra_blocks is not None and extra_blocks.shape[2]:
            extra = extra_blocks.long()
            if TABLE_BLOCK in tables:
                extra = torch.cat([extra, tables[TABLE_BLOCK].expand(extra.shape[0], -1, -1)], dim=2)
            tables[TABLE_BLOCK] = extra
        for size, table in tables.items():
            table = table.sort(dim=2, descending=True).values
            repeated = table[..., 1:] == table[..., :-1]
            table[..., 1:] = table[..., 1:].masked_fill(repeated, -1)
            tables[size] = table
        return list(tables.items())

    def table_sums(self, k: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Accumulators of dK and dV per block size: ``[heads, blocks, block size * D]``."""

        def zeros(size: int) -> Tensor:
            return torch.zeros(
                k.shape[0], -(-self.length // size), size * self.head_dim, dtype=k.dtype, device=k.device
            )

        return {size: zeros(size) for size, _ in self.tables}, {size: zeros(size) for size, _ in self.tables}

    def _table_runs(self, index: int, start: int, end: int) -> Iterator[_Run]:
        block_size, table = self.tables[index]
        most = max(1, _SLICE // block_size)
        for column in range(0, table.shape[2], most):
            part = table[:, :, column : column + most]
            length = part.shape[2] * block_size
            batch = max(1, _MASK_ELEMENTS // (part.shape[0] * block_size * length))
            for first, count, size in _split(start, end, block_size):
                for tile_start in range(first, first + count * size, batch * size):
                    tiles = min(batch, (first + count * size - tile_start) // size)
                    block = tile_start // block_size
                    blocks = part[:, block : block + tiles]
                    if bool((blocks < 0).all()):
                        continue
                    mask = self._table_mask(index, tile_start, size, blocks)
                    blocks = blocks.clamp(min=0).expand(self.num_kv_heads, -1, -1)
                    blocks = blocks.repeat(self.batch_kv_heads // self.num_kv_heads, 1, 1)
                    yield _TableRun(tile_start, tiles, size, self._for_heads(mask), False, blocks, block_size)

    def _table_mask(self, index: int, start: int, size: int, blocks_GTm: Tensor) -> Tensor:
        """Hide what is no block, past the end, or named by a rule before: [T, G or 1, M, L]."""
        pattern, block_size = self.pattern, self.tables[index][0]
        heads, tiles, _ = blocks_GTm.shape
        query = (start + torch.arange(tiles * size)).view(tiles, 1, size, 1)
        key = blocks_GTm[..., None] * block_size + torch.arange(block_size)
        key = key.flatten(2).transpose(0, 1)[:, :, None, :]  # [T, G or 1, 1, L]
        absent = (key < 0) | (key >= self.length) | (key < self.num_global)
        if self.hidden is not None:
            absent |= self.hidden[key.clamp(0, self.length - 1)]
        key_block, query_block = key // pattern.block_size, query // pattern.block_size
        if pattern.stride is not None:
            phase = torch.tensor(pattern.phases(self.num_kv_heads))
            phase = phase.view(1, -1, 1, 1) if pattern.stagger else phase[:1].view(1, 1, 1, 1)
            absent = absent | (key_block % pattern.stride == phase)
        mask = absent.expand(tiles, max(heads, absent.shape[1]), size, key.shape[3])
        if pattern.window is not None:
            mask = mask | ((key_block - query_block).abs() <= pattern.window)
        if pattern.causal:
            mask = mask | (key > query)
        for other_size, other in self.tables[:index]:  # pairs that an earlier table has
            named = other[:, (query // other_size).view(-1)].transpose(0, 1).unflatten(0, (tiles, size)).transpose(1, 2)
            for draw in range(other.shape[2]):
                mask = mask | (key // other_size == named[..., draw, None])
        return _as_bias(mask, self.dtype)

    # --- masks ---

    def _hides(self, start: int, end: int) -> bool:
        """Whether ``key_mask`` hides one of the keys [start, end)."""
        return self.hidden_before is not None and bool(self.hidden_before[end] > self.hidden_before[start])

    def _for_heads(self, mask: Tensor | None) -> Tensor | None:
        """Repeat a mask per KV head, [T, G, M, L], for the query heads of each and for the batch."""
        if mask is None or mask.shape[1] == 1:
            return mask
        return mask.repeat_interleave(self.group, dim=1).repeat(1, self.batch_kv_heads // self.num_kv_heads, 1, 1)


def _split(start: int, end: int, size: int, *, aligned: bool = True) -> Iterator[tuple[int, int, int]]:
    """Cut [start, end) into (start, count, size): what is cut by ``start``, whole tiles, what is cut by ``end``.

    Tiles begin at multiples of ``size``, or at ``start`` where not ``aligned``.
    """
    if aligned and start % size:
        stop = min(start // size * size + size, end)
        yield start, 1, stop - start
        start = stop
    count = (end - start) // size
    if count:
        yield start, count, size
    if start + count * size < end:
        yield start + count * size, 1, end - start - count * size


def _aligned(start: int, end: int, step: int) -> Iterator[int]:
    """``start``, then the multiples of ``step`` before ``end``."""
    while start < end:
        yield start
        start = start // step * step + step


def _tile_size(pattern: SparsePattern, reach: int) -> tuple[int, int]:
    """Rows of a window tile, a multiple of the block size, and after how many tiles the columns' places repeat.

    Small tiles waste fewer keys, large ones cost fewer calls and additions; 64 to 128 measured best. Among near sizes
    the one whose columns repeat soonest wins, since masks that repeat are made once.
    """
    size = pattern.block_size
    target = 64 if reach <= 192 else 128
    best = max(1, target // size) * size
    if pattern.stride is None:
        return best, 1
    stride = pattern.stride * size

    def period(tile: int) -> int:
        return math.lcm(tile, stride) // tile

    if period(best) > 16:
        near = range(max(1, target * 3 // 4 // size) * size, target * 5 // 4 + 1, size)
        best = min(near, key=lambda tile: (period(tile), abs(tile - target)), default=best)
    return best, period(best)


def _as_bias(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, _HIDDEN)


@lru_cache(maxsize=8)
def _repeating_window_mask(
    pattern: SparsePattern, tile: int, count: int, offset: int, length: int, num_kv_heads: int, dtype: torch.dtype
) -> Tensor | None:
    """The mask of whole tiles within the sequence: the same for every ``count`` tiles, and from call to call."""
    with torch.inference_mode(False), torch.no_grad():
        return _window_mask(pattern, 0, count, tile, offset, length, num_kv_heads, dtype, repeating=True)


def _window_mask(
    pattern: SparsePattern,
    start: int,
    count: int,
    size: int,
    key_start: int,
    length: int,
    num_kv_heads: int,
    dtype: torch.dtype,
    *,
    repeating: bool = False,
) -> Tensor | None:
    """Bias of ``count`` tiles of ``size`` rows from ``start``, tile t against ``length`` keys from ``key_start + t *
    size``.

    Hides what lies outside the window and what the columns and global keys (not looked at where ``repeating``) count.

    Returns:
        ``[count or 1, num_kv_heads or 1, size, length]``, or None where nothing is hidden.
    """
    assert pattern.window is not None
    query = start + torch.arange(size)[:, None]
    key = key_start + torch.arange(length)
    block = pattern.block_size
    outside = (query // block - key // block).abs() > pattern.window
    if pattern.causal:
        outside |= key > query
    keys = (key + size * torch.arange(count)[:, None])[:, None, None, :]  # [T, 1, 1, L]
    taken = torch.zeros_like(keys, dtype=torch.bool)
    if not repeating:
        taken |= keys < pattern.num_global_positions
    if pattern.stride is not None:
        phases = pattern.phases(num_kv_heads) if pattern.stagger else [0]
        taken = taken | (keys // block % pattern.stride == torch.tensor(phases).view(1, -1, 1, 1))
    if bool(taken.any()):
        return _as_bias(outside | taken, dtype)
    return _as_bias(outside[None, None], dtype) if bool(outside.any()) else None
