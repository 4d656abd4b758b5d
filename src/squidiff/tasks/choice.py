"""Which of several conditions brings cells nearest to a target population."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Sampling, Schema
from squidiff.data.queries import FAR, OWN_COLUMNS
from squidiff.data.table import CellTable, read_cells
from squidiff.estimator import Squidiff
from squidiff.evaluate.baselines import principal_axes
from squidiff.evaluate.distributions import energy_distance
from squidiff.evaluate.pairs import Pair, Resample
from squidiff.evaluate.scorer import resample_counts

MAX_CELLS = 1000
"""Cells of a population that are compared, drawn from more: distances grow with their square."""
MIN_CELLS = 10


def rank_conditions(
    model: Squidiff,
    candidates: pd.DataFrame | str | Path,
    source: ad.AnnData | str | Path,
    target: ad.AnnData | str | Path,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    on_query: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """The candidates (queries, as `Squidiff.predict` takes them), the one that comes nearest to the target first.

    All cells of `target` are the population to reach, whatever their labels. Distances are energy distances on the
    principal components of source and target cells together. Columns: those of the queries; energy_distance of the
    predicted cells to the target, with the bounds of its 95 % bootstrap interval over cells (low, high); before, the
    same of the cells that the prediction starts from; share, how much of the way there it is, 1 - energy_distance /
    before; anchor and far as in `Squidiff.changes`. Raises InputError as `predict`, and for a target of few cells.
    """
    source, target = read_cells(source), read_cells(target)
    predicted = model.predict(candidates, source, sampling, on_query=on_query)
    genes = tuple(map(str, predicted.var_names))
    there, starts = model.table(target, "the target", Schema()), model.table(source, "the source", Schema())
    if len(there.names) < MIN_CELLS:
        raise InputError(f"the target has {len(there.names)} cells: give {MIN_CELLS} or more")
    rng = np.random.default_rng(seed)
    goal = _some(there, rng)
    both = CellTable.from_anndata(_joined(_some(starts, rng), goal, genes), Schema())
    center, axes = principal_axes(both, seed)
    row_of = {name: row for row, name in enumerate(starts.names)}
    number = predicted.obs_names.str.split("-").str[0].astype(int)
    rows = []
    for _, cells in predicted.obs.groupby(number, sort=True):
        of_query = predicted[cells.index]
        moved = _some(CellTable.from_anndata(of_query, Schema()), rng)
        names = sorted(set(cells["source_cell"]))
        start = starts.dense(np.array([row_of[name] for name in names]))[:MAX_CELLS]
        distances = _distances(moved, goal, center, axes, rng)
        before = float(_distances(start, goal, center, axes, rng)[0])
        low, high = np.quantile(distances[1:], [0.025, 0.975])
        query = cells.iloc[0].drop([*OWN_COLUMNS, FAR]).to_dict()
        found = {"energy_distance": distances[0], "low": low, "high": high, "before": before}
        share = 1 - distances[0] / before if before > 0 else np.nan
        rows.append(query | found | {"share": share} | cells.iloc[0][["anchor", FAR]].to_dict())
    return pd.DataFrame(rows).sort_values("energy_distance", kind="stable", ignore_index=True)


def _some(table: CellTable, rng: np.random.Generator) -> np.ndarray:
    """At most MAX_CELLS of the cells, drawn, N x G."""
    return table.dense(np.sort(rng.permutation(len(table.names))[:MAX_CELLS]))


def _joined(one: np.ndarray, other: np.ndarray, genes: tuple[str, ...]) -> ad.AnnData:
    cells = np.concatenate([one, other]).astype(np.float32)
    names = pd.Index([str(i) for i in range(len(cells))])
    return ad.AnnData(cells, obs=pd.DataFrame(index=names), var=pd.DataFrame(index=pd.Index(genes)))


def _distances(
    cells: np.ndarray, goal: np.ndarray, center: np.ndarray, axes: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The energy distance of all cells, and then of bootstrap resamples of both populations."""
    pair = Pair(*(a.astype(np.float64) for a in (cells, goal, (cells - center) @ axes, (goal - center) @ axes)))
    resampled = Resample(pair, resample_counts(len(goal), rng), resample_counts(len(cells), rng))
    return np.concatenate([energy_distance(Resample.whole(pair)), energy_distance(resampled)])
