"""Windows from reads: no genome, no alignment, no index."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genosparse.errors import ConfigError, GenosparseWarning
from genosparse.pretraining.settings import check_number
from genosparse.pretraining.windows import Span, Window, WindowSource, check_fraction
from genosparse.readers import Alignments
from genosparse.readers.alignments import ReadTokens
from genosparse.tokenizers import PAD

__all__ = ["ReadCorpus"]

# Reads are held a part more than asked for before those of highest rank are let go, so that this is seldom done.
_SLACK = 1.25
_FEWEST_FULL = 0.5
_MIXER = np.uint64(0x9E3779B97F4A7C15)
_MOST_HASH = 2**64


class ReadCorpus(WindowSource):
    """Reads in memory, split by their names into training and held-out ones.

    A read longer than ``context`` gives windows of that length; a shorter one is a window of its own. Each base is
    shown about as often as any other: a read is drawn by its length, and by ``context`` where it is shorter. Mates have
    one name, and so are on one side of the split; reads of one place of the genome may be on both.

    Memory is a byte for each base and some sixty for each read, with at most ``max_bases`` bases: where the files have
    more, the reads whose names have the lowest hashes are taken, the same ones in every run.

    Args:
        sources: Where the reads are from, each as its own filters say; see ``Alignments.sequenced_tokens``.
        validation: Fraction of the reads to hold out; 0 or None for none.
        context: Bases of a window; the longest read's, where that is shorter.
        max_n: Largest fraction of N in a training window; windows with more are drawn again.
        max_bases: Most bases to take.

    Attributes:
        num_reads: Reads taken, held-out ones among them.
        num_bases: Their bases.

    Raises:
        ConfigError: There is no read, none to train on, or all have too much N; or ``validation`` is no fraction.
        FileFormatError: A file is truncated or damaged.
        SequenceError: Bases are stored as ``=``, and there is no reference.
    """

    def __init__(
        self,
        sources: Sequence[Alignments],
        *,
        validation: float | Sequence[str] | None,
        context: int,
        max_n: float = 0.1,
        max_bases: int = 10**9,
    ) -> None:
        if validation is not None and not isinstance(validation, int | float):
            raise ConfigError(
                f"data.validation={validation} names contigs, and reads are held out by their names; give a fraction "
                "of the reads, as data.validation=0.1"
            )
        check_fraction(validation or 0, "of the reads")
        check_number("data.max_read_bases", max_bases, 1, whole=True)
        self.validation, self.max_n = validation, max_n
        names = ", ".join(str(source.path) for source in sources)
        parts, is_cut = _taken((batch for source in sources for batch in source.sequenced_tokens()), max_bases)
        self.num_reads = sum(len(part.lengths) for part in parts)
        self.num_bases = sum(int(part.lengths.sum()) for part in parts)
        if not parts:
            raise ConfigError(
                f"data.max_read_bases={max_bases} is less than a read of {names} has; raise it"
                if is_cut
                else f"no read of {names} counts: there is none with bases that passes data.filters"
            )
        if is_cut:
            warnings.warn(
                f"{names} has more than data.max_read_bases={max_bases:,} bases; {self.num_reads:,} reads with "
                f"{self.num_bases:,} bases are taken, chosen by a hash of their names",
                GenosparseWarning,
                stacklevel=2,
            )
        held_out = [_is_held_out(part.name_hashes, validation or 0) for part in parts]
        self._training = [part.where(~held) for part, held in zip(parts, held_out, strict=True)]
        self._held_out = [part.where(held) for part, held in zip(parts, held_out, strict=True)]
        lengths = np.concatenate([part.lengths for part in self._training])
        if not len(lengths):
            raise ConfigError(
                f"data.validation={validation} holds out all of the {self.num_reads} reads of {names}; hold out fewer"
            )
        self.context = min(context, int(lengths.max()))
        self.held_out = [
            Span(len(parts) + number, "", start, start + length)
            for number, part in enumerate(self._held_out)
            for start, length in zip(part.starts.tolist(), part.lengths.tolist(), strict=True)
        ]
        self._part = np.repeat(np.arange(len(parts)), [len(part.lengths) for part in self._training])
        self._start = np.concatenate([part.starts for part in self._training])
        self._length = lengths
        # Where each read ends on a line on which reads are drawn.
        self._ends = np.cumsum(np.maximum(lengths, self.context))
        self._tell_lengths(context)
        self._check_draws("or lower data.filters.min_base_quality")

    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a part of a read, ``[length]``: a view, not to be written to."""
        parts = self._training if span.genome < len(self._training) else self._held_out
        return parts[span.genome % len(self._training)].tokens[span.start : span.end]

    def training_sequences(self) -> list[NDArray[np.uint8]]:
        """Token ids of many training reads at a time, with PAD behind each."""
        return [part.tokens for part in self._training]

    def _candidates(self, random: np.random.Generator, context: int) -> Iterator[Window | None]:
        """A part of a read, which is drawn by its length, and by ``self.context`` where it is shorter."""
        check_number("context", context, 1, whole=True)
        while True:
            read = int(np.searchsorted(self._ends, random.integers(self._ends[-1]), side="right"))
            length = min(int(self._length[read]), context)
            start = int(self._start[read]) + int(random.integers(int(self._length[read]) - length + 1))
            tokens = self._training[self._part[read]].tokens[start : start + length]
            yield None if self._has_too_much_n(tokens) else Window(tokens, np.zeros(length, np.bool_))

    def _tell_lengths(self, wanted: int) -> None:
        shown = np.minimum(self._length, self.context)
        weights = np.diff(self._ends, prepend=0)
        fullness = float((shown * weights).sum() / weights.sum()) / self.context
        if self.context < wanted:
            warnings.warn(
                f"data.context={wanted} is more than the longest read has; windows have {self.context} bases",
                GenosparseWarning,
                stacklevel=3,
            )
        if fullness < _FEWEST_FULL:
            warnings.warn(
                f"{1 - fullness:.0%} of what is computed is padding, as most reads are shorter than data.context="
                f"{self.context}; a lower data.context trains faster",
                GenosparseWarning,
                stacklevel=3,
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """Some reads: their tokens with PAD behind each, and for each read its start there, length and name's hash."""

    tokens: NDArray[np.uint8]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    name_hashes: NDArray[np.uint64]

    @classmethod
    def of(cls, batch: ReadTokens) -> _Part:
        lengths = batch.lengths
        ends = np.cumsum(lengths)
        tokens = np.insert(batch.tokens, ends, PAD)
        tokens.setflags(write=False)
        return cls(tokens, ends - lengths + np.arange(len(lengths)), lengths, batch.name_hashes)

    def where(self, chosen: NDArray[np.bool_]) -> _Part:
        """Some of the reads, without the others' bases."""
        if chosen.all():
            return self
        tokens = self.tokens[np.repeat(chosen, self.lengths + 1)]
        tokens.setflags(write=False)
        lengths = self.lengths[chosen]
        starts = np.cumsum(lengths + 1) - lengths - 1
        return _Part(tokens, starts, lengths, self.name_hashes[chosen])


def _taken(batches: Iterable[ReadTokens], max_bases: int) -> tuple[list[_Part], bool]:
    """Those reads of the lowest hashes that have no more than ``max_bases`` together, and whether there are others."""
    parts: list[_Part] = []
    limit, bases = _MOST_HASH, 0  # reads from this hash on are left out

    def cut() -> None:
        nonlocal limit, bases, parts
        hashes = np.concatenate([part.name_hashes for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        order = np.argsort(hashes)
        fits = int(np.searchsorted(np.cumsum(lengths[order]), max_bases, side="right"))
        if fits == len(hashes):
            return
        # Below the first that does not fit, so that mates, which are alike, go together.
        limit = int(hashes[order][fits])
        parts = list(_below(parts, limit))
        bases = sum(int(part.lengths.sum()) for part in parts)

    for batch in batches:
        more = list(_below([_Part.of(batch)], limit))
        parts += more
        bases += sum(int(part.lengths.sum()) for part in more)
        if bases > _SLACK * max_bases:
            cut()
    if bases > max_bases:
        cut()
    return parts, limit < _MOST_HASH


def _below(parts: Iterable[_Part], limit: int) -> Iterator[_Part]:
    for part in parts:
        kept = part if limit == _MOST_HASH else part.where(part.name_hashes < np.uint64(limit))
        if len(kept.lengths):
            yield kept


def _is_held_out(name_hashes: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """Which reads are held out, by other bits of the hash than what is taken goes by; bool ``[R]``."""
    mixed = (name_hashes ^ (name_hashes >> np.uint64(29))) * _MIXER
    mixed ^= mixed >> np.uint64(32)
    return (mixed * _MIXER >> np.uint64(11)).astype(np.float64) < fraction * 2.0**53
