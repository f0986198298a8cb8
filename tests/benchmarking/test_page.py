"""The README's section on performance: made of results, misses shown as misses, and never another than they say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from genosparse.benchmarking.page import BEGIN, END, _main, performance_section, replace_section
from genosparse.benchmarking.results import FORMAT, Row
from genosparse.errors import OutputError

ROOT = Path(__file__).parents[2]
PERFORMANCE = ROOT / "docs" / "performance"


def write_results(folder: Path, suite: str, rows: list[Row], **settings: Any) -> None:
    machine = {"processor": "A Processor", "threads": 2, "torch": "2.13.0"}
    folder.mkdir(exist_ok=True)
    (folder / f"{suite}.json").write_text(
        json.dumps({"format": FORMAT, "machine": machine, "settings": settings, "rows": rows})
    )


def attention(mode: str, dtype: str, seconds: float, of_mm: float) -> Row:
    return {
        "implementation": "cpu-native", "mode": mode, "dtype": dtype, "length": 1000, "seconds": seconds, "tflops": 0.1,
        "of_mm": of_mm,
    }  # fmt: skip


def encoder(name: str, length: int, seconds: float | None, **values: Any) -> Row:
    return {
        "implementation": name, "layers": 1, "length": length, "seconds": seconds, "dtype": "bfloat16", "note": "",
        "status": "measured", "peak_bytes": 1 << 30, **values,
    }  # fmt: skip


def aims(section: str) -> dict[str, list[str]]:
    lines = [line[1:-1].split("|") for line in section.splitlines() if line.startswith("| ")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_aims_are_held_or_missed(tmp_path: Path) -> None:
    # Training of 1 s with a forward pass of 0.2 s: ten of fourteen FLOPs in 0.8 s.
    rows = [attention("forward", "bfloat16", 0.2, 0.6), attention("training", "bfloat16", 1.0, 0.28)]
    write_results(tmp_path, "attention", rows)
    of_encoders = [
        encoder("genosparse", 16_384, 1.0),
        encoder("Longformer", 16_384, 7.9),
        encoder("BigBird", 16_384, None, status="out_of_memory", note="out of memory"),
        encoder("genosparse", 1_048_576, 2.0, peak_bytes=1 << 30),
        encoder("Hyena, order 2", 1_048_576, 9.0, peak_bytes=3 << 30),
    ]
    write_results(tmp_path, "encoder", of_encoders)
    steps = [
        {
            "implementation": "kept activations",
            "dtype": "float32",
            "length": 131_072,
            "seconds": None,
            "peak_bytes": None,
        },
        {
            "implementation": "checkpointing",
            "dtype": "float32",
            "length": 131_072,
            "seconds": 4.0,
            "peak_bytes": 13 << 30,
        },
    ]
    write_results(tmp_path, "training", steps, layers=7)
    section = performance_section(tmp_path)
    found = aims(section)
    assert found["attention forward, bfloat16, over torch.mm's rate"] == ["at least 0.5", "0.600", ""]
    assert found["attention backward, bfloat16, over torch.mm's rate"] == ["at least 0.35", "0.250", "**missed**"]
    assert found["attention forward, float32, over torch.mm's rate"] == ["at least 1.2", "not measured", ""]
    assert found["times faster than Longformer at 16,384 bp"] == ["at least 8", "7.90", "**missed**"]
    assert found["times faster than BigBird at 16,384 bp"] == ["at least 12", "not measured", ""]
    assert found["times faster than long convolutions at 1,048,576 bp"] == ["at least 4", "4.50", ""]
    assert found["times less memory than long convolutions at 1,048,576 bp"] == ["at least 2", "3.00", ""]
    assert found["FASTA to tokens over pysam's bare fetch"] == ["at most 1.3", "not measured", ""]
    assert found["GiB of a training step at 131,072 bp, with checkpointing"] == ["at most 12", "13.0", "**missed**"]
    assert "of 7 such layers" in section
    assert "| checkpointing | float32 | 131,072 | 4.00 | 32,800 | 13 |" in section
    assert "kept activations" not in section
    assert "A Processor, 2 threads" in section
    assert "out of memory" in section


def test_the_section_replaces_the_one_before(tmp_path: Path) -> None:
    page = f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nrest\n"
    once = replace_section(page, "new")
    assert once == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nrest\n"
    assert replace_section(once, "new") == once
    with pytest.raises(OutputError, match="lacks the marks"):
        replace_section("# Title\n", "new")
    (tmp_path / "page.md").write_text(page)
    write_results(tmp_path / "results", "attention", [attention("forward", "float32", 1.0, 1.3)])
    assert _main([str(tmp_path / "results"), str(tmp_path / "page.md")]) == 0
    assert "at least 1.2 | 1.30" in (tmp_path / "page.md").read_text()
    assert _main([]) == 2


@pytest.mark.skipif(not PERFORMANCE.exists(), reason="not a checkout")
def test_the_readme_says_what_the_results_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "README.md").read_text()
    assert page == replace_section(page, performance_section(Path("docs/performance")))
    for picture in ("encoder.png", "encoder-memory.png"):
        assert (PERFORMANCE / picture).read_bytes().startswith(b"\x89PNG")
    # Another figure would show.
    shutil.copytree(PERFORMANCE, tmp_path / "docs")
    contents = json.loads((tmp_path / "docs" / "encoder.json").read_text())
    for row in contents["rows"]:
        row["seconds"] = row["seconds"] and 3 * row["seconds"]
    (tmp_path / "docs" / "encoder.json").write_text(json.dumps(contents))
    assert aims(performance_section(tmp_path / "docs")) != aims(page)


def test_pretraining_has_its_table_once_there_are_results(tmp_path: Path) -> None:
    values = {
        "dtype": "bfloat16", "learning_rate": 0.004, "seed": 0, "parameters": 742_000, "status": "measured",
        "steps": 500, "bases_per_second": 12_345, "bits_per_base_both_strands": 1.81,
    }  # fmt: skip
    rows: list[Row] = [
        {"phase": "baselines", "implementation": "interpolated", "bits_per_base": 1.82},
        {"phase": "run", "implementation": "modernbert", "bits_per_base": 1.9, **values},
        {"phase": "run", "implementation": "genosparse", "bits_per_base": 1.81234, **values},
    ]
    assert "both strands" not in performance_section(tmp_path)
    write_results(tmp_path, "pretraining", rows)
    lines = [line for line in performance_section(tmp_path).splitlines() if "1.8" in line or "1.9" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["genosparse", "ModernBERT", "interpolated k-mers"]
    assert "742,000 | bfloat16 | 0.004 | 500 | 12,300 | 1.8123 |" in lines[0]
