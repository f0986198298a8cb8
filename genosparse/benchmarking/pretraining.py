"""The suite ``pretraining``: encoders of as many weights, pretrained for the same time on the same windows.

Each has its learning rate chosen by runs of equal cost and is trained in the precision that is faster for it; bits per
base are measured at the same sites of held-out sequence.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.benchmarking.trainable import TRAINABLE, TrainableShape, make_trainable
from genosparse.errors import ConfigError, GenosparseError
from genosparse.loggers import CsvTable, Logger
from genosparse.outputs import fingerprint
from genosparse.pretraining import Corpus, HeldOut, MaskingSettings, TrainerSettings, evaluate, train
from genosparse.pretraining.loop import columns
from genosparse.pretraining.masking import MaskedWindows
from genosparse.readers import Genome

__all__ = ["CLOCKS", "DTYPES", "FINAL_TITLES", "PretrainingSuite", "final_rows"]

DTYPES = ("float32", "bfloat16")
CLOCKS = ("wall", "processor")
_OURS = "genosparse"
_TIMED_STEPS = 3
_BATCH_BASES = 65_536  # of evaluation
_SITE_SEED = 0


@dataclass(frozen=True)
class PretrainingSuite:
    """Encoders pretrained side by side.

    Args:
        genome: What is trained on, and held out.
        folder: Where runs that are under way keep their checkpoints.
        shape: Of genosparse's encoder, to which the others are matched in the number of weights.
        rivals: Others of ``TRAINABLE``.
        rates: Peak learning rates to choose from, the same for all; with one there is no choice.
        sweep_minutes: Training of each run that chooses.
        minutes: Training of each run that counts.
        seeds: Of the runs that count: of weights, windows and masks.
        validation: Fraction of each contig, at its end, that is held out.
        batch_bases: Bases per step.
        clock: What the minutes are of: ``"wall"``, or ``"processor"``: processor time over threads, which is fairer on
            a machine that does other work too.
        masking: How bases are hidden.

    Raises:
        ConfigError: A value cannot be used, or a package is missing.
        GenosparseError: The genome cannot be read.
    """

    genome: str
    folder: Path
    shape: TrainableShape
    rivals: tuple[str, ...] = ("modernbert", "dilated")
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3, 8e-3)
    sweep_minutes: float = 5.0
    minutes: float = 20.0
    seeds: tuple[int, ...] = (0, 1, 2)
    validation: float = 0.1
    batch_bases: int = 16_384
    clock: str = "wall"
    masking: MaskingSettings = field(default_factory=MaskingSettings)

    def __post_init__(self) -> None:
        unknown = [name for name in self.rivals if name not in TRAINABLE]
        if unknown:
            raise ConfigError(f"rivals: {unknown[0]} is unknown; choose from {', '.join(TRAINABLE)}")
        if "modernbert" in self.rivals and importlib.util.find_spec("transformers") is None:
            raise ConfigError("rivals: modernbert needs transformers; pip install 'genosparse[benchmark]'")
        if not self.rates or not self.seeds:
            raise ConfigError("rates=[] or seeds=[] names none; give one or more")
        for name in ("sweep_minutes", "minutes"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number above 0")
        for rate in self.rates:
            self._trainer(rate, self.minutes)
        for name in self.names:
            make_trainable(name, self.shape, 0)
        with self._held_out():
            pass  # opening is the check: a genome that cannot serve is told before anything is trained

    @property
    def names(self) -> list[str]:
        """What is trained, genosparse's first."""
        return [_OURS, *(name for name in dict.fromkeys(self.rivals) if name != _OURS)]

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        return {
            "genome": fingerprint(self.genome),
            "validation": self.validation,
            "shape": {**asdict(self.shape), "pattern": self.shape.pattern.to_dict()},
            "rivals": self.names[1:],
            "rates": list(self.rates),
            "sweep_minutes": self.sweep_minutes,
            "minutes": self.minutes,
            "seeds": list(self.seeds),
            "batch_bases": self.batch_bases,
            "clock": self.clock,
            "masking": asdict(self.masking),
        }

    def units(self) -> list[Unit]:
        """Baselines, precisions, the choice of rates, and the runs that count; from rate to rate and seed to seed in
        turned order, so that a machine that slows down does not do so to one encoder alone.
        """
        units = [Unit("baselines", 0.1), *(Unit(f"precision {name}", 0.1) for name in self.names)]
        if len(self.rates) > 1:
            units += [Unit(f"rate {name} {rate:g}", self.sweep_minutes) for rate, name in self._turned(self.rates)]
        return [*units, *(Unit(f"run {name} {seed}", self.minutes) for seed, name in self._turned(self.seeds))]

    def _turned(self, values: Sequence[Any]) -> Iterator[tuple[Any, str]]:
        for number, value in enumerate(values):
            for name in self.names[:: -1 if number % 2 else 1]:
                yield value, name

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Do one unit; what an earlier start of it left is taken up."""
        phase, *rest = unit.name.split()
        if phase == "baselines":
            with self._held_out() as (_, held_out):
                bits = held_out.baselines()
                return [
                    {**_EMPTY, "phase": phase, "implementation": name, "bits_per_base": bits[name]}
                    | {"sites": held_out.num_sites}
                    for name in ("interpolated", "best_kmer")
                ]
        name = rest[0]
        if phase == "precision":
            return self._precisions(name)
        dtype = max(
            (row for row in earlier if row["phase"] == "precision" and row["implementation"] == name),
            key=lambda row: row["bases_per_second"],
        )["dtype"]
        if phase == "rate":
            return [self._train(unit, name, dtype, float(rest[1]), self.seeds[0], self.sweep_minutes)]
        rate = self._chosen_rate(name, earlier)
        if rate is None:
            note = "no learning rate of rates= trains it"
            return [self._row("run", name, dtype, None, int(rest[1])) | {"status": "skipped", "note": note}]
        return [self._train(unit, name, dtype, rate, int(rest[1]), self.minutes)]

    def _chosen_rate(self, name: str, earlier: Sequence[Row]) -> float | None:
        if len(self.rates) == 1:
            return self.rates[0]
        tried = [
            row
            for row in earlier
            if row["phase"] == "rate" and row["implementation"] == name and row["status"] == "measured"
        ]
        return min(tried, key=lambda row: row["bits_per_base"])["learning_rate"] if tried else None

    def _trainer(self, rate: float, minutes: float) -> TrainerSettings:
        return TrainerSettings(
            max_minutes=minutes, batch_bases=self.batch_bases, learning_rate=rate, log_every=50, checkpoint_every=200
        )

    @contextmanager
    def _held_out(self) -> Iterator[tuple[Corpus, HeldOut]]:
        with Genome(self.genome) as genome:
            corpus = Corpus([genome], validation=self.validation, context=self.shape.context)
            yield corpus, HeldOut(corpus, _SITE_SEED)

    def _precisions(self, name: str) -> list[Row]:
        """Steps in each precision, the fastest of a few; the faster precision is trained in."""
        rows = []
        with self._held_out() as (corpus, _):
            windows = self._trainer(1e-3, 1.0).windows_per_pass(self.shape.context)
            examples = [MaskedWindows(corpus, self.masking, 0)[index] for index in range(windows)]
            tokens, classes = (torch.stack([example[part] for example in examples]) for part in (0, 1))
            at = classes >= 0
            for dtype in DTYPES:
                model = make_trainable(name, self.shape, 0)
                seconds = []
                for _ in range(1 + _TIMED_STEPS):
                    start = time.perf_counter()
                    with _autocast(dtype):
                        loss = torch.nn.functional.cross_entropy(model.head(model(tokens)[at]), classes[at])
                    loss.backward()
                    seconds.append(time.perf_counter() - start)
                row = self._row("precision", name, dtype, None, 0)
                rows.append(row | {"bases_per_second": round(tokens.numel() / min(seconds[1:]))})
        return rows

    def _train(self, unit: Unit, name: str, dtype: str, rate: float, seed: int, minutes: float) -> Row:
        run_dir = self.folder / unit.name.replace(" ", "-")
        run_dir.mkdir(parents=True, exist_ok=True)
        model = make_trainable(name, self.shape, seed)
        row = self._row(unit.name.split()[0], name, dtype, rate, seed)
        row["parameters"] = model.num_parameters
        with self._held_out() as (corpus, held_out):
            try:
                result = train(
                    model,
                    MaskedWindows(corpus, self.masking, seed),
                    self._trainer(rate, minutes),
                    run_dir=run_dir,
                    context=self.shape.context,
                    precision=dtype,
                    held_out=None,
                    open_log=lambda step: Logger(
                        CsvTable(run_dir / "metrics.csv", columns(len(model.blocks)), last_step=step)
                    ),
                    clock=_CLOCK[self.clock],
                )
            except GenosparseError as error:
                shutil.rmtree(run_dir)
                return row | {"status": "diverged", "note": str(error).partition(":")[0]}
            if result.stopped_by is not None:
                signal.raise_signal(result.stopped_by)
                raise KeyboardInterrupt
            batch_windows = max(1, _BATCH_BASES // self.shape.context)
            one, both = (
                evaluate(model, held_out, batch_windows=batch_windows, both_strands=flag, autocast=_autocast(dtype))
                for flag in (False, True)
            )
        shutil.rmtree(run_dir)
        return row | {
            "minutes": round(result.minutes, 3),
            "steps": result.step,
            "bases": result.bases,
            "bases_per_second": round(result.bases / (60 * result.minutes)),
            "sites": held_out.num_sites,
            "bits_per_base": one["bits_per_base"],
            "bits_per_base_both_strands": both["bits_per_base"],
            "accuracy": one["accuracy"],
        }

    def _row(self, phase: str, name: str, dtype: str, rate: float | None, seed: int) -> Row:
        values = {"phase": phase, "implementation": name, "dtype": dtype, "learning_rate": rate, "seed": seed}
        return {**_EMPTY, **values, "note": TRAINABLE[name].note}

    def table(self, rows: Sequence[Row]) -> str:
        """The runs that count, best first, beside the k-mer models; then the choice of learning rates."""
        baselines = [row for row in rows if row["phase"] == "baselines"]
        told = [{"encoder": row["implementation"], "bits per base": f"{row['bits_per_base']:.4f}"} for row in baselines]
        cells = [*final_rows(rows), *([each.get(title, "") for title in FINAL_TITLES] for each in told)]
        tried = [
            [
                TRAINABLE[row["implementation"]].name,
                f"{row['learning_rate']:g}",
                "" if row["bits_per_base"] is None else f"{row['bits_per_base']:.4f}",
                row["status"] if row["status"] != "measured" else "",
            ]
            for row in rows
            if row["phase"] == "rate"
        ]
        clock = "" if self.clock == "wall" else " of processor time"
        parts = [
            f"{self.minutes:g} minutes{clock} each, {len(self.seeds)} seeds, windows of {self.shape.context:,} bases, "
            f"{self.batch_bases:,} bases a step",
            text_table(FINAL_TITLES, cells, left=("encoder",)),
        ]
        if tried:
            parts += [
                f"the choice of learning rates, {self.sweep_minutes:g} minutes{clock} each",
                text_table(("encoder", "rate", "bits per base", ""), tried, left=("encoder", "")),
            ]
        return "\n\n".join(parts)

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Nothing besides the results; the folder of what was under way is empty now."""
        shutil.rmtree(self.folder, ignore_errors=True)
        return []


