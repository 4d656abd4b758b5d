"""The floors: cells that the simple predictors of response/ would give for a population, from training cells alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from squidiff.config import InputError, Schema
from squidiff.data.conditions import ConditionEncoder, Part
from squidiff.data.table import CellTable
from squidiff.response.gaussian import Spread, diagonal_spread, draw_gaussian, factor_spread
from squidiff.response.groups import BASELINE_GROUPS, BASELINES
from squidiff.response.populations import Population, Populations, Source, draw_rows
from squidiff.response.shape import ZeroLaw, move_to_mean, nonzero_quantiles
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor
from squidiff.response.time import last_time, paired, times_around

ZEROS_KEPT = ", zeros kept"
"""Suffix of a baseline whose cells are moved by `response.shape.move_to_mean` instead of shifted."""
N_COMPONENTS = 50
"""Principal components of the training cells: of the space in which distributions are compared, and of a baseline."""
MIN_OF_EACH = 200
"""Cells of a table, of several, that principal axes are of, if it has as many."""
MAX_DONORS = 2000
MAX_ASSIGNED = 1000
"""Cells that optimal transport pairs: more take turns."""


Drawn = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class _Asked:
    """A population, and the training cells that a prediction of it starts from."""

    key: Population
    parts: tuple[Part, ...]
    n_cells: int
    source: int
    """Index of the population that it starts from."""
    rng: np.random.Generator


class Baselines:
    """The baselines, fitted on training cells."""

    def __init__(self, train: CellTable, schema: Schema, seed: int = 0) -> None:
        train = train.in_order()
        self.table, self.seed = train, seed
        self.encoder = ConditionEncoder.fit(train.parts, schema)
        features = self.encoder.describe_each(train.parts)
        keys = tuple(Population(*key) for key in train.keys)
        has_control = schema.control is not None
        self.populations = Populations.summarise(
            train.blocks(), train.population, keys, features, has_control, train.genes
        )
        self.non_negative = train.survey.non_negative
        self.law = ZeroLaw().fit(self.populations.mean, self.populations.zero_fraction)
        self._predictors = {name: make().fit(self.populations) for name, make in BASELINES.items()}
        self._anchor = Anchor(BASELINE_GROUPS).fit(self.populations)
        self._spreads: dict[tuple[Callable[[np.ndarray], Spread], int], Spread] = {}

    @cached_property
    def quantiles(self) -> np.ndarray:
        """Of the values that genes have where they are not zero, Q x G, over at most MAX_DONORS training cells."""
        rows = np.random.default_rng((self.seed, 2)).permutation(self._rows())[:MAX_DONORS]
        return nonzero_quantiles(self.table.dense(np.sort(rows)))

    @cached_property
    def _by_name(self) -> np.ndarray:
        return np.argsort(self.table.names, kind="stable")

    def _rows(self, population: int | None = None) -> np.ndarray:
        """The cells of one population or of all, by name: what is drawn must not hang on the order of a file."""
        rows = self._by_name
        return rows if population is None else rows[self.table.population[rows] == population]

    @cached_property
    def principal_axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the training cells, as `principal_axes`."""
        return principal_axes(self.table, seed=self.seed)

    def control_mean(self, key: Population) -> np.ndarray | None:
        """The mean (G,) that a change is measured from; None in plain generation, or without cells to start from.

        That of the control cells that a prediction starts from; where time alone tells populations apart, that of all
        training cells of the context, since the change from an earlier time is mostly how much later it is.
        """
        source = self.populations.source(key)
        if source is None or self.populations.keys[source] == key:
            return None
        if self.populations.has_control:
            return self.populations.mean[source]
        seen = self.populations.over_time(key.context, key.condition)
        return np.asarray(np.average(self.populations.mean[seen], axis=0, weights=self.populations.n_cells[seen]))

    def control_cells(self, key: Population, n: int, rng: np.random.Generator) -> np.ndarray | None:
        """At most n of the cells that a prediction starts from, drawn; None where there is no control mean."""
        if self.control_mean(key) is None:
            return None
        rows = self._rows(self.populations.source(key))
        return self.table.dense(rows[np.sort(rng.permutation(len(rows))[:n])])

    def perturbed_mean(self, key: Population) -> np.ndarray | None:
        """The mean (G,) over the training conditions of the same context at the same time, each counting once.

        The reference of Systema (Vinas Torne et al. 2025): what all perturbations share is no credit. None where
        there is no such condition.
        """
        treated = [
            i
            for i, k in enumerate(self.populations.keys)
            if k.condition and k._replace(condition="") == key._replace(condition="")
        ]
        return self.populations.mean[treated].mean(axis=0) if treated else None

    def cells(
        self, name: str, key: Population, parts: tuple[Part, ...], n_cells: int | None, rng: np.random.Generator
    ) -> np.ndarray:
        """The cells of `drawn`, N x G."""
        return self.drawn(name, key, parts, n_cells, rng)[0]

    def drawn(
        self, name: str, key: Population, parts: tuple[Part, ...], n_cells: int | None, rng: np.random.Generator
    ) -> Drawn:
        """Cells (N x G) of a population; as many as it starts from when n_cells is None.

        And the training cell that each was made from, (N,), where several may be of one; else None.
        Raises CannotPredict when the baseline has nothing to say of it, InputError when there is no such baseline.
        """
        if name not in NAMES:
            raise InputError(f"there is no baseline {name!r}: choose one of {', '.join(map(repr, NAMES))}")
        source = self.populations.source(key)
        if source is None:
            raise CannotPredict(f"there are no cells to start from in context {key.context!r}")
        is_plain = self.populations.keys[source] == key
        if name not in (PLAIN if is_plain else PERTURBED):
            raise CannotPredict(f"{name!r} is {'not ' if is_plain else ''}a baseline of plain generation")
        n_cells = n_cells or int((self.table.population == source).sum())
        asked = _Asked(key, parts, n_cells, source, rng)
        if name in (PLAIN if is_plain else OF_CELLS):
            return (PLAIN if is_plain else OF_CELLS)[name](self, asked)
        features = self._features(asked)
        mean = self._predictors[name.removesuffix(ZEROS_KEPT)].predict(key, features, self._start(asked))
        return self._moved(asked, mean, keep_zeros=name.endswith(ZEROS_KEPT))

    def _features(self, asked: _Asked) -> np.ndarray:
        """What describes the condition; its strength alone where training gives no way to describe it."""
        try:
            return self.encoder.describe(asked.parts)
        except InputError:
            features = np.zeros(self.encoder.n_features, dtype=np.float32)
            features[0] = sum(part.strength for part in asked.parts)
            return features

    def _start(self, asked: _Asked) -> Source:
        return Source(self.populations.keys[asked.source], self.populations.mean[asked.source])

    def _drawn(self, population: int | None, asked: _Asked, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As many cells as are asked for, or n, of one population or of all, and which they are."""
        rows = draw_rows(self._rows(population), asked.n_cells if n is None else n, asked.rng)
        return self.table.dense(rows), rows

    def _moved(self, asked: _Asked, mean: np.ndarray, keep_zeros: bool) -> Drawn:
        cells, rows = self._drawn(asked.source, asked)
        if not keep_zeros:
            return cells + (mean - cells.mean(axis=0)), rows
        if not self.non_negative.all():
            raise CannotPredict("there are no zeros to keep in data with negative values")
        zeros_here = self.populations.zero_fraction[asked.source]
        zeros = self.law.follow(self.populations.mean[asked.source], zeros_here, mean)
        return move_to_mean(cells, mean, zeros, self.quantiles, asked.rng.random(cells.shape)), rows

    # --- baselines that are no predictors of a mean

    def _unchanged(self, asked: _Asked) -> Drawn:
        return self._drawn(asked.source, asked)

    def _any_cells(self, asked: _Asked) -> Drawn:
        return self._drawn(None, asked)

    def _shuffled_genes(self, asked: _Asked) -> Drawn:
        return asked.rng.permuted(self._drawn(asked.source, asked)[0], axis=0), None

    def _last_time(self, asked: _Asked) -> Drawn:
        return self._drawn(last_time(self.populations, asked.key), asked)

    def _mixture(self, asked: _Asked) -> Drawn:
        """Cells from before and from after the time that is asked for, as many of either as it is near."""
        before, after, share = times_around(self.populations, asked.key)
        n_after = round(share * asked.n_cells)
        parts = self._drawn(before, asked, asked.n_cells - n_after), self._drawn(after, asked, n_after)
        return np.concatenate([cells for cells, _ in parts]), np.concatenate([rows for _, rows in parts])

    def _transport(self, asked: _Asked) -> Drawn:
        """Each has two origins; told is that of the side which has fewer cells, and so repeats them more."""
        before, after, share = times_around(self.populations, asked.key)
        fewer_after = self.populations.n_cells[after] < self.populations.n_cells[before]
        parts, origins = [], []
        for first in range(0, asked.n_cells, MAX_ASSIGNED):
            n = min(MAX_ASSIGNED, asked.n_cells - first)
            (one, from_one), (other, from_other) = self._drawn(before, asked, n), self._drawn(after, asked, n)
            order = paired(one, other)
            parts.append((1 - share) * one + share * other[order])
            origins.append(from_other[order] if fewer_after else from_one)
        return np.concatenate(parts), np.concatenate(origins)

    def _gaussian(self, asked: _Asked, spread_of: Callable[[np.ndarray], Spread]) -> Drawn:
        """Around the mean that the baselines stacked predict, as wide as the cells that it starts from."""
        try:
            mean = self._anchor.predict(asked.key, self._features(asked), self._start(asked))[0]
        except InputError as error:
            raise CannotPredict(str(error)) from error
        known = spread_of, asked.source
        if known not in self._spreads:  # many populations start from the same cells, whose factors take long
            self._spreads[known] = spread_of(self.table.dense(self._rows(asked.source)))
        return draw_gaussian(self._spreads[known], mean, asked.n_cells, asked.rng), None

    def _pca_scgen(self, asked: _Asked) -> Drawn:
        """scGen (Lotfollahi et al. 2019) with principal components for its autoencoder.

        The mean shift of latents over the other contexts, each alike, is added to the source cells' latents.
        """
        shift = self._predictors["mean shift"].predict(asked.key, self._features(asked), self._start(asked))
        center, axes = self.principal_axes
        cells, rows = self._drawn(asked.source, asked)
        shifted = cells + (shift - self.populations.mean[asked.source])
        return center + (shifted - center) @ axes @ axes.T, rows


OF_CELLS: dict[str, Callable[[Baselines, _Asked], Drawn]] = {
    "no change": Baselines._unchanged,
    "last time point": Baselines._last_time,
    "mixture of times": Baselines._mixture,
    "optimal transport": Baselines._transport,
    "diagonal Gaussian": lambda baselines, asked: baselines._gaussian(asked, diagonal_spread),
    "factor Gaussian": lambda baselines, asked: baselines._gaussian(asked, factor_spread),
    "PCA scGen": Baselines._pca_scgen,
}
"""Of perturbed cells, those that give cells and no mean."""
PLAIN: dict[str, Callable[[Baselines, _Asked], Drawn]] = {
    "all cells": Baselines._any_cells,
    "shuffled genes": Baselines._shuffled_genes,
    "diagonal Gaussian": OF_CELLS["diagonal Gaussian"],
    "factor Gaussian": OF_CELLS["factor Gaussian"],
}
"""Of plain generation: cells of whatever context, and cells of the context whose genes are drawn apart or by a law."""
PERTURBED = (
    *OF_CELLS,
    *(name + suffix for name in BASELINES if name not in OF_CELLS for suffix in ("", ZEROS_KEPT)),
)
NAMES = tuple(dict.fromkeys((*PERTURBED, *PLAIN)))


def principal_axes(*tables: CellTable, seed: int, max_cells: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Mean (G,) and the first N_COMPONENTS principal axes (G x K) of cells of the same genes.

    Of several tables as many cells of each, or all of one with fewer than MIN_OF_EACH, since axes follow what is random
    in the very cells that they are fitted on: cells that lie as near each other as may be would otherwise lie apart.
    """
    from sklearn.decomposition import PCA

    n = min(max_cells // len(tables), max(MIN_OF_EACH, min(len(table.names) for table in tables)))
    cells = np.concatenate([_drawn(table, n, seed) for table in tables])
    n_components = min(N_COMPONENTS, cells.shape[0] - 1, cells.shape[1])
    if n_components == 0 or not np.ptp(cells, axis=0).any():  # cells that are all alike have no axes
        return cells.mean(axis=0), np.zeros((cells.shape[1], 0))
    pca = PCA(n_components, random_state=seed).fit(cells)
    return pca.mean_, pca.components_.T


def _drawn(table: CellTable, n: int, seed: int) -> np.ndarray:
    """At most n cells, whatever order they are in."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(table.names))[:n])
    return table.dense(np.argsort(table.names, kind="stable")[chosen])
