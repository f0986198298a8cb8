"""The Triton kernels against the float64 reference: on the GPU where there is one, else in Triton's interpreter."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import Masks, Problem, assert_same, assert_within_naive, attend, naive_attention, problems
from torch import Tensor

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.reference import attended_pairs
from genosparse.attention.triton import launch
from genosparse.attention.triton.configurations import KERNELS, Configuration, override

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

PATTERNS = {
    "window": SparsePattern(window=17),
    "window of one": SparsePattern(window=0),
    "wide window": SparsePattern(window=300),
    "causal window": SparsePattern.mistral(70),
    "strided": SparsePattern(stride=7),
    "causal strided": SparsePattern(stride=7, causal=True),
    "window and strided": SparsePattern(window=40, stride=16),
    "staggered": SparsePattern(window=40, stride=16, stagger=True),
    "stride beyond the end": SparsePattern(window=3, stride=10**12, stagger=True),
    "global": SparsePattern(num_global=3),
    "window, strided and global": SparsePattern(window=33, stride=10, num_global=5),
    "the same, causal": SparsePattern(window=33, stride=10, num_global=5, causal=True),
    "more global than a tile": SparsePattern(window=5, num_global=70),
    "random": SparsePattern(num_random_blocks=2),
    "causal random": SparsePattern(window=9, num_random_blocks=3, causal=True),
    "bigbird": SparsePattern.bigbird(64, 2),
    "blocks of 16": SparsePattern(window=1, stride=5, stagger=True, num_global=1, num_random_blocks=2, block_size=16),
    "blocks of 48": SparsePattern(window=1, stride=3, num_random_blocks=1, block_size=48, causal=True),
    "blocks of 3": SparsePattern(window=4, stride=9, num_global=2, num_random_blocks=2, block_size=3),
    "blocks longer than all": SparsePattern(window=1, stride=3, num_random_blocks=1, block_size=1 << 40),
    "dense": SparsePattern.dense(),
    "causal dense": SparsePattern.dense(causal=True),
    "longformer": SparsePattern.longformer(64, num_global=1),
}
# Each with the tiles that it is cut into: several of them, but few, since the interpreter takes milliseconds a tile.
TILES = {1: (64, 64), 2: (16, 16), 63: (64, 16), 100: (32, 32), 777: (128, 128)}
HEAD_DIMS = (16, 64, 48, 32, 128, 24, 96, 80)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = ((1, 1), (2, 1), (2, 2), (3, 1), (4, 2))  # of queries, of keys and values
MASKS = ("none", "some", "extra", "all but few", "extra by head, some", "whole rows")

LONG_TO_INTERPRET = (
    "blocks of 3", "strided", "window", "wide window", "causal window", "causal strided", "window of one",
)  # fmt: skip

# Each pattern meets each length; head sizes, dtypes, heads and masks go round beside them, all pairs in the whole.
CASES = [
    pytest.param(
        pattern,
        length,
        HEAD_DIMS[index % len(HEAD_DIMS)],
        DTYPES[index // 3 % len(DTYPES)],
        HEADS[(index + index // 5) % len(HEADS)],
        MASKS[(index + index // 6) % len(MASKS)],
        id=f"{name}-{length}",
        # Many tiles: up to half a minute each in the interpreter.
        marks=[pytest.mark.slow] * (length == 777 and name in LONG_TO_INTERPRET),
    )
    for index, ((name, pattern), length) in enumerate(itertools.product(PATTERNS.items(), TILES))
]


def make_tensors(
    heads: tuple[int, int], length: int, head_dim: int, dtype: torch.dtype, batch: int = 1
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length + head_dim)
    return [
        torch.randn(batch, count, length, head_dim, generator=generator).to(dtype).to(DEVICE)
        for count in (heads[0], heads[1], heads[1])
    ]


def make_masks(kind: str, batch: int, num_kv_heads: int, length: int) -> Masks:
    generator = torch.Generator().manual_seed(length)
    masks: Masks = {"key_mask": None, "extra_blocks": None}
    if "some" in kind or "few" in kind:
        share = 0.05 if "few" in kind else 0.7
        masks["key_mask"] = (torch.rand(batch, length, generator=generator) < share).to(DEVICE)
    if kind == "whole rows":  # no key for whole tiles of queries
        masks["key_mask"] = (torch.arange(length) % 256 < 64).expand(batch, -1).contiguous().to(DEVICE)
    if "extra" in kind:
        blocks = math.ceil(length / 64)
        shape = (num_kv_heads if "head" in kind else 1, blocks, 3)
        masks["extra_blocks"] = torch.randint(-1, blocks, shape, generator=generator, dtype=torch.int32).to(DEVICE)
    return masks


def assert_right(tensors: list[Tensor], pattern: SparsePattern, masks: Masks) -> None:
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
    got = attend("triton", tensors, pattern, masks)
    if tensors[0].dtype == torch.float32:
        assert_same(got, expected, 2e-5)
        return
    pairs = attended_pairs(pattern, tensors[0].shape[2], tensors[1].shape[1], **masks).to(DEVICE)
    assert_within_naive(tensors, got, naive_attention(tensors, pairs), expected)
    has_key = expected[1].isfinite()
    assert torch.equal(got[1].isfinite(), has_key)
    torch.testing.assert_close(got[1][has_key], expected[1][has_key].float(), atol=2e-2, rtol=0)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("pattern, length, head_dim, dtype, heads, mask", CASES)
def test_equals_the_reference(
    pattern: SparsePattern, length: int, head_dim: int, dtype: torch.dtype, heads: tuple[int, int], mask: str
) -> None:
    tensors = make_tensors(heads, length, head_dim, dtype)
    tiles = {} if DEVICE == "cuda" else dict.fromkeys(KERNELS, Configuration(*TILES[length], 4, 1))
    with override(tiles):
        assert_right(tensors, pattern, make_masks(mask, 1, heads[1], length))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("blocks", [(16, 16), (64, 16), (16, 128), (128, 32)], ids=str)
def test_any_tile_size_gives_the_same(blocks: tuple[int, int]) -> None:
    pattern = SparsePattern(window=33, stride=10, num_global=5, num_random_blocks=1)
    tensors, masks = make_tensors((2, 1), 150, 16, torch.float32), make_masks("extra, some", 1, 1, 150)
    with override(dict.fromkeys(KERNELS, Configuration(*blocks, num_warps=4, num_stages=1))):
        got = attend("triton", tensors, pattern, masks)
    assert_same(got, attend("reference", [tensor.double() for tensor in tensors], pattern, masks), 2e-5)


@pytest.mark.usefixtures("poisoned")
def test_batches_and_their_masks_are_kept_apart() -> None:
    pattern = SparsePattern(window=20, stride=16, stagger=True, num_global=2)
    tensors, masks = make_tensors((4, 2), 130, 16, torch.float32, batch=3), make_masks("some", 3, 2, 130)
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
    assert_same(attend("triton", tensors, pattern, masks), expected, 2e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("num_heads", [16, 17, 24])
def test_many_query_heads_of_one_kv_head(num_heads: int) -> None:
    """Up to 16 share a tile; more go over several, whose gradients of k and v are added."""
    pattern = SparsePattern(window=5, stride=9, num_global=1)
    tensors = make_tensors((num_heads, 1), 70, 16, torch.float32)
    no_masks = make_masks("none", 1, 1, 70)
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, no_masks)
    assert_same(attend("triton", tensors, pattern, no_masks), expected, 4e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("poisoned")
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    problem=problems(lengths=(1, 2, 63, 64, 65, 100, 257), head_dims=(16, 24)),
    blocks=st.sampled_from([(16, 16), (16, 64), (64, 32), (64, 64), (128, 64)]),
)
def test_drawn_problems_equal_the_reference(problem: Problem, blocks: tuple[int, int]) -> None:
    pattern, tensors, masks = problem
    tensors = [tensor.float().to(DEVICE) for tensor in tensors]
    masks = {name: None if mask is None else mask.to(DEVICE) for name, mask in masks.items()}
    with override(dict.fromkeys(KERNELS, Configuration(*blocks, num_warps=4, num_stages=1))):
        got = attend("triton", tensors, pattern, masks)
    assert_same(got, attend("reference", [tensor.double() for tensor in tensors], pattern, masks), 1e-4)


@pytest.mark.parametrize("name", ["the same, causal", "staggered", "blocks of 16", "more global than a tile"])
def test_each_pair_counts_exactly_once(name: str) -> None:
    """With q = 0 the lse is the logarithm of the number of keys; with dO = 1, dV sums 1 / count over the queries."""
    pattern, length = PATTERNS[name], 200
    masks = make_masks("extra by head, some", 1, 2, length)
    q, k, v = make_tensors((4, 2), length, 16, torch.float32)
    v.requires_grad_()
    out, lse = sparse_attention(torch.zeros_like(q), k, v, pattern, **masks, return_lse=True, backend="triton")
    pairs = attended_pairs(pattern, length, 2, **masks).to(DEVICE)
    counts = pairs.sum(-1)
    torch.testing.assert_close(lse.exp(), counts.repeat_interleave(2, 1).float(), rtol=1e-5, atol=0)
    (grad_v,) = torch.autograd.grad(out, v, torch.ones_like(out))
    expected = 2 * (pairs.double() / counts.clamp(min=1)[..., None]).sum(2)
    torch.testing.assert_close(grad_v, expected[..., None].expand_as(grad_v).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("poisoned")
def test_rows_without_keys_give_zero_and_no_gradient() -> None:
    tensors = make_tensors((2, 2), 200, 16, torch.float32)
    mask = torch.ones(1, 200, dtype=torch.bool, device=DEVICE)
    mask[:, 20:150] = False
    out, lse, grad_q, grad_k, grad_v = attend(
        "triton", tensors, SparsePattern(window=3), {"key_mask": mask, "extra_blocks": None}
    )
    assert (out[:, :, 23:147] == 0).all()
    assert (lse[:, :, 23:147] == -torch.inf).all()
    assert lse[:, :, 147].isfinite().all()
    assert (grad_q[:, :, 23:147] == 0).all()
    assert (grad_k[:, :, 20:150] == 0).all()
    assert (grad_v[:, :, 20:150] == 0).all()


@pytest.mark.parametrize("scale", [0.0, 1e-50, -0.5, 3.0])
def test_any_scale(scale: float) -> None:
    pattern = SparsePattern(window=10, stride=16)
    q, k, v = (tensor.requires_grad_() for tensor in make_tensors((2, 1), 100, 16, torch.float32))
    results = []
    for backend in ("triton", "reference"):
        out = sparse_attention(q, k, v, pattern, scale=scale, backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)


def test_strided_memory_layout_changes_nothing() -> None:
    """The encoder's own layout, [B, N, H, D] transposed; a last dimension that is not contiguous; an expanded one."""
    pattern = SparsePattern(window=10, stride=16, num_global=1)
    q, k, v = (
        tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in make_tensors((4, 2), 90, 16, torch.float32)
    )
    expected = sparse_attention(q.contiguous(), k.contiguous(), v.contiguous(), pattern, backend="triton")
    assert torch.equal(sparse_attention(q, k, v, pattern, backend="triton"), expected)
    turned = [tensor.mT.contiguous().mT for tensor in (q, k, v)]
    assert torch.equal(sparse_attention(*turned, pattern, backend="triton"), expected)
    leaf = q.clone().requires_grad_()
    (of_sum,) = torch.autograd.grad(sparse_attention(leaf, k, v, pattern, backend="triton").sum(), leaf)
    (of_ones,) = torch.autograd.grad(sparse_attention(leaf, k, v, pattern, backend="triton"), leaf, torch.ones_like(q))
    assert torch.equal(of_sum, of_ones)


