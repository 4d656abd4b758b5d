"""Scores one population at a time: every method's cells against the true ones, on one set of resamples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from zlib import crc32

import numpy as np

from squidiff.config import Schema
from squidiff.data.conditions import Part
from squidiff.data.table import CellTable
from squidiff.evaluate.baselines import NAMES, Baselines, principal_axes
from squidiff.evaluate.ceiling import split_half_ceiling
from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Pair, Resample
from squidiff.evaluate.verdict import Estimate
from squidiff.response.populations import Population
from squidiff.response.shift import CannotPredict

N_BOOTSTRAPS = 200
MAX_CELLS = 2000
"""Cells a population that are compared, drawn at random from more: distances grow with their square."""
MIN_CELLS = 10
"""True and predicted cells below which there is no verdict: a resample of few cells knows nothing of its own noise."""


@dataclass(frozen=True)
class Scored:
    """The scores of one population."""

    key: Population
    estimates: dict[str, dict[str, Estimate]]
    """Of each method, of each metric that can be computed."""
    ceiling: dict[str, float]
    n_cells: dict[str, int]
    """Of each prediction, or of the truth where that has fewer."""


class Scorer:
    """Predictions by name, and the baselines of the training cells, against the true cells."""

    def __init__(
        self,
        predictions: Mapping[str, CellTable],
        target: CellTable,
        train: CellTable | None,
        schema: Schema,
        seed: int,
        names: Sequence[str] = NAMES,
    ) -> None:
        self.predictions, self.target, self.seed, self.names = predictions, target, seed, names
        self.baselines = None if train is None else Baselines(train, schema, seed)
        self.center, self.axes = (
            self.baselines.principal_axes
            if self.baselines
            else principal_axes(target, *(predictions[name] for name in sorted(predictions)), seed=seed)
        )

    def is_generated(self, key: Population) -> bool:
        """Whether the task is more cells of a population that training has: there is nothing else to start from."""
        if self.baselines is None:
            return False
        source = self.baselines.populations.source(key)
        return source is not None and self.baselines.populations.keys[source] == key

    def score(self, key: Population, rivals: np.ndarray | None = None) -> Scored:
        """One population; `rivals` (R x G) are the true means of the other conditions of its context and time."""
        rng = np.random.default_rng(self._seed(key))
        truth = self._drawn(self.target, key, rng)
        drawn = {name: self._drawn(table, key, rng) for name, table in self.predictions.items()}
        first = self._pair(next(iter(drawn.values())), truth, key, rivals)
        # alike for as many cells, so that equal predictions are judged alike
        counts = {n: resample_counts(n, rng) for n in sorted(set(map(len, drawn.values())))}
        of_first = Resample(first, resample_counts(len(truth), rng), counts[len(first.predicted)])
        ceiling = split_half_ceiling(first, rng)
        names = [name for name, metric in METRICS.items() if first.has(metric.needs)]
        pairs = ((name, self._with(first, cells)) for name, cells in drawn.items())
        estimates = {}
        # one after the other: the cells of all baselines together are gigabytes
        for name, pair in chain(pairs, self._of_baselines(first, key, max(counts))):
            resample = Resample(pair, of_first.truth_counts, counts[len(pair.predicted)], of_first)
            estimates[name] = _estimates(resample, names)
        n_cells = {name: min(len(truth), len(cells)) for name, cells in drawn.items()}
        return Scored(key, estimates, {name: ceiling[name] for name in names}, n_cells)

    def _of_baselines(self, first: Pair, key: Population, n_cells: int) -> Iterator[tuple[str, Pair]]:
        """What each baseline that can predicts, in place of the first prediction.

        As many cells as any prediction has, since more cells cover more and show less noise.
        """
        if self.baselines is None:
            return
        for name in self.names:
            try:  # drawn the same whichever others are tried
                of_baseline = np.random.default_rng((*self._seed(key), 1 + NAMES.index(name)))
                cells, origin = self.baselines.drawn(name, key, self._parts(key), n_cells, of_baseline)
            except CannotPredict:
                continue
            yield name, replace(self._with(first, cells), predicted_origin=origin)

    def _seed(self, key: Population) -> tuple[int, int]:
        """Of what is drawn for a population, whatever others there are and in whatever order."""
        time = None if key.time is None else float(key.time)
        return self.seed, crc32(repr((key.context, key.condition, time)).encode())

    def _parts(self, key: Population) -> tuple[Part, ...]:
        return self.target.parts[self.target.keys.index(tuple(key))]

    def _drawn(self, table: CellTable, key: Population, rng: np.random.Generator) -> np.ndarray:
        rows = np.flatnonzero(table.population == table.keys.index(tuple(key)))
        rows = rows[np.argsort(table.names[rows], kind="stable")]  # whatever order a file has them in
        if len(rows) > MAX_CELLS:
            rows = rows[np.sort(rng.permutation(len(rows))[:MAX_CELLS])]
        return table.dense(rows)

    def _with(self, pair: Pair, cells: np.ndarray) -> Pair:
        return pair.with_predicted(cells.astype(np.float64), (cells - self.center) @ self.axes)

    def _pair(self, predicted: np.ndarray, truth: np.ndarray, key: Population, rivals: np.ndarray | None) -> Pair:
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
            rivals=rivals,
            perturbed_genes=np.flatnonzero(np.isin(self.target.genes, [part.name for part in self._parts(key)])),
        )


def _estimates(sample: Resample, names: Sequence[str]) -> dict[str, Estimate]:
    """Each metric's value and, where it takes them, its values over the resamples."""
    values = score(sample.pair, names)
    unknown = np.full(1, np.nan)
    return {
        name: Estimate(values[name], METRICS[name].function(sample) if METRICS[name].is_resampled else unknown)
        for name in names
    }


def resample_counts(n: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n things is drawn in each bootstrap resample, N_BOOTSTRAPS x n."""
    return rng.multinomial(n, np.full(n, 1 / n), size=N_BOOTSTRAPS).astype(np.float64)
