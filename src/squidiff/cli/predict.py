"""squidiff predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.options import Device, SamplingOptions, SchemaOptions, given
from squidiff.cli.show import progress, refuse_inside, refuse_overwriting, say
from squidiff.config import InputError, Sampling, Schema
from squidiff.files import require_writable


def predict(
    run: Annotated[Path | None, Parameter(help="a run folder; none with --baseline")] = None,
    /,
    *,
    source: Annotated[Path, Parameter(help="the .h5ad file of the cells to start from, such as the training file")],
    out: Annotated[Path, Parameter(help="the .h5ad file of predicted cells to write")],
    queries: Annotated[Path | None, Parameter(help="CSV of populations: obs columns, and n_cells if wanted")] = None,
    query: Annotated[
        tuple[str, ...], Parameter(help="a population, as COLUMN=VALUE,COLUMN=VALUE; may be repeated")
    ] = (),
    baseline: Annotated[
        str | None,
        Parameter(
            help="predict by a simple baseline, such as 'mean shift' or 'weighted shift, zeros kept'; needs no run"
        ),
    ] = None,
    schema: SchemaOptions = Schema(),
    sampling: SamplingOptions = Sampling(),
    device: Device = "auto",
) -> None:
    """Generate the cells of each query.

    The schema options are only for --baseline, and not needed if `squidiff prepare` wrote the source: a run knows its
    own, and so does such a file.
    """
    import pandas as pd

    from squidiff.data.splits import parse_rule
    from squidiff.data.table import write_cells

    refuse_overwriting(source, out, queries)
    refuse_inside(run, out)
    require_writable(out)
    if (run is None) == (baseline is None):
        raise InputError("give a run folder, or --baseline and a name: one of the two")
    if (queries is None) == (not query):
        raise InputError("give populations to predict by --queries FILE.csv or by --query COLUMN=VALUE: one of the two")
    asked = queries if queries is not None else pd.DataFrame([parse_rule(q) for q in query])
    if baseline is not None:
        from squidiff.workflows.baseline import predict_baseline

        predicted = predict_baseline(baseline, asked, source, given(schema), seed=sampling.seed)
    else:
        from squidiff.data.queries import read_queries, require_known
        from squidiff.estimator import Squidiff

        if given(schema) is not None:
            raise InputError("schema options go with --baseline only: the run knows its own")
        model = Squidiff.load(Path(str(run)), device)
        for name in () if queries is not None else asked:
            require_known(name, model.schema)
        n_queries = len(read_queries(asked, model.schema))
        with progress("predicting", n_queries) as advance:
            predicted = model.predict(asked, source, sampling, on_query=lambda i, n: advance(i))
    write_cells(out, predicted)
    if "anchor" in predicted.obs:
        say(f"the mean response is from: {', '.join(sorted(set(map(str, predicted.obs['anchor']))))}")
    say(f"{predicted.n_obs:,} predicted cells of {predicted.n_vars:,} genes: {out}")
