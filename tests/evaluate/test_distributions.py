"""Distances of distributions against scipy, closed forms and loops; what each of them sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.evaluate import distributions, pairs
from squidiff.evaluate.distributions import (
    classifier_accuracy,
    correlation_distance,
    coverage,
    energy_distance,
    fidelity,
    gene_wasserstein,
    mmd,
    normalised_energy_distance,
    sliced_wasserstein,
    wasserstein,
)
from squidiff.evaluate.pairs import Pair, Resample

SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None, derandomize=True)

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the kernels, in median distances."""


def on(predicted: np.ndarray, truth: np.ndarray) -> Resample:
    return Resample.whole(Pair(predicted, truth, predicted, truth))


@quick
@given(seed=SEEDS, n=st.integers(1, 12), m=st.integers(1, 12))
def test_wasserstein_is_scipys_in_every_column(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.poisson(2.0, (n, 3)).astype(float), rng.normal(size=(m, 3))
    x[:, 2], y[:, 2] = 4.0, 4.0
    expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]
    np.testing.assert_allclose(wasserstein(x, y), expected, atol=1e-12)
    assert gene_wasserstein(on(x, y)).item() == pytest.approx(np.mean(expected))


def test_wasserstein_of_a_shift_is_its_size_and_of_a_scale_that_of_the_quantiles() -> None:
    grid = scipy.stats.norm.ppf((np.arange(4000) + 0.5) / 4000)[:, None]
    assert wasserstein(grid + 1.5, grid).item() == pytest.approx(1.5)
    assert wasserstein(3 * grid, grid).item() == pytest.approx(2 * np.sqrt(2 / np.pi), rel=2e-3)


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    """E|u . s| over directions u of d = 3 dimensions is |s| / 2; it does not depend on how cells are turned."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    found = [sliced_wasserstein(on(x + 4 * axis, x)).item() for axis in np.eye(3)]
    assert np.mean(found) == pytest.approx(4 / 2, rel=0.05)
    assert sliced_wasserstein(on(x, x)).item() == 0


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Of the truth y: by loops, no cell with itself."""
    scale = np.median([np.linalg.norm(a - b) for i, a in enumerate(y) for b in y[:i]])
    total = 0.0
    for width in WIDTHS:

        def kernel(a: np.ndarray, b: np.ndarray, s: float = width * scale) -> float:
            return float(np.exp(-((a - b) ** 2).sum() / (2 * s**2)))

        within = [np.mean([kernel(a, b) for i, a in enumerate(c) for j, b in enumerate(c) if i != j]) for c in (x, y)]
        total += sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    return float(total / len(WIDTHS))


@quick
@given(seed=SEEDS)
def test_mmd_equals_a_double_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 3)), rng.normal(0.5, 2.0, (8, 3))
    assert mmd(on(x, y)).item() == pytest.approx(naive_mmd(x, y), abs=1e-12)


@pytest.mark.parametrize("metric", [mmd, energy_distance])
def test_unbiased_distances_are_zero_on_average_between_samples_of_one_distribution(metric: object) -> None:
    rng = np.random.default_rng(0)
    values = [metric(on(rng.normal(size=(6, 4)), rng.normal(size=(9, 4)))).item() for _ in range(600)]  # type: ignore[operator]
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / np.sqrt(600)


