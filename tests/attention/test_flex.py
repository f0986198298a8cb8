"""FlexAttention against the float64 reference: two readings of the definition that share no code."""

import ast
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from problems import Masks, Problem, assert_same, attend, problems

from genosparse.attention import SparsePattern, flex, sparse_attention
from genosparse.attention.reference import attended_pairs
from genosparse.errors import PatternError

NO_MASKS: Masks = {"key_mask": None, "extra_blocks": None}
BLOCKS_BY_HEAD = torch.tensor([0, 9], dtype=torch.int32).expand(13, 2).T[..., None]
drawn = problems(lengths=(1, 2, 63, 64, 65, 100, 200), head_dims=(1, 7, 8, 24))


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn)
def test_equals_the_reference_in_float64(problem: Problem) -> None:
    pattern, tensors, masks = problem
    got = attend("flex", tensors, pattern, masks)
    assert all(tensor.dtype == torch.float64 for tensor in got)
    assert_same(got, attend("reference", tensors, pattern, masks), 1e-10)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn)
def test_equals_the_reference_in_float32(problem: Problem) -> None:
    pattern, tensors, masks = problem
    tensors = [tensor.float() for tensor in tensors]
    got = attend("flex", tensors, pattern, masks)
    assert all(tensor.dtype == torch.float32 for tensor in got)
    assert_same(got, attend("reference", tensors, pattern, masks), 1e-4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems(lengths=(300, 777), head_dims=(1,)))
@example((SparsePattern(stride=8, stagger=True, block_size=64), [torch.zeros(1, 2, 777, 1)] * 3, NO_MASKS))
@example((SparsePattern(), [torch.zeros(1, 2, 777, 1)] * 3, {**NO_MASKS, "extra_blocks": BLOCKS_BY_HEAD}))
def test_block_mask_names_the_tiles_that_hold_a_pair(problem: Problem) -> None:
    """What the compiled kernel visits; the eager one asks ``mask_mod`` alone."""
    pattern, (q, k, _), masks = problem
    tiles = flex._block_mask(pattern, q.shape[1], k.shape[1], q.shape[2], q.device, **masks).to_dense().bool()
    pairs = attended_pairs(pattern, q.shape[2], k.shape[1], **masks).repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    for axis in (2, 3):
        pairs = torch.stack([part.any(dim=axis) for part in pairs.split(128, dim=axis)], dim=axis)
    assert torch.equal(*torch.broadcast_tensors(tiles, pairs))


