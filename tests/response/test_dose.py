"""Doses that were never seen lie between those around them, in the same context and in others."""

from __future__ import annotations

import numpy as np
import pytest

from made_populations import answer, ask, populations, source
from squidiff.response.dose import DoseInterpolation, HighestDose
from squidiff.response.populations import Population, Populations, Source
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
    found, name = told("g @ x", 4.1)  # beyond those that anyone was given
    share = 0.0 if name == "highest dose" else float(name.partition("dose in proportion ")[2].rstrip("%")) / 100
    assert name.startswith("highest dose")
    np.testing.assert_allclose(found, start.mean + (1 + share * 0.1 / 4) * (ends[4.0] - start.mean), atol=1e-3)


def curves(power: float) -> Populations:
    """A drug at doses of strength 1 and 2, and five at 1, 2 and 4, in one context: each goes with strength ^ power."""
    rng = np.random.default_rng(1)
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.zeros(30)}
    features = {}
    for k, effect in enumerate(rng.normal(size=(6, 30))):
        for s in (1.0, 2.0, 4.0)[: 2 if k == 0 else 3]:
            features[f"g{k} @ {s:g}"] = np.array([s, *(s * (np.arange(6) == k))])
            means["", f"g{k} @ {s:g}", None] = effect * s**power + 0.05 * rng.normal(size=30)
    return populations(means, features)


@pytest.mark.parametrize(("power", "lead"), [(0.0, "highest dose"), (1.0, "dose in proportion")])
def test_beyond_the_highest_dose_it_goes_on_as_others_did_at_theirs(power: float, lead: str) -> None:
    made = curves(power)
    asked = np.array([4.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    start, before = source(made, ask("", "")), made.mean[made.keys.index(ask("", "g0 @ 2"))]
    mean, name = Anchor().fit(made).predict(ask("", "g0 @ 4"), asked, start)
    assert name.startswith(lead)
    np.testing.assert_allclose(mean, before * 2.0**power, atol=0.15)


def highest(made: Populations, condition: str, strength: float, *, in_proportion: bool) -> float:
    def seen(key: Population, features: np.ndarray, start: Source) -> np.ndarray:
        return made.mean[made.keys.index(key)]

    asked = ask("", condition), np.array([strength, strength]), source(made, ask("", ""))
    return float(HighestDose(seen, in_proportion).fit(made).predict(*asked).item())


def test_the_highest_dose_stands_for_higher_ones_alone() -> None:
    features = {f"g @ {s:g}": np.array([s, s]) for s in (1.0, 2.0, -3.0)}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.array([10.0])}
    means |= {("", name, None): np.array([10.0 + s]) for name, (s, _) in features.items()}
    made = populations(means, features)
    for strength in (2.5, 100.0):
        assert highest(made, "g @ x", strength, in_proportion=False) == 12.0
        assert highest(made, "g @ x", strength, in_proportion=True) == pytest.approx(10.0 + strength)
    assert highest(made, "g @ x", -6.0, in_proportion=True) == pytest.approx(4.0)
    for strength, reason in ((1.5, "as large"), (2.0, "as large"), (-3.0, "as large"), (0.0, "at any strength")):
        with pytest.raises(CannotPredict, match=reason):
            highest(made, "g @ x", strength, in_proportion=False)
    assert highest(made, "g @ x", -1.0, in_proportion=True) == pytest.approx(9.0)
    assert highest(made, "g @ 2", 2.0, in_proportion=True) == pytest.approx(12.0)  # of what it is not, 1
    assert highest(made, "g @ 2", 2.0, in_proportion=False) == 11.0


def test_a_dose_below_the_only_one_is_on_a_line_from_none_to_it() -> None:
    """Recorded: a ridge through all drugs forgot what this one did: 0.2 was said at a dose of 9.9, where 10 had 6.2."""
    rng = np.random.default_rng(2)
    effects, features = rng.normal(size=(30, 40)), {}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.zeros(40)}
    for k, effect in enumerate(effects):
        features[f"g{k} @ 2"] = np.array([2.0, *(2.0 * (np.arange(30) == k))])
        means["", f"g{k} @ 2", None] = effect
    made = populations(means, features)
    for strength in (0.5, 1.99):
        asked = np.array([strength, strength, *np.zeros(29)])
        mean, name = Anchor().fit(made).predict(ask("", "g0 @ x"), asked, source(made, ask("", "")))
        assert name == "dose in proportion"
        np.testing.assert_allclose(mean, effects[0] * strength / 2, atol=1e-6)


def test_opposite_directions_together_have_no_dose_to_go_by() -> None:
    """Recorded: their strengths cancel, and a highest one of 0 was divided by."""
    features = {"a @ 1": [1.0, 1.0, 0.0], "b @ 1": [-1.0, 0.0, -1.0]}
    features |= {f"a @ {s} + b @ {s}": [0.0, float(s), -float(s)] for s in (1, 9)}
    described = {name: np.array(row) for name, row in features.items()}
    rng = np.random.default_rng(0)
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.zeros(20)}
    means |= {("", name, None): rng.normal(size=20) for name in described}
    made = populations(means, described)
    for asked in ([0.0, 99.0, -99.0], [2.0, 2.0, 0.0]):
        mean, _ = Anchor().fit(made).predict(ask("", "a @ x"), np.array(asked), source(made, ask("", "")))
        assert np.isfinite(mean).all()


def test_two_conditions_at_one_dose_are_told_apart_by_neither() -> None:
    features = {"g @ 1": np.array([1.0, 1.0]), "h @ 1": np.array([1.0, 1.0]), "g @ 2": np.array([2.0, 2.0])}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.array([1.0])}
    means |= {("", name, None): np.array([2.0 + i]) for i, name in enumerate(features)}
    with pytest.raises(CannotPredict, match="was not seen at doses around it"):
        answer(DoseInterpolation(), populations(means, features), ask("", "g @ x"), np.array([1.5, 1.5]))
