"""Noise levels in the coordinates (alpha, sigma), where x_t = alpha x0 + sigma eps and alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from squidiff.config import InputError, NoiseLevel

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


@dataclass(frozen=True)
class StepSchedule:
    """Upstream's levels: step t = 0 .. T-1 has alpha^2 = the product of 1 - beta over the steps up to t.

    All tables are float64 on the CPU, so that single levels reach any device with full precision.
    """

    betas: torch.Tensor
    """(T,)"""

    @classmethod
    def named(cls, name: str, n_steps: int) -> StepSchedule:
        """`linear`: beta from 0.1 / T to 20 / T (Ho et al. 2020, for any T); `cosine`: Nichol and Dhariwal 2021.

        Raises InputError when there are so few linear steps that the last one would leave nothing of a cell.
        """
        if name == "linear":
            if n_steps <= 20:
                raise InputError(f"{n_steps} steps of linear noise are too few: take 21 or more, or cosine noise")
            return cls(torch.linspace(0.1 / n_steps, 20.0 / n_steps, n_steps, dtype=torch.float64))
        angle = (torch.arange(n_steps + 1, dtype=torch.float64) / n_steps + 0.008) / 1.008 * math.pi / 2
        remaining = torch.cos(angle).square()
        return cls((1 - remaining[1:] / remaining[:-1]).clamp(max=0.999))

    @functools.cached_property
    def alphas_cumprod(self) -> torch.Tensor:
        """(T,) alpha^2 of every step; upstream's table of that name."""
        return torch.cumprod(1 - self.betas, 0)

    @property
    def alphas_cumprod_prev(self) -> torch.Tensor:
        """(T,) of the step before; 1 before step 0, the clean cell."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @property
    def alphas_cumprod_next(self) -> torch.Tensor:
        """(T,) of the step after; 0 after the last one."""
        return torch.cat([self.alphas_cumprod[1:], torch.zeros(1, dtype=torch.float64)])

    def level(self, step: torch.Tensor | int) -> NoiseLevel:
        """The level of one step (scalars) or of many, of the steps' shape."""
        alpha_squared = self.alphas_cumprod[step]
        return NoiseLevel(alpha_squared.sqrt(), (1 - alpha_squared).sqrt())

    def levels_for(self, step: torch.Tensor, like: torch.Tensor) -> NoiseLevel:
        """The levels (B, 1) of steps (B,), in the type of other numbers and on their device, without waiting for it."""
        where = (like.device, like.dtype)
        if where not in self._tables:
            self._tables[where] = NoiseLevel(*(part.to(like) for part in self.level(torch.arange(len(self.betas)))))
        return NoiseLevel(*(part[step].unsqueeze(1) for part in self._tables[where]))

    @functools.cached_property
    def _tables(self) -> dict[tuple[torch.device, torch.dtype], NoiseLevel]:
        return {}

    def sampling_steps(self, n: int) -> list[int]:
        """n steps from the last down to 0: all of them, or those whose levels lie most evenly in log(alpha / sigma).

        Raises InputError when there are not as many.
        """
        n_steps = len(self.betas)
        if not 1 <= n <= n_steps:
            raise InputError(f"{n} sampling steps are asked for, but the model has {n_steps}: ask for 1 to {n_steps}")
        if n == n_steps:
            return list(range(n_steps - 1, -1, -1))
        level = self.level(torch.arange(n_steps))
        ratio = torch.log(level.alpha) - torch.log(level.sigma)  # falls with the step
        wanted = torch.linspace(ratio[-1].item(), ratio[0].item(), n, dtype=torch.float64)
        nearest = (ratio.unsqueeze(0) - wanted.unsqueeze(1)).abs().argmin(dim=1).tolist()
        return _distinct(nearest)

    def sampling_levels(self, steps: Sequence[int]) -> list[NoiseLevel]:
        """The levels of these steps, then the clean cell's."""
        clean = NoiseLevel(torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64))
        return [*(self.level(step) for step in steps), clean]


def _distinct(steps: list[int]) -> list[int]:
    """Falling steps with the repeated ones replaced by the nearest free step below, or above at the bottom."""
    for i in range(1, len(steps)):
        steps[i] = min(steps[i], steps[i - 1] - 1)
    return [max(step, len(steps) - 1 - i) for i, step in enumerate(steps)]
