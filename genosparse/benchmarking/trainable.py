"""Encoders that are pretrained side by side: genosparse's, and what is in use besides, brought to as many weights.

All predict the four bases from hidden states through a head of their own kind, and are what the loop of
``genosparse.pretraining`` trains (``MaskedModel``).

Legend: B batch, N positions, C channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError
from genosparse.tokenizers import MASK, PAD, N

__all__ = ["TRAINABLE", "DilatedConvolutions", "ModernBert", "TrainableShape", "make_trainable"]

_VOCABULARY = MASK + 1
# Rows that tokens are shown as one-hot in by convolutions: A, C, G, T, MASK.
_ONE_HOT = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainableShape:
    """Shape of genosparse's encoder, to which the others are matched.

    Attributes:
        width: Channels of the hidden states.
        layers: Blocks.
        heads: Query heads.
        kv_heads: KV heads.
        pattern: Of the attention; ModernBERT's local attention has its window.
        context: Longest windows, in bases.
        convolution: Width of genosparse's convolution, None for none.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    pattern: SparsePattern
    context: int
    convolution: int | None = None


class _Rival(nn.Module):
    """What the training loop asks of a module, around the blocks of a rival."""

    blocks: nn.ModuleList
    head: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.activation_checkpointing = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Weights in all."""
        return sum(parameter.numel() for parameter in self.parameters())


class _Head(nn.Module):
    """A dense layer, GELU, a norm, and logits in float32: the head of both ModernBERT and GPN."""

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width, bias=bias)
        self.norm = nn.LayerNorm(width, bias=bias)
        self.decoder = nn.Linear(width, 4)
        # As genosparse's own logits begin: near to uniform.
        nn.init.normal_(self.decoder.weight, std=0.02)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return cast("Tensor", self.decoder(self.norm(functional.gelu(self.dense(hidden)))).float())


class ModernBert(_Rival):
    """ModernBERT of transformers (Warner et al. 2024, arXiv:2412.13663): all pairs in every third layer, local else.

    Args:
        shape: What it is matched to.
        mlp_hidden: Channels inside its GeGLU.
    """

    def __init__(self, shape: TrainableShape, mlp_hidden: int) -> None:
        from transformers import ModernBertConfig, ModernBertModel

        super().__init__()
        window = shape.pattern.window
        if window is None:
            raise ConfigError("modernbert has local attention; give pattern.window=, or leave it out of rivals=")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library, about its own ways
            config = ModernBertConfig(
                vocab_size=_VOCABULARY,
                hidden_size=shape.width,
                intermediate_size=mlp_hidden,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                local_attention=2 * window,
                max_position_embeddings=shape.context,
                pad_token_id=PAD,
                bos_token_id=PAD,
                eos_token_id=PAD,
                cls_token_id=PAD,
                sep_token_id=PAD,
            )
            model = ModernBertModel(config)
        # Its parts, so that the weights of the blocks go by the names that the optimizers look for; the whole in a
        # tuple, so that no weight has two names.
        self.embeddings, self.blocks, self.final_norm = model.embeddings, model.layers, model.final_norm
        self._model = (model,)
        self.head = _Head(shape.width, bias=False)

    def forward(self, tokens_BN: Tensor, *, channels: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, N, C]``; PAD and N are not attended to."""
        visible_BN = (tokens_BN != PAD) & (tokens_BN != N)
        mask = None if bool(visible_BN.all()) else visible_BN.long()
        return cast("Tensor", self._model[0](input_ids=tokens_BN.long(), attention_mask=mask).last_hidden_state)


