"""The suite ``encoder``: genosparse's encoder and its rivals, by length, until they run out of memory or time.

Each is first run in a process of its own, in each dtype: that gives its peak of memory, its better precision, and
whether it survives at all. Those that do are then timed by turns in one process.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genosparse.attention import SparsePattern
from genosparse.benchmarking.attention import DTYPES, check_names
from genosparse.benchmarking.encoder_rivals import ENCODERS, EncoderKind, EncoderShape
from genosparse.benchmarking.isolated import OutOfMemoryError, TimedOutError, peak_bytes, run_isolated
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.benchmarking.timers import Call, Timing, TooSlowError, time_in_turns, timer_for
from genosparse.errors import ConfigError

__all__ = ["EncoderSuite", "run_once"]

_OURS = "genosparse"
_SHORT_SECONDS = 5.0  # a first run that is shorter is not believed: another one is timed
_SPARE_SECONDS = 120.0  # for starting a process and making an encoder


@dataclass(frozen=True)
class EncoderSuite:
    """Encoders by length, beside their rivals.

    Args:
        pattern: Of genosparse's attention; Longformer has its window.
        lengths: Bases per sequence.
        layers: Numbers of blocks.
        width: Channels of the hidden states.
        heads: Attention heads.
        rivals: Names from ``ENCODERS``; genosparse's own always runs.
        dtypes: Precisions, of which each encoder gets the one it is faster in: names from ``DTYPES``.
        repeats: Timed runs of each.
        max_seconds: Most seconds for the timed runs of one encoder at one length.
        memory_limit: GiB that a process may write to; None for no limit.

    Raises:
        ConfigError: A value cannot be used.
    """

    pattern: SparsePattern
    lengths: tuple[int, ...]
    layers: tuple[int, ...] = (1, 4)
    width: int = 256
    heads: int = 4
    rivals: tuple[str, ...] = tuple(name for name in ENCODERS if name != _OURS)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    repeats: int = 5
    max_seconds: float = 60.0
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        check_names("rivals", self.rivals, ENCODERS, may_be_empty=True)
        check_names("dtypes", self.dtypes, {name: DTYPES[name] for name in ("float32", "bfloat16")})
        for key in ("lengths", "layers"):
            if not getattr(self, key):
                raise ConfigError(f"{key}=[] names none; give one or more")
        if self.pattern.window is None:
            raise ConfigError("pattern.window=null: the encoders are compared at one window; give it")
        if self.pattern.block_size != 1:
            raise ConfigError(
                f"pattern.block_size={self.pattern.block_size}: the encoders are compared at windows of single bases"
            )
        if self.width % self.heads:
            raise ConfigError(f"heads={self.heads} cannot share width={self.width} evenly; give a divisor of it")

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        names = ("lengths", "layers", "width", "heads", "rivals", "dtypes", "repeats", "max_seconds", "memory_limit")
        values = {name: getattr(self, name) for name in names}
        return {
            "pattern": self.pattern.to_dict(),
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        }

    def units(self) -> list[Unit]:
        """One unit per depth and length; lengths ascend, so that what gave up once is not tried again."""
        return [
            Unit(f"{layers} layers {length}", float(layers * length))
            for layers in sorted(set(self.layers))
            for length in sorted(set(self.lengths))
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Measure all encoders of a depth at a length."""
        layers, _, length = unit.name.split()
        shape = {**self._shape, "layers": int(layers), "length": int(length)}
        results: dict[str, Timing | Exception] = {}
        alone: dict[str, dict[str, Any]] = {}
        calls: dict[str, Call] = {}
        for name in dict.fromkeys((_OURS, *self.rivals)):
            kind = ENCODERS[name]
            reason = self._reason_to_skip(kind, shape, earlier)
            if reason is not None:
                results[kind.name] = _SkippedError(reason)
                continue
            try:
                alone[kind.name] = self._best_alone(name, shape)
            except (OutOfMemoryError, TimedOutError, RuntimeError) as error:
                results[kind.name] = error
                continue
            calls[kind.name] = _forward(name, shape, alone[kind.name]["dtype"])
        results |= time_in_turns(
            calls,
            timer_for(torch.device("cpu")),
            repeats=self.repeats,
            max_seconds=dict.fromkeys(calls, self.max_seconds),
        )
        calls.clear()
        gc.collect()
        return [
            _row(kind, shape, results[kind.name], alone.get(kind.name, {}))
            for kind in map(ENCODERS.__getitem__, dict.fromkeys((_OURS, *self.rivals)))
        ]

    @property
    def _shape(self) -> dict[str, Any]:
        return {"width": self.width, "heads": self.heads, "pattern": self.pattern.to_dict()}

    def _best_alone(self, name: str, shape: Mapping[str, Any]) -> dict[str, Any]:
        """The better precision of an encoder, its seconds and its peak of memory, each in a process of its own."""
        limit = None if self.memory_limit is None else int(self.memory_limit * 2**30)
        runs = []
        failures: list[Exception] = []
        for dtype in self.dtypes:
            try:
                run = run_isolated(
                    "encoder:run_once",
                    {"name": name, "shape": dict(shape), "dtype": dtype},
                    max_bytes=limit,
                    max_seconds=2 * self.max_seconds + _SPARE_SECONDS,
                )
            except (OutOfMemoryError, TimedOutError, RuntimeError) as error:
                failures.append(error)
                continue
            runs.append({"dtype": dtype, **run})
        if not runs:
            raise failures[0]
        best: dict[str, Any] = min(runs, key=lambda run: run["seconds"])
        return best

    def _reason_to_skip(self, kind: EncoderKind, shape: Mapping[str, Any], earlier: Sequence[Row]) -> str | None:
        if kind.package is not None and importlib.util.find_spec(kind.package) is None:
            return f"{kind.package} is not installed; pip install 'genosparse[benchmark]'"
        for row in earlier:
            if (row["implementation"], row["layers"]) != (kind.name, shape["layers"]):
                continue
            if row["status"] != "measured":
                return row["note"] if row["status"] == "skipped" else f"{row['note']} at {row['length']:,}"
            expected = row["seconds_min"] * (shape["length"] / row["length"]) ** kind.growth
            if expected > self.max_seconds:
                return f"would take {significant(expected, 2)} s a run, over max_seconds={self.max_seconds:g}"
        return None

    def table(self, rows: Sequence[Row]) -> str:
        """A table per depth."""
        parts = []
        for layers in sorted({row["layers"] for row in rows}):
            chosen = [row for row in rows if row["layers"] == layers]
            ours = {row["length"]: row for row in chosen if row["implementation"] == ENCODERS[_OURS].name}
            cells = [_cells(row, ours.get(row["length"])) for row in chosen]
            heading = f"{layers} layer{'s' * (layers > 1)}, width {self.width}, {self.heads} heads"
            parts.append(f"{heading}\n\n{text_table(_TITLES, cells, left=('encoder', 'in', 'note'))}")
        notes = [f"{kind.name}: {kind.note}." for name in self.rivals if (kind := ENCODERS[name]).note]
        return "\n\n".join([*parts, "\n".join([_LEGEND, *notes])])

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Draw time per base and layer, and memory, by length."""
        from genosparse.plotting import plot_scaling

        times: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
        memory: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
        for row in rows:
            if row["seconds"] is None:
                continue
            title = f"{row['layers']} layer{'s' * (row['layers'] > 1)}"
            per_base = 1e6 / (row["length"] * row["layers"])
            middle, least, most = (per_base * row[key] for key in ("seconds", "seconds_min", "seconds_max"))
            curve = times.setdefault(title, {}).setdefault(row["implementation"], [])
            curve.append((row["length"], middle, least, most))
            if row["peak_bytes"] is not None:
                peak = row["peak_bytes"] / 2**30
                memory.setdefault(title, {}).setdefault(row["implementation"], []).append(
                    (row["length"], peak, peak, peak)
                )
        num_columns = len(set(self.layers))
        paths = [run_dir / CURVES, run_dir / MEMORY_CURVES]
        plot_scaling(paths[0], times, "length (bp)", "time per base and layer (µs)", num_columns=num_columns)
        plot_scaling(paths[1], memory, "length (bp)", "peak memory (GiB)", num_columns=num_columns)
        return paths


CURVES, MEMORY_CURVES = "encoder.png", "encoder-memory.png"

_TITLES = (
    "length", "encoder", "in", "s", "min to max", "runs", "bases/s", "us/base/layer", "peak GiB", "time / ours",
    "memory / ours", "note",
)  # fmt: skip
_LEGEND = """\
s is the median of runs by turns, each encoder in the precision that it is faster in; peak GiB is of a process that runs
it alone."""


class _SkippedError(Exception):
    """An encoder was not tried."""


def run_once(name: str, shape: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Seconds of one forward pass, and the process's peak of memory after it."""
    call = _forward(name, shape, dtype)
    seconds = _seconds(call)
    if seconds < _SHORT_SECONDS:
        seconds = min(seconds, _seconds(call))
    return {"seconds": seconds, "peak_bytes": peak_bytes()}


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _forward(name: str, shape: Mapping[str, Any], dtype: str) -> Call:
    """A forward pass of one sequence of random bases."""
    torch.manual_seed(0)
    pattern = SparsePattern.from_dict(shape["pattern"])
    forward = ENCODERS[name].make(
        EncoderShape(shape["width"], shape["layers"], shape["heads"], pattern, shape["length"]), DTYPES[dtype]
    )
    tokens = torch.tensor([1, 2, 4, 8])[torch.randint(4, (1, shape["length"]))]

    def run() -> object:
        with torch.inference_mode():
            return forward(tokens)

    return run


