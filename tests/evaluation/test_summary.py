"""Rows and their intervals, against means and samples taken one by one; and what is written of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from genosparse.evaluation import Grouping, Predictions, Row, summarize, write_table
from genosparse.evaluation.summary import _DRAWN

RANDOM = np.random.default_rng(0)
BLOCKS = np.repeat(np.arange(40), 25)
EFFECTS = RANDOM.normal(size=40)  # what the sites of a block have in common
BITS = 1.9 + 0.2 * EFFECTS[BLOCKS] + 0.05 * RANDOM.normal(size=1000)
CORRECT = RANDOM.random(1000) < 0.4
HALVES = Grouping("half", ("left", "right", "nowhere"), np.where(BLOCKS < 20, 0, -1) + (BLOCKS == 30) * 2)


def rows(**settings: int) -> list[Row]:
    predictions = [Predictions("model", 512, BITS, CORRECT), Predictions("kmers", None, BITS + 0.1, ~CORRECT)]
    return summarize(predictions, [HALVES], BLOCKS, **{"replicates": 400, "seed": 1, **settings})


def test_means_of_groups_with_sites() -> None:
    found = rows()
    assert [row[:5] for row in found] == [
        ("all", "all", "model", 512, 1000),
        ("all", "all", "kmers", None, 1000),
        ("half", "left", "model", 512, 500),
        ("half", "left", "kmers", None, 500),
        ("half", "right", "model", 512, 25),
        ("half", "right", "kmers", None, 25),
    ]
    assert found[0].bits_per_base == pytest.approx(BITS.mean())
    assert found[2].bits_per_base == pytest.approx(BITS[:500].mean())
    assert found[3].accuracy == pytest.approx(1 - CORRECT[:500].mean())
    # All of its sites are in one block: nothing is known of how blocks differ.
    assert (found[4].low, found[4].high) == (None, None)


def test_intervals_are_those_of_whole_blocks() -> None:
    """A sample with replacement of the forty blocks, taken one at a time; and far wider than one of single sites."""
    random = np.random.Generator(np.random.Philox(key=np.array([1, 2**64 - 2], np.uint64)))
    samples = random.integers(40, size=(400, 40))
    means = [np.concatenate([BITS[block * 25 : block * 25 + 25] for block in sample]).mean() for sample in samples]
    row, paired, *_ = rows()
    assert (row.low, row.high) == pytest.approx(np.percentile(means, (2.5, 97.5)))
    assert (paired.low, paired.high) == pytest.approx((row.low + 0.1, row.high + 0.1))  # the same samples
    single_sites = 2 * 1.96 * BITS.std() / np.sqrt(1000)
    assert row.high - row.low > 3 * single_sites


def test_intervals_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows() == rows()
    assert rows()[0].low != rows(seed=2)[0].low
    before = rows()
    monkeypatch.setattr("genosparse.evaluation.summary._DRAWN", 40 * 7)
    assert _DRAWN > 40 * 400  # so that the first was drawn at once
    np.testing.assert_allclose([row[5:8:2] for row in rows()[:4]], [row[5:8:2] for row in before[:4]])
    assert rows(replicates=0)[0].low is None


def test_tables_hold_the_rows(tmp_path: Path) -> None:
    found = rows()
    for suffix in (".tsv", ".json", ".parquet"):
        write_table(tmp_path / f"t{suffix}", found, {"sites": 1000})
    held = json.loads((tmp_path / "t.json").read_text())
    assert [Row(**row) for row in held["rows"]] == found
    assert held["sites"] == 1000
    table = pq.read_table(tmp_path / "t.parquet")
    assert [Row(**row) for row in table.to_pylist()] == found
    assert table.schema.metadata[b"genosparse.sites"] == b"1000"
    lines = (tmp_path / "t.tsv").read_text().splitlines()
    assert lines[0].split("\t") == list(Row._fields)
    assert lines[6].split("\t") == [
        "half",
        "right",
        "kmers",
        "",
        "25",
        f"{found[5].bits_per_base:.6f}",
        "",
        "",
        f"{found[5].accuracy:.6f}",
    ]
