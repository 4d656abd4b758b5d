"""The mean at a time that was never seen, from the times around it and from other contexts."""

from __future__ import annotations

import numpy as np

from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, drawn

N_BENDS = 2
"""Off a straight line between two times: as cells say, and as counts go."""
PSEUDO_COUNT = 0.1
"""Added to counts whose logarithms are followed between two times: what few cells show is no ratio."""
MAX_LEARNED = 300
"""Times between two others that shares and laws are learned from."""
SMALLEST_ROOT = 1e-9
"""Of a bend, as a share of the errors, that is none."""
EXPECTED_SHARE = 0.1
"""Of a straight line's next step, what is expected before any was seen; as much as one that was seen, it counts."""


class TimeInterpolation:
    """The means of the same context and condition, linear between the times seen; or, not `itself`, between others."""

    def __init__(self, itself: bool = True) -> None:
        self.itself = itself

    def fit(self, populations: Populations) -> TimeInterpolation:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return _mean_at(self.populations, key, self.itself)


class TimeCourse:
    """The means of the same context and condition, on a way between the times around, bent off the straight line.

    It is bent as cells say and as counts go (`line_and_bends`), of either by the share that would have predicted the
    times between two others best (least squares over them, each time alike, within 0 and 1); the directions of
    `response.course` have seen these times' cells. Where there is no such time, nothing confirms a bend.
    """

    def fit(self, populations: Populations) -> TimeCourse:
        from scipy.optimize import lsq_linear

        self.populations, triples = populations, list[tuple[int, int, int]]()
        for context, condition in dict.fromkeys((key.context, key.condition) for key in populations.keys):
            seen = populations.reliable(populations.over_time(context, condition))
            triples += zip(seen, seen[1:], seen[2:], strict=False)
        products = np.zeros((N_BENDS + 1, N_BENDS + 1))
        for k in drawn(range(len(triples)), MAX_LEARNED):
            before, middle, after = triples[k]
            line, bends = line_and_bends(populations, before, after, populations.keys[middle].time or 0.0)
            error = populations.mean[middle] - line
            if error.any():
                terms = np.stack([*bends, error]) / np.linalg.norm(error)
                products += terms @ terms.T
        self.shares = None
        if products[:-1, :-1].any():
            values, axes = np.linalg.eigh(products[:-1, :-1])  # a root of the products: the same least squares
            root = np.sqrt(np.maximum(values, 0.0))
            wanted = np.divide(axes.T @ products[:-1, -1], root, out=np.zeros_like(root), where=root > SMALLEST_ROOT)
            self.shares = lsq_linear(root[:, None] * axes.T, wanted, bounds=(0, 1), method="bvls").x
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        before, after, _ = times_around(self.populations, key)
        if self.shares is None:
            raise CannotPredict("no time between two others tells how means go there")
        line, bends = line_and_bends(self.populations, before, after, key.time or 0.0)
        return np.asarray(line + self.shares @ bends)


class TimeTrend:
    """Beyond the times seen: the mean at the last time, gone on as it went between the last two, but damped.

    Of what a straight line would add, the share that would have predicted the later times from the two before each best
    (least squares over them and one more of EXPECTED_SHARE, within 0 and 1) is added. Likewise before the first time.
    What falls goes on in proportion, and so never to 0: to m m / (m + d) where the line takes d from a mean m. Beyond
    the ends by more than the times seen span, nothing is said.
    """

    def fit(self, populations: Populations) -> TimeTrend:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if key.time is None:
            raise CannotPredict(f"{key} has no time")
        at_all = self.populations.over_time(key.context, key.condition)
        seen = self.populations.reliable([i for i in at_all if self.populations.keys[i] != key])
        times = np.array([self.populations.keys[i].time for i in seen], dtype=float)
        if len(times) < 2 or times[0] <= key.time <= times[-1]:
            raise CannotPredict(f"{key._replace(time=None)} has no two times before or after time {key.time:g}")
        span = times[-1] - times[0]
        if not times[0] - span <= key.time <= times[-1] + span:
            raise CannotPredict(f"time {key.time:g} is farther beyond them than they span")
        mean = self.populations.mean[seen]
        if key.time < times[0]:
            times, mean = times[::-1], mean[::-1]
        steps, slopes = np.diff(mean, axis=0), np.diff(mean, axis=0) / np.diff(times)[:, None]
        guesses = slopes[:-1] * np.diff(times)[1:, None]  # of each step from the one before
        along, size = float((guesses * steps[1:]).sum()), float(np.square(guesses).sum())
        usual = size / len(guesses) if size > 0 else 1.0
        share = np.clip((along + EXPECTED_SHARE * usual) / (size + usual), 0, 1)
        last, step = mean[-1], share * slopes[-1] * (key.time - times[-1])
        if self.populations.is_non_negative:
            step = np.divide(step * last, last - step, out=step.copy(), where=step < 0)
        return np.asarray(last + step)


