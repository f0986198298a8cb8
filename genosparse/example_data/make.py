"""Make the bundled example data from the genome of E. coli 536 as Debian's package bowtie-examples has it.

    dpkg-deb -x bowtie-examples_1.3.1-1_all.deb bowtie-examples
    python -m genosparse.example_data.make bowtie-examples/usr/share/doc/bowtie/examples/genomes/NC_008253.fna.gz FOLDER

writes the genome (bgzip, with its indexes), a VCF of stop-gained and synonymous variants, and a BED of ten open reading
frames into FOLDER. The same input gives the same files.
"""

import argparse
import gzip
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pysam
from Bio import SeqIO
from Bio.Data import CodonTable
from Bio.Seq import Seq

__all__ = [
    "OpenReadingFrame",
    "Substitution",
    "choose_substitutions",
    "find_open_reading_frames",
    "main",
    "substitutions",
]

CONTIG = "NC_008253.1"
DESCRIPTION = "Escherichia coli 536, complete genome"
HELD_OUT_FRACTION = 0.1
_SEED = 536
_MIN_CODONS = 300
_PAIRS = 200
_INTERVALS = 10
_LONGEST_INTERVAL = 2048
_TABLE = CodonTable.unambiguous_dna_by_id[11]  # the bacterial code
_LINE = 80


@dataclass(frozen=True)
class OpenReadingFrame:
    """From a start codon to the base before the stop codon: 0-based, half-open, on the plus strand's coordinates."""

    start: int
    end: int
    strand: str


@dataclass(frozen=True)
class Substitution:
    """A single-base change within an open reading frame; ``ref`` and ``alt`` are bases of the plus strand."""

    frame: OpenReadingFrame
    position0: int
    ref: str
    alt: str
    codons: str
    consequence: str

    @property
    def coding_change(self) -> str:
        """The change on the coding strand: ``C>T``."""
        ref, alt = (self.ref, self.alt) if self.frame.strand == "+" else map(_reverse_complement, (self.ref, self.alt))
        return f"{ref}>{alt}"