def test_inputs_stay_as_they_are() -> None:
    tensors = make_tensors((2, 1), 100, 16, torch.float32)
    before = [tensor.clone() for tensor in tensors]
    attend("triton", tensors, PATTERNS["window, strided and global"], make_masks("none", 1, 1, 100))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
@pytest.mark.parametrize(
    "pattern, per_query_tile",
    [
        # window=64 touches 3 tiles of 64 keys; forward has 2 products a tile, dq 3, dk and dv 4.
        (SparsePattern(window=64), 3 * (2 + 3 + 4)),
        (SparsePattern(window=63, causal=True), 2 * (2 + 3 + 4)),
        (SparsePattern(window=64, num_random_blocks=1), 3 * (2 + 3 + 4) + (2 + 3 + 4)),
    ],
    ids=["window", "causal", "random"],
)
def test_work_is_proportional_to_attended_tiles(
    pattern: SparsePattern, per_query_tile: int, count_products: list[int]
) -> None:
    counts = []
    for length in (1024, 2048):
        count_products[0] = 0
        attend("triton", make_tensors((1, 1), length, 16, torch.float32), pattern, make_masks("none", 1, 1, length))
        counts.append(count_products[0])
        assert count_products[0] <= per_query_tile * (length / 64)
    assert counts[1] <= 2.1 * counts[0]


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
def test_work_of_columns_and_global_rows_is_that_of_their_pairs(count_products: list[int]) -> None:
    """2,048 positions at stride 64: 32 columns are one tile of keys for each of 32 tiles of queries."""
    no_masks = make_masks("none", 1, 1, 2048)
    tensors = make_tensors((1, 1), 2048, 16, torch.float32)
    attend("triton", tensors, SparsePattern(stride=64), no_masks)
    assert count_products[0] == 32 * (2 + 3 + 4)
    count_products[0] = 0
    attend("triton", tensors, SparsePattern(num_global=1), no_masks)
    # One column for each tile of queries, and one global row against 32 tiles of keys, cut by at most 8 splits.
    assert 2 * 32 * (2 + 3 + 4) <= count_products[0] <= 2 * 32 * (2 + 3 + 4) + 8 * 5


