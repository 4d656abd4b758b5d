"""The training loss: draw a level, add noise, predict, weigh, square."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from squidiff.config import NoiseLevel, Prediction
from squidiff.diffusion.schedule import MAX_ANGLE, MIN_ANGLE, StepSchedule, draw_angles, level_from_angle

N_QUARTILES = 4

Denoise = Callable[[torch.Tensor, NoiseLevel], Prediction]
"""A denoiser whose conditioning is bound: (x_t, level) -> Prediction."""


def add_noise(x0: torch.Tensor, eps: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """x_t = alpha x0 + sigma eps, all B x G."""
    return level.alpha * x0 + level.sigma * eps


class Losses(NamedTuple):
    """The loss of each cell of a batch, and where it was taken."""

    loss: torch.Tensor
    """(B,)"""
    position: torch.Tensor
    """(B,) in the range of noise that training covers: from 0, the least, to 1."""


def denoising_loss(denoise: Denoise, x0: torch.Tensor, generator: torch.Generator) -> Losses:
    """The squared error of v at levels drawn over the whole range.

    The squared error of x0 is weighed by 1 / sigma^2, which with alpha^2 + sigma^2 = 1 is the squared error of
    v = alpha eps - sigma x0 (Salimans and Ho 2022, Progressive Distillation, section 4): 1 on average for a predictor
    that knows nothing of unit-variance data, at every level.
    """
    angle = draw_angles(x0.shape[0], generator).to(x0.device)
    level = level_from_angle(angle)
    eps = _noise_like(x0, generator)
    prediction = denoise(add_noise(x0, eps, level), level)
    position = (angle.squeeze(1) - MIN_ANGLE) / (MAX_ANGLE - MIN_ANGLE)
    return Losses(((prediction.x0 - x0) / level.sigma).square().mean(dim=1), position)


def upstream_loss(
    predict_eps: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x0: torch.Tensor,
    schedule: StepSchedule,
    generator: torch.Generator,
) -> Losses:
    """Upstream's loss: the squared error of eps = predict_eps(x_t, step) at steps (B,) drawn uniformly."""
    n_steps = len(schedule.betas)
    step = torch.randint(n_steps, (x0.shape[0],), generator=generator, device=generator.device)
    level = NoiseLevel(*(part.to(x0).unsqueeze(1) for part in schedule.level(step)))
    eps = _noise_like(x0, generator)
    step = step.to(x0.device)
    predicted = predict_eps(add_noise(x0, eps, level), step)
    return Losses((predicted - eps).square().mean(dim=1), step / n_steps)


def _noise_like(x0: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(x0.shape, generator=generator, device=generator.device).to(x0.device)


def loss_by_quartile(losses: Losses) -> list[float]:
    """Mean loss of the cells in each quarter of the noise range, the least noise first; NaN where none fell."""
    quartile = (losses.position * N_QUARTILES).long().clamp(0, N_QUARTILES - 1)
    return [losses.loss[quartile == q].mean().item() for q in range(N_QUARTILES)]
