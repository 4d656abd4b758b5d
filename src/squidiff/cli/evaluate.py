"""squidiff evaluate, squidiff compare, squidiff adopt."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from squidiff.cli.options import SchemaOptions, given
from squidiff.cli.show import progress, refuse_overwriting, say, say_unused, show_comparison, show_scores
from squidiff.config import InputError, Schema
from squidiff.files import require_writable

if TYPE_CHECKING:
    import pandas as pd

Truth = Annotated[Path, Parameter(help="an .h5ad file of true cells")]
Out = Annotated[Path, Parameter(help="the folder to write metrics.csv, metrics.json and sample_quality.png to")]
Train = Annotated[Path | None, Parameter(help="the .h5ad file of training cells: baselines, control, leaks")]
Seed = Annotated[int, Parameter(help="seed of resampling")]


def evaluate(
    predicted: Annotated[Path, Parameter(help="an .h5ad file of predicted cells")],
    truth: Truth,
    /,
    *,
    out: Out,
    train: Train = None,
    cell_eval: Annotated[
        Path | None, Parameter(help="also write to this folder the pair of files that `cell-eval run` takes")
    ] = None,
    schema: SchemaOptions = Schema(),
    seed: Seed = 0,
) -> None:
    """Score predicted cells and simple baselines against true cells, with intervals and a verdict.

    Without schema options a file that remembers says which column means what.
    """
    from squidiff.evaluate.scoring import MODEL
    from squidiff.workflows.cell_eval import PREDICTED, REAL, write_cell_eval

    if cell_eval is not None:
        if train is None:
            raise InputError("--cell-eval needs --train, whose control cells stand in both files")
        refuse_overwriting(predicted, truth, train, *(cell_eval / name for name in (PREDICTED, REAL)))
        command = write_cell_eval(predicted, truth, train, given(schema), cell_eval)
    scores = _score({MODEL: predicted}, truth, train, schema, out, seed)
    show_scores(scores)
    _say_the_rest(scores, out, train)
    if cell_eval is not None:
        say(f"for cell-eval: {shlex.join(command)}")


def compare(
    *predictions: Annotated[
        str, Parameter(help=".h5ad files of predicted cells, as FILE or NAME=FILE; without a name, that of the file")
    ],
    truth: Truth,
    out: Out,
    train: Train = None,
    schema: SchemaOptions = Schema(),
    seed: Seed = 0,
) -> None:
    """Score several predictions of the same cells, of any tools, in one table.

    Each is judged against the baselines. Without schema options a file that remembers says which column means what.
    """
    scores = _score(_named(predictions), truth, train, schema, out, seed)
    show_comparison(scores)
    _say_the_rest(scores, out, train)


def adopt(
    file: Annotated[Path, Parameter(help="what the tool predicted: an .h5ad file, or .npz of mean profiles")],
    /,
    *,
    tool: Annotated[Literal["scgen", "cellflow", "gears", "state"], Parameter(help="the tool")],
    out: Annotated[Path, Parameter(help="the .h5ad file to write, for `evaluate` and `compare`")],
    set: Annotated[
        tuple[str, ...], Parameter(help="give all cells this value: COLUMN=VALUE,COLUMN=VALUE; may be repeated")
    ] = (),
    layer: Annotated[str | None, Parameter(help="where the values are, if not where the tool writes them")] = None,
    schema: SchemaOptions = Schema(),
) -> None:
    """Read what another tool predicted, and write it as `squidiff predict` would."""
    from squidiff.workflows.adopt import adopt as read

    refuse_overwriting(file, out)
    require_writable(out)
    predicted = read(file, tool, given(schema), out, columns=set, layer=layer)
    say(f"{predicted.n_obs:,} cells of {predicted.n_vars:,} genes: {out}")


def _named(predictions: tuple[str, ...]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in predictions:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).stem, text
        if not name.strip():
            raise InputError(f"{text!r} gives a prediction no name: write NAME=FILE")
        if name in named:
            raise InputError(f"two predictions are named {name!r}: name them, as NAME=FILE")
        named[name] = Path(path)
    if not named:
        raise InputError("no prediction is given: name .h5ad files of predicted cells")
    return named


def _score(
    predictions: Mapping[str, Path], truth: Path, train: Path | None, schema: Schema, out: Path, seed: int
) -> pd.DataFrame:
    from squidiff.workflows.scores import METRICS_CSV, write_scores

    require_writable(out / METRICS_CSV)
    say_unused(schema, *predictions.values(), truth, train)
    with progress("evaluating") as advance:
        on_population = lambda i, n: advance(i, total=n)  # noqa: E731
        return write_scores(predictions, truth, train, given(schema), out, seed=seed, on_population=on_population)


def _say_the_rest(scores: pd.DataFrame, out: Path, train: Path | None) -> None:
    from squidiff.evaluate.scoring import ADVICE, GENES, UNSCORED

    for sentence in scores.attrs[ADVICE]:
        say(sentence)
    n_genes = scores.attrs[GENES]
    if n_genes["scored"] < n_genes["true"]:
        say(f"scored on {n_genes['scored']:,} genes, which are predicted; the truth has {n_genes['true']:,}")
    unscored = scores.attrs[UNSCORED]
    if any(unscored.values()):
        n_predicted, n_true = unscored["predicted"], unscored["true"]
        missing = (
            (n_predicted, "predicted populations have no truth"),
            (n_true, "true populations were not predicted"),
        )
        say(f"not scored: {', '.join(f'{n:,} {what}' for n, what in missing if n)}")
    if train is None:
        say("without --train there are no baselines and no verdicts, and only copied cells are found as leaks")
    say(f"all methods and metrics: {out / 'metrics.csv'}")
