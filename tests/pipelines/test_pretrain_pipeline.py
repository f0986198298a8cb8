"""``genosparse pretrain`` as a user runs it: real processes, real kills."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb
from wandb_files import wandb_file

from genosparse.encoder import Encoder
from genosparse.pretraining.loop import TIMED_COLUMNS

COMMAND = [sys.executable, "-m", "genosparse.cli", "pretrain"]
SMALL = [
    "model=tiny", "data.context=128", "trainer.max_steps=30", "trainer.batch_bases=1024", "trainer.checkpoint_every=5",
    "trainer.log_every=1", "trainer.validate_every=10", "threads=1",
]  # fmt: skip


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "ref.fa"
    path.write_text("".join(f">{name}\n{''.join(random.choice(list('ACGT'), 6000))}\n" for name in ("one", "two")))
    return path


def pretrain(folder: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def contents(run_dir: Path) -> dict[str, object]:
    """Every file of a run, with the clock's columns of the table left out."""
    files: dict[str, object] = {}
    for path in sorted(run_dir.rglob("*")):
        if path.is_dir():
            continue
        if path.suffix == ".csv":
            with path.open(newline="") as file:
                files[path.name] = [
                    {name: value for name, value in row.items() if name not in TIMED_COLUMNS}
                    for row in csv.DictReader(file)
                ]
        else:
            files[str(path.relative_to(run_dir))] = path.read_bytes()
    return files


def test_run_ends_with_model_card_curve_and_metrics(reference: Path) -> None:
    run = pretrain(reference.parent, "data.genome=ref.fa", *SMALL, "run_dir=out", "data.validation=[two]")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # no bar where there is no terminal
    assert "interpolated k-mers" in run.stdout
    out = reference.parent / "out"
    model = ["model/README.md", "model/config.json", "model/model.safetensors"]
    assert sorted(contents(out)) == ["loss_curve.png", "metrics.csv", "metrics.json", *model, "run.json"]
    assert Encoder.from_pretrained(out / "model").config.trained_context == 128
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["step"] == 30
    assert 1.9 < metrics["model"]["bits_per_base"] < 2.2
    assert set(metrics["baselines_bits_per_base"]) >= {"best_kmer", "interpolated", "kmer_1", "kmer_6"}
    card = (out / "model" / "README.md").read_text()
    for figure in ("ref.fa: 12,000 bases", "contigs two", f"{metrics['model']['bits_per_base']:.4f}", "negative means"):
        assert figure in card
    assert (out / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    rows = contents(out)["metrics.csv"]
    assert isinstance(rows, list)
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 31)]
    again = pretrain(reference.parent, "data.genome=ref.fa", *SMALL, "run_dir=out", "data.validation=[two]")
    assert again.returncode == 0
    assert "there already" in again.stdout


