"""What the tests of the networks start from: a standardisation with random axes, and a small network."""

from __future__ import annotations

import torch
from torch import nn

from squidiff.config import Config
from squidiff.model.network import Network, Standardisation

N_GENES, N_AXES, N_CONDITION = 6, 2, 3
IDENTITY = torch.eye(N_GENES, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def standardisation() -> Standardisation:
    """Cells with covariance V diag(3, 0.8) V' + 0.25 (1 - V V') in units of `scale`; float64."""
    return Standardisation(
        center=randn(N_GENES, seed=1),
        spread=randn(N_GENES, seed=2).abs() + 0.5,
        scale=randn(N_GENES, seed=3).abs() + 0.2,
        axes=torch.linalg.qr(randn(N_GENES, N_AXES, seed=4)).Q,
        axis_variance=torch.tensor([3.0, 0.8], dtype=torch.float64),
        rest_variance=torch.tensor(0.25, dtype=torch.float64),
    )


def covariance() -> torch.Tensor:
    """The same covariance, written out (G x G)."""
    s = standardisation()
    on_axes = s.axes @ s.axes.T
    return s.axes @ torch.diag(s.axis_variance) @ s.axes.T + s.rest_variance * (IDENTITY - on_axes)


def untrained(seed: int = 0) -> Network:
    """A small network as it is before its first step; in float64, where rounding is far below what is tested."""
    config = Config(n_latent=4, width=16, n_blocks=2, seed=seed)
    return Network.initialise(config, standardisation(), N_CONDITION).double()


def awakened(seed: int = 0) -> Network:
    """The same with its zero layers drawn at random: a network that has something to say."""
    network = untrained(seed)
    with torch.no_grad():
        for layer in (network.denoiser.modulation, network.denoiser.project):
            nn.init.normal_(layer.weight, std=0.3, generator=seeded(seed + 100))
            nn.init.normal_(layer.bias, std=0.3, generator=seeded(seed + 200))
    return network
