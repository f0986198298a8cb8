"""The settings of a training, checked where they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass

from genosparse.errors import ConfigError

__all__ = ["TrainerSettings", "check_flag", "check_number"]


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
        learning_rate: Peak of the schedule.
        final_learning_rate: Its end, as a fraction of the peak; the cosine runs between.
        warmup: Fraction of the run over which the learning rate rises from 0.
        weight_decay: Of the matrices; vectors and embeddings are not decayed.
        beta1: AdamW's decay of the gradient's mean.
        beta2: AdamW's decay of the gradient's square.
        clip: Largest norm of the gradient; None for no limit.
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
    learning_rate: float = 4e-3
    final_learning_rate: float = 0.02
    warmup: float = 0.05
    weight_decay: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.98
    clip: float | None = 1.0
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
                     "checkpoint_every"):  # fmt: skip
            check_number(f"trainer.{name}", getattr(self, name), 1, whole=True)
        check_number("trainer.workers", self.workers, 0, whole=True)
        if self.max_steps is not None:
            check_number("trainer.max_steps", self.max_steps, 0, whole=True)
        if self.max_minutes is not None:
            check_number("trainer.max_minutes", self.max_minutes, 0)
        if self.clip is not None:
            check_number("trainer.clip", self.clip, 0, without_least=True)
        for name in ("learning_rate", "final_learning_rate", "warmup", "weight_decay"):
            check_number(f"trainer.{name}", getattr(self, name), 0, 1)
        for name in ("beta1", "beta2"):
            check_number(f"trainer.{name}", getattr(self, name), 0, 1, without_most=True)
        check_flag("trainer.activation_checkpointing", self.activation_checkpointing)

    def windows_per_pass(self, context: int) -> int:
        """Windows of ``context`` bases in a forward pass."""
        return max(1, self.batch_bases // context)

    def bases_per_step(self, context: int) -> int:
        """Bases of an optimizer step."""
        return self.windows_per_pass(context) * context * self.accumulate

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
