"""The training loop: schedule, learning, resume."""

import itertools
import math
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError, GenosparseError, GenosparseWarning, ModelFormatError, OutputError
from genosparse.loggers import CsvTable, Logger
from genosparse.pretraining import Corpus, HeldOut, MaskingSettings, TrainerSettings, TrainingResult, evaluate, train
from genosparse.pretraining.loop import TIMED_COLUMNS, columns
from genosparse.pretraining.masking import MaskedWindows
from genosparse.readers import Genome


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """A repeat of period 12 with some noise: easy to learn from the bases around."""
    random = np.random.default_rng(0)
    letters = np.array(list("ACGTTGCAAGTC" * 700))
    noisy = random.random(len(letters)) < 0.1
    letters[noisy] = random.choice(list("ACGT"), noisy.sum())
    (tmp_path / "ref.fa").write_text(f">one\n{''.join(letters)}\n")
    return open_corpus(tmp_path / "ref.fa")


def open_corpus(path: Path) -> Corpus:
    with Genome(path) as genome:
        return Corpus([genome], validation=0.2, context=64)


def make_encoder() -> Encoder:
    torch.manual_seed(0)
    pattern = SparsePattern(window=13, stride=32, num_global=1)
    return Encoder(EncoderConfig(d_model=32, num_layers=2, num_heads=2, patterns=(pattern,), max_length=64))


def run(
    corpus: Corpus,
    run_dir: Path,
    settings: TrainerSettings,
    encoder: Encoder | None = None,
    precision: str = "float32",
    examples: MaskedWindows | None = None,
) -> tuple[Encoder, TrainingResult, list[dict[str, str]]]:
    run_dir.mkdir(exist_ok=True)
    encoder = encoder or make_encoder()
    tables: list[CsvTable] = []

    def open_log(last_step: int) -> Logger:
        tables.append(CsvTable(run_dir / "metrics.csv", columns(2), last_step=last_step))
        return Logger(tables[0])

    examples = examples or MaskedWindows(corpus, MaskingSettings(), seed=1)
    result = train(
        encoder, examples, settings, run_dir=run_dir, context=64, precision=precision,
        held_out=HeldOut(corpus, 0), open_log=open_log,
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


class Killed(BaseException):
    """As sudden as a kill: nothing in the loop catches it."""


def at_pass(encoder: Encoder, number: int, action: Callable[[], None]) -> Encoder:
    """Do something in the encoder's ``number``-th training pass."""
    passes = itertools.count(1)

    def act(module: torch.nn.Module, *_: object) -> None:
        if module.training and next(passes) == number:
            action()

    encoder.register_forward_hook(act)
    return encoder


def kill() -> None:
    raise Killed


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 2, "batch_bases": 256},
        {"workers": 2},
        {"optimizer": "muon", "ema": 0.9, "patience": 3, "spike": 50, "context_warmup": [[16, 0.4], [32, 0.4]]},
    ],
)
def test_resumed_run_equals_an_uninterrupted_one(corpus: Corpus, tmp_path: Path, changes: dict[str, Any]) -> None:
    whole, _, expected = run(corpus, tmp_path / "whole", make_settings(**{**changes, "workers": 0}))
    settings = make_settings(checkpoint_every=6, **changes)
    # Killed in step 9, with a checkpoint of step 6: what came after it is thrown away and done again.
    with pytest.raises(Killed):
        run(corpus, tmp_path / "other", settings, at_pass(make_encoder(), 8 * settings.accumulate + 1, kill))
    assert torch.load(tmp_path / "other" / "checkpoint.pt")["step"] == 6
    # Interrupted in step 8, which is finished and saved.
    interrupted = at_pass(make_encoder(), 2 * settings.accumulate, lambda: os.kill(os.getpid(), signal.SIGINT))
    _, stopped, _ = run(corpus, tmp_path / "other", settings, interrupted)
    assert (stopped.step, stopped.stopped_by) == (8, signal.SIGINT)
    resumed, result, rows = run(corpus, tmp_path / "other", settings)
    assert result.step == 12
    assert untimed(rows) == untimed(expected)
    assert resumed.fingerprint() == whole.fingerprint()


_TRAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_loop import make_encoder, make_settings, open_corpus, run
folder = Path(sys.argv[2])
_, result, _ = run(open_corpus(folder / "ref.fa"), folder / "run", make_settings(max_steps=10**6, workers=2))
print(result.step, result.stopped_by)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_process_group_saves_and_leaves_no_worker(
    corpus: Corpus, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C in a terminal, or a scheduler's SIGTERM, reaches the worker processes too."""
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    table = tmp_path / "run" / "metrics.csv"
    try:
        deadline = time.monotonic() + 90
        while not (table.exists() and len(table.read_text().splitlines()) > 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)  # nobody is left
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, err) == (0, "")
    step, stopped_by = map(int, out.split())
    assert stopped_by == number
    assert torch.load(tmp_path / "run" / "checkpoint.pt")["step"] == step


def test_end_of_training_is_saved(corpus: Corpus, tmp_path: Path) -> None:
    """Whoever is killed while the end is evaluated has no step to do again."""
    trained, _, _ = run(corpus, tmp_path / "run", make_settings(max_steps=5, checkpoint_every=100))
    state = torch.load(tmp_path / "run" / "checkpoint.pt")
    assert state["step"] == 5
    again = at_pass(make_encoder(), 1, kill)
    run(corpus, tmp_path / "run", make_settings(max_steps=5), again)
    assert again.fingerprint() == trained.fingerprint()


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
    assert [settings.windows_per_pass(context) for context in (4096, 5000, 10**6)] == [4, 3, 1]
    assert TrainerSettings(max_steps=1, batch_bases=100, accumulate=3).bases_per_step(30) == 270
    assert TrainerSettings(max_steps=1, batch_bases=100, accumulate=3).bases_per_step(400) == 1200
    assert [settings.is_over(*at) for at in ((99, 9.9), (100, 1), (50, 10))] == [False, True, True]
    assert TrainerSettings(max_minutes=10).progress(50, 8) == 0.8
    assert settings.schedule_at(0.0) == 0.0
    assert settings.schedule_at(0.05) == pytest.approx(0.5)
    assert settings.schedule_at(0.1) == pytest.approx(1.0)
    assert settings.schedule_at(0.55) == pytest.approx(0.55)
    assert settings.schedule_at(1.0) == pytest.approx(0.1)


def test_first_step_trains_and_the_last_ends_the_schedule(corpus: Corpus, tmp_path: Path) -> None:
    settings = make_settings(warmup=0.5, final_learning_rate=0.1)
    _, _, rows = run(corpus, tmp_path / "run", settings)
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[:7] == pytest.approx([3e-3 * share / 6 for share in (1, 2, 3, 4, 5, 6)] + [rates[6]])
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] == pytest.approx(3e-4)


def test_time_limit_that_cuts_a_schedule_is_told(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.warns(GenosparseWarning, match=r"ended training at step \d+ of trainer\.max_steps=1000000"):
        run(corpus, tmp_path / "cut", make_settings(max_steps=10**6, max_minutes=0.005, checkpoint_every=100))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GenosparseWarning)
        run(corpus, tmp_path / "whole", make_settings(max_steps=2, max_minutes=10))


