"""Reference genomes, read at any place.

Bases are read through pysam and samtools' index (.fai, and .gzi for bgzip). A handle of htslib keeps a position: each
thread of each process has its own.
"""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pysam
from numpy.typing import NDArray

from genosparse.contigs import ContigMatcher, check_aliases, contig_not_found, read_aliases
from genosparse.errors import FileFormatError, GenosparseError, IntervalError, SequenceError
from genosparse.inputs import Closing
from genosparse.intervals import Interval
from genosparse.readers._htslib import PerThread, quiet_htslib
from genosparse.readers.fasta_index import check_version, find_or_make_index
from genosparse.tokenizers import ENCODE_TABLE, REFUSED, NucleotideTokenizer

__all__ = ["Genome"]

_TOKENIZER = NucleotideTokenizer()
_NUCLEOTIDES = b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv"
_COMPLEMENT = bytes.maketrans(b"ACGTURYSWKMBDHVacgturyswkmbdhv", b"TGCAAYRSWMKVHDBtgcaayrswmkvhdb")
_HEAD_BASES = 1000
_SCAN_BASES = 1 << 22
_MOST_POSITION = 2**31 - 1  # the last end that pysam takes


class Genome(Closing):
    """A reference genome: contigs of a FASTA, 2bit, GenBank or EMBL file, read at any place.

    FASTA may be plain or compressed by bgzip. Its index is made beside it when it is missing, out of date or does not
    fit, or in the cache folder (``$XDG_CACHE_HOME/genosparse``, by default ``~/.cache/genosparse``) when it cannot be
    written there. FASTA compressed by ordinary gzip or with lines of uneven length, 2bit (whose lower case is kept),
    GenBank and EMBL (plain or gzip) are recognised by content and copied once into that folder. A contig's name is the
    header's first word, and in GenBank and EMBL the accession and version. Records without bases are left out.

    On a circular contig an interval whose end passes the contig's end goes on at its first base.

    A genome can be used from several threads, after a fork, and pickled: it is opened again by its path.

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
        self.contigs: dict[str, int] = found.contigs
        self.circular: frozenset[str] = self._chosen_circular(circular, found.circular)
        self._handles: PerThread[pysam.FastaFile] | None = PerThread(self._open)
        self._handle()
        self.check_alphabet(most_bases=_HEAD_BASES, contigs=next(iter(self.contigs)))

    def _chosen_circular(self, circular: bool | str | Collection[str], said: Collection[str]) -> frozenset[str]:
        if isinstance(circular, bool):
            return frozenset(said or self.contigs) if circular else frozenset()
        matcher = self.matcher(wanted_from="circular")
        names = [circular] if isinstance(circular, str) else circular
        return frozenset(matcher.match(name) or self._require(name) for name in names)

    def _handle(self) -> pysam.FastaFile:
        """This thread's handle; opened where there is none, as after a fork, whose handle is the parent's."""
        if self._handles is None:
            raise GenosparseError(f"{self.path} has been closed; open it again with Genome(path)")
        return self._handles.get()

    def _forget(self) -> None:
        if self._handles is not None:
            self._handles.forget()

    def _open(self) -> pysam.FastaFile:
        gzi = self._files.gzi
        with quiet_htslib():
            try:
                handle = pysam.FastaFile(str(self._files.fasta), str(self._files.fai), gzi and str(gzi))
            except OSError:
                check_version(self._files.fasta, self.path, self._version)
                raise FileFormatError(
                    f"{self.path} cannot be read with its index {self._files.fai}; start again, and it is made anew"
                ) from None
        # After the opening: what was opened is then what was indexed.
        check_version(self._files.fasta, self.path, self._version)
        return handle

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
            return letters.encode().translate(_COMPLEMENT)[::-1].decode()
        return letters

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
        reverse = interval.strand == "-"
        if not return_soft_mask:
            # Through a bytearray, so that the array can be written to without a further copy.
            tokens = np.frombuffer(bytearray(self._letters(interval, pad), "ascii").translate(ENCODE_TABLE), np.uint8)
            if tokens.max() != REFUSED:
                return _TOKENIZER.reverse_complement(tokens) if reverse else tokens
        letters = self._letters(interval, pad)
        try:
            tokens, soft_mask = _TOKENIZER.encode(
                letters, return_soft_mask=True, contig=interval.contig, offset=interval.start
            )
        except SequenceError as error:
            if self.wraps(interval):  # told by its place on the contig, whichever part it is in
                length = self.contigs[interval.contig]
                self.tokens(Interval(interval.contig, interval.start, length))
                self.tokens(Interval(interval.contig, 0, interval.end - length))
            raise SequenceError(f"{self.path}: {error}") from None
        return (_TOKENIZER.reverse_complement(tokens), soft_mask[::-1].copy()) if reverse else (tokens, soft_mask)

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
                interval = Interval(contig, start, min(length, start + _SCAN_BASES))
                if self._letters(interval, pad=False).encode().translate(None, _NUCLEOTIDES):
                    self.tokens(interval)

    def _require(self, contig: str) -> str:
        if contig not in self.contigs:
            raise contig_not_found(contig, self.contigs, str(self.path))
        return contig

    def _letters(self, interval: Interval, pad: bool) -> str:
        """The letters of an interval on the plus strand, ASCII."""
        contig, start, end = interval.contig, interval.start, interval.end
        length = self.contigs.get(contig)
        if length is None:
            raise contig_not_found(contig, self.contigs, str(self.path))
        if end <= length:
            return self._read(contig, start, end)
        if self.wraps(interval):
            return self._read(contig, start, length) + self._read(contig, 0, end - length)
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
        letters = self._read(contig, start, length) if start < length else ""
        return letters + "N" * (end - start - len(letters))

    def _read(self, contig: str, start: int, end: int) -> str:
        handle = self._handle()
        try:
            if self._files.gzi is None and contig.isascii():
                letters = handle.fetch(contig, start, end)
            else:
                with quiet_htslib():
                    letters = handle.fetch(contig, start, end)
        except UnicodeDecodeError:
            letters = ""
        except (OSError, ValueError, LookupError, OverflowError):
            if end > _MOST_POSITION:
                raise IntervalError(
                    f"{contig}:{start}-{end} of {self.path} reaches past {_MOST_POSITION}, the last position that can "
                    "be read; split the contig"
                ) from None
            self._forget()  # an error stays with htslib's handle
            raise FileFormatError(
                f"{self.path} is truncated or damaged: {contig}:{start}-{end} cannot be read; fetch or write it again"
            ) from None
        # samtools indexes no file with bytes that are not ASCII, and htslib ends a sequence at a NUL.
        if len(letters) != end - start or not letters.isascii() or "\n" in letters or ">" in letters:
            raise FileFormatError(f"{self.path} does not fit its index; delete the index, and it is made anew")
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
