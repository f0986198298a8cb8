"""``genosparse pretrain``: token cache, ways of holding out, sampling of genomes, held-out sequence that was seen."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from genosparse.pipelines import pretrain

SMALL = ["model=tiny", "data.context=64", "trainer.max_steps=2", "trainer.batch_bases=256", "threads=1"]


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two genomes that have nothing in common, and one that is half of the first."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    one, two, new = ("".join(random.choice(list("ACGTacgt"), size)) for size in (8000, 6000, 2000))
    Path("one.fa").write_text(f">a\n{one[:4000]}\n>b\n{one[4000:]}\n")
    Path("two.fa").write_text(f">a\n{two}\n")
    Path("half.fa").write_text(f">c\n{one[1000:3000]}{new}\n")
    Path("n.fa").write_text(f">n\n{'N' * 5000}\n")
    return tmp_path


def run(*arguments: str) -> int:
    return pretrain.main([*SMALL, *arguments])


def test_cache_and_memory_give_the_same_model(work: Path, cache_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a run of one goes on with the other: where tokens are is no setting of the run."""
    models = []
    for name, cache in (("default", "null"), ("folder", "some (folder)"), ("no", "one.fa/cache")):
        assert run("data.genome=one.fa", f"run_dir={name}", f"data.cache={cache}") == 0
        models.append(Path(name, "model/model.safetensors").read_bytes())
        assert ("cannot be written (Not a directory)" in capsys.readouterr().err) == (name == "no")
        assert run("data.genome=one.fa", f"run_dir={name}", "data.cache=off") == 0
        assert "is there already" in capsys.readouterr().out
    assert models[1:] == models[:1] * 2
    assert len(list((cache_home / "genosparse" / "tokens").iterdir())) == 1
    assert len(list(Path("some (folder)").iterdir())) == 1


