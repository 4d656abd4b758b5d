"""Tables and arrays to pictures.

Owns: the one style, the figures and how a picture is written. Must not know: models, AnnData, how the numbers came
about. Object-oriented matplotlib only, so that nothing global changes; text from data is never read as mathematics.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from squidiff.config import InputError
from squidiff.files import write_atomically

# Okabe and Ito's palette: told apart with every kind of colour vision (jfly.uni-koeln.de/color).
BLUE, ORANGE, SKY, GREEN = "#0072B2", "#D55E00", "#56B4E9", "#009E73"
AMBER, BLACK, GREY, LIGHT = "#E69F00", "#000000", "#767676", "#BDBDBD"
QUARTILES = (
    ("loss_q1", "least noise", SKY, "-"),
    ("loss_q2", "second", GREEN, "--"),
    ("loss_q3", "third", AMBER, "-."),
    ("loss_q4", "most noise", ORANGE, ":"),
)
DPI = 150
N_LABELLED = 5
N_SHOWN = 6
LONGEST_NAME = 28


def smoothed(values: pd.Series, span: float) -> pd.Series:
    """Exponential moving average that starts without bias: y_i = sum_j w^(i-j) x_j / sum_j w^(i-j), w = 1 - 2/(span+1).

    NaN counts as not measured: it carries no weight and repeats the average so far.
    """
    return values.astype(float).ewm(span=max(span, 1.0), adjust=True, ignore_na=True).mean()


def training_loss(metrics: pd.DataFrame, predicts: str = "v") -> Figure:
    """Loss, loss by noise level and learning rate over the optimiser steps.

    `metrics`: a row for each logged step, columns step, loss, validation_loss (NaN where not measured),
    learning_rate, loss_q1 .. loss_q4 (quartiles of the noise level, q1 the least). `predicts` names what the loss is
    the squared error of. Raises InputError without rows.
    """
    if metrics.empty:
        raise InputError("the run has no metrics yet: train for at least one logging interval")
    figure = _figure(8.0, 8.5)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    step, span = metrics["step"], len(metrics) / 15
    dot = "o" if len(metrics) == 1 else ""  # a line of one point cannot be seen
    loss = smoothed(metrics["loss"], span)
    validation = metrics.loc[metrics["validation_loss"].notna(), ["step", "validation_loss"]]

    top.plot(step, metrics["loss"], color=LIGHT, marker=dot, linewidth=0.9, label="each log")
    top.plot(step, loss, color=BLUE, marker=dot, linewidth=2, label="smoothed")
    if validation.empty:
        title = f"Training loss {_short(loss.iloc[-1])} after {step.iloc[-1]:,} steps (smoothed)"
    else:
        top.plot(*validation.to_numpy().T, "o-", color=ORANGE, markersize=4.5, linewidth=1.3, label="validation")
        last = validation.iloc[-1]
        lowest = validation.iloc[int(validation["validation_loss"].argmin())]
        title = f"Validation loss {_short(last['validation_loss'])} after {int(last['step']):,} steps, lowest"
        title += (
            " there"
            if lowest["step"] == last["step"]
            else (f" at {int(lowest['step']):,} ({_short(lowest['validation_loss'])})")
        )
    _finish(top, title, y=f"loss: mean squared error of {predicts}")
    _loss_scale(top, pd.concat([metrics["loss"], validation["validation_loss"]]))
    _legend(top, 3)

    by_noise = {column: smoothed(metrics[column], span) for column, *_ in QUARTILES}
    for column, name, colour, dash in QUARTILES:
        middle.plot(step, by_noise[column], color=colour, linestyle=dash, marker=dot, linewidth=2, label=name)
    ends = {name: by_noise[column].iloc[-1] for column, name, *_ in QUARTILES if by_noise[column].notna().any()}
    title = "By quartile of the noise level: not measured"
    if ends:
        hard, easy = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
        title = f"By quartile of the noise level: {_short(ends[hard])} for {hard}, {_short(ends[easy])} for {easy}"
    _finish(middle, title, y=f"loss: mean squared error of {predicts}")
    _loss_scale(middle, pd.concat(list(by_noise.values())))
    _legend(middle, 4)

    rate = metrics["learning_rate"]
    bottom.plot(step, rate, color=BLACK, marker=dot, linewidth=1.5)
    bottom.set_ylim(0, float(rate.max()) * 1.15 or 1.0)
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    peak = step.iloc[int(rate.argmax())]
    title = f"Learning rate: highest {rate.max():.2g} at step {peak:,}, {rate.iloc[-1]:.2g} at the end"
    _finish(bottom, title, x="optimiser step", y="learning rate")
    bottom.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.align_ylabels()
    return figure


def sample_quality(
    predicted: np.ndarray, truth: np.ndarray, genes: Sequence[str], control: np.ndarray | None, title: str
) -> Figure:
    """Generated against real cells of one population: the mean of each gene, and whole distributions of six genes.

    predicted: S x G, truth: N x G, control: K x G or None, in one unit (log-normalised expression); genes: G names.
    Left: r is Pearson's correlation of the means over genes; the five genes furthest off are named. Right: the genes
    whose mean differs most between truth and control (without control: of the highest variance); bars leave out the
    zeros, whose share stands in the title. Raises InputError if the arrays do not have G columns or
    hold NaN.
    """
    for name, cells in (("predicted", predicted), ("truth", truth), ("control", control)):
        if cells is not None and (cells.ndim != 2 or cells.shape[1] != len(genes) or not len(cells)):
            raise InputError(f"the {name} cells are of shape {cells.shape}: they must be cells x {len(genes)} genes")
        if cells is not None and not np.isfinite(cells).all():
            raise InputError(f"the {name} cells hold NaN or infinity: a picture of them would mislead")
    figure = _figure(13.0, 6.8)
    figure.suptitle(textwrap.fill(title, 100), fontsize=14, fontweight="bold", x=0.01, ha="left", parse_math=False)
    left, right = np.asarray(figure.subfigures(1, 2, width_ratios=[1, 0.95], wspace=0.03), dtype=object)
    _means(left, predicted, truth, genes, control)

    change = np.abs(truth.mean(axis=0) - control.mean(axis=0)) if control is not None else truth.var(axis=0)
    chosen = np.argsort(-change, kind="stable")[:N_SHOWN]
    reason = "largest change from control" if control is not None else "highest variance"
    right.suptitle(f"The {len(chosen)} genes of {reason}: distribution where not zero", fontsize=11, x=0.01, ha="left")
    panels = right.subplots(-(-len(chosen) // 2), 2, squeeze=False).ravel()
    for panel, gene in zip(panels, chosen, strict=False):
        _distribution(panel, predicted[:, gene], truth[:, gene], genes[gene])
    for panel in panels[len(chosen) :]:
        panel.set_visible(False)
    right.supxlabel("expression (unit of the data)", fontsize=10)
    right.supylabel("share of all cells in a bin (%)", fontsize=10)
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.35)
    _legend(panels[0], 2)
    return figure


def _means(
    figure: Figure | SubFigure,
    predicted: np.ndarray,
    truth: np.ndarray,
    genes: Sequence[str],
    control: np.ndarray | None,
) -> None:
    axes = figure.subplots()
    x, y = truth.mean(axis=0), predicted.mean(axis=0)
    shown = [x, y]
    if control is not None:
        before = control.mean(axis=0)
        shown.append(before)
        axes.scatter(x, before, s=14, color=LIGHT, marker="D", linewidths=0, label="control cells")
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
        against = f" (control cells: {np.corrcoef(x, before)[0, 1]:.3f})"
    _finish(
        axes,
        f"Mean of {len(genes):,} genes: r = {r}{against}",
        x="real cells: mean expression",
        y="generated cells: mean expression" if control is None else "generated or control cells: mean expression",
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
            _clipped(names[i]),
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
        (truth, "real", {"histtype": "stepfilled", "color": SKY, "alpha": 0.6}),
        (predicted, "generated", {"histtype": "step", "color": ORANGE, "linewidth": 1.6}),
    )
    for cells, name, style in styles:
        kept = cells[cells != 0]
        axes.hist(kept, bins=bins, weights=np.full(len(kept), 100.0 / len(cells)), label=name, **style)
    zeros = f"zeros: {(truth == 0).mean():.0%} real, {(predicted == 0).mean():.0%} generated"
    _finish(axes, f"{_clipped(gene)}\n{zeros}", size=9)


def _figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches, that no global state knows of."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _finish(axes: Axes, title: str, *, x: str = "", y: str = "", size: float = 11) -> None:
    axes.set_title(title, loc="left", fontsize=size, parse_math=False)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors="#333333")
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(axes: Axes, columns: int) -> None:
    axes.legend(frameon=False, fontsize=9, ncols=columns, loc="upper right")


def _loss_scale(axes: Axes, values: pd.Series) -> None:
    """A logarithmic axis where the losses span more than a factor of ten, else one that leaves room for the legend."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 10 * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))


def _clipped(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _short(value: float) -> str:
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG of 150 dots an inch, or a PDF where the name ends so.

    The whole file or, on any failure, none; an older one stays until then.
    """
    kind = "pdf" if path.suffix == ".pdf" else "png"
    with warnings.catch_warnings():
        # a label in a script that the font lacks is drawn as boxes, which needs no word on the terminal
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_atomically(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=DPI))
