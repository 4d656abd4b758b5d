"""Cells drawn from a Gaussian, as wide as real ones and of a predicted mean, which they have exactly."""

from __future__ import annotations

import numpy as np

N_FACTORS = 20


def draw_diagonal(cells: np.ndarray, mean: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n x G: every gene by itself, with its variance over `cells` (M x G), around `mean` (G,)."""
    return _centred_at(mean, rng.normal(size=(n, cells.shape[1])) * cells.std(axis=0))


def draw_factors(cells: np.ndarray, mean: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n x G: with the covariance of `cells` on their first N_FACTORS principal components, and the rest by gene.

    Each gene so keeps its variance, and genes go together as far as few factors tell.
    """
    centred = cells - cells.mean(axis=0)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    loadings = (lengths[:N_FACTORS, None] * axes[:N_FACTORS]) / np.sqrt(len(cells))
    rest = np.sqrt(np.maximum(centred.var(axis=0) - np.square(loadings).sum(axis=0), 0.0))
    drawn = rng.normal(size=(n, len(loadings))) @ loadings + rng.normal(size=(n, cells.shape[1])) * rest
    return _centred_at(mean, drawn)


def _centred_at(mean: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    return np.asarray(drawn + (mean - drawn.mean(axis=0)))
