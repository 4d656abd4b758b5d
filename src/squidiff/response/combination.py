"""The mean under a combination, from its parts seen singly."""

from __future__ import annotations

import numpy as np

from squidiff.config import PART_SEPARATOR
from squidiff.response.populations import Population, Populations
from squidiff.response.shift import CannotPredict, source_mean


class Additive:
    """The source mean plus the shift of every part, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> Additive:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        parts = key.condition.split(PART_SEPARATOR)
        if len(parts) < 2:
            raise CannotPredict(f"{key.condition!r} is not a combination")
        own = source_mean(self.populations, key)
        return own + sum((self._single(key._replace(condition=part)) - own for part in parts), np.zeros_like(own))

    def _single(self, key: Population) -> np.ndarray:
        found = self.populations.find(key)
        if found is None:
            raise CannotPredict(f"{key.condition!r} was not seen alone in context {key.context!r}")
        return self.populations.mean[found]
