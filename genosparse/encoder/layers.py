"""The parts of the encoder.

Legend: B batch, N positions (global tokens included), C channels, F channels of alignments, H query heads, G KV heads,
D head size, P pairs of channels (D / 2).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from genosparse.attention import SparsePattern, input_dtype, sparse_attention
from genosparse.channels import CHANNEL_UNITS, LOGARITHMIC
from genosparse.encoder.config import EncoderConfig
from genosparse.tokenizers import MASK

__all__ = ["BaseHead", "Block", "ChannelProjection", "RMSNorm", "TokenEmbedding", "rotary_angles", "rotary_turns"]

# Positions that a position-wise layer takes at a time when no gradient is wanted. So many stay in the caches, in memory
# that the allocator has at hand: eight times as many take twice as long, and a million at once would be several times
# the size of the hidden states.
_CHUNK = 1 << 12


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
        self.shares: Tensor
        self.register_buffer("shares", shares, persistent=False)
        nn.init.normal_(self.weight)

    def forward(self, tokens_BN: Tensor) -> Tensor:
        with torch.autocast(tokens_BN.device.type, enabled=False):
            # A product with the shares rather than a look-up: its gradient is a product too, with no scattered sums.
            return self.shares[tokens_BN.int()] @ self.weight


class ChannelProjection(nn.Module):
    """What channels of alignments add to the embedding: a linear map of them, each scaled to about one unit.

    It begins as zero, so that a model begins as it would without channels.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(config.channels), config.d_model))
        self.logarithmic: Tensor
        self.units: Tensor
        logarithmic = torch.tensor([name in LOGARITHMIC for name in config.channels])
        units = torch.tensor([CHANNEL_UNITS.get(name, 1.0) for name in config.channels])
        self.register_buffer("logarithmic", logarithmic, persistent=False)
        self.register_buffer("units", units, persistent=False)

    def forward(self, channels_BNF: Tensor, tokens_BN: Tensor) -> Tensor:
        with torch.autocast(tokens_BN.device.type, enabled=False):
            values = channels_BNF.float()
            values = torch.where(self.logarithmic, values.clamp(min=0).log1p(), values / self.units)
            # The reads at a masked base would tell it.
            return torch.where(tokens_BN[..., None] == MASK, 0.0, values) @ self.weight


def rotary_angles(length: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """The turns of the rotary position embedding (Su et al. 2021) as complex numbers, complex64 ``[N, D / 2]``.

    The angles are taken in float64: in float32 they are off by 0.03 rad at a million positions.
    """
    turns = torch.empty(length, head_dim // 2, dtype=torch.complex64)
    for start in range(0, length, _CHUNK):
        end = min(start + _CHUNK, length)
        position = torch.arange(start, end, dtype=torch.float64)
        turns[start:end] = torch.view_as_complex(rotary_turns(position, head_dim, theta))
    return turns.to(device)


def rotary_turns(position_N: Tensor, head_dim: int, theta: float) -> Tensor:
    """Cosine and sine of each position's angles, float32 ``[N, D / 2, 2]``; positions in float64."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device=position_N.device) / head_dim)
    angles = torch.outer(position_N, frequencies)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def _rotate(x_BNHD: Tensor, rotary_NP2: Tensor) -> Tensor:
    """Rotate the pairs (2d, 2d + 1) of each head by its position's angles; float32 out."""
    pairs = x_BNHD.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        # The same arithmetic spelled out: compilers fuse it, and fuse no complex numbers.
        x, y = pairs.unbind(-1)
        cosine, sine = rotary_NP2[:, None].unbind(-1)
        return torch.stack((x * cosine - y * sine, x * sine + y * cosine), dim=-1).flatten(-2)
    # One pass over memory, a third of what the products and sums take one by one.
    turned = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(rotary_NP2)[:, None]
    return torch.view_as_real(turned).flatten(-2)


class _Normalize(torch.autograd.Function):
    """x over its root mean square, in few passes over memory: the composed operator takes a dozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        size = x.shape[-1]
        inverse = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / size + eps).rsqrt()
        if torch.compiler.is_compiling():
            out = (x * inverse).to(dtype)  # an export may trace this with gradients on, where out= is refused
        else:
            out = torch.mul(x, inverse, out=torch.empty_like(x, dtype=dtype))
        ctx.save_for_backward(out, inverse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        out, inverse = ctx.saved_tensors
        (grad,) = grads
        grad = grad.to(inverse.dtype)
        along = (grad * out).mean(dim=-1, keepdim=True)
        return torch.addcmul(grad, out.to(grad.dtype), along, value=-1).mul_(inverse), None, None


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * value of the two halves; keeps its input alone, and joins no gradients by copying."""

    @staticmethod
    def forward(ctx: Any, gate_and_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_value)
        gate, value = gate_and_value.chunk(2, dim=-1)
        return functional.silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_and_value,) = ctx.saved_tensors
        (grad,) = grads
        gate, value = gate_and_value.chunk(2, dim=-1)
        result = torch.empty_like(gate_and_value)
        grad_gate, grad_value = result.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(grad * value, gate, grad_input=grad_gate)
        functional.silu(grad_value.copy_(gate), inplace=True).mul_(grad)
        return result


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich 2019). It has no gains: the linear layer that follows has its own."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Normalize the last dimension; ``dtype`` of the result, x's when None."""
        return _Normalize.apply(x, self.eps, dtype or x.dtype)


