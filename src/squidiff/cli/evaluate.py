"""squidiff evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.options import SchemaOptions, given
from squidiff.cli.show import progress, say, show_scores
from squidiff.config import Schema


def evaluate(
    predicted: Annotated[Path, Parameter(help="an .h5ad file of predicted cells")],
    truth: Annotated[Path, Parameter(help="an .h5ad file of true cells")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the folder to write metrics.csv and sample_quality.png to")],
    train: Annotated[Path | None, Parameter(help="the .h5ad file of training cells: baselines and control")] = None,
    schema: SchemaOptions = Schema(),
    seed: Annotated[int, Parameter(help="seed of resampling")] = 0,
) -> None:
    """Score predicted cells against true ones, beside the simple baselines, with intervals and a verdict.

    Without schema options the predicted file says which column means what.
    """
    from squidiff.evaluate.scoring import UNSCORED
    from squidiff.workflows.scores import write_scores

    with progress("evaluating") as advance:
        on_population = lambda i, n: advance(i, total=n)  # noqa: E731
        scores = write_scores(predicted, truth, train, given(schema), out, seed=seed, on_population=on_population)
    show_scores(scores)
    unscored = scores.attrs[UNSCORED]
    if any(unscored.values()):
        n_predicted, n_true = unscored["predicted"], unscored["true"]
        say(f"not scored: {n_predicted} predicted populations have no truth, {n_true} true ones no prediction")
    say(f"all methods and metrics: {out / 'metrics.csv'}")
