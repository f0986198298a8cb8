"""Bases to token ids and back.

Token ids are htslib's nt16 codes: A 1, C 2, G 4, T 8, each ambiguity code the sum of its members' bits, N 15. 0 (``=``
in BAM) is padding here. 16 is the mask, and from 17 on come the global tokens. The complement of a code is its four
bits in reverse order; ids from 16 on are their own complement.
"""

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genosparse.errors import SequenceError

__all__ = [
    "COMPLEMENT",
    "ENCODE_TABLE",
    "FIRST_GLOBAL",
    "MASK",
    "NUCLEOTIDE_CODES",
    "PAD",
    "REFUSED",
    "A",
    "C",
    "G",
    "N",
    "NucleotideTokenizer",
    "T",
]

PAD = 0
A = 1
C = 2
G = 4
T = 8
N = 15
MASK = 16
FIRST_GLOBAL = 17

#: The character of each id from 0 to 15, in htslib's order.
NUCLEOTIDE_CODES = "=ACMGRSVTWYHKDBN"

#: What ``ENCODE_TABLE`` makes of a byte that is no nucleotide code; never a token id.
REFUSED = 255


def _encode_table() -> bytes:
    table = bytearray([REFUSED] * 256)
    for token, letter in enumerate(NUCLEOTIDE_CODES[1:], start=1):
        table[ord(letter)] = table[ord(letter.lower())] = token
    table[ord("U")] = table[ord("u")] = T
    return bytes(table)


def _complement_table() -> bytes:
    reversed_bits = [int(f"{token:04b}"[::-1], 2) for token in range(16)]
    return bytes(reversed_bits + list(range(16, 256)))


#: For ``bytes.translate``: ASCII letters to token ids.
ENCODE_TABLE = _encode_table()
_COMPLEMENT = _complement_table()
_DECODE = (NUCLEOTIDE_CODES + "?" + "#" * (256 - FIRST_GLOBAL)).encode()

#: Two ids for each byte of BAM's packed form, in memory the first one first.
_UNPACK = np.stack([np.arange(256) >> 4, np.arange(256) & 15], axis=1).astype(np.uint8).view(np.uint16)[:, 0]

# Letters that are translated together: what passes several times stays in the processor's cache.
_BLOCK = 1 << 17

#: ``COMPLEMENT[token]`` is the complement's id; uint8 [256], read-only.
COMPLEMENT: NDArray[np.uint8] = np.frombuffer(_COMPLEMENT, np.uint8)


