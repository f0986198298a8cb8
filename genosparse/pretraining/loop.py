"""The training loop: read it straight down."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from genosparse.encoder import Encoder
from genosparse.errors import ConfigError, GenosparseError, ModelFormatError
from genosparse.loggers import Logger
from genosparse.outputs import atomic_output
from genosparse.pretraining.evaluation import HeldOut, evaluate
from genosparse.pretraining.masking import NO_TARGET, MaskedWindows
from genosparse.progress import ProgressBar

__all__ = ["COLUMNS", "TrainerSettings", "TrainingResult", "train"]

CHECKPOINT = "checkpoint.pt"
COLUMNS = (
    "step", "bases", "seconds", "learning_rate", "loss", "gradient_norm", "bases_per_second",
    "val_loss", "val_accuracy", "val_bits_per_base",
)  # fmt: skip
# Columns that tell the clock: they alone differ between two runs of one seed.
TIMED_COLUMNS = ("seconds", "bases_per_second")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How long and how fast.

    Training ends at ``max_steps`` or after ``max_minutes`` of training, whichever comes first. The learning rate
    follows the steps where their number is given, so that the clock has no say in the result, and the minutes
    otherwise.

    Args:
        max_steps: Optimizer steps; None for no limit.
        max_minutes: Wall minutes in the loop, over all starts of the run; None for no limit.
        batch_bases: Bases per forward pass.
        accumulate: Forward passes per optimizer step.
        learning_rate: Peak of the schedule.
        final_learning_rate: Its end, as a fraction of the peak; the cosine runs between.
        warmup: Fraction of the run over which the learning rate rises from 0.
        weight_decay: Of the matrices; vectors and embeddings are not decayed.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of the gradient's square.
        clip: Largest norm of the gradient.
        log_every: Steps between rows of the table.
        validate_every: Steps between looks at held-out sequence.
        validation_bases: Held-out bases looked at each time (the end looks at all).
        checkpoint_every: Steps between checkpoints.
        workers: Processes that draw windows; 0 draws them between steps, which costs next to nothing.
        activation_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    batch_bases: int = 16_384
    accumulate: int = 1
    learning_rate: float = 4e-3
    final_learning_rate: float = 0.02
    warmup: float = 0.05
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float = 1.0
    log_every: int = 10
    validate_every: int = 250
    validation_bases: int = 131_072
    checkpoint_every: int = 100
    workers: int = 0
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ConfigError("trainer.max_steps and trainer.max_minutes are both null; give at least one")
        counts = ("batch_bases", "accumulate", "log_every", "validate_every", "validation_bases", "checkpoint_every")
        for name in counts:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"trainer.{name}={value}: expected a whole number of at least 1")
        for name in ("max_steps", "workers"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ConfigError(f"trainer.{name}={value}: expected a whole number of at least 0")
        for name, least, most in (
            ("max_minutes", 0, math.inf), ("learning_rate", 0, 1), ("final_learning_rate", 0, 1), ("warmup", 0, 1),
            ("weight_decay", 0, 1), ("beta1", 0, 1), ("beta2", 0, 1), ("clip", 0, math.inf),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is None and name == "max_minutes":
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
                raise ConfigError(f"trainer.{name}={value}: expected a number from {least} to {most}")

    def progress(self, step: int, minutes: float) -> float:
        """The fraction of the schedule that is done, 0 to 1."""
        if self.max_steps is not None:
            return min(1.0, step / self.max_steps) if self.max_steps else 1.0
        assert self.max_minutes is not None
        return min(1.0, minutes / self.max_minutes) if self.max_minutes else 1.0

    def is_over(self, step: int, minutes: float) -> bool:
        """Whether training ends here."""
        return self.progress(step, minutes) >= 1.0 or (self.max_minutes is not None and minutes >= self.max_minutes)

    def learning_rate_at(self, progress: float) -> float:
        """Linear warmup, then half a cosine down to ``final_learning_rate`` of the peak."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        along = (progress - self.warmup) / max(1.0 - self.warmup, 1e-9)
        low = self.final_learning_rate
        return self.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * along)))


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Where training ended; ``stopped_by`` is the signal that ended it early, if one did."""

    step: int
    bases: int
    minutes: float
    stopped_by: int | None


class _MaskedLoss(nn.Module):
    """The loss as one module, so that a distributed wrapper around it sees one forward pass."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
        at = classes != NO_TARGET
        logits = self.encoder.head(self.encoder(tokens)[at])
        losses = functional.cross_entropy(logits, classes[at], reduction="none")
        return (losses * weights[at]).sum() / weights[at].sum().clamp(min=1e-9)


