"""The encoder under torch.compile, torch.export, activation checkpointing and autocast, against plain eager."""

import copy
import math
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.encoder.layers import Block, rotary_angles, rotary_turns
from genosparse.errors import ConfigError

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler for the CPU"
)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Two layers of different patterns, with every rule in use, global tokens and shared KV heads."""
    options = getattr(request, "param", {})
    torch.manual_seed(0)
    patterns = (
        SparsePattern(window=5, stride=8, num_global=2),
        SparsePattern(window=9, stride=16, stagger=True, num_global=2, num_random_blocks=1),
    )
    config = EncoderConfig(
        d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, patterns=patterns, max_length=512, **options
    )
    return Encoder(config).eval()


ALL_OPTIONS = {"convolution": 5, "strands": "shared", "head": "tied"}
with_and_without_options = pytest.mark.parametrize(
    "encoder",
    [pytest.param({}, id="plain"), pytest.param(ALL_OPTIONS, id="options", marks=pytest.mark.slow)],
    indirect=True,
)


def random_tokens(*shape: int) -> Tensor:
    """Bases, some N, and PAD at the end of the first row."""
    generator = torch.Generator().manual_seed(sum(shape))
    tokens = torch.tensor([1, 2, 4, 8, 15], dtype=torch.uint8)[torch.randint(0, 5, shape, generator=generator)]
    tokens[0, shape[1] // 2 + 1 :] = 0
    return tokens


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Of a fixed product of ``out``: the final norm makes the gradient of its squares nothing but rounding."""
    return list(torch.autograd.grad(out.float(), inputs, torch.linspace(-1, 2, out.numel()).view_as(out)))


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of each tensor's largest value."""
    assert len(found) == len(expected) > 0
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        assert (want != 0).any()
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def counting_backend(graphs: list[torch.fx.GraphModule]) -> Any:
    """Traces forward and backward as inductor has them, and runs the graphs in eager."""

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    return backend


@needs_compiler
def test_compiled_block_is_the_block(encoder: Encoder) -> None:
    (block, *_), length = encoder.blocks, 90
    assert isinstance(block, Block)
    hidden = torch.randn(2, length, 32, requires_grad=True)
    rotary = torch.view_as_real(rotary_angles(length, 8, 10_000.0, hidden.device))
    mask = torch.rand(2, length) < 0.9
    inputs = [hidden, *block.parameters()]
    compiled = torch.compile(block, fullgraph=True)
    out, expected = compiled(hidden, rotary, mask), block(hidden, rotary, mask)
    assert_close([out, *gradients(out, inputs)], [expected, *gradients(expected, inputs)])


@with_and_without_options
def test_encoder_is_one_graph_for_any_length(encoder: Encoder) -> None:
    graphs: list[torch.fx.GraphModule] = []
    weights = [weight for name, weight in encoder.named_parameters() if not name.startswith("head.")]
    compiled = torch.compile(encoder, fullgraph=True, backend=counting_backend(graphs))
    for length in (70, 100, 333, 50):
        tokens = random_tokens(2, length)
        out = compiled(tokens)  # before eager has kept any angles, then with those of a shorter sequence
        expected = encoder(tokens)
        assert_close([out, *gradients(out, weights)], [expected, *gradients(expected, weights)])
    assert len(graphs) == 2  # one for the first length, one for all others
    assert not any("complex" in str(node.target) for graph in graphs for node in graph.graph.nodes)  # cannot be fused
    with pytest.raises(ConfigError, match="longer than the model's max_length"):
        encoder(random_tokens(1, 513))


