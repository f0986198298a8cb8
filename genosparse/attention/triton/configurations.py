"""Tile sizes, warps and stages of each kernel, by GPU generation, head size and width of the dtype.

The table is ``configurations.json`` beside this file. ``genosparse benchmark suite=attention tune=true`` measures the
candidates on the GPU at hand and writes a table of the same form; ``GENOSPARSE_CONFIGURATIONS`` names one to use
instead.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from genosparse.errors import PatternError

__all__ = [
    "KERNELS",
    "Configuration",
    "Key",
    "candidates",
    "find_configuration",
    "group_size",
    "load_table",
    "override",
    "padded_head_dim",
    "write_table",
]

KERNELS = ("forward", "backward_dq", "backward_dkv_window", "backward_dkv_columns")
TABLE_VARIABLE = "GENOSPARSE_CONFIGURATIONS"

_TABLE_FILE = Path(__file__).with_name("configurations.json")
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a kernel is cut and launched.

    Attributes:
        block_m: Query rows of a tile: positions times the query heads that share a KV head.
        block_n: Keys of a tile.
        num_warps: Warps of 32 threads per program.
        num_stages: Tiles in flight between device and shared memory.
        max_registers: Per thread, as the assembler is told; None leaves the choice to it. Left to itself it may spill a
            few to fit more programs; told, it may spill others: what does neither is found by compiling.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __post_init__(self) -> None:
        for name, least, is_power in (
            ("block_m", 16, True),
            ("block_n", 16, True),
            ("num_warps", 1, True),
            ("num_stages", 1, False),
            ("max_registers", 32, False),
        ):
            value = getattr(self, name)
            if name == "max_registers" and value is None:
                continue
            if not isinstance(value, int) or value < least or (is_power and value & (value - 1)):
                kind = "a power of 2" if is_power else "a whole number"
                raise PatternError(f"{name}={value!r} of a kernel configuration: expected {kind} from {least} on")


@dataclass(frozen=True, slots=True)
class Key:
    """What a configuration was chosen for.

    Attributes:
        kernel: One of ``KERNELS``.
        arch: Compute capability, as 90 for sm_90.
        head_dim: As the kernels pad it: 16, 32, 64 or 128.
        bits: Of the dtype, 16 or 32.
    """

    kernel: str
    arch: int
    head_dim: int
    bits: int


_OLDEST = 80
# From sm_120 on: Ampere's matrix instructions and 99 KiB of shared memory, which the entries of sm_80 keep to and those
# of sm_90 and sm_100 do not.
_CONSUMER_BLACKWELL = 120

# The interpreter takes milliseconds a tile, whatever its size.
_INTERPRETED = Configuration(block_m=64, block_n=64, num_warps=1, num_stages=1)
_overrides: dict[str, Configuration] = {}


def find_configuration(kernel: str, arch: int, head_dim: int, dtype: torch.dtype) -> Configuration:
    """The configuration of a kernel: that of the newest generation in the table that is not newer than ``arch``.

    0 as ``arch`` is Triton's interpreter.

    Raises:
        PatternError: The GPU is too old.
    """
    if kernel in _overrides:
        return _overrides[kernel]
    if not arch:
        return _INTERPRETED
    if arch < _OLDEST:
        raise PatternError(
            f"backend='triton' needs a GPU of compute capability 8.0 or later and this one has {arch / 10}; use "
            "backend='flex', or move the tensors to the CPU"
        )
    table = _current_table()
    is_consumer = arch >= _CONSUMER_BLACKWELL
    known = max(
        key.arch
        for key in table
        if key.arch <= arch and (not is_consumer or key.arch >= _CONSUMER_BLACKWELL or key.arch == _OLDEST)
    )
    return table[Key(kernel, known, padded_head_dim(head_dim), dtype.itemsize * 8)]


@contextmanager
def override(configurations: Mapping[str, Configuration]) -> Iterator[None]:
    """Use these configurations, by kernel, in place of the table's while the block runs: for tests and tuning."""
    before = dict(_overrides)
    _overrides.update(configurations)
    try:
        yield
    finally:
        _overrides.clear()
        _overrides.update(before)


def padded_head_dim(head_dim: int) -> int:
    """The power of 2 that the kernels pad a head size to, at least 16: matrix instructions know no others."""
    return max(16, 1 << (head_dim - 1).bit_length())


def group_size(num_shared: int) -> int:
    """How many of the query heads that read one KV head share a tile: the largest divisor of their number up to 16."""
    return next(size for size in range(min(num_shared, 16), 0, -1) if num_shared % size == 0)


def candidates(key: Key) -> list[Configuration]:
    """What tuning measures: the sizes that may be good, those that cannot fit left out."""
    found = []
    for block_m in (64, 128):
        for block_n in (32, 64, 128):
            for num_warps in (4, 8):
                for num_stages in (2, 3, 4):
                    tile_bytes = block_n * key.head_dim * key.bits // 8
                    if 2 * num_stages * tile_bytes <= 160 << 10 and block_m * block_n <= 4096 * num_warps // 2:
                        found.append(Configuration(block_m, block_n, num_warps, num_stages))
    return found


def load_table(path: str | os.PathLike[str]) -> dict[Key, Configuration]:
    """Read a table.

    Raises:
        PatternError: It is no such table, or lacks an entry.
    """
    try:
        contents = json.loads(Path(path).read_text(encoding="utf-8"))
        if contents["format"] != _FORMAT:
            raise PatternError(f"{path} has format {contents['format']}, expected {_FORMAT}; tune again")
        table = {}
        for row in contents["configurations"]:
            entry = dict(row)
            key = Key(**{name: entry.pop(name) for name in ("kernel", "arch", "head_dim", "bits")})
            table[key] = Configuration(**entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PatternError):
            raise
        raise PatternError(f"{path} is no table of kernel configurations ({error}); unset {TABLE_VARIABLE}") from error
    if not table:
        raise PatternError(f"{path} holds no configuration; unset {TABLE_VARIABLE}")
    for arch in {_OLDEST, *(key.arch for key in table)}:
        for kernel in KERNELS:
            for head_dim in (16, 32, 64, 128):
                for bits in (16, 32):
                    if Key(kernel, arch, head_dim, bits) not in table:
                        raise PatternError(f"{path} lacks {kernel} at sm_{arch}, head size {head_dim}, {bits} bits")
    return table


def write_table(path: str | os.PathLike[str], table: Mapping[Key, Configuration]) -> None:
    """Write a table as ``load_table`` reads it, a line per entry."""
    rows = [
        json.dumps({**asdict(key), **asdict(value)})
        for key, value in sorted(table.items(), key=lambda item: tuple(asdict(item[0]).values()))
    ]
    text = f'{{"format": {_FORMAT}, "configurations": [\n' + ",\n".join(rows) + "\n]}\n"
    Path(path).write_text(text, encoding="utf-8")


def _current_table() -> dict[Key, Configuration]:
    return _cached_table(os.environ.get(TABLE_VARIABLE) or str(_TABLE_FILE))


@lru_cache(maxsize=4)
def _cached_table(path: str) -> dict[Key, Configuration]:
    return load_table(path)
