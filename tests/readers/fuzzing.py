"""Files damaged in every way that a disk, a network or a hurried user can, and what our readers make of them.

A mutant is right when it ends in an error of ours that names the file, or reads as the file that it was made of, or
reads as another program reads the mutant. Where its index alone is damaged, it must read as the file that it was made
of.

    python tests/readers/fuzzing.py 10000          as many mutants, of all kinds in turn
    python tests/readers/fuzzing.py bam 4711       one mutant again, left in ./mutant
"""

import gzip
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pysam
import pysam.bcftools
from fasta_files import bgzip_bytes
from whole_files import ORACLES, READERS, OracleError, difference, run, text_lines
from workers import run_jobs

import genosparse as gs
from genosparse.readers.alignments import files

SECONDS = 20
_BLOCK = 2048  # small blocks, so that there are many borders
_OLD, _NOW = 10**9, 10**9 + 100


class Source(NamedTuple):
    """A file, its index, and another file's index of the same kind."""

    file: Path
    reader: str
    index: Path | None = None
    other_index: Path | None = None
    reference: Path | None = None


# Files


def _bases(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGTacgtNR"), length))


_GENOME = {"one": _bases(9000, 1), "two": _bases(61, 2), "three": _bases(4000, 3)}
_CONTIGS = {"one": 90_000, "two": 30_000}


def _fasta(width: int = 60) -> bytes:
    lines = []
    for name, bases in _GENOME.items():
        lines += [f">{name} described", *(bases[at : at + width] for at in range(0, len(bases), width))]
    return "\n".join([*lines, ""]).encode()


def _flat(kind: str) -> bytes:
    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqFeature import FeatureLocation, SeqFeature
    from Bio.SeqRecord import SeqRecord

    records = []
    for number, bases in enumerate(_GENOME.values()):
        record = SeqRecord(Seq(bases.lower()[:1500]), f"AB{number:06}.1", f"AB{number:06}")
        record.annotations["molecule_type"] = "DNA"
        record.features = [SeqFeature(FeatureLocation(3, 40, 1), "gene", qualifiers={"gene": [f"g{number}"]})]
        records.append(record)
    text = io.StringIO()
    SeqIO.write(records, text, kind)
    return text.getvalue().encode()


def _twobit() -> bytes:
    head, body = b"", b""
    place = 16 + sum(5 + len(name) for name in _GENOME)
    for name, bases in _GENOME.items():
        head += bytes([len(name)]) + name.encode() + struct.pack("<I", place + len(body))
        blocks = []
        for is_in in (lambda base: base in "nN", str.islower):
            flags = np.array([False, *map(is_in, bases), False])
            edges = np.flatnonzero(np.diff(flags))
            blocks.append(struct.pack(f"<{1 + len(edges)}I", len(edges) // 2, *edges[::2], *(edges[1::2] - edges[::2])))
        codes = ["TCAG".index(base) if base in "TCAG" else 0 for base in bases.upper()] + [0] * (-len(bases) % 4)
        packed = bytes(
            a << 6 | b << 4 | c << 2 | d for a, b, c, d in zip(*(codes[i::4] for i in range(4)), strict=True)
        )
        body += struct.pack("<I", len(bases)) + blocks[0] + blocks[1] + struct.pack("<I", 0) + packed
    return struct.pack("<4I", 0x1A412743, 0, len(_GENOME), 0) + head + body


def _bed() -> bytes:
    rng = random.Random(4)
    lines = ["track name=x", "# a comment"]
    for number in range(60):
        start = rng.randrange(80_000)
        lines.append(f"one\t{start}\t{start + rng.randrange(1, 500)}\tn{number}\t0\t{rng.choice('+-.')}")
    return "\n".join([*lines, ""]).encode()


def _gff() -> bytes:
    rng = random.Random(5)
    lines = ["##gff-version 3"]
    for number in range(60):
        first = rng.randrange(1, 80_000)
        columns = ("one", "here", "gene", first, first + rng.randrange(500), ".", rng.choice("+-."), ".")
        lines.append("\t".join([*map(str, columns), f"ID=g{number};Note=a%20b"]))
    return "\n".join([*lines, ""]).encode()


def _vcf(seed: int = 6) -> bytes:
    rng = random.Random(seed)
    lines = [
        "##fileformat=VCFv4.2",
        *(f"##contig=<ID={name},length={size}>" for name, size in _CONTIGS.items()),
        '##INFO=<ID=END,Number=1,Type=Integer,Description="">',
        '##FORMAT=<ID=GT,Number=1,Type=String,Description="">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ts1\ts2",
    ]
    for name, size in _CONTIGS.items():
        for position in sorted(rng.sample(range(1, size - 500), 120)):
            ref, alt = rng.choice([("A", "C"), ("AC", "A"), ("G", "GTT"), ("T", "C,G"), ("A", "<DEL>")])
            info = f"END={position + 400}" if alt == "<DEL>" else "."
            lines.append(f"{name}\t{position}\t.\t{ref}\t{alt}\t50\tPASS\t{info}\tGT\t0/1\t1|0")
    return "\n".join([*lines, ""]).encode()


def _table() -> bytes:
    rows = [line.split("\t") for line in _vcf().decode().splitlines() if not line.startswith("#")]
    return "\n".join(["contig\tpos\tref\talt", *("\t".join([x[0], x[1], x[3], x[4]]) for x in rows), ""]).encode()


@cache
def _alignment_genome() -> dict[str, str]:
    rng = np.random.default_rng(7)
    return {name: "".join(rng.choice(list("ACGT"), size)) for name, size in _CONTIGS.items()}


def _sam(seed: int = 8) -> bytes:
    rng = random.Random(seed)
    lines = ["@HD\tVN:1.6\tSO:coordinate", *(f"@SQ\tSN:{name}\tLN:{size}" for name, size in _CONTIGS.items())]
    for name, size in _CONTIGS.items():
        bases = _alignment_genome()[name]
        for number, at in enumerate(sorted(rng.sample(range(size - 200), 100))):
            read = bases[at : at + 20] + "GG" + bases[at + 20 : at + 50] + bases[at + 55 : at + 75]
            qualities = "".join(chr(33 + rng.randrange(41)) for _ in read)
            flags = rng.choice([0, 16, 1024])
            lines.append(f"{name}{number}\t{flags}\t{name}\t{at + 1}\t60\t20M2I30M5D20M\t*\t0\t0\t{read}\t{qualities}")
    lines += [f"lost{number}\t4\t*\t0\t0\t*\t*\t0\t0\tACGTN\tIIIII" for number in range(5)]
    return "\n".join([*lines, ""]).encode()


def _reblocked(path: Path) -> None:
    path.write_bytes(bgzip_bytes(gzip.decompress(path.read_bytes()), _BLOCK))


@cache
def sources(folder: Path) -> dict[str, Source]:
    """A file of every kind, made once for all processes."""
    listing = folder / "sources.json"
    if not listing.exists():
        made = _make_sources(folder)
        listing.write_text(json.dumps({name: [str(x or "") for x in source] for name, source in made.items()}))
    found = {}
    for name, (file, reader, *others) in json.loads(listing.read_text()).items():
        found[name] = Source(Path(file), reader, *(Path(other) if other else None for other in others))
    return found


def _make_sources(folder: Path) -> dict[str, Source]:
    made: dict[str, Source] = {}

    def write(name: str, content: bytes, reader: str) -> Path:
        path = folder / name
        path.write_bytes(content)
        made[name] = Source(path, reader)
        return path

    for name, content in (
        ("genome.fa", _fasta()),
        ("uneven.fa", _fasta().replace(b"\n", b"\n\n", 40)),
        ("genome.fa.gz", gzip.compress(_fasta(), mtime=0)),
        ("genome.fa.bgz", bgzip_bytes(_fasta(), _BLOCK)),
        ("genome.2bit", _twobit()),
        ("genome.gb", _flat("genbank")),
        ("genome.embl", _flat("embl")),
    ):
        write(name, content, "sequence")
    for name in ("genome.fa", "genome.fa.bgz"):
        path = made[name].file
        other = folder / f"other.{name}"
        text = _fasta(50)
        other.write_bytes(text if name == "genome.fa" else bgzip_bytes(text, _BLOCK))
        for file in (path, other):
            pysam.faidx(str(file))
        made[name] = Source(path, "sequence", Path(f"{path}.fai"), Path(f"{other}.fai"))
    for name, content in (
        ("places.bed", _bed()),
        ("places.bed.gz", bgzip_bytes(_bed(), _BLOCK)),
        ("genes.gff3", _gff()),
        ("genes.gb", _flat("genbank")),
    ):
        write(name, content, "intervals")
    write("variants.vcf", _vcf(), "variants")
    write("variants.tsv", _table(), "variants")
    bgzipped = write("plain.vcf.gz", bgzip_bytes(_vcf(), _BLOCK), "variants")
    other = write("other.vcf.gz", bgzip_bytes(_vcf(60), _BLOCK), "variants")
    for kind, force_csi in (("tbi", False), ("csi", True)):
        path = folder / f"{kind}.vcf.gz"
        shutil.copyfile(bgzipped, path)
        for file in (path, other):
            pysam.tabix_index(str(file), preset="vcf", csi=force_csi, force=True)
        made[path.name] = Source(path, "variants", Path(f"{path}.{kind}"), Path(f"{other}.{kind}"))
    for name, text in (("variants.bcf", bgzipped), ("other.bcf", other)):
        path = folder / name
        pysam.bcftools.view("--no-version", "-Ob", "-o", str(path), str(text), catch_stdout=False)
        _reblocked(path)
        pysam.bcftools.index("-f", str(path), catch_stdout=False)
    made["variants.bcf"] = Source(
        folder / "variants.bcf", "variants", folder / "variants.bcf.csi", folder / "other.bcf.csi"
    )
    del made["other.vcf.gz"]
    reference = folder / "reference.fa"
    reference.write_text("".join(f">{name}\n{bases}\n" for name, bases in _alignment_genome().items()))
    pysam.faidx(str(reference))
    sam = write("reads.sam", _sam(), "alignments")
    write("reads.sam.gz", bgzip_bytes(_sam(), _BLOCK), "alignments")
    other_sam = folder / "other.sam"
    other_sam.write_bytes(_sam(80))
    for kind in ("bai", "csi"):
        for name, text in ((f"{kind}.bam", sam), (f"other.{kind}.bam", other_sam)):
            path = folder / name
            pysam.view("--no-PG", "-b", "-o", str(path), str(text), catch_stdout=False)
            _reblocked(path)
            pysam.index(*(["-c"] if kind == "csi" else []), str(path))
        made[f"{kind}.bam"] = Source(
            folder / f"{kind}.bam", "alignments", folder / f"{kind}.bam.{kind}", folder / f"other.{kind}.bam.{kind}"
        )
    for name, version in (("reads.cram", "3.0"), ("old.cram", "2.1")):
        for target, text in ((name, sam), (f"other.{name}", other_sam)):
            path = folder / target
            options = ("--output-fmt-option", f"version={version}", "--output-fmt-option", "seqs_per_slice=20")
            pysam.view("--no-PG", "-C", "-T", str(reference), *options, "-o", str(path), str(text), catch_stdout=False)
            pysam.index(str(path))
        path = folder / name
        made[name] = Source(path, "alignments", Path(f"{path}.crai"), folder / f"other.{name}.crai", reference)
    return made


# Mutations


def block_starts(data: bytes) -> list[int]:
    """Where the blocks of a BGZF file begin; none of another file."""
    starts, at = [], 0
    while data[at : at + 4] == b"\x1f\x8b\x08\x04" and len(data) >= at + 18:
        starts.append(at)
        at += struct.unpack_from("<H", data, at + 16)[0] + 1
    return starts


def _range(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice([1, 2, 7, 50, 500]))


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    values = rng.choice([lambda: 0, lambda: 255, lambda: rng.randrange(256), lambda: rng.choice(b'\t\n ,;:0"=*.-')])
    return data[:start] + bytes(values() for _ in range(end - start)) + data[end:]


def _cut(data: bytes, rng: random.Random) -> bytes:
    blocks = block_starts(data)
    if len(blocks) > 1 and rng.random() < 0.6:
        return data[: max(1, rng.choice(blocks) + rng.choice([0, 0, 0, -1, 1, 17, 18, 30]))]
    return data[: rng.randrange(1, len(data))]


def _delete(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    return data[:end] + data[start:end] + data[end:]


def _move(data: bytes, rng: random.Random) -> bytes:
    start, end = _range(data, rng)
    rest = data[:start] + data[end:]
    at = rng.randrange(len(rest) + 1)
    return rest[:at] + data[start:end] + rest[at:]


def _drop_block(data: bytes, rng: random.Random) -> bytes:
    borders = [*block_starts(data), len(data)]
    if len(borders) < 4:
        return _drop_line(data, rng)
    number = rng.randrange(len(borders) - 2)
    return data[: borders[number]] + data[borders[number + 1] :]


def _drop_line(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def _append(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice([b"\0" * 100, data[: rng.randrange(1, 200)], b"\n", b"x", rng.randbytes(50)])


_OF_FILES = (_flip, _flip, _set, _cut, _cut, _delete, _repeat, _move, _drop_block, _drop_line, _append)
_OF_INDEXES = (_flip, _flip, _set, _cut, _delete, _repeat, _append)


def mutate(source: Source, seed: int, folder: Path) -> tuple[Path, str]:
    """A damaged copy of a file, or one with a damaged index; and what was done."""
    rng = random.Random(f"{source.file.name} {seed}")
    path = folder / source.file.name
    data = source.file.read_bytes()
    what = "file"
    is_index = source.index is not None and rng.random() < 0.3
    if not is_index:
        # What bgzip keeps whole is damaged within the blocks too, as by a tool that wrote it wrong.
        inside = bool(block_starts(data)) and rng.random() < 0.3
        change = rng.choice(_OF_FILES)
        what = f"file {change.__name__}{' inside' if inside else ''}"
        unpacked = gzip.decompress(data) if inside else data
        changed = change(unpacked, rng)
        data = bgzip_bytes(changed, _BLOCK) if inside else changed
    path.write_bytes(data)
    os.utime(path, (_NOW, _NOW))
    if source.index is not None and source.other_index is not None:
        for file in _parts(source.index):
            shutil.copyfile(file, folder / file.name)
            os.utime(folder / file.name, (_NOW, _NOW))
        if is_index:
            what = f"index {_damage_index(source, rng, folder)}"
    return path, what


def _parts(index: Path) -> list[Path]:
    gzi = index.with_suffix(".gzi")
    return [index, gzi] if index.suffix == ".fai" and gzi.exists() else [index]


def _damage_index(source: Source, rng: random.Random, folder: Path) -> str:
    assert source.index is not None
    assert source.other_index is not None
    parts = _parts(source.index)
    number = rng.randrange(len(parts))
    target = folder / parts[number].name
    other = _parts(source.other_index)[number]
    how = rng.randrange(5)
    if how == 0:
        target.write_bytes(other.read_bytes())
        os.utime(target, (_NOW, _NOW))
        return "swapped"
    if how == 1:  # of an earlier version of the file
        target.write_bytes(other.read_bytes())
        os.utime(target, (_OLD, _OLD))
        return "older"
    change = rng.choice(_OF_INDEXES)
    content = target.read_bytes()
    if content[:2] == b"\x1f\x8b" and how == 2:
        target.write_bytes(bgzip_bytes(change(gzip.decompress(content), rng)))
    else:
        target.write_bytes(change(content, rng))
    os.utime(target, (_NOW, _NOW))
    return f"{target.suffix} {change.__name__}"


# Judgement


@cache
def _original(folder: Path, name: str) -> list[str]:
    source = sources(folder)[name]
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as cache_home:
        warnings.simplefilter("ignore")
        os.environ["XDG_CACHE_HOME"] = cache_home
        return READERS[source.reader](source.file, source.reference)


def judge(folder: str, name: str, seed: int, keep: str | None = None) -> dict[str, str]:
    """What becomes of one mutant: ``error``, ``original``, ``oracle``, or ``wrong`` and how."""
    source = sources(Path(folder))[name]
    original = _original(Path(folder), name)
    with tempfile.TemporaryDirectory() as workspace:
        place = Path(keep or workspace, "data")
        place.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_CACHE_HOME"] = f"{workspace}/cache"
        path, what = mutate(source, seed, place)
        try:
            # However small the file is, the index beside it is used where it fits.
            with warnings.catch_warnings(), mock.patch.object(files, "_SMALL_BYTES", 0):
                warnings.simplefilter("ignore")
                lines = READERS[source.reader](path, source.reference)
        except gs.GenosparseError as error:
            if what.startswith("index"):
                return {"outcome": "wrong", "what": what, "how": f"the file itself is whole: {error}"}
            if str(path) not in str(error) or "\n" in str(error):
                return {"outcome": "wrong", "what": what, "how": f"a message that is not right: {error}"}
            return {"outcome": "error", "what": what}
        except Exception as error:
            return {"outcome": "wrong", "what": what, "how": f"{type(error).__name__}: {error}"[:500]}
        if lines == original:
            return {"outcome": "original", "what": what}
        if what.startswith("index"):
            where = difference(source.reader, lines, original)
            return {"outcome": "wrong", "what": what, "how": f"not as without the index: {where}"}
        is_whole_only = path.suffix in (".gz", ".bgz", ".bcf", ".bam", ".cram", ".2bit")
        if is_whole_only and what == "file _cut":  # of which samtools and bcftools only warn
            where = f"{len(lines)} records of a file that was cut off"
        else:
            where = _beside_oracle(source, path, lines)
    return {"outcome": "wrong", "what": what, "how": where} if where else {"outcome": "oracle", "what": what}


def _beside_oracle(source: Source, path: Path, lines: list[str]) -> str | None:
    if path.suffix == ".tsv":
        rows = [[cell.strip() for cell in line.split("\t")] for line in text_lines(path)]
        if "contig" in rows[0]:
            rows = rows[1:]
        theirs = ["\t".join([x[0], str(int(x[1])), ".", x[2], x[3], ".", ".", "."]) for x in rows]
        return difference("variants", lines, theirs)
    try:
        if source.reader == "alignments" and any(max(map(ord, line.rpartition("\t")[2])) > ord("~") for line in lines):
            # Qualities that text cannot hold, as a line end may be one of them.
            number = int(run("samtools", "view", "-c", *_with_reference(source), path))
            return None if number == len(lines) else f"{len(lines)} records, and samtools counts {number}"
        theirs = ORACLES[source.reader][1](path, source.reference)
        if (where := difference(source.reader, lines, theirs)) is None:
            return None
    except OracleError as error:
        where = f"{len(lines)} records, and {error}"
    # A byte in the place of a line end is not looked at where an index fits in all else.
    if path.name == "genome.fa" and lines == _by_index(path):
        return None
    # bcftools judges and rewrites samples and INFO, and pysam wants names that are UTF-8: what we carry is text.
    if path.suffix not in (".bcf", ".gb", ".bam", ".cram") and source.reader != "sequence":
        try:
            if difference(source.reader, lines, text_lines(path, source.reader)) is None:
                return None
        except (ValueError, IndexError):
            pass
    return where


def _with_reference(source: Source) -> list[str]:
    return [] if source.reference is None else ["-T", str(source.reference)]


def _by_index(path: Path) -> list[str]:
    """What stands in a FASTA file where the .fai beside it says."""
    data, lines = path.read_bytes(), []
    for record in Path(f"{path}.fai").read_text().splitlines():
        name, *numbers = record.split("\t")
        length, offset, bases, width = map(int, numbers)
        pieces = [data[at : at + bases] for at in range(offset, offset + length // bases * width + width, width)]
        lines.append(f"{name}\t{b''.join(pieces)[:length].decode('latin-1')}")
    return lines


def run_mutants(folder: Path, number: int, *, first_seed: int = 0, workers: int = 1) -> Iterator[tuple[str, int, dict]]:
    """Name, seed and judgement of so many mutants of all kinds in turn."""
    names = list(sources(folder))
    jobs = (
        {"folder": str(folder), "name": names[seed % len(names)], "seed": seed}
        for seed in range(first_seed, first_seed + number)
    )
    for job, result in run_jobs("fuzzing:judge", jobs, seconds=SECONDS, workers=workers):
        if "failed" in result:
            result = {"outcome": "wrong", "how": result["failed"], **result}
        elif result["stderr"]:
            result = {**result, "outcome": "wrong", "how": f"it wrote to standard error: {result['stderr'][:200]}"}
        yield job["name"], job["seed"], result


def tally(results: Iterable[tuple[str, int, dict]], tell: Callable[[str], None]) -> Counter[tuple[str, str]]:
    """Count the outcomes by kind of file, and tell of each mutant that is wrong."""
    counts: Counter[tuple[str, str]] = Counter()
    for name, seed, result in results:
        counts[name, result["outcome"]] += 1
        if result["outcome"] == "wrong":
            tell(f"{name} {seed}: {result.get('what', '')}: {result['how']}")
    return counts


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if len(arguments) == 2 and not arguments[0].isdigit():
            print(judge(folder, arguments[0], int(arguments[1]), keep="mutant"))
            return
        started = time.monotonic()
        number, first_seed = (int(text) for text in [*arguments, "0"][:2])
        results = run_mutants(Path(folder), number, first_seed=first_seed, workers=2)
        counts = tally(results, lambda line: print(line, flush=True))
        for name in sources(Path(folder)):
            print(name, {outcome: counts[name, outcome] for outcome in ("error", "original", "oracle", "wrong")})
        wrong = sum(count for (_, outcome), count in counts.items() if outcome == "wrong")
        print(f"{number} mutants in {time.monotonic() - started:.0f} s, {wrong} wrong")


if __name__ == "__main__":
    main(sys.argv[1:])
