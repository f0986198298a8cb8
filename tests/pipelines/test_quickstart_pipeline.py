"""``genosparse quickstart``: the three pipelines in a row on the bundled data."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pysam
import pytest

from genosparse.pipelines.quickstart import auroc, main


@pytest.mark.parametrize(
    "lower,higher,area",
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 3], [2, 4], 0.75),  # of four pairs, 3 against 2 alone is the wrong way round
        ([1, 1], [1, 1], 0.5),
        ([1, 2, 2], [2], (1 + 0.5 + 0.5) / 3),
    ],
)
def test_auroc_by_hand(lower: list[int], higher: list[int], area: float) -> None:
    assert auroc(np.array(lower, float), np.array(higher, float)) == pytest.approx(area)


def test_a_step_that_fails_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["model=huge"]) == 2
    captured = capfd.readouterr()
    assert captured.out.count("\n$ genosparse ") == 1
    assert captured.err.startswith("genosparse pretrain: error: model=huge is unknown")
    assert captured.err.count("\n") == 1


def test_folder_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["output=file"]) == 2
    assert "output=file" in capfd.readouterr().err


@pytest.mark.slow
def test_from_genome_to_scores_embeddings_and_pictures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "genosparse.cli", "quickstart", "output=q (1)", "model=tiny", "minutes=0.05"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ ")] == [
        "pretrain", "variant-effect", "embed",
    ]  # fmt: skip
    assert "AUROC 0." in done.stdout
    folder = tmp_path / "q (1)"
    pysam.set_verbosity(0)
    with pysam.VariantFile(str(folder / "variants.scored.vcf.gz")) as file:
        records = list(file)
    assert len(records) == 400
    assert {record.info["GS_STATUS"] for record in records} == {("scored",)}
    assert pq.read_metadata(folder / "embeddings.parquet").num_rows == 10
    for picture in ("variant_scores.png", "runs/pretrain/loss_curve.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
        assert f"q (1)/{picture}" in done.stdout
