"""A generator of training steps. Logging, saving and stopping belong to the caller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from squidiff.config import Batch, Config, InputError, NoiseLevel
from squidiff.diffusion.loss import denoising_loss
from squidiff.model.network import Network


class Step(NamedTuple):
    """One step, as tensors still on the device: whoever wants numbers asks for them."""

    step: int
    """Number of steps done, this one included."""
    loss: torch.Tensor
    """(B,) of each cell"""
    level: NoiseLevel
    learning_rate: float


@dataclass
class TrainState:
    """All that a step changes; with the batches' position it is all that resuming needs."""

    network: Network
    average: dict[str, torch.Tensor]
    """Moving average of the network's parameters."""
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    """Of noise and levels, on the CPU so that every device draws the same."""
    step: int = 0

    @classmethod
    def start(cls, network: Network, config: Config) -> TrainState:
        """The state before the first step."""
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        average = {name: p.detach().clone() for name, p in network.named_parameters()}
        return cls(network, average, optimizer, torch.Generator().manual_seed(config.seed))


def find_device(name: str) -> torch.device:
    """The device of that name; 'auto' is the accelerator that torch finds (CUDA, Apple's), or the CPU.

    Raises InputError when torch does not know it or this machine does not have it.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device 'meta' has no numbers to give
    except (AssertionError, ImportError, NotImplementedError, RuntimeError):
        raise InputError(f"device {name!r} is not to be had on this machine: use auto or cpu") from None
    return device


def learning_rate(step: int, config: Config) -> float:
    """Rate of step number `step` (from 0): a linear warm-up, under half a cosine that is 0 after the last step."""
    warm_up = min(1.0, (step + 1) / config.n_warmup_steps) if config.n_warmup_steps else 1.0
    return config.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / config.n_train_steps))


def training_steps(state: TrainState, draw: Callable[[], Batch], config: Config) -> Iterator[Step]:
    """Steps from state.step to config.n_train_steps; the state is changed in place and is whole at each yield."""
    device = state.network.center.device
    parameters = list(state.network.parameters())
    averages = [state.average[name] for name, _ in state.network.named_parameters()]
    while state.step < config.n_train_steps:
        batch = Batch(*(t.to(device) for t in draw()))
        loss, level = batch_loss(state.network, batch, state.generator)
        state.optimizer.zero_grad(set_to_none=True)
        loss.mean().backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        rate = learning_rate(state.step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.step += 1
        # a young average follows closely, so that it does not remember the random start
        decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - decay)
        yield Step(state.step, loss.detach(), level, rate)


def batch_loss(network: Network, batch: Batch, generator: torch.Generator) -> tuple[torch.Tensor, NoiseLevel]:
    """The loss of each cell of a batch (B,), and the noise levels (B, 1)."""
    z_sem = network.encode(batch.source, batch.condition)
    x0 = network.standardise(batch.target, batch.anchor)
    return denoising_loss(network.denoise(z_sem), x0, generator)


@torch.no_grad()
def validation_loss(state: TrainState, batches: Sequence[Batch], seed: int) -> float:
    """Mean loss of the averaged weights over fixed batches (at least one), with the same noise at every call."""
    device = state.network.center.device
    generator = torch.Generator().manual_seed(seed)
    with averaged_weights(state):
        losses = [batch_loss(state.network, Batch(*(t.to(device) for t in b)), generator)[0] for b in batches]
    return torch.cat(losses).mean().item()


@contextmanager
def averaged_weights(state: TrainState) -> Iterator[None]:
    """The network with its averaged weights, inside; as it was, after."""
    parameters = dict(state.network.named_parameters())
    with torch.no_grad():
        current = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in parameters.items():
            p.copy_(state.average[name])
        try:
            yield
        finally:
            for name, p in parameters.items():
                p.copy_(current[name])