def test_window_longer_than_a_pass_is_told(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.warns(GenosparseWarning, match=r"trainer\.batch_bases=63 is less .* data\.context=64"):
        _, result, _ = run(corpus, tmp_path / "run", make_settings(max_steps=2, batch_bases=63, accumulate=2))
    assert result.bases == 2 * 2 * 64


def test_loss_is_weighted_by_the_soft_mask(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "ref.fa").write_text(f">one\n{''.join(random.choice(list('ACGTacgt'), 3000))}\n")
    corpus, encoder = open_corpus(tmp_path / "ref.fa"), make_encoder()
    with torch.no_grad():
        encoder.head.linear.weight.normal_()
    examples = MaskedWindows(corpus, MaskingSettings(soft_mask_weight=0.1), seed=1)
    tokens, classes, weights = (torch.stack(parts) for parts in zip(*(examples[at] for at in range(4)), strict=True))
    with torch.no_grad():
        log_probs = encoder.base_logits(tokens).log_softmax(-1).double()
    total = sum(
        -float(weights[row, site]) * float(log_probs[row, site, classes[row, site]])
        for row, site in (classes >= 0).nonzero().tolist()
    )
    _, _, rows = run(corpus, tmp_path / "run", make_settings(max_steps=1, batch_bases=256), encoder, examples=examples)
    assert float(rows[0]["loss"]) == pytest.approx(total / float(weights.sum()), rel=1e-5)


@pytest.mark.parametrize("clip, expected", [(1e-3, 1e-3), (1e3, None), (None, None)])
def test_gradient_is_clipped(corpus: Corpus, tmp_path: Path, clip: float | None, expected: float | None) -> None:
    """After one step AdamW's mean of the gradient is (1 - beta1) times the gradient that it was given."""
    encoder = make_encoder()
    torch.nn.init.normal_(encoder.head.linear.weight)
    _, _, rows = run(corpus, tmp_path / "run", make_settings(max_steps=1, clip=clip, beta1=0.5), encoder)
    norm = float(rows[0]["gradient_norm"])
    assert norm > 2  # more than the default allows
    states = torch.load(tmp_path / "run" / "checkpoint.pt")["optimizers"][0]["state"].values()
    given = math.sqrt(sum(float(state["exp_avg"].square().sum()) for state in states)) / 0.5
    assert given == pytest.approx(norm if expected is None else expected, rel=1e-3)


def test_matrices_of_the_blocks_alone_decay(corpus: Corpus, tmp_path: Path) -> None:
    weights = []
    for decay in (0.0, 1.0):
        encoder, _, _ = run(corpus, tmp_path / f"{decay}", make_settings(max_steps=1, weight_decay=decay))
        weights.append(encoder.state_dict())
    changed = {name for name in weights[0] if not weights[0][name].equal(weights[1][name])}
    matrices = ("qkv", "attention_out", "mlp_in", "mlp_out")
    assert changed == {f"blocks.{layer}.{name}.weight" for layer in (0, 1) for name in matrices}


def test_validation_looks_at_so_many_bases(corpus: Corpus, tmp_path: Path) -> None:
    encoder, _, rows = run(
        corpus, tmp_path / "run", make_settings(max_steps=1, validate_every=1, validation_bases=3 * 64 + 63)
    )
    held_out = HeldOut(corpus, 0)
    three, all_of_them = (evaluate(encoder, held_out, batch_windows=8, most_windows=most) for most in (3, None))
    assert float(rows[0]["val_loss"]) == pytest.approx(three["loss"], rel=1e-6)
    assert three["loss"] != pytest.approx(all_of_them["loss"], rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_are_of_the_precision_asked_for(corpus: Corpus, tmp_path: Path, precision: str) -> None:
    encoder, seen = make_encoder(), set()
    encoder.blocks[0].mlp_out.register_forward_hook(
        lambda module, inputs, output: seen.add((module.training, output.dtype))
    )
    run(corpus, tmp_path / "run", make_settings(max_steps=1, validate_every=1), encoder, precision)
    dtype = getattr(torch, precision)
    assert seen == {(True, dtype), (False, dtype)}
    assert encoder.blocks[0].mlp_out.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_steps": None}, "both null"),
        ({"max_steps": -1}, r"trainer\.max_steps=-1: expected a whole number of at least 0"),
        ({"max_steps": "5"}, r"trainer\.max_steps='5'"),
        ({"max_steps": True}, r"trainer\.max_steps=True"),
        ({"batch_bases": 0}, r"trainer\.batch_bases=0: expected a whole number of at least 1"),
        ({"batch_bases": 2.5}, r"trainer\.batch_bases=2\.5"),
        ({"learning_rate": "fast"}, r"trainer\.learning_rate='fast'"),
        ({"learning_rate": None}, r"trainer\.learning_rate=None"),
        ({"weight_decay": True}, r"trainer\.weight_decay=True"),
        ({"optimizer": "lion"}, r"trainer\.optimizer=lion is unknown; choose one of adamw, muon"),
        ({"muon_learning_rate": None}, r"trainer\.muon_learning_rate=None"),
        ({"muon_momentum": 1}, r"trainer\.muon_momentum=1"),
        ({"ema": 1.0}, r"trainer\.ema=1\.0: expected a finite number above 0 and below 1"),
        ({"spike": 0}, r"trainer\.spike=0: expected a finite number above 0"),
        ({"spike_steps": 0}, r"trainer\.spike_steps=0"),
        ({"patience": 0}, r"trainer\.patience=0: expected a whole number of at least 1"),
        ({"context_warmup": 32}, r"trainer\.context_warmup=32: expected pairs of bases and a fraction of the run"),
        ({"context_warmup": []}, r"trainer\.context_warmup=\[\]: expected pairs"),
        ({"context_warmup": [[32.5, 0.1]]}, r"the bases of trainer\.context_warmup=32\.5: expected a whole number"),
        ({"context_warmup": [[32, 1]]}, r"the fraction of trainer\.context_warmup=1"),
        ({"context_warmup": [[32, 0.1], [32, 0.1]]}, r"expected longer windows from stage to stage"),
        ({"context_warmup": [[16, 0.5], [32, 0.5]]}, r"leave nothing of the run for data\.context"),
        ({"max_minutes": math.nan}, r"trainer\.max_minutes=nan: expected a finite number of at least 0"),
        ({"max_minutes": math.inf}, r"trainer\.max_minutes=inf"),
        ({"workers": None}, r"trainer\.workers=None"),
        ({"beta1": 1.0}, r"trainer\.beta1=1\.0: expected a finite number of at least 0 and below 1"),
        ({"beta2": 1}, r"trainer\.beta2=1"),
        ({"clip": 0}, r"trainer\.clip=0: expected a finite number above 0"),
        ({"clip": math.inf}, r"trainer\.clip=inf"),
        ({"activation_checkpointing": "off"}, r"trainer\.activation_checkpointing='off': expected true or false"),
        ({"activation_checkpointing": None}, r"trainer\.activation_checkpointing=None"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_settings(**changes)


def test_settings_at_their_bounds() -> None:
    make_settings(max_steps=0, max_minutes=0, beta1=0, beta2=0.999, clip=None, learning_rate=1, warmup=0, workers=0)


@pytest.mark.parametrize("at", ["loss", "gradient's norm"])
def test_divergence_stops_the_run_and_keeps_weights_and_checkpoint(corpus: Corpus, tmp_path: Path, at: str) -> None:
    run(corpus, tmp_path / "run", make_settings(max_steps=3))
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    broken = make_encoder()

    def poison(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if at == "loss":
            return output * torch.nan
        output.register_hook(lambda gradient: gradient * torch.nan)  # the backward pass alone
        return output

    broken.head.register_forward_hook(poison)
    with pytest.raises(GenosparseError, match=f"{at} of step 4 is nan, with the windows 24 to 31 of the run's seed"):
        run(corpus, tmp_path / "run", make_settings(validate_every=100), broken)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert all(weight.isfinite().all() for weight in broken.parameters())


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_are_refused(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """As torchrun, accelerate launch and mpirun start them."""
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ConfigError, match=r"launched as 2 processes; expected one process for now"):
        run(corpus, tmp_path / "run", make_settings())


def test_damaged_checkpoint_is_named(corpus: Corpus, tmp_path: Path) -> None:
    run(corpus, tmp_path / "run", make_settings(max_steps=3))
    file = tmp_path / "run" / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelFormatError, match=r"checkpoint\.pt is damaged"):
        run(corpus, tmp_path / "run", make_settings())


def test_lack_of_memory_is_not_called_damage(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus, tmp_path / "run", make_settings(max_steps=3))
    for kind in (MemoryError, torch.OutOfMemoryError):
        encoder = make_encoder()
        monkeypatch.setattr(encoder, "load_state_dict", lambda state, kind=kind: (_ for _ in ()).throw(kind("full")))
        with pytest.raises(kind, match="full"):
            run(corpus, tmp_path / "run", make_settings(), encoder)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_moves_the_matrices_and_adamw_the_rest(corpus: Corpus, tmp_path: Path) -> None:
    """A first step of Muon is orthogonal times 0.2 sqrt(rows or columns), one of AdamW plus or minus its rate."""
    settings = make_settings(
        max_steps=1, optimizer="muon", muon_learning_rate=1e-3, learning_rate=1e-4, weight_decay=0.0,
        final_learning_rate=1.0,
    )  # fmt: skip
    encoder = make_encoder()
    torch.nn.init.normal_(encoder.head.linear.weight, std=0.5)
    before = {name: weight.detach().clone() for name, weight in encoder.named_parameters()}
    run(corpus, tmp_path / "run", settings, encoder)
    for name, weight in encoder.named_parameters():
        step = weight.detach() - before[name]
        if name.startswith("blocks."):
            values = torch.linalg.svdvals(step) / (1e-3 * 0.2 * math.sqrt(max(step.shape)))
            # Newton and Schulz's iteration is cut short: some 0.7 to 1.2, less where the gradient is next to none.
            assert values[3] > 0.5, name
            assert values[0] < 1.3, name
        else:
            assert step.abs().max() == pytest.approx(1e-4, rel=0.02), name
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt")
    assert [set(state["state"][0]) for state in checkpoint["optimizers"]] == [
        {"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"},
    ]  # fmt: skip


def test_missing_muon_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    make_settings()
    with pytest.raises(ConfigError, match=r"trainer\.optimizer=muon needs torch\.optim\.Muon, which torch .* lacks"):
        make_settings(optimizer="muon")


def test_moving_average_is_validated_and_kept(corpus: Corpus, tmp_path: Path) -> None:
    encoder, seen = make_encoder(), []

    def remember(module: Encoder, inputs: object, output: object) -> None:
        if module.training:  # what the step before left
            seen.append([weight.detach().clone() for weight in module.parameters()])

    encoder.register_forward_hook(remember)
    settings = make_settings(max_steps=4, ema=0.35, validate_every=2, validation_bases=10**6, learning_rate=3e-2)
    run(corpus, tmp_path / "run", settings, encoder)
    _, _, rows = run(corpus, tmp_path / "run", settings, encoder)  # which only reads the checkpoint
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt")["encoder"]
    seen.append([checkpoint[name] for name, _ in encoder.named_parameters()])
    average = seen[0]
    for decay, weights in zip((2 / 11, 3 / 12, 4 / 13, 0.35), seen[1:], strict=True):
        average = [decay * mean + (1 - decay) * weight for mean, weight in zip(average, weights, strict=True)]
    for mean, weight, last in zip(average, encoder.parameters(), seen[-1], strict=True):
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
        assert not weight.equal(last)
    assert [row["val_weights"] for row in rows] == ["", "ema", "", "ema"]
    kept = evaluate(encoder, HeldOut(corpus, 0), batch_windows=8)["loss"]
    assert float(rows[-1]["val_loss"]) == pytest.approx(kept, rel=1e-6)


def shown_in(encoder: Encoder, passes: list[torch.Tensor]) -> Encoder:
    """Collect the tokens of the training passes."""
    encoder.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0]) if module.training else None)
    return encoder


