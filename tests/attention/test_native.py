"""The native CPU kernels against the float64 reference, for each instruction set that the processor has."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import Masks, Problem, assert_same, assert_within_naive, attend, naive_attention, problems
from torch import Tensor

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.cpu import native
from genosparse.attention.reference import attended_pairs
from genosparse.errors import GenosparseWarning, PatternError

pytestmark = pytest.mark.skipif(
    native.instruction_set() is None, reason="no native kernels: no C compiler at installation, or another processor"
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEAD_DIMS = (1, 8, 16, 24, 40, 64, 100, 128)
NO_MASKS: Masks = {"key_mask": None, "extra_blocks": None}
SETS = native.available_instruction_sets()
# What multiplies bfloat16 leaves float32 to another set.
FLOAT32_SETS = [name for name in SETS if "bf16" not in name]
in_float32_alone = pytest.mark.parametrize("instruction_set", FLOAT32_SETS, indirect=True)
each_dtype = pytest.mark.parametrize(
    "instruction_set, dtype",
    [(name, dtype) for name in SETS for dtype in DTYPES if name in FLOAT32_SETS or dtype is torch.bfloat16],
    indirect=["instruction_set"],
    ids=str,
)
few_or_many = pytest.mark.parametrize("count", [12, pytest.param(60, marks=pytest.mark.slow)])


@pytest.fixture(params=SETS, autouse=True)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.use_instruction_set(request.param):
        yield request.param


def many(count: int) -> settings:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the memory of every result with NaN, or with bits that make no sense, before a kernel sees it."""

    def empty(shape: tuple[int, ...] | int, dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:
            return torch.full((shape,) if isinstance(shape, int) else shape, torch.nan, dtype=dtype)
        return torch.full((shape,), 255 if dtype == torch.uint8 else 0x5555, dtype=dtype)

    monkeypatch.setattr(native, "_empty", empty)


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]


