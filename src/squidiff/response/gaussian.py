"""Cells drawn from a Gaussian, as wide as real ones and of a predicted mean, which they have exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

N_FACTORS = 20


class Spread(NamedTuple):
    """How cells lie around their mean."""

    loadings: np.ndarray
    """K x G: what they have along each of K factors, which vary alike and apart"""
    rest: np.ndarray
    """(G,) the standard deviation of each gene besides"""


def diagonal_spread(cells: np.ndarray) -> Spread:
    """Every gene by itself, with its variance over the cells (M x G)."""
    return Spread(np.zeros((0, cells.shape[1])), cells.std(axis=0))


def factor_spread(cells: np.ndarray) -> Spread:
    """The covariance of the cells (M x G) on their first N_FACTORS principal components, and the rest by gene.

    Each gene so keeps its variance, and genes go together as far as few factors tell.
    """
    centred = cells - cells.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    loadings = (lengths[:N_FACTORS, None] * axes[:N_FACTORS]) / np.sqrt(len(cells))
    return Spread(loadings, np.sqrt(np.maximum(centred.var(axis=0) - np.square(loadings).sum(axis=0), 0.0)))


def draw_gaussian(spread: Spread, mean: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n x G, around `mean` (G,), which they have exactly."""
    drawn = rng.normal(size=(n, len(spread.loadings))) @ spread.loadings + rng.normal(size=(n, len(mean))) * spread.rest
    return np.asarray(drawn + (mean - drawn.mean(axis=0)))
