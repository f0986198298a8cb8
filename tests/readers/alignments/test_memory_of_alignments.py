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
