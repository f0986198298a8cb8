"""The door: what it refuses, and what it promises of its results."""

import math
import os
import subprocess
import sys

import pytest
import torch

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.errors import PatternError

PATTERN = SparsePattern(window=4)
interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors are on the CPU: for Triton's interpreter")


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"q": torch.randn(2, 4, 70, 8), "k": torch.randn(2, 2, 70, 8), "v": torch.randn(2, 2, 70, 8), **changes}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"q": torch.randn(4, 70, 8)}, r"\[B, H, N, D\]"),
        ({"k": torch.randn(2, 3, 70, 8), "v": torch.randn(2, 3, 70, 8)}, "3 KV heads"),
        ({"k": torch.randn(2, 2, 71, 8)}, "differ in batch, length or head size"),
        ({"v": torch.randn(2, 1, 70, 8)}, "k and v in heads too"),
        ({"q": torch.randn(1, 4, 70, 8)}, "differ in batch"),
        ({"q": torch.randn(2, 4, 70, 8).bfloat16()}, "expected one dtype"),
        ({name: torch.zeros(2, 2, 70, 8, dtype=torch.int64) for name in "qkv"}, "expected one dtype"),
        ({name: torch.randn(2, 2, 0, 8) for name in "qkv"}, "empty dimension"),
        ({name: torch.randn(2, 2, 70, 512) for name in "qkv"}, "head size 512"),
        ({"q": torch.randn(2, 4, 70, 8, device="meta")}, "expected one device"),
        ({"key_mask": torch.ones(2, 70)}, "key_mask is torch.float32"),
        ({"key_mask": torch.ones(2, 71, dtype=torch.bool)}, "key_mask"),
        ({"extra_blocks": torch.zeros(1, 2, 1)}, "extra_blocks is torch.float32"),
        ({"extra_blocks": torch.zeros(1, 3, 1, dtype=torch.int32)}, "extra_blocks"),
        ({"extra_blocks": torch.full((1, 2, 1), 2, dtype=torch.int32)}, "names blocks 2 to 2"),
        ({"extra_blocks": torch.full((1, 2, 1), -2, dtype=torch.int32)}, "names blocks -2"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PatternError, match=message) as error:
        sparse_attention(**tensors(**changes), pattern=PATTERN)
    assert isinstance(error.value, ValueError)


def test_pattern_without_rules_is_refused_unless_blocks_are_given() -> None:
    with pytest.raises(PatternError, match="every rule off"):
        sparse_attention(**tensors(), pattern=SparsePattern())
    blocks = torch.zeros(1, 2, 1, dtype=torch.int32)
    assert sparse_attention(**tensors(), pattern=SparsePattern(), extra_blocks=blocks).shape == (2, 4, 70, 8)


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(PatternError, match="cpu-aten"):
        sparse_attention(**tensors(), pattern=PATTERN, backend="cuda-magic")


def test_named_cpu_backend_does_not_run_elsewhere() -> None:
    moved = {name: tensor.to("meta") for name, tensor in tensors().items()}
    with pytest.raises(PatternError, match="runs on the CPU"):
        sparse_attention(**moved, pattern=PATTERN, backend="cpu")


TRITON_ERRORS = """
import torch
from genosparse.attention import SparsePattern, sparse_attention
for q in (torch.zeros(1, 1, 8, 16), torch.zeros(1, 1, 8, 16, device="meta")):
    try:
        sparse_attention(q, q, q, SparsePattern(window=1), backend="triton")
    except ValueError as error:
        print(error)
"""


def test_triton_without_cuda_names_the_interpreter() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)
    run = subprocess.run(
        [sys.executable, "-c", TRITON_ERRORS], env=environment, capture_output=True, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    assert all("set TRITON_INTERPRET=1 before the start" in line and "use backend='cpu'" in line for line in lines)


@interpreted
@pytest.mark.parametrize(
    "changes, message",
    [
        ({name: torch.zeros(2, 2, 70, 8, dtype=torch.float64) for name in "qkv"}, "q is float64"),
        ({name: torch.zeros(2, 2, 70, 136) for name in "qkv"}, "head sizes up to 128 and q has 136"),
        ({name: torch.zeros(1, 1, 1, 1).expand(1, 1, 1 << 30, 1) for name in "qkv"}, "at most 536,870,912 positions"),
        ({name: torch.zeros(1, 1, 1, 1).expand(1 << 16, 1, 1, 1) for name in "qkv"}, "at most 65,535 sequences"),
        ({name: torch.zeros(1, 1, 1, 1).expand(1, 1 << 16, 1, 1) for name in "qkv"}, "at most 65,535 query heads"),
    ],
)
def test_triton_refuses_what_it_cannot_do(changes: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(PatternError, match=message):
        sparse_attention(**tensors(**changes), pattern=PATTERN, backend="triton")


@pytest.mark.parametrize("scale", [math.inf, -math.inf, math.nan, 1e39])
def test_scale_must_be_finite(scale: float) -> None:
    with pytest.raises(PatternError, match="finite"):
        sparse_attention(**tensors(), pattern=PATTERN, scale=scale)


@pytest.mark.parametrize(
    "backend", ["auto", pytest.param("triton", marks=interpreted), "cpu", "cpu-aten", "flex", "reference"]
)
def test_dtypes_and_gradient_of_the_results(backend: str) -> None:
    values = {name: tensor.bfloat16().requires_grad_() for name, tensor in tensors().items()}
    out, lse = sparse_attention(**values, pattern=PATTERN, return_lse=True, backend=backend)
    assert out.dtype == torch.bfloat16
    assert out.requires_grad
    assert lse.dtype == torch.float32
    assert not lse.requires_grad


def test_scale_defaults_to_the_root_of_the_head_size() -> None:
    values = tensors()
    default = sparse_attention(**values, pattern=PATTERN)
    assert torch.equal(default, sparse_attention(**values, pattern=PATTERN, scale=8**-0.5))
    assert not torch.equal(default, sparse_attention(**values, pattern=PATTERN, scale=1.0))


def test_dense_is_what_torch_computes() -> None:
    values = tensors()
    expected = torch.nn.functional.scaled_dot_product_attention(
        **{
            "query": values["q"],
            "key": values["k"],
            "value": values["v"],
            "enable_gqa": True,
        }
    )
    torch.testing.assert_close(sparse_attention(**values, pattern=SparsePattern.dense()), expected)
    causal = torch.nn.functional.scaled_dot_product_attention(
        values["q"], values["k"], values["v"], is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(sparse_attention(**values, pattern=SparsePattern.dense(causal=True)), causal)


def test_operator_is_registered_as_torch_wants_it() -> None:
    from genosparse.attention.ops import attention, pack_pattern

    q, k, v = (tensor.requires_grad_() for tensor in tensors().values())
    torch.library.opcheck(
        attention, (q, k, v, pack_pattern(SparsePattern(window=3, stride=9)), 0.3, None, None, "cpu-aten")
    )


def test_gradcheck() -> None:
    q, k, v = (torch.randn(1, heads, 40, 4, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1))
    pattern = SparsePattern(window=2, stride=8, num_global=1)
    assert torch.autograd.gradcheck(lambda *x: sparse_attention(*x, pattern, backend="cpu"), (q, k, v))
