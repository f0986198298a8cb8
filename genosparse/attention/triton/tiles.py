"""Which tiles of keys a tile of queries meets, and which pairs of a tile count: what all kernels share.

Every pair counts once. A pair that several rules name belongs to the first of

    global rows, window, columns (global keys, then strided ones), table (random and extra blocks),

so that each rule's tiles leave out what an earlier rule has. Where a whole tile counts, no mask arithmetic is done: a
plan says how many tiles are *full* and how many are *masked*, and finds the keys of each by arithmetic.

Positions and columns are int32; addresses are made from them in int64 by the kernels. ``rules`` is the tuple
``(window, num_global, stride, phase)``: reach of the window in blocks (-1: off), global positions, and the columns'
stride and phase in blocks. With ``STRIDED`` off the last two are not looked at.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Arguments whose values must not make a kernel of their own: one serves every length and every pattern of a kind.
NOT_SPECIALIZED = (
    "length", "num_out", "split_size", "num_splits", "num_partial", "num_columns", "num_table_rows",
    "window", "num_global", "stride", "stride_entry", "stride_entry_first", "stride_item",
)  # fmt: skip

WINDOW = tl.constexpr(0)
COLUMN = tl.constexpr(1)
TABLE = tl.constexpr(2)


# --- rows and rules ---


@triton.jit
def query_rows(first, num_rows, group, GROUP: tl.constexpr, BLOCK_M: tl.constexpr):
    """Positions and heads of a tile's rows, and whether they are any: BLOCK_M // GROUP positions times GROUP heads."""
    row = tl.arange(0, BLOCK_M)
    query = first + row // GROUP
    return query, group * GROUP + row % GROUP, (row < BLOCK_M // GROUP * GROUP) & (query < num_rows)


@triton.jit
def rules_of(kv_head, num_kv_heads, window, num_global, stride, STAGGER: tl.constexpr):
    """The ``rules`` of a KV head."""
    phase = (kv_head.to(tl.int64) * stride // num_kv_heads).to(tl.int32) if STAGGER else 0
    return window, num_global, stride, phase


# --- columns: the keys that every query sees, numbered by ascending position ---


@triton.jit
def _strided_below(x, rules, BLOCK_SIZE: tl.constexpr):
    """How many strided positions lie before position ``x``."""
    period = rules[2] * BLOCK_SIZE
    return x // period * BLOCK_SIZE + tl.minimum(tl.maximum(x % period - rules[3] * BLOCK_SIZE, 0), BLOCK_SIZE)


@triton.jit
def columns_below(x, rules, STRIDED: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """How many columns lie before position ``x``: also the number of the column at ``x``, if there is one."""
    num_global = rules[1]
    count = tl.minimum(x, num_global)
    if STRIDED:
        before = _strided_below(num_global, rules, BLOCK_SIZE)
        count += tl.maximum(_strided_below(x, rules, BLOCK_SIZE) - before, 0)
    return count


@triton.jit
def column_position(column, rules, STRIDED: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Position of a column by its number."""
    if STRIDED:
        stride, phase = rules[2], rules[3]
        strided = column - rules[1] + _strided_below(rules[1], rules, BLOCK_SIZE)
        block = strided // BLOCK_SIZE * stride + phase
        position = tl.where(column < rules[1], column, block * BLOCK_SIZE + strided % BLOCK_SIZE)
    else:
        position = column
    return position


@triton.jit
def is_column(position, rules, STRIDED: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Whether every query sees the key at ``position``."""
    found = position < rules[1]
    if STRIDED:
        found = found | (position // BLOCK_SIZE % rules[2] == rules[3])
    return found


# --- the mask ---


@triton.jit
def counts(
    query, key, rule, low, high, length, rules,
    CAUSAL: tl.constexpr, STRIDED: tl.constexpr, HAS_TABLE: tl.constexpr, GLOBAL_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Which pairs of a masked tile count under its ``rule``.

    ``query`` and ``key`` broadcast against each other; keys from ``length`` on are none. The queries of a table's tile
    are those in [low, high).
    """
    pairs = key < length
    if not GLOBAL_ROWS:  # which see every key
        block = query // BLOCK_SIZE
        near = (key >= (block - rules[0]) * BLOCK_SIZE) & (key < (block + rules[0] + 1) * BLOCK_SIZE)
        pairs = pairs & (near == (rule == WINDOW))
    if HAS_TABLE:
        pairs = pairs & ((rule != TABLE) | ~is_column(key, rules, STRIDED, BLOCK_SIZE))
        pairs = pairs & (query >= low) & (query < high)
    if CAUSAL:
        pairs = pairs & (key <= query)
    return pairs


# --- plans: sequences of tiles, full but for an interval, or masked but for one ---


@triton.jit
def window_span(first, last, low, high, rules, BLOCK_SIZE: tl.constexpr):
    """Positions ``[start, end)`` within ``[low, high)`` that are in the window of some position of [first, last]."""
    start = tl.maximum((first // BLOCK_SIZE - rules[0]) * BLOCK_SIZE, low)
    end = tl.minimum((last // BLOCK_SIZE + rules[0] + 1) * BLOCK_SIZE, high)
    return start, tl.where(rules[0] < 0, start, tl.maximum(end, start))


@triton.jit
def window_tiles(first, last, start, end, full_low, full_high, rules, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Cut the span ``[start, end)`` into tiles: ``(num_tiles, full_first, full_last)``.

    Tiles [full_first, full_last) are in the window of *every* position of [first, last], and in [full_low, full_high).
    """
    full_start = tl.maximum((last // BLOCK_SIZE - rules[0]) * BLOCK_SIZE, tl.maximum(full_low, start))
    full_end = tl.minimum((first // BLOCK_SIZE + rules[0] + 1) * BLOCK_SIZE, tl.minimum(full_high, end))
    full_first = (full_start - start + TILE - 1) // TILE
    full_last = tl.maximum((full_end - start) // TILE, full_first)
    return (end - start + TILE - 1) // TILE, full_first, full_last


@triton.jit
def interval_tiles(start, end, masked_start, masked_end, TILE: tl.constexpr):
    """Cut ``[start, end)`` into tiles: ``(num_tiles, masked_first, masked_last)``.

    Tiles [masked_first, masked_last) touch [masked_start, masked_end) and need a mask.
    """
    num_tiles = tl.maximum(end - start + TILE - 1, 0) // TILE
    masked_first = tl.minimum(tl.maximum(masked_start - start, 0) // TILE, num_tiles)
    masked_last = tl.minimum(tl.maximum(masked_end - start + TILE - 1, 0) // TILE, num_tiles)
    return num_tiles, masked_first, tl.maximum(masked_last, masked_first)


@triton.jit
def skip(tile, first, last):
    """The ``tile``-th of the numbers outside [first, last)."""
    return tl.where(tile < first, tile, tile + last - first)


@triton.jit
def key_tiles(first, last, length, rules, CAUSAL: tl.constexpr, STRIDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
              BLOCK_N: tl.constexpr):  # fmt: skip
    """Plan the tiles of keys that queries [first, last] meet, the table's left out.

    Returns:
        ``(num_full, num_masked, plan)``; ``tile_keys`` finds the keys of each from the plan.
    """
    high = tl.minimum(length, last + 1) if CAUSAL else length
    full_high = first + 1 if CAUSAL else length
    start, end = window_span(first, last, 0, high, rules, BLOCK_SIZE)
    tiles, full_first, full_last = window_tiles(first, last, start, end, 0, full_high, rules, BLOCK_SIZE, BLOCK_N)
    num_full = full_last - full_first
    num_masked = tiles - num_full

    # Tiles of columns that the window's span touches, and with causal those after the first query, need a mask.
    num_columns = columns_below(high, rules, STRIDED, BLOCK_SIZE)
    masked_start = tl.where(start < end, start, full_high)
    masked_end = high if CAUSAL else tl.where(start < end, end, full_high)
    columns, masked_first, masked_last = interval_tiles(
        0,
        num_columns,
        columns_below(masked_start, rules, STRIDED, BLOCK_SIZE),
        columns_below(masked_end, rules, STRIDED, BLOCK_SIZE),
        BLOCK_N,
    )
    # So does the last one where columns run out.
    is_cut = ((num_columns % BLOCK_N > 0) & (masked_last < columns)).to(tl.int32)
    masked_columns = masked_last - masked_first
    plan = (start, full_first, full_last, num_full, num_masked, masked_first, masked_last, num_columns)
    return num_full + columns - masked_columns - is_cut, num_masked + masked_columns + is_cut, plan


@triton.jit
def query_program(
    length, num_out, split_size, rules, entry_first_ptr,
    CAUSAL: tl.constexpr, STRIDED: tl.constexpr, HAS_TABLE: tl.constexpr, GLOBAL_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The positions of a program of queries and the tiles of keys that they meet.

    With GLOBAL_ROWS a program has global rows, and the ``split``-th share of all keys.

    Returns:
        ``(first, split, end, num_full, num_masked, plan)``: the first position, the share, the end of the keys, how
        many tiles there are of both kinds, and what ``tile_keys`` finds their keys by.
    """
    program = tl.program_id(0)
    if GLOBAL_ROWS:
        row_tiles = (num_out + TILE_M - 1) // TILE_M
        split = program // row_tiles
        first = program % row_tiles * TILE_M
        start = split * split_size
        end = tl.minimum(start + split_size, length)
        num_full = (end - start) // BLOCK_N
        num_masked = (end - start + BLOCK_N - 1) // BLOCK_N - num_full
        plan = (start, 0, num_full, num_full, num_masked, 0, 0, 0, num_masked, 0)
    else:
        # With causal the last queries meet the most keys: they start first.
        first = (tl.num_programs(0) - 1 - program if CAUSAL else program) * TILE_M
        split, end = 0, length
        num_full, num_masked, plan = key_tiles(first, tl.minimum(first + TILE_M, length) - 1, length, rules, CAUSAL,
                                               STRIDED, BLOCK_SIZE, BLOCK_N)  # fmt: skip
        table_from, entry = num_masked, 0
        if HAS_TABLE:
            entry = tl.load(entry_first_ptr + first // TILE_M)
            num_masked += tl.load(entry_first_ptr + first // TILE_M + 1) - entry
        plan = plan + (table_from, entry)
    return first, split, end, num_full, num_masked, plan


@triton.jit
def tile_keys(
    tile, plan, length, rules, entry_ptr,
    STRIDED: tl.constexpr, HAS_TABLE: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Keys of the ``tile``-th full or masked tile of a plan.

    Returns:
        ``(key, rule, low, high)``: int32 [BLOCK_N], ``length`` where a tile has no key, and what ``counts`` wants.
    """
    start, full_first, full_last, num_full, num_masked, masked_first, masked_last, num_columns, table_from, entry = plan
    offset = tl.arange(0, BLOCK_N)
    rule, low, high = WINDOW, 0, length
    if MASKED:
        is_window = tile < num_masked
        in_window = start + skip(tile, full_first, full_last) * BLOCK_N + offset
        # Columns that touch the window, then the last tile, which is not whole.
        at = tile - num_masked + masked_first
        column = tl.where(at < masked_last, at, (num_columns - 1) // BLOCK_N) * BLOCK_N + offset
        position = tl.where(column < num_columns, column_position(column, rules, STRIDED, BLOCK_SIZE), length)
        rule = tl.where(is_window, WINDOW, COLUMN)
        if HAS_TABLE:
            is_entry = tile >= table_from
            entry_ptr += (entry + tl.maximum(tile - table_from, 0)) * 4
            named = tl.load(entry_ptr + 2) + offset
            position = tl.where(is_entry, tl.where(named < tl.load(entry_ptr + 3), named, length), position)
            rule = tl.where(is_entry, TABLE, rule)
            low = tl.where(is_entry, tl.load(entry_ptr), 0)
            high = tl.where(is_entry, tl.load(entry_ptr + 1), length)
    else:
        is_window = tile < num_full
        in_window = start + (full_first + tile) * BLOCK_N + offset
        column = skip(tile - num_full, masked_first, masked_last) * BLOCK_N + offset
        position = column_position(column, rules, STRIDED, BLOCK_SIZE)
    return tl.where(is_window, in_window, position), rule, low, high


# --- memory ---


@triton.jit
def load_rows(ptr, offset, is_row, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHECK: tl.constexpr):
    """Rows of HEAD_DIM values from int64 ``offset``: [rows, BLOCK_D], zero past HEAD_DIM and, with CHECK, in no row."""
    d = tl.arange(0, BLOCK_D)
    address = ptr + offset[:, None] + d[None, :]
    if CHECK:
        rows = tl.load(address, mask=is_row[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM != BLOCK_D:
        rows = tl.load(address, mask=(d < HEAD_DIM)[None, :], other=0.0)
    else:
        rows = tl.load(address)
    return rows


@triton.jit
def store_rows(ptr, offset, rows, is_row, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of ``load_rows``, in the dtype of ``ptr``."""
    d = tl.arange(0, BLOCK_D)
    mask = is_row[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(ptr + offset[:, None] + d[None, :], rows.to(ptr.dtype.element_ty), mask=mask)
