"""Rows of results on disk: a journal while a run is under way, one JSON file when it is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import genosparse
from genosparse.errors import OutputError
from genosparse.outputs import atomic_output

__all__ = ["FORMAT", "Journal", "Row", "read_results", "write_results"]

FORMAT = "genosparse-benchmark-1"
Row = dict[str, Any]
"""One measurement, flat, as JSON values."""


class Journal:
    """The finished units of a run, a line of JSON each; a line that a kill cut in two is dropped.

    Args:
        path: The file; what an earlier start of the run left in it is taken up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.units: dict[str, list[Row]] = {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        for line in lines:
            if line.endswith("\n"):
                entry = json.loads(line)
                self.units[entry["unit"]] = entry["rows"]
        with atomic_output(path) as partial:
            partial.write_text("".join(line for line in lines if line.endswith("\n")), encoding="utf-8")

    def add(self, unit: str, rows: Sequence[Row]) -> None:
        """Keep the rows of a finished unit."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"unit": unit, "rows": list(rows)}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; free some space and start again") from error
        self.units[unit] = list(rows)


def write_results(
    path: Path, suite: str, machine: Mapping[str, Any], settings: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Write a run's results as one JSON file, a line per row, without date or path."""
    head = {
        "format": FORMAT,
        "suite": suite,
        "genosparse": genosparse.__version__,
        "machine": dict(machine),
        "settings": dict(settings),
    }
    opening = json.dumps(head, indent=1).removesuffix("\n}")
    text = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    with atomic_output(path) as partial:
        partial.write_text(f'{opening},\n "rows": [\n{text}\n ]\n}}\n', encoding="utf-8")


def read_results(path: Path) -> list[Row]:
    """The rows of a finished run.

    Raises:
        OutputError: The file is damaged, or of a format that this version does not know.
    """
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["format"] == FORMAT:
            return list(contents["rows"])
    except (ValueError, KeyError, TypeError):
        pass  # the same error as for another format
    raise OutputError(f"{path} is no file of results in the format {FORMAT}; pass overwrite=true or another run_dir=")
