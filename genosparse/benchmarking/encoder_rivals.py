"""Encoders that are compared, all of one width, number of heads and depth: genosparse's and what a user would otherwise
take.

The parts around a rival's mixing of positions are kept alike: those that are not of a library share one skeleton of
pre-norm blocks with a SwiGLU, in which either dense attention or a Hyena operator mixes.

Legend: B batch, N positions, C channels, H heads, D head size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError

__all__ = ["ENCODERS", "EncoderKind", "EncoderShape", "HyenaOperator"]

_VOCABULARY = 17  # nt16 codes and MASK
_CHUNK = 1 << 12  # positions that the skeleton's SwiGLU takes at a time, as genosparse's layers do


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What the encoders share.

    Attributes:
        width: Channels of the hidden states.
        layers: Blocks.
        heads: Attention heads, where there is attention.
        pattern: Of genosparse's attention; others have its window at the most.
        length: Longest sequence.
    """

    width: int
    layers: int
    heads: int
    pattern: SparsePattern
    length: int


Forward = Callable[[Tensor], Tensor]
"""Token ids ``[1, N]`` to hidden states ``[1, N, C]``."""


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """A kind of encoder.

    Attributes:
        name: In tables.
        make: Makes one of a shape and a dtype, its weights drawn from torch's generator.
        growth: Exponent with which its time grows with length.
        note: What of its work differs from the others', for readers of the table.
        package: What it needs besides genosparse's own dependencies.
    """

    name: str
    make: Callable[[EncoderShape, torch.dtype], Forward]
    growth: float = 1.0
    note: str = ""
    package: str | None = None


