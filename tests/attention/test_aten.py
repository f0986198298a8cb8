"""The CPU backend against the float64 reference: values, gradients, key counts, memory."""

import math
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.cpu import aten
from genosparse.attention.reference import attended_pairs

LENGTHS = [1, 2, 63, 64, 65, 100, 257, 777, 1000]


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
def problems(draw: st.DrawFn) -> tuple[SparsePattern, list[Tensor], dict[str, Tensor | None]]:
    """A pattern, float64 (q, k, v), and the optional masks."""
    pattern = draw(patterns())
    length, batch = draw(st.sampled_from(LENGTHS)), draw(st.sampled_from([1, 2, 3]))
    num_kv_heads = draw(st.sampled_from([1, 2, 3]))
    num_heads, head_dim = num_kv_heads * draw(st.sampled_from([1, 2])), draw(st.sampled_from([8, 16, 24]))
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
        heads, most = draw(st.sampled_from([1, num_kv_heads])), draw(st.sampled_from([1, 3]))
        extra_blocks = torch.randint(-1, blocks, (heads, blocks, most), dtype=torch.int32)
    return pattern, tensors, {"key_mask": key_mask, "extra_blocks": extra_blocks}


def attend(
    backend: str, tensors: list[Tensor], pattern: SparsePattern, masks: dict[str, Tensor | None]
) -> tuple[Tensor, ...]:
    """out, lse and the gradients of q, k, v for one fixed gradient of out."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in tensors)
    out, lse = sparse_attention(q, k, v, pattern, **masks, return_lse=True, backend=backend)
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    return (out.detach(), lse, *torch.autograd.grad(out, (q, k, v), grad))


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, expected, strict=True):
        assert a.shape == b.shape
        assert not a.isnan().any(), name
        difference = torch.where(a == b, 0.0, a.double() - b.double()).abs().max()  # -inf equals -inf
        assert difference <= tolerance, f"{name} is off by {difference}"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_equals_the_reference_in_float64(
    problem: tuple[SparsePattern, list[Tensor], dict[str, Tensor | None]],
) -> None:
    pattern, tensors, masks = problem
    assert_same(attend("cpu", tensors, pattern, masks), attend("reference", tensors, pattern, masks), 1e-10)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    problem=problems(), sizes=st.sampled_from([(64, 40_000, 4_000, 16), (128, 200_000, 10_000, 32), (96, 1_000, 1, 7)])
)
def test_equals_the_reference_when_cut_small(
    problem: tuple[SparsePattern, list[Tensor], dict[str, Tensor | None]], sizes: tuple[int, int, int, int]
) -> None:
    """Chunks, slices and mask batches far smaller than in use, so that short sequences cross all their borders."""
    pattern, tensors, masks = problem
    expected = attend("reference", tensors, pattern, masks)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_SLICE", "_MASK_ELEMENTS", "_CHUNK_ELEMENTS", "_COLUMN_ROWS"), sizes, strict=True):
            patch.setattr(aten, name, size)
        assert_same(attend("cpu", tensors, pattern, masks), expected, 1e-10)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problem=problems(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_error_in_lower_precision_is_within_that_of_naive_attention(
    problem: tuple[SparsePattern, list[Tensor], dict[str, Tensor | None]], dtype: torch.dtype
) -> None:
    pattern, tensors, masks = problem
    tensors = [tensor.to(dtype) for tensor in tensors]
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
    got = attend("cpu", tensors, pattern, masks)
    pairs = attended_pairs(pattern, tensors[0].shape[2], tensors[1].shape[1], **masks)
    naive = naive_attention(tensors, pairs)
    for name, ours, theirs, truth in zip(
        ("out", "dq", "dk", "dv"), (got[0], *got[2:]), naive, (expected[0], *expected[2:]), strict=True
    ):
        assert ours.dtype == dtype
        error, bound = (ours.double() - truth).abs(), (theirs.double() - truth).abs()
        # Where naive attention happens to be exact (one key: its gradients cancel to 0), rounding is still allowed.
        slack = 8 * torch.finfo(dtype).eps * (1 + float(truth.abs().max()))
        assert error.max() <= 2 * bound.max() + slack, name
        assert error.mean() <= 2 * bound.mean() + slack, name


def naive_attention(tensors: list[Tensor], pairs: Tensor) -> tuple[Tensor, ...]:
    """Every step in the tensors' own dtype."""
    q, k, v = (tensor.clone().requires_grad_() for tensor in tensors)
    group = q.shape[1] // k.shape[1]
    keys, values = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    hidden = ~pairs.repeat_interleave(group, 1)
    scores = (q @ keys.mT * q.shape[3] ** -0.5).masked_fill(hidden, torch.finfo(q.dtype).min)
    out = scores.softmax(-1).masked_fill(hidden, 0.0) @ values
    grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    return (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_each_pair_counts_exactly_once(problem: tuple[SparsePattern, list[Tensor], dict[str, Tensor | None]]) -> None:
    """With q = 0 the lse is the logarithm of the number of keys; with dO = 1, dV sums 1 / count over the queries."""
    pattern, tensors, masks = problem
    q, k, v = torch.zeros_like(tensors[0]), tensors[1], tensors[2].clone().requires_grad_()
    out, lse = sparse_attention(q, k, v, pattern, **masks, return_lse=True, backend="cpu")
    group = q.shape[1] // k.shape[1]
    pairs = attended_pairs(pattern, q.shape[2], k.shape[1], **masks).expand(len(q), -1, -1, -1)
    counts = pairs.sum(-1)
    torch.testing.assert_close(lse.exp(), counts.repeat_interleave(group, 1).double())
    (grad_v,) = torch.autograd.grad(out, v, torch.ones_like(out))
    expected = group * (pairs.double() / counts.clamp(min=1)[..., None]).sum(2)
    torch.testing.assert_close(grad_v, expected[..., None].expand_as(grad_v))


def test_rows_without_keys_give_zero_and_no_gradient() -> None:
    tensors = [torch.randn(1, 2, 50, 8) for _ in range(3)]
    mask = torch.ones(1, 50, dtype=torch.bool)
    mask[:, 10:30] = False
    out, lse, grad_q, grad_k, grad_v = attend(
        "cpu", tensors, SparsePattern(window=3), {"key_mask": mask, "extra_blocks": None}
    )
    assert (out[:, :, 13:27] == 0).all()
    assert (lse[:, :, 13:27] == -torch.inf).all()
    assert (lse[:, :, 27] > -torch.inf).all()
    assert (grad_q[:, :, 13:27] == 0).all()
    assert (grad_k[:, :, 10:30] == 0).all()
    assert (grad_v[:, :, 10:30] == 0).all()


def test_strided_memory_layout_changes_nothing() -> None:
    """The encoder's own layout, [B, N, H, D] transposed, and a non-contiguous last dimension."""
    pattern = SparsePattern(window=10, stride=16, num_global=1)
    q, k, v = (torch.randn(2, 200, heads, 16).transpose(1, 2) for heads in (4, 2, 2))
    expected = sparse_attention(q.contiguous(), k.contiguous(), v.contiguous(), pattern, backend="cpu")
    assert torch.equal(sparse_attention(q, k, v, pattern, backend="cpu"), expected)
    turned = [tensor.mT.contiguous().mT for tensor in (q, k, v)]
    assert torch.equal(sparse_attention(*turned, pattern, backend="cpu"), expected)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_same_result_every_time() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, 3000, 16) for heads in (4, 2, 2)]
    pattern = SparsePattern(window=40, stride=64, stagger=True, num_global=2, num_random_blocks=2)
    first = attend("cpu", tensors, pattern, {"key_mask": None, "extra_blocks": None})
    for _ in range(3):
        again = attend("cpu", tensors, pattern, {"key_mask": None, "extra_blocks": None})
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory_grows_with_length_and_not_its_square() -> None:
    """A forward and backward pass at 262,144 positions; anything N x N would take 64 GiB in single bytes."""
    script = """
import resource, torch
from genosparse.attention import SparsePattern, sparse_attention
q, k, v = (torch.randn(1, 1, 262_144, 16, requires_grad=True) for _ in range(3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pattern = SparsePattern(window=32, stride=8192, num_global=1, num_random_blocks=1)
sparse_attention(q, k, v, pattern, backend="cpu").sum().backward()
assert all(x.grad.isfinite().all() for x in (q, k, v))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # q, k, v and the result are 16 MiB each, the gradients and their float32 sums 6 more of these.
    assert float(run.stdout) < 600
