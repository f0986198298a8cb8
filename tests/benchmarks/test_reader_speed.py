"""Reading and tokenizing, beside bare pysam on the same files.

    pytest -m benchmark -s tests/benchmarks/test_reader_speed.py

The figures are ratios of processor time taken in one run, by turns, so that a busy machine disturbs both alike.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyfaidx
import pysam
import pytest

from genosparse.intervals import Interval
from genosparse.readers import Alignments, Genome
from genosparse.readers._bgzf import KeptBlocks
from genosparse.tokenizers import NUCLEOTIDE_CODES, NucleotideTokenizer

NUM_BASES = 30_000_000
LENGTHS = {4_096: 400, 131_072: 60, 1_048_576: 12}  # bases a window, and how many windows
NUM_TURNS = 7
TARGET = 1.3
LEAST_OVER_PYFAIDX = 5
LEAST_ENCODING_RATE = 1.0  # GB/s
CODES = {letter: index for index, base in enumerate(NUCLEOTIDE_CODES) for letter in (base, base.lower())}


@pytest.fixture(scope="module", params=["plain", "bgzip"])
def fasta(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bases = np.random.default_rng(0).choice(np.frombuffer(b"ACGTacgtN", np.uint8), NUM_BASES)
    lines = np.full((NUM_BASES // 60, 61), ord("\n"), np.uint8)
    lines[:, :60] = bases.reshape(-1, 60)
    content = b">chr1\n" + lines.tobytes()
    path = tmp_path_factory.mktemp("reader_speed") / ("plain.fa" if request.param == "plain" else "bgzip.fa.gz")
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


def by_dict(sequence: str) -> np.ndarray:
    return np.array([CODES[base] for base in sequence], np.uint8)


@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS)
def test_reading_and_tokenizing(fasta: Path, length: int) -> None:
    generator = np.random.default_rng(1)
    starts = generator.integers(0, NUM_BASES - length, LENGTHS[length]).tolist()
    intervals = [Interval("chr1", start, start + length) for start in starts]
    with (
        Genome(fasta) as genome,
        pysam.FastaFile(str(fasta)) as bare,
        pyfaidx.Fasta(str(fasta), as_raw=True) as other,
    ):
        readers: dict[str, Callable[[Interval], object]] = {
            "bare": lambda interval: bare.fetch(interval.contig, interval.start, interval.end),
            "fetch": genome.fetch,
            "tokens": genome.tokens,
            "with soft mask": lambda interval: genome.tokens(interval, return_soft_mask=True),
        }
        turns = [{name: seconds(read, intervals) for name, read in readers.items()} for _ in range(NUM_TURNS)]
        few = intervals[:10]
        pyfaidx_turns = [
            seconds(lambda interval: by_dict(other["chr1"][interval.start : interval.end]), few)
            / seconds(genome.tokens, few)
            for _ in range(NUM_TURNS)
        ]
    bare_us = 1e6 * statistics.median(turn["bare"] for turn in turns) / len(intervals)
    print(f"\n{fasta.name}, {length} bp: bare fetch {bare_us:.1f} us")
    ratios = {}
    for name in list(readers)[1:]:
        each = [turn[name] / turn["bare"] for turn in turns]
        ratios[name] = statistics.median(each)
        print(f"  {name}: {ratios[name]:.2f} of it ({min(each):.2f} to {max(each):.2f}; at most {TARGET})")
    over = statistics.median(pyfaidx_turns)
    print(f"  pyfaidx and a dict take {over:.1f} times as long as tokens (at least {LEAST_OVER_PYFAIDX})")
    assert max(ratios["tokens"], ratios["with soft mask"]) <= TARGET
    assert over >= LEAST_OVER_PYFAIDX


@pytest.mark.benchmark
@pytest.mark.parametrize("length", LENGTHS)
def test_windows_that_nobody_has_read_yet(fasta: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of bgzip have to be unpacked, which takes most of the time, here and in others."""
    monkeypatch.setattr("genosparse.readers.fasta._KEPT_BLOCKS", KeptBlocks(1024))  # without those of other tests
    step = max(length, 1 << 17) + (1 << 16)
    intervals = [Interval("chr1", start, start + length) for start in range(1 << 17, NUM_BASES - length, step)]
    with (
        Genome(fasta) as genome,
        pysam.FastaFile(str(fasta)) as bare,
        pyfaidx.Fasta(str(fasta), as_raw=True) as other,
    ):
        readers: dict[str, Callable[[Interval], object]] = {
            "tokens": genome.tokens,
            "bare": lambda interval: bare.fetch(interval.contig, interval.start, interval.end),
            "pyfaidx": lambda interval: by_dict(other["chr1"][interval.start : interval.end]),
        }
        for read in readers.values():
            read(intervals[-1])
        spent = dict.fromkeys(readers, 0.0)
        for number, interval in enumerate(intervals[:-1]):
            # Who comes first finds neither the file nor memory in the processor's caches: each does in turn.
            for name in sorted(readers, reverse=bool(number % 2)):
                spent[name] += seconds(readers[name], [interval])
    ratio, over = spent["tokens"] / spent["bare"], spent["pyfaidx"] / spent["tokens"]
    print(
        f"\n{fasta.name}, {length} bp, read for the first time: tokens take {ratio:.2f} of a bare fetch (at most "
        f"{TARGET}), pyfaidx and a dict {over:.1f} times as long"
    )
    assert ratio <= TARGET


