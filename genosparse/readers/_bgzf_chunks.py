"""Whether the places that an index names in a BGZF file are where its records are.

htslib trusts an index blindly: one of another file, or of an earlier version of this one, loses records without a word,
and one in ruins brings the process down.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunks", "chunks_fit"]

_NUM_SAMPLED = 64


class Chunks:
    """The places of an index as they are parsed: chunks, and the lesser offsets of linear indexes and bins.

    Raises:
        ValueError: While adding: a count that cannot be, a bin that is there twice or does not exist, offsets that do
            not rise.
    """

    def __init__(self, num_bins: int) -> None:
        self._num_bins = num_bins
        self._bins: set[int] = set()
        self._contig = -1
        self.begins: list[int] = []
        self.ends: list[int] = []
        self.contigs: list[int] = []
        self.bins: list[int] = []
        self.places: list[tuple[int, int]] = []  # an offset that must be of a record, and the record's contig

    def begin_contig(self) -> None:
        """What follows is of the next contig."""
        self._bins = set()
        self._contig += 1

    def add_bin(self, number: int, offsets: Sequence[int]) -> None:
        """Add a bin's chunks, begins and ends in turn."""
        if number in self._bins or not 0 <= number < self._num_bins or not offsets:
            raise ValueError("a bin that cannot be")
        self._bins.add(number)
        begins, ends = list(offsets[::2]), list(offsets[1::2])
        if any(end < begin for begin, end in zip(begins, ends, strict=True)):
            raise ValueError("a chunk that ends before it begins")
        self.begins += begins
        self.ends += ends
        self.contigs += [self._contig] * len(begins)
        self.bins += [number] * len(begins)

    def add_linear(self, offsets: Sequence[int]) -> None:
        """Add the least offset of each window, 0 where nothing is."""
        used = [offset for offset in offsets if offset]
        if any(later < earlier for earlier, later in pairwise(used)):
            raise ValueError("a linear index that falls")
        self.add_places(dict.fromkeys(used))

    def add_places(self, offsets: Sequence[int] | dict[int, None]) -> None:
        """Add further offsets of records."""
        self.places += [(offset, self._contig) for offset in offsets if offset]


def chunks_fit(
    chunks: Chunks,
    first_record: int,
    contig_at: Callable[[int], int | None],
    bin_at: Callable[[int], int] | None = None,
) -> bool:
    """Whether chunks leave no gap in the file, and begin with records of their contigs.

    Args:
        chunks: Those of an index.
        first_record: Virtual offset of the first record.
        contig_at: Number of the contig of the record at a virtual offset, -1 of one without a place; None at the end.
        bin_at: Bin of the record at a virtual offset, where the file tells it.
    """
    if not chunks.begins:
        return contig_at(first_record) in (None, -1)
    begins, ends = np.array(chunks.begins, np.uint64), np.array(chunks.ends, np.uint64)
    order = np.argsort(begins, kind="stable")
    contigs = np.array(chunks.contigs)[order]
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    # samtools joins chunks of a bin that are in one block, over those of other bins between them.
    touches = (begins[1:] <= ends[:-1]) | (begins[1:] & np.uint64(0xFFFF) == 0)
    if int(begins[0]) != first_record or not touches.all() or (np.diff(contigs) < 0).any():
        return False
    sampled = _sampled(len(begins))
    checked = [(int(begins[at]), int(contigs[at])) for at in sampled]
    checked += [chunks.places[at] for at in _sampled(len(chunks.places))]
    if any(contig_at(offset) != contig for offset, contig in checked):
        return False
    if bin_at is not None and not all(_is_within(bin_at(int(begins[at])), chunks.bins[order[at]]) for at in sampled):
        return False
    return contig_at(int(ends[-1])) in (None, -1)  # records without a place come last


def _is_within(number: int, other: int) -> bool:
    """Whether a bin is another one, or one of its parts: htslib puts few records into the larger."""
    while number > other:
        number = (number - 1) >> 3
    return number == other


def _sampled(number: int) -> Sequence[int]:
    places: NDArray[np.int64] = np.unique(np.linspace(0, max(0, number - 1), min(number, _NUM_SAMPLED)).astype(int))
    return places.tolist()
