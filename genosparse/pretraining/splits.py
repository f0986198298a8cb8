"""Which stretches of genomes are trained on, and which are held out."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from genosparse.errors import ConfigError, ContigNotFoundError, IntervalError
from genosparse.intervals import Interval
from genosparse.pretraining.settings import check_number
from genosparse.readers import Genome

__all__ = ["Span", "ValidationBlocks", "check_fraction", "intersect", "located", "split", "subtract"]

_Key = tuple[int, str]  # number of the genome, contig


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a contig: ``genome`` is the number of its file; ``start`` and ``end`` are 0-based, half-open."""

    genome: int
    contig: str
    start: int
    end: int

    @property
    def length(self) -> int:
        """Bases."""
        return self.end - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationBlocks:
    """Hold out a fraction as blocks at random places of each contig, in place of its last part.

    Each contig is cut into equal cells, with one block at a random place in each: as many that the fraction (up to a
    half) is held out on average, whatever the contigs' lengths. A contig shorter than a block is held out whole, or
    not at all.

    Args:
        size: Bases of a block.
        gap: Bases on each side of a block that are neither held out nor trained on.
        seed: Of the places, which depend on nothing else but the genomes' lengths.

    Raises:
        ConfigError: A value that cannot be.
    """

    size: int
    gap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("data.validation_blocks", self.size, 1, whole=True)
        check_number("data.validation_gap", self.gap, 0, whole=True)
        check_number("data.validation_seed", self.seed, 0, 2**63 - 1, whole=True)

    def of(self, contigs: Iterable[Span], fraction: float) -> Iterator[Span]:
        """The blocks of whole contigs, in their order."""
        streams: dict[int, np.random.Generator] = {}
        for contig in contigs:
            if contig.genome not in streams:
                key = np.array([self.seed, contig.genome], np.uint64)
                streams[contig.genome] = np.random.Generator(np.random.Philox(key=key))
            random, length = streams[contig.genome], contig.length
            # A whole number of them, at random, whose mean is right.
            wanted = length * fraction / min(self.size, length)
            count = int(wanted + random.random())
            edges = [length * cell // count for cell in range(count)] + [length]
            for low, high, place in zip(edges, edges[1:], random.random(count).tolist(), strict=False):
                size = min(self.size, high - low)
                start = low + int(place * (high - low - size + 1))
                yield Span(contig.genome, contig.contig, start, start + size)

    def surroundings(self, block: Span, length: int, is_circular: bool) -> Iterator[Span]:
        """A block with its gaps, which go on at the other end of a circular contig of ``length`` bases."""
        start, end = block.start - self.gap, block.end + self.gap
        yield Span(block.genome, block.contig, max(0, start), min(end, length))
        if is_circular and start < 0:
            yield Span(block.genome, block.contig, max(0, length + start), length)
        if is_circular and end > length:
            yield Span(block.genome, block.contig, 0, min(end - length, length))


def located(intervals: Iterable[Interval], key: str, genomes: Sequence[Genome]) -> Iterator[Span]:
    """Intervals as spans of every genome that has their contig."""
    find = _ContigFinder(genomes, key)
    for interval in intervals:
        for whole in find(interval.contig):
            if genomes[whole.genome].wraps(Interval(whole.contig, interval.start, interval.end)):
                yield Span(whole.genome, whole.contig, interval.start, whole.end)
                yield Span(whole.genome, whole.contig, 0, interval.end - whole.end)
                continue
            if interval.end > whole.end:
                raise IntervalError(
                    f"{key}: interval {interval} reaches past the end of contig {whole.contig!r} ({whole.end} bp) in "
                    f"{genomes[whole.genome].path}; cut it, or check that both are of the same assembly"
                )
            yield Span(whole.genome, whole.contig, interval.start, interval.end)


class _ContigFinder:
    """Finds the contigs that the setting ``key`` names, as whole spans of every genome that has them."""

    def __init__(self, genomes: Sequence[Genome], key: str) -> None:
        self._genomes, self._key = genomes, key
        self._matchers = [genome.matcher(wanted_from=key) for genome in genomes]

    def __call__(self, contig: str) -> list[Span]:
        found = [
            Span(number, name, 0, genome.contigs[name])
            for number, (genome, matcher) in enumerate(zip(self._genomes, self._matchers, strict=True))
            if (name := matcher.match(contig)) is not None
        ]
        if not found:
            known = [name for genome in self._genomes for name in genome.contigs]
            raise ContigNotFoundError(
                f"{self._key} names contig {contig!r}, which no genome has (they have {', '.join(known[:4])}"
                f"{' ...' if len(known) > 4 else ''}); check that it is of the same assembly"
            )
        return found


def check_fraction(validation: float, otherwise: str) -> None:
    """Raise ``ConfigError`` unless what is to be held out is a fraction."""
    if isinstance(validation, bool) or not 0 <= validation < 1:
        raise ConfigError(
            f"data.validation={validation}: expected a fraction from 0 up to (not including) 1, {otherwise}"
        )


def split(
    contigs: list[Span],
    genomes: Sequence[Genome],
    validation: float | Sequence[str] | None,
    blocks: ValidationBlocks | None = None,
) -> tuple[list[Span], list[Span]]:
    """Training and held-out spans.

    Args:
        contigs: Whole contigs.
        genomes: What they are of.
        validation: A fraction to hold out, or names of contigs.
        blocks: Where in the contigs the fraction is; None for the last part of each.

    Raises:
        ConfigError: ``validation`` is no fraction, leaves nothing or, with blocks, takes nothing.
        ContigNotFoundError: It names a contig that no genome has.
    """
    if isinstance(validation, int | float):
        check_fraction(validation, "or contigs")
    if blocks is not None and not (isinstance(validation, int | float) and validation):
        raise ConfigError(
            f"data.validation_blocks={blocks.size} says where the fraction that is held out lies, and data.validation="
            f"{validation} is no fraction above 0; give one, as data.validation=0.1, or leave the blocks out"
        )
    if blocks is not None and isinstance(validation, int | float) and validation > 0.5:
        raise ConfigError(
            f"data.validation={validation} is too much for data.validation_blocks={blocks.size}, which hold out up "
            "to a half; give 0.5 or less, or leave the blocks out"
        )
    if validation is None:
        return contigs, []
    if isinstance(validation, int | float):
        if blocks is not None:
            return _split_by_blocks(contigs, genomes, validation, blocks)
        training, held_out = [], []
        for span in contigs:
            cut = span.end - int(span.length * validation)
            training.append(Span(span.genome, span.contig, 0, cut))
            held_out.append(Span(span.genome, span.contig, cut, span.end))
        return training, [span for span in held_out if span.length]
    find = _ContigFinder(genomes, "data.validation")
    names = [validation] if isinstance(validation, str) else validation
    chosen = {span for name in names for span in find(name)}
    training = [span for span in contigs if span not in chosen]
    if not training:
        raise ConfigError("data.validation names every contig, so that none is left to train on; name fewer")
    return training, [span for span in contigs if span in chosen]


def _split_by_blocks(
    contigs: list[Span], genomes: Sequence[Genome], fraction: float, blocks: ValidationBlocks
) -> tuple[list[Span], list[Span]]:
    held_out = list(blocks.of(contigs, fraction))
    if not held_out:
        raise ConfigError(
            f"data.validation={fraction} in data.validation_blocks={blocks.size} comes to no block in "
            f"{sum(span.length for span in contigs):,} bases; make the blocks smaller or the fraction larger"
        )
    holes = [
        hole
        for block in held_out
        for hole in blocks.surroundings(
            block, genomes[block.genome].contigs[block.contig], block.contig in genomes[block.genome].circular
        )
    ]
    return subtract(contigs, holes), held_out


def intersect(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
    """What of the spans the others cover, each base once."""
    merged = _merged(others)
    kept = []
    for span in spans:
        stretches = merged.get((span.genome, span.contig), [])
        at = bisect_right(stretches, span.start, key=lambda stretch: stretch.end)
        while at < len(stretches) and stretches[at].start < span.end:
            start, end = max(span.start, stretches[at].start), min(span.end, stretches[at].end)
            kept.append(Span(span.genome, span.contig, start, end))
            at += 1
    return kept


def subtract(spans: list[Span], holes: Iterable[Span]) -> list[Span]:
    """What of the spans no hole covers."""
    merged = _merged(holes)
    gaps = []
    for genome, contig in dict.fromkeys((span.genome, span.contig) for span in spans):
        stretches = merged.get((genome, contig), [])
        starts = [0, *(hole.end for hole in stretches)]
        ends = [*(hole.start for hole in stretches), sys.maxsize]
        gaps += [Span(genome, contig, start, end) for start, end in zip(starts, ends, strict=True) if start < end]
    return intersect(spans, gaps)


def _merged(spans: Iterable[Span]) -> dict[_Key, list[Span]]:
    """Spans by contig, sorted, with those that touch or overlap made one."""
    merged: dict[_Key, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        stretches = merged.setdefault((span.genome, span.contig), [])
        if stretches and span.start <= stretches[-1].end:
            last = stretches.pop()
            span = Span(span.genome, span.contig, last.start, max(last.end, span.end))
        stretches.append(span)
    return merged
