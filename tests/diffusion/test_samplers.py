"""Samplers against closed forms: Gaussian data, whose denoiser and flow are known, and a single known cell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from exact_gaussian import ExactGaussian

from squidiff.config import NoiseLevel, Prediction
from squidiff.diffusion.samplers import SAMPLERS, invert_ddim, last, sample_ddim, sample_dpmpp_2m
from squidiff.diffusion.schedule import level_from_angle, sampling_levels

ORDER = {"ddim": 1.0, "dpmpp_2m": 2.0}
STEPS = (20, 40, 80, 160)


@pytest.fixture
def data() -> ExactGaussian:
    """Four genes: narrow, as wide as the noise, in between, and wide."""
    mean = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    deviation = torch.tensor([0.3, 1.0, 0.6, 2.0], dtype=torch.float64)
    return ExactGaussian(mean, deviation)


@pytest.fixture
def noise() -> torch.Tensor:
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def inner_levels(n_steps: int) -> list[NoiseLevel]:
    """Angles 1.3 to 0.3: no level near either end, where a step in log(alpha / sigma) is long."""
    return [level_from_angle(angle) for angle in torch.linspace(1.3, 0.3, n_steps + 1, dtype=torch.float64)]


LEVELS: dict[str, Callable[[int], list[NoiseLevel]]] = {
    "inner": inner_levels,
    "a query's default": lambda n: sampling_levels(n, 0.7),
    "nine tenths": lambda n: sampling_levels(n, 0.9),
    "pure noise": sampling_levels,
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", SAMPLERS)
def test_order_of_convergence(name: str, levels: str, data: ExactGaussian, noise: torch.Tensor) -> None:
    errors = []
    for n_steps in STEPS:
        path = LEVELS[levels](n_steps)
        sampled = last(SAMPLERS[name](data.predict, noise, path))
        errors.append((sampled - data.flow(noise, path[0], path[-1])).abs().max().item())
    order = -np.polyfit(np.log(STEPS), np.log(errors), 1)[0]
    assert order == pytest.approx(ORDER[name], abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_state_is_at_its_level(name: str, data: ExactGaussian, noise: torch.Tensor) -> None:
    levels = sampling_levels(600, 0.9)
    states = list(SAMPLERS[name](data.predict, noise, levels))
    assert len(states) == 600
    # a state that came a level late would be off by a step, about 0.003 times a slope of order 1 and |x| up to 6
    for state, level in zip(states, levels[1:], strict=True):
        off = (state - data.flow(noise, levels[0], level)).abs().max().item()
        assert off < (1e-2 if name == "ddim" else 1e-3)


CELL = torch.tensor([0.0, 1.5, -3.0, 10.0], dtype=torch.float64)


def know_the_cell(x_t: torch.Tensor, level: NoiseLevel) -> Prediction:
    """The exact denoiser where every cell is CELL."""
    return Prediction(CELL.expand_as(x_t), (x_t - level.alpha * CELL) / level.sigma)


def test_ddim_reaches_a_known_cell_in_one_step(noise: torch.Tensor) -> None:
    clean = NoiseLevel(torch.tensor(1.0), torch.tensor(0.0))
    found = last(sample_ddim(know_the_cell, noise, [sampling_levels(1)[0], clean]))
    assert torch.equal(found, CELL.expand_as(noise))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_a_known_cell_keeps_its_noise_at_every_number_of_steps(name: str, n_steps: int, noise: torch.Tensor) -> None:
    levels = sampling_levels(n_steps)
    x = levels[0].alpha * CELL + levels[0].sigma * noise
    expected = levels[-1].alpha * CELL + levels[-1].sigma * noise
    torch.testing.assert_close(last(SAMPLERS[name](know_the_cell, x, levels)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_inversion_then_sampling_returns_the_cell(strength: float, data: ExactGaussian, noise: torch.Tensor) -> None:
    cells = data.mean + data.deviation * noise
    errors = []
    for n_steps in (*STEPS, 640):
        levels = sampling_levels(n_steps, strength)
        inverted = last(invert_ddim(data.predict, cells, levels))
        errors.append((last(sample_ddim(data.predict, inverted, levels)) - cells).abs().max().item())
    assert all(later < 0.55 * earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.03


def test_inversion_ends_at_the_noise_of_the_flow(data: ExactGaussian, noise: torch.Tensor) -> None:
    levels = sampling_levels(2000, 0.9)
    cells = data.mean + data.deviation * noise
    found = last(invert_ddim(data.predict, cells, levels))
    torch.testing.assert_close(found, data.flow(cells, levels[-1], levels[0]), rtol=0, atol=5e-3)


def two_cells(x_t: torch.Tensor, level: NoiseLevel) -> Prediction:
    """The exact denoiser of cells that are -1 or 1: E[x0 | x_t] = tanh(alpha x_t / sigma^2)."""
    x0 = torch.tanh(level.alpha * x_t / level.sigma**2)
    return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)


def test_dpmpp_2m_is_algorithm_2_of_its_paper() -> None:
    angles = [1.5, 1.2, 1.1, 0.7, 0.45, 0.4, 0.1]  # uneven on purpose: the ratio of two steps matters
    x = 0.3
    states, predicted = [], []
    lam = [np.log(np.cos(a) / np.sin(a)) for a in angles]
    for i in range(1, len(angles)):
        alpha, sigma = np.cos(angles[i]), np.sin(angles[i])
        alpha_before, sigma_before = np.cos(angles[i - 1]), np.sin(angles[i - 1])
        predicted.append(np.tanh(alpha_before * x / sigma_before**2))
        h = lam[i] - lam[i - 1]
        if i == 1:
            d = predicted[0]
        else:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * predicted[i - 1] - 1 / (2 * r) * predicted[i - 2]
        x = sigma / sigma_before * x - alpha * (np.exp(-h) - 1) * d
        states.append(x)
    levels = [level_from_angle(torch.tensor(a, dtype=torch.float64)) for a in angles]
    start = torch.tensor([[0.3]], dtype=torch.float64)
    found = [state.item() for state in sample_dpmpp_2m(two_cells, start, levels)]
    assert found == pytest.approx(states, abs=1e-12)


def test_first_step_of_dpmpp_2m_is_that_of_ddim(noise: torch.Tensor) -> None:
    levels = sampling_levels(1, 0.8)
    one, other = (last(sample(two_cells, noise, levels)) for sample in (sample_ddim, sample_dpmpp_2m))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_cells_lose_only_its_rounding(name: str, data: ExactGaussian, noise: torch.Tensor) -> None:
    levels = sampling_levels(200)
    single = ExactGaussian(data.mean.float(), data.deviation.float())
    found = last(SAMPLERS[name](single.predict, noise.float(), levels))
    assert found.dtype == torch.float32
    expected = last(SAMPLERS[name](data.predict, noise, levels))
    # a step rounds values of up to 6 by up to 6 * 6e-8, and roundings of either sign add up as a random walk does
    assert (found.double() - expected).abs().max().item() < 3 * math.sqrt(200) * 6 * 6e-8


def test_no_step_has_no_last_state() -> None:
    with pytest.raises(IndexError):
        last(sample_ddim(two_cells, torch.zeros(1, 1), sampling_levels(3)[:1]))


def test_the_last_step_to_the_clean_cell_is_the_predicted_cell(data: ExactGaussian, noise: torch.Tensor) -> None:
    """At sigma = 0 log(alpha / sigma) is infinite; no extrapolation reaches there."""
    clean = NoiseLevel(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    levels = inner_levels(10)
    before = last(sample_dpmpp_2m(data.predict, noise, levels))
    after = last(sample_dpmpp_2m(data.predict, noise, [*levels, clean]))
    assert torch.equal(after, data.predict(before, levels[-1]).x0)
