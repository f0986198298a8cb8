"""``genosparse pretrain data.alignments=``: from reads to a model, its embeddings and scores; kills; mistakes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sam_files import sam_line, write_bam, write_sample

import genosparse as gs
from genosparse.channels import CHANNELS
from genosparse.pipelines import embed, pretrain, variant_effect

CONTIGS = {"one": 3000, "two": 1200}
SMALL = [
    "model=tiny", "data.context=64", "trainer.max_steps=12", "trainer.batch_bases=512", "trainer.checkpoint_every=3",
    "trainer.log_every=1", "trainer.validate_every=6", "threads=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path, CONTIGS)
    return tmp_path


def run(*arguments: str) -> int:
    return pretrain.main(["data.genome=sample.fa", *SMALL, *arguments])


def test_from_reads_to_embeddings_and_scores(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data.alignments=sample.bam", "run_dir=out", "data.filters.min_mapping_quality=12") == 0
    assert capsys.readouterr().err == ""
    encoder = gs.Encoder.from_pretrained("out/model")
    assert encoder.config.channels == CHANNELS
    assert encoder.channel_projection.weight.abs().max() > 1e-4  # it has learned
    card = Path("out/model/README.md").read_text()
    assert "sample.bam: alignments on sample.fa (SHA-256 of the file" in card
    assert "exclude_flags=0x704, require_flags=0x0, min_mapping_quality=12" in card
    assert "takes channels of alignments: depth, A, C, G, T, deletion" in card
    assert 1.5 < json.loads(Path("out/metrics.json").read_text())["model"]["bits_per_base"] < 2.5

    Path("r.bed").write_text("one\t20\t80\ta\t0\t-\ntwo\t0\t33\tb\t0\t+\n")
    shared = ["model=out/model", "genome=sample.fa", "threads=1"]
    assert embed.main([*shared, "intervals=r.bed", "output=with.parquet", "alignments=sample.bam"]) == 0
    assert embed.main([*shared, "intervals=r.bed", "output=none.parquet"]) == 0
    rows = [np.array(pq.read_table(f"{name}.parquet")["embedding"].to_pylist()) for name in ("with", "none")]
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    ref = gs.Genome("sample.fa").fetch(gs.Interval("one", 140, 141))
    alt = "ACGT".replace(ref, "")[0]
    Path("v.vcf").write_text(
        f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\none\t141\t.\t{ref}\t{alt}\t.\t.\t.\n"
    )
    given = ["variants=v.vcf", "output=v.parquet", "context=64", "alignments=sample.bam"]
    assert variant_effect.main([*shared, *given]) == 0
    assert pq.read_table("v.parquet")["GS_STATUS"].to_pylist() == ["scored"]


@pytest.mark.slow
def test_killed_runs_end_with_the_same_bytes(work: Path) -> None:
    """Killed in the midst, with worker processes and without, and finished by the same command."""
    command = [sys.executable, "-m", "genosparse.cli", "pretrain", "data.genome=sample.fa", *SMALL]
    command += ["data.alignments=sample.bam", "trainer.max_steps=40"]
    whole = subprocess.run([*command, "run_dir=whole"], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    table = Path("parts/metrics.csv")
    for stop, workers in ((signal.SIGKILL, 0), (signal.SIGINT, 2)):
        process = subprocess.Popen(
            [*command, "run_dir=parts", f"trainer.workers={workers}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        rows = len(table.read_text().splitlines()) if table.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if table.exists() and len(table.read_text().splitlines()) > rows + 4:
                break
            time.sleep(0.01)
        process.send_signal(stop)
        process.communicate(timeout=60)
    last = subprocess.run([*command, "run_dir=parts"], capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    for name in ("model/model.safetensors", "model/README.md", "model/config.json", "metrics.json", "run.json"):
        assert Path("parts", name).read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(
    "change, words",
    [
        (["data.filters.min_base_quality=5"], "alignments.filters.min_base_quality was 0, now 5"),
        (["data.alignments=other.bam"], "alignments.files was"),
        (["data.alignments=null"], "alignments.filters.max_depth was null, now absent"),
        (["model.channels=[depth]"], "start was"),
    ],
)
def test_other_reads_do_not_resume(
    work: Path, capsys: pytest.CaptureFixture[str], change: list[str], words: str
) -> None:
    assert run("data.alignments=sample.bam", "run_dir=out", "trainer.max_steps=1") == 0
    write_sample(work, CONTIGS, seed=1, name="other")
    given = ["run_dir=out", "trainer.max_steps=1", *change]
    if not change[0].startswith("data.alignments"):
        given.append("data.alignments=sample.bam")
    assert run(*given) == 2
    errors = capsys.readouterr().err
    assert "overwrite=true" in errors
    assert words in errors


def test_some_channels_and_a_genome_without_alignments(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.fa").write_text(f">three\n{'ACGTTGCA' * 100}\n")
    given = [
        "data.genome=[sample.fa,more.fa]",
        "data.alignments=[sample.bam,null]",
        "model.channels=[base_quality,depth]",
    ]
    assert run(*given, "run_dir=out", "trainer.max_steps=2") == 0
    assert capsys.readouterr().err == ""
    assert gs.Encoder.from_pretrained("out/model").config.channels == ("base_quality", "depth")
    # Trained further, on the same channels; and on no alignments at all, which is told.
    further = ["init=out/model", "data.context=64", "trainer.max_steps=1", "trainer.batch_bases=512", "threads=1"]
    assert pretrain.main(["data.genome=sample.fa", "data.alignments=sample.bam", *further, "run_dir=more"]) == 0
    assert capsys.readouterr().err == ""
    assert pretrain.main(["data.genome=sample.fa", *further, "run_dir=none"]) == 0
    assert "takes channels of alignments (base_quality, depth) and was given none" in capsys.readouterr().err
    assert "no alignments: the channels that the model takes were all 0" in Path("none/model/README.md").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["data.alignments=none.bam"], "cannot read none.bam: No such file"),
        (["data.alignments=[sample.bam,sample.bam]"], "names 2 and data.genome 1 files"),
        (["data.alignments=[]"], "names 0 and data.genome 1 files"),
        (["data.alignments=cut.bam"], "cut.bam is truncated"),
        (["data.alignments=chrX.bam"], "no contig of chrX.bam ('chrX') is in sample.fa"),
        (["data.alignments=free.bam"], "free.bam declares no contigs"),
        (["data.alignments=sample.bam", "model.channels=[]"], "the model takes no channels of alignments"),
        (["data.alignments=sample.bam", "model.channels=[coverage]"], "'coverage' is no channel"),
        (["data.alignments=sample.bam", "model.channels=depth"], "expected names of channels"),
        (["data.alignments=sample.bam", "model.channels=[A,depth]"], "have no other strand"),
        (["data.alignments=sample.bam", "data.filters.max_depth=-1"], "data.filters.max_depth=-1"),
        (["data.reference=sample.fa"], "data.reference says how alignments are read, and none are given"),
        (["data.filters.max_depth=4"], "data.filters says how alignments are read, and none are given"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    gs.Genome("sample.fa").close()
    Path("cut.bam").write_bytes(Path("sample.bam").read_bytes()[:-28])
    write_bam(Path("chrX.bam"), [sam_line("a", 1, "4M", contig="chrX")], "@SQ\tSN:chrX\tLN:300\n")
    write_bam(Path("free.bam"), [sam_line("u", 0, "*", flags=4, contig="*", bases="ACGT")], "@HD\tVN:1.6\n")
    before = sorted(Path().rglob("*"))
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("genosparse pretrain: error: ")
    assert errors.count("\n") == 1
    assert words in errors
    assert sorted(Path().rglob("*")) == before


def test_an_empty_file_and_contigs_without_reads_are_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bam(Path("empty.bam"), [], "@SQ\tSN:chrone\tLN:3000\n")
    assert run("data.alignments=empty.bam", "run_dir=out", "trainer.max_steps=1") == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "contigs of empty.bam are matched to sample.fa by name: 'chrone' is 'one'" in lines[0]
    assert "contig 'two' of sample.fa is not in empty.bam: its channels are 0" in lines[1]
    assert "no read of empty.bam counts" in lines[2]


@pytest.mark.realdata
def test_mitochondrion_from_reads_to_scores(test_data: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real circular contig and its reads, BAM and CRAM alike."""
    folder = test_data / "human_chrM_bam"
    genome = folder / "Homo_sapiens_assembly38_chrM_only.fasta"
    Path("r.bed").write_text("chrM\t0\t1150\n")
    Path("over.bed").write_text("chrM\t16500\t16620\tx\t0\t-\n")
    shared = [*SMALL, f"data.genome={genome}", "data.regions=r.bed", "data.circular=[chrM]", "data.context=128"]
    assert pretrain.main([*shared, f"data.alignments={folder / 'NA12878_chrM.bam'}", "run_dir=out"]) == 0
    assert capsys.readouterr().err == ""
    given = ["model=out/model", f"genome={genome}", "circular=[chrM]", "threads=1", "pool=base"]
    given += [f"alignments={folder / 'NA12878_chrM.bam'}", "intervals=over.bed"]
    assert embed.main([*given, "output=over.parquet", "filters.max_depth=100"]) == 0
    assert pq.read_metadata("over.parquet").num_rows == 120
    opened = gs.Genome(genome, circular=["chrM"])
    found = gs.embed(
        gs.Encoder.from_pretrained("out/model"), opened, [gs.Interval("chrM", 16500, 16620, "-")], pool="base",
        alignments=gs.Alignments(folder / "NA12878_chrM.bam", filters=gs.ReadFilters(max_depth=100)),
    )  # fmt: skip
    np.testing.assert_allclose(
        np.array(pq.read_table("over.parquet")["embedding"].to_pylist()), found.embedding, atol=1e-5
    )
