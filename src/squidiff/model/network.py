"""The whole network: standardisation, semantic encoder and denoiser, in one module that a checkpoint can rebuild."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn

from squidiff.config import Config, NoiseLevel, Prediction
from squidiff.model.denoiser import Denoiser, GaussianDenoiser
from squidiff.model.encoder import SemanticEncoder


class Standardisation(NamedTuple):
    """What is fitted on the training cells before the network is trained. G genes, K axes."""

    center: torch.Tensor
    """(G,) mean of the training cells: where the encoder's input is centred."""
    spread: torch.Tensor
    """(G,) standard deviation of the training cells: the unit of the encoder's input."""
    scale: torch.Tensor
    """(G,) standard deviation within a population: the unit of the diffusion."""
    axes: torch.Tensor
    """(G, K) principal axes of the cells within their populations, in units of `scale`."""
    axis_variance: torch.Tensor
    """(K,)"""
    rest_variance: torch.Tensor
    """() mean variance off the axes."""

    @classmethod
    def of_buffers(cls, buffers: Mapping[str, torch.Tensor]) -> Standardisation:
        """From a network's buffers, or its whole state. Raises KeyError when one is missing."""
        gaussian = (f"denoiser.gaussian.{name}" for name in ("axes", "axis_variance", "rest_variance"))
        return cls(*(buffers[name] for name in ("center", "spread", "scale", *gaussian)))


class Network(nn.Module):
    """Encoder and denoiser, with the standardisation as buffers: cells go in and come out in the unit of the data.

    The diffusion runs on x0 = (cell - anchor) / scale, where the anchor is the mean of the cell's population: known in
    training, predicted afterwards.
    """

    center: torch.Tensor
    spread: torch.Tensor
    scale: torch.Tensor

    def __init__(self, config: Config, standardisation: Standardisation, n_condition: int) -> None:
        super().__init__()
        n_genes = standardisation.center.shape[0]
        self.register_buffer("center", standardisation.center)
        self.register_buffer("spread", standardisation.spread)
        self.register_buffer("scale", standardisation.scale)
        gaussian = GaussianDenoiser(standardisation.axes, standardisation.axis_variance, standardisation.rest_variance)
        self.encoder = SemanticEncoder(n_genes, n_condition, config.n_latent)
        self.denoiser = Denoiser(gaussian, config.n_latent, config.width, config.n_blocks)

    @classmethod
    def initialise(cls, config: Config, standardisation: Standardisation, n_condition: int) -> Network:
        """A network with weights drawn from config.seed; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            network = cls(config, standardisation, n_condition)
        generator = torch.Generator().manual_seed(config.seed)
        for module in network.modules():
            if isinstance(module, nn.Linear) and module.weight.any():  # the zero-initialised layers stay zero
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        return network

    def encode(self, source: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """z_sem (B x Z) of source cells (B x G, unit of the data) and condition features (B x C)."""
        return self.encoder((source - self.center) / self.spread, condition)

    def standardise(self, cells: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        """Cells (B x G, unit of the data) in the unit of the diffusion."""
        return (cells - anchor) / self.scale

    def restore(self, x0: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        """The inverse of `standardise`."""
        return x0 * self.scale + anchor

    def denoise(self, z_sem: torch.Tensor) -> Callable[[torch.Tensor, NoiseLevel], Prediction]:
        """The denoiser with its condition bound: (x_t, level) -> Prediction."""
        return functools.partial(self.denoiser, bound=self.denoiser.bind(z_sem))