def _row(kind: EncoderKind, shape: Mapping[str, Any], result: Timing | Exception, alone: Mapping[str, Any]) -> Row:
    row: Row = {
        "implementation": kind.name,
        "layers": shape["layers"],
        "length": shape["length"],
        "dtype": alone.get("dtype"),
        "status": _status(result),
        "note": str(result) if isinstance(result, Exception) else "",
        "repeats": None,
        "seconds": None,
        "seconds_min": None,
        "seconds_max": None,
        "bases_per_second": None,
        "peak_bytes": alone.get("peak_bytes"),
    }
    if isinstance(result, Timing):
        row |= {
            "repeats": result.repeats,
            "seconds": result.median,
            "seconds_min": result.least,
            "seconds_max": result.most,
            "bases_per_second": shape["length"] / result.median,
        }
    return row


def _status(result: Timing | Exception) -> str:
    if isinstance(result, Timing):
        return "measured"
    kinds = {
        OutOfMemoryError: "out_of_memory", TimedOutError: "stopped", TooSlowError: "stopped", _SkippedError: "skipped",
    }  # fmt: skip
    return kinds.get(type(result), "refused")


def _cells(row: Row, ours: Row | None) -> list[str]:
    if row["seconds"] is None:
        empty = [""] * (len(_TITLES) - 4)
        return [
            f"{row['length']:,}",
            row["implementation"],
            "",
            *empty,
            f"{row['status'].replace('_', ' ')}: {row['note']}",
        ]

    def over_ours(key: str) -> str:
        return significant(row[key] / ours[key]) if ours and ours[key] and row[key] else ""

    return [
        f"{row['length']:,}",
        row["implementation"],
        row["dtype"],
        significant(row["seconds"]),
        f"{significant(row['seconds_min'])} to {significant(row['seconds_max'])}",
        str(row["repeats"]),
        significant(row["bases_per_second"]),
        significant(1e6 * row["seconds"] / (row["length"] * row["layers"])),
        significant(row["peak_bytes"] / 2**30) if row["peak_bytes"] else "",
        over_ours("seconds"),
        over_ours("peak_bytes"),
        "",
    ]
