"""The mean at a time that was never seen, from what other contexts and conditions do between the same times."""

from __future__ import annotations

import itertools

import numpy as np

from squidiff.response.law import coefficients
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, drawn
from squidiff.response.time import MAX_LEARNED, N_BENDS, line_and_bends, times_around

N_KINDS = 3
"""Of others: under the same condition, in the same context, neither."""
N_TERMS = N_KINDS + 2
Trajectory = tuple[str, str]
"""A context under a condition."""
Times = tuple[float, float, float]
"""One, and those before and after it in the middle of which it lies."""


class SharedCourse:
    """The straight line between the times around, and beside it what others do beyond theirs.

    Others are trajectories (contexts under conditions) that have cells at the time asked for and at both times around
    it. Five terms make a law, by ridge regression over the times between two others that training has: how far the
    mean of a trajectory is off its line goes with how far the same condition is in other contexts, other conditions in
    the same context, and all the rest, each on average, and with how it is bent itself (`line_and_bends`).
    """

    def fit(self, populations: Populations) -> SharedCourse:
        self.populations, self.at = populations, _by_time(populations)
        self._off: dict[Times, tuple[list[Trajectory], np.ndarray]] = {}
        found = []
        for trajectory, times in self._times_between():
            terms = self._terms(trajectory, times)
            if terms[N_BENDS:].any():
                trajectories, off = self._off[times]
                found.append((terms, off[trajectories.index(trajectory)]))
        self.coefficients = None
        if found:
            self.coefficients = coefficients(*map(np.stack, zip(*found, strict=True)))
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        before, after, share = times_around(self.populations, key, itself=False)
        ends = [self.populations.keys[i].time or 0.0 for i in (before, after)]
        if not set(ends) <= set(self.at.get((key.context, key.condition), {})):  # of few cells, beside a time of many
            raise CannotPredict(f"{key._replace(time=None)} has few cells at the times around {key.time:g}")
        terms = self._terms((key.context, key.condition), (ends[0], key.time or 0.0, ends[1]))
        if self.coefficients is None or not terms[N_BENDS:].any():
            raise CannotPredict("nothing else was seen at these times and between them")
        line = (1 - share) * self.populations.mean[before] + share * self.populations.mean[after]
        return self.populations.bounded(line + self.coefficients @ terms, line)

    def _times_between(self) -> list[tuple[Trajectory, Times]]:
        """Every time between two others of every trajectory, or some of them."""
        found = []
        for trajectory, of in self.at.items():
            times = sorted(of)
            found += [(trajectory, three) for three in zip(times, times[1:], times[2:], strict=False)]
        return [found[k] for k in drawn(range(len(found)), MAX_LEARNED)]

    def _terms(self, trajectory: Trajectory, times: Times) -> np.ndarray:
        """How far off the line its own bends lead, and others are: three kinds of them, (N_BENDS + N_KINDS) x G."""
        if times not in self._off:
            self._off[times] = self._off_their_lines(times)
        others, off = self._off[times]
        terms, kinds = np.zeros((N_BENDS + N_KINDS, off.shape[1])), [_kind(of, trajectory) for of in others]
        for kind in range(N_KINDS):
            these = [i for i, found in enumerate(kinds) if found == kind]
            if these:
                terms[N_BENDS + kind] = off[these].mean(axis=0)
        before, after = (self.at[trajectory][t] for t in (times[0], times[2]))
        terms[:N_BENDS] = line_and_bends(self.populations, before, after, times[1])[1]
        return terms

    def _off_their_lines(self, times: Times) -> tuple[list[Trajectory], np.ndarray]:
        """The trajectories that have all three times, T of them, and how far their means are off the lines, T x G."""
        before, time, after = times
        others = [
            trajectory for trajectory, of in self.at.items() if before < time < after and all(t in of for t in times)
        ]
        rows = np.array([[self.at[trajectory][t] for t in times] for trajectory in others], dtype=int).reshape(-1, 3)
        share = (time - before) / (after - before) if after > before else 0.0
        mean = self.populations.mean
        return others, mean[rows[:, 1]] - (1 - share) * mean[rows[:, 0]] - share * mean[rows[:, 2]]


