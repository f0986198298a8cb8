"""The suite attention: its arithmetic, what it leaves out and why, its picture."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.benchmarking.attention import MODES, AttentionSuite, problem_of
from genosparse.benchmarking.machine import available_bytes
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.rivals import OURS
from genosparse.benchmarking.suites import Unit
from genosparse.errors import ConfigError
from genosparse.plotting import plot_scaling

PATTERN = SparsePattern(window=16, stride=32)


def suite_with(**settings: Any) -> AttentionSuite:
    return AttentionSuite(**{"pattern": PATTERN, "lengths": (128, 256), "heads": 2, "kv_heads": 1, **settings})


def test_units_ascend_in_length() -> None:
    suite = suite_with(lengths=(256, 128, 256), dtypes=("float32", "bfloat16"), modes=("forward",))
    names = [unit.name for unit in suite.units()]
    assert names == ["forward float32 128", "forward float32 256", "forward bfloat16 128", "forward bfloat16 256"]


@pytest.mark.parametrize("mode", MODES)
def test_rates_are_of_useful_pairs(mode: str) -> None:
    suite = suite_with(repeats=2, rivals=("sdpa", "window"), dtypes=("bfloat16",), head_dim=8)
    rows = {row["implementation"]: row for row in suite.measure(Unit(f"{mode} bfloat16 128"), [])}
    ours = [rival.name for rival in OURS["cpu"]]
    assert list(rows) == ["torch.mm", "torch.mm float32", "oneDNN float32", *ours, "sdpa (dense)", "window only"]
    product, in_float32, by_onednn, *others = rows.values()
    assert by_onednn["tflops"] == pytest.approx(2 * 2048**3 / by_onednn["seconds"] / 1e12)
    assert product["tflops"] == pytest.approx(2 * 2048**3 / product["seconds"] / 1e12)
    pairs = 2 * PATTERN.num_pairs(128)
    assert [row["pairs"] for row in others] == [*[pairs] * (len(ours) + 1), 2 * SparsePattern(window=16).num_pairs(128)]
    for row in others:
        assert row["status"] == "measured"
        assert row["repeats"] == 2
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert row["tflops"] == pytest.approx(
            {"forward": 4, "training": 14}[mode] * 8 * row["pairs"] / row["seconds"] / 1e12
        )
        assert row["of_mm"] == pytest.approx(row["tflops"] / product["tflops"])
        assert row["of_mm_float32"] == pytest.approx(row["tflops"] / in_float32["tflops"])


def earlier(**values: Any) -> Row:
    row = {"implementation": "sdpa (dense)", "mode": "forward", "dtype": "float32", "length": 128, "status": "measured"}
    return {**row, "seconds_min": 0.5, **values}


@pytest.mark.parametrize(
    "row,words",
    [
        (earlier(), "would take 2.0 s a run, over max_seconds=1"),  # twice the length, four times the time
        (earlier(seconds_min=None, status="stopped"), "stopped at 128"),
        (earlier(seconds_min=None, status="out_of_memory"), "out of memory at 128"),
        (earlier(dtype="bfloat16"), None),
        (earlier(mode="training"), None),
        (earlier(seconds_min=0.1), None),
    ],
)
def test_what_would_take_too_long(row: Row, words: str | None) -> None:
    suite = suite_with(max_seconds=1, rivals=("sdpa",))
    reason = suite._reason_to_skip(suite._rivals()[-1], problem_of(suite, 256, torch.float32), "forward", 1e12, [row])
    assert reason == words


def test_what_is_left_out_is_said() -> None:
    suite = suite_with(max_seconds=1, repeats=1, rivals=("sdpa",))
    rows = suite.measure(Unit("forward float32 256"), [earlier()])
    dense = rows[-1]
    assert (dense["status"], dense["seconds"], dense["tflops"]) == ("skipped", None, None)
    assert f"skipped: {dense['note']}" in suite.table(rows)
    assert "over max_seconds=1" in dense["note"]


def test_the_first_length_has_a_bound_too() -> None:
    """All pairs of 16 million positions, at the rate of torch.mm, are days."""
    suite = suite_with(lengths=(1 << 24,), rivals=("sdpa",))
    dense = suite._rivals()[-1]
    reason = suite._reason_to_skip(dense, problem_of(suite, 1 << 24, torch.float32), "forward", 1e12, [])
    assert reason is not None
    assert "over max_seconds=60" in reason


@pytest.mark.skipif(available_bytes(torch.device("cpu")) is None, reason="free memory is not known here")
def test_what_does_not_fit_is_not_tried() -> None:
    suite = suite_with(rivals=("window",), max_seconds=1e9)
    window, problem = suite._rivals()[-1], problem_of(suite, 1 << 40, torch.float32)
    reason = suite._reason_to_skip(window, problem, "training", 1e15, [])
    assert reason is not None
    assert "GiB" in reason


def test_refusals_are_results() -> None:
    suite = suite_with(pattern=SparsePattern(stride=16), repeats=1, rivals=("window", "flex"), heads=64, kv_heads=64)
    rows = {row["implementation"]: row for row in suite.measure(Unit("forward float32 2048"), [])}
    assert (rows["window only"]["status"], rows["window only"]["note"]) == ("skipped", "the pattern has no window")
    assert rows["flex"]["status"] == "refused"
    assert "GiB" in rows["flex"]["note"]
    assert all(rows[rival.name]["status"] == "measured" for rival in OURS["cpu"])


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"lengths": ()}, "lengths"),
        ({"dtypes": ("int8",)}, "int8 is unknown"),
        ({"dtypes": ()}, "dtypes"),
        ({"modes": ("backward",)}, "backward is unknown"),
        ({"rivals": ("natten",)}, "natten is unknown"),
        ({"heads": 3, "kv_heads": 2}, "heads=3"),
        ({"head_dim": 1000}, "head_dim=1000"),
        ({"pattern": SparsePattern()}, "every rule off"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        suite_with(**settings)


def test_curves(tmp_path: Path) -> None:
    """Whatever was left out, the picture is whole, and shows what was given."""
    curve = [(256.0, 1.0, 0.9, 1.2), (512.0, 2.0, 2.0, 2.0)]
    cases: list[dict[str, dict[str, list[tuple[float, float, float, float]]]]] = [
        {},
        {"forward": {"a": curve}},
        {"forward": {"a": curve, "b": curve[:1]}},
        {"forward": {"a": curve}, "training": {"b": curve}},
        {"forward": {"a": curve}, "training": {}, "other": {"b": curve}},
    ]
    pictures = []
    for index, panels in enumerate(cases):
        for copy in "xy":
            plot_scaling(tmp_path / f"{index}{copy}.png", panels, "length", "ms", num_columns=2)
        first, second = ((tmp_path / f"{index}{copy}.png").read_bytes() for copy in "xy")
        assert first == second
        assert first.startswith(b"\x89PNG")
        pictures.append(first)
    assert len(set(pictures)) == len(cases)
