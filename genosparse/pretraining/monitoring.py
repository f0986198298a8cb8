"""What watches a training: activations, spikes of the loss, validations that no longer get better."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genosparse.errors import GenosparseError
from genosparse.pretraining.settings import TrainerSettings

__all__ = ["ActivationMeter", "Best", "SpikeWatch", "check_finite"]


class ActivationMeter:
    """Root mean square of what each block gives out, over all its positions and channels.

    Attributes:
        is_on: Measure the forward passes from now on; off, they cost nothing.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._blocks, self._seen = blocks, [torch.tensor(math.nan)] * len(blocks)
        self.is_on = False

    @contextmanager
    def attached(self) -> Iterator[ActivationMeter]:
        """Watch the blocks while the block runs."""
        handles = [block.register_forward_hook(self._hook(number)) for number, block in enumerate(self._blocks)]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def values(self) -> dict[str, float]:
        """Of each block in the last pass that was measured, by the column's name."""
        return {name: float(seen) for name, seen in zip(self.columns(len(self._blocks)), self._seen, strict=True)}

    @staticmethod
    def columns(num_layers: int) -> list[str]:
        """Names of the blocks' columns."""
        return [f"activation_rms_{layer}" for layer in range(1, num_layers + 1)]

    def _hook(self, number: int) -> Any:
        def measure(block: nn.Module, inputs: object, output: Tensor) -> None:
            if self.is_on:
                norm = torch.linalg.vector_norm(output.detach(), dtype=torch.float32)
                self._seen[number] = norm / math.sqrt(output.numel())

        return measure


def check_finite(step: int, batch: str, *, loss: float, gradient_norm: float, settings: TrainerSettings) -> None:
    """Raise ``GenosparseError`` where the loss or the gradient of a step is no finite number; ``batch`` in words."""
    for name, value in (("loss", loss), ("gradient's norm", gradient_norm)):
        if not math.isfinite(value):
            raise GenosparseError(
                f"the {name} of step {step} is {value}, with {batch}: training has diverged; the same command meets it "
                "again from its last checkpoint. Start anew with a smaller trainer.learning_rate (now "
                f"{settings.learning_rate}) and overwrite=true"
            )


class SpikeWatch:
    """Ends a training whose loss, or whose gradient's norm, jumps up and stays there.

    A value is a spike where it is above the median of the last ``WINDOW`` values that were none by more than
    ``settings.spike`` times their spread: 1.4826 times the median distance from the median (the standard deviation of a
    normal distribution), or a thousandth of the median where that is more. The first ``FEWEST`` steps are none.
    """

    WINDOW = 128
    FEWEST = 32

    def __init__(self, settings: TrainerSettings) -> None:
        self._limit, self._steps = settings.spike, settings.spike_steps
        self._recent: dict[str, deque[float]] = {
            name: deque(maxlen=self.WINDOW) for name in ("loss", "gradient's norm")
        }
        self._spikes: dict[str, list[float]] = {name: [] for name in self._recent}

    @property
    def is_alarmed(self) -> bool:
        """Whether the last step was a spike: what is on disk from before is to be kept."""
        return any(self._spikes.values())

    def check(self, step: int, batch: str, *, loss: float, gradient_norm: float) -> None:
        """Take in the values of a step; raise ``GenosparseError`` where they end the training."""
        for (name, recent), value in zip(self._recent.items(), (loss, gradient_norm), strict=True):
            spikes = self._spikes[name]
            middle = spread = math.inf
            if self._limit is not None and len(recent) >= self.FEWEST:
                middle = statistics.median(recent)
                spread = max(1.4826 * statistics.median(abs(each - middle) for each in recent), 1e-3 * abs(middle))
                if value > middle + self._limit * spread:
                    spikes.append(value)
                    if len(spikes) >= self._steps:
                        shown = ", ".join(f"{each:.4g}" for each in spikes)
                        raise GenosparseError(
                            f"the {name} has been {shown} up to step {step}, with {batch}: above the median "
                            f"{middle:.4g} of the steps before by more than trainer.spike={self._limit} times their "
                            f"spread {spread:.2g}. The checkpoint from before is kept; trainer.spike=null goes on "
                            "from it, a smaller trainer.learning_rate and overwrite=true start anew"
                        )
                    continue
            spikes.clear()
            recent.append(value)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "spikes": {name: list(values) for name, values in self._spikes.items()},
        }

    def load(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Go on from what ``state`` gave."""
        for name, values in self._recent.items():
            values.extend(state["recent"][name])
            self._spikes[name][:] = state["spikes"][name]


class Best:
    """The weights of the lowest validation loss so far, where a run has patience.

    Attributes:
        weights: Those weights, in the order of the encoder's parameters; None before the first validation.
        step: The step they are of.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._loss = math.inf
        self._worse = 0
        self.weights: list[Tensor] | None = None
        self.step = 0

    @property
    def is_wanted(self) -> bool:
        """Whether the run has patience."""
        return self._patience is not None

    @property
    def has_passed(self) -> bool:
        """Whether the patience is at its end."""
        return self._patience is not None and self._worse >= self._patience

    def take(self, loss: float, weights: Sequence[Tensor], *, step: int) -> None:
        """Take in a validation."""
        if self._patience is None:
            return
        if loss < self._loss:
            self._loss, self._worse = loss, 0
            self.weights = [weight.detach().clone() for weight in weights]
            self.step = step
        else:
            self._worse += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"loss": self._loss, "worse": self._worse, "weights": self.weights, "step": self.step}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._loss, self._worse = float(state["loss"]), int(state["worse"])
        self.weights, self.step = state["weights"], int(state["step"])
