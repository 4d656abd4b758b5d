"""The mean of an unseen context under a known condition, from the shifts of other contexts.

A predictor is fitted on Populations and answers with the mean (G,) of one more; it raises CannotPredict where it has
nothing to say.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from squidiff.config import InputError
from squidiff.response.populations import Population, Populations


class CannotPredict(InputError):
    """This predictor has nothing to say of this population."""


class Predictor(Protocol):
    """What every predictor of the mean response does."""

    def fit(self, populations: Populations) -> Predictor:
        """Learns from populations."""
        ...

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        """The mean (G,) of one population; `features` (C,) describe its condition."""
        ...


def source_mean(populations: Populations, key: Population) -> np.ndarray:
    """The mean (G,) of the cells that a prediction of `key` starts from."""
    source = populations.source(key)
    if source is None:
        raise CannotPredict(f"there are no cells to start from for {key}: context {key.context!r} has none of them")
    return populations.mean[source]


class NoChange:
    """The cells that the prediction starts from, as they are."""

    def fit(self, populations: Populations) -> NoChange:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        return source_mean(self.populations, key)


class TrainingMean:
    """The mean of the very population, where training saw cells of it."""

    def fit(self, populations: Populations) -> TrainingMean:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        found = self.populations.find(key)
        if found is None:
            raise CannotPredict(f"{key} was not seen in training")
        return self.populations.mean[found]


class MeanTreated:
    """The mean over the other contexts' cells under the same condition (each context counts once)."""

    def fit(self, populations: Populations) -> MeanTreated:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        return self.populations.mean[_same_condition(self.populations, key)].mean(axis=0)


class MeanShift:
    """The source mean plus the other contexts' shifts under the same condition, averaged with weights.

    The weights are all equal, or with a bandwidth h (in the unit of the data) exp(-d / h), where d is the Euclidean
    distance between the source means of the two contexts.
    """

    def __init__(self, bandwidth: float | None = None) -> None:
        self.bandwidth = bandwidth

    def fit(self, populations: Populations) -> MeanShift:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        own = source_mean(self.populations, key)
        keys = self.populations.keys
        others = [i for i in _same_condition(self.populations, key) if self.populations.source(keys[i]) is not None]
        if not others:
            raise CannotPredict(f"condition {key.condition!r} was seen in no other context that has control cells")
        sources = np.stack([source_mean(self.populations, keys[i]) for i in others])
        shifts = self.populations.mean[others] - sources
        return own + self._weights(np.linalg.norm(sources - own, axis=1)) @ shifts

    def _weights(self, distance: np.ndarray) -> np.ndarray:
        if self.bandwidth is None:
            return np.full(len(distance), 1 / len(distance))
        weights = np.exp(-(distance - distance.min()) / self.bandwidth)
        return np.asarray(weights / weights.sum())


def _same_condition(populations: Populations, key: Population) -> list[int]:
    same = [
        i
        for i, k in enumerate(populations.keys)
        if k.condition == key.condition and k.context != key.context and k.time == key.time
    ]
    if not same or key.condition == "":
        raise CannotPredict(f"condition {key.condition!r} was seen in no other context")
    return same