def assert_near(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Equal to float32's precision, which is one of the largest values: sums over many queries come to some dozens."""
    largest = [torch.where(x.isfinite(), x, 0.0).abs().max().item() for x in expected]
    units = [max(1.0, size / 4) for size in largest]
    tolerance = 2e-5 * max(1.0, expected[0].shape[2] ** 0.5 / 4)
    assert_same(
        tuple(x.double() / unit for x, unit in zip(got, units, strict=True)),
        tuple(x / unit for x, unit in zip(expected, units, strict=True)),
        tolerance,
    )


@in_float32_alone
@few_or_many
def test_equals_the_reference_in_float32(count: int) -> None:
    @many(count)
    @given(problem=problems(head_dims=HEAD_DIMS))
    def check(problem: Problem) -> None:
        pattern, tensors, masks = problem
        expected = attend("reference", [tensor.float().double() for tensor in tensors], pattern, masks)
        assert_near(attend("cpu-native", in_float32(tensors), pattern, masks), expected)

    check()


@in_float32_alone
@few_or_many
def test_equals_the_reference_however_it_is_shared_out(count: int) -> None:
    """Slabs of one head, and few or many chunks, slots and splits."""

    @many(count)
    @given(
        problem=problems(head_dims=HEAD_DIMS),
        bytes_of_slab=st.sampled_from([1, 1 << 18]),
        items=st.sampled_from([1, 3, 64]),
    )
    def check(problem: Problem, bytes_of_slab: int, items: int) -> None:
        pattern, tensors, masks = problem
        expected = attend("reference", [tensor.float().double() for tensor in tensors], pattern, masks)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_SLAB_BYTES", bytes_of_slab)
            patch.setattr(native, "_ITEMS", items)
            assert_near(attend("cpu-native", in_float32(tensors), pattern, masks), expected)

    check()


@few_or_many
def test_error_is_within_that_of_naive_attention(count: int, instruction_set: str) -> None:
    dtypes = DTYPES if instruction_set in FLOAT32_SETS else (torch.bfloat16,)

    @many(count)
    @given(problem=problems(head_dims=HEAD_DIMS), dtype=st.sampled_from(dtypes))
    def check(problem: Problem, dtype: torch.dtype) -> None:
        pattern, tensors, masks = problem
        tensors = [tensor.to(dtype) for tensor in tensors]
        expected = attend("reference", [tensor.double() for tensor in tensors], pattern, masks)
        got = attend("cpu-native", tensors, pattern, masks)
        pairs = attended_pairs(pattern, tensors[0].shape[2], tensors[1].shape[1], **masks)
        assert_within_naive(tensors, got, naive_attention(tensors, pairs), expected)

    check()


@few_or_many
def test_each_pair_counts_exactly_once(count: int, instruction_set: str) -> None:
    """With q = 0 the lse is the logarithm of the number of keys; with dO = 1, dV sums 1 / count over the queries."""
    in_bfloat16 = instruction_set not in FLOAT32_SETS

    @many(count)
    @given(problem=problems())
    def check(problem: Problem) -> None:
        pattern, tensors, masks = problem
        tensors = [tensor.to(torch.bfloat16 if in_bfloat16 else torch.float32) for tensor in tensors]
        q, k, v = torch.zeros_like(tensors[0]), tensors[1], tensors[2].clone().requires_grad_()
        out, lse = sparse_attention(q, k, v, pattern, **masks, return_lse=True, backend="cpu-native")
        group = q.shape[1] // k.shape[1]
        pairs = attended_pairs(pattern, q.shape[2], k.shape[1], **masks).expand(len(q), -1, -1, -1)
        counts = pairs.sum(-1)
        torch.testing.assert_close(
            lse.exp(), counts.repeat_interleave(group, 1).float(), rtol=2e-4 if in_bfloat16 else 1e-5, atol=0
        )
        (grad_v,) = torch.autograd.grad(out, v, torch.ones_like(out))
        expected = group * (pairs.double() / counts.clamp(min=1)[..., None]).sum(2)
        rtol, atol = (8e-3, 1e-3) if in_bfloat16 else (1e-4, 1e-5)
        torch.testing.assert_close(grad_v.float(), expected[..., None].expand_as(grad_v).float(), rtol=rtol, atol=atol)

    check()


@each_dtype
def test_rows_without_keys_give_zero_and_no_gradient(dtype: torch.dtype) -> None:
    tensors = [torch.randn(1, 2, 50, 8).to(dtype) for _ in range(3)]
    mask = torch.ones(1, 50, dtype=torch.bool)
    mask[:, 10:30] = False
    for hidden in tensors[1:]:
        hidden[:, :, 10:30] = torch.nan  # what a mask hides must not be looked at
    out, lse, grad_q, grad_k, grad_v = attend(
        "cpu-native", tensors, SparsePattern(window=3), {"key_mask": mask, "extra_blocks": None}
    )
    assert (out[:, :, 13:27] == 0).all()
    assert (lse[:, :, 13:27] == -torch.inf).all()
    assert (lse[:, :, 27] > -torch.inf).all()
    assert (grad_q[:, :, 13:27] == 0).all()
    assert (grad_k[:, :, 10:30] == 0).all()
    assert (grad_v[:, :, 10:30] == 0).all()
    assert all(x.isfinite().all() for x in (out, grad_q, grad_k, grad_v))


@pytest.mark.parametrize("scale", [0.0, -0.3, 1e-3, 25.0])
@each_dtype
def test_any_scale(scale: float, dtype: torch.dtype) -> None:
    """Signs, and scores far beyond where exp overflows."""
    q, k, v = (torch.randn(1, 1, 150, 16).to(dtype).requires_grad_() for _ in range(3))
    pattern = SparsePattern(window=20, stride=8, num_global=1)
    results = []
    for backend in ("cpu-native", "reference"):
        out = sparse_attention(q, k, v, pattern, scale=scale, backend=backend)
        results.append((out, *torch.autograd.grad(out, (q, k, v), torch.ones_like(out))))
    bound = 2e-5 if dtype == torch.float32 else 0.06
    for got, expected in zip(*results, strict=True):
        assert (got.double() - expected.double()).abs().max() <= bound * max(1, abs(scale)) * (
            1 + expected.double().abs().max()
        )


@pytest.mark.parametrize("larger", ["keys", "queries", "all"])
@each_dtype
def test_scores_pass_the_bound_midway(larger: str, dtype: torch.dtype) -> None:
    """Maxima are looked for only once norms allow scores beyond 2^60: rows with and without keys before that tile."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 500, 32).to(dtype) for heads in (4, 2, 2))
    mask = torch.rand(1, 500) < 0.9
    mask[:, :64] = False
    if larger in ("keys", "all"):
        k[:, :, 200:230] *= 40
    if larger in ("queries", "all"):
        q[:, 1, 300:310] *= 40
    for pattern in (SparsePattern(window=60, stride=37), SparsePattern(window=40, causal=True), SparsePattern.dense()):
        masks: Masks = {"key_mask": mask, "extra_blocks": None}
        got = attend("cpu-native", [q, k, v], pattern, masks)
        expected = attend("reference", [x.double() for x in (q, k, v)], pattern, masks)
        naive = naive_attention([q, k, v], (attended_pairs(pattern, 500) & mask[:, None, None]).expand(1, 2, 500, 500))
        assert_within_naive([q, k, v], got, naive, expected)
        there = expected[1] > -torch.inf
        assert torch.equal(got[1] > -torch.inf, there)
        bound = 1e-3 if dtype == torch.bfloat16 else 1e-5
        assert (got[1] - expected[1])[there].abs().max() <= bound * (1 + expected[1][there].abs().max())


@each_dtype
def test_weights_of_every_size_are_right(dtype: torch.dtype) -> None:
    """Scores from -59 to 59 in base 2, each in turn beside one of 0: what 2^x gives, with its sign and its steps."""
    scores = torch.linspace(-59, 59, 4000)
    q = torch.ones(1, 1, 4000, 16).to(dtype)
    q *= scores[None, None, :, None] / 16
    k = torch.zeros(1, 1, 4000, 16, dtype=dtype)
    k[:, :, 0] = 1  # the first key's score is the row's own, all others' are 0
    v = torch.zeros(1, 1, 4000, 16, dtype=dtype)
    v[:, :, 0] = 1
    pattern = SparsePattern(num_global=2)
    out, lse = sparse_attention(q, k, v, pattern, scale=0.6931471805599453, return_lse=True, backend="cpu-native")
    seen = 2 ** q[0, 0, 2:].double().sum(-1)
    error = out[0, 0, 2:, 0].double() / (seen / (1 + seen)) - 1
    if dtype == torch.float16:  # which has no smaller numbers
        error = error[seen > 1e-3]
    bounds = {torch.float32: 2e-5, torch.bfloat16: 0.012, torch.float16: 2e-3}  # of float32, by the rounding of scores
    assert error.abs().max() <= bounds[dtype]
    off = lse[0, 0, 2:].double() - (1 + seen).log()
    assert off.abs().max() <= (8e-3 if dtype == torch.bfloat16 else 2e-5)


@each_dtype
def test_nan_reaches_the_rows_that_see_it(dtype: torch.dtype) -> None:
    tensors = [torch.randn(1, 2, 300, 16).to(dtype) for _ in range(3)]
    tensors[0][:, 0, 250] = torch.nan
    tensors[1][:, 1, 100] = torch.nan
    out, _, *_ = attend("cpu-native", tensors, SparsePattern(window=10), NO_MASKS)
    rows = out.isnan().any(-1)[0]
    assert rows[0].nonzero().flatten().tolist() == [250]
    assert rows[1, 90:111].all()
    assert not rows[1, :64].any()
    assert not rows[1, 192:].any()
    front = sparse_attention(*tensors, SparsePattern(num_global=2), return_lse=True, backend="cpu-native")
    tensors[0][:, 0, 1] = torch.nan  # of a row that sees every key
    out, lse = sparse_attention(*tensors, SparsePattern(num_global=2), return_lse=True, backend="cpu-native")
    assert not front[0][0, 0, 1].isnan().any()
    assert out[0, 0, 1].isnan().all()
    assert lse[0, 0, 1].isnan()
    torch.testing.assert_close(out[0, 0, 0], front[0][0, 0, 0])


@pytest.mark.parametrize("num_global", [0, 1])
@pytest.mark.parametrize("key", [1.0, -1.0])
@each_dtype
def test_large_values_under_large_and_small_weights(key: float, num_global: int, dtype: torch.dtype) -> None:
    """Sums of values under weights that no maximum scales pass float32's largest number where values are large."""
    q, k = (torch.full((1, 1, 200, 16), size).to(dtype) for size in (2.0, key))
    for size in (1e-3, 1.0, 2.0**29, 2.0**31, 1e25, 1e36):
        if size > torch.finfo(dtype).max:
            continue
        v = torch.ones(1, 1, 200, 16).to(dtype)
        v[:, :, 70:] = size  # some tiles are of moderate values
        out = sparse_attention(
            q, k, v, SparsePattern(window=50, num_global=num_global), scale=1.25, backend="cpu-native"
        )
        tolerance = 2e-2 if dtype == torch.bfloat16 else 2e-3
        for query, low, high in ((10, 0, 61), (75, 25, 126), (199, 149, 200)):
            keys = {*range(low, high), *range(num_global)}
            expected = sum(v[0, 0, row, 0].double() for row in sorted(keys)) / len(keys)
            assert (out[0, 0, query].double() / expected - 1).abs().max() < tolerance


@in_float32_alone
def test_norms_whose_squares_are_lost_bound_nothing() -> None:
    """Of a query of 1e-23 the square is 0 in float32, and with a large scale its scores are beyond exp's range."""
    q, k, v = torch.full((1, 1, 70, 16), 1e-23), torch.full((1, 1, 70, 16), 1e18), torch.randn(1, 1, 70, 16)
    k[:, :, 3] = 1.01e18
    for keys in (k, k * 1e-3):
        out = sparse_attention(q, keys, v, SparsePattern.dense(), scale=1e8, backend="cpu-native")
        expected = sparse_attention(q, keys, v, SparsePattern.dense(), scale=1e8, backend="reference")
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@each_dtype
def test_strided_memory_layout_changes_nothing(dtype: torch.dtype) -> None:
    """The encoder's own layout, [B, N, H, D] transposed, a non-contiguous last dimension, an expanded gradient."""
    pattern = SparsePattern(window=10, stride=16, num_global=1)
    q, k, v = (torch.randn(2, 200, heads, 16).to(dtype).transpose(1, 2) for heads in (4, 2, 2))
    contiguous = [x.contiguous() for x in (q, k, v)]
    expected = attend("cpu-native", contiguous, pattern, NO_MASKS)
    for layout in ([q, k, v], [x.mT.contiguous().mT for x in (q, k, v)]):
        leaves = [x.detach().requires_grad_() for x in layout]
        out, lse = sparse_attention(*leaves, pattern, return_lse=True, backend="cpu-native")
        assert torch.equal(out, expected[0])
        assert torch.equal(lse, expected[1])
        of_sum = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
        of_ones = torch.autograd.grad(out, leaves, torch.ones(out.shape, dtype=dtype))
        assert all(map(torch.equal, of_sum, of_ones))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("causal", [False, True])
@each_dtype
def test_same_bits_at_any_number_of_threads_and_every_time(causal: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, heads, 3000, 16).to(dtype) for heads in (4, 2, 2)]
    pattern = SparsePattern(window=40, stride=64, stagger=True, num_global=2, num_random_blocks=2, causal=causal)
    results = []
    for threads in (1, 2, 2, 2, 3, 16):
        torch.set_num_threads(threads)
        results.append(attend("cpu-native", tensors, pattern, NO_MASKS))
    for again in results[1:]:
        assert all(map(torch.equal, results[0], again))


