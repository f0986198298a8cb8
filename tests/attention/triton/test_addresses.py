"""Addresses past 2**31 elements: in memory that is reserved and, but for the last rows, never touched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genosparse.attention import SparsePattern
from genosparse.attention.reference import reference_attention
from genosparse.attention.triton import attention_backward, attention_forward, backward, backward_dkv, forward

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="reserves memory that a GPU would have to have")

PATTERN = SparsePattern(window=5)
SCALE = 0.25


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the interpreter from copying every argument onto itself after a launch, which would touch all of it."""
    from triton.runtime.interpreter import GridExecutor

    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *arguments: None)


def reference(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (tensor.double().requires_grad_() for tensor in (q, k, v))
    out, _ = reference_attention(q, k, v, PATTERN, scale=SCALE)
    return (out, *torch.autograd.grad(out, (q, k, v), grad.double()))


@pytest.mark.usefixtures("in_place")
def test_rows_far_apart_are_read_where_they_are() -> None:
    """100 rows of 16 values, each 2**25 elements after the one before: the last begins at 99 * 2**25 > 2**31."""
    torch.manual_seed(0)
    small = [torch.randn(1, 1, 100, 16).half() for _ in range(4)]
    memory = torch.empty(100 << 25, dtype=torch.float16)
    far = []
    for index, tensor in enumerate(small):
        view = memory.as_strided((1, 1, 100, 16), (1 << 25, 1 << 25, 1 << 25, 1), index * 64)
        view.copy_(tensor)
        far.append(view)
    q, k, v, grad = far
    out, lse = attention_forward(q, k, v, PATTERN, SCALE, None, None)
    grads = attention_backward(grad, q, k, v, out, lse, PATTERN, SCALE, None, None)
    for ours, truth in zip((out, *grads), reference(*small), strict=True):
        torch.testing.assert_close(ours.double(), truth, atol=1e-2, rtol=1e-2)


class LastProgram:
    """A kernel of which the last program of any grid runs alone."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arg_names = kernel.arg_names

    def __getitem__(self, grid: tuple[int, int, int]) -> Callable[..., None]:
        from triton.runtime.interpreter import interpreter_builder

        def run(**arguments: Any) -> None:
            with pytest.MonkeyPatch.context() as patch:
                set_dim, set_index = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
                patch.setattr(interpreter_builder, "set_grid_dim", lambda *dims: set_dim(*grid))
                patch.setattr(interpreter_builder, "set_grid_idx", lambda *at: set_index(*(size - 1 for size in grid)))
                self.kernel[(1, 1, 1)](**arguments)

        return run


@pytest.mark.usefixtures("in_place")
def test_results_far_into_memory_are_written_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 2**20 + 1, of 32 rows of 64 values each, that shares one q, k and v: the last begins at 2**31."""
    for module in (forward, backward, backward_dkv):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, LastProgram(getattr(module, name)))
    torch.manual_seed(0)
    small = [torch.randn(1, 1, 32, 64).half() for _ in range(4)]
    q, k, v, grad = (tensor.expand((1 << 20) + 1, -1, -1, -1) for tensor in small)
    out, lse = attention_forward(q, k, v, PATTERN, SCALE, None, None)
    assert out.numel() > 1 << 31
    grads = attention_backward(grad, q, k, v, out, lse, PATTERN, SCALE, None, None)
    for ours, truth in zip((out, *grads), reference(*small), strict=True):
        torch.testing.assert_close(ours[-1:].double(), truth, atol=1e-2, rtol=1e-2)
