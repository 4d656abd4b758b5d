"""Laws of few coefficients for what a prediction misses, learned from few populations, and what these share beyond."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from squidiff.response.shift import N_DIRECTIONS, likelihood

COEFFICIENT_SD = 0.5
"""Of each coefficient before anything is seen: half of a term more or less is common."""
SHARES = (0.0, 0.1, 0.3, 1.0, 3.0)
"""Variances of what all populations have in common, as shares of what each has of its own."""
LEAST = 1e-9
"""Mean squared error that is as good as none, and what is as good as none of the terms' own squares."""


def solve(products: np.ndarray, with_rest: np.ndarray, variance: float, n_genes: int) -> np.ndarray:
    """(K,) by ridge regression, of the products of terms over populations and genes, K x K, and with the rest, (K,).

    A population speaks as N_DIRECTIONS independent genes do, each with `variance` about the law.
    """
    penalty = max(variance, LEAST) * n_genes / N_DIRECTIONS / COEFFICIENT_SD**2
    penalty += LEAST * float(np.trace(products))  # of terms that hang on each other, however large they are
    return np.linalg.solve(products + penalty * np.eye(len(products)), with_rest)


class Learned(NamedTuple):
    """What n populations tell of a rest by K terms, of which any may be left out of the law."""

    rows: list[int]
    """Their indices."""
    products: np.ndarray
    """n x K x K, of the terms over genes"""
    with_rest: np.ndarray
    """n x K, of the terms and the rest"""
    variance: float
    """Of a gene's rest about the law of all."""
    n_genes: int

    @classmethod
    def of(cls, rows: list[int], terms: np.ndarray, rest: np.ndarray) -> Learned:
        """Of terms n x K x G and a rest n x G."""
        products, with_rest = sums_of_products(terms, rest)
        variance = variance_about(terms, rest, products.sum(axis=0), with_rest.sum(axis=0))
        return cls(rows, products, with_rest, variance, rest.shape[1])

    @classmethod
    def nothing(cls) -> Learned:
        """Of no population."""
        return cls([], np.zeros(0), np.zeros(0), 0.0, 0)

    def others(self, index: int | None) -> np.ndarray:
        """Which of the rows are not one population."""
        return np.array([k for k, row in enumerate(self.rows) if row != index], dtype=int)

    def coefficients(self, of: np.ndarray | slice = slice(None), terms: np.ndarray | None = None) -> np.ndarray:
        """Of the law of some of the rows, on some of the terms."""
        products, with_rest = self.products[of].sum(axis=0), self.with_rest[of].sum(axis=0)
        if terms is not None:
            products, with_rest = products[np.ix_(terms, terms)], with_rest[terms]
        return solve(products, with_rest, self.variance, self.n_genes)


def coefficients(terms: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """(K,) the law of the rest (n x G) on the terms (n x K x G)."""
    return Learned.of(list(range(len(terms))), terms, rest).coefficients()


def sums_of_products(terms: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over genes, of the terms with each other, n x K x K, and with the rest, n x K."""
    return terms @ terms.transpose(0, 2, 1), (terms @ rest[:, :, None])[:, :, 0]


def variance_about(terms: np.ndarray, rest: np.ndarray, products: np.ndarray, with_rest: np.ndarray) -> float:
    """Of the rest (n x G) about the law of terms (n x K x G), which itself hangs on the variance."""
    variance = float(np.square(rest).mean())
    for _ in range(3):
        found = solve(products, with_rest, variance, rest.shape[1])
        variance = float(np.square(rest - found @ terms).mean())
    return variance


def share_of_common(rest: np.ndarray) -> float:
    """How much of the mean of n rests (n x G) one more has: by all SHARES, each by its likelihood when one is left out.

    Of n that have v in common and 1 of their own, the mean tells v n / (1 + v n) of what one more has.
    """
    n = len(rest)
    total = rest.sum(axis=0)
    shares = np.array([v * n / (1 + v * n) for v in SHARES])
    of_others = [v / (1 + v * (n - 1)) for v in SHARES]
    errors = [float(np.square(rest - share * (total - rest)).mean(axis=1).sum()) for share in of_others]
    weights = likelihood(np.array(errors), n)
    return float(weights @ shares / weights.sum())
