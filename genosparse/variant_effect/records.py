"""The records of a VCF or BCF file, as text and as values side by side, in one pass as often as needed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genosparse.errors import FileFormatError
from genosparse.readers import Variant, open_vcf_text, parse_vcf_line

__all__ = ["InputSummary", "Record", "read_records", "scan_records"]

_ASSEMBLY = re.compile(r"^##contig=<.*\bassembly=([^,>]+)")
_DECLARATION = re.compile(r"##(contig|FILTER|INFO|FORMAT)=<(?:.*?,)?ID=([^,>]+)")


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its line as it is in the file, and what the line says."""

    line: str
    variant: Variant


@dataclass(frozen=True, slots=True)
class InputSummary:
    """What one pass over a whole input finds.

    Attributes:
        header_lines: Its VCF header, ``#CHROM`` line last.
        num_records: Number of records.
        contigs: The records' contigs, in order of first appearance.
        contig_lengths: Lengths that the header declares, None where it names a contig without one.
    """

    header_lines: list[str]
    num_records: int
    contigs: list[str]
    contig_lengths: dict[str, int | None]

    @property
    def build_names(self) -> list[str]:
        """What the header says of the reference genome: ``##reference``, ``##assembly`` and its contigs' assemblies."""
        names = [line for line in self.header_lines if line.startswith(("##reference=", "##assembly="))]
        assemblies = (_ASSEMBLY.search(line) for line in self.header_lines)
        return [*names, *dict.fromkeys(match[1] for match in assemblies if match)]


def read_records(path: str | Path) -> Iterator[Record]:
    """Read a file's records, in its order, without loading the file.

    Raises:
        FileFormatError: The file is damaged, or a record is malformed; named with its line.
    """
    with open_vcf_text(path) as text:
        for index, line in enumerate(text):
            yield Record(line, parse_vcf_line(line, path, text.line_number, record_index=index))


def scan_records(path: str | Path, *, all_declared: bool = False) -> InputSummary:
    """Read a file once to its end, so that whatever is wrong with it shows before any work is done.

    Args:
        path: The file.
        all_declared: Also hold the records to what BCF needs: contigs, FILTERs, INFO and FORMAT keys are declared.

    Raises:
        FileFormatError: The file is damaged, a record is malformed, or something is not declared that has to be.
    """
    contigs: dict[str, None] = {}
    num_records = 0
    with open_vcf_text(path) as text:
        declared = _declarations(text.header_lines) if all_declared else {}
        for line in text:
            num_records += 1
            variant = parse_vcf_line(line, path, text.line_number)
            contigs[variant.contig] = None
            if all_declared:
                _check_declared(line, declared, f"{path}, line {text.line_number}")
        return InputSummary(text.header_lines, num_records, list(contigs), text.contig_lengths)


def _declarations(header_lines: Sequence[str]) -> dict[str, set[str]]:
    declared: dict[str, set[str]] = {"contig": set(), "FILTER": {"PASS", "."}, "INFO": {"."}, "FORMAT": {"."}}
    for line in header_lines:
        if match := _DECLARATION.match(line):
            declared[match[1]].add(match[2])
    return declared


def _check_declared(line: str, declared: dict[str, set[str]], where: str) -> None:
    columns = line.split("\t", 9)
    used = {
        "contig": columns[:1],
        "FILTER": columns[6].split(";"),
        "INFO": [entry.partition("=")[0] for entry in columns[7].split(";") if entry],
        "FORMAT": columns[8].split(":") if len(columns) > 8 else [],
    }
    for kind, names in used.items():
        for name in names:
            if name not in declared[kind]:
                raise FileFormatError(
                    f"{where}: {kind} {name!r} is not declared in the header, which BCF output needs; "
                    "declare it, or write .vcf.gz"
                )
