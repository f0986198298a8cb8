"""What is trained on and what is held out, and the windows drawn from it."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genosparse.channels import reverse_complement_channels
from genosparse.errors import ConfigError, ContigNotFoundError, GenosparseWarning, IntervalError
from genosparse.intervals import Interval
from genosparse.readers import Genome, GenomeChannels
from genosparse.tokenizers import N, NucleotideTokenizer

__all__ = ["Corpus", "Span", "Window", "WindowSource", "check_fraction"]

# So many windows in a row that have too much N end the search for one.
_MOST_DRAWS = 1000


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


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch to train on.

    Attributes:
        tokens: Token ids, ``[length]``.
        soft_mask: Which of them are in lower case, bool ``[length]``.
        channels: What alignments say of them, float32 ``[length, C]``; None where there are none.
        channel_names: The channels, ``[C]``.
    """

    tokens: NDArray[np.uint8]
    soft_mask: NDArray[np.bool_]
    channels: NDArray[np.float32] | None = None
    channel_names: tuple[str, ...] = ()

    def reverse_complement(self) -> Window:
        """The other strand of it."""
        channels = None if self.channels is None else reverse_complement_channels(self.channels, self.channel_names)
        tokens = NucleotideTokenizer().reverse_complement(self.tokens)
        return Window(tokens, self.soft_mask[::-1], channels, self.channel_names)


class WindowSource(ABC):
    """Where training windows and held-out sequence come from.

    Attributes:
        validation: What is held out, as it was given.
        context: Bases of a window, at most.
        max_n: Largest fraction of N in a training window.
        held_out: The held-out stretches.
    """

    validation: float | Sequence[str] | None
    context: int
    max_n: float
    held_out: list[Span]

    @abstractmethod
    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a stretch, ``[length]``: a view, not to be written to."""

    def channels(self, span: Span) -> NDArray[np.float32] | None:
        """What alignments say of a stretch, float32 ``[length, C]``; None where there are none."""
        return None

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels ``[C]``; none where there are no alignments."""
        return ()

    @abstractmethod
    def training_sequences(self) -> list[NDArray[np.uint8]]:
        """Token ids of all that is trained on, as views; what is not contiguous is apart, or has PAD between."""

    def draw(self, random: np.random.Generator) -> Window:
        """Draw a training window of at most ``context`` bases."""
        while True:
            window = self._try_draw(random)
            if window is not None:
                return window

    @abstractmethod
    def _try_draw(self, random: np.random.Generator) -> Window | None:
        """A window, or None where it has too much N."""

    def _has_too_much_n(self, tokens: NDArray[np.uint8]) -> bool:
        return int(np.count_nonzero(tokens == N)) > self.max_n * len(tokens)

    def _check_draws(self, way_out: str) -> None:
        """Find one window, so that ``draw`` ends and sequence of N alone is told here and not in a worker process."""
        random = np.random.Generator(np.random.Philox(key=0))
        if all(self._try_draw(random) is None for _ in range(_MOST_DRAWS)):
            raise ConfigError(
                f"{_MOST_DRAWS} windows in a row had more than {self.max_n:.0%} of N; raise data.max_n, lower "
                f"data.context, {way_out}"
            )


