"""What the training loop asks of a model: ``Encoder`` has it, and so have the models that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["MaskedModel"]


class MaskedModel(Protocol):
    """A torch module that predicts masked bases.

    Attributes:
        device: Where its weights are.
        blocks: Its blocks, each giving out one tensor; matrices in them decay, and are Muon's where that is wanted.
        head: Hidden states ``[..., C]`` to float32 logits ``[..., 4]`` over A, C, G, T.
        activation_checkpointing: Whether to recompute activations in the backward pass; a model may leave it aside.
        training: Whether it is in training mode.
    """

    activation_checkpointing: bool
    training: bool

    @property
    def device(self) -> torch.device: ...

    @property
    def blocks(self) -> nn.ModuleList: ...

    @property
    def head(self) -> Callable[[Tensor], Tensor]: ...

    def __call__(self, tokens: Tensor, *, channels: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, N, C]`` of token ids ``[B, N]``."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...
