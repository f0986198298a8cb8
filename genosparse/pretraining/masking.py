"""The masked-base task: an example is a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from genosparse.errors import ConfigError
from genosparse.pretraining.settings import check_flag, check_number
from genosparse.pretraining.windows import Window, WindowSource
from genosparse.tokenizers import MASK, PAD

__all__ = ["NO_TARGET", "Example", "Masked", "MaskedWindows", "MaskingSettings", "base_numbers", "mask_window"]

NO_TARGET = -1
SPAN_LENGTHS = ("geometric", "fixed")
# Bases: a longer mean of gaps or stretches is as good as this one.
_LONGEST = 1 << 40

# The class (0 to 3) of the tokens A, C, G, T; no other token is ever a target.
_CLASS = np.full(256, NO_TARGET, np.int64)
_CLASS[[1, 2, 4, 8]] = range(4)
_BASES = np.array([1, 2, 4, 8], np.uint8)


@dataclass(frozen=True, slots=True)
class MaskingSettings:
    """How bases are hidden.

    Args:
        rate: Fraction of the known bases (A, C, G, T) to predict.
        span: Mean length of the stretches that are to be predicted; 1 takes each base by itself. Every base of a
            stretch is shown in the same way, as MASK, random or as it is (SpanBERT, Joshi et al. 2020). Of any length,
            a base is to be predicted with the chance ``rate``.
        span_lengths: ``"geometric"``, or ``"fixed"`` for stretches of just ``span`` bases, a whole number then (those
            that the window's ends cut or that follow one on another aside).
        mask_share: Fraction of those shown as MASK.
        random_share: Fraction of those shown as a random base (of A, C, G, T, the true one among them); the rest is
            shown as it is.
        soft_mask_weight: Weight in the loss of bases in lower case.
        reverse_complement: Show each window's other strand half of the time.
        channel_dropout: Where there are channels of alignments, the fraction of windows that are shown without them,
            and in the others the fraction of the bases that are not to be predicted: what has no channels is then
            mostly no target, and a model works without alignments too.

    Raises:
        ConfigError: A value that cannot be.
    """

    rate: float = 0.15
    span: float = 1
    span_lengths: str = "geometric"
    mask_share: float = 0.8
    random_share: float = 0.1
    soft_mask_weight: float = 1.0
    reverse_complement: bool = True
    channel_dropout: float = 0.15

    def __post_init__(self) -> None:
        check_number("data.masking.rate", self.rate, 0, 1, without_least=True)
        if self.span_lengths not in SPAN_LENGTHS:
            raise ConfigError(
                f"data.masking.span_lengths={self.span_lengths} is unknown; choose one of {', '.join(SPAN_LENGTHS)}"
            )
        check_number("data.masking.span", self.span, 1, _LONGEST, whole=self.span_lengths == "fixed")
        for name in ("mask_share", "random_share", "soft_mask_weight", "channel_dropout"):
            check_number(f"data.masking.{name}", getattr(self, name), 0, 1)
        check_flag("data.masking.reverse_complement", self.reverse_complement)
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"data.masking.mask_share={self.mask_share} and data.masking.random_share={self.random_share} add up "
                "to more than 1"
            )


Example = tuple[torch.Tensor, ...]


class Masked(NamedTuple):
    """What is shown of a window, and what is asked.

    Attributes:
        tokens: Token ids as shown, uint8 ``[length]``.
        classes: The class to predict, 0 to 3 for A, C, G, T, -1 where there is none; int64 ``[length]``.
        weights: Of each base in the loss, float32 ``[length]``.
        channels: What alignments say, 0 wherever there is a class to predict; float32 ``[length, C]``, None where there
            are no alignments.
    """

    tokens: NDArray[np.uint8]
    classes: NDArray[np.int64]
    weights: NDArray[np.float32]
    channels: NDArray[np.float32] | None

    def tensors(self, length: int) -> Example:
        """The arrays that there are as tensors, padded at the end: PAD, no class, no weight, channels of 0."""
        more = length - len(self.tokens)
        arrays = [
            np.pad(self.tokens, (0, more), constant_values=PAD),
            np.pad(self.classes, (0, more), constant_values=NO_TARGET),
            np.pad(self.weights, (0, more)),
            *([] if self.channels is None else [np.pad(self.channels, ((0, more), (0, 0)))]),
        ]
        return tuple(torch.from_numpy(array) for array in arrays)


def mask_window(window: Window, settings: MaskingSettings, random: np.random.Generator) -> Masked:
    """Hide bases of a window, and what alignments say of them."""
    if settings.reverse_complement and random.random() < 0.5:
        window = window.reverse_complement()
    tokens, soft = window.tokens, window.soft_mask
    classes = _CLASS[tokens]
    chosen, fate = _hidden(len(tokens), settings, random)
    chosen &= classes != NO_TARGET
    replacement = _BASES[random.integers(4, size=len(tokens))]
    shown = np.where(chosen & (fate < settings.mask_share), np.uint8(MASK), tokens)
    swapped = chosen & (fate >= settings.mask_share) & (fate < settings.mask_share + settings.random_share)
    shown = np.where(swapped, replacement, shown)
    weights = np.where(chosen, np.where(soft, np.float32(settings.soft_mask_weight), np.float32(1)), np.float32(0))
    channels = window.channels
    if channels is not None:
        share = 1.0 if random.random() < settings.channel_dropout else settings.channel_dropout
        # At every base to predict, also those that are shown right or wrong: the reads there would tell it.
        hidden = chosen | (random.random(len(tokens)) < share)
        channels = np.where(hidden[:, None], np.float32(0), channels)
    return Masked(shown, np.where(chosen, classes, NO_TARGET), weights, channels)


def _hidden(
    length: int, settings: MaskingSettings, random: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which bases are to be predicted, and for each a number from 0 to 1 that says how it is shown; ``[length]``."""
    if settings.span == 1:
        return random.random(length) < settings.rate, random.random(length)
    # Gaps and stretches by turns, from anywhere on an endless line of them: there a base is in a stretch with the
    # chance `rate`. Gaps are geometric from 0 on, so that what is left of one is like a whole one.
    gap_mean = min(settings.span * (1 - settings.rate) / settings.rate, _LONGEST)
    first_is_stretch = random.random() < settings.rate
    lengths = np.empty(0, np.int64)
    while lengths.sum() < length:
        num_stretches = 8 + int(1.2 * (length - lengths.sum()) / (settings.span + gap_mean))
        gaps = random.geometric(1 / (1 + gap_mean), num_stretches) - 1
        if settings.span_lengths == "fixed":
            stretches = np.full(num_stretches, settings.span, np.int64)
        else:
            stretches = random.geometric(1 / settings.span, num_stretches)
        if not len(lengths):
            if not first_is_stretch:
                gaps[0] += 1  # the base that was seen to be in a gap
            else:
                gaps[0] = 0
                if settings.span_lengths == "fixed":  # any part of it may be what is left
                    stretches[0] = random.integers(1, int(settings.span) + 1)
        # What is longer than the window is cut to its length: rare gaps might add up to more than int64 has room for.
        lengths = np.concatenate([lengths, np.stack([gaps, stretches], axis=1).reshape(-1).clip(max=length)])
    sizes = np.diff(np.cumsum(lengths).clip(max=length), prepend=0)  # in the window
    chosen = np.repeat(np.arange(len(lengths)) % 2 == 1, sizes)
    fate = np.repeat(random.random(len(lengths)), sizes)
    return chosen, fate


def base_numbers(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class 0 to 3 of A, C, G, T, and -1 of every other token."""
    return _CLASS[tokens]


class MaskedWindows(Dataset[Example]):
    """Example ``index`` of a run, for any index: which window, which strand and which bases depend on nothing else.

    An example is the tensors of a ``Masked``, padded to the context of ``corpus``.
    """

    def __init__(self, corpus: WindowSource, settings: MaskingSettings, seed: int) -> None:
        self._corpus, self._settings, self._seed = corpus, settings, seed

    def __getitem__(self, index: int) -> Example:
        key = np.array([self._seed, index], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        return mask_window(self._corpus.draw(random), self._settings, random).tensors(self._corpus.context)