class Corpus(WindowSource):
    """Genomes in memory, split into training and held-out spans that no window straddles.

    Contigs are found in every genome that has them, chr1 and 1 alike.

    Args:
        genomes: Open genomes.
        validation: A fraction (the last part of each contig is held out), or names of held-out contigs; 0 or None holds
            out nothing.
        context: Bases of a window.
        regions: Train on these intervals alone; None for all.
        exclude: Intervals that no training window touches.
        max_n: Largest fraction of N in a training window; windows with more are drawn again.
        channels: What alignments say of each genome, None for one without; all of the same channels. Windows have
            channels when any has, and they are 0 on the genomes without. They are read window by window.

    Raises:
        ConfigError: No window of ``context`` bases fits or has few enough N, or the validation takes all.
        ContigNotFoundError: A contig named by ``validation``, ``regions`` or ``exclude`` is in no genome.
        IntervalError: An interval of ``regions`` or ``exclude`` reaches past the end of its contig.
        SequenceError: A genome has a letter that is no nucleotide code.
    """

    def __init__(
        self,
        genomes: Sequence[Genome],
        *,
        validation: float | Sequence[str] | None,
        context: int,
        regions: Iterable[Interval] | None = None,
        exclude: Iterable[Interval] = (),
        max_n: float = 0.1,
        channels: Sequence[GenomeChannels | None] = (),
    ) -> None:
        self.validation, self.context, self.max_n = validation, context, max_n
        self._channels = list(channels)
        self._tokens: dict[_Key, NDArray[np.uint8]] = {}
        self._soft_bits: dict[_Key, NDArray[np.uint8]] = {}  # the soft mask, eight bases to the byte
        for number, genome in enumerate(genomes):
            for contig, length in genome.contigs.items():
                if length:
                    tokens, soft_mask = genome.tokens(Interval(contig, 0, length), return_soft_mask=True)
                    tokens.setflags(write=False)
                    self._tokens[number, contig] = tokens
                    self._soft_bits[number, contig] = np.packbits(soft_mask)
        allowed = [Span(number, contig, 0, len(tokens)) for (number, contig), tokens in self._tokens.items()]
        self.training, self.held_out = _split(allowed, validation, genomes)
        if regions is not None:
            self.training = _intersect(self.training, _located(regions, "data.regions", genomes))
        self.training = _subtract(self.training, _located(exclude, "data.exclude", genomes))
        self._long_spans = [span for span in self.training if span.length >= context]
        self.num_training_bases = sum(span.length for span in self._long_spans)
        self._check_lengths()
        for number, source in enumerate(self._channels):
            if source is not None:
                source.check(span.contig for span in [*self._long_spans, *self.held_out] if span.genome == number)
        # The number of window starts up to and with each span.
        self._ends = np.cumsum([span.length - context + 1 for span in self._long_spans], dtype=np.int64)
        self._check_draws("or name regions with sequence by data.regions")

    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a span, ``[length]``: a view, not to be written to."""
        return self._tokens[span.genome, span.contig][span.start : span.end]

    def channels(self, span: Span) -> NDArray[np.float32] | None:
        """What alignments say of a span, float32 ``[length, C]``; None where no genome has any."""
        if not self.channel_names:
            return None
        source = self._channels[span.genome]
        if source is None:
            return np.zeros((span.length, len(self.channel_names)), np.float32)
        return source.values(Interval(span.contig, span.start, span.end))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels ``[C]``; none where there are no alignments."""
        return next((source.names for source in self._channels if source is not None), ())

    def training_sequences(self) -> list[NDArray[np.uint8]]:
        """Token ids of each training span."""
        return [self.tokens(span) for span in self.training]

    def _try_draw(self, random: np.random.Generator) -> Window | None:
        """Every possible start alike."""
        start = int(random.integers(self._ends[-1]))
        number = int(np.searchsorted(self._ends, start, side="right"))
        span = self._long_spans[number]
        start += span.start - (int(self._ends[number - 1]) if number else 0)
        key, end = (span.genome, span.contig), start + self.context
        tokens = self._tokens[key][start:end]
        if self._has_too_much_n(tokens):
            return None
        bits = np.unpackbits(self._soft_bits[key][start // 8 : (end + 7) // 8])
        soft_mask = bits[start % 8 :][: self.context].astype(np.bool_)
        return Window(tokens, soft_mask, self.channels(Span(*key, start, end)), self.channel_names)

    def _check_lengths(self) -> None:
        if not self._long_spans:
            longest = max((span.length for span in self.training), default=0)
            raise ConfigError(
                f"no training window of data.context={self.context} bases fits: the longest stretch to train on has "
                f"{longest} bases; lower data.context, or change data.validation={self.validation}, data.regions "
                "or data.exclude"
            )
        skipped = sum(span.length for span in self.training) - self.num_training_bases
        if skipped:
            warnings.warn(
                f"{skipped:,} bases are in stretches shorter than data.context={self.context} and are not trained on",
                GenosparseWarning,
                stacklevel=3,
            )


def _located(intervals: Iterable[Interval], key: str, genomes: Sequence[Genome]) -> Iterator[Span]:
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


def _split(
    spans: list[Span], validation: float | Sequence[str] | None, genomes: Sequence[Genome]
) -> tuple[list[Span], list[Span]]:
    """Training and held-out spans."""
    if validation is None:
        return spans, []
    if isinstance(validation, int | float):
        check_fraction(validation, "or contigs")
        training, held_out = [], []
        for span in spans:
            cut = span.end - int(span.length * validation)
            training.append(Span(span.genome, span.contig, 0, cut))
            held_out.append(Span(span.genome, span.contig, cut, span.end))
        return training, [span for span in held_out if span.length]
    find = _ContigFinder(genomes, "data.validation")
    names = [validation] if isinstance(validation, str) else validation
    chosen = {span for name in names for span in find(name)}
    training = [span for span in spans if span not in chosen]
    if not training:
        raise ConfigError("data.validation names every contig, so that none is left to train on; name fewer")
    return training, [span for span in spans if span in chosen]


def _intersect(spans: Iterable[Span], others: Iterable[Span]) -> list[Span]:
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


def _subtract(spans: list[Span], holes: Iterable[Span]) -> list[Span]:
    """What of the spans no hole covers."""
    merged = _merged(holes)
    gaps = []
    for genome, contig in dict.fromkeys((span.genome, span.contig) for span in spans):
        stretches = merged.get((genome, contig), [])
        starts = [0, *(hole.end for hole in stretches)]
        ends = [*(hole.start for hole in stretches), sys.maxsize]
        gaps += [Span(genome, contig, start, end) for start, end in zip(starts, ends, strict=True) if start < end]
    return _intersect(spans, gaps)


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
