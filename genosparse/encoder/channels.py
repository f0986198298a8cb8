"""The channels that an encoder takes, from alignments."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from genosparse.errors import ConfigError, GenosparseWarning

if TYPE_CHECKING:
    from genosparse.encoder.model import Encoder
    from genosparse.readers import Alignments, Genome
    from genosparse.readers.alignments import GenomeChannels

__all__ = ["check_takes_channels", "encoder_channels", "notice_without_alignments"]


def check_takes_channels(encoder: Encoder) -> None:
    """Raise ``ConfigError`` when an encoder takes no channels of alignments."""
    if not encoder.config.channels:
        raise ConfigError(
            "the model takes no channels of alignments; leave alignments= out, or use a model that was pretrained with "
            "data.alignments="
        )


def notice_without_alignments(encoder: Encoder) -> None:
    """Warn where an encoder takes channels of alignments, and there are none."""
    if encoder.config.channels:
        warnings.warn(
            f"the model takes channels of alignments ({', '.join(encoder.config.channels)}) and was given none: all "
            "count as 0",
            GenosparseWarning,
            stacklevel=4,
        )


def encoder_channels(
    encoder: Encoder, genome: Genome, alignments: Alignments | GenomeChannels | None, *, cache_bytes: int = 0
) -> GenomeChannels | None:
    """Find what an encoder is to be given beside the tokens; None where it is nothing.

    Args:
        encoder: The encoder, whose ``config.channels`` say which channels it takes.
        genome: Where the tokens are from.
        alignments: What the channels are from. ``GenomeChannels`` are taken as they are.
        cache_bytes: As of ``GenomeChannels``.

    Raises:
        ConfigError: The encoder takes no channels, or others than ``GenomeChannels`` have.
        ContigNotFoundError: The alignments and the genome have no contig in common.
    """
    from genosparse.readers.alignments import GenomeChannels  # what has no alignments needs no reader of them

    if alignments is None:
        notice_without_alignments(encoder)
        return None
    names = encoder.config.channels
    check_takes_channels(encoder)
    if not isinstance(alignments, GenomeChannels):
        return GenomeChannels(alignments, genome, names, cache_bytes=cache_bytes)
    if alignments.genome.contigs != genome.contigs:
        raise ConfigError(
            f"the channels are of {alignments.genome.path}, which has other contigs than {genome.path}: make them of it"
        )
    if alignments.names != names:
        raise ConfigError(
            f"the channels are {', '.join(alignments.names)}; the model takes {', '.join(names)}: make them of those"
        )
    return alignments