_EMPTY: Row = {
    "phase": "", "implementation": "", "dtype": None, "learning_rate": None, "seed": None, "parameters": None,
    "status": "measured", "note": "", "minutes": None, "steps": None, "bases": None, "bases_per_second": None,
    "sites": None, "bits_per_base": None, "bits_per_base_both_strands": None, "accuracy": None,
}  # fmt: skip
FINAL_TITLES = (
    "encoder", "parameters", "precision", "rate", "steps", "bases/s", "bits per base", "lowest to highest",
    "both strands",
)  # fmt: skip
_CLOCK: dict[str, Callable[[], float]] = {
    "wall": time.monotonic,
    "processor": lambda: time.process_time() / torch.get_num_threads(),
}


def _autocast(dtype: str) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")


def _mean_of(rows: Sequence[Row], key: str) -> float:
    """Mean of a column."""
    return statistics.fmean(row[key] for row in rows)


def final_rows(rows: Sequence[Row]) -> list[list[str]]:
    """The runs that count as cells under ``FINAL_TITLES``, means over seeds, best first; those that failed last."""
    of_name: dict[str, list[Row]] = {}
    for row in rows:
        if row["phase"] == "run":
            of_name.setdefault(row["implementation"], []).append(row)
    done = {name: [row for row in runs if row["status"] == "measured"] for name, runs in of_name.items()}
    names = sorted(done, key=lambda name: _mean_of(done[name], "bits_per_base") if done[name] else float("inf"))
    cells = []
    for name in names:
        runs, failed = done[name], len(of_name[name]) - len(done[name])
        told = TRAINABLE[name].name + (f" ({failed} of {len(of_name[name])} runs failed)" if failed else "")
        if not runs:
            cells.append([told, *[""] * (len(FINAL_TITLES) - 1)])
            continue
        bits = [row["bits_per_base"] for row in runs]
        cells.append(
            [
                told,
                f"{runs[0]['parameters']:,}",
                runs[0]["dtype"],
                f"{runs[0]['learning_rate']:g}",
                f"{_mean_of(runs, 'steps'):,.0f}",
                significant(_mean_of(runs, "bases_per_second")),
                f"{statistics.fmean(bits):.4f}",
                f"{min(bits):.4f} to {max(bits):.4f}",
                f"{_mean_of(runs, 'bits_per_base_both_strands'):.4f}",
            ]
        )
    return cells
