"""Encoder configurations: limits, derived values, JSON."""

import pytest

from genosparse.attention import SparsePattern
from genosparse.encoder import EncoderConfig
from genosparse.errors import ConfigError, PatternError

GOOD = {
    "d_model": 64,
    "num_layers": 3,
    "num_heads": 4,
    "patterns": (SparsePattern(window=4, num_global=2), SparsePattern(window=8, stride=16, num_global=2)),
    "max_length": 1000,
}


def test_defaults_follow_from_the_rest() -> None:
    config = EncoderConfig(**GOOD)
    assert (config.num_kv_heads, config.head_dim, config.mlp_hidden, config.num_global) == (4, 16, 192, 2)
    assert [config.pattern_of(layer).window for layer in range(3)] == [4, 8, 4]
    assert config.trained_context is None


def test_json_round_trip() -> None:
    config = EncoderConfig(**GOOD, num_kv_heads=2, trained_context=512, rope_theta=5e5)
    assert EncoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"d_model": 0}, "d_model=0"),
        ({"d_model": 60, "num_heads": 8}, "no even head size"),
        ({"num_heads": 64}, "no even head size"),
        ({"d_model": 1032, "num_heads": 4}, "head size of 258"),
        ({"num_kv_heads": 3}, "cannot share num_kv_heads=3"),
        ({"patterns": ()}, "at least one SparsePattern"),
        ({"patterns": (SparsePattern(window=1), SparsePattern(window=1, num_global=1))}, "0, 1 global positions"),
        ({"max_length": 1.5}, "max_length=1.5"),
        ({"num_layers": True}, "num_layers=True"),
        ({"rope_theta": float("inf")}, "rope_theta=inf"),
        ({"trained_context": 0}, "trained_context=0"),
    ],
)
def test_values_that_cannot_be_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderConfig(**{**GOOD, **changes})  # type: ignore[arg-type]  # wrong on purpose


def test_unknown_and_missing_keys_are_named() -> None:
    values = EncoderConfig(**GOOD).to_dict()
    with pytest.raises(ConfigError, match="unknown key dropout"):
        EncoderConfig.from_dict({**values, "dropout": 0.1})
    with pytest.raises(PatternError, match="dilation"):
        EncoderConfig.from_dict({**values, "patterns": [{"window": 3, "dilation": 2}]})
    del values["d_model"]
    with pytest.raises(ConfigError, match="missing key d_model"):
        EncoderConfig.from_dict(values)
