"""Distances against POT, the library of optimal transport, where definitions coincide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.evaluate.distributions import N_DIRECTIONS, sliced_wasserstein, wasserstein
from squidiff.evaluate.pairs import Pair, Resample
from squidiff.response.time import interpolate

ot = pytest.importorskip("ot", reason="POT is not installed")
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None, derandomize=True)


@quick
@given(seed=SEEDS, n=st.integers(1, 30), m=st.integers(1, 30))
def test_one_dimensional_wasserstein_is_pots(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.exponential(size=(m, 3))
    expected = [float(ot.wasserstein_1d(a, b)) for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(wasserstein(x, y), expected, atol=1e-10)


@quick
@given(seed=SEEDS)
def test_sliced_wasserstein_is_pots_on_the_same_directions(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, 6)), rng.normal(0.5, 2.0, (25, 6))
    directions = np.random.default_rng(0).normal(size=(6, N_DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    expected = ot.sliced_wasserstein_distance(x, y, projections=directions, p=1)
    found = sliced_wasserstein(Resample.whole(Pair(x, y, x, y))).item()
    assert found == pytest.approx(float(expected), rel=1e-10)


@quick
@given(seed=SEEDS)
def test_displacement_interpolation_moves_as_pots_plan(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.normal(size=(12, 3)), rng.normal(1.0, 2.0, (12, 3))
    plan = ot.emd([], [], ot.dist(before, after))
    i, j = np.nonzero(plan > 1e-9)
    expected = 0.7 * before[i] + 0.3 * after[j]
    found = interpolate(before, after, 0.3)
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), atol=1e-12)
