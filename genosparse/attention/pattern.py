"""Who attends to whom, as a small frozen value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from genosparse.errors import PatternError

__all__ = ["TABLE_BLOCK", "SparsePattern"]

# Blocks of this many positions make up ``extra_blocks``, and random blocks where ``block_size`` is 1.
TABLE_BLOCK = 64

# Seeds, block numbers and draws are mixed as 64-bit integers; these are splitmix64's constants as signed values.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsePattern:
    """The pairs of positions that attention computes.

    With ``b(x) = x // block_size``, position ``i`` attends to ``j`` when at least one rule holds (each pair counts
    once, however many rules name it):

    - window: ``|b(i) - b(j)| <= window``;
    - strided: ``b(j) % stride == phase``, columns that every position attends to;
    - global: ``b(j) < num_global`` or ``b(i) < num_global``;
    - random: the block of ``j`` is among the ``num_random_blocks`` drawn for the block of ``i``;
    - with ``causal``, ``j <= i`` besides, for every rule.

    Args:
        window: Reach on each side, in blocks; None switches the rule off.
        stride: Distance between columns, in blocks; None switches the rule off.
        stagger: Give KV head ``g`` of ``H_kv`` the phase ``g * stride // H_kv`` rather than 0, so that the heads
            together cover a denser grid of columns.
        num_global: Blocks at the start of the sequence that attend to all and that all attend to.
        num_random_blocks: Blocks drawn for each block of queries, without replacement; blocks of ``block_size``
            positions, or of 64 where that is 1.
        causal: Hide the keys after each query.
        block_size: Positions per block in every rule above; 1 counts single positions.
        seed: Of the random blocks.

    Raises:
        PatternError: A value is out of its range.
    """

    window: int | None = None
    stride: int | None = None
    stagger: bool = False
    num_global: int = 0
    num_random_blocks: int = 0
    causal: bool = False
    block_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, optional in (
            ("window", 0, True),
            ("stride", 1, True),
            ("num_global", 0, False),
            ("num_random_blocks", 0, False),
            ("block_size", 1, False),
            ("seed", 0, False),
        ):
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 62:
                kind = f"a whole number of at least {least}" + (", or None to switch the rule off" if optional else "")
                raise PatternError(f"SparsePattern({name}={value!r}): expected {kind}")
        for name in ("stagger", "causal"):
            if not isinstance(getattr(self, name), bool):
                raise PatternError(f"SparsePattern({name}={getattr(self, name)!r}): expected True or False")
        if self.stagger and self.stride is None:
            raise PatternError("SparsePattern(stagger=True) staggers the columns of a stride; give stride= too")

    @classmethod
    def dense(cls, *, causal: bool = False) -> SparsePattern:
        """Every position attends to every other: the yardstick."""
        return cls(stride=1, causal=causal)

    @classmethod
    def longformer(cls, attention_window: int, *, num_global: int = 0) -> SparsePattern:
        """Longformer's window (Beltagy et al. 2020); as in transformers, ``attention_window`` counts both sides."""
        if attention_window % 2 or attention_window < 2:
            raise PatternError(
                f"longformer(attention_window={attention_window}): expected an even number of at least 2"
            )
        return cls(window=attention_window // 2, num_global=num_global)

    @classmethod
    def bigbird(cls, block_size: int = 64, num_random_blocks: int = 3, *, seed: int = 0) -> SparsePattern:
        """BigBird's blocks (Zaheer et al. 2020): one block of window each side, the first block global, random ones.

        BigBird's last block is global too. Where a sequence ends is not known to a pattern: give it as
        ``extra_blocks``.
        """
        return cls(window=1, num_global=1, num_random_blocks=num_random_blocks, block_size=block_size, seed=seed)

    @classmethod
    def mistral(cls, sliding_window: int) -> SparsePattern:
        """Mistral's causal window (Jiang et al. 2023); as in transformers, ``sliding_window`` counts the query too."""
        if sliding_window < 1:
            raise PatternError(f"mistral(sliding_window={sliding_window}): expected at least 1, the query itself")
        return cls(window=sliding_window - 1, causal=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SparsePattern:
        """The inverse of ``to_dict``; an unknown key is an error that names it."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(map(str, set(values) - known)):
            raise PatternError(f"SparsePattern has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON knows them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_empty(self) -> bool:
        """Whether every rule is off."""
        return self.window is None and self.stride is None and not self.num_global and not self.num_random_blocks

    @property
    def num_global_positions(self) -> int:
        """Positions that the global rule names: ``num_global`` blocks."""
        return self.num_global * self.block_size

    @property
    def random_block_size(self) -> int:
        """Positions per random block."""
        return TABLE_BLOCK if self.block_size == 1 else self.block_size

    def phases(self, num_kv_heads: int) -> list[int]:
        """The phase of each KV head's columns, in blocks; empty without a stride."""
        if self.stride is None:
            return []
        return [head * self.stride // num_kv_heads if self.stagger else 0 for head in range(num_kv_heads)]

    def random_blocks(self, length: int) -> Tensor:
        """Draw the random key blocks of each query block.

        Draw ``r`` of block ``b`` is splitmix64 of (seed, b, r), reduced to the blocks not drawn before, so that the
        draws are without replacement and the same on every machine and backend.

        Args:
            length: Positions of the sequence.

        Returns:
            int32 ``[ceil(length / random_block_size), num_random_blocks]``: ascending block indices, padded with -1 at
            the end where there are fewer blocks to draw from (all of them, or the earlier ones when causal).
        """
        num_blocks = -(-length // self.random_block_size)
        block = torch.arange(num_blocks, dtype=torch.int64)
        available = block if self.causal else torch.full_like(block, num_blocks)
        absent = torch.iinfo(torch.int64).max
        drawn = torch.full((num_blocks, self.num_random_blocks), absent, dtype=torch.int64)
        for draw in range(self.num_random_blocks):
            left = available - draw
            pick = _splitmix64(self.seed, block, draw) % left.clamp(min=1)
            # ``pick`` counts blocks not drawn yet: step over the drawn ones, in ascending order.
            for earlier in range(draw):
                pick += pick >= drawn[:, earlier]
            drawn[:, draw] = torch.where(left > 0, pick, absent)
            drawn[:, : draw + 1] = drawn[:, : draw + 1].sort(dim=1).values
        return torch.where(drawn == absent, -1, drawn).to(torch.int32)

    def num_pairs(self, length: int, num_kv_heads: int = 1, *, extra_blocks: Tensor | None = None) -> int:
        """Pairs of a query and a key, summed over the KV heads; arguments as ``key_counts`` has them."""
        return int(self.key_counts(length, num_kv_heads, extra_blocks=extra_blocks).sum())

    def key_counts(self, length: int, num_kv_heads: int = 1, *, extra_blocks: Tensor | None = None) -> Tensor:
        """How many keys each query attends to, each pair once however many rules name it.

        A query's keys are the columns and, besides those, a few intervals made disjoint: time and memory go with
        ``length`` times the random and extra blocks of a query, not with the pairs.

        Args:
            length: Positions of the sequence.
            num_kv_heads: KV heads, whose columns differ when staggered.
            extra_blocks: Further key blocks, int32 ``[num_kv_heads or 1, ceil(length / 64), most]``, padded with -1.

        Returns:
            int64 ``[num_kv_heads, length]``.

        Raises:
            PatternError: ``extra_blocks`` has another shape.
        """
        starts, ends, cell = self._table_intervals(length, num_kv_heads, extra_blocks)
        position = torch.arange(length)
        visible = position + 1 if self.causal else torch.full_like(position, length)  # keys [0, visible)
        low, high = self._window_interval(position, visible)
        num_global = min(self.num_global_positions, length)
        counts: dict[tuple[int, int], Tensor] = {}  # heads of the same columns and table have the same counts
        heads = [
            (phase, head % len(starts)) for head, phase in enumerate(self.phases(num_kv_heads) or [0] * num_kv_heads)
        ]
        for phase, table in dict.fromkeys(heads):
            besides = self._besides_columns(length, phase)
            count = visible - besides[visible]
            count += besides[visible.clamp(max=num_global)]
            count += besides[high] - besides[low]
            for start, end in zip(starts[table].unbind(1), ends[table].unbind(1), strict=True):
                start, end = start[cell], end[cell].minimum(visible)
                # What is left of the interval before the window and after it.
                count += (besides[end.minimum(low)] - besides[start]).clamp_(min=0)
                count += (besides[end] - besides[start.maximum(high)]).clamp_(min=0)
            counts[phase, table] = torch.where(position < num_global, visible, count)
        return torch.stack([counts[head] for head in heads])

    def _besides_columns(self, length: int, phase: int) -> Tensor:
        """How many positions below x are in no column, for each x from 0 to ``length``."""
        position = torch.arange(length + 1)
        if self.stride is None:
            return position
        beyond = length + 1  # blocks and strides longer than the sequence are all alike, and might not fit int64
        size, period = min(self.block_size, beyond), min(self.stride * self.block_size, beyond)
        partial = (position % period - min(phase * self.block_size, beyond)).clamp_(0, size)
        return position - position // period * size - partial

    def _window_interval(self, position: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """The visible keys of each position's window that follow the global keys: [low, high), low >= num_global."""
        length = len(position)
        low = torch.full_like(position, min(self.num_global_positions, length))
        if self.window is None:
            return low, low
        size, reach = min(self.block_size, length + 1), min(self.window, length)
        block = position // size
        low = low.maximum((block - reach) * size)
        return low, ((block + reach + 1) * size).minimum(visible).maximum(low)

    def _table_intervals(
        self, length: int, num_kv_heads: int, extra_blocks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The random and extra blocks as disjoint intervals of the keys that follow the global keys.

        Returns:
            Starts and ends, int64 ``[num_kv_heads or 1, cells, intervals]``, and each position's cell: the positions
            of a cell share their block in every table.
        """
        tables = []
        if self.num_random_blocks:
            tables.append((min(self.random_block_size, length + 1), self.random_blocks(length).long()[None]))
        if extra_blocks is not None:
            _check_table(extra_blocks, length, num_kv_heads)
            tables.append((TABLE_BLOCK, extra_blocks.cpu().long()))
        bounds = [torch.arange(0, length, size) for size, _ in tables]
        first = torch.cat([torch.arange(min(length, 1)), *bounds]).unique()
        cell = torch.repeat_interleave(first.diff(append=torch.tensor([length])))
        num_tables = max((len(table) for _, table in tables), default=1)
        starts = [torch.empty(num_tables, len(first), 0, dtype=torch.int64)]
        ends = [starts[0]]
        for size, table in tables:
            blocks = table[:, first // size].expand(num_tables, -1, -1)
            starts.append(torch.where(blocks < 0, length, blocks * size))
            ends.append((starts[-1] + size).clamp_(max=length))
        start, order = torch.cat(starts, dim=2).sort(dim=2)
        end = torch.cat(ends, dim=2).gather(2, order)
        # Each interval keeps what neither the global keys nor the intervals before it have.
        taken = end.cummax(dim=2).values if end.shape[2] else end
        start[..., 1:] = start[..., 1:].maximum(taken[..., :-1])
        start.clamp_(min=min(self.num_global_positions, length))
        return start, end.maximum(start), cell


def _check_table(extra_blocks: Tensor, length: int, num_kv_heads: int) -> None:
    num_blocks = -(-length // TABLE_BLOCK)
    shape = tuple(extra_blocks.shape)
    if len(shape) != 3 or shape[0] not in (1, num_kv_heads) or shape[1] != num_blocks:
        raise PatternError(f"extra_blocks is {shape}: expected ({num_kv_heads} or 1, {num_blocks}, most)")


def _splitmix64(seed: int, block: Tensor, draw: int) -> Tensor:
    """Mix (seed, block, draw) into int64 values in [0, 2**31): the upper bits of splitmix64 chained over the three."""
    state = torch.full_like(block, seed)
    for value in (block, torch.full_like(block, draw)):
        state = _mix(state ^ _mix(value + _GOLDEN_GAMMA)) + _GOLDEN_GAMMA
    return _shift_right(_mix(state), 33)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's ``>>`` on int64 drags the sign along."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
