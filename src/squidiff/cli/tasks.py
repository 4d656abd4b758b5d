"""squidiff changes, rank, interactions, dose-curve, trajectory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from squidiff.cli.options import Device, OneQuery, Queries, SamplingOptions, SchemaOptions, Source, given
from squidiff.cli.predict import count_known, read_asked
from squidiff.cli.show import progress, refuse_inside, refuse_overwriting, require_ending, say, say_far, show_table
from squidiff.config import InputError, Sampling, Schema
from squidiff.files import require_writable, write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from squidiff.estimator import Squidiff

Run = Annotated[Path, Parameter(help="a run folder")]
Csv = Annotated[Path, Parameter(help="the CSV file to write")]
MAX_SHOWN = 10


def changes(
    run: Run,
    /,
    *,
    source: Source,
    out: Csv,
    queries: Queries = None,
    query: OneQuery = (),
    device: Device = "auto",
) -> None:
    """Which genes a prediction changes, and with what certainty: a row a query and gene, with intervals, as CSV."""
    asked = read_asked(queries, query)
    model = _ready(run, device, out, source, queries)
    count_known(model, asked, queries)
    table = model.changes(asked, source)
    _write(out, table)
    for (anchor, far), rows in table.groupby(["anchor", "far"], sort=False):
        n = int(rows["changes"].sum())
        say(f"{n:,} of {len(rows):,} means change by more than their 90 % interval; from: {anchor}")
        say_far([far])
    if not table["tried"].all():
        say("the widths of some intervals are a guess: training holds too few populations to leave one out")
    largest = table.loc[table["shift"].abs().sort_values(ascending=False, kind="stable").index[:MAX_SHOWN]]
    asked_for = [c for c in table.columns[: table.columns.get_loc("gene")] if table[c].nunique() > 1]
    shown = largest[[*asked_for, "gene", "source_mean", "shift", "shift_low_90", "shift_high_90"]]
    columns = (*asked_for, "gene", "before", "shift", "90 % from", "to")
    show_table(columns, list(shown.itertuples(index=False, name=None)))
    say(f"all genes: {out}")


def rank(
    run: Run,
    /,
    *,
    source: Source,
    target: Annotated[
        Path, Parameter(help="the .h5ad file of the cells to come near to: all of them are the target together")
    ],
    out: Csv,
    queries: Queries = None,
    query: OneQuery = (),
    sampling: SamplingOptions = Sampling(),
    device: Device = "auto",
) -> None:
    """Which of several conditions brings cells nearest to a target population: the energy distance of each, as CSV."""
    from squidiff.data.table import read_cells
    from squidiff.tasks import rank_conditions

    asked = read_asked(queries, query)
    model = _ready(run, device, out, source, target, queries)
    count_known(model, asked, queries)
    cells = read_cells(target)
    several = cells.obs[[c for c in model.schema.columns if c in cells.obs]].drop_duplicates()
    if several.columns.size and len(several) > 1:
        say(f"{target} holds cells of {len(several)} populations by {', '.join(several)}: they are the target together")
    with progress("predicting") as advance:
        on_query = lambda i, n: advance(i, total=n)  # noqa: E731
        table = rank_conditions(model, asked, source, cells, sampling=sampling, seed=sampling.seed, on_query=on_query)
    _write(out, table)
    columns = [c for c in table if c not in ("before", "anchor", "far")]
    show_table(columns, list(table[columns].head(MAX_SHOWN).itertuples(index=False, name=None)))
    say_far(table["far"])
    n_there = int(table["share"].isna().sum())
    if n_there:
        one = "what it starts" if n_there == 1 else "what they start"
        say(f"{n_there} of {len(table)} have no share: {one} from is as near to the target as its own cells are")
    say(f"share is how much of the way to the target it is; all of them: {out}")


def interactions(
    cells: Annotated[Path, Parameter(help="the .h5ad file of cells: control, single parts and combinations")],
    /,
    *,
    out: Csv,
    pairs: Annotated[Path | None, Parameter(help="take the combinations from this .h5ad file, as predicted")] = None,
    n_null: Annotated[int, Parameter(help="bootstraps of the null")] = 1000,
    seed: Annotated[int, Parameter(help="of the bootstraps")] = 0,
    schema: SchemaOptions = Schema(),
) -> None:
    """Whether combinations do more or less than the sum of their parts, against a null, as CSV."""
    from squidiff.tasks import interactions as find
    from squidiff.tasks.combination import LEFT_OUT, MIN_CELLS

    refuse_overwriting(cells, out, pairs)
    require_ending(out, ".csv")
    require_writable(out)
    table = find(cells, given(schema), pairs=pairs, n_null=n_null, seed=seed)
    _write(out, table)
    columns = ["context", "condition", "additive", "interaction", "expected", "strength", "fit", "p", "q"]
    show_table(columns, list(table[columns].head(MAX_SHOWN).itertuples(index=False, name=None)))
    n_left_out = table.attrs[LEFT_OUT]
    if n_left_out:
        few = f"{MIN_CELLS} cells of their own, of a part alone or of the control"
        say(f"{n_left_out:,} combinations are left out, as they lack {few} in their context")
    say(f"all {'other ' if n_left_out else ''}combinations: {out}")


def dose_curve(
    run: Run,
    /,
    *,
    source: Source,
    out: Csv,
    doses: Annotated[str, Parameter(help="in training's unit, ascending, separated by ','", allow_leading_hyphen=True)],
    query: Annotated[str, Parameter(help="the population but for its dose, as COLUMN=VALUE,COLUMN=VALUE")],
    device: Device = "auto",
) -> None:
    """How each gene's mean goes with the dose of one condition, with intervals, as CSV."""
    from squidiff.data.conditions import read_number
    from squidiff.data.queries import require_known
    from squidiff.data.splits import parse_rule
    from squidiff.tasks import dose_curves, monotonicity

    model = _ready(run, device, out, source)
    require_known(parse_rule(query), model.schema)
    table = dose_curves(model, parse_rule(query), _numbers(doses, "--doses", read_number), source)
    _write(out, table)
    say_far(table["far"])
    ways = monotonicity(table, str(model.schema.dose_key))
    one_way = float((ways["spearman"].abs() > 1 - 1e-9).mean())
    say(f"{one_way:.0%} of the genes go one way over the doses; those that go farthest, and the dose of half of it:")
    show_table(list(ways), list(ways.head(MAX_SHOWN).itertuples(index=False, name=None)))
    say(f"all doses and genes: {out}")


