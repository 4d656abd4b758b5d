"""Whether a model beats every baseline, ties, or loses, as intervals of paired differences say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

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

        A population without a value counts in neither.
        """
        known = np.isfinite(values)
        if not known.any():
            return cls(float("nan"), np.full(len(drawn), np.nan))
        n = drawn[:, known].sum(axis=1)
        total = drawn[:, known] @ values[known]
        return cls(float(values[known].mean()), np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0))

    @property
    def is_known(self) -> bool:
        """Whether neither the value nor a resample is NaN."""
        return bool(np.isfinite(self.value) and np.isfinite(self.resampled).all())

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
