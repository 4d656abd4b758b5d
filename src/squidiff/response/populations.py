"""Populations of cells, summarised: what the predictors of the mean response learn from, and what they are asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

MIN_CELLS = 10
"""Of a time point: one cell at the nearest time is worse than fifty a little further off."""


class Population(NamedTuple):
    """Cells that share context, condition and time; also the question "what would these cells be?"."""

    context: str
    """The context columns' values; '' without context columns."""
    condition: str
    """The condition in its canonical spelling; '' for control cells and where there is no condition."""
    time: float | None
    """None where there is no time."""

    def __str__(self) -> str:
        parts = [self.context, self.condition, "" if self.time is None else f"time {self.time:g}"]
        return ", ".join(p for p in parts if p) or "all cells"


@dataclass(frozen=True)
class Populations:
    """P populations of G genes, described by C condition features each."""

    keys: tuple[Population, ...]
    features: np.ndarray
    """P x C, the sum over a condition's parts of strength times part vector; 0 for control cells."""
    mean: np.ndarray
    """P x G"""
    zero_fraction: np.ndarray
    """P x G"""
    n_cells: np.ndarray
    """(P,)"""
    has_control: bool
    """Whether a condition of '' marks control cells (else it only says that there is no condition column)."""

    @classmethod
    def summarise(
        cls,
        cells: np.ndarray | sp.csr_matrix,
        population: np.ndarray,
        keys: tuple[Population, ...],
        features: np.ndarray,
        has_control: bool,
    ) -> Populations:
        """Summaries of cells (N x G), each of the population whose index is given (N,); every population has a cell."""
        n_cells = np.bincount(population, minlength=len(keys))
        member = sp.csr_matrix((1.0 / n_cells[population], (population, np.arange(len(population)))))
        mean = _dense(member @ cells)
        nonzero = cells.astype(bool) if sp.issparse(cells) else cells != 0
        return cls(
            keys,
            features,
            mean,
            np.clip(1.0 - _dense(member @ nonzero.astype(np.float32)), 0.0, 1.0),
            n_cells,
            has_control,
        )

    def find(self, key: Population) -> int | None:
        """The index of a population, None if there is none of that key."""
        return self.keys.index(key) if key in self.keys else None

    def with_population(
        self, key: Population, mean: np.ndarray, zero_fraction: np.ndarray, n_cells: int
    ) -> Populations:
        """These populations and one more without a condition, which takes the place of the one of the same key."""
        keep = np.array([k != key for k in self.keys], dtype=bool)
        return Populations(
            (*(k for k in self.keys if k != key), key),
            np.vstack([self.features[keep], np.zeros((1, self.features.shape[1]))]),
            np.vstack([self.mean[keep], mean]),
            np.vstack([self.zero_fraction[keep], zero_fraction]),
            np.append(self.n_cells[keep], n_cells),
            self.has_control,
        )

    def reliable(self, indices: list[int]) -> list[int]:
        """Those of the populations that have enough cells for a mean, or all when none has."""
        return [i for i in indices if self.n_cells[i] >= MIN_CELLS] or indices

    def source(self, key: Population) -> int | None:
        """The index of the population that a prediction of `key` starts from; None when there is none.

        With a control, the control cells of the same context (at the same time, or else the nearest); with time alone,
        the cells of the nearest earlier time, or of the earliest; in plain generation, the cells of the same context.
        """
        same = [i for i, k in enumerate(self.keys) if k.context == key.context and k.condition == ""]
        if not same:
            return None
        if key.time is None:
            return same[0]
        same = self.reliable(same)
        times = np.array([self.keys[i].time for i in same], dtype=float)
        earlier = times < key.time
        if self.has_control or not earlier.any():
            return same[int(np.argmin(np.abs(times - key.time)))]
        return same[int(np.argmax(np.where(earlier, times, -np.inf)))]


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=np.float64)
