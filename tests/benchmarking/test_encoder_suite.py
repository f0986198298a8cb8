"""The suite encoder: what is compared, in processes that run out of memory and time, and what the table says of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from genosparse.attention import SparsePattern
from genosparse.benchmarking.encoder import EncoderSuite
from genosparse.benchmarking.encoder_rivals import ENCODERS, EncoderShape, HyenaOperator
from genosparse.benchmarking.isolated import OutOfMemoryError, TimedOutError, peak_bytes, run_isolated
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.errors import ConfigError

PATTERN = SparsePattern(window=32, stride=64, num_global=1)


def suite_with(**settings: Any) -> EncoderSuite:
    return EncoderSuite(
        **{"pattern": PATTERN, "lengths": (256, 512), "layers": (1,), "width": 32, "heads": 2, "repeats": 2, **settings}
    )


def shape_of(**values: Any) -> dict[str, Any]:
    return {"width": 32, "layers": 2, "heads": 2, "pattern": PATTERN.to_dict(), "length": 256, **values}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_mix_a_sequence(name: str, dtype: torch.dtype) -> None:
    """Hidden states of the right shape, finite, of which each depends on another position."""
    length = 1024  # BigBird turns to dense attention below
    torch.manual_seed(0)
    forward = ENCODERS[name].make(EncoderShape(32, 2, 2, PATTERN, length), dtype)
    tokens = torch.tensor([1, 2, 4, 8])[torch.randint(4, (1, length))]
    changed = tokens.clone()
    changed[0, 500] = 15 - tokens[0, 500]
    with torch.inference_mode():
        hidden, other = forward(tokens), forward(changed)
    assert hidden.shape == (1, length, 32)
    assert hidden.isfinite().all()
    differs = (hidden != other).any(dim=-1)[0]
    assert differs[501:].any()


def test_hyena_is_a_gated_convolution() -> None:
    torch.manual_seed(0)
    operator = HyenaOperator(4, 50).double()
    x = torch.randn(1, 50, 4, dtype=torch.float64)
    with torch.no_grad():
        short = operator.short(operator.in_proj(x).transpose(1, 2))[..., :50]
        gate, inner, value = short.chunk(3, dim=1)
        value = (value * inner)[0]
        kernel = operator._filter(50)
        summed = torch.stack([
            sum(kernel[:, distance] * value[:, at - distance] for distance in range(at + 1)) for at in range(50)
        ], dim=1)  # fmt: skip
        expected = operator.out_proj(((summed + value * operator.bias[:, None]) * gate[0]).T)
        out = operator(x)[0]
    assert torch.allclose(out, expected, atol=1e-5)  # its FFTs are in float32
    with pytest.raises(ConfigError, match="longer than the 50"):
        operator(torch.randn(1, 51, 4, dtype=torch.float64))


def test_the_encoders_have_much_the_same_weights() -> None:
    counts = {}
    for name in ENCODERS:
        shape = EncoderShape(256, 2, 4, PATTERN, 1024)
        forward = ENCODERS[name].make(shape, torch.float32)
        cells = (
            {cell.cell_contents for cell in forward.__closure__ or ()}
            if not isinstance(forward, torch.nn.Module)
            else {forward}
        )
        (model,) = (value for value in cells if isinstance(value, torch.nn.Module))
        counts[name] = sum(weight.numel() for label, weight in model.named_parameters() if "embedding" not in label)
    assert max(counts.values()) < 1.5 * min(counts.values())


def test_a_process_that_wants_too_much_or_takes_too_long() -> None:
    once = {"name": "dense", "shape": shape_of(width=512, length=1 << 22), "dtype": "float32"}
    with pytest.raises(OutOfMemoryError):
        run_isolated("encoder:run_once", once, max_bytes=1 << 30)
    with pytest.raises(TimedOutError, match="longer than 1 s"):
        run_isolated("encoder:run_once", once | {"shape": shape_of()}, max_seconds=1 / 1.9)
    with pytest.raises(RuntimeError, match="nonsense"):
        run_isolated("encoder:run_once", once | {"name": "nonsense"})


def test_the_peak_is_of_the_process_itself() -> None:
    held = torch.ones(1 << 28)  # 1 GiB here, which is none of the other process's
    own = peak_bytes()
    alone = run_isolated("encoder:run_once", {"name": "genosparse", "shape": shape_of(), "dtype": "float32"})
    if own is None:
        pytest.skip("the system does not tell")
    assert own > held.nbytes
    assert 1 << 26 < alone["peak_bytes"] < 1 << 30
    assert alone["seconds"] > 0


def test_rows_and_table() -> None:
    suite = suite_with(rivals=("hyena",), lengths=(256,), dtypes=("bfloat16",))
    rows: list[Row] = []
    for unit in suite.units():
        rows += suite.measure(unit, rows)
    assert [(row["implementation"], row["length"]) for row in rows] == [("genosparse", 256), ("Hyena, order 2", 256)]
    for row in rows:
        assert row["status"] == "measured"
        assert row["dtype"] == "bfloat16"
        assert 0 < row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert row["bases_per_second"] == pytest.approx(row["length"] / row["seconds"])
        assert row["peak_bytes"] is None or row["peak_bytes"] > 1 << 26
    table = suite.table(rows)
    assert "1 layer, width 32, 2 heads" in table
    assert table.count("Hyena, order 2  ") == 1


def earlier(**values: Any) -> Row:
    row = {"implementation": "dense", "layers": 1, "length": 256, "status": "measured", "note": "", "seconds_min": 0.5}
    return {**row, **values}


@pytest.mark.parametrize(
    "row,words",
    [
        (earlier(), "would take 2.0 s a run, over max_seconds=1"),  # twice the length, four times the time
        (earlier(seconds_min=0.2), None),
        (earlier(status="out_of_memory", note="out of memory"), "out of memory at 256"),
        (earlier(status="skipped", note="out of memory at 128"), "out of memory at 128"),
        (earlier(layers=4), None),
        (earlier(implementation="Longformer"), None),
    ],
)
def test_what_is_not_tried(row: Row, words: str | None) -> None:
    suite = suite_with(max_seconds=1)
    assert suite._reason_to_skip(ENCODERS["dense"], shape_of(layers=1, length=512), [row]) == words


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    rows = suite_with(rivals=("bigbird",), lengths=(256,), dtypes=("float32",)).measure(Unit("1 layers 256"), [])
    assert [row["status"] for row in rows] == ["measured", "skipped"]
    assert rows[1]["note"] == "transformers is not installed; pip install 'genosparse[benchmark]'"


def test_what_gave_up_is_in_the_table_and_the_picture(tmp_path: Path) -> None:
    suite = suite_with(memory_limit=1.0, width=512, lengths=(1 << 22,), rivals=(), max_seconds=5, dtypes=("float32",))
    rows = suite.measure(suite.units()[0], [])
    assert [(row["status"], row["seconds"], row["peak_bytes"]) for row in rows] == [("out_of_memory", None, None)]
    assert "out of memory: out of memory" in suite.table(rows)
    assert [path.name for path in suite.write(tmp_path, rows)] == ["encoder.png", "encoder-memory.png"]


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"lengths": ()}, "lengths"),
        ({"layers": ()}, "layers"),
        ({"rivals": ("mamba",)}, "mamba is unknown"),
        ({"dtypes": ("float16",)}, "float16 is unknown"),
        ({"pattern": SparsePattern(stride=8)}, "pattern.window"),
        ({"heads": 3}, "heads=3"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        suite_with(**settings)
