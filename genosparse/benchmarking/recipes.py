"""The suite ``recipes``: variants of a pretraining, each by ``genosparse pretrain`` itself, for the same minutes.

The table has all of them, those that lost and those that could not be run too.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import markdown_table, text_table
from genosparse.commands import run_genosparse
from genosparse.encoder import Encoder
from genosparse.errors import ConfigError
from genosparse.outputs import atomic_output, fingerprint

__all__ = ["BASELINE", "VARIANTS", "RecipeSuite"]

BASELINE = "baseline"
TABLE_FILE = "recipes.md"
_STOPPED = (130, 143)  # exit statuses after SIGINT and SIGTERM

_MINI = "window:64,num_global:1"
# By name, what is set beside the baseline: the model mini, 15 % of the bases to predict, AdamW.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    BASELINE: (),
    "rate-0.30": ("data.masking.rate=0.3",),
    "rate-0.50": ("data.masking.rate=0.5",),
    "spans": ("data.masking.span=4",),
    "mask-only": ("data.masking.mask_share=1.0", "data.masking.random_share=0.0"),
    "muon": ("trainer.optimizer=muon",),
    "convolution": ("model.convolution=9",),
    # Half the weights and, of each strand, half the width: about the time of the baseline a step.
    "shared-strands": ("model.strands=shared",),
    # As many weights as the baseline, and about twice its time a step.
    "shared-strands-wide": (
        "model.strands=shared", "model.d_model=256", "model.num_heads=8", "model.num_kv_heads=4",
    ),
    "tied-head": ("model.head=tied",),
    "staggered": (f"model.patterns=[{{{_MINI},stride:128,stagger:true}}]",),
    "window-alone": (f"model.patterns=[{{{_MINI}}}]",),
    "third-strided": (f"model.patterns=[{{{_MINI}}},{{{_MINI}}},{{{_MINI},stride:128}}]",),
    "context-warmup": ("trainer.context_warmup=[[128,0.1],[256,0.1],[512,0.1]]",),
    "soft-mask-0.1": ("data.masking.soft_mask_weight=0.1",),
    "sqrt-sampling": ("data.sampling=sqrt",),
}  # fmt: skip


@dataclass(frozen=True)
class RecipeSuite:
    """Variants of a pretraining.

    Args:
        genomes: What is trained on.
        folder: Has the runs.
        minutes: Training of each run.
        seeds: Each variant is trained with each of them.
        variants: Names of ``VARIANTS``; the baseline is always among them.
        settings: Further settings of pretrain, the same for all.
        threads: Of each run.
        device: Of each run.

    Raises:
        ConfigError: A value cannot be used.
    """

    genomes: tuple[str, ...]
    folder: Path
    minutes: float = 20.0
    seeds: tuple[int, ...] = (0, 1)
    variants: tuple[str, ...] = tuple(VARIANTS)
    settings_of_all: tuple[str, ...] = ()
    threads: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in self.variants:
            if name not in VARIANTS:
                raise ConfigError(f"recipes: {name} is unknown; choose from {', '.join(VARIANTS)}")
        if not self.seeds:
            raise ConfigError("seeds=[] names none; give one or more")
        if self.minutes <= 0:
            raise ConfigError(f"minutes={self.minutes}: expected a number above 0")
        for setting in self.settings_of_all:
            if "=" not in setting:
                raise ConfigError(f'settings: {setting} is none of pretrain; give some as ["data.context=2048"]')

    @property
    def names(self) -> list[str]:
        """The variants, the baseline first."""
        return list(dict.fromkeys([BASELINE, *self.variants]))

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        return {
            "genomes": [fingerprint(path) for path in self.genomes],
            "minutes": self.minutes,
            "seeds": list(self.seeds),
            "variants": {name: list(VARIANTS[name]) for name in self.names},
            "settings": list(self.settings_of_all),
            "threads": self.threads,
            "device": self.device,
        }

    def units(self) -> list[Unit]:
        """One unit per variant and seed; every other seed in turned order, as the machine may slow down."""
        return [
            Unit(f"{name} {seed}", self.minutes)
            for number, seed in enumerate(self.seeds)
            for name in self.names[:: -1 if number % 2 else 1]
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Train one variant with one seed, or go on with it."""
        name, seed = unit.name.split()
        self.folder.mkdir(exist_ok=True)
        run_dir, log = self.folder / f"{name}-{seed}", self.folder / f"{name}-{seed}.log"
        row: Row = {
            "variant": name, "settings": list(VARIANTS[name]), "seed": int(seed), "status": "measured", "note": "",
            "parameters": None, "minutes": None, "steps": None, "bases": None, "accuracy": None,
            "bits_per_base": None, "bits_per_base_both_strands": None, "interpolated": None, "best_kmer": None,
        }  # fmt: skip
        status = run_genosparse(*self.command(name, int(seed), run_dir), log=log)
        if status in _STOPPED:
            raise KeyboardInterrupt
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return [row | {"status": "failed", "note": lines[-1] if lines else f"exit status {status}"}]
        return [row | _outcome(run_dir)]

    def command(self, name: str, seed: int, run_dir: Path) -> list[str]:
        """The command of one run; what a variant sets goes before what all have."""
        quoted = ",".join("'" + path.replace("\\", "\\\\").replace("'", "\\'") + "'" for path in self.genomes)
        return [
            "pretrain",
            f"data.genome=[{quoted}]",
            f"trainer.max_minutes={self.minutes:g}",
            f"device={self.device}",
            *([] if self.threads is None else [f"threads={self.threads}"]),
            *self.settings_of_all,
            *VARIANTS[name],
            f"seed={seed}",
            f"run_dir={run_dir}",
        ]

    def table(self, rows: Sequence[Row]) -> str:
        """Variants by bits per base, the best first."""
        return f"{self._heading(rows)}\n\n{text_table(_TITLES, _cells(rows), left=_LEFT)}"

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Write the table as Markdown too."""
        with atomic_output(run_dir / TABLE_FILE) as file:
            text = f"{self._heading(rows)}\n\n{markdown_table(_TITLES, _cells(rows), left=_LEFT)}\n"
            file.write_text(text, encoding="utf-8")
        return [run_dir / TABLE_FILE]

    def _heading(self, rows: Sequence[Row]) -> str:
        kmers = next((row["interpolated"] for row in rows if row["interpolated"] is not None), None)
        beside = "" if kmers is None else f"; interpolated k-mers {kmers:.4f}"
        also = f", all with {' '.join(self.settings_of_all)}" if self.settings_of_all else ""
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"{self.minutes:g} minutes of training each, seeds {seeds}{also}; held-out bits per base, mean of both "
            f"strands unless said{beside}"
        )


_TITLES = (
    "variant", "bits per base", "lowest to highest", "less than the baseline", "one strand", "parameters", "steps",
    "bases seen", "settings",
)  # fmt: skip
_LEFT = ("variant", "settings")


def _outcome(run_dir: Path) -> Row:
    """What a finished run says of itself."""
    found = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file)]
    baselines, model = found["baselines_bits_per_base"], found["model"]
    if not model:
        raise ConfigError("nothing is held out, so that variants cannot be compared; set data.validation=")
    return {
        "parameters": Encoder.from_pretrained((run_dir / "model").absolute()).num_parameters,
        "minutes": round(seconds[-1] / 60, 3) if seconds else None,  # up to the last row
        "steps": found["step"],
        "bases": found["bases"],
        "accuracy": model["accuracy"],
        "bits_per_base": model["bits_per_base"],
        "bits_per_base_both_strands": model["bits_per_base_both_strands"],
        "interpolated": baselines["interpolated"],
        "best_kmer": baselines["best_kmer"],
    }


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    of_name: dict[str, list[Row]] = {}
    for row in rows:
        of_name.setdefault(row["variant"], []).append(row)
    both = {
        name: [row["bits_per_base_both_strands"] for row in runs if row["status"] == "measured"]
        for name, runs in of_name.items()
    }
    baseline = statistics.fmean(both[BASELINE]) if both.get(BASELINE) else None
    cells = []
    for name in sorted(of_name, key=lambda name: statistics.fmean(both[name]) if both[name] else float("inf")):
        runs = [row for row in of_name[name] if row["status"] == "measured"]
        failed = [row for row in of_name[name] if row["status"] != "measured"]
        told = name + (f" ({len(failed)} of {len(of_name[name])} runs failed)" if failed else "")
        settings = " ".join(of_name[name][0]["settings"])
        if not runs:
            cells.append([told, *[""] * 7, f"{settings}: {failed[0]['note']}"])
            continue
        mean = statistics.fmean(both[name])
        cells.append(
            [
                told,
                f"{mean:.4f}",
                f"{min(both[name]):.4f} to {max(both[name]):.4f}",
                "" if baseline is None or name == BASELINE else f"{baseline - mean:+.4f}",
                f"{statistics.fmean(row['bits_per_base'] for row in runs):.4f}",
                f"{runs[0]['parameters']:,}",
                f"{statistics.fmean(row['steps'] for row in runs):,.0f}",
                f"{statistics.fmean(row['bases'] for row in runs):,.0f}",
                settings,
            ]
        )
    return cells
