"""How the mean goes on at a time that was seen, from how the cells of that time differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from squidiff.response.populations import MIN_CELLS, Population

N_COMPONENTS = 50
"""Of the cells of one context and condition, that their times are told by."""
PENALTIES = tuple(10.0**k for k in range(-2, 5))


class Course(NamedTuple):
    """How the means of P populations go on."""

    change: np.ndarray
    """P x G, of the mean per unit of time; 0 where its cells do not tell"""
    noise: np.ndarray
    """(P,) the variance of a gene's change that comes of few cells, as a share of the variance of the gene's cells"""

    def only(self, indices: np.ndarray) -> Course:
        """Of some populations."""
        return Course(self.change[indices], self.noise[indices])

    def joined(self, others: Course, rows: Iterable[tuple[int | None, int | None]]) -> Course:
        """Of populations that lie here, there (rows of both) or in both: that of `others`, where it has any to tell.

        New cells of one time alone do not tell how it goes on, though the earlier ones may.
        """
        silent = np.logical_not(others.change.any(axis=1))
        of_each = [(self, i) if j is None or (i is not None and silent[j]) else (others, j) for i, j in rows]
        return Course(*(np.stack([of[field][i] for of, i in of_each]) for field in range(2)))


def courses(cells: np.ndarray, population: np.ndarray, keys: tuple[Population, ...]) -> Course:
    """The change of the mean per unit of time at each population, from cells (N x G) of known population (N,).

    Cells of one time are not all as far on their way. How far each is, is told by a ridge regression of time on the
    principal components of all cells of its context and condition; the genes' covariance with it, within one time,
    gives the direction in which that time's mean moves. 0 where a context was seen at one time alone, or at a time of
    fewer than MIN_CELLS cells.
    """
    change, noise = np.zeros((len(keys), cells.shape[1])), np.zeros(len(keys))
    times = np.array([np.nan if key.time is None else key.time for key in keys])
    trajectories: dict[Population, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        trajectories[key._replace(time=None)].append(i)
    for members in trajectories.values():
        rows = np.flatnonzero(np.isin(population, members) & np.isfinite(times[population]))
        of_row = population[rows]
        counted = [i for i in np.unique(of_row) if (of_row == i).sum() >= MIN_CELLS]
        x = cells[rows].astype(np.float64)
        if len(counted) < 2 or not np.ptp(x, axis=0).any():
            continue
        told, speed = _told_times(x, times[of_row])
        for i in counted:
            here = of_row == i
            ahead = told[here] - told[here].mean()
            if ahead.any():
                change[i] = speed * (ahead @ (x[here] - x[here].mean(axis=0))) / np.square(ahead).sum()
                noise[i] = speed**2 / np.square(ahead).sum()
    return Course(change, noise)


def _told_times(cells: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, float]:
    """The time that each cell looks like (n,), and how much of it goes by per unit of true time."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline

    n_cells, n_genes = cells.shape
    components = PCA(min(N_COMPONENTS, n_cells - 1, n_genes), random_state=0)
    told = make_pipeline(components, RidgeCV(PENALTIES)).fit(cells, times).predict(cells)
    later = times - times.mean()
    return told, float(later @ told / np.square(later).sum())
