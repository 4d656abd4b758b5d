"""The floors: cells that the simple predictors of response/ would give for a population, from training cells alone."""

from __future__ import annotations

import numpy as np

from squidiff.config import InputError, Schema
from squidiff.data.conditions import ConditionEncoder, Part
from squidiff.data.table import CellTable
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shape import ZeroLaw, move_to_mean
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import BASELINES

ZEROS_KEPT = ", zeros kept"
"""Suffix of a baseline whose cells are moved by `response.shape.move_to_mean` instead of shifted."""
ALL_CELLS, SHUFFLED_GENES = "all cells", "shuffled genes"
"""Of plain generation: cells of whatever context, and cells whose genes are drawn independently within the context."""

NAMES = (
    "no change",
    *(name + suffix for name in BASELINES if name != "no change" for suffix in ("", ZEROS_KEPT)),
    ALL_CELLS,
    SHUFFLED_GENES,
)
MAX_DONORS = 2000


class Baselines:
    """The baselines, fitted on training cells."""

    def __init__(self, train: CellTable, schema: Schema) -> None:
        self.table = train
        self.encoder = ConditionEncoder.fit(train.parts, schema)
        features = np.stack([self.encoder.describe(parts) for parts in train.parts])
        keys = tuple(Population(*key) for key in train.keys)
        has_control = schema.control is not None
        self.populations = Populations.summarise(train.blocks(), train.population, keys, features, has_control)
        self.non_negative = train.survey.non_negative
        self.law = ZeroLaw().fit(self.populations.mean, self.populations.zero_fraction)
        self._predictors = {name: make().fit(self.populations) for name, make in BASELINES.items()}

    def control_mean(self, key: Population) -> np.ndarray | None:
        """The mean (G,) of the cells that a prediction starts from; None in plain generation, or without any."""
        source = self.populations.source(key)
        if source is None or self.populations.keys[source] == key:
            return None
        return self.populations.mean[source]

    def control_cells(self, key: Population, n: int, rng: np.random.Generator) -> np.ndarray | None:
        """At most n of those cells, drawn; None where there is no control mean."""
        if self.control_mean(key) is None:
            return None
        rows = np.flatnonzero(self.table.population == self.populations.source(key))
        return self.table.dense(np.sort(rng.permutation(rows)[:n]))

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
        """Cells (N x G) of a population; as many as it starts from when n_cells is None.

        Raises CannotPredict when the baseline has nothing to say of it, InputError when there is no such baseline.
        """
        if name not in NAMES:
            raise InputError(f"there is no baseline {name!r}: choose one of {', '.join(NAMES)}")
        source = self.populations.source(key)
        if source is None:
            raise CannotPredict(f"there are no cells to start from in context {key.context!r}")
        rows = np.flatnonzero(self.table.population == source)
        plain = self.populations.keys[source] == key
        if plain != (name in (ALL_CELLS, SHUFFLED_GENES)):
            raise CannotPredict(f"{name!r} is {'not ' if plain else ''}a baseline of plain generation")
        n_cells = n_cells or len(rows)
        if name == ALL_CELLS:
            return self.table.dense(_draw(np.arange(len(self.table.names)), n_cells, rng))
        cells = self.table.dense(_draw(rows, n_cells, rng))
        if name == SHUFFLED_GENES:
            return rng.permuted(cells, axis=0)
        if name == "no change":
            return cells
        try:
            features = self.encoder.describe(parts)
        except InputError as error:
            raise CannotPredict(str(error)) from error
        start = Source(self.populations.keys[source], self.populations.mean[source])
        mean = self._predictors[name.removesuffix(ZEROS_KEPT)].predict(key, features, start)
        return self._moved(cells, source, mean, name.endswith(ZEROS_KEPT), rng)

    def _moved(
        self, cells: np.ndarray, source: int, mean: np.ndarray, keep_zeros: bool, rng: np.random.Generator
    ) -> np.ndarray:
        if not keep_zeros:
            return cells + (mean - cells.mean(axis=0))
        if not self.non_negative.all():
            raise CannotPredict("there are no zeros to keep in data with negative values")
        donors = self.table.dense(_draw(np.arange(len(self.table.names)), MAX_DONORS, rng))
        zeros = self.law.follow(self.populations.mean[source], self.populations.zero_fraction[source], mean)
        return move_to_mean(cells, mean, zeros, donors, rng)


def _draw(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(rows)[:n] if n <= len(rows) else rng.choice(rows, n)
