"""The masked-base task."""

import numpy as np
import pytest

from genosparse.errors import ConfigError
from genosparse.pretraining import MaskingSettings, mask_window
from genosparse.pretraining.masking import NO_TARGET
from genosparse.pretraining.windows import Window
from genosparse.tokenizers import MASK, NucleotideTokenizer

encode = NucleotideTokenizer().encode


def make_window(length: int = 40_000, letters: str = "ACGT") -> Window:
    random = np.random.default_rng(0)
    text = "".join(random.choice(list(letters), length))
    return Window(*encode(text, return_soft_mask=True))


def test_shares_are_those_asked_for() -> None:
    window = make_window()
    shown, classes, weights, _ = mask_window(
        window, MaskingSettings(reverse_complement=False), np.random.default_rng(1)
    )
    chosen = classes != NO_TARGET
    assert chosen.mean() == pytest.approx(0.15, abs=0.01)
    assert (shown == MASK)[chosen].mean() == pytest.approx(0.8, abs=0.02)
    # A random base is the true one a quarter of the time, so 7.5 % are seen to change.
    changed = (shown != window.tokens) & (shown != MASK)
    assert changed[chosen].mean() == pytest.approx(0.075, abs=0.015)
    assert not changed[~chosen].any()
    assert set(np.unique(shown[changed])) == {1, 2, 4, 8}
    assert (2 ** classes[chosen] == window.tokens[chosen]).all()
    assert ((weights > 0) == chosen).all()


def test_ambiguous_bases_are_never_targets_nor_changed() -> None:
    window = make_window(letters="ACGTNNRYK")
    shown, classes, *_ = mask_window(
        window, MaskingSettings(rate=1.0, reverse_complement=False), np.random.default_rng(1)
    )
    known = np.isin(window.tokens, [1, 2, 4, 8])
    assert ((classes != NO_TARGET) == known).all()
    assert (shown[~known] == window.tokens[~known]).all()


def test_other_strand_half_of_the_time() -> None:
    window = make_window(60, "AACC")
    random, settings = np.random.default_rng(1), MaskingSettings(rate=0.01)
    reversed_count = sum(8 in mask_window(window, settings, random)[0] for _ in range(400))
    assert 160 < reversed_count < 240


def test_soft_mask_turns_with_the_strand_and_weighs_less() -> None:
    tokens, soft = encode("aaaaAAAAAAAAAAAA", return_soft_mask=True)
    settings = MaskingSettings(rate=1.0, soft_mask_weight=0.25)
    seen = set()
    for seed in range(20):
        _, classes, weights, _ = mask_window(Window(tokens, soft), settings, np.random.default_rng(seed))
        if classes[0] == 3:  # the reverse complement: T first, and the lower case last
            weights = weights[::-1]
        seen.add(int(classes[0]))
        assert weights.tolist() == [0.25] * 4 + [1.0] * 12
    assert seen == {0, 3}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rate": 0}, r"rate=0: expected a finite number above 0 and at most 1"),
        ({"rate": 1.5}, r"rate=1\.5"),
        ({"rate": None}, r"rate=None"),
        ({"rate": True}, r"rate=True"),
        ({"mask_share": "0.8"}, r"mask_share='0\.8'"),
        ({"mask_share": 0.8, "random_share": 0.3}, r"mask_share=0\.8 and data\.masking\.random_share=0\.3"),
        ({"soft_mask_weight": -1}, r"soft_mask_weight=-1: expected a finite number of at least 0 and at most 1"),
        ({"soft_mask_weight": float("nan")}, r"soft_mask_weight=nan"),
        ({"reverse_complement": "off"}, r"reverse_complement='off': expected true or false"),
    ],
)
def test_settings_that_cannot_be_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.masking\.{message}"):
        MaskingSettings(**values)  # type: ignore[arg-type]  # wrong on purpose
