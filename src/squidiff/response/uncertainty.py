"""How far a predicted mean may be off: intervals of its shift, by errors on what was left out of training."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np

from squidiff.config import DOSE_SEPARATOR, PART_SEPARATOR
from squidiff.response.embedding import described_alike
from squidiff.response.groups import PARTS_ELSEWHERE, Group
from squidiff.response.populations import Population, Source
from squidiff.response.stack import Anchor, Lack, LeftOut

LEVELS = (0.5, 0.9)
"""Of the intervals."""
OF_SHIFT = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""Shares of a shift that its error may go with, to choose among."""
OF_SPREAD = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
"""The same of a gene's standard deviation within populations."""
MIN_LEFT_OUT = 2
ROUNDING = 1e-5
"""Of what describes a condition, in float32."""
UNTRIED = (0.3, 0.1)
"""What is taken where too few populations can be left out: a guess, and said to be one."""
SHARES = (0.5, 0.8, 0.95, 0.99)
"""Of genes, by the size of their shift, whose errors have widths of their own: the largest shifts are known best."""
MIN_ERRORS = 20
"""Of a width: of fewer, genes of smaller shifts are taken in."""
NORMAL: dict[float, tuple[float, ...]] = {0.5: (0.6745,), 0.9: (1.6449,)}
"""Half-widths of a normal distribution's intervals, in standard deviations."""


