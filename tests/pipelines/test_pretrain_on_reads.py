"""``genosparse pretrain data.reads=``: mapped and unmapped reads, kills, mistakes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pysam
import pytest
import torch
from sam_files import sam_line, write_bam, write_sample

import genosparse as gs
from genosparse.pipelines import embed, pretrain

SMALL = [
    "model=tiny", "data.context=64", "trainer.max_steps=8", "trainer.batch_bases=512", "trainer.checkpoint_every=3",
    "trainer.log_every=1", "trainer.validate_every=4", "threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A genome and reads of 80 bases."""
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path, {"one": 3000}, read_length=80, depth=10)
    return tmp_path


def run(*arguments: str) -> int:
    return pretrain.main([*SMALL, *arguments])


def test_from_reads_to_a_model_and_its_embeddings(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.reads=sample.bam", "run_dir=out") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "interpolated k-mers" in captured.out
    assert {path.name for path in Path().iterdir()} == {"out", "sample.bam", "sample.fa"}  # no index was made
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert 1.5 < metrics["model"]["bits_per_base"] < 2.5
    card = Path("out/model/README.md").read_text()
    for words in (
        "reads of sample.bam (SHA-256 of the file", "375 reads, 30,000 bases", "exclude_flags=0x704",
        "held out: 0.1 of the reads, by a hash of their names; reads of one place may be on both sides",
    ):  # fmt: skip
        assert words in card
    Path("r.bed").write_text("one\t20\t80\n")
    given = ["model=out/model", "genome=sample.fa", "intervals=r.bed", "output=e.parquet", "threads=1"]
    assert embed.main(given) == 0
    assert run("data.reads=sample.bam", "run_dir=out") == 0
    assert "is there already" in capsys.readouterr().out
    assert run("data.reads=sample.bam", "run_dir=out", "data.filters.min_base_quality=9") == 2
    assert "reads.filters.min_base_quality was 0, now 9" in capsys.readouterr().err


def test_mapped_unmapped_sam_and_cram_are_alike(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was sequenced does not depend on where reads were put, or how they are stored."""
    with pysam.AlignmentFile("sample.bam") as file:
        reads = [(read.query_name, read.get_forward_sequence(), read.get_forward_qualities()) for read in file]
    lines = [
        sam_line(
            name, 0, "*", flags=4, contig="*", bases=bases, qualities="".join(chr(33 + each) for each in qualities)
        )
        for name, bases, qualities in reads
    ]
    Path("free.sam").write_text("@HD\tVN:1.6\n" + "".join(f"{line}\n" for line in lines))
    pysam.view("-b", "-o", "free.bam", "free.sam", catch_stdout=False)
    pysam.faidx("sample.fa")
    pysam.view("-C", "-T", "sample.fa", "-o", "sample.cram", "sample.bam", catch_stdout=False)
    models = []
    for name, *given in (("sample.bam",), ("free.sam",), ("free.bam",), ("sample.cram", "data.reference=sample.fa")):
        assert run(f"data.reads={name}", f"run_dir=out-{name}", "data.filters.min_base_quality=6", *given) == 0
        models.append(Path(f"out-{name}/model/model.safetensors").read_bytes())
    assert capsys.readouterr().err == ""
    assert models[1:] == models[:1] * 3


def test_short_reads_make_the_context(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.reads=[sample.bam]", "run_dir=out", "data.context=1024", "data.max_read_bases=9000") == 0
    errors = capsys.readouterr().err
    assert "sample.bam has more than data.max_read_bases=9,000 bases; 112 reads with 8,960 bases are taken" in errors
    assert "data.context=1024 is more than the longest read has; windows have 80 bases" in errors
    assert gs.Encoder.from_pretrained("out/model").config.trained_context == 80
    assert "context: 80 bases" in Path("out/model/README.md").read_text()


def test_killed_runs_end_with_the_same_bytes(work: Path) -> None:
    command = [sys.executable, "-m", "genosparse.cli", "pretrain", "data.reads=sample.bam", *SMALL]
    command += ["trainer.max_steps=40"]
    whole = subprocess.run([*command, "run_dir=whole"], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    table = Path("parts/metrics.csv")
    process = subprocess.Popen([*command, "run_dir=parts"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (table.exists() and len(table.read_text().splitlines()) > 6):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    last = subprocess.run([*command, "run_dir=parts"], capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    for name in ("model/model.safetensors", "model/README.md", "metrics.json", "run.json"):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "missing data.genome= or data.reads="),
        (["data.reads=sample.bam", "data.genome=sample.fa"], "data.genome= and data.reads= are both given"),
        (["data.reads=none.bam"], "cannot read none.bam"),
        (["data.reads=[]"], "data.reads=[] names no file"),
        (["data.reads=sample.fa"], "sample.fa is not a BAM, CRAM or SAM file"),
        (["data.reads=cut.bam"], "cut.bam is truncated"),
        (["data.reads=empty.bam"], "no read of empty.bam counts"),
        (["data.reads=sample.cram"], "it needs the genome that it was made with (pass reference=)"),
        (["data.reads=sample.bam", "data.alignments=sample.bam"], "data.alignments is of genomes"),
        (["data.reads=sample.bam", "data.regions=r.bed"], "data.regions is of genomes"),
        (["data.reads=sample.bam", "data.circular=true"], "data.circular is of genomes"),
        (["data.reads=sample.bam", "data.validation=[one]"], "data.validation=['one'] names contigs"),
        (["data.reads=sample.bam", "data.validation=one"], "names contigs, and reads are held out by their names"),
        (["data.reads=sample.bam", "data.validation=0.0001"], "holds out 0 bases, too few"),
        (["data.reads=sample.bam", "data.filters.max_depth=5"], "max_depth and count_overlaps are of positions"),
        (["data.reads=sample.bam", "data.filters.min_mapping_quality=255"], "no read of sample.bam counts"),
        (["data.reads=sample.bam", "data.max_read_bases=0"], "data.max_read_bases=0 is too small"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    Path("gone.fa").write_bytes(Path("sample.fa").read_bytes())
    pysam.faidx("gone.fa")
    pysam.view("-C", "-T", "gone.fa", "-o", "sample.cram", "sample.bam", catch_stdout=False)
    Path("gone.fa").unlink()  # else the file's own header says where it is
    Path("cut.bam").write_bytes(Path("sample.bam").read_bytes()[:-28])
    Path("r.bed").write_text("one\t0\t900\n")
    write_bam(Path("empty.bam"), [])
    before = sorted(Path().rglob("*"))
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("genosparse pretrain: error: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert sorted(Path().rglob("*")) == before


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name, context",
    [("human_chrM_bam/NA12878_chrM.bam", 151), ("nanopore_bam/Kpneumoniae_HS11286_ONT_0-1Mb.bam", 256)],
)
def test_real_reads(test_data: Path, work: Path, name: str, context: int) -> None:
    given = [f"data.context={context}", "data.max_read_bases=400000", "data.validation=0.05", "run_dir=out"]
    assert run(f"data.reads={test_data / name}", *given, "trainer.max_steps=4") == 0
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert np.isfinite(metrics["model"]["bits_per_base"])
    # At 40,000x a held-out read of the mitochondrion has its place in the training reads too.
    assert (metrics["baselines_bits_per_base"]["interpolated"] < 1) == name.startswith("human")
