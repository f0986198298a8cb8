"""The encoder: what its hidden states depend on, and what not."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from genosparse.attention import SparsePattern
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.encoder.layers import RMSNorm, TokenEmbedding, _SwiGLU, rotary_angles
from genosparse.errors import ConfigError, SequenceError
from genosparse.tokenizers import MASK, N, NucleotideTokenizer


def make_encoder(*patterns: SparsePattern, **changes: object) -> Encoder:
    torch.manual_seed(0)
    values = {"d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "max_length": 4096, **changes}
    default = (SparsePattern(window=5, stride=8, num_global=2), SparsePattern(window=9, stride=16, num_global=2))
    return Encoder(EncoderConfig(patterns=patterns or default, **values)).eval()  # type: ignore[arg-type]


def random_tokens(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([1, 2, 4, 8], dtype=torch.uint8)[torch.randint(0, 4, shape, generator=generator)]


@pytest.mark.parametrize("length", [1, 2, 63, 100, 500])
def test_hidden_states_do_not_depend_on_padding_or_company(length: int) -> None:
    encoder = make_encoder()
    tokens = random_tokens(1, length)
    alone = encoder(tokens)
    batch = random_tokens(3, length + 37, seed=1)
    batch[1, :length], batch[1, length:] = tokens[0], 0
    assert (encoder(batch)[1, :length] - alone[0]).abs().max() < 1e-5


def test_n_is_never_attended_to_and_still_has_a_state() -> None:
    """Another base in place of an N changes its neighbours; another vector for N itself must not."""
    encoder = make_encoder()
    tokens = random_tokens(1, 60)
    tokens[0, 30] = N
    before = encoder(tokens)
    with torch.no_grad():
        encoder.embedding.shares[N] = 7.0
    after = encoder(tokens)
    others = torch.arange(60) != 30
    assert torch.equal(before[:, others], after[:, others])
    assert not torch.equal(before[:, 30], after[:, 30])
    assert after.isfinite().all()


def test_sequence_of_n_alone_gives_finite_states() -> None:
    assert make_encoder(SparsePattern(window=3))(torch.full((1, 20), N)).isfinite().all()


def test_ambiguity_codes_embed_as_the_mean_of_their_members() -> None:
    embedding = TokenEmbedding(make_encoder().config)
    a, c, g, t = embedding.weight[:4]
    codes = dict(zip("RYNB=", embedding(torch.from_numpy(NucleotideTokenizer().encode("RYNB"))[None])[0], strict=False))
    torch.testing.assert_close(codes["R"], (a + g) / 2)
    torch.testing.assert_close(codes["Y"], (c + t) / 2)
    torch.testing.assert_close(codes["N"], (a + c + g + t) / 4)
    torch.testing.assert_close(codes["B"], (c + g + t) / 3)
    assert (embedding(torch.zeros(1, 1, dtype=torch.uint8)) == 0).all()
    assert torch.equal(embedding(torch.tensor([[MASK]]))[0, 0], embedding.weight[4])


def test_far_bases_are_heard_through_columns_and_global_tokens_alone() -> None:
    """One layer, window 2: base 500 reaches base 0 only as a column or through a global token of a second layer."""
    tokens, changed = random_tokens(1, 600), random_tokens(1, 600)
    changed[0, 500] = 3 - torch.log2(changed[0, 500].float()).to(torch.uint8)
    changed[0, 500] = {0: 1, 1: 2, 2: 4, 3: 8}[int(changed[0, 500])]
    window = make_encoder(SparsePattern(window=2), num_layers=1)
    column = make_encoder(SparsePattern(window=2, stride=100), num_layers=1)
    beside = make_encoder(SparsePattern(window=2, stride=101), num_layers=1)
    through_global = make_encoder(SparsePattern(window=2, num_global=1), num_layers=2)
    assert torch.equal(window(tokens)[0, 0], window(changed)[0, 0])
    assert torch.equal(beside(tokens)[0, 0], beside(changed)[0, 0])
    assert not torch.equal(column(tokens)[0, 0], column(changed)[0, 0])
    assert not torch.equal(through_global(tokens)[0, 0], through_global(changed)[0, 0])


def test_layers_are_counted_from_the_input_embedding() -> None:
    encoder = make_encoder()
    tokens = random_tokens(2, 50)
    assert torch.equal(encoder(tokens, layer=0), encoder.embedding(tokens))
    last = encoder(tokens, layer=2)
    assert torch.equal(encoder(tokens), encoder.final_norm(last))
    assert not torch.equal(encoder(tokens, layer=1), last)
    for layer in (-2, 3):
        with pytest.raises(ConfigError, match=f"layer={layer}"):
            encoder(tokens, layer=layer)


def test_logits_at_sites_are_those_of_the_whole() -> None:
    encoder = make_encoder()
    tokens, sites = random_tokens(2, 80), torch.tensor([[0, 79, 3], [5, 5, 40]])
    whole = encoder.base_logits(tokens)
    assert whole.shape == (2, 80, 4)
    picked = encoder.base_logits_at(tokens, sites)
    torch.testing.assert_close(picked, torch.stack([whole[row, sites[row]] for row in range(2)]))


@pytest.mark.parametrize("shape", [(2, 300), (7, 25), (1, 130)])
def test_chunks_of_rows_and_along_the_sequence_change_nothing(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    encoder = make_encoder()
    tokens = random_tokens(*shape)
    expected = encoder(tokens)
    monkeypatch.setattr("genosparse.encoder.layers._CHUNK", 64)
    sizes: list[int] = []
    encoder.blocks[0].mlp_in.register_forward_hook(
        lambda _module, inputs, _out: sizes.append(inputs[0][..., 0].numel())
    )
    with torch.inference_mode():
        torch.testing.assert_close(encoder(tokens), expected, rtol=1e-5, atol=1e-5)
    assert max(sizes) <= 64
    assert sum(sizes) == shape[0] * (shape[1] + encoder.config.num_global)


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    encoder = make_encoder()
    twin = copy.deepcopy(encoder)
    twin.activation_checkpointing = True
    tokens = random_tokens(2, 90)
    for model in (encoder, twin):
        model.base_logits(tokens).square().mean().backward()
    for (name, expected), got in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        assert expected.grad is not None, name
        assert got.grad is not None, name
        torch.testing.assert_close(got.grad, expected.grad)


def test_hand_written_gradients() -> None:
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(RMSNorm(1e-6), (x,))
    assert torch.autograd.gradcheck(_SwiGLU.apply, (x,))
    torch.testing.assert_close(RMSNorm(1e-6)(x), torch.nn.functional.rms_norm(x, (8,), eps=1e-6))


def test_rotary_angles_are_exact_at_a_million_positions() -> None:
    turns = rotary_angles(1_000_001, 8, 10_000.0, torch.device("cpu"))
    for pair, frequency in enumerate([1.0, 0.1, 0.01, 0.001]):
        angle = math.fmod(1_000_000 * frequency, 2 * math.pi)
        assert abs(turns[1_000_000, pair].real - math.cos(angle)) < 1e-6
        assert abs(turns[1_000_000, pair].imag - math.sin(angle)) < 1e-6


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(10),
        torch.zeros(10, dtype=torch.uint8),
        torch.zeros(1, 0, dtype=torch.uint8),
        torch.tensor([[17]]),
        torch.tensor([[-1]]),
    ],
)
def test_what_is_no_token_is_refused(tokens: Tensor) -> None:
    with pytest.raises(SequenceError, match="expected"):
        make_encoder()(tokens)


def test_sequences_over_max_length_are_refused() -> None:
    with pytest.raises(ConfigError, match="4,097 bases is longer than the model's max_length of 4,096"):
        make_encoder()(random_tokens(1, 4097))


def test_fingerprint_knows_weights_and_configuration() -> None:
    encoder = make_encoder()
    assert make_encoder().fingerprint() == encoder.fingerprint() == pickle.loads(pickle.dumps(encoder)).fingerprint()  # noqa: S301
    with torch.no_grad():
        encoder.head.linear.bias[0] += 1e-3
    assert encoder.fingerprint() != make_encoder().fingerprint()
    assert make_encoder(max_length=4095).fingerprint() != make_encoder().fingerprint()


@pytest.mark.slow
def test_training_step_of_the_long_model_at_131072_bases() -> None:
    """Forward and backward of the `long` model, with activation checkpointing, within 12 GiB."""
    script = """
import resource, torch
from hydra import compose, initialize_config_module
from genosparse.encoder import Encoder, EncoderConfig
from omegaconf import OmegaConf
with initialize_config_module("genosparse.conf", version_base="1.3"):
    model = OmegaConf.to_container(compose("model/long").model)
del model["name"], model["context"], model["channels"]
encoder = Encoder(EncoderConfig.from_dict(model))
encoder.activation_checkpointing = True
tokens = torch.tensor([1, 2, 4, 8], dtype=torch.uint8)[torch.randint(0, 4, (1, 131_072))]
encoder.base_logits(tokens).logsumexp(-1).mean().backward()
assert all(weight.grad.isfinite().all() for weight in encoder.parameters())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 12
