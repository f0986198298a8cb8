"""Alignment records as arrays: many reads at a time, straight from BAM's bytes.

Layout: section 4.2 of the SAM specification. Legend: R reads, O CIGAR operations.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from genosparse.errors import FileFormatError

__all__ = [
    "ALIGNED",
    "CIGAR_LETTERS",
    "DELETED",
    "INSERTED",
    "SOFT_CLIPPED",
    "Flag",
    "Operations",
    "Parsed",
    "Records",
]

Ints = NDArray[np.int64]

CIGAR_LETTERS = "MIDNSHP=X"
INSERTED, DELETED, SOFT_CLIPPED = 1, 2, 4
_PADDING = 6
#: By operation: whether it pairs bases of the read with positions of the reference (M, =, X).
ALIGNED = np.isin(np.arange(16), (0, 7, 8))
_TAKES_REFERENCE = np.isin(np.arange(16), (0, 2, 3, 7, 8))
_TAKES_READ = np.isin(np.arange(16), (0, 1, 4, 7, 8))

_FIELDS = np.dtype(
    [
        ("size", "<i4"), ("contig", "<i4"), ("position0", "<i4"), ("name_bytes", "u1"), ("mapping_quality", "u1"),
        ("bin", "<u2"), ("num_operations", "<u2"), ("flags", "<u2"), ("num_bases", "<i4"), ("mate_contig", "<i4"),
        ("mate_position0", "<i4"), ("template_length", "<i4"),
    ]
)  # fmt: skip
_NO_FIELDS = np.empty(0, _FIELDS)
_UINT32 = struct.Struct("<I")
_TAG_SIZES = {"A": 1, "c": 1, "C": 1, "s": 2, "S": 2, "i": 4, "I": 4, "f": 4, "d": 8}


class Flag:
    """Bits of FLAG."""

    PAIRED = 0x1
    UNMAPPED = 0x4
    MATE_UNMAPPED = 0x8
    REVERSE = 0x10
    SECOND_MATE = 0x80
    SECONDARY = 0x100
    QC_FAIL = 0x200
    DUPLICATE = 0x400
    SUPPLEMENTARY = 0x800


class Parsed(NamedTuple):
    """What ``Records.parse`` found.

    Attributes:
        records: The whole records, up to the first that is bad or beyond what was asked for.
        done: Where in the buffer an unfinished record begins.
        lacking: Bytes that must be added for it to be told more of.
        is_last: Whether a record follows that is beyond what was asked for.
        problem: What is wrong with the record that follows; nothing where it is empty.
    """

    records: Records
    done: int
    lacking: int
    is_last: bool
    problem: str


@dataclass(frozen=True)
class Records:
    """Alignment records over one buffer of BAM bytes.

    Attributes:
        buffer: The bytes, uint8.
        starts: Where each record begins in the buffer, int64 ``[R]``.
        fields: The fixed fields of each, structured ``[R]``.
        path: The file that they are from, for messages.
    """

    buffer: NDArray[np.uint8]
    starts: Ints
    fields: NDArray[np.void]
    path: Path

    @classmethod
    def parse(
        cls, buffer: NDArray[np.uint8], num_contigs: int, path: Path, before: tuple[int, int] | None = None
    ) -> Parsed:
        """Find the whole records from the beginning of a buffer.

        Args:
            buffer: BAM's bytes, from the beginning of a record.
            num_contigs: Contigs in the header.
            path: The file that they are from, for messages.
            before: Number of a contig, and a position: the first record that does not begin on the one before the
                other is the end, and nothing from there on is looked at. None: all.
        """
        # Each record tells where the next one begins: its size, at any of four alignments. Taken as it is, without a
        # sign, it leads on and on; whether it can be is looked at with the other numbers.
        view = buffer.data
        sizes = [view[shift : shift + max(0, len(view) - shift) // 4 * 4].cast("I") for shift in range(4)]
        starts: list[int] = []
        found = starts.append
        at, last = 0, len(view) - _FIELDS.itemsize
        while at <= last:
            found(at)
            at += 4 + sizes[at & 3][at >> 2]
        where = np.array(starts, np.int64)
        fields = sliding_window_view(buffer, _FIELDS.itemsize)[where].view(_FIELDS)[:, 0] if starts else _NO_FIELDS
        # The last record may be unfinished. Its numbers are looked at too: before anything waits for a size that
        # cannot be.
        num_whole, done, lacking = len(starts), at, _FIELDS.itemsize - (len(view) - at)
        if at > len(view):
            num_whole, done, lacking = len(starts) - 1, starts[-1], at - len(view)
        records = cls(buffer, where, fields, path)
        is_last = False
        if before is not None:
            beyond = (fields["contig"] != before[0]) | (fields["position0"] >= before[1])
            if is_last := bool(beyond.any()):
                records = records.first(int(np.argmax(beyond)))
        wrong = records._wrong(num_contigs)
        if before is not None:
            wrong |= records.fields["position0"] < -1
        problem = ""
        if wrong.any():
            records = records.first(int(np.argmax(wrong)))
            problem = "the numbers of a record contradict each other"
        return Parsed(records.first(num_whole), done, lacking, is_last, problem)

    def _wrong(self, num_contigs: int) -> NDArray[np.bool_]:
        """Which of the records have numbers that htslib, too, refuses, ``[R]``."""
        num_bases = self.num_bases
        needed = self.quality_starts - self.starts + num_bases - 4
        wrong = (num_bases < 0) | (needed > self.fields["size"]) | (self.fields["name_bytes"] == 0)
        for field in ("contig", "mate_contig"):
            wrong |= (self.fields[field] < -1) | (self.fields[field] >= num_contigs)
        return wrong

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, chosen: NDArray[np.bool_]) -> Records:
        """Some of the records."""
        return self if chosen.all() else Records(self.buffer, self.starts[chosen], self.fields[chosen], self.path)

    def first(self, count: int) -> Records:
        """So many of the records, or all where there are no more."""
        if count >= len(self):
            return self
        return Records(self.buffer, self.starts[:count], self.fields[:count], self.path)

    def int64(self, field: str) -> Ints:
        """A fixed field as int64 ``[R]``."""
        values: Ints = self.fields[field].astype(np.int64)
        return values

    @cached_property
    def flags(self) -> Ints:
        """FLAG, ``[R]``."""
        return self.int64("flags")

    @cached_property
    def position0(self) -> Ints:
        """0-based position of the first aligned base, -1 where there is none, ``[R]``."""
        return self.int64("position0")

    @cached_property
    def num_bases(self) -> Ints:
        """Length of SEQ, 0 where it is not stored, ``[R]``."""
        return self.int64("num_bases")

    @cached_property
    def sequence_starts(self) -> Ints:
        """Where each SEQ begins in the buffer, two bases to the byte, the first in the high bits, ``[R]``."""
        return self._cigar_starts + 4 * self.int64("num_operations")

    @cached_property
    def quality_starts(self) -> Ints:
        """Where each QUAL begins in the buffer, one byte each, 255 for missing, ``[R]``."""
        return self.sequence_starts + (self.num_bases + 1) // 2

    @property
    def _cigar_starts(self) -> Ints:
        return self.starts + _FIELDS.itemsize + self.fields["name_bytes"]

    @cached_property
    def _name_sizes(self) -> Ints:
        """Letters of each QNAME, behind which there is a NUL; where it lacks, htslib puts one, ``[R]``."""
        return self.int64("name_bytes") - (self.buffer[self._cigar_starts - 1] == 0)

    def name(self, index: int) -> str:
        """QNAME of a record.

        Raises:
            FileFormatError: It has control characters: the file is damaged.
        """
        start = int(self.starts[index]) + _FIELDS.itemsize
        name = self.buffer[start : start + int(self._name_sizes[index])].tobytes().decode("ascii", "replace")
        if not name.isprintable():
            raise FileFormatError(f"{self.path}: the name of read {name!r} is no text; fetch or write the file again")
        return name

    def name_hashes(self, chosen: Ints) -> NDArray[np.uint64]:
        """A hash of 64 bits of QNAME for some of the records, alike in every run; uint64 ``[len(chosen)]``."""
        sizes = self._name_sizes[chosen]
        starts = self.starts[chosen] + _FIELDS.itemsize
        words = sliding_window_view(self.buffer, 8)
        hashes = np.zeros(len(chosen), np.uint64)
        for first in range(0, int(sizes.max(initial=0)), 8):  # eight letters at a time, 0 behind the last
            at = starts + first
            last = np.minimum(at, len(words) - 1)  # at the end of the buffer a word begins earlier
            word = words[last].view(np.uint64)[:, 0]
            word >>= (8 * (at - last)).astype(np.uint64)
            letters = np.clip(sizes - first, 0, 8)
            word &= _LETTERS[letters]
            hashes = np.where(letters > 0, _mixed(hashes ^ word), hashes)
        # A name that is not available is that of no other read: the record as it is stands for it.
        nameless = (sizes == 1) & (self.buffer[np.minimum(starts, len(self.buffer) - 1)] == ord("*"))
        for index in np.flatnonzero(nameless).tolist():
            record = int(chosen[index])
            start = int(self.starts[record])
            content = self.buffer[start : start + 4 + int(self.fields["size"][record])].tobytes()
            hashes[index] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
        return hashes

    @cached_property
    def ranks(self) -> NDArray[np.uint64]:
        """What decides which reads stay where there are too many: by name, so that mates stay together, ``[R]``."""
        kinds = (self.flags & 0xFF ^ self.flags >> 4).astype(np.uint64)
        return self.name_hashes(np.arange(len(self))) & ~np.uint64(0xFF) | kinds & np.uint64(0xFF)

    @cached_property
    def operations(self) -> Operations:
        """The CIGAR operations of all records, one after the other.

        Raises:
            FileFormatError: A CIGAR has an operation that there is not, or differs in length from its sequence.
        """
        raw, count = self._cigars
        if (unknown := raw & 15 >= len(CIGAR_LETTERS)).any():
            index = int(np.searchsorted(np.cumsum(count), np.argmax(unknown), side="right"))
            raise FileFormatError(
                f"{self.path}: the CIGAR of read {self.name(index)!r} has an operation of the unknown kind "
                f"{int(raw[np.argmax(unknown)]) & 15}; fetch or write the file again"
            )
        operations = Operations.of(raw, count, self.position0)
        if (wrong := self._wrong_length(operations.read_lengths)).any():
            self._refuse_from(self._num_sound(wrong))
            # An unmapped read has no alignment, whatever an aligner has left there.
            kept = np.repeat(~wrong, count)
            operations = Operations.of(raw[kept], np.where(wrong, 0, count), self.position0)
        return operations

    @cached_property
    def num_sound(self) -> int:
        """How many records there are before the first mapped one whose CIGAR and sequence differ in length."""
        return self._num_sound(self._wrong_length(self._cigar_sums(_TAKES_READ)))

    def _cigar_sums(self, taken: NDArray[np.bool_]) -> Ints:
        """The lengths of those operations of each record that are of some kinds, ``[R]``."""
        raw, count = self._cigars
        sums = np.concatenate([[0], np.cumsum((raw >> 4) * taken[raw & 15], dtype=np.int64)])
        ends = np.cumsum(count)
        lengths: Ints = sums[ends] - sums[ends - count]
        return lengths

    def _wrong_length(self, read_lengths: Ints) -> NDArray[np.bool_]:
        return (self.num_bases != read_lengths) & (self.num_bases > 0) & (self._cigars[1] > 0)

    def _num_sound(self, wrong: NDArray[np.bool_]) -> int:
        wrong = wrong & (self.flags & Flag.UNMAPPED == 0)
        return int(np.argmax(wrong)) if wrong.any() else len(self)

    def check_cigars(self) -> None:
        """Raise ``FileFormatError`` where the CIGAR of a mapped read and its sequence differ in length."""
        self._refuse_from(self.num_sound)

    def _refuse_from(self, num_sound: int) -> None:
        if num_sound < len(self):
            raise FileFormatError(
                f"{self.path}: the CIGAR and the sequence of read {self.name(num_sound)!r} differ in length; fetch or "
                "write the file again"
            )

    @property
    def ends(self) -> Ints:
        """The reference position after each read's last base; its position + 1 where it has no alignment, ``[R]``."""
        lengths = np.maximum(self._cigar_sums(_TAKES_REFERENCE), 1)
        return self.position0 + np.where(self.flags & Flag.UNMAPPED != 0, 1, lengths)

    def cigars(self) -> list[str]:
        """CIGAR of each record as text, ``*`` where there is none."""
        raw, count = self._cigars
        pairs = zip((raw >> 4).tolist(), (raw & 15).tolist(), strict=True)
        texts = [f"{length}{CIGAR_LETTERS[kind]}" for length, kind in pairs]
        ends = np.cumsum(count).tolist()
        return ["".join(texts[start:end]) or "*" for start, end in pairwise([0, *ends])]

    @cached_property
    def _cigars(self) -> tuple[NDArray[np.uint32], Ints]:
        """Packed operations (length << 4 | kind) ``[O]`` and their number in each record ``[R]``."""
        count = self.int64("num_operations")
        raw = self._raw_operations(self._cigar_starts, count)
        long = self._long_cigars(raw, count)
        if long:
            parts = np.split(raw, np.cumsum(count)[:-1])
            for index, whole in long.items():
                parts[index], count[index] = whole, len(whole)
            raw = np.concatenate(parts)
        return raw, count

    def _raw_operations(self, starts: Ints, count: Ints) -> NDArray[np.uint32]:
        size = 4 * count
        at = np.repeat(starts - (np.cumsum(size) - size), size) + np.arange(size.sum())
        operations: NDArray[np.uint32] = self.buffer[at].view("<u4")
        return operations

    def _long_cigars(self, raw: NDArray[np.uint32], count: Ints) -> dict[int, NDArray[np.uint32]]:
        """CIGARs of more than 65,535 operations: BAM keeps them in the tag CG, behind a stand-in.

        As htslib has it, that is one that begins with a soft clip of all bases, which may be none.
        """
        placed = (count > 0) & (self.fields["contig"] >= 0) & (self.fields["position0"] >= 0)
        maybe = np.flatnonzero(placed)
        first = np.cumsum(count) - count
        maybe = maybe[raw[first[maybe]] == (self.num_bases[maybe] << 4 | SOFT_CLIPPED)]
        found = {}
        for index in maybe.tolist():
            try:
                whole = self._cg_tag(index)
            except (ValueError, KeyError, IndexError, struct.error):
                raise FileFormatError(
                    f"{self.path}: the tags of read {self.name(index)!r} cannot be read; fetch or write the file again"
                ) from None
            if whole is not None and len(whole) >= count[index]:
                found[index] = whole
        return found

    def _cg_tag(self, index: int) -> NDArray[np.uint32] | None:
        at = int(self.quality_starts[index] + self.num_bases[index])
        end = int(self.starts[index]) + 4 + int(self.fields["size"][index])
        tags = self.buffer[at:end].tobytes()
        at = 0
        while at < len(tags):
            tag, kind = tags[at : at + 2], chr(tags[at + 2])
            at += 3
            if kind in "ZH":
                at = tags.index(0, at) + 1
            elif kind == "B":
                (length,) = _UINT32.unpack_from(tags, at + 1)
                size = _TAG_SIZES[chr(tags[at])] * length
                if at + 5 + size > len(tags):
                    raise ValueError("an array that is longer than its record")
                if tag == b"CG":
                    return np.frombuffer(tags, "<u4", length, at + 5) if tags[at] in b"iI" else None
                at += 5 + size
            else:
                at += _TAG_SIZES[kind]
        return None


