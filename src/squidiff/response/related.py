"""The mean under a condition, set right by what was missed in relatives: a donor's other types, other times, doses."""

from __future__ import annotations

import numpy as np

from squidiff.response.dose import doses_of
from squidiff.response.embedding import directions
from squidiff.response.law import Learned
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
        self._learned: Learned | None = None  # not before it is asked for
        for i in populations.treated:
            key = populations.keys[i]
            for n, value in enumerate(key.values):
                self._sharing.setdefault((n, value, key.time), []).append(i)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        relatives = self._relatives(key, features, source)
        if not any(relatives):
            raise CannotPredict(f"no related context, time or dose of {key} was seen under the condition")
        if self._learned is None:
            self.said.fit(self.populations)
            self._learned = self._learn()
        terms, others = self._terms(key, features, source, relatives), self._learned.others(self.populations.find(key))
        if len(others) < MIN_LEARNED or not terms[1:].any():
            raise CannotPredict(f"too few populations were seen that have relatives as {key} has")
        there = np.flatnonzero(terms.any(axis=1))  # relatives of one kind tell more where there are none of another
        said, beyond = source.mean + terms[0], self._learned.coefficients(others, there) @ terms[there]
        return self.populations.bounded(said + beyond, said)

    def _learn(self) -> Learned:
        populations = self.populations
        found: list[tuple[int, np.ndarray]] = []
        known = [i for i in populations.treated if populations.elsewhere(populations.keys[i])]
        for i in drawn(sorted(known, key=populations.name_of), MAX_LEARNED):
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            asked = populations.keys[i], populations.features[i], source
            terms = self._terms(*asked, self._relatives(*asked))
            if terms[1:].any():
                found.append((i, terms))
        if not found:
            return Learned.nothing()
        rows, terms = [i for i, _ in found], np.stack([of_one for _, of_one in found])
        return Learned.of(rows, terms, populations.shifts(rows) - terms[:, 0])

    def _relatives(self, key: Population, features: np.ndarray, source: Source) -> list[list[int]]:
        """The populations of each kind."""
        populations, kinds = self.populations, []
        for n, value in enumerate(key.values if len(key.values) > 1 else ()):
            sharing = [i for i in self._sharing.get((n, value, key.time), []) if populations.keys[i] != key]
            for is_same in (True, False):
                of_kind = [i for i in sharing if (populations.keys[i].condition == key.condition) == is_same]
                kinds.append(self._most_alike(of_kind, source))
        treated, over_time = populations.treated_at, populations.over_time(key.context, key.condition)
        over_time = [i for i in over_time if i in treated.get((key.context, populations.keys[i].time), [])]
        times = {i: populations.keys[i].time or 0.0 for i in over_time}
        here = [i for i in treated.get((key.context, key.time), []) if populations.keys[i] != key]
        wanted, doses = abs(float(features[0])), doses_of(populations, self.directions, here, features)
        lower = {i: dose for i, dose in doses.items() if 0 < dose < wanted}
        return [*kinds, _nearest(times, key.time or 0.0), _nearest(lower, wanted)]

    def _terms(self, key: Population, features: np.ndarray, source: Source, relatives: list[list[int]]) -> np.ndarray:
        """K x G; 0 of a kind of which there are no relatives."""
        shift = self.base.predict(key, features, source) - source.mean
        terms = [shift]
        for of_kind in relatives:
            stronger, beyond = self._missed(of_kind, self.populations.find(key))
            terms += [stronger * shift, beyond]
        return np.stack(terms)

    def _most_alike(self, some: list[int], source: Source) -> list[int]:
        """Those that start from cells most like the source, whatever order they are in."""
        starts = self.populations.mean[self.populations.sources[some]]
        distance = np.square(starts - source.mean).sum(axis=1).tolist()
        names = [self.populations.name_of(i) for i in some]
        return [i for *_, i in sorted(zip(distance, names, some, strict=True))[:MAX_CONTEXTS]]

    def _missed(self, relatives: list[int], own: int | None) -> tuple[float, np.ndarray]:
        """How much more strongly than said they answered, as a share, and their mean beyond that, (G,).

        `own` is the population asked for, which nothing is learned from.
        """
        populations, said, rest = self.populations, [], []
        for i in relatives:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            try:
                mean = self.said.predict_without(populations.keys[i], source, own)
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