def train(
    encoder: Encoder,
    examples: MaskedWindows,
    settings: TrainerSettings,
    *,
    run_dir: Path,
    context: int,
    precision: str,
    held_out: HeldOut | None,
    open_log: Callable[[int], Logger],
    bar: ProgressBar,
) -> TrainingResult:
    """Train an encoder in place; go on from ``run_dir``'s checkpoint when there is one.

    A checkpoint is one file that appears whole. SIGINT and SIGTERM let the step finish, save, and return.

    Args:
        encoder: The model.
        examples: Masked windows by index; step ``s`` takes the indices from ``s`` times the windows per step on.
        settings: How long and how fast.
        run_dir: Holds the checkpoint.
        context: Bases of a window.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        held_out: What to validate on; None for nothing.
        open_log: Called once with the last step that the checkpoint knows; later rows of the table are cut.
        bar: Advanced by bases.

    Raises:
        GenosparseError: The loss is no longer a finite number.
        ModelFormatError: The checkpoint is damaged.
    """
    AcceleratorState._reset_state(True)  # accelerate allows one precision per process; a sweep runs several
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bfloat16" else "no", cpu=encoder.device.type == "cpu"
    )
    windows = max(1, settings.batch_bases // context)  # per forward pass and process
    optimizer = torch.optim.AdamW(
        _parameter_groups(encoder, settings.weight_decay), lr=0.0, betas=(settings.beta1, settings.beta2), fused=True
    )
    step, minutes_before = _load_checkpoint(run_dir / CHECKPOINT, encoder, optimizer)
    log = open_log(step)
    model, optimizer = accelerator.prepare(_MaskedLoss(encoder), optimizer)
    rank, processes = accelerator.process_index, accelerator.num_processes
    per_step = windows * settings.accumulate * processes
    bases_per_step = per_step * context
    bar.advance(0)
    batches = _batches(examples, step, windows, settings, rank, processes)

    encoder.train()
    encoder.activation_checkpointing = settings.activation_checkpointing
    started = time.monotonic()
    logged_at, logged_step = started, step

    def minutes() -> float:
        return minutes_before + (time.monotonic() - started) / 60

    def save() -> None:
        if accelerator.is_main_process:
            if log.table is not None:
                log.table.sync()
            _save_checkpoint(run_dir / CHECKPOINT, encoder, optimizer, step, minutes())

    with _caught_signals() as caught:
        while not settings.is_over(step, minutes()) and not caught:
            learning_rate = settings.learning_rate_at(settings.progress(step, minutes()))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss = torch.zeros((), device=encoder.device)
            for _ in range(settings.accumulate):
                part = model(*(tensor.to(encoder.device) for tensor in next(batches))) / settings.accumulate
                accelerator.backward(part)
                loss += part.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            loss_value = float(accelerator.reduce(loss, "mean"))
            if not math.isfinite(loss_value):
                raise GenosparseError(
                    f"the loss of step {step} is {loss_value}: training has diverged; start again with a smaller "
                    f"trainer.learning_rate (now {settings.learning_rate}) and overwrite=true"
                )
            bar.advance(bases_per_step, loss=f"{loss_value:.4f}", step=step)

            row: dict[str, float] = {}
            if step % settings.log_every == 0:
                now = time.monotonic()
                rate = (step - logged_step) * bases_per_step / max(now - logged_at, 1e-9)
                row |= {"bases_per_second": round(rate), "gradient_norm": float(norm)}
                logged_at, logged_step = now, step
            if held_out is not None and step % settings.validate_every == 0:
                # Every process evaluates alike, on its own: simpler than sharing, and as fast.
                metrics = evaluate(
                    encoder,
                    held_out,
                    batch_windows=windows,
                    most_windows=max(1, settings.validation_bases // context),
                    autocast=accelerator.autocast(),
                )
                row |= {
                    "val_loss": metrics["loss"],
                    "val_accuracy": metrics["accuracy"],
                    "val_bits_per_base": metrics["bits_per_base"],
                }
            if row and accelerator.is_main_process:
                clock = {"bases": step * bases_per_step, "seconds": round(minutes() * 60, 1)}
                log.log(step, {**clock, "learning_rate": learning_rate, "loss": loss_value, **row})
            if step % settings.checkpoint_every == 0:
                save()
        if caught:
            save()
    accelerator.wait_for_everyone()
    return TrainingResult(step, step * bases_per_step, minutes(), caught[0] if caught else None)


def _parameter_groups(encoder: Encoder, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the matrices of the blocks alone: not norms, biases, embeddings or global tokens."""
    matrices = [
        weight for name, weight in encoder.named_parameters() if name.startswith("blocks.") and weight.ndim == 2
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in encoder.parameters() if id(weight) not in chosen and weight.numel()]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _batches(
    examples: MaskedWindows, step: int, windows: int, settings: TrainerSettings, rank: int, processes: int
) -> Iterator[list[Tensor]]:
    """Batches from ``step`` on, without end; each process takes its own share of each step's indices."""

    def indices() -> Iterator[list[int]]:
        part = step * settings.accumulate
        while True:
            first = (part * processes + rank) * windows
            yield list(range(first, first + windows))
            part += 1

    loader = DataLoader(examples, batch_sampler=_Endless(indices), num_workers=settings.workers)
    return iter(loader)


class _Endless:
    """A batch sampler from a function that makes an iterator."""

    def __init__(self, indices: Callable[[], Iterator[list[int]]]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[list[int]]:
        return self._indices()


def _save_checkpoint(path: Path, encoder: Encoder, optimizer: Any, step: int, minutes: float) -> None:
    state = {
        "encoder": encoder.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "minutes": minutes,
    }
    with atomic_output(path) as file:
        torch.save(state, file)


def _load_checkpoint(path: Path, encoder: Encoder, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore what ``_save_checkpoint`` wrote: the step, and the minutes trained; (0, 0.0) without a checkpoint."""
    if not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, map_location=encoder.device, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["minutes"])
    except Exception as error:  # torch.load raises whatever the damage makes it stumble on
        raise ModelFormatError(
            f"the checkpoint {path} is damaged ({type(error).__name__}); remove it or pass overwrite=true to start anew"
        ) from error


@contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one of either takes its old course."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        for signal_number, handler in before.items():
            signal.signal(signal_number, handler)

    number: int
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever called from there handles signals
            break
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
