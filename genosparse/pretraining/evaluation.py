"""Bits per base on held-out sequence, the model's and the k-mer baselines' at the same sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from genosparse.baselines import MAX_FLANK, flanks, kmer_baselines
from genosparse.channels import reverse_complement_channels
from genosparse.errors import ConfigError
from genosparse.pretraining.masking import NO_TARGET, base_numbers
from genosparse.pretraining.models import MaskedModel
from genosparse.pretraining.windows import Span
from genosparse.tokenizers import MASK, PAD, NucleotideTokenizer

__all__ = ["SITE_SPACING", "HeldOut", "HeldOutBatch", "SiteLogProbs", "SiteSource", "evaluate", "site_log_probs"]

# One site per cell of this many bases, in the cell's first half: sites are then more than MAX_FLANK apart, so that no
# k-mer context reaches over another masked site and model and baselines know the same about each.
SITE_SPACING = 2 * MAX_FLANK
# Bases read at a time.
_PIECE = 2**22


class HeldOutBatch(NamedTuple):
    """Some held-out windows.

    Attributes:
        shown: Token ids, MASK at the sites, ``[B, context]``.
        classes: The true class 0 to 3 at the sites and -1 elsewhere, ``[B, context]``.
        channels: What alignments say, 0 at the sites, ``[B, context, C]``; None where there are no alignments.
    """

    shown: torch.Tensor
    classes: torch.Tensor
    channels: torch.Tensor | None


class SiteSource(Protocol):
    """What sites are drawn from: a ``WindowSource``, or held-out sequence without anything to train on.

    Attributes:
        validation: What was asked to be held out, for messages; None where nothing need be.
        validation_key: The setting that asked for it.
        context: Bases of a window, at most.
        held_out: The held-out stretches.
    """

    @property
    def validation(self) -> float | Sequence[str] | None: ...

    @property
    def validation_key(self) -> str: ...

    @property
    def context(self) -> int: ...

    @property
    def held_out(self) -> list[Span]: ...

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels ``[C]``."""

    def tokens(self, span: Span) -> NDArray[np.uint8]:
        """Token ids of a stretch, ``[length]``."""

    def channels(self, span: Span) -> NDArray[np.float32] | None:
        """What alignments say of a stretch, float32 ``[length, C]``; None where there are none."""

    def training_sequences(self) -> Iterable[NDArray[np.uint8]]:
        """Token ids of what baselines are counted on."""


