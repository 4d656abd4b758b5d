"""The denoiser: (x_t, noise level, z_sem) -> Prediction(x0, eps), as a closed-form Gaussian denoiser plus a network.

Cells have as many independent directions as genes, and a network narrower than that loses their variances. So the
linear part is not learned but solved: for cells with covariance V diag(axis_variance) V' + rest_variance (1 - V V')
(probabilistic PCA, Tipping and Bishop 1999) the best guess of x0 is known exactly. The network adds what is not
Gaussian, starts at zero, and so an untrained model already generates cells of the right mean and covariance.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from squidiff.config import NoiseLevel, Prediction
from squidiff.model.linear import Linear


class GaussianDenoiser(nn.Module):
    """E[x0 | x_t] for x0 ~ N(0, V diag(axis_variance) V' + rest_variance (1 - V V')).

    On an axis of variance s, E[x0 | x_t] = alpha s / (alpha^2 s + sigma^2) x_t. `axes` V is G x K with orthonormal
    columns, `axis_variance` (K,), `rest_variance` a scalar.
    """

    axes: torch.Tensor
    axis_variance: torch.Tensor
    rest_variance: torch.Tensor

    def __init__(self, axes: torch.Tensor, axis_variance: torch.Tensor, rest_variance: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("axes", axes)
        self.register_buffer("axis_variance", axis_variance)
        self.register_buffer("rest_variance", rest_variance)

    def forward(self, x_t: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        with torch.autocast(x_t.device.type, enabled=False):  # what is known exactly stays so in half precision
            on_axes = x_t @ self.axes
            gain_axes = self._gain(self.axis_variance, level)
            gain_rest = self._gain(self.rest_variance, level)
            return gain_rest * x_t + (on_axes * (gain_axes - gain_rest)) @ self.axes.T

    @staticmethod
    def _gain(variance: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        return level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)


class Block(nn.Module):
    """h + gate * MLP(scale * LayerNorm(h) + shift), with shift, scale and gate from the level and z_sem."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.rise = Linear(width, width)
        self.fall = Linear(width, width)

    def forward(self, h: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        update: torch.Tensor = self.fall(functional.silu(self.rise(self.norm(h) * (1 + scale) + shift)))
        return h + (1 + gate) * update


class Denoiser(nn.Module):
    """x0 = gaussian(x_t, level) + sigma * network(x_t, level, z_sem), so that the network's target is of order 1."""

    N_FREQUENCIES = 32
    EMBEDDING = 256

    frequencies: torch.Tensor

    def __init__(self, gaussian: GaussianDenoiser, n_latent: int, width: int, n_blocks: int) -> None:
        super().__init__()
        n_genes = gaussian.axes.shape[0]
        self.gaussian = gaussian
        self.register_buffer("frequencies", torch.exp(torch.linspace(0.0, math.log(1000.0), self.N_FREQUENCIES)))
        self.embed_level = nn.Sequential(
            Linear(2 * self.N_FREQUENCIES, self.EMBEDDING), nn.SiLU(), Linear(self.EMBEDDING, self.EMBEDDING)
        )
        self.embed_latent = Linear(n_latent, self.EMBEDDING)
        self.modulation = Linear(self.EMBEDDING, 3 * width * n_blocks)
        self.lift = Linear(n_genes, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)
        self.project = Linear(width, n_genes)
        for layer in (self.modulation, self.project):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def bind(self, z_sem: torch.Tensor) -> torch.Tensor:
        """What the steps need of z_sem (B x Z), computed once a sample and not once a step: (B, EMBEDDING)."""
        embedded: torch.Tensor = self.embed_latent(z_sem)
        return embedded

    def forward(self, x_t: torch.Tensor, level: NoiseLevel, bound: torch.Tensor) -> Prediction:
        """x_t is B x G, `bound` from `bind`; the level's parts are scalars (embedded once for all cells) or (B, 1)."""
        level = NoiseLevel(*(part.to(x_t).reshape(-1, 1) for part in level))
        angle = torch.atan2(level.sigma, level.alpha) * self.frequencies
        embedded = self.embed_level(torch.cat([angle.sin(), angle.cos()], dim=1)) + bound
        modulation = self.modulation(functional.silu(embedded)).unflatten(1, (3 * len(self.blocks), -1)).unbind(1)
        h = self.lift(x_t)
        for i, block in enumerate(self.blocks):
            h = block(h, *modulation[3 * i : 3 * i + 3])
        x0 = self.gaussian(x_t, level) + level.sigma * self.project(self.norm(h))
        return Prediction(x0, (x_t - level.alpha * x0) / level.sigma)