@pytest.mark.parametrize("num_multiprocessors, num_splits", [(1, 2), (7, 3)])
def test_long_loops_are_split_over_programs(
    num_multiprocessors: int, num_splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns over shares of the queries, global rows over shares of the keys: four programs per multiprocessor."""
    pattern = SparsePattern(stride=8, num_global=3, num_random_blocks=1)
    tensors, no_masks = make_tensors((2, 1), 700, 16, torch.float32), make_masks("none", 1, 1, 700)
    monkeypatch.setattr(launch, "_num_multiprocessors", lambda device: num_multiprocessors)
    programs: dict[str, list[int]] = {}
    launch_kernel = launch.Problem.launch

    def recorded(problem: launch.Problem, kernel: Any, name: str, num_programs: int, *rest: Any, **own: Any) -> None:
        programs.setdefault(name, []).append(num_programs)
        launch_kernel(problem, kernel, name, num_programs, *rest, **own)

    monkeypatch.setattr(launch.Problem, "launch", recorded)
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, no_masks)
    assert_same(attend("triton", tensors, pattern, no_masks), expected, 2e-5)
    if DEVICE == "cpu":  # tiles of 64 there: 22 of queries, 2 of columns, 1 of global rows
        # At least 256 queries or keys to a share: no more than 3 of 700.
        assert programs["backward_dkv_columns"] == [2 * 2 if num_splits == 2 else 2 * 3]
        assert programs["forward"][1] == programs["backward_dq"][2] == 3


def test_popular_blocks_are_split_over_items() -> None:
    """Block 0 named by all of 40 blocks of queries: more entries than one item takes."""
    pattern = SparsePattern(window=2)
    extra = torch.zeros(1, 40, 1, dtype=torch.int32, device=DEVICE)
    masks: Masks = {"key_mask": None, "extra_blocks": extra}
    tensors = make_tensors((1, 1), 64 * 40 - 5, 16, torch.float32)
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
    assert_same(attend("triton", tensors, pattern, masks), expected, 2e-5)