class HeldOut:
    """Held-out windows with a seeded set of sparse sites that are shown as MASK.

    Sequence is read in pieces; memory depends on the number of sites.

    Args:
        corpus: What has held-out stretches.
        seed: Of the sites.
        spacing: Bases of a cell; each has one site, in its first half. At least ``SITE_SPACING``.
        max_sites: Keep at most this many, those of windows that are spread evenly; None for all.

    Attributes:
        context: Bases of a window, at most.
        num_bases: Held-out bases.
        stretches: Stretches that have sites, each with the offsets of those from its start, ascending int64.
        contexts: Bases around each site for the k-mer models, uint8 ``[sites, 2 * MAX_FLANK + 1]``.

    Raises:
        ConfigError: ``validation`` asks for held-out sequence, and no site comes of it; or ``spacing`` or ``max_sites``
            is too small.
    """

    def __init__(
        self, corpus: SiteSource, seed: int, *, spacing: int = SITE_SPACING, max_sites: int | None = None
    ) -> None:
        if spacing < SITE_SPACING:
            raise ConfigError(
                f"site_spacing={spacing} is too small; expected at least {SITE_SPACING}, so that no k-mer context "
                "reaches over another site"
            )
        if max_sites is not None and max_sites < 1:
            raise ConfigError(f"max_sites={max_sites} is too small; expected at least 1")
        self._corpus = corpus
        self.context = corpus.context
        self.num_bases = sum(span.length for span in corpus.held_out)
        random = np.random.Generator(np.random.Philox(key=np.array([seed, 2**64 - 1], np.uint64)))
        drawn = [(span, self._draw(span, random, spacing)) for span in corpus.held_out]
        self.stretches = _thinned([(span, sites) for span, sites in drawn if len(sites)], self.context, max_sites)
        contexts = [self._flanks(span, sites) for span, sites in self.stretches]
        self.contexts = np.concatenate([np.empty((0, 2 * MAX_FLANK + 1), np.uint8), *contexts])
        self._windows: dict[int, list[tuple[Span, NDArray[np.int64]]]] = {}  # by context: stretch, sites in it
        if corpus.validation and not self.num_sites:
            raise ConfigError(
                f"{corpus.validation_key}={corpus.validation} holds out {self.num_bases:,} bases, too few or too many "
                "N to measure at; hold out more or other contigs, or nothing with data.validation=0"
            )

    @property
    def num_sites(self) -> int:
        """Sites in all."""
        return len(self.contexts)

    def num_windows(self, context: int | None = None) -> int:
        """Windows with sites, of ``context`` bases (by default the corpus')."""
        return len(self._windows_of(context))

    def baselines(self) -> dict[str, float]:
        """Bits per base of the k-mer models, counted on what is trained on."""
        return kmer_baselines(self._corpus.training_sequences(), self.contexts)

    def batches(
        self,
        size: int,
        *,
        context: int | None = None,
        most_windows: int | None = None,
        windows: slice = slice(None),
        reverse: bool = False,
    ) -> Iterator[HeldOutBatch]:
        """Batches of windows with sites.

        A stretch is tiled with windows. The last one reaches back to full length; its sites stay those of its own tile.

        Args:
            size: Windows per batch.
            context: Bases of a window; the sites are the same ones for any. None takes the corpus'.
            most_windows: Take this many windows, evenly spread; None takes all.
            windows: Which of those to take.
            reverse: Show the reverse complement.
        """
        context = context or self.context
        taken = self._windows_of(context)
        if most_windows is not None and most_windows < len(taken):
            taken = [taken[round(place)] for place in np.linspace(0, len(taken) - 1, most_windows)]
        taken = taken[windows]
        for first in range(0, len(taken), size):
            part = taken[first : first + size]
            shown = np.full((len(part), context), PAD, np.uint8)
            classes = np.full((len(part), context), NO_TARGET, np.int64)
            names = self._corpus.channel_names
            channels = np.zeros((len(part), context, len(names)), np.float32)
            for row, (span, sites) in enumerate(part):
                tokens = self._corpus.tokens(span)
                masked = tokens.copy()
                masked[sites] = MASK
                truth = np.full(len(tokens), NO_TARGET)
                truth[sites] = base_numbers(tokens[sites])
                if reverse:
                    masked = NucleotideTokenizer().reverse_complement(masked)
                    truth = np.where(truth == NO_TARGET, NO_TARGET, 3 - truth)[::-1]
                shown[row, : len(tokens)], classes[row, : len(tokens)] = masked, truth
                if (values := self._corpus.channels(span)) is not None:
                    values = reverse_complement_channels(values, names) if reverse else values
                    # The reads at a site would tell it.
                    channels[row, : len(tokens)] = np.where((truth != NO_TARGET)[:, None], np.float32(0), values)
            yield HeldOutBatch(
                torch.from_numpy(shown), torch.from_numpy(classes), torch.from_numpy(channels) if names else None
            )

    def _draw(self, span: Span, random: np.random.Generator, spacing: int) -> NDArray[np.int64]:
        """Offsets of a stretch's sites. The draws are the same ones whatever the pieces that it is read in."""
        found = [np.empty(0, np.int64)]
        for start, tokens in self._pieces(span, max(1, _PIECE // spacing) * spacing):
            cells = np.arange(0, len(tokens), spacing)
            sites = cells + random.integers(spacing // 2, size=len(cells))
            sites = sites[sites < len(tokens)]
            found.append(start + sites[base_numbers(tokens[sites]) != NO_TARGET])
        return np.concatenate(found)

    def _flanks(self, span: Span, sites: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Bases around sites; what is past the stretch's ends is unknown."""
        found = []
        for start in range(0, span.length, _PIECE):
            inside = sites[slice(*np.searchsorted(sites, (start, start + _PIECE)))]
            if len(inside):
                first = max(0, int(inside[0]) - MAX_FLANK)
                end = min(span.length, int(inside[-1]) + MAX_FLANK + 1)
                tokens = self._corpus.tokens(Span(span.genome, span.contig, span.start + first, span.start + end))
                found.append(flanks(tokens, inside - first))
        return np.concatenate(found)

    def _pieces(self, span: Span, size: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for start in range(0, span.length, size):
            end = min(span.start + start + size, span.end)
            yield start, self._corpus.tokens(Span(span.genome, span.contig, span.start + start, end))

    def _windows_of(self, context: int | None) -> list[tuple[Span, NDArray[np.int64]]]:
        context = context or self.context
        if context not in self._windows:
            self._windows[context] = [
                (Span(span.genome, span.contig, start, min(start + context, span.end)), inside)
                for span, sites in self.stretches
                for start, inside in _tiled(span, sites, context)
            ]
        return self._windows[context]


def _tiled(span: Span, sites: NDArray[np.int64], context: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Where each window that has sites starts, and their offsets from there."""
    tiles, first_sites = np.unique(sites // context, return_index=True)
    for tile, inside in zip(tiles.tolist(), np.split(sites, first_sites[1:]), strict=True):
        first = max(0, min(tile * context, span.length - context))
        yield span.start + first, inside - first


def _thinned(
    stretches: list[tuple[Span, NDArray[np.int64]]], context: int, max_sites: int | None
) -> list[tuple[Span, NDArray[np.int64]]]:
    """At most ``max_sites`` of the sites: those of tiles of ``context`` bases, spread evenly over all tiles."""
    total = sum(len(sites) for _, sites in stretches)
    if max_sites is None or total <= max_sites:
        return stretches
    counts = np.concatenate([np.unique(sites // context, return_counts=True)[1] for _, sites in stretches])
    num_tiles = max(1, int(len(counts) * max_sites / total))
    while True:
        chosen = np.unique(np.linspace(0, len(counts) - 1, num_tiles).round().astype(np.int64))
        if counts[chosen].sum() <= max_sites or num_tiles == 1:
            break
        num_tiles -= 1
    is_chosen = np.zeros(len(counts), np.bool_)
    is_chosen[chosen] = True
    kept, first = [], 0
    for span, sites in stretches:
        _, tile_of_site = np.unique(sites // context, return_inverse=True)
        inside = sites[is_chosen[first + tile_of_site]]
        first += int(tile_of_site[-1]) + 1
        if len(inside) > max_sites:  # of the one tile that is left
            inside = inside[np.linspace(0, len(inside) - 1, max_sites).round().astype(np.int64)]
        if len(inside):
            kept.append((span, inside))
    return kept


class SiteLogProbs(NamedTuple):
    """What an encoder says at some sites, in their order.

    Attributes:
        truth: True classes, int64 ``[sites]``.
        one_strand: Log-probabilities of A, C, G, T as read on the forward strand, float32 ``[sites, 4]``.
        both_strands: The mean of both strands' log-probabilities, normalized again; None where it was not asked for.
    """

    truth: torch.Tensor
    one_strand: torch.Tensor
    both_strands: torch.Tensor | None


def site_log_probs(
    encoder: MaskedModel,
    held_out: HeldOut,
    *,
    batch_windows: int,
    context: int | None = None,
    most_windows: int | None = None,
    windows: slice = slice(None),
    both_strands: bool = False,
) -> Iterator[SiteLogProbs]:
    """Log-probabilities at the held-out sites, batch by batch.

    Args:
        encoder: The model; in evaluation mode while the iterator runs, and then in the mode it was in.
        held_out: Windows and sites.
        batch_windows: Windows per forward pass.
        context: Bases of a window; None takes that of ``held_out``.
        most_windows: Evaluate this many windows alone, evenly spread.
        windows: Which of those to evaluate.
        both_strands: Evaluate the reverse complement too.
    """
    was_training = encoder.training
    encoder.eval()

    def batches(**more: bool) -> Iterator[HeldOutBatch]:
        return held_out.batches(batch_windows, context=context, most_windows=most_windows, windows=windows, **more)

    forward_batches = batches()
    reversed_batches: Iterable[HeldOutBatch | None] = batches(reverse=True) if both_strands else repeat(None)
    try:
        for forward, backward in zip(forward_batches, reversed_batches, strict=False):
            with torch.inference_mode():
                log_probs, truth = _log_probs(encoder, forward)
                both = None
                if backward is not None:
                    # Sites of the reversed window come in reversed order row by row: undo it by the row's positions.
                    reversed_log_probs, _ = _log_probs(encoder, backward, mirrored=True)
                    both = ((log_probs + reversed_log_probs.flip(1)) / 2).log_softmax(dim=1)
            yield SiteLogProbs(truth, log_probs, both)
    finally:
        encoder.train(was_training)


def evaluate(
    encoder: MaskedModel,
    held_out: HeldOut,
    *,
    batch_windows: int,
    most_windows: int | None = None,
    both_strands: bool = False,
    autocast: AbstractContextManager[object] | None = None,
) -> dict[str, float]:
    """Loss, accuracy and bits per base at the held-out sites.

    Args:
        encoder: The model; left in the mode it was in.
        held_out: Windows and sites.
        batch_windows: Windows per forward pass.
        most_windows: Evaluate this many windows alone, evenly spread.
        both_strands: Average the log-probabilities of the two strands (normalized again) before measuring. An encoder
            with ``strands="shared"`` says the same of both.
        autocast: Context of the forward passes.

    Returns:
        ``loss`` in nats, ``accuracy`` (fraction of sites whose likeliest base is the true one) and ``bits_per_base``.
    """
    loss, correct, sites = 0.0, 0, 0
    batches = site_log_probs(
        encoder, held_out, batch_windows=batch_windows, most_windows=most_windows, both_strands=both_strands
    )
    with autocast or nullcontext():
        for truth, one_strand, both in batches:
            log_probs = one_strand if both is None else both
            loss -= float(log_probs.gather(1, truth[:, None]).sum(dtype=torch.float64))
            correct += int((log_probs.argmax(dim=1) == truth).sum())
            sites += len(truth)
    return {
        "loss": loss / sites,
        "accuracy": correct / sites,
        "bits_per_base": loss / sites / math.log(2),
    }


def _log_probs(
    encoder: MaskedModel, batch: HeldOutBatch, *, mirrored: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities ``[sites, 4]`` and true classes ``[sites]`` at the sites of a batch, row by row.

    ``mirrored`` rows are read from their end, so that their sites come in the order of the other strand.
    """
    shown, classes, channels = (None if part is None else part.to(encoder.device) for part in batch)
    assert shown is not None
    assert classes is not None
    hidden = encoder(shown, channels=channels)
    if mirrored:
        hidden, classes = hidden.flip(1), classes.flip(1)
    at = classes != NO_TARGET
    return functional.log_softmax(encoder.head(hidden[at]), dim=1), classes[at]
