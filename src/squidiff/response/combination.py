"""The mean under a combination, from its parts seen singly."""

from __future__ import annotations

import numpy as np

from squidiff.config import PART_SEPARATOR
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict


class Additive:
    """The source mean plus the shift of every part, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> Additive:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        parts = key.condition.split(PART_SEPARATOR)
        if len(parts) < 2:
            raise CannotPredict(f"{key.condition!r} is not a combination")
        return np.sum([source.mean, *(self._shift(key._replace(condition=part)) for part in parts)], axis=0)

    def _shift(self, single: Population) -> np.ndarray:
        found = self.populations.find(single)
        if found is None or self.populations.sources[found] < 0:
            raise CannotPredict(f"{single.condition!r} was not seen alone in context {single.context!r}")
        return np.asarray(self.populations.shifts([found])[0])