def test_shares_no_code_with_what_it_judges() -> None:
    tree = ast.parse(Path(flex.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in imported if name.startswith("genosparse")} == {
        "genosparse.attention.pattern",
        "genosparse.errors",
    }
    assert not any(name.startswith("triton") for name in imported)


def test_rows_without_keys_give_zero_and_no_gradient() -> None:
    tensors = [torch.randn(2, 2, 50, 7) for _ in range(3)]
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[0, 10:30] = False
    out, lse, grad_q, grad_k, grad_v = attend("flex", tensors, SparsePattern(window=3), {**NO_MASKS, "key_mask": mask})
    assert (lse == -torch.inf).sum() == 2 * 14  # both heads, queries 13 to 26 of the first sequence
    for tensor in (out, grad_q):
        assert (tensor[0, :, 13:27] == 0).all()
        assert (tensor[0, :, 30:] != 0).all()
    for tensor in (grad_k, grad_v):
        assert (tensor[0, :, 10:30] == 0).all()
        assert (tensor[0, :, 30:] != 0).all()
    assert not any(tensor.isnan().any() for tensor in (out, grad_q, grad_k, grad_v))


def test_low_precision_keeps_its_dtype_and_a_float32_lse_without_gradient() -> None:
    tensors = [torch.randn(1, heads, 40, 8).bfloat16() for heads in (4, 2, 2)]
    q, k, v = (tensor.requires_grad_() for tensor in tensors)
    pattern = SparsePattern(window=4, stride=8)
    out, lse = flex.flex_attention(q, k, v, pattern, **NO_MASKS, scale=8**-0.5)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert not lse.requires_grad
    expected = attend("reference", tensors, pattern, NO_MASKS)
    assert (out - expected[0]).abs().max() < 0.03
    assert (lse - expected[1]).abs().max() < 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sparse_attention(q.float(), k.float(), v.float(), pattern, backend="flex").dtype == torch.float32


def test_strided_memory_layout_changes_nothing() -> None:
    pattern = SparsePattern(window=10, stride=16, num_global=1)
    tensors = [torch.randn(2, 100, heads, 16).transpose(1, 2) for heads in (4, 2, 2)]
    expected = attend("reference", tensors, pattern, NO_MASKS)
    assert_same(attend("flex", tensors, pattern, NO_MASKS), expected, 1e-4)
    turned = [tensor.mT.contiguous().mT for tensor in tensors]
    assert_same(attend("flex", turned, pattern, NO_MASKS), expected, 1e-4)


def test_kept_masks_serve_training_after_inference_and_are_not_confused() -> None:
    """The mask of a pattern is kept between calls; it must hold no inference tensors, nor serve another pattern."""
    tensors = [torch.randn(1, heads, 50, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    first = SparsePattern(num_random_blocks=1, block_size=4, seed=1)
    with torch.inference_mode():
        out = sparse_attention(*tensors, first, backend="flex")
    for pattern in (first, SparsePattern(num_random_blocks=1, block_size=4, seed=2), first):
        got = attend("flex", tensors, pattern, NO_MASKS)
        assert torch.equal(got[0], out) == (pattern is first)
        assert_same(got, attend("reference", tensors, pattern, NO_MASKS), 1e-10)


@pytest.mark.parametrize(
    "shape, dtype, size",
    [
        ((1, 1, 100_000, 8), torch.float32, "1 x 1 x 100,000 x 100,000 scores at once, 37.25 GiB"),
        ((2, 4, 3000, 8), torch.float32, "2 x 4 x 3,000 x 3,000 scores at once, 0.27 GiB"),
        ((1, 1, 8192, 8), torch.float64, "1 x 1 x 8,192 x 8,192 scores at once, 0.50 GiB"),
    ],
)
def test_refuses_what_would_not_fit_into_memory(shape: tuple[int, ...], dtype: torch.dtype, size: str) -> None:
    q, k, v = (torch.zeros(shape, dtype=dtype) for _ in range(3))
    with pytest.raises(PatternError, match=f"{size}, and takes at most 0.25 GiB; use backend='auto'"):
        sparse_attention(q, k, v, SparsePattern(window=4), backend="flex")


def test_refuses_other_devices() -> None:
    q = torch.zeros(1, 1, 10, 8, device="meta")
    with pytest.raises(PatternError, match="runs on CUDA and the CPU and q is on meta"):
        sparse_attention(q, q, q, SparsePattern(window=4), backend="flex")


PATTERNS = [
    SparsePattern(window=3, stride=7, num_global=2, num_random_blocks=2, stagger=True),
    SparsePattern(window=40, stride=100, num_global=1, num_random_blocks=2, stagger=True, seed=3),  # the same kernel
    SparsePattern(window=1, num_global=1, num_random_blocks=3, block_size=16, causal=True),
]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs the compiler g++")
def test_compiles_once_for_all_patterns_with_the_same_rules() -> None:
    """What CUDA runs, on the CPU, as far as it goes there: values without gradients."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    q, k, v = (torch.randn(2, heads, 300, 24) for heads in (4, 2, 2))
    mask = torch.rand(2, 300) < 0.5
    for pattern, num_graphs in zip(PATTERNS, (2, 2, 4), strict=True):  # FlexAttention and the making of its mask
        mask_mod = flex._mask_mod(pattern, 4, 2, 300, q.device, mask, None)
        block_mask = flex._compiled(flex.create_block_mask)(mask_mod, 2, 4, 300, 300, device="cpu")
        with torch.no_grad():
            out = flex._compiled(flex.torch_flex_attention)(q, k, v, block_mask=block_mask, scale=0.3, enable_gqa=True)
        expected = sparse_attention(q, k, v, pattern, key_mask=mask, scale=0.3, backend="reference")
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        assert counters["stats"]["unique_graphs"] == num_graphs


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [1, 63, 300, 1024])
def test_equals_the_reference_on_cuda(pattern: SparsePattern, length: int) -> None:
    tensors = [torch.randn(2, heads, length, 24, device="cuda") for heads in (4, 2, 2)]
    masks = {**NO_MASKS, "key_mask": torch.rand(2, length, device="cuda") < 0.5}
    assert_same(attend("flex", tensors, pattern, masks), attend("reference", tensors, pattern, masks), 1e-3)


@pytest.mark.gpu
def test_refuses_what_the_cuda_kernel_cannot_do() -> None:
    small, double = torch.zeros(1, 1, 10, 8, device="cuda"), torch.zeros(1, 1, 10, 16, device="cuda").double()
    for q, message in ((small, "head sizes of at least 16"), (double, "q is float64")):
        with pytest.raises(PatternError, match=message):
            sparse_attention(q, q, q, SparsePattern(window=4), backend="flex")
