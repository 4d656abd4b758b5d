"""The mean in a context of several keys, set right by what was missed in contexts that share one of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from squidiff.config import CONTEXT_SEPARATOR
from squidiff.response.law import solve, sums_of_products, variance_about
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, Predictor, WeightedShift, drawn

MAX_LEARNED = 40
"""Populations that the law is learned from."""
MAX_RELATED = 6
"""Contexts that share a value with one, of each key."""
MIN_LEARNED = 3
"""Populations with related contexts, of which fewer are no law."""
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


class RelatedContexts:
    """The source mean plus what a fitted predictor says of the condition, corrected by what was missed in relatives.

    Contexts of several keys (cell type and donor) are related where they share the value of one. Of each relative the
    proportional shift says what it should show under the condition, as if neither it nor the context asked for had been
    seen, and misses some. A law is learned of what the predictor misses, of 1 + 2 terms for each key: its own shift;
    that shift times how much more strongly than was said the relatives of that key answered; and the mean of what they
    had beyond that. So a donor who answers strongly, or in a way of his own, is known by his other cell types, where
    donors do that. The coefficients are of ridge regression, drawn to 0.
    """

    def __init__(self, base: Predictor) -> None:
        self.base = base

    def fit(self, populations: Populations) -> RelatedContexts:
        self.populations, self.said = populations, WeightedShift(in_proportion=True)
        self._related: dict[tuple[int, str, str, float | None], list[int]] = {}
        self._learned: _Learned | None = None  # not before it is asked for
        for i in populations.treated:
            key = populations.keys[i]
            for n, value in enumerate(_values(key)):
                self._related.setdefault((n, value, key.condition, key.time), []).append(i)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if len(_values(key)) < 2:
            raise CannotPredict(f"context {key.context!r} has one key alone, which no other shares")
        if self._learned is None:
            self.said.fit(self.populations)
            self._learned = self._learn()
        terms, known, own = self._terms(key, features, source), self._learned, self.populations.find(key)
        others = np.array([k for k, row in enumerate(known.rows) if row != own], dtype=int)
        if len(others) < MIN_LEARNED or not terms[1:].any():
            raise CannotPredict(f"condition {key.condition!r} was seen in too few contexts related to {key.context!r}")
        totals = known.products[others].sum(axis=0), known.with_rest[others].sum(axis=0)
        coefficients = solve(*totals, known.variance, terms.shape[1])
        return self.populations.bounded(source.mean + terms[0] + coefficients @ terms)

    def _learn(self) -> _Learned:
        populations = self.populations
        found: list[tuple[int, np.ndarray]] = []
        for i in drawn([i for i in populations.treated if populations.elsewhere(populations.keys[i])], MAX_LEARNED):
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

    def _terms(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        """K x G; 0 of a key of which there are no relatives."""
        shift = self.base.predict(key, features, source) - source.mean
        terms = [shift]
        for n, value in enumerate(_values(key)):
            stronger, beyond = self._missed((n, value, key.condition, key.time), key)
            terms += [stronger * shift, beyond]
        return np.stack(terms)

    def _missed(self, of: tuple[int, str, str, float | None], key: Population) -> tuple[float, np.ndarray]:
        """How much more strongly than said the relatives answered, as a share, and their mean beyond that, (G,)."""
        populations, own = self.populations, self.populations.find(key)
        said, rest = [], []
        for i in drawn(
            [i for i in self._related.get(of, []) if populations.keys[i].context != key.context], MAX_RELATED
        ):
            source = populations.source_of(i)
            assert source is not None
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


def _values(key: Population) -> list[str]:
    """Of the context's keys."""
    return key.context.split(CONTEXT_SEPARATOR)
