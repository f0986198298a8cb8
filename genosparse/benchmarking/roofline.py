"""The least time that an attention kernel can take on a GPU, from the tiles it executes and the GPU's peak rates.

Three things are counted, and the slowest sets the bound: the products of all executed tiles, masked pairs included, at
the peak rate of the matrix units (of the ordinary ones in float32); the exponentials, one per executed pair, at the
rate of the special-function units; and the bytes that must cross device memory once. Peaks are never reached together
(FlashAttention 3 reports 75 % of the first on H100 at head size 128), so a prediction is a lower bound of time, not a
forecast. The model is that of Williams, Waterman and Patterson (Roofline, 2009) with one roof more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from genosparse.attention import SparsePattern
    from genosparse.attention.triton.configurations import Configuration

__all__ = ["CHIPS", "Chip", "Prediction", "executed_tiles", "is_modelled", "predict"]

_Positions = NDArray[np.int64]

# Matrix products per tile; the kernels of the backward pass each make the scores and the gradient of the weights again.
_PRODUCTS = {"forward": 2, "backward_prepare": 0, "backward_dq": 3, "backward_dkv_window": 4, "backward_dkv_columns": 4}
_LSE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Chip:
    """Peak rates of a GPU, as its vendor states them.

    Attributes:
        name: The model that the figures are of.
        matrix_flops: Dense 16-bit products with float32 accumulation, FLOP/s.
        float32_flops: Float32 products outside the matrix units, FLOP/s.
        bandwidth: Of device memory, bytes/s.
        multiprocessors: Their number.
        clock: Hz, that at which ``matrix_flops`` holds.
        exponentials_per_clock: Of each multiprocessor.
    """

    name: str
    matrix_flops: float
    float32_flops: float
    bandwidth: float
    multiprocessors: int
    clock: float
    exponentials_per_clock: int = 16

    @property
    def exponentials(self) -> float:
        """Exponentials per second."""
        return self.multiprocessors * self.clock * self.exponentials_per_clock


# By compute capability. The A100's memory is that of the 80 GB SXM card; on PCIe it gives 1.94 TB/s.
CHIPS = {
    80: Chip("A100", 312e12, 19.5e12, 2.04e12, 108, 1.41e9),
    90: Chip("H100 SXM", 989e12, 67e12, 3.35e12, 132, 1.83e9),
    100: Chip("B200", 2250e12, 80e12, 8e12, 148, 1.85e9),
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a kernel must do, and the least time that takes.

    Attributes:
        flops: Of the products of all executed tiles.
        exponentials: One per executed pair.
        bytes: Across device memory, each input read and each output written once.
        seconds: The least time.
        bound: What sets it: "products", "exponentials" or "memory".
    """

    flops: float
    exponentials: float
    bytes: float
    seconds: float
    bound: str


def is_modelled(pattern: SparsePattern) -> bool:
    """Whether the model knows the tiles of a pattern: single positions, no random blocks."""
    return pattern.block_size == 1 and not pattern.num_random_blocks


