"""``genosparse evaluate`` on a model that ``genosparse pretrain`` made: its figures, resuming, and mistakes."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from genosparse.baselines import kmer_baselines
from genosparse.evaluation import TestedSequences
from genosparse.example_data import path as example
from genosparse.intervals import Interval
from genosparse.pipelines import evaluate as pipeline
from genosparse.pipelines import pretrain
from genosparse.pretraining.evaluation import HeldOut
from genosparse.readers import Genome

LENGTH, CUT = 40_000, 36_000
HELD_OUT = f"ecoli\t{CUT}\t{LENGTH}\n"
GFF = (
    "##gff-version 3\n"
    "ecoli\t.\tCDS\t36001\t37200\t.\t+\t0\tID=a\n"
    "ecoli\t.\tCDS\t37501\t38800\t.\t-\t1\tID=b\n"
    "ecoli\t.\tpseudogene\t39001\t39400\t.\t-\t.\tID=c\n"
)


@pytest.fixture(scope="module", autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real sequence, partly in lower case, with its held-out tenth, and a model of a few steps on the rest."""
    folder = tmp_path_factory.mktemp("evaluate")
    with Genome(example("ecoli536.fa.gz")) as genome:
        bases = genome.fetch(Interval(next(iter(genome.contigs)), 0, LENGTH))
    bases = bases[:38_000] + bases[38_000:39_500].lower() + bases[39_500:]
    (folder / "ref.fa").write_text(f">ecoli\n{bases}\n")
    (folder / "copy.fa").write_text(f">other\n{bases.upper()}\n")
    (folder / "held.bed").write_text(HELD_OUT)
    (folder / "a.gff3").write_text(GFF)
    settings = {
        "data.genome": folder / "ref.fa", "data.context": 256, "model": "tiny", "trainer.max_steps": 12,
        "trainer.batch_bases": 2048, "run_dir": folder / "runs" / "small", "precision": "float32", "threads": 1,
    }  # fmt: skip
    assert pretrain.main([f"{key}={value}" for key, value in settings.items()]) == 0
    return folder


@pytest.fixture
def work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("ref.fa", "ref.fa.fai", "copy.fa", "held.bed", "a.gff3", "runs"):
        if (folder / name).exists():
            Path(name).symlink_to(folder / name)
    return folder


def run(**settings: Any) -> int:
    given = {
        "model": "runs/small/model", "genome": "ref.fa", "intervals": "held.bed", "annotation": "a.gff3",
        "output": "bits.json", "run_dir": "run", "threads": 1, "block_bases": 500, "bootstraps": 100, **settings,
    }  # fmt: skip
    return pipeline.main([f"{key}={value}" for key, value in given.items() if value is not None])


def rows_of(path: str) -> list[dict[str, Any]]:
    return json.loads(Path(path).read_text())["rows"]


def overall(path: str) -> dict[str, float]:
    return {row["predictor"]: row["bits_per_base"] for row in rows_of(path) if row["grouping"] == "all"}


def files() -> list[str]:
    return sorted(os.path.join(top, name) for top, _, names in os.walk(".") for name in names)


