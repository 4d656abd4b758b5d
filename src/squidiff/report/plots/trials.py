"""The trials of a search for settings."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from squidiff.config import InputError
from squidiff.report.plots.style import BLUE, LIGHT, ORANGE, canvas, finish, legend

COLUMNS = ("trial", "state", "seconds")
"""Of the table, besides the metric and the settings that were tried."""
N_ACROSS = 4
N_TICKS = 4


def trials_plot(table: pd.DataFrame, metric: str, higher_is_better: bool, *, figure: Figure | None = None) -> Figure:
    """The metric of each trial in their order with the best so far, and beside each setting's value.

    `table`: a row a trial, with COLUMNS, the metric (NaN where a trial was given up) and a column a setting. Raises
    InputError where no trial came to its end.
    """
    done = table[table["state"] == "complete"].sort_values("trial")
    if done.empty:
        raise InputError("no trial came to its end: there is nothing to draw")
    settings = [name for name in table.columns if name not in (*COLUMNS, metric)]
    n_rows = -(-len(settings) // N_ACROSS)
    figure = canvas(10.0, 3.4 + 2.4 * n_rows, figure)
    grid = figure.add_gridspec(1 + n_rows, N_ACROSS, height_ratios=[1.4] + [1.0] * n_rows)
    name, values = metric.replace("_", " "), done[metric].astype(float)
    so_far = values.cummax() if higher_is_better else values.cummin()
    best = done.loc[values.idxmax() if higher_is_better else values.idxmin()]

    top = figure.add_subplot(grid[0, :])
    given_up = table.loc[table["state"] == "pruned", "trial"]
    for i, trial in enumerate(given_up):
        top.axvline(trial, color=LIGHT, linewidth=1.0, linestyle=":", label="given up" if i == 0 else None)
    top.plot(done["trial"], values, "o", color=BLUE, markersize=5, label="a trial")
    top.plot(done["trial"], so_far, color=ORANGE, linewidth=1.8, drawstyle="steps-post", label="best so far")
    title = f"Best {name} {best[metric]:.4g}, trial {int(best['trial'])} of {len(table)}"
    finish(top, title, x="trial", y=name)
    top.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    legend(top, 3)
    for i, setting in enumerate(settings):
        axes = figure.add_subplot(grid[1 + i // N_ACROSS, i % N_ACROSS])
        axes.plot(done[setting], values, "o", color=BLUE, markersize=4)
        axes.plot([best[setting]], [best[metric]], "o", color=ORANGE, markersize=7)
        _log_where_wide(axes, done[setting])
        finish(axes, setting.replace("_", " "), y=name if i % N_ACROSS == 0 else "", size=10)
    return figure


def _log_where_wide(axes: Axes, values: pd.Series) -> None:
    """A logarithmic axis where numbers span more than a factor of eight; a tick at each where they are few."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any():
        return
    if (numbers > 0).all() and numbers.max() >= 8 * numbers.min():
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    if numbers.nunique() <= N_TICKS and (numbers == numbers.round(2)).all():  # chosen, and not drawn from a range
        axes.xaxis.set_major_locator(FixedLocator(sorted(numbers.unique())))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