@quick
@given(seed=SEEDS, size=st.integers(1, 9))
def test_blocks_of_distances_change_nothing(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    pair = Pair(*rng.normal(size=(2, 8, 3)), *rng.normal(size=(2, 8, 3)))
    counts = rng.integers(0, 3, (2, 4, 8)) + 0.0
    counts[:, :, 0] += 1
    whole = Resample(pair, *counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "CELLS_PER_BLOCK", size)
        patch.setattr(distributions, "CELLS_PER_BLOCK", size)
        parts = Resample(pair, *counts)
        for metric in (energy_distance, mmd, normalised_energy_distance, fidelity, coverage):
            np.testing.assert_allclose(metric(parts), metric(whole), rtol=1e-10)


def test_no_matrix_of_all_cells_by_all_cells_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def watched(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        made.append(len(x) * len(y))
        return scipy.spatial.distance.cdist(x, y)

    for module in (pairs, distributions):
        monkeypatch.setattr(module, "cdist", watched)
        monkeypatch.setattr(module, "CELLS_PER_BLOCK", 10)
    monkeypatch.setattr(pairs, "N_OF_SCALE", 10)
    sample = on(*np.random.default_rng(0).normal(size=(2, 300, 2)))
    for metric in (energy_distance, fidelity, coverage):
        metric(sample)
    assert max(made) == 10 * 300


def test_a_normalised_energy_distance_is_one_far_away() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    assert normalised_energy_distance(on(x + 1e6, x)).item() == pytest.approx(1.0, abs=1e-5)
    assert np.isnan(normalised_energy_distance(on(np.ones((4, 2)), np.ones((5, 2))))).all()


def test_correlations_of_genes_by_hand() -> None:
    """In truth genes 0 and 1 go together and gene 2 by itself; the prediction turns gene 1 round."""
    sign = np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]])
    predicted = sign * np.array([1.0, -5.0, 1.0])
    assert correlation_distance(on(predicted, sign)).item() == pytest.approx(np.sqrt((2.0**2 + 0 + 0) / 3))
    assert correlation_distance(on(3 * sign + 7, sign)).item() == pytest.approx(0.0, abs=1e-9)
    predicted[:, 1] = 2.0
    # a gene that does not vary goes with none: of the three true correlations, 1, 0 and 0, the first is missed
    assert correlation_distance(on(predicted, sign)).item() == pytest.approx(np.sqrt(1 / 3))
    predicted[:, 2] = 2.0  # with most genes flat it would have no noise: it has no value
    assert np.isnan(correlation_distance(on(predicted, sign))).all()
    assert np.isnan(correlation_distance(on(sign, predicted))).all()


def test_a_classifier_is_at_chance_between_samples_of_one_distribution_and_right_between_others() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 5)), rng.normal(size=(150, 5))
    assert classifier_accuracy(on(x, y)).item() == pytest.approx(0.5, abs=0.06)
    assert classifier_accuracy(on(x + 3, y)).item() > 0.99
    assert np.isnan(classifier_accuracy(on(x[:9], y))).all()


def test_cells_of_one_kind_are_faithful_and_cover_little_and_noise_the_other_way_round() -> None:
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.normal(-10, 1, (100, 2)), rng.normal(10, 1, (100, 2))])
    one_kind = rng.normal(-10, 1, (150, 2))
    assert fidelity(on(one_kind, truth)).item() > 0.9
    assert 0.4 < coverage(on(one_kind, truth)).item() <= 0.5
    noise = np.concatenate([truth + rng.normal(0, 0.1, truth.shape), rng.uniform(30, 60, (200, 2))])
    assert fidelity(on(noise, truth)).item() == pytest.approx(0.5, abs=0.03)
    assert coverage(on(noise, truth)).item() > 0.95
    assert np.isnan(fidelity(on(one_kind, truth[:5]))).all()


@pytest.mark.parametrize("metric", [energy_distance, normalised_energy_distance, gene_wasserstein, sliced_wasserstein])
def test_distances_are_symmetric_and_those_of_wasserstein_are_metrics(metric: Callable[[Resample], np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    samples = [rng.gamma(shape, 1.0, (n, 4)) for shape, n in ((1, 20), (2, 31), (3, 20), (2, 7), (5, 40))]
    D = np.array([[metric(on(x, y)).item() for y in samples] for x in samples])
    assert np.abs(D - D.T).max() < 1e-12
    if metric in (gene_wasserstein, sliced_wasserstein):
        assert np.abs(np.diag(D)).max() == 0
        assert (D + 1e-12 >= 0).all()
        assert (D[:, None, :] <= D[:, :, None] + D[None, :, :] + 1e-12).all()  # d(i, k) <= d(i, j) + d(j, k)
