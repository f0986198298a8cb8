"""What an encoder is made of, as a frozen value that goes to disk as JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from genosparse.attention import MAX_HEAD_DIM, SparsePattern
from genosparse.channels import check_channel_names, other_strand
from genosparse.errors import ConfigError

__all__ = ["EncoderConfig", "Head", "Strands"]

Strands = Literal["single", "shared"]
Head = Literal["free", "tied"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """Shape and attention of an encoder.

    Options that are off by default are left out of ``to_dict``, so that models without them are as they were before
    there were such options.

    Args:
        d_model: Channels of the hidden states; of both strands together where ``strands`` is ``"shared"``, as are
            ``num_heads``, ``num_kv_heads`` and ``mlp_hidden``.
        num_layers: Blocks.
        num_heads: Query heads; the head size is ``d_model // num_heads``.
        num_kv_heads: Key and value heads, each shared by ``num_heads // num_kv_heads`` query heads; ``num_heads`` when
        None.
        patterns: Attention patterns, cycled over the layers: three of them, the last with a stride, give every third
            layer columns. All share one number of global positions.
        max_length: Longest sequence, in bases.
        mlp_hidden: Channels inside the SwiGLU; 8/3 of ``d_model``, rounded up to a multiple of 32, when None.
        rope_theta: Base of the rotary position embedding's wavelengths.
        norm_eps: Of the RMS norms.
        convolution: Width, in bases and odd, of gated motifs over the tokens that are added to the embedding, so that
            the first block sees k-mers; None or 0 for none.
        strands: ``"single"`` reads a sequence as it is given. ``"shared"`` reads both strands with one set of weights
            (as Schiff et al. 2024 do in Caduceus): the hidden states of the reverse complement are those of the
            sequence mirrored, with their halves of ``d_model // 2`` channels exchanged, and its base logits are the
            complement's. Columns, random blocks and global tokens count from the 5' end of each strand.
        head: Vectors of the four bases that give the logits: ``"free"`` has its own, ``"tied"`` takes those of the
            token embedding.
        channels: Names of the channels of alignments that the encoder takes beside the tokens, from
            ``genosparse.channels.CHANNELS``; none by default.
        trained_context: Longest context that the weights were trained on, in bases; None before any training.

    Raises:
        ConfigError: A value is out of its range, or two do not fit together.
    """

    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    patterns: tuple[SparsePattern, ...]
    max_length: int
    mlp_hidden: int | None = None
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    convolution: int | None = None
    strands: Strands = "single"
    head: Head = "free"
    channels: tuple[str, ...] = ()
    trained_context: int | None = None

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.mlp_hidden is None and _is_count(self.d_model):
            object.__setattr__(self, "mlp_hidden", -(-8 * self.d_model // 3 // 32) * 32)
        object.__setattr__(self, "patterns", tuple(self.patterns))
        if not isinstance(self.channels, tuple | list):
            raise ConfigError(f"channels={self.channels!r}: expected names of channels")
        object.__setattr__(self, "channels", check_channel_names(self.channels) if self.channels else ())
        for name in ("d_model", "num_layers", "num_heads", "num_kv_heads", "max_length", "mlp_hidden"):
            if not _is_count(getattr(self, name)):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected a whole number of at least 1")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ConfigError(f"{name}={value!r}: expected a number above 0")
        if self.trained_context is not None and not _is_count(self.trained_context):
            raise ConfigError(f"trained_context={self.trained_context!r}: expected a number of bases, or None")
        self._check_options()
        if self.d_model % self.num_heads or self.head_dim % 2:
            raise ConfigError(
                f"d_model={self.d_model} over num_heads={self.num_heads} is no even head size; expected d_model a "
                f"multiple of 2 * num_heads"
            )
        if self.head_dim > MAX_HEAD_DIM:
            raise ConfigError(
                f"d_model={self.d_model} over num_heads={self.num_heads} is a head size of {self.head_dim}; expected "
                f"at most {MAX_HEAD_DIM}: use more heads"
            )
        if self.num_heads % self.kv_heads:
            raise ConfigError(
                f"num_heads={self.num_heads} cannot share num_kv_heads={self.num_kv_heads} evenly; expected a divisor"
            )
        if not self.patterns or not all(isinstance(pattern, SparsePattern) for pattern in self.patterns):
            raise ConfigError(f"patterns={self.patterns!r}: expected at least one SparsePattern")
        if any(pattern.is_empty for pattern in self.patterns):
            raise ConfigError(
                "a pattern has every rule off; give it window=, stride=, num_global= or num_random_blocks="
            )
        if len({pattern.num_global_positions for pattern in self.patterns}) > 1:
            counts = ", ".join(str(pattern.num_global_positions) for pattern in self.patterns)
            raise ConfigError(f"the patterns have {counts} global positions; expected one number for all layers")

    def _check_options(self) -> None:
        if self.convolution is not None and (type(self.convolution) is not int or self.convolution < 0):
            raise ConfigError(f"convolution={self.convolution!r}: expected an odd number of bases, or None for none")
        object.__setattr__(self, "convolution", self.convolution or None)
        if self.convolution is not None and (self.convolution % 2 == 0 or self.convolution < 3):
            raise ConfigError(
                f"convolution={self.convolution}: expected an odd number of at least 3 bases, so that as many are seen "
                "on either side"
            )
        for name, allowed in (("strands", get_args(Strands)), ("head", get_args(Head))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected {' or '.join(allowed)}")
        if self.strands == "shared":
            for name in ("num_heads", "num_kv_heads", "mlp_hidden"):
                if getattr(self, name) % 2:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} cannot be shared between two strands; expected an even "
                        f"number with strands=shared, as {name}={getattr(self, name) + 1}"
                    )
            if self.channels:
                other_strand(self.channels)

    @property
    def num_strands(self) -> int:
        """Strands that the weights are applied to: 2 where ``strands`` is ``"shared"``, else 1."""
        return 2 if self.strands == "shared" else 1

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """``num_kv_heads``, resolved."""
        assert self.num_kv_heads is not None
        return self.num_kv_heads

    @property
    def num_global(self) -> int:
        """Global tokens in front of the sequence."""
        return self.patterns[0].num_global_positions

    @property
    def has_random_blocks(self) -> bool:
        """Whether results depend on the length of the call, so that a batch must be of equal lengths."""
        return any(pattern.num_random_blocks for pattern in self.patterns)

    def pattern_of(self, layer: int) -> SparsePattern:
        """The pattern of block ``layer`` (from 0)."""
        return self.patterns[layer % len(self.patterns)]

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON knows them."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["patterns"] = [pattern.to_dict() for pattern in self.patterns]
        values["channels"] = list(self.channels)
        for name, off in (("channels", []), ("convolution", None), ("strands", "single"), ("head", "free")):
            if values[name] == off:  # as in configurations from before there was such an option
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The inverse of ``to_dict``.

        Raises:
            ConfigError: A key is unknown or missing, or a value is wrong.
            PatternError: The same inside a pattern.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"unknown key {', '.join(unknown)}; an encoder has {', '.join(sorted(known))}")
        needed = {"d_model", "num_layers", "num_heads", "patterns", "max_length"}
        if missing := sorted(needed - set(values)):
            raise ConfigError(f"missing key {', '.join(missing)}")
        patterns = values["patterns"]
        if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, dict) for pattern in patterns):
            raise ConfigError(f"patterns={patterns!r}: expected a list of patterns")
        return cls(**{**values, "patterns": tuple(SparsePattern.from_dict(pattern) for pattern in patterns)})


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
