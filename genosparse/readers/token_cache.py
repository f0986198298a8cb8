"""Whole genomes as token ids: in memory, or mapped from a file in the cache that is made once."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from genosparse.errors import FileFormatError, GenosparseError, GenosparseWarning, InputFileNotFoundError, OutputError
from genosparse.intervals import Interval
from genosparse.outputs import atomic_output, fingerprint
from genosparse.readers._cache import cache_folder
from genosparse.readers._mapping import mapped
from genosparse.readers.fasta import Genome

__all__ = ["GenomeTokens", "default_token_cache", "read_tokens"]

_FORMAT = "genosparse-tokens"
# Raise it with any change of the layout or of what a token stands for: files of other versions are left alone.
_VERSION = 1
_HEADER_BYTES = 4096  # so much that the tokens begin on a page
_PIECE_BASES = 1 << 22  # whole bytes of the soft mask
_CHECK_BYTES = 1 << 20
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class GenomeTokens:
    """Token ids and soft mask of a genome's contigs.

    Pickled (for worker processes that are spawned), what is mapped goes as its place: the memory is shared.

    Args:
        contigs: Length of each contig.
        tokens: Token ids, contig behind contig, uint8 ``[bases]``.
        soft_bits: The soft mask, eight bases to the byte; each contig begins with a byte of its own.
        file: Where they are mapped from; None for memory.
    """

    def __init__(
        self,
        contigs: Mapping[str, int],
        tokens: NDArray[np.uint8],
        soft_bits: NDArray[np.uint8],
        file: Path | None = None,
    ) -> None:
        self.contigs, self.file = contigs, file
        self._tokens, self._soft_bits = tokens, soft_bits
        lengths = np.fromiter(contigs.values(), np.int64, len(contigs))
        self._numbers = dict(zip(contigs, range(len(contigs)), strict=True))
        self._starts = np.cumsum(lengths) - lengths
        num_bytes = (lengths + 7) // 8
        self._soft_starts = np.cumsum(num_bytes) - num_bytes

    def tokens(self, contig: str, start: int, end: int) -> NDArray[np.uint8]:
        """Token ids of a stretch of a contig, ``[end - start]``: a view, not to be written to."""
        first = int(self._starts[self._numbers[contig]])
        return self._tokens[first + start : first + end]

    def soft_mask(self, contig: str, start: int, end: int) -> NDArray[np.bool_]:
        """Which bases of a stretch of a contig are in lower case, bool ``[end - start]``."""
        first = int(self._soft_starts[self._numbers[contig]])
        bits = np.unpackbits(self._soft_bits[first + start // 8 : first + (end + 7) // 8])
        return bits[start % 8 :][: end - start].view(np.bool_)

    def __reduce__(self) -> tuple[Callable[..., GenomeTokens], tuple[Any, ...]]:
        if self.file is None:
            return GenomeTokens, (self.contigs, self._tokens, self._soft_bits)
        return _map, (self.file, self.contigs)


def default_token_cache() -> Path:
    """Where tokens are kept unless another folder is named: ``tokens`` in the cache folder."""
    return cache_folder("tokens")


def read_tokens(genome: Genome, cache: Path | None = None, checksum: str | None = None) -> GenomeTokens:
    """Read a whole genome.

    In the cache it is found by its file's content. A file there that is damaged or of another version is made anew.
    Several processes may make one at the same time: each moves a whole file into its place.

    Args:
        genome: The genome; its file is closed until it is read again.
        cache: Folder of the cache, made where it is missing; None reads into memory, as is done with one notice where
            the folder cannot be written.
        checksum: SHA-256 of the genome's file in hex, where it is known.

    Raises:
        SequenceError: A letter that is no nucleotide code.
        FileFormatError: The genome is truncated or damaged, or changes while it is read.
        OutputError: The disk is full.
    """
    try:
        if cache is None:
            return _read_into_memory(genome)
        return _read_through(genome, cache, fingerprint(genome.path) if checksum is None else checksum)
    finally:
        genome.rest()


def _read_through(genome: Genome, cache: Path, checksum: str) -> GenomeTokens:
    # The version is part of the name, so that two versions of genosparse that share a cache do not overwrite each
    # other's files for ever.
    file = cache / f"{checksum[:32]}.v{_VERSION}"
    expected = _expected_header(genome, checksum)
    if _is_whole(file, expected):
        return _map(file, genome.contigs)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_output(file) as partial:
            _write(genome, partial, expected)
            # What is in the cache under a checksum has to be of it: the file may have been written anew meanwhile.
            if fingerprint(genome.path) != checksum:
                raise FileFormatError(f"{genome.path} has changed while it was read; start again")
    except OSError as error:
        if isinstance(error, GenosparseError) and not isinstance(error, OutputError):
            raise
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        if cause.errno in _NO_SPACE:
            raise _full(genome, cache, cause.strerror) from error
        warnings.warn(
            f"the token cache {cache} cannot be written ({cause.strerror or cause}); {genome.path} is kept in "
            "memory, a byte for each base: name another folder by data.cache=, or do without by data.cache=off",
            GenosparseWarning,
            stacklevel=3,
        )
        return _read_into_memory(genome)
    return _map(file, genome.contigs)


def _full(genome: Genome, cache: Path, reason: str | None) -> OutputError:
    size = sum(genome.contigs.values()) * 9 // 8
    return OutputError(
        f"cannot write the tokens of {genome.path} ({size:,} bytes) in {cache}: {reason}; free some space, name "
        "another folder by data.cache=, or keep them in memory by data.cache=off"
    )


def _expected_header(genome: Genome, checksum: str) -> dict[str, Any]:
    contigs = hashlib.sha256()
    for name, length in genome.contigs.items():
        contigs.update(f"{name}\t{length}\n".encode("utf-8", "surrogateescape"))
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "sha256": checksum,
        "contigs": contigs.hexdigest(),
        "bases": sum(genome.contigs.values()),
        "soft_bytes": _num_soft_bytes(genome.contigs),
    }


def _num_soft_bytes(contigs: Mapping[str, int]) -> int:
    return sum((length + 7) // 8 for length in contigs.values())


def _is_whole(file: Path, expected: Mapping[str, Any]) -> bool:
    """Whether a file of the cache has what is expected, to the last bit."""
    size = _HEADER_BYTES + expected["bases"] + expected["soft_bytes"]
    try:
        with file.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size != size:
                return False
            header = json.loads(stream.read(_HEADER_BYTES))
            if not isinstance(header, dict):
                return False
            wanted = header.pop("crc32", None)
            return header == expected and wanted == [_crc32(stream, expected[key]) for key in ("bases", "soft_bytes")]
    except (OSError, ValueError, RecursionError):
        return False


def _crc32(stream: BinaryIO, size: int) -> int:
    # Read, not mapped, so that a look at everything does not count as this process's memory.
    crc = 0
    while size > 0 and (piece := stream.read(min(size, _CHECK_BYTES))):
        crc, size = zlib.crc32(piece, crc), size - len(piece)
    return crc


def _map(file: Path, contigs: Mapping[str, int]) -> GenomeTokens:
    try:
        contents = mapped(file)
    except OSError as error:
        raise InputFileNotFoundError(
            f"{file} of the token cache cannot be read ({error.strerror}); start again, and it is made anew"
        ) from None
    middle = _HEADER_BYTES + sum(contigs.values())
    if len(contents) != middle + _num_soft_bytes(contigs):
        raise FileFormatError(f"{file} of the token cache has changed; start again, and it is made anew")
    return GenomeTokens(contigs, contents[_HEADER_BYTES:middle], contents[middle:], file)


def _read_into_memory(genome: Genome) -> GenomeTokens:
    tokens = np.empty(sum(genome.contigs.values()), np.uint8)
    soft_bits = np.empty(_num_soft_bytes(genome.contigs), np.uint8)
    at = soft_at = 0
    for piece, bits in _pieces(genome):
        tokens[at : at + len(piece)] = piece
        soft_bits[soft_at : soft_at + len(bits)] = bits
        at, soft_at = at + len(piece), soft_at + len(bits)
    tokens.setflags(write=False)
    return GenomeTokens(genome.contigs, tokens, soft_bits)


def _write(genome: Genome, file: Path, expected: Mapping[str, Any]) -> None:
    """Write tokens and soft mask at their places in one pass, and last the header, which makes the file valid."""
    crc = soft_crc = 0
    with file.open("wb") as token_stream, file.open("r+b") as soft_stream:
        token_stream.seek(_HEADER_BYTES)
        soft_stream.seek(_HEADER_BYTES + expected["bases"])
        for piece, bits in _pieces(genome):
            token_stream.write(piece.data)
            soft_stream.write(bits.data)
            crc, soft_crc = zlib.crc32(piece.data, crc), zlib.crc32(bits.data, soft_crc)
        token_stream.seek(0)
        token_stream.write(json.dumps({**expected, "crc32": [crc, soft_crc]}).encode().ljust(_HEADER_BYTES))


def _pieces(genome: Genome) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Token ids and packed soft mask of a genome, some bases at a time."""
    for contig, length in genome.contigs.items():
        for start in range(0, length, _PIECE_BASES):
            interval = Interval(contig, start, min(start + _PIECE_BASES, length))
            tokens, soft_mask = genome.tokens(interval, return_soft_mask=True)
            yield tokens, np.packbits(soft_mask)