class DilatedConvolutions(_Rival):
    """Dilated convolutions over one-hot bases, as GPN has them (Benegas et al. 2023, doi:10.1073/pnas.2311219120).

    Each block adds to its input a convolution of 9 positions and then a dense layer, each followed by GELU and a layer
    norm; the dilation doubles from block to block, from 1 to 32, and begins again.

    Args:
        width: Channels.
        layers: Blocks.
    """

    DILATIONS = (1, 2, 4, 8, 16, 32)

    def __init__(self, width: int, *, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(_ONE_HOT, width, bias=False)
        nn.init.normal_(self.embedding.weight)
        self.blocks = nn.ModuleList(
            _DilatedBlock(width, self.DILATIONS[layer % len(self.DILATIONS)]) for layer in range(layers)
        )
        self.head = _Head(width, bias=True)
        one_hot = torch.zeros(256, _ONE_HOT)  # of PAD, N and other letters nothing
        one_hot[[1, 2, 4, 8, MASK], range(_ONE_HOT)] = 1.0
        self.one_hot: Tensor
        self.register_buffer("one_hot", one_hot, persistent=False)

    def forward(self, tokens_BN: Tensor, *, channels: Tensor | None = None) -> Tensor:
        """Hidden states ``[B, N, C]``."""
        hidden_BNC = self.embedding(self.one_hot[tokens_BN.int()])
        for block in self.blocks:
            hidden_BNC = block(hidden_BNC)
        return cast("Tensor", hidden_BNC)


class _DilatedBlock(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 9, dilation=dilation, padding="same")
        self.convolution_norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, width)
        self.dense_norm = nn.LayerNorm(width)

    def forward(self, x_BNC: Tensor) -> Tensor:
        mixed_BNC = self.convolution(x_BNC.transpose(1, 2)).transpose(1, 2)
        x_BNC = x_BNC + self.convolution_norm(functional.gelu(mixed_BNC))
        return x_BNC + self.dense_norm(functional.gelu(self.dense(x_BNC)))


def _genosparse(shape: TrainableShape) -> Encoder:
    return Encoder(
        EncoderConfig(
            d_model=shape.width,
            num_layers=shape.layers,
            num_heads=shape.heads,
            num_kv_heads=shape.kv_heads,
            patterns=(shape.pattern,),
            max_length=shape.context,
            convolution=shape.convolution,
        )
    )


def _nearest(make: Callable[[int], _Rival], wanted: int, most: int) -> int:
    """The size, a multiple of 4, that gives as many weights as wanted, or nearly."""
    low, high = 1, most // 4
    while low < high:
        middle = (low + high) // 2
        if make(4 * middle).num_parameters < wanted:
            low = middle + 1
        else:
            high = middle
    sizes = [4 * number for number in (low - 1, low) if number]
    return min(sizes, key=lambda size: abs(make(size).num_parameters - wanted))


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    note: str


TRAINABLE = {
    "genosparse": _Kind("genosparse", ""),
    "modernbert": _Kind("ModernBERT", "transformers; local attention, all pairs in every third layer"),
    "dilated": _Kind("dilated convolutions", "as GPN: 12 blocks of width 9, dilations 1 to 32"),
}
"""By the name that ``rivals=`` knows."""


def make_trainable(name: str, shape: TrainableShape, seed: int) -> Encoder | ModernBert | DilatedConvolutions:
    """Make an encoder of ``TRAINABLE`` with weights drawn by a seed, as many as genosparse's has, or nearly.

    Raises:
        ConfigError: A value of the shape cannot be.
    """
    make: Callable[[int], ModernBert | DilatedConvolutions]
    if name == "modernbert":
        # The three matrices of its GeGLU are what is left to choose.
        make, most = partial(ModernBert, shape), 16 * shape.width
    elif name == "dilated":
        # Two rounds of dilations: each base is seen from 504 away.
        make, most = partial(DilatedConvolutions, layers=2 * len(DilatedConvolutions.DILATIONS)), 2 * shape.width
    else:
        torch.manual_seed(seed)
        return _genosparse(shape)
    size = _nearest(make, _genosparse(shape).num_parameters, most)
    torch.manual_seed(seed)
    return make(size)
