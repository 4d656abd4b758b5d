"""Interpolation in time: exact on straight lines; a trend beyond the times seen, damped as it was damped before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made_populations import NO_FEATURES, answer, ask, populations, source
from squidiff.config import InputError
from squidiff.response.course import Course
from squidiff.response.populations import Populations, Source
from squidiff.response.shift import CannotPredict
from squidiff.response.time import (
    TimeCourse,
    TimeInterpolation,
    TimeShift,
    TimeTrend,
    interpolate,
    last_time,
    times_around,
)

START, SLOPE = np.array([1.0, 0.0, 5.0]), np.array([0.5, 2.0, -1.0])
TIMES = (6.0, 0.0, 24.0, 12.0)  # in no order


@pytest.fixture
def line() -> Populations:
    means: dict[tuple[str, str, float | None], object] = {("a", "", t): START + t * SLOPE for t in TIMES}
    means |= {("b", "", t): [99.0, 99.0, 99.0] for t in (1.0, 7.0)} | {("a", "X", 3.0): [-5.0, -5.0, -5.0]}
    return populations(means, has_control=False)


@pytest.mark.parametrize("time", [0.0, 0.1, 3.0, 6.0, 8.5, 12.0, 23.0, 24.0])
def test_a_straight_line_is_exact(line: Populations, time: float) -> None:
    np.testing.assert_allclose(answer(TimeInterpolation(), line, ask("a", "", time)), START + time * SLOPE, atol=1e-13)


@pytest.mark.parametrize("time", [-3.0, 24.1, 1e6])
def test_beyond_the_times_seen_it_refuses(line: Populations, time: float) -> None:
    message = rf"^a: seen at times 0 to 24, not at {time:g}$".replace("+", r"\+")
    with pytest.raises(InputError, match=message):
        answer(TimeInterpolation(), line, ask("a", "", time))


def test_a_single_time_speaks_of_itself_alone(line: Populations) -> None:
    assert answer(TimeInterpolation(), line, ask("a", "X", 3.0)).tolist() == [-5.0, -5.0, -5.0]
    with pytest.raises(InputError, match="a, X: seen at times 3 to 3, not at 9"):
        answer(TimeInterpolation(), line, ask("a", "X", 9.0))


def test_only_the_neighbours_in_time_count() -> None:
    bent = populations({("", "", 0.0): [0.0], ("", "", 1.0): [10.0], ("", "", 2.0): [0.0], ("", "", 3.0): [-6.0]})
    found = [answer(TimeInterpolation(), bent, ask("", "", t)).item() for t in (0.25, 1.5, 2.5)]
    assert found == pytest.approx([2.5, 5.0, -3.0])


@pytest.mark.parametrize("predictor", [TimeInterpolation(), TimeShift()])
def test_without_a_time_it_refuses(line: Populations, predictor: TimeInterpolation | TimeShift) -> None:
    with pytest.raises(InputError, match=r"^a has no time$"):
        answer(predictor, line, ask("a", ""))


def test_without_cells_it_refuses(line: Populations) -> None:
    with pytest.raises(InputError, match=r"^b, X: seen at no time$"):
        answer(TimeInterpolation(), line, ask("b", "X", 3.0))


def test_the_other_contexts_tell_how_a_context_of_one_time_goes_on() -> None:
    """New is seen at time 1 alone; from 1 to 4 a changes by 30 and b by 3 * 4, and c says nothing of time 4."""
    means = {("a", "", t): [10 * t, 7.0] for t in (0.0, 2.0, 5.0)} | {("b", "", t): [4 * t, 1.0] for t in (1.0, 4.0)}
    made = populations(
        {**means, ("c", "", 1.0): [0.0, 0.0], ("c", "", 3.0): [9.0, 9.0], ("new", "", 1.0): [100.0, 3.0]},
        has_control=False,
    )
    found = answer(TimeShift(), made, ask("new", "", 4.0))
    np.testing.assert_allclose(found, [100.0 + (30.0 + 12.0) / 2, 3.0], atol=1e-12)
    with pytest.raises(InputError, match=r"^no other context was seen at or around time 6$"):
        answer(TimeShift(), made, ask("new", "", 6.0))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_on_a_line_optimal_transport_pairs_by_rank(share: float) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(80, 1)), rng.gamma(2.0, size=(80, 1)) + 3
    found = np.sort(interpolate(before, after, share), axis=0)
    np.testing.assert_allclose(found, (1 - share) * np.sort(before, 0) + share * np.sort(after, 0), atol=1e-14)


def test_cells_that_moved_together_are_paired_with_themselves() -> None:
    """A mixture would lie at both ends; on the way lies what moved part of it."""
    rng = np.random.default_rng(1)
    before, way = rng.normal(size=(60, 4)), np.array([5.0, -3.0, 0.0, 1.0])
    found = interpolate(before, rng.permutation(before + way), 0.25)
    np.testing.assert_allclose(found[np.argsort(found[:, 0])], (before + way / 4)[np.argsort(before[:, 0])], atol=1e-13)


def test_the_last_time_is_the_one_before(line: Populations) -> None:
    assert [line.keys[last_time(line, ask("a", "", t))].time for t in (0.5, 6.0, 6.1, 99.0)] == [0.0, 0.0, 6.0, 24.0]
    with pytest.raises(CannotPredict, match=r"^a was not seen before time 0$"):
        last_time(line, ask("a", "", 0.0))
    with pytest.raises(CannotPredict, match=r"^a has no time$"):
        last_time(line, ask("a", ""))


def on_a_cubic(times: list[float], sign: float = 1.0) -> Populations:
    """Means on the cubics t^3 and t^2 - t, and how they go on there, times `sign`."""
    means = {("", "", t): [t**3, t**2 - t] for t in times}
    change = sign * np.array([[3 * t**2, 2 * t - 1] for t in times])
    return replace(populations(means, has_control=False), course=Course(change, np.zeros(len(times))))


@pytest.mark.parametrize("asked", [0.5, 1.5, 2.0, 2.25])
def test_a_course_that_foretold_the_times_between_is_followed_on_its_curve(asked: float) -> None:
    found = answer(TimeCourse(), on_a_cubic([0.0, 1.0, 2.0, 3.0]), ask("", "", asked))
    np.testing.assert_allclose(found, [asked**3, asked**2 - asked], atol=1e-12)


def test_a_course_that_misled_between_the_times_is_left() -> None:
    made = on_a_cubic([0.0, 1.0, 2.0, 3.0], sign=-1.0)
    found = answer(TimeCourse(), made, ask("", "", 1.5))
    np.testing.assert_allclose(found, answer(TimeInterpolation(), made, ask("", "", 1.5)), atol=1e-12)


def test_between_two_times_alone_nothing_confirms_a_course() -> None:
    with pytest.raises(CannotPredict, match=r"^no time between two others tells how means go there$"):
        answer(TimeCourse(), on_a_cubic([0.0, 2.0]), ask("", "", 1.0))


def test_a_way_that_is_no_longer_than_its_noise_is_not_taken() -> None:
    """Of one time two thirds of the way of its square is noise: it is shortened to a third."""
    made = on_a_cubic([0.0, 1.0, 2.0, 3.0])
    made = replace(made, variance=np.ones_like(made.mean))
    line, exact = (answer(p, made, ask("", "", 1.5)) for p in (TimeInterpolation(), TimeCourse()))
    size = np.square(exact - line).sum()
    weight = 1.0 / 8  # of each end's direction, halfway of a step of 1
    for share, left in ((2 / 3, 1 / 3), (1.5, 0.0)):
        noise = np.full(4, share * size / (2 * weight**2 * 2))  # of two ends and two genes
        noisy = replace(made, course=made.course._replace(noise=noise))  # type: ignore[union-attr]
        predictor = TimeCourse().fit(noisy)
        predictor.share = 1.0
        found = predictor.predict(ask("", "", 1.5), NO_FEATURES, source(noisy, ask("", "", 1.5)))
        np.testing.assert_allclose(found, line + left * (exact - line), atol=1e-12)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_counts_that_grow_or_decay_by_a_rate_do_so_between_times_where_they_did_before(share: float) -> None:
    """Log-normalised; 0.1 is added to counts. Where means lie on straight lines, they stay there."""
    rates, times = np.array([-0.8, 0.5, 2.0, 0.0]), [0.0, 1.0, 2.0, 4.0]

    def mean(time: float) -> np.ndarray:
        return np.log1p(np.exp(rates * time + 1) - 0.1) if share else 3 + 0.2 * rates * time

    found = answer(TimeCourse(), over_time(times, [mean(t).tolist() for t in times]), ask("a", "", 3.0))
    np.testing.assert_allclose(found, mean(3.0), rtol=1e-6)


def test_without_a_course_at_both_sides_the_line_is_straight() -> None:
    made = on_a_cubic([0.0, 1.0, 2.0, 3.0])
    assert made.course is not None
    told = made.course._replace(change=made.course.change * [[1.0], [1.0], [1.0], [0.0]])
    told_at_some = replace(made, course=told)
    straight = answer(TimeInterpolation(), made, ask("", "", 2.5))
    np.testing.assert_array_equal(answer(TimeCourse(), told_at_some, ask("", "", 2.5)), straight)
    with pytest.raises(CannotPredict, match=r"^no time between two others tells"):
        answer(TimeCourse(), replace(made, course=None), ask("", "", 2.5))
    with pytest.raises(CannotPredict, match="not at 5"):
        answer(TimeCourse(), made, ask("", "", 5.0))


def over_time(times: list[float], means: list[list[float]]) -> Populations:
    return populations({("a", "", t): m for t, m in zip(times, means, strict=True)}, has_control=False)


@pytest.mark.parametrize(("n_seen", "share"), [(2, 0.1), (3, 0.55), (4, 0.7), (31, 0.97)])
def test_a_straight_line_goes_on_as_it_went_the_more_often_it_did(n_seen: int, share: float) -> None:
    """n - 2 steps that a line foretold, and one of which a tenth is expected; forwards as backwards."""
    times = [float(t) for t in range(n_seen)]
    made = over_time(times, [[t, 2 * t - 1] for t in times])
    for asked, last, way in ((times[-1] + 1, times[-1], share), (-1.0, 0.0, -share)):
        expected = [last + way, 2 * (last + way) - 1]
        np.testing.assert_allclose(answer(TimeTrend(), made, ask("a", "", asked)), expected, atol=1e-12)


def test_a_trend_never_switches_a_gene_off() -> None:
    """From 3 to 1 and on: a tenth of the step of 2 is expected, a fall from 1.2 to 1, and so on to 1 / 1.2."""
    made = over_time([0.0, 1.0], [[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    expected = [1 / 1.2, 3.2, 0.0]
    np.testing.assert_allclose(answer(TimeTrend(), made, ask("a", "", 2.0)), expected, rtol=1e-12)


def test_a_longer_step_is_a_longer_way() -> None:
    made = over_time([0.0, 1.0, 3.0], [[0.0], [1.0], [3.0]])
    assert answer(TimeTrend(), made, ask("a", "", 5.0)).item() == pytest.approx(3 + 0.55 * 2)


def test_what_turned_back_before_is_held_at_the_last_time() -> None:
    made = over_time([0.0, 1.0, 2.0, 3.0], [[0.0], [1.0], [0.0], [1.0]])
    assert answer(TimeTrend(), made, ask("a", "", 5.0)).item() == 1.0


def test_a_trend_that_slowed_is_damped_as_it_slowed() -> None:
    """Every step is half of the one before: half of what a straight line would add, and once a tenth."""
    made = over_time([0.0, 1.0, 2.0], [[0.0], [4.0], [6.0]])
    assert answer(TimeTrend(), made, ask("a", "", 3.0)).item() == pytest.approx(6 + 2 * (0.5 + 0.1) / 2)


@pytest.mark.parametrize("asked", [1.5, None])
def test_within_the_times_seen_or_without_one_the_trend_refuses(asked: float | None) -> None:
    made = over_time([0.0, 1.0, 3.0], [[0.0], [1.0], [3.0]])
    with pytest.raises(CannotPredict):
        TimeTrend().fit(made).predict(ask("a", "", asked), NO_FEATURES, Source(ask("a", "", 0.0), np.zeros(1)))


def test_a_time_that_was_seen_lies_at_itself_or_between_its_neighbours() -> None:
    made = populations({("a", "", t): [t] for t in (0.0, 1.0, 4.0)}, has_control=False)
    around = times_around(made, ask("a", "", 1.0))
    assert made.keys[around[1]].time == 1.0
    assert around[2] == 1.0
    assert times_around(made, ask("a", "", 1.0), itself=False) == (0, 2, 0.25)
    with pytest.raises(CannotPredict):
        times_around(made, ask("a", "", 4.0), itself=False)
