"""The training loop: read it straight down."""

from __future__ import annotations

import errno
import itertools
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import get_int_from_env
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from genosparse.encoder import Encoder
from genosparse.errors import ConfigError, GenosparseError, GenosparseWarning, ModelFormatError
from genosparse.loggers import Logger
from genosparse.outputs import atomic_output
from genosparse.pretraining.evaluation import HeldOut, evaluate
from genosparse.pretraining.masking import NO_TARGET, MaskedWindows
from genosparse.pretraining.settings import TrainerSettings
from genosparse.progress import progress

__all__ = ["COLUMNS", "TrainingResult", "check_one_process", "train"]

CHECKPOINT = "checkpoint.pt"
COLUMNS = (
    "step", "bases", "seconds", "learning_rate", "loss", "gradient_norm", "bases_per_second",
    "val_loss", "val_accuracy", "val_bits_per_base",
)  # fmt: skip
# Columns that tell the clock: they alone differ between two runs of one seed.
TIMED_COLUMNS = ("seconds", "bases_per_second")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """Where training ended; ``stopped_by`` is the signal that ended it early, if one did."""

    step: int
    bases: int
    minutes: float
    stopped_by: int | None


class _MaskedLoss(nn.Module):
    """The loss as one module, so that accelerate's autocast covers the whole forward pass."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, classes: Tensor, weights: Tensor, channels: Tensor | None = None) -> Tensor:
        at = classes != NO_TARGET
        logits = self.encoder.head(self.encoder(tokens, channels=channels)[at])
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

    Raises:
        ConfigError: A launcher started several processes.
        GenosparseError: The loss or the gradient is no longer a finite number; the checkpoint is left as it was.
        ModelFormatError: The checkpoint is damaged.
    """
    check_one_process()
    AcceleratorState._reset_state(True)  # accelerate allows one precision per process; a sweep runs several
    accelerator = Accelerator(
        mixed_precision="bf16" if precision == "bfloat16" else "no", cpu=encoder.device.type == "cpu"
    )
    if settings.batch_bases < context:
        warnings.warn(
            f"trainer.batch_bases={settings.batch_bases} is less than a window of data.context={context} bases; each "
            "forward pass takes one window",
            GenosparseWarning,
            stacklevel=2,
        )
    bases_per_step = settings.bases_per_step(context)
    optimizer = torch.optim.AdamW(
        _parameter_groups(encoder, settings.weight_decay), lr=0.0, betas=(settings.beta1, settings.beta2), fused=True
    )
    step, minutes_before = _load_checkpoint(run_dir / CHECKPOINT, encoder, optimizer)
    log = open_log(step)
    model, optimizer = accelerator.prepare(_MaskedLoss(encoder), optimizer)

    encoder.train()
    encoder.activation_checkpointing = settings.activation_checkpointing
    started = time.monotonic()
    logged_at, logged_step, rate = started, step, 0.0

    def minutes() -> float:
        return minutes_before + (time.monotonic() - started) / 60

    def save() -> None:
        if log.table is not None:
            log.table.sync()
        _save_checkpoint(run_dir / CHECKPOINT, encoder, optimizer, step, minutes())

    done = settings.progress(step, minutes_before)
    with (
        _caught_signals() as caught,
        closing(_batches(examples, step, context, settings)) as batches,
        progress("pretraining", 100, initial=round(100 * done)) as bar,
    ):
        while not settings.is_over(step, minutes()) and not caught:
            # As far as this step will have come: the first one trains, and the last one ends the schedule.
            learning_rate = settings.learning_rate_at(settings.progress(step + 1, minutes()))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss = torch.zeros((), device=encoder.device)
            for _ in range(settings.accumulate):
                part = model(*(tensor.to(encoder.device) for tensor in next(batches))) / settings.accumulate
                accelerator.backward(part)
                loss += part.detach()
            norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            step += 1
            loss_value, norm_value = float(loss), float(norm)
            for name, value in (("loss", loss_value), ("gradient's norm", norm_value)):
                if not math.isfinite(value):
                    raise GenosparseError(
                        f"the {name} of step {step} is {value}: training has diverged; start again with a smaller "
                        f"trainer.learning_rate (now {settings.learning_rate}) and overwrite=true"
                    )
            optimizer.step()
            optimizer.zero_grad()
            now_done = settings.progress(step, minutes())
            bar.advance(100 * (now_done - done), step=step, loss=f"{loss_value:.4f}", **{"bases/s": f"{rate:,.0f}"})
            done = now_done

            row: dict[str, float] = {}
            now = time.monotonic()
            if step % settings.log_every == 0 or not rate:
                rate = (step - logged_step) * bases_per_step / max(now - logged_at, 1e-9)
            if step % settings.log_every == 0:
                row |= {"bases_per_second": round(rate), "gradient_norm": norm_value}
                logged_at, logged_step = now, step
            if held_out is not None and step % settings.validate_every == 0:
                metrics = evaluate(
                    encoder,
                    held_out,
                    batch_windows=settings.windows_per_pass(context),
                    most_windows=max(1, settings.validation_bases // context),
                    autocast=accelerator.autocast(),
                )
                row |= {
                    "val_loss": metrics["loss"],
                    "val_accuracy": metrics["accuracy"],
                    "val_bits_per_base": metrics["bits_per_base"],
                }
            if row:
                clock = {"bases": step * bases_per_step, "seconds": round(minutes() * 60, 1)}
                log.log(step, {**clock, "learning_rate": learning_rate, "loss": loss_value, **row})
            if step % settings.checkpoint_every == 0:
                save()
        save()  # what follows may be killed too
    if settings.progress(step, minutes()) < 1.0 and not caught:
        warnings.warn(
            f"trainer.max_minutes={settings.max_minutes} ended training at step {step} of trainer.max_steps="
            f"{settings.max_steps}, before the learning rate came down; for a whole schedule give more minutes or "
            "fewer steps",
            GenosparseWarning,
            stacklevel=2,
        )
    return TrainingResult(step, step * bases_per_step, minutes(), caught[0] if caught else None)


def check_one_process() -> None:
    """Raise ``ConfigError`` under a launcher (torchrun, accelerate launch, mpirun) of several processes."""
    processes = get_int_from_env(("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"), 1)
    if processes > 1:
        raise ConfigError(
            f"pretraining was launched as {processes} processes; expected one process for now: start it without a "
            "launcher, or with --num_processes 1"
        )


def _parameter_groups(encoder: Encoder, weight_decay: float) -> list[dict[str, Any]]:
    """Decay the matrices of the blocks alone: not norms, biases, embeddings or global tokens."""
    matrices = [
        weight for name, weight in encoder.named_parameters() if name.startswith("blocks.") and weight.ndim == 2
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in encoder.parameters() if id(weight) not in chosen and weight.numel()]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _batches(
    examples: MaskedWindows, step: int, context: int, settings: TrainerSettings
) -> Generator[list[Tensor], None, None]:
    """Batches from ``step`` on, without end; closing it ends the worker processes."""
    windows = settings.windows_per_pass(context)

    def indices() -> Iterator[list[int]]:
        for number in itertools.count(step * settings.accumulate):
            yield list(range(number * windows, (number + 1) * windows))

    try:
        yield from DataLoader(
            examples, batch_sampler=_Endless(indices), num_workers=settings.workers, worker_init_fn=_ignore_signals
        )
    except GenosparseError as error:
        # From a worker it comes with the traceback there as its message.
        failed = type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].strip())
        # Its frames hold the loader, and with it workers that the end of the process would wait for.
        error.__traceback__ = None
    raise failed


def _ignore_signals(worker: int) -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the main process: it still needs this one's batches."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


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
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch has no error of its own for a full disk
            if "inline_container" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise


def _load_checkpoint(path: Path, encoder: Encoder, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore what ``_save_checkpoint`` wrote: the step, and the minutes trained; (0, 0.0) without a checkpoint."""
    if not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, map_location=encoder.device, weights_only=True)
        encoder.load_state_dict(state["encoder"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), float(state["minutes"])
    except (MemoryError, torch.OutOfMemoryError):
        raise
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