def test_context_warmup_shows_the_same_bases_in_pieces(corpus: Corpus, tmp_path: Path) -> None:
    plain: list[torch.Tensor] = []
    staged: list[torch.Tensor] = []
    run(corpus, tmp_path / "plain", make_settings(max_steps=8), shown_in(make_encoder(), plain))
    settings = make_settings(max_steps=8, context_warmup=[[16, 0.25], [32, 0.5]])
    _, result, rows = run(corpus, tmp_path / "staged", settings, shown_in(make_encoder(), staged))
    assert [tuple(tokens.shape) for tokens in staged] == [(32, 16)] * 2 + [(16, 32)] * 4 + [(8, 64)] * 2
    assert all(some.reshape(8, 64).equal(other) for some, other in zip(staged, plain, strict=True))
    assert [row["context"] for row in rows] == ["16"] * 2 + ["32"] * 4 + ["64"] * 2
    assert [int(row["bases"]) for row in rows] == [512 * step for step in range(1, 9)]
    assert result.context == 64


def test_context_warmup_follows_the_clock_over_all_starts(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock of our own, so that the stages do not depend on the machine: a second passes with each look at it.
    monkeypatch.setattr("genosparse.pretraining.loop.time", SimpleNamespace(monotonic=itertools.count().__next__))
    settings = make_settings(
        max_steps=None, max_minutes=2, context_warmup=[[16, 0.3], [32, 0.3]], validate_every=1000, checkpoint_every=1
    )
    with pytest.raises(Killed):
        run(corpus, tmp_path / "run", settings, at_pass(make_encoder(), 7, kill))
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt")
    assert checkpoint["step"] == 6
    assert 0.6 < checkpoint["minutes"] < 1.2
    assert checkpoint["longest_context"] == 32
    passes: list[torch.Tensor] = []
    _, result, rows = run(corpus, tmp_path / "run", settings, shown_in(make_encoder(), passes))
    # It goes on in the second stage, and the third comes when both starts together have had their time.
    contexts = [tokens.shape[1] for tokens in passes]
    assert contexts == sorted(contexts)
    assert contexts[0] == 32
    assert contexts[-1] == result.context == 64
    assert [int(row["context"]) for row in rows[6:]] == contexts


def test_trained_context_is_that_which_was_reached(corpus: Corpus, tmp_path: Path) -> None:
    settings = make_settings(max_steps=12, context_warmup=[[16, 0.5]])
    interrupted = at_pass(make_encoder(), 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    _, result, _ = run(corpus, tmp_path / "run", settings, interrupted)
    assert (result.step, result.context) == (3, 16)
    _, result, _ = run(corpus, tmp_path / "run", settings)
    assert result.context == 64


@pytest.mark.parametrize("bases, near", [(24, "16"), (64, "32"), (3, "2")])
def test_stage_that_cuts_no_window_evenly_is_refused(corpus: Corpus, tmp_path: Path, bases: int, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"stage of {bases} bases, .* data\.context=64 and divide it; take {near}$"):
        run(corpus, tmp_path / "run", make_settings(context_warmup=[[bases, 0.1]]))
    assert not list((tmp_path / "run").iterdir())


def test_lost_patience_ends_the_run_with_the_best_weights(corpus: Corpus, tmp_path: Path) -> None:
    settings = make_settings(
        max_steps=400, learning_rate=0.3, warmup=0.2, clip=None, validate_every=4, patience=2, log_every=100,
        validation_bases=10**6,
    )  # fmt: skip
    encoder, result, rows = run(corpus, tmp_path / "run", settings)
    losses = {int(row["step"]): float(row["val_loss"]) for row in rows if row["val_loss"]}
    assert result.lost_patience
    assert 8 < result.step < 400
    assert result.kept_step == min(losses, key=losses.__getitem__) == result.step - 2 * 4
    kept = evaluate(encoder, HeldOut(corpus, 0), batch_windows=8)["loss"]
    assert kept == pytest.approx(losses[result.kept_step], rel=1e-6)
    again = at_pass(make_encoder(), 1, kill)  # which has no step to do
    _, resumed, _ = run(corpus, tmp_path / "run", settings, again)
    assert again.fingerprint() == encoder.fingerprint()
    assert (resumed.step, resumed.kept_step, resumed.lost_patience) == (result.step, result.kept_step, True)


def test_patience_looks_at_the_last_weights_and_not_at_those_of_short_contexts(corpus: Corpus, tmp_path: Path) -> None:
    settings = make_settings(
        max_steps=10, learning_rate=0, validate_every=2, patience=3, context_warmup=[[16, 0.5]], log_every=100
    )
    _, result, rows = run(corpus, tmp_path / "run", settings)
    # No learning, no change: validations of steps 2 and 4 are of the short stage, that of step 6 is the best.
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10"]
    assert (result.step, result.kept_step, result.lost_patience) == (10, 6, False)
    _, result, rows = run(corpus, tmp_path / "odd", make_settings(max_steps=5, patience=9, log_every=100))
    assert [row["step"] for row in rows] == ["4", "5"]
    assert result.kept_step == 5


def test_patience_without_anything_held_out_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.patience=1 goes by held-out sequence, and none is held out"):
        train(
            make_encoder(), MaskedWindows(corpus, MaskingSettings(), seed=1), make_settings(patience=1),
            run_dir=tmp_path, context=64, precision="float32", held_out=None, open_log=lambda step: Logger(None),
        )  # fmt: skip


def shouting(first: int, last: int) -> Encoder:
    """An encoder whose logits are a thousand times as large in some of its training passes."""
    encoder, passes = make_encoder(), itertools.count(1)
    torch.nn.init.normal_(encoder.head.linear.weight, std=0.1)

    def shout(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not encoder.training:
            return output
        return output * 1000 if first <= next(passes) <= last else output

    encoder.head.register_forward_hook(shout)
    return encoder


def test_spikes_in_a_row_end_the_run_and_keep_what_was_before(corpus: Corpus, tmp_path: Path) -> None:
    settings = make_settings(max_steps=44, spike=10, spike_steps=3, checkpoint_every=20, validate_every=1000)
    pattern = (
        r"the loss has been [\d.]+, [\d.]+, [\d.]+ up to step 42, with the windows 328 to 335 of the run's seed: "
        r"above the median 1\.\d+ of the steps before by more than trainer\.spike=10 times their spread"
    )
    with pytest.raises(GenosparseError, match=pattern):
        run(corpus, tmp_path / "run", settings, shouting(40, 44))
    assert torch.load(tmp_path / "run" / "checkpoint.pt")["step"] == 20  # step 40 is a spike, and not saved
    # The same command meets it again, and without the watch the run goes on.
    with pytest.raises(GenosparseError, match=pattern):
        run(corpus, tmp_path / "run", settings, shouting(20, 24))
    settings = make_settings(max_steps=44, checkpoint_every=20, validate_every=1000)
    assert run(corpus, tmp_path / "run", settings, shouting(20, 24))[1].step == 44


def test_short_spikes_are_let_pass(corpus: Corpus, tmp_path: Path) -> None:
    settings = make_settings(max_steps=40, spike=10, spike_steps=3, checkpoint_every=100, validate_every=1000)
    _, result, rows = run(corpus, tmp_path / "run", settings, shouting(36, 37))
    assert result.step == 40
    assert float(rows[35]["loss"]) > 2 * float(rows[34]["loss"])


def test_activations_are_those_of_the_blocks(corpus: Corpus, tmp_path: Path) -> None:
    tables = []
    for checkpointing in (False, True):
        encoder, seen = make_encoder(), []
        encoder.blocks[1].register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.detach().square().mean().sqrt().item())
        )
        settings = make_settings(
            max_steps=4, log_every=2, accumulate=2, activation_checkpointing=checkpointing, validate_every=3
        )
        _, _, rows = run(corpus, tmp_path / f"{checkpointing}", settings, encoder)
        tables.append([row["activation_rms_2"] for row in rows])
        if not checkpointing:
            # Steps of two passes, of which the second is told; step 3 is validated, in passes of its own.
            assert float(rows[0]["activation_rms_2"]) == pytest.approx(seen[3], rel=1e-4)
            assert rows[1]["activation_rms_2"] == rows[1]["gradient_norm"] == ""
            assert float(rows[2]["activation_rms_2"]) == pytest.approx(seen[-1], rel=1e-4)
    assert tables[0] == tables[1]


def test_waiting_for_windows_is_told(corpus: Corpus, tmp_path: Path) -> None:
    class Slow(MaskedWindows):
        def __getitem__(self, index: int) -> Any:
            time.sleep(0.02)
            return super().__getitem__(index)

    settings = make_settings(max_steps=3)
    slow = Slow(corpus, MaskingSettings(), seed=1)
    _, _, rows = run(corpus, tmp_path / "slow", settings, examples=slow)
    assert all(0 < float(row["input_wait"]) <= 1 for row in rows)

    def waited() -> float:
        return sum(float(row["input_wait"]) * 512 / float(row["bases_per_second"]) for row in rows)

    slow_wait = waited()
    assert slow_wait >= 0.98 * 3 * 8 * 0.02
    _, _, rows = run(corpus, tmp_path / "fast", settings)
    assert 0 < waited() < slow_wait


def test_full_disk_leaves_the_checkpoint_from_before(corpus: Corpus, tmp_path: Path) -> None:
    whole, _, _ = run(corpus, tmp_path / "whole", make_settings(max_steps=9))
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    interrupted = at_pass(make_encoder(), 4, lambda: os.kill(os.getpid(), signal.SIGINT))
    run(corpus, tmp_path / "run", make_settings(max_steps=9), interrupted)
    before = checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The table has room, the checkpoint has not.
    fill = at_pass(make_encoder(), 1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1])))
    assert len(before) > 40_000
    try:
        with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.pt: .*; free some space first"):
            run(corpus, tmp_path / "run", make_settings(max_steps=9), fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "metrics.csv"]
    resumed, result, _ = run(corpus, tmp_path / "run", make_settings(max_steps=9))
    assert result.step == 9
    assert resumed.fingerprint() == whole.fingerprint()
