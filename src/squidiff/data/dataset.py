"""Draws training batches: target cells, a source cell for each, and what is known of their populations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from squidiff.config import Batch, ShownBatch
from squidiff.data.table import CellTable


@dataclass(frozen=True)
class Pairs:
    """Which cells may be generated from which: populations that have a source, and their rows."""

    table: CellTable
    source: np.ndarray
    """(P,) index of the population that each population's prediction starts from; -1 where there is none."""
    anchor: np.ndarray
    """P x G, the mean of each population."""
    condition: np.ndarray
    """P x C, condition features."""
    pairing: Literal["random", "optimal-transport"] = "random"
    rows: tuple[np.ndarray, ...] = field(init=False)
    """The cells of each population."""

    def __post_init__(self) -> None:
        order = np.argsort(self.table.population, kind="stable")
        ends = np.cumsum(np.bincount(self.table.population, minlength=len(self.table.keys)))
        object.__setattr__(self, "rows", tuple(np.split(order, ends[:-1])))

    def target_rows(self) -> np.ndarray:
        """The cells whose population has a source."""
        return np.flatnonzero(self.source[self.table.population] >= 0)

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> Batch:
        """The given target cells, each with a source cell drawn from its source population.

        With optimal transport the drawn ones are assigned so that the squared distances within each population of the
        batch are least (Tong et al., TMLR 2024); what they have in common, the mean shift, does not matter to that.
        """
        population = self.table.population[rows]
        source = np.empty_like(rows)
        for i in np.unique(population):
            here = population == i
            source[here] = rng.choice(self.rows[self.source[i]], here.sum())
        target, drawn = self.table.dense(rows), self.table.dense(source)
        if self.pairing == "optimal-transport":
            for i in np.unique(population):
                here = np.flatnonzero(population == i)
                cost = cdist(target[here], drawn[here], "sqeuclidean")
                drawn[here] = drawn[here[linear_sum_assignment(cost)[1]]]
        arrays = (target, drawn, self.anchor[population], self.condition[population])
        return Batch(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays))


@dataclass(frozen=True)
class ShownPairs:
    """Upstream's pairs: what the encoder is shown beside each target cell, the same at every step."""

    table: CellTable
    source_row: np.ndarray | None
    """(N,) row of the control cell that is shown, -1 for cells that are no targets; None: the target itself."""
    drugs: np.ndarray
    """P x D, the populations' drug encodings; D = 0 without drugs."""

    def target_rows(self) -> np.ndarray:
        """The cells that have something to be shown."""
        rows = np.arange(len(self.table.population))
        return rows if self.source_row is None else rows[self.source_row >= 0]

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> ShownBatch:
        """The given target cells and what is shown; nothing is drawn."""
        target = self.table.dense(rows)
        cells = target if self.source_row is None else self.table.dense(self.source_row[rows])
        shown = np.concatenate([cells, self.drugs[self.table.population[rows]]], axis=1)
        return ShownBatch(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (target, shown)))


AnyBatch = TypeVar("AnyBatch", covariant=True)


class DrawsBatches(Protocol[AnyBatch]):
    """What a stream draws from."""

    def batch(self, rows: np.ndarray, rng: np.random.Generator) -> AnyBatch: ...


class BatchStream(Generic[AnyBatch]):
    """Endless batches: every cell once an epoch, in an order that depends on the seed and the epoch alone.

    Its state is the number of batches drawn, so that training resumes bit by bit from one integer.
    """

    def __init__(
        self, pairs: DrawsBatches[AnyBatch], rows: np.ndarray, batch_size: int, seed: int, n_drawn: int = 0
    ) -> None:
        self.pairs = pairs
        self.rows = rows
        self.size = min(batch_size, len(rows))
        self.seed = seed
        self.n_drawn = n_drawn
        self._epoch = -1

    def draw(self) -> AnyBatch:
        """The next batch, of batch_size cells or of all if there are fewer; an epoch's incomplete last is left out."""
        epoch, position = divmod(self.n_drawn, len(self.rows) // self.size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng((self.seed, 0, epoch)).permutation(self.rows)
        chosen = self._order[position * self.size : (position + 1) * self.size]
        source_rng = np.random.default_rng((self.seed, 1, self.n_drawn))
        self.n_drawn += 1
        return self.pairs.batch(chosen, source_rng)
