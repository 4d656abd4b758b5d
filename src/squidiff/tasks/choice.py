"""Which of several conditions brings cells nearest to a target population."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Sampling, Schema, check_seed
from squidiff.data.queries import FAR, OWN_COLUMNS, told
from squidiff.data.table import CellTable, read_cells
from squidiff.estimator import Squidiff
from squidiff.estimator.draws import choose
from squidiff.estimator.upstream import UpstreamFitted
from squidiff.evaluate.baselines import N_COMPONENTS, principal_axes
from squidiff.evaluate.distributions import energy_distance
from squidiff.evaluate.pairs import Pair, Resample
from squidiff.evaluate.scorer import resample_counts
from squidiff.response.shift import drawn

MAX_CELLS = 1000
"""Cells of a population that are compared, drawn from more: distances grow with their square."""
MIN_CELLS = 10
MAX_RESPONSES = 200
"""Of training, whose directions count."""


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
    principal components of the source cells, on those of training's responses and on the direction to the target, which
    either half of the target gives for the other. Columns: those of the queries; energy_distance of the predicted cells
    to the target, with the bounds of its 95 % bootstrap interval over cells (low, high); before, the same of the cells
    that the prediction starts from; share, how much of the way there it is, 1 - energy_distance / before (NaN where
    these cells are at the target already); anchor and far as in `Squidiff.changes`. A candidate's numbers do not depend
    on the others, nor on the order of cells. Raises InputError as `predict`, for populations of few cells, and for
    source cells of one name.
    """
    check_seed(seed)
    source, target = read_cells(source), read_cells(target)
    if not source.obs_names.is_unique:
        raise InputError("cells of the source have one name: make names unique (adata.obs_names_make_unique())")
    there, starts = model.table(target, "the target", Schema()), model.table(source, "the source", Schema())
    goal = _some(there, np.arange(len(there.names)), "the target", seed)
    _require(len(starts.names), "the source")
    center, axes = _axes(model, starts, seed)
    predicted = model.predict(candidates, source, sampling, on_query=on_query)
    row_of = {name: row for row, name in enumerate(starts.names)}
    number = predicted.obs_names.str.split("-").str[0].astype(int)
    rows = []
    for i, obs in predicted.obs.groupby(number, sort=True):
        rng, where = np.random.default_rng(seed), f"candidate {i + 1}"
        cells = CellTable.from_anndata(predicted[obs.index], Schema())
        _require(len(obs), where)
        moved = cells.dense(np.arange(min(len(obs), MAX_CELLS)))  # they come in an order that means nothing
        own = np.array([row_of[name] for name in sorted(set(obs["source_cell"]))])
        start = _some(starts, own, f"what {where} starts from", seed)
        origin = pd.factorize(obs["source_cell"])[0][: len(moved)]  # copies of one cell are no pairs of cells
        distances = _distances(moved, goal, center, axes, rng, origin)
        before = _distances(start, goal, center, axes, rng)
        low, high = np.quantile(distances[1:], [0.025, 0.975])
        is_away = np.quantile(before[1:], 0.025) > 0
        found = {
            "energy_distance": distances[0],
            "low": low,
            "high": high,
            "before": before[0],
            "share": 1 - distances[0] / before[0] if is_away else np.nan,
            **obs.iloc[0][["anchor", FAR]].to_dict(),
        }
        rows.append(told(obs.iloc[0].drop([*OWN_COLUMNS]).to_dict(), found) | found)
    return pd.DataFrame(rows).sort_values("energy_distance", kind="stable", ignore_index=True)


def _some(table: CellTable, rows: np.ndarray, where: str, seed: int) -> np.ndarray:
    """At most MAX_CELLS of these cells, N x G: those that their names and the seed choose, in an order of theirs."""
    _require(len(rows), where)
    chosen, _ = choose(table.names[rows], min(len(rows), MAX_CELLS), seed)
    return table.dense(rows[chosen])


def _require(n_cells: int, where: str) -> None:
    if n_cells < MIN_CELLS:
        raise InputError(f"{where} has {n_cells} cells: give {MIN_CELLS} or more")


def _axes(model: Squidiff, starts: CellTable, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and principal axes of the source cells and, off these, of the responses that the model was trained on.

    Not of the target: axes follow what is random in the cells that they are fitted on, and cells as near as may be
    would lie apart.
    """
    center, axes = principal_axes(starts, seed=seed)
    if isinstance(model.fitted, UpstreamFitted):  # it keeps no cells' means
        return center, axes
    populations = model.fitted.populations
    treated = drawn(populations.treated, MAX_RESPONSES)
    shifts = populations.shifts(treated) if treated else populations.mean - center
    _, lengths, further = np.linalg.svd(shifts - shifts @ axes @ axes.T, full_matrices=False)
    further = further[lengths > 1e-6 * max(lengths.max(initial=0.0), 1e-12)][:N_COMPONENTS]
    return center, np.concatenate([axes, further.T], axis=1)


def _towards(goal: np.ndarray, center: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The axes and, off these, the direction to the mean of the goal: it may lie where nothing was seen before."""
    rest = goal.mean(axis=0) - center
    rest = rest - axes @ (axes.T @ rest)
    length = float(np.linalg.norm(rest))
    return axes if length < 1e-9 else np.column_stack([axes, rest / length])


def _distances(
    cells: np.ndarray,
    goal: np.ndarray,
    center: np.ndarray,
    axes: np.ndarray,
    rng: np.random.Generator,
    origin: np.ndarray | None = None,
) -> np.ndarray:
    """The energy distance of all cells, and then of bootstrap resamples of both populations."""
    found = []
    for half in (0, 1):  # a direction is judged by other cells than it is from
        part, towards = goal[1 - half :: 2], _towards(goal[half::2], center, axes)
        arrays = (a.astype(np.float64) for a in (cells, part, (cells - center) @ towards, (part - center) @ towards))
        pair = Pair(*arrays, predicted_origin=origin)
        resampled = Resample(pair, resample_counts(len(part), rng), resample_counts(len(cells), rng))
        found.append(np.concatenate([energy_distance(Resample.whole(pair)), energy_distance(resampled)]))
    return np.asarray(np.mean(found, axis=0))
