"""The loss against the closed form that it has for Gaussian data."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from exact_gaussian import ExactGaussian

from squidiff.config import NoiseLevel, Prediction
from squidiff.diffusion.loss import (
    Losses,
    add_noise,
    denoising_loss,
    draw_noise,
    draw_upstream_noise,
    loss_by_quartile,
    upstream_loss,
)
from squidiff.diffusion.schedule import MAX_ANGLE, MIN_ANGLE, StepSchedule, draw_angles


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def expected_loss(deviation: float, low: float = MIN_ANGLE, high: float = MAX_ANGLE) -> float:
    """The mean over the angles from low to high of s^2 / (s^2 cos^2 + sin^2): the posterior variance over sigma^2.

    Its antiderivative is s atan(tan(angle) / s).
    """
    area = deviation * (math.atan(math.tan(high) / deviation) - math.atan(math.tan(low) / deviation))
    return area / (high - low)


def gaussian_loss(deviation: float, n_cells: int = 8000) -> Losses:
    """The loss of the exact denoiser on cells of 32 independent genes."""
    data = ExactGaussian(torch.full((32,), 0.7), torch.full((32,), deviation))
    cells = 0.7 + deviation * torch.randn(n_cells, 32, generator=seeded(1))
    return denoising_loss(data.predict, cells, draw_noise(cells.shape, seeded(2)))


@pytest.mark.parametrize("deviation", [0.5, 1.0, 2.0])
def test_the_exact_denoiser_has_the_loss_of_the_posterior(deviation: float) -> None:
    loss, _ = gaussian_loss(deviation)
    error = loss.std().item() / math.sqrt(len(loss))  # an upper bound: the levels are stratified
    assert error < 0.01 * expected_loss(deviation)
    assert loss.mean().item() == pytest.approx(expected_loss(deviation), abs=4 * error)


def test_unit_variance_data_have_loss_one_at_every_level() -> None:
    """The weight 1 / sigma^2 makes the exact loss of unit-variance data 1, whatever the level."""
    loss, position = gaussian_loss(1.0, n_cells=16_000)
    order = position.argsort()
    for part in loss[order].chunk(8):
        # 2,000 cells of 32 genes, each the square of a standard normal: a standard error of sqrt(2 / 64,000)
        assert part.mean().item() == pytest.approx(1.0, abs=5 * math.sqrt(2 / (len(part) * 32)))


@pytest.mark.parametrize("deviation", [0.5, 2.0])
def test_quartiles_run_from_the_least_noise_to_the_most(deviation: float) -> None:
    found = loss_by_quartile(gaussian_loss(deviation))
    edges = [MIN_ANGLE + (MAX_ANGLE - MIN_ANGLE) * q / 4 for q in range(5)]
    expected = [expected_loss(deviation, low, high) for low, high in itertools.pairwise(edges)]
    assert found == pytest.approx(expected, rel=0.03)


def test_quartiles_of_equal_counts_average_to_the_total() -> None:
    angles = draw_angles(400, seeded(3)).squeeze(1)  # stratified: 100 angles in each quarter
    loss = torch.rand(400, generator=seeded(4))
    quartiles = loss_by_quartile(Losses(loss, (angles - MIN_ANGLE) / (MAX_ANGLE - MIN_ANGLE)))
    assert sum(quartiles) / 4 == pytest.approx(loss.mean().item(), abs=1e-6)
    assert len(set(quartiles)) == 4


def test_a_quarter_without_a_cell_is_nan_and_the_ends_belong_to_the_outer_quarters() -> None:
    ends = Losses(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 1.0, 1.0]))
    first, second, third, fourth = loss_by_quartile(ends)
    assert (first, fourth) == (1.0, 3.0)
    assert math.isnan(second)
    assert math.isnan(third)


def test_the_loss_is_the_squared_error_of_v() -> None:
    """(x0_hat - x0)^2 / sigma^2 = (v_hat - v)^2, with v = alpha eps - sigma x0 and any guess of x0."""
    x0 = torch.randn(200, 5, generator=seeded(5), dtype=torch.float64)
    seen: list[tuple[torch.Tensor, NoiseLevel]] = []

    def guess(x_t: torch.Tensor, level: NoiseLevel) -> Prediction:
        seen.append((x_t, level))
        guessed = 3.0 * torch.sin(x_t) + level.sigma
        return Prediction(guessed, (x_t - level.alpha * guessed) / level.sigma)

    loss, position = denoising_loss(guess, x0, draw_noise(x0.shape, seeded(6)))
    [(x_t, seen_level)] = seen
    alpha, sigma = (part.double() for part in seen_level)
    eps = (x_t - alpha * x0) / sigma
    guessed = guess(x_t, NoiseLevel(alpha, sigma))
    v, v_hat = alpha * eps - sigma * x0, alpha * guessed.eps - sigma * guessed.x0
    torch.testing.assert_close(loss, (v_hat - v).square().mean(dim=1), rtol=1e-4, atol=0)  # the levels are float32
    angle = MIN_ANGLE + (MAX_ANGLE - MIN_ANGLE) * position
    torch.testing.assert_close(angle.sin(), seen_level.sigma.squeeze(1), rtol=1e-5, atol=1e-6)


def test_noise_is_standard_normal_and_independent_of_the_cell() -> None:
    x0 = torch.randn(20_000, 3, generator=seeded(7))
    seen: list[torch.Tensor] = []

    def guess(x_t: torch.Tensor, level: NoiseLevel) -> Prediction:
        seen.append((x_t - level.alpha * x0) / level.sigma)
        return Prediction(x_t, x_t)

    denoising_loss(guess, x0, draw_noise(x0.shape, seeded(8)))
    joint = torch.cat([seen[0], x0], dim=1)
    torch.testing.assert_close(torch.cov(joint.T), torch.eye(6), rtol=0, atol=5 * math.sqrt(2 / 20_000))
    torch.testing.assert_close(joint.mean(dim=0), torch.zeros(6), rtol=0, atol=5 / math.sqrt(20_000))


def test_add_noise_by_hand() -> None:
    level = NoiseLevel(torch.tensor([[0.6], [0.8]]), torch.tensor([[0.8], [0.6]]))
    noised = add_noise(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), level)
    torch.testing.assert_close(noised, torch.tensor([[0.6, 2.0], [0.2, 1.6]]))


def test_the_loss_repeats_with_its_seed_and_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    (one, _), (other, _) = gaussian_loss(1.0, 32), gaussian_loss(1.0, 32)
    assert torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_upstreams_loss_is_the_squared_error_of_eps_at_uniform_steps() -> None:
    schedule, x0 = StepSchedule.named("linear", 40), torch.randn(20_000, 3, generator=seeded(9))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def guess(x_t: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        seen.append((x_t, step))
        return torch.full_like(x_t, 0.5)

    losses = upstream_loss(guess, x0, schedule, draw_upstream_noise(x0.shape, seeded(10), 40))
    [(x_t, step)] = seen
    alpha_squared = torch.cumprod(1 - torch.linspace(0.1 / 40, 20 / 40, 40, dtype=torch.float64), 0)[step].unsqueeze(1)
    eps = (x_t - alpha_squared.sqrt() * x0) / (1 - alpha_squared).sqrt()
    torch.testing.assert_close(losses.loss.double(), (eps - 0.5).square().mean(dim=1), rtol=1e-3, atol=1e-4)
    assert losses.loss.mean().item() == pytest.approx(1.25, abs=0.03)  # eps is standard normal
    counts = torch.bincount(step, minlength=40)
    assert (counts - 500).abs().max() < 6 * 500**0.5
    assert torch.equal(losses.position, step / 40)
