"""Options of the architecture: a convolution, shared strands, a tied head; each against what it is said to be."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from genosparse.attention import SparsePattern
from genosparse.attention.reference import reference_attention
from genosparse.channels import CHANNELS, reverse_complement_channels
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.encoder.layers import Convolution, StrandLinear, _Reorder, strand_order
from genosparse.errors import ConfigError, ModelFormatError
from genosparse.tokenizers import COMPLEMENT, MASK, PAD, N

OPTIONS: dict[str, dict[str, Any]] = {
    "convolution": {"convolution": 5},
    "strands": {"strands": "shared"},
    "head": {"head": "tied"},
    "all": {"convolution": 5, "strands": "shared", "head": "tied"},
}
PATTERNS = {
    "window": SparsePattern(window=5),
    "strided": SparsePattern(window=2, stride=7),
    "stagger": SparsePattern(window=2, stride=9, stagger=True, num_global=1),
    "global": SparsePattern(num_global=3),
    "random": SparsePattern(window=3, num_random_blocks=1, seed=5),
    "causal": SparsePattern(window=20, causal=True, num_global=1),
    "blocks": SparsePattern(window=1, stride=4, num_global=1, num_random_blocks=1, block_size=8),
}
with_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def make_encoder(*patterns: SparsePattern, **changes: Any) -> Encoder:
    """Eight heads that share four KV heads, so that each strand has two of those; no weight is zero."""
    torch.manual_seed(0)
    values: dict[str, Any] = {"d_model": 64, "num_layers": 2, "num_heads": 8, "num_kv_heads": 4, "max_length": 1000}
    encoder = Encoder(EncoderConfig(patterns=patterns or (PATTERNS["stagger"],), **{**values, **changes})).eval()
    with torch.no_grad():
        for weight in encoder.parameters():
            if not weight.any():
                weight.normal_()
    return encoder


def random_rows(*lengths: int) -> Tensor:
    """Rows of these lengths of all letters, MASK and N, padded at the end; uint8."""
    generator = torch.Generator().manual_seed(sum(lengths))
    letters = torch.tensor([1, 2, 4, 8] * 6 + [N, MASK, 3, 6, 11], dtype=torch.uint8)
    tokens = torch.full((len(lengths), max(lengths)), PAD, dtype=torch.uint8)
    for row, length in enumerate(lengths):
        tokens[row, :length] = letters[torch.randint(len(letters), (length,), generator=generator)]
    return tokens


def random_channels(tokens: Tensor, names: tuple[str, ...]) -> Tensor:
    """Fractions, and depths of which some are 0; 0 at padding."""
    values = torch.rand(*tokens.shape, len(names), generator=torch.Generator().manual_seed(7))
    values[..., names.index("depth")] = (values[..., names.index("depth")] * 60 - 20).clamp(min=0)
    return torch.where(((tokens == PAD) | (values[..., names.index("depth")] == 0))[..., None], 0.0, values)


def mirrored(values: Tensor, tokens: Tensor) -> Tensor:
    """Each row in reverse, padding aside: ``[B, N, ...]``."""
    values = values.clone()
    for row, length in enumerate((tokens != PAD).sum(dim=1).tolist()):
        values[row, :length] = values[row, :length].flip(0)
    return values


def reverse_complement(tokens: Tensor) -> Tensor:
    return mirrored(torch.from_numpy(COMPLEMENT.copy())[tokens.int()], tokens)


def halves_exchanged(hidden: Tensor) -> Tensor:
    return hidden.roll(hidden.shape[-1] // 2, dims=-1)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("others", [{}, {"convolution": 9, "head": "tied"}], ids=["alone", "with-others"])
def test_the_reverse_complement_has_mirrored_states_and_complementary_logits(
    pattern: SparsePattern, others: dict[str, Any]
) -> None:
    encoder = make_encoder(pattern, strands="shared", **others)
    tokens = random_rows(201, 1, 2, 64, 130, 199)
    turned = reverse_complement(tokens)
    real = tokens != PAD
    with torch.inference_mode():
        for layer in (0, 1, -1):
            expected = mirrored(halves_exchanged(encoder(tokens, layer=layer)), tokens)
            assert (encoder(turned, layer=layer) - expected)[real].abs().max() < 1e-5
        logits, of_turned = encoder.base_logits(tokens), encoder.base_logits(turned)
    assert (of_turned - mirrored(logits.flip(2), tokens))[real].abs().max() < 1e-5
    assert logits[real].std(dim=0).min() > 0.01  # of what is no constant
    assert (halves_exchanged(expected) - expected)[real].abs().max() > 0.1  # nor the same on both strands


def test_a_plain_encoder_is_not_equivariant() -> None:
    """What the test above is held against."""
    encoder, tokens = make_encoder(), random_rows(201)
    with torch.inference_mode():
        logits, of_turned = encoder.base_logits(tokens), encoder.base_logits(reverse_complement(tokens))
    assert (of_turned - logits.flip(1, 2)).abs().max() > 0.05


@pytest.mark.parametrize("names", [CHANNELS, ("depth", "reverse_strand"), ("T", "G", "C", "A", "depth")])
def test_channels_of_alignments_are_turned_too(names: tuple[str, ...]) -> None:
    encoder = make_encoder(strands="shared", channels=names)
    tokens = random_rows(77, 40)
    channels = random_channels(tokens, names)
    turned = torch.zeros_like(channels)
    for row, length in enumerate((77, 40)):
        turned[row, :length] = torch.from_numpy(reverse_complement_channels(channels[row, :length].numpy(), names))
    with torch.inference_mode():
        hidden = encoder(tokens, channels=channels)
        of_turned = encoder(reverse_complement(tokens), channels=turned)
        without = encoder(tokens)
    real = tokens != PAD
    assert (of_turned - mirrored(halves_exchanged(hidden), tokens))[real].abs().max() < 1e-5
    assert (hidden - without)[real].abs().max() > 0.1


def test_strands_hear_each_other_in_every_block() -> None:
    """Without their exchange each half would be what half the encoder says of one strand."""
    encoder = make_encoder(SparsePattern(window=0), num_layers=1, strands="shared")
    tokens = random_rows(50)
    for name in ("qkv", "attention_out", "mlp_in", "mlp_out"):
        deaf = copy.deepcopy(encoder)
        layer = getattr(deaf.blocks[0], name)
        assert isinstance(layer, StrandLinear)
        with torch.no_grad():
            layer.weight[:, layer.in_features // 2 :] = 0
            assert (deaf(tokens) - encoder(tokens)).abs().max() > 0.01


def plain_logits(encoder: Encoder, weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The encoder's logits for one sequence, written out: every strand is a sequence of its own, in its own order.

    Args:
        encoder: For its configuration.
        weights: Its parameters in float64.
        tokens: Bases and N, ``[length]``.
    """
    config = encoder.config
    strands = [tokens]
    if config.strands == "shared":
        strands.append(torch.from_numpy(COMPLEMENT.copy())[tokens.int()].flip(0))
    width, length = config.d_model // len(strands), len(tokens)
    embedding, total = weights["embedding.weight"], config.num_global + length
    vectors = torch.stack(
        [embedding[:4][[bool(code >> base & 1) for base in range(4)]].mean(0) for code in range(1, 16)]
    )

    def mirror(state: Tensor) -> Tensor:
        """The bases in reverse; global tokens, where there are some in front, as they are."""
        front = len(state) - length
        return torch.cat([state[:front], state[front:].flip(0)])

    def mix(name: str, states: list[Tensor]) -> list[Tensor]:
        """A of the strand's own state and B of the other strand's at the same base."""
        if len(states) == 1:
            return [states[0] @ weights[name].T]
        a, b = weights[name].chunk(2, dim=1)
        return [states[i] @ a.T + mirror(states[1 - i]) @ b.T for i in (0, 1)]

    def norm(states: list[Tensor]) -> list[Tensor]:
        """The root mean square is that of both strands' channels of a base."""
        if len(states) == 1:
            return [states[0] / (states[0].square().mean(1, keepdim=True) + config.norm_eps).sqrt()]
        squares = [state.square().mean(1, keepdim=True) for state in states]
        roots = [((squares[i] + mirror(squares[1 - i])) / 2 + config.norm_eps).sqrt() for i in (0, 1)]
        return [state / root for state, root in zip(states, roots, strict=True)]

    def add(states: list[Tensor], more: list[Tensor]) -> list[Tensor]:
        return [state + branch for state, branch in zip(states, more, strict=True)]

    def gated(states: list[Tensor]) -> list[Tensor]:
        return [functional.silu(gate) * value for gate, value in (state.chunk(2, dim=1) for state in states)]

    states = [vectors[strand.long() - 1] for strand in strands]
    if config.convolution:
        motifs, reach = weights["convolution.motifs"], config.convolution // 2
        scores = [torch.zeros(length, motifs.shape[0], dtype=torch.float64) for _ in strands]
        for strand, score in zip(strands, scores, strict=True):
            for position, offset in torch.cartesian_prod(
                torch.arange(length), torch.arange(config.convolution)
            ).tolist():
                token = int(strand[position + offset - reach]) if 0 <= position + offset - reach < length else N
                if token != N:
                    members = [base for base in range(4) if token >> base & 1]
                    score[position] += motifs[:, members, offset].mean(1)
        states = add(states, mix("convolution.out.weight", gated(scores)))
    states = [torch.cat([weights["global_tokens"], state]) for state in states]
    frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    angles = torch.arange(total, dtype=torch.float64)[:, None] * frequencies
    heads = [count // len(strands) for count in (config.num_heads, config.kv_heads, config.kv_heads)]
    for layer in range(config.num_layers):
        mixed = []
        for strand, projected in zip(strands, mix(f"blocks.{layer}.qkv.weight", norm(states)), strict=True):
            q, k, v = projected.unflatten(1, (-1, config.head_dim)).transpose(0, 1).split(heads)
            q, k = (
                torch.stack(
                    [
                        x[..., ::2] * angles.cos() - x[..., 1::2] * angles.sin(),
                        x[..., ::2] * angles.sin() + x[..., 1::2] * angles.cos(),
                    ],
                    dim=-1,
                ).flatten(2)
                for x in (q, k)
            )
            visible = torch.cat([torch.ones(config.num_global, dtype=torch.bool), strand != N])[None]
            out, _ = reference_attention(q[None], k[None], v[None], config.pattern_of(layer), key_mask=visible)
            mixed.append(out[0].transpose(0, 1).flatten(1))
        states = add(states, mix(f"blocks.{layer}.attention_out.weight", mixed))
        hidden = gated(mix(f"blocks.{layer}.mlp_in.weight", norm(states)))
        states = add(states, mix(f"blocks.{layer}.mlp_out.weight", hidden))
    base = weights["head.scale"] * embedding[:4] if config.head == "tied" else weights["head.linear.weight"]
    bias = weights["head.bias" if config.head == "tied" else "head.linear.bias"]
    logits = [state[config.num_global :] @ base.T + bias / len(strands) for state in norm(states)]
    assert base.shape[1] == width
    return logits[0] + logits[1].flip(0, 1) if len(logits) == 2 else logits[0]


@with_options
def test_values_and_gradients_are_those_of_the_plain_composition(options: dict[str, Any]) -> None:
    encoder = make_encoder(PATTERNS["stagger"], SparsePattern(window=4, num_global=1), **options)
    tokens = random_rows(45)[0]
    tokens[tokens == MASK] = 9
    logits = encoder.base_logits(tokens[None])[0]
    weights = {name: weight.detach().double().requires_grad_() for name, weight in encoder.named_parameters()}
    expected = plain_logits(encoder, weights, tokens)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    coefficients = torch.linspace(-1, 2, logits.numel(), dtype=torch.float64).view_as(logits)
    (logits.double() * coefficients).sum().backward()
    (expected * coefficients).sum().backward()
    for name, weight in encoder.named_parameters():
        want = weights[name].grad
        assert want is not None, name
        assert weight.grad is not None, name
        assert want.any(), name
        assert (weight.grad - want).abs().max() <= 1e-5 * want.abs().max(), name


def test_gradients_against_finite_differences() -> None:
    config = make_encoder(d_model=8, num_heads=2, num_kv_heads=2, convolution=3, strands="shared").config
    convolution, layer = Convolution(config).double(), StrandLinear(4, 6).double()
    x, shares = torch.randn(1, 6, 8, dtype=torch.float64, requires_grad=True), torch.rand(1, 6, 5, dtype=torch.float64)

    def convolved(x: Tensor, motifs: Tensor, out: Tensor) -> Any:
        weights = {"motifs": motifs, "out.weight": out}
        return torch.func.functional_call(convolution, weights, (x, shares))

    assert torch.autograd.gradcheck(convolved, (x, *convolution.parameters()))
    assert torch.autograd.gradcheck(
        lambda x, weight: torch.func.functional_call(layer, {"weight": weight}, (x,)), (x[..., :4], layer.weight)
    )
    order = strand_order(random_rows(5, 3), 1)
    rows = torch.randn(24, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: _Reorder.apply(rows, *order), (rows,))
    assert torch.equal(order.apart.flatten()[order.together.flatten()], torch.arange(24))


@with_options
@pytest.mark.parametrize("length", [1, 2, 63, 100])
def test_hidden_states_do_not_depend_on_padding_or_company(options: dict[str, Any], length: int) -> None:
    encoder = make_encoder(**options)
    batch = random_rows(length + 37, length, length + 1)
    with torch.inference_mode():
        alone = encoder(batch[1:2, :length])
        assert (encoder(batch)[1, :length] - alone[0]).abs().max() < 1e-5


@with_options
def test_n_tells_its_neighbours_nothing(options: dict[str, Any]) -> None:
    encoder, tokens = make_encoder(**options), random_rows(60)
    tokens[tokens == N] = 1
    tokens[0, 30] = N
    with torch.inference_mode():
        before = encoder(tokens)
        encoder.embedding.shares[N] = 7.0
        after = encoder(tokens)
    others = torch.arange(60) != 30
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before[:, 30], after[:, 30])
    assert after.isfinite().all()
    assert encoder(torch.full((1, 20), N)).isfinite().all()