def test_a_sequence_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(3, heads, 500, 32) for heads in (4, 2, 2)]
    pattern = SparsePattern(window=40, stride=64, num_global=2, num_random_blocks=2)
    whole = sparse_attention(*tensors, pattern, backend="cpu-native")
    for row in range(3):
        alone = sparse_attention(*(x[row : row + 1] for x in tensors), pattern, backend="cpu-native")
        assert torch.equal(alone, whole[row : row + 1])


def test_what_the_kernels_cannot_do_is_refused_by_name_and_served_by_aten() -> None:
    wide, double = torch.randn(1, 1, 10, 136), torch.randn(1, 1, 10, 8, dtype=torch.float64)
    pattern = SparsePattern(window=2)
    for x, message in ((wide, "head sizes up to 128 and q has 136"), (double, "q is float64")):
        with pytest.raises(PatternError, match=message):
            sparse_attention(x, x, x, pattern, backend="cpu-native")
        expected = sparse_attention(x, x, x, pattern, backend="cpu-aten")
        for backend in ("cpu", "auto"):
            assert torch.equal(sparse_attention(x, x, x, pattern, backend=backend), expected)
    long = torch.zeros(1, 1, 1, 1).expand(1, 1, (1 << 29) + 1, 1)
    with pytest.raises(PatternError, match="at most 536,870,912 positions"):
        sparse_attention(long, long, long, pattern, backend="cpu-native")


