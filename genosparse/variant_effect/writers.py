"""Scored variants as VCF, BCF, TSV and Parquet.

From VCF to VCF every column is copied as text and INFO alone is added to: a parser would round QUAL and AF, and refuse
what the header does not declare.
"""

import math
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import pysam
import pysam.bcftools

from genosparse.errors import ConfigError, OutputError
from genosparse.intervals import position_1based
from genosparse.outputs import atomic_output
from genosparse.variant_effect.records import Record
from genosparse.variant_effect.registry import SCORES, ScoreSet
from genosparse.variant_effect.statuses import Status

__all__ = ["Provenance", "Row", "VariantWriter", "annotate", "open_writer", "output_format", "scored_header"]

STATUS_FIELD = "GS_STATUS"
_SUFFIXES = {
    ".vcf.gz": "vcf.gz",
    ".vcf.bgz": "vcf.gz",
    ".vcf": "vcf",
    ".bcf": "bcf",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_ROWS_PER_GROUP = 65_536  # a constant: the grouping of rows is part of a Parquet file's bytes


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made the scores.

    Attributes:
        version: genosparse's version.
        model: Fingerprint of the model's config and weights.
        context: Bases of context per site.
        scores: What was scored.
    """

    version: str
    model: str
    context: int
    scores: ScoreSet

    def header_line(self) -> str:
        """The VCF header line; it holds nothing that differs between two runs with equal results."""
        made_by = f"Version={self.version},Model={self.model},Scores={self.scores},Context={self.context}"
        return f"##genosparse=<ID=variant_effect,{made_by}>"


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one ALT: its status, and the score of each name (NaN where there is none)."""

    status: str
    scores: Mapping[str, float]


class VariantWriter(Protocol):
    """Takes the input's records in order."""

    def write(self, record: Record, rows: Sequence[Row]) -> None:
        """Write one record, with one row per ALT."""


def output_format(path: str) -> str:
    """Return ``vcf``, ``vcf.gz``, ``bcf``, ``tsv`` or ``parquet`` by a path's suffix; ``-`` is VCF text.

    Raises:
        ConfigError: The suffix is none of those.
    """
    if path == "-":
        return "vcf"
    for suffix, kind in _SUFFIXES.items():
        if path.lower().endswith(suffix):
            return kind
    raise ConfigError(f"output={path}: the suffix names no format; expected {', '.join(_SUFFIXES)}, or - for VCF text")


@contextmanager
def open_writer(path: str, header_lines: Sequence[str], provenance: Provenance) -> Iterator[VariantWriter]:
    """Open a writer whose file gets its name only when everything was written.

    Args:
        path: The output, format by suffix; ``-`` is VCF text on standard output.
        header_lines: The input's VCF header, ``#CHROM`` line last.
        provenance: What made the scores.

    Raises:
        ConfigError: The suffix names no format.
        OutputError: The output cannot be written, or BCF cannot hold what the VCF text says.
    """
    kind = output_format(path)
    header = scored_header(header_lines, provenance)
    if path == "-":
        yield _VcfWriter(sys.stdout.buffer, header, provenance.scores.names)
        sys.stdout.buffer.flush()
        return
    with atomic_output(path) as partial:
        if kind == "parquet":
            with _ParquetWriter(partial, provenance) as writer:
                yield writer
        elif kind == "bcf":
            with tempfile.TemporaryDirectory(prefix=".bcf-", dir=partial.parent) as folder:
                text = Path(folder) / "scored.vcf.gz"
                with pysam.BGZFile(str(text), "wb") as file:
                    yield _VcfWriter(file, header, provenance.scores.names)
                _to_bcf(text, partial, path)
        else:
            with pysam.BGZFile(str(partial), "wb") if kind == "vcf.gz" else partial.open("wb") as file:
                yield (
                    _TsvWriter(file, provenance.scores.names)
                    if kind == "tsv"
                    else _VcfWriter(file, header, provenance.scores.names)
                )


def scored_header(header_lines: Sequence[str], provenance: Provenance) -> list[str]:
    """Return a VCF header with the scores declared; what an earlier run declared is replaced."""
    fields = _fields(provenance.scores.names)
    own = [re.compile(rf"##INFO=<(.*,)?ID={field}[,>]") for field in fields]
    own.append(re.compile(r"##genosparse=<ID=variant_effect,"))
    *meta, columns = header_lines
    kept = [line for line in meta if not any(pattern.match(line) for pattern in own)]
    infos = [
        f'##INFO=<ID={SCORES[name].field},Number=A,Type=Float,Description="{SCORES[name].description}">'
        for name in provenance.scores.names
    ]
    status = "Per ALT, scored or why not: " + ", ".join(status for status in Status if status is not Status.SCORED)
    infos.append(f'##INFO=<ID={STATUS_FIELD},Number=A,Type=String,Description="{status}">')
    return [*kept, *infos, provenance.header_line(), columns]


def annotate(line: str, rows: Sequence[Row], scores: Sequence[str]) -> str:
    """Return a VCF record's text with the scores in INFO and every other column as it was.

    Values of the same fields from an earlier run are replaced. A record without ALT has no rows and stays as it is.
    """
    if not rows:
        return line
    columns = line.split("\t", 8)
    fields = _fields(scores)
    info = columns[7]
    entries = info.split(";")
    if any(entry.partition("=")[0] in fields for entry in entries):
        info = ";".join(entry for entry in entries if entry.partition("=")[0] not in fields)
    added = [f"{SCORES[name].field}={','.join(_number(row.scores[name]) for row in rows)}" for name in scores]
    added.append(f"{STATUS_FIELD}={','.join(row.status for row in rows)}")
    columns[7] = ";".join(([] if info in ("", ".") else [info.removesuffix(";")]) + added)
    return "\t".join(columns)


class _VcfWriter:
    def __init__(self, file: IO[bytes], header: Sequence[str], scores: Sequence[str]) -> None:
        self._file, self._scores = file, scores
        self._write_lines(header)

    def write(self, record: Record, rows: Sequence[Row]) -> None:
        self._write_lines([annotate(record.line, rows, self._scores)])

    def _write_lines(self, lines: Sequence[str]) -> None:
        self._file.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))


