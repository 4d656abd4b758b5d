"""Noise levels in the coordinates (alpha, sigma), where x_t = alpha x0 + sigma eps and alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import math

import torch

from squidiff.config import NoiseLevel

MIN_ANGLE = 0.01
"""Smallest noise angle: sigma 0.01, below which float32 leaves nothing to predict."""
MAX_ANGLE = math.pi / 2 - 0.01
"""Largest noise angle: alpha 0.01, where a standardised cell is drowned in noise."""


def level_from_angle(angle: torch.Tensor) -> NoiseLevel:
    """The cosine schedule of Nichol and Dhariwal (2021) without its offset: alpha = cos(angle), sigma = sin(angle)."""
    return NoiseLevel(torch.cos(angle), torch.sin(angle))


def angle_from_level(level: NoiseLevel) -> torch.Tensor:
    """The inverse of `level_from_angle` on [0, pi / 2]."""
    return torch.atan2(level.sigma, level.alpha)


def draw_angles(n: int, generator: torch.Generator) -> torch.Tensor:
    """n training angles, shape (n, 1), uniform on [MIN_ANGLE, MAX_ANGLE] and stratified: one in each n-th of the range.

    Stratifying (Kingma et al. 2021, Variational Diffusion Models, appendix I.1) keeps every batch's loss comparable.
    """
    strata = torch.randperm(n, generator=generator, device=generator.device)
    jitter = torch.rand(n, generator=generator, device=generator.device)
    return (MIN_ANGLE + (MAX_ANGLE - MIN_ANGLE) * (strata + jitter) / n).unsqueeze(1)


def sampling_levels(n_steps: int, strength: float = 1.0) -> list[NoiseLevel]:
    """n_steps + 1 levels from `strength` of the way (in angle) to pure noise to MIN_ANGLE, even in log(alpha/sigma).

    Even in angle, the last step would be long in log(alpha/sigma), across which DPM-Solver++ extrapolates: cells then
    come out too wide. Float64 scalars on the CPU: a float32 log-ratio of two near levels is noise.
    """
    ends = torch.tensor([MIN_ANGLE + strength * (MAX_ANGLE - MIN_ANGLE), MIN_ANGLE], dtype=torch.float64)
    highest, lowest = torch.log(torch.tan(ends)).tolist()
    ratios = torch.linspace(highest, lowest, n_steps + 1, dtype=torch.float64)
    return [level_from_angle(angle) for angle in torch.atan(torch.exp(ratios))]
