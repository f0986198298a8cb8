"""Bits per base on held-out sequence, the model's and the k-mer baselines' at the same sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from genosparse.baselines import MAX_FLANK, flanks, kmer_baselines
from genosparse.channels import reverse_complement_channels
from genosparse.errors import ConfigError
from genosparse.pretraining.masking import NO_TARGET, base_numbers
from genosparse.pretraining.models import MaskedModel
from genosparse.pretraining.windows import Span, WindowSource
from genosparse.tokenizers import MASK, PAD, NucleotideTokenizer

__all__ = ["SITE_SPACING", "HeldOut", "HeldOutBatch", "evaluate"]

# One site per cell of this many bases, in the cell's first half: sites are then more than MAX_FLANK apart, so that no
# k-mer context reaches over another masked site and model and baselines know the same about each.
SITE_SPACING = 2 * MAX_FLANK


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


class HeldOut:
    """Held-out windows with a seeded set of sparse sites that are shown as MASK.

    Args:
        corpus: What has held-out stretches.
        seed: Of the sites.

    Raises:
        ConfigError: ``validation`` asks for held-out sequence, and no site comes of it.
    """

    def __init__(self, corpus: WindowSource, seed: int) -> None:
        self._corpus = corpus
        self.context = corpus.context
        self.num_bases = sum(span.length for span in corpus.held_out)
        self._windows: list[tuple[Span, NDArray[np.int64]]] = []  # stretch, sites in it
        contexts = [np.empty((0, 2 * MAX_FLANK + 1), np.uint8)]
        random = np.random.Generator(np.random.Philox(key=np.array([seed, 2**64 - 1], np.uint64)))
        for span in corpus.held_out:
            tokens = corpus.tokens(span)
            cells = np.arange(0, len(tokens), SITE_SPACING)
            sites = cells + random.integers(SITE_SPACING // 2, size=len(cells))
            sites = sites[sites < len(tokens)]
            sites = sites[base_numbers(tokens[sites]) != NO_TARGET]
            contexts.append(flanks(tokens, sites))
            starts = range(0, len(tokens), self.context)
            for start, inside in zip(starts, np.split(sites, np.searchsorted(sites, starts[1:])), strict=True):
                # The last window reaches back to full length; its sites stay those of its own stretch.
                first = max(0, min(start, len(tokens) - self.context))
                begin, end = span.start + first, min(span.start + first + self.context, span.end)
                self._windows.append((Span(span.genome, span.contig, begin, end), inside - first))
        self.contexts = np.concatenate(contexts)
        if corpus.validation and not self.num_sites:
            raise ConfigError(
                f"{corpus.validation_key}={corpus.validation} holds out {self.num_bases:,} bases, too few or too many "
                "N to measure at; hold out more or other contigs, or nothing with data.validation=0"
            )

    @property
    def num_sites(self) -> int:
        """Sites in all."""
        return len(self.contexts)

    def baselines(self) -> dict[str, float]:
        """Bits per base of the k-mer models, counted on what is trained on."""
        return kmer_baselines(self._corpus.training_sequences(), self.contexts)

    def batches(self, size: int, *, most_windows: int | None = None, reverse: bool = False) -> Iterator[HeldOutBatch]:
        """Batches of windows with sites.

        Args:
            size: Windows per batch.
            most_windows: Take this many windows, evenly spread; None takes all.
            reverse: Show the reverse complement.
        """
        windows = [window for window in self._windows if len(window[1])]
        if most_windows is not None and most_windows < len(windows):
            windows = [windows[round(place)] for place in np.linspace(0, len(windows) - 1, most_windows)]
        for first in range(0, len(windows), size):
            part = windows[first : first + size]
            shown = np.full((len(part), self.context), PAD, np.uint8)
            classes = np.full((len(part), self.context), NO_TARGET, np.int64)
            names = self._corpus.channel_names
            channels = np.zeros((len(part), self.context, len(names)), np.float32)
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
    was_training = encoder.training
    encoder.eval()
    loss, correct, sites = 0.0, 0, 0
    batches = held_out.batches(batch_windows, most_windows=most_windows)
    reversed_batches: Iterable[HeldOutBatch | None] = repeat(None)
    if both_strands:
        reversed_batches = held_out.batches(batch_windows, most_windows=most_windows, reverse=True)
    with torch.inference_mode(), autocast or nullcontext():
        for forward, backward in zip(batches, reversed_batches, strict=False):
            log_probs, truth = _log_probs(encoder, forward)
            if backward is not None:
                # Sites of the reversed window come in reversed order row by row: undo it by the row's positions.
                reversed_log_probs, _ = _log_probs(encoder, backward, mirrored=True)
                log_probs = ((log_probs + reversed_log_probs.flip(1)) / 2).log_softmax(dim=1)
            loss -= float(log_probs.gather(1, truth[:, None]).sum(dtype=torch.float64))
            correct += int((log_probs.argmax(dim=1) == truth).sum())
            sites += len(truth)
    encoder.train(was_training)
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
