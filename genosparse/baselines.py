"""Two-sided k-mer models, the yardstick of masked-base prediction: P(base | k bases each side), from both strands."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from genosparse.tokenizers import NucleotideTokenizer

__all__ = ["MAX_FLANK", "BaseCounts", "flanks", "kmer_baselines"]

# Orders of the interpolated model are 0 to MAX_FLANK flanking bases each side.
MAX_FLANK = 8
TABLE_FLANKS = range(1, 7)

_UNKNOWN = 4
# Base numbers 0 to 3 of the tokens A, C, G, T; _UNKNOWN for all else.
_BASE_NUMBER = np.full(256, _UNKNOWN, np.uint8)
_BASE_NUMBER[[1, 2, 4, 8]] = range(4)
# Contexts of up to this many bases are counted in a dense table, longer ones by sorting.
_DENSE_FLANK = 5


class BaseCounts:
    """How often each base stands between ``flank`` bases on each side, on both strands.

    Args:
        sequences: Token arrays; contexts never reach from one into the next, nor over an ambiguous base.
        flank: Bases on each side, 0 to 15.
    """

    def __init__(self, sequences: Iterable[NDArray[np.uint8]], flank: int) -> None:
        self.flank = flank
        keys = [
            _keys(_BASE_NUMBER[strand], flank)
            for tokens in sequences
            for strand in (tokens, NucleotideTokenizer().reverse_complement(tokens))
        ]
        everything = np.concatenate([*keys, np.empty(0, np.int64)])
        if flank <= _DENSE_FLANK:
            self._dense = np.bincount(everything, minlength=4 ** (2 * flank + 1)).reshape(-1, 4)
        else:
            everything.sort()
            self._sorted = everything

    def __call__(self, contexts: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Look contexts up.

        Args:
            contexts: Base numbers around each site, as ``flanks`` gives them: ``[sites, 2 * k + 1]``, k >= ``flank``.

        Returns:
            Counts ``[sites, 4]``, and whether the context is known, bool ``[sites]``: an ambiguous base or the end of
            the sequence within ``flank`` bases makes it unknown.
        """
        middle = contexts.shape[1] // 2
        sides = [middle + offset for offset in range(-self.flank, self.flank + 1) if offset]
        known = (contexts[:, sides] != _UNKNOWN).all(axis=1)
        context = np.zeros(len(contexts), np.int64)
        for side in sides:
            context = context * 4 + np.where(known, contexts[:, side], 0)
        if self.flank <= _DENSE_FLANK:
            counts = self._dense[context]
        else:
            edges = np.searchsorted(self._sorted, context[:, None] * 4 + np.arange(5))
            counts = np.diff(edges, axis=1)
        return np.where(known[:, None], counts, 0), known


def _keys(bases: NDArray[np.uint8], flank: int) -> NDArray[np.int64]:
    """The number of each context with its middle base, ``context * 4 + base``, where all its bases are known."""
    length = len(bases) - 2 * flank
    if length <= 0:
        return np.empty(0, np.int64)
    order = [offset for offset in range(2 * flank + 1) if offset != flank] + [flank]
    key = np.zeros(length, np.int64)
    known = np.ones(length, np.bool_)
    for offset in order:
        part = bases[offset : offset + length]
        key = key * 4 + part
        known &= part != _UNKNOWN
    return key[known]


def flanks(tokens: NDArray[np.uint8], sites: NDArray[np.int64], flank: int = MAX_FLANK) -> NDArray[np.uint8]:
    """Base numbers (0 to 3, 4 for unknown) around sites: ``[sites, 2 * flank + 1]``; past the ends, unknown."""
    padded = np.full(len(tokens) + 2 * flank, _UNKNOWN, np.uint8)
    padded[flank : flank + len(tokens)] = _BASE_NUMBER[tokens]
    return padded[sites[:, None] + np.arange(2 * flank + 1)]


def kmer_baselines(training: list[NDArray[np.uint8]], contexts: NDArray[np.uint8]) -> dict[str, float]:
    """Bits per base of two-sided k-mer models at held-out sites.

    Each single table (``kmer_1`` to ``kmer_6``) adds one to every count; a context that the sequence's end or an
    ambiguous base cuts short is looked up uniformly. In ``interpolated`` each order from 0 to ``MAX_FLANK`` backs off
    to the order below with the weight of 32 counts.

    Args:
        training: Token arrays of the training sequence; both strands are counted.
        contexts: From ``flanks``, ``[sites, 2 * MAX_FLANK + 1]``; the middle base is the truth.

    Returns:
        Bits per base by name, ``best_kmer`` (the best single table) among them.
    """
    truth = contexts[:, contexts.shape[1] // 2].astype(np.int64)
    rows = np.arange(len(truth))
    bits: dict[str, float] = {}
    interpolated = np.full((len(truth), 4), 0.25)
    for flank in range(MAX_FLANK + 1):
        counts, _ = BaseCounts(training, flank)(contexts)
        totals = counts.sum(axis=1, keepdims=True)
        interpolated = (counts + 32 * interpolated) / (totals + 32)
        if flank in TABLE_FLANKS:
            table = (counts + 1) / (totals + 4)
            bits[f"kmer_{flank}"] = _bits(table[rows, truth])
    bits["best_kmer"] = min(bits.values())
    bits["interpolated"] = _bits(interpolated[rows, truth])
    return bits


def _bits(probabilities: NDArray[np.float64]) -> float:
    return float(-np.log(probabilities).mean() / math.log(2))
