"""The suite ``variant-effect``: every SNV of some sites scored by ``score_variants``, beside the naive loop.

The naive loop takes REF and ALT one by one: for each ALT and each strand, one forward pass for REF's log-probability
and one for ALT's, of the same masked window. Who takes all bases from one pass per site and strand has no such factor
to gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genosparse.attention import SparsePattern
from genosparse.benchmarking.results import Row
from genosparse.benchmarking.suites import Unit
from genosparse.benchmarking.tables import significant, text_table
from genosparse.benchmarking.timers import Call, Timing, TooSlowError, time_in_turns, timer_for
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError
from genosparse.intervals import Interval
from genosparse.outputs import fingerprint
from genosparse.readers import Genome, Variant
from genosparse.tokenizers import MASK, NucleotideTokenizer
from genosparse.variant_effect.scores import score_variants
from genosparse.variant_effect.windows import site_window

__all__ = ["VariantEffectSuite"]

CURVES = "variant-effect.png"
_TOLERANCE = 1e-4  # nats
_BASES = "ACGT"
_TOKENIZER = NucleotideTokenizer()
_OURS, _NAIVE = "genosparse", "naive loop"


@dataclass(frozen=True)
class VariantEffectSuite:
    """Scores of SNVs by length of context, beside the naive loop.

    Args:
        genome: FASTA.
        model: Folder of a model; None makes one of random weights of the shape below.
        pattern: Of its attention.
        lengths: Bases of context.
        layers: Blocks.
        width: Channels of the hidden states.
        heads: Query heads.
        kv_heads: KV heads.
        sites: Sites in a row that are scored, each with its three SNVs.
        repeats: Timed runs of each.
        max_seconds: Most seconds for the timed runs of one way at one context.
        seed: Of the sites.

    Raises:
        ConfigError: A value cannot be used.
        GenosparseError: A file cannot be read.
    """

    genome: str
    model: str | None
    pattern: SparsePattern
    lengths: tuple[int, ...] = (512, 2048, 8192)
    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 2
    sites: int = 64
    repeats: int = 5
    max_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ConfigError("lengths=[] names none; give one or more")
        encoder = self._encoder()
        if max(self.lengths) > encoder.config.max_length:
            raise ConfigError(
                f"lengths: {max(self.lengths)} is longer than the model's max_length of {encoder.config.max_length}"
            )
        if encoder.config.channels:
            raise ConfigError(f"model={self.model} takes channels of alignments; the suite measures models without")
        with Genome(self.genome) as genome:
            if max(genome.contigs.values()) < self.sites:
                raise ConfigError(f"sites={self.sites} is more than the longest contig of {self.genome} has")

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what is measured, as JSON values."""
        shape: dict[str, Any] = {name: getattr(self, name) for name in ("layers", "width", "heads", "kv_heads")}
        return {
            "genome": fingerprint(self.genome),
            "model": None if self.model is None else self._encoder().fingerprint(),
            **(shape | {"pattern": self.pattern.to_dict()} if self.model is None else {}),
            "lengths": list(self.lengths),
            "sites": self.sites,
            "repeats": self.repeats,
            "max_seconds": self.max_seconds,
            "seed": self.seed,
        }

    def _encoder(self) -> Encoder:
        if self.model is not None:
            return Encoder.from_pretrained(self.model)
        torch.manual_seed(self.seed)
        return Encoder(
            EncoderConfig(
                d_model=self.width,
                num_layers=self.layers,
                num_heads=self.heads,
                num_kv_heads=self.kv_heads,
                patterns=(self.pattern,),
                max_length=max(self.lengths),
            )
        ).eval()

    def units(self) -> list[Unit]:
        """One unit per context."""
        return [Unit(f"context {length}", float(length)) for length in sorted(set(self.lengths))]

    def measure(self, unit: Unit, earlier: Sequence[Row]) -> list[Row]:
        """Score by both ways, check that they agree, and time them by turns."""
        context = int(unit.name.split()[1])
        encoder = self._encoder()
        with Genome(self.genome) as genome:
            variants = self._variants(genome)
            scores: dict[str, NDArray[np.float32]] = {}

            def ours() -> None:
                table = score_variants(encoder, genome, variants, scores="llr", context=context)
                scores[_OURS] = table["llr"]

            def naive() -> None:
                scores[_NAIVE] = _score_naively(encoder, genome, variants, context)

            calls: dict[str, Call] = {_OURS: ours, _NAIVE: naive}
            results = time_in_turns(
                calls,
                timer_for(torch.device("cpu")),
                repeats=self.repeats,
                max_seconds=dict.fromkeys(calls, self.max_seconds),
            )
        difference = float(np.abs(scores[_OURS] - scores[_NAIVE]).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(scores[_NAIVE]).max())):
            raise AssertionError(f"scores of the two ways differ by {difference:.2g} nats at context {context}")
        first = results[_OURS]
        return [
            _row(name, context, 3 * self.sites, result, first if isinstance(first, Timing) else None, difference)
            for name, result in results.items()
        ]

    def _variants(self, genome: Genome) -> list[Variant]:
        """All SNVs of a stretch of the longest contig."""
        contig, length = max(genome.contigs.items(), key=lambda item: item[1])
        start = int(np.random.default_rng(self.seed).integers(length - self.sites + 1))
        bases = genome.fetch(Interval(contig, start, start + self.sites)).upper()
        unknown = sorted(set(bases) - set(_BASES))
        if unknown:
            raise ConfigError(
                f"seed={self.seed}: {contig} has {', '.join(unknown)} among the {self.sites} bases from {start}; "
                "give another seed="
            )
        return [
            Variant(contig, start + offset, base, tuple(alt for alt in _BASES if alt != base))
            for offset, base in enumerate(bases)
        ]

    def table(self, rows: Sequence[Row]) -> str:
        """The two ways as text for a terminal, context by context."""
        cells = [
            [
                f"{row['context']:,}",
                row["implementation"],
                significant(row["seconds"]),
                " to ".join(significant(row[key]) for key in ("seconds_min", "seconds_max")) if row["seconds"] else "",
                significant(row["variants_per_second"]),
                significant(row["over_ours"]),
                row["note"],
            ]
            for row in rows
        ]
        return f"{text_table(_TITLES, cells, left=('way', 'note'))}\n\n{_LEGEND}"

    def write(self, run_dir: Path, rows: Sequence[Row]) -> list[Path]:
        """Draw variants per second by context."""
        from genosparse.plotting import plot_scaling

        curves: dict[str, list[tuple[float, float, float, float]]] = {}
        for row in rows:
            if row["seconds"]:
                times = (row["seconds"], row["seconds_max"], row["seconds_min"])
                rates = (row["variants"] / seconds for seconds in times)
                curves.setdefault(row["implementation"], []).append((row["context"], *rates))
        path = run_dir / CURVES
        plot_scaling(path, {"all SNVs of a stretch": curves}, "context (bp)", "variants per second")
        return [path]


