"""The parts of the encoder.

Legend: B batch, N positions (global tokens included), C channels, F channels of alignments, H query heads, G KV heads,
D head size, P pairs of channels (D / 2), T letters that a token is a mean of (A, C, G, T, MASK), K width of the
convolution.

With two strands the first half of the channels is what the given strand says of a position, the second half what the
other strand says of it; a weight for the one is a weight for the other. Every layer but attention works on positions,
and so on both halves side by side; attention reads each strand in its own direction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from genosparse.attention import SparsePattern, input_dtype, sparse_attention
from genosparse.channels import CHANNEL_UNITS, LOGARITHMIC, other_strand
from genosparse.encoder.config import EncoderConfig
from genosparse.tokenizers import MASK, PAD

__all__ = [
    "BaseHead",
    "Block",
    "ChannelProjection",
    "Convolution",
    "RMSNorm",
    "StrandLinear",
    "StrandOrder",
    "TokenEmbedding",
    "rotary_angles",
    "rotary_turns",
    "strand_order",
]

# Of the weights of a free head at first: logits of about 0.2.
_HEAD_STD = 0.02

# Of A, C, G, T and MASK, the rows of what a token is a mean of.
_COMPLEMENT = [3, 2, 1, 0, 4]

# Positions that a position-wise layer takes at a time when no gradient is wanted. So many stay in the caches, in memory
# that the allocator has at hand: eight times as many take twice as long, and a million at once would be several times
# the size of the hidden states.
_CHUNK = 1 << 12


class TokenEmbedding(nn.Module):
    """Vectors of tokens: one per base and one for MASK; an ambiguity code is the mean of its members, PAD is zero."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_strands = config.num_strands
        self.weight = nn.Parameter(torch.empty(5, config.d_model // self.num_strands))  # A, C, G, T, MASK
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
            return self.shares[tokens_BN.int()] @ self.vectors()

    def vectors(self) -> Tensor:
        """The vectors of A, C, G, T and MASK, ``[5, C]``; the second half is the complement's where there are two."""
        return self.weight if self.num_strands == 1 else torch.cat([self.weight, self.weight[_COMPLEMENT]], dim=1)


class StrandLinear(nn.Linear):
    """Linear layer without bias that does to either strand's half of the channels the same.

    Its matrix is [[A, B], [B, A]], the most general one that commutes with exchanging the halves (Cohen and Welling
    2016): A is for a strand's own channels, and by B it hears the other strand. The parameter is [A, B], half of what a
    plain layer has. The product takes the whole matrix: sums and differences of the halves would need half the
    multiplications, and take longer for their passes over memory.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        swapped = self.weight.roll(self.in_features // 2, dims=1)
        return functional.linear(x, torch.cat([self.weight, swapped]))


def _linear(config: EncoderConfig, in_features: int, out_features: int) -> nn.Linear:
    if config.num_strands == 2:
        return StrandLinear(in_features, out_features)
    return nn.Linear(in_features, out_features, bias=False)


class Convolution(nn.Module):
    """Gated motifs around each base, added to its embedding: ``x + W (silu(gate) * value)``.

    Gate and value are position-specific scores of the K tokens around a base, as of position weight matrices; their
    product says of more than one base at once. What is no base, beyond the ends, PAD or N, scores 0.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        assert config.convolution is not None
        self.width = config.convolution
        self.num_strands = config.num_strands
        self.motifs = nn.Parameter(torch.empty(2 * config.d_model // self.num_strands, 5, self.width))
        self.out = _linear(config, config.d_model, config.d_model)
        nn.init.normal_(self.motifs, std=self.width**-0.5)
        nn.init.normal_(self.out.weight, std=config.d_model**-0.5)

    def forward(self, x_BNC: Tensor, shares_BNT: Tensor) -> Tensor:
        """``shares_BNT`` are of each position's token; 0 where it is to say nothing."""
        reach = self.width // 2
        # A view: what it takes to be a matrix is copied a chunk at a time.
        around_BNTK = functional.pad(shares_BNT, (0, 0, reach, reach)).unfold(1, self.width, 1)
        motifs: Tensor = self.motifs
        if self.num_strands == 2:  # the other strand reads the complement from the other side
            motifs = torch.cat([motifs, motifs[:, _COMPLEMENT].flip(2)])
        (out,) = _along_sequence(lambda x, around: self._add(x, around, motifs.flatten(1)), x_BNC, around_BNTK)
        return out

    def _add(self, x_BNC: Tensor, around_BNTK: Tensor, motifs: Tensor) -> tuple[Tensor]:
        gate_and_value = functional.linear(around_BNTK.flatten(2), motifs).unflatten(-1, (self.num_strands, -1))
        return (x_BNC + self.out(_SwiGLU.apply(gate_and_value).flatten(-2)),)


class ChannelProjection(nn.Module):
    """What channels of alignments add to the embedding: a linear map of them, each scaled to about one unit.

    It begins as zero, so that a model begins as it would without channels.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.num_strands = config.num_strands
        self.names = config.channels
        self.weight = nn.Parameter(torch.zeros(len(config.channels), config.d_model // self.num_strands))
        self.logarithmic: Tensor
        self.units: Tensor
        logarithmic = torch.tensor([name in LOGARITHMIC for name in config.channels])
        units = torch.tensor([CHANNEL_UNITS.get(name, 1.0) for name in config.channels])
        self.register_buffer("logarithmic", logarithmic, persistent=False)
        self.register_buffer("units", units, persistent=False)

    def forward(self, channels_BNF: Tensor, tokens_BN: Tensor) -> Tensor:
        with torch.autocast(tokens_BN.device.type, enabled=False):
            values_BNF = channels_BNF.float()
            added = self._project(values_BNF, tokens_BN)
            if self.num_strands == 2:
                added = torch.cat([added, self._project(self._other_strand(values_BNF), tokens_BN)], dim=-1)
            return added

    def _project(self, values_BNF: Tensor, tokens_BN: Tensor) -> Tensor:
        values_BNF = torch.where(self.logarithmic, values_BNF.clamp(min=0).log1p(), values_BNF / self.units)
        # The reads at a masked base would tell it.
        return torch.where(tokens_BN[..., None] == MASK, 0.0, values_BNF) @ self.weight

    def _other_strand(self, values_BNF: Tensor) -> Tensor:
        """As ``genosparse.channels.reverse_complement_channels``, but that positions stay where they are."""
        turned = values_BNF[..., other_strand(self.names)]
        if "reverse_strand" in self.names:
            here = torch.tensor([name == "reverse_strand" for name in self.names], device=turned.device)
            covered = values_BNF[..., [self.names.index("depth")]] > 0
            turned = torch.where(here, torch.where(covered, 1 - turned, 0.0), turned)
        return turned


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


class StrandOrder(NamedTuple):
    """Where both strands' rows are: side by side as hidden states have them, and apart as attention reads them.

    The flat indices of each are the inverse permutation of the other's.

    Attributes:
        apart: Index into ``[B, N, 2]``, the strands of a position side by side, for each of ``[2B, N]``: first the
            given strands, then the others, each from its 5' end, after the global tokens; int64.
        together: Index into ``[2B, N]`` for each of ``[B, N, 2]``.
    """

    apart: Tensor
    together: Tensor


def strand_order(tokens_BN: Tensor, num_global: int) -> StrandOrder:
    """Mirror each row within its own length: PAD at its end stays there, as it does with one strand."""
    batch, length = tokens_BN.shape
    position = torch.arange(length, device=tokens_BN.device)
    length_B1 = ((tokens_BN != PAD) * (position + 1)).amax(dim=1, keepdim=True)
    mirrored = torch.where(position < length_B1, length_B1 - 1 - position, position) + num_global
    own = torch.arange(num_global + length, device=tokens_BN.device).expand(batch, -1)
    mirrored = torch.cat([own[:, :num_global], mirrored], dim=1)
    row = torch.arange(batch, device=tokens_BN.device)[:, None] * (num_global + length)
    return StrandOrder(
        apart=torch.cat([(row + own) * 2, (row + mirrored) * 2 + 1]),
        together=torch.stack([row + own, batch * (num_global + length) + row + mirrored], dim=-1),
    )


class _Reorder(torch.autograd.Function):
    """Rows by a permutation; the gradient goes by its inverse, where that of indexing would be scattered sums."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows.index_select(0, index.flatten())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse.flatten()), None, None


class Block(nn.Module):
    """Pre-norm block: grouped-query sparse attention, then SwiGLU (Shazeer 2020), each added to its input."""

    def __init__(self, config: EncoderConfig, pattern: SparsePattern) -> None:
        super().__init__()
        assert config.mlp_hidden is not None
        self.pattern = pattern
        self.num_strands = config.num_strands
        # Of one strand.
        self.heads = tuple(heads // self.num_strands for heads in (config.num_heads, config.kv_heads, config.kv_heads))
        self.head_dim = config.head_dim
        channels = config.d_model
        self.attention_norm = RMSNorm(config.norm_eps)
        self.qkv = _linear(config, channels, self.num_strands * sum(self.heads) * self.head_dim)
        self.attention_out = _linear(config, channels, channels)
        self.mlp_norm = RMSNorm(config.norm_eps)
        self.mlp_in = _linear(config, channels, 2 * config.mlp_hidden)
        self.mlp_out = _linear(config, config.mlp_hidden, channels)
        for layer in (self.qkv, self.mlp_in):
            nn.init.normal_(layer.weight, std=channels**-0.5)
        for layer in (self.attention_out, self.mlp_out):
            # Each block adds two terms to the residual stream: keep their sum's variance near one at any depth.
            nn.init.normal_(layer.weight, std=(layer.in_features * 2 * config.num_layers) ** -0.5)

    def forward(
        self, x_BNC: Tensor, rotary_NP2: Tensor, key_mask_BN: Tensor | None, strands: StrandOrder | None = None
    ) -> Tensor:
        """``strands`` and a ``key_mask_BN`` of ``[2B, N]`` where there are two strands."""
        q, k, v = self._queries_keys_values(x_BNC, rotary_NP2, strands)
        mixed = sparse_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), self.pattern, key_mask=key_mask_BN
        )
        del q, k, v
        mixed = mixed.transpose(1, 2)
        if strands is None:
            (out,) = _along_sequence(self._finish, x_BNC, mixed)
        else:
            rows, apart = mixed.flatten(2).flatten(0, 1), strands.apart
            (out,) = _along_sequence(
                lambda x, here: self._finish(x, _Reorder.apply(rows, here, apart).unflatten(0, here.shape)),
                x_BNC,
                strands.together,
            )
        return out

    def _queries_keys_values(
        self, x_BNC: Tensor, rotary_NP2: Tensor, strands: StrandOrder | None
    ) -> tuple[Tensor, ...]:
        """As attention reads them: ``[B, N, H or G, D]``, with two strands ``[2B, N, H / 2 or G / 2, D]``."""
        if strands is None:
            return _along_sequence(lambda x, rotary: self._turn(self._project(x), rotary), x_BNC, rotary_NP2[None])
        (projected,) = _along_sequence(lambda x: (self._project(x),), x_BNC)
        rows, together = projected.unflatten(-1, (2, -1)).flatten(0, 2), strands.together
        return _along_sequence(
            lambda here, rotary: self._turn(_Reorder.apply(rows, here, together).unflatten(0, here.shape), rotary),
            strands.apart,
            rotary_NP2[None],
        )

    def _project(self, x_BNC: Tensor) -> Tensor:
        projected: Tensor = self.qkv(self.attention_norm(x_BNC, dtype=_autocast_dtype(x_BNC)))
        return projected

    def _turn(self, projected_BNC: Tensor, rotary_1NP2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qk, v = projected_BNC.unflatten(-1, (-1, self.head_dim)).split([sum(self.heads[:2]), self.heads[2]], dim=2)
        qk = _rotate(qk, rotary_1NP2[0])
        dtype = input_dtype(v.dtype, v.device, self.head_dim)
        q, k = qk.to(dtype).split(self.heads[:2], dim=2)
        return q, k, v.to(dtype)

    def _finish(self, x_BNC: Tensor, mixed: Tensor) -> tuple[Tensor]:
        x_BNC = x_BNC + self.attention_out(mixed.flatten(2))
        gate_and_value = self.mlp_in(self.mlp_norm(x_BNC, dtype=_autocast_dtype(x_BNC)))
        gate_and_value = gate_and_value.unflatten(-1, (self.num_strands, -1))
        return (x_BNC + self.mlp_out(_SwiGLU.apply(gate_and_value).flatten(-2)),)


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
    """Logits over A, C, G, T: products with a vector of each base, its own or that of the token embedding.

    With two strands a base's vector for the other strand's half is that of its complement.
    """

    def __init__(self, config: EncoderConfig, embedding: TokenEmbedding) -> None:
        super().__init__()
        self.num_strands = config.num_strands
        # In a tuple, so that its weight is not among this module's, and is saved once.
        self._embedding = (embedding,) if config.head == "tied" else ()
        if config.head == "tied":
            self.scale = nn.Parameter(torch.full((1,), _HEAD_STD))  # begins like a free one
            self.bias = nn.Parameter(torch.zeros(4))
        else:
            self.linear = nn.Linear(config.d_model // self.num_strands, 4)
            nn.init.normal_(self.linear.weight, std=_HEAD_STD)
            nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        # Always in float32: log-ratios of near-equal probabilities are what scores are made of.
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.linear(hidden.float(), *self._weight_and_bias())

    def _weight_and_bias(self) -> tuple[Tensor, Tensor]:
        if self._embedding:
            weight, bias = self.scale * self._embedding[0].vectors()[:4], self.bias
        else:
            weight, bias = self.linear.weight, self.linear.bias
            if self.num_strands == 2:
                weight = torch.cat([weight, weight.flip(0)], dim=1)
        return weight, bias if self.num_strands == 1 else (bias + bias.flip(0)) / 2
