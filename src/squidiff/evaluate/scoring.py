"""Scores predicted cells against true ones, beside the baselines: a tidy table with intervals and a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema, check_seed
from squidiff.data.table import CellTable, read_cells, schema_of
from squidiff.evaluate.baselines import NAMES, Baselines, principal_axes
from squidiff.evaluate.ceiling import split_half_ceiling
from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Pair, Resample
from squidiff.evaluate.verdict import Estimate, judge
from squidiff.response.populations import Population
from squidiff.response.shift import CannotPredict

MODEL = "model"
N_BOOTSTRAPS = 200
MAX_CELLS = 2000
"""Cells a population that are compared, drawn at random from more: distances grow with their square."""
MIN_CELLS = 10
"""True and predicted cells below which there is no verdict: a resample of few cells knows nothing of its own noise."""
UNSCORED = "unscored_populations"
"""Key of the table's attrs: how many predicted populations have no truth, and true ones no prediction."""

COLUMNS = ("condition", "metric", "method", "value", "low", "high", "floor", "ceiling", "verdict")


def evaluate(
    predicted: ad.AnnData | str | Path,
    truth: ad.AnnData | str | Path,
    schema: Schema | None = None,
    *,
    train: ad.AnnData | str | Path | None = None,
    seed: int = 0,
    on_population: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """One row a population, metric and method ('model' and the baselines), in the columns COLUMNS.

    Populations are matched by the schema's obs columns (without a schema, by that of the prediction, which remembers
    it), genes by the names of the prediction. low and high are a 95 %
    bootstrap interval over true and predicted cells; floor is the best baseline's value, ceiling that of the truth's
    own halves; the verdict stands in the model's rows. Without `train` there are no baselines and no change from
    control, and the principal components are the truth's. `on_population(i, n)` is called after each population.
    Raises InputError when no population is in both.
    """
    check_seed(seed)
    predicted = read_cells(predicted)
    schema = schema_of(predicted, schema)
    prediction = CellTable.from_anndata(predicted, schema)
    target = CellTable.from_anndata(read_cells(truth), schema, prediction.genes, "the truth")
    known = (
        None
        if train is None
        else CellTable.from_anndata(read_cells(train), schema, prediction.genes, "the training data")
    )
    for name, table in (("the truth", target), ("the training data", known)):
        if table is not None and table.survey.looks_like_counts != prediction.survey.looks_like_counts:
            raise InputError(f"of the prediction and {name}, one holds raw counts and one does not: give one unit")
    common = [key for key in prediction.keys if key in target.keys]
    if not common:
        raise InputError(
            f"no population is in both files: predicted are {_names(prediction)}, true are {_names(target)}"
        )
    scorer = _Scorer(prediction, target, known, schema, seed)
    rows: list[dict[str, object]] = []
    for i, key in enumerate(common):
        rows += scorer.rows(Population(*key))
        if on_population is not None:
            on_population(i + 1, len(common))
    scores = pd.DataFrame(rows, columns=list(COLUMNS))
    scores.attrs[UNSCORED] = {
        "predicted": len(prediction.keys) - len(common),
        "true": len(target.keys) - len(common),
    }
    return scores


class _Scorer:
    def __init__(
        self, prediction: CellTable, target: CellTable, train: CellTable | None, schema: Schema, seed: int
    ) -> None:
        self.prediction, self.target, self.seed = prediction, target, seed
        self.baselines = None if train is None else Baselines(train, schema, seed)
        self.center, self.axes = self.baselines.principal_axes if self.baselines else principal_axes(target, seed)

    def rows(self, key: Population) -> list[dict[str, object]]:
        """All rows of one population."""
        rng = np.random.default_rng((self.seed, self.prediction.keys.index(tuple(key))))
        truth = self._drawn(self.target, key, rng)
        model = self._pair(self._drawn(self.prediction, key, rng), truth, key)
        pairs = {MODEL: model}
        if self.baselines is not None:
            parts = self.target.parts[self.target.keys.index(tuple(key))]
            for name in NAMES:
                try:
                    cells = self.baselines.cells(name, key, parts, None, rng)[:MAX_CELLS]
                except CannotPredict:
                    continue
                pairs[name] = model.with_predicted(cells.astype(np.float64), (cells - self.center) @ self.axes)
        ceiling = split_half_ceiling(pairs[MODEL], rng)
        truth_counts = _resample_counts(len(truth), rng)
        resamples = {m: Resample(p, truth_counts, _resample_counts(len(p.predicted), rng)) for m, p in pairs.items()}
        values = {m: score(pair) for m, pair in pairs.items()}
        rows: list[dict[str, object]] = []
        for name, metric in METRICS.items():
            if not model.has(metric.needs):
                continue
            sampled = {m: metric.function(resamples[m]) if metric.is_resampled else np.full(1, np.nan) for m in pairs}
            estimates = {m: Estimate(values[m][name], sampled[m]) for m in pairs}
            others = {m: e for m, e in estimates.items() if m != MODEL}
            best = max if metric.higher_is_better else min
            floor = best((e.value for e in others.values() if not np.isnan(e.value)), default=float("nan"))
            for method, estimate in estimates.items():
                is_judged = method == MODEL and min(len(truth), len(pairs[MODEL].predicted)) >= MIN_CELLS
                verdict = judge(estimate, others, metric.higher_is_better) if is_judged else ""
                numbers = (estimate.value, *estimate.interval(), floor, ceiling[name])
                rows.append(dict(zip(COLUMNS, (str(key), name, method, *numbers, verdict), strict=True)))
        return rows

    def _drawn(self, table: CellTable, key: Population, rng: np.random.Generator) -> np.ndarray:
        rows = np.flatnonzero(table.population == table.keys.index(tuple(key)))
        return table.dense(np.sort(rng.permutation(rows)[:MAX_CELLS]))

    def _pair(self, predicted: np.ndarray, truth: np.ndarray, key: Population) -> Pair:
        arrays = (predicted, truth, *((cells - self.center) @ self.axes for cells in (predicted, truth)))
        pair = Pair(*(a.astype(np.float64) for a in arrays))
        if self.baselines is None:
            return pair
        rng = np.random.default_rng((self.seed, 1))  # the same control cells for every population that shares them
        control = self.baselines.control_cells(key, MAX_CELLS, rng)
        return replace(
            pair,
            control_mean=self.baselines.control_mean(key),
            perturbed_mean=self.baselines.perturbed_mean(key),
            control=control,
        )


def _resample_counts(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n cells is drawn in each bootstrap resample, N_BOOTSTRAPS x n."""
    return rng.multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAPS).astype(np.float64)


def _names(table: CellTable) -> str:
    names = [repr(str(Population(*key))) for key in table.keys]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