def test_a_genome_held_out_whole(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["data.genome=[one.fa,two.fa]", "data.validation_genomes=[half.fa]", "run_dir=out"]
    assert run(*given, "data.sampling=weights", "data.weights=[1,2.5]") == 0
    captured = capsys.readouterr()
    share = (2000 - 31) / (4000 - 31)
    assert f"held out: 4,000 bases; {share:.2%} of its 32-mers are in the training sequence too" in captured.out
    assert captured.err.count("\n") == 1
    assert "warning: 50% of the held-out 32-mers are in the training sequence too" in captured.err
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["leak"] == {"kmer": 32, "share": share, "num_kmers": 3969, "sampled": 1.0}
    card = Path("out/model/README.md").read_text()
    for words in (
        "- half.fa: 4,000 bases, held out (SHA-256", f"held out: whole genomes, half.fa; {share:.2%} of its 32-mers",
        "genomes drawn by: weights 1, 2.5",
    ):  # fmt: skip
        assert words in card
    with Path("half.fa").open("a") as file:
        file.write(">more\nACGT\n")
    assert run(*given, "data.sampling=weights", "data.weights=[1,2.5]") == 2
    assert "validation_genomes was" in capsys.readouterr().err


def test_blocks_held_out(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["data.genome=one.fa", "run_dir=out", "data.validation=0.2", "data.validation_blocks=100"]
    assert run(*given, "data.validation_gap=40", "data.validation_seed=3", "data.leak_check=false") == 0
    captured = capsys.readouterr()
    assert "32-mers" not in captured.out
    assert json.loads(Path("out/metrics.json").read_text())["leak"] is None
    told = "held out: 0.2 of the contigs, in blocks of 100 bases at random places (seed 3), with 40 bases on each side"
    assert told in Path("out/model/README.md").read_text()
    assert 96 <= int(re.search(r"at (\d+) held-out sites", captured.out)[1]) <= 112  # 16 blocks of 100, a site in 16
    assert run(*given, "data.validation_gap=40", "data.validation_seed=4", "data.leak_check=false") == 2
    assert "data.validation_seed was 3, now 4" in capsys.readouterr().err


def test_a_changed_genome_does_not_resume(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same length, so that nothing else tells it."""
    assert run("data.genome=one.fa", "run_dir=out") == 0
    before = Path("out/model/model.safetensors").read_bytes()
    text = Path("one.fa").read_text()
    Path("one.fa").write_text(text.replace("A", "C"))
    assert run("data.genome=one.fa", "run_dir=out") == 2
    assert "holds a run with other settings (genome was" in capsys.readouterr().err
    assert Path("out/model/model.safetensors").read_bytes() == before
    assert run("data.genome=one.fa", "run_dir=out", "overwrite=true") == 0
    assert Path("out/model/model.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["data.genome=one.fa", "data.sampling=area"], "data.sampling=area is unknown; choose one of length, sqrt"),
        (["data.genome=one.fa", "data.weights=[1]"], "data.weights is of data.sampling=weights"),
        (["data.genome=one.fa", "data.weights=3"], "data.weights=3: expected a number for each genome"),
        (["data.genome=one.fa", "data.sampling=weights", "data.weights=[1,2]"], "data.weights has 2 and data.genome 1"),
        (["data.genome=[one.fa,n.fa]", "data.sampling=sqrt"], "in a row of n.fa had more than 10% of N"),
        (["data.genome=n.fa"], "windows in a row had more than 10% of N"),
        (["data.genome=one.fa", "data.validation_genomes=n.fa"], "data.validation_genomes=['n.fa'] holds out 5,000"),
        (["data.genome=one.fa", "data.validation_genomes=none.fa"], "none.fa"),
        (
            ["data.genome=[two.fa,one.fa]", "data.validation_genomes=[copy.fa]"],
            "copy.fa of data.validation_genomes is",
        ),
        (["data.genome=one.fa", "data.validation_genomes=two.fa", "data.validation=[a]"], "both say what is held out"),
        (["data.genome=one.fa", "data.validation_genomes=[]"], "data.validation_genomes=[] names no file"),
        (
            ["data.genome=one.fa", "data.validation_genomes=two.fa", "data.validation_blocks=10"],
            "is no fraction above 0",
        ),
        (
            ["data.genome=one.fa", "data.validation=[a]", "data.validation_blocks=10"],
            "['a'] is no fraction",
        ),
        (["data.genome=one.fa", "data.validation=[a,b]"], "names every contig"),
        (
            ["data.genome=one.fa", "data.validation_blocks=10", "data.validation=0.6"],
            "data.validation=0.6 is too much for data.validation_blocks=10",
        ),
        (["data.genome=one.fa", "data.validation_blocks=0.5"], "data.validation_blocks=0.5: expected a whole number"),
        (["data.genome=one.fa", "data.validation_blocks=10", "data.validation_gap=-1"], "data.validation_gap=-1"),
        (["data.genome=one.fa", "data.validation_gap=5"], "data.validation_gap is of data.validation_blocks"),
        (["data.genome=one.fa", "data.validation_seed=5"], "data.validation_seed is of data.validation_blocks"),
        (["data.genome=one.fa", "data.leak_check=maybe"], "data.leak_check=maybe is neither true nor false"),
        (["data.reads=r.sam", "data.sampling=sqrt"], "data.sampling is of genomes"),
        (["data.reads=r.sam", "data.validation_blocks=10"], "data.validation_blocks is of genomes"),
        (["data.reads=r.sam", "data.validation_genomes=two.fa"], "data.validation_genomes is of genomes"),
        (["data.genome=one.fa", "data.validation_genomes=two.fa", "data.alignments=x.bam"], "have no alignments"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(
    arguments: list[str], message: str, cache_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("copy.fa").write_bytes(Path("one.fa").read_bytes())
    before = {path.name for path in Path().iterdir()}
    assert run(*arguments, "run_dir=out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("genosparse pretrain: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert {path.name for path in Path().iterdir() if path.suffix != ".fai"} == before
    if "of N" not in message and "holds out 5,000" not in message:  # what only a look at the bases tells
        assert not (cache_home / "genosparse" / "tokens").exists()
