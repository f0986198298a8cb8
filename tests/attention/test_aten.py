"""The backend on torch's CPU operators against the float64 reference: values, gradients, key counts, memory."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import Problem, assert_same, assert_within_naive, attend, naive_attention, problems

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.cpu import aten
from genosparse.attention.reference import attended_pairs


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_equals_the_reference_in_float64(
    problem: Problem,
) -> None:
    pattern, tensors, masks = problem
    assert_same(attend("cpu-aten", tensors, pattern, masks), attend("reference", tensors, pattern, masks), 1e-10)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    problem=problems(), sizes=st.sampled_from([(64, 40_000, 4_000, 16), (128, 200_000, 10_000, 32), (96, 1_000, 1, 7)])
)
def test_equals_the_reference_when_cut_small(problem: Problem, sizes: tuple[int, int, int, int]) -> None:
    """Chunks, slices and mask batches far smaller than in use, so that short sequences cross all their borders."""
    pattern, tensors, masks = problem
    expected = attend("reference", tensors, pattern, masks)
    with pytest.MonkeyPatch.context() as patch:
        for name, size in zip(("_SLICE", "_MASK_ELEMENTS", "_CHUNK_ELEMENTS", "_COLUMN_ROWS"), sizes, strict=True):
            patch.setattr(aten, name, size)
        assert_same(attend("cpu-aten", tensors, pattern, masks), expected, 1e-10)


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problem=problems(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_error_in_lower_precision_is_within_that_of_naive_attention(problem: Problem, dtype: torch.dtype) -> None:
    pattern, tensors, masks = problem
    tensors = [tensor.to(dtype) for tensor in tensors]
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
    got = attend("cpu-aten", tensors, pattern, masks)
    pairs = attended_pairs(pattern, tensors[0].shape[2], tensors[1].shape[1], **masks)
    naive = naive_attention(tensors, pairs)
    assert_within_naive(tensors, got, naive, expected)


@settings(max_examples=24, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_each_pair_counts_exactly_once(problem: Problem) -> None:
    """With q = 0 the lse is the logarithm of the number of keys; with dO = 1, dV sums 1 / count over the queries."""
    pattern, tensors, masks = problem
    q, k, v = torch.zeros_like(tensors[0]), tensors[1], tensors[2].clone().requires_grad_()
    out, lse = sparse_attention(q, k, v, pattern, **masks, return_lse=True, backend="cpu-aten")
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
        "cpu-aten", tensors, SparsePattern(window=3), {"key_mask": mask, "extra_blocks": None}
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
    expected = sparse_attention(q.contiguous(), k.contiguous(), v.contiguous(), pattern, backend="cpu-aten")
    assert torch.equal(sparse_attention(q, k, v, pattern, backend="cpu-aten"), expected)
    turned = [tensor.mT.contiguous().mT for tensor in (q, k, v)]
    assert torch.equal(sparse_attention(*turned, pattern, backend="cpu-aten"), expected)


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
    first = attend("cpu-aten", tensors, pattern, {"key_mask": None, "extra_blocks": None})
    for _ in range(3):
        again = attend("cpu-aten", tensors, pattern, {"key_mask": None, "extra_blocks": None})
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_memory_grows_with_length_and_not_its_square() -> None:
    """A forward and backward pass at 262,144 positions; anything N x N would take 64 GiB in single bytes."""
    script = """
import resource, torch
from genosparse.attention import SparsePattern, sparse_attention
q, k, v = (torch.randn(1, 1, 262_144, 16, requires_grad=True) for _ in range(3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pattern = SparsePattern(window=32, stride=8192, num_global=1, num_random_blocks=1)
sparse_attention(q, k, v, pattern, backend="cpu-aten").sum().backward()
assert all(x.grad.isfinite().all() for x in (q, k, v))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # q, k, v and the result are 16 MiB each, the gradients and their float32 sums 6 more of these.
    assert float(run.stdout) < 600
