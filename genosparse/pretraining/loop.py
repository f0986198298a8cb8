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
from contextlib import ExitStack, closing, contextmanager, nullcontext
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

from genosparse.errors import ConfigError, GenosparseError, GenosparseWarning, ModelFormatError
from genosparse.loggers import Logger
from genosparse.outputs import atomic_output
from genosparse.pretraining.evaluation import HeldOut, evaluate
from genosparse.pretraining.masking import NO_TARGET, MaskedWindows
from genosparse.pretraining.models import MaskedModel
from genosparse.pretraining.monitoring import ActivationMeter, Best, SpikeWatch, check_finite
from genosparse.pretraining.optimizers import WeightAverage, make_optimizers, set_schedule
from genosparse.pretraining.settings import TrainerSettings
from genosparse.progress import progress

__all__ = ["TrainingResult", "check_one_process", "check_training", "columns", "train"]

CHECKPOINT = "checkpoint.pt"
_COLUMNS = (
    "step", "bases", "seconds", "learning_rate", "context", "loss", "gradient_norm", "bases_per_second", "input_wait",
    "val_loss", "val_accuracy", "val_bits_per_base", "val_weights",
)  # fmt: skip
# Columns that tell the clock: they alone differ between two runs of one seed.
TIMED_COLUMNS = ("seconds", "bases_per_second", "input_wait")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How training ended.

    Attributes:
        step: The last step.
        bases: Bases seen, over all starts of the run.
        minutes: Minutes in the loop, over all starts of the run.
        stopped_by: The signal that ended it early, if one did.
        context: The longest windows that this run trained on.
        kept_step: The step whose weights (or average of weights) the encoder has: the last, unless there is patience.
        lost_patience: Whether validations without a lower loss ended it.
    """

    step: int
    bases: int
    minutes: float
    stopped_by: int | None
    context: int
    kept_step: int
    lost_patience: bool


def columns(num_layers: int) -> list[str]:
    """Columns of the table of a training.

    ``input_wait`` is the share of the time since the row before that was spent on waiting for batches; ``val_weights``
    says what was validated: ``trained`` weights or their moving average, ``ema``; ``activation_rms_1`` is the root mean
    square of what block 1 gave out.
    """
    return [*_COLUMNS, *ActivationMeter.columns(num_layers)]


class _MaskedLoss(nn.Module):
    """The loss as one module, so that accelerate's autocast covers the whole forward pass."""

    def __init__(self, encoder: MaskedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, classes: Tensor, weights: Tensor, channels: Tensor | None = None) -> Tensor:
        at = classes != NO_TARGET
        logits = self.encoder.head(self.encoder(tokens, channels=channels)[at])
        losses = functional.cross_entropy(logits, classes[at], reduction="none")
        return (losses * weights[at]).sum() / weights[at].sum().clamp(min=1e-9)


