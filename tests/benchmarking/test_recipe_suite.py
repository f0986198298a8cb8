"""The suite recipes: variants of genosparse pretrain itself, all of them in one table."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genosparse.benchmarking.recipes import VARIANTS, RecipeSuite
from genosparse.benchmarking.results import Row
from genosparse.cli import main
from genosparse.errors import ConfigError
from genosparse.pipelines import pretrain


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 4000))
    Path("ref (it's).fa").write_text(f">one\n{bases}\n")
    return tmp_path


@pytest.mark.slow
def test_runs_are_those_of_pretrain_and_what_fails_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    """The model tiny has one KV head, which two strands cannot share."""
    settings = 'settings=["model=tiny","data.context=64","trainer.max_steps=3","trainer.batch_bases=512"]'
    given = ["genome=ref (it's).fa", "recipes=[shared-strands]", "seeds=[7]", "threads=1", "minutes=5", settings]
    assert main(["benchmark", "suite=recipes", "device=cpu", *given]) == 0, capfd.readouterr().err
    folder = Path("runs/benchmark-recipes")
    baseline, failed = json.loads((folder / "results.json").read_text())["rows"]
    metrics = json.loads((folder / "runs/baseline-7/metrics.json").read_text())
    assert (baseline["variant"], baseline["status"], baseline["steps"], baseline["bases"]) == (
        "baseline",
        "measured",
        3,
        1536,
    )
    assert baseline["bits_per_base"] == metrics["model"]["bits_per_base"]
    assert baseline["interpolated"] == metrics["baselines_bits_per_base"]["interpolated"]
    assert (failed["variant"], failed["status"], failed["bits_per_base"]) == ("shared-strands", "failed", None)
    assert "num_kv_heads=1 cannot be shared between two strands" in failed["note"]
    table = (folder / "recipes.md").read_text()
    assert "cannot be shared" in table
    assert re.search(rf"\| baseline \| {baseline['bits_per_base_both_strands']:.4f} ", table)
    assert "failed" in capfd.readouterr().out
    # As pretrain would have it of itself.
    assert pretrain.main(
        ["data.genome=ref (it's).fa", "model=tiny", "data.context=64", "trainer.max_steps=3", "trainer.batch_bases=512",
         "trainer.max_minutes=5", "device=cpu", "threads=1", "seed=7", "run_dir=own"]
    ) == 0  # fmt: skip
    assert json.loads(Path("own/metrics.json").read_text()) == metrics


def row(variant: str, seed: int, bits: float | None, **values: Any) -> Row:
    return {
        "variant": variant, "settings": list(VARIANTS[variant]), "seed": seed, "note": "no", "parameters": 1000,
        "steps": 10, "bases": 1000, "bits_per_base": bits, "bits_per_base_both_strands": bits, "interpolated": 1.95,
        "status": "failed" if bits is None else "measured", **values,
    }  # fmt: skip


def test_the_table_has_the_losers_too(tmp_path: Path) -> None:
    suite = RecipeSuite(genomes=("ref (it's).fa",), folder=tmp_path / "runs", variants=("muon", "tied-head", "spans"))
    rows = [row("baseline", 0, 1.90), row("baseline", 1, 1.92), row("muon", 0, 1.88), row("muon", 1, 1.84)]
    rows += [row("spans", 0, 1.95), row("spans", 1, 1.97), row("tied-head", 0, None), row("tied-head", 1, None)]
    (path,) = suite.write(tmp_path, rows)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in path.read_text().splitlines()[2:]]
    assert [line[0] for line in lines[2:]] == ["muon", "baseline", "spans", "tied-head (2 of 2 runs failed)"]
    assert lines[2][1:4] == ["1.8600", "1.8400 to 1.8800", "+0.0500"]
    assert lines[3][3] == ""
    assert lines[4][3] == "-0.0500"
    assert lines[5][-1] == "model.head=tied: no"
    assert "interpolated k-mers 1.9500" in path.read_text()


def test_turned_order_and_commands(tmp_path: Path) -> None:
    suite = RecipeSuite(genomes=("a.fa", "b.fa"), folder=tmp_path, variants=("muon",), settings_of_all=("model=base",))
    assert [unit.name for unit in suite.units()] == ["baseline 0", "muon 0", "muon 1", "baseline 1"]
    command = suite.command("muon", 1, tmp_path / "x")
    assert command[:2] == ["pretrain", "data.genome=['a.fa','b.fa']"]
    assert command.index("model=base") < command.index("trainer.optimizer=muon")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name: str) -> None:
    given = ["data.genome=ref (it's).fa", "trainer.max_steps=2", "threads=1", "run_dir=out", "data.validation=0.3"]
    assert pretrain.main([*given, *VARIANTS[name]]) == 0


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"variants": ("wider",)}, "wider is unknown; choose from baseline, rate-0.30"),
        ({"seeds": ()}, "seeds="),
        ({"minutes": 0.0}, "minutes=0"),
        ({"settings_of_all": ("muon",)}, "settings: muon is none of pretrain"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RecipeSuite(genomes=("a.fa",), folder=tmp_path, **settings)
