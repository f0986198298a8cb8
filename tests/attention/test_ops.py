"""The operators as citizens of torch: registration, gradients, tracing, autocast, FLOP counts."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.ops import attention, attention_backward, pack_pattern
from genosparse.attention.reference import attended_pairs

PATTERN = SparsePattern(window=3, stride=9, stagger=True, num_global=1)
LENGTH = 150
EXTRA_BLOCKS = torch.tensor([[[0, -1], [2, 0], [1, 1]]], dtype=torch.int32)
EXTRA_BLOCKS_PER_HEAD = torch.tensor([[[1], [2], [0]], [[0], [-1], [1]]], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch.compiler.reset()


def tensors(*, length: int = LENGTH, dtype: torch.dtype = torch.float32, head_dim: int = 8) -> list[Tensor]:
    """q of 4 heads and k, v of 2, batch 2."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, heads, length, head_dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]


def key_mask(length: int = LENGTH) -> Tensor:
    """Hides a third of one row of the batch, and the whole of the other."""
    mask = torch.arange(length).remainder(3) > 0
    return torch.stack([mask, torch.zeros_like(mask)])


def gradients(out: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad(out, inputs, weights)


ARGUMENTS: dict[str, tuple[Tensor | None, Tensor | None]] = {
    "bare": (None, None),
    "key_mask": (key_mask(), None),
    "extra_blocks": (None, EXTRA_BLOCKS_PER_HEAD),
    "both": (key_mask(), EXTRA_BLOCKS),
}


@pytest.mark.parametrize("masks", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_forward_operator_is_registered_as_torch_wants_it(
    masks: tuple[Tensor | None, Tensor | None], dtype: torch.dtype
) -> None:
    torch.library.opcheck(attention, (*tensors(dtype=dtype), pack_pattern(PATTERN), 0.3, *masks, "cpu-aten"))


def test_forward_operator_takes_strided_tensors() -> None:
    """As the encoder gives them: [B, N, H, D] seen as [B, H, N, D]. A fake of other strides than the result's fails."""
    q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_() for x in tensors())
    strided = [x.transpose(1, 2) for x in (q, k, v)]
    torch.library.opcheck(attention, (*strided, pack_pattern(PATTERN), 0.3, key_mask(), EXTRA_BLOCKS, "cpu-aten"))


@pytest.mark.parametrize("masks", ARGUMENTS.values(), ids=ARGUMENTS)
def test_backward_operator_is_registered_as_torch_wants_it(masks: tuple[Tensor | None, Tensor | None]) -> None:
    q, k, v = (x.detach() for x in tensors())
    out, lse = attention(q, k, v, pack_pattern(PATTERN), 0.3, *masks, "cpu-aten")
    arguments = (torch.ones_like(out), q, k, v, out, lse, pack_pattern(PATTERN), 0.3, *masks, "cpu-aten")
    torch.library.opcheck(attention_backward, arguments)


def test_kernels_are_registered_as_torch_wants_it() -> None:
    """Both operators on the Triton kernels, and a compiled graph around them."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, k, v = (x.detach().to(device).requires_grad_() for x in tensors(length=70, dtype=torch.bfloat16))
    masks = (key_mask(70).to(device), torch.tensor([[[1], [-1]]], dtype=torch.int32, device=device))
    torch.library.opcheck(attention, (q, k, v, pack_pattern(PATTERN), 0.3, *masks, "triton"))

    def attend(*x: Tensor) -> Tensor:
        return sparse_attention(*x, PATTERN, key_mask=masks[0], extra_blocks=masks[1], backend="triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    out = attend(q, k, v)
    assert torch.equal(compiled(q, k, v), out)
    of_graph = torch.autograd.grad(compiled(q, k, v).sum(), (q, k, v))
    assert all(map(torch.equal, of_graph, torch.autograd.grad(out.sum(), (q, k, v))))


def test_gradcheck_with_hidden_keys_extra_blocks_and_rows_without_keys() -> None:
    q, k, v = tensors(length=70, dtype=torch.float64, head_dim=2)
    blocks = torch.tensor([[[1], [-1]], [[0], [1]]], dtype=torch.int32)

    def attend(*x: Tensor) -> Tensor:
        return sparse_attention(*x, PATTERN, key_mask=key_mask(70), extra_blocks=blocks, backend="cpu")

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)
    assert (attend(q, k, v)[1] == 0).all()  # the row of the batch whose keys are all hidden


@pytest.mark.parametrize("masks", ARGUMENTS.values(), ids=ARGUMENTS)
def test_compiles_in_one_graph_for_any_length(masks: tuple[Tensor | None, Tensor | None]) -> None:
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(sparse_attention, fullgraph=True, backend=backend)
    for length in (LENGTH, 140, 133, 145):  # three blocks of 64 each, as the tables have
        inputs = tensors(length=length)
        mask = None if masks[0] is None else key_mask(length)
        arguments = {"key_mask": mask, "extra_blocks": masks[1], "return_lse": True}
        out, lse = compiled(*inputs, PATTERN, **arguments)
        expected, expected_lse = sparse_attention(*inputs, PATTERN, **arguments)
        assert torch.equal(out, expected)
        assert torch.equal(lse, expected_lse)
        for got, want in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
            assert torch.equal(got, want)
    assert len(graphs) <= 2  # one for the first length, one for all others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_leaves_the_operator_alone(dtype: torch.dtype) -> None:
    """Not a bit changes: no product inside is cast, whichever way the operator computes."""
    inputs = tensors(dtype=dtype)
    masks = {"key_mask": key_mask(), "extra_blocks": EXTRA_BLOCKS}
    expected = sparse_attention(*inputs, PATTERN, **masks)
    expected_gradients = gradients(expected, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        out = sparse_attention(*inputs, PATTERN, **masks)
        found = gradients(out, inputs)
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    for got, want in zip(found, expected_gradients, strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, want)


FLOP_CASES: list[tuple[SparsePattern, Tensor | None]] = [
    (PATTERN, None),
    (PATTERN, EXTRA_BLOCKS),
    (SparsePattern(window=40, num_random_blocks=2, causal=True), EXTRA_BLOCKS_PER_HEAD),
    (SparsePattern(), EXTRA_BLOCKS_PER_HEAD),
    (SparsePattern.bigbird(16, 2), None),
]


@pytest.mark.parametrize("pattern, extra_blocks", FLOP_CASES)
def test_flops_are_counted_per_pair_and_query_head(pattern: SparsePattern, extra_blocks: Tensor | None) -> None:
    inputs = tensors()
    pairs = int(attended_pairs(pattern, LENGTH, 2, extra_blocks=extra_blocks).sum())
    pairs_of_heads = 2 * 2 * pairs  # batch 2, and two query heads per KV head
    with FlopCounterMode(display=False) as counter:
        out = sparse_attention(*inputs, pattern, extra_blocks=extra_blocks, key_mask=key_mask())
    assert counter.get_flop_counts()["Global"] == {torch.ops.genosparse.attention: 4 * 8 * pairs_of_heads}
    with FlopCounterMode(display=False) as counter:
        out = sparse_attention(*inputs, pattern, extra_blocks=extra_blocks)
        torch.autograd.grad(out, inputs, torch.ones_like(out))
    assert counter.get_flop_counts()["Global"] == {
        torch.ops.genosparse.attention: 4 * 8 * pairs_of_heads,
        torch.ops.genosparse.attention_backward: 10 * 8 * pairs_of_heads,
    }


def test_flops_of_a_table_without_values_are_an_upper_bound() -> None:
    """On fake tensors: window 1 sees 3 keys (2 at the ends), two more blocks are up to 128, and there are 150 keys."""

    def count(window: int) -> int:
        with FakeTensorMode(), FlopCounterMode(display=False) as counter:
            q, k = torch.empty(1, 4, LENGTH, 8), torch.empty(1, 2, LENGTH, 8)
            blocks = torch.empty(1, 3, 2, dtype=torch.int32)
            attention(q, k, k, pack_pattern(SparsePattern(window=window)), 1.0, None, blocks, "cpu-aten")
        return counter.get_total_flops()

    assert count(1) == 4 * 8 * 4 * (148 * 131 + 2 * 130)
    assert count(40) == 4 * 8 * 4 * LENGTH * LENGTH


@pytest.mark.parametrize("order", ["genosparse.attention, torch.utils.flop_counter", "torch.utils.flop_counter"])
def test_flop_formulas_are_there_whoever_is_imported_first_and_cost_no_import(order: str) -> None:
    script = f"""
import sys, torch
if {"genosparse" in order}:
    import genosparse.attention
    assert "triton" not in sys.modules and "torch.utils.flop_counter" not in sys.modules
import torch.utils.flop_counter
import genosparse.attention
registry = torch.utils.flop_counter.FlopCounterMode().flop_registry
print(*sorted(str(operator) for operator in registry if "genosparse" in str(operator)))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["genosparse.attention", "genosparse.attention_backward"]