@each_dtype
def test_cpu_takes_the_native_kernels(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 100, 16).to(dtype) for _ in range(3))
    pattern = SparsePattern(window=2)
    expected = sparse_attention(q, k, v, pattern, backend="cpu-native")
    for backend in ("cpu", "auto"):
        assert torch.equal(sparse_attention(q, k, v, pattern, backend=backend), expected)


def test_without_the_library_aten_serves_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_chosen", None)
    monkeypatch.setattr(native, "_has_warned", False)
    q = torch.randn(1, 1, 30, 8)
    pattern = SparsePattern(window=2)
    expected = sparse_attention(q, q, q, pattern, backend="cpu-aten")
    with pytest.warns(GenosparseWarning, match="not built.*C compiler"):
        assert torch.equal(sparse_attention(q, q, q, pattern), expected)
    assert torch.equal(sparse_attention(q, q, q, pattern), expected)  # a second warning would be an error
    with pytest.raises(PatternError, match="cpu-native' is not built"):
        sparse_attention(q, q, q, pattern, backend="cpu-native")


@pytest.mark.parametrize(
    "pattern", [SparsePattern(window=3, stride=9, stagger=True, num_global=1), SparsePattern(num_random_blocks=1)]
)
@each_dtype
def test_operator_is_registered_as_torch_wants_it(pattern: SparsePattern, dtype: torch.dtype) -> None:
    from genosparse.attention.ops import attention, pack_pattern

    q, k, v = (torch.randn(2, heads, 70, 8).to(dtype).requires_grad_() for heads in (4, 2, 2))
    mask, blocks = torch.rand(2, 70) < 0.7, torch.tensor([[[1], [-1]]], dtype=torch.int32)
    torch.library.opcheck(attention, (q, k, v, pack_pattern(pattern), 0.3, mask, blocks, "cpu-native"))


