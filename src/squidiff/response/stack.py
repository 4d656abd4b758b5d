"""The anchor: for each population asked for, the predictor of its mean that training has most to say for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from squidiff.config import InputError
from squidiff.response.combination import Additive
from squidiff.response.embedding import MeanOfConditions, RidgeShift
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import (
    CannotPredict,
    MeanShift,
    MeanTreated,
    NoChange,
    Predictor,
    TrainingMean,
    WeightedShift,
)
from squidiff.response.time import TimeInterpolation, TimeShift

BASELINES: dict[str, Callable[[], Predictor]] = {
    "no change": NoChange,
    "training mean": TrainingMean,
    "mean treated": MeanTreated,
    "mean shift": MeanShift,
    "weighted shift": WeightedShift,
    "proportional shift": lambda: WeightedShift(in_proportion=True),
    "mean of conditions": MeanOfConditions,
    "additive": Additive,
    "ridge": RidgeShift,
    "time interpolation": TimeInterpolation,
    "time shift": TimeShift,
}
"""Every predictor by its name, in the order in which they are shown."""

ORDER = ("additive", "time interpolation", "proportional shift", "time shift", "ridge")
"""What is asked for a population that training did not see, until one can answer: first what the same context says,
then the same condition elsewhere, last what resembles the condition."""


class Anchor:
    """The mean of any population that training says something about: its own where it was seen, else by ORDER."""

    def fit(self, populations: Populations) -> Anchor:
        self.populations = populations
        self._fitted: dict[str, Predictor] = {}
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> tuple[np.ndarray, str]:
        """The mean (G,) and where it is from. Raises InputError when training says nothing of it."""
        found = self.populations.find(key)
        if found is not None:
            return self.populations.mean[found], "seen in training"
        if source.key == key:
            return source.mean, "no change"
        reasons = []
        for name in ORDER:
            try:
                return self._predictor(name).predict(key, features, source), name
            except CannotPredict as reason:
                reasons.append(str(reason))
        raise InputError(f"{key} cannot be predicted: {'; '.join(reasons)}")

    def _predictor(self, name: str) -> Predictor:
        if name not in self._fitted:  # fitted when first asked: loading a model must not wait for what it will not use
            self._fitted[name] = BASELINES[name]().fit(self.populations)
        return self._fitted[name]