def _genosparse(shape: EncoderShape, dtype: torch.dtype) -> Forward:
    encoder = Encoder(
        EncoderConfig(
            d_model=shape.width,
            num_layers=shape.layers,
            num_heads=shape.heads,
            patterns=(shape.pattern,),
            max_length=shape.length,
        )
    ).eval()

    def forward(tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return encoder(tokens)

    return forward


def _longformer(shape: EncoderShape, dtype: torch.dtype) -> Forward:
    from transformers import LongformerConfig, LongformerModel

    window = shape.pattern.window
    assert window is not None
    config = LongformerConfig(
        **_transformers_settings(shape),
        attention_window=2 * window,
        max_position_embeddings=shape.length + 2 * window + _VOCABULARY + 2,
    )
    return _hidden_states(LongformerModel(config, add_pooling_layer=False), dtype)


def _big_bird(shape: EncoderShape, dtype: torch.dtype) -> Forward:
    from transformers import BigBirdConfig, BigBirdModel

    config = BigBirdConfig(
        **_transformers_settings(shape),
        attention_type="block_sparse",
        block_size=64,
        num_random_blocks=3,
        max_position_embeddings=shape.length,
    )
    return _hidden_states(BigBirdModel(config, add_pooling_layer=False), dtype)


def _transformers_settings(shape: EncoderShape) -> dict[str, Any]:
    return {
        "vocab_size": _VOCABULARY + 1,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id"), _VOCABULARY),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        # As many weights as a SwiGLU's three matrices of 8/3 of the width have.
        "intermediate_size": 4 * shape.width,
    }


def _hidden_states(model: nn.Module, dtype: torch.dtype) -> Forward:
    model = model.to(dtype).eval()

    def forward(tokens: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a library, about its own ways
            return cast(
                "Tensor", model(input_ids=tokens.long(), attention_mask=torch.ones_like(tokens)).last_hidden_state
            )

    return forward


def _dense(shape: EncoderShape, dtype: torch.dtype) -> Forward:
    return _Skeleton(shape, lambda: DenseAttention(shape.width, shape.heads)).to(dtype).eval()


def _hyena(shape: EncoderShape, dtype: torch.dtype) -> Forward:
    return _Skeleton(shape, lambda: HyenaOperator(shape.width, shape.length)).to(dtype).eval()


class _Skeleton(nn.Module):
    """Pre-norm blocks: what mixes positions, then a SwiGLU, each added to its input."""

    def __init__(self, shape: EncoderShape, make_mixer: Callable[[], nn.Module]) -> None:
        super().__init__()
        hidden = -(-8 * shape.width // 3 // 32) * 32
        self.embedding = nn.Embedding(_VOCABULARY, shape.width)
        self.mixers = nn.ModuleList(make_mixer() for _ in range(shape.layers))
        self.mixer_norms = nn.ModuleList(nn.RMSNorm(shape.width) for _ in range(shape.layers))
        self.mlp_norms = nn.ModuleList(nn.RMSNorm(shape.width) for _ in range(shape.layers))
        self.mlps_in = nn.ModuleList(nn.Linear(shape.width, 2 * hidden, bias=False) for _ in range(shape.layers))
        self.mlps_out = nn.ModuleList(nn.Linear(hidden, shape.width, bias=False) for _ in range(shape.layers))
        self.final_norm = nn.RMSNorm(shape.width)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        hidden_BNC = self.embedding(tokens_BN.int())
        parts = zip(self.mixer_norms, self.mixers, self.mlp_norms, self.mlps_in, self.mlps_out, strict=True)
        for mixer_norm, mixer, mlp_norm, mlp_in, mlp_out in parts:
            hidden_BNC = hidden_BNC + mixer(mixer_norm(hidden_BNC))
            for piece in hidden_BNC.split(_CHUNK, dim=1):
                gate, value = mlp_in(mlp_norm(piece)).chunk(2, dim=-1)
                piece += mlp_out(functional.silu(gate) * value)
        return cast("Tensor", self.final_norm(hidden_BNC))


class DenseAttention(nn.Module):
    """Exact attention of all pairs, by torch's ``scaled_dot_product_attention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        q, k, v = self.qkv(x_BNC).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHND = functional.scaled_dot_product_attention(q, k, v)
        return cast("Tensor", self.out(mixed_BHND.transpose(1, 2).flatten(2)))


class HyenaOperator(nn.Module):
    """The Hyena operator of order 2: gates around a convolution as long as the sequence, by FFT.

    After Poli et al. 2023 (arXiv:2302.10866), with the sizes of HyenaDNA (Nguyen et al. 2023, arXiv:2306.15794): three
    projections through a short depthwise convolution; a filter that a small network with sines makes of each position,
    under a window that decays exponentially. Causal, as published.

    Args:
        width: Channels.
        length: Longest sequence.
    """

    def __init__(self, width: int, length: int, *, filter_width: int = 64, num_features: int = 5) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, 3 * width)
        self.short = nn.Conv1d(3 * width, 3 * width, 3, padding=2, groups=3 * width)
        self.out_proj = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.randn(width))
        sizes = [num_features, filter_width, filter_width, filter_width]
        self.filter_layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.filter_out = nn.Linear(filter_width, width, bias=False)
        self.frequency = nn.Parameter(torch.full((filter_width,), 10.0))
        # From a decay to a hundredth within 0.3 of the sequence to one within 1.5 of it.
        self.decay: Tensor
        self.register_buffer("decay", torch.linspace(math.log(100) / 0.3, math.log(100) / 1.5, width))
        self.num_bands = (num_features - 1) // 2
        self.length = length

    def forward(self, x_BNC: Tensor) -> Tensor:
        length = x_BNC.shape[1]
        if length > self.length:
            raise ConfigError(f"a sequence of {length} is longer than the {self.length} that the filter was made for")
        projected_BCN = self.short(self.in_proj(x_BNC).transpose(1, 2))[..., :length]
        gate, inner_gate, value = projected_BCN.chunk(3, dim=1)
        value = value * inner_gate
        value = self._convolve(value, self._filter(length)) + value * self.bias[:, None]
        return cast("Tensor", self.out_proj((value * gate).transpose(1, 2)))

    def _filter(self, length: int) -> Tensor:
        """The filter at each distance, ``[C, N]``."""
        time = torch.linspace(0, 1, self.length, device=self.bias.device)[:length, None]
        bands = torch.linspace(1e-4, self.num_bands - 1, self.num_bands, device=self.bias.device)
        angles = 2 * math.pi * time * bands
        features = torch.cat([time, angles.cos(), -angles.sin()], dim=1).to(self.bias.dtype)
        for layer in self.filter_layers:
            features = torch.sin(self.frequency * layer(features))
        return cast("Tensor", self.filter_out(features) * torch.exp(-time * self.decay).to(self.bias.dtype)).T

    def _convolve(self, x_BCN: Tensor, filter_CN: Tensor) -> Tensor:
        """Causal convolution; FFTs take float32 alone."""
        length = x_BCN.shape[-1]
        transformed = torch.fft.rfft(x_BCN.float(), n=2 * length)
        transformed *= torch.fft.rfft(filter_CN.float(), n=2 * length)
        return torch.fft.irfft(transformed, n=2 * length)[..., :length].to(x_BCN.dtype)


ENCODERS = {
    "genosparse": EncoderKind("genosparse", _genosparse),
    "longformer": EncoderKind("Longformer", _longformer, note="transformers; window alone", package="transformers"),
    "bigbird": EncoderKind(
        "BigBird",
        _big_bird,
        note="transformers; blocks of 64: 8 at most to a query, fewer keys than the others attend to",
        package="transformers",
    ),
    "hyena": EncoderKind("Hyena, order 2", _hyena, note="long convolutions by FFT, no attention"),
    "dense": EncoderKind("dense", _dense, growth=2.0, note="all pairs, by scaled_dot_product_attention"),
}
"""By the name that ``rivals=`` knows."""
