"""The table of scores as pictures: how far each metric is from floor to ceiling, and predictions side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from squidiff.config import InputError
from squidiff.evaluate.metrics import METRICS
from squidiff.report.numbers import shown
from squidiff.report.plots.style import BLUE, GREEN, GREY, LIGHT, ORANGE, canvas, clipped, headline

PALE = LinearSegmentedColormap.from_list("pale", ["#FFFFFF", "#9CCBE6"])
VERDICT_COLOURS = {"beats": GREEN, "loses": ORANGE}
"""By the verdict's first word; others are grey."""
SAID = {"beats": "better than every baseline", "ties": "even with the best baseline", "loses": "worse than a baseline"}


def floor_to_ceiling(rows: pd.DataFrame, title: str, *, figure: Figure | None = None) -> Figure:
    """Each metric on its own axis, better to the right: the best baseline, the truth's own halves, the model between.

    rows: one a metric, columns metric, value, low, high, floor, ceiling, verdict (NaN where not measured). Metrics that
    METRICS does not know are taken as better when higher.
    """
    rows = rows[np.isfinite(rows["value"])]
    if rows.empty:
        raise InputError("no metric has a value: there is nothing to draw")
    words = rows["verdict"].str.split(" ").str[0].map(SAID).fillna("without a verdict")
    said = "; ".join(f"{n} {word}" for word, n in words.value_counts().items())
    figure = canvas(9.5, 0.62 * len(rows) + 1.5, figure)
    headline(figure, f"{title}: {said}")
    panels = figure.subplots(len(rows), 1, squeeze=False).ravel()
    for axes, row in zip(panels, rows.to_dict("records"), strict=True):
        _between(axes, row)
    handles = [
        Line2D([], [], color=GREY, marker="|", markersize=14, markeredgewidth=3, linestyle="", label="best baseline"),
        Line2D([], [], color=GREEN, marker="|", markersize=14, markeredgewidth=3, linestyle="", label="ceiling"),
        Line2D([], [], color=BLUE, marker="o", linewidth=2, label="model, 95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _between(axes: Axes, row: dict[str, float | str]) -> None:
    numbers = np.array([float(row[name]) for name in ("value", "low", "high", "floor", "ceiling")])
    there = numbers[np.isfinite(numbers)]
    low, high = there.min(), there.max()
    margin = 0.12 * ((high - low) or abs(high) or 1.0)
    name, verdict = str(row["metric"]), str(row["verdict"])
    higher = METRICS[name].higher_is_better if name in METRICS else True
    axes.set_xlim(*((low - margin, high + margin) if higher else (high + margin, low - margin)))
    axes.axhline(0, color=LIGHT, linewidth=1, zorder=0)
    value, interval_low, interval_high, floor, ceiling = numbers
    if np.isfinite(floor) and np.isfinite(ceiling):
        axes.plot([floor, ceiling], [0, 0], color=LIGHT, linewidth=7, solid_capstyle="butt", zorder=1)
    for at, colour in ((floor, GREY), (ceiling, GREEN)):
        if np.isfinite(at):
            axes.plot([at], [0], marker="|", markersize=20, markeredgewidth=3, color=colour)
    if np.isfinite(interval_low):
        axes.plot([interval_low, interval_high], [0, 0], color=BLUE, linewidth=2)
    axes.plot([value], [0], "o", color=BLUE, markersize=7)
    axes.set(yticks=[], ylim=(-1, 1))
    direction = "" if higher else "\n(lower is better)"
    axes.set_ylabel(f"{name.replace('_', ' ')}{direction}", rotation=0, ha="right", va="center", fontsize=9)
    colour = VERDICT_COLOURS.get(verdict.split(" ")[0], GREY)
    axes.text(
        1.01, 0.5, clipped(verdict), transform=axes.transAxes, va="center", fontsize=9, color=colour, parse_math=False
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def side_by_side(rows: pd.DataFrame, methods: Sequence[str], title: str, *, figure: Figure | None = None) -> Figure:
    """Predictions as the columns of a table, metrics (and populations) as its rows; the better, the darker.

    rows: columns condition, metric, method, value, floor, ceiling. Beside the methods stand the best baseline and the
    ceiling. A row's shade runs from its worst to its best value, and its best method is bold.
    """
    # the order of the table, and of a metric that is there twice the first
    values = rows.pivot_table(index=["condition", "metric"], columns="method", values="value", sort=False)
    values = values.reindex(columns=list(methods)).dropna(how="all")
    if values.empty:
        raise InputError("no metric has a value: there is nothing to draw")
    bounds = rows.groupby(["condition", "metric"], sort=False)[["floor", "ceiling"]].first().loc[values.index]
    numbers = np.column_stack([values.to_numpy(), bounds.to_numpy()])
    higher = np.array([METRICS[m].higher_is_better if m in METRICS else True for _, m in values.index])
    goodness = np.where(higher[:, None], numbers, -numbers)
    lowest, highest = np.nanmin(goodness, axis=1, keepdims=True), np.nanmax(goodness, axis=1, keepdims=True)
    span = np.where(highest > lowest, highest - lowest, 1.0)
    of_methods = goodness[:, : len(methods)]
    is_best = np.isclose(of_methods, np.nanmax(of_methods, axis=1, keepdims=True), rtol=1e-6, atol=0.0)
    if len(methods) > 1:
        n_best, alone = is_best.sum(axis=0), is_best.sum(axis=1) == 1
        first = int(np.argmax(n_best))
        shared = int((is_best[:, first] & ~alone).sum())
        title += f": {clipped(methods[first])} has the best value in {n_best[first]} of {len(values)} rows"
        title += f" ({shared} shared)" if shared else ""
    n_behind = int((bounds["floor"].to_numpy() * np.where(higher, 1, -1) > np.nanmax(of_methods, axis=1)).sum())
    title += f"; the best baseline is better in {n_behind}" if n_behind else ""

    several = values.index.get_level_values(0).nunique() > 1
    labels = [f"{clipped(c)}: {m.replace('_', ' ')}" if several else m.replace("_", " ") for c, m in values.index]
    columns = [*map(clipped, methods), "best baseline", "ceiling"]
    figure = canvas(4.0 + 1.35 * len(columns), 1.6 + 0.36 * len(values), figure)
    headline(figure, title)
    axes = figure.subplots()
    axes.imshow((goodness - lowest) / span, cmap=PALE, aspect="auto", vmin=0, vmax=1)
    for i, j in np.ndindex(*numbers.shape):
        text = shown(numbers[i, j])
        weight = "bold" if len(methods) > 1 and j < len(methods) and is_best[i, j] else "normal"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, fontweight=weight)
    axes.axvline(len(methods) - 0.5, color="white", linewidth=4)
    axes.set_xticks(range(len(columns)), columns, fontsize=9, parse_math=False)
    axes.set_yticks(range(len(labels)), labels, fontsize=9, parse_math=False)
    axes.xaxis.tick_top()
    if max(map(len, columns)) > 13:
        for label in axes.get_xticklabels():
            label.set(rotation=30, ha="left", rotation_mode="anchor")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure
