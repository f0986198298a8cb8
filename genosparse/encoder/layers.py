"""The parts of the encoder.

Legend: B batch, N positions (global tokens included), C channels, H query heads, G KV heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.encoder.config import EncoderConfig
from genosparse.tokenizers import MASK

__all__ = ["BaseHead", "Block", "TokenEmbedding", "rotary_angles"]

# Positions that a position-wise layer takes at a time when no gradient is wanted: a million positions through the
# SwiGLU at once would be several times the size of the hidden states.
_CHUNK = 1 << 15


class TokenEmbedding(nn.Module):
    """Vectors of tokens: one per base and one for MASK; an ambiguity code is the mean of its members, PAD is zero."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(5, config.d_model))  # A, C, G, T, MASK
        shares = torch.zeros(MASK + 1, 5)
        for code in range(1, MASK):
            members = [base for base in range(4) if code >> base & 1]
            shares[code, members] = 1 / len(members)
        shares[MASK, 4] = 1.0
        self.register_buffer("shares", shares, persistent=False)
        nn.init.normal_(self.weight)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        with torch.autocast(tokens_BN.device.type, enabled=False):
            # A product with the shares rather than a look-up: its gradient is a product too, with no scattered sums.
            return self.shares[tokens_BN.int()] @ self.weight


def rotary_angles(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding (Su et al. 2021), float32 ``[N, D / 2]``.

    The angles are taken in float64: in float32 they are off by 0.03 rad at a million positions.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    cos, sin = (torch.empty(length, head_dim // 2) for _ in range(2))
    for start in range(0, length, _CHUNK):
        end = min(start + _CHUNK, length)
        angles = torch.outer(torch.arange(start, end, dtype=torch.float64), frequencies)
        cos[start:end], sin[start:end] = angles.cos(), angles.sin()
    return cos.to(device), sin.to(device)


def _rotate(x_BNHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """Rotate the pairs (d, d + D/2) of each head by its position's angles."""
    first, second = x_BNHD.float().chunk(2, dim=-1)
    cos, sin = cos_ND[:, None], sin_ND[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x_BNHD.dtype)


class Block(nn.Module):
    """Pre-norm block: grouped-query sparse attention, then SwiGLU (Shazeer 2020), each added to its input."""

    def __init__(self, config: EncoderConfig, pattern: SparsePattern) -> None:
        super().__init__()
        assert config.mlp_hidden is not None
        self.pattern = pattern
        self.heads = (config.num_heads, config.kv_heads, config.kv_heads)
        self.head_dim = config.head_dim
        channels = config.d_model
        self.attention_norm = nn.RMSNorm(channels, eps=config.norm_eps)
        self.qkv = nn.Linear(channels, sum(self.heads) * self.head_dim, bias=False)
        self.attention_out = nn.Linear(channels, channels, bias=False)
        self.mlp_norm = nn.RMSNorm(channels, eps=config.norm_eps)
        self.mlp_in = nn.Linear(channels, 2 * config.mlp_hidden, bias=False)
        self.mlp_out = nn.Linear(config.mlp_hidden, channels, bias=False)
        for layer in (self.qkv, self.mlp_in):
            nn.init.normal_(layer.weight, std=channels**-0.5)
        for layer in (self.attention_out, self.mlp_out):
            # Each block adds two terms to the residual stream: keep their sum's variance near one at any depth.
            nn.init.normal_(layer.weight, std=(layer.in_features * 2 * config.num_layers) ** -0.5)

    def forward(self, x_BNC: Tensor, rotary: tuple[Tensor, Tensor], key_mask_BN: Tensor) -> Tensor:
        q, k, v = _along_sequence(self._project, x_BNC, *(angles[None] for angles in rotary))
        mixed = sparse_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.pattern, key_mask=key_mask_BN
        )
        del q, k, v
        (out,) = _along_sequence(self._finish, x_BNC, mixed.transpose(1, 2))
        return out

    def _project(self, x_BNC: Tensor, cos_1ND: Tensor, sin_1ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv = self.qkv(self.attention_norm(x_BNC)).unflatten(-1, (-1, self.head_dim))
        q, k, v = qkv.split(self.heads, dim=2)
        return _rotate(q, cos_1ND[0], sin_1ND[0]), _rotate(k, cos_1ND[0], sin_1ND[0]), v

    def _finish(self, x_BNC: Tensor, mixed_BNHD: Tensor) -> tuple[Tensor]:
        x_BNC = x_BNC + self.attention_out(mixed_BNHD.flatten(2))
        gate, value = self.mlp_in(self.mlp_norm(x_BNC)).chunk(2, dim=-1)
        return (x_BNC + self.mlp_out(functional.silu(gate) * value),)


def _along_sequence(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply a position-wise function, in chunks of positions when no gradient is wanted; inputs are [B or 1, N, ...]."""
    length = inputs[0].shape[1]
    if torch.is_grad_enabled() or length <= _CHUNK:
        return function(*inputs)
    results: tuple[Tensor, ...] = ()
    for start in range(0, length, _CHUNK):
        size = min(_CHUNK, length - start)
        parts = function(*(x.narrow(1, start, size) for x in inputs))
        if not results:
            results = tuple(part.new_empty(part.shape[0], length, *part.shape[2:]) for part in parts)
        for result, part in zip(results, parts, strict=True):
            result[:, start : start + size] = part
    return results


class BaseHead(nn.Module):
    """Logits over A, C, G, T."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.d_model, 4)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        # Always in float32: log-ratios of near-equal probabilities are what scores are made of.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.linear(hidden.float())
