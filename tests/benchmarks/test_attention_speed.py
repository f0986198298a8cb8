"""Attention on this machine, counting useful pairs alone (4 D FLOPs each forward, 10 D backward), beside torch.mm.

    pytest -m benchmark -s tests/benchmarks/test_attention_speed.py

Run it on a quiet machine: the figures are ratios taken in one run, and are printed whether they hold or not.
"""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from genosparse.attention import SparsePattern, sparse_attention

# (pattern, query heads, KV heads, head size, length)
PROBLEMS = [
    (SparsePattern(window=512, stride=1024), 4, 4, 64, 131_072),
    (SparsePattern(window=512, stride=1024, num_global=1), 4, 2, 64, 131_072),
    (SparsePattern(window=512, stride=1000, stagger=True), 4, 2, 64, 131_072),
    (SparsePattern(window=512), 4, 4, 64, 65_536),
    (SparsePattern(window=64, stride=128, num_global=1), 4, 2, 32, 65_536),
]
FORWARD_TARGET = 0.5  # of torch.mm's float32 rate, at head size 64


def seconds(function: Callable[[], object]) -> float:
    """Median of five calls, after one that does not count."""
    function()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def count_pairs(pattern: SparsePattern, num_heads: int, num_kv_heads: int, length: int) -> float:
    """Attended pairs of all heads: with q = 0 the lse is the logarithm of each row's count."""
    q, k = (torch.zeros(1, heads, length, 8) for heads in (num_heads, num_kv_heads))
    return float(sparse_attention(q, k, k, pattern, return_lse=True)[1].exp().double().sum())


@pytest.mark.benchmark
@pytest.mark.parametrize(
    "problem", PROBLEMS, ids=lambda problem: f"{problem[0].window}-{problem[0].stride}-{problem[3]}"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_rate(problem: tuple[SparsePattern, int, int, int, int], dtype: torch.dtype) -> None:
    pattern, num_heads, num_kv_heads, head_dim, length = problem
    square = torch.randn(2048, 2048)
    product = 2 * 2048**3 / seconds(lambda: square @ square)
    q, k, v = (
        torch.randn(1, heads, length, head_dim, dtype=dtype, requires_grad=True)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    pairs = count_pairs(pattern, num_heads, num_kv_heads, length)
    with torch.no_grad():
        forward = 4 * head_dim * pairs / seconds(lambda: sparse_attention(q, k, v, pattern))
    out = sparse_attention(q, k, v, pattern)
    grad = torch.randn_like(out)
    backward = 10 * head_dim * pairs / seconds(lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
    print(
        f"\n{pattern.window=} {pattern.stride=} D={head_dim} {dtype}: "
        f"forward {forward / 1e9:.0f} GFLOP/s ({forward / product:.2f} of torch.mm float32), "
        f"backward {backward / 1e9:.0f} ({backward / product:.2f})"
    )
    if head_dim == 64 and dtype == torch.float32 and not pattern.stagger:
        assert forward / product >= FORWARD_TARGET
