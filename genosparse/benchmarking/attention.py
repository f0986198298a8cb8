"""The suite ``attention``: genosparse's backends and their rivals, forward and in training, by length.

For each dtype, mode and length all are timed by turns in one process, with large torch.mm products among them, so that
each figure has its yardstick from the same minutes. Rates count useful pairs alone: those of the pattern, each once,
at 4 D FLOPs per pair and query head forward (two products) and 10 D backward (five).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genosparse.attention import MAX_HEAD_DIM, SparsePattern
from genosparse.benchmarking import roofline
from genosparse.benchmarking.machine import available_bytes
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.rivals import OURS, RIVALS, Problem, Rival
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.benchmarking.timers import Call, Timing, TooSlowError, time_in_turns, timer_for
from genosparse.errors import ConfigError, PatternError

__all__ = ["DTYPES", "MODES", "PRODUCTS", "AttentionSuite", "problem_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = {"forward": 4, "training": 14}
"""FLOPs per useful pair, query head and unit of head size, by mode; training is forward and backward."""

CURVES = "attention.png"
_PRODUCT = "torch.mm"
PRODUCTS = (_PRODUCT, f"{_PRODUCT} float32", "oneDNN float32")
"""Names of large products, which say what the machine does at the most; the first is in the dtype of the rest."""

_PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
_MEMORY_SHARE = 0.8  # of the memory that is available, for what one call may take


@dataclass(frozen=True)
class AttentionSuite:
    """Attention by length, beside its rivals.

    Args:
        pattern: Who attends to whom.
        lengths: Positions per sequence.
        dtypes: Names from ``DTYPES``.
        modes: Names from ``MODES``.
        batch: Sequences per call.
        heads: Query heads.
        kv_heads: KV heads.
        head_dim: Head size.
        rivals: Names from ``RIVALS``; genosparse's own backends always run.
        repeats: Timed runs of each.
        max_seconds: Most seconds for the timed runs of one rival at one length; what would take longer is left out,
            and the table says so.
        device: Where.

    Raises:
        ConfigError: A value cannot be used.
    """

    pattern: SparsePattern
    lengths: tuple[int, ...]
    dtypes: tuple[str, ...] = ("float32",)
    modes: tuple[str, ...] = tuple(MODES)
    batch: int = 1
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    rivals: tuple[str, ...] = tuple(RIVALS)
    repeats: int = 5
    max_seconds: float = 60.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        check_names("dtypes", self.dtypes, DTYPES)
        check_names("modes", self.modes, MODES)
        check_names("rivals", self.rivals, RIVALS, may_be_empty=True)
        if not self.lengths:
            raise ConfigError("lengths=[] names no length; give one or more, as lengths=[4096,16384]")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"heads={self.heads} cannot share kv_heads={self.kv_heads} evenly; give a multiple of kv_heads"
            )
        if self.head_dim > MAX_HEAD_DIM:
            raise ConfigError(f"head_dim={self.head_dim} is too large; it must be at most {MAX_HEAD_DIM}")
        if self.pattern.is_empty:
            raise ConfigError(
                "pattern has every rule off; give pattern.window=, pattern.stride= or pattern.num_global="
            )

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        names = (
            "lengths",
            "dtypes",
            "modes",
            "batch",
            "heads",
            "kv_heads",
            "head_dim",
            "rivals",
            "repeats",
            "max_seconds",
        )
        return {
            "pattern": self.pattern.to_dict(),
            **{name: list(value) if isinstance(value := getattr(self, name), tuple) else value for name in names},
            "device": self.device.type,
        }

    def units(self) -> list[Unit]:
        """One unit per dtype, mode and length; lengths ascend, so that the cost of the next is known from the last."""
        return [
            Unit(f"{mode} {dtype} {length}", float(length * MODES[mode]))
            for dtype in dict.fromkeys(self.dtypes)
            for mode in dict.fromkeys(self.modes)
            for length in sorted(set(self.lengths))
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Time all rivals by turns at one dtype, mode and length."""
        mode, dtype, length = unit.name.split()
        problem = problem_of(self, int(length), DTYPES[dtype])
        training = mode == "training"
        timer = timer_for(self.device)
        calls: dict[str, Call] = dict(self._products(dtype))
        for call in calls.values():
            timer(call)
        product_rate = max(self._product_flops / timer(call) for call in calls.values())
        results: dict[str, Timing | Exception] = {}
        q, k, v = problem.tensors(self.device, requires_grad=training)
        grad = torch.randn_like(q) if training else None
        for rival in self._rivals():
            reason = self._reason_to_skip(rival, problem, mode, product_rate, earlier)
            if reason is not None:
                results[rival.name] = _SkippedError(reason)
            else:
                calls[rival.name] = _call(rival, (q, k, v), grad, problem)
        results |= time_in_turns(
            calls,
            timer,
            repeats=self.repeats,
            max_seconds={rival.name: self.max_seconds for rival in self._rivals()},
            expected=(PatternError, torch.OutOfMemoryError, _RefusedError),
        )
        del q, k, v, grad, calls
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what torch keeps for itself counts as taken when the next length is judged
        return list(self._rows(problem, mode, dtype, results))

    @property
    def _product_size(self) -> int:
        return _PRODUCT_SIZE[self.device.type]

    @property
    def _product_flops(self) -> float:
        return 2.0 * self._product_size**3

    def _products(self, dtype: str) -> Iterator[tuple[str, Call]]:
        """A large product in the dtype, and one in float32; on a CPU by oneDNN too, which torch.mm takes in 16 bits."""
        for its_dtype in dict.fromkeys((dtype, "float32")):
            square = torch.randn(self._product_size, self._product_size, device=self.device).to(DTYPES[its_dtype])
            name = _PRODUCT if its_dtype == dtype else f"{_PRODUCT} {its_dtype}"
            yield name, lambda square=square: torch.mm(square, square)  # type: ignore[misc]
        if self.device.type == "cpu" and torch.backends.mkldnn.is_available():
            product = torch.ops.mkldnn._linear_pointwise
            yield PRODUCTS[-1], lambda: product(square, square, None, "none", [], "")

    def _rivals(self) -> list[Rival]:
        return [*OURS[self.device.type], *(RIVALS[name] for name in dict.fromkeys(self.rivals))]

    def _reason_to_skip(
        self, rival: Rival, problem: Problem, mode: str, product_rate: float, earlier: Sequence[Row]
    ) -> str | None:
        """Why a rival cannot be run at a length; None where it can, as far as is known before it is tried."""
        try:
            rival.pattern(problem.pattern)
        except PatternError as error:
            return str(error)
        flops = MODES[mode] * problem.head_dim * problem.batch * problem.num_heads * rival.executed_pairs(problem)
        expected = flops / product_rate
        for row in earlier:
            if (row["implementation"], row["mode"], row["dtype"]) != (rival.name, mode, _name(problem.dtype)):
                continue
            if row["status"] in ("stopped", "out_of_memory"):
                return f"{row['status'].replace('_', ' ')} at {row['length']:,}"
            if row["seconds_min"] is not None:  # the median may be that of a moment when the machine was busy
                expected = max(expected, row["seconds_min"] * (problem.length / row["length"]) ** rival.growth)
        if expected > self.max_seconds:
            return f"would take {significant(expected, 2)} s a run, over max_seconds={self.max_seconds:g}"
        needed, available = rival.extra_bytes(problem, mode == "training"), available_bytes(self.device)
        if available is not None and needed > _MEMORY_SHARE * available:
            return f"would take {significant(needed / 2**30, 2)} GiB, {significant(available / 2**30, 2)} are free"
        return None

    def _rows(
        self, problem: Problem, mode: str, dtype: str, results: Mapping[str, Timing | Exception]
    ) -> Iterator[Row]:
        """A row per rival, and one per product."""
        products = {name: self._product_flops / _median(results[name]) for name in results if name in PRODUCTS}
        same = products[_PRODUCT]
        in_float32 = products.get(f"{_PRODUCT} float32", same)
        rivals = {rival.name: rival for rival in self._rivals()}
        for name in [*products, *rivals]:
            result = results[name]
            pairs, flops, bound = None, self._product_flops, None
            if name in rivals and not isinstance(result, Exception):
                pairs = problem.count_pairs(rivals[name].pattern(problem.pattern))
                flops = float(MODES[mode] * problem.head_dim * pairs)
            if name == "triton" and isinstance(result, Timing):
                bound = _roofline_seconds(problem, mode, self.device)
            row: Row = {
                "implementation": name,
                "mode": mode,
                "dtype": dtype,
                "length": problem.length,
                "status": _status(result),
                "note": str(result) if isinstance(result, Exception) else "",
                "repeats": None,
                "seconds": None,
                "seconds_min": None,
                "seconds_max": None,
                "pairs": pairs,
                "tflops": None,
                "of_mm": None,
                "of_mm_float32": None,
                "roofline_seconds": bound,
            }
            if isinstance(result, Timing):
                rate = flops / result.median
                row |= {
                    "repeats": result.repeats,
                    "seconds": result.median,
                    "seconds_min": result.least,
                    "seconds_max": result.most,
                    "tflops": rate / 1e12,
                    "of_mm": rate / same,
                    "of_mm_float32": rate / in_float32,
                }
            yield row

    def table(self, rows: Sequence[Row]) -> str:
        """A table per mode and dtype; the last columns compare times with the first of genosparse's backends."""
        parts = []
        ours = OURS[self.device.type][0].name
        for dtype in dict.fromkeys(self.dtypes):
            for mode in dict.fromkeys(self.modes):
                chosen = [row for row in rows if (row["mode"], row["dtype"]) == (mode, dtype)]
                if chosen:
                    parts.append(f"{self._heading(mode, dtype)}\n\n{_table(chosen, ours)}")
        return "\n\n".join([*parts, _LEGEND])

    def _heading(self, mode: str, dtype: str) -> str:
        default = SparsePattern().to_dict()
        rules = ", ".join(f"{key} {value}" for key, value in self.pattern.to_dict().items() if value != default[key])
        shape = f"batch {self.batch}, {self.heads} heads ({self.kv_heads} KV), head size {self.head_dim}"
        return f"{mode}, {dtype}: {shape}; {rules}"

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Draw time by length."""
        from genosparse.plotting import plot_scaling

        panels: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
        for row in rows:
            if row["seconds"] is None or row["implementation"] in PRODUCTS:
                continue
            panel = panels.setdefault(f"{row['mode']}, {row['dtype']}", {})
            middle, least, most = (1e3 * row[key] for key in ("seconds", "seconds_min", "seconds_max"))
            panel.setdefault(row["implementation"], []).append((row["length"], middle, least, most))
        path = run_dir / CURVES
        plot_scaling(path, panels, "length (positions)", "time (ms)", num_columns=len(set(self.modes)))
        return [path]


class _SkippedError(Exception):
    """A rival was not tried."""


class _RefusedError(Exception):
    """A rival raised."""


def problem_of(suite: AttentionSuite, length: int, dtype: torch.dtype) -> Problem:
    """The problem that a suite's settings describe at a length."""
    return Problem(suite.pattern, length, suite.batch, suite.heads, suite.kv_heads, suite.head_dim, dtype)


