"""``genosparse pretrain`` as a user runs it: real processes, real kills."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import wandb
from wandb_files import wandb_file

from genosparse.encoder import Encoder
from genosparse.pipelines.bundle import RECIPES
from genosparse.pipelines.pretrain import main
from genosparse.pretraining.loop import TIMED_COLUMNS

EXPERIMENTS = Path(str(resources.files("genosparse.conf"))) / "experiment"
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
    for figure in (
        "ref.fa: 12,000 bases",
        "0.15 of the bases; 0.8 of those shown as MASK",
        "of step 30",
        "contigs two",
        f"{metrics['model']['bits_per_base']:.4f}",
        "negative means",
    ):
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
    (line,) = began_from(reference.parent / "one" / "model")
    assert line.startswith(f"pretrain-tiny (SHA-256 of the weights {start.fingerprint()[:16]}), untrained: ref.fa")


def began_from(model: Path) -> list[str]:
    """What a model's card says of where it came from."""
    section = (model / "README.md").read_text().partition("## Began from\n\n")[2].partition("\n\n## ")[0]
    return [line.removeprefix("- ") for line in section.splitlines()]


def test_model_goes_on_on_another_genome_with_all_that_training_has(
    reference: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longer of both trained contexts stands, and the card names the models that came before."""
    monkeypatch.chdir(reference.parent)
    Path("more.fa").write_text(f">three\n{'ACGTT' * 400}\n")
    recipe = [
        "trainer.optimizer=muon", "trainer.ema=0.9", "trainer.patience=5", "trainer.spike=50", "data.masking.span=3",
        "trainer.validate_every=2", "trainer.max_steps=4", "data.context=64", "trainer.context_warmup=[[16,0.5]]",
    ]  # fmt: skip
    first = [*SMALL, "data.genome=ref.fa", "trainer.max_steps=1", "run_dir=one"]
    second = [*SMALL[1:], "data.genome=more.fa", "init=one/model", "run_dir=two", "name=second", *recipe]
    third = [*SMALL[1:], "data.genome=ref.fa", "init=two/model", "run_dir=three", "trainer.max_steps=1"]
    for arguments in (first, second, third):
        assert main(arguments) == 0
    models = [Encoder.from_pretrained(f"{name}/model") for name in ("one", "two", "three")]
    assert [model.config.trained_context for model in models] == [128, 128, 128]
    assert len({model.fingerprint() for model in models}) == 3
    lines = began_from(Path("three/model"))
    assert [line.partition(":")[0] for line in lines] == [
        f"{name} (SHA-256 of the weights {model.fingerprint()[:16]}), trained on 128 bases"
        for name, model in zip(("pretrain-tiny", "second"), models[:2], strict=True)
    ]
    assert "ref.fa: 12,000 bases" in lines[0]
    assert "more.fa: 2,000 bases" in lines[1]
    card = Path("two/model/README.md").read_text()
    for told in (
        "64 bases; from 16 bases for 0.5 of the run up to 64", "geometric spans of 3 on average", "Muon for the",
        "of the lowest validation loss, moving average of decay 0.9",
    ):  # fmt: skip
        assert told in card


def test_card_of_another_hand_is_taken_for_text(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reference.parent)
    assert main([*SMALL, "data.genome=ref.fa", "trainer.max_steps=0", "run_dir=zero"]) == 0
    go_on = [*SMALL[1:], "data.genome=ref.fa", "init=zero/model", "trainer.max_steps=1", "overwrite=true"]
    card = Path("zero/model/README.md")
    card.write_text("# <script>x</script> [a](b)\n\n## Data\n\n" + "- some `data`\n" * 100)
    assert main([*go_on, "run_dir=one"]) == 0
    (line,) = began_from(Path("one/model"))
    assert line.startswith(" script x /script   a (b) (SHA-256")
    assert len(line) == 300
    assert line.endswith(" ...")
    card.write_bytes(b"\xff")
    assert main([*go_on, "run_dir=one"]) == 0
    assert began_from(Path("one/model"))[0].startswith("a model without a card (SHA-256")


# Those of the bundled encoders have a model of their own, and are tested with genosparse bundle.
@pytest.mark.parametrize("experiment", sorted({path.stem for path in EXPERIMENTS.glob("*.yaml")} - set(RECIPES)))
def test_experiments_train(reference: Path, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reference.parent)
    settings = [*SMALL, "data.context=1024", "data.genome=ref.fa", "trainer.max_steps=10", f"+experiment={experiment}"]
    assert main(settings) == 0
    (run_dir,) = Path("runs").iterdir()
    assert run_dir.name == f"pretrain-tiny-{experiment.replace('_', '-')}"
    assert Encoder.from_pretrained(run_dir / "model").config.trained_context == 1024
    card = (run_dir / "model" / "README.md").read_text()
    marks = {
        "muon": "Muon for", "span_masks": "spans of 4 on average; 1 of those", "context_warmup": "from 128 bases for",
    }  # fmt: skip
    assert [name for name, mark in marks.items() if mark in card] == [experiment]


def test_sweep_trains_one_model_for_each_learning_rate(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the README, small."""
    monkeypatch.chdir(reference.parent)
    sweep = ["-m", *SMALL, "data.genome=ref.fa", "trainer.max_steps=3", "trainer.learning_rate=0.002,0.004"]
    assert main(sweep) == 0
    folders = sorted(path.name for path in Path("runs").iterdir())
    assert folders == [f"pretrain-tiny,trainer.learning_rate={rate}" for rate in ("0.002", "0.004")]
    for rate, folder in zip((0.002, 0.004), folders, strict=True):
        rows = contents(Path("runs") / folder)["metrics.csv"]
        assert isinstance(rows, list)
        # Step 2 of 3: a cosine's way from the warmup's end on.
        along = (2 / 3 - 0.05) / 0.95
        expected = rate * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * along)))
        assert float(rows[1]["learning_rate"]) == pytest.approx(expected)


