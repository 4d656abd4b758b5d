"""Moves cells to a predicted mean without breaking their zeros and variances, and gives generated cells their margins.

A shift turns the zeros of single cells into small numbers and gives every cell a floor. Here the share of zeros follows
the mean as it does over the training populations, and only what is not zero is shifted or scaled.
"""

from __future__ import annotations

import numpy as np

MAX_ROUNDS = 20
"""Of cutting down what is too high and moving the rest up; what is missing shrinks with each."""
LARGEST_LOGARITHM = 20.0
"""Means above it are no logarithms of counts."""
N_QUANTILES = 64
"""By which the values of a gene are kept."""
N_COVARYING = 20
"""Principal axes, at most, on which generated cells are made to vary as true ones do."""
CELLS_PER_AXIS = 10
"""Different cells, at least, that tell how an axis goes with others."""


class ZeroLaw:
    """How the zero fraction of each gene falls with its mean, over populations."""

    def fit(self, mean: np.ndarray, zero_fraction: np.ndarray) -> ZeroLaw:
        """From P populations of G genes, both P x G: an isotonic (never rising) law a gene."""
        from scipy.optimize import isotonic_regression

        order = np.argsort(mean, axis=0, kind="stable")
        # genes x populations, so that what a gene is asked for lies together: `predict` takes a tenth of the time
        self.mean = np.ascontiguousarray(np.take_along_axis(mean, order, axis=0).T)
        zeros = np.take_along_axis(zero_fraction, order, axis=0).T
        self.zeros = np.stack([isotonic_regression(of_gene, increasing=False).x for of_gene in zeros])
        return self

    def predict(self, mean: np.ndarray) -> np.ndarray:
        """The law at a mean a gene, (G,); constant beyond the populations seen."""
        return np.array([np.interp(m, x, y) for m, x, y in zip(mean, self.mean, self.zeros, strict=True)])

    def follow(self, here: np.ndarray, zeros_here: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The zero fraction (G,) after a move from the mean `here` to `mean`.

        Halfway between two: `zeros_here` plus the law's change, and `zeros_here` to the power of the ratio of counts,
        as if a cell showed a gene when it drew a count at a rate that goes with the mean (Poisson). The law alone where
        nothing was shown.
        """
        law = zeros_here + self.predict(mean) - self.predict(here)
        are_logarithms = max(here.max(initial=0.0), mean.max(initial=0.0)) <= LARGEST_LOGARITHM
        before, after = (np.expm1(np.maximum(m, 0.0)) if are_logarithms else np.maximum(m, 0.0) for m in (here, mean))
        ratio = np.divide(after, before, out=np.ones_like(after), where=before > 0)
        zeros = np.where(before > 0, (np.clip(law, 0.0, 1.0) + zeros_here**ratio) / 2, law)
        return np.clip(np.where(mean <= 0, 1.0, zeros), 0.0, 1.0)


def nonzero_quantiles(cells: np.ndarray) -> np.ndarray:
    """The values that genes have where they are not zero: N_QUANTILES quantiles a gene (Q x G), 0 of genes without any.

    At the levels (i + 1/2) / Q, of cells x genes.
    """
    levels = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    found = np.zeros((N_QUANTILES, cells.shape[1]), dtype=np.float32)
    for gene in np.flatnonzero((cells > 0).any(axis=0)):
        column = cells[:, gene]
        found[:, gene] = np.quantile(column[column > 0], levels)
    return found


def move_to_mean(
    cells: np.ndarray,
    mean: np.ndarray,
    zero_fraction: np.ndarray,
    quantiles: np.ndarray,
    lots: np.ndarray,
    highest: float = np.inf,
) -> np.ndarray:
    """Cells (N x G) moved to a mean and a zero fraction (G,), with no value above `highest`.

    Cells with the lowest of the `lots` (N x G, random numbers) are switched on or off. Those switched on take values
    that the gene has elsewhere, spread evenly over its `quantiles` (Q x G, see `nonzero_quantiles`). Then the non-zero
    values are set to the mean by `set_mean`. Nothing else is random: what a cell draws can be bound to its name.
    """
    moved = np.array(cells, dtype=np.float64)
    change = np.rint(zero_fraction * len(cells)).astype(int) - (moved == 0).sum(axis=0)
    levels = (np.arange(len(quantiles)) + 0.5) / len(quantiles)
    for gene in np.flatnonzero(change):
        column, n = moved[:, gene], abs(change[gene])
        there = np.flatnonzero(column if change[gene] > 0 else column == 0)
        drawn = there[np.argsort(lots[there, gene], kind="stable")[:n]]
        if change[gene] > 0:
            column[drawn] = 0.0
        elif quantiles[-1, gene] > 0:
            column[drawn] = np.interp((np.arange(n) + 0.5) / n, levels, quantiles[:, gene])
    return set_mean(moved, mean, highest)


def set_mean(cells: np.ndarray, mean: np.ndarray, highest: float = np.inf) -> np.ndarray:
    """Non-negative cells (N x G) whose non-zero values are shifted up, or scaled down, to the mean (G,).

    Shifted up, not scaled, so that a few high values do not run away; scaled down, not shifted, so that none turns
    negative. A gene without a non-zero value stays 0. What would be above `highest` is cut down to it, and the other
    values make up for that.
    """
    moved = _to_mean(cells, mean)
    for _ in range(MAX_ROUNDS):
        too_high = np.flatnonzero((moved > highest).any(axis=0))
        if not len(too_high):
            break
        moved[:, too_high] = _to_mean(np.minimum(moved[:, too_high], highest), mean[too_high])
    return np.minimum(moved, highest)


def _to_mean(cells: np.ndarray, mean: np.ndarray) -> np.ndarray:
    positive = cells > 0
    n_positive = np.maximum(positive.sum(axis=0), 1)
    here = cells.sum(axis=0) / n_positive
    wanted = np.maximum(mean, 0.0) * len(cells) / n_positive
    up = np.maximum(wanted - here, 0.0)
    down = np.divide(wanted, here, out=np.ones_like(here), where=here > wanted)
    return np.where(positive, cells * down + up, 0.0)


def take_values(cells: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cells (N x G) with the values that each gene has in `others` (N x G), in the order that they had themselves.

    Of generated cells this keeps how genes go together, and gives each gene the zeros and the spread of real cells: a
    diffusion in Gaussian noise fills the gap between 0 and the smallest logarithm of a count.
    """
    taken = np.empty_like(others)
    np.put_along_axis(taken, np.argsort(cells, axis=0, kind="stable"), np.sort(others, axis=0), axis=0)
    return taken


def covary_as(cells: np.ndarray, like: np.ndarray, n_different: int) -> np.ndarray:
    """Cells (N x G) with the covariance of others (M x G, `n_different` of them different) on the main axes of these.

    In units of each gene's standard deviation, and by the map that moves cells least. Their mean, and what lies off the
    axes, stay.
    """
    from sklearn.decomposition import PCA

    n_axes = min(N_COVARYING, n_different // CELLS_PER_AXIS, like.shape[1])
    spread, center = like.std(axis=0, dtype=np.float64), cells.mean(axis=0, dtype=np.float64)
    if n_axes == 0 or len(cells) <= n_axes or not spread.any():
        return cells
    spread[spread == 0] = 1.0
    scaled = like / spread
    pca = PCA(n_axes, random_state=0).fit(scaled)
    axes = pca.components_[pca.explained_variance_ > 1e-9 * pca.explained_variance_[0]].T.astype(np.float64)
    on_axes = (cells - center) / spread @ axes
    here, wanted = (np.atleast_2d(np.cov(of, rowvar=False)) for of in (on_axes, scaled @ axes))
    change = least_map(here, wanted) - np.eye(axes.shape[1])
    return np.asarray(cells + (on_axes @ change @ axes.T) * spread)


def least_map(covariance: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The map (K x K) that gives points of a covariance C the wanted one D and moves them least.

    C^-1/2 (C^1/2 D C^1/2)^1/2 C^-1/2, the optimal transport between normal laws (Olkin and Pukelsheim 1982).
    """
    root, inverse = _root(covariance)
    return np.asarray(inverse @ _root(root @ wanted @ root)[0] @ inverse)


def _root(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The symmetric square root of a covariance, and its inverse (of directions without variance 0)."""
    variances, directions = np.linalg.eigh(covariance)
    lengths = np.sqrt(np.maximum(variances, 0.0))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 1e-6 * lengths.max(initial=0.0))
    return (directions * lengths) @ directions.T, (directions * inverse) @ directions.T
