"""Rows as TSV, Parquet or JSON: the same bytes for the same rows, at equal versions of the libraries."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genosparse.evaluation.summary import Row

__all__ = ["TABLE_FORMATS", "write_table"]

TABLE_FORMATS = (".tsv", ".parquet", ".json")
_TYPES = {"context": pa.int64(), "sites": pa.int64()}
_NUMBERS = ("bits_per_base", "low", "high", "accuracy")


def write_table(path: Path, rows: Sequence[Row], facts: Mapping[str, Any]) -> None:
    """Write rows in the format that the suffix of ``path`` names; a value that is None is empty or null.

    Args:
        path: The file; it ends in one of ``TABLE_FORMATS``.
        rows: The rows, one line or object each.
        facts: What else JSON and the metadata of Parquet tell.
    """
    if path.suffix == ".tsv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, "excel-tab", lineterminator="\n")
            writer.writerow(Row._fields)
            writer.writerows([_text(value) for value in row] for row in rows)
    elif path.suffix == ".json":
        contents = {**facts, "rows": [row._asdict() for row in rows]}
        path.write_text(json.dumps(contents, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    else:
        types = _TYPES | dict.fromkeys(_NUMBERS, pa.float64())
        schema = pa.schema(
            [pa.field(name, types.get(name, pa.string())) for name in Row._fields],
            {f"genosparse.{key}": str(value) for key, value in facts.items()},
        )
        columns = [pa.array([row[index] for row in rows], field.type) for index, field in enumerate(schema)]
        with path.open("wb") as file:
            pq.write_table(pa.table(columns, schema=schema), file)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6f}" if isinstance(value, float) else str(value)
