"""The suite variant-effect: the same scores by both ways, or none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genosparse import Encoder, EncoderConfig
from genosparse.attention import SparsePattern
from genosparse.benchmarking import variant_effect
from genosparse.benchmarking.variant_effect import VariantEffectSuite
from genosparse.errors import ConfigError

PATTERN = SparsePattern(window=8, stride=16)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 400))
    path = tmp_path / "genome.fa"
    path.write_text(f">short\nACGT\n>long\n{bases}\n")
    return path


def suite_with(fasta: Path, **settings: Any) -> VariantEffectSuite:
    small = {"lengths": (64,), "layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "sites": 5, "repeats": 2}
    return VariantEffectSuite(**{"genome": str(fasta), "model": None, "pattern": PATTERN, **small, **settings})


def test_rows(fasta: Path, tmp_path: Path) -> None:
    suite = suite_with(fasta, lengths=(128, 64))
    rows = [row for unit in suite.units() for row in suite.measure(unit, [])]
    assert [(row["context"], row["implementation"]) for row in rows] == [
        (64, "genosparse"), (64, "naive loop"), (128, "genosparse"), (128, "naive loop"),
    ]  # fmt: skip
    for row in rows:
        assert row["variants"] == 15
        assert row["variants_per_second"] == pytest.approx(15 / row["seconds"])
        assert 0 <= row["largest_difference"] <= 1e-4
    assert rows[1]["over_ours"] == pytest.approx(rows[1]["seconds"] / rows[0]["seconds"])
    assert "naive loop" in suite.table(rows)
    assert suite.write(tmp_path, rows) == [tmp_path / "variant-effect.png"]


def test_scores_that_differ_are_no_result(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    naive = variant_effect._score_naively
    monkeypatch.setattr(variant_effect, "_score_naively", lambda *arguments: naive(*arguments) + np.float32(1e-3))
    suite = suite_with(fasta)
    with pytest.raises(AssertionError, match=r"differ by 0\.001 nats"):
        suite.measure(suite.units()[0], [])


def test_a_model_of_ones_own(fasta: Path, tmp_path: Path) -> None:
    config = EncoderConfig(d_model=16, num_layers=1, num_heads=2, patterns=(PATTERN,), max_length=100)
    Encoder(config).save_pretrained(tmp_path / "model")
    suite = suite_with(fasta, model=str(tmp_path / "model"))
    assert suite.settings["model"] == Encoder.from_pretrained(tmp_path / "model").fingerprint()
    assert "width" not in suite.settings
    assert len(suite.measure(suite.units()[0], [])) == 2
    with pytest.raises(ConfigError, match="longer than the model's max_length of 100"):
        suite_with(fasta, model=str(tmp_path / "model"), lengths=(101,))


def test_settings_that_cannot_be(fasta: Path) -> None:
    with pytest.raises(ConfigError, match="lengths"):
        suite_with(fasta, lengths=())
    with pytest.raises(ConfigError, match="sites=401"):
        suite_with(fasta, sites=401)
    unknown = fasta.with_name("unknown.fa")
    unknown.write_text(f">long\n{'N' * 400}\n")
    suite = suite_with(unknown)
    with pytest.raises(ConfigError, match="give another seed="):
        suite.measure(suite.units()[0], [])
