"""What a variant changes, and the windows of its alleles.

Positions are of the contig, 0-based; on a circular contig they may pass either end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genosparse.channels import reverse_complement_channels
from genosparse.intervals import Interval
from genosparse.readers import Genome, GenomeChannels, Variant
from genosparse.readers.alleles import changed_span, plain_bases
from genosparse.tokenizers import NucleotideTokenizer

__all__ = ["Change", "Window", "allele_window", "change_of", "site_window"]

_TOKENIZER = NucleotideTokenizer()


@dataclass(frozen=True, slots=True)
class Change:
    """What one ALT changes, without the bases that it shares with REF at its ends.

    Attributes:
        contig: The genome's name of the contig.
        start: Position of the first changed base of REF.
        end: Position after the last one; ``start`` where none is.
        ref: REF's bases there, A C G T.
        alt: The bases that are there instead, A C G T.
    """

    contig: str
    start: int
    end: int
    ref: str
    alt: str


def change_of(variant: Variant, alt: str, genome: Genome, contig: str, reach: int) -> Change:
    """Return what an ALT changes, the same for all ways to write the same variant.

    Where bases are only added or only taken out beside others of the same repeat, there is no telling which ones:
    the change then is the whole stretch in which they can be, as in SPDI's overprecision correction (Holmes et al.
    2020).

    Args:
        variant: The record; REF is what the genome has there.
        alt: One of its ALTs, A C G T.
        genome: The reference.
        contig: The genome's name for the record's contig.
        reach: Bases that are looked at on either side at most; a change that reaches them all is longer than ``reach``,
            or as long.
    """
    start, ref_end, alt_end = changed_span(variant.ref, alt)
    change = Change(
        contig,
        variant.position0 + start,
        variant.position0 + ref_end,
        plain_bases(variant.ref)[start:ref_end],
        plain_bases(alt)[start:alt_end],
    )
    return change if change.ref and change.alt else _justified(change, genome, reach)


def _justified(change: Change, genome: Genome, reach: int) -> Change:
    length = genome.contigs[change.contig]
    spare = length - len(change.ref)
    is_circular = genome.is_circular(change.contig)
    left_room, right_room = (spare, spare) if is_circular else (change.start, length - change.end)
    before = _read_tokens(genome, change.contig, change.start - min(reach, left_room), min(reach, left_room))
    behind = _read_tokens(genome, change.contig, change.end, min(reach, right_room))
    unit = _TOKENIZER.encode(change.ref or change.alt)
    num_left = _num_repeated(before[::-1], unit[::-1])
    num_right = _num_repeated(behind, unit)
    left, right = _TOKENIZER.decode(before[len(before) - num_left :]), _TOKENIZER.decode(behind[:num_right])
    return Change(
        change.contig,
        change.start - num_left,
        change.end + num_right,
        left + change.ref + right,
        left + change.alt + right,
    )


def _num_repeated(tokens: NDArray[np.uint8], unit: NDArray[np.uint8]) -> int:
    """Number of tokens up to the first that does not go on with the unit, over and over."""
    same = tokens == np.resize(unit, len(tokens))
    return len(tokens) if same.all() else int(np.argmin(same))


def site_window(
    position0: int, contig_length: int, context: int, *, num_bases: int = 1, circular: bool = False
) -> tuple[int, int]:
    """Return ``(start, end)`` of the window of one or more sites: 0-based, half-open.

    The window is centred (``context // 2`` bases before a site), shifted where the contig ends, and shorter than
    ``context`` only on a contig that is itself shorter. On a circular contig it is never shifted: ``end`` passes
    ``contig_length`` where it goes on at the contig's first base.

    Args:
        position0: The first site.
        contig_length: Bases of the contig.
        context: Bases of the window.
        num_bases: Bases from the first site to the last.
        circular: Whether the contig is.
    """
    if circular:
        length = min(context, contig_length)
        start = (position0 - _num_before(length, num_bases)) % contig_length
        return start, start + length
    start = max(0, min(position0 - _num_before(context, num_bases), contig_length - context))
    return start, min(start + context, contig_length)


def _num_before(length: int, num_bases: int) -> int:
    """Bases of a window in front of those in its middle: one more than behind them, where they are an odd number."""
    return (length - num_bases + 1) // 2


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the genome on one strand, with an allele in place of what the genome has there, or without.

    Attributes:
        contig: The genome's name of the contig.
        start: Position of its first base, on the plus strand.
        before: Bases of the genome from there up to the allele.
        replaced: Bases of the genome that the allele is in place of.
        allele: The allele, A C G T; empty for none.
        after: Bases of the genome behind the allele.
        is_reverse: Whether the window is read on the minus strand.
    """

    contig: str
    start: int
    before: int
    replaced: int = 0
    allele: str = ""
    after: int = 0
    is_reverse: bool = False

    def __len__(self) -> int:
        return self.before + len(self.allele) + self.after

    @property
    def allele_start(self) -> int:
        """Index of the allele's first base in the window, as it is read."""
        return self.after if self.is_reverse else self.before

    def tokens(self, genome: Genome) -> NDArray[np.uint8]:
        """Token ids, as the window is read: uint8 ``[len(self)]``, a new array."""
        parts = [_read_tokens(genome, self.contig, self.start, self.before)]
        if self.allele:
            parts.append(_TOKENIZER.encode(self.allele))
        parts.append(_read_tokens(genome, self.contig, self._behind, self.after))
        tokens = np.concatenate(parts)
        return _TOKENIZER.reverse_complement(tokens) if self.is_reverse else tokens

    def channels(self, channels: GenomeChannels) -> NDArray[np.float32]:
        """Channels of alignments, as the window is read: float32 ``[len(self), C]``, a new array.

        Those of the allele are 0, of REF as of ALT: reads there would tell which of the two is theirs.
        """
        values = np.zeros((len(self), len(channels.names)), np.float32)
        for at, start, count in ((0, self.start, self.before), (len(self) - self.after, self._behind, self.after)):
            if count:
                start %= channels.genome.contigs[self.contig]
                values[at : at + count] = channels.values(Interval(self.contig, start, start + count))
        return reverse_complement_channels(values, channels.names) if self.is_reverse else values

    @property
    def _behind(self) -> int:
        return self.start + self.before + self.replaced


def allele_window(change: Change, allele: str, genome: Genome, context: int, *, is_reverse: bool) -> Window | None:
    """Return the window of one allele, or None where the allele is longer than a window.

    The allele is in the window's middle. Windows are shifted where the contig ends and shorter than ``context`` only
    where the contig with the allele is. Where there is no middle, the longer part is in front as the window is read, so
    that the windows of both strands need not hold the same bases, but those of the reverse complement of the genome are
    the same windows.

    Args:
        change: Where the allele is.
        allele: ``change.ref`` or ``change.alt``.
        genome: The reference.
        context: Bases of the window.
        is_reverse: On which strand it is read.
    """
    contig_length = genome.contigs[change.contig]
    num_replaced = change.end - change.start
    num_flank = min(context, contig_length - num_replaced + len(allele)) - len(allele)
    if num_flank < 0:
        return None
    front, back = change.start, contig_length - change.end
    if genome.is_circular(change.contig):
        front = back = num_flank
    elif is_reverse:
        front, back = back, front
    num_front = min(max((num_flank + 1) // 2, num_flank - back), front)
    before = num_flank - num_front if is_reverse else num_front
    return Window(
        change.contig, change.start - before, before, num_replaced, allele, num_flank - before, is_reverse=is_reverse
    )


def _read_tokens(genome: Genome, contig: str, start: int, count: int) -> NDArray[np.uint8]:
    """Token ids of a stretch that may be empty, or on a circular contig pass its ends."""
    if not count:
        return np.empty(0, np.uint8)
    start %= genome.contigs[contig]
    return genome.tokens(Interval(contig, start, start + count))
