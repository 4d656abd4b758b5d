"""Whether a model beats every baseline, ties, or loses, as intervals of paired differences say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

COVERAGE = 0.95
MOST = 0.5
RELATIVE, ABSOLUTE = 1e-6, 1e-7
"""Differences below are those of rounding: cells are stored as float32."""
BEATS, TIES = "beats every baseline", "ties"


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its values over resamples (B,)."""

    value: float
    resampled: np.ndarray

    @classmethod
    def over_populations(cls, values: np.ndarray, drawn: np.ndarray) -> Estimate:
        """The mean of values of P populations, and its spread where populations are resampled (drawn: B x P counts).

        Resamples of few are too alike: their spread is widened by sqrt(n / (n - 1)) t / z, the points of Student's law
        with n - 1 degrees of freedom and of the normal one (Hesterberg, The American Statistician 2015). A population
        without a value counts in neither.
        """
        known = np.isfinite(values)
        n = int(known.sum())
        if n < 2:
            return cls(float(values[known].mean()) if n else float("nan"), np.full(len(drawn), np.nan))
        counts = drawn[:, known].sum(axis=1)
        means = np.divide(drawn[:, known] @ values[known], counts, out=np.full(len(drawn), np.nan), where=counts > 0)
        center, point = np.nanmean(means), 0.5 + COVERAGE / 2
        wider = np.sqrt(n / (n - 1)) * scipy.stats.t.ppf(point, n - 1) / scipy.stats.norm.ppf(point)
        means = np.where(np.isnan(means), center, means)  # a resample without any such population
        return cls(float(values[known].mean()), center + wider * (means - center))

    @property
    def is_known(self) -> bool:
        """Whether the value and most of the resamples are: the rest have none, as of few cells that do not vary."""
        return bool(np.isfinite(self.value) and np.isfinite(self.resampled).mean() > MOST)

    def at_most(self, best: float, higher_is_better: bool) -> Estimate:
        """With what is better than the best taken for the best, as the distance of a lucky draw that is below 0."""
        clip = np.minimum if higher_is_better else np.maximum
        around = self.value + self.resampled - (np.nanmean(self.resampled) if self.is_known else np.nan)
        return Estimate(float(clip(self.value, best)), clip(around, best))

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference: resample by resample."""
        return Estimate(float(difference(self.value, other.value)), difference(self.resampled, other.resampled))

    def interval(self) -> tuple[float, float]:
        """The spread of the resamples around the value, (low, high).

        Around the value, which it holds: resampling repeats cells, which shifts variances and distances.
        """
        if not self.is_known:
            return float("nan"), float("nan")
        tail = 100 * (1 - COVERAGE) / 2
        low, high = np.nanpercentile(self.resampled - np.nanmean(self.resampled), [tail, 100 - tail])
        return self.value + min(float(low), 0.0), self.value + max(float(high), 0.0)


def difference(one: float | np.ndarray, other: float | np.ndarray) -> np.ndarray:
    """one - other, and 0 where they differ by rounding alone."""
    gap = np.asarray(one - other)
    return np.where(np.abs(gap) <= ABSOLUTE + RELATIVE * np.abs(other), 0.0, gap)


def judge(model: Estimate, baselines: Mapping[str, Estimate], higher_is_better: bool) -> str:
    """The verdict on one metric, from resamples that are paired: see `judge_advantages`."""
    advantages = {name: model.minus(b) if higher_is_better else b.minus(model) for name, b in baselines.items()}
    return judge_advantages(advantages)


def judge_advantages(advantages: Mapping[str, Estimate]) -> str:
    """The verdict on how much better a model is than each baseline.

    `loses to NAME` when the interval of its advantage lies below 0 (the worst is named); `beats every baseline` when
    it lies above 0 for all; else `ties`. '' when no advantage is known, or when all that are lie above 0 and
    another has a value but no interval: then nobody can say that every baseline is beaten.
    """
    intervals = {name: advantage.interval() for name, advantage in advantages.items() if advantage.is_known}
    if not intervals:
        return ""
    worst = min(intervals, key=lambda name: intervals[name][1])
    if intervals[worst][1] < 0:
        return f"loses to {worst}"
    if not all(low > 0 for low, _ in intervals.values()):
        return TIES
    return "" if any(np.isfinite(a.value) and not a.is_known for a in advantages.values()) else BEATS


def severity(verdict: str) -> int:
    """Orders verdicts from the worst: losses, ties, wins, and last those that could not be judged."""
    ranks = {TIES: 1, BEATS: 2, "": 3}
    return ranks.get(verdict, 0)
