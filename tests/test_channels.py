"""Channels as arrays."""

import numpy as np
import pytest

from genosparse.channels import (
    CHANNELS,
    check_channel_names,
    reverse_complement_channels,
)
from genosparse.errors import ConfigError


def some_channels() -> np.ndarray:
    values = np.random.default_rng(0).random((20, len(CHANNELS)), np.float32)
    values[3:6] = 0
    return values


def test_the_other_strand_twice_is_the_first() -> None:
    values = some_channels()
    other = reverse_complement_channels(values)
    np.testing.assert_allclose(reverse_complement_channels(other), values, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(other[:, CHANNELS.index("A")], values[::-1, CHANNELS.index("T")])
    np.testing.assert_array_equal(other[:, CHANNELS.index("G")], values[::-1, CHANNELS.index("C")])
    assert not other[14:17].any()


def test_some_channels_have_no_other_strand() -> None:
    with pytest.raises(ConfigError, match="some of A, C, G, T and not all"):
        reverse_complement_channels(np.zeros((3, 2), np.float32), ("depth", "A"))
    with pytest.raises(ConfigError, match="reverse_strand needs depth"):
        reverse_complement_channels(np.zeros((3, 1), np.float32), ("reverse_strand",))
    depth = np.array([[1], [2]], np.float32)
    assert reverse_complement_channels(depth, ("depth",)).tolist() == [[2], [1]]


def test_names() -> None:
    assert check_channel_names(["depth", "A"]) == ("depth", "A")
    for wrong in ([], ["coverage"], ["A", "A"]):
        with pytest.raises(ConfigError, match="expected some of depth, A, C, G, T, deletion"):
            check_channel_names(wrong)
