"""The suite training: steps in processes of their own."""

from typing import Any

import pytest

from genosparse.attention import SparsePattern
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.training import TrainingSuite
from genosparse.errors import ConfigError


def suite_with(**settings: Any) -> TrainingSuite:
    pattern = SparsePattern(window=16, stride=64)
    small = {"pattern": pattern, "lengths": (8192,), "layers": 6, "width": 64, "heads": 2, "kv_heads": 1, "repeats": 2}
    return TrainingSuite(**{**small, "dtypes": ("float32",), **settings})


def test_checkpointing_takes_less_memory_and_more_time() -> None:
    suite = suite_with()
    rows: list[Row] = []
    for unit in suite.units():
        rows += suite.measure(unit, rows)
    assert [row["implementation"] for row in rows] == ["kept activations", "checkpointing"]
    for row in rows:
        assert (row["status"], row["repeats"]) == ("measured", 2)
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert row["bases_per_second"] == pytest.approx(8192 / row["seconds"])
    kept, recomputed = (row["peak_bytes"] for row in rows)
    if kept is not None:
        assert recomputed < kept - (1 << 25)
    table = suite.table(rows)
    assert "float32: 6 layers, width 64, 2 heads (1 KV)" in table
    assert "checkpointing" in table


def test_what_gave_up_is_said_and_not_tried_again() -> None:
    suite = suite_with(lengths=(1 << 22, 1 << 23), width=512, layers=1, memory_limit=1.0)
    units = suite.units()
    rows = suite.measure(units[0], [])
    rows += suite.measure(units[1], rows)
    assert [(row["status"], row["note"]) for row in rows] == [
        ("out_of_memory", "out of memory"), ("skipped", "out of memory at 4,194,304"),
    ]  # fmt: skip
    assert "skipped: out of memory at 4,194,304" in suite.table(rows)


@pytest.mark.parametrize(
    "settings,words",
    [({"lengths": ()}, "lengths"), ({"dtypes": ("int8",)}, "int8"), ({"heads": 3}, "num_heads=3")],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        suite_with(**settings)