def _autocast_dtype(x: Tensor) -> torch.dtype:
    """The dtype that a linear layer would cast ``x`` to."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class Block(nn.Module):
    """Pre-norm block: grouped-query sparse attention, then SwiGLU (Shazeer 2020), each added to its input."""

    def __init__(self, config: EncoderConfig, pattern: SparsePattern) -> None:
        super().__init__()
        assert config.mlp_hidden is not None
        self.pattern = pattern
        self.heads = (config.num_heads, config.kv_heads, config.kv_heads)
        self.head_dim = config.head_dim
        channels = config.d_model
        self.attention_norm = RMSNorm(config.norm_eps)
        self.qkv = nn.Linear(channels, sum(self.heads) * self.head_dim, bias=False)
        self.attention_out = nn.Linear(channels, channels, bias=False)
        self.mlp_norm = RMSNorm(config.norm_eps)
        self.mlp_in = nn.Linear(channels, 2 * config.mlp_hidden, bias=False)
        self.mlp_out = nn.Linear(config.mlp_hidden, channels, bias=False)
        for layer in (self.qkv, self.mlp_in):
            nn.init.normal_(layer.weight, std=channels**-0.5)
        for layer in (self.attention_out, self.mlp_out):
            # Each block adds two terms to the residual stream: keep their sum's variance near one at any depth.
            nn.init.normal_(layer.weight, std=(layer.in_features * 2 * config.num_layers) ** -0.5)

    def forward(self, x_BNC: Tensor, rotary_NP2: Tensor, key_mask_BN: Tensor | None) -> Tensor:
        q, k, v = _along_sequence(self._project, x_BNC, rotary_NP2[None])
        mixed = sparse_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.pattern, key_mask=key_mask_BN
        )
        del q, k, v
        (out,) = _along_sequence(self._finish, x_BNC, mixed.transpose(1, 2))
        return out

    def _project(self, x_BNC: Tensor, rotary_1NP2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.attention_norm(x_BNC, dtype=_autocast_dtype(x_BNC))
        qk, v = self.qkv(normed).unflatten(-1, (-1, self.head_dim)).split([sum(self.heads[:2]), self.heads[2]], dim=2)
        qk = _rotate(qk, rotary_1NP2[0])
        dtype = input_dtype(v.dtype, v.device, self.head_dim)
        q, k = qk.to(dtype).split(self.heads[:2], dim=2)
        return q, k, v.to(dtype)

    def _finish(self, x_BNC: Tensor, mixed_BNHD: Tensor) -> tuple[Tensor]:
        x_BNC = x_BNC + self.attention_out(mixed_BNHD.flatten(2))
        gate_and_value = self.mlp_in(self.mlp_norm(x_BNC, dtype=_autocast_dtype(x_BNC)))
        return (x_BNC + self.mlp_out(_SwiGLU.apply(gate_and_value)),)


def _along_sequence(function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Apply a position-wise function to [B or 1, N, ...], some rows and positions at a time when no gradient is wanted.

    While a graph is traced the function is applied to the whole: chunks would fix their number, and so the length.
    """
    batch, length = inputs[0].shape[:2]
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or batch * length <= _CHUNK:
        return function(*inputs)
    rows = max(1, _CHUNK // length)
    results: tuple[Tensor, ...] = ()
    for row, start in itertools.product(range(0, batch, rows), range(0, length, _CHUNK)):
        here = slice(row, row + rows), slice(start, start + _CHUNK)
        parts = function(*(x[here] if x.shape[0] == batch else x[:, here[1]] for x in inputs))
        if not results:
            results = tuple(part.new_empty(batch, length, *part.shape[2:]) for part in parts)
        for result, part in zip(results, parts, strict=True):
            result[here] = part
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
