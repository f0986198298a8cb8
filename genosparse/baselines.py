"""Two-sided k-mer models, the yardstick of masked-base prediction: P(base | k bases each side), from both strands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from genosparse.tokenizers import PAD

__all__ = ["MAX_FLANK", "BaseCounts", "flanks", "joined", "kmer_baselines", "kmer_probabilities"]

# Orders of the interpolated model are 0 to MAX_FLANK flanking bases each side.
MAX_FLANK = 8
TABLE_FLANKS = range(1, 7)

_UNKNOWN = 4
# Base numbers 0 to 3 of the tokens A, C, G, T; _UNKNOWN for all else.
_BASE_NUMBER = np.full(256, _UNKNOWN, np.uint8)
_BASE_NUMBER[[1, 2, 4, 8]] = range(4)
_COMPLEMENT = np.array([3, 2, 1, 0, _UNKNOWN], np.uint8)
# All contexts of up to this many bases have a row in a table; of the longer ones, those that are asked for.
_DENSE_FLANK = 5
# Positions counted at a time, which bounds memory.
_CHUNK = 2**22


class BaseCounts:
    """How often each base stands between the ``flank`` bases on each side of given sites, on both strands.

    Memory depends on the sites and not on the sequence that is counted.

    Args:
        contexts: Base numbers around each site, as ``flanks`` gives them: ``[sites, 2 * k + 1]``, k >= ``flank``.
        flank: Bases on each side, 0 to 15.
    """

    def __init__(self, contexts: NDArray[np.uint8], flank: int) -> None:
        self.flank = flank
        # The other strand is not read: a context stands there as often as its reverse complement stands here.
        forward, self._known = _context_numbers(contexts, flank)
        backward, _ = _context_numbers(_COMPLEMENT[contexts[:, ::-1]], flank)
        self._wanted: NDArray[np.int64] | None = None  # context numbers of the table's rows; None: all of them
        rows, num_rows = np.concatenate([forward, backward]), 4 ** (2 * flank)
        if flank > _DENSE_FLANK:
            self._wanted, rows = np.unique(rows, return_inverse=True)
            num_rows = len(self._wanted)
        self._forward, self._backward = rows[: len(forward)], rows[len(forward) :]
        self._table = np.zeros((num_rows, 4), np.int64)

    def add(self, tokens: NDArray[np.uint8]) -> None:
        """Count a sequence; contexts reach neither over its ends nor over an ambiguous base."""
        for start in range(0, len(tokens) - 2 * self.flank, _CHUNK):
            keys = _keys(_BASE_NUMBER[tokens[start : start + _CHUNK + 2 * self.flank]], self.flank)
            if self._wanted is None:
                self._table += np.bincount(keys, minlength=self._table.size).reshape(-1, 4)
            elif len(self._wanted):
                found, times = np.unique(keys, return_counts=True)
                rows = np.searchsorted(self._wanted, found >> 2).clip(max=len(self._wanted) - 1)
                is_wanted = self._wanted[rows] == found >> 2
                self._table[rows[is_wanted], found[is_wanted] & 3] += times[is_wanted]

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """What was counted so far.

        Returns:
            Counts ``[sites, 4]``, and whether the context is known, bool ``[sites]``: an ambiguous base or the end of
            the sequence within ``flank`` bases of the site makes it unknown, and its counts 0.
        """
        both = self._table[self._forward] + self._table[self._backward, ::-1]
        return np.where(self._known[:, None], both, 0), self._known


def _context_numbers(contexts: NDArray[np.uint8], flank: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The number of each site's context (0 for an unknown one), and whether it is known."""
    middle = contexts.shape[1] // 2
    sides = [middle + offset for offset in range(-flank, flank + 1) if offset]
    known = (contexts[:, sides] != _UNKNOWN).all(axis=1)
    number = np.zeros(len(contexts), np.int64)
    for side in sides:
        number = number * 4 + np.where(known, contexts[:, side], 0)
    return number, known


