"""SAM text into BAM and CRAM files, and the sums over reads that pysam's own values give, one base at a time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pysam
from numpy.typing import NDArray

from genosparse.channels import CHANNELS
from genosparse.readers import ReadFilters

CONTIGS = {"one": 400, "two": 300}
HEADER = "@HD\tVN:1.6\tSO:coordinate\n" + "".join(f"@SQ\tSN:{name}\tLN:{size}\n" for name, size in CONTIGS.items())


def sam_line(
    name: str,
    position: int,
    cigar: str,
    *,
    flags: int = 0,
    contig: str = "one",
    quality: int = 60,
    bases: str | None = None,
    qualities: str | None = None,
    mate: tuple[str, int] = ("*", 0),
) -> str:
    """A record; ``position`` is 1-based, as in SAM."""
    length = sum(int(size) for size, kind in parts_of(cigar) if kind in "MIS=X")
    if cigar == "*" and bases is not None:
        length = len(bases)
    bases = "ACGT" * (length // 4 + 1) if bases is None else bases
    bases = bases[:length] if bases != "*" else bases
    qualities = "I" * length if qualities is None else qualities
    qualities = "*" if bases == "*" else qualities
    return "\t".join(map(str, (name, flags, contig, position, quality, cigar, mate[0], mate[1], 0, bases, qualities)))


def parts_of(cigar: str) -> list[tuple[str, str]]:
    parts, digits = [], ""
    for letter in cigar.replace("*", ""):
        if letter.isdigit():
            digits += letter
        else:
            parts.append((digits, letter))
            digits = ""
    return parts


def write_bam(path: Path, lines: Sequence[str], header: str = HEADER) -> Path:
    """A sorted BAM file."""
    text = path.with_suffix(".text.sam")
    text.write_text(header + "".join(f"{line}\n" for line in lines))
    pysam.sort("-o", str(path), str(text))
    text.unlink()
    return path


def channels_by_hand(path: Path, contig: str, start: int, end: int, filters: ReadFilters) -> NDArray[np.float64]:
    """All channels ``[length, 11]``, read by read and base by base, without a limit of depth."""
    sums = {name: np.zeros(end - start) for name in (*CHANNELS, "known")}
    ends: dict[str, tuple[int, int]] = {}
    with pysam.AlignmentFile(str(path)) as file:
        for read in file.fetch(until_eof=True):
            if read.flag & filters.exclude_flags or read.flag & filters.require_flags != filters.require_flags:
                continue
            if read.mapping_quality < filters.min_mapping_quality or read.reference_name != contig:
                continue
            visible = -1
            if read.is_paired and not read.flag & 0x908 and read.next_reference_name == contig:
                mate = read.flag & 0x80
                if read.query_name in ends and ends[read.query_name][0] != mate:
                    visible = ends.pop(read.query_name)[1]
                elif read.reference_start <= read.next_reference_start < read.reference_end:
                    ends[read.query_name] = mate, read.reference_end
            if filters.count_overlaps:
                visible = -1
            _add_read(sums, read, visible, start, end, filters)
    depth = sums["depth"]
    bases = depth - sums["deletion"]
    columns = []
    for name in CHANNELS:
        over = None if name == "depth" else sums["known"] if name == "base_quality" else depth
        total = sums[name]
        columns.append(total if over is None else np.divide(total, over, out=np.zeros(end - start), where=over > 0))
    assert (sums["known"] <= bases).all()
    return np.stack(columns, axis=1)


def _add_read(
    sums: dict[str, NDArray[np.float64]],
    read: pysam.AlignedSegment,
    visible: int,
    start: int,
    end: int,
    filters: ReadFilters,
) -> None:
    operations = [(kind, length) for kind, length in read.cigartuples or [] if kind != 6]
    position, offset = read.reference_start, 0
    counted: dict[int, bool] = {}
    events: list[tuple[str, int]] = []
    before = None
    for number, (kind, length) in enumerate(operations):
        if kind in (0, 7, 8, 2):
            for step in range(length):
                at = position + step
                base = quality = None
                if kind != 2:
                    base = read.query_sequence[offset + step] if read.query_sequence else "N"
                    quality = read.query_qualities[offset + step] if read.query_qualities else 255
                    quality = 255 if read.query_qualities is None else quality
                passed = kind == 2 or quality >= filters.min_base_quality
                passed = passed and at >= visible
                counted[at] = passed
                if passed and start <= at < end:
                    row = at - start
                    sums["depth"][row] += 1
                    sums["mapping_quality"][row] += read.mapping_quality
                    sums["reverse_strand"][row] += read.is_reverse
                    if kind == 2:
                        sums["deletion"][row] += 1
                        continue
                    if base in "ACGT":
                        sums[base][row] += 1
                    if quality != 255:
                        sums["base_quality"][row] += quality
                        sums["known"][row] += 1
        elif kind == 1 and before in (0, 7, 8, 2):
            events.append(("insertion", position - 1))
        elif kind == 4:
            inner = [k for k, _ in (operations[number + 1 :] if not counted else operations[:number][::-1]) if k != 1]
            if inner and inner[0] in (0, 7, 8, 2):
                events.append(("soft_clip", position - 1 if counted else position))
        if kind in (0, 2, 3, 7, 8):
            position += length
        if kind in (0, 1, 4, 7, 8):
            offset += length
        before = kind
    for name, at in set(events):
        if counted.get(at) and start <= at < end:
            sums[name][at - start] += 1


def write_sample(
    folder: Path,
    contigs: Mapping[str, int],
    *,
    depth: int = 8,
    read_length: int = 50,
    seed: int = 0,
    change: Callable[[str, int, list[str], list[str]], None] | None = None,
    name: str = "sample",
) -> tuple[Path, Path]:
    """A genome of random bases and a sorted BAM of reads of it, a half of them on the reverse strand.

    ``change`` may alter a read's bases and qualities in place, given its contig and first position, 0-based.
    """
    random = np.random.default_rng(seed)
    lines = []
    sequences = {contig: "".join(random.choice(list("ACGT"), length)) for contig, length in contigs.items()}
    for contig, sequence in sequences.items():
        for index in range(depth * len(sequence) // read_length):
            start = int(random.integers(0, len(sequence) - read_length + 1))
            bases = list(sequence[start : start + read_length])
            if random.random() < 0.5:
                place = int(random.integers(read_length))
                bases[place] = str(random.choice(list("ACGT")))
            qualities = [chr(33 + quality) for quality in random.integers(2, 40, read_length).tolist()]
            if change is not None:
                change(contig, start, bases, qualities)
            read = sam_line(
                f"{contig}-{index}", start + 1, f"{read_length}M", flags=16 * (index % 2), contig=contig,
                quality=int(random.integers(10, 60)), bases="".join(bases), qualities="".join(qualities),
            )  # fmt: skip
            lines.append(read)
    fasta = folder / f"{name}.fa"
    fasta.write_text("".join(f">{contig}\n{sequence}\n" for contig, sequence in sequences.items()))
    header = "@HD\tVN:1.6\tSO:coordinate\n" + "".join(f"@SQ\tSN:{name}\tLN:{size}\n" for name, size in contigs.items())
    return fasta, write_bam(folder / f"{name}.bam", lines, header)
