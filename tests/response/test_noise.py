"""Filters of noise: closed forms, and the true error where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from squidiff.response.noise import CAUTIONS, beyond_noise, risks, steadied


def test_half_of_a_shift_is_kept_at_the_caution() -> None:
    for caution in CAUTIONS:
        shift = np.sqrt(caution * 0.3) * np.array([1.0, -1.0])
        np.testing.assert_allclose(beyond_noise(shift, np.array(0.3), caution), shift / 2)
    assert beyond_noise(np.array([0.0, 2.0]), np.zeros(2)).tolist() == [0.0, 2.0]


@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_the_errors_that_are_told_without_the_truth_are_those_with_it(share: float) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0, 3, 20_000) * (rng.random(20_000) < share)
    noise = rng.uniform(0.5, 2, true.shape)
    measured = true + rng.normal(size=true.shape) * np.sqrt(noise)
    errors = [np.square(beyond_noise(measured, noise, c) - true).sum() / noise.sum() for c in CAUTIONS]
    np.testing.assert_allclose(risks(measured, noise), errors, atol=0.04)
    assert (np.argmin(errors) > 4) == (share == 0.01)  # where most genes do not change, more is noise


def test_shifts_without_noise_are_kept_whatever_the_caution() -> None:
    shift = np.array([1.0, -2.0, 0.0])
    assert np.isfinite(risks(shift, np.zeros(3))).all()
    for caution in CAUTIONS:
        np.testing.assert_array_equal(beyond_noise(shift, np.zeros(3), caution), shift)


def test_means_that_agree_are_one_and_others_stay() -> None:
    mean = np.array([[1.0, 5.0, 2.0], [1.2, -5.0, 2.0], [0.8, 15.0, 2.0], [1.1, 0.0, 2.0], [0.9, 9.0, 2.0]])
    variance, n_cells = np.array([4.0, 1e-9, 0.0]), np.array([10, 20, 30, 20, 20])
    steady, noise = steadied(mean, variance, n_cells)
    share = (5 - 3) / (5 - 1)  # of the way to the mean of all, by Lindley
    assert steady[0] == pytest.approx(1.0 + share * (n_cells @ mean[:, 0] / 100 - 1.0))
    np.testing.assert_allclose(steady[1:], mean[0, 1:], atol=1e-9)
    np.testing.assert_allclose(noise, [0.4 * (1 - share) + 0.04 * share * (2 - share), 1e-10, 0.0], rtol=1e-6)
    silent = steadied(np.concatenate([[[0.0] * 3], mean[1:]]), variance, n_cells)
    assert silent[0].tolist() == [0.0, 0.0, 0.0]
    assert silent[1][0] == 0.4
    for few in (mean[:1], mean[:3]):
        np.testing.assert_array_equal(steadied(few, variance, n_cells[: len(few)])[0], mean[0])


@pytest.mark.parametrize("n_cells", [[50] * 12, [5000, *[10] * 10], [1000, *[50] * 20], [5000, *[100] * 200]])
def test_a_steadied_mean_is_about_as_near_to_the_truth_as_it_says(n_cells: list[int]) -> None:
    """Where nothing differs; with few cells for some, too."""
    rng, n, n_genes = np.random.default_rng(0), np.array(n_cells), 5000
    true = rng.normal(size=n_genes)
    measured = true + rng.normal(size=(len(n), n_genes)) * np.sqrt(2 / n)[:, None]
    steady, noise = steadied(measured, np.full(n_genes, 2.0), n)
    error = np.square(steady - true).mean()
    assert error < 1.01 * np.square(measured[0] - true).mean()
    assert 0.6 * noise.mean() < error < 1.1 * noise.mean()


def test_one_small_population_or_a_change_that_all_share_do_not_lead_a_mean_astray() -> None:
    rng, n_genes = np.random.default_rng(0), 5000
    n = np.array([5000] * 20 + [10])
    true = rng.normal(0, 2 / np.sqrt(5000), (21, n_genes))  # they differ, by twice their noise
    measured = true + rng.normal(size=true.shape) / np.sqrt(n)[:, None]
    steady, _ = steadied(measured, np.ones(n_genes), n)
    assert np.square(steady - true[0]).mean() < np.square(measured[0] - true[0]).mean()
    n = np.array([5000, *[100] * 200])
    measured = rng.normal(size=(201, n_genes)) / np.sqrt(n)[:, None]
    measured[1:] += 0.1  # seven times the noise of the first
    steady, _ = steadied(measured, np.ones(n_genes), n)
    assert np.abs(steady - measured[0]).max() <= np.sqrt(1 / 5000) + 1e-12