def check_names(key: str, names: Sequence[str], known: Mapping[str, object], *, may_be_empty: bool = False) -> None:
    """Raise ``ConfigError`` unless all names are known."""
    if not names and not may_be_empty:
        raise ConfigError(f"{key}=[] names none; choose from {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}: {name} is unknown; choose from {', '.join(known)}")


def _call(rival: Rival, inputs: tuple[Tensor, Tensor, Tensor], grad: Tensor | None, problem: Problem) -> Call:
    """The call to time. A rival's errors, whatever they are, become ``_RefusedError``; our own are bugs."""

    def run() -> object:
        try:
            if grad is None:
                with torch.no_grad():
                    return rival.attend(*inputs, problem)
            return torch.autograd.grad(rival.attend(*inputs, problem), inputs, grad)
        except (PatternError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            if "not enough memory" in line:  # the CPU's allocator has no error of its own
                raise torch.OutOfMemoryError(line) from error
            if rival.is_ours:
                raise
            raise _RefusedError(line) from error

    return run


def _status(result: Timing | Exception) -> str:
    if isinstance(result, Timing):
        return "measured"
    if isinstance(result, torch.OutOfMemoryError):
        return "out_of_memory"
    kinds = {TooSlowError: "stopped", _SkippedError: "skipped"}
    return kinds.get(type(result), "refused")


def _median(result: Timing | Exception) -> float:
    if isinstance(result, Exception):
        raise result
    return result.median


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _roofline_seconds(problem: Problem, mode: str, device: torch.device) -> float | None:
    """The least time of the kernels of a mode; None where the GPU or the pattern is not modelled."""
    from genosparse.attention.triton.configurations import find_configuration

    major, minor = torch.cuda.get_device_capability(device)
    arch = 10 * major + minor
    if arch not in roofline.CHIPS or not roofline.is_modelled(problem.pattern):
        return None
    return sum(
        roofline.predict(
            kernel,
            roofline.CHIPS[arch],
            problem.pattern,
            problem.length,
            find_configuration(configuration, arch, problem.head_dim, problem.dtype),
            head_dim=problem.head_dim,
            bits=8 * problem.dtype.itemsize,
            num_heads=problem.batch * problem.num_heads,
            num_kv_heads=problem.batch * problem.num_kv_heads,
        ).seconds
        for kernel, configuration in (_KERNELS if mode == "training" else _KERNELS[:1])
    )


# Those of a training step in their order, each with the kernel whose configuration it takes.
_KERNELS = (
    ("forward", "forward"),
    ("backward_prepare", "backward_dq"),
    ("backward_dq", "backward_dq"),
    ("backward_dkv_columns", "backward_dkv_columns"),
    ("backward_dkv_window", "backward_dkv_window"),
)

_TITLES = (
    "length",
    "implementation",
    "ms",
    "min to max",
    "runs",
    "TFLOP/s",
    "of mm",
    "of mm f32",
    "time / ours",
    "note",
)
_LEGEND = """\
ms is the median. TFLOP/s counts useful pairs alone (4 D FLOPs each per query head forward, 10 D backward); 'of mm' is
that rate over torch.mm's in the same dtype, 'of mm f32' over its float32 rate, both timed by turns with the rest.
'window only' computes the window and none of the pattern's other rules; flex makes its mask before it is timed."""


def _table(rows: Sequence[Row], ours: str) -> str:
    own = {row["length"]: row["seconds"] for row in rows if row["implementation"] == ours}
    with_bound = any(row["roofline_seconds"] is not None for row in rows)
    titles = [*_TITLES[:-1], *(["roofline ms"] if with_bound else []), _TITLES[-1]]
    cells = []
    for row in rows:
        milliseconds = [None if row[key] is None else 1e3 * row[key] for key in ("seconds_min", "seconds_max")]
        reference = own.get(row["length"])
        is_product = row["implementation"] in PRODUCTS
        measured = row["seconds"] is not None
        cells.append(
            [
                f"{row['length']:,}",
                row["implementation"],
                significant(1e3 * row["seconds"]) if measured else "-",
                " to ".join(map(significant, milliseconds)) if measured else "",
                str(row["repeats"]) if measured else "",
                significant(row["tflops"]),
                "" if is_product else significant(row["of_mm"], 2),
                "" if is_product else significant(row["of_mm_float32"], 2),
                significant(row["seconds"] / reference) if measured and reference and not is_product else "",
                *([significant(row["roofline_seconds"] and 1e3 * row["roofline_seconds"])] if with_bound else []),
                f"{row['status'].replace('_', ' ')}: {row['note']}" if row["note"] else "",
            ]
        )
    return text_table(titles, cells, left=("implementation", "note"))
