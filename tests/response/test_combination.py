"""Additive: exact where effects add, whatever the order of the parts."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from made_populations import NO_FEATURES, answer, ask, populations
from squidiff.config import InputError
from squidiff.response.combination import Additive, LinearParts, MeanOfParts, MeasuredParts
from squidiff.response.populations import Populations, Source

OWN = np.array([1.0, 2.0, 3.0])
EFFECT = {"A": np.array([0.5, 0.0, -1.0]), "B": np.array([0.25, 4.0, 0.0]), "C @ 0.1": np.array([0.0, -1.0, 1.5])}


@pytest.fixture
def made() -> Populations:
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): OWN, ("b", "", None): 10 * OWN}
    means |= {("a", part, None): OWN + effect for part, effect in EFFECT.items()}
    means |= {("b", "A", None): 10 * OWN + 7.0, ("b", "D", None): OWN}
    return populations(means)


@pytest.mark.parametrize("parts", [c for n in (2, 3) for c in itertools.permutations(EFFECT, n)])
def test_effects_that_add_are_exact_in_any_order(made: Populations, parts: tuple[str, ...]) -> None:
    total, asked = sum(EFFECT[part] for part in parts), ask("a", " + ".join(parts))
    for predictor, effect in ((Additive(), total), (LinearParts(), total), (MeanOfParts(), total / len(parts))):
        np.testing.assert_allclose(answer(predictor, made, asked), OWN + effect, atol=1e-13)


def test_a_part_twice_counts_twice_and_the_context_is_its_own(made: Populations) -> None:
    np.testing.assert_allclose(answer(Additive(), made, ask("b", "A + A")), 10 * OWN + 14.0, atol=1e-13)


def test_singles_of_the_same_time_count() -> None:
    means: dict[tuple[str, str, float | None], object] = {("", "", t): [10 * t] for t in (1.0, 2.0)}
    means |= {("", part, t): [10 * t + t * effect] for part, effect in (("A", 1.0), ("B", 3.0)) for t in (1.0, 2.0)}
    made = populations(means)
    for t in (1.0, 2.0):
        assert answer(Additive(), made, ask("", "A + B", t)).tolist() == [10 * t + 4 * t]


@pytest.mark.parametrize("predictor", [Additive(), MeanOfParts(), LinearParts()])
def test_what_cannot_be_added_is_refused(made: Populations, predictor: Additive | MeanOfParts | LinearParts) -> None:
    with pytest.raises(InputError, match=r"^'A' is not a combination$"):
        answer(predictor, made, ask("a", "A"))
    with pytest.raises(InputError, match=r"'D' was not seen (alone )?in context 'a'"):
        answer(predictor, made, ask("a", "A + D"))


def seen_together(*conditions: str) -> Populations:
    """Effects that add, with A and B of EFFECT and E between them."""
    effect = {"A": EFFECT["A"], "B": EFFECT["B"], "E": np.array([3.0, -1.0, 2.0])}
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): OWN}
    means |= {("a", c, None): OWN + sum(effect[part] for part in c.split(" + ")) for c in conditions}
    return populations(means)


def test_parts_never_seen_alone_are_told_apart_by_combinations() -> None:
    made = seen_together("A", "A + B", "A + E")
    expected = OWN + EFFECT["B"] + np.array([3.0, -1.0, 2.0])
    np.testing.assert_allclose(answer(LinearParts(), made, ask("a", "B + E")), expected, atol=1e-13)
    with pytest.raises(InputError, match="what context 'a' saw does not tell the parts of 'A \\+ E' apart"):
        answer(LinearParts(), seen_together("A + B", "B + E"), ask("a", "A + E"))


def test_the_effects_of_parts_are_those_of_least_squares() -> None:
    from sklearn.linear_model import LinearRegression

    rng, names = np.random.default_rng(0), ["A", "B", "C", "D"]
    conditions = [*names, *(" + ".join(pair) for pair in itertools.combinations(names, 2) if pair != ("A", "C"))]
    shifts = rng.normal(size=(len(conditions), 3))
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): OWN}
    means |= {("a", c, None): OWN + shift for c, shift in zip(conditions, shifts, strict=True)}
    design = np.array([[name in c for name in names] for c in conditions], dtype=float)
    effects = LinearRegression(fit_intercept=False).fit(design, shifts).coef_.T
    found = answer(LinearParts(), populations(means), ask("a", "A + C"))
    np.testing.assert_allclose(found, OWN + effects[0] + effects[2], atol=1e-12)


def test_a_combination_that_was_seen_says_nothing_of_itself() -> None:
    made = seen_together("A", "B", "A + B")
    moved = made.mean.copy()
    moved[-1] += 100.0
    found = answer(LinearParts(), dataclasses.replace(made, mean=moved), ask("a", "A + B"))
    np.testing.assert_allclose(found, OWN + EFFECT["A"] + EFFECT["B"], atol=1e-13)


def test_other_cells_to_start_from_keep_the_shifts(made: Populations) -> None:
    """The source may be other control cells than those of training."""
    found = Additive().fit(made).predict(ask("a", "A + B"), NO_FEATURES, Source(ask("a", ""), OWN + 5.0))
    np.testing.assert_allclose(found, OWN + 5.0 + EFFECT["A"] + EFFECT["B"], atol=1e-14)


def single(a: list[float], b: list[float], control: list[float], variance: float = 0.0) -> Populations:
    means = {("x", "", None): control, ("x", "A", None): a, ("x", "B", None): b}
    return populations(means, variance=variance)  # of 10, 11 and 12 cells


def test_measured_parts_add_rises_and_multiply_falls() -> None:
    made = single([5.0, 1.0, 1.0, 4.0], [4.0, 1.0, 5.0, 0.0], [3.0, 3.0, 3.0, 4.0])
    both = answer(MeasuredParts(), made, ask("x", "A + B"))
    np.testing.assert_allclose(both, [6.0, 3.0 / 9, 3.0 / 3 + 2.0, 0.0], atol=1e-12)


def test_of_measured_parts_what_is_noise_is_left_out() -> None:
    made = single([4.0, 3.2], [3.0, 3.0], [3.0, 3.0], variance=0.1)
    noise = 0.1 * (1 / 10 + 1 / 11)
    expected = [3.0 + s * (s * s / noise) / (s * s / noise + 1) for s in (1.0, 0.2)]
    np.testing.assert_allclose(answer(MeasuredParts(), made, ask("x", "A + B")), expected, rtol=1e-12)


def test_measured_parts_of_negative_means_add_as_they_are() -> None:
    made = single([-2.0], [-4.0], [-1.0])
    assert answer(MeasuredParts(), made, ask("x", "A + B")).item() == pytest.approx(-5.0)
