"""The settings of a training, checked where they are made."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from genosparse.errors import ConfigError

__all__ = ["OPTIMIZERS", "TrainerSettings", "check_flag", "check_number"]

OPTIMIZERS = ("adamw", "muon")


def check_number(
    key: str,
    value: object,
    least: float,
    most: float = math.inf,
    *,
    whole: bool = False,
    without_least: bool = False,
    without_most: bool = False,
) -> None:
    """Raise ``ConfigError`` unless a setting is a finite number within its bounds.

    Args:
        key: The setting's full name.
        value: What was given.
        least: Smallest value.
        most: Largest value.
        whole: Ask for a whole number.
        without_least: Refuse ``least`` itself.
        without_most: Refuse ``most`` itself.
    """
    if (isinstance(value, int) or (not whole and isinstance(value, float))) and not isinstance(value, bool):
        is_enough = value > least if without_least else value >= least
        if is_enough and value < math.inf and (value < most if without_most else value <= most):
            return
    bounds = f"above {least}" if without_least else f"of at least {least}"
    if most < math.inf:
        bounds += f" and below {most}" if without_most else f" and at most {most}"
    raise ConfigError(f"{key}={value!r}: expected a {'whole' if whole else 'finite'} number {bounds}")


def check_flag(key: str, value: object) -> None:
    """Raise ``ConfigError`` unless a setting is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key}={value!r}: expected true or false")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """How long and how fast.

    Training ends at ``max_steps`` or after ``max_minutes`` of training, whichever comes first. The learning rate
    follows the steps where their number is given, so that the clock has no say in the result, and the minutes
    otherwise.

    Args:
        max_steps: Optimizer steps; None for no limit.
        max_minutes: Wall minutes in the loop, over all starts of the run; None for no limit.
        batch_bases: Bases per forward pass; at least one window is taken.
        accumulate: Forward passes per optimizer step.
        context_warmup: Stages of shorter windows that the run begins with, as ``(bases, fraction of the run)``,
            shortest first; what is left of the run has the whole context. The windows are drawn as ever and cut into
            pieces, so that a step has the same bases in every stage. None for none.
        optimizer: ``"adamw"``, or ``"muon"``: Muon (Jordan et al. 2024) for the matrices of the blocks and AdamW for
            the rest.
        learning_rate: Peak of the schedule of AdamW.
        muon_learning_rate: Peak of the same schedule of Muon. Its updates are scaled to the root mean square of AdamW's
            (Liu et al. 2025, arXiv 2502.16982), so that rates of AdamW are of the right size.
        muon_momentum: Muon's decay of the gradient's mean.
        final_learning_rate: Its end, as a fraction of the peak; the cosine runs between.
        warmup: Fraction of the run over which the learning rate rises from 0.
        weight_decay: Of the matrices; vectors and embeddings are not decayed.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of the gradient's square.
        clip: Largest norm of the gradient; None for no limit.
        ema: Decay per step of a moving average of the weights, which then is what is validated, measured and saved;
            None for the weights themselves. The first steps decay faster: (1 + step) / (10 + step) at most.
        spike: A loss or gradient's norm is a spike where it is above the median of the last steps by more than this
            many times their spread; None for no such watch. See ``SpikeWatch``.
        spike_steps: So many spikes in a row end the run.
        patience: Validations in a row without a lower loss that end the run; the weights of the lowest are saved then,
            also where the run comes to its own end. Those within ``context_warmup`` do not count. None for no such end,
            and the last weights.
        log_every: Steps between rows of the table.
        validate_every: Steps between looks at held-out sequence.
        validation_bases: Held-out bases looked at each time (the end looks at all).
        checkpoint_every: Steps between checkpoints.
        workers: Processes that draw windows; 0 draws them between steps, which costs next to nothing.
        activation_checkpointing: Recompute activations in the backward pass: less memory, a third more time.

    Raises:
        ConfigError: A value that cannot be.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    batch_bases: int = 16_384
    accumulate: int = 1
    context_warmup: tuple[tuple[int, float], ...] | None = None
    optimizer: str = "adamw"
    learning_rate: float = 4e-3
    muon_learning_rate: float = 4e-3
    muon_momentum: float = 0.95
    final_learning_rate: float = 0.02
    warmup: float = 0.05
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float | None = 1.0
    ema: float | None = None
    spike: float | None = None
    spike_steps: int = 3
    patience: int | None = None
    log_every: int = 10
    validate_every: int = 250
    validation_bases: int = 131_072
    checkpoint_every: int = 100
    workers: int = 0
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ConfigError("trainer.max_steps and trainer.max_minutes are both null; give at least one")
        for name in ("batch_bases", "accumulate", "log_every", "validate_every", "validation_bases",
                     "checkpoint_every", "spike_steps"):  # fmt: skip
            check_number(f"trainer.{name}", getattr(self, name), 1, whole=True)
        check_number("trainer.workers", self.workers, 0, whole=True)
        if self.max_steps is not None:
            check_number("trainer.max_steps", self.max_steps, 0, whole=True)
        if self.max_minutes is not None:
            check_number("trainer.max_minutes", self.max_minutes, 0)
        if self.clip is not None:
            check_number("trainer.clip", self.clip, 0, without_least=True)
        for name in ("learning_rate", "muon_learning_rate", "final_learning_rate", "warmup", "weight_decay"):
            check_number(f"trainer.{name}", getattr(self, name), 0, 1)
        for name in ("beta1", "beta2", "muon_momentum"):
            check_number(f"trainer.{name}", getattr(self, name), 0, 1, without_most=True)
        if self.ema is not None:
            check_number("trainer.ema", self.ema, 0, 1, without_least=True, without_most=True)
        if self.spike is not None:
            check_number("trainer.spike", self.spike, 0, without_least=True)
        if self.patience is not None:
            check_number("trainer.patience", self.patience, 1, whole=True)
        check_flag("trainer.activation_checkpointing", self.activation_checkpointing)
        self._check_optimizer()
        if self.context_warmup is not None:
            object.__setattr__(self, "context_warmup", _stages(self.context_warmup))

    def windows_per_pass(self, context: int) -> int:
        """Windows of ``context`` bases in a forward pass."""
        return max(1, self.batch_bases // context)

    def bases_per_step(self, context: int) -> int:
        """Bases of an optimizer step."""
        return self.windows_per_pass(context) * context * self.accumulate

    def check_context(self, context: int) -> None:
        """Raise ``ConfigError`` unless the stages of ``context_warmup`` cut windows of ``context`` bases evenly."""
        for bases, _ in self.context_warmup or ():
            if bases >= context or context % bases:
                raise ConfigError(
                    f"trainer.context_warmup has a stage of {bases} bases, which must be shorter than data.context="
                    f"{context} and divide it; take {_divisor_near(bases, context)}"
                )

    def context_at(self, progress: float, context: int) -> int:
        """Bases of a window at a fraction of the schedule, ``context`` once the stages are over."""
        end = 0.0
        for bases, fraction in self.context_warmup or ():
            end += fraction
            if progress < end:
                return bases
        return context

    def progress(self, step: int, minutes: float) -> float:
        """The fraction of the schedule that is done, 0 to 1."""
        if self.max_steps is not None:
            return min(1.0, step / self.max_steps) if self.max_steps else 1.0
        assert self.max_minutes is not None
        return min(1.0, minutes / self.max_minutes) if self.max_minutes else 1.0

    def is_over(self, step: int, minutes: float) -> bool:
        """Whether training ends here."""
        return self.progress(step, minutes) >= 1.0 or (self.max_minutes is not None and minutes >= self.max_minutes)

    def schedule_at(self, progress: float) -> float:
        """The fraction of the peak learning rate: linear warmup, then half a cosine to ``final_learning_rate``."""
        if progress < self.warmup:
            return progress / self.warmup
        along = (progress - self.warmup) / max(1.0 - self.warmup, 1e-9)
        low = self.final_learning_rate
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * along))

    def _check_optimizer(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"trainer.optimizer={self.optimizer} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        if self.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
            raise ConfigError(
                f"trainer.optimizer=muon needs torch.optim.Muon, which torch {torch.__version__} lacks; install "
                "a newer torch, or take trainer.optimizer=adamw"
            )


def _stages(value: object) -> tuple[tuple[int, float], ...]:
    """The stages of a context warmup, checked."""
    key = "trainer.context_warmup"
    pairs = list(value) if isinstance(value, list | tuple) else []
    if not pairs or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise ConfigError(
            f"{key}={value!r}: expected pairs of bases and a fraction of the run, as [[256,0.1],[512,0.1]]"
        )
    for bases, fraction in pairs:
        check_number(f"the bases of {key}", bases, 1, whole=True)
        check_number(f"the fraction of {key}", fraction, 0, 1, without_least=True, without_most=True)
    stages = tuple((bases, float(fraction)) for bases, fraction in pairs)
    if any(later <= earlier for (earlier, _), (later, _) in itertools.pairwise(stages)):
        raise ConfigError(f"{key}={value!r}: expected longer windows from stage to stage")
    if sum(fraction for _, fraction in stages) >= 1:
        raise ConfigError(f"{key}={value!r}: its fractions leave nothing of the run for data.context; lower them")
    return stages


def _divisor_near(bases: int, context: int) -> str:
    """What to take in place of a number of bases that is no proper divisor of ``context``, in words."""
    divisors = [number for number in range(1, context) if context % number == 0]
    if not divisors:
        return "no trainer.context_warmup, or a longer data.context"
    return str(min(divisors, key=lambda number: abs(number - bases)))
