"""The roofline, against figures worked out by hand and tiles counted one by one."""

import pytest

from genosparse.attention import SparsePattern
from genosparse.attention.triton.configurations import Configuration
from genosparse.benchmarking.roofline import CHIPS, executed_tiles, is_modelled, predict

MILLION = 1_048_576
PATTERN = SparsePattern(window=512, stride=1024)
BACKWARD = ("backward_dq", "backward_dkv_window", "backward_dkv_columns")


def tile(block_m: int, block_n: int) -> Configuration:
    return Configuration(block_m, block_n, num_warps=4, num_stages=2)


def test_a_million_positions_on_an_h100() -> None:
    """2,176 keys per query: 1,152 of a window of 512 each side around 128 queries, and 1,024 columns."""
    forward = predict("forward", CHIPS[90], PATTERN, MILLION, tile(128, 64), head_dim=64)
    assert forward.exponentials / MILLION == pytest.approx(2176, rel=1e-3)
    assert forward.flops == pytest.approx(4 * 64 * 2176 * MILLION, rel=1e-3)
    assert forward.flops == pytest.approx(5.8e11, rel=0.01)
    assert forward.bytes / CHIPS[90].bandwidth == pytest.approx(0.16e-3, rel=0.02)
    assert forward.seconds == pytest.approx(5.84e11 / 989e12, rel=1e-3)
    backward = [predict(kernel, CHIPS[90], PATTERN, MILLION, tile(128, 64), head_dim=64) for kernel in BACKWARD]
    assert sum(kernel.flops for kernel in backward) == pytest.approx(2.0e12, rel=0.03)  # seven products


def test_what_binds() -> None:
    def bound(kernel: str, arch: int, **settings: int) -> str:
        return predict(kernel, CHIPS[arch], PATTERN, MILLION, tile(128, 64), **settings).bound

    assert bound("forward", 80, head_dim=64) == "products"
    assert bound("forward", 90, head_dim=32) == "exponentials"
    assert bound("backward_prepare", 90, head_dim=64) == "memory"
    assert bound("forward", 90, head_dim=64, bits=32) == "products"  # off the matrix units


def test_rates() -> None:
    assert CHIPS[90].exponentials == pytest.approx(3.87e12, rel=0.01)
    # The peak of the matrix units is so many FLOPs per clock of each multiprocessor.
    for arch, flops in {80: 2048, 90: 4096, 100: 8192}.items():
        chip = CHIPS[arch]
        assert chip.matrix_flops / chip.multiprocessors / chip.clock == pytest.approx(flops, rel=0.01)


def tiles_one_by_one(kernel: str, pattern: SparsePattern, length: int, block_m: int, block_n: int, group: int) -> int:
    """The definition: walk over the tiles, with ranges of positions."""
    positions = block_m // group
    num_global = min(pattern.num_global, length)
    columns = [j for j in range(length) if j < num_global or (pattern.stride and j % pattern.stride == 0)]
    global_tiles = 0 if pattern.causal else -(-num_global // positions)
    count = 0
    if kernel == "backward_dkv_columns":
        for start in range(0, len(columns), block_n):
            low = columns[start] if pattern.causal else num_global
            count += len(range(low, length, positions))
        return count
    if kernel == "backward_dkv_window":
        for first in range(0, length, block_n):
            last = min(first + block_n, length) - 1
            low = first if pattern.causal else num_global
            queries = [
                i for i in range(low, length) if pattern.window is not None and first - i <= pattern.window >= i - last
            ]
            count += -(-len(queries) // positions) + global_tiles
        return count
    for first in range(0, length, positions):
        last = min(first + positions, length) - 1
        end = last + 1 if pattern.causal else length
        keys = [j for j in range(end) if pattern.window is not None and first - j <= pattern.window >= j - last]
        count += -(-len(keys) // block_n) + -(-sum(j < end for j in columns) // block_n)
    return count + global_tiles * -(-length // block_n)


@pytest.mark.parametrize("kernel", ["forward", *BACKWARD])
@pytest.mark.parametrize(
    "pattern",
    [
        SparsePattern(window=20, stride=7),
        SparsePattern(window=0),
        SparsePattern(stride=3, num_global=5),
        SparsePattern(window=300, num_global=40),
        SparsePattern(window=33, stride=5, num_global=2, causal=True),
    ],
)
@pytest.mark.parametrize("length,block_m,block_n,group", [(200, 32, 16, 1), (193, 64, 32, 4), (1, 16, 16, 1)])
def test_tiles(kernel: str, pattern: SparsePattern, length: int, block_m: int, block_n: int, group: int) -> None:
    counted = executed_tiles(kernel, pattern, length, tile(block_m, block_n), group)
    assert counted == tiles_one_by_one(kernel, pattern, length, block_m, block_n, group)


@pytest.mark.parametrize("num_heads,num_kv_heads", [(1, 1), (8, 2), (6, 1), (40, 2)])
def test_no_fewer_pairs_than_there_are(num_heads: int, num_kv_heads: int) -> None:
    for pattern in (PATTERN, SparsePattern(window=100, num_global=3), SparsePattern(stride=16, causal=True)):
        useful = num_heads // num_kv_heads * pattern.num_pairs(5000, num_kv_heads)
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        prediction = predict("forward", CHIPS[80], pattern, 5000, tile(64, 64), head_dim=64, **heads)
        assert prediction.exponentials >= useful


def test_head_sizes_are_padded_and_rows_are_not() -> None:
    padded, whole = (predict("forward", CHIPS[80], PATTERN, 4096, tile(64, 64), head_dim=size) for size in (48, 64))
    assert padded.flops == whole.flops
    assert padded.bytes < whole.bytes


def test_what_is_modelled() -> None:
    assert is_modelled(PATTERN)
    assert not is_modelled(SparsePattern.bigbird())
    assert not is_modelled(SparsePattern(window=1, num_random_blocks=1))