class NucleotideTokenizer:
    """Turns nucleotide sequences into token ids and back; it has no state."""

    @overload
    def encode(
        self,
        sequence: str | bytes | bytearray,
        *,
        return_soft_mask: Literal[False] = False,
        contig: str | None = None,
        offset: int = 0,
    ) -> NDArray[np.uint8]: ...

    @overload
    def encode(
        self,
        sequence: str | bytes | bytearray,
        *,
        return_soft_mask: Literal[True],
        contig: str | None = None,
        offset: int = 0,
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]: ...

    def encode(
        self,
        sequence: str | bytes | bytearray,
        *,
        return_soft_mask: bool = False,
        contig: str | None = None,
        offset: int = 0,
    ) -> NDArray[np.uint8] | tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Encode a sequence.

        U is read as T. Lower case keeps its base and is soft-masked. BAM's ``=`` is refused: only the reference says
        what it stands for.

        Args:
            sequence: Nucleotide codes: A C G T U, N and IUPAC's ambiguity codes, in either case.
            return_soft_mask: Also return which bases were written in lower case.
            contig: Where the sequence comes from, for the error's message.
            offset: 0-based position of the first base on that contig, for the error's message.

        Returns:
            uint8 ids ``[length]``, writable; with ``return_soft_mask`` a bool array ``[length]`` besides.

        Raises:
            SequenceError: A letter that is no nucleotide code, named with its position.
        """
        if len(sequence) <= _BLOCK:
            tokens, letters = _encode_block(sequence, offset, contig)
            return (tokens, _soft_mask(letters)) if return_soft_mask else tokens
        tokens = np.empty(len(sequence), np.uint8)
        soft_mask = np.empty(len(sequence) if return_soft_mask else 0, np.bool_)
        for start in range(0, len(sequence), _BLOCK):
            block = slice(start, start + _BLOCK)
            tokens[block], letters = _encode_block(sequence[block], start + offset, contig)
            if return_soft_mask:
                soft_mask[block] = _soft_mask(letters)
        return (tokens, soft_mask) if return_soft_mask else tokens

    def unpack(self, packed: ArrayLike, length: int) -> NDArray[np.uint8]:
        """Token ids from BAM's packed form, two bases to the byte, the first in the high bits.

        Args:
            packed: uint8 ``[ceil(length / 2)]``.
            length: Number of bases.

        Returns:
            uint8 ids ``[length]``, writable; 0 for ``=``, the reference's base.

        Raises:
            SequenceError: There are not that many bases.
        """
        array = _as_ids(packed)
        if not 0 <= length <= 2 * len(array):
            raise SequenceError(f"{len(array)} packed bytes hold up to {2 * len(array)} bases; {length} were asked for")
        array = array[: (length + 1) // 2]
        tokens = np.empty(len(array), np.uint16)
        for start in range(0, len(array), _BLOCK):
            block = slice(start, start + _BLOCK)
            _UNPACK.take(array[block], mode="clip", out=tokens[block])  # "clip" spares a copy; no byte is out of bounds
        return tokens.view(np.uint8)[:length]

    def decode(self, tokens: ArrayLike) -> str:
        """The upper-case sequence of token ids; the inverse of ``encode`` for the ids 1 to 15.

        Padding is shown as ``=``, the mask as ``?`` and a global token as ``#``; ``encode`` takes none of these.

        Args:
            tokens: Integer ids from 0 to 255 ``[length]``.

        Raises:
            SequenceError: Not a row of such integers.
        """
        return _as_ids(tokens).tobytes().translate(_DECODE).decode("ascii")

    def reverse_complement(self, tokens: ArrayLike) -> NDArray[Any]:
        """The reverse complement of token ids.

        Args:
            tokens: Integer ids from 0 to 255 ``[..., length]``; the last axis is reversed.

        Returns:
            A new array of the same shape and dtype.

        Raises:
            SequenceError: Not an array of such integers.
        """
        array = np.asarray(tokens)
        ids = _as_ids(array, any_shape=True)
        reversed_ids = bytearray(ids[..., ::-1].tobytes())
        complement = np.frombuffer(reversed_ids.translate(_COMPLEMENT), np.uint8).reshape(ids.shape)
        return complement if array.dtype == np.uint8 else complement.astype(array.dtype if array.size else np.uint8)


def _encode_block(
    sequence: str | bytes | bytearray, offset: int, contig: str | None
) -> tuple[NDArray[np.uint8], bytearray]:
    """Token ids, writable, and the letters that they are from."""
    if isinstance(sequence, str):
        try:
            letters = bytearray(sequence.encode("ascii"))
        except UnicodeEncodeError as error:
            raise _unknown_letter(sequence[error.start], error.start + offset, contig) from None
    else:
        letters = sequence if isinstance(sequence, bytearray) else bytearray(sequence)
    # A bytearray translates to a bytearray, and an array on it is writable without a further copy.
    tokens = np.frombuffer(letters.translate(ENCODE_TABLE), np.uint8)
    if tokens.size and tokens.max() == REFUSED:
        position = int(np.argmax(tokens == REFUSED))
        raise _unknown_letter(chr(letters[position]), position + offset, contig)
    return tokens, letters


def _soft_mask(letters: bytearray) -> NDArray[np.bool_]:
    return (np.frombuffer(letters, np.uint8) & 0x20).astype(bool)


def _as_ids(tokens: ArrayLike, any_shape: bool = False) -> NDArray[np.uint8]:
    array = np.asarray(tokens)
    if array.ndim != 1 and not (any_shape and array.ndim > 1):
        raise SequenceError(f"token ids have shape {list(array.shape)}; expected one row of them, [length]")
    if array.dtype == np.uint8:
        return array
    if array.size == 0:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise SequenceError(f"token ids have dtype {array.dtype}; expected integers from 0 to 255")
    if array.min() < 0 or array.max() > 255:
        raise SequenceError(f"token ids run from {array.min()} to {array.max()}; expected integers from 0 to 255")
    return array.astype(np.uint8)


def _unknown_letter(letter: str, position0: int, contig: str | None) -> SequenceError:
    where = f"0-based position {position0}" + (f" of contig {contig!r}" if contig is not None else "")
    if letter == "=":
        return SequenceError(f"'=' at {where} stands for the reference's base; resolve it against the reference first")
    return SequenceError(
        f"letter {letter!r} at {where} is not a nucleotide code; expected A C G T U N or an IUPAC ambiguity code"
    )