def test_killed_runs_end_with_the_same_bytes(reference: Path) -> None:
    """SIGKILL at several moments, then the same command to the end; SIGINT and SIGTERM save first."""
    arguments = ["data.genome=ref.fa", *SMALL]
    whole = pretrain(reference.parent, *arguments, "run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    table = reference.parent / "parts" / "metrics.csv"
    for stop, at_step in (
        (signal.SIGKILL, 3),
        (signal.SIGKILL, 8),
        (signal.SIGINT, 12),
        (signal.SIGTERM, 17),
        (signal.SIGKILL, 24),
    ):
        process = subprocess.Popen(
            [*COMMAND, *arguments, "run_dir=parts"],
            cwd=reference.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (table.exists() and len(table.read_text().splitlines()) > at_step):
            time.sleep(0.01)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
        if stop == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        elif process.returncode:  # it may have been quicker than we were
            assert process.returncode == 128 + stop
            assert "saved; the same command goes on" in errors
            assert "Traceback" not in errors
    last = pretrain(reference.parent, *arguments, "run_dir=parts")
    assert last.returncode == 0, last.stderr
    assert contents(reference.parent / "parts") == contents(reference.parent / "whole")


def test_other_settings_do_not_resume(reference: Path) -> None:
    arguments = ["data.genome=ref.fa", *SMALL, "run_dir=out"]
    assert pretrain(reference.parent, *arguments, "trainer.max_steps=2").returncode == 0
    changed = pretrain(reference.parent, *arguments, "trainer.max_steps=2", "seed=5")
    assert changed.returncode == 2
    assert "overwrite=true" in changed.stderr
    assert "seed" in changed.stderr
    same = pretrain(reference.parent, *arguments, "trainer.max_steps=2", "threads=2", "logger=csv")
    assert same.returncode == 0
    anew = pretrain(reference.parent, *arguments, "trainer.max_steps=3", "overwrite=true")
    assert anew.returncode == 0, anew.stderr
    assert json.loads((reference.parent / "out" / "metrics.json").read_text())["step"] == 3


def test_no_steps_write_an_untrained_model_and_init_starts_from_one(reference: Path) -> None:
    run = pretrain(reference.parent, "data.genome=ref.fa", "model=tiny", "trainer.max_steps=0", "run_dir=zero")
    assert run.returncode == 0, run.stderr
    start = Encoder.from_pretrained(reference.parent / "zero" / "model")
    assert start.config.trained_context is None
    assert "untrained" in (reference.parent / "zero" / "model" / "README.md").read_text()
    settings = [*SMALL[1:], "trainer.max_steps=1", "trainer.learning_rate=1e-9"]
    run = pretrain(reference.parent, "data.genome=ref.fa", *settings, "init=zero/model", "run_dir=one", "seed=9")
    assert run.returncode == 0, run.stderr
    end = Encoder.from_pretrained(reference.parent / "one" / "model")
    for before, after in zip(start.parameters(), end.parameters(), strict=True):
        assert (before - after).abs().max() < 1e-6


@pytest.mark.parametrize("server", ["own", "of another folder"])
def test_wandb_offline(reference: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    if server != "own":
        wandb.teardown()
        wandb.setup()  # names its server in WANDB_SERVICE
        env["WANDB_SERVICE"] = os.environ["WANDB_SERVICE"]
    run = pretrain(
        reference.parent, "data.genome=ref.fa", *SMALL, "trainer.max_steps=3", "run_dir=out", "logger=wandb", env=env
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    wandb_file(reference.parent / "out", "gradient_norm", "baseline_interpolated")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "missing data.genome="),
        (["data.genome=none.fa"], "none.fa"),
        (["data.genome=empty.fa"], "empty.fa"),
        (["data.genome=not.fa"], "not.fa"),
        (["data.genome=protein.fa"], "protein.fa"),
        (["data.genome=late.fa"], "position"),
        (["data.genome=ref.fa", "trainer.max_step=3"], "trainer.max_steps"),
        (["data.genome=ref.fa", "model=huge"], "huge"),
        (["data.genome=ref.fa", "model.d_model=33"], "d_model=33"),
        (["data.genome=ref.fa", "data.validation=[three]"], "'three'"),
        (["data.genome=ref.fa", "data.context=100000"], "data.context=100000"),
        (["data.genome=ref.fa", "data.regions=none.bed"], "none.bed"),
        (["data.genome=ref.fa", "init=nowhere"], "nowhere"),
        (["data.genome=ref.fa", "device=cuda:99"], "cuda:99"),
        (["data.genome=ref.fa", "data.masking=null"], "data.masking=None"),
        (["data.genome=ref.fa", "trainer=null"], "trainer"),
        (["data.genome=ref.fa", "model.patterns=[{1: 2}]"], "no 1"),
        (["data.genome=ref.fa", "model.d_model=1032"], "head size"),
        (["data.genome=ref.fa", "init=model", "model=tiny"], "leave model= out"),
        (["data.genome=ref.fa", "logger=tensorboard"], "tensorboard"),
        (["data.genome=ref.fa", "trainer.batch_bases=-1"], "trainer.batch_bases=-1"),
        (["data.genome=ref.fa", "run_dir=ref.fa/inside"], "run_dir=ref.fa/inside"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(reference: Path, arguments: list[str], message: str) -> None:
    folder = reference.parent
    (folder / "empty.fa").touch()
    (folder / "not.fa").write_text("chr1\t5\t10\n")
    (folder / "protein.fa").write_text(">p\nMKVLAAGIVELQ\n")
    (folder / "late.fa").write_text(f">a\n{'ACGT' * 2000}E\n")
    before = {path.name for path in folder.iterdir()}
    given = {argument.partition("=")[0] for argument in arguments}
    defaults = [] if "run_dir" in given else ["run_dir=out"]
    defaults += [] if "init" in given else ["model=tiny"]
    run = pretrain(folder, *defaults, *arguments)
    assert run.returncode == 2, run.stderr
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert run.stderr.startswith("genosparse pretrain: error: ")
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    # Indexes beside a FASTA are caches, not outputs.
    assert {path.name for path in folder.iterdir() if path.suffix != ".fai"} == before - {"ref.fa.fai"}


def test_circular_contigs_and_aliases_of_several_genomes(reference: Path) -> None:
    (reference.parent / "more.fa").write_text(f">three\n{'ACGTT' * 200}\n")
    (reference.parent / "names.txt").write_text("NC_1 one\n")
    (reference.parent / "over.bed").write_text("NC_1\t5000\t7000\nthree\t900\t1100\n")
    given = [*SMALL, "data.genome=[ref.fa,more.fa]", "data.aliases=names.txt", "data.regions=over.bed", "run_dir=out"]
    given += ["data.validation=0", "trainer.max_steps=2"]
    run = pretrain(reference.parent, *given, "data.circular=[NC_1,three]")
    assert run.returncode == 0, run.stderr
    run = pretrain(reference.parent, *given, "data.circular=[three]")
    assert run.returncode == 2
    assert "data.regions: interval NC_1:5000-7000(+) reaches past the end of contig 'one'" in run.stderr
    run = pretrain(reference.parent, *given, "data.circular=[four]")
    assert run.returncode == 2
    assert "data.circular names contig 'four', which no genome has" in run.stderr
