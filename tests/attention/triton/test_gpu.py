"""What only a GPU can show: the compiled kernels at lengths of use, in 16 bits, and the same bits every time."""

import pytest
import torch
from problems import Masks, assert_within_naive, attend, naive_attention
from torch import Tensor

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.reference import attended_pairs

pytestmark = pytest.mark.gpu

PATTERNS = [
    SparsePattern(window=512, stride=1024, num_global=1),
    SparsePattern(window=256, stride=256, stagger=True, causal=True),
    SparsePattern(window=64, stride=100, num_global=3, num_random_blocks=2),
    SparsePattern.bigbird(64, 3),
    SparsePattern.dense(causal=True),
]


def make_tensors(length: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, heads, length, head_dim, device="cuda", dtype=dtype) for heads in (4, 2, 2)]


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_error_is_within_twice_that_of_naive_attention(
    pattern: SparsePattern, dtype: torch.dtype, head_dim: int
) -> None:
    length = 3001
    tensors = make_tensors(length, head_dim, dtype)
    masks: Masks = {"key_mask": torch.rand(2, length, device="cuda") < 0.9, "extra_blocks": None}
    exact = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
    pairs = attended_pairs(pattern, length, 2, **masks).to("cuda")
    assert_within_naive(tensors, attend("triton", tensors, pattern, masks), naive_attention(tensors, pairs), exact)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_hundred_runs_give_the_same_bits(pattern: SparsePattern) -> None:
    tensors = make_tensors(8192, 64, torch.bfloat16)
    masks: Masks = {"key_mask": torch.rand(2, 8192, device="cuda") < 0.9, "extra_blocks": None}
    first = attend("triton", tensors, pattern, masks)
    for _ in range(100):
        assert all(torch.equal(a, b) for a, b in zip(attend("triton", tensors, pattern, masks), first, strict=True))


def test_a_million_positions_fit_and_agree_at_both_ends() -> None:
    """The last rows against the reference on a cut of the keys that they see."""
    length, pattern = 1 << 20, SparsePattern(window=512, stride=1024)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    out = sparse_attention(q, k, v, pattern)
    for row in (0, length // 2 + 3, length - 1):
        position = torch.arange(length, device="cuda")
        keys = (((position - row).abs() <= 512) | (position % 1024 == 0)).nonzero().flatten()
        weights = (q[0, 0, row].double() @ k[0, 0, keys].double().T / 8).softmax(-1)
        torch.testing.assert_close(out[0, 0, row].double(), weights @ v[0, 0, keys].double(), atol=1e-2, rtol=1e-2)