def find_open_reading_frames(genome: str) -> list[OpenReadingFrame]:
    """Find ATG-to-stop frames of at least 300 codons; of frames that overlap, on either strand, the longest is kept."""
    found = []
    for strand, sequence in (("+", genome), ("-", _reverse_complement(genome))):
        for offset in range(3):
            coding = sequence[offset : offset + (len(sequence) - offset) // 3 * 3]
            protein = str(Seq(coding).translate(table=_TABLE.id))
            begin = 0
            while (stop := protein.find("*", begin)) >= 0:
                first = next(
                    (codon for codon in range(begin, stop) if coding[3 * codon : 3 * codon + 3] == "ATG"), stop
                )
                if stop - first >= _MIN_CODONS:
                    start, end = offset + 3 * first, offset + 3 * stop
                    if strand == "-":
                        start, end = len(genome) - end, len(genome) - start
                    found.append(OpenReadingFrame(start, end, strand))
                begin = stop + 1
    kept: list[OpenReadingFrame] = []
    taken = bytearray(len(genome))
    for frame in sorted(found, key=lambda frame: (frame.start - frame.end, frame.start)):
        if not any(taken[frame.start : frame.end]):
            taken[frame.start : frame.end] = b"\1" * (frame.end - frame.start)
            kept.append(frame)
    return sorted(kept, key=lambda frame: frame.start)


def substitutions(genome: str, frame: OpenReadingFrame) -> Iterator[Substitution]:
    """Yield the stop-gained and synonymous substitutions of a frame, without its start codon and its last tenth.

    A protein that is cut off near its end often still works, so that a stop there says little.
    """
    coding = genome[frame.start : frame.end]
    if frame.strand == "-":
        coding = _reverse_complement(coding)
    for place in range(3, int(len(coding) * 0.9) // 3 * 3):
        ref = coding[place]
        codon = coding[place // 3 * 3 : place // 3 * 3 + 3]
        for alt in "ACGT".replace(ref, ""):
            changed = codon[: place % 3] + alt + codon[place % 3 + 1 :]
            if changed in _TABLE.stop_codons:
                consequence = "stop_gained"
            elif _TABLE.forward_table[changed] == _TABLE.forward_table[codon]:
                consequence = "synonymous"
            else:
                continue
            codons = f"{codon}>{changed}"
            if frame.strand == "+":
                yield Substitution(frame, frame.start + place, ref, alt, codons, consequence)
            else:
                ref_alt = _reverse_complement(ref), _reverse_complement(alt)
                yield Substitution(frame, frame.end - 1 - place, *ref_alt, codons, consequence)


def choose_substitutions(genome: str, frames: list[OpenReadingFrame], pairs: int) -> list[Substitution]:
    """Draw pairs of a stop-gained and a synonymous substitution that are alike in all else.

    Both lie in the same frame, within a tenth of its length of each other, and change the same base of the coding
    strand to the same other base, so that neither place nor kind of change can tell the classes apart. At most one pair
    is drawn from a frame.
    """
    generator = random.Random(_SEED)
    chosen: list[Substitution] = []
    for frame in generator.sample(frames, len(frames)):
        candidates = list(substitutions(genome, frame))
        stop = generator.choice([one for one in candidates if one.consequence == "stop_gained"])
        partners = [
            one
            for one in candidates
            if one.consequence == "synonymous"
            and one.coding_change == stop.coding_change
            and abs(one.position0 - stop.position0) <= (frame.end - frame.start) // 10
        ]
        if partners:
            chosen += [stop, generator.choice(partners)]
        if len(chosen) == 2 * pairs:
            return sorted(chosen, key=lambda one: one.position0)
    raise ValueError(f"the genome has only {len(chosen) // 2} such pairs where {pairs} are wanted")


def main() -> None:
    """Write the example data."""
    parser = argparse.ArgumentParser(description="Make genosparse's example data.")
    parser.add_argument("fasta", type=Path, help="NC_008253.fna.gz of Debian's bowtie-examples")
    parser.add_argument("folder", type=Path, help="where to write")
    arguments = parser.parse_args()
    with gzip.open(arguments.fasta, "rt") as file:
        genome = str(SeqIO.read(file, "fasta").seq).upper()
    frames = find_open_reading_frames(genome)
    chosen = choose_substitutions(genome, frames, _PAIRS)

    _write_genome(arguments.folder / "ecoli536.fa.gz", genome)
    _write_vcf(arguments.folder / "ecoli536.variants.vcf.gz", genome, chosen)
    generator = random.Random(_SEED)
    intervals = []
    for strand in "+-":
        short = [frame for frame in frames if frame.strand == strand and frame.end - frame.start <= _LONGEST_INTERVAL]
        intervals += generator.sample(short, _INTERVALS // 2)
    intervals.sort(key=lambda frame: frame.start)
    lines = [
        f"{CONTIG}\t{frame.start}\t{frame.end}\torf{index}\t0\t{frame.strand}\n"
        for index, frame in enumerate(intervals, 1)
    ]
    (arguments.folder / "ecoli536.intervals.bed").write_text("".join(lines))
    held_out = sum(one.position0 >= _held_out_start(genome) for one in chosen)
    print(f"{len(frames)} frames, {len(chosen)} variants, {held_out} of them in the held-out tenth")  # noqa: T201


def _held_out_start(genome: str) -> int:
    return len(genome) - int(len(genome) * HELD_OUT_FRACTION)


def _write_genome(path: Path, genome: str) -> None:
    lines = "".join(f"{genome[start : start + _LINE]}\n" for start in range(0, len(genome), _LINE))
    with pysam.BGZFile(str(path), "wb9") as file:
        file.write(f">{CONTIG} {DESCRIPTION}\n{lines}".encode())
    pysam.faidx(str(path))


def _write_vcf(path: Path, genome: str, chosen: list[Substitution]) -> None:
    lines = [
        "##fileformat=VCFv4.2",
        f"##contig=<ID={CONTIG},length={len(genome)}>",
        '##INFO=<ID=CLASS,Number=1,Type=String,Description="stop_gained or synonymous, by the bacterial code">',
        '##INFO=<ID=STRAND,Number=1,Type=String,Description="Strand of the open reading frame">',
        '##INFO=<ID=ORF,Number=1,Type=String,Description="First and last base of the open reading frame, 1-based, '
        'from its start codon to the base before its stop codon">',
        '##INFO=<ID=CODON,Number=1,Type=String,Description="Codon before and after the change, on the coding strand">',
        '##INFO=<ID=HELD_OUT,Number=0,Type=Flag,Description="In the last tenth of the genome">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
    ]
    for one in chosen:
        frame = one.frame
        info = f"CLASS={one.consequence};STRAND={frame.strand};ORF={frame.start + 1}-{frame.end};CODON={one.codons}"
        if one.position0 >= _held_out_start(genome):
            info += ";HELD_OUT"
        lines.append(f"{CONTIG}\t{one.position0 + 1}\t.\t{one.ref}\t{one.alt}\t.\t.\t{info}")
    with pysam.BGZFile(str(path), "wb9") as file:
        file.write("".join(f"{line}\n" for line in lines).encode())


def _reverse_complement(sequence: str) -> str:
    return str(Seq(sequence).reverse_complement())


if __name__ == "__main__":
    main()
