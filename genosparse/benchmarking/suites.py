"""What every suite has, so that one pipeline runs them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from genosparse.benchmarking.results import Row

__all__ = ["Suite", "Unit"]


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a suite that is measured in one go and kept when it is finished.

    Attributes:
        name: Its own within the suite.
        weight: Its share of the work, in any measure that the suite's units share.
    """

    name: str
    weight: float = 1.0


class Suite(Protocol):
    """A benchmark: units of work that give rows."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""

    def units(self) -> Sequence[Unit]:
        """The work, in the order in which it is to be done."""

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Do one unit; ``earlier`` holds the rows of those before it."""

    def table(self, rows: Sequence[Row]) -> str:
        """The rows as text for a terminal."""

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Write what the suite makes of its rows besides results.json, and return the files."""
