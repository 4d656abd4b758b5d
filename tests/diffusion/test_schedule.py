"""Noise levels lie on the unit circle, evenly in angle; training angles are stratified and repeat with their seed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from squidiff.config import InputError
from squidiff.diffusion.schedule import (
    MAX_ANGLE,
    MIN_ANGLE,
    StepSchedule,
    angle_from_level,
    draw_angles,
    level_from_angle,
    sampling_levels,
)
from upstream_oracles import oracle


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_levels_keep_the_variance_of_unit_variance_data_and_return_their_angle() -> None:
    angles = torch.linspace(0.0, math.pi / 2, 101, dtype=torch.float64)
    level = level_from_angle(angles)
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones_like(angles), rtol=0, atol=1e-15)
    torch.testing.assert_close(angle_from_level(level), angles, rtol=0, atol=1e-15)
    # a third of a right angle, from the table of sines: what is noise and what is signal must not be swapped
    third = level_from_angle(torch.tensor(math.pi / 6, dtype=torch.float64))
    assert third.sigma.item() == pytest.approx(0.5)
    assert third.alpha.item() == pytest.approx(math.sqrt(3) / 2)


@pytest.mark.parametrize("strength", [0.01, 0.7, 1.0])
@pytest.mark.parametrize("n_steps", [1, 20])
def test_sampling_levels_run_down_evenly_in_log_alpha_over_sigma(n_steps: int, strength: float) -> None:
    levels = sampling_levels(n_steps, strength)
    ratios = [math.log(level.alpha.item() / level.sigma.item()) for level in levels]
    first = -math.log(math.tan(MIN_ANGLE + strength * (MAX_ANGLE - MIN_ANGLE)))
    last = -math.log(math.tan(MIN_ANGLE))
    expected = [first + (last - first) * i / n_steps for i in range(n_steps + 1)]
    assert ratios == pytest.approx(expected, abs=1e-12)  # float64: as exact as that only if no float32 was in between


def test_full_strength_is_the_default_and_starts_at_the_largest_angle() -> None:
    first, *_, last = sampling_levels(10)
    assert first.alpha.item() == pytest.approx(0.01, rel=1e-4)
    assert last.sigma.item() == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 7, 256])
def test_training_angles_are_stratified(n: int) -> None:
    angles = draw_angles(n, seeded(3))
    assert angles.shape == (n, 1)  # a level a cell, to be broadcast over its genes
    position = (angles.double().flatten().sort().values - MIN_ANGLE) / (MAX_ANGLE - MIN_ANGLE) * n
    edges = torch.arange(n)
    assert (position >= edges - 1e-4).all()
    assert (position <= edges + 1 + 1e-4).all()


def test_angles_are_uniform_in_their_strata_and_in_random_order() -> None:
    n = 20_000
    position = (draw_angles(n, seeded(4)).double().flatten() - MIN_ANGLE) / (MAX_ANGLE - MIN_ANGLE) * n
    stratum = position.floor()
    jitter = position - stratum
    assert jitter.mean().item() == pytest.approx(0.5, abs=5 * math.sqrt(1 / 12 / n))
    assert jitter.var().item() == pytest.approx(1 / 12, rel=0.05)
    order = torch.corrcoef(torch.stack([stratum, torch.arange(n, dtype=torch.float64)]))[0, 1].item()
    assert abs(order) < 5 / math.sqrt(n)


def test_angles_repeat_with_their_seed_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw_angles(64, seeded(5)), draw_angles(64, seeded(5)))
    assert not torch.equal(draw_angles(64, seeded(5)), draw_angles(64, seeded(6)))
    assert torch.equal(before, torch.get_rng_state())


def test_linear_steps_are_upstreams_tables() -> None:
    schedule, given = StepSchedule.named("linear", 1000), oracle("schedule")
    for name in ("betas", "alphas_cumprod", "alphas_cumprod_prev", "alphas_cumprod_next"):
        torch.testing.assert_close(getattr(schedule, name), given[name], rtol=1e-12, atol=0)


def test_linear_steps_end_alike_whatever_their_number() -> None:
    """The sum of the betas is that of 1,000 steps, so what is left of a cell at the end hardly depends on T."""
    few, many = (StepSchedule.named("linear", n).alphas_cumprod[-1].log().item() for n in (500, 1000))
    assert few == pytest.approx(many, rel=0.02)


def test_linear_steps_that_leave_nothing_of_a_cell_are_refused() -> None:
    with pytest.raises(InputError, match="20 steps of linear noise are too few: take 21 or more"):
        StepSchedule.named("linear", 20)
    assert StepSchedule.named("linear", 21).alphas_cumprod[-1] > 0


def test_cosine_steps_by_hand() -> None:
    schedule = StepSchedule.named("cosine", 100)
    halfway = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert schedule.alphas_cumprod[49].item() == pytest.approx(halfway, rel=1e-12)
    assert schedule.betas.max().item() == 0.999


@pytest.mark.parametrize("n", [1, 2, 3, 20, 100, 499, 500])
def test_sampling_steps_fall_without_repeating_from_the_last(n: int) -> None:
    schedule = StepSchedule.named("linear", 500)
    steps = schedule.sampling_steps(n)
    assert len(steps) == n
    assert steps[0] == 499
    assert all(after < before for before, after in itertools.pairwise(steps))
    assert steps[-1] == (499 if n == 1 else 0)
    levels = schedule.sampling_levels(steps)
    assert [level.alpha.item() for level in levels[:-1]] == [schedule.level(step).alpha.item() for step in steps]
    assert (levels[-1].alpha.item(), levels[-1].sigma.item()) == (1.0, 0.0)


def test_few_sampling_steps_are_even_in_the_log_of_signal_to_noise() -> None:
    schedule = StepSchedule.named("linear", 1000)
    levels = schedule.sampling_levels(schedule.sampling_steps(10))[:-1]
    ratio = torch.tensor([torch.log(level.alpha / level.sigma).item() for level in levels])
    gaps = ratio.diff()
    assert gaps.max() < 1.35 * gaps.min()  # whole steps are far apart near the clean cell


@pytest.mark.parametrize("n", [0, 1001])
def test_more_sampling_steps_than_there_are_is_refused(n: int) -> None:
    with pytest.raises(InputError, match=rf"^{n} sampling steps are asked for, but the model has 1000"):
        StepSchedule.named("linear", 1000).sampling_steps(n)