def test_settings_of_the_recipe_are_part_of_the_run(
    reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(reference.parent)
    arguments = [*SMALL, "data.genome=ref.fa", "trainer.max_steps=1", "run_dir=out"]
    assert main(arguments) == 0
    for changed in (
        "trainer.optimizer=muon", "trainer.muon_learning_rate=0.001", "trainer.muon_momentum=0.9", "trainer.ema=0.9",
        "trainer.context_warmup=[[64,0.5]]", "trainer.patience=3", "data.masking.span=2",
        "data.masking.span_lengths=fixed",
    ):  # fmt: skip
        assert main([*arguments, changed]) == 2
        assert changed.partition("=")[0].rpartition(".")[2] in capsys.readouterr().err
    for aside in ("trainer.spike=20", "trainer.spike_steps=5"):  # a run that they end may go on without them
        assert main([*arguments, aside]) == 0
        assert "there already" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        [],
        [
            "trainer.optimizer=muon",
            "trainer.ema=0.99",
            "trainer.context_warmup=[[32,0.3],[64,0.3]]",
            "trainer.patience=9",
        ],
    ],
    ids=["adamw", "muon"],
)
def test_kills_at_any_step_change_no_byte(reference: Path, recipe: list[str]) -> None:
    arguments = [*SMALL, "data.genome=ref.fa", "trainer.max_steps=60", "trainer.checkpoint_every=3", *recipe]
    whole = pretrain(reference.parent, *arguments, "run_dir=whole")
    assert whole.returncode == 0, whole.stderr
    table = reference.parent / "parts" / "metrics.csv"
    random, killed = np.random.default_rng(len(recipe)), 0
    for at_step in sorted(random.integers(1, 58, 8).tolist()):
        process = subprocess.Popen([*COMMAND, *arguments, "run_dir=parts"], cwd=reference.parent)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (table.exists() and len(table.read_text().splitlines()) > at_step):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed == 8
    last = pretrain(reference.parent, *arguments, "run_dir=parts")
    assert last.returncode == 0, last.stderr
    assert contents(reference.parent / "parts") == contents(reference.parent / "whole")


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
    names = ("gradient_norm", "baseline_interpolated", "input_wait", "activation_rms_1", "activation_rms_2", "context")
    wandb_file(reference.parent / "out", *names)


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
