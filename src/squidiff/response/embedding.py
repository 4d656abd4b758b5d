"""The mean under a condition that was never seen, from what describes it: fingerprints, embeddings, doses."""

from __future__ import annotations

import numpy as np

from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict


class MeanOfConditions:
    """The source mean plus the mean shift over the conditions seen: in the same context or, without any there, in all.

    A condition that many cells answer to alike is predicted well by what conditions do on average (Ahlmann-Eltze et
    al., Nature Methods 2025).
    """

    def fit(self, populations: Populations) -> MeanOfConditions:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        keys = self.populations.keys
        others = [i for i in self.populations.treated if keys[i] != key and keys[i].time == key.time]
        here = [i for i in others if keys[i].context == key.context]
        if not others or key.condition == "":
            raise CannotPredict("no condition was seen in training")
        return np.asarray(source.mean + _shifts_of(self.populations, here or others).mean(axis=0))


class RidgeShift:
    """Source mean plus a linear function of the condition's features, shrunk to what all conditions have in common.

    With s the total strength of a condition (its first feature) and f its other features, the shift is s m + B f: m is
    the mean effect of a unit of strength, by least squares, and B a ridge regression of what is left, its penalty
    chosen among ALPHAS by the closed-form leave-one-out error of scikit-learn's RidgeCV. No strength is no shift.
    """

    ALPHAS = tuple(10.0**k for k in range(-3, 7))

    def fit(self, populations: Populations) -> RidgeShift:
        from sklearn.linear_model import RidgeCV

        self.model = None
        treated = populations.treated
        strength, features = populations.features[treated, :1], populations.features[treated, 1:]
        if not features.any():
            return self
        shifts = _shifts_of(populations, treated)
        self.common = (strength * shifts).sum(axis=0) / max(float(np.square(strength).sum()), 1e-12)
        self.seen = features.any(axis=0)
        self.model = RidgeCV(self.ALPHAS, fit_intercept=False).fit(features, shifts - strength * self.common)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        strength, others = features[0], features[1:]
        if self.model is None or not others[self.seen].any():
            raise CannotPredict(f"nothing in training resembles condition {key.condition!r}")
        return np.asarray(source.mean + strength * self.common + self.model.predict(others[None])[0])


def _shifts_of(populations: Populations, indices: list[int]) -> np.ndarray:
    """Of populations that have a source, populations x G."""
    return np.asarray(populations.mean[indices] - populations.mean[populations.sources[indices]])
