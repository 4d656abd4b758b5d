"""Metrics of mean profiles: of the profile itself or of its change from a reference, on all genes or the top ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from squidiff.evaluate.pairs import Pair, Resample

N_TOP_GENES = 50
"""Genes that differ most between truth and control."""
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of predicted and true profiles (B x G each), row by row, (B,)."""
OfPair = Callable[[Pair], np.ndarray | None]


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation; NaN where a row is constant or has one gene."""
    if a.shape[1] < 2:
        return np.full(len(a), np.nan)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    varies = (np.square(a).mean(axis=1) > 1e-20) & (np.square(b).mean(axis=1) > 1e-20)
    return np.divide((a * b).sum(axis=1), length, out=np.full(len(a), np.nan), where=varies)


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation of ranks; NaN where a row is constant or has one gene."""
    varies = (np.ptp(a, axis=1) > 1e-10) & (np.ptp(b, axis=1) > 1e-10)
    return np.where(varies, pearson(rankdata(a, axis=1), rankdata(b, axis=1)), np.nan)


def r2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of the truth's variance over genes that is explained, 1 - sum (a - b)^2 / sum (b - mean b)^2."""
    spread = np.square(b - b.mean(axis=1, keepdims=True)).sum(axis=1)
    varies = spread > 1e-20 * b.shape[1]
    share = np.divide(np.square(a - b).sum(axis=1), spread, out=np.full(len(a), np.nan), where=varies)
    return np.asarray(1.0 - share)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle; NaN where a row is 0."""
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    is_some = (np.square(a).mean(axis=1) > 1e-20) & (np.square(b).mean(axis=1) > 1e-20)
    return np.divide((a * b).sum(axis=1), length, out=np.full(len(a), np.nan), where=is_some)


def mean_squared_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.square(a - b).mean(axis=1))


def mean_absolute_error(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(a - b).mean(axis=1))


def sign_agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of the genes whose true change is not 0 that change in the same direction; NaN where none does."""
    changes = np.abs(b) > 1e-10
    same = (np.sign(a) == np.sign(b)) & changes
    n = changes.sum(axis=1)
    return np.divide(same.sum(axis=1), n, out=np.full(len(a), np.nan), where=n > 0)


def of_means(
    statistic: Statistic, reference: OfPair | None = None, top: bool = False
) -> Callable[[Resample], np.ndarray]:
    """The statistic of the means or, with a reference, of their changes from it; with `top`, of the top genes alone.

    NaN where the reference, or the control that tells the top genes, is not known.
    """

    def metric(sample: Resample) -> np.ndarray:
        predicted, truth = sample.predicted_mean, sample.truth_mean
        if reference is not None:
            base = reference(sample.pair)
            if base is None:
                return sample.unknown
            predicted, truth = predicted - base, truth - base
        if top:
            expressed = sample.pair.truly_expressed
            if expressed is None:
                return sample.unknown
            genes = expressed.top(N_TOP_GENES)
            predicted, truth = predicted[:, genes], truth[:, genes]
        return statistic(predicted, truth)

    return metric