_TITLES = ("context", "way", "s", "min to max", "variants/s", "time / ours", "note")
_LEGEND = """\
Scores are llr of both strands, the same to 1e-4 by both ways. The naive loop takes one forward pass for REF and one for
ALT, per ALT and strand."""


def _row(
    name: str, context: int, variants: int, result: Timing | Exception, ours: Timing | None, difference: float
) -> Row:
    row: Row = {
        "implementation": name,
        "context": context,
        "variants": variants,
        "status": "measured",
        "note": "",
        "repeats": None,
        "seconds": None,
        "seconds_min": None,
        "seconds_max": None,
        "variants_per_second": None,
        "over_ours": None,
        "largest_difference": difference,
    }
    if isinstance(result, TooSlowError):
        return row | {"status": "stopped", "note": str(result)}
    if isinstance(result, Exception):
        raise result
    return row | {
        "repeats": result.repeats,
        "seconds": result.median,
        "seconds_min": result.least,
        "seconds_max": result.most,
        "variants_per_second": variants / result.median,
        "over_ours": result.median / ours.median if ours else None,
    }


def _score_naively(encoder: Encoder, genome: Genome, variants: Sequence[Variant], context: int) -> NDArray[np.float32]:
    scores = []
    for variant in variants:
        start, end = site_window(variant.position0, genome.contigs[variant.contig], context)
        window = genome.tokens(Interval(variant.contig, start, end))
        for alt in variant.alts:
            per_strand = []
            for is_reverse in (False, True):
                tokens = _TOKENIZER.reverse_complement(window) if is_reverse else window
                site = end - 1 - variant.position0 if is_reverse else variant.position0 - start
                log_probabilities = [
                    _log_probability(encoder, tokens, site, _complement(base) if is_reverse else base)
                    for base in (variant.ref, alt)
                ]
                per_strand.append(log_probabilities[1] - log_probabilities[0])
            scores.append(sum(per_strand) / 2)
    return np.array(scores, np.float32)


def _log_probability(encoder: Encoder, tokens: NDArray[np.uint8], site: int, base: str) -> float:
    masked = torch.from_numpy(tokens.copy())[None]
    masked[0, site] = MASK
    with torch.inference_mode():
        logits = encoder.base_logits(masked)[0, site]
    return float(logits.log_softmax(-1)[_BASES.index(base)])


def _complement(base: str) -> str:
    return _BASES[::-1][_BASES.index(base)]
