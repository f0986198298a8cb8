"""The masked-base task: an example is a pure function of (seed, index)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from genosparse.errors import ConfigError
from genosparse.pretraining.settings import check_flag, check_number
from genosparse.pretraining.windows import Corpus, Window
from genosparse.tokenizers import MASK, NucleotideTokenizer

__all__ = ["NO_TARGET", "Example", "MaskedWindows", "MaskingSettings", "base_numbers", "mask_window"]

NO_TARGET = -1

# The class (0 to 3) of the tokens A, C, G, T; no other token is ever a target.
_CLASS = np.full(256, NO_TARGET, np.int64)
_CLASS[[1, 2, 4, 8]] = range(4)
_BASES = np.array([1, 2, 4, 8], np.uint8)


@dataclass(frozen=True, slots=True)
class MaskingSettings:
    """How bases are hidden.

    Args:
        rate: Fraction of the known bases (A, C, G, T) to predict.
        mask_share: Fraction of those shown as MASK.
        random_share: Fraction of those shown as a random base (of A, C, G, T, the true one among them); the rest is
            shown as it is.
        soft_mask_weight: Weight in the loss of bases in lower case.
        reverse_complement: Show each window's other strand half of the time.

    Raises:
        ConfigError: A value that cannot be.
    """

    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1
    soft_mask_weight: float = 1.0
    reverse_complement: bool = True

    def __post_init__(self) -> None:
        check_number("data.masking.rate", self.rate, 0, 1, without_least=True)
        for name in ("mask_share", "random_share", "soft_mask_weight"):
            check_number(f"data.masking.{name}", getattr(self, name), 0, 1)
        check_flag("data.masking.reverse_complement", self.reverse_complement)
        if self.mask_share + self.random_share > 1:
            raise ConfigError(
                f"data.masking.mask_share={self.mask_share} and data.masking.random_share={self.random_share} add up "
                "to more than 1"
            )


Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def mask_window(
    window: Window, settings: MaskingSettings, random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]:
    """Hide bases of a window.

    Returns:
        Token ids as shown ``[length]``; the class to predict ``[length]``, 0 to 3 for A, C, G, T, -1 where there is
        none; and the weight in the loss ``[length]``.
    """
    tokens, soft = window.tokens, window.soft_mask
    if settings.reverse_complement and random.random() < 0.5:
        tokens, soft = NucleotideTokenizer().reverse_complement(tokens), soft[::-1]
    classes = _CLASS[tokens]
    chosen = (random.random(len(tokens)) < settings.rate) & (classes != NO_TARGET)
    fate = random.random(len(tokens))
    replacement = _BASES[random.integers(4, size=len(tokens))]
    shown = np.where(chosen & (fate < settings.mask_share), np.uint8(MASK), tokens)
    swapped = chosen & (fate >= settings.mask_share) & (fate < settings.mask_share + settings.random_share)
    shown = np.where(swapped, replacement, shown)
    weights = np.where(chosen, np.where(soft, np.float32(settings.soft_mask_weight), np.float32(1)), np.float32(0))
    return shown, np.where(chosen, classes, NO_TARGET), weights


def base_numbers(tokens: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The class 0 to 3 of A, C, G, T, and -1 of every other token."""
    return _CLASS[tokens]


class MaskedWindows(Dataset[Example]):
    """Example ``index`` of a run, for any index: which window, which strand and which bases depend on nothing else."""

    def __init__(self, corpus: Corpus, settings: MaskingSettings, seed: int) -> None:
        self._corpus, self._settings, self._seed = corpus, settings, seed

    def __getitem__(self, index: int) -> Example:
        key = np.array([self._seed, index], np.uint64)
        random = np.random.Generator(np.random.Philox(key=key))
        shown, classes, weights = mask_window(self._corpus.draw(random), self._settings, random)
        return torch.from_numpy(shown), torch.from_numpy(classes), torch.from_numpy(weights)
