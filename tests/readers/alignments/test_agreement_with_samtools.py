"""Real reads, position by position, as ``samtools depth``, ``mpileup`` and ``consensus`` count and call them.

Debian's samtools where it is installed, else the one within pysam. Each difference is one of these, and no other:

- Deletions have no quality here, and always count; samtools gives them that of a base beside them, so that ``-q`` and
  ``-Q`` drop some of them.
- A record that a file has twice is two reads here, and a supplementary one is nobody's mate; ``samtools depth -s``
  takes whatever has a read's name for its mate.
- A base and a deletion that are both called are the base's letter here, and its small letter there.
- What is too little for any call is N here, and a gap there where most reads have a deletion.
"""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pysam
import pytest
from numpy.typing import NDArray
from whole_files import run

import genosparse as gs

pytestmark = pytest.mark.realdata

BASES = ("A", "C", "G", "T")


class Sample(NamedTuple):
    path: Path
    reference: Path | None
    interval: gs.Interval

    @property
    def region(self) -> str:
        return f"{self.interval.contig}:{self.interval.start + 1}-{self.interval.end}"

    def channels(self, **filters: int) -> gs.Channels:
        with gs.Alignments(self.path, self.reference, filters=gs.ReadFilters(**filters)) as alignments:
            return alignments.channels(self.interval)

    def depth(self, *options: str) -> NDArray[np.int64]:
        reference = [] if self.reference is None else ["--reference", self.reference]
        found = np.zeros(self.interval.length, np.int64)
        for line in run("samtools", "depth", "-a", "-r", self.region, *reference, *options, self.path).splitlines():
            _, position, count = line.split("\t")
            found[int(position) - 1 - self.interval.start] = int(count)
        return found


@pytest.fixture(params=["illumina", "cram", "nanopore", "mitochondrion"])
def sample(request: pytest.FixtureRequest, test_data: Path, tmp_path: Path) -> Sample:
    """Files of one read length and of many, of two formats, and 1,900 reads deep."""
    if request.param == "nanopore":
        path = test_data / "nanopore_bam" / "Kpneumoniae_HS11286_ONT_0-1Mb.bam"
        return Sample(path, None, gs.Interval("NC_016845.1", 0, 200_000))
    if request.param == "mitochondrion":
        path = tmp_path / "chrM.bam"  # its own index has a name that samtools 1.16 does not look for
        path.write_bytes((test_data / "human_chrM_bam" / "NA12878_chrM.bam").read_bytes())
        pysam.index(str(path))
        return Sample(path, None, gs.Interval("chrM", 0, 16_569))
    folder = test_data / "human_chr20_b37"
    interval = gs.Interval("chr20", 9_999_900, 10_100_100)
    if request.param == "illumina":
        return Sample(folder / "NA12878_S1.chr20.10_10p1mb.bam", None, interval)
    reference = folder / "ucsc.hg19.chr20.unittest.fasta.gz"
    return Sample(folder / "NA12878_S1.chr20.10_10p1mb.derived.cram", reference, interval)


def counts(channels: gs.Channels, name: str) -> NDArray[np.int64]:
    return np.rint(channels[name].astype(float) * channels["depth"]).astype(np.int64)


@pytest.mark.parametrize(
    "options, filters",
    [((), {}), (("-Q", "30"), {"min_mapping_quality": 30}), (("-G", "0x10"), {"exclude_flags": 0x714})],
)
def test_depth(sample: Sample, options: tuple[str, ...], filters: dict[str, int]) -> None:
    found = sample.channels(count_overlaps=True, **filters)
    assert found["depth"].max() > 2
    np.testing.assert_array_equal(found["depth"], sample.depth("-J", *options))
    np.testing.assert_array_equal(found["depth"] - counts(found, "deletion"), sample.depth(*options))


def test_depth_above_a_base_quality(sample: Sample) -> None:
    found = sample.channels(count_overlaps=True, min_base_quality=20)
    np.testing.assert_array_equal(found["depth"] - counts(found, "deletion"), sample.depth("-q", "20"))
    # samtools drops deletions by the quality of a base beside them: these alone are the difference.
    dropped = found["depth"] - sample.depth("-J", "-q", "20")
    kept = mpileup(sample, 20)["deletion"]
    np.testing.assert_array_equal(dropped, counts(found, "deletion") - kept)
    assert 0 < np.count_nonzero(dropped) < len(dropped) / 5