def _keys(bases: NDArray[np.uint8], flank: int) -> NDArray[np.int64]:
    """The number of each context with its middle base, ``context * 4 + base``, where all its bases are known."""
    length = len(bases) - 2 * flank
    key = np.zeros(length, np.int64)
    known = np.ones(length, np.bool_)
    for offset in [*range(flank), *range(flank + 1, 2 * flank + 1), flank]:
        part = bases[offset : offset + length]
        key *= 4
        key += part
        known &= part != _UNKNOWN
    return key[known]


def joined(sequences: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Put short sequences together, an unknown base after each, so that 100,000 contigs cost no more than one."""
    short: list[NDArray[np.uint8]] = []
    size = 0
    for tokens in sequences:
        if len(tokens) >= _CHUNK:
            yield tokens
            continue
        short += [tokens, np.array([PAD], np.uint8)]
        size += len(tokens) + 1
        if size >= _CHUNK:
            yield np.concatenate(short)
            short, size = [], 0
    if short:
        yield np.concatenate(short)


def flanks(tokens: NDArray[np.uint8], sites: NDArray[np.int64], flank: int = MAX_FLANK) -> NDArray[np.uint8]:
    """Base numbers (0 to 3, 4 for unknown) around sites: ``[sites, 2 * flank + 1]``; past the ends, unknown."""
    padded = np.full(len(tokens) + 2 * flank, _UNKNOWN, np.uint8)
    padded[flank : flank + len(tokens)] = _BASE_NUMBER[tokens]
    return sliding_window_view(padded, 2 * flank + 1)[sites]


def kmer_baselines(training: Iterable[NDArray[np.uint8]], contexts: NDArray[np.uint8]) -> dict[str, float]:
    """Bits per base of two-sided k-mer models at held-out sites, those of ``kmer_probabilities``.

    Args:
        training: Token arrays of the training sequence, read as they are (views will do); gone through several times.
        contexts: From ``flanks``, ``[sites, 2 * MAX_FLANK + 1]``; the middle base is the truth.

    Returns:
        Bits per base by name, ``best_kmer`` (the best single table) among them.
    """
    truth = contexts[:, contexts.shape[1] // 2].astype(np.int64)
    rows = np.arange(len(truth))
    bits = {name: _bits(probabilities[rows, truth]) for name, probabilities in kmer_probabilities(training, contexts)}
    interpolated = bits.pop("interpolated")
    return {**bits, "best_kmer": min(bits.values()), "interpolated": interpolated}


def kmer_probabilities(
    training: Iterable[NDArray[np.uint8]], contexts: NDArray[np.uint8]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What two-sided k-mer models say of each site.

    Each single table (``kmer_1`` to ``kmer_6``) adds one to every count; a context that the sequence's end or an
    ambiguous base cuts short is looked up uniformly. In ``interpolated`` each order from 0 to ``MAX_FLANK`` backs off
    to the order below with the weight of 32 counts. One table is in memory at a time.

    Args:
        training: Token arrays of the training sequence, read as they are (views will do), both strands counted; gone
            through once for each of the ``MAX_FLANK + 1`` orders.
        contexts: From ``flanks``, ``[sites, 2 * MAX_FLANK + 1]``.

    Yields:
        The model's name, and P(A, C, G, T), ``[sites, 4]``; ``interpolated`` last.
    """
    interpolated = np.full((len(contexts), 4), 0.25)
    for flank in range(MAX_FLANK + 1):
        table = BaseCounts(contexts, flank)
        for tokens in joined(training):
            table.add(tokens)
        counts, _ = table.counts()
        totals = counts.sum(axis=1, keepdims=True)
        interpolated = (counts + 32 * interpolated) / (totals + 32)
        if flank in TABLE_FLANKS:
            yield f"kmer_{flank}", (counts + 1) / (totals + 4)
    yield "interpolated", interpolated


def _bits(probabilities: NDArray[np.float64]) -> float:
    return float(-np.log(probabilities).mean() / math.log(2))
