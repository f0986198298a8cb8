"""Pictures: whole PNG files, the same bytes for the same arrays, with everything drawn that was given."""

from pathlib import Path

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest

from genosparse.errors import OutputError
from genosparse.plotting import (
    plot_bits_by_context,
    plot_bits_by_group,
    plot_loss_curve,
    plot_scaling,
    plot_score_histogram,
)

STEPS = np.arange(0, 400, 2)
LOSS = 1.2 + 0.2 * np.exp(-STEPS / 100)


def draw_curve(path: Path, baselines: dict[str, float]) -> bytes:
    plot_loss_curve(path, STEPS, LOSS, [0, 200, 398], [2.0, 1.9, 1.85], baselines)
    return path.read_bytes()


def test_same_arrays_same_bytes_whatever_the_users_settings(tmp_path: Path) -> None:
    first = draw_curve(tmp_path / "a.png", {"k-mers": 1.859})
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        assert draw_curve(tmp_path / "b.png", {"k-mers": 1.859}) == first
        assert mpl.rcParams["font.size"] == 30
    assert first.startswith(b"\x89PNG")
    height, width, _ = matplotlib.image.imread(tmp_path / "a.png").shape
    assert (width, height) == (1050, 630)
    assert b"matplotlib" not in first.lower()


def test_every_curve_is_drawn(tmp_path: Path) -> None:
    pictures = [
        draw_curve(tmp_path / "a.png", {}),
        draw_curve(tmp_path / "b.png", {"k-mers": 1.859}),
        draw_curve(tmp_path / "c.png", {"k-mers": 1.859, "interpolated": 1.835}),
    ]
    plot_loss_curve(tmp_path / "d.png", STEPS, LOSS, [], [], {})
    plot_loss_curve(tmp_path / "e.png", [], [], [0], [2.0], {})
    pictures += [(tmp_path / name).read_bytes() for name in ("d.png", "e.png")]
    assert len(set(pictures)) == 5


def test_training_loss_is_shown_in_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **more: drawn.append(args) or plot(self, *args, **more))
    plot_loss_curve(tmp_path / "a.png", [1], [np.log(4)], [], [], {})
    np.testing.assert_allclose(drawn[0][1], [2.0])  # ln 4 nats are 2 bits


def test_histogram_of_anything(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=100)
    cases = [
        {"stop gained": scores - 1, "synonymous": scores},
        {"stop gained": scores - 1},
        {"one value": [0.5, 0.5], "none": []},
        {"not finite": [np.nan, np.inf, 1.0]},
        {"none": []},
    ]
    for index, case in enumerate(cases):
        plot_score_histogram(tmp_path / f"{index}.png", case, "title", "llr (nats)")
    assert len({(tmp_path / f"{index}.png").read_bytes() for index in range(len(cases))}) == len(cases)


def test_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        plot_score_histogram(tmp_path / "missing" / "a.png", {"a": [1.0]}, "", "")


def test_the_legend_of_many_curves_is_whole(tmp_path: Path) -> None:
    curves = {f"an implementation of some length {number}": [(10.0, 1.0, 1.0, 1.0)] for number in range(7)}
    plot_scaling(tmp_path / "a.png", {"panel": curves}, "length (bp)", "time (ms)")
    picture = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    assert picture.min() < 0.5
    for edge in (picture[:, :3], picture[:, -3:], picture[:2], picture[-2:]):
        assert edge.min() == 1


def test_bars_of_groups_begin_at_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their length is what is better, or worse, than two bits; a group that a predictor lacks has no bar of it."""
    from matplotlib.axes import Axes

    drawn = []
    barh = Axes.barh
    monkeypatch.setattr(
        Axes, "barh", lambda self, *args, **more: drawn.append((args, more)) or barh(self, *args, **more)
    )
    nan = float("nan")
    panels = {
        "all": {"all": {"model": (1.9, 1.8, 1.95), "k-mers": (1.95, nan, nan)}},
        "feature": {"CDS": {"model": (1.8, 1.7, 1.9)}, "none": {"model": (2.1, 2.0, 2.2), "k-mers": (2.0, 2.0, 2.0)}},
    }
    plot_bits_by_group(tmp_path / "a.png", panels)
    assert [more["label"] for _, more in drawn] == ["model", "k-mers"] * 2
    for (_, widths, _, left), _ in drawn:
        assert left == 2
        assert len(widths) in (1, 2)
    np.testing.assert_allclose(drawn[2][0][1], [-0.2, 0.1])
    np.testing.assert_allclose(drawn[2][1]["xerr"], [[0.1, 0.1], [0.1, 0.1]])
    np.testing.assert_allclose(drawn[1][1]["xerr"], [[0], [0]])
    first = (tmp_path / "a.png").read_bytes()
    plot_bits_by_group(tmp_path / "a.png", panels)
    assert (tmp_path / "a.png").read_bytes() == first


def test_bits_by_context(tmp_path: Path) -> None:
    curves = {"model": [(512.0, 1.9, 1.8, 2.0), (4096.0, 1.8, float("nan"), float("nan"))]}
    plot_bits_by_context(tmp_path / "a.png", curves, {})
    plot_bits_by_context(tmp_path / "b.png", curves, {"k-mers": 1.85})
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
