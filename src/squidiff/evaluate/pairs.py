"""Predicted cells beside true ones, and resamples of both: what every metric is computed from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist

from squidiff.evaluate.differential import Differential, rank_sum

CELLS_PER_BLOCK = 512
"""Rows of a matrix of distances that are there at once."""
N_OF_SCALE = 500
WIDEST, N_BANDWIDTHS = 4.0, 5
"""Of Gaussian kernels, in median distances of two true cells: 4, 2, 1, 1/2 and 1/4."""
Kernel = Callable[[np.ndarray], np.ndarray]
"""Of Euclidean distances."""


@dataclass(frozen=True)
class Pair:
    """Predicted cells (N x G) beside true ones (M x G), and where both lie in the space of principal components."""

    predicted: np.ndarray
    truth: np.ndarray
    predicted_pcs: np.ndarray
    """N x K"""
    truth_pcs: np.ndarray
    """M x K"""
    control_mean: np.ndarray | None = None
    """(G,) that changes are measured from, see `Baselines.control_mean`; None where there is none."""
    perturbed_mean: np.ndarray | None = None
    """(G,) the mean over the training conditions of the same context."""
    control: np.ndarray | None = None
    """C x G, some of the cells that the prediction starts from."""
    expressed: Differential | None = None
    """The truth's differential expression against control, where it is known already."""
    rivals: np.ndarray | None = None
    """R x G, the true means of the other conditions of the same context and time."""
    predicted_origin: np.ndarray | None = None
    """(N,) the cell that each predicted one was made from, where several may be of one; None where none are."""
    perturbed_genes: np.ndarray | None = None
    """Which genes are what was perturbed itself."""

    def with_predicted(self, cells: np.ndarray, pcs: np.ndarray) -> Pair:
        """Another prediction (cells and where they lie) of the same truth, of which what is known is kept."""
        return replace(self, predicted=cells, predicted_pcs=pcs, predicted_origin=None, expressed=self.truly_expressed)

    @property
    def has_space(self) -> bool:
        """Whether there are principal components; training cells that are all alike have none."""
        return self.truth_pcs.shape[1] > 0

    def has(self, needed: str) -> bool:
        """Whether what a metric needs is known: 'control', 'perturbed mean', 'other conditions' or ''."""
        known = {"": True, "control": self.control_mean is not None, "perturbed mean": self.perturbed_mean is not None}
        known["other conditions"] = known["control"] and self.rivals is not None
        return known[needed]

    @cached_property
    def truly_expressed(self) -> Differential | None:
        """The truth's differential expression against control."""
        if self.expressed is not None or self.control is None:
            return self.expressed
        return rank_sum(self.truth, self.control)

    @cached_property
    def predicted_expressed(self) -> Differential | None:
        """The prediction's differential expression against control."""
        return None if self.control is None else rank_sum(self.predicted, self.control)

    @cached_property
    def truth_scale(self) -> float:
        """The median distance of two true cells, of N_OF_SCALE at most; NaN for a single one."""
        some = self.truth_pcs[:: max(1, len(self.truth_pcs) // N_OF_SCALE)][:N_OF_SCALE]
        distances = cdist(some, some)[np.triu_indices(len(some), 1)]
        return float(np.median(distances)) if len(distances) else float("nan")

    @cached_property
    def kernels(self) -> list[Kernel]:
        """The distance and, where the truth has a scale, the mean of Gaussian kernels."""
        widest = WIDEST * self.truth_scale
        return [distance, functools.partial(_gaussians, widest)] if widest > 0 else [distance]


class Resample:
    """B resamples of a pair: how often each true and each predicted cell counts, B x M and B x N."""

    def __init__(
        self, pair: Pair, truth_counts: np.ndarray, predicted_counts: np.ndarray, beside: Resample | None = None
    ) -> None:
        """`beside` is of another prediction of the same truth, resampled alike: what it knows of that is not redone."""
        self.pair = pair
        self._of_truth: dict[Hashable, np.ndarray] = {} if beside is None else beside._of_truth
        self.truth_counts, self.predicted_counts = truth_counts, predicted_counts
        self.truth_weights = truth_counts / truth_counts.sum(axis=1, keepdims=True)
        self.predicted_weights = predicted_counts / predicted_counts.sum(axis=1, keepdims=True)

    @classmethod
    def whole(cls, pair: Pair) -> Resample:
        """Every cell once: one resample."""
        return cls(pair, np.ones((1, len(pair.truth))), np.ones((1, len(pair.predicted))))

    @property
    def unknown(self) -> np.ndarray:
        """NaN for every resample, (B,)."""
        return np.full(len(self.truth_counts), np.nan)

    def of_truth(self, what: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """What is told of the true cells and nothing else, made once for all predictions beside."""
        if what not in self._of_truth:
            self._of_truth[what] = make()
        return self._of_truth[what]

    @property
    def truth_mean(self) -> np.ndarray:
        """B x G"""
        return self.of_truth("mean", lambda: self.truth_weights @ self.pair.truth)

    @cached_property
    def predicted_mean(self) -> np.ndarray:
        """B x G"""
        return self.predicted_weights @ self.pair.predicted

    @property
    def truth_variance(self) -> np.ndarray:
        """B x G"""
        return self.of_truth("variance", lambda: _variance(self.truth_weights, self.pair.truth, self.truth_mean))

    @cached_property
    def predicted_variance(self) -> np.ndarray:
        """B x G"""
        return _variance(self.predicted_weights, self.pair.predicted, self.predicted_mean)

    @cached_property
    def kernels_across(self) -> np.ndarray:
        """Means over pairs of a true and a predicted cell of `Pair.kernels`, kernels x B."""
        pair = self.pair
        return sums(pair.kernels, pair.truth_pcs, pair.predicted_pcs, self.truth_weights, self.predicted_weights)

    @property
    def kernels_of_truth(self) -> np.ndarray:
        """The same over pairs of true cells."""
        pair = self.pair
        return self.of_truth("kernels", lambda: among(pair.kernels, pair.truth_pcs, self.truth_counts))

    @cached_property
    def kernels_of_prediction(self) -> np.ndarray:
        """The same over pairs of predicted cells."""
        return among(self.pair.kernels, self.pair.predicted_pcs, self.predicted_counts, self.pair.predicted_origin)


def _variance(weights: np.ndarray, cells: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Of resamples, B x G."""
    return np.maximum(weights @ np.square(cells) - np.square(mean), 0.0)


def distance(distances: np.ndarray) -> np.ndarray:
    """The kernel of the energy distance."""
    return distances


def _gaussians(widest: float, distances: np.ndarray) -> np.ndarray:
    """The mean of Gaussian kernels, each half as wide as the one before: its exponent is four times that."""
    kernel = np.exp(np.square(distances) / (-2 * widest**2))
    total = kernel.copy()
    for _ in range(N_BANDWIDTHS - 1):
        kernel = np.square(np.square(kernel))
        total += kernel
    return np.asarray(total / N_BANDWIDTHS)


def among(
    kernels: Sequence[Kernel], cells: np.ndarray, counts: np.ndarray, origin: np.ndarray | None = None
) -> np.ndarray:
    """Means over pairs of different cells, kernels x B: no draw is paired with itself or a copy of it.

    Nor with one of the same origin (N,), which is nearer than another cell would be. NaN of a single cell.
    """
    copies = np.square(counts).sum(axis=1)
    n_pairs = counts.sum(axis=1) ** 2 - copies
    at_0 = np.array([kernel(np.zeros(1))[0] for kernel in kernels])[:, None]
    total = sums(kernels, cells, cells, counts, counts) - at_0 * copies
    for one, other in _of_one_origin(origin):
        both = 2 * counts[:, one] * counts[:, other]
        distances = np.linalg.norm(cells[one] - cells[other], axis=1)
        total -= np.stack([both @ kernel(distances) for kernel in kernels])
        n_pairs -= both.sum(axis=1)
    return np.divide(total, n_pairs, out=np.full_like(total, np.nan), where=n_pairs > 0)


def _of_one_origin(origin: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of cells that share an origin, each pair once, as rows of the one and of the other."""
    if origin is None:
        return
    order = np.argsort(origin, kind="stable")
    for apart in range(1, len(order)):
        same = origin[order[:-apart]] == origin[order[apart:]]
        if not same.any():
            return
        yield order[:-apart][same], order[apart:][same]


def sums(
    kernels: Sequence[Kernel], x: np.ndarray, y: np.ndarray, x_weights: np.ndarray, y_weights: np.ndarray
) -> np.ndarray:
    """Sums over pairs of weight times kernel, kernels x B; a block of rows of the distances is there at once."""
    total = np.zeros((len(kernels), len(x_weights)))
    for first in range(0, len(x), CELLS_PER_BLOCK):
        here = slice(first, first + CELLS_PER_BLOCK)
        distances = cdist(x[here], y)
        for i, kernel in enumerate(kernels):
            total[i] += ((x_weights[:, here] @ kernel(distances)) * y_weights).sum(axis=1)
    return total
