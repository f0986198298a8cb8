"""Rows of figures: each group of sites by each predictor, with bootstrap intervals over blocks of the genome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genosparse.evaluation.groups import Grouping, SitePlaces

__all__ = ["Predictions", "Row", "genome_blocks", "summarize"]

_COVERAGE = (2.5, 97.5)  # percentiles of the interval
_DRAWN = 2**22  # numbers drawn at a time, which bounds memory


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a predictor says at each site.

    Attributes:
        predictor: Its name.
        context: Bases of context that it was shown; None for k-mer models.
        bits: -log2 of the true base's probability, float64 ``[sites]``.
        correct: Whether the likeliest base is the true one, bool ``[sites]``.
    """

    predictor: str
    context: int | None
    bits: NDArray[np.float64]
    correct: NDArray[np.bool_]


class Row(NamedTuple):
    """A group of sites as one predictor sees it.

    Attributes:
        grouping: What the sites are grouped by; ``all`` for all of them.
        group: Which group.
        predictor: Who predicts.
        context: Bases of context; None for k-mer models.
        sites: Number of sites.
        bits_per_base: Mean of -log2 of the true base's probability; 2 is chance.
        low: Lower end of the 95 % interval; None where the sites lie in fewer than two blocks.
        high: Its upper end.
        accuracy: Fraction of sites whose likeliest base is the true one.
    """

    grouping: str
    group: str
    predictor: str
    context: int | None
    sites: int
    bits_per_base: float
    low: float | None
    high: float | None
    accuracy: float


def genome_blocks(places: SitePlaces, block_bases: int) -> NDArray[np.int64]:
    """The number, from 0, of each site's block of ``block_bases`` bases of its contig: int64 ``[sites]``."""
    pairs = np.stack([places.contig_number, places.position0 // block_bases], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)


def summarize(
    predictions: Sequence[Predictions],
    groupings: Sequence[Grouping],
    blocks: NDArray[np.int64],
    *,
    replicates: int,
    seed: int,
) -> list[Row]:
    """Bits per base, their intervals and accuracies of all groups that have sites.

    Sites near one another are alike, so that whole blocks of the genome are drawn with replacement, the same ones for
    every row, and the interval is that of the percentiles (Efron and Tibshirani, 1993, chapter 13).

    Args:
        predictions: Of every predictor, at the same sites.
        groupings: Groupings of these sites; all sites together come before them.
        blocks: The block of each site, ``[sites]``, from 0.
        replicates: Bootstrap samples; 0 for no intervals.
        seed: Of their draws.
    """
    everything = Grouping("all", ("all",), np.zeros(len(blocks), np.int64))
    num_blocks = int(blocks.max()) + 1
    rows: list[Row] = []
    bits_by_block: list[NDArray[np.float64]] = []
    sites_by_block: list[NDArray[np.float64]] = []
    for grouping in (everything, *groupings):
        for number, group in enumerate(grouping.groups):
            inside = grouping.numbers == number
            count = int(inside.sum())
            if not count:
                continue
            counts = np.bincount(blocks[inside], minlength=num_blocks).astype(np.float64)
            for each in predictions:
                bits = each.bits[inside]
                rows.append(
                    Row(
                        grouping.name,
                        group,
                        each.predictor,
                        each.context,
                        count,
                        float(bits.mean()),
                        None,
                        None,
                        float(each.correct[inside].mean()),
                    )
                )
                bits_by_block.append(np.bincount(blocks[inside], bits, num_blocks).astype(np.float64))
                sites_by_block.append(counts)
    if not replicates:
        return rows
    sums, numbers = np.stack(bits_by_block, axis=1), np.stack(sites_by_block, axis=1)
    low, high = _bootstrap(sums, numbers, replicates, seed)
    has_interval = (numbers > 0).sum(axis=0) > 1
    return [
        row._replace(low=float(low[index]), high=float(high[index])) if has_interval[index] else row
        for index, row in enumerate(rows)
    ]


def _bootstrap(
    sums: NDArray[np.float64], counts: NDArray[np.float64], replicates: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the intervals of sum over count ``[rows]``, from both by block ``[blocks, rows]``."""
    num_blocks = len(sums)
    random = np.random.Generator(np.random.Philox(key=np.array([seed, 2**64 - 2], np.uint64)))
    at_once = max(1, _DRAWN // num_blocks)
    means = []
    for first in range(0, replicates, at_once):
        drawn = random.integers(num_blocks, size=(min(at_once, replicates - first), num_blocks))
        times = np.stack([np.bincount(row, minlength=num_blocks) for row in drawn]).astype(np.float64)
        with np.errstate(invalid="ignore"):  # a sample may miss a small group altogether
            means.append((times @ sums) / (times @ counts))
    low, high = np.nanpercentile(np.concatenate(means), _COVERAGE, axis=0)
    return low, high
