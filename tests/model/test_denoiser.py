"""The denoiser is exact for Gaussian cells, its two outputs agree, and a cell does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from gaussian_cells import IDENTITY, N_GENES, awakened, covariance, randn, standardisation, untrained

from squidiff.config import NoiseLevel
from squidiff.diffusion.schedule import level_from_angle
from squidiff.model.denoiser import GaussianDenoiser

ANGLES = (0.01, 0.3, 0.8, 1.2, 1.56)


def level_at(angle: float) -> NoiseLevel:
    return level_from_angle(torch.tensor(angle, dtype=torch.float64))


def levels_of(n: int) -> NoiseLevel:
    """A level a cell, as in training: (n, 1)."""
    return level_from_angle(torch.linspace(0.01, 1.56, n, dtype=torch.float64).unsqueeze(1))


@pytest.mark.parametrize("angle", ANGLES)
def test_gaussian_part_is_the_dense_posterior_mean(angle: float) -> None:
    """E[x0 | x_t] = alpha S (alpha^2 S + sigma^2)^-1 x_t, with the covariance S written out and inverted."""
    s = standardisation()
    gaussian = GaussianDenoiser(s.axes, s.axis_variance, s.rest_variance)
    alpha, sigma = level = level_at(angle)
    x_t = randn(20, N_GENES, seed=5)
    noised = alpha**2 * covariance() + sigma**2 * IDENTITY
    expected = x_t @ (alpha * covariance() @ torch.linalg.inv(noised)).T
    torch.testing.assert_close(gaussian(x_t, level), expected, rtol=0, atol=1e-12)
    in_single = gaussian.float()(x_t.float(), level)
    torch.testing.assert_close(in_single, expected.float(), rtol=1e-5, atol=1e-5)


def test_gaussian_part_takes_a_level_a_cell() -> None:
    s = standardisation()
    gaussian = GaussianDenoiser(s.axes, s.axis_variance, s.rest_variance)
    x_t = randn(len(ANGLES), N_GENES, seed=6)
    together = gaussian(x_t, level_from_angle(torch.tensor(ANGLES, dtype=torch.float64).unsqueeze(1)))
    apart = torch.cat([gaussian(x_t[i : i + 1], level_at(angle)) for i, angle in enumerate(ANGLES)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-13)


def test_gaussian_part_is_as_exact_in_half_precision() -> None:
    s = standardisation()
    gaussian = GaussianDenoiser(s.axes, s.axis_variance, s.rest_variance).float()
    x_t, level = randn(20, N_GENES, seed=6).float(), NoiseLevel(*(part.float() for part in level_at(0.7)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x_t @ x_t.T).dtype == torch.bfloat16
        in_half = gaussian(x_t, level)
    assert torch.equal(in_half, gaussian(x_t, level))


def test_before_training_the_prediction_is_the_gaussian_one_whatever_is_bound() -> None:
    denoiser = untrained().denoiser
    x_t, level = randn(50, N_GENES, seed=7), levels_of(50)
    for seed in (8, 9):
        prediction = denoiser(x_t, level, denoiser.bind(randn(50, 4, seed=seed)))
        assert torch.equal(prediction.x0, denoiser.gaussian(x_t, level))


def test_x0_and_eps_add_up_to_the_noised_cell() -> None:
    denoiser = awakened().denoiser
    x_t, level = randn(50, N_GENES, seed=10), levels_of(50)
    prediction = denoiser(x_t, level, denoiser.bind(randn(50, 4, seed=11)))
    torch.testing.assert_close(level.alpha * prediction.x0 + level.sigma * prediction.eps, x_t, rtol=0, atol=1e-12)


def test_one_level_for_all_equals_the_same_level_for_each() -> None:
    denoiser = awakened().denoiser
    x_t, bound = randn(50, N_GENES, seed=12), denoiser.bind(randn(50, 4, seed=13))
    for angle in ANGLES:
        level = level_at(angle)
        each = NoiseLevel(*(part.expand(50, 1) for part in level))
        for one, other in zip(denoiser(x_t, level, bound), denoiser(x_t, each, bound), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_cell_does_not_depend_on_the_cells_beside_it() -> None:
    denoiser = awakened().denoiser
    x_t, z_sem, level = randn(8, N_GENES, seed=14), randn(8, 4, seed=15), levels_of(8)
    whole = denoiser(x_t, level, denoiser.bind(z_sem))
    for i in range(8):
        one = slice(i, i + 1)
        alone = denoiser(x_t[one], NoiseLevel(*(part[one] for part in level)), denoiser.bind(z_sem[one]))
        torch.testing.assert_close(alone.x0, whole.x0[one], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("what", ["latent", "level"])
def test_the_network_part_hears_the_latent_and_the_level(what: str) -> None:
    """The network's part is (x0 - gaussian) / sigma; with the same x_t it moves with z_sem, and with the level."""
    denoiser = awakened().denoiser
    x_t = randn(50, N_GENES, seed=16)

    def part(angle: float, seed: int) -> torch.Tensor:
        level = level_at(angle)
        x0 = denoiser(x_t, level, denoiser.bind(randn(50, 4, seed=seed))).x0
        return (x0 - denoiser.gaussian(x_t, level)) / level.sigma

    one, other = part(0.5, 17), part(0.5, 18) if what == "latent" else part(0.6, 17)
    # every cell hears it: by more than rounding, in units of the part itself
    assert ((one - other).norm(dim=1) / one.norm(dim=1)).min().item() > 1e-3


def test_the_network_part_is_scaled_by_sigma() -> None:
    """x0 - gaussian = sigma * network: as the noise goes, so does what the network can add."""
    denoiser = awakened().denoiser
    x_t, bound = randn(50, N_GENES, seed=19), denoiser.bind(randn(50, 4, seed=20))
    added = []
    for angle in (1e-3, 2e-3):  # so near that the network itself hardly differs
        level = level_at(angle)
        added.append((denoiser(x_t, level, bound).x0 - denoiser.gaussian(x_t, level)).norm().item())
    assert added[1] / added[0] == pytest.approx(2.0, rel=0.02)
