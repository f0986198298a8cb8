"""How much of the held-out sequence is in the training sequence too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genosparse.baselines import joined
from genosparse.pretraining.windows import WindowSource

__all__ = ["KMER", "Leakage", "canonical_kmers", "kmer_leakage", "leakage"]

KMER = 32  # as long as two bits a base fill a number of 64

# Held-out k-mers that are looked up, about: eight bytes each, and a share that is right to 0.0005.
_MOST_KMERS = 1 << 20
# k-mers that are made at a time: what is made on the way stays in the processor's cache.
_CHUNK = 1 << 15
_MIXER = np.uint64(0x9E3779B97F4A7C15)

_CODES = np.zeros(256, np.uint64)
_CODES[[1, 2, 4, 8]] = range(4)
_IS_UNKNOWN = np.ones(256, np.bool_)
_IS_UNKNOWN[[1, 2, 4, 8]] = False


class Leakage(NamedTuple):
    """What of the held-out sequence was seen in training.

    Attributes:
        share: Fraction of the held-out 32-mers that the training sequence has on either strand, 0 to 1; one that occurs
            twice counts twice.
        num_kmers: How many were looked up.
        sampled: The fraction of them that this was, chosen by a hash; 1 where all were.
    """

    share: float
    num_kmers: int
    sampled: float

    def __str__(self) -> str:
        told = "" if self.sampled == 1 else f", by a sample of {self.num_kmers:,}"
        return f"{self.share:.2%} of its {KMER}-mers are in the training sequence too, on either strand{told}"


def leakage(corpus: WindowSource) -> Leakage | None:
    """``kmer_leakage`` of what a corpus holds out; None where it holds out no 32-mer of known bases."""
    return kmer_leakage([corpus.tokens(span) for span in corpus.held_out], corpus.training_sequences())


def kmer_leakage(
    held_out: Sequence[NDArray[np.uint8]], training: Iterable[NDArray[np.uint8]], *, most_kmers: int = _MOST_KMERS
) -> Leakage | None:
    """The share of held-out 32-mers that are in training sequence.

    Memory depends on ``most_kmers`` alone: where there are more, those are looked up whose hash is low, as in
    sourmash's scaled sketches (Irber et al. 2022, doi:10.1101/2022.01.11.475838).

    Args:
        held_out: Token ids of the held-out stretches.
        training: Token ids of the training stretches.
        most_kmers: How many are looked up, about.

    Returns:
        The share; None where no stretch has 32 known bases in a row.
    """
    sampled = min(1.0, most_kmers / max(1, sum(len(tokens) for tokens in held_out)))
    limit = None if sampled == 1 else np.uint64(int(sampled * 2**64))
    wanted, times = _counted(_low(canonical_kmers(held_out), limit))
    if not len(wanted):
        return None
    seen = np.zeros(len(wanted), np.bool_)
    for kmers in _low(canonical_kmers(training), limit):
        kmers = np.sort(kmers)  # looking up goes through memory in order then, and takes a sixth of the time
        at = np.searchsorted(wanted, kmers)
        at[at == len(wanted)] = 0
        seen[at[wanted[at] == kmers]] = True
    return Leakage(float(times[seen].sum() / times.sum()), int(times.sum()), sampled)


def _counted(pieces: Iterable[NDArray[np.uint64]]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Different k-mers in order, and how often each is there; a long row of one and the same takes no memory."""
    kmers, times = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for piece in pieces:
        found, counts = np.unique(piece, return_counts=True)
        kmers.append(found)
        times.append(counts)
    found, at = np.unique(np.concatenate(kmers), return_inverse=True)
    return found, np.bincount(at, np.concatenate(times), minlength=len(found)).astype(np.int64)


def _low(pieces: Iterable[NDArray[np.uint64]], limit: np.uint64 | None) -> Iterator[NDArray[np.uint64]]:
    """The k-mers whose hash is below a limit."""
    for kmers in pieces:
        yield kmers if limit is None else kmers[(kmers ^ (kmers >> np.uint64(32))) * _MIXER < limit]


def canonical_kmers(sequences: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint64]]:
    """The 32-mers of known bases (A, C, G, T), some at a time: of each the lower of both strands' numbers.

    A number has two bits a base, A 0, C 1, G 2, T 3, the first base in the highest.
    """
    for tokens in joined(sequences):
        for start in range(0, len(tokens) - KMER + 1, _CHUNK):
            yield _canonical(tokens[start : start + _CHUNK + KMER - 1])


def _canonical(tokens: NDArray[np.uint8]) -> NDArray[np.uint64]:
    forward = _CODES[tokens]
    backward = np.uint64(3) - forward
    size = 1
    while size < KMER:  # two neighbours make one of twice the length
        shift = np.uint64(2 * size)
        forward, backward = (
            (forward[:-size] << shift) | forward[size:],
            (backward[size:] << shift) | backward[:-size],
        )
        size *= 2
    kmers = np.minimum(forward, backward)
    unknown = np.flatnonzero(_IS_UNKNOWN[tokens])
    if not len(unknown):
        return kmers
    # A k-mer is known where no unknown base lies between its first and its last one.
    first = np.arange(len(kmers))
    return kmers[np.searchsorted(unknown, first) == np.searchsorted(unknown, first + KMER)]
