"""What is trained on and what is held out, and the windows drawn from it."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from genosparse.channels import reverse_complement_channels
from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.intervals import Interval
from genosparse.pretraining.settings import check_number
from genosparse.pretraining.splits import Span, ValidationBlocks, check_fraction, intersect, located, split, subtract
from genosparse.readers import Genome, GenomeChannels, GenomeTokens, read_tokens
from genosparse.tokenizers import N, NucleotideTokenizer

__all__ = ["SAMPLINGS", "Corpus", "Sampling", "Span", "Window", "WindowSource", "check_fraction"]

# So many windows in a row that have too much N end the search for one.
_MOST_DRAWS = 1000

SAMPLINGS = ("length", "sqrt", "weights")


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
        validation_key: The setting that gave it.
        context: Bases of a window, at most.
        max_n: Largest fraction of N in a training window.
        held_out: The held-out stretches.
    """

    validation: float | Sequence[str] | None
    validation_key: str = "data.validation"
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

    def draw(self, random: np.random.Generator, context: int | None = None) -> Window:
        """Draw a training window.

        Args:
            random: Decides which.
            context: Bases of it, at most; None for ``self.context``.

        Raises:
            ConfigError: No window of ``context`` bases fits.
        """
        windows = self._candidates(random, self.context if context is None else context)
        return next(window for window in windows if window is not None)

    @abstractmethod
    def _candidates(self, random: np.random.Generator, context: int) -> Iterator[Window | None]:
        """Windows without end, None for each that has too much N."""

    def _has_too_much_n(self, tokens: NDArray[np.uint8]) -> bool:
        return int(np.count_nonzero(tokens == N)) > self.max_n * len(tokens)

    def _check_draws(self, way_out: str) -> None:
        """Find one window, so that ``draw`` ends and sequence of N alone is told here and not in a worker process."""
        random = np.random.Generator(np.random.Philox(key=0))
        self._check_candidates(self._candidates(random, self.context), "", way_out)

    def _check_candidates(self, windows: Iterator[Window | None], of: str, way_out: str) -> None:
        if all(window is None for window in islice(windows, _MOST_DRAWS)):
            raise ConfigError(
                f"{_MOST_DRAWS} windows in a row{of} had more than {self.max_n:.0%} of N; raise data.max_n, lower "
                f"data.context, {way_out}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How often windows are of which genome.

    Args:
        by: ``"length"``: every place alike, so that a genome has its share by what is trained on of it; ``"sqrt"``: by
            the square root of that, so that small genomes are seen more; ``"weights"``: as ``weights`` say.
        weights: A number above 0 for each genome; their sum does not matter.

    Raises:
        ConfigError: A value that cannot be.
    """

    by: str = "length"
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.by not in SAMPLINGS:
            raise ConfigError(f"data.sampling={self.by} is unknown; choose one of {', '.join(SAMPLINGS)}")
        if (self.by == "weights") != (self.weights is not None):
            if self.weights is None:
                raise ConfigError(
                    "data.sampling=weights needs data.weights=, one of each genome, as data.weights=[2,1]"
                )
            raise ConfigError(
                f"data.weights is of data.sampling=weights, and data.sampling={self.by}; give that too, or no weights"
            )
        for number, weight in enumerate(self.weights or ()):
            check_number(f"data.weights[{number}]", weight, 0, without_least=True)


class _Starts(NamedTuple):
    """Where windows of one length may start: every possible start is a number.

    Attributes:
        spans: Stretches that hold a window, those of a genome in a row.
        ends: Number of starts up to and with each of them, ``[spans]``.
        genome_ends: Number of starts up to and with each genome, ``[genomes]``.
        shares: Probability of a genome or one before it, ``[genomes]``; None where every start is alike.
    """

    spans: list[Span]
    ends: NDArray[np.int64]
    genome_ends: NDArray[np.int64]
    shares: NDArray[np.float64] | None


class Corpus(WindowSource):
    """Genomes, split into training and held-out spans that no window straddles.

    Contigs are found in every genome that has them, chr1 and 1 alike. A window is drawn in a time that grows with the
    logarithm of the number of stretches.

    Args:
        genomes: Genomes to train on.
        validation: A fraction (the last part of each contig is held out), or names of held-out contigs; 0 or None holds
            out nothing.
        validation_blocks: Hold out the fraction as blocks in all parts of the contigs.
        validation_genomes: Genomes that are held out whole, in place of ``validation``.
        context: Bases of a window.
        regions: Train on these intervals alone; None for all.
        exclude: Intervals that no training window touches.
        max_n: Largest fraction of N in a training window; windows with more are drawn again, of the same genome unless
            every place is alike.
        sampling: How often windows are of which genome.
        channels: What alignments say of each genome, None for one without; all of the same channels. Windows have
            channels when any has, and they are 0 on the genomes without. They are read window by window.
        tokens: What ``read_tokens`` gives of each genome, and then of each that is held out, asked for once all else
            is checked; None reads them into memory.

    Attributes:
        training: Stretches that are trained on, short ones among them.
        num_training_bases: Bases in those that hold a window of ``context`` bases.

    Raises:
        ConfigError: No window of ``context`` bases fits or has few enough N, the validation takes all, or two ways of
            holding out are given at once.
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
        validation_blocks: ValidationBlocks | None = None,
        validation_genomes: Sequence[Genome] = (),
        regions: Iterable[Interval] | None = None,
        exclude: Iterable[Interval] = (),
        max_n: float = 0.1,
        sampling: Sampling | None = None,
        channels: Sequence[GenomeChannels | None] = (),
        tokens: Iterable[GenomeTokens] | None = None,
    ) -> None:
        self.validation, self.context, self.max_n = validation, context, max_n
        self._sampling, self._names = sampling or Sampling(), [str(genome.path) for genome in genomes]
        if self._sampling.weights is not None and len(self._sampling.weights) != len(genomes):
            raise ConfigError(
                f"data.weights has {len(self._sampling.weights)} and data.genome {len(genomes)} entries; give a weight "
                "for each genome, in their order"
            )
        whole = [
            [Span(number, contig, 0, length) for contig, length in genome.contigs.items() if length]
            for number, genome in enumerate([*genomes, *validation_genomes])
        ]
        contigs = [span for spans in whole[: len(genomes)] for span in spans]
        self.training, self.held_out = split(contigs, genomes, validation, validation_blocks)
        if validation_genomes:
            if self.held_out:
                raise ConfigError(
                    f"data.validation={validation} and data.validation_genomes both say what is held out; give one"
                )
            self.held_out = [span for spans in whole[len(genomes) :] for span in spans]
            self.validation_key = "data.validation_genomes"
            self.validation = [str(genome.path) for genome in validation_genomes]
        if regions is not None:
            self.training = intersect(self.training, located(regions, "data.regions", genomes))
        self.training = subtract(self.training, located(exclude, "data.exclude", genomes))
        self._long_spans = [span for span in self.training if span.length >= context]
        self.num_training_bases = sum(span.length for span in self._long_spans)
        self._check_lengths()
        self._channels = [*(channels or [None] * len(genomes)), *([None] * len(validation_genomes))]
        for number, source in enumerate(self._channels):
            if source is not None:
                source.check(span.contig for span in [*self._long_spans, *self.held_out] if span.genome == number)
        self._starts: dict[int, _Starts] = {}
        self._starts_of(context)
        # Last: it takes minutes where genomes are large, which a mistake need not wait for.
        self._tokens = list(map(read_tokens, [*genomes, *validation_genomes]) if tokens is None else tokens)
        self._check_all_draws()

    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a span, ``[length]``: a view, not to be written to."""
        return self._tokens[span.genome].tokens(span.contig, span.start, span.end)

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

    def _candidates(self, random: np.random.Generator, context: int) -> Iterator[Window | None]:
        """Every possible start alike, or every one of a genome that is drawn first."""
        starts = self._starts_of(context)
        if starts.shares is None:
            return self._windows(random, context, starts, 0, int(starts.ends[-1]))
        genome = int(np.searchsorted(starts.shares, random.random(), side="right"))
        return self._windows(random, context, starts, *_bounds(starts.genome_ends, genome))

    def _windows(
        self, random: np.random.Generator, context: int, starts: _Starts, low: int, high: int
    ) -> Iterator[Window | None]:
        while True:
            start = int(random.integers(low, high))
            number = int(np.searchsorted(starts.ends, start, side="right"))
            span = starts.spans[number]
            first = start - _bounds(starts.ends, number)[0] + span.start
            window = Span(span.genome, span.contig, first, first + context)
            tokens = self.tokens(window)
            if self._has_too_much_n(tokens):
                yield None
                continue
            soft_mask = self._tokens[window.genome].soft_mask(window.contig, window.start, window.end)
            yield Window(tokens, soft_mask, self.channels(window), self.channel_names)

    def _starts_of(self, context: int) -> _Starts:
        """Made when first asked for. Shorter windows than ``self.context`` are of the same stretches."""
        starts = self._starts.get(context)
        if starts is None:
            starts = self._starts[context] = self._make_starts(context)
        return starts

    def _make_starts(self, context: int) -> _Starts:
        check_number("context", context, 1, whole=True)
        spans = [span for span in self._long_spans if span.length >= context]
        if not spans:
            longest = max(span.length for span in self._long_spans)
            raise ConfigError(
                f"no training window of {context} bases fits: the longest stretch to train on has {longest} bases; "
                "train on shorter ones"
            )
        lengths = np.array([span.length for span in spans], np.int64)
        of = np.array([span.genome for span in spans], np.int64)
        ends = np.cumsum(lengths - context + 1)
        last = np.searchsorted(of, np.arange(len(self._names)), side="right")
        genome_ends = np.concatenate([[0], ends])[last]
        if self._sampling.by == "length":
            return _Starts(spans, ends, genome_ends, None)
        weights = np.sqrt(np.bincount(of, lengths, minlength=len(self._names)))
        if self._sampling.weights is not None:
            empty = np.flatnonzero(weights == 0)
            if len(empty):
                raise ConfigError(
                    f"data.weights gives {self._sampling.weights[empty[0]]} to {self._names[empty[0]]}, which has no "
                    f"stretch to train on of data.context={context} bases; lower data.context, or leave it out"
                )
            weights = np.array(self._sampling.weights, np.float64) / max(self._sampling.weights)  # no sum overflows
        shares = np.cumsum(weights / weights.sum())
        return _Starts(spans, ends, genome_ends, shares / shares[-1])

    def _check_all_draws(self) -> None:
        starts = self._starts_of(self.context)
        if starts.shares is None:
            self._check_draws("or name regions with sequence by data.regions")
            return
        random = np.random.Generator(np.random.Philox(key=0))
        for genome, name in enumerate(self._names):
            low, high = _bounds(starts.genome_ends, genome)
            if low < high:
                windows = self._windows(random, self.context, starts, low, high)
                self._check_candidates(windows, f" of {name}", "or leave that genome out")

    def _check_lengths(self) -> None:
        if not self._long_spans:
            longest = max((span.length for span in self.training), default=0)
            raise ConfigError(
                f"no training window of data.context={self.context} bases fits: the longest stretch to train on has "
                f"{longest} bases; lower data.context, or change data.validation={self.validation}, its blocks, "
                "data.regions or data.exclude"
            )
        skipped = sum(span.length for span in self.training) - self.num_training_bases
        if skipped:
            warnings.warn(
                f"{skipped:,} bases are in stretches shorter than data.context={self.context} and are not trained on",
                GenosparseWarning,
                stacklevel=3,
            )


def _bounds(ends: NDArray[np.int64], number: int) -> tuple[int, int]:
    """Where part ``number`` begins and ends."""
    return int(ends[number - 1]) if number else 0, int(ends[number])
