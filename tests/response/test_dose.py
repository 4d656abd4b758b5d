"""Doses that were never seen lie between those around them, in the same context and in others."""

from __future__ import annotations

import numpy as np
import pytest

from made_populations import answer, ask, populations, source
from squidiff.response.dose import DoseInterpolation
from squidiff.response.populations import Populations
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor


def test_a_dose_between_two_is_interpolated_in_its_own_direction() -> None:
    """Activation at strengths 1 and 2, knock-down at 2 with another effect: neither is taken for the other."""
    effect = {1.0: 3.0, 2.0: 4.0, -2.0: -9.0}
    features = {f"g @ {s:g}": np.array([s, s]) for s in effect}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.array([10.0])}
    means |= {("", f"g @ {s:g}", None): np.array([10.0 + e]) for s, e in effect.items()}
    made = populations(means, features)
    for strength, expected in ((0.5, 11.5), (1.5, 13.5), (2.0, 14.0)):
        found = answer(DoseInterpolation(), made, ask("", "g @ x"), np.array([strength, strength]))
        assert found.item() == pytest.approx(expected)
    for strength in (2.5, -1.0, 0.0):  # beyond, seen at one strength alone, none
        with pytest.raises(CannotPredict, match="was not seen at doses around it"):
            answer(DoseInterpolation(), made, ask("", "g @ x"), np.array([strength, strength]))


def test_doses_of_a_knock_down_make_a_curve_of_their_own() -> None:
    effect = {-1.0: -2.0, -2.0: -6.0, 1.0: 50.0}
    features = {f"g @ {s:g}": np.array([s, s]) for s in effect}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.array([10.0])}
    means |= {("", f"g @ {s:g}", None): np.array([10.0 + e]) for s, e in effect.items()}
    made = populations(means, features)
    for strength, expected in ((-0.5, 9.0), (-1.5, 6.0), (-2.0, 4.0)):
        found = answer(DoseInterpolation(), made, ask("", "g @ x"), np.array([strength, strength]))
        assert found.item() == pytest.approx(expected)
    for strength in (-2.5, 0.5):  # beyond, seen at one strength alone
        with pytest.raises(CannotPredict, match="was not seen at doses around it"):
            answer(DoseInterpolation(), made, ask("", "g @ x"), np.array([strength, strength]))


def dosed() -> Populations:
    """Three contexts at strengths 1, 2 and 4 of one drug, whose effect saturates, and two without it."""
    rng = np.random.default_rng(0)
    effect, means = rng.gamma(1.0, size=12), {}
    features = {f"g @ {s:g}": np.array([s, s]) for s in (1.0, 2.0, 4.0)}
    for context in "abcde":
        control = rng.gamma(2.0, size=12)
        means[context, "", None] = control
        if context in "abc":
            of_context = effect * rng.uniform(0.8, 1.2, size=12)
            means |= {(context, name, None): control + of_context * s / (1 + s) for name, (s, _) in features.items()}
    means["e", "g @ 2", None] = means["e", "", None] + effect / 2
    return populations(means, features)


@pytest.mark.parametrize("context", ["d", "e"])  # e was given dose 2, which has its own mean
def test_between_doses_that_others_were_given_it_goes_from_one_answer_to_the_next(context: str) -> None:
    made = dosed()
    start, anchor = source(made, ask(context, "")), Anchor().fit(made)

    def told(condition: str, strength: float) -> tuple[np.ndarray, str]:
        return anchor.predict(ask(context, condition), np.array([strength, strength]), start)

    ends = {s: told(f"g @ {s:g}", s)[0] for s in (1.0, 2.0, 4.0)} | {0.0: start.mean}
    for low, high in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0)):
        for share in (0.1, 0.5, 1.0):
            found, name = told("g @ x", low + share * (high - low))
            assert name == "doses elsewhere"
            np.testing.assert_allclose(found, (1 - share) * ends[low] + share * ends[high], atol=1e-12)
    assert told("g @ x", 4.1)[1] == "dose shift"  # beyond those seen


def test_two_conditions_at_one_dose_are_told_apart_by_neither() -> None:
    features = {"g @ 1": np.array([1.0, 1.0]), "h @ 1": np.array([1.0, 1.0]), "g @ 2": np.array([2.0, 2.0])}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.array([1.0])}
    means |= {("", name, None): np.array([2.0 + i]) for i, name in enumerate(features)}
    with pytest.raises(CannotPredict, match="was not seen at doses around it"):
        answer(DoseInterpolation(), populations(means, features), ask("", "g @ x"), np.array([1.5, 1.5]))
