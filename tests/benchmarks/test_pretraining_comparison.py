"""genosparse's encoder pretrained beside ModernBERT and dilated convolutions on E. coli K-12, by processor time.

    pytest -m benchmark -s tests/benchmarks/test_pretraining_comparison.py

An hour on two cores. The figures are printed whether they hold or not; ``genosparse benchmark suite=pretraining`` gives
more of everything.
"""

from pathlib import Path

import pytest

from genosparse.attention import SparsePattern
from genosparse.benchmarking.pretraining import PretrainingSuite
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.trainable import TrainableShape

GENOME = "ecoli_k12/GCF_000005845.2_ASM584v2_genomic.fna.gz"


@pytest.mark.benchmark
@pytest.mark.realdata
def test_fewest_bits_in_the_same_time(test_data: Path, tmp_path: Path) -> None:
    pattern = SparsePattern(window=64, stride=128, num_global=1)
    suite = PretrainingSuite(
        genome=str(test_data / GENOME),
        folder=tmp_path / "runs",
        shape=TrainableShape(width=128, layers=4, heads=4, kv_heads=2, pattern=pattern, context=1024),
        rates=(1e-3, 2e-3, 4e-3),
        sweep_minutes=2,
        minutes=8,
        seeds=(0, 1),
        clock="processor",
    )
    rows: list[Row] = []
    for unit in suite.units():
        rows += suite.measure(unit, rows)
    print(f"\n{suite.table(rows)}")
    bits: dict[str, list[float]] = {}
    for row in rows:
        if row["phase"] == "run":
            assert row["status"] == "measured", row["note"]
            bits.setdefault(row["implementation"], []).append(row["bits_per_base"])
    for name in ("modernbert", "dilated"):
        assert max(bits["genosparse"]) < min(bits[name]), name
