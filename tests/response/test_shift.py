"""Shifts from other contexts: exact where all agree, weighted by distance where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from made_populations import NO_FEATURES, ask, populations

from squidiff.config import InputError
from squidiff.response.populations import Populations
from squidiff.response.shift import MeanShift, MeanTreated, NoChange, Predictor

CONTROL = {"a": [0.0, 1.0, 4.0], "b": [3.0, 1.0, 0.0], "c": [0.0, 5.0, 1.0], "new": [1.0, 2.0, 2.0]}
SHIFT = {"a": [1.0, 0.0, 2.0], "b": [-1.0, 3.0, 0.0], "c": [0.5, 0.5, -4.0]}


def shifted(shifts: dict[str, list[float]]) -> Populations:
    """Control cells of every context; cells under X of those that a shift is given for."""
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): mean for c, mean in CONTROL.items()}
    means |= {(c, "X", None): np.add(CONTROL[c], shift) for c, shift in shifts.items()}
    return populations(means)


def predicted(predictor: Predictor, made: Populations, context: str = "new", condition: str = "X") -> np.ndarray:
    return predictor.fit(made).predict(ask(context, condition), NO_FEATURES)


@pytest.mark.parametrize("bandwidth", [None, 0.1, 1.0, 100.0])
def test_a_shift_that_all_contexts_share_is_exact(bandwidth: float | None) -> None:
    shift = [0.5, -1.0, 2.0]
    made = shifted(dict.fromkeys("abc", shift))
    np.testing.assert_allclose(predicted(MeanShift(bandwidth), made), np.add(CONTROL["new"], shift), atol=1e-14)


def test_without_a_bandwidth_each_context_counts_once() -> None:
    expected = np.add(CONTROL["new"], np.mean([SHIFT[c] for c in "abc"], axis=0))
    np.testing.assert_allclose(predicted(MeanShift(), shifted(SHIFT)), expected, atol=1e-14)


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 5.0])
def test_weights_fall_with_the_distance_of_the_sources(bandwidth: float) -> None:
    distance = {c: sum((x - y) ** 2 for x, y in zip(CONTROL[c], CONTROL["new"], strict=True)) ** 0.5 for c in "abc"}
    weight = {c: np.exp(-d / bandwidth) for c, d in distance.items()}
    shift = sum(weight[c] * np.array(SHIFT[c]) for c in "abc") / sum(weight.values())
    np.testing.assert_allclose(predicted(MeanShift(bandwidth), shifted(SHIFT)), CONTROL["new"] + shift, atol=1e-13)


def test_a_narrow_bandwidth_follows_the_nearest_context_and_a_wide_one_all() -> None:
    made = shifted(SHIFT)
    nearest = np.add(CONTROL["new"], SHIFT["a"])  # the squared distances of a, b and c are 6, 9 and 11
    np.testing.assert_allclose(predicted(MeanShift(1e-3), made), nearest, atol=1e-12)
    # 1e-300 of the unit: every weight but one underflows, and none may turn into 0 / 0
    np.testing.assert_allclose(predicted(MeanShift(1e-300), made), nearest, atol=1e-12)
    np.testing.assert_allclose(predicted(MeanShift(1e9), made), predicted(MeanShift(), made), atol=1e-8)


@pytest.mark.parametrize("predictor", [MeanShift(), MeanShift(1.0), MeanTreated()])
def test_the_answer_of_the_own_context_is_not_looked_at(predictor: Predictor) -> None:
    before = predicted(predictor, shifted(SHIFT))
    after = predicted(predictor, shifted({**SHIFT, "new": [1e6, -1e6, 0.0]}))
    np.testing.assert_array_equal(before, after)


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
    found = predictor.fit(made).predict(ask("new", "X", 1.0), NO_FEATURES)
    assert found.tolist() == [expected]  # 10 + (3 - 1), and 3


def test_a_context_without_control_cells_gives_no_shift() -> None:
    made = populations(
        {("a", "", None): [1.0], ("a", "X", None): [2.0], ("b", "X", None): [99.0], ("new", "", None): [5.0]}
    )
    assert predicted(MeanShift(), made).tolist() == [6.0]
    only = populations({("b", "X", None): [99.0], ("new", "", None): [5.0]})
    with pytest.raises(InputError, match="'X' was seen in no other context that has control cells"):
        predicted(MeanShift(), only)


@pytest.mark.parametrize("predictor", [MeanShift(), MeanTreated()])
@pytest.mark.parametrize(("context", "condition"), [("new", "Y"), ("new", ""), ("a", "Z")])
def test_a_condition_that_no_other_context_has_seen_is_refused(
    predictor: Predictor, context: str, condition: str
) -> None:
    made = shifted(SHIFT)
    made = populations({**dict(zip(made.keys, made.mean, strict=True)), ("a", "Z", None): [1.0, 1.0, 1.0]})
    with pytest.raises(InputError, match=f"condition '{condition}' was seen in no other context"):
        predicted(predictor, made, context, condition)


@pytest.mark.parametrize("predictor", [MeanShift(), NoChange()])
def test_a_context_without_cells_to_start_from_is_refused(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="no cells to start from for elsewhere, X"):
        predicted(predictor, shifted(SHIFT), "elsewhere")
