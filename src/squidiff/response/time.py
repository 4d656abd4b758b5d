"""The mean at a time that was never seen, from the times around it."""

from __future__ import annotations

import numpy as np

from squidiff.response.populations import Population, Populations
from squidiff.response.shift import CannotPredict


class TimeInterpolation:
    """The means of the same context and condition, linear between the times seen and constant beyond them."""

    def fit(self, populations: Populations) -> TimeInterpolation:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        if key.time is None:
            raise CannotPredict(f"{key} has no time")
        seen = [i for i, k in enumerate(self.populations.keys) if k[:2] == key[:2]]
        if not seen:
            raise CannotPredict(f"{key._replace(time=None)} was seen at no time")
        seen = self.populations.reliable(seen)
        times = np.array([self.populations.keys[i].time for i in seen], dtype=float)
        order = np.argsort(times)
        times, means = times[order], self.populations.mean[seen][order]
        right = int(np.clip(np.searchsorted(times, key.time), 1, len(times) - 1)) if len(times) > 1 else 0
        left = max(right - 1, 0)
        span = times[right] - times[left]
        share = float(np.clip((key.time - times[left]) / span, 0.0, 1.0)) if span > 0 else 0.0
        return (1 - share) * means[left] + share * means[right]
