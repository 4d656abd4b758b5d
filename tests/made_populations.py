"""Populations with chosen means, for the tests of the predictors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import Predictor

NO_FEATURES = np.zeros(1)


def populations(
    means: Mapping[tuple[str, str, float | None], object],
    features: Mapping[str, object] | None = None,
    has_control: bool = True,
    variance: float = 0.0,
) -> Populations:
    """(context, condition, time) -> mean (G,), and condition -> features (C,), which are 0 where not given."""
    features = features or {}
    size = len(next(iter(features.values()), NO_FEATURES))  # type: ignore[arg-type]
    keys = tuple(Population(*key) for key in means)
    mean = np.array(list(means.values()), dtype=float)
    described = np.array([features.get(key.condition, np.zeros(size)) for key in keys], dtype=float)
    n_cells = np.arange(10, 10 + len(keys))  # unequal, so that a mean weighted by cells would show
    variances = np.full_like(mean, variance)
    return Populations(keys, described, mean, np.zeros_like(mean), n_cells, has_control, variances)


def ask(context: str, condition: str, time: float | None = None) -> Population:
    return Population(context, condition, time)


def source(made: Populations, key: Population) -> Source:
    """The cells that a prediction of `key` starts from, among the populations themselves."""
    found = made.source(key)
    assert found is not None
    return Source(made.keys[found], made.mean[found])


def answer(predictor: Predictor, made: Populations, key: Population, features: np.ndarray = NO_FEATURES) -> np.ndarray:
    """The predictor, fitted on populations and asked for one more that starts from one of them."""
    return predictor.fit(made).predict(key, features, source(made, key))
