"""Random and extra blocks as CSR tables of tiles: a data-dependent choice of blocks is a table, not a kernel.

An entry is a rectangle of pairs, four int32 ``(query_low, query_high, key_low, key_high)``, that lies within one tile
of queries and one of keys. Entries are disjoint, so that blocks named twice, or by two tables of different block sizes,
count once; they stand in the order of the tiles of queries (for the forward pass and dq) or of keys (for dk and dv).
A popular block of keys may have any number of entries: for dk and dv they are cut into items of a bounded number.

Everything but the cuts of the queries is made on the device of the blocks, and sizes depend on shapes alone, so that no
result has to be waited for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from genosparse.attention.pattern import TABLE_BLOCK, SparsePattern

__all__ = ["ENTRIES_PER_ITEM", "Table", "make_table"]

ENTRIES_PER_ITEM = 32


@dataclass(frozen=True)
class Table:
    """Entries by bucket, a bucket being a tile of queries or of keys.

    Attributes:
        entries: int32 ``[heads, most, 4]``; what stands past the last bucket's is not looked at.
        first: int32 ``[heads, buckets + 1]``: entries [first[b], first[b + 1]) are those of bucket ``b``.
        item_first: int32 ``[heads, buckets + 1]``: the same of items, runs of up to ``ENTRIES_PER_ITEM`` entries.
        item_bucket: int32 ``[heads, most items]``: the bucket of each item; spare ones have the last, with no entry.
    """

    entries: Tensor
    first: Tensor
    item_first: Tensor
    item_bucket: Tensor

    @property
    def num_items(self) -> int:
        """Items in all, spare ones included."""
        return self.item_bucket.shape[1]

    @staticmethod
    def no_arguments(any_tensor: Tensor) -> dict[str, Any]:
        """Kernel arguments where there is no table: none is looked at."""
        names = ("entry_ptr", "entry_first_ptr", "item_first_ptr", "item_bucket_ptr")
        return {**dict.fromkeys(names, any_tensor), "stride_entry": 0, "stride_entry_first": 0, "stride_item": 0}

    def arguments(self, num_kv_heads: int) -> dict[str, Any]:
        """As kernel arguments; heads share a table of one head."""

        def stride(x: Tensor) -> int:
            return x.stride(0) if x.shape[0] == num_kv_heads else 0

        return {
            "entry_ptr": self.entries,
            "entry_first_ptr": self.first,
            "item_first_ptr": self.item_first,
            "item_bucket_ptr": self.item_bucket,
            "stride_entry": stride(self.entries),
            "stride_entry_first": stride(self.first),
            "stride_item": stride(self.item_bucket),
        }


def make_table(
    pattern: SparsePattern,
    length: int,
    extra_blocks: Tensor | None,
    device: torch.device,
    *,
    row_unit: int,
    key_unit: int,
    by: str,
) -> Table:
    """Cut the random and extra blocks of a call into entries.

    Args:
        pattern: Who attends to whom.
        length: Positions.
        extra_blocks: int32 ``[heads, blocks, most]``, or None.
        device: Where the table is to be.
        row_unit: Positions of a tile of queries.
        key_unit: Keys of a tile.
        by: "query" or "key": what makes the buckets.
    """
    if extra_blocks is None or not extra_blocks.shape[2]:
        return _random_table(pattern, length, device, row_unit, key_unit, by)
    return _make_table(pattern, length, extra_blocks, device, row_unit, key_unit, by)


@lru_cache(maxsize=256)  # three for each pattern, length and device in use
def _random_table(
    pattern: SparsePattern, length: int, device: torch.device, row_unit: int, key_unit: int, by: str
) -> Table:
    with torch.inference_mode(False), torch.no_grad():
        return _make_table(pattern, length, None, device, row_unit, key_unit, by)


def _make_table(
    pattern: SparsePattern,
    length: int,
    extra_blocks: Tensor | None,
    device: torch.device,
    row_unit: int,
    key_unit: int,
    by: str,
) -> Table:
    sources: list[tuple[Tensor, int]] = []  # blocks [heads, blocks, most], and their size
    if pattern.num_random_blocks:
        sources.append((pattern.random_blocks(length).to(device)[None], pattern.random_block_size))
    if extra_blocks is not None and extra_blocks.shape[2]:
        sources.append((extra_blocks, TABLE_BLOCK))
    heads = max((blocks.shape[0] for blocks, _ in sources), default=1)

    # Segments of queries, within which every row has the same blocks; global rows have all keys by another rule.
    low = 0 if pattern.causal else min(pattern.num_global_positions, length)
    cuts = {low, length, *range(low // row_unit * row_unit + row_unit, length, row_unit)}
    for _, size in sources:
        cuts.update(range(low // size * size + size, length, size))
    bounds = torch.tensor(sorted(cuts), dtype=torch.int64, device=device)
    row_low, row_high = bounds[:-1, None], bounds[1:, None]  # [S, 1]

    # The blocks of a segment as disjoint intervals of keys [heads, S, most]: each begins where those before it end.
    starts, ends = [], []
    for blocks, size in sources:
        named = blocks[:, bounds[:-1] // size].long().expand(heads, -1, -1)
        start = torch.where(named < 0, length, named * size)
        starts.append(start)
        ends.append((start + size).clamp(max=length))
    start, order = torch.cat(starts, dim=2).sort(dim=2, stable=True)
    end = torch.cat(ends, dim=2).gather(2, order)
    start[..., 1:] = torch.maximum(start[..., 1:], end.cummax(dim=2).values[..., :-1])
    if pattern.causal:
        end = torch.minimum(end, row_high)

    # Cut at the borders of tiles of keys.
    most = max(size for _, size in sources)
    is_aligned = not any(size % key_unit for _, size in sources)
    pieces = torch.arange(-(-most // key_unit) + (not is_aligned), device=device)
    border = (start[..., None] // key_unit + pieces) * key_unit
    key_low = torch.maximum(start[..., None], border).flatten(2)
    key_high = torch.minimum(end[..., None], border + key_unit).flatten(2)
    row_low, row_high = row_low.expand_as(key_low), row_high.expand_as(key_low)
    entries = torch.stack([row_low, row_high, key_low, key_high], dim=-1).flatten(1, 2)  # [heads, S * pieces, 4]

    # Sort by bucket, what is empty last; a stable sort, so that the order never changes.
    unit = row_unit if by == "query" else key_unit
    num_buckets = -(-length // unit)
    bucket = entries[..., 0 if by == "query" else 2] // unit
    bucket = torch.where(entries[..., 2] < entries[..., 3], bucket, num_buckets)
    bucket, order = bucket.sort(dim=1, stable=True)
    entries = entries.gather(1, order[..., None].expand_as(entries)).to(torch.int32)
    number = torch.arange(num_buckets + 1, device=device).expand(heads, -1).contiguous()
    first = torch.searchsorted(bucket.contiguous(), number)

    items = (first.diff(dim=1) + ENTRIES_PER_ITEM - 1) // ENTRIES_PER_ITEM
    item_first = torch.nn.functional.pad(items.cumsum(dim=1), (1, 0))
    num_items = num_buckets + entries.shape[1] // ENTRIES_PER_ITEM
    item = torch.arange(num_items, device=device).expand(heads, -1).contiguous()
    item_bucket = torch.searchsorted(item_first, item, right=True) - 1
    entries = torch.nn.functional.pad(entries, (0, 0, 0, 1))  # kernels may look at one entry where there is none
    return Table(
        entries,
        first.to(torch.int32),
        item_first.to(torch.int32),
        item_bucket.clamp(max=num_buckets - 1).to(torch.int32),
    )