class SharedStep:
    """Beyond the last time of a context under a condition: that time's mean plus the step that others take from there.

    Others are trajectories that have cells at both times, of the nearest kind that there is: the same condition in
    other contexts, else other conditions in the same context, else all others. A law is learned for each kind, by ridge
    regression over the steps between neighbouring times that training has: how a trajectory's step differs from that of
    the others goes with the size of theirs, with how the steps of the farther kinds differ from it, and with how it had
    gone otherwise than they before: since all earlier times on average, and since the last of them. So where a context
    has its own level for good, it keeps it.
    """

    def fit(self, populations: Populations) -> SharedStep:
        self.populations, self.at = populations, _by_time(populations)
        self._members: dict[tuple[float, ...], list[Trajectory]] = {}
        steps = [(of, *two) for of, at in self.at.items() for two in itertools.pairwise(sorted(at))]
        found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(N_KINDS)]
        for k in drawn(range(len(steps)), MAX_LEARNED):
            trajectory, start, end = steps[k]
            own, after = (populations.mean[self.at[trajectory][t]] for t in (start, end))
            for kind, rows in enumerate(found):
                terms = self._terms(trajectory, kind, start, end, own)
                if terms is not None:
                    rows.append((terms, after - own - terms[0]))
        self.laws = [
            coefficients(*map(np.stack, zip(*rows, strict=True))) if rows else np.zeros(N_TERMS) for rows in found
        ]
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        trajectory, end = (key.context, key.condition), key.time or 0.0
        earlier = [t for t in self.at.get(trajectory, {}) if key.time is not None and t < key.time]
        if (source.key.context, source.key.condition) == trajectory and source.key.time is not None:
            start, own = source.key.time, source.mean
        elif earlier:  # the source is the control cells, and the condition was seen before
            start = max(earlier)
            own = self.populations.mean[self.at[trajectory][start]]
        else:
            raise CannotPredict(f"{key._replace(time=None)} was seen at no time to start from")
        for kind, law in enumerate(self.laws):
            terms = self._terms(trajectory, kind, start, end, own)
            if terms is not None:
                return self.populations.bounded(own + terms[0] + law @ terms, own)
        raise CannotPredict(f"nothing else was seen at time {start:g} and at time {end:g}")

    def _terms(self, trajectory: Trajectory, kind: int, start: float, end: float, own: np.ndarray) -> np.ndarray | None:
        """The step of others of a kind, and what the law has beside it, N_TERMS x G; None without such others."""
        mean, here = self.populations.mean, self.at.get(trajectory, {})
        step = self._of_others(trajectory, kind, start, end)
        if step is None:
            return None
        otherwise = []
        for time in sorted(t for t in here if t < start):
            of_others = self._of_others(trajectory, kind, time, start, end)
            if of_others is not None:
                otherwise.append(own - mean[here[time]] - of_others)
        terms = np.zeros((N_TERMS, len(own)))
        terms[0] = step
        for farther in range(kind + 1, N_KINDS):
            of_these = self._of_others(trajectory, farther, start, end)
            if of_these is not None:
                terms[farther] = of_these - step
        if otherwise:
            terms[N_KINDS:] = np.mean(otherwise, axis=0), otherwise[-1]
        return terms

    def _of_others(self, trajectory: Trajectory, kind: int, *times: float) -> np.ndarray | None:
        """(G,) the mean change from the first to the second time of others that have these times; None without."""
        if times not in self._members:
            self._members[times] = [of for of, at in self.at.items() if all(t in at for t in times)]
        others = [of for of in self._members[times] if _kind(of, trajectory) == kind]
        if not others:
            return None
        first, second = (self.populations.mean[[self.at[of][t] for of in others]].mean(axis=0) for t in times[:2])
        return np.asarray(second - first)


def _kind(other: Trajectory, trajectory: Trajectory) -> int | None:
    """Of another trajectory: 0 under the same condition, 1 in the same context, 2 neither; None for the very one."""
    if other == trajectory:
        return None
    return 0 if other[1] == trajectory[1] else 1 if other[0] == trajectory[0] else 2


def _by_time(populations: Populations) -> dict[Trajectory, dict[float, int]]:
    """The populations of every trajectory by time, those of enough cells if there are such."""
    found = {}
    for of in dict.fromkeys((key.context, key.condition) for key in populations.keys if key.time is not None):
        seen = populations.reliable(populations.over_time(*of))
        found[of] = {populations.keys[i].time or 0.0: i for i in seen}
    return found
