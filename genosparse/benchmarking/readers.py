"""The suite ``readers``: files to tokens, variants and channels, beside what people read them with.

All of a task are timed by turns in one process. Windows are the same for all readers of a file; rivals open their files
once, as genosparse does, and what they give is brought to the same point: token ids, alleles, or sums by position.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pysam
import torch
from numpy.typing import NDArray

from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.benchmarking.timers import Call, Timing, TooSlowError, time_in_turns, timer_for
from genosparse.errors import ConfigError
from genosparse.intervals import Interval
from genosparse.outputs import fingerprint
from genosparse.readers import Alignments, Genome, read_variants
from genosparse.readers._htslib import quiet_htslib
from genosparse.tokenizers import NUCLEOTIDE_CODES, NucleotideTokenizer

__all__ = ["LENGTHS", "ReaderSuite"]

LENGTHS = (4_096, 131_072, 1_048_576)
"""Bases of the windows, unless others are given."""

CURVES = "readers.png"
_BASES = tuple("ACGT")
_NUM_WINDOWS = 32
_MOST_BASES = 16_000_000  # of all windows of a length
_ENCODED_BASES = 16_000_000
_SPAN = 1_000_000  # of alignments, the positions that are read
_MADE_SPAN, _READ_LENGTH, _DEPTH, _ERRORS = (
    200_000,
    150,
    30,
    0.01,
)  # of the reads that are made where no alignments are given


@dataclass(frozen=True)
class ReaderSuite:
    """Reading, beside other readers.

    Args:
        genome: FASTA, plain or bgzip.
        variants: VCF or BCF.
        alignments: BAM or CRAM on the genome; None makes reads of the genome.
        reference: What CRAM was made with; None for the genome.
        lengths: Bases of the windows that are read.
        repeats: Timed runs of each.
        max_seconds: Most seconds for the timed runs of one reader.
        seed: Of the windows and of the reads that are made.

    Raises:
        ConfigError: A length does not fit in any contig; or the genome is not one that others read, or alignments have
            no index or no mapped read.
        GenosparseError: A file cannot be read.
    """

    genome: str
    variants: str
    alignments: str | None = None
    reference: str | None = None
    lengths: tuple[int, ...] = LENGTHS
    repeats: int = 5
    max_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        with Genome(self.genome) as genome:
            longest = max(genome.contigs.values())
        for length in self.lengths:
            if length > longest:
                raise ConfigError(
                    f"lengths: {length} is longer than any contig of {self.genome}, the longest of which has {longest} "
                    "bases; give lengths= that fit"
                )
        # All that a unit opens is opened here once: what cannot be measured is told before a run is begun.
        with quiet_htslib():
            _bare_fasta(self.genome).close()
            next(iter(read_variants(self.variants)), None)
            if self.alignments is not None:
                with Alignments(self.alignments, self._cram_reference) as alignments:
                    _busiest(alignments)
                with pysam.AlignmentFile(self.alignments, reference_filename=self._cram_reference) as file:
                    if not file.has_index():
                        raise ConfigError(
                            f"alignments={self.alignments} has no index, which others need; run samtools index on it"
                        )

    @property
    def _cram_reference(self) -> str:
        return self.reference or self.genome

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        files = {key: getattr(self, key) for key in ("genome", "variants", "alignments", "reference")}
        return {
            **{key: None if path is None else fingerprint(path) for key, path in files.items()},
            "lengths": list(self.lengths),
            "repeats": self.repeats,
            "max_seconds": self.max_seconds,
            "seed": self.seed,
        }

    def units(self) -> list[Unit]:
        """One unit per length of windows, one for encoding, variants and alignments each."""
        lengths = sorted(set(self.lengths))
        return [
            *(Unit(f"sequence {length}") for length in lengths),
            Unit("encode"),
            Unit("variants"),
            Unit("alignments"),
        ]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Time all readers of a task by turns."""
        task, _, length = unit.name.partition(" ")
        with contextlib.ExitStack() as stack:
            stack.enter_context(quiet_htslib())  # it tells of indexes that nobody asked for
            if task == "sequence":
                amount, what, calls = self._sequence(stack, int(length))
            else:
                amount, what, calls = getattr(self, f"_{task}")(stack)
            results = time_in_turns(
                {name: _told(call) if isinstance(call, str) else _guarded(call) for name, call in calls.items()},
                timer_for(torch.device("cpu")),
                repeats=self.repeats,
                max_seconds=dict.fromkeys(calls, self.max_seconds),
                expected=(_RefusedError, TooSlowError),
            )
        bare = results[next(iter(calls))]
        return [
            _row(task, int(length) if length else None, name, result, bare, amount, what)
            for name, result in results.items()
        ]

    def _sequence(self, stack: contextlib.ExitStack, length: int) -> tuple[float, str, dict[str, Call | str]]:
        genome = stack.enter_context(Genome(self.genome))
        intervals = self._windows(genome, length)
        path = str(self.genome)

        def each(fetch: Callable[[Interval], object]) -> Call:
            def read() -> None:
                begin = time.perf_counter()
                for number, interval in enumerate(intervals, start=1):
                    fetch(interval)
                    spent = time.perf_counter() - begin
                    if spent > self.max_seconds and number < len(intervals):
                        raise TooSlowError(spent, f"{number} of {len(intervals)} windows")

            return read

        calls: dict[str, Call | str] = {}
        bare = stack.enter_context(_bare_fasta(path))
        calls["pysam, bare text"] = each(lambda interval: bare.fetch(interval.contig, interval.start, interval.end))
        calls["genosparse"] = each(genome.tokens)
        calls["genosparse, with soft mask"] = each(lambda interval: genome.tokens(interval, return_soft_mask=True))
        calls["pysam + Python's dict"] = each(
            lambda interval: _by_dict(bare.fetch(interval.contig, interval.start, interval.end))
        )
        try:
            from pyfaidx import Fasta
        except ImportError:
            calls["pyfaidx + Python's dict"] = "pyfaidx is not installed; pip install 'genosparse[benchmark]'"
        else:
            fasta = stack.enter_context(Fasta(path, as_raw=True, rebuild=False))
            calls["pyfaidx + Python's dict"] = each(
                lambda interval: _by_dict(fasta[interval.contig][interval.start : interval.end])
            )
        calls["biopython + Python's dict"] = each(lambda interval: _by_dict(_biopython(path, interval)))
        return float(length * len(intervals)), "bases", calls

    def _encode(self, stack: contextlib.ExitStack) -> tuple[float, str, dict[str, Call | str]]:
        random = np.random.default_rng(self.seed)
        letters = random.choice(np.frombuffer(b"ACGTacgtN", np.uint8), _ENCODED_BASES).tobytes()
        packed = random.choice(np.array([0x11, 0x12, 0x48, 0x84, 0x1F], np.uint8), _ENCODED_BASES // 2)
        text, tokenizer = letters.decode(), NucleotideTokenizer()
        calls: dict[str, Call | str] = {
            "bytearray(), a copy": lambda: bytearray(letters),
            "genosparse, str": lambda: tokenizer.encode(text),
            "genosparse, bytes": lambda: tokenizer.encode(letters),
            "genosparse, str with soft mask": lambda: tokenizer.encode(text, return_soft_mask=True),
            "genosparse, BAM's packed bases": lambda: tokenizer.unpack(packed, _ENCODED_BASES),
            "Python's dict": lambda: _by_dict(text),
        }
        return float(_ENCODED_BASES), "bases", calls

    def _variants(self, stack: contextlib.ExitStack) -> tuple[float, str, dict[str, Call | str]]:
        path = str(self.variants)

        def bare() -> int:
            with pysam.VariantFile(path) as file:
                return sum(1 for _ in file)

        def alleles() -> int:
            with pysam.VariantFile(path) as file:
                return sum(len(record.alts or ()) for record in file if record.chrom and record.pos and record.ref)

        count = sum(1 for _ in read_variants(path))
        calls: dict[str, Call | str] = {
            "pysam, bare iteration": bare,
            "genosparse": lambda: sum(len(variant.alts) for variant in read_variants(path)),
            "pysam, alleles": alleles,
        }
        return float(count), "records", calls

    def _alignments(self, stack: contextlib.ExitStack) -> tuple[float, str, dict[str, Call | str]]:
        path, reference = self.alignments, self._cram_reference
        if path is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="genosparse-")))
            path = str(_make_alignments(folder / "reads.bam", self.genome, self.seed))
        options = {"reference_filename": reference}
        alignments = stack.enter_context(Alignments(path, reference))
        interval = _busiest(alignments)
        where = interval.contig, interval.start, interval.end

        def iterate() -> int:
            with pysam.AlignmentFile(path, **options) as file:
                return sum(1 for _ in file.fetch(*where))

        def count() -> object:
            with pysam.AlignmentFile(path, **options) as file:
                return file.count_coverage(*where, quality_threshold=0)

        calls: dict[str, Call | str] = {
            "pysam, bare iteration": iterate,
            "genosparse, depth": lambda: alignments.channels(interval, ("depth",)),
            "genosparse, A C G T": lambda: alignments.channels(interval, _BASES),
            "genosparse, all channels": lambda: alignments.channels(interval),
            "pysam, count_coverage": count,
        }
        return float(iterate()), "reads", calls

    def _windows(self, genome: Genome, length: int) -> list[Interval]:
        random = np.random.default_rng([self.seed, length])
        contigs = {name: size for name, size in genome.contigs.items() if size >= length}
        weights = np.array([size - length + 1 for size in contigs.values()], float)
        names = random.choice(
            list(contigs), max(2, min(_NUM_WINDOWS, _MOST_BASES // length)), p=weights / weights.sum()
        )
        starts = [int(random.integers(contigs[name] - length + 1)) for name in names]
        return [Interval(str(name), start, start + length) for name, start in zip(names, starts, strict=True)]

    def table(self, rows: Sequence[Row]) -> str:
        """The readers as text for a terminal, task by task."""
        cells = [
            [
                row["task"] if row["length"] is None else f"{row['task']}, {row['length']:,} bp",
                row["implementation"],
                significant(1e3 * row["seconds"]) if row["seconds"] else "-",
                " to ".join(significant(1e3 * row[key]) for key in ("seconds_min", "seconds_max"))
                if row["seconds"]
                else "",
                f"{significant(row['rate'])} {row['unit']}/s" if row["seconds"] else "",
                significant(row["of_first"]),
                row["note"],
            ]
            for row in rows
        ]
        return f"{text_table(_TITLES, cells, left=('task', 'reader', 'note'))}\n\n{_LEGEND}"

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Draw the time of sequence windows by their length."""
        from genosparse.plotting import plot_scaling

        curves: dict[str, list[tuple[float, float, float, float]]] = {}
        for row in rows:
            if row["task"] == "sequence" and row["seconds"]:
                per_window = 1e3 * row["length"] / row["amount"]
                times = (per_window * row[key] for key in ("seconds", "seconds_min", "seconds_max"))
                curves.setdefault(row["implementation"], []).append((row["length"], *times))
        plot_scaling(run_dir / CURVES, {"FASTA window to tokens": curves}, "length (bp)", "time (ms)")
        return [run_dir / CURVES]


_TITLES = ("task", "reader", "ms", "min to max", "rate", "of the first", "note")
_LEGEND = """\
ms is the median of the runs; 'of the first' is the time over that of the task's first reader, which does least.
Python's dict is the encoding of most scripts, [table[base] for base in sequence]."""
_TABLE = {letter: index for index, base in enumerate(NUCLEOTIDE_CODES) for letter in (base, base.lower())}


class _RefusedError(Exception):
    """A rival cannot be run."""


def _row(
    task: str,
    length: int | None,
    name: str,
    result: Timing | Exception,
    first: Timing | Exception,
    amount: float,
    unit: str,
) -> Row:
    row: Row = {
        "task": task,
        "length": length,
        "implementation": name,
        "status": "measured",
        "note": "",
        "amount": amount,
        "unit": unit,
        "repeats": None,
        "seconds": None,
        "seconds_min": None,
        "seconds_max": None,
        "rate": None,
        "of_first": None,
    }
    if isinstance(result, Exception):
        return row | {"status": "stopped" if isinstance(result, TooSlowError) else "refused", "note": str(result)}
    return row | {
        "repeats": result.repeats,
        "seconds": result.median,
        "seconds_min": result.least,
        "seconds_max": result.most,
        "rate": amount / result.median,
        "of_first": result.median / first.median if isinstance(first, Timing) else None,
    }


def _guarded(call: Call) -> Call:
    """A rival's own errors, whatever they are, are told in the table; ours are bugs and files that cannot be read."""

    def run() -> object:
        try:
            return call()
        except (OSError, KeyError, ImportError) as error:
            raise _RefusedError((str(error).splitlines() or [type(error).__name__])[0]) from None

    return run


def _told(reason: str) -> Call:
    def run() -> object:
        raise _RefusedError(reason)

    return run


def _by_dict(sequence: str) -> NDArray[np.uint8]:
    return np.array([_TABLE[base] for base in sequence], np.uint8)


def _biopython(path: str, interval: Interval) -> str:
    from Bio import SeqIO, bgzf

    # Biopython has no index by position: it reads the records up to the wanted one, whole.
    with bgzf.open(path, "rt") if path.endswith("gz") else Path(path).open() as file:
        for record in SeqIO.parse(file, "fasta"):
            if record.id == interval.contig:
                return str(record.seq[interval.start : interval.end])
    raise KeyError(interval.contig)


def _bare_fasta(path: str) -> pysam.FastaFile:
    try:
        return pysam.FastaFile(path)
    except OSError:
        raise ConfigError(
            f"genome={path} is not FASTA that others read, plain or bgzip; convert it first, as "
            "zcat ref.fa.gz | bgzip > ref.bgzip.fa.gz"
        ) from None


def _busiest(alignments: Alignments) -> Interval:
    """A stretch from the first read on."""
    first = next(iter(alignments.reads()), None)
    if first is None or first.contig is None:
        raise ConfigError(f"alignments={alignments.path} begins with no mapped read; give a sorted file with some")
    end = min(first.position0 + _SPAN, alignments.contigs[first.contig])
    return Interval(first.contig, first.position0, end)


def _make_alignments(path: Path, genome_path: str, seed: int) -> Path:
    """Reads with errors from the beginning of a genome's longest contig, in a BAM file with its index."""
    random = np.random.default_rng(seed)
    with Genome(genome_path) as genome:
        contig, length = max(genome.contigs.items(), key=lambda item: item[1])
        bases = np.frombuffer(genome.fetch(Interval(contig, 0, min(length, _MADE_SPAN))).upper().encode(), np.uint8)
    size = min(_READ_LENGTH, len(bases))
    starts = np.sort(random.integers(0, len(bases) - size + 1, _DEPTH * len(bases) // size))
    reads = bases[starts[:, None] + np.arange(size)]
    wrong = random.random(reads.shape) < _ERRORS
    reads[wrong] = random.choice(np.frombuffer(b"ACGT", np.uint8), np.count_nonzero(wrong))
    qualities = pysam.qualitystring_to_array("I" * size)
    header = pysam.AlignmentHeader.from_references([contig], [length])
    with pysam.AlignmentFile(str(path), "wb", header=header) as file:
        for number, (start, read) in enumerate(zip(starts.tolist(), reads, strict=True)):
            segment = pysam.AlignedSegment(header)
            segment.query_name, segment.query_sequence = f"read{number}", read.tobytes().decode()
            segment.flag, segment.reference_id, segment.reference_start = 16 * (number % 2), 0, start
            segment.mapping_quality, segment.cigartuples, segment.query_qualities = 60, [(0, size)], qualities
            file.write(segment)
    pysam.index(str(path))
    return path
