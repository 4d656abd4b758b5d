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
    """The verdict on one metric.

    `loses to NAME` when the interval of the model's advantage over a baseline lies below 0 (the worst is named);
    `beats every baseline` when it lies above 0 for all; else `ties`. '' when the model or every baseline has no value.
    """
    known = {name: b for name, b in baselines.items() if b.is_known}
    if not known or not model.is_known:
        return ""
    advantages = {
        name: (model.minus(b) if higher_is_better else b.minus(model)).interval() for name, b in known.items()
    }
    worst = min(advantages, key=lambda name: advantages[name][1])
    if advantages[worst][1] < 0:
        return f"loses to {worst}"
    return BEATS if all(low > 0 for low, _ in advantages.values()) else TIES


def severity(verdict: str) -> int:
    """Orders verdicts from the worst: losses, ties, wins, and last those that could not be judged."""
    ranks = {TIES: 1, BEATS: 2, "": 3}
    return ranks.get(verdict, 0)
