"""Fixtures for the Triton kernels."""

import pytest
import torch
from torch import Tensor

from genosparse.attention.triton.launch import Problem


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the memory of every result with NaN before a kernel sees it: what it fails to write shows."""

    def empty(problem: Problem, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.full(shape, torch.nan, dtype=dtype, device=problem.q.device)

    monkeypatch.setattr(Problem, "empty", empty)


@pytest.fixture
def count_products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number: of the matrix products that the interpreter has run. Each tile of each kernel has a fixed few."""
    from triton.runtime.interpreter import InterpreterBuilder

    count = [0]
    create_dot = InterpreterBuilder.create_dot

    def counted(self: InterpreterBuilder, *arguments: object) -> object:
        count[0] += 1
        return create_dot(self, *arguments)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    return count
