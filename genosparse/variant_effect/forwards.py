"""Forward passes: rows of any kind in batches of one shape, each row made once and its result shared.

Shape legend: B rows of a forward pass, C bases of context, S sites of a row, W bases of a window, D channels of the
hidden states.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genosparse.errors import ModelFormatError
from genosparse.intervals import position_1based
from genosparse.readers import Genome, GenomeChannels
from genosparse.tokenizers import MASK, PAD, N
from genosparse.variant_effect.windows import Window

if TYPE_CHECKING:
    from genosparse.encoder import Encoder

__all__ = ["Forwards", "Outcome", "Pass"]

_KEPT_WINDOWS = 8  # read last: those of one ALT, both strands of REF and ALT, with room to spare
_POOL_CHUNK = 16_384  # positions that are summed at once: a float64 copy of a million of them would not fit
# The other three of A C G T, beside each.
_OTHERS = [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


@dataclass(frozen=True, slots=True)
class Pass:
    """One row of a forward pass, and what is wanted of it. Indices are within the window as it is read.

    Attributes:
        window: What is read.
        masked: Indices shown as MASK.
        sites: Indices where log-probabilities are wanted.
        pooled: ``(start, end)`` of the indices whose hidden states are pooled; None where no embedding is wanted.
        profile: Whether log-odds are wanted at all positions.
    """

    window: Window
    masked: tuple[int, ...] = ()
    sites: tuple[int, ...] = ()
    pooled: tuple[int, int] | None = None
    profile: bool = False


def _empty() -> NDArray[np.float64]:
    return np.empty(0)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Outcome:
    """What came of a ``Pass``; arrays are empty where nothing was wanted.

    Attributes:
        is_done: Whether it has been made yet.
        log_probs: Of A C G T on the plus strand, whichever strand is read; float64 ``[S, 4]``, in the sites' order.
        site_embedding: Mean of the last hidden states over ``pooled``, without N: float64 ``[D]``.
        window_embedding: The same over the window: float64 ``[D]``.
        log_odds: ``log(p / (1 - p))`` of A C G T on the plus strand, in its order: float64 ``[W, 4]``.
    """

    is_done: bool = False
    log_probs: NDArray[np.float64] = field(default_factory=_empty)
    site_embedding: NDArray[np.float64] = field(default_factory=_empty)
    window_embedding: NDArray[np.float64] = field(default_factory=_empty)
    log_odds: NDArray[np.float64] = field(default_factory=_empty)


@dataclass(slots=True, eq=False)
class _Row:
    wanted: Pass
    outcome: Outcome
    tokens: NDArray[np.uint8]
    channels: NDArray[np.float32] | None
    position0: int


class Forwards:
    """Forward passes of one block of variants.

    Rows are run as soon as there are enough for a batch; all batches have one shape, ``[num_rows, context]``, since the
    last bits of a matrix product change with its shape. Equal passes are made once a block. Log-odds of whole windows
    alone, those asked for last aside, are kept no longer than someone holds their outcome, so that memory does not grow
    with the block.

    Args:
        encoder: The encoder, in ``eval`` mode.
        genome: What windows are read from.
        channels: What alignments say of the genome's positions, or None.
        context: Most bases of a window.
        num_rows: Rows of a batch.
        autocast: Whether to run under bfloat16 autocast.
    """

    def __init__(
        self,
        encoder: Encoder,
        genome: Genome,
        channels: GenomeChannels | None,
        *,
        context: int,
        num_rows: int,
        autocast: bool,
    ) -> None:
        self.genome = genome
        self.context = context
        self._encoder = encoder
        self._channels = channels
        self._num_rows = num_rows
        self._autocast = autocast
        self._queue: list[_Row] = []
        self._kept: dict[Pass, Outcome] = {}
        self._held: WeakValueDictionary[Pass, Outcome] = WeakValueDictionary()
        self._recent: deque[Outcome] = deque(maxlen=_KEPT_WINDOWS)  # so that they serve the next record too
        self._windows: dict[Window, tuple[NDArray[np.uint8], NDArray[np.float32] | None]] = {}

    def tokens(self, window: Window) -> NDArray[np.uint8]:
        """Token ids of a window, uint8 ``[W]``, read-only."""
        return self._read(window)[0]

    def _read(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None]:
        read = self._windows.get(window)
        if read is None:
            if len(self._windows) == _KEPT_WINDOWS:
                del self._windows[next(iter(self._windows))]
            tokens = window.tokens(self.genome)
            tokens.flags.writeable = False
            read = tokens, None if self._channels is None else window.channels(self._channels)
            self._windows[window] = read
        return read

    def submit(self, wanted: Pass, position0: int) -> Outcome:
        """Ask for a pass; its outcome is done at the latest after ``flush``.

        Args:
            wanted: The pass.
            position0: Where the variant is, for errors.

        Raises:
            ModelFormatError: A pass that was due gives no finite numbers.
        """
        known: dict[Pass, Outcome] | WeakValueDictionary[Pass, Outcome] = self._held if wanted.profile else self._kept
        outcome = known.get(wanted)
        if outcome is None:
            outcome = known[wanted] = Outcome()
            tokens, channels = self._read(wanted.window)
            if wanted.masked:
                masked = list(wanted.masked)
                tokens = tokens.copy()
                tokens[masked] = MASK
                if channels is not None:
                    channels = channels.copy()
                    channels[masked] = 0  # the reads there would tell the masked bases
            self._queue.append(_Row(wanted, outcome, tokens, channels, position0))
            if len(self._queue) == self._num_rows:
                self.flush()
        if wanted.profile:
            self._recent.append(outcome)
        return outcome

    def flush(self) -> None:
        """Run what is still waiting for a full batch.

        Raises:
            ModelFormatError: A pass gives no finite numbers.
        """
        rows, self._queue = self._queue, []
        if rows:
            self._run(rows)

    def _run(self, rows: list[_Row]) -> None:
        device = self._encoder.device
        tokens = np.full((self._num_rows, self.context), PAD, np.uint8)
        sites = np.zeros((self._num_rows, max(1, *(len(row.wanted.sites) for row in rows))), np.int64)
        channels = None
        if self._channels is not None:
            channels = np.zeros((*tokens.shape, len(self._channels.names)), np.float32)
        # Rows to spare repeat a real one: padding alone would send the whole batch down attention's masked path.
        for index in range(self._num_rows):
            row = rows[min(index, len(rows) - 1)]
            tokens[index, : len(row.tokens)] = row.tokens
            sites[index, : len(row.wanted.sites)] = row.wanted.sites
            if channels is not None and row.channels is not None:
                channels[index, : len(row.tokens)] = row.channels
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
            hidden = self._encoder(
                torch.from_numpy(tokens).to(device),
                channels=None if channels is None else torch.from_numpy(channels).to(device),
            )
            at_sites = torch.from_numpy(sites).to(device)[..., None].expand(-1, -1, hidden.shape[2])
            logits = self._encoder.head(hidden.gather(1, at_sites))
            log_probs = torch.log_softmax(logits[: len(rows)].double(), dim=-1).cpu().numpy()
            for row, hidden_of_row, log_probs_of_row in zip(rows, hidden, log_probs, strict=False):
                self._fill(row, hidden_of_row, log_probs_of_row)

    def _fill(self, row: _Row, hidden: Tensor, log_probs: NDArray[np.float64]) -> None:
        wanted, outcome = row.wanted, row.outcome
        # Classes A C G T of the minus strand are T G C A of the plus strand.
        classes = slice(None, None, -1 if wanted.window.is_reverse else 1)
        outcome.log_probs = log_probs[: len(wanted.sites), classes]
        if wanted.pooled is not None:
            visible = torch.from_numpy(row.tokens != N).to(hidden.device)
            outcome.site_embedding = _mean_hidden(hidden, visible, *wanted.pooled)
            outcome.window_embedding = _mean_hidden(hidden, visible, 0, len(row.tokens))
        if wanted.profile:
            log_odds = _log_odds(self._encoder.head(hidden[: len(row.tokens)]))
            outcome.log_odds = log_odds[classes, classes]
        arrays = (outcome.log_probs, outcome.site_embedding, outcome.window_embedding, outcome.log_odds)
        if not all(np.isfinite(array).all() for array in arrays):
            where = f"{wanted.window.contig}:{position_1based(row.position0)}"
            raise ModelFormatError(
                f"the model gives no finite probabilities at {where}; its weights hold NaN or overflow"
            )
        outcome.is_done = True


def _mean_hidden(hidden: Tensor, visible: Tensor, start: int, end: int) -> NDArray[np.float64]:
    """Mean over the visible positions of a stretch: hidden ``[C, D]``, visible ``[W]`` -> ``[D]``."""
    total = hidden.new_zeros(hidden.shape[1], dtype=torch.float64)
    for first in range(start, end, _POOL_CHUNK):
        chunk = slice(first, min(first + _POOL_CHUNK, end))
        total += (hidden[chunk].double() * visible[chunk, None]).sum(0)
    mean: NDArray[np.float64] = (total / visible[start:end].sum()).cpu().numpy()
    return mean


def _log_odds(logits: Tensor) -> NDArray[np.float64]:
    """``log(p / (1 - p))`` of each base: ``[W, 4]`` -> ``[W, 4]``; not by way of ``p``, which may round to 1."""
    precise = logits.double()
    odds: NDArray[np.float64] = (precise - precise[:, _OTHERS].logsumexp(-1)).cpu().numpy()
    return odds
