"""What is measured between predicted and true cells. Each metric is a row of METRICS; NaN stays NaN."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist

N_COMPONENTS = 50
"""Principal components of the space in which distributions are compared."""


@dataclass(frozen=True)
class Pair:
    """Predicted cells (N x G) beside true ones (M x G), and where both lie in the space of principal components."""

    predicted: np.ndarray
    truth: np.ndarray
    predicted_pcs: np.ndarray
    """N x K"""
    truth_pcs: np.ndarray
    """M x K"""
    control_mean: np.ndarray | None
    """(G,) of the cells that the prediction starts from; None where there are none."""

    @cached_property
    def across(self) -> np.ndarray:
        """M x N Euclidean distances."""
        return cdist(self.truth_pcs, self.predicted_pcs)

    @cached_property
    def among_truth(self) -> np.ndarray:
        """M x M Euclidean distances."""
        return cdist(self.truth_pcs, self.truth_pcs)

    @cached_property
    def among_predicted(self) -> np.ndarray:
        """N x N Euclidean distances."""
        return cdist(self.predicted_pcs, self.predicted_pcs)


class Resample:
    """B resamples of a pair: how often each true and each predicted cell counts, B x M and B x N."""

    def __init__(self, pair: Pair, truth_counts: np.ndarray, predicted_counts: np.ndarray) -> None:
        self.pair = pair
        self.truth_counts, self.predicted_counts = truth_counts, predicted_counts
        self.truth_weights = truth_counts / truth_counts.sum(axis=1, keepdims=True)
        self.predicted_weights = predicted_counts / predicted_counts.sum(axis=1, keepdims=True)

    @classmethod
    def whole(cls, pair: Pair) -> Resample:
        """Every cell once: one resample."""
        return cls(pair, np.ones((1, len(pair.truth))), np.ones((1, len(pair.predicted))))

    @cached_property
    def truth_mean(self) -> np.ndarray:
        """B x G"""
        return self.truth_weights @ self.pair.truth

    @cached_property
    def predicted_mean(self) -> np.ndarray:
        """B x G"""
        return self.predicted_weights @ self.pair.predicted


def pearson(sample: Resample) -> np.ndarray:
    """Pearson correlation of the mean profiles over genes."""
    return _correlation(sample.predicted_mean, sample.truth_mean)


def delta_pearson(sample: Resample) -> np.ndarray:
    """Pearson correlation over genes of the changes of the mean from control; NaN where no change is predicted."""
    control = sample.pair.control_mean
    if control is None:
        return np.full(len(sample.truth_counts), np.nan)
    return _correlation(sample.predicted_mean - control, sample.truth_mean - control)


def mean_squared_error(sample: Resample) -> np.ndarray:
    """Mean over genes of the squared difference of the means."""
    return np.square(sample.predicted_mean - sample.truth_mean).mean(axis=1)


def energy_distance(sample: Resample) -> np.ndarray:
    """2 E|x - y| - E|x - x'| - E|y - y'|, Euclidean on principal components, unbiased (Szekely and Rizzo 2013).

    The within terms are over pairs of different cells, so that it is 0 on average for two samples of one distribution.
    """
    across = ((sample.truth_weights @ sample.pair.across) * sample.predicted_weights).sum(axis=1)
    among_truth = _mean_between_different(sample.truth_counts, sample.pair.among_truth)
    among_predicted = _mean_between_different(sample.predicted_counts, sample.pair.among_predicted)
    return 2 * across - among_truth - among_predicted


def variance_pearson(sample: Resample) -> np.ndarray:
    """Pearson correlation over genes of the logarithms of the variances, of the genes that vary in both."""
    pair = sample.pair
    truth = sample.truth_weights @ np.square(pair.truth) - np.square(sample.truth_mean)
    predicted = sample.predicted_weights @ np.square(pair.predicted) - np.square(sample.predicted_mean)
    varies = (truth > 1e-8) & (predicted > 1e-8)
    return np.array(
        [
            _correlation(np.log(p[v])[None], np.log(t[v])[None])[0]
            for p, t, v in zip(predicted, truth, varies, strict=True)
        ]
    )


def zero_fraction_error(sample: Resample) -> np.ndarray:
    """Mean over genes of the absolute difference of the share of cells in which the gene is zero."""
    truth = sample.truth_weights @ (sample.pair.truth == 0)
    predicted = sample.predicted_weights @ (sample.pair.predicted == 0)
    return np.abs(predicted - truth).mean(axis=1)


@dataclass(frozen=True)
class Metric:
    """A metric, a value for each resample (B,); its best value and direction."""

    function: Callable[[Resample], np.ndarray]
    best: float
    higher_is_better: bool
    needs_control: bool = False


METRICS: dict[str, Metric] = {
    "delta_pearson": Metric(delta_pearson, 1.0, True, needs_control=True),
    "energy_distance": Metric(energy_distance, 0.0, False),
    "pearson": Metric(pearson, 1.0, True),
    "mean_squared_error": Metric(mean_squared_error, 0.0, False),
    "variance_pearson": Metric(variance_pearson, 1.0, True),
    "zero_fraction_error": Metric(zero_fraction_error, 0.0, False),
}


def score(pair: Pair) -> dict[str, float]:
    """Each metric's value."""
    sample = Resample.whole(pair)
    return {name: float(metric.function(sample)[0]) for name, metric in METRICS.items()}


def _mean_between_different(counts: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Mean distance of two different draws, for each resample (B,); NaN for a single cell."""
    n_pairs = counts.sum(axis=1) ** 2 - np.square(counts).sum(axis=1)
    total = ((counts @ distances) * counts).sum(axis=1)
    return np.divide(total, n_pairs, out=np.full(len(counts), np.nan), where=n_pairs > 0)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of a with the same row of b (B,); NaN where a row is constant or has one gene."""
    if a.shape[1] < 2:
        return np.full(len(a), np.nan)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    varies = (np.square(a).mean(axis=1) > 1e-20) & (np.square(b).mean(axis=1) > 1e-20)
    return np.divide((a * b).sum(axis=1), length, out=np.full(len(a), np.nan), where=varies)