@pytest.mark.parametrize("strands", ["single", "shared"])
def test_the_convolution_hears_its_width_and_no_farther(strands: str) -> None:
    encoder, tokens = make_encoder(convolution=9, strands=strands), random_rows(60)
    tokens[0, 30] = 1
    changed = tokens.clone()
    changed[0, 30] = 2
    heard = (encoder(tokens, layer=0) != encoder(changed, layer=0)).any(dim=2)[0]
    assert heard.nonzero()[:, 0].tolist() == list(range(26, 35))


def test_the_convolution_hears_bases_jointly() -> None:
    """What two changed bases do together is not the sum of what each does: there are k-mers, not letters alone."""
    encoder = make_encoder(convolution=5)
    tokens = torch.ones(4, 20, dtype=torch.uint8)
    tokens[1, 10] = tokens[2, 11] = tokens[3, 10] = tokens[3, 11] = 4
    none, first, second, both = encoder(tokens, layer=0)[:, 9]
    assert (both + none - first - second).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(2, 300), (7, 25)])
def test_chunks_of_rows_and_along_the_sequence_change_nothing(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    encoder = make_encoder(**OPTIONS["all"], channels=("depth", "reverse_strand"))
    tokens = random_rows(*[shape[1]] * (shape[0] - 1), 20)
    channels = random_channels(tokens, encoder.config.channels)
    assert encoder.convolution is not None
    expected = encoder(tokens, channels=channels)
    monkeypatch.setattr("genosparse.encoder.layers._CHUNK", 64)
    sizes: list[int] = []
    for module in (encoder.convolution.out, encoder.blocks[0].qkv, encoder.blocks[1].mlp_in):
        module.register_forward_hook(lambda _module, inputs, _out: sizes.append(inputs[0][..., 0].numel()))
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tokens, channels=channels), expected, rtol=1e-5, atol=1e-5)
    assert max(sizes) <= 64
    assert sum(sizes) == shape[0] * (3 * shape[1] + 2 * encoder.config.num_global)