def test_depth_with_overlaps_counted_once(sample: Sample, tmp_path: Path) -> None:
    options = {} if sample.reference is None else {"reference_filename": str(sample.reference)}
    with pysam.AlignmentFile(str(sample.path), **options) as file:
        reads, header = list(file.fetch(until_eof=True)), file.header
    seen: set[tuple[object, ...]] = set()
    kept, puzzling = [], set()  # names whose reads samtools pairs in another way
    for read in reads:
        key = read.query_name, read.flag, read.reference_start
        if key in seen or read.is_supplementary:
            puzzling.add(read.query_name)
        else:
            kept.append(read)
        seen.add(key)
    plain = tmp_path / "plain.bam"
    with pysam.AlignmentFile(str(plain), "wb", header=header) as out:
        for read in kept:
            out.write(read)
    pysam.index(str(plain))
    alone = Sample(plain, None, sample.interval)
    np.testing.assert_array_equal(alone.channels()["depth"], alone.depth("-s", "-J"))
    covered = np.zeros(sample.interval.length, bool)
    for read in reads:
        if read.query_name in puzzling and read.reference_end is not None:
            start = read.reference_start - sample.interval.start
            covered[max(0, start) : max(0, start + read.reference_length)] = True
    differs = sample.channels()["depth"] != sample.depth("-s", "-J")
    assert not (differs & ~covered).any()
    assert differs.mean() < 0.01


_READ_START = re.compile(r"\^.", re.DOTALL)
_INDEL = re.compile(r"([-+])(\d+)")


@cache
def mpileup(sample: Sample, least_quality: int) -> dict[str, NDArray[np.int64]]:
    """Reads with each base, with a deletion and with an insertion behind, from the text of ``samtools mpileup``."""
    found = {name: np.zeros(sample.interval.length, np.int64) for name in (*BASES, "deletion", "insertion")}
    reference = [] if sample.reference is None else ["-f", sample.reference]
    options = ["-B", "-A", "-x", "-d", "0", "-q", "0", "-Q", str(least_quality), "-r", sample.region]
    for line in run("samtools", "mpileup", *options, *reference, sample.path).splitlines():
        _, position, ref, depth, text, *_ = line.split("\t")
        row = int(position) - 1 - sample.interval.start
        if depth == "0":
            continue  # "*" alone
        text, found["insertion"][row] = _without_indels(_READ_START.sub("", text))
        text = text.upper().replace(".", ref.upper()).replace(",", ref.upper())
        for name in BASES:
            found[name][row] = text.count(name)
        found["deletion"][row] = text.count("*") + text.count("#")
    return found


def _without_indels(text: str) -> tuple[str, int]:
    """A column of bases without the bases of insertions and deletions, and the number of insertions."""
    pieces, at, insertions = [], 0, 0
    while match := _INDEL.search(text, at):
        pieces.append(text[at : match.start()])
        at = match.end() + int(match[2])
        insertions += match[1] == "+"
    return "".join([*pieces, text[at:]]), insertions


@pytest.mark.parametrize("least_quality", [0, 20])
def test_bases_deletions_and_insertions(sample: Sample, least_quality: int) -> None:
    found = sample.channels(count_overlaps=True, min_base_quality=least_quality)
    expected = mpileup(sample, least_quality)
    for name in (*BASES, "insertion"):
        np.testing.assert_array_equal(counts(found, name), expected[name], name)
        assert expected[name].any()
    deletions = counts(found, "deletion")
    assert deletions.any()
    if least_quality:
        assert (deletions >= expected["deletion"]).all()
    else:
        np.testing.assert_array_equal(deletions, expected["deletion"])


@pytest.mark.parametrize(
    "options, settings",
    [
        (("-c", "0.75", "-H", "0.5", "-d", "1"), {}),
        (("-c", "0.6", "-H", "0.25", "-d", "10"), {"call_fraction": 0.6, "het_fraction": 0.25, "min_depth": 10}),
    ],
)
def test_consensus(sample: Sample, tmp_path: Path, options: tuple[str, ...], settings: dict[str, float]) -> None:
    path = sample.path
    if sample.reference is not None:
        path = tmp_path / "reads.bam"
        run("samtools", "view", "-b", "-T", sample.reference, "-o", path, sample.path)
        pysam.index(str(path))
    text = run(
        "samtools", "consensus", "-a", "-A", "-m", "simple", "--show-del", "yes", "--show-ins", "no",
        "--ff", "0x704", "-r", sample.region, *options, path,
    )  # fmt: skip
    expected = "".join(text.splitlines()[1:])
    with gs.Alignments(sample.path, sample.reference, filters=gs.ReadFilters(count_overlaps=True)) as alignments:
        found = alignments.consensus(sample.interval, low_depth="N", indels=False, **settings)
        channels = alignments.channels(sample.interval)
    assert len(found) == len(expected) == sample.interval.length
    ours, theirs = (np.frombuffer(sequence.encode(), "S1") for sequence in (found, expected))
    deletions = counts(channels, "deletion")
    most = np.stack([counts(channels, name) for name in BASES]).max(axis=0)
    both = np.char.upper(theirs) == ours
    differs = ours != theirs
    small = (
        differs
        & both
        & (np.minimum(deletions, most) >= settings.get("het_fraction", 0.5) * np.maximum(deletions, most))
    )
    gap = differs & (ours == b"N") & (theirs == b"*") & (deletions >= most) & (deletions > 0)
    assert not (differs & ~small & ~gap).any()
    if "min_depth" not in settings:
        assert all(np.count_nonzero(ours == letter) for letter in (b"A", b"C", b"G", b"T"))
        assert differs.any() == ("chrM" not in path.name)
