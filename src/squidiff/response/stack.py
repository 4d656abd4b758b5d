"""The anchor: for each population asked for, the predictor that the training populations themselves recommend."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from squidiff.config import InputError
from squidiff.response.combination import Additive
from squidiff.response.embedding import RidgeShift
from squidiff.response.populations import Population, Populations
from squidiff.response.shift import CannotPredict, MeanShift, MeanTreated, NoChange, Predictor, TrainingMean
from squidiff.response.time import TimeInterpolation

BASELINES: dict[str, Callable[[], Predictor]] = {
    "no change": NoChange,
    "training mean": TrainingMean,
    "mean treated": MeanTreated,
    "mean shift": MeanShift,
    "weighted shift": lambda: MeanShift(bandwidth=1.0),
    "additive": Additive,
    "ridge": RidgeShift,
    "time interpolation": TimeInterpolation,
}
"""Every predictor by its name, in the order in which they are shown."""

SHIFTS = ("mean shift", "weighted shift")
"""The two that leaving one context out chooses between: here the nearest context knows best, there all do."""
OTHERWISE = ("additive", "time interpolation", "ridge")
"""Where no context has seen the condition, in this order."""


class Anchor:
    """The mean of any population that training says something about.

    Seen in training: its own mean. Its condition seen in other contexts: one of the two shifts, whichever predicted the
    training contexts better when each was left out. Else: additive, ridge or time interpolation, the first that can.
    """

    def fit(self, populations: Populations) -> Anchor:
        self.populations = populations
        self._fitted: dict[str, Predictor] = {}
        self.shift = self._choose_shift()
        return self

    def predict(self, key: Population, features: np.ndarray) -> tuple[np.ndarray, str]:
        """The mean (G,) and the name of its predictor. Raises InputError when training says nothing of it."""
        found = self.populations.find(key)
        if found is not None:
            return self.populations.mean[found], "seen in training"
        reasons = []
        for name in (self.shift, *OTHERWISE):
            try:
                return self._predictor(name).predict(key, features), name
            except CannotPredict as reason:
                reasons.append(str(reason))
        raise InputError(f"{key} cannot be predicted: {'; '.join(reasons)}")

    def _predictor(self, name: str) -> Predictor:
        if name not in self._fitted:  # fitted when first asked: loading a model must not wait for what it will not use
            self._fitted[name] = BASELINES[name]().fit(self.populations)
        return self._fitted[name]

    def _choose_shift(self) -> str:
        """A shift never looks at the treated cells of its own context, so each guess here leaves that context out."""
        errors = dict.fromkeys(SHIFTS, 0.0)
        for key, features, mean in zip(
            self.populations.keys, self.populations.features, self.populations.mean, strict=True
        ):
            try:
                guesses = {name: self._predictor(name).predict(key, features) for name in SHIFTS}
            except CannotPredict:
                continue
            for name, guess in guesses.items():
                errors[name] += float(np.square(guess - mean).mean())
        return min(SHIFTS, key=errors.__getitem__)