@pytest.mark.parametrize("strands", ["single", "shared"])
def test_a_tied_head_multiplies_with_the_embedding_of_each_base(strands: str) -> None:
    encoder, tokens = make_encoder(head="tied", strands=strands), random_rows(30)
    hidden, embedded = encoder(tokens), encoder(torch.tensor([[1, 2, 4, 8]]), layer=0)[0]
    bias = encoder.head.bias
    bias = (bias + bias.flip(0)) / 2 if strands == "shared" else bias
    torch.testing.assert_close(encoder.base_logits(tokens), encoder.head.scale * hidden @ embedded.T + bias)
    names = [name for name, _ in encoder.named_parameters() if name.startswith("head.")]
    assert names == ["head.scale", "head.bias"]


@with_options
def test_on_disk(tmp_path: Path, options: dict[str, Any]) -> None:
    encoder, tokens = make_encoder(**options), random_rows(40)
    encoder.save_pretrained(tmp_path / "model")
    loaded = Encoder.from_pretrained(tmp_path / "model")
    assert loaded.config == encoder.config
    assert loaded.fingerprint() == encoder.fingerprint() == copy.deepcopy(encoder).fingerprint()
    with torch.inference_mode():
        expected = encoder.base_logits(tokens)
        assert torch.equal(loaded.base_logits(tokens), expected)
        copied = copy.deepcopy(encoder)
        encoder.embedding.weight.zero_()  # which a copy's head must not hear
        assert torch.equal(copied.base_logits(tokens), expected)
    plain = make_encoder().config.to_dict()
    assert not {"convolution", "strands", "head"} & set(plain)  # as before there were options
    assert EncoderConfig.from_dict(plain) == make_encoder(convolution=0).config
    Encoder(EncoderConfig.from_dict(plain)).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(
        (tmp_path / "model" / "config.json").read_text().replace('"d_model"', '"strands": "shared", "d_model"')
    )
    with pytest.raises(ModelFormatError, match="asks for"):
        Encoder.from_pretrained(tmp_path / "model")


