"""The mean under a condition, set right by what was missed in relatives: a donor's other types, other times, doses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from squidiff.config import CONTEXT_SEPARATOR
from squidiff.response.embedding import directions
from squidiff.response.law import solve, sums_of_products, variance_about
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, Predictor, WeightedShift, drawn

MAX_LEARNED = 30
"""Populations that the law is learned from."""
MAX_CONTEXTS, N_NEAREST = 4, 2
"""Relatives of a kind: contexts that share a value, and times or doses of the same context."""
MIN_LEARNED = 3
"""Populations with relatives, of which fewer are no law."""
LEAST = 1e-9
"""Sum of squares that is as good as none."""


class _Learned(NamedTuple):
    """What n populations tell, by K terms."""

    rows: list[int]
    products: np.ndarray
    """n x K x K"""
    with_rest: np.ndarray
    """n x K"""
    variance: float


class RelatedPopulations:
    """The source mean plus what a fitted predictor says of the condition, corrected by what was missed in relatives.

    Contexts of several keys (cell type and donor) are related where they share the value of one: for each key what was
    seen there under the same condition and what under others are two kinds of relatives; further kinds are the nearest
    other times of a context under the condition, and its next lower doses. Of each relative the proportional shift says
    what it should show, as if neither it nor what is asked for had been seen, and misses some. A law is learned of what
    the predictor misses, of 1 + 2 terms for each kind: its own shift; that shift times how much more strongly than was
    said the relatives answered; and the mean of what they had beyond that. So a donor who answers strongly, or in a way
    of his own, is known by his other cell types, where donors do that. The coefficients are of ridge regression, drawn
    to 0, of the kinds that there are.
    """

    def __init__(self, base: Predictor) -> None:
        self.base = base

    def fit(self, populations: Populations) -> RelatedPopulations:
        self.populations, self.said = populations, WeightedShift(in_proportion=True)
        self.directions = directions(populations.features[:, 1:])
        self._sharing: dict[tuple[int, str, float | None], list[int]] = {}
        self._over_time: dict[tuple[str, str], list[int]] = {}
        self._learned: _Learned | None = None  # not before it is asked for
        for i in populations.treated:
            key = populations.keys[i]
            for n, value in enumerate(key.context.split(CONTEXT_SEPARATOR)):
                self._sharing.setdefault((n, value, key.time), []).append(i)
            self._over_time.setdefault((key.context, key.condition), []).append(i)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if not any(self._relatives(key, features, source)):
            raise CannotPredict(f"no related context, time or dose of {key} was seen under the condition")
        if self._learned is None:
            self.said.fit(self.populations)
            self._learned = self._learn()
        terms, known, own = self._terms(key, features, source), self._learned, self.populations.find(key)
        others = np.array([k for k, row in enumerate(known.rows) if row != own], dtype=int)
        if len(others) < MIN_LEARNED or not terms[1:].any():
            raise CannotPredict(f"too few populations were seen that have relatives as {key} has")
        there = np.flatnonzero(terms.any(axis=1))  # relatives of one kind tell more where there are none of another
        products, with_rest = known.products[others].sum(axis=0), known.with_rest[others].sum(axis=0)
        coefficients = solve(products[np.ix_(there, there)], with_rest[there], known.variance, terms.shape[1])
        return self.populations.bounded(source.mean + terms[0] + coefficients @ terms[there])

    def _learn(self) -> _Learned:
        populations = self.populations
        found: list[tuple[int, np.ndarray]] = []
        known = [i for i in populations.treated if populations.elsewhere(populations.keys[i])]
        for i in drawn(sorted(known, key=self._name), MAX_LEARNED):
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            terms = self._terms(populations.keys[i], populations.features[i], source)
            if terms[1:].any():
                found.append((i, terms))
        if not found:
            none = np.zeros(0)
            return _Learned([], none, none, 0.0)
        rows, terms = [i for i, _ in found], np.stack([of_one for _, of_one in found])
        rest = populations.shifts(rows) - terms[:, 0]
        products, with_rest = sums_of_products(terms, rest)
        variance = variance_about(terms, rest, products.sum(axis=0), with_rest.sum(axis=0))
        return _Learned(rows, products, with_rest, variance)

    def _relatives(self, key: Population, features: np.ndarray, source: Source) -> list[list[int]]:
        """The populations of each kind."""
        populations, values = self.populations, key.context.split(CONTEXT_SEPARATOR)
        kinds = []
        for n, value in enumerate(values if len(values) > 1 else ()):
            sharing = [i for i in self._sharing.get((n, value, key.time), []) if populations.keys[i] != key]
            for is_same in (True, False):
                of_kind = [i for i in sharing if (populations.keys[i].condition == key.condition) == is_same]
                kinds.append(self._most_alike(of_kind, source))
        over_time = [] if key.time is None else self._over_time.get((key.context, key.condition), [])
        times = {i: populations.keys[i].time or 0.0 for i in over_time}
        asked = directions(features[None, 1:])[0]
        at_time = populations.treated_at.get((key.context, key.time), []) if features[1:].any() else []
        alike = [i for i in at_time if np.array_equal(self.directions[i], asked) and populations.keys[i] != key]
        strength = populations.features[:, 0] * np.sign(features[0])
        lower = {i: float(strength[i]) for i in alike if 0 < strength[i] < abs(features[0])}
        return [*kinds, _nearest(times, key.time or 0.0), _nearest(lower, float(abs(features[0])))]

    def _terms(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        """K x G; 0 of a kind of which there are no relatives."""
        shift = self.base.predict(key, features, source) - source.mean
        terms = [shift]
        for of_kind in self._relatives(key, features, source):
            stronger, beyond = self._missed(of_kind, self.populations.find(key))
            terms += [stronger * shift, beyond]
        return np.stack(terms)

    def _most_alike(self, some: list[int], source: Source) -> list[int]:
        """Those that start from cells most like the source, whatever order they are in."""
        starts = self.populations.mean[self.populations.sources[some]]
        distance = np.square(starts - source.mean).sum(axis=1).tolist()
        names = [self._name(i) for i in some]
        return [i for *_, i in sorted(zip(distance, names, some, strict=True))[:MAX_CONTEXTS]]

    def _name(self, index: int) -> tuple[str, str, float]:
        key = self.populations.keys[index]
        return key.context, key.condition, key.time or 0.0

    def _missed(self, relatives: list[int], own: int | None) -> tuple[float, np.ndarray]:
        """How much more strongly than said they answered, as a share, and their mean beyond that, (G,).

        `own` is the population asked for, which nothing is learned from.
        """
        populations, said, rest = self.populations, [], []
        for i in relatives:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            try:
                mean = self.said.predict_without(own, populations.keys[i], source)
            except CannotPredict:
                continue
            said.append(mean - source.mean)
            rest.append(populations.mean[i] - mean)
        if not said:
            return 0.0, np.zeros(populations.mean.shape[1])
        shifts, missed = np.stack(said), np.stack(rest)
        stronger = float((shifts * missed).sum() / max(float(np.square(shifts).sum()), LEAST))
        return stronger, (missed - stronger * shifts).mean(axis=0)


def _nearest(at: dict[int, float], asked: float) -> list[int]:
    """The populations at the times or doses nearest to one, and not at it; of two as near the lower one first."""
    others = [i for i, value in at.items() if value != asked]
    return sorted(others, key=lambda i: (abs(at[i] - asked), at[i]))[:N_NEAREST]
