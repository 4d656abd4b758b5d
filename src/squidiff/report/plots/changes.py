"""Changes from control: over conditions, doses and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from squidiff.config import InputError
from squidiff.report.plots.style import (
    BLACK,
    CONTROL,
    CONTROL_CELLS,
    GENERATED,
    REAL,
    canvas,
    clipped,
    finish,
    headline,
)

N_MAP_GENES = 30
MAX_CONDITIONS = 40
N_CURVES = 6
MAX_TIMES = 10
"""Predicted times that are named in the plane; of more, some."""
WIDE = 20.0
"""Doses that differ by more than this factor lie on a logarithmic axis."""


@dataclass(frozen=True)
class Series:
    """Means of G genes at P values of a dose or a time."""

    at: np.ndarray
    """(P,), ascending."""
    mean: np.ndarray
    """P x G"""
    error: np.ndarray
    """P x G, the standard error of the mean."""


def response_map(
    predicted: np.ndarray,
    truth: np.ndarray | None,
    conditions: Sequence[str],
    genes: Sequence[str],
    *,
    chosen: Sequence[str] = (),
    start: str = CONTROL_CELLS,
    figure: Figure | None = None,
) -> Figure:
    """Heat map of the change from control (`start`), conditions by genes: predicted and, where known, true beside it.

    predicted, truth: P x G changes of the mean. The genes are those chosen or, if none is, those of the largest mean
    square of the true (else predicted) change, in the order of their mean change.
    """
    if len(conditions) > MAX_CONDITIONS:
        raise InputError(
            f"{len(conditions)} populations do not fit a heat map: choose at most {MAX_CONDITIONS} with --population"
        )
    leading = predicted if truth is None else truth
    shown = np.array([genes.index(gene) for gene in chosen], dtype=int)
    if not chosen:
        largest = np.argsort(-np.square(leading).mean(axis=0), kind="stable")[:N_MAP_GENES]
        shown = largest[np.argsort(-leading[:, largest].mean(axis=0), kind="stable")]
    maps = [("predicted", predicted[:, shown])] + ([] if truth is None else [("true", truth[:, shown])])
    figure = canvas(5.5 + 0.24 * len(shown), 1.6 + len(maps) * (0.9 + 0.3 * len(conditions)), figure)
    bound = max(float(np.abs(values).max()) for _, values in maps) or 1.0
    panels = figure.subplots(len(maps), 1, squeeze=False, sharex=True).ravel()
    for axes, (name, values) in zip(panels, maps, strict=True):
        image = axes.imshow(values, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_yticks(range(len(conditions)), [clipped(c) for c in conditions], fontsize=9, parse_math=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    names = [clipped(genes[gene]) for gene in shown]
    panels[-1].set_xticks(range(len(shown)), names, rotation=90, fontsize=8, parse_math=False)
    figure.colorbar(image, ax=panels.tolist(), label=f"change of the mean from {start}", shrink=0.9, aspect=30)
    said = f"Predicted change of {len(shown)} genes in {len(conditions)} populations"
    if truth is not None and np.ptp(maps[1][1]) > 0 and np.ptp(maps[0][1]) > 0:
        r = np.corrcoef(maps[0][1].ravel(), maps[1][1].ravel())[0, 1]
        said = f"Predicted and true change of {len(shown)} genes: r = {r:.2f}"
    headline(figure, said)
    return figure


def curves(
    predicted: Series,
    truth: Series | None,
    trained: Series | None,
    genes: Sequence[str],
    what: str,
    title: str,
    *,
    chosen: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Mean of some genes over dose or time, which `what` names: predicted, true and training cells, mean +- 2 errors.

    The genes are those chosen or, if none is, those whose predicted mean varies most, that of training cells where one
    is predicted alone.
    """
    shown = _varying(predicted if trained is None or len(predicted.at) > 1 else trained, genes, chosen)
    columns = min(3, len(shown))
    figure = canvas(3.6 * columns + 0.6, 2.5 * -(-len(shown) // columns) + 1.2, figure)
    headline(figure, title)
    panels = figure.subplots(-(-len(shown) // columns), columns, squeeze=False, sharex=True).ravel()
    _curves(panels, predicted, truth, trained, [(genes[g], g) for g in shown])
    for axes in panels[::columns]:
        axes.set_ylabel("mean expression", fontsize=10)
    for axes in panels[max(0, len(shown) - columns) : len(shown)]:
        axes.set_xlabel(what, fontsize=10)
        axes.tick_params(axis="x", labelbottom=True)
    everywhere = np.concatenate([series.at for series in (predicted, truth, trained) if series is not None])
    positive = everywhere[everywhere > 0]
    if what == "dose" and len(positive) and positive.max() > WIDE * positive.min():
        panels[0].set_xscale("symlog", linthresh=positive.min())  # shared; 0, the control, has no logarithm
        panels[0].xaxis.set_minor_locator(NullLocator())
        panels[0].set_xlim(-0.4 * positive.min(), 1.7 * positive.max())
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def trajectory(
    cells: np.ndarray,
    time: np.ndarray,
    predicted: Series,
    path: np.ndarray,
    predicted_path: np.ndarray,
    trained: Series,
    truth: Series | None,
    genes: Sequence[str],
    title: str,
    *,
    chosen: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Cells in a plane by their time with the path of the means, and some genes over time.

    cells: N x 2 with their time (N,). path, predicted_path: P x 2 points of `trained` and of `predicted`.
    """
    shown = _varying(trained, genes, chosen)[:4]
    figure = canvas(12.0, 6.2, figure)
    headline(figure, title)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1.15, 1]), dtype=object)
    axes = left.subplots()
    norm = Normalize(float(time.min()), float(time.max()))
    axes.scatter(*cells.T, c=time, cmap="viridis", norm=norm, s=9, alpha=0.45, linewidths=0)
    axes.plot(*path.T, color=BLACK, linewidth=1.5, zorder=3, label="mean of known cells")
    axes.scatter(*path.T, c=trained.at, cmap="viridis", norm=norm, s=70, edgecolors=BLACK, zorder=4)
    axes.scatter(
        *predicted_path.T,
        marker="X",
        s=130 if len(predicted_path) <= MAX_TIMES else 50,
        color=GENERATED,
        edgecolors=BLACK,
        zorder=5,
        label="predicted",
    )
    every = -(-len(predicted.at) // MAX_TIMES)
    for point, at in zip(predicted_path[::every], predicted.at[::every], strict=True):
        label = axes.annotate(f"{at:g}", point, xytext=(8, 8), textcoords="offset points", fontsize=9, zorder=6)
        label.set(fontweight="bold", path_effects=[withStroke(linewidth=2.5, foreground="white")])
    finish(axes, "Known cells and predicted means", x="first principal component", y="second principal component")
    axes.legend(frameon=False, fontsize=9, loc="best")
    left.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label="time", shrink=0.8)
    panels = right.subplots(-(-len(shown) // 2), min(2, len(shown)), squeeze=False, sharex=True).ravel()
    _curves(panels, predicted, truth, trained, [(genes[g], g) for g in shown])
    for axes in panels[:: min(2, len(shown))]:
        axes.set_ylabel("mean expression", fontsize=10)
    for axes in panels[max(0, len(shown) - 2) : len(shown)]:
        axes.set_xlabel("time", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    right.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _varying(series: Series, genes: Sequence[str], chosen: Sequence[str]) -> list[int]:
    return [genes.index(gene) for gene in chosen] or np.argsort(-series.mean.var(axis=0), kind="stable")[
        :N_CURVES
    ].tolist()


def _curves(
    panels: np.ndarray,
    predicted: Series,
    truth: Series | None,
    trained: Series | None,
    shown: Sequence[tuple[str, int]],
) -> None:
    lines = (
        (trained, "training cells", CONTROL, "s--"),
        (truth, "true cells", REAL, "o-"),
        (predicted, "predicted", GENERATED, "D-"),
    )
    for axes, (name, gene) in zip(panels, shown, strict=False):
        for series, label, colour, style in lines:
            if series is not None:
                axes.errorbar(
                    series.at,
                    series.mean[:, gene],
                    yerr=2 * series.error[:, gene],
                    fmt=style,
                    color=colour,
                    markersize=5,
                    linewidth=1.5,
                    capsize=2,
                    label=label,
                )
        _end(axes, name)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)


def _end(axes: Axes, name: str) -> None:
    finish(axes, clipped(name), size=9)
    low, high = axes.get_ylim()
    if high - low < 1e-9:
        axes.set_ylim(low - 0.5, high + 0.5)
