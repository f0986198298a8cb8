"""Drawn patterns and tensors, and the measures that all backends are tested by."""

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from genosparse.attention import SparsePattern, sparse_attention

LENGTHS = (1, 2, 63, 64, 65, 100, 257, 777, 1000)
HEAD_DIMS = (8, 16, 24)

Masks = dict[str, Tensor | None]
Problem = tuple[SparsePattern, list[Tensor], Masks]


@st.composite
def patterns(draw: st.DrawFn) -> SparsePattern:
    stride = draw(st.sampled_from([None, 1, 2, 7, 16, 64, 100]))
    return SparsePattern(
        window=draw(st.sampled_from([None, 0, 1, 3, 17, 200])),
        stride=stride,
        stagger=stride is not None and draw(st.booleans()),
        num_global=draw(st.sampled_from([0, 0, 1, 3])),
        num_random_blocks=draw(st.sampled_from([0, 0, 2, 5])),
        causal=draw(st.booleans()),
        block_size=draw(st.sampled_from([1, 1, 1, 3, 16, 64])),
        seed=draw(st.integers(0, 99)),
    )


@st.composite
def problems(draw: st.DrawFn, lengths: Sequence[int] = LENGTHS, head_dims: Sequence[int] = HEAD_DIMS) -> Problem:
    """A pattern, float64 (q, k, v), and the optional masks."""
    pattern = draw(patterns())
    length, batch = draw(st.sampled_from(lengths)), draw(st.sampled_from([1, 2, 3]))
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    num_heads, head_dim = num_kv_heads * draw(st.sampled_from([1, 2])), draw(st.sampled_from(head_dims))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    tensors = [
        torch.randn(batch, heads, length, head_dim, dtype=torch.float64)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    ]
    key_mask = extra_blocks = None
    if draw(st.booleans()):
        key_mask = torch.rand(batch, length) < draw(st.sampled_from([0.0, 0.05, 0.5, 0.95]))
    if pattern.is_empty or draw(st.booleans()):
        blocks = math.ceil(length / 64)
        heads, most = draw(st.sampled_from([1, num_kv_heads])), draw(st.sampled_from([0, 1, 3]))
        extra_blocks = torch.randint(-1, blocks, (heads, blocks, most), dtype=torch.int32)
    return pattern, tensors, {"key_mask": key_mask, "extra_blocks": extra_blocks}


def attend(backend: str, tensors: list[Tensor], pattern: SparsePattern, masks: Masks) -> tuple[Tensor, ...]:
    """out, lse and the gradients of q, k, v for one fixed gradient of out."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in tensors)
    out, lse = sparse_attention(q, k, v, pattern, **masks, return_lse=True, backend=backend)
    return (out.detach(), lse, *torch.autograd.grad(out, (q, k, v), _fixed_grad(out)))


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, expected, strict=True):
        assert a.shape == b.shape
        assert not a.isnan().any(), name
        difference = torch.where(a == b, 0.0, a.double() - b.double()).abs().max()  # -inf equals -inf
        assert difference <= tolerance, f"{name} is off by {difference}"


def naive_attention(tensors: list[Tensor], pairs: Tensor) -> tuple[Tensor, ...]:
    """out and the gradients of q, k, v, every step in the tensors' own dtype."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in tensors)
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    hidden = ~pairs.repeat_interleave(group, 1)
    scores = (q @ keys.mT * q.shape[3] ** -0.5).masked_fill(hidden, torch.finfo(q.dtype).min)
    out = scores.softmax(-1).masked_fill(hidden, 0.0) @ values
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), _fixed_grad(out)))


def assert_within_naive(
    tensors: list[Tensor], got: tuple[Tensor, ...], naive: tuple[Tensor, ...], exact: tuple[Tensor, ...]
) -> None:
    """Errors, the largest and the mean, are at most twice those of naive attention in the same dtype.

    Args:
        tensors: q, k and v.
        got: out, lse, dq, dk, dv, as ``attend`` has them; so ``exact``.
        naive: out, dq, dk, dv.
        exact: In float64.
    """
    dtype = tensors[0].dtype
    for name, ours, theirs, truth in zip(
        ("out", "dq", "dk", "dv"), (got[0], *got[2:]), naive, (exact[0], *exact[2:]), strict=True
    ):
        assert ours.dtype == dtype
        error, bound = (ours.double() - truth).abs(), (theirs.double() - truth).abs()
        # Where naive attention happens to be exact (one key: its gradients cancel to 0), rounding is still allowed: of
        # the terms that cancel, and of a sum over all rows, which grows with the root of their number.
        sums = max(8, truth.shape[2] ** 0.5) * (1 + float(truth.abs().max()))
        slack = torch.finfo(dtype).eps * (sums + _largest_term(tensors))
        assert error.max() <= 2 * bound.max() + slack, name
        assert error.mean() <= 2 * bound.mean() + slack, name


def _largest_term(tensors: list[Tensor]) -> float:
    """What a term of the gradients of q and k can come to, where those of out are about 1."""
    q, k, v = (float(tensor.abs().max()) for tensor in tensors)
    return max(q, k) * v * tensors[0].shape[3] ** 0.5


def _fixed_grad(out: Tensor) -> Tensor:
    return torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(out)
