"""Features of GFF3, GTF, GenBank and EMBL files, and intervals of any file or region string that names places."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

from genosparse.errors import FileFormatError, InputFileNotFoundError, IntervalError
from genosparse.inputs import STANDARD_INPUT, TextLines, display_name
from genosparse.intervals import Interval, interval_from_1based, parse_bed, parse_region
from genosparse.readers._flat_files import FLAT_FILE_STARTS, contig_name, flat_file_records

__all__ = ["Feature", "read_features", "read_intervals"]

_EXPECTED_FEATURES = "a GFF3, GTF, GenBank or EMBL file"
_EXPECTED = "a BED, GFF3, GTF, GenBank or EMBL file, or a region as chr1:1,001-2,000"
#: What names a feature: the first of these attributes that it has.
_NAMING = ("ID", "Name", "gene_id", "transcript_id", "locus_tag", "gene", "protein_id", "label")
_PHASES = ("0", "1", "2")
_STRANDS = {"+": "+", "-": "-", ".": ".", "?": "."}
_GFF3_ATTRIBUTE = re.compile(r'\s*[^\s=;"]+=')
_GTF_ATTRIBUTE = re.compile(r'\s*([^\s;"]+)\s+("[^"]*"|[^\s;"]+)\s*(?:;|$)')


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of an annotation, or a part of one where its location is joined.

    Attributes:
        interval: Where; ``interval.name`` is the first that there is of the attributes ``ID``, ``Name``, ``gene_id``,
            ``transcript_id``, ``locus_tag``, ``gene``, ``protein_id`` and ``label``.
        kind: What it is: ``gene``, ``CDS``.
        attributes: GFF3's and GTF's attributes, or GenBank's qualifiers; several values of a key joined by commas.
        phase: Bases from the 5' end of the part to the first base of a codon, 0 to 2: the eighth column of GFF3 and
            GTF, and for ``CDS`` of GenBank and EMBL what ``codon_start`` and the parts before make it. None where the
            file does not say.
        part: Number of the part in a location of GenBank or EMBL, from 0 in the order of transcription; None in GFF3
            and GTF, which have a line for each part.
    """

    interval: Interval
    kind: str
    attributes: dict[str, str]
    phase: int | None = None
    part: int | None = None


def read_features(path: str | Path, kinds: Collection[str] | None = None) -> Iterator[Feature]:
    """Read the features of a file, in its order, one for each part of a joined location of GenBank or EMBL.

    Percent codes of GFF3 are decoded, quoted values of GTF lose their quotes, and a ``##FASTA`` section is not read. On
    a circular contig the end may exceed the contig's length, as GFF3 has it. A location between two bases (``12^13``)
    holds none and is left out.

    Args:
        path: A GFF3, GTF, GenBank or EMBL file by content, plain or compressed by gzip or bgzip; ``-`` is standard
            input.
        kinds: Give features of these kinds alone; None for all.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read.
        FileFormatError: A line is malformed, named with its number; or the file is truncated or of another kind.
    """
    return _features_of(TextLines(path, _EXPECTED_FEATURES, keep_bytes=True), kinds)


def read_intervals(
    source: str | Path,
    *,
    kinds: Collection[str] | None = None,
    blocks: bool = False,
    lengths: Mapping[str, int] | None = None,
) -> Iterator[Interval]:
    """Read the intervals that a file or a region string names.

    Args:
        source: A BED, GFF3, GTF, GenBank or EMBL file by content; ``-`` for standard input; or, where no such file
            exists, a region as in ``parse_region``.
        kinds: Of features, take those of these kinds alone; None for all.
        blocks: Take the blocks of BED12, as in ``read_bed``.
        lengths: Lengths of the contigs, for regions that are a contig's name alone.

    Raises:
        InputFileNotFoundError: The file does not exist or cannot be read, and it is no region.
        FileFormatError: A line is malformed, named with its number; or the file is truncated.
        IntervalError: A region that cannot be, or kinds are asked of one.
    """
    text = str(source)
    if text != STANDARD_INPUT and not Path(source).exists():
        is_contig = lengths is not None and text.strip() in lengths
        if is_contig or (":" in text and "/" not in text):
            if kinds is not None:
                raise IntervalError(
                    f"{text} is a region, which has no kinds of features ({', '.join(sorted(kinds))}); leave the kinds "
                    "out, or give a file of features"
                )
            return iter([parse_region(text, lengths)])
        raise InputFileNotFoundError(f"{text} does not exist; expected {_EXPECTED}")
    return _intervals_of(TextLines(source, _EXPECTED), kinds, blocks)


def _intervals_of(lines: TextLines, kinds: Collection[str] | None, blocks: bool) -> Iterator[Interval]:
    with lines:
        form, rows = _recognised(lines)
        if form == "bed":
            if kinds is not None:
                raise FileFormatError(
                    f"{display_name(lines.path)} is BED, which has no kinds of features ({', '.join(sorted(kinds))}); "
                    f"expected {_EXPECTED_FEATURES}"
                )
            yield from parse_bed(rows, lines, blocks)
        else:
            for feature in _parse_features(form, rows, lines, kinds):
                yield feature.interval


def _features_of(lines: TextLines, kinds: Collection[str] | None) -> Iterator[Feature]:
    with lines:
        form, rows = _recognised(lines)
        yield from _parse_features("gff" if form == "bed" else form, rows, lines, kinds)


