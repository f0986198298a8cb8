"""Channels of alignments beside the tokens."""

from pathlib import Path

import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.channels import CHANNELS
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError
from genosparse.tokenizers import MASK

SHAPE = {"d_model": 32, "num_layers": 2, "num_heads": 2, "max_length": 256}
PATTERNS = (SparsePattern(window=8, stride=16, num_global=1),)


def encoder_of(*channels: str) -> Encoder:
    torch.manual_seed(0)
    return Encoder(EncoderConfig(**SHAPE, patterns=PATTERNS, channels=channels)).eval()


def some_tokens(length: int = 40) -> torch.Tensor:
    return torch.tensor([1, 2, 4, 8])[torch.randint(4, (2, length), generator=torch.Generator().manual_seed(1))]


def some_channels(length: int = 40, count: int = len(CHANNELS)) -> torch.Tensor:
    return torch.rand(2, length, count, generator=torch.Generator().manual_seed(2)) * 50


def test_none_is_zero_and_a_new_model_is_as_without_channels() -> None:
    encoder, plain = encoder_of(*CHANNELS), encoder_of()
    tokens = some_tokens()
    torch.testing.assert_close(encoder(tokens), plain(tokens), rtol=0, atol=0)
    torch.testing.assert_close(encoder(tokens, channels=some_channels()), plain(tokens), rtol=0, atol=0)
    torch.nn.init.normal_(encoder.channel_projection.weight)
    zeros = torch.zeros_like(some_channels())
    torch.testing.assert_close(encoder(tokens, channels=zeros), plain(tokens), rtol=0, atol=0)
    assert (encoder(tokens, channels=some_channels()) - plain(tokens)).abs().max() > 0.1


def test_the_embedding_gets_a_linear_map_of_scaled_channels() -> None:
    encoder = encoder_of("depth", "C", "base_quality")
    torch.nn.init.normal_(encoder.channel_projection.weight)
    tokens, channels = some_tokens(), some_channels(count=3)
    added = encoder(tokens, layer=0, channels=channels) - encoder(tokens, layer=0)
    scaled = torch.stack([(1 + channels[..., 0]).log(), channels[..., 1], channels[..., 2] / 40], dim=-1)
    torch.testing.assert_close(added, scaled @ encoder.channel_projection.weight, rtol=1e-4, atol=1e-4)


def test_a_masked_base_is_not_told_by_its_reads() -> None:
    encoder = encoder_of(*CHANNELS)
    torch.nn.init.normal_(encoder.channel_projection.weight)
    tokens, channels = some_tokens(), some_channels()
    tokens[:, 20] = MASK
    other = channels.clone()
    other[:, 20] = 7
    sites = torch.full((2, 1), 20)
    torch.testing.assert_close(
        encoder.base_logits_at(tokens, sites, channels=channels), encoder.base_logits_at(tokens, sites, channels=other)
    )
    torch.testing.assert_close(encoder.base_logits(tokens, channels=channels)[:, 20:21],
                               encoder.base_logits_at(tokens, sites, channels=channels))  # fmt: skip
    other[:, 21] = 7
    assert (encoder(tokens, channels=channels) - encoder(tokens, channels=other))[:, 20].abs().max() > 1e-4


def test_gradients_reach_the_projection_from_its_zero() -> None:
    encoder = encoder_of(*CHANNELS)
    encoder(some_tokens(), channels=some_channels()).square().sum().backward()
    assert encoder.channel_projection.weight.grad.abs().max() > 0


def test_refused() -> None:
    with pytest.raises(ConfigError, match="the model takes no channels of alignments"):
        encoder_of()(some_tokens(), channels=some_channels())
    with pytest.raises(
        ConfigError, match=r"\[2, 40, 11\]; expected \[2, 40, 2\]: batch, bases and the model's depth, A"
    ):
        encoder_of("depth", "A")(some_tokens(), channels=some_channels())
    with pytest.raises(ConfigError, match="'coverage' is no channel"):
        encoder_of("coverage")
    with pytest.raises(ConfigError, match="channels=5: expected names"):
        EncoderConfig(**SHAPE, patterns=PATTERNS, channels=5)


def test_on_disk(tmp_path: Path) -> None:
    encoder = encoder_of("depth", "A")
    torch.nn.init.normal_(encoder.channel_projection.weight)
    encoder.save_pretrained(tmp_path / "model")
    loaded = Encoder.from_pretrained(tmp_path / "model")
    assert loaded.config == encoder.config
    channels = some_channels(count=2)
    torch.testing.assert_close(loaded(some_tokens(), channels=channels), encoder(some_tokens(), channels=channels))
    assert "channels" not in encoder_of().config.to_dict()  # nor in the fingerprints of models without them


def test_traced_whole() -> None:
    encoder = encoder_of("depth", "A")
    torch.nn.init.normal_(encoder.channel_projection.weight)
    tokens, channels = some_tokens(), some_channels(count=2)
    exported = torch.export.export(encoder, (tokens,), {"channels": channels}).module()
    torch.testing.assert_close(
        exported(tokens, channels=channels), encoder(tokens, channels=channels), rtol=1e-4, atol=1e-4
    )
