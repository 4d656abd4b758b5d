"""The mean under a condition that was never seen, from conditions that are described much alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from squidiff.config import PART_SEPARATOR
from squidiff.response.embedding import (
    ALPHAS,
    MAX_ROWS,
    MIN_CONDITIONS,
    N_FOLDS,
    common_shift,
    described_alike,
    errors_of_unseen,
    first_best,
    folds_of_unseen,
)
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, drawn

BANDWIDTHS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
"""In median distances between conditions."""
MAX_FITTED = 2000
"""Populations that are learned from; as many squared are held."""


class _Choice(NamedTuple):
    bandwidth: float
    goes_with_strength: bool
    penalty: float


class KernelShift:
    """Source mean plus a smooth function of what describes a single condition: b m + k(f, F) (k(F, F) + a)^-1 Y.

    As `RidgeShift`, with another kernel than products of features: of strengths s and of what describes one unit of
    strength, v, it is s s' exp(-|v - v'|^2 / 2h^2). What lies near answers alike, beyond the common effect m; what lies
    far from everything has m alone. h is one of BANDWIDTHS; it, the penalty a and what m goes with are chosen as there,
    or given as a `choice`.
    """

    def __init__(self, choice: _Choice | None = None) -> None:
        self.choice = choice

    def fit(self, populations: Populations) -> KernelShift:
        single = [i for i in populations.treated if PART_SEPARATOR not in populations.keys[i].condition]
        rows = drawn(single, MAX_FITTED)
        self.features = populations.features[rows].astype(np.float64)
        self.can_predict = len(np.unique(described_alike(self.features[:, 1:]))) >= MIN_CONDITIONS
        if self.can_predict:
            self.unit = _median_distance(self.features)
            shifts = populations.shifts(rows)
            conditions = [populations.keys[i].condition for i in rows]
            self.choice = self.choice or self._choose(shifts, conditions)
            self.common = common_shift(self._base(self.features), shifts)
            kernel = self._kernel(self.features, self.features, self.choice.bandwidth)
            rest = shifts - self._base(self.features) * self.common
            self.weights = np.linalg.solve(kernel + self.choice.penalty * np.eye(len(rows)), rest)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if not self.can_predict or self.choice is None or not features[1:].any():
            raise CannotPredict(f"too few conditions are described to place {key.condition!r} among them")
        if PART_SEPARATOR in key.condition:
            raise CannotPredict(
                f"what describes {key.condition!r} is the sum of its parts, which lies near no condition"
            )
        asked = features[None].astype(np.float64)
        near = self._kernel(asked, self.features, self.choice.bandwidth) @ self.weights
        return np.asarray(source.mean + (self._base(asked) * self.common + near)[0])

    def _base(self, features: np.ndarray) -> np.ndarray:
        assert self.choice is not None  # made before anything is predicted
        return features[:, :1] if self.choice.goes_with_strength else np.ones((len(features), 1))

    def _choose(self, shifts: np.ndarray, conditions: list[str]) -> _Choice:
        rows = drawn(range(len(conditions)), MAX_ROWS)
        features, shifts = self.features[rows], shifts[rows]
        folds = folds_of_unseen(features[:, 1:], [conditions[i] for i in rows], N_FOLDS)
        strength, squared = features[:, :1], _squared_distance(features, features)
        kernels = (strength * strength.T * self._near(squared, h) for h in BANDWIDTHS)
        errors = np.stack([errors_of_unseen(kernel, strength, shifts, folds) for kernel in kernels])
        h, base, alpha = np.unravel_index(first_best(errors), errors.shape)
        return _Choice(BANDWIDTHS[h], base == 0, ALPHAS[alpha])

    def _kernel(self, features: np.ndarray, others: np.ndarray, bandwidth: float) -> np.ndarray:
        return features[:, :1] * others[:, 0] * self._near(_squared_distance(features, others), bandwidth)

    def _near(self, squared: np.ndarray, bandwidth: float) -> np.ndarray:
        return np.asarray(np.exp(-squared / (2 * (bandwidth * self.unit) ** 2)))


def _squared_distance(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of what describes a unit of strength."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(_of_one_unit(features), _of_one_unit(others), "sqeuclidean"))


def _of_one_unit(features: np.ndarray) -> np.ndarray:
    """What describes a unit of strength, P x F, of features with the strength in front."""
    strength = features[:, :1]
    return np.divide(features[:, 1:], strength, out=np.zeros_like(features[:, 1:]), where=strength != 0)


def _median_distance(features: np.ndarray) -> float:
    """Of two conditions that are not described alike."""
    from scipy.spatial.distance import pdist

    described = _of_one_unit(features[drawn(range(len(features)), MAX_ROWS)])
    distance = pdist(described)
    return float(np.median(distance[distance > 0])) if (distance > 0).any() else 1.0