def test_a_model_with_options_is_no_smaller_or_larger_than_said() -> None:
    """Shared strands halve every matrix; a convolution adds its motifs and one matrix."""
    plain = dict(make_encoder().named_parameters())
    shared = dict(make_encoder(strands="shared").named_parameters())
    assert plain.keys() == shared.keys()
    for name, weight in plain.items():
        if name != "head.linear.bias":
            assert weight.numel() == 2 * shared[name].numel(), name
    convolved = make_encoder(convolution=5)
    assert sum(map(torch.numel, plain.values())) + 5 * 5 * 128 + 64 * 64 == convolved.num_parameters


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"convolution": 4}, "convolution=4: expected an odd number"),
        ({"convolution": 1}, "convolution=1: expected an odd number of at least 3"),
        ({"convolution": -3}, "convolution=-3"),
        ({"convolution": True}, "convolution=True"),
        ({"convolution": 9.0}, "convolution=9.0"),
        ({"strands": "both"}, "strands='both': expected single or shared"),
        ({"strands": ["shared"]}, r"strands=\['shared'\]: expected single or shared"),
        ({"head": None}, "head=None: expected free or tied"),
        ({"strands": "shared", "num_heads": 1, "num_kv_heads": 1}, "num_heads=1 cannot be shared between two strands"),
        ({"strands": "shared", "num_kv_heads": 1}, "num_kv_heads=1 cannot be shared between two strands"),
        ({"strands": "shared", "mlp_hidden": 33}, "mlp_hidden=33 cannot be shared between two strands"),
        ({"strands": "shared", "channels": ("A",)}, "have no other strand"),
        ({"strands": "shared", "channels": ("reverse_strand",)}, "reverse_strand needs depth"),
    ],
)
def test_values_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_encoder(**changes)
    assert "\n" not in str(error.value)
