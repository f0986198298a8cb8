"""``genosparse info``."""

import pytest
import torch

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.api import default_backend
from genosparse.attention.cpu import native
from genosparse.cli import main
from genosparse.readers import _lines


def test_says_versions_processor_and_the_backend_of_each_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    named = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, value = line.partition("  ")
        named[name] = value.strip()
    assert named["torch"] == torch.__version__
    assert named["native kernels"]
    assert named["native FASTA"] in (_lines.instruction_set(), f"none, numpy serves: {_lines.why_not()}")
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        backend = named[f"{str(dtype).removeprefix('torch.')} on cpu"].split(" ")[0]
        assert backend == default_backend(dtype, torch.device("cpu"))
        q = torch.randn(1, 1, 70, 64).to(dtype)
        pattern = SparsePattern(window=3)
        assert torch.equal(sparse_attention(q, q, q, pattern), sparse_attention(q, q, q, pattern, backend=backend))


def test_says_why_there_are_no_native_kernels(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native, "_chosen", None)
    monkeypatch.setattr(native, "_has_warned", True)
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "  none: cpu-native is not built: the package was installed without a C compiler" in out
    assert "float32 on cpu   cpu-aten\n" in out


def test_says_why_numpy_serves_fasta(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_lines, "_functions", {})
    monkeypatch.setattr(_lines, "_chosen", None)
    assert main(["info"]) == 0
    assert "  none, numpy serves: the package was installed without a C compiler" in capsys.readouterr().out


def test_has_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "verbose=true"]) == 2
    assert "unknown setting 'verbose=true'" in capsys.readouterr().err