@in_float32_alone
def test_long_rows_keep_their_precision() -> None:
    """Dense rows over many tiles, and weights that hang on the last of them."""
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 1, 5000, 32) for _ in range(3))
    k[:, :, -1] *= 4
    for pattern in (SparsePattern.dense(), SparsePattern(window=2500), SparsePattern(num_global=5000)):
        out, lse = sparse_attention(q, k, v, pattern, return_lse=True, backend="cpu-native")
        expected, expected_lse = sparse_attention(q, k, v, pattern, return_lse=True, backend="reference")
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("instruction_set", SETS[-1:], indirect=True)  # the process below takes the best
def test_work_and_memory_grow_with_the_pairs() -> None:
    """A forward and backward pass at 262,144 positions; anything N x N would take 64 GiB in single bytes."""
    script = """
import resource, torch
from genosparse.attention import SparsePattern, sparse_attention
q, k, v = (torch.randn(1, 1, 262_144, 16, requires_grad=True) for _ in range(3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pattern = SparsePattern(window=32, stride=8192, num_global=1, num_random_blocks=1)
sparse_attention(q, k, v, pattern, backend="cpu-native").sum().backward()
assert all(x.grad.isfinite().all() for x in (q, k, v))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # q, k, v and the result are 16 MiB each, the gradients, packed keys and their float32 sums 9 more of these.
    assert float(run.stdout) < 400


PATTERNS = (
    SparsePattern(window=70, stride=50, num_global=3),
    SparsePattern(window=1, stride=3, num_random_blocks=2, block_size=48, causal=True),
    SparsePattern.bigbird(64, 2),
)


@each_dtype
@pytest.mark.parametrize("pattern, head_dim", [*itertools.product(PATTERNS, (16, 72, 128))])
def test_every_dtype_and_head_size(pattern: SparsePattern, head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    tensors = [torch.randn(1, heads, 401, head_dim).to(dtype) for heads in (2, 1, 1)]
    expected = attend("reference", [tensor.double() for tensor in tensors], pattern, NO_MASKS)
    naive = naive_attention(tensors, attended_pairs(pattern, 401))
    assert_within_naive(tensors, attend("cpu-native", tensors, pattern, NO_MASKS), naive, expected)


SANITIZE = "-fsanitize=address,undefined"
SANITIZED_CALLS = """
import ctypes, itertools, sys, torch
from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.cpu import native
native._library = ctypes.CDLL(sys.argv[1])
torch.manual_seed(0)
patterns = [
    SparsePattern(window=70, stride=50, stagger=True, num_global=3, num_random_blocks=1),
    SparsePattern(window=1, stride=3, num_random_blocks=2, block_size=48, causal=True),
    SparsePattern(stride=7, causal=True),
    SparsePattern(num_global=70),
]
dtypes = (torch.float32, torch.bfloat16, torch.float16)
with native.use_instruction_set(sys.argv[2]):
    for pattern, (length, head_dim), dtype in itertools.product(patterns, ((1, 1), (65, 33), (401, 128)), dtypes):
        q, k, v = (torch.randn(2, heads, length, head_dim).to(dtype).requires_grad_() for heads in (4, 2, 2))
        mask, blocks = torch.rand(2, length) < 0.7, torch.randint(-1, -(-length // 64), (2, -(-length // 64), 2))
        out = sparse_attention(
            q, k, v, pattern, key_mask=mask, extra_blocks=blocks.to(torch.int32), backend="cpu-native"
        )
        torch.autograd.grad(out.sum(), (q, k, v))
print("finished")
"""


@pytest.fixture(scope="module")
def sanitized_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels compiled with gcc's address and undefined-behaviour sanitizers."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    folder = tmp_path_factory.mktemp("sanitized")
    options = {"CC": "gcc", "CFLAGS": f"-O1 -g {SANITIZE} -fno-sanitize-recover=all", "LDFLAGS": SANITIZE}
    build = ["setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib"), "--build-temp", str(folder / "temp")]
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, *build], cwd=root, env={**os.environ, **options}, check=True)
    (library,) = (folder / "lib/genosparse/attention/cpu").glob("_native*")
    return library


@pytest.mark.slow
def test_no_address_or_undefined_behaviour_under_the_sanitizers(sanitized_library: Path, instruction_set: str) -> None:
    """All rules, dtypes and both passes, in a process of its own.

    The sanitizer's allocator has torch's memory too, so that a step past any tensor shows.
    """
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
    }
    call = [sys.executable, "-c", SANITIZED_CALLS, str(sanitized_library), instruction_set]
    run = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "finished", run.stderr[-3000:]
    assert "runtime error" not in run.stderr