def trajectory(
    run: Run,
    /,
    *,
    source: Source,
    times: Annotated[
        str,
        Parameter(help="numbers, or ranges as 330-390, ascending, separated by ','", allow_leading_hyphen=True),
    ],
    out: Annotated[Path, Parameter(help="the .h5ad file of predicted cells to write")],
    speeds_out: Annotated[
        Path | None, Parameter(name="--speeds", help="CSV of the speed of each gene to write")
    ] = None,
    query: Annotated[str | None, Parameter(help="the other columns, as COLUMN=VALUE,COLUMN=VALUE")] = None,
    sampling: SamplingOptions = Sampling(),
    device: Device = "auto",
) -> None:
    """Cells at a series of times, and how fast each gene changes on the way."""
    from squidiff.data.queries import require_known
    from squidiff.data.splits import parse_rule
    from squidiff.data.table import read_time, write_cells
    from squidiff.tasks import speeds
    from squidiff.tasks import trajectory as predict

    model = _ready(run, device, out, source, speeds_out, ending=".h5ad")
    refuse_overwriting(source, speeds_out)
    wanted, rest = _numbers(times, "--times", read_time), None if query is None else parse_rule(query)
    require_known(rest or {}, model.schema)
    table = None
    if speeds_out is not None:
        refuse_inside(run, speeds_out)
        require_ending(speeds_out, ".csv")
        require_writable(speeds_out)
        table = speeds(model, wanted, source, query=rest)
    with progress("predicting", len(wanted)) as advance:
        cells = predict(model, wanted, source, query=rest, sampling=sampling, on_query=lambda i, n: advance(i))
    write_cells(out, cells)
    say_far(cells.obs["far"])
    say(f"{cells.n_obs:,} cells at {len(wanted)} times: {out}")
    if speeds_out is not None and table is not None:
        _write(speeds_out, table)
        say(f"the speed of each gene from one time to the next: {speeds_out}")


def _ready(run: Path, device: str, out: Path, source: Path, *others: Path | None, ending: str = ".csv") -> Squidiff:
    """The model, once `out` can be written and is no input."""
    from squidiff.estimator import Squidiff

    for file in (source, *others):  # one may be read twice
        refuse_overwriting(file, out)
    refuse_inside(run, out)
    require_ending(out, ending)
    require_writable(out)
    return Squidiff.load(run, device)


def _write(out: Path, table: pd.DataFrame) -> None:
    write_atomically(out, lambda temporary: table.to_csv(temporary, index=False))


def _numbers(text: str, option: str, read: Callable[[str], float]) -> list[float]:
    try:
        return [read(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is {text!r}: give numbers, separated by ','") from None
