"""The suite ``training``: steps of masked-base pretraining by length, with and without activation checkpointing.

Each is measured in a process of its own, which has its own peak of memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from genosparse.attention import SparsePattern
from genosparse.benchmarking.attention import DTYPES, check_names
from genosparse.benchmarking.isolated import OutOfMemoryError, TimedOutError, peak_bytes, run_isolated
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError
from genosparse.tokenizers import MASK

__all__ = ["TrainingSuite", "run_steps"]

CURVES, MEMORY_CURVES = "training.png", "training-memory.png"
_MASK_RATE = 0.15
_SPARE_SECONDS = 120.0  # for starting a process and making an encoder
_WAYS = {False: "kept activations", True: "checkpointing"}


@dataclass(frozen=True)
class TrainingSuite:
    """Training steps by length.

    Args:
        pattern: Of the attention.
        lengths: Bases per step.
        layers: Blocks.
        width: Channels of the hidden states.
        heads: Query heads.
        kv_heads: KV heads.
        dtypes: Precisions, ``float32`` and ``bfloat16`` (autocast).
        repeats: Timed steps of each.
        max_seconds: Most seconds for the timed steps of one way at one length.
        memory_limit: GiB that a process may write to; None for no limit.

    Raises:
        ConfigError: A value cannot be used.
    """

    pattern: SparsePattern
    lengths: tuple[int, ...]
    layers: int = 8
    width: int = 256
    heads: int = 4
    kv_heads: int = 2
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    repeats: int = 5
    max_seconds: float = 60.0
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        check_names("dtypes", self.dtypes, {name: DTYPES[name] for name in ("float32", "bfloat16")})
        if not self.lengths:
            raise ConfigError("lengths=[] names none; give one or more")
        _config(self.settings, max(self.lengths))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        names = (
            "lengths", "layers", "width", "heads", "kv_heads", "dtypes", "repeats", "max_seconds", "memory_limit",
        )  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        return {
            "pattern": self.pattern.to_dict(),
            **{name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        }

    def units(self) -> list[Unit]:
        """One unit per precision, way and length; lengths ascend, so that what gave up once is not tried again."""
        return [
            Unit(f"{dtype} {int(checkpointing)} {length}", float(length))
            for dtype in dict.fromkeys(self.dtypes)
            for checkpointing in _WAYS
            for length in sorted(set(self.lengths))
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Measure one way of stepping at a precision and a length."""
        dtype, flag, number = unit.name.split()
        checkpointing, length = flag == "1", int(number)
        row: Row = {
            "implementation": _WAYS[checkpointing],
            "dtype": dtype,
            "length": length,
            "status": "measured",
            "note": "",
            "repeats": None,
            "seconds": None,
            "seconds_min": None,
            "seconds_max": None,
            "bases_per_second": None,
            "peak_bytes": None,
        }
        reason = self._reason_to_skip(row, earlier)
        if reason is not None:
            return [row | {"status": "skipped", "note": reason}]
        arguments = {
            "settings": self.settings, "dtype": dtype, "length": length, "checkpointing": checkpointing,
        }  # fmt: skip
        try:
            done = run_isolated(
                "training:run_steps",
                arguments,
                max_bytes=None if self.memory_limit is None else int(self.memory_limit * 2**30),
                max_seconds=3 * self.max_seconds + _SPARE_SECONDS,
            )
        except OutOfMemoryError as error:
            return [row | {"status": "out_of_memory", "note": str(error)}]
        except TimedOutError as error:
            return [row | {"status": "stopped", "note": str(error)}]
        except RuntimeError as error:
            return [row | {"status": "refused", "note": str(error)}]
        seconds = done["seconds"]
        return [
            row
            | {
                "repeats": len(seconds),
                "seconds": statistics.median(seconds),
                "seconds_min": min(seconds),
                "seconds_max": max(seconds),
                "bases_per_second": length / statistics.median(seconds),
                "peak_bytes": done["peak_bytes"],
            }
        ]

    def _reason_to_skip(self, row: Row, earlier: Sequence[Row]) -> str | None:
        for before in earlier:
            if (before["implementation"], before["dtype"]) != (row["implementation"], row["dtype"]):
                continue
            if before["status"] != "measured":
                return before["note"] if before["status"] == "skipped" else f"{before['note']} at {before['length']:,}"
            expected = before["seconds_min"] * row["length"] / before["length"]
            if expected > self.max_seconds:
                return f"would take {significant(expected, 2)} s a step, over max_seconds={self.max_seconds:g}"
        return None

    def table(self, rows: Sequence[Row]) -> str:
        """A table per precision."""
        parts = []
        for dtype in dict.fromkeys(row["dtype"] for row in rows):
            cells = [_cells(row) for row in rows if row["dtype"] == dtype]
            heading = f"{dtype}: {self.layers} layers, width {self.width}, {self.heads} heads ({self.kv_heads} KV)"
            parts.append(f"{heading}\n\n{text_table(_TITLES, cells, left=('way', 'note'))}")
        return "\n\n".join([*parts, _LEGEND])

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Draw bases per second, and memory, by length."""
        from genosparse.plotting import plot_scaling

        rates: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
        memory: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
        for row in rows:
            if row["seconds"] is None:
                continue
            times = (row["seconds"], row["seconds_max"], row["seconds_min"])
            middle, least, most = (row["length"] / seconds for seconds in times)
            curve = rates.setdefault(row["dtype"], {}).setdefault(row["implementation"], [])
            curve.append((row["length"], middle, least, most))
            if row["peak_bytes"] is not None:
                peak = row["peak_bytes"] / 2**30
                curve = memory.setdefault(row["dtype"], {}).setdefault(row["implementation"], [])
                curve.append((row["length"], peak, peak, peak))
        paths = [run_dir / CURVES, run_dir / MEMORY_CURVES]
        num_columns = len(set(self.dtypes))
        plot_scaling(paths[0], rates, "length (bp)", "bases per second", num_columns=num_columns)
        plot_scaling(paths[1], memory, "length (bp)", "peak memory (GiB)", num_columns=num_columns)
        return paths


_TITLES = ("length", "way", "s a step", "min to max", "steps", "bases/s", "peak GiB", "note")
_LEGEND = """\
A step is forward, backward and AdamW on one sequence, 15 % of whose bases are masked; peak GiB is of its process."""


def run_steps(settings: Mapping[str, Any], dtype: str, length: int, checkpointing: bool) -> dict[str, Any]:
    """Seconds of training steps on random bases, after one that does not count, and the process's peak of memory."""
    torch.manual_seed(0)
    encoder = Encoder(_config(settings, length))
    encoder.activation_checkpointing = checkpointing
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)
    bases = torch.randint(4, (1, length))
    tokens = torch.tensor([1, 2, 4, 8], dtype=torch.uint8)[bases]
    sites = torch.rand(length).argsort()[: max(1, int(_MASK_RATE * length))].sort().values[None]
    tokens.scatter_(1, sites, MASK)
    targets = bases.gather(1, sites)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = encoder.base_logits_at(tokens, sites)
        functional.cross_entropy(logits[0], targets[0]).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    seconds: list[float] = []
    limit = float(settings["max_seconds"])
    while len(seconds) < int(settings["repeats"]) and (not seconds or sum(seconds) + max(seconds) <= limit):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "peak_bytes": peak_bytes()}


def _config(settings: Mapping[str, Any], length: int) -> EncoderConfig:
    return EncoderConfig(
        d_model=settings["width"],
        num_layers=settings["layers"],
        num_heads=settings["heads"],
        num_kv_heads=settings["kv_heads"],
        patterns=(SparsePattern.from_dict(settings["pattern"]),),
        max_length=length,
    )


def _cells(row: Row) -> list[str]:
    if row["seconds"] is None:
        empty = [""] * (len(_TITLES) - 3)
        return [
            f"{row['length']:,}",
            row["implementation"],
            *empty,
            f"{row['status'].replace('_', ' ')}: {row['note']}",
        ]
    return [
        f"{row['length']:,}",
        row["implementation"],
        significant(row["seconds"]),
        f"{significant(row['seconds_min'])} to {significant(row['seconds_max'])}",
        str(row["repeats"]),
        significant(row["bases_per_second"]),
        significant(row["peak_bytes"] / 2**30) if row["peak_bytes"] else "",
        "",
    ]
