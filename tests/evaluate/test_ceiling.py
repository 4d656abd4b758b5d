"""The ceiling is what true cells score against true cells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from squidiff.evaluate.ceiling import N_COSTLY_SPLITS, N_SPLITS, split_half_ceiling
from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Pair


def made_pair(n_cells: int, n_genes: int = 30, seed: int = 0) -> Pair:
    rng = np.random.default_rng(seed)
    sizes = np.arange(1, n_genes + 1)
    truth, control = (
        rng.gamma(2.0, scale, (n_cells, n_genes)) * (rng.random((n_cells, n_genes)) < 0.7) * sizes
        for scale in (1.0, np.exp(rng.normal(0.0, 0.5, n_genes)))
    )
    predicted = np.full((3, n_genes), 99.0)
    means = control.mean(axis=0), rng.random(n_genes)
    rivals = rng.random((4, n_genes)) * sizes
    return Pair(predicted, truth, predicted[:, :5], truth[:, :5], *means, control, rivals=rivals)


def test_it_is_the_mean_score_of_one_half_against_the_other() -> None:
    """The truth's differential genes are those of all its cells."""
    pair = made_pair(24)
    found = split_half_ceiling(pair, np.random.default_rng(5))
    rng, scores = np.random.default_rng(5), []
    for _ in range(N_SPLITS):
        cells = rng.permutation(24)
        one, other = pair.truth[cells[:12]], pair.truth[cells[12:]]
        arrays = (one, other, one[:, :5], other[:, :5], pair.control_mean, pair.perturbed_mean, pair.control)
        scores.append(score(Pair(*arrays, pair.truly_expressed, pair.rivals)))
    for name, metric in METRICS.items():
        n = N_SPLITS if metric.is_resampled else N_COSTLY_SPLITS
        assert found[name] == pytest.approx(np.mean([s[name] for s in scores[:n]]), nan_ok=True)


def test_it_does_not_depend_on_the_prediction() -> None:
    pair = made_pair(20)
    other = dataclasses.replace(pair, predicted=pair.predicted[:1] * 0, predicted_pcs=pair.predicted_pcs[:1] * 0)
    one, same = (split_half_ceiling(p, np.random.default_rng(1)) for p in (pair, other))
    np.testing.assert_equal(one, same)


@pytest.mark.slow
@pytest.mark.parametrize("m", [10, 15])
def test_the_error_of_halves_is_that_of_drawing_without_replacement(m: int) -> None:
    """Means of h and m - h cells of m with variance S^2 (over m - 1) differ by S^2 m / (h (m - h)) in square."""
    pair = made_pair(m)
    values = [split_half_ceiling(pair, np.random.default_rng(seed))["mean_squared_error"] for seed in range(40)]
    h = m // 2
    expected = pair.truth.var(axis=0, ddof=1).mean() * m / (h * (m - h))
    assert np.mean(values) == pytest.approx(expected, abs=4 * np.std(values, ddof=1) / np.sqrt(len(values)))
    assert np.std(values) / np.sqrt(40) < expected / 15  # so that a full set of m, half as far off, would show


@pytest.mark.slow
def test_the_energy_distance_of_halves_is_zero_on_average() -> None:
    """Over samples: within one, halves exclude each other, which cancels only if every pair counts once."""
    values = [
        split_half_ceiling(made_pair(12, 8, seed), np.random.default_rng(0))["energy_distance"] for seed in range(60)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values, ddof=1) / np.sqrt(len(values))


def test_more_cells_raise_the_ceiling() -> None:
    few, many = (split_half_ceiling(made_pair(n), np.random.default_rng(0)) for n in (12, 400))
    for name, metric in METRICS.items():
        # of few cells all are neighbours, and the most significant genes need not be truly differential
        if not np.isnan(few[name]) and name not in ("de_precision", "fidelity", "coverage"):
            assert abs(metric.best - many[name]) <= abs(metric.best - few[name])


def test_three_cells_have_no_halves_to_compare() -> None:
    assert np.isnan(list(split_half_ceiling(made_pair(3), np.random.default_rng(0)).values())).all()
    four = split_half_ceiling(made_pair(4), np.random.default_rng(0))
    need_more = {"classifier_accuracy", "fidelity", "coverage", "de_overlap", "de_precision", "de_recall"}
    assert {name for name, value in four.items() if np.isnan(value)} <= need_more
