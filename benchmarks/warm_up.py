"""How smoothly training begins with the warm-up of the learning rate, and without it.

    python benchmarks/warm_up.py --out FOLDER [--seeds 0 1 2] [--until 300] [--upstream]

The default model on the simulated cells of training.py (100 genes, 2,400 cells), at the default learning rate and at
ten times it, with the default warm-up of 100 steps and with none. It learns by the default schedule of 1,000 steps, of
which the first --until are made, and every step is logged. The same seed has the same weights, batches and noise with
and without warm-up. With --upstream also upstream's architecture by its recipe, which has no warm-up of its own (batch
64, learning rate 1e-4 and ten times it); a step of it takes several times as long.

Writes warm_up.png and warm_up.csv (the curves) to FOLDER, and prints a table, means over the seeds (least to most):
  largest rise: of the smoothed loss above the lowest that it had before, within the first 100 steps;
  step to step: standard deviation of the differences of successive losses, within the first 100 steps and within the
  last 100 of those made, by when the noise of batches is all that is left of it;
  the mean loss of the first 100 steps and of the last 100 of those made, and the last validation loss, which is of the
  averaged weights.
The losses of the two architectures are of different things and cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from accuracy import in_markdown
from matplotlib.figure import Figure
from training import SCHEMA, cells

from squidiff.config import PRESETS, Config
from squidiff.estimator import Squidiff
from squidiff.files import write_atomically
from squidiff.report.numbers import shown
from squidiff.report.plots.style import BLUE, ORANGE, canvas, finish, headline, legend, save
from squidiff.report.plots.training import smoothed
from squidiff.train.run import Diverged, Record

FIRST = 100
"""Steps that are called the first: the default warm-up."""
SPAN = 10
"""Of the moving average, in steps."""
FASTER = (1, 10)
"""Times the default learning rate."""
COLOURS = {True: BLUE, False: ORANGE}
"""With and without warm-up."""


class Enough(Exception):
    """Ends a training in its early steps."""


class Run(NamedTuple):
    """What is varied."""

    model: str
    learning_rate: float
    warm_up: int
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--until", type=int, default=300, help="steps that are made of each training")
    parser.add_argument("--upstream", action="store_true", help="upstream's architecture too")
    arguments = parser.parse_args()
    if not 2 * FIRST <= arguments.until <= Config().n_train_steps:
        parser.error(f"--until is {arguments.until}: it must be from {2 * FIRST} to {Config().n_train_steps}")
    curves = []
    for model in ("squidiff", "upstream") if arguments.upstream else ("squidiff",):
        for times in FASTER:
            for warm_up in (Config().n_warmup_steps, 0):
                for seed in arguments.seeds:
                    run = Run(model, times * PRESETS[model].learning_rate, warm_up, seed)
                    curves.append(curve(run, arguments.until))
                    last = curves[-1].iloc[-1]
                    sys.stderr.write(f"{run}: loss {last['loss']:.3f} at step {last['step']}\n")
    table = pd.concat(curves, ignore_index=True)
    write_atomically(arguments.out / "warm_up.csv", lambda path: table.to_csv(path, index=False))
    save(drawn(table), arguments.out / "warm_up.png")
    sys.stdout.write(in_markdown(summary(table)) + "\n")


def curve(run: Run, until: int) -> pd.DataFrame:
    """The losses of the first steps, a row each; fewer where training diverged."""
    records: list[Record] = []

    def keep(record: Record) -> None:
        records.append(record)
        if record.step == until:
            raise Enough

    config = replace(PRESETS[run.model], learning_rate=run.learning_rate, n_warmup_steps=run.warm_up, seed=run.seed)
    try:
        Squidiff(SCHEMA, replace(config, log_every_steps=1), "cpu").fit(cells(100), on_record=keep)
    except Enough:
        pass
    except Diverged as error:
        sys.stderr.write(f"{run}: {error}\n")
    rows = [(record.step, record.loss, record.validation_loss) for record in records]
    table = pd.DataFrame(rows, columns=["step", "loss", "validation_loss"])
    return table.astype({"validation_loss": float}).assign(**run._asdict())  # None where it is not measured


def measured(of: pd.DataFrame) -> dict[str, float]:
    """How smooth one training was."""
    first, last = of[of["step"] <= FIRST], of[of["step"] > of["step"].max() - FIRST]
    smooth = smoothed(first["loss"], SPAN)
    validation = of["validation_loss"].dropna()
    return {
        "largest rise, first 100": (smooth - smooth.cummin()).max(),
        "step to step, first 100": first["loss"].diff().std(),
        "step to step, last 100": last["loss"].diff().std(),
        "loss, first 100": first["loss"].mean(),
        "loss, last 100": last["loss"].mean(),
        "validation loss": float("nan") if validation.empty else validation.iloc[-1],
    }


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row each model, learning rate and warm-up."""
    rows = []
    for key, of in table.groupby(["model", "learning_rate", "warm_up"], sort=False):
        seeds = pd.DataFrame([measured(of_seed) for _, of_seed in of.groupby("seed")])
        row = {"model": key[0], "learning rate": f"{key[1]:g}", "warm-up": key[2]}
        rows.append(row | {name: of_seeds(seeds[name]) for name in seeds})
    return pd.DataFrame(rows)


def of_seeds(values: pd.Series) -> str:
    if values.isna().all():
        return shown(None)
    return f"{shown(values.mean())} ({shown(values.min())} to {shown(values.max())})"


def drawn(table: pd.DataFrame) -> Figure:
    """A panel each model and learning rate: the smoothed loss of every seed, and the first seed's own losses."""
    panels = list(table.groupby(["model", "learning_rate"], sort=False))
    figure = canvas(10.0, 3.8 * len(panels) / 2 + 0.6)
    for axes, ((model, rate), of_panel) in zip(figure.subplots(len(panels) // 2, 2).flat, panels, strict=True):
        trainings = [(of["warm_up"].iloc[0] > 0, of) for _, of in of_panel.groupby(["warm_up", "seed"], sort=False)]
        for has_warm_up, of in trainings:
            if of["seed"].iloc[0] == table["seed"].iloc[0]:
                axes.plot(of["step"], of["loss"], color=COLOURS[has_warm_up], alpha=0.3, linewidth=0.7)
        for i, (has_warm_up, of) in enumerate(trainings):
            is_first = i == 0 or trainings[i - 1][0] != has_warm_up
            name = f"{'with' if has_warm_up else 'without'} warm-up" if is_first else None
            loss = smoothed(of["loss"], SPAN)
            axes.plot(of["step"], loss, color=COLOURS[has_warm_up], linewidth=1.4, label=name)
        if (of_panel["loss"].max() > 10 * of_panel["loss"].min()) and of_panel["loss"].min() > 0:
            axes.set_yscale("log")
        whose = "upstream's architecture" if model == "upstream" else "default model"
        finish(axes, f"{whose}, learning rate {rate:g}", x="optimiser step", y="training loss")
        legend(axes, 2)
    headline(figure, "The first steps of training, with and without warm-up of the learning rate")
    return figure


if __name__ == "__main__":
    main()
