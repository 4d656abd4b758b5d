"""Ridge: the closed form, with its strength chosen by the leave-one-out error, on linear data."""

from __future__ import annotations

import numpy as np
import pytest
from made_populations import ask, populations

from squidiff.config import InputError
from squidiff.response.embedding import RidgeShift
from squidiff.response.populations import Populations

N_CONDITIONS, N_FEATURES, N_GENES = 30, 5, 7


def linear_data(noise: float) -> tuple[Populations, np.ndarray, np.ndarray, np.ndarray]:
    """Shifts = features W + noise, in one context; also the features, the shifts and W."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(N_FEATURES, N_GENES))
    features = rng.normal(size=(N_CONDITIONS, N_FEATURES))
    shifts = features @ weights + noise * rng.normal(size=(N_CONDITIONS, N_GENES))
    control = rng.normal(size=N_GENES)
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): control, ("b", "", None): control + 5}
    means |= {("a", f"c{i}", None): control + shift for i, shift in enumerate(shifts)}
    made = populations(means, {f"c{i}": row for i, row in enumerate(features)})
    return made, features, shifts, weights


@pytest.mark.parametrize("noise", [1e-3, 0.1])
def test_unseen_features_are_predicted_to_within_the_noise(noise: float) -> None:
    made, _, _, weights = linear_data(noise)
    ridge = RidgeShift().fit(made)
    unseen = np.random.default_rng(1).normal(size=(50, N_FEATURES))
    own = made.mean[1]
    found = np.stack([ridge.predict(ask("b", "new"), row) for row in unseen])
    error = np.sqrt(np.mean((found - own - unseen @ weights) ** 2))
    # the weights' variance is noise^2 / 30 each, summed over 5 features of variance 1
    assert error < 2 * noise * np.sqrt(N_FEATURES / N_CONDITIONS)


def test_it_equals_the_normal_equations_at_the_best_of_the_strengths() -> None:
    """W = (F'F + a)^-1 F'Y, and a is the one whose n models that leave one condition out err least."""
    made, features, shifts, _ = linear_data(noise=2.0)

    def solve(f: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
        return np.linalg.solve(f.T @ f + alpha * np.eye(N_FEATURES), f.T @ y)

    def left_out(alpha: float) -> float:
        rest = [np.arange(N_CONDITIONS) != i for i in range(N_CONDITIONS)]
        guesses = [features[i] @ solve(features[keep], shifts[keep], alpha) for i, keep in enumerate(rest)]
        return float(np.mean((np.stack(guesses) - shifts) ** 2))

    best = min(RidgeShift.ALPHAS, key=left_out)
    assert RidgeShift.ALPHAS[0] < best < RidgeShift.ALPHAS[-1]  # so noisy that the choice matters
    asked = np.linspace(-1, 1, N_FEATURES)
    found = RidgeShift().fit(made).predict(ask("a", "new"), asked)
    np.testing.assert_allclose(found, made.mean[0] + asked @ solve(features, shifts, best), rtol=1e-9)


def test_there_is_no_intercept_so_twice_the_features_shift_twice() -> None:
    made, features, _, _ = linear_data(noise=0.5)
    ridge = RidgeShift().fit(made)
    own = made.mean[0]
    once, twice = (ridge.predict(ask("a", "new"), k * features[3]) - own for k in (1.0, 2.0))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-10)


def test_features_that_no_training_condition_has_are_refused() -> None:
    features = {"A": [1.0, 0.0, 0.0], "B": [0.0, 1.0, 0.0], "A + B": [1.0, 1.0, 0.0]}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): [0.0, 0.0]}
    means |= {("", name, None): [row[0], 2 * row[1]] for name, row in features.items()}
    ridge = RidgeShift().fit(populations(means, features))
    for row in ([0.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="nothing in training resembles condition 'C'"):
            ridge.predict(ask("", "C"), np.array(row))
    np.testing.assert_allclose(ridge.predict(ask("", "A + A"), np.array([2.0, 0.0, 0.0])), [2.0, 0.0], atol=0.01)


@pytest.mark.parametrize(
    "means",
    [
        {("", "", 1.0): [0.0], ("", "", 2.0): [1.0]},  # no condition at all
        {("a", "X", None): [0.0], ("b", "", None): [1.0]},  # none with control cells
    ],
)
def test_without_a_shift_to_learn_from_it_refuses(means: dict[tuple[str, str, float | None], object]) -> None:
    ridge = RidgeShift().fit(populations(means, {"X": [1.0]}))
    with pytest.raises(InputError, match="nothing in training resembles condition 'X'"):
        ridge.predict(ask("b", "X"), np.array([1.0]))


def test_one_treated_population_is_enough() -> None:
    made = populations({("", "", None): [0.0, 1.0], ("", "X", None): [2.0, 1.0]}, {"X": [1.0]})
    found = RidgeShift().fit(made).predict(ask("", "X @ 3"), np.array([0.5]))
    # (F'F + a)^-1 F'Y with one row is 2 / (1 + a), between no shift and the whole of it
    assert 0.0 <= found[0] <= 1.0
    assert found[1] == pytest.approx(1.0)
