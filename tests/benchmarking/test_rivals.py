"""What genosparse is compared with computes what it says."""

import dataclasses

import pytest
import torch

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.benchmarking import rivals
from genosparse.benchmarking.rivals import OURS, RIVALS, Problem, chunked_window_attention
from genosparse.errors import PatternError


def problem_with(pattern: SparsePattern, length: int, **changes: object) -> Problem:
    return dataclasses.replace(Problem(pattern, length, 2, 4, 2, 8, torch.float64), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern",
    [
        SparsePattern(window=0),
        SparsePattern(window=5),
        SparsePattern(window=150),
        SparsePattern(window=1 << 40),
        SparsePattern(window=9, causal=True),
        SparsePattern(window=2, block_size=7),
        SparsePattern(window=5, stride=3, num_global=2),  # of which the window is computed
    ],
)
@pytest.mark.parametrize("length", [1, 63, 64, 300])
@pytest.mark.parametrize("slab", [1, 1 << 25])
def test_window_in_plain_operations(
    pattern: SparsePattern, length: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rivals, "_SLAB_ELEMENTS", slab)
    torch.manual_seed(length)
    tensors = problem_with(pattern, length).tensors(torch.device("cpu"), requires_grad=True)
    window = dataclasses.replace(pattern, stride=None, num_global=0)
    out = chunked_window_attention(*tensors, pattern)
    expected = sparse_attention(*tensors, window, backend="reference")
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    for found, wanted in zip(
        torch.autograd.grad(out, tensors, grad), torch.autograd.grad(expected, tensors, grad), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("causal", [False, True])
def test_every_rival_agrees_where_it_computes_the_same(causal: bool) -> None:
    """Over 50 positions a window of 50 is everything: dense, window alone and our backend are one."""
    torch.manual_seed(0)
    problem = problem_with(SparsePattern(window=50, stride=16, causal=causal), 50, dtype=torch.float32)
    tensors = problem.tensors(torch.device("cpu"), requires_grad=False)
    expected = sparse_attention(*tensors, problem.pattern, backend="reference")
    for rival in (*OURS["cpu"], *RIVALS.values()):
        torch.testing.assert_close(rival.attend(*tensors, problem), expected, msg=rival.name)


def test_useful_pairs() -> None:
    problem = problem_with(SparsePattern(window=1, stride=4), 8)
    # Rows 0 to 7 see {0,1,4}, {0,1,2,4}, {0,1,2,3,4}, {0,2,3,4}, {0,3,4,5}, {0,4,5,6}, {0,4,5,6,7}, {0,4,6,7}.
    by_hand = 3 + 4 + 5 + 4 + 4 + 4 + 5 + 4
    assert problem.count_pairs(problem.pattern) == by_hand * problem.batch * problem.num_heads
    window = RIVALS["window"].pattern(problem.pattern)
    assert problem.count_pairs(window) == (3 * 8 - 2) * problem.batch * problem.num_heads
    assert RIVALS["sdpa"].pattern(problem.pattern) == problem.pattern


def test_no_window_to_compute() -> None:
    with pytest.raises(PatternError, match="no window"):
        RIVALS["window"].pattern(SparsePattern(stride=4))


def test_memory_of_the_window_in_plain_operations() -> None:
    """In training it grows with length; forward it is bounded."""
    problem = problem_with(SparsePattern(window=512), 1 << 20, dtype=torch.float32)
    training, forward = (RIVALS["window"].extra_bytes(problem, mode) for mode in (True, False))
    assert training == 5.0 * problem.batch * problem.num_heads * problem.length * (256 + 1024)
    assert forward < 1 << 30