def _recognised(lines: TextLines) -> tuple[str, Iterator[str]]:
    """``gff`` (GTF too), ``genbank``, ``embl``, or ``bed`` when it is none of these; and the lines that matter."""
    for line in lines:
        if line.startswith("##gff-version"):
            return "gff", chain([line], lines)
        if not line.strip() or line.startswith("#"):
            continue
        form = next((form for form, start in FLAT_FILE_STARTS.items() if line.startswith(start)), None)
        if form is None:
            columns = [column.strip() for column in line.split("\t")]
            is_gff = (
                len(columns) >= 8 and not (columns[1].isdigit() and columns[2].isdigit()) and columns[6] in _STRANDS
            )
            form = "gff" if is_gff else "bed"
        return form, chain([line], lines)
    return "bed", iter(())


def _parse_features(
    form: str, rows: Iterator[str], lines: TextLines, kinds: Collection[str] | None
) -> Iterator[Feature]:
    features = _parse_gff(rows, lines) if form == "gff" else _parse_flat_file(form, rows, lines)
    for feature in features:
        if kinds is None or feature.kind in kinds:
            yield feature


def _parse_gff(rows: Iterable[str], lines: TextLines) -> Iterator[Feature]:
    is_gff3 = False
    for row in rows:
        if row.startswith("##gff-version"):
            is_gff3 = row.split()[1:2] != [] and row.split()[1].startswith("3")
        if row.startswith(("##FASTA", ">")):
            return
        if not row.strip() or row.startswith("#"):
            continue
        try:
            yield _parse_gff_line(row, is_gff3)
        except IntervalError as error:
            raise FileFormatError(f"{display_name(lines.path)}, line {lines.line_number}: {error}") from None


def _parse_gff_line(line: str, is_gff3: bool) -> Feature:
    columns = [column.strip() for column in line.rstrip("\t").split("\t")]
    if len(columns) not in (8, 9):
        raise IntervalError(f"{len(columns)} columns in {line[:40]!r}; GFF and GTF have nine, separated by tabs")
    contig, _, kind, first, last, _, strand, phase, *rest = columns
    if not (re.fullmatch("[0-9]{1,18}", first) and re.fullmatch("[0-9]{1,18}", last)):
        raise IntervalError(f"start {first[:40]!r} and end {last[:40]!r} are not both whole numbers")
    if strand not in _STRANDS:
        raise IntervalError(f"strand {strand[:40]!r}; expected '+', '-', '.' or '?'")
    text = rest[0] if rest and rest[0] != "." else ""
    attributes = _gff3_attributes(text) if is_gff3 or _GFF3_ATTRIBUTE.match(text) else _gtf_attributes(text)
    interval = interval_from_1based(unquote(contig), int(first), int(last), _STRANDS[strand], _name(attributes))
    return Feature(interval, unquote(kind), attributes, int(phase) if phase in _PHASES else None)


def _gff3_attributes(text: str) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for item in text.split(";"):
        key, equals, value = item.strip().partition("=")
        if key and not equals:
            raise IntervalError(f"attribute {key[:40]!r} has no value; expected key=value")
        if key:
            _add(attributes, unquote(key), unquote(value))
    return attributes


def _gtf_attributes(text: str) -> dict[str, str]:
    attributes: dict[str, str] = {}
    at = 0
    while text[at:].strip(" ;"):
        match = _GTF_ATTRIBUTE.match(text, at)
        if match is None:
            raise IntervalError(f'attributes {text[at : at + 40].strip()!r} are not of the form key "value";')
        _add(attributes, match[1], match[2].strip('"'))
        at = match.end()
    return attributes


def _add(attributes: dict[str, str], key: str, value: str) -> None:
    attributes[key] = f"{attributes[key]},{value}" if key in attributes else value


def _name(attributes: Mapping[str, str]) -> str | None:
    return next((value for key in _NAMING if (value := attributes.get(key))), None)


def _parse_flat_file(form: str, rows: Iterator[str], lines: TextLines) -> Iterator[Feature]:
    for record in flat_file_records(lines, form, features=True, read=rows):
        contig = contig_name(record)
        for feature in record.features:
            attributes = {key: ",".join(values) for key, values in feature.qualifiers.items()}
            # biopython has the parts in the order of transcription, on the minus strand too.
            phase = _first_phase(feature.type, attributes)
            for number, part in enumerate(feature.location.parts):
                try:
                    start, end = int(part.start), int(part.end)
                    strand = {1: "+", -1: "-"}.get(part.strand, ".")
                    if start == end:
                        continue
                    interval = Interval(part.ref or contig, start, end, strand, _name(attributes))
                except (IntervalError, TypeError, ValueError) as error:
                    raise FileFormatError(
                        f"{display_name(lines.path)}: {feature.type} of record {contig!r} at {part}: {error}"
                    ) from None
                yield Feature(interval, feature.type, attributes, phase, number)
                if phase is not None:
                    phase = (phase - interval.length) % 3


def _first_phase(kind: str, attributes: Mapping[str, str]) -> int | None:
    """The phase of the first part of a location."""
    codon_start = attributes.get("codon_start", "1")
    return int(codon_start) - 1 if kind == "CDS" and codon_start in ("1", "2", "3") else None
