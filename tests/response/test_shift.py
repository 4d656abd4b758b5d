"""Shifts from other contexts: exact where all agree, weighted by distance where they do not."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from made_populations import answer, ask, populations
from squidiff.config import InputError
from squidiff.response.populations import Populations
from squidiff.response.shift import (
    BANDWIDTHS,
    MeanShift,
    MeanTreated,
    NoChange,
    Predictor,
    TwoWay,
    WeightedShift,
    drawn,
    likelihood,
)

CONTROL = {"a": [0.0, 1.0, 4.0], "b": [3.0, 1.0, 0.0], "c": [0.0, 5.0, 1.0], "new": [1.0, 2.0, 2.0]}
SHIFT = {"a": [1.0, 0.0, 2.0], "b": [-1.0, 3.0, 0.0], "c": [0.5, 0.5, -4.0]}


def shifted(shifts: dict[str, list[float]]) -> Populations:
    """Control cells of every context; cells under X of those that a shift is given for."""
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): mean for c, mean in CONTROL.items()}
    means |= {(c, "X", None): np.add(CONTROL[c], shift) for c, shift in shifts.items()}
    return populations(means)


def predicted(predictor: Predictor, made: Populations, context: str = "new", condition: str = "X") -> np.ndarray:
    return answer(predictor, made, ask(context, condition))


@pytest.mark.parametrize("predictor", [MeanShift(), WeightedShift()])
def test_a_shift_that_all_contexts_share_is_exact(predictor: Predictor) -> None:
    shift = [0.5, -1.0, 2.0]
    made = shifted(dict.fromkeys("abc", shift))
    np.testing.assert_allclose(predicted(predictor, made), np.add(CONTROL["new"], shift), atol=1e-14)


def test_in_the_mean_shift_each_context_counts_once() -> None:
    expected = np.add(CONTROL["new"], np.mean([SHIFT[c] for c in "abc"], axis=0))
    np.testing.assert_allclose(predicted(MeanShift(), shifted(SHIFT)), expected, atol=1e-14)


def by_hand(
    bandwidth: float, contexts: str, asked: str, shifts: dict[str, list[float]], training: str = "abc"
) -> np.ndarray:
    """The weighted shift by one bandwidth in median distances of training contexts, as its docstring says it."""

    def distance(one: str, other: str) -> float:
        return sum((x - y) ** 2 for x, y in zip(CONTROL[one], CONTROL[other], strict=True)) ** 0.5

    unit = np.median([distance(one, other) for one, other in itertools.combinations(training, 2)])
    weight = {c: np.exp(-distance(c, asked) / (bandwidth * unit)) for c in contexts}
    return CONTROL[asked] + sum(weight[c] * np.array(shifts[c]) for c in contexts) / sum(weight.values())


@pytest.mark.parametrize(
    "shifts",
    [
        {"a": [1.0, 0.0, 0.0], "b": [-1.0, 0.0, 0.0], "c": [1.0, 0.2, 0.0]},
        {"a": [1.0, 0.0, 0.0], "b": [1.0, 0.0, 0.0], "c": [-1.0, 0.0, 0.0]},
        SHIFT,
    ],
)
def test_bandwidths_count_by_how_they_predict_the_contexts_left_out(shifts: dict[str, list[float]]) -> None:
    errors = np.array(
        [
            sum(np.square(by_hand(h, "abc".replace(c, ""), c, shifts) - CONTROL[c] - shifts[c]).mean() for c in "abc")
            for h in BANDWIDTHS
        ]
    )
    weights = errors ** (-3 * 5.0)  # three populations, of ten directions each
    weights /= weights.sum()
    found = predicted(WeightedShift(), shifted(shifts))
    expected = weights @ np.array([by_hand(h, "abc", "new", shifts) for h in BANDWIDTHS])
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_much_evidence_leaves_the_best_bandwidth_alone() -> None:
    """Two groups of contexts that answer in opposite ways: whoever asks the far group is always wrong."""
    at = {f"{group}{i}": (50.0 * (group == "q") + 0.1 * i) for group in "pq" for i in range(4)}
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): [x, 1.0] for c, x in at.items()}
    means |= {(c, "X", None): [x, 2.0 if c[0] == "p" else 0.0] for c, x in at.items()}
    made = populations({**means, ("new", "", None): [0.05, 1.0]})
    np.testing.assert_allclose(predicted(WeightedShift(), made), [0.05, 2.0], atol=1e-6)


def test_where_nothing_speaks_for_one_bandwidth_the_predictions_of_all_are_averaged() -> None:
    """With two contexts, leaving one out leaves one, which every bandwidth follows alike."""
    shifts = {c: SHIFT[c] for c in "ab"}
    expected = np.mean([by_hand(h, "ab", "new", shifts, "ab") for h in BANDWIDTHS], axis=0)
    np.testing.assert_allclose(predicted(WeightedShift(), shifted(shifts)), expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_weights_do_not_depend_on_the_unit_of_the_data(scale: float) -> None:
    """From far apart, where every weight but one would underflow, to next to each other."""
    made = shifted(SHIFT)
    scaled = populations(dict(zip(made.keys, scale * made.mean, strict=True)))
    one, other = (predicted(WeightedShift(), m) for m in (made, scaled))
    np.testing.assert_allclose(other, scale * one, rtol=1e-9)


def test_a_fall_is_no_larger_than_in_proportion_and_a_rise_is_added() -> None:
    """Elsewhere the genes go 4 -> 1, 4 -> 1, 4 -> 0, 1 -> 3 and 0 -> 2; here they start at 2, 8, 1, 1 and 0."""
    means: dict[tuple[str, str, float | None], object] = {
        ("a", "", None): [4.0, 4.0, 4.0, 1.0, 0.0],
        ("a", "X", None): [1.0, 1.0, 0.0, 3.0, 2.0],
        ("new", "", None): [2.0, 8.0, 1.0, 1.0, 0.0],
    }
    # by the ratio 1/4: from 2 to 0.5, not by 3 to -1; by 3: from 8 to 5, not by the ratio to 2
    found = predicted(WeightedShift(in_proportion=True), populations(means))
    np.testing.assert_allclose(found, [0.5, 5.0, 0.0, 3.0, 2.0], atol=1e-12)
    np.testing.assert_allclose(predicted(WeightedShift(), populations(means)), [-1, 5, -3, 3, 2], atol=1e-12)
    scaled = populations({key: np.subtract(mean, 1.0) for key, mean in means.items()})
    np.testing.assert_allclose(predicted(WeightedShift(in_proportion=True), scaled), [-2, 4, -4, 2, 1], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_in_proportion_nothing_falls_below_zero(seed: int) -> None:
    rng = np.random.default_rng(seed)
    means = {(c, p, None): rng.gamma(0.5, 1.0, 30) for c in "abcd" for p in ("", "X")} | {
        ("new", "", None): rng.gamma(0.5, 1.0, 30)
    }
    made = populations(means)
    assert predicted(WeightedShift(), made).min() < 0
    assert predicted(WeightedShift(in_proportion=True), made).min() >= 0


def test_contexts_that_are_all_alike_count_alike() -> None:
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): [1.0, 1.0] for c in ("a", "b", "new")}
    means |= {("a", "X", None): [3.0, 1.0], ("b", "X", None): [5.0, 1.0]}
    np.testing.assert_allclose(predicted(WeightedShift(), populations(means)), [4.0, 1.0], atol=1e-12)


def test_populations_of_a_few_cells_do_not_speak_where_others_do() -> None:
    made = shifted(SHIFT)
    n_cells = np.where([key.context == "c" and key.condition == "X" for key in made.keys], 1, 50)
    few = dataclasses.replace(made, n_cells=n_cells)
    without = shifted({c: SHIFT[c] for c in "ab"})
    for predictor in (MeanShift(), WeightedShift(), MeanTreated()):
        np.testing.assert_allclose(predicted(predictor, few), predicted(predictor, without), atol=1e-12)
    alone = dataclasses.replace(made, n_cells=np.ones(len(made.keys), dtype=int))
    np.testing.assert_allclose(predicted(MeanShift(), alone), predicted(MeanShift(), made), atol=1e-12)


@pytest.mark.parametrize("predictor", [MeanShift(), WeightedShift(), MeanTreated()])
def test_the_answer_of_the_own_context_is_not_looked_at(predictor: Predictor) -> None:
    made = shifted({**SHIFT, "new": [1e6, -1e6, 0.0]})
    expected = {MeanShift: MeanShift(), MeanTreated: MeanTreated()}.get(type(predictor))
    if expected is not None:  # the choice of a bandwidth may use it: it is a training population like any other
        np.testing.assert_array_equal(predicted(expected, shifted(SHIFT)), predicted(predictor, made))
    huge = [predicted(predictor, shifted({**SHIFT, "new": [k * 1e6, 0.0, 0.0]})) for k in (1.0, 2.0)]
    np.testing.assert_allclose(*huge, rtol=1e-6)  # huge errors of all bandwidths, as good as equal


def test_mean_treated_is_the_mean_of_the_other_contexts_cells() -> None:
    expected = np.mean([np.add(CONTROL[c], SHIFT[c]) for c in "abc"], axis=0)
    np.testing.assert_allclose(predicted(MeanTreated(), shifted(SHIFT)), expected, atol=1e-14)


def test_no_change_is_the_source() -> None:
    np.testing.assert_array_equal(predicted(NoChange(), shifted(SHIFT)), CONTROL["new"])


@pytest.mark.parametrize(("predictor", "expected"), [(MeanShift(), 12.0), (MeanTreated(), 3.0)])
def test_only_the_same_time_counts(predictor: Predictor, expected: float) -> None:
    made = populations(
        {
            ("a", "", 1.0): [1.0],
            ("a", "", 2.0): [5.0],
            ("a", "X", 1.0): [3.0],
            ("a", "X", 2.0): [99.0],
            ("new", "", 1.0): [10.0],
        }
    )
    found = answer(predictor, made, ask("new", "X", 1.0))
    assert found.tolist() == [expected]  # 10 + (3 - 1), and 3


def test_a_context_without_control_cells_gives_no_shift() -> None:
    made = populations(
        {("a", "", None): [1.0], ("a", "X", None): [2.0], ("b", "X", None): [99.0], ("new", "", None): [5.0]}
    )
    assert predicted(MeanShift(), made).tolist() == [6.0]
    only = populations({("b", "X", None): [99.0], ("new", "", None): [5.0]})
    with pytest.raises(InputError, match="'X' was seen in no other context that has cells to start from"):
        predicted(MeanShift(), only)


@pytest.mark.parametrize("predictor", [MeanShift(), MeanTreated(), WeightedShift()])
@pytest.mark.parametrize(("context", "condition"), [("new", "Y"), ("new", ""), ("a", "Z")])
def test_a_condition_that_no_other_context_has_seen_is_refused(
    predictor: Predictor, context: str, condition: str
) -> None:
    made = shifted(SHIFT)
    made = populations({**dict(zip(made.keys, made.mean, strict=True)), ("a", "Z", None): [1.0, 1.0, 1.0]})
    with pytest.raises(InputError, match=f"condition '{condition}' was seen in no other context"):
        predicted(predictor, made, context, condition)


# --- two ways


def test_context_and_condition_effects_that_add_are_exact() -> None:
    """shift(context, condition) = a(context) + b(condition); c has seen other conditions than the rest."""
    at, by = {"a": 1.0, "b": -2.0, "c": 5.0}, {"X": 0.5, "Y": 3.0, "Z": -1.0}
    seen = {"a": "YZ", "b": "XYZ", "c": "XY"}
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): [10.0 * i, 0.0] for i, c in enumerate(at)}
    means |= {(c, k, None): [means[(c, "", None)][0] + at[c] + by[k], by[k]] for c in at for k in seen[c]}  # type: ignore[index]
    found = answer(TwoWay(), populations(means), ask("a", "X"))
    np.testing.assert_allclose(found, [0.0 + 1.0 + 0.5, 0.5], atol=1e-12)


def test_two_ways_need_a_condition_that_both_contexts_have_seen() -> None:
    with pytest.raises(InputError, match="no other condition was seen both in context 'new' and where this one was"):
        predicted(TwoWay(), shifted(SHIFT))
    with pytest.raises(InputError, match="condition 'Y' was seen in no other context"):
        predicted(TwoWay(), shifted(SHIFT), condition="Y")


# --- what many predictors use


def test_the_likelihood_of_equal_errors_is_equal_and_of_half_the_error_is_much_higher() -> None:
    assert likelihood(np.array([3.0, 3.0]), 7).tolist() == [1.0, 1.0]
    assert likelihood(np.array([1.0, 2.0]), 1).tolist() == [1.0, 2.0**-5]
    assert likelihood(np.array([0.0, 2.0]), 3).tolist() == [1.0, 0.0]
    assert likelihood(np.array([1.0, 9.0]), 0).tolist() == [1.0, 1.0]


def test_a_draw_is_the_same_at_every_call_and_has_no_step() -> None:
    assert drawn([5, 3], 2) == [5, 3]
    some = drawn(range(1000), 200)
    assert some == drawn(range(1000), 200)
    assert len(set(some)) == 200
    assert len(set(np.diff(some))) > 3
