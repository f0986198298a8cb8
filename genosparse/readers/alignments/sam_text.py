"""What htslib does not say, or does not see, of SAM text: which line is wrong, and why."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from genosparse.errors import FileFormatError
from genosparse.inputs import TextLines

__all__ = ["check_records", "header_problem", "record_line"]

_EXPECTED = "a SAM file"
_MOST_POSITION = 2**31 - 1
_NUMBER = re.compile(r"[-+]?[0-9]{1,10}")
_MOST_NAME = 254
_NAMES = ("QNAME", "FLAG", "RNAME", "POS", "MAPQ", "CIGAR", "RNEXT", "PNEXT", "TLEN", "SEQ", "QUAL")
_LEAST_AND_MOST = {
    "FLAG": (0, 0xFFFF),
    "POS": (0, _MOST_POSITION),
    "MAPQ": (0, 255),
    "PNEXT": (0, _MOST_POSITION),
    "TLEN": (-_MOST_POSITION, _MOST_POSITION),
}
_CIGAR = re.compile(r"\*|(?:[0-9]{1,9}[MIDNSHPX=])+")
_OPERATION = re.compile(r"([0-9]+)([MIDNSHPX=])")
_TAKES_READ = frozenset("MIS=X")
# htslib reads nothing as '*', which some writers mean by it.
_SEQUENCE = re.compile(r"\*|[A-Za-z=.]*")
_QUALITIES = re.compile(r"[!-~]*")
_IDENTIFIED = {"@SQ": "SN", "@RG": "ID", "@PG": "ID"}


def check_records(path: Path, contigs: Collection[str]) -> None:
    """Check the columns of each record of a SAM file.

    htslib takes reads on contigs that the header does not declare for unmapped ones, and letters that are no bases for
    N; and of a line that it refuses it says neither which one it is nor why.

    Args:
        path: The file.
        contigs: Those that the header declares.

    Raises:
        FileFormatError: A line is no record, named with its number.
    """
    with TextLines(path, _EXPECTED, keep_bytes=True) as lines:
        in_header = True
        for line in lines:
            in_header = in_header and line.startswith("@")
            if not in_header and (problem := _record_problem(line, contigs)):
                raise FileFormatError(f"{path}, line {lines.line_number}: {problem}")


def _record_problem(line: str, contigs: Collection[str]) -> str | None:
    columns = dict(zip(_NAMES, line.split("\t", len(_NAMES)), strict=False))
    if len(columns) < len(_NAMES):
        return f"{line.count(chr(9)) + 1} columns; a SAM record has at least {len(_NAMES)}, separated by tabs"
    if len(columns["QNAME"]) > _MOST_NAME:
        return f"QNAME has {len(columns['QNAME'])} characters; expected {_MOST_NAME} at most"
    for name, (least, most) in _LEAST_AND_MOST.items():
        text = columns[name]
        if not (_NUMBER.fullmatch(text) and least <= int(text) <= most):
            return f"{name} is {_shortened(text)}; expected a whole number from {least} to {most}"
    for contig in (columns["RNAME"], "*" if columns["RNEXT"] == "=" else columns["RNEXT"]):
        if contig != "*" and contig not in contigs:
            return (
                f"contig {_shortened(contig)} is not declared by an @SQ line of the header; add the header of the "
                "genome, as with `samtools reheader`"
            )
    cigar, bases, qualities = columns["CIGAR"], columns["SEQ"], columns["QUAL"]
    if not _CIGAR.fullmatch(cigar):
        return f"CIGAR is {_shortened(cigar)}; expected numbers, each with one of MIDNSHPX=, or '*'"
    if not _SEQUENCE.fullmatch(bases):
        return f"SEQ is {_shortened(bases)}; expected letters, '=' and '.', or '*'"
    if not _QUALITIES.fullmatch(qualities):
        return f"QUAL is {_shortened(qualities)}; expected characters from '!' to '~'"
    if bases not in ("*", ""):
        if qualities != "*" and len(qualities) != len(bases):
            return f"QUAL has {len(qualities)} characters, and SEQ {len(bases)} bases; expected as many"
        taken = sum(int(size) for size, kind in _OPERATION.findall(cigar) if kind in _TAKES_READ)
        if cigar != "*" and taken != len(bases):
            return f"CIGAR {_shortened(cigar)} is of {taken} bases, and SEQ has {len(bases)}; expected as many"
    elif qualities not in ("*", ""):
        return f"QUAL is {_shortened(qualities)} where SEQ is '*'; expected '*'"
    return None


def header_problem(path: Path) -> str | None:
    """What is wrong with the header of a SAM file, with the number of the line; None where nothing is seen to be."""
    seen: dict[tuple[str, str], int] = {}
    with TextLines(path, _EXPECTED, keep_bytes=True) as lines:
        for line in lines:
            if not line.startswith("@"):
                return None
            kind, *fields = line.split("\t")
            if kind == "@CO":
                continue
            where = f"line {lines.line_number}"
            tags = dict(field.split(":", 1) for field in fields if ":" in field)
            if len(tags) < len(fields):
                return f"{where}: {kind} has a tag twice, or one that is not of the form XX:text"
            if kind not in _IDENTIFIED:
                continue
            naming = _IDENTIFIED[kind]
            if not tags.get(naming):
                return f"{where}: {kind} has no {naming}"
            first = seen.setdefault((kind, tags[naming]), lines.line_number)
            if first != lines.line_number:
                return f"{where}: {kind} has the {naming} {_shortened(tags[naming])} of line {first}"
            length = tags.get("LN", "")
            if kind == "@SQ" and not (re.fullmatch("[0-9]{1,18}", length) and int(length)):
                return f"{where}: @SQ of {_shortened(tags['SN'])} has LN {_shortened(length)}; expected its length"
    return None


def record_line(path: Path, index: int) -> int:
    """Number of the line that a record of a SAM file stands in, from 1; ``index`` counts the records from 0."""
    with TextLines(path, _EXPECTED, keep_bytes=True) as lines:
        in_header = True
        for line in lines:
            in_header = in_header and line.startswith("@")
            if not in_header:
                if not index:
                    break
                index -= 1
        return lines.line_number


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