class _TsvWriter:
    def __init__(self, file: IO[bytes], scores: Sequence[str]) -> None:
        self._file, self._scores = file, scores
        self._write_row(["contig", "pos", "id", "ref", "alt", *_fields(scores)])

    def write(self, record: Record, rows: Sequence[Row]) -> None:
        variant = record.variant
        place = [variant.contig, str(position_1based(variant.position0)), variant.id or ".", variant.ref]
        for alt, row in zip(variant.alts, rows, strict=True):
            self._write_row([*place, alt, *(_number(row.scores[name]) for name in self._scores), row.status])

    def _write_row(self, cells: Sequence[str]) -> None:
        self._file.write(("\t".join(cells) + "\n").encode(errors="surrogateescape"))


class _ParquetWriter:
    def __init__(self, path: Path, provenance: Provenance) -> None:
        self._scores = provenance.scores.names
        text, number = pa.string(), pa.float32()
        self._schema = pa.schema(
            [
                pa.field("contig", text, nullable=False),
                pa.field("position0", pa.int64(), nullable=False),
                pa.field("id", text),
                pa.field("ref", text, nullable=False),
                pa.field("alt", text, nullable=False),
                *(pa.field(SCORES[name].field, number) for name in self._scores),
                pa.field(STATUS_FIELD, text, nullable=False),
            ],
            metadata={
                "genosparse_version": provenance.version,
                "model": provenance.model,
                "context": str(provenance.context),
                **{SCORES[name].field: SCORES[name].description for name in self._scores},
            },
        )
        self._rows: list[tuple[object, ...]] = []
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._rows and exception[0] is None:
            self._write_group()
        self._file.close()

    def write(self, record: Record, rows: Sequence[Row]) -> None:
        variant = record.variant
        for alt, row in zip(variant.alts, rows, strict=True):
            scores = (None if math.isnan(row.scores[name]) else row.scores[name] for name in self._scores)
            names = (_utf8(variant.contig), variant.position0, variant.id and _utf8(variant.id))
            self._rows.append((*names, variant.ref, _utf8(alt), *scores, row.status))
            if len(self._rows) == _ROWS_PER_GROUP:
                self._write_group()

    def _write_group(self) -> None:
        columns = zip(*self._rows, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []


def _to_bcf(text: Path, bcf: Path, output: str) -> None:
    """Convert finished VCF text to BCF with the bcftools that comes with pysam."""
    # Not with pysam.VariantFile, whose write() adds INFO/END to records with symbolic ALTs, declared or not.
    verbosity = pysam.set_verbosity(0)
    try:
        pysam.bcftools.view("--no-version", "-Ob", "-o", str(bcf), str(text), catch_stdout=False)
    except pysam.SamtoolsError as error:
        reason = " ".join(str(error).split())
        raise OutputError(
            f"cannot write {output}: the records do not fit into BCF ({reason}); write .vcf.gz"
        ) from error
    finally:
        pysam.set_verbosity(verbosity)


def _fields(scores: Sequence[str]) -> list[str]:
    return [*(SCORES[name].field for name in scores), STATUS_FIELD]


def _utf8(text: str) -> str:
    """Show bytes of the input that were no UTF-8, which Parquet cannot hold, as replacement characters."""
    return text if text.isascii() else text.encode(errors="surrogateescape").decode(errors="replace")


def _number(value: float) -> str:
    return "." if math.isnan(value) else f"{value + 0.0:.6g}"  # + 0.0 turns -0 into 0
