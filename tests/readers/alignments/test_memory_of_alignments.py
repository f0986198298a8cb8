"""What reading takes does not grow with the number of reads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from sam_files import sam_line, write_bam

import genosparse as gs

MEGABYTE = 1 << 20
SCRIPT = """
import resource, sys
import genosparse as gs
with gs.Alignments(sys.argv[1]) as alignments:
    print(alignments.channels(gs.Interval("one", 0, 400))["depth"].sum())
    print(sum(len(read.tokens) for read in alignments.reads()))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_bytes(path: Path, bases: int) -> int:
    run = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True)
    depth, read_bases, peak = map(float, run.stdout.split())
    assert depth == read_bases == bases
    return int(peak) * 1024


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    bases = random.choice(np.frombuffer(b"ACGT", np.uint8), (250_000, 150)).view("S150")[:, 0]
    peaks = []
    for count in (10_000, 250_000):
        lines = [
            sam_line(f"r{number}", 1 + number * 200 // count, "150M", bases=letters.decode())
            for number, letters in enumerate(bases[:count])
        ]
        path = write_bam(tmp_path / f"{count}.bam", lines)
        with gs.Alignments(path) as alignments:  # so that neither run pays for the index
            alignments.channels(gs.Interval("one", 0, 1))
        peaks.append(peak_bytes(path, 150 * count))
    unpacked = 240_000 * (150 + 75)
    assert peaks[1] - peaks[0] < 16 * MEGABYTE < unpacked / 3


def test_long_reads_behind_short_ones_come_in_small_batches_too(tmp_path: Path) -> None:
    header = "@HD\tVN:1.6\n"
    lines = [f"short{number}\t4\t*\t0\t0\t*\t*\t0\t0\tACGTACGTAC\t*\n" for number in range(20_000)]
    lines += [f"long{number}\t4\t*\t0\t0\t*\t*\t0\t0\t{'ACGT' * 25_000}\t*\n" for number in range(600)]
    (tmp_path / "reads.sam").write_text(header + "".join(lines))
    with gs.Alignments(tmp_path / "reads.sam") as alignments:
        sizes = [len(records.buffer) for records in alignments._file.batches()]
    assert sum(sizes) > 600 * 150_000
    assert max(sizes) < 16 * MEGABYTE


def test_many_contigs_do_not_make_a_batch_of_each_read(tmp_path: Path) -> None:
    """A header of more contigs than a batch has bytes for."""
    count = 260_000
    header = "@HD\tVN:1.6\tSO:coordinate\n" + "".join(f"@SQ\tSN:c{number}\tLN:1000\n" for number in range(count))
    lines = [sam_line(f"r{number}", 1 + number, "50M", contig="c7") for number in range(300)]
    path = write_bam(tmp_path / "reads.bam", lines, header)
    with gs.Alignments(path) as alignments:
        (records,) = alignments._file.batches("c7", 0, 1000)
        assert len(records) == 300
        assert alignments.channels(gs.Interval("c7", 0, 1000))["depth"].sum() == 300 * 50