def train(
    encoder: MaskedModel,
    examples: MaskedWindows,
    settings: TrainerSettings,
    *,
    run_dir: Path,
    context: int,
    precision: str,
    held_out: HeldOut | None,
    open_log: Callable[[int], Logger],
    clock: Callable[[], float] | None = None,
) -> TrainingResult:
    """Train a model in place; go on from ``run_dir``'s checkpoint when there is one.

    A checkpoint is one file that appears whole. SIGINT and SIGTERM let the step finish, save, and return. In the end
    the encoder has the weights to keep: the last, their moving average, or those of the lowest validation loss.

    With ``settings.context_warmup`` an example stays what it is and is shown in pieces, so that examples depend on seed
    and index alone, whatever the clock makes of the stages.

    Args:
        encoder: The model.
        examples: Masked windows by index; step ``s`` takes the indices from ``s`` times the windows per step on.
        settings: How long and how fast.
        run_dir: Holds the checkpoint.
        context: Bases of a window.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        held_out: What to validate on; None for nothing.
        open_log: Called once with the last step that the checkpoint knows; later rows of the table, which has
            ``columns``, are cut.
        clock: Seconds from any beginning, of which ``settings.max_minutes`` and the schedule are; None for the wall
            clock. Processor time makes a comparison fairer on a machine that does other work too.

    Raises:
        ConfigError: A launcher started several processes; or the settings do not go with the context, or with what is
            held out.
        GenosparseError: The loss or the gradient is no longer a finite number, or jumped; the checkpoint from before is
            left as it was.
        ModelFormatError: The checkpoint is damaged.
    """
    check_one_process()
    check_training(settings, context, held_out)
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
    average = None if settings.ema is None else WeightAverage(encoder, settings.ema)
    run = _Run(encoder, make_optimizers(encoder, settings), average, SpikeWatch(settings), Best(settings.patience))
    run.load(run_dir / CHECKPOINT)
    log = open_log(run.step)
    model, *optimizers = accelerator.prepare(_MaskedLoss(encoder), *run.optimizers)

    encoder.train()
    encoder.activation_checkpointing = settings.activation_checkpointing
    clock = clock or time.monotonic
    minutes_before, started = run.minutes, clock()
    logged_at, logged_step, rate, waited = time.monotonic(), run.step, 0.0, 0.0

    def minutes() -> float:
        return minutes_before + (clock() - started) / 60

    def save() -> None:
        if log.table is not None:
            log.table.sync()
        run.minutes = minutes()
        run.save(run_dir / CHECKPOINT)

    def validate(stage_context: int) -> dict[str, float | str]:
        assert held_out is not None
        with nullcontext() if average is None else average.in_place():
            metrics = evaluate(
                encoder,
                held_out,
                batch_windows=settings.windows_per_pass(context),
                most_windows=max(1, settings.validation_bases // context),
                autocast=accelerator.autocast(),
            )
        if stage_context == context:  # before that a run is not at its end, however little it learns
            run.best.take(metrics["loss"], run.weights(), step=run.step)
        return {
            "val_loss": metrics["loss"],
            "val_accuracy": metrics["accuracy"],
            "val_bits_per_base": metrics["bits_per_base"],
            "val_weights": "trained" if average is None else "ema",
        }

    done = settings.progress(run.step, minutes_before)
    has_ended = settings.is_over(run.step, minutes_before) or run.best.has_passed
    with ExitStack() as stack:
        caught = stack.enter_context(_caught_signals())
        batches = stack.enter_context(closing(_batches(examples, run.step, context, settings)))
        bar = stack.enter_context(progress("pretraining", 100, initial=round(100 * done)))
        activations = stack.enter_context(ActivationMeter(encoder.blocks).attached())
        while not has_ended and not caught:
            stage_context = settings.context_at(settings.progress(run.step, minutes()), context)
            # As far as this step will have come: the first one trains, and the last one ends the schedule.
            schedule = settings.schedule_at(settings.progress(run.step + 1, minutes()))
            set_schedule(optimizers, schedule)
            is_logged = (run.step + 1) % settings.log_every == 0
            loss = torch.zeros((), device=encoder.device)
            for number in range(settings.accumulate):
                asked_at = time.monotonic()
                batch = next(batches)
                waited += time.monotonic() - asked_at
                activations.is_on = is_logged and number == settings.accumulate - 1
                part = model(*(_cut(tensor.to(encoder.device), stage_context) for tensor in batch))
                activations.is_on = False  # a backward pass may run the blocks again
                accelerator.backward(part / settings.accumulate)
                loss += part.detach() / settings.accumulate
            norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip or math.inf)
            loss_value, norm_value = float(loss), float(norm)
            batch_name = _name_batch(run.step, context, settings)
            run.step += 1
            check_finite(run.step, batch_name, loss=loss_value, gradient_norm=norm_value, settings=settings)
            run.spikes.check(run.step, batch_name, loss=loss_value, gradient_norm=norm_value)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            run.longest_context = max(run.longest_context, stage_context)
            if average is not None:
                average.update(run.step)
            now_done = settings.progress(run.step, minutes())
            bar.advance(100 * (now_done - done), step=run.step, loss=f"{loss_value:.4f}", **{"bases/s": f"{rate:,.0f}"})
            done = now_done

            row: dict[str, float | str] = {}
            now = time.monotonic()
            if is_logged or not rate:
                rate = (run.step - logged_step) * bases_per_step / max(now - logged_at, 1e-9)
            if is_logged:
                row |= {
                    "bases_per_second": round(rate),
                    "input_wait": round(waited / max(now - logged_at, 1e-9), 4),
                    "gradient_norm": norm_value,
                    **activations.values(),
                }
                logged_at, logged_step, waited = now, run.step, 0.0
            has_ended = settings.is_over(run.step, minutes())
            # The last weights are most often the best: with patience they are looked at too.
            if held_out is not None and (run.step % settings.validate_every == 0 or (has_ended and run.best.is_wanted)):
                row |= validate(stage_context)
                has_ended = has_ended or run.best.has_passed
            if row:
                counted = {"bases": run.step * bases_per_step, "seconds": round(minutes() * 60, 1)}
                rates = {"learning_rate": settings.learning_rate * schedule, "context": stage_context}
                log.log(run.step, {**counted, **rates, "loss": loss_value, **row})
            if run.step % settings.checkpoint_every == 0 and not run.spikes.is_alarmed:
                save()
        save()  # what follows may be killed too
    lost_patience = run.best.has_passed
    if settings.progress(run.step, minutes()) < 1.0 and not caught and not lost_patience:
        warnings.warn(
            f"trainer.max_minutes={settings.max_minutes} ended training at step {run.step} of trainer.max_steps="
            f"{settings.max_steps}, before the learning rate came down; for a whole schedule give more minutes or "
            "fewer steps",
            GenosparseWarning,
            stacklevel=2,
        )
    kept_step = run.keep()
    return TrainingResult(
        run.step,
        run.step * bases_per_step,
        minutes(),
        caught[0] if caught else None,
        run.longest_context,
        kept_step,
        lost_patience,
    )


