"""``Alignments``: what the reads of a sample say of a genome."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from genosparse.channels import CHANNELS, check_channel_names, reverse_complement_channels
from genosparse.contigs import ContigMatcher, contig_not_found
from genosparse.errors import IntervalError, SequenceError
from genosparse.inputs import Closing
from genosparse.intervals import Interval
from genosparse.readers.alignments.consensus import ConsensusSettings, call_consensus
from genosparse.readers.alignments.files import AlignmentFile
from genosparse.readers.alignments.pileup import Pileup, ReadFilters, depth_limits
from genosparse.readers.alignments.records import Flag, Records
from genosparse.readers.fasta import Genome
from genosparse.tokenizers import COMPLEMENT, PAD, N, NucleotideTokenizer

__all__ = ["Alignments", "Channels", "Read", "ReadTokens"]

_TOKENIZER = NucleotideTokenizer()
_MISSING = 255


@dataclass(frozen=True, slots=True)
class Read:
    """One record of an alignment file.

    Attributes:
        name: QNAME.
        flags: FLAG.
        contig: Where it is placed, or None.
        position0: 0-based position of its first aligned base, -1 where it has none.
        end: The position after its last aligned base, -1 where it has none.
        mapping_quality: MAPQ, Phred; 255 where it is not known.
        cigar: CIGAR as text, ``*`` where there is none.
        tokens: Token ids, uint8 ``[length]``, in the reference's direction as the file has them; empty where the file
            has no sequence.
        qualities: Base qualities, Phred, uint8 ``[length]``; None where they are not stored.
    """

    name: str
    flags: int
    contig: str | None
    position0: int
    end: int
    mapping_quality: int
    cigar: str
    tokens: NDArray[np.uint8]
    qualities: NDArray[np.uint8] | None

    @property
    def is_reverse(self) -> bool:
        """Whether the tokens are the reverse complement of what was sequenced."""
        return bool(self.flags & Flag.REVERSE)

    @property
    def is_unmapped(self) -> bool:
        """Whether the read has no alignment."""
        return bool(self.flags & Flag.UNMAPPED)

    @property
    def sequenced_tokens(self) -> NDArray[np.uint8]:
        """Token ids in the direction in which the read was sequenced."""
        return _TOKENIZER.reverse_complement(self.tokens) if self.is_reverse else self.tokens


@dataclass(frozen=True, slots=True)
class ReadTokens:
    """The bases of many reads.

    Attributes:
        tokens: Token ids of one read after the other, uint8 ``[sum(lengths)]``.
        lengths: Bases of each read, at least 1; int64 ``[R]``.
        name_hashes: A hash of 64 bits of each read's name, alike in every run and for both mates; uint64 ``[R]``.
    """

    tokens: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    name_hashes: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Channels:
    """Numbers by reference position.

    Attributes:
        interval: Where.
        names: The channels, ``[C]``; see ``genosparse.channels.CHANNELS``.
        values: float32 ``[length, C]``, from the 5' end of the interval's strand.
    """

    interval: Interval
    names: tuple[str, ...]
    values: NDArray[np.float32]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """One channel, ``[length]``."""
        if name not in self.names:
            raise KeyError(f"{name!r}: the channels are {', '.join(self.names)}")
        return self.values[:, self.names.index(name)]


class Alignments(Closing):
    """The alignments of a BAM or CRAM file (or SAM, through a sorted copy in the cache folder).

    Intervals are read through an index: of files over 64 MiB the one beside the file where it fits, else one that is
    made in the cache folder. Nothing is downloaded. Alignments can be used from several threads, after a fork, and
    pickled.

    Args:
        path: The file, recognised by its content.
        reference: The genome that CRAM was made with: a path, or an open ``Genome``; also what resolves bases stored as
            ``=``. None where neither is needed.
        filters: Which reads and bases count.

    Attributes:
        path: As given.
        contigs: Length in bases of each contig that the header declares, in its order.
        filters: As given.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is no alignment file, or is truncated or damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        reference: str | os.PathLike[str] | Genome | None = None,
        *,
        filters: ReadFilters | None = None,
    ) -> None:
        self.path = Path(path)
        self.filters = ReadFilters() if filters is None else filters
        self._reference = reference if reference is None or isinstance(reference, Genome) else Genome(reference)
        self._file = AlignmentFile(self.path, self._reference)
        self.contigs: dict[str, int] = self._file.contigs
        self._names = list(self.contigs)
        self._matcher = ContigMatcher(self.contigs, wanted_from="the intervals", available_from=str(path))

    @property
    def header(self) -> Mapping[str, Any]:
        """The header by kinds of lines: ``header["SQ"]`` is a list of dictionaries of tags."""
        return self._file.header

    def reads(self, interval: Interval | None = None) -> Iterator[Read]:
        """Read by read, in the order of the file.

        Flags and mapping quality are filtered as ``filters`` says; base quality, depth and overlaps are not.

        Args:
            interval: Reads that overlap it, on either strand; None for all, unmapped ones among them.

        Raises:
            ContigNotFoundError: The file does not declare the contig.
            IntervalError: The interval reaches past the contig's end.
            FileFormatError: The file is truncated or damaged.
            SequenceError: Bases are stored as ``=`` and there is no ``reference``.
        """
        batches = self._file.batches() if interval is None else self._batches(self._located(interval))
        return (read for records in batches for read in self._reads(records, unmapped=interval is None))

    def sequenced_tokens(self) -> Iterator[ReadTokens]:
        """What was sequenced, many reads at a time: the bases of every read once, in the direction of sequencing.

        Needs no index and no genome. Secondary and supplementary records, whose bases their primary record has, are
        left out whatever ``filters`` says; records without bases too. Flags and mapping quality are filtered as
        ``filters`` says, and bases below its base quality are N; depth and overlaps are not looked at.

        Raises:
            FileFormatError: The file is truncated or damaged.
            SequenceError: Bases are stored as ``=`` and there is no ``reference``.
        """
        for records in self._file.batches():
            records = self.filters.passing(records, unmapped=True)
            again = records.flags & (Flag.SECONDARY | Flag.SUPPLEMENTARY) != 0
            records = records.where(~again & (records.num_bases > 0))
            if len(records):
                lengths = records.num_bases
                tokens = self._sequenced(records, np.cumsum(lengths) - lengths)
                yield ReadTokens(tokens, lengths, records.name_hashes(np.arange(len(records))))

    def _sequenced(self, records: Records, first: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The bases of records that have some, one read after the other; ``first`` is where each begins, ``[R]``."""
        lengths, is_reverse = records.num_bases, records.flags & Flag.REVERSE != 0
        packed = _runs(records.buffer, records.sequence_starts, (lengths + 1) // 2)
        tokens = _TOKENIZER.unpack(packed, 2 * len(packed))
        spare = 2 * np.cumsum((lengths + 1) // 2) - 1  # the half byte behind an odd number of bases
        tokens = np.delete(tokens, spare[lengths % 2 == 1])
        read = np.repeat(np.arange(len(records)), lengths)
        if not tokens.all():
            for index in np.unique(read[tokens == PAD]).tolist():
                (resolved,) = self._reads(records.where(np.arange(len(records)) == index), unmapped=True)
                tokens[first[index] : first[index] + lengths[index]] = resolved.tokens
        if self.filters.min_base_quality:
            qualities = _runs(records.buffer, records.quality_starts, lengths)
            tokens[qualities < self.filters.min_base_quality] = N
        # Each base's place in the read, counted from the other end where the read lies on the reverse strand.
        place = np.arange(len(tokens)) - first[read]
        turned = is_reverse[read]
        place = np.where(turned, lengths[read] - 1 - place, place) + first[read]
        tokens = tokens[place]
        tokens[turned] = COMPLEMENT[tokens[turned]]
        return tokens

    def channels(self, interval: Interval, names: Sequence[str] = CHANNELS) -> Channels:
        """Depth, bases, qualities and the like at each position of an interval.

        Memory follows the interval, and not the reads in it.

        Args:
            interval: Where; on the minus strand the channels are of the other strand, as
                ``reverse_complement_channels`` makes them.
            names: Some of ``CHANNELS``. ``depth`` alone needs none of the bases, and is quicker.

        Raises:
            ConfigError: A name is no channel.
            ContigNotFoundError: The file does not declare the contig.
            IntervalError: The interval reaches past the contig's end.
            FileFormatError: The file is truncated or damaged.
        """
        names = check_channel_names(names)
        pileup = self._pileup(self._located(interval), names)
        values = pileup.channels()
        if interval.strand == "-":
            values = reverse_complement_channels(values, names)
        return Channels(interval, names, values)

    def consensus(
        self,
        interval: Interval,
        genome: Genome | None = None,
        *,
        min_depth: int = 1,
        call_fraction: float = 0.75,
        het_fraction: float = 0.5,
        low_depth: Literal["reference", "N"] = "reference",
        indels: bool = True,
    ) -> str:
        """The sample's own sequence, called as ``samtools consensus --mode simple`` calls it.

        At each position the most common of A, C, G, T and deletion is called when ``call_fraction`` of the reads have
        it. When the second most common is at least ``het_fraction`` as common as the first, and both together make up
        ``call_fraction`` of the reads, both are, as an IUPAC code; a base and a deletion as the base. All else is N.
        Ambiguous bases of reads are not counted.

        Args:
            interval: Where; on the minus strand the reverse complement comes back.
            genome: Where bases of too little depth come from; None where ``low_depth`` is ``"N"``.
            min_depth: Fewest reads for a call.
            call_fraction: Least fraction of the reads for a call.
            het_fraction: Least frequency of the second allele over that of the first.
            low_depth: ``"reference"``: the genome's base below ``min_depth``; ``"N"``: N.
            indels: Leave out what is called as deleted, and put in insertions that ``call_fraction`` of the reads have
                alike. Otherwise the result is as long as the interval, deleted bases are ``*`` and insertions left out.

        Returns:
            Bases, IUPAC codes and N.

        Raises:
            ConfigError: A threshold that cannot be, or ``low_depth="reference"`` without a genome.
            ContigNotFoundError: The contig is not in the file, or not in the genome.
            IntervalError: The interval reaches past the contig's end.
            FileFormatError: The file is truncated or damaged.
        """
        settings = ConsensusSettings(min_depth, call_fraction, het_fraction, low_depth, indels)
        located = self._located(interval)
        reference = settings.reference_bases(genome, interval)
        pileup = self._pileup(located, ("A", "C", "G", "T", "deletion", "insertion"))
        sequence = call_consensus(pileup, settings, reference, lambda: self._batches(located))
        if interval.strand == "-":
            sequence = sequence[::-1].translate(_COMPLEMENT)
        return sequence

    def _located(self, interval: Interval) -> Interval:
        """The interval under the file's own name of the contig, inside it."""
        # The file's own names need no matching, whatever other names were asked for before.
        own = interval.contig in self.contigs
        contig = interval.contig if own else self._matcher.match(interval.contig)
        if contig is None:
            raise contig_not_found(interval.contig, self.contigs, str(self.path))
        if interval.end > self.contigs[contig]:
            raise IntervalError(
                f"interval {interval} reaches past the end of {contig} in {self.path}, which has "
                f"{self.contigs[contig]} bases; check that both are of the same assembly"
            )
        return Interval(contig, interval.start, interval.end)

    def _batches(self, interval: Interval) -> Iterator[Records]:
        return self._file.batches(interval.contig, interval.start, interval.end)

    def _pileup(self, interval: Interval, names: Sequence[str]) -> Pileup:
        """The sums over an interval, with no more reads anywhere than ``filters.max_depth``."""
        limits = None
        if self.filters.max_depth is not None:
            depth = self._sums(interval, ("depth",), None).depth()

            def batches(start: int, end: int) -> Iterator[Records]:
                return self._file.batches(interval.contig, start, end)

            limits = depth_limits(depth, interval.start, self.filters, batches)
        return self._sums(interval, names, limits)

    def _sums(self, interval: Interval, names: Sequence[str], limits: NDArray[np.uint64] | None) -> Pileup:
        def reference() -> NDArray[np.uint8]:
            assert self._reference is not None
            return self._reference.tokens(self._on_reference(interval))

        pileup = Pileup(
            interval.start,
            interval.end,
            names,
            self.filters,
            limits=limits,
            reference=None if self._reference is None else reference,
        )
        for records in self._batches(interval):
            pileup.add(records)
        return pileup

    def _on_reference(self, interval: Interval) -> Interval:
        assert self._reference is not None
        matcher = self._reference.matcher(wanted_from=str(self.path), wanted_lengths=self.contigs)
        contig = matcher.match(interval.contig)
        if contig is None:
            raise contig_not_found(interval.contig, self._reference.contigs, str(self._reference.path))
        return Interval(contig, interval.start, interval.end)

    def _reads(self, records: Records, *, unmapped: bool) -> Iterator[Read]:
        records = self.filters.passing(records, unmapped=unmapped)
        operations, cigars = records.operations, records.cigars()
        columns = (
            records.flags.tolist(),
            records.int64("contig").tolist(),
            records.position0.tolist(),
            operations.ends.tolist(),
            records.fields["mapping_quality"].tolist(),
            records.sequence_starts.tolist(),
            records.num_bases.tolist(),
            records.quality_starts.tolist(),
        )
        for index, (flags, contig, position0, end, quality, start, length, qualities_at) in enumerate(
            zip(*columns, strict=True)
        ):
            tokens = _TOKENIZER.unpack(records.buffer[start : start + (length + 1) // 2], length)
            qualities = records.buffer[qualities_at : qualities_at + length]
            read = Read(
                name=records.name(index),
                flags=flags,
                contig=self._names[contig] if contig >= 0 else None,
                position0=position0,
                end=end if position0 >= 0 else -1,
                mapping_quality=quality,
                cigar=cigars[index],
                tokens=tokens,
                qualities=None if not length or qualities[0] == _MISSING else qualities.copy(),
            )
            if length and not tokens.all():
                self._resolve_equal(read, records, index)
            yield read

    def _resolve_equal(self, read: Read, records: Records, index: int) -> None:
        """Put the reference's bases where a read has ``=``, in place."""
        if self._reference is None or read.contig is None:
            raise SequenceError(
                f"{self.path}: read {read.name!r} stores bases as '=', which stands for the reference's; pass "
                "reference="
            )
        if read.end > self.contigs[read.contig]:
            raise SequenceError(
                f"{self.path}: read {read.name!r} stores bases as '=', and reaches past the end of {read.contig!r} "
                f"({self.contigs[read.contig]} bp); fetch or write the file again"
            )
        reference = self._reference.tokens(self._on_reference(Interval(read.contig, read.position0, read.end)))
        operations = records.operations
        for at in np.flatnonzero(operations.read == index).tolist():
            if operations.is_aligned[at]:
                offset, length = int(operations.offset[at]), int(operations.length[at])
                first = int(operations.position0[at]) - read.position0
                part = read.tokens[offset : offset + length]
                part[part == PAD] = reference[first : first + length][part == PAD]
        if not read.tokens.all():
            raise SequenceError(f"{self.path}: read {read.name!r} has '=' where it is not aligned to the reference")

    def check_contig(self, contig: str) -> None:
        """Raise what reading a contig of the header would, as far as the reference of CRAM is concerned.

        Raises:
            ContigNotFoundError: The file is CRAM, and its reference lacks the contig or has another length of it.
        """
        self._file.check_reference(contig)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "reference": self._reference, "filters": self.filters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"], state["reference"], filters=state["filters"])  # type: ignore[misc]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _runs(buffer: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Stretches of a buffer, one after the other."""
    return buffer[np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())]


_COMPLEMENT = str.maketrans("ACGTMRWSYKVHDBN*", "TGCAKYWSRMBDHVN*")
