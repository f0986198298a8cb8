"""``genosparse info``."""

import pytest
import torch

from genosparse.attention import SparsePattern, sparse_attention
from genosparse.attention.api import default_backend
from genosparse.cli import main


def test_says_versions_processor_and_the_backend_of_each_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    named = {}
    for line in capsys.readouterr().out.splitlines():
        name, _, value = line.partition("  ")
        named[name] = value.strip()
    assert named["torch"] == torch.__version__
    assert named["native kernels"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        backend = named[f"{str(dtype).removeprefix('torch.')} on cpu"].split(" ")[0]
        assert backend == default_backend(dtype, torch.device("cpu"))
        q = torch.randn(1, 1, 70, 64).to(dtype)
        pattern = SparsePattern(window=3)
        assert torch.equal(sparse_attention(q, q, q, pattern), sparse_attention(q, q, q, pattern, backend=backend))


def test_has_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "verbose=true"]) == 2
    assert "unknown setting 'verbose=true'" in capsys.readouterr().err
