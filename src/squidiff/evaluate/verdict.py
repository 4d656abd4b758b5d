"""Whether a model beats every baseline, ties, or loses, as intervals of paired differences say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.stats

COVERAGE = 0.95
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
        """Whether neither the value nor a resample is NaN."""
        return bool(np.isfinite(self.value) and np.isfinite(self.resampled).all())

    def at_most(self, best: float, higher_is_better: bool) -> Estimate:
        """With what is better than the best taken for the best, as the distance of a lucky draw that is below 0."""
        clip = np.minimum if higher_is_better else np.maximum
        around = self.value + self.resampled - self.resampled.mean()
        return Estimate(float(clip(self.value, best)), clip(around, best))

    def minus(self, other: Estimate) -> Estimate:
        """The paired difference: resample by resample."""
        return Estimate(self.value - other.value, self.resampled - other.resampled)

    def interval(self) -> tuple[float, float]:
        """The spread of the resamples around the value, (low, high).

        Centred on the value: resampling with replacement repeats cells, which shifts variances and distances.
        """
        tail = 100 * (1 - COVERAGE) / 2
        low, high = np.percentile(self.resampled - self.resampled.mean(), [tail, 100 - tail])
        return self.value + float(low), self.value + float(high)


def judge(model: Estimate, baselines: Mapping[str, Estimate], higher_is_better: bool) -> str:
    """The verdict on one metric, from resamples that are paired: see `judge_advantages`."""
    advantages = {name: model.minus(b) if higher_is_better else b.minus(model) for name, b in baselines.items()}
    return judge_advantages(advantages)


def judge_advantages(advantages: Mapping[str, Estimate]) -> str:
    """The verdict on how much better a model is than each baseline.

    `loses to NAME` when the interval of its advantage lies below 0 (the worst is named); `beats every baseline` when
    it lies above 0 for all; else `ties`. '' when no advantage is known.
    """
    intervals = {name: advantage.interval() for name, advantage in advantages.items() if advantage.is_known}
    if not intervals:
        return ""
    worst = min(intervals, key=lambda name: intervals[name][1])
    if intervals[worst][1] < 0:
        return f"loses to {worst}"
    return BEATS if all(low > 0 for low, _ in intervals.values()) else TIES


def severity(verdict: str) -> int:
    """Orders verdicts from the worst: losses, ties, wins, and last those that could not be judged."""
    ranks = {TIES: 1, BEATS: 2, "": 3}
    return ranks.get(verdict, 0)
