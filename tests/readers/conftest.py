"""Genomes as files, for the tests of the readers."""

import pytest
from fasta_files import SEQUENCES, fasta_text, random_sequence, write_bgzip


@pytest.fixture(params=["plain", "bgzip", "crlf", "one line"])
def small_fasta(request, tmp_path):
    text = fasta_text(
        SEQUENCES, width=100 if request.param == "one line" else 5, line_end="\r\n" if request.param == "crlf" else "\n"
    )
    path = tmp_path / "small.fa"
    if request.param == "bgzip":
        return write_bgzip(path, text)
    path.write_bytes(text)
    return path


@pytest.fixture
def large_bgzip(tmp_path):
    """Ten blocks of bgzip, lines of 61 bases, two contigs."""
    sequences = {"a": random_sequence(400_000), "b": random_sequence(200_001, seed=1)}
    return sequences, write_bgzip(tmp_path / "large.fa.gz", fasta_text(sequences, width=61))
