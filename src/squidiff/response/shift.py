"""The mean of an unseen context under a known condition, from the shifts of other contexts.

A predictor is fitted on Populations and answers with the mean (G,) of one more; it raises CannotPredict where it has
nothing to say.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        return self.populations.mean[elsewhere(self.populations, key)].mean(axis=0)


class MeanShift:
    """The source mean plus the other contexts' shifts under the same condition, each context alike."""

    def fit(self, populations: Populations) -> MeanShift:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return source.mean + self.populations.shifts(elsewhere(self.populations, key)).mean(axis=0)


class WeightedShift:
    """The source mean plus the other contexts' shifts, the more a context counts the more alike its source cells are.

    The weight of a context is exp(-d / (h m)): d is the Euclidean distance between the source means, m the median
    distance of two training contexts, h a bandwidth. The predictions by all BANDWIDTHS are averaged, each weighted by
    its `likelihood` over the training populations when each one's context is left out in turn. Where no condition was
    seen in three contexts nothing speaks for one bandwidth, and all count alike.

    With `in_proportion`, a gene that falls by half elsewhere falls by no more than half: of the two falls, by the same
    amount and by the same ratio, the smaller is taken, so that none falls below 0. It has no meaning, and no effect,
    where means are negative.
    """

    def __init__(self, in_proportion: bool = False) -> None:
        self.in_proportion = in_proportion

    def fit(self, populations: Populations) -> WeightedShift:
        self.populations = populations
        self.bounds_falls = self.in_proportion and populations.is_non_negative
        self.unit = median_distance(populations.mean[np.unique(populations.sources[populations.treated])])
        seen = [i for i in populations.treated if len(populations.elsewhere(populations.keys[i])) > 1]
        left_out = drawn(seen, MAX_LEFT_OUT)
        errors = np.zeros(len(BANDWIDTHS))
        for i in left_out:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            guesses = self._predict_all(populations.keys[i], source)
            errors += np.square(guesses - populations.mean[i]).mean(axis=1)
        self.likelihood = likelihood(errors, len(left_out))
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return self.predict_without(key, source, None)

    def predict_without(self, key: Population, source: Source, index: int | None) -> np.ndarray:
        """The same, as if one population had not been seen."""
        return np.asarray(self.likelihood / self.likelihood.sum() @ self._predict_all(key, source, index))

    def _predict_all(self, key: Population, source: Source, without: int | None = None) -> np.ndarray:
        """The prediction by each bandwidth, bandwidths x G."""
        others = [i for i in elsewhere(self.populations, key) if i != without]
        if not others:
            raise CannotPredict(f"condition {key.condition!r} was seen in no third context")
        means, shifts = self.populations.mean[self.populations.sources[others]], self.populations.shifts(others)
        if self.bounds_falls:
            kept = np.divide(means + shifts, means, out=np.ones_like(means), where=means > 0)
            shifts = np.where(shifts < 0, np.maximum(shifts, source.mean * (kept - 1)), shifts)
        return np.asarray(source.mean + context_weights(means, source.mean, self.unit, BANDWIDTHS) @ shifts)


class TwoWay:
    """The source mean plus what conditions do here on average plus what this one does elsewhere beyond the average.

    Each other context that has seen the condition k, at the same time, gives shift(k, there) + mean over j of
    [shift(j, here) - shift(j, there)], the mean over the conditions j that both contexts have seen; these are averaged.
    """

    def fit(self, populations: Populations) -> TwoWay:
        self.populations = populations
        self.seen: dict[tuple[str, float | None], dict[str, int]] = {}
        for i in populations.treated:
            key = populations.keys[i]
            self.seen.setdefault((key.context, key.time), {})[key.condition] = i
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        here, guesses = self.seen.get((key.context, key.time), {}), []
        for i in elsewhere(self.populations, key):
            there = self.seen.get((self.populations.keys[i].context, key.time), {})
            both = [j for j in here if j in there and j != key.condition]
            if both:
                near, far = (self.populations.shifts([at[j] for j in both]) for at in (here, there))
                guesses.append(self.populations.shifts([i])[0] + (near - far).mean(axis=0))
        if not guesses:
            raise CannotPredict(f"no other condition was seen both in context {key.context!r} and where this one was")
        return np.asarray(source.mean + np.mean(guesses, axis=0))


def context_weights(means: np.ndarray, mean: np.ndarray, unit: float, bandwidths: Sequence[float]) -> np.ndarray:
    """How much each context counts for one of source mean `mean` (G,), by each bandwidth, bandwidths x contexts.

    From their source means (contexts x G) and the unit of distance; rows sum to 1.
    """
    distance = np.linalg.norm(means - mean, axis=1)
    weights = np.exp([-(distance - distance.min()) / (h * unit) for h in bandwidths])
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def elsewhere(populations: Populations, key: Population) -> list[int]:
    """The populations of other contexts under the same condition. Raises CannotPredict without any."""
    others = populations.elsewhere(key)
    if not others or key.condition == "":
        raise CannotPredict(f"condition {key.condition!r} was seen in no other context that has cells to start from")
    return others


def median_distance(means: np.ndarray) -> float:
    """The median Euclidean distance of two different rows (of some, if there are many); 1 where all are alike."""
    from scipy.spatial.distance import pdist

    some = means[drawn(range(len(means)), MAX_LEFT_OUT)]
    return (float(np.median(pdist(some))) if len(some) > 1 else 0.0) or 1.0


def drawn(indices: Sequence[int], n: int) -> list[int]:
    """At most n of the indices, in their order: the same at every call, and without a regular step."""
    if len(indices) <= n:
        return list(indices)
    return np.sort(np.random.default_rng(0).choice(np.asarray(indices), n, replace=False)).tolist()


def likelihood(errors: np.ndarray, n: int) -> np.ndarray:
    """Of predictors by their summed squared errors over n populations, 1 for the best: (E / E_best)^(-n k / 2).

    As of Gaussian residuals of unknown variance in k = N_DIRECTIONS independent directions.
    """
    errors = np.maximum(errors, np.finfo(float).tiny)
    return np.asarray((errors.min() / errors) ** (n * N_DIRECTIONS / 2))
