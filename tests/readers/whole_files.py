"""A file read to its end by our readers, and by another program, both as lines of text that can be compared.

``READERS`` are ours. An oracle is samtools, bcftools (Debian's where they are installed, else those within pysam),
biopython or pysam; each gives lines of the same form, or says why it refuses the file.
"""

import gzip
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import genosparse as gs
from genosparse.readers import read_features

Lines = list[str]
EVERY_READ = gs.ReadFilters(exclude_flags=0)
_CONTIGS_BY_INTERVAL = 3
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_MISSING_FIELDS = re.compile(r"(:\.)+(?=\t|$)")  # a sample may leave out its last fields


class OracleError(Exception):
    """Another program refuses a file."""


# Ours


def sequence_lines(path: Path, reference: Path | None = None) -> Lines:
    """Name and bases of each contig."""
    with gs.Genome(path) as genome:
        genome.check_alphabet()
        lines = [f"{name}\t{genome.fetch(gs.Interval(name, 0, size))}" for name, size in genome.contigs.items()]
        for name, size in islice(genome.contigs.items(), _CONTIGS_BY_INTERVAL):
            half = max(1, size // 2)
            parts = [genome.fetch(gs.Interval(name, 0, half))]
            parts += [genome.fetch(gs.Interval(name, half, size))] if half < size else []
            assert f"{name}\t{''.join(parts)}" in lines, f"{name} by halves"
    return lines


def alignment_lines(path: Path, reference: Path | None = None) -> Lines:
    """Columns 1 to 6, 10 and 11 of SAM for each read; those of some intervals are checked to be the same ones."""
    with gs.Alignments(path, reference, filters=EVERY_READ) as alignments:
        reads = list(alignments.reads())
        lines = [_sam_line(read) for read in reads]
        try:
            for contig, size in islice(((x, size) for x, size in alignments.contigs.items() if size), 3):
                for start, end in ((0, size), (size // 2, min(size, size // 2 + 1000))):
                    found = [_sam_line(read) for read in alignments.reads(gs.Interval(contig, start, end))]
                    there = [
                        line
                        for line, read in zip(lines, reads, strict=True)
                        if read.contig == contig and start < _end(read) and 0 <= read.position0 < end
                    ]
                    where = f"{contig}:{start}-{end}"
                    assert sorted(found) == sorted(there), f"{where} by interval: {len(found)} of {len(there)} reads"
                alignments.channels(gs.Interval(contig, 0, min(size, 20_000)))
        except gs.errors.FileFormatError as error:
            if not re.search(r"is not sorted by position|cannot be indexed", str(error)):
                raise
    return lines


def _end(read: gs.Read) -> int:
    """An unmapped read beside its mate takes one base, whatever its CIGAR says."""
    return read.position0 + 1 if read.is_unmapped else read.end


def _sam_line(read: gs.Read) -> str:
    bases = gs.NucleotideTokenizer().decode(read.tokens) or "*"
    qualities = "*" if read.qualities is None else "".join(map(chr, read.qualities.astype(int) + 33))
    place = (read.contig or "*", read.position0 + 1)
    return "\t".join(map(str, (read.name, read.flags, *place, read.mapping_quality, read.cigar, bases, qualities)))


def variant_lines(path: Path, reference: Path | None = None) -> Lines:
    """All columns of each record; those of some regions are checked to be the same ones."""
    variants = list(gs.read_variants(path))
    by_contig: dict[str, list[gs.Variant]] = {}
    for variant in variants:
        by_contig.setdefault(variant.contig, []).append(variant)
    for contig, there in islice(by_contig.items(), _CONTIGS_BY_INTERVAL):
        middle = max(0, there[len(there) // 2].position0)
        for start, end in ((0, 2**31 - 1), (middle, middle + 500)):
            found = [_vcf_line(variant) for variant in gs.read_variants(path, gs.Interval(contig, start, end))]
            expected = [_vcf_line(x) for x in there if x.position0 < end and x.end > start]
            where = f"{contig}:{start}-{end}"
            assert found == expected, f"{where} by region: {len(found)} of {len(expected)} records"
    return [_vcf_line(variant) for variant in variants]


def _vcf_line(variant: gs.Variant) -> str:
    columns = (
        variant.contig,
        variant.position0 + 1,
        "." if variant.id is None else variant.id,
        variant.ref,
        ",".join(variant.alts) or ".",
        "." if variant.qual is None else variant.qual,
        "." if variant.filter is None else variant.filter,
        "." if variant.info is None else variant.info,
        *([] if variant.sample_columns is None else [variant.sample_columns]),
    )
    return "\t".join(map(str, columns))


def interval_lines(path: Path, reference: Path | None = None) -> Lines:
    """Contig, start, end, strand and name of BED; the kind of feature besides of the others."""
    lines = [f"{x.contig}\t{x.start}\t{x.end}\t{x.strand}\t{x.name or '.'}" for x in gs.read_intervals(path)]
    if re.search(r"\.(gff\d?|gtf|gbk|gb|embl)\b|gff_file", path.name):
        kinds = [feature.kind for feature in read_features(path)]
        lines = [f"{line}\t{kind}" for line, kind in zip(lines, kinds, strict=True)]
    return lines


READERS: dict[str, Callable[[Path, Path | None], Lines]] = {
    "sequence": sequence_lines,
    "alignments": alignment_lines,
    "variants": variant_lines,
    "intervals": interval_lines,
}


# Theirs


@cache
def program(name: str) -> list[str]:
    """samtools or bcftools: the installed one, else the one within pysam."""
    if found := shutil.which(name):
        return [found]
    # What view writes by itself may be no UTF-8; the others lose their last lines so.
    script = (
        f"import sys, pysam.{name} as p; command, *rest = sys.argv[1:]; itself = command == 'view'; "
        "text = getattr(p, command)(*rest, catch_stdout=not itself); "
        "sys.stdout.write(text if text and not itself else '')"
    )
    return [sys.executable, "-c", script]


def run(name: str, *arguments: str | Path) -> str:
    """Standard output of samtools or bcftools."""
    environment = {**os.environ, "REF_PATH": os.devnull, "REF_CACHE": os.devnull}
    command = [*program(name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OracleError(f"{name}: {reason[-1] if reason else done.returncode}")
    return done.stdout.decode("utf-8", "surrogateescape")


def _samtools(path: Path, reference: Path | None) -> Lines:
    options = [] if reference is None else ["-T", reference]
    text = run("samtools", "view", *options, path)
    rows = (row.split("\t") for row in text.removesuffix("\n").split("\n") if row)
    return ["\t".join([*columns[:6], *columns[9:11]]) for columns in rows]


def _bcftools(path: Path, reference: Path | None) -> Lines:
    return run("bcftools", "view", "--no-version", "-H", path).removesuffix("\n").split("\n")


def _biopython(path: Path, reference: Path | None, *, features: bool = False) -> Lines:
    from Bio import BiopythonWarning, SeqIO

    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    kind = "twobit" if raw[:4] in (b"\x43\x27\x41\x1a", b"\x1a\x41\x27\x43") else "fasta"
    kind = "genbank" if raw.startswith(b"LOCUS") else "embl" if raw.startswith(b"ID ") else kind
    if not features:  # which are of no account for the sequences
        raw = re.sub(rb"(?ms)^FEATURES.*?^(?=ORIGIN)|^FT .*?\n", b"", raw)
    unpacked = path.with_name(f"{path.name}.unpacked")
    unpacked.write_bytes(raw)
    options = {} if kind == "twobit" else {"encoding": "utf-8", "errors": "surrogateescape"}
    try:
        with warnings.catch_warnings(), unpacked.open("rb" if kind == "twobit" else "r", **options) as stream:
            warnings.simplefilter("error", BiopythonWarning)
            for harmless in ("The NCBI states double-quote", "Malformed LOCUS", "LOCUS line does not"):
                warnings.filterwarnings("ignore", harmless, BiopythonWarning)
            records = list(SeqIO.parse(stream, kind))
            if features:
                return [line for record in records for line in _feature_lines(record)]
            return [f"{_first_word(record.id)}\t{record.seq}" for record in records if len(record.seq)]
    except Exception as error:
        raise OracleError(f"biopython: {error}") from None
    finally:
        unpacked.unlink()


def _first_word(text: str) -> str:
    return text.split()[0] if text.split() else text


def _feature_lines(record: Any) -> Iterator[str]:
    strands = {1: "+", -1: "-"}
    contig = _first_word(record.name if record.id.strip(" .") == "" else record.id)
    for feature in record.features:
        for part in feature.location.parts:
            yield f"{contig}\t{part.start}\t{part.end}\t{strands.get(part.strand, '.')}\t{feature.type}"


def _pysam(path: Path, reference: Path | None) -> Lines:
    import pysam

    if path.suffix == ".gb":
        return _biopython(path, reference, features=True)

    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", "surrogateescape")
    is_gtf, is_gff = ".gtf" in path.name, re.search(r"\.gff|gff_file", path.name) is not None
    parser = pysam.asGTF() if is_gtf else pysam.asGFF3() if is_gff else pysam.asBed()
    lines = []
    try:
        for row in text.splitlines():
            if not row.strip() or row.startswith(("#", "track", "browser")):
                continue
            encoded = row.encode("utf-8", "surrogateescape")
            record = parser(encoded, len(encoded))
            columns = len(row.split("\t"))
            has = (is_gff or is_gtf or columns > 3, is_gff or is_gtf or columns > 5)
            strand = record.strand if has[1] else "+"
            line = [record.contig, record.start, record.end, strand]
            line.append(record.feature if is_gff or is_gtf else record.name if has[0] else ".")
            lines.append("\t".join(map(str, line)))
    except Exception as error:
        raise OracleError(f"pysam: {error}") from None
    return lines


def text_lines(path: Path, reader: str = "variants") -> Lines:
    """What the columns of a text file say: what is left where another program refuses what we only carry."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8", "surrogateescape")
    comment = "@" if reader == "alignments" else ("#", "track", "browser")
    rows = [row.removesuffix("\r") for row in text.split("\n") if row.strip() and not row.startswith(comment)]
    if reader == "variants":
        return rows
    if reader == "alignments":  # U is T, and letters that are no code are N: Debian's samtools knows no U
        columns = [row.split("\t") for row in rows]
        return ["\t".join([*x[:6], _sam_bases(x[9]) or "*", x[10] or "*"]) for x in columns]
    if ".gff" in path.name:
        columns = [[unquote(cell) if at in (0, 2) else cell for at, cell in enumerate(x.split("\t"))] for x in rows]
        return [f"{x[0]}\t{int(x[3]) - 1}\t{int(x[4])}\t{x[6].replace('?', '.')}\t{x[2]}" for x in columns]
    columns = [[*map(str.strip, row.split("\t") if "\t" in row else row.split())] for row in rows]
    return [
        f"{x[0]}\t{int(x[1])}\t{int(x[2])}\t{(x[5] or '.') if len(x) > 5 else '+'}\t{x[3] if len(x) > 3 else '.'}"
        for x in columns
    ]


def _sam_bases(bases: str) -> str:
    return re.sub("[^ACGTNMRWSYKVHDB*]", "N", bases.upper().replace("U", "T"))


ORACLES: dict[str, tuple[str, Callable[[Path, Path | None], Lines]]] = {
    "sequence": ("biopython", _biopython),
    "alignments": ("samtools", _samtools),
    "variants": ("bcftools", _bcftools),
    "intervals": ("pysam", _pysam),
}


def difference(reader: str, ours: Iterable[str], theirs: Iterable[str]) -> str | None:
    """Where two programs' lines differ for the first time; None where they say the same."""
    pairs = zip_longest((line for line in ours), (line for line in theirs if line))
    for number, (our, their) in enumerate(pairs, start=1):
        if our is None or their is None:
            return f"record {number} is missing {'here' if our is None else 'there'}"
        if not _SAME.get(reader, str.__eq__)(our, their):
            return f"record {number}: {our[:400]!r}, there {their[:400]!r}"
    return None


def _same_variant(our: str, their: str) -> bool:
    """The first five columns; QUAL, INFO and samples as far as bcftools keeps them: as float32, of six digits."""
    ours, theirs = (_MISSING_FIELDS.sub("", line).split("\t", 5) for line in (our, their))
    if ours[:5] != theirs[:5] or _NUMBER.sub("#", ours[5]) != _NUMBER.sub("#", theirs[5]):
        return False
    numbers = (list(map(float, _NUMBER.findall(line[5]))) for line in (ours, theirs))
    return all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-38) for a, b in zip(*numbers, strict=True))


def _same_interval(our: str, their: str) -> bool:
    """Place, strand, and the feature's kind or BED's name: the oracle knows no names of features."""
    ours, theirs = our.split("\t"), their.split("\t")
    return [*ours[:4], ours[-1]] == ["." if column in ("None", "") else column for column in theirs]


def _same_read(our: str, their: str) -> bool:
    """All columns; but qualities that SAM text cannot hold, over 93, are whatever samtools prints."""
    ours, theirs = our.split("\t", 7), their.split("\t", 7)
    theirs[0] = theirs[0].encode("utf-8", "surrogateescape").decode("ascii", "replace")
    printable = len(ours) < 8 or max(map(ord, ours[7])) <= ord("~")
    return ours == theirs if printable else ours[:7] == theirs[:7]


_SAME = {"variants": _same_variant, "intervals": _same_interval, "alignments": _same_read}
