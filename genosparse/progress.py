"""A progress bar on standard error: rate, time left, and whatever the work wants to show."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["ProgressBar", "progress"]


class ProgressBar:
    """Counts work done; shows it when there is a terminal to show it on."""

    def __init__(self, display: "Progress | None" = None, task: "TaskID | None" = None, unit: str = "") -> None:
        self._display, self._task, self._unit = display, task, unit

    def advance(self, amount: float = 1, **shown: object) -> None:
        """Add ``amount`` units of finished work; ``shown`` (``loss="1.93"``) replaces the values beside the bar."""
        if self._display is None or self._task is None:
            return
        self._display.advance(self._task, amount)
        speed = self._display.tasks[self._task].speed
        self._display.update(self._task, rate=f"{_short(speed)} {self._unit}/s" if speed and self._unit else "")
        if shown:
            text = "  ".join(f"{name} {value}" for name, value in shown.items())
            self._display.update(self._task, shown=text)


def _short(rate: float) -> str:
    """Round a rate to three digits and a unit prefix: 1234567 is '1.23M'."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rate >= size:
            return f"{rate / size:.3g}{prefix}"
    return f"{rate:.3g}"


@contextmanager
def progress(description: str, total: float | None, unit: str = "", initial: int = 0) -> Iterator[ProgressBar]:
    """Show a progress bar on standard error while the block runs; show nothing when that is not a terminal.

    Args:
        description: What is being done.
        total: Units of work in all; None when that is not known.
        unit: Name of the units, plural ("bases"); without one no rate is shown.
        initial: Units that were done before, by an earlier start of the same run; they do not count in the rate.

    Yields:
        A ``ProgressBar`` whose ``advance`` is called as work is done.
    """
    if not sys.stderr.isatty():
        yield ProgressBar()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
        console=Console(stderr=True),
        # Results may be going to standard output; rich would move them to standard error with the bar.
        redirect_stdout=sys.stdout.isatty(),
        speed_estimate_period=60,
    )
    with display:
        task = display.add_task(escape(description), total=total, completed=initial, rate="", shown="")
        yield ProgressBar(display, task, unit)
