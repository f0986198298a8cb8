"""Where metrics go: a CSV table in the run folder, and Weights & Biases when asked."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genosparse.errors import ConfigError, OutputError
from genosparse.outputs import atomic_output

__all__ = ["LOGGERS", "CsvTable", "Logger", "open_logger"]

LOGGERS = ("csv", "wandb")


class CsvTable:
    """A table that grows by rows and can be cut back to an earlier step.

    Args:
        path: The file. Rows that an earlier start of the run wrote are kept up to ``last_step``; those after it, and
            one that a crash cut in two, go.
        columns: Names of the columns; the first is the step.
        last_step: Last step to keep.
    """

    def __init__(self, path: Path, columns: Sequence[str], *, last_step: int = 0) -> None:
        self.path, self.columns = path, list(columns)
        kept = [row for row in self.rows() if int(row[self.columns[0]]) <= last_step] if path.exists() else []
        with atomic_output(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)

    def append(self, values: Mapping[str, Any]) -> None:
        """Add a row; columns without a value stay empty."""
        try:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(values)
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {error.strerror}; free some space and start again") from error

    def sync(self) -> None:
        """Flush to disk, so that a checkpoint never knows more than its table."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, str]]:
        """All whole rows."""
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(line for line in file if line.endswith("\n")))
        if rows and list(rows[0]) != self.columns:
            raise OutputError(
                f"{self.path} has other columns than this version writes; pass overwrite=true or another run_dir="
            )
        return [row for row in rows if None not in row and None not in row.values()]


class Logger:
    """Takes metrics by step, and the summary of a run."""

    def __init__(self, table: CsvTable | None, run: Any = None) -> None:
        self.table, self._run = table, run

    def log(self, step: int, values: Mapping[str, float | int | str]) -> None:
        """Record metrics of a step."""
        if self.table is not None:
            self.table.append({self.table.columns[0]: step, **values})
        if self._run is not None:
            self._run.log(dict(values), step=step)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Record what the run ended with."""
        if self._run is not None:
            self._run.summary.update(dict(values))


@contextmanager
def open_logger(
    kind: str, *, run_dir: Path, name: str, config: Mapping[str, Any], table: CsvTable | None = None
) -> Iterator[Logger]:
    """Open the logger that the setting ``logger`` names.

    ``wandb`` follows its own environment variables (``WANDB_MODE=offline``, ``WANDB_PROJECT``, ...) and writes its
    files into ``run_dir``; a resumed run goes on under the same id.

    Args:
        kind: ``"csv"`` or ``"wandb"``.
        run_dir: The run's folder.
        name: The run's name.
        config: The run's settings, recorded by wandb.
        table: The table that ``log`` appends to, whichever the kind.

    Raises:
        ConfigError: There is no such logger, or wandb cannot start.
    """
    if kind not in LOGGERS:
        raise ConfigError(f"logger={kind} is unknown; choose one of {', '.join(LOGGERS)}")
    if kind == "csv":
        yield Logger(table)
        return
    import wandb  # only when asked for: it takes a second to import

    id_file = run_dir / "wandb-id"
    run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "genosparse"),
            name=name,
            dir=str(run_dir.absolute()),  # WANDB_SERVICE may name a server that another folder's process started
            config=dict(config),
            id=run_id,
            resume="allow",
        )
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        raise ConfigError(
            f"logger=wandb cannot start ({' '.join(str(error).split())}); set WANDB_MODE=offline, or use logger=csv"
        ) from error
    with atomic_output(id_file) as partial:
        partial.write_text(run.id + "\n", encoding="utf-8")
    failed = 1
    try:
        yield Logger(table, run)
        failed = 0
    finally:
        run.finish(exit_code=failed)
