"""Arrays in, figures out as PNG: the same bytes for the same arrays, at equal versions of matplotlib."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from genosparse.outputs import atomic_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_bits_by_context", "plot_bits_by_group", "plot_loss_curve", "plot_scaling", "plot_score_histogram"]

# Okabe and Ito's palette, which readers with any colour vision can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#555555"
_CHANCE = 2.0  # bits per base
_SMOOTH_POINTS = 50
_NUM_BINS = 30
_LEVEL_TICKS = 4  # more labels than these are set aslant


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
        _draw_baselines(axes, baselines)
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


def plot_bits_by_group(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]],
) -> None:
    """Draw bits per base of groups of sites as bars from chance (2 bits), so that a bar's length is what was learned.

    Args:
        path: The PNG to write.
        panels: By the grouping's name, then the group's, then the predictor's: ``(bits per base, low, high)``, the ends
            of its interval NaN where there is none. Panels share the axis.
    """
    predictors = list(dict.fromkeys(name for groups in panels.values() for bars in groups.values() for name in bars))
    num_groups = sum(map(len, panels.values()))
    thickness = 0.8 / max(1, len(predictors))
    with _figure(path, size=(7.5, 1.2 + (0.3 + 0.14 * len(predictors)) * num_groups + 0.35 * len(panels))) as figure:
        grid = figure.subplots(
            len(panels), 1, sharex=True, squeeze=False, height_ratios=[len(groups) + 0.4 for groups in panels.values()]
        )
        for axes, (title, groups) in zip(grid.flat, panels.items(), strict=True):
            _style(axes, grid_axis="x")
            axes.set_title(title, fontsize=10, loc="left")
            axes.axvline(_CHANCE, color=_GREY, linewidth=1)
            for number, name in enumerate(predictors):
                places = [at for at, bars in enumerate(groups.values()) if name in bars]
                bits, low, high = _floats([bars[name] for bars in groups.values() if name in bars]).reshape(-1, 3).T
                axes.barh(
                    np.array(places) + (number - (len(predictors) - 1) / 2) * thickness,
                    bits - _CHANCE,
                    thickness * 0.9,
                    _CHANCE,
                    xerr=np.nan_to_num((bits - low, high - bits)).clip(min=0),
                    error_kw={"elinewidth": 1, "ecolor": "black"},
                    color=_COLORS[number % len(_COLORS)],
                    label=name,
                )
            axes.set_yticks(range(len(groups)), list(groups), fontsize=9)
            axes.set_ylim(len(groups) - 0.5, -0.5)
        figure.supxlabel("bits per base (bars begin at chance, 2; a line is a 95 % interval)", fontsize=10)
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(),
            loc="outside upper center",
            ncols=min(2, max(1, len(predictors))),
            frameon=False,
        )


def plot_bits_by_context(
    path: str | os.PathLike[str],
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]],
    baselines: Mapping[str, float],
) -> None:
    """Draw bits per base against the bases of context.

    Args:
        path: The PNG to write.
        curves: By the curve's name: points ``(context, bits per base, low, high)``, ascending; the ends of an interval
            are NaN where there is none.
        baselines: Bits per base of each baseline at the same sites, by name; drawn as horizontal lines.
    """
    with _axes(path) as axes:
        for number, (name, points) in enumerate(curves.items()):
            context, bits, low, high = _floats(points).reshape(-1, 4).T
            axes.errorbar(
                context,
                bits,
                np.nan_to_num((bits - low, high - bits)).clip(min=0),
                color=_COLORS[number % len(_COLORS)],
                linewidth=1.5,
                marker="o",
                markersize=4,
                capsize=2,
                label=name,
            )
        _draw_baselines(axes, baselines)
        ticks = sorted({point[0] for points in curves.values() for point in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("context (bases)")
        axes.set_ylabel("bits per base")
        axes.legend(frameon=False)


def plot_scaling(
    path: str | os.PathLike[str],
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float, float]]]],
    xlabel: str,
    ylabel: str,
    *,
    num_columns: int = 1,
) -> None:
    """Draw how costs grow, both axes logarithmic, with the same axes and colours in every panel.

    Args:
        path: The PNG to write.
        panels: By the panel's title, then by the curve's name: points ``(x, y, least y, most y)``, ascending in x.
        xlabel: What x is, and its unit; its values are marked on the axis.
        ylabel: What y is, and its unit.
        num_columns: Panels beside one another.
    """
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    num_columns = max(1, min(num_columns, len(panels)))
    num_rows = max(1, -(-len(panels) // num_columns))
    width = max(7.0, 4.2 * num_columns)
    # A key's symbol and spaces take some 0.7 inches, a letter some 0.08.
    names_per_row = int(width / (0.7 + 0.08 * max(map(len, names), default=0)))
    with _figure(path, size=(width, 0.6 + 3.6 * num_rows)) as figure:
        grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        for index, axes in enumerate(grid.flat):
            axes.set_visible(index < len(panels))
        for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
            _style(axes)
            axes.set_title(title, fontsize=10)
            for name, points in curves.items():
                x, y, least, most = _floats(points).reshape(-1, 4).T
                number = names.index(name)
                marker = "osD^vP"[number % 6]
                axes.errorbar(
                    x,
                    y,
                    (y - least, most - y),
                    color=_COLORS[number % len(_COLORS)],
                    linewidth=1.5,
                    marker=marker,
                    markersize=4,
                    capsize=2,
                    label=name,
                )
        ticks = sorted({point[0] for curves in panels.values() for points in curves.values() for point in points})
        for axes in grid.flat:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], minor=False)
            axes.set_xticks([], minor=True)
            axes.tick_params(axis="both", labelsize=9)
            if len(ticks) > _LEVEL_TICKS:
                for label in axes.get_xticklabels():
                    label.set(rotation=30, horizontalalignment="right", rotation_mode="anchor")
        figure.supxlabel(xlabel, fontsize=10)
        figure.supylabel(ylabel, fontsize=10)
        handles = {line.get_label(): line for axes in grid.flat for line in axes.containers}
        figure.legend(
            [handles[name] for name in names],
            names,
            loc="outside upper center",
            ncols=max(1, min(len(names), names_per_row)),
            frameon=False,
        )


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, np.float64).reshape(-1)


@contextmanager
def _axes(path: str | os.PathLike[str]) -> Iterator["Axes"]:
    """Give one pair of axes to draw on, and write the figure when that is done."""
    with _figure(path, size=(7, 4.2)) as figure:
        axes = figure.add_subplot()
        _style(axes)
        yield axes


@contextmanager
def _figure(path: str | os.PathLike[str], *, size: tuple[float, float]) -> Iterator["Figure"]:
    """Give a figure of a size in inches to draw on, and write it when that is done."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The user's own matplotlib settings would change the picture; pyplot would keep it in memory.
    with matplotlib.style.context("default", after_reset=True):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_output(path) as partial:
            figure.savefig(partial, format="png", metadata={"Software": None})


def _draw_baselines(axes: "Axes", baselines: Mapping[str, float]) -> None:
    for index, (name, value) in enumerate(baselines.items()):
        style = ("--", ":", "-.")[index % 3]
        axes.axhline(value, color=_GREY, linewidth=1.2, linestyle=style, label=f"{name} ({value:.3f})")


def _style(axes: "Axes", grid_axis: Literal["x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid_axis, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
