import itertools

import numpy as np
import pytest

from genosparse import tokenizers
from genosparse.errors import SequenceError
from genosparse.tokenizers import COMPLEMENT, FIRST_GLOBAL, MASK, PAD, NucleotideTokenizer

TOKENIZER = NucleotideTokenizer()

# IUPAC's members and complements (Cornish-Bowden 1985), written out and not derived.
MEMBERS = {
    "A": "A", "C": "C", "G": "G", "T": "T", "M": "AC", "R": "AG", "W": "AT", "S": "CG", "Y": "CT", "K": "GT",
    "V": "ACG", "H": "ACT", "D": "AGT", "B": "CGT", "N": "ACGT",
}  # fmt: skip
COMPLEMENTS = dict(zip("ACGTMRWSYKVHDBN", "TGCAKYWSRMBDHVN", strict=True))


def test_an_ambiguity_code_is_the_sum_of_its_members():
    single = {"A": 1, "C": 2, "G": 4, "T": 8}
    for letter, members in MEMBERS.items():
        assert TOKENIZER.encode(letter).tolist() == [sum(single[member] for member in members)]


def test_named_ids():
    names = ("PAD", "A", "C", "G", "T", "N", "MASK", "FIRST_GLOBAL")
    assert [getattr(tokenizers, name) for name in names] == [0, 1, 2, 4, 8, 15, 16, 17]


@pytest.mark.parametrize("convert", [str, str.encode, lambda text: bytearray(text.encode())])
def test_encode_takes_text_and_bytes(convert):
    tokens = TOKENIZER.encode(convert("ACGTRN"))
    assert tokens.tolist() == [1, 2, 4, 8, 5, 15]
    assert tokens.dtype == np.uint8
    assert tokens.flags.writeable


def test_encode_leaves_its_argument_alone():
    letters = bytearray(b"ACGT")
    TOKENIZER.encode(letters)[:] = 0
    assert letters == b"ACGT"


def test_lower_case_is_a_soft_mask_and_u_is_t():
    tokens, soft_mask = TOKENIZER.encode("aCgTnNuU", return_soft_mask=True)
    assert tokens.tolist() == [1, 2, 4, 8, 15, 15, 8, 8]
    assert soft_mask.tolist() == [True, False, True, False, True, False, True, False]
    assert soft_mask.dtype == np.bool_


def test_nothing_encodes_to_nothing():
    tokens, soft_mask = TOKENIZER.encode("", return_soft_mask=True)
    assert tokens.shape == soft_mask.shape == (0,)
    assert TOKENIZER.decode(tokens) == ""
    assert TOKENIZER.reverse_complement(tokens).shape == (0,)


@pytest.mark.parametrize("letter", ["E", "X", "-", "*", ".", " ", "\n", "?", "é", "\uff21", "0", "\x00"])
def test_any_other_letter_is_named_with_its_position(letter):
    with pytest.raises(SequenceError) as caught:
        TOKENIZER.encode(f"AC{letter}GT{letter}", contig="chr1", offset=100)
    assert str(caught.value).startswith(f"letter {letter!r} at 0-based position 102 of contig 'chr1' ")


def test_every_byte_that_is_no_code_is_refused():
    codes = "".join(MEMBERS) + "U"
    accepted = {byte for byte in range(256) if _is_accepted(bytes([byte]))}
    assert accepted == {ord(letter) for letter in codes + codes.lower()}


def _is_accepted(sequence: bytes) -> bool:
    try:
        TOKENIZER.encode(sequence)
    except SequenceError:
        return False
    return True


def test_equals_sign_wants_a_reference():
    with pytest.raises(SequenceError, match=r"'=' at 0-based position 1 .* resolve it against the reference"):
        TOKENIZER.encode("A=")


def test_decode_is_the_inverse_of_encode():
    codes = "".join(MEMBERS)
    assert TOKENIZER.decode(TOKENIZER.encode(codes + codes.lower())) == codes + codes
    assert TOKENIZER.decode([PAD, MASK, FIRST_GLOBAL, 1]) == "=?#A"


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([256], "run from 256 to 256"),
        ([-1, 3], "run from -1 to 3"),
        ([1.0], "dtype float64"),
        ([[1]], r"shape \[1, 1\]"),
    ],
)
def test_decode_refuses_what_are_no_ids(tokens, message):
    with pytest.raises(SequenceError, match=message):
        TOKENIZER.decode(tokens)


def test_reverse_complement_of_every_code():
    codes = "".join(MEMBERS)
    expected = "".join(COMPLEMENTS[letter] for letter in reversed(codes))
    assert TOKENIZER.decode(TOKENIZER.reverse_complement(TOKENIZER.encode(codes))) == expected


def test_special_ids_are_their_own_complement():
    assert TOKENIZER.reverse_complement(np.array([PAD, MASK, 17, 255, 1], np.uint8)).tolist() == [8, 255, 17, MASK, PAD]
    assert COMPLEMENT[COMPLEMENT].tolist() == list(range(256))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_reverse_complement_turns_the_last_axis_alone(dtype):
    tokens = np.array([[1, 1, 2], [4, 8, 15]], dtype)
    turned = TOKENIZER.reverse_complement(tokens)
    assert turned.tolist() == [[4, 8, 8], [15, 1, 2]]
    assert turned.dtype == dtype
    assert tokens.tolist() == [[1, 1, 2], [4, 8, 15]]


def test_all_short_sequences_survive_two_turns():
    for letters in itertools.product("ACGTN", repeat=3):
        tokens = TOKENIZER.encode("".join(letters))
        assert TOKENIZER.reverse_complement(TOKENIZER.reverse_complement(tokens)).tolist() == tokens.tolist()


def test_bases_unpacked_from_bams_half_bytes() -> None:
    packed = np.array([0x12, 0x48, 0xF0], np.uint8)
    assert TOKENIZER.unpack(packed, 6).tolist() == [1, 2, 4, 8, 15, 0]
    tokens = TOKENIZER.unpack(packed, 5)
    assert tokens.tolist() == [1, 2, 4, 8, 15]
    tokens[0] = 3  # its own memory
    assert TOKENIZER.unpack(packed[:0], 0).tolist() == []
    with pytest.raises(SequenceError, match="3 packed bytes hold up to 6 bases; 7 were asked for"):
        TOKENIZER.unpack(packed, 7)