class Law(NamedTuple):
    """The size of a gene's error: sqrt(noise + (of_shift * shift)^2 + (of_spread * spread)^2), times `widths`."""

    of_shift: float
    of_spread: float
    widths: dict[float, tuple[float, ...]]
    """For each of LEVELS the quantiles of the errors in units of this size, of genes of small shifts to large ones."""
    edges: tuple[float, ...]
    """The sizes of shifts that divide them."""
    n_left_out: int

    def half_width(self, level: float, shift: np.ndarray, noise: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Of the interval of each gene, (G,)."""
        widths = np.array(self.widths[level])[np.searchsorted(self.edges, np.abs(shift))]
        return np.asarray(widths * self.size(shift, noise, variance))

    def size(self, shift: np.ndarray, noise: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """(G,)"""
        squared = noise + np.square(self.of_shift * shift) + self.of_spread**2 * variance
        return np.asarray(np.sqrt(np.maximum(squared, 1e-12)))


class Interval(NamedTuple):
    """Of the mean shift of one population, by level: (low, high), each (G,)."""

    shift: np.ndarray
    """(G,) predicted."""
    bounds: dict[float, tuple[np.ndarray, np.ndarray]]
    is_tried: bool
    """Whether the widths are of errors on populations that were left out, and no guess."""

    def columns(self) -> dict[str, np.ndarray]:
        """By the names that tables give them: shift, shift_low_50, shift_high_50, ..."""
        ends = {
            f"shift_{end}_{100 * level:.0f}": bound
            for level, bounds in self.bounds.items()
            for end, bound in zip(("low", "high"), bounds, strict=True)
        }
        return {"shift": self.shift, **ends}


class Uncertainty:
    """Intervals of an anchor's answers, and whether a question lies far from all that training saw.

    The parameters of the law of errors are those of the highest likelihood on training populations that are left out,
    and its widths are quantiles of their errors over genes, in the manner of conformal prediction (Lei et al. 2018).
    """

    def __init__(self, anchor: Anchor) -> None:
        self.anchor, self.populations = anchor, anchor.populations
        self._laws: dict[tuple[Group, Lack], Law] = {}

    def interval(self, key: Population, mean: np.ndarray, group: Group | None, source: Source) -> Interval:
        """Of a predicted mean (G,) that a group answered with; without a group only cells' sampling is uncertain.

        It holds the mean of as many cells as the population has in training, or as training populations usually have,
        those under a condition where one is asked for: the harmonic mean, as noise goes with 1 / n, of all that have
        half of the median or more.
        """
        populations, usual = self.populations, self._usual_n_cells[key.condition != ""]
        here, own = populations.find(source.key), populations.find(key)
        variance = populations.pooled_variance if here is None else populations.variance_of(here)
        noise = variance / (usual if here is None else populations.n_cells[here])
        noise = noise + (variance / usual if own is None else populations.variance_of(own) / populations.n_cells[own])
        law = Law(0.0, 0.0, NORMAL, (), 0) if group is None else self.law(group, key)
        shift = mean - source.mean
        half = {level: law.half_width(level, shift, noise, variance) for level in law.widths}
        bounds = {level: (shift - width, shift + width) for level, width in half.items()}
        return Interval(shift, bounds, group is None or law.n_left_out >= MIN_LEFT_OUT)

    @cached_property
    def _usual_n_cells(self) -> dict[bool, float]:
        """Of populations under a condition, and of those without."""
        n_cells, found = self.populations.n_cells, {}
        has_condition = np.array([key.condition != "" for key in self.populations.keys])
        for is_treated in (True, False):
            alike = n_cells[has_condition == is_treated]
            alike = alike if len(alike) else n_cells
            found[is_treated] = 1 / float(np.mean(1 / alike[alike >= np.median(alike) / 2]))
        return found

    def far(self, key: Population, features: np.ndarray, source: Source, group: Group | None) -> list[str]:
        """In what a question lies farther from training than training populations do from each other; else nothing."""
        found = []
        starts, nearest = self._starts
        distance = np.linalg.norm(starts - source.mean, axis=1).min(initial=np.inf)
        if nearest is not None and distance > nearest:
            found.append(f"the cells to start from are {distance / nearest:.1f} times as far from any of training's")
        if group is None:
            return found
        span = self.populations.time_span
        if key.time is not None and span is not None and not span[0] <= key.time <= span[1]:
            found.append(f"time {key.time:g} is beyond the times seen, {span[0]:g} to {span[1]:g}")
        unseen = self._unseen_features(key, features) if PARTS_ELSEWHERE in group.names else features
        if group.leaves_conditions_out and unseen.any():
            known = self.populations.features[self.populations.treated, 1:]
            distance = np.linalg.norm(known - unseen[1:], axis=1).min(initial=np.inf)
            nearest = self._nearest_condition
            if nearest is not None and distance > nearest:
                found.append(f"the condition is {distance / nearest:.1f} times as far from any of training's")
        parts, highest = _doses(key.condition), self._highest_doses
        is_beyond = any(dose > highest[name] * (1 + ROUNDING) for name, dose in parts if name in highest)
        if key.condition and len(parts) == 1 and parts[0][0] not in highest:  # there is no dose of its own to compare
            is_beyond = abs(features[0]) > self._strongest + ROUNDING
        if is_beyond:
            found.append("the dose is beyond those seen")
        if len(parts) > self._most_parts:
            found.append(f"it has {len(parts)} parts, and what was seen has {self._most_parts} at most")
        return found

    @cached_property
    def _most_parts(self) -> int:
        """Of a condition; two at the least, as every pair is of single conditions."""
        return max(2, *(key.condition.count(PART_SEPARATOR) + 1 for key in self.populations.keys))

    @cached_property
    def _strongest(self) -> float:
        """Of single conditions, by the first feature."""
        single = [PART_SEPARATOR not in key.condition for key in self.populations.keys]
        return float(np.abs(self.populations.features[single, 0]).max(initial=0.0))

    @cached_property
    def _highest_doses(self) -> dict[str, float]:
        """Of every part, alone or in combinations, by its name."""
        found: dict[str, float] = {}
        for name, dose in (of for key in self.populations.keys if key.condition for of in _doses(key.condition)):
            found[name] = max(dose, found.get(name, 0.0))
        return found

    def _unseen_features(self, key: Population, features: np.ndarray) -> np.ndarray:
        """What the parts of a combination that no context saw alone leave of what describes it."""
        alone = self.populations.features_of
        seen = [alone[part] for part in key.condition.split(PART_SEPARATOR) if part in alone]
        rest = features - np.sum([np.zeros_like(features), *seen], axis=0)
        return np.where(np.abs(rest) > ROUNDING, rest, 0.0)

    @cached_property
    def _starts(self) -> tuple[np.ndarray, float | None]:
        """The means that predictions may start from, and the largest distance of one to the nearest other."""
        starts = self.populations.mean[[i for i, k in enumerate(self.populations.keys) if k.condition == ""]]
        return starts, self._nearest_other(starts)

    @cached_property
    def _nearest_condition(self) -> float | None:
        features = self.populations.features[self.populations.treated, 1:]
        _, first = np.unique(described_alike(features), return_index=True)
        return self._nearest_other(features[first])

    @staticmethod
    def _nearest_other(rows: np.ndarray) -> float | None:
        """The largest distance of a row to the nearest other; None where fewer than two differ."""
        from scipy.spatial.distance import cdist

        distance = cdist(rows, rows)
        np.fill_diagonal(distance, np.inf)
        nearest = distance.min(axis=1, initial=np.inf)
        nearest = nearest[np.isfinite(nearest) & (nearest > 0)]
        return float(nearest.max()) if len(nearest) else None

    def law(self, group: Group, key: Population) -> Law:
        """Of the errors of a group of predictors where as much lacks as of a population."""
        lack = self.anchor.lack(group, key)
        if (group, lack) not in self._laws:
            left_out = self.anchor.errors(group, lack)
            if lack.all_here and len(left_out) < MIN_LEFT_OUT:  # as where one context alone answered to anything
                left_out = self.anchor.errors(group, lack._replace(all_here=False))
            self._laws[group, lack] = fit_law(left_out)
        return self._laws[group, lack]


def _doses(condition: str) -> list[tuple[str, float]]:
    """The names and doses of a condition's parts, 0 where there is none; names may hold anything, ` @ 10uM` too."""
    found = []
    for part in condition.split(PART_SEPARATOR):
        name, _, after = part.rpartition(DOSE_SEPARATOR)
        try:
            found.append((name, float(after.split(" ")[0])))
        except ValueError:
            found.append((part, 0.0))
    return found


def fit_law(left_out: list[LeftOut]) -> Law:
    """The law of the errors of populations that were left out; a guess where there are fewer than MIN_LEFT_OUT."""
    if len(left_out) < MIN_LEFT_OUT:
        return Law(*UNTRIED, NORMAL, (), len(left_out))
    tried = [Law(a, b, {}, (), 0) for a in OF_SHIFT for b in OF_SPREAD]
    surprise = [sum(_surprise(law, x) for x in left_out) for law in tried]
    best = tried[int(np.argmin(surprise))]
    shown = [x.noise > 0 for x in left_out]  # where nothing is shown any interval would hold the mean
    scaled = np.concatenate(
        [(np.abs(x.error) / best.size(x.shift, x.noise, x.variance))[s] for x, s in zip(left_out, shown, strict=True)]
    )
    if not len(scaled):
        return best._replace(widths=NORMAL, n_left_out=len(left_out))
    shift = np.concatenate([np.abs(x.shift)[s] for x, s in zip(left_out, shown, strict=True)])
    # each is the shift of a gene, so that none is left without errors, also where many shifts are 0
    edges = np.unique(np.quantile(shift, SHARES, method="higher")).tolist()
    edges = [edge for edge in edges if (shift > edge).sum() >= MIN_ERRORS]
    part = np.searchsorted(edges, shift)
    widths = {
        level: tuple(float(np.quantile(scaled[part == k], level)) for k in range(len(edges) + 1)) for level in LEVELS
    }
    return best._replace(widths=widths, edges=tuple(edges), n_left_out=len(left_out))


def _surprise(law: Law, x: LeftOut) -> float:
    """The negative log-likelihood of errors as of Laplace's law, whose tails bear a few genes that are far off.

    Without genes that the source does not show, whose mean nearly any interval holds.
    """
    size = law.size(x.shift, x.noise, x.variance)
    return float((np.abs(x.error) / size + np.log(size))[x.noise > 0].sum())
