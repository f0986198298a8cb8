"""The training loop: schedule, learning, resume."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError, GenosparseError, ModelFormatError
from genosparse.loggers import CsvTable, Logger
from genosparse.pretraining import Corpus, HeldOut, MaskingSettings, TrainerSettings, TrainingResult, evaluate, train
from genosparse.pretraining.loop import COLUMNS, TIMED_COLUMNS
from genosparse.pretraining.masking import MaskedWindows
from genosparse.progress import ProgressBar
from genosparse.readers import Genome


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A repeat of period 12 with some noise: easy to learn from the bases around."""
    random = np.random.default_rng(0)
    letters = np.array(list("ACGTTGCAAGTC" * 700))
    noisy = random.random(len(letters)) < 0.1
    letters[noisy] = random.choice(list("ACGT"), noisy.sum())
    (tmp_path / "ref.fa").write_text(f">one\n{''.join(letters)}\n")
    with Genome(tmp_path / "ref.fa") as genome:
        return Corpus([genome], validation=0.2, context=64)


def make_encoder() -> Encoder:
    torch.manual_seed(0)
    pattern = SparsePattern(window=13, stride=32, num_global=1)
    return Encoder(EncoderConfig(d_model=32, num_layers=2, num_heads=2, patterns=(pattern,), max_length=64))


def run(
    corpus: Corpus, run_dir: Path, settings: TrainerSettings, encoder: Encoder | None = None, precision: str = "float32"
) -> tuple[Encoder, TrainingResult, list[dict[str, str]]]:
    run_dir.mkdir(exist_ok=True)
    encoder = encoder or make_encoder()
    tables: list[CsvTable] = []

    def open_log(last_step: int) -> Logger:
        tables.append(CsvTable(run_dir / "metrics.csv", COLUMNS, last_step=last_step))
        return Logger(tables[0])

    examples = MaskedWindows(corpus, MaskingSettings(), seed=1)
    result = train(
        encoder, examples, settings, run_dir=run_dir, context=64, precision=precision,
        held_out=HeldOut(corpus, 0), open_log=open_log, bar=ProgressBar(),
    )  # fmt: skip
    return encoder, result, tables[0].rows()


def make_settings(**changes: object) -> TrainerSettings:
    values = {
        "max_steps": 12, "batch_bases": 512, "learning_rate": 3e-3, "log_every": 1, "validate_every": 4,
        "checkpoint_every": 3, **changes,
    }  # fmt: skip
    return TrainerSettings(**values)  # type: ignore[arg-type]  # a plain dictionary


def untimed(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name not in TIMED_COLUMNS} for row in rows]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_learns_a_repeat(corpus: Corpus, tmp_path: Path, precision: str) -> None:
    settings = make_settings(
        max_steps=250, batch_bases=1024, learning_rate=1e-2, validate_every=1000, checkpoint_every=1000
    )
    encoder, result, rows = run(corpus, tmp_path / "run", settings, precision=precision)
    metrics = evaluate(encoder, HeldOut(corpus, 0), batch_windows=16)
    # A tenth of the bases is noise, a quarter of it the true base: 0.925 is the best accuracy there is.
    assert metrics["bits_per_base"] < 1.2
    assert metrics["accuracy"] > 0.7
    assert (result.step, result.bases, result.stopped_by) == (250, 250 * 1024, None)
    assert float(rows[0]["loss"]) > 1.3


def test_resumed_run_equals_an_uninterrupted_one(corpus: Corpus, tmp_path: Path) -> None:
    whole, _, expected = run(corpus, tmp_path / "whole", make_settings())
    # Ended after step 8, with a checkpoint of step 6: what came after it is thrown away and done again.
    stopped = make_encoder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerSettings, "progress", _stop_after(8, TrainerSettings.progress))
        run(corpus, tmp_path / "other", make_settings(checkpoint_every=6), stopped)
    resumed, result, rows = run(corpus, tmp_path / "other", make_settings(checkpoint_every=6))
    assert result.step == 12
    assert untimed(rows) == untimed(expected)
    assert resumed.fingerprint() == whole.fingerprint()


def _stop_after(last_step: int, progress: object) -> object:
    def stopping(settings: TrainerSettings, step: int, minutes: float) -> float:
        return 1.0 if step >= last_step else progress(settings, step, minutes)  # type: ignore[operator]

    return stopping


def test_accumulation_takes_the_same_examples(corpus: Corpus, tmp_path: Path) -> None:
    _, _, once = run(corpus, tmp_path / "once", make_settings(max_steps=1))
    _, _, twice = run(corpus, tmp_path / "twice", make_settings(max_steps=1, batch_bases=256, accumulate=2))
    # The mean of two halves with nearly equal numbers of targets.
    assert float(once[0]["loss"]) == pytest.approx(float(twice[0]["loss"]), abs=0.02)
    assert once[0]["bases"] == twice[0]["bases"] == "512"


def test_time_limit_ends_the_run_at_the_end_of_its_schedule(corpus: Corpus, tmp_path: Path) -> None:
    _, result, rows = run(
        corpus, tmp_path / "run", make_settings(max_steps=None, max_minutes=0.03, validate_every=1000)
    )
    assert result.step > 3
    assert 0.03 <= result.minutes < 0.2
    assert float(rows[-1]["learning_rate"]) < 0.5 * 3e-3


def test_schedule() -> None:
    settings = TrainerSettings(max_steps=100, max_minutes=10, learning_rate=1e-2, warmup=0.1, final_learning_rate=0.1)
    assert settings.progress(50, 8) == 0.5  # the clock has no say where the steps are given
    assert settings.progress(200, 0) == 1.0
    assert [settings.is_over(*at) for at in ((99, 9.9), (100, 1), (50, 10))] == [False, True, True]
    assert TrainerSettings(max_minutes=10).progress(50, 8) == 0.8
    assert settings.learning_rate_at(0.0) == 0.0
    assert settings.learning_rate_at(0.05) == pytest.approx(5e-3)
    assert settings.learning_rate_at(0.1) == pytest.approx(1e-2)
    assert settings.learning_rate_at(0.55) == pytest.approx(1e-2 * 0.55)
    assert settings.learning_rate_at(1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "both null"),
        ({"max_steps": -1}, r"trainer\.max_steps=-1"),
        ({"max_steps": 5, "batch_bases": 0}, r"trainer\.batch_bases=0"),
        ({"max_steps": 5, "learning_rate": "fast"}, r"trainer\.learning_rate=fast"),
        ({"max_minutes": math.nan}, r"trainer\.max_minutes=nan"),
    ],
)
def test_settings_that_cannot_be_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainerSettings(**values)  # type: ignore[arg-type]  # wrong on purpose


def test_divergence_stops_the_run_and_keeps_the_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "run", make_settings(max_steps=3))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    broken = make_encoder()

    def poison(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan

    broken.head.register_forward_hook(poison)
    with pytest.raises(GenosparseError, match="loss of step 4 is nan"):
        run(corpus, tmp_path / "run", make_settings(), broken)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_damaged_checkpoint_is_named(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "run", make_settings(max_steps=3))
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelFormatError, match=r"checkpoint\.pt is damaged"):
        run(corpus, tmp_path / "run", make_settings())
