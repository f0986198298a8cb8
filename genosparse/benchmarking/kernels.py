"""The suite ``kernels``: what the compiler made of each Triton kernel, and the least time it can take.

Kernels are compiled ahead of time for GPUs that need not be there. Nothing is timed: the times are the roofline's,
lower bounds for one head at window 512 and stride 1024.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genosparse.attention import SparsePattern
from genosparse.benchmarking.attention import DTYPES, check_names
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.roofline import CHIPS, predict
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import markdown_table, significant, text_table
from genosparse.errors import ConfigError
from genosparse.outputs import atomic_output

if TYPE_CHECKING:
    from genosparse.attention.triton.ahead_of_time import CompiledKernel

__all__ = ["LENGTHS", "MARKDOWN", "PATTERN", "KernelSuite", "kernel_row", "kernels_as_markdown"]

PATTERN = SparsePattern(window=512, stride=1024)
LENGTHS = (131_072, 1_048_576)
"""Pattern and lengths, in positions, of the predicted times."""

MARKDOWN = "kernels.md"
_PREDICTED_VARIANT = "plain"
_HEAD_DIMS = (16, 32, 64, 128)


@dataclass(frozen=True)
class KernelSuite:
    """The table of compiled kernels.

    Args:
        archs: Compute capabilities, as 90 for sm_90.
        head_dims: Head sizes.
        dtypes: Names from ``DTYPES``.

    Raises:
        ConfigError: A value cannot be used, or nothing can be compiled in this process.
    """

    archs: tuple[int, ...] = tuple(CHIPS)
    head_dims: tuple[int, ...] = (32, 64, 128)
    dtypes: tuple[str, ...] = ("bfloat16",)

    def __post_init__(self) -> None:
        check_names("archs", tuple(map(str, self.archs)), {str(arch): None for arch in CHIPS})
        check_names("head_dims", tuple(map(str, self.head_dims)), {str(head_dim): None for head_dim in _HEAD_DIMS})
        check_names("dtypes", self.dtypes, DTYPES)
        if util.find_spec("triton") is None:
            raise ConfigError("suite=kernels compiles with the package triton, which is not installed")
        if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
            raise ConfigError("suite=kernels compiles, and TRITON_INTERPRET is set; unset it")

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is compiled, as JSON values."""
        return {"archs": list(self.archs), "head_dims": list(self.head_dims), "dtypes": list(self.dtypes)}

    def units(self) -> list[Unit]:
        """One unit per GPU generation, dtype and head size."""
        return [
            Unit(f"{arch} {dtype} {head_dim}")
            for arch in dict.fromkeys(self.archs)
            for dtype in dict.fromkeys(self.dtypes)
            for head_dim in dict.fromkeys(self.head_dims)
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Compile all kernels for one GPU generation, dtype and head size."""
        from genosparse.attention.triton.ahead_of_time import compile_kernels

        arch, dtype, head_dim = unit.name.split()
        kernels = compile_kernels(archs=(int(arch),), head_dims=(int(head_dim),), dtypes=(DTYPES[dtype],))
        return [kernel_row(kernel) for kernel in kernels]

    def table(self, rows: Sequence[Row]) -> str:
        """The kernels as text for a terminal."""
        return f"{_render(text_table, rows)}\n\n{_LEGEND}"

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Write the table as Markdown, ``kernels.md``."""
        with atomic_output(run_dir / MARKDOWN) as file:
            file.write_text(kernels_as_markdown(rows) + "\n", encoding="utf-8")
        return [run_dir / MARKDOWN]


def kernel_row(kernel: CompiledKernel) -> Row:
    """A compiled kernel as a row, with its least seconds per head at each of ``LENGTHS``; None for other variants."""
    predictions = [
        predict(
            kernel.kernel,
            CHIPS[kernel.arch],
            PATTERN,
            length,
            kernel.configuration,
            head_dim=kernel.head_dim,
            bits=32 if kernel.dtype == "fp32" else 16,
        )
        for length in LENGTHS
        if kernel.variant == _PREDICTED_VARIANT
    ]
    seconds: list[float | None] = [prediction.seconds for prediction in predictions]
    seconds = seconds or [None] * len(LENGTHS)
    return {
        "kernel": kernel.kernel,
        "arch": kernel.arch,
        "head_dim": kernel.head_dim,
        "dtype": kernel.dtype,
        "variant": kernel.variant,
        "block_m": kernel.configuration.block_m,
        "block_n": kernel.configuration.block_n,
        "num_warps": kernel.configuration.num_warps,
        "num_stages": kernel.configuration.num_stages,
        "registers": kernel.registers,
        "spilled_bytes": kernel.spilled_bytes,
        "shared_bytes": kernel.shared_bytes,
        **{f"instructions_{name}": count for name, count in sorted(kernel.instructions.items())},
        **{f"seconds_{length}": value for length, value in zip(LENGTHS, seconds, strict=True)},
        "bound": predictions[-1].bound if predictions else None,
    }


def kernels_as_markdown(rows: Sequence[Row]) -> str:
    """The table of the suite's rows for a page."""
    return _render(markdown_table, rows)


# Counts of instructions that are shown; results.json has all.
_SHOWN = {"matrix": "matrix", "async_load": "async 16 B", "narrow_async_load": "async narrower", "exp2": "exp2"}
_LEFT = ("kernel", "dtype", "variant", "bound by")
_LEGEND = """\
tile: query rows x keys. Instructions are counted in the compiled code, not as executed. ms: the least time per head at
so many positions, window 512 each side and stride 1024, by the peak rate that binds; no kernel reaches its peaks."""


def _render(table: Callable[..., str], rows: Sequence[Row]) -> str:
    titles = [
        "kernel", "sm", "D", "dtype", "variant", "tile", "warps", "stages", "registers", "spill", "shared KB",
        *_SHOWN.values(),
        *(f"ms at {_short(length)}" for length in LENGTHS), "bound by",
    ]  # fmt: skip
    cells = [
        [
            row["kernel"],
            str(row["arch"]),
            str(row["head_dim"]),
            row["dtype"],
            row["variant"],
            f"{row['block_m']}x{row['block_n']}",
            str(row["num_warps"]),
            str(row["num_stages"]),
            str(row["registers"]),
            str(row["spilled_bytes"]),
            f"{row['shared_bytes'] / 1024:.0f}",
            *(str(row.get(f"instructions_{name}", "")) for name in _SHOWN),
            *(significant(_milliseconds(row[f"seconds_{length}"])) for length in LENGTHS),
            row["bound"] or "",
        ]
        for row in rows
    ]
    return table(titles, cells, left=_LEFT)


def _short(length: int) -> str:
    return f"{length / 1e6:.0f}M" if length >= 1e6 else f"{length / 1e3:.0f}k"


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
