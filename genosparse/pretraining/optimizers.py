"""The optimizers of a training, and the moving average of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from genosparse.pretraining.models import MaskedModel
from genosparse.pretraining.settings import TrainerSettings

__all__ = ["WeightAverage", "make_optimizers", "set_schedule"]


def make_optimizers(encoder: MaskedModel, settings: TrainerSettings) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the rest.

    The matrices of the blocks alone decay, and with AdamW kernels of convolutions there: not norms, biases, embeddings
    or global tokens. Each group of weights has its peak learning rate as ``"peak"``; see ``set_schedule``.
    """
    most_dimensions = 2 if settings.optimizer == "muon" else 3
    matrices = [
        weight
        for name, weight in encoder.named_parameters()
        if name.startswith("blocks.") and 2 <= weight.ndim <= most_dimensions
    ]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in encoder.parameters() if id(weight) not in chosen and weight.numel()]
    of_matrices: dict[str, Any] = {"params": matrices, "weight_decay": settings.weight_decay}
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0, "peak": settings.learning_rate}]
    optimizers: list[torch.optim.Optimizer] = []
    if settings.optimizer == "muon":
        muon = torch.optim.Muon(
            [{**of_matrices, "peak": settings.muon_learning_rate}],
            lr=0.0,
            momentum=settings.muon_momentum,
            # Else the step of a matrix depends on its shape and on nothing that a learning rate of AdamW tells.
            adjust_lr_fn="match_rms_adamw",
        )
        optimizers.append(muon)
    else:
        groups.insert(0, {**of_matrices, "peak": settings.learning_rate})
    betas = (settings.beta1, settings.beta2)
    return [*optimizers, torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)]


def set_schedule(optimizers: Sequence[torch.optim.Optimizer], fraction: float) -> None:
    """Give every group of weights a fraction of its peak learning rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * fraction


class WeightAverage:
    """An exponential moving average of an encoder's weights.

    Args:
        encoder: The encoder; the average begins as its weights are.
        decay: Share of the average that a step leaves; in the first steps (1 + step) / (10 + step), where that is less:
            the first weights would have too much of a say in a short run.
    """

    def __init__(self, encoder: MaskedModel, decay: float) -> None:
        self._weights, self._decay = list(encoder.parameters()), decay
        self.values = [weight.detach().clone() for weight in self._weights]

    def update(self, step: int) -> None:
        """Take in the weights after a step, which are counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [weight.detach() for weight in self._weights], 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the encoder have the average for its weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def load(self, values: Sequence[Tensor]) -> None:
        """Go on from the values of an earlier start."""
        for value, loaded in zip(self.values, values, strict=True):
            value.copy_(loaded)

    def _swap(self) -> None:
        self.values, values = [weight.data for weight in self._weights], self.values
        for weight, value in zip(self._weights, values, strict=True):
            weight.data = value
