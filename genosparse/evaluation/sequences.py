"""What is tested, and what baselines are counted on: never the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genosparse.contigs import contig_not_found
from genosparse.errors import IntervalError
from genosparse.intervals import Interval
from genosparse.pretraining.windows import Span
from genosparse.readers import Genome, GenomeChannels

__all__ = ["BaselineSequences", "TestedSequences"]

_PIECE = 2**22  # bases read at a time


class TestedSequences:
    """The stretches of a genome that an encoder is tested on, read from the file as they are needed.

    Overlapping intervals are merged, so that no base counts twice. An encoder sees nothing from outside of a stretch.
    It is a ``genosparse.pretraining.evaluation.SiteSource``.

    Args:
        genome: An open genome; its contigs are matched to the intervals' where unambiguous.
        intervals: What is tested, on either strand; None for all of it.
        context: Bases of a window; where all stretches are shorter, the longest sets it.
        channels: What alignments say of the genome, for an encoder that takes it.

    Attributes:
        context: Bases of a window.
        held_out: The stretches, in the genome's order; on a circular contig one may end past the contig's end.

    Raises:
        ContigNotFoundError: A contig is not in the genome.
        IntervalError: An interval reaches past the end of its contig.
    """

    __test__ = False  # its name is not that of a test
    validation = None
    validation_key = ""

    def __init__(
        self,
        genome: Genome,
        intervals: Iterable[Interval] | None,
        *,
        context: int,
        channels: GenomeChannels | None = None,
    ) -> None:
        self._genome, self._channels = genome, channels
        self.held_out = _stretches(genome, intervals)
        self.context = min(context, max((span.length for span in self.held_out), default=context))
        if channels is not None:
            channels.check(dict.fromkeys(span.contig for span in self.held_out))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels ``[C]``; none where there are no alignments."""
        return () if self._channels is None else self._channels.names

    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a stretch, ``[length]``."""
        return self._genome.tokens(self._interval(span))

    def soft_mask(self, span: Span) -> NDArray[np.bool_]:
        """Which bases of a stretch are in lower case, bool ``[length]``."""
        return self._genome.tokens(self._interval(span), return_soft_mask=True)[1]

    def channels(self, span: Span) -> NDArray[np.float32] | None:
        """What alignments say of a stretch, float32 ``[length, C]``; None where there are none."""
        if self._channels is None:
            return None
        return self._channels.values(self._interval(span))

    def _interval(self, span: Span) -> Interval:
        length = self._genome.contigs[span.contig]
        turn = length if span.start >= length else 0  # beyond the end of a circular contig as a whole
        return Interval(span.contig, span.start - turn, span.end - turn)

    def training_sequences(self) -> BaselineSequences:
        """The rest of the genome."""
        return BaselineSequences([self._genome], self._genome, self.held_out)


def _stretches(genome: Genome, intervals: Iterable[Interval] | None) -> list[Span]:
    if intervals is None:
        return [Span(0, contig, 0, length) for contig, length in genome.contigs.items() if length]
    matcher = genome.matcher(wanted_from="the intervals")
    by_contig: dict[str, list[tuple[int, int]]] = {contig: [] for contig in genome.contigs}
    for interval in intervals:
        contig = matcher.match(interval.contig)
        if contig is None:
            raise contig_not_found(interval.contig, genome.contigs, str(genome.path))
        here = Interval(contig, interval.start, interval.end)
        if here.end > genome.contigs[contig] and not genome.wraps(here):
            raise IntervalError(
                f"interval {interval} reaches past the end of {contig} in {genome.path}, which has "
                f"{genome.contigs[contig]} bases; check that both are of the same assembly, or name the contig in "
                "circular= if it is"
            )
        by_contig[contig].append((here.start, here.end))
    return [
        Span(0, contig, start, end)
        for contig, pairs in by_contig.items()
        for start, end in _once(_merged(pairs), genome.contigs[contig])
    ]


def _merged(pairs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted stretches; those that touch or overlap are one."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(pairs):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _once(stretches: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Take from the first stretches what the last one, past the end of a circular contig, covers too."""
    if not stretches or stretches[-1][1] <= length:
        return stretches
    start, end = stretches[-1]
    end = min(end, start + length)  # of one that meets itself
    others = [(max(first, end - length), last) for first, last in stretches[:-1] if last > end - length]
    return [*others, (start, end)]


class BaselineSequences:
    """Token arrays of genomes, without any that is tested; goes through the files anew each time.

    What is tested is left out of each contig that has the same bases as the tested contig, whatever the file and the
    contig are called. One contig is in memory at a time.

    Args:
        genomes: Open genomes.
        tested: The genome that is tested.
        spans: What of it is tested.
        on_bases: Called with the number of bases each time that so many have been given.

    Attributes:
        num_bases: Bases that are left.
    """

    def __init__(
        self,
        genomes: Sequence[Genome],
        tested: Genome,
        spans: Iterable[Span],
        *,
        on_bases: Callable[[int], None] | None = None,
    ) -> None:
        self.on_bases = on_bases
        holes: dict[str, list[tuple[int, int]]] = {}
        for span in spans:
            length = tested.contigs[span.contig]
            parts = holes.setdefault(span.contig, [])
            parts.append((span.start, min(span.end, length)))
            if span.end > length:
                parts.append((0, span.end - length))
        self._kept = [
            (genome, contig, start, end)
            for genome in genomes
            for contig, length in genome.contigs.items()
            for start, end in _gaps(_merged(_shared_holes(genome, contig, tested, holes)), length)
        ]
        self.num_bases = sum(end - start for *_, start, end in self._kept)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for genome, contig, start, end in self._kept:
            yield genome.tokens(Interval(contig, start, end))
            if self.on_bases is not None:
                self.on_bases(end - start)


def _shared_holes(
    genome: Genome, contig: str, tested: Genome, holes: Mapping[str, list[tuple[int, int]]]
) -> list[tuple[int, int]]:
    """What is tested of a contig, if it is one that is tested."""
    if genome is tested:
        return holes.get(contig, [])
    length = genome.contigs[contig]
    candidates = [name for name in holes if tested.contigs[name] == length]
    own = _digest(genome, contig) if candidates else b""
    return [hole for name in candidates if _digest(tested, name) == own for hole in holes[name]]


def _digest(genome: Genome, contig: str) -> bytes:
    """SHA-256 of a contig's bases, whatever their case."""
    digest, length = hashlib.sha256(), genome.contigs[contig]
    for start in range(0, length, _PIECE):
        digest.update(genome.tokens(Interval(contig, start, min(start + _PIECE, length))).tobytes())
    return digest.digest()


def _gaps(holes: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    starts, ends = [0, *(end for _, end in holes)], [*(start for start, _ in holes), length]
    return [(start, end) for start, end in zip(starts, ends, strict=True) if start < end]
