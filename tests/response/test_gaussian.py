"""Gaussian cells: their mean is exact, their covariance that of real cells as far as the law goes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from squidiff.response.gaussian import N_FACTORS, Spread, diagonal_spread, draw_gaussian, factor_spread

N = 40_000
MEAN = np.linspace(-1, 3, 30)


def cells(n_factors: int) -> np.ndarray:
    """2,000 cells of 30 genes whose covariance has so many factors and a little of every gene's own."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(n_factors, 30))
    return rng.normal(size=(2000, n_factors)) @ loadings + 0.1 * rng.normal(size=(2000, 30)) + 7


@pytest.mark.parametrize("spread_of", [diagonal_spread, factor_spread])
def test_mean_and_variances_are_kept(spread_of: Callable[[np.ndarray], Spread]) -> None:
    spread = spread_of(cells(5))
    found = draw_gaussian(spread, MEAN, N, np.random.default_rng(1))
    np.testing.assert_allclose(found.mean(axis=0), MEAN, atol=1e-10)
    np.testing.assert_allclose(found.var(axis=0), cells(5).var(axis=0), rtol=5 * np.sqrt(2 / N))
    few = draw_gaussian(spread, MEAN, 3, np.random.default_rng(1))
    np.testing.assert_allclose(few.mean(axis=0), MEAN, atol=1e-12)


def test_genes_go_together_by_factors_and_not_by_variances_alone() -> None:
    real = np.corrcoef(cells(5).T)
    together, apart = (
        np.corrcoef(draw_gaussian(spread_of(cells(5)), MEAN, N, np.random.default_rng(2)).T)
        for spread_of in (factor_spread, diagonal_spread)
    )
    off = ~np.eye(30, dtype=bool)
    assert np.abs(together - real)[off].max() < 5 / np.sqrt(N)
    assert np.abs(apart)[off].max() < 5 / np.sqrt(N)
    assert np.abs(real)[off].max() > 0.5


def test_what_few_factors_do_not_tell_is_left_to_each_gene() -> None:
    assert N_FACTORS < 28
    real = cells(28)
    found = draw_gaussian(factor_spread(real), MEAN, N, np.random.default_rng(3))
    np.testing.assert_allclose(found.var(axis=0), real.var(axis=0), rtol=5 * np.sqrt(2 / N))
