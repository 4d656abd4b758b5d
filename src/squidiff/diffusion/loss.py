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


class Noise(NamedTuple):
    """What is drawn for a batch: drawn for the whole of it at once, so that its parts lose nothing."""

    place: torch.Tensor
    """(B,) the angle of each cell's level or, in upstream's loss, the step"""
    eps: torch.Tensor
    """B x G"""


def draw_noise(shape: torch.Size, generator: torch.Generator) -> Noise:
    """Of a batch of that shape, B x G, for `denoising_loss`: levels over the whole range, stratified."""
    angle = draw_angles(shape[0], generator).squeeze(1)
    return Noise(angle, torch.randn(shape, generator=generator, device=generator.device))


def draw_upstream_noise(shape: torch.Size, generator: torch.Generator, n_steps: int) -> Noise:
    """Of a batch of that shape, B x G, for `upstream_loss`: steps drawn uniformly."""
    step = torch.randint(n_steps, (shape[0],), generator=generator, device=generator.device)
    return Noise(step, torch.randn(shape, generator=generator, device=generator.device))


def denoising_loss(denoise: Denoise, x0: torch.Tensor, noise: Noise) -> Losses:
    """The squared error of v at the levels drawn.

    The squared error of x0 is weighed by 1 / sigma^2, which with alpha^2 + sigma^2 = 1 is the squared error of
    v = alpha eps - sigma x0 (Salimans and Ho 2022, Progressive Distillation, section 4): 1 on average for a predictor
    that knows nothing of unit-variance data, at every level.
    """
    level = level_from_angle(noise.place.unsqueeze(1))
    prediction = denoise(add_noise(x0, noise.eps, level), level)
    position = (noise.place - MIN_ANGLE) / (MAX_ANGLE - MIN_ANGLE)
    return Losses(((prediction.x0 - x0) / level.sigma).square().mean(dim=1), position)


def upstream_loss(
    predict_eps: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x0: torch.Tensor,
    schedule: StepSchedule,
    noise: Noise,
) -> Losses:
    """Upstream's loss: the squared error of eps = predict_eps(x_t, step) at the steps (B,) drawn."""
    level = schedule.levels_for(noise.place, x0)
    predicted = predict_eps(add_noise(x0, noise.eps, level), noise.place)
    return Losses((predicted - noise.eps).square().mean(dim=1), noise.place / len(schedule.betas))


def loss_by_quartile(losses: Losses) -> list[float]:
    """Mean loss of the cells in each quarter of the noise range, the least noise first; NaN where none fell."""
    quartile = (losses.position * N_QUARTILES).long().clamp(0, N_QUARTILES - 1)
    return [losses.loss[quartile == q].mean().item() for q in range(N_QUARTILES)]
