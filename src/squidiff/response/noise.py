"""What of measured means and shifts stands out of the noise that few cells leave."""

from __future__ import annotations

import numpy as np

CAUTIONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Squared sizes, in variances of the noise, at which half of a shift is kept."""


def beyond_noise(shift: np.ndarray, noise: np.ndarray, caution: float = 1.0) -> np.ndarray:
    """What of a measured shift stands out of its noise (variances), gene by gene: shift z^2 / (z^2 + caution).

    z is the shift in standard deviations of its noise. With a caution of 1 it is Wiener's filter, with z^2 for the
    ratio of signal to noise; where most genes do not change at all, more is right (see `risks`).
    """
    size = np.square(shift)
    whole = size + caution * noise
    return np.asarray(np.divide(shift * size, whole, out=np.zeros_like(shift), where=whole != 0))


def risks(shift: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """How much `beyond_noise` errs on a shift with each of CAUTIONS, as a share of its noise (variances), (C,).

    The squared error by Stein's unbiased estimate (Annals of Statistics 1981), which needs no truth, only normal noise
    of known variance v: with h the filtered z, a gene adds v (1 + (h - z)^2 + 2 (dh/dz - 1)).
    """
    squared = np.divide(np.square(shift), noise, out=np.zeros_like(shift), where=noise > 0)
    all_noise = max(noise.sum(), np.finfo(float).tiny)

    def risk(caution: float) -> float:
        kept = squared / (squared + caution)
        slope = kept * (squared + 3 * caution) / (squared + caution)
        return float(noise @ (1 + squared * np.square(kept - 1) + 2 * (slope - 1)) / all_noise)

    return np.array([risk(caution) for caution in CAUTIONS])


def steadied(mean: np.ndarray, variance: np.ndarray, n_cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of P means (P x G) drawn towards all of them, and the variance of the noise that it keeps, both (G,).

    Where a gene's means differ by no more than the noise of few cells makes them (`variance` (G,) of single cells,
    over `n_cells` (P,)), they are all one mean; where they differ by more, the first hardly moves, and never by more
    than one standard deviation of its own noise, since all others may differ from it alike (Efron and Morris 1972).
    Lindley's estimate, with the spread of means of unequal noise (DerSimonian and Laird 1986). Fewer than four say
    nothing of each other. A mean of 0 stays: half a cell cannot show a gene that no cell does.
    """
    own, n_means, all_cells = variance / n_cells[0], len(mean), n_cells.sum()
    if n_means < 4:
        return mean[0], own
    middle = n_cells @ mean / all_cells
    spread = n_cells @ np.square(mean - middle) - (n_means - 1) * variance
    signal = np.maximum(spread / (all_cells - np.square(n_cells).sum() / all_cells), 0.0)
    can_move = (own > 0) & (mean[0] != 0)
    share = np.divide(own, signal + own, out=np.zeros_like(own), where=can_move) * (n_means - 3) / (n_means - 1)
    move = np.clip(share * (middle - mean[0]), -np.sqrt(own), np.sqrt(own))
    return mean[0] + move, own * (1 - share) + variance / all_cells * share * (2 - share)
