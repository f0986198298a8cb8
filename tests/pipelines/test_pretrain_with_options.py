"""Options of the architecture from the command line: a model with all of them, its card, scores and embeddings."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import genosparse as gs
from genosparse.pipelines import embed, pretrain, variant_effect

SMALL = [
    "data.genome=ref.fa", "data.context=64", "trainer.max_steps=6", "trainer.batch_bases=512", "trainer.log_every=1",
    "threads=1", "precision=float32", "run_dir=out",
]  # fmt: skip
OPTIONS = ["model.convolution=5", "model.strands=shared", "model.num_kv_heads=2", "model.head=tied"]
EVERY_THIRD = """
defaults: [tiny, _self_]
num_layers: 4
patterns:
  - &windowed {window: 8, num_global: 1}
  - *windowed
  - {window: 8, stride: 16, stagger: true, num_global: 1}
"""


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    bases = np.random.default_rng(0).choice(list("ACGT"), 3001)
    Path("ref.fa").write_text(f">one\n{''.join(bases)}\n")
    return tmp_path


def test_from_a_genome_to_scores_and_embeddings_that_know_no_strand(work: Path) -> None:
    Path("my/model").mkdir(parents=True)
    Path("my/model/sparser.yaml").write_text(EVERY_THIRD)
    assert pretrain.main([*SMALL, *OPTIONS, "model=sparser", "--config-dir", "my"]) == 0
    config = gs.Encoder.from_pretrained("out/model").config
    assert (config.convolution, config.strands, config.head) == (5, "shared", "tied")
    columns = [(config.pattern_of(layer).stride, config.pattern_of(layer).stagger) for layer in range(4)]
    assert columns == [(None, False), (None, False), (16, True), (None, False)]
    card = Path("out/model/README.md").read_text()
    for told in ("motifs of 5 bases", "reads both strands", "token embedding's vectors", "num_global=1; then window=8"):
        assert told in card
    metrics = json.loads(Path("out/metrics.json").read_text())["model"]
    assert metrics["bits_per_base_both_strands"] == pytest.approx(metrics["bits_per_base"], abs=1e-5)

    shared = ["model=out/model", "genome=ref.fa", "threads=1"]
    Path("r.bed").write_text("one\t20\t81\ta\t0\t+\none\t20\t81\tb\t0\t-\n")
    assert embed.main([*shared, "intervals=r.bed", "output=e.parquet"]) == 0
    forward, reverse = np.array(pq.read_table("e.parquet")["embedding"].to_pylist())
    np.testing.assert_allclose(reverse, np.roll(forward, 16), atol=1e-5)
    assert np.abs(reverse - forward).max() > 0.1
    ref = gs.Genome("ref.fa").fetch(gs.Interval("one", 140, 141))
    alt = "ACGT".replace(ref, "")[0]
    Path("v.vcf").write_text(
        f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\none\t141\t.\t{ref}\t{alt}\t.\t.\t.\n"
    )
    assert variant_effect.main([*shared, "variants=v.vcf", "output=v.parquet", "context=64"]) == 0
    (score,) = pq.read_table("v.parquet")["GS_LLR"].to_pylist()
    tokens = torch.from_numpy(gs.Genome("ref.fa").tokens(gs.Interval("one", 108, 172)).astype(np.int64))[None]
    tokens[0, 32] = 16
    with torch.inference_mode():
        logits = gs.Encoder.from_pretrained("out/model").base_logits(tokens)[0, 32]
    assert score == pytest.approx(float(logits["ACGT".index(alt)] - logits["ACGT".index(ref)]), abs=1e-5)  # one strand


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["model.strands=shared"], "num_kv_heads=1 cannot be shared between two strands"),
        (["model.patterns=[{window:8,num_global:1},{window:8,stride:16}]"], "1, 0 global positions"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    work: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main([*SMALL, "model=tiny", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("out").exists()