def check_training(settings: TrainerSettings, context: int, held_out: HeldOut | None) -> None:
    """Raise ``ConfigError`` where settings do not go with the context, or with nothing that is held out."""
    settings.check_context(context)
    if settings.patience is not None and (held_out is None or not held_out.num_sites):
        raise ConfigError(
            f"trainer.patience={settings.patience} goes by held-out sequence, and none is held out; give "
            "data.validation=, or trainer.patience=null"
        )


def check_one_process() -> None:
    """Raise ``ConfigError`` under a launcher (torchrun, accelerate launch, mpirun) of several processes."""
    processes = get_int_from_env(("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"), 1)
    if processes > 1:
        raise ConfigError(
            f"pretraining was launched as {processes} processes; expected one process for now: start it without a "
            "launcher, or with --num_processes 1"
        )


def _cut(tensor: Tensor, context: int) -> Tensor:
    """Cut windows ``[B, N, ...]`` into pieces ``[B * N / context, context, ...]``."""
    return tensor.unflatten(1, (-1, context)).flatten(0, 1)


def _name_batch(step: int, context: int, settings: TrainerSettings) -> str:
    """The examples of the step that follows ``step``, in words."""
    number = settings.windows_per_pass(context) * settings.accumulate
    return f"the windows {step * number} to {(step + 1) * number - 1} of the run's seed"


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


class _Run:
    """All of a training that its checkpoint keeps.

    Attributes:
        step: Steps done.
        minutes: Minutes in the loop, over all starts of the run.
        longest_context: Longest windows so far.
    """

    def __init__(
        self,
        encoder: MaskedModel,
        optimizers: list[torch.optim.Optimizer],
        average: WeightAverage | None,
        spikes: SpikeWatch,
        best: Best,
    ) -> None:
        self.encoder, self.optimizers, self.average, self.spikes, self.best = encoder, optimizers, average, spikes, best
        self.step = self.longest_context = 0
        self.minutes = 0.0

    def weights(self) -> list[Tensor]:
        """What would be saved now: the weights, or their average."""
        return list(self.encoder.parameters()) if self.average is None else self.average.values

    def keep(self) -> int:
        """Give the encoder the weights to save; return the step that they are of."""
        kept, step = self.weights(), self.step
        if self.best.weights is not None:
            kept, step = self.best.weights, self.best.step
        with torch.no_grad():
            for weight, value in zip(self.encoder.parameters(), kept, strict=True):
                weight.copy_(value)
        return step

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "encoder": self.encoder.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": None if self.average is None else self.average.values,
            "spikes": self.spikes.state(),
            "best": self.best.state(),
            "step": self.step,
            "minutes": self.minutes,
            "longest_context": self.longest_context,
        }
        with atomic_output(path) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch has no error of its own for a full disk
                if "inline_container" in str(error):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                raise

    def load(self, path: Path) -> None:
        """Restore what ``save`` wrote; nothing where there is no checkpoint."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.encoder.device, weights_only=True)
            self.encoder.load_state_dict(state["encoder"])
            for optimizer, optimizer_state in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(optimizer_state)
            if self.average is not None:
                self.average.load(state["average"])
            self.spikes.load(state["spikes"])
            self.best.load(state["best"])
            self.step, self.minutes = int(state["step"]), float(state["minutes"])
            self.longest_context = int(state["longest_context"])
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch.load raises whatever the damage makes it stumble on
            raise ModelFormatError(
                f"the checkpoint {path} is damaged ({type(error).__name__}); remove it or pass overwrite=true to start "
                "anew"
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
