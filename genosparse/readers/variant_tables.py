"""Variants in tables of text: contig, position, ref and alt in columns separated by tabs."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from genosparse.errors import FileFormatError
from genosparse.inputs import Closing, TextLines, display_name
from genosparse.intervals import position_1based

__all__ = ["VariantTable", "is_variant_table"]

_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("contig", "chrom", "chr", "chromosome"), "contig"),
    **dict.fromkeys(("pos", "position"), "pos"),
    **dict.fromkeys(("position0", "pos0"), "position0"),
    **dict.fromkeys(("ref", "reference"), "ref"),
    **dict.fromkeys(("alt", "alternate"), "alt"),
    "id": "id",
}
_NO_HEADER: Mapping[str, int] = {"contig": 0, "pos": 1, "ref": 2, "alt": 3}
_BASES = re.compile(r"[ACGTUNRYSWKMBDHV]+", re.IGNORECASE)


def is_variant_table(line: str) -> bool:
    """Whether a file that begins with this line is a table of variants, with or without a header line.

    A header line names some of the columns. Without one, the second of at least four columns is a number and the third
    is bases: a record line of a VCF file that lost its header is none.
    """
    if line.startswith("##") or line.startswith("#CHROM\tPOS\tID\tREF\tALT\tQUAL\t"):
        return False
    return _names_columns(line) or _is_row(line)


class VariantTable(Closing):
    """A table of variants, as the record lines of a VCF file; a context manager.

    The columns are found by the names in a header line, in any order and case, ``#`` before the first allowed: contig
    (``chrom``, ``chr``, ``chromosome``), pos (``position``; from 1) or position0 (``pos0``; from 0), ref
    (``reference``), alt (``alternate``; several separated by commas, ``.`` for none) and, where present, id. Without a
    header line they are contig, pos from 1, ref and alt. Further columns, empty lines and lines that begin with ``#``
    are passed over.

    Args:
        lines: The file, nothing of it read yet.

    Attributes:
        path: As given.
        place: What messages call the file.
        line_number: Number of the line given last, from 1.
        samples: Empty: a table has no genotypes.
        contig_lengths: Empty: a table does not declare its contigs.

    Raises:
        FileFormatError: The header line lacks a column or has one twice; while reading, a line is malformed.
    """

    def __init__(self, lines: TextLines) -> None:
        self.path: str | Path = lines.path
        self.place = display_name(lines.path)
        self.line_number = 0
        self.samples: tuple[str, ...] = ()
        self.contig_lengths: dict[str, int | None] = {}
        self._lines = lines
        self._num_columns: int | None = None
        self._columns = _NO_HEADER
        if _names_columns(lines.peek_line() or ""):
            self._columns = self._read_header(next(lines))

    def _read_header(self, line: str) -> dict[str, int]:
        names = [name.strip() for name in line.removeprefix("#").lower().split("\t")]
        columns: dict[str, int] = {}
        for at, name in enumerate(names):
            column = _ALIASES.get(name)
            if column in columns:
                raise self._malformed(f"two columns are {column!r}, {names[columns[column]]!r} and {name!r}", 1)
            if column is not None:
                columns[column] = at
        if "pos" in columns and "position0" in columns:
            raise self._malformed("the columns pos and position0 are both there; expected one of them", 1)
        missing = [name for name in ("contig", "ref", "alt") if name not in columns]
        missing += ["pos"] if not {"pos", "position0"} & columns.keys() else []
        if missing:
            raise self._malformed(
                f"the header line has no column {' and no '.join(map(repr, missing))}; expected contig, pos, ref and "
                "alt, separated by tabs",
                1,
            )
        self._num_columns = len(names)
        return columns

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        while not line or line.isspace() or line.startswith("#"):
            line = next(self._lines)
        self.line_number = number = self._lines.line_number
        cells = line.split("\t")
        if self._num_columns is None and len(cells) < 4:
            raise self._malformed(f"{len(cells)} columns; expected contig, pos, ref and alt, separated by tabs", number)
        if self._num_columns is not None and len(cells) != self._num_columns:
            raise self._malformed(f"{len(cells)} columns where the header line has {self._num_columns}", number)
        values = {name: cells[at].strip() for name, at in self._columns.items()}
        position = values.get("pos") or self._from_position0(values.get("position0", ""), number)
        return "\t".join(
            [values["contig"], position, values.get("id") or ".", values["ref"], values["alt"], ".", ".", "."]
        )

    def _from_position0(self, text: str, number: int) -> str:
        if not re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
            raise self._malformed(f"the position is {text[:40]!r}; expected a whole number", number)
        return str(position_1based(int(text)))

    def _malformed(self, what: str, number: int) -> FileFormatError:
        return FileFormatError(f"{self.place}, line {number}: {what}")

    def close(self) -> None:
        """Close the file; standard input stays open."""
        self._lines.close()


def _names_columns(line: str) -> bool:
    names = re.split(r"\s+", line.removeprefix("#").strip().lower())
    return len({_ALIASES[name] for name in names if name in _ALIASES} - {"id"}) >= 3


def _is_row(line: str) -> bool:
    columns = line.split("\t")
    if len(columns) < 4:
        return False
    return bool(re.fullmatch(r"\d+", columns[1], re.ASCII) and _BASES.fullmatch(columns[2]))
