"""A million real bases through the `long` model, on a CPU, in bounded memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from genosparse import example_data

LENGTH = 1_048_576
MOST_MEMORY = 12  # GiB


def genosparse(folder: Path, *arguments: str) -> float:
    """Run a command; return its peak memory in GiB."""
    with (folder / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "genosparse.cli", *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "stderr").read_text()
    return usage.ru_maxrss / 2**20


@pytest.mark.slow
def test_million_bases_through_the_long_model(tmp_path: Path) -> None:
    genome = str(example_data.path("ecoli536.fa.gz"))
    genosparse(
        tmp_path, "pretrain", f"data.genome={genome}", "model=long", "trainer.max_steps=0", "run_dir=long", "name=long"
    )  # fmt: skip
    (tmp_path / "million.bed").write_text(f"NC_008253.1\t0\t{LENGTH}\n")
    peak = genosparse(
        tmp_path, "embed", "model=long/model", f"genome={genome}", "intervals=million.bed", "output=out.parquet",
        "pool=65536",
    )  # fmt: skip
    print(f"peak memory {peak:.1f} GiB")
    assert peak < MOST_MEMORY
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.num_rows == LENGTH // 65_536
    embedding = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    assert np.isfinite(embedding).all()
    assert embedding.std(axis=0).min() > 0
