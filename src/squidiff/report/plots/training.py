"""The loss of a run."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from squidiff.config import InputError
from squidiff.report.plots.style import AMBER, BLACK, BLUE, GREEN, LIGHT, ORANGE, SKY, canvas, finish, legend, short

QUARTILES = (
    ("loss_q1", "least noise", SKY, "-"),
    ("loss_q2", "second", GREEN, "--"),
    ("loss_q3", "third", AMBER, "-."),
    ("loss_q4", "most noise", ORANGE, ":"),
)


def smoothed(values: pd.Series, span: float) -> pd.Series:
    """Exponential moving average that starts without bias: y_i = sum_j w^(i-j) x_j / sum_j w^(i-j), w = 1 - 2/(span+1).

    NaN counts as not measured: it carries no weight and repeats the average so far.
    """
    return values.astype(float).ewm(span=max(span, 1.0), adjust=True, ignore_na=True).mean()


def training_loss(metrics: pd.DataFrame, predicts: str = "v", *, figure: Figure | None = None) -> Figure:
    """Loss, loss by noise level and learning rate over the optimiser steps.

    `metrics`: a row for each logged step, columns step, loss, validation_loss (NaN where not measured),
    learning_rate, loss_q1 .. loss_q4 (quartiles of the noise level, q1 the least). `predicts` names what the loss is
    the squared error of. Raises InputError without rows.
    """
    if metrics.empty:
        raise InputError("the run has no metrics yet: train for at least one logging interval")
    figure = canvas(8.0, 8.5, figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1])
    step, span = metrics["step"], len(metrics) / 15
    dot = "o" if len(metrics) == 1 else ""  # a line of one point cannot be seen
    loss = smoothed(metrics["loss"], span)
    validation = metrics.loc[metrics["validation_loss"].notna(), ["step", "validation_loss"]]

    top.plot(step, metrics["loss"], color=LIGHT, marker=dot, linewidth=0.9, label="each log")
    top.plot(step, loss, color=BLUE, marker=dot, linewidth=2, label="smoothed")
    if validation.empty:
        title = f"Training loss {short(loss.iloc[-1])} after {step.iloc[-1]:,} steps (smoothed)"
    else:
        top.plot(*validation.to_numpy().T, "o-", color=ORANGE, markersize=4.5, linewidth=1.3, label="validation")
        last = validation.iloc[-1]
        lowest = validation.iloc[int(validation["validation_loss"].argmin())]
        title = f"Validation loss {short(last['validation_loss'])} after {int(last['step']):,} steps, lowest"
        title += (
            " there"
            if lowest["step"] == last["step"]
            else (f" at {int(lowest['step']):,} ({short(lowest['validation_loss'])})")
        )
    finish(top, title, y=f"loss: mean squared error of {predicts}")
    _loss_scale(top, pd.concat([metrics["loss"], validation["validation_loss"]]))
    legend(top, 3)

    by_noise = {column: smoothed(metrics[column], span) for column, *_ in QUARTILES}
    for column, name, colour, dash in QUARTILES:
        middle.plot(step, by_noise[column], color=colour, linestyle=dash, marker=dot, linewidth=2, label=name)
    ends = {name: by_noise[column].iloc[-1] for column, name, *_ in QUARTILES if by_noise[column].notna().any()}
    title = "By quartile of the noise level: not measured"
    if ends:
        hard, easy = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
        title = f"By quartile of the noise level: {short(ends[hard])} for {hard}, {short(ends[easy])} for {easy}"
    finish(middle, title, y=f"loss: mean squared error of {predicts}")
    _loss_scale(middle, pd.concat(list(by_noise.values())))
    legend(middle, 4)

    rate = metrics["learning_rate"]
    bottom.plot(step, rate, color=BLACK, marker=dot, linewidth=1.5)
    bottom.set_ylim(0, float(rate.max()) * 1.15 or 1.0)
    bottom.yaxis.set_major_locator(MaxNLocator(3))
    bottom.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    peak = step.iloc[int(rate.argmax())]
    title = f"Learning rate: highest {rate.max():.2g} at step {peak:,}, {rate.iloc[-1]:.2g} at the end"
    finish(bottom, title, x="optimiser step", y="learning rate")
    bottom.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    figure.align_ylabels()
    return figure


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
