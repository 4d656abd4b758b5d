"""Additive: exact where effects add, whatever the order of the parts."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from made_populations import NO_FEATURES, answer, ask, populations
from squidiff.config import InputError
from squidiff.response.combination import Additive, LinearParts, MeanOfParts, MeasuredParts, RidgeParts
from squidiff.response.noise import CAUTIONS, risks
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
    made = single([4.0, 3.2], [3.0, 3.0], [3.0, 3.0], variance=0.1)  # three populations say nothing of each other
    n = made.n_cells
    noise = 0.1 / n[0] + (0.1 + 0.1 * n[1:] / (n[1:] - 1)) / (2 * n[1:])
    shifts = np.array([[1.0, 0.2], [0.0, 0.0]])
    told = [risks(shift, np.full(2, v)) for shift, v in zip(shifts, noise, strict=True)]
    caution = CAUTIONS[int(np.argmin(told[0] + np.mean(told, axis=0)))]
    expected = 3.0 + shifts[0] ** 3 / (shifts[0] ** 2 + caution * noise[0])
    np.testing.assert_allclose(answer(MeasuredParts(), made, ask("x", "A + B")), expected, rtol=1e-12)


def noisy_screen(seed: int) -> tuple[Populations, np.ndarray]:
    """Means of 100 control cells and as many of 20 parts of which each moves one gene in 50; and the truth of A + B."""
    rng, n_genes = np.random.default_rng(seed), 1000
    control, names = rng.uniform(1, 3, n_genes), ["", "A", "B", *(f"P{i}" for i in range(18))]
    effects = rng.uniform(0.5, 1, (len(names), n_genes)) * (rng.random((len(names), n_genes)) < 0.02)
    effects[0] = 0.0
    measured = control + effects + rng.normal(0, 0.1, effects.shape)
    made = populations({("x", name, None): row for name, row in zip(names, measured, strict=True)}, variance=1.0)
    return dataclasses.replace(made, n_cells=np.full(len(names), 100)), control + effects[1] + effects[2]


def errors_of_sums_and_measured_parts(made: Populations, true: np.ndarray, start: np.ndarray) -> list[float]:
    asked, source = ask("x", "A + B"), Source(ask("x", ""), start)
    guesses = [predictor.fit(made).predict(asked, NO_FEATURES, source) for predictor in (Additive(), MeasuredParts())]
    return [float(np.square(guess - true).mean()) for guess in guesses]


@pytest.mark.parametrize("seed", range(3))
def test_measured_parts_leave_a_fifth_of_the_error_of_sums(seed: int) -> None:
    """The noise of three means stands in a sum; here most of it is told apart, of the control cells' too."""
    made, true = noisy_screen(seed)
    of_sums, of_parts = errors_of_sums_and_measured_parts(made, true, made.mean[0])
    assert of_sums == pytest.approx(0.03, rel=0.2)
    assert of_parts < 0.2 * of_sums


def test_measured_parts_of_other_cells_than_those_of_training() -> None:
    """A second draw of the control cells is drawn to all; such as lie elsewhere keep what they differ in."""
    made, true = noisy_screen(0)
    again = made.mean[0] + np.random.default_rng(1).normal(0, 0.1, len(true))
    of_sums, of_parts = errors_of_sums_and_measured_parts(made, true, again)
    assert of_parts < 0.3 * of_sums
    of_sums, of_parts = errors_of_sums_and_measured_parts(made, true + 10.0, made.mean[0] + 10.0)
    assert of_parts < of_sums  # falls are in proportion, so what noise is left in them is five times as large there


def test_a_part_of_few_cells_is_filtered_by_its_own_noise() -> None:
    made, true = noisy_screen(0)
    n_cells, mean = made.n_cells.copy(), made.mean.copy()
    n_cells[1] = 2  # fewer than a population that others are predicted from has
    mean[1] += np.random.default_rng(2).normal(0, np.sqrt(0.5), len(true))
    few = dataclasses.replace(made, n_cells=n_cells, mean=mean)
    of_sums, of_parts = errors_of_sums_and_measured_parts(few, true, mean[0])
    assert of_parts < 0.1 * of_sums


def test_one_cell_that_shows_a_gene_is_no_sign_of_a_shift() -> None:
    """Over all populations such a gene hardly varies: measured by that alone, one cell of 100 would stand far out."""
    made, _ = noisy_screen(0)
    mean, variance = made.mean.copy(), made.variance.copy()
    mean[:, 0], variance[:, 0] = 0.0, 0.0
    mean[1, 0], variance[1, 0] = 2.0 / 100, 2.0**2 / 100
    rare = dataclasses.replace(made, mean=mean, variance=variance)
    assert answer(MeasuredParts(), rare, ask("x", "A + B"))[0] < mean[1, 0] / 2


def test_control_cells_of_another_time_stay_as_they_were_measured() -> None:
    means = {("x", "", 0.0): np.full(50, 3.0)} | {("x", name, 1.0): np.full(50, 3.1) for name in "ABCDE"}
    made = populations(means, variance=1.0)
    found = answer(MeasuredParts(), made, ask("x", "A + B", 1.0))
    assert 3.0 <= found[0] < 3.05  # five means that agree would draw it, and so all shifts, away


def test_measured_parts_of_negative_means_add_as_they_are() -> None:
    made = single([-2.0], [-4.0], [-1.0])
    assert answer(MeasuredParts(), made, ask("x", "A + B")).item() == pytest.approx(-5.0)


def noisy_pairs(seed: int = 0) -> tuple[Populations, dict[str, np.ndarray]]:
    """All pairs of seven parts, each with noise as large as a part's effect, and the effects; no part alone."""
    rng = np.random.default_rng(seed)
    effects = {name: rng.normal(size=80) for name in "ABCDEFG"}
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): np.zeros(80)}
    for one, other in itertools.combinations(effects, 2):
        means["a", f"{one} + {other}", None] = effects[one] + effects[other] + rng.normal(size=80)
    return populations(means), effects


def test_a_ridge_of_parts_errs_less_than_least_squares_where_there_is_noise() -> None:
    """Recorded: parts that were seen in combinations alone kept all the noise of these."""
    made, effects = noisy_pairs()
    errors = np.zeros(2)
    for one, other in itertools.combinations("ABCDEFG", 2):
        truth, asked = effects[one] + effects[other], ask("a", f"{one} + {other}")
        for k, predictor in enumerate((LinearParts(), RidgeParts())):
            errors[k] += np.square(answer(predictor, made, asked) - truth).sum()
    assert errors[1] < 0.95 * errors[0]


def test_a_ridge_of_parts_does_not_depend_on_what_was_asked_before() -> None:
    made = noisy_pairs()[0]
    start, predictor = Source(ask("a", ""), made.mean[0]), RidgeParts().fit(made)
    asked = [ask("a", "A + B"), ask("a", "C + G"), ask("a", "A + B + C")]
    first = [predictor.predict(key, NO_FEATURES, start) for key in asked]
    for key, mean in zip(asked, first, strict=True):
        np.testing.assert_array_equal(answer(RidgeParts(), made, key), mean)
    with pytest.raises(InputError, match="'Z' was not seen in context 'a'"):
        predictor.predict(ask("a", "A + Z"), NO_FEATURES, start)
