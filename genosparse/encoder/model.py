"""The encoder as a whole."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from genosparse import bundled
from genosparse.encoder import checkpoints
from genosparse.encoder.config import EncoderConfig
from genosparse.encoder.layers import (
    BaseHead,
    Block,
    ChannelProjection,
    Convolution,
    RMSNorm,
    StrandOrder,
    TokenEmbedding,
    rotary_angles,
    rotary_turns,
    strand_order,
)
from genosparse.errors import ConfigError, SequenceError
from genosparse.tokenizers import MASK, PAD, N

__all__ = ["Encoder"]


class Encoder(nn.Module):
    """Sparse-attention encoder of DNA at single-base resolution.

    Token embedding, ``num_global`` learned global tokens in front, pre-norm blocks with rotary positions, a final norm
    and a four-class head for masked bases. PAD and N are never attended to, so that hidden states depend neither on
    padding nor on what else is in the batch.

    Attributes:
        config: What it is made of.
        activation_checkpointing: Recompute each block in the backward pass rather than keep its activations.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embedding = TokenEmbedding(config)
        self.channel_projection = ChannelProjection(config) if config.channels else None
        self.convolution = Convolution(config) if config.convolution else None
        self.global_tokens = nn.Parameter(torch.empty(config.num_global, config.d_model // config.num_strands))
        nn.init.normal_(self.global_tokens)
        self.blocks = nn.ModuleList(Block(config, config.pattern_of(layer)) for layer in range(config.num_layers))
        self.final_norm = RMSNorm(config.norm_eps)
        self.head = BaseHead(config, self.embedding)
        self._rotary: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.global_tokens.device

    @property
    def num_parameters(self) -> int:
        """Weights in all."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, tokens: Tensor, *, layer: int = -1, channels: Tensor | None = None) -> Tensor:
        """Hidden states of the bases.

        Traces in one graph for any length, under ``torch.compile`` and ``torch.export``; a graph checks the length,
        not the ids, and takes all positions at once where eager takes long sequences in pieces.

        Args:
            tokens: Token ids ``[B, N]``, any integer type; shorter rows are padded with PAD at the end.
            layer: 0, the input embedding, with the convolution where there is one; ``l``, the output of block ``l``;
                -1, the last after the final norm.
            channels: What alignments say of each base, ``[B, N, F]`` in the order of ``config.channels``, as
                ``Alignments.channels`` gives them; not seen where the token is MASK. None is the same as all 0.

        Returns:
            ``[B, N, d_model]``. With ``strands="shared"`` the first half of the channels is what the given strand says
            of a base, the second half what the other strand says of the same base.

        Raises:
            SequenceError: The shape is not ``[B, N]``, or an id is no nt16 code and not MASK.
            ConfigError: The sequence is longer than ``max_length``, there is no such layer, or the channels are not the
                model's.
        """
        if not -1 <= layer <= self.config.num_layers:
            raise ConfigError(
                f"layer={layer}: expected 0 (input embedding) to {self.config.num_layers}, or -1 for the last"
            )
        self._check_tokens(tokens)
        num_global, num_strands = self.config.num_global, self.config.num_strands
        visible = (tokens != PAD) & (tokens != N)
        hidden = self.embedding(tokens)
        if self.convolution is not None:
            shares = self.embedding.shares[tokens.int()]
            hidden = self.convolution(hidden, torch.where(visible[..., None], shares, 0.0))
        if channels is not None:
            hidden = hidden + self._project_channels(channels, tokens)
        if layer == 0:
            return hidden
        front = self.global_tokens.repeat(1, num_strands).expand(tokens.shape[0], -1, -1)
        hidden = torch.cat([front, hidden], dim=1)
        key_mask: Tensor | None = torch.cat([visible.new_ones(tokens.shape[0], num_global), visible], dim=1)
        if not torch.compiler.is_compiling() and bool(visible.all()):
            key_mask = None  # which spares every layer the look at it
        strands: StrandOrder | None = None
        if num_strands == 2:
            strands = strand_order(tokens, num_global)
            if key_mask is not None:
                key_mask = key_mask.flatten()[strands.apart // 2]
        rotary = self._rotary_angles(hidden.shape[1])
        for block in self.blocks[: layer if layer > 0 else None]:
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, rotary, key_mask, strands, use_reentrant=False)
            else:
                hidden = block(hidden, rotary, key_mask, strands)
        hidden = hidden[:, num_global:]
        return self.final_norm(hidden) if layer == -1 else hidden

    def base_logits(self, tokens: Tensor, *, channels: Tensor | None = None) -> Tensor:
        """Logits of the four bases A, C, G, T at every position, float32 ``[B, N, 4]``; arguments as of ``forward``."""
        return self.head(self(tokens, channels=channels))

    def base_logits_at(self, tokens: Tensor, sites: Tensor, *, channels: Tensor | None = None) -> Tensor:
        """Logits at some positions alone.

        Args:
            tokens: ``[B, N]``.
            sites: Positions, int64 ``[B, S]``.
            channels: As of ``forward``.

        Returns:
            float32 ``[B, S, 4]`` over A, C, G, T.
        """
        hidden = self(tokens, channels=channels)
        return self.head(hidden.gather(1, sites[..., None].expand(-1, -1, hidden.shape[2])))

    def fingerprint(self) -> str:
        """SHA-256 of the configuration and the weights, in hexadecimal: the same model gives the same anywhere."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save_pretrained(
        self, path: str | os.PathLike[str], *, card: str | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        """Write the model folder: ``config.json``, ``model.safetensors`` and, when given, the card ``README.md``.

        Args:
            path: The folder.
            card: The card, as Markdown.
            dtype: ``torch.float32``, or ``torch.bfloat16``, which takes half the space and rounds the weights to 8
                significant bits. Loaded they are float32 in either case.

        Raises:
            ConfigError: Another ``dtype``.
            OutputError: The folder cannot be written.
        """
        checkpoints.save_model(path, self.config, self.state_dict(), card=card, dtype=dtype)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> Encoder:
        """Load a model folder, or a bundled encoder by its name, strictly: nothing missing, nothing unknown.

        Args:
            path: The folder, or a name as ``"bacteria-mini"`` (``genosparse.bundled.names()`` lists them). A folder of
                that name goes first.
            device: Where to put the weights.

        Raises:
            InputFileNotFoundError: There is no such folder or name, or a file is missing in the folder.
            ModelFormatError: A file is damaged, of a newer format, or does not fit the configuration.
        """
        path = bundled.find(path)
        config, tensors = checkpoints.load_model(path)
        checkpoints.check_sizes(path, config, tensors)
        with torch.device("meta"):  # shapes alone: a configuration may ask for more than there is memory
            expected = cls(config).state_dict()
        checkpoints.check_tensors(path, tensors, expected)
        encoder = cls(config)
        encoder.load_state_dict(tensors)
        return encoder.to(device).eval()

    def _project_channels(self, channels: Tensor, tokens: Tensor) -> Tensor:
        if self.channel_projection is None:
            raise ConfigError(
                "the model takes no channels of alignments; leave them out, or train one whose config names channels"
            )
        expected = (*tokens.shape, len(self.config.channels))
        if tuple(channels.shape) != expected:
            raise ConfigError(
                f"channels have the shape {list(channels.shape)}; expected {list(expected)}: batch, bases and the "
                f"model's {', '.join(self.config.channels)}"
            )
        return self.channel_projection(channels, tokens)

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 2 or not tokens.numel() or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise SequenceError(
                f"tokens are {tokens.dtype} {tuple(tokens.shape)}: expected integers [B, N], at least one of each"
            )
        if tokens.shape[1] > self.config.max_length:
            raise ConfigError(
                f"a sequence of {tokens.shape[1]:,} bases is longer than the model's max_length of "
                f"{self.config.max_length:,}; cut it into shorter pieces, or use a model made for longer ones"
            )
        if torch.compiler.is_compiling():
            return  # a graph cannot turn on values
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high > MASK:
            raise SequenceError(f"token id {low if low < 0 else high}: expected 0 to 15 (nt16 codes) or {MASK} (MASK)")

    def _rotary_angles(self, length: int) -> Tensor:
        """Cosines and sines of the first ``length`` positions, kept from call to call."""
        head_dim, theta = self.config.head_dim, self.config.rope_theta
        if torch.compiler.is_compiling():
            # A part of the graph, so that it serves any length; a kept tensor would be a constant of this one.
            return rotary_turns(torch.arange(length, dtype=torch.float64, device=self.device), head_dim, theta)
        if self._rotary is None or len(self._rotary) < length or self._rotary.device != self.device:
            with torch.inference_mode(False):
                self._rotary = torch.view_as_real(rotary_angles(length, head_dim, theta, self.device))
        return self._rotary[:length]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rotary": None}
