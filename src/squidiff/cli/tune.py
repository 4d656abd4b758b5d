"""squidiff tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.options import Device, PreparationOptions, SchemaOptions, given
from squidiff.cli.show import say, say_unused, show_table
from squidiff.config import Config, Preparation, Schema

MAX_SHOWN = 10


def tune(
    data: Annotated[Path, Parameter(help="the .h5ad file of the cells; what to hold out is named as in prepare")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the folder of the trials, the table and the best settings; goes on there")],
    n_trials: Annotated[int, Parameter(help="trials in all, those of before and of other processes included")] = 20,
    minutes: Annotated[float | None, Parameter(help="begin no further trial after so many minutes")] = None,
    metric: Annotated[str, Parameter(help="what is to be best on cells held out")] = "energy_distance",
    storage: Annotated[
        str | None,
        Parameter(help="a database of the trials (postgresql://...), for machines that share no folder"),
    ] = None,
    preparation: PreparationOptions = Preparation(),
    schema: SchemaOptions = Schema(),
    device: Device = "auto",
) -> None:
    """Choose the settings of training by how well cells that are held out are predicted."""
    from squidiff.workflows.tune import BEST_TOML, TRIALS_CSV
    from squidiff.workflows.tune import tune as search

    say_unused(schema, data)
    table = search(
        data,
        given(schema),
        preparation,
        out,
        base=Config(seed=preparation.seed),
        n_trials=n_trials,
        minutes=minutes,
        metric=metric,
        storage=storage,
        device=device,
        say=say,
    )
    columns = list(table.columns)
    show_table(columns, list(table.head(MAX_SHOWN).itertuples(index=False, name=None)))
    say(f"all trials: {out / TRIALS_CSV}")
    say(f"the best settings, for `squidiff train --settings {out / BEST_TOML}`")
