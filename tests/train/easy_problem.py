"""What the tests of training start from: cells that are a linear function of their condition, and a small network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from squidiff.config import Batch, Config
from squidiff.model.network import Network, Standardisation
from squidiff.train.loop import Step, TrainState, training_steps

N_GENES, N_CONDITION = 8, 2
CONFIG = Config(
    n_latent=4,
    width=32,
    n_blocks=2,
    n_axes=2,
    n_train_steps=20,
    n_warmup_steps=5,
    batch_size=32,
    learning_rate=3e-3,
    log_every_steps=5,
    validate_every_steps=10,
    save_every_steps=10,
)
WEIGHT = np.random.default_rng(0).normal(size=(N_CONDITION, N_GENES)) / np.sqrt(N_CONDITION)


def config(**changes: Any) -> Config:
    return dataclasses.replace(CONFIG, **changes)


def network(settings: Config = CONFIG) -> Network:
    axes = torch.eye(N_GENES)[:, :2]
    spread, scale = torch.ones(N_GENES), torch.ones(N_GENES)  # two tensors: a module lists one tensor under one name
    fitted = Standardisation(torch.zeros(N_GENES), spread, scale, axes, torch.ones(2), torch.tensor(1.0))
    return Network.initialise(settings, fitted, N_CONDITION)


def batch(i: int, sign: float = 1.0, n: int = 32) -> Batch:
    """Batch number i: target = sign * condition @ WEIGHT + a little noise, source unrelated, anchor 0."""
    rng = np.random.default_rng((7, i))
    condition = rng.normal(size=(n, N_CONDITION))
    target = sign * condition @ WEIGHT + 0.1 * rng.normal(size=(n, N_GENES))
    arrays = (target, rng.normal(size=(n, N_GENES)), np.zeros((n, N_GENES)), condition)
    return Batch(*(torch.from_numpy(a.astype(np.float32)) for a in arrays))


def stream(first: int) -> Callable[[], Batch]:
    """Draws batch number `first`, and then those after it."""
    numbers = iter(range(first, 10**9))
    return lambda: batch(next(numbers))


def run(settings: Config, n_steps: int | None = None) -> tuple[TrainState, list[Step]]:
    """The state after the steps, and the steps."""
    state = TrainState.start(network(settings), settings)
    steps = []
    for step in training_steps(state, stream(0), settings):
        steps.append(step)
        if step.step == n_steps:
            break
    return state, steps


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in state.network.named_parameters()}


VALIDATION = [batch(10**6), batch(10**6 + 1)]
CONTRARY = [batch(10**6, sign=-1.0), batch(10**6 + 1, sign=-1.0)]
"""What is learned from the training batches makes it worse on these."""


def parameters(trained: Network) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trained.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moments(state: TrainState) -> dict[str, torch.Tensor]:
    """What the optimiser remembers of each parameter."""
    return {
        f"{name}.{key}": value
        for name, p in state.network.named_parameters()
        for key, value in state.optimizer.state[p].items()
    }


def whole(state: TrainState) -> dict[str, torch.Tensor]:
    """All that a step changes, by name."""
    parts = {"weights": weights(state), "average": state.average, "moments": moments(state)}
    flat = {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
    return {**flat, "generator": state.generator.get_state(), "step": torch.tensor(state.step)}
