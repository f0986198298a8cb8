"""``genosparse embed`` from files to Parquet: results, resuming, and mistakes that leave nothing behind."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import genosparse
from genosparse.attention import SparsePattern
from genosparse.embedding import embed
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.intervals import Interval
from genosparse.pipelines import embed as pipeline
from genosparse.readers import Genome

D_MODEL = 16


@pytest.fixture(scope="module", autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    pattern = SparsePattern(window=8, stride=16, num_global=1)
    config = EncoderConfig(d_model=D_MODEL, num_layers=2, num_heads=2, patterns=(pattern,), max_length=2000)
    path = tmp_path_factory.mktemp("runs") / "toy" / "model"
    Encoder(config).save_pretrained(path)
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a genome and a BED, under names that Hydra would stumble over."""
    monkeypatch.chdir(tmp_path)
    bases = "".join(np.random.default_rng(5).choice(list("ACGT"), 2000))
    Path("g (1)=x.fa").write_text(f">chr1\n{bases}\n>chr2\nACGTN\n")
    Genome("g (1)=x.fa").close()  # so that the index is there
    Path("r.bed").write_text(
        "".join(f"chr1\t{i * 9}\t{i * 9 + 20 + i % 13}\tr{i}\t0\t{'+-'[i % 2]}\n" for i in range(150))
    )
    return tmp_path


def run(model: Path, *arguments: str, intervals: str = "r.bed", output: str = "e.parquet") -> int:
    return pipeline.main(
        [
            f"model={model}",
            "genome=g (1)=x.fa",
            f"intervals={intervals}",
            f"output={output}",
            "batch_bases=200",
            "threads=1",
            *arguments,
        ]
    )


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def test_rows_are_those_of_the_library(model: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "layer=1", "pool=8", "both_strands=true") == 0
    assert capsys.readouterr() == (
        f"e.parquet: {pq.read_metadata('e.parquet').num_rows} embeddings of 150 intervals\n",
        "",
    )
    table = pq.read_table("e.parquet")
    intervals = [Interval("chr1", i * 9, i * 9 + 20 + i % 13, "+-"[i % 2], f"r{i}") for i in range(150)]
    encoder = Encoder.from_pretrained(model)
    expected = embed(encoder, Genome("g (1)=x.fa"), intervals, layer=1, pool=8, both_strands=True)
    for column in ("contig", "start", "end", "strand", "name"):
        assert table[column].to_pylist() == getattr(expected, column).tolist()
    np.testing.assert_allclose(np.array(table["embedding"].to_pylist()), expected.embedding, atol=1e-5)
    metadata = table.schema.metadata
    assert {
        key: metadata[b"genosparse." + key] for key in (b"version", b"model", b"layer", b"pool", b"both_strands")
    } == {
        b"version": genosparse.__version__.encode(),
        b"model": encoder.fingerprint().encode(),
        b"layer": b"1",
        b"pool": b"8",
        b"both_strands": b"true",
    }
    assert files() == ["e.parquet", "g (1)=x.fa", "g (1)=x.fa.fai", "r.bed"]


def test_whole_contigs(model: Path, work: Path) -> None:
    assert run(model, intervals="all") == 0
    table = pq.read_table("e.parquet")
    assert table.select(["contig", "start", "end", "strand", "name"]).to_pylist() == [
        {"contig": "chr1", "start": 0, "end": 2000, "strand": "+", "name": None},
        {"contig": "chr2", "start": 0, "end": 5, "strand": "+", "name": None},
    ]


