"""The mean under a combination, from its parts and from what other combinations show beyond the sum of theirs."""

from __future__ import annotations

import itertools
import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from squidiff.config import PART_SEPARATOR, InputError
from squidiff.response.combination import MeasuredParts, Summed, alone, parts_of
from squidiff.response.law import Learned
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, drawn, likelihood

MAX_SEEN = 300
"""Combinations that are learned from; as many squared are kept."""
SHARES = tuple(itertools.product((0.0, 0.1, 0.5), (0.0, 0.1, 0.5, 2.0), (0.0, 1.0, 4.0), (0.0, 1.0)))
"""Variances of what all combinations share, of what those of one part do, of what those of one pair do, as shares of
what each has of its own; and how much of it all other contexts share."""
SMALLEST_LIKELIHOOD = 0.005


class _Kernel(NamedTuple):
    """One of SHARES and what it makes of the combinations that were seen."""

    likelihood: float
    shares: tuple[float, float, float, float]
    inverse: np.ndarray
    """n x n, of the covariance of what combinations have beyond the law."""


class InteractingParts:
    """The sum that `MeasuredParts` gives, corrected by what the combinations that were seen show beyond their sums.

    Of all combinations whose parts were also seen alone, in any context. First a law of two coefficients, for sums that
    are too large where effects saturate or parts do the same: the rest r of the true mean is a T + b (T - L), with T
    the summed shift and L gene by gene the largest one of the parts; a and b by ridge regression, drawn to 0 the more
    the fewer combinations there are. Then kriging of what is left: it is alike among combinations that share parts,
    where these were measured off or answer others in one way, and the more among those that share pairs, as the same
    combination in another context does. How alike, the combinations tell when each is left out in turn: the answers by
    all SHARES are averaged by likelihood, and sharing nothing is among them.
    """

    def fit(self, populations: Populations) -> InteractingParts:
        self.populations, self.sums = populations, MeasuredParts().fit(populations)
        self.seen = drawn([i for i in populations.treated if self._tells(populations.keys[i])], MAX_SEEN)
        sums: list[Summed] = []
        for i in self.seen:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            sums.append(self.sums.summed(populations.keys[i], source))
        self.law, self.kernels = Learned.nothing(), list[_Kernel]()
        if self.seen:
            self.rest = populations.mean[self.seen] - [of.mean for of in sums]
            self.terms = np.stack([_terms(of) for of in sums])  # n x 2 x G
            self.law = Learned.of(self.seen, self.terms, self.rest)
            self.kernels = self._kernels(self.rest - self.law.coefficients() @ self.terms)
        return self

    def _tells(self, key: Population) -> bool:
        """Whether it is a combination whose parts were seen alone."""
        is_combination = PART_SEPARATOR in key.condition
        return is_combination and all(
            alone(self.populations, key._replace(condition=p)) is not None for p in parts_of(key)
        )

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return self.corrected(key, self.sums.summed(key, source))

    def corrected(self, key: Population, summed: Summed) -> np.ndarray:
        """The mean (G,) of a combination, from the sum of its parts."""
        if not self.seen:
            return summed.mean
        law = self.law.coefficients(self.law.others(self.populations.find(key)))
        beyond = self._weights(key) @ (self.rest - law @ self.terms)
        return self.populations.bounded(summed.mean + law @ _terms(summed) + beyond, summed.mean)

    def _weights(self, key: Population) -> np.ndarray:
        """How much the rest of each combination that was seen counts, (n,); that of the very one never does."""
        found = self.populations.find(key)
        weights = np.zeros(len(self.seen))
        if found in self.seen:
            i = self.seen.index(found)
            for kernel in self.kernels:
                of_others = -kernel.inverse[i] / kernel.inverse[i, i]
                of_others[i] = 0.0
                weights += kernel.likelihood * of_others
            return weights
        asked = _alike([key], [self.populations.keys[i] for i in self.seen])
        for kernel in self.kernels:
            weights += kernel.likelihood * (_covariance(kernel.shares, *asked)[0] @ kernel.inverse)
        return weights

    def _kernels(self, rest: np.ndarray) -> list[_Kernel]:
        """By what the combinations have beyond the law, n x G."""
        keys = [self.populations.keys[i] for i in self.seen]
        alike, products, kernels, errors = _alike(keys, keys), rest @ rest.T, [], []
        several = len(self.populations.contexts) > 1
        for shares in (shares for shares in SHARES if several or not shares[-1]):
            inverse = np.linalg.inv(_covariance(shares, *alike) + np.eye(len(keys)))
            kernels.append(_Kernel(0.0, shares, inverse))
            # each one's rest less what the others say of it is (inverse rest) / diagonal; here squared, over all genes
            errors.append(float((((inverse @ products) * inverse).sum(axis=1) / np.square(np.diag(inverse))).sum()))
        weights = likelihood(np.array(errors), len(keys))
        weights[weights < SMALLEST_LIKELIHOOD * weights.sum()] = 0.0
        weights /= weights.sum()
        found = zip(kernels, weights.tolist(), strict=True)
        return [kernel._replace(likelihood=weight) for kernel, weight in found if weight > 0]


