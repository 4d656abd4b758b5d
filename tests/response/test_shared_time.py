"""Times that a context lacks, from what others do between and beyond the same times."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from made_populations import NO_FEATURES, answer, ask, populations, source
from squidiff.response.course import Course
from squidiff.response.populations import Populations
from squidiff.response.shared_time import SharedCourse, SharedStep
from squidiff.response.shift import CannotPredict, Predictor
from squidiff.response.stack import Anchor
from squidiff.response.time import TimeCourse, TimeInterpolation, TimeShift

N_GENES = 200
TIMES = (0.0, 1.0, 2.0, 3.0, 4.0)


def curves(rng: np.random.Generator) -> np.ndarray:
    """Of every gene over TIMES, T x G: up, down, or up and down again."""
    height, way = rng.normal(size=N_GENES), rng.choice(3, N_GENES)
    t = np.array(TIMES)[:, None] / 4
    return np.choose(way, [t**2, np.sqrt(t), np.sin(np.pi * t)]) * height  # type: ignore[call-overload]


def world(
    seed: int, shared: bool = True, n: int = 4, has_control: bool = False
) -> tuple[Populations, dict[float, np.ndarray]]:
    """n contexts of one course or of their own, far from each other; the true means of the first at all times."""
    rng = np.random.default_rng(seed)
    course, means = curves(rng), {}
    for c in range(4):
        own = 10 + 5 * rng.random(N_GENES) + (course * rng.uniform(0.8, 1.2) if shared else curves(rng))
        means |= {(f"c{c}", "", t): row + 0.02 * rng.normal(size=N_GENES) for t, row in zip(TIMES, own, strict=True)}
    return populations(means, has_control=False), {t: means["c0", "", t] for t in TIMES}


def without(made: Populations, *times: float) -> Populations:
    """c0 was not seen at these times."""
    keys = made.keys
    return made.only(np.array([i for i, key in enumerate(keys) if key.context != "c0" or key.time not in times]))


def error(predictor: Predictor, made: Populations, time: float, true: np.ndarray) -> float:
    return float(np.square(answer(predictor, made, ask("c0", "", time)) - true).mean())


@pytest.mark.parametrize("time", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("seed", range(2))
def test_between_times_others_tell_how_far_off_the_line_a_mean_is(seed: int, time: float) -> None:
    """Recorded: before, a context that saw both times around looked at no other."""
    made, true = world(seed)
    seen = without(made, time)
    shared, line = (error(of, seen, time, true[time]) for of in (SharedCourse(), TimeInterpolation()))
    assert shared < 0.25 * line


@pytest.mark.parametrize("seed", range(3))
def test_others_of_their_own_ways_are_left_aside(seed: int) -> None:
    made, true = world(seed, shared=False)
    between, last = without(made, 2.0), without(made, 4.0)
    assert error(SharedCourse(), between, 2.0, true[2.0]) < 1.1 * error(TimeInterpolation(), between, 2.0, true[2.0])
    assert error(SharedStep(), last, 4.0, true[4.0]) < 0.8 * error(TimeShift(), last, 4.0, true[4.0])


@pytest.mark.parametrize("seed", range(3))
def test_beyond_the_last_time_the_step_of_the_others_is_taken_as_strongly_as_steps_were_here(seed: int) -> None:
    rng = np.random.default_rng(seed)
    course = curves(rng)
    strength = {"c0": 2.0, "c1": 0.9, "c2": 1.0, "c3": 1.1}
    means = {(c, "", t): 10 + s * row for c, s in strength.items() for t, row in zip(TIMES, course, strict=True)}
    seen = without(populations(means, has_control=False), 4.0)
    shared, shift = (error(of, seen, 4.0, 10 + 2 * course[4]) for of in (SharedStep(), TimeShift()))
    assert shared < 0.7 * shift


def test_a_condition_goes_on_from_its_own_last_time_and_not_from_the_control_cells() -> None:
    """Recorded: where one context alone has times, a damped trend answered, whatever other conditions did."""
    rng = np.random.default_rng(3)
    course, means = curves(rng), {}
    for condition, strength in (("", 0.0), ("A", 1.0), ("B", 0.8), ("C", 1.2)):
        means |= {("c0", condition, t): 10 + strength * row for t, row in zip(TIMES, course, strict=True)}
    true = means.pop(("c0", "A", 4.0))
    made = populations(means)
    found = answer(SharedStep(), made, ask("c0", "A", 4.0))
    before = np.square(means["c0", "A", 3.0] - true).mean()
    assert np.square(found - true).mean() < 0.2 * before


def test_the_curve_that_own_cells_tell_is_a_term_beside_the_others() -> None:
    """Where cells tell the truth and others do not, the curve is followed; without others, `TimeCourse` answers."""
    made, true = world(4, shared=False)
    change = np.zeros_like(made.mean)
    for c in range(4):  # finite differences of the true means, at all times but the ends
        rows = [made.find(ask(f"c{c}", "", t)) for t in TIMES]
        change[rows] = np.gradient(made.mean[rows], axis=0)
    told = dataclasses.replace(made, course=Course(change, np.zeros(len(made.keys))))
    seen = without(told, 2.0)
    line = error(TimeInterpolation(), seen, 2.0, true[2.0])
    assert error(SharedCourse(), seen, 2.0, true[2.0]) < 1.1 * error(TimeCourse(), seen, 2.0, true[2.0]) < line
    alone = seen.only(np.array([i for i, key in enumerate(seen.keys) if key.context == "c0"]))
    with pytest.raises(CannotPredict, match=r"^nothing else was seen at these times and between them$"):
        answer(SharedCourse(), alone, ask("c0", "", 2.0))


def test_what_nothing_tells_is_refused() -> None:
    made, _ = world(5)
    last = without(made, 4.0)
    with pytest.raises(CannotPredict, match=r"^nothing else was seen at time 3 and at time 5$"):
        answer(SharedStep(), last, ask("c0", "", 5.0))
    with pytest.raises(CannotPredict, match=r"^nothing else was seen at these times and between them$"):
        answer(SharedCourse(), without(made, 2.0), ask("c0", "", 2.5))
    with pytest.raises(CannotPredict, match="c9: seen at no time"):
        SharedCourse().fit(made).predict(ask("c9", "", 2.0), np.zeros(1), made.source_of(0))  # type: ignore[arg-type]
    with pytest.raises(CannotPredict, match=r"^c9 was seen at no time to start from$"):
        SharedStep().fit(made).predict(ask("c9", "", 2.0), np.zeros(1), made.source_of(0))  # type: ignore[arg-type]


def test_the_order_of_populations_changes_nothing_and_no_mean_falls_below_0() -> None:
    made, _ = world(6)
    order = np.random.default_rng(0).permutation(len(made.keys))
    for of, seen, time in ((SharedCourse, without(made, 2.0), 2.0), (SharedStep, without(made, 4.0), 4.0)):
        mixed = seen.only(np.argsort(order[: len(seen.keys)]))
        one, other = (answer(of(), each, ask("c0", "", time)) for each in (seen, mixed))
        np.testing.assert_allclose(one, other, atol=1e-9)
        low = dataclasses.replace(seen, mean=np.maximum(seen.mean - 13, 0.0))
        assert answer(of(), low, ask("c0", "", time)).min() == 0.0


def test_the_same_condition_elsewhere_comes_before_other_conditions_here() -> None:
    """Recorded: with one early time of its own a condition went on as all others together, whatever they were."""
    rng, means = np.random.default_rng(8), {}
    of = {condition: curves(rng) for condition in "XYZ"}
    for context in "abcd":
        own = 10 + rng.random(N_GENES)
        means[context, "", 0.0] = own
        for condition, course in of.items():
            means |= {(context, condition, t): own + course[int(t)] for t in TIMES[1:]}
    true = means["d", "Z", 4.0]
    made = populations({key: m for key, m in means.items() if key[:2] != ("d", "Z") or key[2] == 1.0})
    found = answer(SharedStep(), made, ask("d", "Z", 4.0))
    assert np.square(found - true).mean() < 0.02 * np.square(means["d", "Z", 1.0] - true).mean()


def test_a_course_of_few_cells_beside_one_time_of_many_ends_no_comparison() -> None:
    """Recorded: left out, the time of many cells made the small ones count again, which were not known: a KeyError."""
    rng = np.random.default_rng(0)
    times = (0.0, 1.0, 2.0, 3.0, 4.0)
    means = {(c, x, t): 5.0 + rng.normal(size=20) for c in "abcd" for x in ("", "X") for t in times}
    key = ask("a", "X", 3.0)
    del means[tuple(key)]  # type: ignore[arg-type]
    made = populations(means, variance=0.1)
    is_small = np.array([k.context == "b" and k.condition == "X" and k.time != 1.0 for k in made.keys])
    made = dataclasses.replace(made, n_cells=np.where(is_small, 5, 40))
    _, label = Anchor().fit(made).predict(key, NO_FEATURES, source(made, key))
    assert "shared course" in label
