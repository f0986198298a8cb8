"""Reference genomes, read at any place.

samtools' index (.fai, and .gzi for bgzip) says where bases are; their bytes are read there and go to token ids in one
pass. Each thread of each process has its own reader; bgzip's blocks that were unpacked last are there for all.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from genosparse.contigs import ContigMatcher, check_aliases, contig_not_found, read_aliases
from genosparse.errors import FileFormatError, GenosparseError, IntervalError, SequenceError
from genosparse.inputs import Closing
from genosparse.intervals import Interval
from genosparse.readers._bgzf import KeptBlocks
from genosparse.readers._fasta_bytes import FastaBytes, FastaRecord, ForeignIndexError
from genosparse.readers._htslib import PerThread
from genosparse.readers._lines import Layout, address, instruction_set, letters_of_bytes, write_bases
from genosparse.readers.fasta_index import check_version, find_or_make_index
from genosparse.tokenizers import N, NucleotideTokenizer

__all__ = ["Genome"]

_TOKENIZER = NucleotideTokenizer()
_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVacgturyswkmbdhv", b"TGCAAYRSWMKVHDBtgcaayrswmkvhdb")
_HEAD_BASES = 1000
_SCAN_BASES = 1 << 22
# bgzip's unpacked blocks of all genomes of the process, 64 MB at the most: a bacterium's genome stays whole.
_KEPT_BLOCKS = KeptBlocks(1024)


class Genome(Closing):
    """A reference genome: contigs of a FASTA, 2bit, GenBank or EMBL file, read at any place.

    FASTA may be plain or compressed by bgzip. Its index is made beside it when it is missing, out of date or does not
    fit, or in the cache folder (``$XDG_CACHE_HOME/genosparse``, by default ``~/.cache/genosparse``) when it cannot be
    written there. FASTA compressed by ordinary gzip or with lines of uneven length, 2bit (whose lower case is kept),
    GenBank and EMBL (plain or gzip) are recognised by content and copied once into that folder. A contig's name is the
    header's first word, and in GenBank and EMBL the accession and version. Records without bases are left out.

    On a circular contig an interval whose end passes the contig's end goes on at its first base.

    A genome can be used from several threads, after a fork, and pickled: it is opened again by its path. Of bgzip's
    blocks those unpacked last stay in memory, at most 64 MB for all genomes of a process.

    Args:
        path: The file.
        circular: Names of the circular contigs. True takes those that the file says to be circular (GenBank and EMBL
            do), and all where it says so of none.
        aliases: Further names of contigs, as ``read_aliases`` gives them, or the path of a file for it; what matches
            other files' contigs to the genome's takes them into account.

    Attributes:
        path: As given.
        contigs: Length of each contig in bases, in the file's order.
        aliases: Further names of contigs.
        circular: Names of the circular contigs.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: It is no such file, is truncated or damaged, or has two records of one name or one without; or
            the aliases contradict each other.
        ContigNotFoundError: A contig that is to be circular is not in the genome.
        SequenceError: Its first bases are no nucleotides.
        OutputError: Neither beside the file nor in the cache folder can its index be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        circular: bool | str | Collection[str] = (),
        aliases: str | os.PathLike[str] | Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        if aliases is None or isinstance(aliases, Mapping):
            self.aliases = dict(aliases or {})
            check_aliases(self.aliases, "aliases")
        else:
            self.aliases = read_aliases(Path(aliases))
        found = find_or_make_index(self.path)
        self._files, self._version = found.files, found.version
        self._records = found.records
        self.contigs: dict[str, int] = {name: record.length for name, record in found.records.items()}
        self.circular: frozenset[str] = self._chosen_circular(circular, found.circular)
        self._handles: PerThread[_Reader] | None = PerThread(self._open)
        self._reader()
        self.check_alphabet(most_bases=_HEAD_BASES, contigs=next(iter(self.contigs)))

    def _chosen_circular(self, circular: bool | str | Collection[str], said: Collection[str]) -> frozenset[str]:
        if isinstance(circular, bool):
            return frozenset(said or self.contigs) if circular else frozenset()
        matcher = self.matcher(wanted_from="circular")
        names = [circular] if isinstance(circular, str) else circular
        return frozenset(matcher.match(name) or self._require(name) for name in names)

    def _reader(self) -> "_Reader":
        """This thread's reader; opened where there is none."""
        if self._handles is None:
            raise GenosparseError(f"{self.path} has been closed; open it again with Genome(path)")
        return self._handles.get()

    def _open(self) -> "_Reader":
        try:
            source = FastaBytes(self._files, _KEPT_BLOCKS)
        except (OSError, FileFormatError):
            check_version(self._files.fasta, self.path, self._version)
            raise FileFormatError(
                f"{self.path} cannot be read with its index {self._files.fai}; start again, and it is made anew"
            ) from None
        # After the opening: what was opened is then what was indexed.
        check_version(self._files.fasta, self.path, self._version)
        return _Reader(source, self._records)

    def matcher(
        self, *, wanted_from: str = "the input", wanted_lengths: Mapping[str, int | None] | None = None
    ) -> ContigMatcher:
        """What finds the contigs of an input under the genome's names; see ``ContigMatcher``."""
        return ContigMatcher(
            self.contigs,
            wanted_lengths=wanted_lengths,
            aliases=self.aliases,
            wanted_from=wanted_from,
            available_from=str(self.path),
        )

    def is_circular(self, contig: str) -> bool:
        """Whether a contig is circular, as the genome was opened.

        Raises:
            ContigNotFoundError: The contig is not in the genome.
        """
        return self._require(contig) in self.circular

    def wraps(self, interval: Interval) -> bool:
        """Whether an interval begins on a circular contig, passes its end, and takes no base twice."""
        length = self.contigs.get(interval.contig, 0)
        return interval.contig in self.circular and interval.start < length < interval.end <= interval.start + length

    def link(self, path: Path, names: Mapping[str, str]) -> None:
        """Link the file to ``path``, beside an index in which contigs have other names.

        Args:
            path: Where; nothing is there yet.
            names: The genome's name of each contig of the index.
        """
        records = dict(
            line.split("\t", 1)
            for line in self._files.fai.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        )
        index = "".join(f"{name}\t{records[contig]}\n" for name, contig in names.items())
        path.symlink_to(self._files.fasta.absolute())
        Path(f"{path}.fai").write_text(index, encoding="utf-8", errors="surrogateescape")
        if self._files.gzi is not None:
            Path(f"{path}.gzi").symlink_to(self._files.gzi.absolute())

    def fetch(self, interval: Interval, pad: bool = False) -> str:
        """The bases of an interval, in the case that the file has them.

        Args:
            interval: Where; an interval on the minus strand comes back as its reverse complement.
            pad: Fill what lies past the end of a contig that is not circular with N, instead of raising an error.

        Raises:
            ContigNotFoundError: The contig is not in the genome.
            IntervalError: The interval reaches past the contig's end, or on a circular one begins there or is longer.
            FileFormatError: The file is truncated or damaged.
        """
        letters = self._letters(interval, pad)
        if interval.strand == "-":
            letters = letters.translate(_COMPLEMENT)[::-1]
        return letters.decode("ascii")

    @overload
    def tokens(
        self, interval: Interval, pad: bool = False, *, return_soft_mask: Literal[False] = False
    ) -> NDArray[np.uint8]: ...

    @overload
    def tokens(
        self, interval: Interval, pad: bool = False, *, return_soft_mask: Literal[True]
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]: ...

    def tokens(
        self, interval: Interval, pad: bool = False, *, return_soft_mask: bool = False
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The token ids of an interval: ``fetch`` and ``NucleotideTokenizer.encode`` in one, without the detour by str.

        Args:
            interval: Where; an interval on the minus strand comes back as its reverse complement.
            pad: Fill what lies past the end of a contig that is not circular with N, instead of raising an error.
            return_soft_mask: Also return which bases are in lower case.

        Returns:
            uint8 ids ``[length]``; with ``return_soft_mask`` a bool array ``[length]`` besides.

        Raises:
            ContigNotFoundError: The contig is not in the genome.
            IntervalError: The interval reaches past the contig's end, or on a circular one begins there or is longer.
            SequenceError: A letter that is no nucleotide code, named with contig and position.
            FileFormatError: The file is truncated or damaged.
        """
        pieces = self._pieces(interval, pad)
        tokens = np.empty(interval.end - interval.start, np.uint8)
        soft_mask = np.empty(len(tokens), np.bool_) if return_soft_mask else None
        if not self._fill(tokens, soft_mask, interval.contig, pieces):
            tokens, found_mask = self._encoded(interval, pad)
            soft_mask = None if soft_mask is None else found_mask
        if interval.strand == "-":
            tokens = _TOKENIZER.reverse_complement(tokens)
            soft_mask = None if soft_mask is None else soft_mask[::-1].copy()
        return tokens if soft_mask is None else (tokens, soft_mask)

    def _fill(
        self,
        tokens: NDArray[np.uint8],
        soft_mask: NDArray[np.bool_] | None,
        contig: str,
        pieces: Sequence[tuple[int, int]],
    ) -> bool:
        """Have native code write token ids of stretches of a contig one after the other, and N behind them.

        Returns:
            Whether it did; where not, ``_encoded`` does it, or says what is wrong.
        """
        reader = self._reader()
        to_tokens, to_soft_mask = address(tokens), None if soft_mask is None else address(soft_mask)
        filled = 0
        for start, end in pieces:
            mask = None if to_soft_mask is None else to_soft_mask + filled
            if not reader.bases(contig, start, end, to_tokens + filled, mask):
                return False
            filled += end - start
        if filled < len(tokens):
            tokens[filled:] = N
            if soft_mask is not None:
                soft_mask[filled:] = False
        return True

    def _encoded(self, interval: Interval, pad: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Token ids and soft mask of an interval on the plus strand, by way of its letters."""
        letters = self._letters(interval, pad)
        try:
            return _TOKENIZER.encode(letters, return_soft_mask=True, contig=interval.contig, offset=interval.start)
        except SequenceError as error:
            if self.wraps(interval):  # told by its place on the contig, whichever part it is in
                for start, end in self._pieces(interval, pad):
                    self._encoded(Interval(interval.contig, start, end), pad)
            raise SequenceError(f"{self.path}: {error}") from None

    def check_alphabet(self, *, most_bases: int | None = None, contigs: str | list[str] | None = None) -> None:
        """Check that the genome holds nucleotide codes alone, at about the speed of reading it.

        Args:
            most_bases: Check the first bases of each contig alone, at most this many; None checks all.
            contigs: The contigs to check; None checks all.

        Raises:
            SequenceError: A letter that is no nucleotide code, named with contig and position.
            ContigNotFoundError: A contig is not in the genome.
        """
        names = [contigs] if isinstance(contigs, str) else self.contigs if contigs is None else contigs
        for contig in names:
            self._require(contig)
            length = min(self.contigs[contig], self.contigs[contig] if most_bases is None else most_bases)
            for start in range(0, length, _SCAN_BASES):
                self.tokens(Interval(contig, start, min(length, start + _SCAN_BASES)))

    def _require(self, contig: str) -> str:
        if contig not in self.contigs:
            raise contig_not_found(contig, self.contigs, str(self.path))
        return contig

    def _pieces(self, interval: Interval, pad: bool) -> tuple[tuple[int, int], ...]:
        """The stretches of its contig, one after the other, that an interval consists of; the rest of it is padding."""
        contig, start, end = interval.contig, interval.start, interval.end
        length = self.contigs.get(contig)
        if length is None:
            raise contig_not_found(contig, self.contigs, str(self.path))
        if end <= length:
            return ((start, end),)
        if self.wraps(interval):
            return (start, length), (0, end - length)
        if contig in self.circular:
            raise IntervalError(
                f"interval {interval} begins past the end of the circular contig {contig!r} ({length} bp) in "
                f"{self.path}, or is longer; expected start < {length} and at most {length} bases"
            )
        if not pad:
            raise IntervalError(
                f"interval {interval} reaches past the end of contig {contig!r} ({length} bp) in {self.path}; "
                "shorten it, or pass pad=True to fill with N"
            )
        return ((start, length),) if start < length else ()

    def _letters(self, interval: Interval, pad: bool) -> bytearray:
        """The letters of an interval on the plus strand, ASCII."""
        letters = bytearray()
        for start, end in self._pieces(interval, pad):
            piece = self._read(interval.contig, start, end)
            letters = letters + piece if letters else piece
        missing = interval.end - interval.start - len(letters)
        return letters + b"N" * missing if missing else letters

    def _read(self, contig: str, start: int, end: int) -> bytearray:
        reader = self._reader()
        try:
            letters: bytearray | None = reader.letters(contig, start, end)
        except ForeignIndexError:
            letters = None
        except (OSError, EOFError, OverflowError, FileFormatError):
            if self._handles is not None:
                self._handles.forget()  # the next one looks whether the file is still the same
            raise FileFormatError(
                f"{self.path} is truncated or damaged: {contig}:{start}-{end} cannot be read; fetch or write it again"
            ) from None
        # samtools indexes no file with bytes that are not ASCII.
        if letters is None or not letters.isascii() or any(byte in letters for byte in b"\n>\0"):
            raise FileFormatError(
                f"{self.path} does not fit its index, or has '>' within {contig!r}, as where files were joined with no "
                "line end between; mend the file, or delete the index, and it is made anew"
            )
        return letters

    def __contains__(self, contig: object) -> bool:
        return contig in self.contigs

    def __repr__(self) -> str:
        return f"Genome({str(self.path)!r}: {len(self.contigs)} contigs, {sum(self.contigs.values())} bp)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": self._handles is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_open = state["_handles"]
        self.__dict__.update(state, _handles=PerThread(self._open) if is_open else None)
        if is_open:
            check_version(self._files.fasta, self.path, self._version)

    def rest(self) -> None:
        """Close the file until it is read again, so that hundreds of genomes can be open at a time."""
        if self._handles is not None:
            self._handles = PerThread(self._open)

    def close(self) -> None:
        """Close the file; using the genome afterwards is an error."""
        # The handles go with the threads' references to them, so that none is closed while another thread reads.
        self._handles = None


class _Reader:
    """What a thread reads a genome with.

    Args:
        source: The file's bytes.
        records: Where contigs are in them.
    """

    def __init__(self, source: FastaBytes, records: Mapping[str, FastaRecord]) -> None:
        self._source, self._records = source, records
        self._layouts: dict[str, Layout | None] = {}

    def bases(
        self,
        contig: str,
        start: int,
        end: int,
        tokens: int | None = None,
        soft_mask: int | None = None,
        letters: int | None = None,
    ) -> bool:
        """Have native code write bases to addresses, as ``write_bases`` has it."""
        try:
            layout = self._layouts[contig]
        except KeyError:
            layout = self._layouts[contig] = Layout.of(self._records[contig])
        if layout is None or instruction_set() is None:
            return False
        if self._source.file is not None:
            return write_bases(self._source.file, layout, start, end, tokens, soft_mask, letters)
        try:
            return write_bases(self._raw(contig, start, end), layout, start, end, tokens, soft_mask, letters)
        except (OSError, EOFError, OverflowError, FileFormatError):
            return False  # who asks for letters is told

    def letters(self, contig: str, start: int, end: int) -> bytearray | None:
        """Bases as they are in the file, whatever they are; None where line ends are not where they must be.

        Raises:
            OSError: They cannot be read.
            EOFError: The file ends before them.
            OverflowError: No file has such a place.
            FileFormatError: bgzip's data are damaged, or its index is of another file.
        """
        letters = bytearray(end - start)
        if self.bases(contig, start, end, letters=address(letters)):
            return letters
        return letters_of_bytes(self._raw(contig, start, end), self._records[contig], start)

    def _raw(self, contig: str, start: int, end: int) -> bytearray:
        """The bytes from one base to another."""
        record = self._records[contig]
        begin = record.byte_offset(start)
        size = record.byte_offset(end - 1) + 1 - begin
        raw = self._source.read(begin, size)
        if len(raw) < size:
            raise EOFError
        return raw
