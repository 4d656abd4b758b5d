"""A test double: the exact denoiser of Gaussian data, and where its probability-flow ODE takes a point."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from squidiff.config import NoiseLevel, Prediction


@dataclass(frozen=True)
class ExactGaussian:
    """Data x0 ~ N(mean, diag(deviation^2)); mean and deviation have shape (G,)."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def deviation_at(self, level: NoiseLevel) -> torch.Tensor:
        """Of x_t: sqrt(alpha^2 s^2 + sigma^2)."""
        return torch.sqrt(level.alpha**2 * self.deviation**2 + level.sigma**2)

    def predict(self, x_t: torch.Tensor, level: NoiseLevel) -> Prediction:
        """E[x0 | x_t] = mu + alpha s^2 / (alpha^2 s^2 + sigma^2) (x_t - alpha mu)."""
        gain = level.alpha * self.deviation**2 / self.deviation_at(level) ** 2
        x0 = self.mean + gain * (x_t - level.alpha * self.mean)
        return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)

    def flow(self, x: torch.Tensor, start: NoiseLevel, end: NoiseLevel) -> torch.Tensor:
        """The ODE's solution: a cell keeps its number of deviations from the mean."""
        score = (x - start.alpha * self.mean) / self.deviation_at(start)
        return end.alpha * self.mean + self.deviation_at(end) * score
