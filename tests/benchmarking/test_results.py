"""The journal after a kill, and results that are read back."""

import json
from pathlib import Path

import pytest

from genosparse.benchmarking.results import FORMAT, Journal, read_results, write_results
from genosparse.errors import OutputError


def test_journal_drops_what_a_kill_cut_in_two(tmp_path: Path) -> None:
    path = tmp_path / "finished.jsonl"
    Journal(path).add("forward 256", [{"seconds": 1.5}])
    Journal(path).add("forward 512", [{"seconds": 2.5}])
    with path.open("a") as file:
        file.write('{"unit": "forward 1024", "ro')
    journal = Journal(path)
    assert journal.units == {"forward 256": [{"seconds": 1.5}], "forward 512": [{"seconds": 2.5}]}
    journal.add("forward 1024", [])
    assert list(Journal(path).units) == ["forward 256", "forward 512", "forward 1024"]


def test_results_come_back(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rows = [{"implementation": "a", "seconds": 0.1}, {"implementation": "b", "seconds": None}]
    write_results(path, "attention", {"processor": "x"}, {"lengths": [1]}, rows)
    assert read_results(path) == rows
    contents = json.loads(path.read_text())
    assert list(contents) == ["format", "suite", "genosparse", "machine", "settings", "rows"]
    assert contents["format"] == FORMAT
    before = path.read_bytes()
    write_results(path, "attention", {"processor": "x"}, {"lengths": [1]}, rows)
    assert path.read_bytes() == before
    write_results(path, "attention", {}, {}, [])
    assert read_results(path) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "genosparse-benchmark-0", "rows": []}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(OutputError, match="overwrite=true"):
        read_results(tmp_path / "results.json")
