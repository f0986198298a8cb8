"""The table of compiled kernels: settings, rows and their rendering. The pipeline's test compiles for real."""

from typing import Any

import pytest

from genosparse.attention.triton.configurations import Configuration
from genosparse.benchmarking.kernels import KernelSuite, kernel_row, kernels_as_markdown
from genosparse.benchmarking.results import Row
from genosparse.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def row_of(variant: str = "plain", **changes: Any) -> Row:
    compiled = pytest.importorskip("genosparse.attention.triton.ahead_of_time").CompiledKernel
    values = {
        "kernel": "forward", "arch": 90, "head_dim": 64, "dtype": "bf16", "variant": variant,
        "configuration": Configuration(128, 64, 4, 3), "registers": 197, "spilled_bytes": 0, "shared_bytes": 49_152,
        "instructions": {"matrix": 32, "async_load": 48, "exp2": 136}, "ptx": "",
    }  # fmt: skip
    return kernel_row(compiled(**{**values, **changes}))


def test_row() -> None:
    row = row_of()
    # 1,152 keys of the window and a column in 1,024: 5.84e11 FLOPs at a million positions, 989e12 a second.
    assert row["seconds_1048576"] == pytest.approx(0.59e-3, rel=0.01)
    # A million queries see 1,024 columns, those of 131,072 positions 128.
    assert row["seconds_131072"] == pytest.approx(row["seconds_1048576"] / 8 * (1152 + 128) / (1152 + 1024), rel=0.01)
    assert row["bound"] == "products"
    assert (row["block_m"], row["instructions_exp2"]) == (128, 136)
    assert row_of(dtype="fp32")["seconds_1048576"] > 10 * row["seconds_1048576"]
    other = row_of("causal")
    assert (other["seconds_131072"], other["bound"]) == (None, None)


def test_tables() -> None:
    rows = [row_of(), row_of("causal", spilled_bytes=8)]
    heading, rules, first, second = kernels_as_markdown(rows).splitlines()
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    titles = [title.strip() for title in heading.strip("|").split("|")]
    shown = dict(zip(titles, cells, strict=True))
    assert shown["kernel"] == "forward"
    assert shown["tile"] == "128x64"
    assert shown["shared KB"] == "48"
    assert shown["async 16 B"] == "48"
    assert shown["ms at 1M"] == "0.591"
    assert shown["bound by"] == "products"
    assert rules.count("---:") == len(titles) - 4  # words to the left, numbers to the right
    assert " 8 " in second
    text = KernelSuite().table(rows)
    assert text.splitlines()[0].split() == " ".join(titles).split()
    assert "no kernel reaches its peaks" in text


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"archs": (70,)}, "archs: 70"),
        ({"archs": ()}, "archs"),
        ({"head_dims": (48,)}, "head_dims: 48"),
        ({"dtypes": ("float64",)}, "float64"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        KernelSuite(**settings)


def test_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ConfigError, match="TRITON_INTERPRET"):
        KernelSuite()


def test_units() -> None:
    suite = KernelSuite(archs=(90, 80), head_dims=(64,), dtypes=("bfloat16", "float32"))
    assert [unit.name for unit in suite.units()] == [
        "90 bfloat16 64", "90 float32 64", "80 bfloat16 64", "80 float32 64",
    ]  # fmt: skip
