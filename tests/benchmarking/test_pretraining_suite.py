"""The suite pretraining: the same time, windows and sites for all, rates chosen at equal cost."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.benchmarking.pretraining import PretrainingSuite, final_rows
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.trainable import TrainableShape
from genosparse.errors import ConfigError


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """A motif of 7 bases over and over: what can be learned in no time, by whatever learns at all."""
    path = tmp_path / "ref.fa"
    random = np.random.default_rng(0)
    path.write_text(f">one\n{'ACCGTTA' * 1500}{''.join(random.choice(list('ACGT'), 50))}{'ACCGTTA' * 250}\n")
    return path


def suite_with(genome: Path, **settings: Any) -> PretrainingSuite:
    pattern = SparsePattern(window=8, stride=32, num_global=1)
    small: dict[str, Any] = {
        "genome": str(genome), "folder": genome.parent / "runs", "rates": (1e-6, 2e-2), "sweep_minutes": 0.003,
        "minutes": 0.012, "seeds": (0,), "batch_bases": 1024, "clock": "processor",
        "shape": TrainableShape(width=16, layers=2, heads=2, kv_heads=1, pattern=pattern, context=64),
    }  # fmt: skip
    return PretrainingSuite(**{**small, **settings})


def measured(suite: PretrainingSuite) -> list[Row]:
    rows: list[Row] = []
    for unit in suite.units():
        rows += suite.measure(unit, rows)
    return rows


def test_all_learn_at_the_better_rate_and_are_measured_alike(genome: Path) -> None:
    suite = suite_with(genome)
    rows = measured(suite)
    assert [row["phase"] for row in rows] == ["baselines"] * 2 + ["precision"] * 6 + ["rate"] * 6 + ["run"] * 3
    assert len({tuple(row) for row in rows}) == 1
    assert {row["sites"] for row in rows if row["phase"] in ("baselines", "rate", "run")} == {len(suite_sites(suite))}
    for row in rows:
        assert row["status"] == "measured", row
        if row["phase"] == "run":
            assert row["learning_rate"] == 2e-2  # a millionth learns nothing
            assert row["bits_per_base"] < 1.6
            assert row["bases"] == row["steps"] * 1024
            assert 0.012 <= row["minutes"] < 0.05
        if row["phase"] == "rate" and row["learning_rate"] == 1e-6:
            assert row["bits_per_base"] > 1.9
    faster = {}
    for row in rows:
        if row["phase"] == "precision":
            best = faster.setdefault(row["implementation"], row)
            faster[row["implementation"]] = max(best, row, key=lambda each: each["bases_per_second"])
    assert {row["implementation"]: row["dtype"] for row in rows if row["phase"] == "run"} == {
        name: row["dtype"] for name, row in faster.items()
    }
    table = suite.table(rows)
    assert "ModernBERT" in table
    assert "interpolated" in table
    suite.write(genome.parent, rows)
    assert not (genome.parent / "runs").exists()


def suite_sites(suite: PretrainingSuite) -> np.ndarray[Any, Any]:
    with suite._held_out() as (_, held_out):
        return held_out.contexts


def test_turns() -> None:
    """By hand: two rates, two seeds, each pass over the encoders in the other direction."""
    suite = object.__new__(PretrainingSuite)
    object.__setattr__(suite, "rivals", ("dilated",))
    object.__setattr__(suite, "rates", (1e-3, 2e-3))
    object.__setattr__(suite, "seeds", (0, 1))
    for name in ("minutes", "sweep_minutes"):
        object.__setattr__(suite, name, 1.0)
    assert [unit.name for unit in suite.units()] == [
        "baselines", "precision genosparse", "precision dilated",
        "rate genosparse 0.001", "rate dilated 0.001", "rate dilated 0.002", "rate genosparse 0.002",
        "run genosparse 0", "run dilated 0", "run dilated 1", "run genosparse 1",
    ]  # fmt: skip


def test_what_diverges_is_told_and_the_table_is_by_the_mean() -> None:
    def row(name: str, seed: int, bits: float | None) -> Row:
        return {
            "phase": "run", "implementation": name, "seed": seed, "bits_per_base": bits, "parameters": 1000,
            "dtype": "float32", "learning_rate": 0.004, "steps": 10, "bases_per_second": 100,
            "bits_per_base_both_strands": bits, "status": "diverged" if bits is None else "measured",
        }  # fmt: skip

    rows = [row("genosparse", 0, 1.9), row("genosparse", 1, 1.8), row("dilated", 0, 1.84), row("dilated", 1, None)]
    rows.append(row("modernbert", 0, None))
    cells = final_rows(rows)
    assert [line[0] for line in cells] == [
        "dilated convolutions (1 of 2 runs failed)", "genosparse", "ModernBERT (1 of 1 runs failed)",
    ]  # fmt: skip
    assert cells[1][6:] == ["1.8500", "1.8000 to 1.9000", "1.8500"]
    assert set(cells[2][1:]) == {""}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"rivals": ("bert",)}, "bert is unknown; choose from genosparse, modernbert, dilated"),
        ({"rates": ()}, "rates="),
        ({"seeds": ()}, "seeds="),
        ({"minutes": 0.0}, "minutes=0"),
        ({"rates": (2.0,)}, "trainer.learning_rate=2"),
        ({"validation": 0.999}, "data.context=64"),
    ],
)
def test_settings_that_cannot_be(genome: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        suite_with(genome, **settings)


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_in_the_middle(genome: Path) -> None:
    command = [
        sys.executable, "-m", "genosparse.cli", "benchmark", "suite=pretraining", "genome=ref.fa", "rivals=[]",
        "rates=[0.01]", "minutes=0.3", "seeds=[0]", "context=64", "batch_bases=1024", "width=16", "layers=1", "heads=2",
        "kv_heads=1", "device=cpu", "threads=1",
    ]  # fmt: skip
    folder = genome.parent / "runs" / "benchmark-pretraining"
    process = subprocess.Popen(command, cwd=genome.parent, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(4)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    (checkpoint,) = folder.glob("runs/*/checkpoint.pt")
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert step > 0
    started = time.monotonic()
    subprocess.run(command, cwd=genome.parent, check=True, capture_output=True, timeout=120)
    (run,) = [row for row in json.loads((folder / "results.json").read_text())["rows"] if row["phase"] == "run"]
    assert run["steps"] > step
    assert 60 * run["minutes"] > time.monotonic() - started - 15  # the minutes are of both starts
    assert run["minutes"] == pytest.approx(0.3, abs=0.05)
    assert not (folder / "runs").exists()