@dataclass(frozen=True)
class Operations:
    """CIGAR operations of many reads, one after the other; without padding (P), and with neighbours of a kind as one.

    Attributes:
        count: Operations of each read, ``[R]``.
        read: The read of each operation, ``[O]``.
        kind: Index in ``CIGAR_LETTERS``, ``[O]``.
        length: ``[O]``.
        position0: Reference position at which each begins, ``[O]``.
        offset: Base of the read at which each begins, ``[O]``.
        ends: Reference position after each read's last base, ``[R]``; its position + 1 where it takes no reference.
        read_lengths: Bases that each CIGAR takes of its read, ``[R]``.
    """

    count: Ints
    read: Ints
    kind: Ints
    length: Ints
    position0: Ints
    offset: Ints
    ends: Ints
    read_lengths: Ints

    @classmethod
    def of(cls, raw: NDArray[np.uint32], count: Ints, position0: Ints) -> Operations:
        """Lay out packed operations (length << 4 | kind) ``[O]``, ``count`` of each read ``[R]``."""
        read = np.repeat(np.arange(len(count)), count)
        kept = (raw & 15 != _PADDING) & (raw >> 4 > 0)
        raw, read = raw[kept], read[kept]
        kind, length = (raw & 15).astype(np.int64), (raw >> 4).astype(np.int64)
        begins = (np.diff(kind, prepend=-1) != 0) | (np.diff(read, prepend=-1) != 0)
        if not begins.all():
            at = np.flatnonzero(begins)
            kind, length, read = kind[at], np.add.reduceat(length, at), read[at]
        count = np.bincount(read, minlength=len(count))
        first = np.cumsum(count) - count
        on_reference, reference_lengths = _running(length * _TAKES_REFERENCE[kind], first, count)
        offset, read_lengths = _running(length * _TAKES_READ[kind], first, count)
        on_reference += position0[read]
        ends = position0 + np.maximum(reference_lengths, 1)
        return cls(count, read, kind, length, on_reference, offset, ends, read_lengths)

    def beside(self, at: Ints, step: int) -> Ints:
        """The operation ``step`` (1 or -1) further in the same read; -1 where there is none."""
        other = at + step
        inside = (other >= 0) & (other < len(self.read))
        inside &= self.read[np.where(inside, other, 0)] == self.read[at]
        return np.where(inside, other, -1)

    @cached_property
    def is_aligned(self) -> NDArray[np.bool_]:
        """Whether an operation pairs bases of the read with the reference's, ``[O]``."""
        return ALIGNED[self.kind]

    @cached_property
    def is_first(self) -> NDArray[np.bool_]:
        """Whether an operation is the first of its read, ``[O]``."""
        return np.diff(self.read, prepend=-1) != 0


def _running(values: Ints, first: Ints, count: Ints) -> tuple[Ints, Ints]:
    """Sums before each operation within its read ``[O]``, and over each read ``[R]``."""
    sums = np.concatenate([[0], np.cumsum(values)])
    return sums[:-1] - np.repeat(sums[first], count), sums[first + count] - sums[first]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64 (Steele et al. 2014): every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


#: What keeps so many letters of a word, the first one in the lowest bits.
_LETTERS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
