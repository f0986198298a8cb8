"""The suite ``readers``: what it measures, beside whom, and what it refuses."""

import dataclasses
import gzip
import re
from pathlib import Path

import numpy as np
import pysam
import pytest

import genosparse as gs
from genosparse import example_data
from genosparse.benchmarking import readers
from genosparse.benchmarking.readers import ReaderSuite
from genosparse.cli import main
from genosparse.errors import ConfigError, FileFormatError, GenosparseWarning


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    lines = ["".join(random.choice(list("ACGTacgtN"), 60)) for _ in range(200)]
    path = tmp_path / "genome.fa"
    path.write_text(">one\n" + "\n".join(lines) + "\n>two\nACGT\n")
    return path


@pytest.fixture
def suite(genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReaderSuite:
    monkeypatch.setattr(readers, "_ENCODED_BASES", 10_000)
    variants = tmp_path / "variants.vcf"
    header = "##fileformat=VCFv4.3\n##contig=<ID=one,length=12000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    variants.write_text(header + "".join(f"one\t{position}\t.\tA\tC,G\t.\t.\t.\n" for position in range(1, 40)))
    return ReaderSuite(str(genome), str(variants), lengths=(600, 60), repeats=2)


def test_every_reader_of_every_task_is_measured(suite: ReaderSuite, tmp_path: Path) -> None:
    rows = [row for unit in suite.units() for row in suite.measure(unit, [])]
    tasks = {(row["task"], row["length"]) for row in rows}
    assert tasks == {("sequence", 60), ("sequence", 600), ("encode", None), ("variants", None), ("alignments", None)}
    assert {row["status"] for row in rows} == {"measured"}
    for task in tasks:
        chosen = [row for row in rows if (row["task"], row["length"]) == task]
        assert chosen[0]["of_first"] == 1
        assert any(row["implementation"].startswith("genosparse") for row in chosen)
        assert all(row["rate"] == row["amount"] / row["seconds"] for row in chosen)
    amounts = {row["task"]: row["amount"] for row in rows}
    assert amounts["variants"] == 39
    assert amounts["alignments"] == 30 * 12_000 // 150
    table = suite.table(rows)
    assert "pyfaidx + Python's dict" in table
    assert "reads/s" in table
    (picture,) = suite.write(tmp_path, rows)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_readers_give_the_same_bases(genome: Path) -> None:
    interval = gs.Interval("one", 130, 1_234)
    with gs.Genome(genome) as opened:
        tokens = opened.tokens(interval)
        sequence = opened.fetch(interval)
    np.testing.assert_array_equal(readers._by_dict(sequence), tokens)
    assert readers._biopython(str(genome), interval) == sequence


def test_made_reads_are_those_of_the_genome(genome: Path, tmp_path: Path) -> None:
    path = readers._make_alignments(tmp_path / "reads.bam", str(genome), seed=3)
    with gs.Alignments(path) as alignments, gs.Genome(genome) as opened:
        channels = alignments.channels(gs.Interval("one", 1_000, 2_000))
        tokens = opened.tokens(gs.Interval("one", 1_000, 2_000))
    assert 20 < channels["depth"].mean() < 40
    known = np.isin(tokens, (1, 2, 4, 8))
    most = channels.values[:, 1:5].argmax(axis=1)
    np.testing.assert_array_equal(1 << most[known], tokens[known])


def test_what_cannot_be_measured_is_refused(suite: ReaderSuite, genome: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lengths: 50000 is longer than any contig"):
        ReaderSuite(str(genome), suite.variants, lengths=(50_000,))
    squeezed = tmp_path / "genome.fa.gz"
    squeezed.write_bytes(gzip.compress(genome.read_bytes()))
    with (
        pytest.warns(GenosparseWarning, match="ordinary gzip"),
        pytest.raises(ConfigError, match="convert it first"),
    ):
        ReaderSuite(str(squeezed), suite.variants, lengths=(60,))
    bam = readers._make_alignments(tmp_path / "reads.bam", str(genome), seed=3)
    ReaderSuite(str(genome), suite.variants, str(bam), lengths=(60,))
    Path(f"{bam}.bai").unlink()
    with pytest.raises(ConfigError, match=r"has no index.*samtools index"):
        ReaderSuite(str(genome), suite.variants, str(bam), lengths=(60,))
    for files in ((suite.variants, str(genome)), (str(genome), str(bam))):
        with pytest.raises(FileFormatError, match=r"genome\.fa"):
            ReaderSuite(str(genome), *files, lengths=(60,))


def test_mistaken_files_leave_no_run(suite: ReaderSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, wrong = tmp_path / "run", tmp_path / "reads.bam"
    wrong.write_text("reads\n")
    files = [f"genome={suite.genome}", f"variants={suite.variants}", f"alignments={wrong}", "lengths=[60]"]
    assert main(["benchmark", "suite=readers", *files, f"run_dir={run_dir}", "device=cpu"]) == 2
    assert "reads.bam" in capsys.readouterr().err
    assert not run_dir.exists()


def test_a_reader_is_stopped_within_a_run(suite: ReaderSuite) -> None:
    """Biopython goes through the whole file for each window."""
    hurried = dataclasses.replace(suite, max_seconds=1e-9)
    rows = {row["implementation"]: row for row in hurried.measure(hurried.units()[0], [])}
    assert rows["biopython + Python's dict"]["status"] == "stopped"
    assert re.fullmatch(r"1 of \d+ windows took \S+ s", rows["biopython + Python's dict"]["note"])


@pytest.mark.realdata
def test_cram(test_data: Path) -> None:
    folder = test_data / "human_chr20_b37"
    suite = ReaderSuite(
        str(example_data.path("ecoli536.fa.gz")),
        str(example_data.path("ecoli536.variants.vcf.gz")),
        str(folder / "NA12878_S1.chr20.10_10p1mb.derived.cram"),
        str(folder / "ucsc.hg19.chr20.unittest.fasta.gz"),
        lengths=(60,),
        repeats=1,
    )
    rows = suite.measure(suite.units()[-1], [])
    assert {row["status"] for row in rows} == {"measured"}
    with pysam.AlignmentFile(suite.alignments, reference_filename=suite.reference) as file:
        assert rows[0]["amount"] == file.count(until_eof=True) - file.nocoordinate