def test_figures_are_those_of_pretraining_and_groups_add_up(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("genosparse evaluate: warning: the model was trained on this genome (held out: the ")
    assert captured.err.count("\n") == 1
    assert captured.out.startswith("bits.json: bits per base at 250 sites of 4,000 bases, context 256, ")
    metrics = json.loads(Path("runs/small/metrics.json").read_text())
    found = overall("bits.json")
    assert found["encoder_one_strand"] == pytest.approx(metrics["model"]["bits_per_base"], abs=1e-6)
    assert found["encoder_both_strands"] == pytest.approx(metrics["model"]["bits_per_base_both_strands"], abs=1e-6)
    for name in ("best_kmer", "interpolated"):
        assert found[name] == pytest.approx(metrics["baselines_bits_per_base"][name], abs=1e-9)
    rows = rows_of("bits.json")
    # Codon positions are those of the CDS; the other groupings are of all sites.
    whole = {row["predictor"]: row for row in rows if row["grouping"] == "all"}
    coding = {row["predictor"]: row for row in rows if row["group"] == "CDS"}
    for grouping, wholes in (("soft_mask", whole), ("feature", whole), ("codon_position", coding)):
        for predictor, expected in wholes.items():
            parts = [row for row in rows if (row["grouping"], row["predictor"]) == (grouping, predictor)]
            assert len(parts) > 1
            assert sum(row["sites"] for row in parts) == expected["sites"]
            for value in ("bits_per_base", "accuracy"):
                mean = sum(row["sites"] * row[value] for row in parts) / expected["sites"]
                assert mean == pytest.approx(expected[value])
    assert {row["group"] for row in rows if row["grouping"] == "feature"} == {"CDS", "other", "intergenic"}
    assert all(row["low"] <= row["bits_per_base"] <= row["high"] for row in rows if row["group"] != "other")
    assert {row["low"] for row in rows if row["group"] == "other"} == {None}  # within one block
    assert {path for path in files() if path.startswith("./run/")} == {
        "./run/groups.png",
        "./run/results.json",
        "./run/run.json",
    }


def test_baselines_are_counted_on_what_is_not_tested(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under whatever name and in whatever file: a copy of the tested genome counts for its other part alone."""
    with Genome("ref.fa") as genome:
        tested = TestedSequences(genome, [Interval("ecoli", CUT, LENGTH)], context=256)
        contexts = HeldOut(tested, seed=7).contexts
        rest = genome.tokens(Interval("ecoli", 0, CUT))
    expected = kmer_baselines([rest], contexts)
    for baseline in (None, "copy.fa", "ref.fa"):
        assert run(baseline_genome=baseline, overwrite="true", seed=7, both_strands="false", bootstraps=0) == 0
        found = overall("bits.json")
        assert set(found) == {"encoder_one_strand", "best_kmer", "interpolated"}
        for name in ("best_kmer", "interpolated"):
            assert found[name] == pytest.approx(expected[name], abs=1e-9)
    capsys.readouterr()
    assert run(intervals="all", baseline_genome="copy.fa", output="all.json", run_dir="all") == 2
    assert "copy.fa has the tested sequence alone" in capsys.readouterr().err
    assert run(intervals="all", output="all.json", run_dir="all", max_sites=200, annotation=None) == 0
    assert "no k-mer baselines: all of the genome is tested" in capsys.readouterr().out
    assert set(overall("all.json")) == {"encoder_one_strand", "encoder_both_strands"}
    assert rows_of("all.json")[0]["sites"] <= 200


def test_same_sites_with_every_context(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(contexts="[32,128]", output="bits.parquet") == 0
    rows = [row for row in pq.read_table("bits.parquet").to_pylist() if row["grouping"] == "all"]
    assert [(row["predictor"], row["context"]) for row in rows] == [
        *(("encoder_both_strands", context) for context in (32, 128, 256)),
        *(("encoder_one_strand", context) for context in (32, 128, 256)),
        ("best_kmer", None),
        ("interpolated", None),
    ]
    assert {row["sites"] for row in rows} == {250}
    assert len({row["bits_per_base"] for row in rows}) == len(rows)
    assert Path("run/contexts.png").read_bytes().startswith(b"\x89PNG")
    assert "encoder_both_strands with 32 bases of context" in capsys.readouterr().out
    assert run(output="whole.json", run_dir="whole") == 0
    alone = {row["predictor"]: row["bits_per_base"] for row in rows if row["context"] in (256, None)}
    assert overall("whole.json") == pytest.approx(alone)


def test_context_is_no_longer_than_what_is_tested(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.bed").write_text("".join(f"ecoli\t{start}\t{start + 100}\n" for start in range(CUT, LENGTH, 500)))
    Path("mixed.bed").write_text(Path("short.bed").read_text() + "ecoli\t38100\t38500\n")
    assert run(intervals="short.bed", annotation=None) == 0
    assert "windows have 100 bases, as no stretch has context=256" in capsys.readouterr().err
    assert {row["context"] for row in rows_of("bits.json")} == {100, None}
    assert run(intervals="mixed.bed", annotation=None, overwrite="true") == 0
    assert "of the sites are in stretches shorter than the context of 256 bases" in capsys.readouterr().err


def test_stopped_and_resumed_gives_the_same_bytes(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"batch_bases": 256, "output": "bits.tsv"}  # sixteen windows in one part, of which there is one
    monkeypatch.setattr(pipeline, "_BATCHES_PER_PART", 5)
    assert run(**settings) == 0
    whole = Path("bits.tsv").read_bytes()
    Path("bits.tsv").unlink()
    real, calls = pipeline._measure, []

    def measure(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(pipeline, "_measure", measure)
    assert run(**settings, overwrite="true") == 130
    assert not Path("bits.tsv").exists()
    assert len(list(Path("run/parts").iterdir())) == 2
    assert run(**settings, seed=1) == 2
    assert "seed was 0, now 1" in capsys.readouterr().err
    del calls[:]
    calls += [(), (), ()]
    assert run(**settings) == 0
    assert len(calls) == 3 + 2
    assert Path("bits.tsv").read_bytes() == whole

    capsys.readouterr()
    assert run(**settings) == 0
    assert capsys.readouterr() == (
        "bits.tsv is there already, made by the same command; overwrite=true makes it anew\n",
        "",
    )
    assert run(**settings, seed=1) == 2
    assert "made from other inputs or settings" in capsys.readouterr().err
    Path("bits.tsv").unlink()  # made again of what the run folder has
    assert run(**settings) == 0
    assert len(calls) == 3 + 2
    assert Path("bits.tsv").read_bytes() == whole
    Path("bits.tsv").write_text("mine")
    assert run(**settings) == 2
    assert Path("bits.tsv").read_text() == "mine"


def test_intervals_over_the_origin_of_a_circular_contig(work: Path) -> None:
    Path("over.bed").write_text("ecoli\t39000\t41000\n")
    Path("over.gff3").write_text("ecoli\t.\tCDS\t39001\t40900\t.\t-\t0\tID=a\n")
    assert run(intervals="over.bed", annotation="over.gff3", circular="[ecoli]") == 0
    sites = {(row["grouping"], row["group"]): row["sites"] for row in rows_of("bits.json")}
    assert sites["all", "all"] == 125
    assert 118 <= sites["feature", "CDS"] <= 120  # of sites at 16 bases, without the last hundred bases
    parts = [sites["codon_position", number] for number in "123"]
    assert sum(parts) == sites["feature", "CDS"]


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"model": "missing"}, "missing"),
        ({"genome": "missing.fa"}, "missing.fa"),
        ({"intervals": "empty.bed"}, "empty.bed has no intervals"),
        ({"intervals": "chr9:1-100"}, "'chr9' is not in"),
        ({"intervals": "ecoli:39,000-50,000"}, "reaches past the end of ecoli"),
        ({"genome": "n.fa", "intervals": "all"}, "no site to measure at"),
        ({"annotation": "other.gff3"}, "no contig of other.gff3 ('chr7') is in"),
        ({"annotation": "longer.gff3"}, "reaches past the end of ecoli"),
        ({"annotation": "missing.gff3"}, "missing.gff3"),
        ({"annotation": "ref.fa"}, "ref.fa"),
        ({"repeats": "held.bed"}, "has no name"),
        ({"repeats": "missing.bed"}, "missing.bed"),
        ({"baseline_genome": "missing.fa"}, "missing.fa"),
        ({"context": "1048577"}, "context=1048577 is too large"),
        ({"contexts": "512"}, "contexts=512 is no list"),
        ({"contexts": "[0]"}, "contexts[0]=0 is too small"),
        ({"site_spacing": "8"}, "site_spacing=8 is too small"),
        ({"max_sites": "0"}, "max_sites=0"),
        ({"block_bases": "0"}, "block_bases=0"),
        ({"bootstraps": "-1"}, "bootstraps=-1"),
        ({"batch_bases": "x"}, "batch_bases=x"),
        ({"task": "variants"}, "task=variants is unknown; choose one of masked"),
        ({"output": "bits.csv"}, ".tsv, .parquet, .json"),
        ({"output": "missing/bits.tsv"}, "missing"),
        ({"both_strands": "yes"}, "both_strands=yes"),
        ({"run_dir": "ref.fa"}, "run_dir=ref.fa"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str], words: str
) -> None:
    Path("empty.bed").write_text("# nothing\n")
    Path("n.fa").write_text(f">ecoli\n{'N' * 40_000}\n")
    Path("other.gff3").write_text("chr7\t.\tCDS\t1\t90\t.\t+\t0\tID=a\n")
    Path("longer.gff3").write_text("ecoli\t.\tCDS\t39001\t70000\t.\t+\t0\tID=a\n")
    Genome("n.fa").close()
    before = files()
    assert run(**settings) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"genosparse evaluate: error: [^\n]+\n", captured.err), captured.err
    assert words in captured.err
    assert files() == before