def predict(
    kernel: str,
    chip: Chip,
    pattern: SparsePattern,
    length: int,
    configuration: Configuration,
    *,
    head_dim: int,
    bits: int = 16,
    num_heads: int = 1,
    num_kv_heads: int = 1,
) -> Prediction:
    """Bound the time of a kernel from below.

    Args:
        kernel: One of ``genosparse.attention.triton.configurations.KERNELS``, or "backward_prepare".
        chip: The GPU's peak rates.
        pattern: Who attends to whom.
        length: Positions N.
        configuration: Its ``block_m`` query rows and ``block_n`` keys make a tile.
        head_dim: Head size D; products are made at the next power of 2.
        bits: Of the dtype, 16 or 32.
        num_heads: Query heads H, times the batch.
        num_kv_heads: KV heads, times the batch.
    """
    from genosparse.attention.triton.configurations import group_size, padded_head_dim

    group = group_size(num_heads // num_kv_heads)
    tiles = num_heads // group * executed_tiles(kernel, pattern, length, configuration, group)
    pairs = float(tiles) * configuration.block_m * configuration.block_n
    flops = 2.0 * _PRODUCTS[kernel] * padded_head_dim(head_dim) * pairs
    num_bytes = float(_device_bytes(kernel, pattern, length, head_dim * bits // 8, num_heads, num_kv_heads))
    seconds = {
        "products": flops / (chip.matrix_flops if bits == 16 else chip.float32_flops),
        "exponentials": pairs / chip.exponentials,
        "memory": num_bytes / chip.bandwidth,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return Prediction(flops, pairs, num_bytes, seconds[bound], bound)


def executed_tiles(
    kernel: str, pattern: SparsePattern, length: int, configuration: Configuration, group: int = 1
) -> int:
    """Tiles that a kernel executes for one group of query heads, counted as the kernels cut them.

    Args:
        kernel: As in ``predict``.
        pattern: A modelled pattern (``is_modelled``); columns are counted at phase 0.
        length: Positions N.
        configuration: Tile sizes.
        group: Query heads whose rows lie side by side in a tile.
    """
    positions, keys = configuration.block_m // group, configuration.block_n
    num_global = min(pattern.num_global, length)
    # Global rows meet every key in tiles of their own; under a causal mask the other rules say what they see.
    global_row_tiles = 0 if pattern.causal else _ceil(num_global, positions)
    if kernel == "backward_prepare":
        return 0
    if kernel == "backward_dkv_columns":
        number = np.arange(0, int(_columns_before(pattern, np.array([length]))[0]), keys)
        start = _column_position(pattern, number) if pattern.causal else np.full_like(number, num_global)
        return int(_ceil_each(length - start, positions).sum())
    size = keys if kernel == "backward_dkv_window" else positions
    first = np.arange(0, length, size, dtype=np.int64)
    last = np.minimum(first + size, length) - 1
    if kernel == "backward_dkv_window":
        low = first if pattern.causal else np.full_like(first, num_global)
        tiles = _window_tiles(pattern, first, last, low, np.full_like(first, length), positions)
        return int(tiles.sum()) + len(first) * global_row_tiles
    high = last + 1 if pattern.causal else np.full_like(last, length)
    tiles = _window_tiles(pattern, first, last, np.zeros_like(first), high, keys)
    tiles += _ceil_each(_columns_before(pattern, high), keys)
    return int(tiles.sum()) + global_row_tiles * _ceil(length, keys)


def _window_tiles(
    pattern: SparsePattern, first: _Positions, last: _Positions, low: _Positions, high: _Positions, tile: int
) -> NDArray[np.int64]:
    """Tiles that cover what of [low, high) is in the window of any of the positions [first, last]."""
    if pattern.window is None:
        return np.zeros_like(first)
    start, end = np.maximum(first - pattern.window, low), np.minimum(last + pattern.window + 1, high)
    return _ceil_each(np.maximum(end - start, 0), tile)


def _column_position(pattern: SparsePattern, number: _Positions) -> _Positions:
    """Where the columns of these numbers lie: global keys first, then the strided ones past them."""
    if pattern.stride is None:
        return number
    strided = (number - pattern.num_global + _ceil(pattern.num_global, pattern.stride)) * pattern.stride
    return np.where(number < pattern.num_global, number, strided)


def _columns_before(pattern: SparsePattern, position: _Positions) -> NDArray[np.int64]:
    """How many global and strided keys lie before each position."""
    count = np.minimum(position, pattern.num_global)
    if pattern.stride is not None:
        past = np.maximum(position, pattern.num_global)
        count = count + _ceil_each(past, pattern.stride) - _ceil(pattern.num_global, pattern.stride)
    return count


def _device_bytes(
    kernel: str, pattern: SparsePattern, length: int, row_bytes: int, num_heads: int, num_kv_heads: int
) -> int:
    """Bytes of each tensor that a kernel reads or writes, once."""
    columns = int(_columns_before(pattern, np.array([length]))[0])
    if kernel == "backward_dkv_columns" and not columns:
        return 0  # it is not launched
    # Rows per query head, rows per KV head, and float32 values per query row: lse, and in the backward pass delta.
    per_head, per_kv_head, statistics = {
        "forward": (2 * length, 2 * length, 1),  # q, out; k, v
        "backward_prepare": (2 * length, 0, 3),  # out, dout; lse, delta, lse in base 2
        "backward_dq": (3 * length, 2 * length, 2),  # q, dout, dq; k, v
        "backward_dkv_window": (2 * length, 4 * length, 2),  # q, dout; k, v, dk, dv
        "backward_dkv_columns": (2 * length, 4 * columns, 2),  # the same, of columns alone
    }[kernel]
    rows = num_heads * per_head + num_kv_heads * per_kv_head
    return rows * row_bytes + num_heads * length * statistics * _LSE_BYTES


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def _ceil_each(values: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    return -(-values // divisor)
