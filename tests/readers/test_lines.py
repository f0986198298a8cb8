"""Bytes of FASTA lines to letters, token ids and soft mask: native code beside numpy and beside Python's strings."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fasta_files import fasta_text, random_sequence, write_bgzip

from genosparse.errors import FileFormatError, SequenceError
from genosparse.intervals import Interval
from genosparse.readers import Genome, _lines
from genosparse.readers._fasta_bytes import FastaRecord
from genosparse.readers._lines import Layout, address, letters_of_bytes, write_bases
from genosparse.tokenizers import ENCODE_TABLE, REFUSED, NucleotideTokenizer

NATIVE = list(_lines._functions)


@pytest.fixture(params=NATIVE)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    with _lines.use_instruction_set(request.param):
        yield request.param


@pytest.fixture(params=[None, *NATIVE])
def any_way(request: pytest.FixtureRequest) -> Iterator[str | None]:
    with _lines.use_instruction_set(request.param):
        yield request.param


@pytest.mark.skipif(shutil.which("cc") is None or os.name != "posix", reason="no C compiler")
def test_native_code_is_there_where_it_can_be_built() -> None:
    """Else all that is tested with it below would pass without it."""
    assert NATIVE[:1] == ["plain"], _lines.why_not()


def lines_of(sequence: str, width: int, line_end: str) -> bytes:
    return line_end.join(sequence[start : start + width] for start in range(0, len(sequence), width)).encode()


def native(raw: bytes, record: FastaRecord, start: int, end: int) -> tuple[bool, bytes, np.ndarray, np.ndarray]:
    """What native code says and writes, after making sure that it writes nothing else."""
    edge, length = 40, end - start
    out = np.full((3, edge + length + edge), 0xAA, np.uint8)
    tokens, soft_mask, letters = (address(row) + edge for row in out)
    layout = Layout.of(record)
    done = write_bases(bytearray(raw), layout, start, end, tokens, soft_mask, letters)
    assert (out[:, :edge] == 0xAA).all()
    assert (out[:, edge + length :] == 0xAA).all()
    inside = out[:, edge : edge + length]
    return done, inside[2].tobytes(), inside[0], inside[1]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", " \t\n"])
@pytest.mark.parametrize("width", [1, 7, 31, 32, 33, 60, 64, 70, 95, 96, 97, 250])
def test_every_stretch(width: int, line_end: str, tmp_path: Path, instruction_set: str) -> None:
    sequence = random_sequence(230, seed=width).replace("N", "u")
    content = b"padding" + lines_of(sequence, width, line_end)
    path = tmp_path / "x.fa"
    path.write_bytes(content)
    record = FastaRecord(len(sequence), 7, width, width + len(line_end))
    random = np.random.default_rng(width)
    file = os.open(path, os.O_RDONLY)
    for start in [0, 1, *random.integers(0, 229, 12).tolist()]:
        for end in [start + 1, 230, *random.integers(start + 1, 231, 12).tolist()]:
            expected = sequence[start:end]
            raw = content[record.byte_offset(start) : record.byte_offset(end - 1) + 1]
            done, letters, tokens, soft_mask = native(raw, record, start, end)
            assert done
            assert letters == letters_of_bytes(bytearray(raw), record, start) == expected.encode()
            wanted, mask = NucleotideTokenizer().encode(expected, return_soft_mask=True)
            assert (tokens == wanted).all()
            assert (soft_mask == mask).all()
            again = np.empty(end - start, np.uint8)
            assert write_bases(file, Layout.of(record), start, end, address(again), None, None)
            assert (again == wanted).all()
    # What is not there cannot be read.
    os.truncate(path, len(content) - 1)
    assert not write_bases(file, Layout.of(record), 100, 230, address(np.empty(130, np.uint8)), None, None)
    os.close(file)


@pytest.mark.parametrize("place", [0, 31, 32, 59])
def test_every_byte_is_what_the_tokenizer_says(place: int, instruction_set: str) -> None:
    record = FastaRecord(60, 0, 60, 61)
    for byte in range(256):
        raw = bytearray(b"A" * 60)
        raw[place] = byte
        done, _, tokens, _ = native(raw, record, 0, 60)
        assert done == (ENCODE_TABLE[byte] != REFUSED)
        if done:
            assert tokens[place] == ENCODE_TABLE[byte]
        # In a stretch too short for vectors too.
        assert native(raw[place : place + 1], record, place, place + 1)[0] == done


@pytest.mark.parametrize("line_end", [b"AA", b"\nA", b"A\n", b"\n\r", b"\r\r", b"\n\0"])
def test_line_ends_that_are_none(line_end: bytes, any_way: str | None) -> None:
    record = FastaRecord(8, 0, 4, 6)
    for raw, fine in ((b"ACGT\r\nACGT", True), (b"ACGT" + line_end + b"ACGT", False)):
        assert (letters_of_bytes(bytearray(raw), record, 0) is not None) == fine
        if any_way:
            assert native(raw, record, 0, 8)[0] == fine


def test_a_large_file_goes_through_in_pieces(tmp_path: Path, any_way: str | None) -> None:
    sequence = random_sequence(400_000)
    (tmp_path / "x.fa").write_bytes(fasta_text({"a": sequence}, width=61))
    bgzip = write_bgzip(tmp_path / "x.fa.gz", fasta_text({"a": sequence}, width=61))
    expected, mask = NucleotideTokenizer().encode(sequence, return_soft_mask=True)
    for path in (tmp_path / "x.fa", bgzip):
        with Genome(path, circular=True) as genome:
            for start, end in ((0, 400_000), (1, 399_999), (65_000, 300_001), (399_990, 400_100)):
                places = np.arange(start, end) % 400_000
                tokens, soft_mask = genome.tokens(Interval("a", start, end), return_soft_mask=True)
                assert (tokens == expected[places]).all()
                assert (soft_mask == mask[places]).all()
                assert soft_mask.dtype == np.bool_
                assert (genome.tokens(Interval("a", start, end)) == tokens).all()
                assert genome.fetch(Interval("a", start, end)) == "".join(sequence[place] for place in places)


@pytest.mark.parametrize("compress", [False, True])
def test_errors_are_the_same(tmp_path: Path, compress: bool, any_way: str | None) -> None:
    content = bytearray(fasta_text({"a": "ACGT" * 1000}, width=50))
    content[3000] = ord("*")
    path = tmp_path / "x.fa"
    write_bgzip(path, bytes(content)) if compress else path.write_bytes(content)
    position0 = (3000 - len(">a a description\n")) // 51 * 50 + (3000 - len(">a a description\n")) % 51
    with Genome(path) as genome:
        assert (genome.tokens(Interval("a", 3900, 4003, "-"), pad=True)[:3] == 15).all()
        message = rf"x\.fa: letter '\*' at 0-based position {position0} of contig 'a' is not a nucleotide code"
        with pytest.raises(SequenceError, match=message):
            genome.tokens(Interval("a", 2500, 3500))
        os.truncate(path, 100)
        if not compress:
            with pytest.raises(FileFormatError, match="is truncated or damaged: a:3500-3510 cannot be read"):
                genome.tokens(Interval("a", 3500, 3510))


SANITIZED_CALLS = """
import ctypes, sys
import numpy as np
from genosparse.readers import _lines
from genosparse.readers._fasta_bytes import FastaRecord
_lines._functions = _lines._functions_of(ctypes.CDLL(sys.argv[1]))
random = np.random.default_rng(0)
for name in _lines._functions:
    with _lines.use_instruction_set(name):
        for _ in range(3000):
            bases, end, length = (int(random.integers(1, most)) for most in (100, 4, 400))
            record = FastaRecord(length, 0, bases, bases + end)
            first, last = sorted(random.choice(length + 1, 2, replace=False).tolist())
            size = record.byte_offset(last - 1) + 1 - record.byte_offset(first)
            raw = bytearray(random.choice(np.frombuffer(b"ACGTn*\\n", np.uint8), size).tobytes())
            out = [np.empty(last - first, np.uint8) for _ in range(3)]
            _lines.write_bases(raw, _lines.Layout.of(record), first, last, *map(_lines.address, out))
print("finished", *_lines._functions)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_no_address_or_undefined_behaviour_under_the_sanitizers(tmp_path: Path) -> None:
    source = Path(_lines.__file__).with_name("native") / "fasta.c"
    flags = ["-std=c11", "-O1", "-g", "-fPIC", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    for name in NATIVE:
        variant = [f"-DVARIANT={name}", *(["-mavx2"] if name == "avx2" else [])]
        subprocess.run(["gcc", *flags, *variant, "-c", str(source), "-o", str(tmp_path / f"{name}.o")], check=True)
    library = tmp_path / "sanitized.so"
    objects = [str(tmp_path / f"{name}.o") for name in NATIVE]
    subprocess.run(["gcc", *flags, "-shared", *objects, "-o", str(library)], check=True)
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime.stdout.strip(),
        "PYTHONMALLOC": "malloc",  # so that a step past a bytearray shows
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
    }
    call = [sys.executable, "-c", SANITIZED_CALLS, str(library)]
    run = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["finished", *NATIVE], run.stderr[-3000:]
    assert "runtime error" not in run.stderr
