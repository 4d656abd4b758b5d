"""Parts of populations: cells of one context are not all alike, and each kind changes as its like do elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from squidiff.response.populations import MIN_CELLS, Populations

N_PARTS = 3
N_COMPONENTS = 20
"""Of a context's control cells, in which they are split."""
MIN_CONTROL_CELLS = 30 * N_PARTS
MAX_POPULATIONS = 300
"""More are not split: their parts would take as much memory as many cells."""


@dataclass(frozen=True)
class Parts:
    """R parts, of G genes, of some of the populations."""

    population: np.ndarray
    """(R,) the index of each part's population; parts of one are in the order of those of its source"""
    share: np.ndarray
    """(R,) of its population's cells"""
    mean: np.ndarray
    """R x G"""

    @cached_property
    def rows(self) -> dict[int, np.ndarray]:
        """The parts of each population that has some."""
        return {int(i): np.flatnonzero(self.population == i) for i in np.unique(self.population)}

    def only(self, indices: np.ndarray) -> Parts:
        """Those of some populations, which are then numbered as they are given."""
        kept = [(new, self.rows[int(old)]) for new, old in enumerate(indices) if int(old) in self.rows]
        rows = np.concatenate([rows for _, rows in kept]) if kept else np.zeros(0, dtype=int)
        population = np.repeat([new for new, _ in kept], [len(rows) for _, rows in kept]).astype(int)
        return Parts(population, self.share[rows], self.mean[rows])


def split(cells: np.ndarray, population: np.ndarray, populations: Populations) -> Parts | None:
    """The parts of control populations and of those that start from them, from cells (N x G) of known population (N,).

    Control cells are split by k-means on their principal components; a cell under a condition belongs to the part that
    it is nearest to, once the mean shift of its population is taken away. None where nothing would be learned from
    parts: without control, where no condition was seen in two contexts, or with more than MAX_POPULATIONS. Populations
    of fewer than MIN_CONTROL_CELLS control cells, or with a part of fewer than MIN_CELLS, are not split.
    """
    keys = populations.keys
    learns = any(populations.elsewhere(keys[i]) for i in populations.treated)
    if not populations.has_control or not learns or len(keys) > MAX_POPULATIONS:
        return None
    found: list[tuple[int, np.ndarray, np.ndarray]] = []
    lowest = 0.0 if cells.min() >= 0 else -np.inf
    for i in [i for i, key in enumerate(keys) if key.condition == ""]:  # also where no condition was seen yet
        control = cells[population == i].astype(np.float64)
        if len(control) < MIN_CONTROL_CELLS or not np.ptp(control, axis=0).any():
            continue
        nearest = _nearest_part(control)
        label = nearest(control)
        if np.bincount(label, minlength=N_PARTS).min() < MIN_CELLS:
            continue
        means = np.stack([control[label == part].mean(axis=0) for part in range(N_PARTS)])
        found.append((i, np.bincount(label, minlength=N_PARTS) / len(label), means))
        for j in [j for j in populations.treated if populations.sources[j] == i]:
            treated = cells[population == j].astype(np.float64)
            if not len(treated):
                continue
            shift = treated.mean(axis=0) - control.mean(axis=0)
            label = nearest(treated - shift)
            n = np.bincount(label, minlength=N_PARTS)
            # what too few cells tell, the mean shift does
            own = [treated[label == p].mean(axis=0) if n[p] >= MIN_CELLS else means[p] + shift for p in range(N_PARTS)]
            found.append((j, n / len(label), np.maximum(own, lowest)))
    if not found:
        return None
    indices, shares, of_each = zip(*found, strict=True)
    return Parts(np.repeat(indices, N_PARTS), np.concatenate(shares), np.concatenate(of_each))


def _nearest_part(control: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function of cells (n x G) that tells the part of each (n,)."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import pairwise_distances_argmin

    pca = PCA(min(N_COMPONENTS, len(control) - 1, control.shape[1]), random_state=0).fit(control)
    placed = pca.transform(control)
    label = KMeans(N_PARTS, n_init=5, random_state=0).fit(placed).labels_
    # from the labels, and not k-means' own centres: those are summed in an order that threads decide
    centers = np.stack([placed[label == part].mean(axis=0) for part in range(N_PARTS)])
    return lambda cells: np.asarray(pairwise_distances_argmin(pca.transform(cells), centers))
