"""Reads summed up by reference position, many bases at a time.

Legend: R reads, S segments (stretches of a read that are aligned or deleted, clipped to the interval), T bases of some
segments, L positions of the interval. Bases between the aligned segments of a read (insertions) are given positions
from L on, where nobody looks: the read stays one stretch of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from genosparse.errors import ConfigError, SequenceError
from genosparse.readers.alignments.records import ALIGNED, DELETED, INSERTED, SOFT_CLIPPED, Flag, Ints, Records
from genosparse.tokenizers import NUCLEOTIDE_CODES

__all__ = ["Pileup", "ReadFilters", "depth_limits"]

_BASES = "ACGT"
# Four counts of 16 bits in one number, so that a base is one addition: what each code adds, A in the lowest bits.
_COUNT_BITS = 16
_MOST_COUNT = (1 << _COUNT_BITS) - 1
_ADDED = np.array([1 << _COUNT_BITS * _BASES.index(x) if x in _BASES else 0 for x in NUCLEOTIDE_CODES], "<u8")
#: What the two bases of a byte add, as one item of 16 bytes: numpy takes those faster than rows of two.
_ADDED_BY_BYTE = _ADDED[np.stack([np.arange(256) >> 4, np.arange(256) & 15], axis=1)].view(np.complex128)[:, 0]
#: What the first base of a byte adds, and 256 further on what the second one does.
_ADDED_BY_HALF = np.concatenate([_ADDED[np.arange(256) >> 4], _ADDED[np.arange(256) & 15]])
_EQUAL = 0  # BAM's "=", which the reference resolves
_MISSING = 255  # a base quality that is not known
_PIECE_BASES = 1 << 15  # what the arrays of one step hold, so that they stay in the processor's cache
_LONG_RUN = 512  # bases in a row from which a slice for each run beats an index for each base
_BLOCK_POSITIONS = 1 << 14  # positions whose channels are written together, for the cache too
_LIMIT_BASES = 1 << 22  # bases that are ranked together where there are too many
_MOST_HASH = np.iinfo(np.uint64).max


@dataclass(frozen=True, slots=True)
class ReadFilters:
    """Which reads and bases count.

    Args:
        exclude_flags: Reads with any of these FLAG bits do not count: by default unmapped, secondary, failing checks
            and duplicates, as in samtools depth.
        require_flags: Reads without all of these bits do not count.
        min_mapping_quality: Least MAPQ.
        min_base_quality: Least base quality; a base below does not count, nor what hangs on it (an insertion behind
            it). Deletions have no quality and count; so do bases whose quality is not stored.
        max_depth: Most reads at a position. Where there are more, those with the lowest hash of their names count: the
            same reads in every run and for every interval (a record that the file has twice stays twice). None counts
            all.
        count_overlaps: Count both mates where they overlap. Otherwise the second of a pair counts from where the first
            one ends, as in ``samtools depth -s``.

    Raises:
        ConfigError: A value that cannot be.
    """

    exclude_flags: int = Flag.UNMAPPED | Flag.SECONDARY | Flag.QC_FAIL | Flag.DUPLICATE
    require_flags: int = 0
    min_mapping_quality: int = 0
    min_base_quality: int = 0
    max_depth: int | None = None
    count_overlaps: bool = False

    def __post_init__(self) -> None:
        for name, most in (
            ("exclude_flags", 0xFFFF),
            ("require_flags", 0xFFFF),
            ("min_mapping_quality", 255),
            ("min_base_quality", 254),
        ):
            _check_number(name, getattr(self, name), 0, most)
        if self.max_depth is not None:
            _check_number("max_depth", self.max_depth, 1, 2**31 - 1)
        if not isinstance(self.count_overlaps, bool):
            raise ConfigError(f"count_overlaps={self.count_overlaps!r}: expected True or False")
        if self.exclude_flags & self.require_flags:
            raise ConfigError(
                f"exclude_flags={self.exclude_flags:#x} and require_flags={self.require_flags:#x} have bits in common: "
                "no read would count"
            )

    def passing(self, records: Records, *, unmapped: bool = False) -> Records:
        """The records that flags and mapping quality let through; with ``unmapped`` those without a place too."""
        flags = records.flags
        excluded = self.exclude_flags & ~(Flag.UNMAPPED if unmapped else 0)
        passed = (flags & excluded == 0) & (flags & self.require_flags == self.require_flags)
        return records.where(passed & (records.fields["mapping_quality"] >= self.min_mapping_quality))


def _check_number(name: str, value: object, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name}={value!r}: expected a whole number from {least} to {most}")


@dataclass(frozen=True)
class _Segments:
    """Segments ``[S]``: their read, first position in the interval, first base of the read, length."""

    read: Ints
    position: Ints
    offset: Ints
    length: Ints

    def __getitem__(self, chosen: slice | NDArray[np.bool_] | Ints) -> _Segments:
        return _Segments(self.read[chosen], self.position[chosen], self.offset[chosen], self.length[chosen])

    def with_inserted(self, before: Ints, others: _Segments) -> _Segments:
        """The segments with others put in, one before each of the indices ``before``."""
        goes_before = np.zeros(len(self.read), np.int64)
        goes_before[before] = 1
        at, others_at = np.arange(len(self.read)) + np.cumsum(goes_before), before + np.arange(len(before))

        def joined(values: Ints, inserted: Ints) -> Ints:
            both = np.empty(len(values) + len(inserted), np.int64)
            both[at], both[others_at] = values, inserted
            return both

        return _Segments(
            joined(self.read, others.read),
            joined(self.position, others.position),
            joined(self.offset, others.offset),
            joined(self.length, others.length),
        )

    def pieces(self) -> Iterator[_Segments]:
        """The segments by the piece, one at least and so many bases at most."""
        ends = np.cumsum(self.length)
        cuts = np.searchsorted(ends, np.arange(0, ends[-1] if len(ends) else 0, _PIECE_BASES))
        cuts = np.unique(np.append(cuts, len(ends)))
        for start, end in pairwise(cuts.tolist()):
            yield self[start:end]

    def alike(self) -> Iterator[_Segments]:
        """The segments by the piece, in another order: those of one length and parity together.

        Most short reads are one segment of the same length, and arrays of such need no index for each base.
        """
        if not len(self.read):
            return
        kind = 2 * self.length + (self.offset & 1)
        if kind.max() <= np.iinfo(np.uint16).max:
            kind = kind.astype(np.uint16)  # numpy sorts these by radix
        order = np.argsort(kind, kind="stable")
        ordered, kind = self[order], kind[order]
        ends = np.cumsum(ordered.length)
        borders = np.flatnonzero(np.diff(kind)) + 1
        bases = np.diff(ends[borders - 1], prepend=0, append=ends[-1])
        # Pieces of its own for each length that fills one; the others share theirs.
        alone = bases >= _PIECE_BASES
        borders = borders[alone[1:] | alone[:-1]]
        for start, end in pairwise([0, *borders.tolist(), len(ends)]):
            yield from ordered[start:end].pieces()

    @cached_property
    def is_uniform(self) -> bool:
        """Whether all segments are of one length and begin all at even, or all at odd bases of their reads."""
        return bool((self.length == self.length[0]).all() and not ((self.offset ^ self.offset[0]) & 1).any())

    def expand(self, first: Ints) -> Ints:
        """``first, first + 1, ...`` of each segment as long as it is, ``[T]``."""
        if self.is_uniform:
            return (first[:, None] + np.arange(self.length[0])).ravel()
        expanded = np.repeat(first - (np.cumsum(self.length) - self.length), self.length)
        expanded += np.arange(len(expanded))
        return expanded

    def locate(self, base: Ints) -> tuple[Ints, Ints]:
        """The segment of each of some bases (of T), and which of that segment's it is."""
        ends = np.cumsum(self.length)
        segment = np.searchsorted(ends, base, side="right")
        return segment, base - (ends - self.length)[segment]

    def runs(self, first: Ints) -> list[tuple[int, int]] | None:
        """First and end of what lies together from ``first`` of each segment on; None where that is short."""
        ends = first + self.length
        begins = np.flatnonzero(np.append(True, first[1:] != ends[:-1]))
        if len(begins) * _LONG_RUN > self.length.sum():
            return None
        return list(zip(first[begins].tolist(), ends[np.append(begins[1:], len(first)) - 1].tolist(), strict=True))

    def bytes_of(self, buffer: NDArray[np.uint8], first: Ints) -> NDArray[np.uint8]:
        """A buffer's bytes from ``first`` of each segment on, as many as it is long, ``[T]``."""
        if self.is_uniform:
            return sliding_window_view(buffer, int(self.length[0]))[first].ravel()
        if (runs := self.runs(first)) is not None:
            return np.concatenate([buffer[start:end] for start, end in runs])
        return buffer[self.expand(first)]

    def added_of(self, buffer: NDArray[np.uint8], first: Ints) -> NDArray[np.uint64]:
        """What the bases in the half bytes from ``first`` of each segment on add to the counts, ``[T]``."""
        if self.is_uniform:
            odd, length = int(first[0]) & 1, int(self.length[0])
            packed = sliding_window_view(buffer, (odd + length + 1) // 2)[first >> 1]
            return _ADDED_BY_BYTE.take(packed).view("<u8")[:, odd : odd + length].ravel()
        if (runs := self.runs(first)) is not None:
            added = [
                _ADDED_BY_BYTE.take(buffer[start >> 1 : (end + 1) >> 1]).view("<u8")[start & 1 :][: end - start]
                for start, end in runs
            ]
            return np.concatenate(added)
        at = self.expand(first)
        index = buffer[at >> 1].astype(np.intp)
        at &= 1
        at <<= 8
        index += at
        return _ADDED_BY_HALF.take(index)


def _half_bytes(buffer: NDArray[np.uint8], at: Ints) -> NDArray[np.uint8]:
    """Half bytes of a buffer, the first one of a byte in its high bits."""
    packed = buffer[at >> 1]
    return np.where(at & 1, packed & 15, packed >> 4)


class Pileup:
    """Sums over reads at each position of an interval.

    Args:
        start: First position, 0-based.
        end: The position after the last.
        names: The channels that are asked for.
        filters: Which reads and bases count.
        limits: Highest hash that counts at each position, uint64 ``[L]``; None where all do.
        reference: Gives the reference's token ids of the interval, for bases that are stored as ``=``; None where there
            is no reference.
    """

    def __init__(
        self,
        start: int,
        end: int,
        names: Iterable[str],
        filters: ReadFilters,
        *,
        limits: NDArray[np.uint64] | None = None,
        reference: Callable[[], NDArray[np.uint8]] | None = None,
    ) -> None:
        self.start, self.end = start, end
        self._names, self._filters, self._limits, self._reference = tuple(names), filters, limits, reference
        self._mates = _Mates()
        length = end - start
        # With the positions from L on. Pages that are not written to take no memory.
        self._counts = np.zeros(length + _PIECE_BASES, "<u8")
        self._quality, self._missing = (np.zeros(length + _PIECE_BASES, np.int64) for _ in range(2))
        # What did not fit in 16 bits, made when it is needed, and the reads and positions that came since.
        self._whole_counts: NDArray[np.int64] | None = None
        self._num_added, self._first_added, self._end_added = 0, length, 0
        self._insertions, self._clips = np.zeros(length, np.int64), np.zeros(length, np.int64)
        # Changes from one position to the next for whole segments, and below what single bases take away again.
        self._steps = {name: np.zeros(length + 1, np.int64) for name in _SEGMENT_SUMS}
        self._taken: dict[str, Ints] = {}
        wanted = set(self._names)
        self._wants_counts = bool(wanted & set(_BASES))
        self._wants_quality = "base_quality" in wanted
        self._wants_bases = bool(
            self._wants_counts or self._wants_quality or filters.min_base_quality or limits is not None
        )

    def add(self, records: Records) -> None:
        """Count the next records, in the order of the file."""
        records = self._filters.passing(records)
        if not len(records):
            return
        visible_from = self._visible_from(records)
        aligned, deleted = self._segments(records, visible_from)
        self._add_segments(records, aligned, deleted)
        if self._wants_bases:
            alone, together = _split(aligned, len(records))
            for piece in alone.alike():
                self._add_bases(records, piece)
            for piece in self._filled(records, together).pieces():
                self._add_bases(records, piece)
            if self._limits is not None:
                for piece in deleted.pieces():
                    self._take_away(records, piece, self._over_limit(records, piece), True)
        for name, total, anchors in (
            ("insertion", self._insertions, _insertion_anchors), ("soft_clip", self._clips, _clip_anchors),
        ):  # fmt: skip
            if name in self._names:
                places = anchors(records)
                passed = self._anchors_count(records, visible_from, places)
                np.add.at(total, places.position0[passed] - self.start, np.int64(1))

    def hashes(self, records: Records) -> Iterator[tuple[Ints, NDArray[np.uint64]]]:
        """Position in the interval and hash of everything that ``add`` would count, piece by piece, ``[T]`` each."""
        records = self._filters.passing(records)
        if not len(records):
            return
        aligned, deleted = self._segments(records, self._visible_from(records))
        for segments in (aligned, deleted):
            for piece in segments.pieces():
                positions = piece.expand(piece.position)
                hashes = np.repeat(records.ranks[piece.read], piece.length)
                if segments is aligned and self._filters.min_base_quality:
                    passed = self._qualities(records, piece) >= self._filters.min_base_quality
                    positions, hashes = positions[passed], hashes[passed]
                yield positions, hashes

    def depth(self) -> Ints:
        """Reads that count at each position, ``[L]``."""
        return self._sum("depth")

    def insertions(self) -> Ints:
        """Reads with an insertion behind each position, ``[L]``."""
        return self._insertions

    def inserted(self, records: Records, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
        """Insertions that count, behind the positions ``wanted`` ``[L]``.

        Args:
            records: The next ones, of those that ``passing`` leaves.
            wanted: The positions.

        Yields:
            Position in the interval, read, first inserted base of the read, number of inserted bases.
        """
        if not len(records):
            return
        places = _insertion_anchors(records)
        passed = np.flatnonzero(self._anchors_count(records, self._visible_from(records), places))
        operations = records.operations
        for anchor in passed[wanted[places.position0[passed] - self.start]].tolist():
            operation = places.operation[anchor]
            yield (
                int(places.position0[anchor]) - self.start,
                int(places.read[anchor]),
                int(operations.offset[operation]),
                int(operations.length[operation]),
            )

    def passing(self, records: Records) -> Records:
        """The records that count."""
        return self._filters.passing(records)

    def again(self) -> Pileup:
        """An empty pileup of the same interval, filters and limits, for another pass over the same records."""
        return Pileup(self.start, self.end, self._names, self._filters, limits=self._limits, reference=self._reference)

    def counts(self) -> Ints:
        """Reads with A, C, G, T and a deletion at each position, ``[L, 5]``."""
        return np.concatenate([self._base_counts().astype(np.int64), self._sum("deletion")[:, None]], axis=1)

    def channels(self) -> NDArray[np.float32]:
        """The channels that were asked for, float32 ``[L, C]``."""
        depth = self.depth()
        totals = {name: self._total(name) for name in self._names if name not in ("depth", "base_quality")}
        num_known = np.empty(0, np.int64)
        if self._wants_quality:
            num_known = depth - self._sum("deletion") - self._missing[: len(depth)]
        values = np.empty((len(depth), len(self._names)), np.float32)
        for start in range(0, len(depth), _BLOCK_POSITIONS):
            block = slice(start, start + _BLOCK_POSITIONS)
            count = np.maximum(depth[block], 1)
            divisor = count.astype(np.float32)
            for column, name in enumerate(self._names):
                if name == "depth":
                    values[block, column] = depth[block]
                elif name == "base_quality":
                    values[block, column] = self._quality[: len(depth)][block] / np.maximum(num_known[block], 1)
                elif name == "mapping_quality":
                    values[block, column] = totals[name][block] / count
                else:  # a fraction: both are whole numbers that float32 holds as far as any depth goes
                    values[block, column] = totals[name][block].astype(np.float32) / divisor
        return values

    def _total(self, name: str) -> NDArray[np.integer]:
        """What is divided by the depth, ``[L]``."""
        if name in _BASES:
            return self._base_counts()[:, _BASES.index(name)]
        if name in _SEGMENT_SUMS:
            return self._sum(name)
        return self._insertions if name == "insertion" else self._clips

    def _base_counts(self) -> NDArray[np.integer]:
        """Reads with A, C, G and T at each position, ``[L, 4]``."""
        length = self.end - self.start
        if self._whole_counts is None:
            return self._counts[:length].view("<u2").reshape(length, len(_BASES))
        self._make_room(_MOST_COUNT)
        return self._whole_counts

    def _make_room(self, num_reads: int) -> None:
        """See to it that the counts of 16 bits can take so many more reads at any position."""
        self._num_added += num_reads
        if self._num_added <= _MOST_COUNT:
            return
        length = self.end - self.start
        if self._whole_counts is None:
            self._whole_counts = np.zeros((length, len(_BASES)), np.int64)
        # Files are in the order of positions: what came since the last time is a small part of a long interval.
        added = slice(self._first_added, min(self._end_added, length))
        self._whole_counts[added] += self._counts[added].view("<u2").reshape(-1, len(_BASES))
        self._counts[added] = 0
        self._num_added, self._first_added, self._end_added = num_reads, length, 0

    def _sum(self, name: str) -> Ints:
        total: Ints = np.cumsum(self._steps[name][:-1])
        if name in self._taken:
            total -= self._taken[name]
        return total

    def _visible_from(self, records: Records) -> Ints:
        """The position from which each read counts, ``[R]``."""
        if self._filters.count_overlaps:
            return np.full(len(records), self.start)
        return np.maximum(self._mates.visible_from(records), self.start)

    def _segments(self, records: Records, visible_from: Ints) -> tuple[_Segments, _Segments]:
        """What of the reads is in the interval and counts: aligned segments, and deleted ones."""
        operations = records.operations
        first = np.maximum(operations.position0, visible_from[operations.read])
        last = np.minimum(operations.position0 + operations.length, self.end)
        inside = first < last
        parts = []
        for kind in (ALIGNED[operations.kind], operations.kind == DELETED):
            at = np.flatnonzero(inside & kind)
            skipped = first[at] - operations.position0[at]
            parts.append(
                _Segments(
                    operations.read[at], first[at] - self.start, operations.offset[at] + skipped, last[at] - first[at]
                )
            )
        return parts[0], parts[1]

    def _add_segments(self, records: Records, aligned: _Segments, deleted: _Segments) -> None:
        for segments in (aligned, deleted):
            for name, weights in _segment_weights(records, segments.read, segments is deleted).items():
                if name == "depth" or name in self._names or name == "deletion":
                    np.add.at(self._steps[name], segments.position, weights)
                    np.subtract.at(self._steps[name], segments.position + segments.length, weights)

    def _filled(self, records: Records, segments: _Segments) -> _Segments:
        """The segments with what lies between those of a read, whose positions are from L on."""
        if not len(segments.read):
            return segments
        follows = np.flatnonzero(np.diff(segments.read) == 0)
        offset = (segments.offset + segments.length)[follows]
        length = segments.offset[follows + 1] - offset
        # A longer one has no room there; the read is two stretches of bytes then.
        follows, offset, length = (x[(length > 0) & (length <= _PIECE_BASES)] for x in (follows, offset, length))
        between = _Segments(segments.read[follows], np.full(len(follows), self.end - self.start), offset, length)
        return segments.with_inserted(follows + 1, between)

    def _add_bases(self, records: Records, piece: _Segments) -> None:
        length = self.end - self.start
        qualities = None
        positions = piece.expand(piece.position)
        failed = None if self._limits is None else self._over_limit(records, piece)
        if self._wants_quality or self._filters.min_base_quality:
            qualities = self._qualities(records, piece)
        if self._filters.min_base_quality and qualities is not None:
            low = qualities < self._filters.min_base_quality
            failed = low if failed is None else low | failed
        passed = None
        if failed is not None and failed.any():
            self._take_away(records, piece, failed & (positions < length), False)
            passed = ~failed
        if self._wants_quality and qualities is not None:
            missing = qualities == _MISSING
            if passed is None and not missing.any():
                np.add.at(self._quality, positions, qualities.astype(np.int64))
            else:
                known = ~missing if passed is None else passed & ~missing
                np.add.at(self._quality, positions[known], qualities[known].astype(np.int64))
                np.add.at(self._missing, positions[missing if passed is None else missing & passed], np.int64(1))
        if self._wants_counts:
            self._make_room(1 + int(np.count_nonzero(np.diff(piece.read))))
            self._first_added = min(self._first_added, int(piece.position.min()))
            self._end_added = max(self._end_added, int((piece.position + piece.length).max()))
            added = self._added(records, piece)
            if passed is not None:
                positions, added = positions[passed], added[passed]
            np.add.at(self._counts, positions, added)

    def _qualities(self, records: Records, piece: _Segments) -> NDArray[np.uint8]:
        """Base qualities of a piece, ``[T]``."""
        stored = records.num_bases[piece.read] > 0
        if stored.all():
            return piece.bytes_of(records.buffer, records.quality_starts[piece.read] + piece.offset)
        qualities = np.full(int(piece.length.sum()), _MISSING, np.uint8)
        if stored.any():
            qualities[np.repeat(stored, piece.length)] = self._qualities(records, piece[stored])
        return qualities

    def _added(self, records: Records, piece: _Segments) -> NDArray[np.uint64]:
        """What each base of a piece adds to the counts, ``[T]``."""
        stored = records.num_bases[piece.read] > 0
        if not stored.all():
            added = np.zeros(int(piece.length.sum()), "<u8")
            if stored.any():
                added[np.repeat(stored, piece.length)] = self._added(records, piece[stored])
            return added
        first = 2 * records.sequence_starts[piece.read] + piece.offset
        added = piece.added_of(records.buffer, first)
        if not added.all():
            nothing = np.flatnonzero(added == 0)
            segment, at = piece.locate(nothing)
            equal = _half_bytes(records.buffer, first[segment] + at) == _EQUAL
            positions = (piece.position[segment] + at)[equal]
            inside = positions < self.end - self.start
            if inside.any():
                tokens = self._reference_tokens(records, piece)
                added[nothing[equal][inside]] = _ADDED[tokens[positions[inside]]]
        return added

    def _reference_tokens(self, records: Records, piece: _Segments) -> NDArray[np.uint8]:
        if self._reference is None:
            raise SequenceError(
                f"read {records.name(int(piece.read[0]))!r} or one near it stores bases as '=', which stands for the "
                "reference's; pass reference="
            )
        return self._reference()

    def _over_limit(self, records: Records, piece: _Segments) -> NDArray[np.bool_]:
        assert self._limits is not None
        limits = self._limits.take(piece.expand(piece.position), mode="clip")
        return np.repeat(records.ranks[piece.read], piece.length) > limits

    def _take_away(self, records: Records, piece: _Segments, failed: NDArray[np.bool_], deleted: bool) -> None:
        """Undo for single bases what was counted for whole segments."""
        positions = piece.expand(piece.position)[failed]
        read = np.repeat(piece.read, piece.length)[failed]
        for name, weights in _segment_weights(records, read, deleted).items():
            if name not in self._taken:
                self._taken[name] = np.zeros(self.end - self.start, np.int64)
            np.add.at(self._taken[name], positions, weights)

    def _anchors_count(self, records: Records, visible_from: Ints, places: _Anchors) -> NDArray[np.bool_]:
        """Which anchors are bases (or deletions) that count, ``[A]``."""
        passed = (places.position0 >= visible_from[places.read]) & (places.position0 < self.end)
        if self._filters.min_base_quality:
            known = (places.offset >= 0) & (records.num_bases[places.read] > 0)
            at = np.where(known, records.quality_starts[places.read] + places.offset, 0)
            passed &= np.where(known, records.buffer[at], _MISSING) >= self._filters.min_base_quality
        if self._limits is not None:
            inside = np.clip(places.position0 - self.start, 0, len(self._limits) - 1)
            passed &= records.ranks[places.read] <= self._limits[inside]
        return passed


def _split(segments: _Segments, num_reads: int) -> tuple[_Segments, _Segments]:
    """The segments that are the only ones of their reads, and the others."""
    alone = np.bincount(segments.read, minlength=num_reads)[segments.read] == 1
    return segments[alone], segments[~alone]


_SEGMENT_SUMS = ("depth", "deletion", "mapping_quality", "reverse_strand")


def _segment_weights(records: Records, read: Ints, deleted: bool) -> dict[str, Ints]:
    """What each position of a segment adds to the sums."""
    ones = np.ones(len(read), np.int64)
    weights = {"depth": ones}
    if deleted:
        weights["deletion"] = ones
    weights["mapping_quality"] = records.int64("mapping_quality")[read]
    weights["reverse_strand"] = (records.flags[read] & Flag.REVERSE > 0).astype(np.int64)
    return weights


class _Anchors(NamedTuple):
    """Bases of reads that something hangs on ``[A]``: read, position, base of the read (-1: deleted), operation."""

    read: Ints
    position0: Ints
    offset: Ints
    operation: Ints


def _insertion_anchors(records: Records) -> _Anchors:
    """The base before each insertion; an insertion behind no base of the read has none."""
    operations = records.operations
    at = np.flatnonzero((operations.kind == INSERTED) & ~operations.is_first)
    before = operations.kind[at - 1]
    at = at[ALIGNED[before] | (before == DELETED)]
    offset = np.where(operations.kind[at - 1] == DELETED, -1, operations.offset[at] - 1)
    return _Anchors(operations.read[at], operations.position0[at] - 1, offset, at)


def _clip_anchors(records: Records) -> _Anchors:
    """The aligned base next to each soft clip, once where both clips of a read have the same."""
    operations = records.operations
    clips = np.flatnonzero(operations.kind == SOFT_CLIPPED)
    found = []
    for step in (1, -1):  # from a clip at the beginning to the right, from one at the end to the left
        inner = operations.beside(clips, step)
        # An insertion may lie between.
        between = (inner >= 0) & (operations.kind[inner] == INSERTED)
        inner[between] = operations.beside(inner[between], step)
        inner = inner[inner >= 0]
        inner = inner[ALIGNED[operations.kind[inner]] | (operations.kind[inner] == DELETED)]
        shift = 0 if step == 1 else operations.length[inner] - 1
        offset = np.where(operations.kind[inner] == DELETED, -1, operations.offset[inner] + shift)
        found.append(np.stack([operations.read[inner], operations.position0[inner] + shift, offset, inner]))
    read, position0, offset, operation = np.concatenate(found, axis=1)
    _, once = np.unique(np.stack([read, position0]), axis=1, return_index=True)
    return _Anchors(read[once], position0[once], offset[once], operation[once])


class _Mates:
    """Finds mates that overlap while reads pass in the order of the file."""

    def __init__(self) -> None:
        self._hashes = np.empty(0, np.uint64)
        self._ends = np.empty(0, np.int64)
        self._longest = 0

    def visible_from(self, records: Records) -> Ints:
        """Where the first of two overlapping mates ends, for the second one; 0 for all others, ``[R]``."""
        visible = np.zeros(len(records), np.int64)
        flags, position0, ends = records.flags, records.position0, records.operations.ends
        mate = records.int64("mate_position0")
        paired = (flags & (Flag.PAIRED | Flag.MATE_UNMAPPED | Flag.SECONDARY | Flag.SUPPLEMENTARY)) == Flag.PAIRED
        paired &= records.fields["contig"] == records.fields["mate_contig"]
        is_first = paired & (position0 <= mate) & (mate < ends)
        self._longest = max(self._longest, int((ends - position0)[is_first].max(initial=0)))
        is_second = paired & (mate <= position0) & (position0 < mate + self._longest)
        chosen = np.flatnonzero(is_first | is_second)
        # Of the lowest bits, one tells which mate it is: a record that is there twice is no pair.
        mates = (flags[chosen] & Flag.SECOND_MATE > 0).astype(np.uint64)
        hashes = np.concatenate([self._hashes, records.name_hashes(chosen) & ~np.uint64(1) | mates])
        all_ends = np.concatenate([self._ends, ends[chosen]])
        order = np.argsort(hashes >> np.uint64(1), kind="stable")
        same = hashes[order[1:]] ^ hashes[order[:-1]] == 1
        first, second = order[:-1][same], order[1:][same]
        later = second >= len(self._hashes)
        first, second = first[later], second[later]
        seconds = chosen[second - len(self._hashes)]
        visible[seconds] = all_ends[first]
        # Whose mate can still come: it begins before their end, and not before the last read of these.
        waiting = all_ends > int(position0[-1])
        waiting[first] = waiting[second] = False
        self._hashes, self._ends = hashes[waiting], all_ends[waiting]
        return visible


def depth_limits(
    depth: Ints,
    start: int,
    filters: ReadFilters,
    batches: Callable[[int, int], Iterable[Records]],
) -> NDArray[np.uint64] | None:
    """The highest hash that counts at each position where the depth is over ``filters.max_depth``.

    Args:
        depth: Reads that count without a limit, ``[L]``.
        start: The first position.
        filters: With a ``max_depth``.
        batches: Gives the records that overlap ``(start, end)``, in the order of the file.

    Returns:
        uint64 ``[L]``, or None where no position is too deep.
    """
    assert filters.max_depth is not None
    deep = np.flatnonzero(depth > filters.max_depth)
    if not len(deep):
        return None
    limits = np.full(len(depth), _MOST_HASH)
    # Positions are taken together as long as their bases fit in memory; one position at least.
    groups = np.cumsum(depth[deep]) // _LIMIT_BASES
    for group in np.split(deep, np.flatnonzero(np.diff(groups)) + 1):
        first, last = int(group[0]), int(group[-1]) + 1
        pileup = Pileup(start + first, start + last, ("depth",), filters)
        places, hashes = [], []
        for records in batches(start + first, start + last):
            for place, values in pileup.hashes(records):
                counted = depth[place + first] > filters.max_depth
                places.append(place[counted])
                hashes.append(values[counted])
        place, values = np.concatenate(places), np.concatenate(hashes)
        order = np.lexsort((values, place))
        place, values = place[order], values[order]
        beginnings = np.searchsorted(place, group - first)
        limits[group] = values[beginnings + filters.max_depth - 1]
    return limits