def test_bed_on_standard_input(model: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(Path("r.bed").read_bytes())
        closed = False

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert run(model, intervals="-", output="stdin.parquet") == 0
    assert run(model) == 0
    assert Path("stdin.parquet").read_bytes() == Path("e.parquet").read_bytes()


GFF3 = """##gff-version 3
chr1\tx\tgene\t11\t40\t.\t-\t.\tID=g1
chr1\tx\tCDS\t21\t30\t.\t-\t0\tParent=g1
"""


def test_features_and_regions(model: Path, work: Path) -> None:
    Path("genes.gff3").write_text(GFF3)
    Path("same.bed").write_text("chr1\t10\t40\tg1\t0\t-\n")
    embeddings = []
    for number, (intervals, *more) in enumerate((("same.bed",), ("genes.gff3", "features=[gene]"), ("chr1:11-40",))):
        assert run(model, *more, intervals=intervals, output=f"{number}.parquet") == 0
        embeddings.append(pq.read_table(f"{number}.parquet"))
    assert embeddings[0] == embeddings[1]
    assert embeddings[2].column("start").to_pylist() == [10]
    assert run(model, intervals="genes.gff3", output="all.parquet") == 0
    assert pq.read_table("all.parquet").column("end").to_pylist() == [40, 30]


def test_finished_output_is_kept_and_another_is_refused(
    model: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model) == 0
    before = Path("e.parquet").stat().st_mtime_ns
    capsys.readouterr()
    assert run(model, "threads=2") == 0
    assert "e.parquet is there already" in capsys.readouterr().out
    assert run(model, "pool=4") == 2
    assert "overwrite=true" in capsys.readouterr().err
    Path("r.bed").write_text("chr1\t0\t10\n")
    assert run(model) == 2
    assert Path("e.parquet").stat().st_mtime_ns == before
    assert run(model, "overwrite=true") == 0
    assert pq.read_metadata("e.parquet").num_rows == 1
    Path("notes.parquet").write_text("not ours")
    assert run(model, output="notes.parquet") == 2
    assert Path("notes.parquet").read_text() == "not ours"


def test_killed_and_resumed_gives_the_same_bytes(
    model: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, output="whole.parquet") == 0
    blocks = pq.read_metadata("whole.parquet").num_row_groups
    assert blocks == 3
    script = (
        "import sys, time\nfrom genosparse.pipelines import embed as pipeline\n"
        "real, calls = pipeline.embed, []\n"
        "def slow(*arguments, **more):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3:\n"
        "        print('two are done', flush=True)\n"
        "        time.sleep(600)\n"
        "    return real(*arguments, **more)\n"
        "pipeline.embed = slow\n"
        "sys.exit(pipeline.main(sys.argv[1:]))"
    )
    arguments = [
        f"model={model}",
        "genome=g (1)=x.fa",
        "intervals=r.bed",
        "output=e.parquet",
        "batch_bases=200",
        "threads=1",
    ]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"two are done\n"
    process.kill()
    process.wait()
    assert not Path("e.parquet").exists()
    assert run(model, "layer=1") == 2
    assert 'layer was "-1", now "1"' in capsys.readouterr().err
    calls = []
    real = pipeline.embed
    monkeypatch.setattr(pipeline, "embed", lambda *args, **more: calls.append(1) or real(*args, **more))
    assert run(model) == 0
    assert len(calls) == 1
    assert Path("e.parquet").read_bytes() == Path("whole.parquet").read_bytes()
    assert files() == ["e.parquet", "g (1)=x.fa", "g (1)=x.fa.fai", "r.bed", "whole.parquet"]


def test_run_folder_that_the_user_shares_is_not_removed(model: Path, work: Path) -> None:
    Path("here").mkdir()
    assert run(model, "run_dir=here", output="here.parquet") == 0
    Path("both").mkdir()
    assert run(model, "run_dir=both", output="both/e.parquet") == 0
    assert files() == ["both/e.parquet", "g (1)=x.fa", "g (1)=x.fa.fai", "here.parquet", "r.bed"]


@pytest.mark.parametrize(
    "arguments,words",
    [
        ({"genome": "missing.fa"}, "missing.fa"),
        ({"genome": "empty.fa"}, "empty.fa"),
        ({"genome": "r.bed"}, "r.bed"),
        ({"genome": "protein.fa"}, "'E'"),
        ({"model": "missing"}, "missing"),
        ({"model": "truncated"}, "truncated"),
        ({"model": "r.bed"}, "r.bed"),
        ({"intervals": "missing.bed"}, "missing.bed"),
        ({"intervals": "empty.bed"}, "no intervals"),
        ({"intervals": "bad.bed"}, "line 2"),
        ({"intervals": "past.bed"}, "chr1:1990-2001"),
        ({"intervals": "other.bed"}, "chr9"),
        ({"intervals": "all", "genome": "long.fa"}, "makewindows"),
        ({"intervals": "genes.gff3", "features": "[exon]"}, "no intervals of the kinds exon"),
        ({"intervals": "genes.gff3", "features": "[]"}, "features=[]"),
        ({"features": "gene"}, "BED, which has no kinds of features (gene)"),
        ({"intervals": "chr1:1-x"}, "is not a region"),
        ({"intervals": "chr1:1990-2001"}, "chr1:1989-2001"),
        ({"output": "missing/e.parquet"}, "missing"),
        ({"output": "e.csv"}, ".parquet"),
        ({"output": "folder.parquet"}, "folder"),
        ({"pool": "max"}, "pool='max'"),
        ({"pool": "0"}, "pool=0"),
        ({"layer": "3"}, "layer=3"),
        ({"layer": "last"}, "layer='last'"),
        ({"batch_bases": "0"}, "batch_bases=0"),
        ({"both_strands": "yes"}, "both_strands=yes"),
        ({"run_dir": "r.bed"}, "run_dir=r.bed"),
        ({"device": "tpu"}, "device=tpu"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    model: Path, work: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, str], words: str
) -> None:
    Path("empty.fa").touch()
    Path("genes.gff3").write_text(GFF3)
    Path("empty.bed").write_text("# nothing\n")
    Path("bad.bed").write_text("chr1\t0\t10\nchr1\tten\t20\n")
    Path("past.bed").write_text("chr1\t0\t10\nchr1\t1990\t2001\n")
    Path("other.bed").write_text("chr9\t0\t10\n")
    Path("protein.fa").write_text(">chr1\n" + "ACGT" * 300 + "MEFLIPQ" * 100 + "\n")
    Path("long.fa").write_text(">chr1\n" + "ACGT" * 501 + "\n")
    for genome in ("protein.fa", "long.fa"):
        Genome(genome).close()
    Path("folder.parquet").mkdir()
    Path("truncated").mkdir()
    for part in model.iterdir():
        Path("truncated", part.name).write_bytes(part.read_bytes())
    Path("truncated/model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-100])
    before = files()
    settings = {"model": str(model), "genome": "g (1)=x.fa", "intervals": "r.bed", "output": "e.parquet", **arguments}
    capsys.readouterr()
    assert pipeline.main([f"{key}={value}" for key, value in settings.items()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"genosparse embed: error: [^\n]+\n", captured.err), captured.err
    assert words in captured.err
    assert files() == before
    assert not Path("runs").exists()


def test_contig_names_are_matched_with_one_notice(model: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.bed").write_text("1\t100\t200\n")
    assert run(model) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("genosparse embed: warning: ")
    assert captured.err.count("\n") == 1
    assert pq.read_table("e.parquet")["contig"].to_pylist() == ["1"]


def test_aliases_and_circular_contigs(model: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("names 1.txt").write_text("NC_1\tchr1\n")
    Path("over.bed").write_text("NC_1\t1990\t2010\tx\t0\t-\n")
    given = ["aliases=names 1.txt", "circular=[chr1]"]
    assert run(model, *given, intervals="over.bed") == 0
    assert capsys.readouterr().err == ""  # an alias that was asked for is no news
    (row,) = pq.read_table("e.parquet").to_pylist()
    assert (row["contig"], row["start"], row["end"], row["strand"]) == ("NC_1", 1990, 2010, "-")
    genome = Genome("g (1)=x.fa")
    turned = genome.fetch(Interval("chr1", 1990, 2000)) + genome.fetch(Interval("chr1", 0, 10))
    Path("turned.fa").write_text(f">chr1\n{turned}\n")
    expected = embed(Encoder.from_pretrained(model), Genome("turned.fa"), [Interval("chr1", 0, 20, "-")]).embedding[0]
    np.testing.assert_allclose(row["embedding"], expected, atol=1e-5)

    assert run(model, *given, intervals="over.bed") == 0
    assert "is there already" in capsys.readouterr().out
    assert run(model, "aliases=names 1.txt", "circular=true", intervals="over.bed") == 2
    assert "made from other inputs or settings" in capsys.readouterr().err
    Path("names 1.txt").write_text("NC_1\tchr1\nNC_2\tchr2\n")
    assert run(model, *given, intervals="over.bed") == 2
    assert "made from other inputs or settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["circular=[chr3]"], "contig 'chr3' is not in g (1)=x.fa"),
        (["circular=null"], "circular=None: expected names of contigs, as [chrM], or true or false"),
        (["aliases=none.txt"], "none.txt does not exist; expected a file of two names of a contig"),
        (["aliases=r.bed"], "r.bed, line 1: 6 columns"),
        ([], "interval chr1:1990-2010(+) reaches past the end of chr1"),
    ],
)
def test_mistakes_over_aliases_and_circular_contigs(
    model: Path, work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = files()
    assert run(model, *arguments, intervals="chr1:1991-2010") == 2
    assert message in capsys.readouterr().err
    assert files() == before
