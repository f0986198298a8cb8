"""The masked-base task."""

import tracemalloc

import numpy as np
import pytest

from genosparse.errors import ConfigError
from genosparse.pretraining import MaskingSettings, mask_window
from genosparse.pretraining.masking import NO_TARGET, _hidden
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


@pytest.mark.parametrize(
    "rate, span, lengths",
    [
        (0.15, 1, "geometric"),
        (0.5, 1.5, "geometric"),
        (0.15, 6, "geometric"),
        (1.0, 6, "geometric"),
        (0.5, 4, "fixed"),
        (0.15, 40, "fixed"),
        (1.0, 4, "fixed"),
    ],
)
def test_every_base_is_as_likely_in_spans_of_any_length(rate: float, span: float, lengths: str) -> None:
    random, windows = np.random.default_rng(3), 4000
    settings = MaskingSettings(rate=rate, span=span, span_lengths=lengths)
    seen = np.mean([_hidden(30, settings, random)[0] for _ in range(windows)], axis=0)
    assert np.abs(seen - rate).max() <= 4.5 * np.sqrt(rate * (1 - rate) / windows)


@pytest.mark.parametrize("lengths", ["geometric", "fixed"])
@pytest.mark.parametrize("rate, span", [(1e-7, 4), (1e-300, 2), (0.5, 1 << 40), (1.0, 1 << 40)])
def test_rare_and_long_spans_take_no_more_than_the_window(rate: float, span: int, lengths: str) -> None:
    """Of a mean gap of 40 million bases, or of one that no memory holds, no more is made than is seen."""
    settings, random = MaskingSettings(rate=rate, span=span, span_lengths=lengths), np.random.default_rng(1)
    tracemalloc.start()
    seen = [_hidden(1000, settings, random) for _ in range(200)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert all(len(chosen) == len(fate) == 1000 for chosen, fate in seen)
    assert np.mean([chosen.mean() for chosen, _ in seen]) == pytest.approx(rate, abs=0.15)


@pytest.mark.parametrize("span, lengths", [(5, "geometric"), (5, "fixed")])
def test_spans_have_the_length_asked_for_and_are_shown_alike(span: int, lengths: str) -> None:
    settings = MaskingSettings(rate=0.2, span=span, span_lengths=lengths)
    chosen, fate = _hidden(200_000, settings, np.random.default_rng(1))
    ends = np.flatnonzero(np.diff(fate)) + 1  # a fate is of one stretch or gap
    kinds, sizes = chosen[np.append(0, ends)][1:-1], np.diff(np.append(0, ends), append=len(fate))[1:-1]
    assert all(len(set(part)) == 1 for part in np.split(chosen, ends))
    spans = sizes[kinds]
    assert spans.mean() == pytest.approx(span, rel=0.03)
    assert spans.std() == pytest.approx(0 if lengths == "fixed" else np.sqrt(span * (span - 1)), rel=0.05)
    assert len(spans) == pytest.approx(200_000 * 0.2 / span, rel=0.05)


def test_stretch_is_shown_as_mask_or_random_as_a_whole_and_mask_alone_can_be_asked_for() -> None:
    window, random = make_window(), np.random.default_rng(1)
    values = {"rate": 0.02, "span": 12, "span_lengths": "fixed", "reverse_complement": False}
    shown, classes, *_ = mask_window(window, MaskingSettings(mask_share=0.5, random_share=0.5, **values), random)
    runs = np.split(shown, np.flatnonzero(np.diff(classes != NO_TARGET)) + 1)[int(classes[0] == NO_TARGET) :: 2]
    whole = [run for run in runs if len(run) == 12]  # two that touch are of two kinds
    shares = [(run == MASK).mean() for run in whole]
    assert set(shares) == {0.0, 1.0}
    assert np.mean(shares) == pytest.approx(0.5, abs=0.2)
    for more in ({}, {"span": 1}):
        settings = MaskingSettings(mask_share=1.0, random_share=0.0, **{**values, **more})
        shown, classes, *_ = mask_window(window, settings, random)
        assert ((shown == MASK) == (classes != NO_TARGET)).all()
        assert (shown == MASK).any()


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
        ({"span": 0.5}, r"span=0\.5: expected a finite number of at least 1"),
        ({"span": 2.5, "span_lengths": "fixed"}, r"span=2\.5: expected a whole number"),
        ({"span": 1e20}, r"span=1e\+20: expected a finite number of at least 1 and at most 1099511627776"),
        ({"span_lengths": "poisson"}, r"span_lengths=poisson is unknown; choose one of geometric, fixed"),
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
