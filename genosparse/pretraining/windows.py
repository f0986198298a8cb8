"""What is trained on and what is held out, and the windows drawn from it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genosparse.errors import ConfigError, ContigNotFoundError, GenosparseWarning
from genosparse.intervals import Interval
from genosparse.readers import Genome
from genosparse.tokenizers import N

__all__ = ["Corpus", "Span", "Window"]

# Soft mask, kept in a bit that no token id uses.
_SOFT = np.uint8(0x80)
_MOST_DRAWS = 1000


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


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids ``[length]`` and which of them are in lower case, bool ``[length]``."""

    tokens: NDArray[np.uint8]
    soft_mask: NDArray[np.bool_]


class Corpus:
    """Genomes in memory, split into training and held-out spans that no window straddles.

    Args:
        genomes: Open genomes.
        validation: A fraction (the last part of each contig is held out), or names of held-out contigs.
        context: Bases of a window.
        regions: Train on these intervals alone; None for all.
        exclude: Intervals that no training window touches.
        max_n: Largest fraction of N in a training window; windows with more are drawn again.

    Raises:
        ConfigError: No window of ``context`` bases fits, or the validation takes all or none of what it names.
        ContigNotFoundError: A contig named by ``validation``, ``regions`` or ``exclude`` is in no genome.
        SequenceError: A genome has a letter that is no nucleotide code.
    """

    def __init__(
        self,
        genomes: Sequence[Genome],
        *,
        validation: float | Sequence[str],
        context: int,
        regions: Iterable[Interval] | None = None,
        exclude: Iterable[Interval] = (),
        max_n: float = 0.1,
    ) -> None:
        self.context, self.max_n = context, max_n
        self._tokens: dict[tuple[int, str], NDArray[np.uint8]] = {}
        for number, genome in enumerate(genomes):
            for contig, length in genome.contigs.items():
                if length:
                    tokens, soft = genome.tokens(Interval(contig, 0, length), return_soft_mask=True)
                    self._tokens[number, contig] = tokens | np.where(soft, _SOFT, np.uint8(0))
        allowed = [Span(number, contig, 0, len(tokens)) for (number, contig), tokens in self._tokens.items()]
        self.training, self.held_out = _split(allowed, validation)
        if regions is not None:
            self.training = _intersect(self.training, self._locate(regions, "data.regions"))
        self.training = _subtract(self.training, self._locate(exclude, "data.exclude"))
        self._check(validation)
        lengths = np.array([span.length - context + 1 for span in self._long], dtype=np.int64)
        self._ends = lengths.cumsum()

    @property
    def _long(self) -> list[Span]:
        return [span for span in self.training if span.length >= self.context]

    @property
    def num_training_bases(self) -> int:
        """Bases that training windows can come from."""
        return sum(span.length for span in self._long)

    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a span."""
        return self._tokens[span.genome, span.contig][span.start : span.end] & ~_SOFT

    def draw(self, random: np.random.Generator) -> Window:
        """Draw a training window, every possible start alike."""
        for _ in range(_MOST_DRAWS):
            start = int(random.integers(self._ends[-1]))
            number = int(np.searchsorted(self._ends, start, side="right"))
            span = self._long_spans[number]
            offset = span.start + start - (int(self._ends[number - 1]) if number else 0)
            packed = self._tokens[span.genome, span.contig][offset : offset + self.context]
            tokens = packed & ~_SOFT
            if np.count_nonzero(tokens == N) <= self.max_n * self.context:
                return Window(tokens, packed >= _SOFT)
        raise ConfigError(
            f"{_MOST_DRAWS} windows in a row had more than {self.max_n:.0%} of N; raise data.max_n, lower "
            "data.context, or name regions with sequence by data.regions"
        )

    def _check(self, validation: float | Sequence[str]) -> None:
        self._long_spans = self._long
        if not self._long_spans:
            longest = max((span.length for span in self.training), default=0)
            raise ConfigError(
                f"no training window of data.context={self.context} bases fits: the longest stretch to train on has "
                f"{longest} bases; lower data.context, or change data.validation={validation}, data.regions "
                "or data.exclude"
            )
        skipped = sum(span.length for span in self.training) - self.num_training_bases
        if skipped:
            warnings.warn(
                f"{skipped:,} bases are in stretches shorter than data.context={self.context} and are not trained on",
                GenosparseWarning,
                stacklevel=3,
            )

    def _locate(self, intervals: Iterable[Interval], key: str) -> list[Span]:
        """Intervals as spans of every genome that has their contig."""
        numbers: dict[str, list[int]] = {}
        for number, contig in self._tokens:
            numbers.setdefault(contig, []).append(number)
        spans = []
        for interval in intervals:
            if interval.contig not in numbers:
                known = ", ".join(list(numbers)[:4])
                raise ContigNotFoundError(
                    f"{key} names contig {interval.contig!r}, which no genome has (they have {known} ...)"
                )
            spans += [
                Span(number, interval.contig, interval.start, interval.end) for number in numbers[interval.contig]
            ]
        return spans


def _split(spans: list[Span], validation: float | Sequence[str]) -> tuple[list[Span], list[Span]]:
    """Training and held-out spans."""
    if isinstance(validation, int | float):
        if not 0 <= validation < 1:
            raise ConfigError(
                f"data.validation={validation}: expected a fraction from 0 up to (not including) 1, or contigs"
            )
        training, held_out = [], []
        for span in spans:
            cut = span.end - int(span.length * validation)
            training.append(Span(span.genome, span.contig, 0, cut))
            held_out.append(Span(span.genome, span.contig, cut, span.end))
        return training, [span for span in held_out if span.length]
    names = set(validation)
    if missing := sorted(names - {span.contig for span in spans}):
        known = ", ".join(list(dict.fromkeys(span.contig for span in spans))[:4])
        raise ContigNotFoundError(
            f"data.validation names contig {missing[0]!r}, which no genome has (they have {known} ...)"
        )
    training = [span for span in spans if span.contig not in names]
    if not training:
        raise ConfigError("data.validation names every contig, so that none is left to train on; name fewer")
    return training, [span for span in spans if span.contig in names]


def _subtract(spans: list[Span], holes: list[Span]) -> list[Span]:
    """What of the spans no hole covers."""
    for hole in holes:
        left = []
        for span in spans:
            if (
                (span.genome, span.contig) != (hole.genome, hole.contig)
                or hole.end <= span.start
                or span.end <= hole.start
            ):
                left.append(span)
                continue
            left += [
                Span(span.genome, span.contig, start, end)
                for start, end in ((span.start, hole.start), (hole.end, span.end))
                if start < end
            ]
        spans = left
    return spans


def _intersect(spans: list[Span], others: list[Span]) -> list[Span]:
    """What of the spans the others cover, each base once."""
    covered: list[Span] = []
    for other in sorted(others, key=lambda span: (span.genome, span.contig, span.start)):
        last = covered[-1] if covered else None
        if last and (last.genome, last.contig) == (other.genome, other.contig) and other.start <= last.end:
            covered[-1] = Span(last.genome, last.contig, last.start, max(last.end, other.end))
        else:
            covered.append(other)
    return [
        Span(span.genome, span.contig, max(span.start, other.start), min(span.end, other.end))
        for span in spans
        for other in covered
        if (span.genome, span.contig) == (other.genome, other.contig)
        and span.start < other.end
        and other.start < span.end
    ]
