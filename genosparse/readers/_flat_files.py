"""GenBank and EMBL through biopython, whose warnings of lost sequence become errors and whose errors become ours."""

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from Bio import BiopythonWarning
from Bio.GenBank.Scanner import EmblScanner, GenBankScanner

from genosparse.errors import FileFormatError
from genosparse.inputs import TextLines, display_name

__all__ = ["FLAT_FILE_STARTS", "contig_name", "flat_file_records"]

#: How a file of each kind begins.
FLAT_FILE_STARTS = {"genbank": "LOCUS ", "embl": "ID   "}

_SCANNERS = {"genbank": GenBankScanner, "embl": EmblScanner}
_NAMES = {"genbank": "GenBank", "embl": "EMBL"}
# Of the many things that biopython warns of, those that mean lost or spoilt sequence, or a feature without its place.
_DAMAGE = (
    "Expected sequence length|Premature end of file|Invalid indentation for sequence|.*location to None|line too short"
)


def flat_file_records(lines: TextLines, kind: str, *, features: bool, read: Iterable[str] = ()) -> Iterator[Any]:
    """The records of a file, as biopython's ``SeqRecord``.

    Args:
        lines: The file.
        kind: ``genbank`` or ``embl``.
        features: Whether the records are to have their features.
        read: Lines that have been read from ``lines`` already.

    Raises:
        FileFormatError: The file is truncated or damaged.
    """
    records = _SCANNERS[kind]().parse_records(_Handle(chain(read, lines), kind, lines), do_features=features)
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BiopythonWarning)
            warnings.filterwarnings("error", _DAMAGE, BiopythonWarning)
            try:
                record = next(records, None)
            except FileFormatError:
                raise
            except (BiopythonWarning, ValueError, LookupError, AssertionError, TypeError, AttributeError) as error:
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                raise FileFormatError(
                    f"{display_name(lines.path)}, near line {lines.line_number}: truncated or damaged {_NAMES[kind]} "
                    f"({reason}); fetch it again"
                ) from None
        if record is None:
            return
        yield record


def contig_name(record: Any) -> str:
    """Accession and version, or the name in the first line where there is no accession, or empty."""
    return next((name.split()[0] for name in (record.id, record.name) if name.strip(" .")), "")


class _Handle:
    """The little of a text file that biopython's scanners use.

    They pass over what stands between two records, and so over the beginning of one that was cut off.
    """

    def __init__(self, rows: Iterator[str], kind: str, lines: TextLines) -> None:
        self._rows, self._kind, self._lines = rows, kind, lines
        self._between = False

    def readline(self) -> str:
        line = next(self._rows, None)
        if line is None:
            return ""
        if self._between and line.strip():
            start = _SCANNERS[self._kind].RECORD_START
            if not line.startswith(start):
                raise FileFormatError(
                    f"{display_name(self._lines.path)}, line {self._lines.line_number}: {line[:40]!r} between two "
                    f"records; expected {start.strip()} and the next one, or the file's end: it may be truncated"
                )
            self._between = False
        if line.startswith("//"):
            self._between = True
        return f"{line}\n"