class TimeShift:
    """The source mean plus how the other contexts change from the source's time to the one asked for."""

    def fit(self, populations: Populations) -> TimeShift:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if key.time is None:
            raise CannotPredict(f"{key} has no time")
        shifts = []
        for context in self.populations.contexts:
            if context == key.context:
                continue
            try:
                start, end = (_mean_at(self.populations, k._replace(context=context)) for k in (source.key, key))
            except CannotPredict:
                continue
            shifts.append(end - start)
        if not shifts:
            raise CannotPredict(f"no other context was seen at or around time {key.time:g}")
        return np.asarray(source.mean + np.mean(shifts, axis=0))


def line_and_bends(populations: Populations, before: int, after: int, time: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean (G,) on the straight line at a time between those of two populations, and two ways off it, N_BENDS x G.

    To the cubic curve that has the means and, at both ends, the directions of `response.course` (Hermite's), shortened
    by the part of its square that comes of few cells (the positive part of James and Stein's); 0 where cells tell
    none. And to where logarithms of counts lie that go on evenly, as what grows or decays by a rate; 0 of other values.
    """
    ends = [before, after]
    times, mean = [populations.keys[i].time or 0.0 for i in ends], populations.mean[ends]
    share = (time - times[0]) / (times[1] - times[0]) if before != after else 0.0
    shares = np.array([1 - share, share])
    line, bends = shares @ mean, np.zeros((N_BENDS, mean.shape[1]))
    if before == after:
        return line, bends
    if populations.course is not None and populations.course.change[ends].any(axis=1).all():
        bends[0] = _way_to_curve(populations, ends, time, line)
    if populations.are_logarithms:
        by_rate = np.exp(shares @ np.log(np.expm1(mean) + PSEUDO_COUNT)) - PSEUDO_COUNT
        bends[1] = np.log1p(by_rate) - line
    return line, bends


def _way_to_curve(populations: Populations, ends: list[int], time: float, line: np.ndarray) -> np.ndarray:
    """From the straight line to the curve that cells tell (G,)."""
    from scipy.interpolate import CubicHermiteSpline

    course, times = populations.course, [populations.keys[i].time or 0.0 for i in ends]
    assert course is not None  # only then is it asked for
    way = CubicHermiteSpline(times, populations.mean[ends], course.change[ends])(time) - line
    share = (time - times[0]) / (times[1] - times[0])
    # how much of each end's direction is in it
    weight = share * (1 - share) * (times[1] - times[0]) * np.array([1 - share, share])
    noise = float(np.square(weight) * course.noise[ends] @ populations.variance[ends].sum(axis=1))
    size = float(way @ way)
    return np.asarray((max(0.0, 1 - noise / size) if size > 0 else 0.0) * way)


def times_around(populations: Populations, key: Population, *, itself: bool = True) -> tuple[int, int, float]:
    """The populations of the same context and condition before and after a time, and how far it lies between them.

    Without `itself`, the population of that very key does not count. Raises CannotPredict outside of the times seen.
    """
    if key.time is None:
        raise CannotPredict(f"{key} has no time")
    seen = [i for i in populations.over_time(key.context, key.condition) if itself or populations.keys[i] != key]
    seen = populations.reliable(seen)
    times = np.array([populations.keys[i].time for i in seen], dtype=float)
    if not len(times) or not times[0] <= key.time <= times[-1]:
        at = f"at times {times[0]:g} to {times[-1]:g}, not at {key.time:g}" if len(times) else "at no time"
        raise CannotPredict(f"{key._replace(time=None)}: seen {at}")
    right = max(int(np.searchsorted(times, key.time)), 1) if len(times) > 1 else 0
    left = max(right - 1, 0)
    share = (key.time - times[left]) / (times[right] - times[left]) if right > left else 0.0
    return seen[left], seen[right], float(share)


def last_time(populations: Populations, key: Population) -> int:
    """The population of the same context and condition at the latest time before the one asked for."""
    if key.time is None:
        raise CannotPredict(f"{key} has no time")
    seen = populations.over_time(key.context, key.condition)
    earlier = populations.reliable([i for i in seen if (populations.keys[i].time or 0.0) < key.time])
    if not earlier:
        raise CannotPredict(f"{key._replace(time=None)} was not seen before time {key.time:g}")
    return earlier[-1]


def interpolate(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Cells on the way from `before` to `after` (n x G each), paired by optimal transport: displacement interpolation.

    McCann (1997). For as many cells on both sides the plan is an assignment.
    """
    return np.asarray((1 - share) * before + share * after[paired(before, after)])


def paired(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which of `after` each of `before` goes to (n x G each), (n,), so that the squared distances are least."""
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    return np.asarray(linear_sum_assignment(cdist(before, after, "sqeuclidean"))[1])


def _mean_at(populations: Populations, key: Population, itself: bool = True) -> np.ndarray:
    """The mean of a context under a condition, linear between the times seen; CannotPredict outside of them."""
    before, after, share = times_around(populations, key, itself=itself)
    return np.asarray((1 - share) * populations.mean[before] + share * populations.mean[after])
