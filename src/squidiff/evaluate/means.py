"""Metrics of mean profiles: of the profile itself or of its change from a reference, on all genes or the top ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from squidiff.evaluate.pairs import Pair, Resample

N_TOP_GENES = 50
"""Genes that differ most between truth and control."""
NOISE = 1e-13
"""Mean square of a profile that is flat but for rounding: cells are stored as float32."""
Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of predicted and true profiles (B x G each), row by row, (B,)."""
OfPair = Callable[[Pair], np.ndarray | None]


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation; NaN where a row is constant or has one gene."""
    if a.shape[1] < 2:
        return np.full(len(a), np.nan)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    varies = (np.square(a).mean(axis=1) > NOISE) & (np.square(b).mean(axis=1) > NOISE)
    return np.divide((a * b).sum(axis=1), length, out=np.full(len(a), np.nan), where=varies)


def ranks(profiles: np.ndarray) -> np.ndarray:
    """Of the genes of each profile (B x G), all alike in one that is flat but for rounding.

    Their `pearson` is Spearman's correlation.
    """
    varies = np.ptp(profiles, axis=1, keepdims=True) > 1e-6
    return np.where(varies, rankdata(profiles, axis=1), 0.0)


def r2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Share of the truth's variance over genes that is explained, 1 - sum (a - b)^2 / sum (b - mean b)^2."""
    spread = np.square(b - b.mean(axis=1, keepdims=True)).sum(axis=1)
    varies = spread > NOISE * b.shape[1]
    share = np.divide(np.square(a - b).sum(axis=1), spread, out=np.full(len(a), np.nan), where=varies)
    return np.asarray(1.0 - share)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle; NaN where a row is 0."""
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    is_some = (np.square(a).mean(axis=1) > NOISE) & (np.square(b).mean(axis=1) > NOISE)
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


def top_genes(pair: Pair) -> np.ndarray | None:
    """The N_TOP_GENES that differ most between truth and control; None where there is no control."""
    expressed = pair.truly_expressed
    return None if expressed is None else expressed.top(N_TOP_GENES)


def of_means(
    statistic: Statistic, reference: OfPair | None = None, top: bool = False, *, ranked: bool = False
) -> Callable[[Resample], np.ndarray]:
    """The statistic of the means or, with a reference, of their changes from it; with `top`, of the top genes alone.

    With `ranked`, of their `ranks`. NaN where the reference, or the control that tells the top genes, is not known.
    """

    def metric(sample: Resample) -> np.ndarray:
        predicted, truth = sample.predicted_mean, sample.truth_mean
        if reference is not None:
            base = reference(sample.pair)
            if base is None:
                return sample.unknown
            predicted, truth = predicted - base, truth - base
        if top:
            genes = top_genes(sample.pair)
            if genes is None:
                return sample.unknown
            predicted, truth = predicted[:, genes], truth[:, genes]
        if ranked:  # which takes longer than most statistics
            predicted, truth = ranks(predicted), sample.of_truth((reference, top), lambda: ranks(truth))
        return statistic(predicted, truth)

    return metric


def discrimination(distance: str) -> Callable[[Resample], np.ndarray]:
    """Share of the other conditions whose true change is farther from the predicted one than the right true change.

    1 where the prediction is most like its own condition, 0.5 by chance; a tie is half. Changes are from control, with
    their signs, and of all genes but those that were perturbed; `distance` is one of scipy's. After the perturbation
    discrimination score of the Virtual Cell Challenge 2025, but by the number of others, so that the worst is 0. NaN
    where the prediction is control itself and the distance is an angle.
    """

    def metric(sample: Resample) -> np.ndarray:
        control, rivals, own_genes = sample.pair.control_mean, sample.pair.rivals, sample.pair.perturbed_genes
        if control is None or rivals is None:
            return sample.unknown
        scores = sample.unknown
        genes = np.setdiff1d(np.arange(len(control)), [] if own_genes is None else own_genes)
        for i, (predicted, truth) in enumerate(zip(sample.predicted_mean, sample.truth_mean, strict=True)):
            changes = np.vstack([predicted, truth, rivals])[:, genes] - control[genes]
            own, *others = cdist(changes[:1], changes[1:], distance)[0]
            if np.isfinite(own):
                away = np.array(others) - own
                scores[i] = np.where(np.abs(away) <= 1e-12 * abs(own), 0.5, away > 0).mean()
        return scores

    return metric
