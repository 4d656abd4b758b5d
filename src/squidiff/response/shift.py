"""The mean of an unseen context under a known condition, from the shifts of other contexts.

A predictor is fitted on Populations and answers with the mean (G,) of one more; it raises CannotPredict where it has
nothing to say.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from squidiff.config import InputError
from squidiff.response.populations import Population, Populations, Source

BANDWIDTHS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, float("inf"))
"""Of the weighted shift, in median distances between contexts: from the nearest context alone to all alike."""
N_DIRECTIONS = 10
"""In which the errors of a population are independent: many fewer than genes, which answer together."""
MAX_LEFT_OUT = 200
"""Populations that are left out in turn to choose a bandwidth."""


class CannotPredict(InputError):
    """This predictor has nothing to say of this population."""


class Predictor(Protocol):
    """What every predictor of the mean response does."""

    def fit(self, populations: Populations) -> Predictor:
        """Learns from populations."""
        ...

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        """The mean (G,) of one population that starts from `source`; `features` (C,) describe its condition."""
        ...


class NoChange:
    """The cells that the prediction starts from, as they are."""

    def fit(self, populations: Populations) -> NoChange:
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return source.mean


class TrainingMean:
    """The mean of the very population, where training saw cells of it."""

    def fit(self, populations: Populations) -> TrainingMean:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        found = self.populations.find(key)
        if found is None:
            raise CannotPredict(f"{key} was not seen in training")
        return self.populations.mean[found]


class MeanTreated:
    """The mean over the other contexts' cells under the same condition (each context counts once)."""

    def fit(self, populations: Populations) -> MeanTreated:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return self.populations.mean[_elsewhere(self.populations, key)].mean(axis=0)


class MeanShift:
    """The source mean plus the other contexts' shifts under the same condition, each context alike."""

    def fit(self, populations: Populations) -> MeanShift:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return source.mean + _shifts(self.populations, _elsewhere(self.populations, key))[1].mean(axis=0)


class WeightedShift:
    """The source mean plus the other contexts' shifts, the more a context counts the more alike its source cells are.

    The weight of a context is exp(-d / (h m)): d is the Euclidean distance between the source means, m the median
    distance of two contexts, h a bandwidth. The predictions by all BANDWIDTHS are averaged, each weighted by its
    likelihood over the training populations when each one's context is left out in turn: E^(-n k / 2) for a mean
    squared error E over n populations, as of Gaussian residuals in k independent directions. Where no condition was
    seen in three contexts nothing speaks for one bandwidth, and all count alike.

    With `in_proportion`, a gene that falls by half elsewhere falls by no more than half: of the two falls, by the same
    amount and by the same ratio, the smaller is taken, so that none falls below 0. It has no meaning, and no effect,
    where means are negative.
    """

    def __init__(self, in_proportion: bool = False) -> None:
        self.in_proportion = in_proportion

    def fit(self, populations: Populations) -> WeightedShift:
        self.populations = populations
        self.bounds_falls = self.in_proportion and populations.mean.min() >= 0
        seen = [i for i in populations.treated if len(populations.elsewhere(populations.keys[i])) > 1]
        left_out = seen[:: -(-len(seen) // MAX_LEFT_OUT) or 1]
        errors = np.full(len(BANDWIDTHS), np.finfo(float).tiny)
        for i in left_out:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            guesses = self._predict_all(populations.keys[i], source)
            errors += np.square(guesses - populations.mean[i]).mean(axis=1)
        self.likelihood = (errors.min() / errors) ** (len(left_out) * N_DIRECTIONS / 2)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return np.asarray(self.likelihood / self.likelihood.sum() @ self._predict_all(key, source))

    def _predict_all(self, key: Population, source: Source) -> np.ndarray:
        """The prediction by each bandwidth, bandwidths x G."""
        means, shifts = _shifts(self.populations, _elsewhere(self.populations, key))
        if self.bounds_falls:
            kept = np.divide(means + shifts, means, out=np.ones_like(means), where=means > 0)
            shifts = np.where(shifts < 0, np.maximum(shifts, source.mean * (kept - 1)), shifts)
        distance = np.linalg.norm(means - source.mean, axis=1)
        unit = _median_distance(np.vstack([means, source.mean]))
        weights = np.exp([-(distance - distance.min()) / (h * unit) for h in BANDWIDTHS])
        return np.asarray(source.mean + weights / weights.sum(axis=1, keepdims=True) @ shifts)


def _elsewhere(populations: Populations, key: Population) -> list[int]:
    others = populations.elsewhere(key)
    if not others or key.condition == "":
        raise CannotPredict(f"condition {key.condition!r} was seen in no other context that has cells to start from")
    return others


def _shifts(populations: Populations, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The source means and the shifts of populations that have a source, both populations x G."""
    means = populations.mean[populations.sources[indices]]
    return means, populations.mean[indices] - means


def _median_distance(means: np.ndarray) -> float:
    """The median Euclidean distance of two different rows; 1 where all are alike."""
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(means))) or 1.0
