"""The semantic encoder: a source cell and a condition -> z_sem."""

from __future__ import annotations

import torch
from torch import nn

from squidiff.model.linear import Linear


class SemanticEncoder(nn.Module):
    """z_sem (B x Z) of a standardised source cell (B x G) and its condition features (B x C).

    LayerNorm, not BatchNorm: what is said of a cell must not depend on the cells beside it.
    """

    def __init__(self, n_genes: int, n_condition: int, n_latent: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Linear(n_genes + n_condition, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            Linear(width, width),
            nn.SiLU(),
            Linear(width, n_latent),
        )

    def forward(self, source: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        z_sem: torch.Tensor = self.layers(torch.cat([source, condition], dim=1))
        return z_sem
