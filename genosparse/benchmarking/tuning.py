"""The suite ``attention`` with ``tune=true``: the fastest tiles of each kernel on the GPU at hand.

Every candidate of a kernel, head size and width of dtype is timed by turns with the others, on the suite's pattern and
its longest length. One that does not fit the GPU, or whose result is not that of the configuration in use, is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from genosparse.attention import sparse_attention
from genosparse.benchmarking.attention import AttentionSuite, problem_of
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.benchmarking.timers import Call, Timing, time_in_turns, timer_for
from genosparse.errors import ConfigError
from genosparse.outputs import atomic_output

if TYPE_CHECKING:
    from genosparse.attention.triton.configurations import Configuration, Key

__all__ = ["TABLE", "TuningSuite", "choose", "completed_table", "differs", "tuning_row"]

TABLE = "configurations.json"
_HEAD_DIMS = (16, 32, 64, 128)
_DTYPES = {16: torch.bfloat16, 32: torch.float32}
_TABLED_ARCHS = (80, 90, 100)
# Of the largest value; candidates sum in another order, in 16 bits rounded to 2**-8.
_TOLERANCE = {16: 2**-6, 32: 1e-4}


@dataclass(frozen=True)
class TuningSuite:
    """A choice of tiles by measurement.

    Args:
        attention: Pattern, heads, longest length, repeats and device to measure with; its dtypes, modes, rivals and
            head size do not count.

    Raises:
        ConfigError: The device is not a GPU.
    """

    attention: AttentionSuite

    def __post_init__(self) -> None:
        if self.attention.device.type != "cuda":
            raise ConfigError(
                f"tune=true measures kernels on a GPU and the device is {self.attention.device}; pass device=cuda on a "
                "machine that has one"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        names = ("pattern", "batch", "heads", "kv_heads", "repeats", "max_seconds", "device")
        measured = {name: value for name, value in self.attention.settings.items() if name in names}
        return {**measured, "length": max(self.attention.lengths), "tune": True}

    def units(self) -> list[Unit]:
        """One unit per kernel, head size and width of dtype."""
        from genosparse.attention.triton.configurations import KERNELS

        return [
            Unit(f"{kernel} {bits} {head_dim}", head_dim * bits / 16)
            for kernel in KERNELS
            for bits in _DTYPES
            for head_dim in _HEAD_DIMS
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Time all candidates of one kernel, head size and width of dtype."""
        from triton.runtime.errors import OutOfResources, PTXASError

        from genosparse.attention.triton.configurations import Key, candidates, find_configuration

        kernel, bits, head_dim = unit.name.split()
        key = Key(kernel, self._arch, int(head_dim), int(bits))
        suite = AttentionSuite(**{**vars(self.attention), "head_dim": key.head_dim})
        problem = problem_of(suite, max(suite.lengths), _DTYPES[key.bits])
        q, k, v = problem.tensors(suite.device, requires_grad=True)
        out = sparse_attention(q, k, v, suite.pattern, backend="triton")
        grad = torch.randn_like(out)

        def run() -> tuple[Tensor, ...]:
            if kernel == "forward":
                with torch.no_grad():
                    return (sparse_attention(q, k, v, suite.pattern, backend="triton"),)
            return torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)

        expected = run()
        in_use = find_configuration(kernel, key.arch, key.head_dim, problem.dtype)
        named = {_describe(configuration): configuration for configuration in (in_use, *candidates(key))}
        results = time_in_turns(
            {name: _checked(run, kernel, tried, expected, key.bits) for name, tried in named.items()},
            timer_for(suite.device),
            repeats=suite.repeats,
            max_seconds=dict.fromkeys(named, suite.max_seconds),
            expected=(OutOfResources, PTXASError, torch.OutOfMemoryError, _WrongResultError),
        )
        return [tuning_row(key, named[name], result) for name, result in results.items()]

    @property
    def _arch(self) -> int:
        major, minor = torch.cuda.get_device_capability(self.attention.device)
        return 10 * major + minor

    def table(self, rows: Sequence[Row]) -> str:
        """The chosen tiles, and what was left out."""
        chosen = choose(rows)
        lines = []
        for key, configuration in chosen.items():
            mine = [row for row in rows if _key(row) == key]
            valid = [row["seconds"] for row in mine if row["seconds"] is not None]
            lines.append(
                [
                    key.kernel,
                    str(key.head_dim),
                    str(key.bits),
                    _describe(configuration),
                    significant(1e3 * min(valid)),
                    significant(1e3 * max(valid)),
                    f"{len(valid)} of {len(mine)}",
                ]
            )
        titles = ("kernel", "D", "bits", "tile, warps, stages", "ms", "slowest ms", "candidates that ran")
        left_out = [
            f"left out: {row['kernel']}, D {row['head_dim']}, {row['bits']} bits, {_describe(_configuration(row))}: "
            f"{row['note']}"
            for row in rows
            if row["seconds"] is None
        ]
        return "\n".join([text_table(titles, lines, left=("kernel", "tile, warps, stages")), *left_out])

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Write the table of configurations, which ``GENOSPARSE_CONFIGURATIONS`` can name."""
        from genosparse.attention.triton.configurations import write_table

        with atomic_output(run_dir / TABLE) as partial:
            write_table(partial, completed_table(self._arch, choose(rows)))
        return [run_dir / TABLE]


class _WrongResultError(Exception):
    """A candidate computes something else."""


def _checked(
    run: Callable[[], Sequence[Tensor]], kernel: str, tried: Configuration, expected: Sequence[Tensor], bits: int
) -> Call:
    """Run under a configuration; the first time, compare the result."""
    from genosparse.attention.triton.configurations import override

    unchecked = [True]

    def call() -> object:
        with override({kernel: tried}):
            results = run()
        if unchecked:
            for result, wanted in zip(results, expected, strict=True):
                if differs(result, wanted, bits):
                    raise _WrongResultError("another result than that of the configuration in use")
            unchecked.clear()
        return results

    return call


def differs(result: Tensor, expected: Tensor, bits: int) -> bool:
    """Whether a result is another than rounding explains; one that is not finite always is."""
    error = (result.double() - expected.double()).abs().max()
    return not bool(error <= _TOLERANCE[bits] * expected.double().abs().max())


def tuning_row(key: Key, configuration: Configuration, result: Timing | Exception) -> Row:
    """A measured candidate as a row."""
    timing = result if isinstance(result, Timing) else None
    return {
        **asdict(key),
        **asdict(configuration),
        "note": "" if timing else " ".join(str(result).split()) or type(result).__name__,
        "repeats": timing and timing.repeats,
        "seconds": timing and timing.median,
        "seconds_min": timing and timing.least,
        "seconds_max": timing and timing.most,
    }


def choose(rows: Sequence[Row]) -> dict[Key, Configuration]:
    """The fastest candidate by key, by the median; of equals the first. A key of which none ran has none."""
    best: dict[Key, Row] = {}
    for row in rows:
        key = _key(row)
        if row["seconds"] is not None and (key not in best or row["seconds"] < best[key]["seconds"]):
            best[key] = row
    return {key: _configuration(row) for key, row in best.items()}


def completed_table(arch: int, chosen: Mapping[Key, Configuration]) -> dict[Key, Configuration]:
    """The table in use with the chosen entries put in, complete for a GPU generation that it did not have too."""
    from genosparse.attention.triton.configurations import KERNELS, Key, find_configuration

    table = {
        Key(kernel, known, head_dim, bits): find_configuration(kernel, known, head_dim, dtype)
        for kernel in KERNELS
        for known in sorted({*_TABLED_ARCHS, arch})
        for head_dim in _HEAD_DIMS
        for bits, dtype in _DTYPES.items()
    }
    return {**table, **chosen}


def _key(row: Row) -> Key:
    from genosparse.attention.triton.configurations import Key

    return Key(row["kernel"], row["arch"], row["head_dim"], row["bits"])


def _configuration(row: Row) -> Configuration:
    from genosparse.attention.triton.configurations import Configuration

    return Configuration(**{field.name: row[field.name] for field in fields(Configuration)})


def _describe(configuration: Configuration) -> str:
    tile = f"{configuration.block_m}x{configuration.block_n}"
    told = f", {configuration.max_registers}" if configuration.max_registers else ""
    return f"{tile}, {configuration.num_warps}, {configuration.num_stages}{told}"
