"""Arrays in, figures out as PNG: the same bytes for the same arrays, at equal versions of matplotlib."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genosparse.outputs import atomic_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_loss_curve", "plot_score_histogram"]

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#555555"
_SMOOTH_POINTS = 50
_NUM_BINS = 30


def plot_loss_curve(
    path: str | os.PathLike[str],
    steps: ArrayLike,
    train_loss: ArrayLike,
    val_steps: ArrayLike,
    val_bits: ArrayLike,
    baselines: Mapping[str, float],
) -> None:
    """Draw the course of a pretraining run in bits per base.

    Args:
        path: The PNG to write.
        steps: Steps at which the training loss was taken ``[points]``.
        train_loss: Training loss there, nats per masked base ``[points]``.
        val_steps: Steps at which the held-out sequence was evaluated ``[evaluations]``.
        val_bits: Bits per base there ``[evaluations]``.
        baselines: Bits per base of each baseline on the same held-out sites, by name; drawn as horizontal lines.
    """
    at, bits = _floats(steps), _floats(train_loss) / math.log(2)
    with _axes(path) as axes:
        axes.plot(at, bits, color=_COLORS[5], linewidth=0.8, alpha=0.5 if len(at) > _SMOOTH_POINTS else 1)
        width = max(1, len(at) // _SMOOTH_POINTS)
        smooth = np.convolve(bits, np.full(width, 1 / width), "valid") if len(bits) else bits
        axes.plot(at[width - 1 :], smooth, color=_COLORS[0], linewidth=1.5, label="training")
        axes.plot(
            _floats(val_steps),
            _floats(val_bits),
            color=_COLORS[1],
            linewidth=1.5,
            marker="o",
            markersize=4,
            label="held out",
        )
        for index, (name, value) in enumerate(baselines.items()):
            style = ("--", ":", "-.")[index % 3]
            axes.axhline(value, color=_GREY, linewidth=1.2, linestyle=style, label=f"{name} ({value:.3f})")
        axes.set_xlabel("step")
        axes.set_ylabel("bits per base")
        axes.legend(frameon=False, loc="upper right")


def plot_score_histogram(
    path: str | os.PathLike[str], scores_by_class: Mapping[str, ArrayLike], title: str, xlabel: str
) -> None:
    """Draw how a score is distributed in each class, in bins that all share; what is not finite is left out.

    Args:
        path: The PNG to write.
        scores_by_class: Scores ``[count]`` by the class's name.
        title: Above the figure.
        xlabel: The score and its unit.
    """
    from matplotlib.ticker import MaxNLocator

    classes = {name: _floats(scores) for name, scores in scores_by_class.items()}
    classes = {name: scores[np.isfinite(scores)] for name, scores in classes.items()}
    everything = np.concatenate([*classes.values(), np.empty(0)])
    edges = np.histogram_bin_edges(everything if len(everything) else np.zeros(1), bins=_NUM_BINS).tolist()
    with _axes(path) as axes:
        for (name, scores), color in zip(classes.items(), _COLORS * len(classes), strict=False):
            axes.hist(scores, edges, color=color, alpha=0.45, label=f"{name} (n = {len(scores)})")
            axes.hist(scores, edges, color=color, histtype="step", linewidth=1.5)
            if len(scores):
                axes.axvline(float(np.median(scores)), color=color, linewidth=1.2, linestyle="--")
        axes.set_title(title)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("count")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, title="dashed: median", alignment="left")


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(-1)


@contextmanager
def _axes(path: str | os.PathLike[str]) -> Iterator["Axes"]:
    """Give one pair of axes to draw on, and write the figure when that is done."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The user's own matplotlib settings would change the picture; pyplot would keep it in memory.
    with matplotlib.style.context("default", after_reset=True):
        figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
        yield axes
        with atomic_output(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})
