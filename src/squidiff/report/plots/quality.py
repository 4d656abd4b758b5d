"""Generated against real cells of one population: means and distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from scipy.optimize import isotonic_regression

from squidiff.config import InputError
from squidiff.report.plots.style import (
    BLACK,
    BLUE,
    CONTROL_CELLS,
    GENERATED,
    GREY,
    LIGHT,
    REAL,
    canvas,
    clipped,
    finish,
    headline,
    legend,
)

N_LABELLED = 5
N_SHOWN = 6


def sample_quality(
    predicted: np.ndarray,
    truth: np.ndarray,
    genes: Sequence[str],
    control: np.ndarray | None,
    title: str,
    *,
    chosen: Sequence[str] = (),
    start: str = CONTROL_CELLS,
    figure: Figure | None = None,
) -> Figure:
    """Generated against real cells of one population: the mean of each gene, and whole distributions of six genes.

    predicted: S x G, truth: N x G, control: K x G or None, which the picture calls `start`; in one unit
    (log-normalised expression); genes: G names.
    Left: r is Pearson's correlation of the means over genes; the five genes furthest off are named. Right: the genes
    that are chosen or, if none is, those whose mean differs most between truth and control (without control: of the
    highest variance); bars leave out the zeros, whose share stands in the title. Raises InputError if the arrays do
    not have G columns or hold NaN.
    """
    for name, cells in (("predicted", predicted), ("truth", truth), ("control", control)):
        if cells is not None and (cells.ndim != 2 or cells.shape[1] != len(genes) or not len(cells)):
            raise InputError(f"the {name} cells are of shape {cells.shape}: they must be cells x {len(genes)} genes")
        if cells is not None and not np.isfinite(cells).all():
            raise InputError(f"the {name} cells hold NaN or infinity: a picture of them would mislead")
    figure = canvas(13.0, max(6.8, 1.9 * -(-len(chosen) // 2)), figure)
    headline(figure, title)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1, 0.95], wspace=0.03), dtype=object)
    _means(left, predicted, truth, genes, control, start)

    change = np.abs(truth.mean(axis=0) - control.mean(axis=0)) if control is not None else truth.var(axis=0)
    shown = [genes.index(gene) for gene in chosen] or np.argsort(-change, kind="stable")[:N_SHOWN].tolist()
    reason = f"largest change from {start}" if control is not None else "highest variance"
    which = f"The {len(shown)} genes of {reason}" if not chosen else "Genes that were asked for"
    right.suptitle(f"{which}: distribution where not zero", fontsize=11, x=0.01, ha="left")
    panels = right.subplots(-(-len(shown) // 2), 2, squeeze=False).ravel()
    for panel, gene in zip(panels, shown, strict=False):
        _distribution(panel, predicted[:, gene], truth[:, gene], genes[gene])
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    right.supxlabel("expression (unit of the data)", fontsize=10)
    right.supylabel("share of all cells in a bin (%)", fontsize=10)
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.35)
    legend(panels[0], 2)
    return figure


def _means(
    figure: Figure | SubFigure,
    predicted: np.ndarray,
    truth: np.ndarray,
    genes: Sequence[str],
    control: np.ndarray | None,
    start: str,
) -> None:
    axes = figure.subplots()
    x, y = truth.mean(axis=0), predicted.mean(axis=0)
    shown = [x, y]
    if control is not None:
        before = control.mean(axis=0)
        shown.append(before)
        axes.scatter(x, before, s=14, color=LIGHT, marker="D", linewidths=0, label=start)
    low, high = min(v.min() for v in shown), max(v.max() for v in shown)
    margin = 0.06 * ((high - low) or 1.0)
    axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal", anchor="NW")
    axes.axline((low, low), slope=1, color=GREY, linewidth=1, linestyle="--", label="equal")
    axes.scatter(x, y, s=20, color=BLUE, alpha=0.75, linewidths=0, label="generated cells")
    worst = np.argsort(-np.abs(y - x), kind="stable")[:N_LABELLED]
    _name_points(axes, x[worst], y[worst], [genes[i] for i in worst])
    varies = len(genes) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0
    r = f"{np.corrcoef(x, y)[0, 1]:.3f}" if varies else "not defined"
    against = ""
    if control is not None and varies and np.ptp(before) > 0:
        against = f" ({start}: {np.corrcoef(x, before)[0, 1]:.3f})"
    finish(
        axes,
        f"Mean of {len(genes):,} genes: r = {r}{against}",
        x="real cells: mean expression",
        y=f"generated cells{'' if control is None else f' or {start}'}: mean expression",
    )
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _name_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: Sequence[str]) -> None:
    """Rings the points and names them right of the panel, where no label can cover a point or another label."""
    order = np.argsort(y, kind="stable")
    axes.scatter(x, y, s=34, facecolors="none", edgecolors=BLACK, linewidths=1.1, label="furthest off")
    bottom, top = axes.get_ylim()
    slots = 0.05 * (top - bottom) * np.arange(len(order))
    # The nearest heights (least squares) that lie at least a step apart, in the order of the points.
    heights = isotonic_regression(y[order] - slots).x + slots
    heights += min(0.0, top - heights[-1]) + max(0.0, bottom - heights[0])
    for i, height in zip(order, heights, strict=True):
        axes.annotate(
            clipped(names[i]),
            xy=(x[i], y[i]),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            va="center",
            fontsize=9,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3},
        )


def _distribution(axes: Axes, predicted: np.ndarray, truth: np.ndarray, gene: str) -> None:
    values = np.concatenate([predicted, truth])
    values = values[values != 0]
    low, high = (min(values.min(), 0.0), values.max()) if len(values) else (0.0, 1.0)
    bins = np.linspace(low, high if high > low else low + 1.0, 21).tolist()
    styles: tuple[tuple[np.ndarray, str, dict[str, Any]], ...] = (
        (truth, "real", {"histtype": "stepfilled", "color": REAL, "alpha": 0.6}),
        (predicted, "generated", {"histtype": "step", "color": GENERATED, "linewidth": 1.6}),
    )
    for cells, name, style in styles:
        kept = cells[cells != 0]
        axes.hist(kept, bins=bins, weights=np.full(len(kept), 100.0 / len(cells)), label=name, **style)
    zeros = f"zeros: {(truth == 0).mean():.0%} real, {(predicted == 0).mean():.0%} generated"
    finish(axes, f"{clipped(gene)}\n{zeros}", size=9)