@pytest.mark.benchmark
def test_encoding() -> None:
    """At least 1 GB/s on one core, whatever the bases come as: far from what reading them takes."""
    random = np.random.default_rng(0)
    letters = random.choice(np.frombuffer(b"ACGTacgtN", np.uint8), 20_000_000).tobytes()
    packed = random.choice(np.array([0x11, 0x12, 0x48, 0x84, 0x1F], np.uint8), len(letters) // 2)
    tokenizer = NucleotideTokenizer()
    text = letters.decode()
    ways: dict[str, Callable[[], object]] = {
        "str": lambda: tokenizer.encode(text),
        "bytes": lambda: tokenizer.encode(letters),
        "BAM's packed bases": lambda: tokenizer.unpack(packed, len(letters)),
    }
    for name, encode in ways.items():
        turns = []
        for _ in range(NUM_TURNS):
            start = time.process_time()
            encode()
            turns.append(len(letters) / (time.process_time() - start) / 1e9)
        print(f"\nencode {name}: {statistics.median(turns):.2f} GB/s ({min(turns):.2f} to {max(turns):.2f})")
        assert statistics.median(turns) >= LEAST_ENCODING_RATE


#: File, reference, and what is read of it.
ALIGNMENTS = {
    "Illumina BAM": (
        "human_chr20_b37/NA12878_S1.chr20.10_10p1mb.bam", None, Interval("chr20", 9_999_900, 10_100_100),
    ),
    "Illumina CRAM": (
        "human_chr20_b37/NA12878_S1.chr20.10_10p1mb.derived.cram",
        "human_chr20_b37/ucsc.hg19.chr20.unittest.fasta.gz",
        Interval("chr20", 9_999_900, 10_100_100),
    ),
    "nanopore BAM": (
        "nanopore_bam/Kpneumoniae_HS11286_ONT_0-1Mb.bam", None, Interval("NC_016845.1", 0, 1_000_000),
    ),
}  # fmt: skip


@pytest.mark.benchmark
@pytest.mark.realdata
@pytest.mark.parametrize("name", ALIGNMENTS)
def test_channels_of_alignments(name: str, test_data: Path) -> None:
    """Bases three times as fast as pysam's count_coverage, depth within three times pysam's bare iteration."""
    file, reference, interval = ALIGNMENTS[name]
    path = test_data / file
    options = {} if reference is None else {"reference_filename": str(test_data / reference)}

    def iterate(_: Interval) -> None:
        with pysam.AlignmentFile(str(path), **options) as bare:
            for _read in bare.fetch(interval.contig, interval.start, interval.end):
                pass

    def count(_: Interval) -> None:
        with pysam.AlignmentFile(str(path), **options) as bare:
            bare.count_coverage(interval.contig, interval.start, interval.end, quality_threshold=0)

    with Alignments(path, None if reference is None else test_data / reference) as alignments:
        readers: dict[str, Callable[[Interval], object]] = {
            "iterate": iterate,
            "count": count,
            "bases": lambda _: alignments.channels(interval, tuple("ACGT")),
            "depth": lambda _: alignments.channels(interval, ("depth",)),
            "all": lambda _: alignments.channels(interval),
        }
        for read in readers.values():
            read(interval)
        turns = [{key: seconds(read, [interval]) for key, read in readers.items()} for _ in range(NUM_TURNS)]
    bases = [turn["count"] / turn["bases"] for turn in turns]
    every = statistics.median(turn["count"] / turn["all"] for turn in turns)
    depth = [turn["depth"] / turn["iterate"] for turn in turns]
    print(
        f"\n{name}: count_coverage takes {statistics.median(bases):.2f} ({min(bases):.2f} to {max(bases):.2f}) times "
        f"as long as the four bases, {every:.2f} times as long as all channels; depth takes "
        f"{statistics.median(depth):.2f} ({min(depth):.2f} to {max(depth):.2f}) times as long as bare iteration"
    )
    assert statistics.median(bases) >= 3
    assert statistics.median(depth) <= 3
