"""Reading and tokenizing an indexed FASTA file, beside pysam's bare fetch of the same bases.

    pytest -m benchmark -s tests/benchmarks/test_reader_speed.py

The figures are ratios of processor time taken in one run, by turns, so that a busy machine disturbs both alike. On
plain files they are printed only: htslib copies whole lines at some 6 GB/s, and bytes.translate alone does 3 GB/s.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pysam
import pytest

from genosparse.intervals import Interval
from genosparse.readers import Genome

NUM_BASES = 30_000_000
LENGTHS = {4_096: 400, 131_072: 60, 1_048_576: 12}  # bases a window, and how many windows
NUM_TURNS = 7
TARGET = 1.3


@pytest.fixture(scope="module", params=["plain", "bgzip"])
def fasta(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGTacgtN", np.uint8), NUM_BASES)
    lines = np.full((NUM_BASES // 60, 61), ord("\n"), np.uint8)
    lines[:, :60] = bases.reshape(-1, 60)
    content = b">chr1\n" + lines.tobytes()
    path = tmp_path_factory.mktemp("reader_speed") / f"{request.param}.fa"
    if request.param == "plain":
        path.write_bytes(content)
    else:
        with pysam.BGZFile(str(path), "wb") as stream:
            stream.write(content)
    return path


def seconds(function: Callable[[Interval], object], intervals: Iterable[Interval]) -> float:
    start = time.process_time()
    for interval in intervals:
        function(interval)
    return time.process_time() - start


@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS)
def test_reading_and_tokenizing(fasta: Path, length: int) -> None:
    generator = np.random.default_rng(1)
    starts = generator.integers(0, NUM_BASES - length, LENGTHS[length]).tolist()
    intervals = [Interval("chr1", start, start + length) for start in starts]
    with Genome(fasta) as genome, pysam.FastaFile(str(fasta)) as bare:
        readers: dict[str, Callable[[Interval], object]] = {
            "bare": lambda interval: bare.fetch(interval.contig, interval.start, interval.end),
            "fetch": genome.fetch,
            "tokens": genome.tokens,
        }
        turns = [{name: seconds(read, intervals) for name, read in readers.items()} for _ in range(NUM_TURNS)]
    ratios = {name: statistics.median(turn[name] / turn["bare"] for turn in turns) for name in ("fetch", "tokens")}
    bare_us = 1e6 * statistics.median(turn["bare"] for turn in turns) / len(intervals)
    print(
        f"\n{fasta.stem}, {length} bp: bare fetch {bare_us:.1f} us; "
        f"fetch {ratios['fetch']:.2f}, tokens {ratios['tokens']:.2f} of it (at most {TARGET})"
    )
    if fasta.stem == "bgzip":
        assert ratios["tokens"] <= TARGET
