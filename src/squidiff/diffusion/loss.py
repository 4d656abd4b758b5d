"""The training loss: draw a level, add noise, predict, weigh, square."""

from __future__ import annotations

from collections.abc import Callable

import torch

from squidiff.config import NoiseLevel, Prediction
from squidiff.diffusion.schedule import MAX_ANGLE, MIN_ANGLE, angle_from_level, draw_angles, level_from_angle

N_QUARTILES = 4

Denoise = Callable[[torch.Tensor, NoiseLevel], Prediction]
"""A denoiser whose conditioning is bound: (x_t, level) -> Prediction."""


def add_noise(x0: torch.Tensor, eps: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
    """x_t = alpha x0 + sigma eps, all B x G."""
    return level.alpha * x0 + level.sigma * eps


def denoising_loss(denoise: Denoise, x0: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, NoiseLevel]:
    """The loss of each cell, shape (B,), and the levels (B, 1) that it was taken at.

    The squared error of x0 is weighed by 1 / sigma^2, which with alpha^2 + sigma^2 = 1 is the squared error of
    v = alpha eps - sigma x0 (Salimans and Ho 2022, Progressive Distillation, section 4): 1 on average for a predictor
    that knows nothing of unit-variance data, at every level.
    """
    level = level_from_angle(draw_angles(x0.shape[0], generator).to(x0.device))
    eps = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0.device)
    prediction = denoise(add_noise(x0, eps, level), level)
    return ((prediction.x0 - x0) / level.sigma).square().mean(dim=1), level


def loss_by_quartile(loss: torch.Tensor, level: NoiseLevel) -> list[float]:
    """Mean loss of the cells in each quarter of the noise range, the least noise first; NaN where none fell."""
    position = (angle_from_level(level).squeeze(1) - MIN_ANGLE) / (MAX_ANGLE - MIN_ANGLE)
    quartile = (position * N_QUARTILES).long().clamp(0, N_QUARTILES - 1)
    return [loss[quartile == q].mean().item() for q in range(N_QUARTILES)]