class PartsElsewhere:
    """The same of parts that the context did not see alone, by what `of_part` answers for each of them there.

    Parts that no context saw alone are asked for by what `described` has of them, and those that it lacks together:
    features add up, so that theirs are what those of all others leave.
    """

    def __init__(
        self,
        interacting: InteractingParts,
        of_part: Callable[[Population, np.ndarray, Source], np.ndarray],
        described: dict[str, np.ndarray],
    ) -> None:
        self.interacting, self.of_part, self.described = interacting, of_part, described

    def fit(self, populations: Populations) -> PartsElsewhere:
        self.known = ChainMap(populations.features_of, self.described)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        parts, known = parts_of(key), self.known
        asked = [(part, known[part]) for part in parts if part in known]
        if not asked:
            raise CannotPredict(f"no part of {key.condition!r} was seen alone")
        if unseen := [part for part in parts if part not in known]:
            asked.append((PART_SEPARATOR.join(unseen), features - np.sum([of for _, of in asked], axis=0)))
        shifts = [self._shift(key._replace(condition=part), described, source) for part, described in asked]
        summed = self.interacting.sums.sum_of(source.mean, source.mean, np.stack(shifts))
        return self.interacting.corrected(key, summed)

    def _shift(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        measured = self.interacting.sums.shift_of_part(key, source.mean)
        if measured is not None:
            return measured
        try:
            return self.of_part(key, features, source) - source.mean
        except InputError as error:
            raise CannotPredict(str(error)) from None


def _terms(summed: Summed) -> np.ndarray:
    """What the coefficients of the law are of, 2 x G: the summed shift, and how far it is beyond the largest one."""
    shift = summed.mean - summed.start
    return np.stack([shift, shift - summed.largest])


def _alike(keys: Sequence[Population], others: Sequence[Population]) -> tuple[np.ndarray, np.ndarray]:
    """How many parts two combinations share, and whether they are of one context, both n x m."""
    parts, of_others = ([frozenset(parts_of(key)) for key in each] for each in (keys, others))
    shared = np.array([[len(one & other) for other in of_others] for one in parts])
    return shared, np.array([[key.context == other.context for other in others] for key in keys])


def _covariance(shares: tuple[float, float, float, float], shared: np.ndarray, is_here: np.ndarray) -> np.ndarray:
    of_all, of_part, of_pair, elsewhere = shares
    pairs = np.array([math.comb(k, 2) for k in range(int(shared.max(initial=0)) + 1)])[shared]
    return np.asarray((of_all + of_part * shared + of_pair * pairs) * np.where(is_here, 1.0, elsewhere))
