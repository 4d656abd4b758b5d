"""Predicts by a simple baseline, in the form in which a model predicts."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.check import check
from squidiff.data.queries import read_queries, refuse_unknown_columns
from squidiff.data.shards import join
from squidiff.data.table import CellTable, read_cells, remember_schema, schema_of
from squidiff.evaluate.baselines import Baselines
from squidiff.response.populations import Population


def predict_baseline(
    name: str,
    queries: pd.DataFrame | str | Path,
    source: ad.AnnData | str | Path,
    schema: Schema | None = None,
    *,
    seed: int = 0,
) -> ad.AnnData:
    """The cells of each query by the baseline of that name, fitted on `source`, whose schema it is if none is given.

    Raises InputError for an unknown name, for bad data, or when the baseline has nothing to say of a query.
    """
    adata = read_cells(source)
    schema = schema_of(adata, schema)
    check(adata, schema).raise_errors()
    baselines = Baselines(CellTable.from_anndata(adata, schema), schema)
    results = []
    asked = read_queries(queries, schema)
    if not schema.columns and asked[0].columns:
        raise InputError(
            "the source does not say what its obs columns mean: give --condition-key and --control, --context-key or "
            "--time-key (a file that `squidiff prepare` wrote does say it)"
        )
    refuse_unknown_columns(asked, schema, adata.obs)
    for i, query in enumerate(asked):
        rng = np.random.default_rng((seed, i))
        cells = baselines.cells(name, Population(*query.key), query.parts, query.n_cells, rng)
        obs = pd.DataFrame(query.columns, index=pd.Index([f"{i}-{j}" for j in range(len(cells))]))
        var = pd.DataFrame(index=pd.Index(baselines.table.genes))
        results.append(ad.AnnData(X=cells.astype(np.float32), obs=obs, var=var))
    predicted = join(results)
    remember_schema(predicted, schema)
    predicted.uns["squidiff"] = {"baseline": name, "seed": seed}
    return predicted