@with_and_without_options
def test_encoder_compiles_without_gradients_in_one_graph_at_lengths_beyond_a_chunk(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genosparse.encoder.layers._CHUNK", 32)
    graphs: list[torch.fx.GraphModule] = []
    compiled = torch.compile(encoder.base_logits, fullgraph=True, backend=counting_backend(graphs))
    for length in (70, 100, 333):
        tokens = random_tokens(2, length)
        with torch.inference_mode():
            assert_close([compiled(tokens)], [encoder.base_logits(tokens)])
    assert len(graphs) == 2


def test_encoder_compiles_with_activation_checkpointing_and_under_autocast(encoder: Encoder) -> None:
    tokens, weights = random_tokens(2, 90), list(encoder.blocks.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected = encoder(tokens)
    expected_gradients = gradients(expected, weights)
    encoder.activation_checkpointing = True
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        out = compiled(tokens)
    # bfloat16 keeps 8 bits, and the graph may add what eager rounds in another order.
    assert_close([out, *gradients(out, weights)], [expected, *expected_gradients], tolerance=0.02)


@needs_compiler
@pytest.mark.slow
@with_and_without_options
def test_encoder_compiled_by_inductor_is_the_encoder(encoder: Encoder) -> None:
    compiled = torch.compile(encoder.base_logits, fullgraph=True)
    weights = list(encoder.parameters())
    for length in (70, 100, 333):
        tokens = random_tokens(2, length)
        out, expected = compiled(tokens), encoder.base_logits(tokens)
        assert_close([out, *gradients(out, weights)], [expected, *gradients(expected, weights)])


@needs_compiler
def test_compiled_angles_are_exact_at_a_million_positions() -> None:
    """Angles in float32 would be off by 0.03 here."""
    compiled = torch.compile(rotary_turns, fullgraph=True)
    turns = compiled(torch.tensor([0.0, 1_000_000.0], dtype=torch.float64), 8, 10_000.0)
    assert turns.dtype == torch.float32
    for pair, frequency in enumerate([1.0, 0.1, 0.01, 0.001]):
        angle = math.fmod(1_000_000 * frequency, 2 * math.pi)
        assert abs(turns[1, pair, 0] - math.cos(angle)) < 1e-6
        assert abs(turns[1, pair, 1] - math.sin(angle)) < 1e-6


@pytest.mark.parametrize(
    "encoder, grad",
    [({}, True), ({}, False), (ALL_OPTIONS, True)],
    indirect=["encoder"],
    ids=["plain", "no-grad", "options"],
)
def test_exported_encoder_serves_every_length_and_can_be_trained(
    encoder: Encoder, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genosparse.encoder.layers._CHUNK", 32)
    shapes = {"tokens": {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=512)}}
    with torch.set_grad_enabled(grad):
        program = torch.export.export(encoder, (random_tokens(2, 70),), dynamic_shapes=shapes)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count(torch.ops.genosparse.attention.default) == 2  # whole, one per layer
    exported = program.module()
    names = [name for name, _ in encoder.named_parameters() if not name.startswith("head.")]
    weights, exported_weights = dict(encoder.named_parameters()), dict(exported.named_parameters())
    for shape in ((2, 70), (1, 1), (3, 64), (1, 512)):
        tokens = random_tokens(*shape)
        out, expected = exported(tokens), encoder(tokens)
        found = gradients(out, [exported_weights[name] for name in names])
        assert_close([out, *found], [expected, *gradients(expected, [weights[name] for name in names])])


def test_export_keeps_the_limit_of_the_length(encoder: Encoder) -> None:
    shapes = {"tokens": {1: torch.export.Dim("length", max=513)}}
    with pytest.raises(torch._dynamo.exc.UserError, match="max=512"):
        torch.export.export(encoder, (random_tokens(2, 70),), dynamic_shapes=shapes)


def test_checkpointed_blocks_are_computed_twice_for_the_same_gradients(encoder: Encoder) -> None:
    tokens = random_tokens(2, 90)
    weights = list(encoder.parameters())
    expected = gradients(encoder.base_logits(tokens), weights)
    with FlopCounterMode(display=False) as plain:
        gradients(encoder.base_logits(tokens), weights)
    encoder.activation_checkpointing = True
    with FlopCounterMode(display=False) as checkpointed:
        found = gradients(encoder.base_logits(tokens), weights)
    forward, backward = torch.ops.genosparse.attention, torch.ops.genosparse.attention_backward
    once, twice = plain.get_flop_counts()["Global"], checkpointed.get_flop_counts()["Global"]
    assert twice[forward] == 2 * once[forward] > 0
    assert twice[backward] == once[backward]
    assert all(torch.equal(got, want) for got, want in zip(found, expected, strict=True))


@pytest.mark.parametrize("encoder, checkpointing", [({}, False), ({}, True), (ALL_OPTIONS, True)], indirect=["encoder"])
def test_autocast_computes_in_bfloat16_and_stays_near_float32(encoder: Encoder, checkpointing: bool) -> None:
    tokens, weights = random_tokens(2, 90), list(encoder.parameters())
    hidden, logits = encoder(tokens), encoder.base_logits(tokens)
    expected = gradients(logits, weights)
    encoder.activation_checkpointing = checkpointing
    products: list[torch.dtype] = []
    encoder.blocks[0].mlp_in.register_forward_hook(lambda _module, _inputs, out: products.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        mixed_hidden, mixed_logits = encoder(tokens), encoder.base_logits(tokens)
    found = gradients(mixed_logits, weights)
    assert set(products) == {torch.bfloat16}
    # The residual stream and the logits stay in float32.
    assert mixed_hidden.dtype == mixed_logits.dtype == torch.float32
    # bfloat16 has 0.4 %; the largest of the differences, unlike their norm, is a matter of luck.
    assert 0 < (mixed_hidden - hidden).norm() < 0.01 * hidden.norm()
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        assert got.isfinite().all()
        assert (got - want).norm() < 0.05 * want.norm()


def test_traced_forms_leave_no_trace_in_the_encoder(encoder: Encoder) -> None:
    """What tracing computes is never kept: eager, copies and pickles go on as if nothing had been traced."""
    tokens = random_tokens(2, 70)
    expected = copy.deepcopy(encoder)(tokens)
    torch.export.export(encoder, (tokens,))
    torch.compile(encoder, fullgraph=True, backend="aot_eager")(tokens)
    assert encoder._rotary is None
    assert torch.equal(encoder(tokens), expected)
