"""The mean under a condition that other contexts saw, set right by how this one answered to others that they saw."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np

from squidiff.response.law import Learned, share_of_common
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, Predictor, drawn, elsewhere

MIN_SHARED = 2
"""Conditions that a context shares with others, of which fewer say nothing of how it answers."""
MAX_SHARED = 30
"""Conditions of a context that are learned from."""


class _Learned(NamedTuple):
    """What the conditions of one context and time tell."""

    law: Learned
    beyond: np.ndarray
    """n x G, of the shift beyond the law, and how much of their mean one more has."""
    share: float


class TunedShift:
    """The source mean plus what a fitted predictor says of the condition, corrected by what it missed here before.

    Of each condition j that this context saw and others too, the predictor says f_j, as if this context had not, and
    misses r_j. A law of few coefficients is learned of that, r_j = a f_j + sum over contexts c of b_c (s_jc - mean over
    contexts of s_jc), with s_jc the shift that c had: a context may answer more strongly than all others, or as some of
    them do, whatever its control cells are like. The coefficients are of ridge regression, drawn to 0 the more the
    fewer conditions there are. What is left is common to all conditions here as far as it was when each was left out.
    With `own`, what that predictor says beyond f_j is one more term: of a line between doses that this context saw.
    What was seen of the very condition asked for counts only through what the predictors say of the others.
    """

    def __init__(self, base: Predictor, own: Predictor | None = None) -> None:
        self.base, self.own = base, own

    def fit(self, populations: Populations) -> TunedShift:
        self.populations = populations
        self._learned: dict[tuple[str, float | None], _Learned] = {}
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        here = key.context, key.time
        if here not in self._learned:  # not before it is asked for: of many contexts one may be
            self._learned[here] = self._learn(self.populations.treated_at.get(here, []))
        known, own = self._learned[here], self.populations.find(key)
        others = known.law.others(own)
        if len(others) < MIN_SHARED:
            raise CannotPredict(f"fewer than {MIN_SHARED} other conditions were seen in {key.context!r} and elsewhere")
        terms = self._terms(key, features, source)
        said = source.mean + terms[0]
        mean = said + known.law.coefficients(others) @ terms + known.share * known.beyond[others].mean(axis=0)
        return self.populations.bounded(mean, said)

    def _learn(self, here: list[int]) -> _Learned:
        populations = self.populations
        rows: list[int] = []
        found: list[np.ndarray] = []
        for i in drawn([i for i in here if populations.elsewhere(populations.keys[i])], MAX_SHARED):
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            try:
                found.append(self._terms(populations.keys[i], populations.features[i], source))
            except CannotPredict:
                continue
            rows.append(i)
        if not rows:
            return _Learned(Learned.nothing(), np.zeros(0), 0.0)
        terms = np.stack(found)
        rest = populations.shifts(rows) - terms[:, 0]
        law = Learned.of(rows, terms, rest)
        beyond = rest - law.coefficients() @ terms
        return _Learned(law, beyond, share_of_common(beyond))

    def _terms(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        """What the coefficients are of, K x G: what the base says, then by how much each context differs from all."""
        others = elsewhere(self.populations, key)
        shifts = self.populations.shifts(others)
        differences = shifts - shifts.mean(axis=0)
        terms = np.zeros((2 + len(self.populations.contexts), shifts.shape[1]))
        terms[0] = self.base.predict(key, features, source) - source.mean
        if self.own is not None:
            with suppress(CannotPredict):
                terms[-1] = self.own.predict(key, features, source) - source.mean - terms[0]
        for i, difference in zip(others, differences, strict=True):
            terms[1 + self.populations.contexts.index(self.populations.keys[i].context)] = difference
        return terms
