"""A verdict is what the intervals of the paired differences say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.evaluate.metrics import METRICS
from squidiff.evaluate.verdict import BEATS, TIES, Estimate, judge, severity

GRID = np.linspace(-1.0, 1.0, 201)
"""Resamples whose 2.5 % and 97.5 % points are exactly -0.95 and 0.95."""
NAN = float("nan")


def estimate(value: float, spread: float = 0.0) -> Estimate:
    return Estimate(value, value + spread * GRID)


# --- intervals


@given(value=st.floats(-100, 100), bias=st.floats(-100, 100), spread=st.floats(0.01, 100))
@settings(derandomize=True, deadline=None)
def test_the_interval_is_centred_on_the_value_whatever_the_bias_of_resampling(
    value: float, bias: float, spread: float
) -> None:
    low, high = Estimate(value, value + bias + spread * GRID).interval()
    assert (low, high) == pytest.approx((value - 0.95 * spread, value + 0.95 * spread), abs=1e-9)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    """Bootstrapped means of 30 normal numbers: 95 % of 400 intervals hold the true mean, with their standard error."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        x = rng.normal(3.0, 1.0, 30)
        low, high = Estimate(x.mean(), rng.choice(x, (200, 30)).mean(axis=1)).interval()
        held.append(low <= 3.0 <= high)
    assert np.mean(held) == pytest.approx(0.94, abs=0.045)  # a little short of 0.95, as the bootstrap is at 30


@pytest.mark.parametrize("n", [5, 8, 30])
def test_the_interval_over_populations_covers_their_mean_as_often_as_it_says(n: int) -> None:
    """Also of few, of which a plain bootstrap holds the mean in 85 of 100 cases (n = 5) and not in 95."""
    rng, held = np.random.default_rng(1), []
    for _ in range(600):
        values = rng.normal(3.0, 1.0, n)
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=200).astype(float)
        low, high = Estimate.over_populations(values, drawn).interval()
        held.append(low <= 3.0 <= high)
    assert np.mean(held) == pytest.approx(0.94, abs=0.035)


def test_a_population_without_a_value_counts_neither_way() -> None:
    drawn = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=200).astype(float)
    found = Estimate.over_populations(np.array([1.0, np.nan, 1.0, 1.0]), drawn)
    assert found.value == 1.0
    assert found.interval() == (1.0, 1.0)
    assert not Estimate.over_populations(np.array([np.nan, np.nan, 2.0, np.nan]), drawn).is_known


def test_differences_are_paired() -> None:
    """What model and baseline share, such as the draw of the true cells, cancels."""
    shared = np.random.default_rng(0).normal(0.0, 10.0, 300)
    model, other = Estimate(1.0, 1.0 + shared), Estimate(0.5, 0.5 + shared)
    assert model.minus(other).interval() == pytest.approx((0.5, 0.5))
    assert judge(model, {"other": other}, True) == BEATS


# --- verdicts


@pytest.mark.parametrize("higher", [True, False])
def test_verdicts_in_both_directions(higher: bool) -> None:
    sign = 1.0 if higher else -1.0
    others = {name: estimate(sign * value, 0.1) for name, value in (("low", 1.0), ("high", 2.0), ("middle", 1.5))}
    flat = {name: Estimate(e.value, np.full(201, e.value)) for name, e in others.items()}
    assert judge(estimate(sign * 2.5, 0.1), flat, higher) == BEATS
    assert judge(estimate(sign * 2.05, 0.1), flat, higher) == TIES  # wins over two, the third is within the interval
    assert judge(estimate(sign * 1.0, 0.1), flat, higher) == "loses to high"
    assert judge(estimate(sign * 0.2, 0.1), flat, higher) == "loses to high"
    assert judge(estimate(sign * 1.7, 0.1), {k: flat[k] for k in ("low", "middle")}, higher) == BEATS


@pytest.mark.parametrize("gap", [0.94, 0.96])
def test_the_edge_is_the_95_percent_interval(gap: float) -> None:
    other = {"other": estimate(0.0)}
    assert judge(estimate(gap, 1.0), other, True) == (BEATS if gap > 0.95 else TIES)
    assert judge(estimate(-gap, 1.0), other, True) == ("loses to other" if gap > 0.95 else TIES)


@pytest.mark.parametrize("name", METRICS)
def test_the_truths_own_score_beats_one_that_is_worse(name: str) -> None:
    metric = METRICS[name]
    worse = metric.best - 0.5 if metric.higher_is_better else metric.best + 0.5
    assert judge(estimate(metric.best, 0.1), {"worse": estimate(worse)}, metric.higher_is_better) == BEATS
    assert judge(estimate(worse, 0.1), {"best": estimate(metric.best)}, metric.higher_is_better) == "loses to best"


# --- what is not known


def test_baselines_without_a_value_are_passed_over() -> None:
    unknown = Estimate(NAN, np.full(201, NAN))
    others = {"unknown": unknown, "known": estimate(1.0)}
    assert judge(estimate(2.0, 0.1), others, True) == BEATS
    assert judge(estimate(0.0, 0.1), others, True) == "loses to known"


def test_a_baseline_of_which_few_resamples_have_no_value_is_judged_on_the_rest() -> None:
    partly = Estimate(9.0, np.where(GRID > 0.9, NAN, 9.0))
    assert judge(estimate(2.0, 0.1), {"partly": partly, "known": estimate(1.0)}, True) == "loses to partly"
    assert partly.interval() == (9.0, 9.0)


def test_nobody_beats_a_baseline_that_has_a_value_and_hardly_an_interval() -> None:
    hardly = Estimate(9.0, np.where(GRID > -0.9, NAN, 9.0))
    others = {"hardly": hardly, "known": estimate(1.0)}
    assert judge(estimate(2.0, 0.1), others, True) == ""
    assert judge(estimate(1.0, 0.1), others, True) == TIES
    assert judge(estimate(0.0, 0.1), others, True) == "loses to known"


def test_a_difference_of_rounding_is_none() -> None:
    assert judge(estimate(0.5 + 1e-8), {"same": estimate(0.5)}, True) == TIES
    assert judge(estimate(0.5 + 1e-4), {"same": estimate(0.5)}, True) == BEATS


def test_there_is_no_verdict_without_a_baseline_or_a_value() -> None:
    unknown = Estimate(NAN, np.full(201, NAN))
    assert judge(estimate(1.0), {}, True) == ""
    assert judge(estimate(1.0), {"unknown": unknown}, True) == ""
    assert judge(unknown, {"known": estimate(1.0)}, True) == ""
    assert judge(Estimate(1.0, np.where(GRID > -0.9, NAN, 1.0)), {"known": estimate(1.0)}, True) == ""


@pytest.mark.parametrize(("value", "expected"), [(2.0, BEATS), (0.0, "loses to known"), (NAN, "")])
def test_a_value_that_is_not_known_is_passed_over_though_its_resamples_are(value: float, expected: str) -> None:
    """`no change` predicts no change, so its delta_pearson is NaN; but resamples of its cells differ from control."""
    others = {"no change": Estimate(NAN, 0.1 * GRID), "known": estimate(1.0)}
    assert judge(Estimate(value, 0.1 * GRID), others, True) == expected


# --- severity


def test_the_worst_verdict_comes_first() -> None:
    verdicts = ["", BEATS, "loses to mean shift", TIES]
    assert sorted(verdicts, key=severity) == ["loses to mean shift", TIES, BEATS, ""]
    assert severity("loses to no change") == severity("loses to additive")
