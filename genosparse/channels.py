"""What alignments say of each reference position, as numbers: the channels' names, their other strand, their scale."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genosparse.errors import ConfigError

__all__ = [
    "CHANNELS",
    "CHANNEL_UNITS",
    "LOGARITHMIC",
    "check_channel_names",
    "other_strand",
    "reverse_complement_channels",
]

#: The channels, in the order in which they are given. Fractions are of ``depth``, which counts deletions; all are 0
#: where ``depth`` is 0.
CHANNELS = (
    "depth",  # reads with a base or a deletion here
    "A", "C", "G", "T",  # fractions of reads with that base
    "deletion",  # fraction of reads with a deletion here
    "insertion",  # fraction of reads with an insertion between this base and the next
    "base_quality",  # mean over the bases, Phred
    "mapping_quality",  # mean over the reads, Phred
    "reverse_strand",  # fraction of reads on the reverse strand
    "soft_clip",  # fraction of reads whose alignment begins or ends here beside a soft clip
)  # fmt: skip

#: What an encoder divides a channel by, so that all are of about one unit; of ``depth`` it takes log(1 + depth).
CHANNEL_UNITS = {"base_quality": 40.0, "mapping_quality": 40.0}
LOGARITHMIC = ("depth",)

_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}


def check_channel_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple.

    Raises:
        ConfigError: A name is no channel, or comes twice, or there is none.
    """
    names = tuple(names)
    unknown = [name for name in names if name not in CHANNELS]
    if unknown or not names or len(set(names)) < len(names):
        what = f"{unknown[0]!r} is no channel" if unknown else "none is named" if not names else "one is named twice"
        raise ConfigError(f"channels {list(names)}: {what}; expected some of {', '.join(CHANNELS)}")
    return names


def other_strand(names: Sequence[str]) -> list[int]:
    """Which channel of one strand is each channel of the other, ``[C]``: that of the complementary base.

    Raises:
        ConfigError: They hold some of the four bases and not all, or ``reverse_strand`` without ``depth``.
    """
    names = check_channel_names(names)
    if 0 < sum(name in _COMPLEMENT for name in names) < len(_COMPLEMENT):
        raise ConfigError(f"channels {list(names)} have no other strand: they hold some of A, C, G, T and not all")
    if "reverse_strand" in names and "depth" not in names:
        raise ConfigError(f"channels {list(names)} have no other strand: reverse_strand needs depth beside it")
    return [names.index(_COMPLEMENT.get(name, name)) for name in names]


def reverse_complement_channels(values: NDArray[np.float32], names: Sequence[str] = CHANNELS) -> NDArray[np.float32]:
    """The channels of the other strand, in its order; twice gives the same again, but for rounding.

    A and T change places, as do C and G; ``reverse_strand`` counts the other reads. An insertion stays with its base,
    so that on the other strand it comes before that base.

    Args:
        values: float32 ``[length, C]``.
        names: The channels, ``[C]``.

    Raises:
        ConfigError: They hold some of the four bases and not all, or ``reverse_strand`` without ``depth``.
    """
    names = tuple(names)
    turned = values[::-1, other_strand(names)].copy()
    if "reverse_strand" in names:
        column = names.index("reverse_strand")
        turned[:, column] = np.where(turned[:, names.index("depth")] > 0, 1 - turned[:, column], 0)
    return turned
