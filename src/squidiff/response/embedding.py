"""The mean under a condition that was never seen, from what describes it: fingerprints, embeddings, doses."""

from __future__ import annotations

import numpy as np

from squidiff.response.populations import Population, Populations
from squidiff.response.shift import CannotPredict, source_mean


class RidgeShift:
    """Source mean plus a linear function, without intercept, of the condition's features.

    Ridge regression of the observed shifts; its strength is chosen among `ALPHAS` by the closed-form leave-one-out
    error of scikit-learn's RidgeCV.
    """

    ALPHAS = tuple(10.0**k for k in range(-3, 5))

    def fit(self, populations: Populations) -> RidgeShift:
        from sklearn.linear_model import RidgeCV

        self.populations = populations
        treated = [i for i, k in enumerate(populations.keys) if k.condition and populations.source(k) is not None]
        if not treated:
            self.model = None
            return self
        shifts = populations.mean[treated] - np.stack([source_mean(populations, populations.keys[i]) for i in treated])
        self.seen = populations.features[treated].any(axis=0)
        self.model = RidgeCV(self.ALPHAS, fit_intercept=False).fit(populations.features[treated], shifts)
        return self

    def predict(self, key: Population, features: np.ndarray) -> np.ndarray:
        if self.model is None or not features[self.seen].any():
            raise CannotPredict(f"nothing in training resembles condition {key.condition!r}")
        return source_mean(self.populations, key) + self.model.predict(features[None])[0]
