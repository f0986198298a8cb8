"""A sample's own sequence from the bases that its reads have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genosparse.errors import ConfigError
from genosparse.intervals import Interval
from genosparse.readers.alignments.pileup import Pileup
from genosparse.readers.alignments.records import Records
from genosparse.readers.fasta import Genome
from genosparse.tokenizers import NUCLEOTIDE_CODES, NucleotideTokenizer

__all__ = ["ConsensusSettings", "call_consensus"]

_DELETED = 4  # the column of deletions, after A, C, G, T
_LETTERS = np.frombuffer(NUCLEOTIDE_CODES.encode(), np.uint8)


@dataclass(frozen=True, slots=True)
class ConsensusSettings:
    """The thresholds of a consensus; see ``Alignments.consensus``."""

    min_depth: int
    call_fraction: float
    het_fraction: float
    low_depth: Literal["reference", "N"]
    indels: bool

    def __post_init__(self) -> None:
        if not isinstance(self.min_depth, int) or self.min_depth < 1:
            raise ConfigError(f"min_depth={self.min_depth!r}: expected a whole number from 1 on")
        if not 0.5 < self.call_fraction <= 1:
            raise ConfigError(f"call_fraction={self.call_fraction}: expected more than 0.5, and at most 1")
        if not 0 < self.het_fraction <= 1:
            raise ConfigError(f"het_fraction={self.het_fraction}: expected more than 0, and at most 1")
        if self.low_depth not in ("reference", "N"):
            raise ConfigError(f"low_depth={self.low_depth!r}: expected 'reference' or 'N'")

    def reference_bases(self, genome: Genome | None, interval: Interval) -> str:
        """What stands at positions of too little depth, along the reference."""
        if self.low_depth == "N":
            return "N" * interval.length
        if genome is None:
            raise ConfigError("low_depth='reference' needs a genome; pass one, or low_depth='N'")
        contig = genome.matcher(wanted_from="the interval").match(interval.contig) or interval.contig
        return genome.fetch(Interval(contig, interval.start, interval.end)).upper().replace("U", "T")


def call_consensus(
    pileup: Pileup, settings: ConsensusSettings, reference: str, batches: Callable[[], Iterable[Records]]
) -> str:
    """Call each position of a pileup.

    Args:
        pileup: With counts of bases, deletions and insertions.
        settings: The thresholds.
        reference: Bases at positions of too little depth.
        batches: Gives the records again, for the insertions' bases.
    """
    counts = pileup.counts()  # [L, 5]
    depth = counts.sum(axis=1)
    order = np.argsort(-counts, axis=1, kind="stable")
    first, second = order[:, 0], order[:, 1]
    most, more = (np.take_along_axis(counts, order[:, [rank]], axis=1)[:, 0] for rank in (0, 1))
    needed = settings.call_fraction * depth
    two = (more >= settings.het_fraction * most) & (more > 0)
    one = ~two & (most >= needed)
    two &= most + more >= needed
    letters = np.full(len(depth), ord("N"), np.uint8)
    bits = np.array([1, 2, 4, 8, 0])
    code = np.where(two, bits[first] | bits[second], bits[first])
    # A base against a deletion is called as the base: there is no code for both.
    letters[one | two] = _LETTERS[code[one | two]]
    deleted = one & (first == _DELETED)
    letters[deleted] = ord("*")
    low = depth < settings.min_depth
    letters[low] = np.frombuffer(reference.encode(), np.uint8)[low]
    if not settings.indels:
        return letters.tobytes().decode()
    inserted = _insertions(pileup, settings, low, batches)
    if not inserted:
        return letters[~(deleted & ~low)].tobytes().decode()
    pieces, start = [], 0
    for position in sorted(inserted):
        pieces += [letters[start : position + 1].tobytes().decode(), inserted[position]]
        start = position + 1
    pieces.append(letters[start:].tobytes().decode())
    return "".join(pieces).replace("*", "")


def _insertions(
    pileup: Pileup, settings: ConsensusSettings, low: NDArray[np.bool_], batches: Callable[[], Iterable[Records]]
) -> dict[int, str]:
    """The bases inserted after each position where enough of the reads have the same."""
    depth = pileup.depth()
    wanted = (pileup.insertions() >= settings.call_fraction * depth) & (depth > 0) & ~low
    if not wanted.any():
        return {}
    found: dict[int, Counter[str]] = {}
    pileup = pileup.again()
    for records in map(pileup.passing, batches()):
        for position, read, offset, length in pileup.inserted(records, wanted):
            found.setdefault(position, Counter())[_bases(records, read, offset, length)] += 1
    called = {}
    for position, texts in found.items():
        text, count = texts.most_common(1)[0]
        if count >= settings.call_fraction * depth[position]:
            called[position] = text
    return called


def _bases(records: Records, read: int, offset: int, length: int) -> str:
    tokenizer = NucleotideTokenizer()
    start, number = int(records.sequence_starts[read]), int(records.num_bases[read])
    tokens = tokenizer.unpack(records.buffer[start : start + (number + 1) // 2], number)
    return tokenizer.decode(tokens[offset : offset + length])
