"""The mean under a combination, from its parts seen singly."""

from __future__ import annotations

from collections import Counter

import numpy as np

from squidiff.config import PART_SEPARATOR
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, beyond_noise


class Additive:
    """The source mean plus the shift of every part, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> Additive:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return np.asarray(source.mean + _shifts_of_parts(self.populations, key).sum(axis=0))


class MeasuredParts:
    """As `Additive`, of what each part's shift shows beyond the noise of few cells; falls act one upon the other.

    Of two parts of which each leaves a third of a gene, both leave a ninth: a gene so never falls below 0. Rises add.
    Where means are negative, falls add as well.
    """

    def fit(self, populations: Populations) -> MeasuredParts:
        self.populations, self.in_proportion = populations, populations.mean.min() >= 0
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        found = _parts_alone(self.populations, key)
        shifts = beyond_noise(self.populations.shifts(found), self.populations.noise(found))
        if not self.in_proportion:
            return np.asarray(source.mean + shifts.sum(axis=0))
        before = self.populations.mean[self.populations.sources[found]]
        falls = np.divide(np.minimum(shifts, 0.0), before, out=np.zeros_like(shifts), where=before > 0)
        return np.asarray(source.mean * (1 + falls).prod(axis=0) + np.maximum(shifts, 0.0).sum(axis=0))


class MeanOfParts:
    """The source mean plus the mean shift of the parts, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> MeanOfParts:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return np.asarray(source.mean + _shifts_of_parts(self.populations, key).mean(axis=0))


class LinearParts:
    """The source mean plus the parts' effects by least squares over all that the same context saw, singly or combined.

    A part so counts that was seen only within combinations, where these tell its effect from that of the others.
    """

    def fit(self, populations: Populations) -> LinearParts:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        parts = _parts(key)
        seen = [
            i for i in self.populations.treated_at.get((key.context, key.time), []) if self.populations.keys[i] != key
        ]
        counts = [Counter(self.populations.keys[i].condition.split(PART_SEPARATOR)) for i in seen]
        names = sorted(set().union(*counts))
        if not set(parts) <= set(names):
            raise CannotPredict(f"{sorted(set(parts) - set(names))[0]!r} was not seen in context {key.context!r}")
        design = np.array([[of[name] for name in names] for of in counts], dtype=float)
        wanted = np.array([parts.count(name) for name in names], dtype=float)
        weights = wanted @ np.linalg.pinv(design)  # how much each seen shift counts: the effects of least norm
        if not np.allclose(weights @ design, wanted, atol=1e-8):
            raise CannotPredict(f"what context {key.context!r} saw does not tell the parts of {key.condition!r} apart")
        return np.asarray(source.mean + weights @ self.populations.shifts(seen))


def _parts(key: Population) -> list[str]:
    parts = key.condition.split(PART_SEPARATOR)
    if len(parts) < 2:
        raise CannotPredict(f"{key.condition!r} is not a combination")
    return parts


def _shifts_of_parts(populations: Populations, key: Population) -> np.ndarray:
    """Of the parts seen singly in the context, parts x G."""
    return populations.shifts(_parts_alone(populations, key))


def _parts_alone(populations: Populations, key: Population) -> list[int]:
    """The populations of the parts seen singly in the context."""
    found = []
    for part in _parts(key):
        i = populations.find(key._replace(condition=part))
        if i is None or populations.sources[i] < 0:
            raise CannotPredict(f"{part!r} was not seen alone in context {key.context!r}")
        found.append(i)
    return found
