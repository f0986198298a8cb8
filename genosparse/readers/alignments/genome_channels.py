"""Channels of alignments at the positions of a genome that names its contigs in its own way."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genosparse.builds import check_build
from genosparse.channels import CHANNELS, check_channel_names, reverse_complement_channels
from genosparse.contigs import contig_not_found, no_contig_matches
from genosparse.errors import ContigNotFoundError, GenosparseWarning, IntervalError
from genosparse.intervals import Interval
from genosparse.readers.alignments.reader import Alignments
from genosparse.readers.fasta import Genome

__all__ = ["GenomeChannels"]

# Positions that are read together where all are kept: reading costs by the call for short intervals.
_TILE = 1 << 16


class GenomeChannels:
    """What alignments say of each position of a genome.

    The alignments' contigs are matched to the genome's as ``ContigMatcher`` does it. Channels are 0 on contigs that the
    alignments do not have. An interval that goes on past the end of a circular contig has the channels of both parts,
    one after the other.

    Args:
        alignments: The alignments.
        genome: The genome that they were made with.
        names: Some of ``CHANNELS``.
        cache_bytes: Keep the channels once read, where those of all contigs in common take no more than that.

    Attributes:
        names: The channels, ``[C]``.

    Raises:
        ConfigError: A name is no channel, or the channels have no other strand.
        ContigNotFoundError: No contig is in both, or a contig could be several.
    """

    def __init__(
        self, alignments: Alignments, genome: Genome, names: Sequence[str] = CHANNELS, *, cache_bytes: int = 0
    ) -> None:
        self.names = check_channel_names(names)
        reverse_complement_channels(self._zeros(1), self.names)  # told here, and not in the midst of the work
        self._alignments, self._genome = alignments, genome
        self._contigs = self._matched()
        shared = sum(genome.contigs[contig] for contig in self._contigs)
        keeps = 4 * len(self.names) * shared <= cache_bytes
        self._tiles: dict[tuple[str, int], NDArray[np.float32]] | None = {} if keeps else None
        self._noticed = False

    @property
    def genome(self) -> Genome:
        """The genome that the positions are of."""
        return self._genome

    def values(self, interval: Interval) -> NDArray[np.float32]:
        """The channels of an interval.

        Args:
            interval: Under the genome's name of its contig; on the minus strand the channels are of the other strand,
                as ``reverse_complement_channels`` makes them.

        Returns:
            float32 ``[length, C]``, from the 5' end of the interval's strand; a new array.

        Raises:
            ContigNotFoundError: The genome has no such contig.
            IntervalError: The interval reaches past the contig's end.
            FileFormatError: The alignments are truncated or damaged.
        """
        length = self._genome.contigs.get(interval.contig)
        if length is None:
            raise contig_not_found(interval.contig, self._genome.contigs, str(self._genome.path))
        if interval.end <= length:
            values = self._plus_strand(interval.contig, interval.start, interval.end)
        elif self._genome.wraps(interval):
            before = self._plus_strand(interval.contig, interval.start, length)
            values = np.concatenate([before, self._plus_strand(interval.contig, 0, interval.end - length)])
        else:
            raise IntervalError(
                f"interval {interval} reaches past the end of {interval.contig} in {self._genome.path}, which has "
                f"{length} bases; shorten it"
            )
        return reverse_complement_channels(values, self.names) if interval.strand == "-" else values

    def check(self, contigs: Iterable[str]) -> None:
        """Read a first read, and give one notice, the first time, of contigs without channels.

        What is wrong with the file, its index or its reference is then told before the work begins.

        Args:
            contigs: The genome's contigs that are going to be asked for.

        Raises:
            FileFormatError: The file is truncated or damaged.
            ContigNotFoundError: A CRAM file needs a contig that its reference does not have.
        """
        wanted = list(dict.fromkeys(contigs))
        if self._noticed or not wanted:
            return
        self._noticed = True
        where = f"{self._alignments.path} and {self._genome.path}"
        if absent := [contig for contig in wanted if contig not in self._contigs]:
            warnings.warn(
                f"contig {absent[0]!r}{_and_others(absent)} of {self._genome.path} is not in {self._alignments.path}: "
                "its channels are 0",
                GenosparseWarning,
                stacklevel=3,
            )
        lengths = self._alignments.contigs
        present = {contig: self._contigs[contig] for contig in wanted if contig in self._contigs}
        if other := [contig for contig, name in present.items() if lengths[name] != self._genome.contigs[contig]]:
            warnings.warn(
                f"contig {other[0]!r}{_and_others(other)} has not the same length in {where} "
                f"({lengths[present[other[0]]]} and {self._genome.contigs[other[0]]} bp): check that both are of the "
                "same assembly; channels past the end are 0",
                GenosparseWarning,
                stacklevel=3,
            )
        for name in present.values():
            self._alignments.check_contig(name)
        if present and not any(self._has_reads(name) for name in present.values()):
            warnings.warn(
                f"no read of {self._alignments.path} counts on any contig that is asked for: its channels are 0 "
                "everywhere; check the file and the filters",
                GenosparseWarning,
                stacklevel=3,
            )

    def _has_reads(self, name: str) -> bool:
        length = self._alignments.contigs[name]
        return length > 0 and any(True for _ in self._alignments.reads(Interval(name, 0, length)))

    def _matched(self) -> dict[str, str]:
        """The alignments' name of each contig of the genome that they have."""
        alignments, genome = self._alignments, self._genome
        path = str(alignments.path)
        if not alignments.contigs:
            raise ContigNotFoundError(
                f"{path} declares no contigs, so that its reads have no place on {genome.path}; align them first"
            )
        lines: list[dict[str, Any]] = alignments.header.get("SQ", [])
        texts = [str(line[tag]) for line in lines for tag in ("AS", "UR") if tag in line]
        check_build(texts, alignments.contigs, genome.contigs, wanted_from=path, available_from=str(genome.path))
        matcher = genome.matcher(wanted_from=path, wanted_lengths=alignments.contigs)
        found = matcher.match_all(alignments.contigs)
        matched = {contig: name for name, contig in found.items() if contig is not None}
        if not matched:
            raise no_contig_matches(alignments.contigs, genome.contigs, path, str(genome.path))
        return matched

    def _plus_strand(self, contig: str, start: int, end: int) -> NDArray[np.float32]:
        values = self._zeros(end - start)
        name = self._contigs.get(contig)
        if name is None:
            return values
        end = min(end, self._alignments.contigs[name])
        if start >= end:
            return values
        if self._tiles is None:
            values[: end - start] = self._alignments.channels(Interval(name, start, end), self.names).values
            return values
        for tile in range(start // _TILE, (end - 1) // _TILE + 1):
            first = tile * _TILE
            low, high = max(start, first), min(end, first + _TILE)
            values[low - start : high - start] = self._tile(name, tile)[low - first : high - first]
        return values

    def _tile(self, name: str, number: int) -> NDArray[np.float32]:
        assert self._tiles is not None
        if (name, number) not in self._tiles:
            end = min((number + 1) * _TILE, self._alignments.contigs[name])
            interval = Interval(name, number * _TILE, end)
            self._tiles[name, number] = self._alignments.channels(interval, self.names).values
        return self._tiles[name, number]

    def _zeros(self, length: int) -> NDArray[np.float32]:
        return np.zeros((length, len(self.names)), np.float32)


def _and_others(names: Sequence[str]) -> str:
    if len(names) == 1:
        return ""
    return f" (as {len(names) - 1} other{'s' if len(names) > 2 else ''})"
