"""A generator of training steps. Logging, saving and stopping belong to the caller."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import nn

from squidiff.config import Batch, Config, InputError, NoiseLevel
from squidiff.diffusion.loss import (
    Losses,
    Noise,
    denoising_loss,
    draw_noise,
    draw_upstream_noise,
    upstream_loss,
)
from squidiff.diffusion.schedule import StepSchedule
from squidiff.model.network import Network

N_UPSTREAM_STEPS = 1000
SMALLEST_PART = 2
"""Cells of a backward pass: BatchNorm needs two."""
AnyBatch = TypeVar("AnyBatch", bound=tuple[Any, ...])
"""A named tuple of tensors."""


class Step(NamedTuple):
    """One step, as tensors still on the device: whoever wants numbers asks for them."""

    step: int
    """Number of steps done, this one included."""
    losses: Losses
    learning_rate: float
    gradient_norm: torch.Tensor
    """() before it was clipped"""
    micro_batch_size: int | None
    """Cells a backward pass; None where it was all of the batch."""


@dataclass
class TrainState:
    """All that a step changes; with the batches' position it is all that resuming needs."""

    network: nn.Module
    average: dict[str, torch.Tensor]
    """Moving average of the network's parameters."""
    further: tuple[dict[str, torch.Tensor], ...]
    """The same by config.further_ema_decays."""
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    """Of noise and levels, on the CPU so that every device draws the same."""
    micro_batch_size: int | None
    """Cells a backward pass, None for all of a batch; less than was asked for once memory did not hold as many."""
    step: int = 0

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @classmethod
    def start(cls, network: nn.Module, config: Config) -> TrainState:
        """The state before the first step."""
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        network.train()
        average = {name: p.detach().clone() for name, p in network.named_parameters()}
        further = tuple({name: t.clone() for name, t in average.items()} for _ in config.further_ema_decays)
        generator = torch.Generator().manual_seed(config.seed)
        return cls(network, average, further, optimizer, generator, config.micro_batch_size)


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


@dataclass(frozen=True)
class Loss(Generic[AnyBatch]):
    """A loss, and the noise that it is taken at."""

    draw: Callable[[torch.Size, torch.Generator], Noise]
    """For targets of that shape, B x G."""
    of: Callable[[nn.Module, AnyBatch, Noise], Losses]
    """A batch, or a part of it with its part of the noise."""

    def without_gradient(self, network: nn.Module, batch: AnyBatch, generator: torch.Generator, size: int) -> float:
        """The mean of a batch, taken in parts of so many cells or fewer."""
        noise, device = self.draw(batch[0].shape, generator), next(network.parameters()).device
        parts = zip(in_parts(batch, size), in_parts(noise, size), strict=True)
        with torch.no_grad():
            of_each = (self.of(network, on_device(part, device), on_device(drawn, device)) for part, drawn in parts)
            losses = [of_part.loss for of_part in of_each]
        return torch.cat(losses).mean().item()


@dataclass(frozen=True)
class Recipe(Generic[AnyBatch]):
    """What one architecture's training does otherwise than another's; numbers are settings."""

    loss: Loss[AnyBatch]
    """What is trained on."""
    noise_loss: Loss[AnyBatch]
    """The squared error of eps at steps of upstream's schedule, which all architectures can be compared by."""
    learning_rate: Callable[[int, Config], float]
    """Of step number n, from 0."""
    decay: Callable[[int, Config], float]
    """Of the weights' moving average, after n steps."""
    keeps_average: bool
    """Whether the average is what a run saves, and not the newest weights."""


def warmed_up_rate(step: int, config: Config) -> float:
    """The highest rate, or its share while the warm-up rises linearly; of step number `step`, from 0."""
    return config.learning_rate * (min(1.0, (step + 1) / config.n_warmup_steps) if config.n_warmup_steps else 1.0)


def learning_rate(step: int, config: Config) -> float:
    """Rate of step number `step` (from 0): a linear warm-up, under half a cosine that is 0 after the last step."""
    return warmed_up_rate(step, config) * 0.5 * (1 + math.cos(math.pi * step / config.n_train_steps))


def _young_decay(n_steps: int, config: Config) -> float:
    """A young average follows closely, so that it does not remember the random start."""
    return min(config.ema_decay, (1 + n_steps) / (10 + n_steps))


def _network_losses(network: nn.Module, batch: Batch, noise: Noise) -> Losses:
    assert isinstance(network, Network)
    z_sem = network.encode(batch.source, batch.condition)
    x0 = network.standardise(batch.target, batch.anchor)
    return denoising_loss(network.denoise(z_sem), x0, noise)


def _noise_losses(network: nn.Module, batch: Batch, noise: Noise) -> Losses:
    """In the unit of the diffusion, at the steps of Squidiff 1.0.8."""
    assert isinstance(network, Network)
    z_sem = network.encode(batch.source, batch.condition)
    denoise, schedule = network.denoise(z_sem), StepSchedule.named("linear", N_UPSTREAM_STEPS)

    def predict_eps(x_t: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        level = NoiseLevel(*(part.to(x_t).unsqueeze(1) for part in schedule.level(step.cpu())))
        return denoise(x_t, level).eps

    return upstream_loss(predict_eps, network.standardise(batch.target, batch.anchor), schedule, noise)


RECIPE: Recipe[Batch] = Recipe(
    Loss(draw_noise, _network_losses),
    Loss(functools.partial(draw_upstream_noise, n_steps=N_UPSTREAM_STEPS), _noise_losses),
    learning_rate,
    _young_decay,
    keeps_average=True,
)
"""Of this project's own architecture."""


def training_steps(
    state: TrainState, draw: Callable[[], AnyBatch], config: Config, recipe: Recipe[AnyBatch] = RECIPE
) -> Iterator[Step]:
    """Steps from state.step to config.n_train_steps; the state is changed in place and is whole at each yield."""
    parameters = list(state.network.parameters())
    averages = [state.average[name] for name, _ in state.network.named_parameters()]
    while state.step < config.n_train_steps:
        batch = draw()
        noise = recipe.loss.draw(batch[0].shape, state.generator)
        losses = _with_gradients(state, batch, noise, recipe.loss)
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        rate = recipe.learning_rate(state.step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.step += 1
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - recipe.decay(state.step, config))
        for decay, average in zip(config.further_ema_decays, state.further, strict=True):
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters], 1 - decay)
        yield Step(state.step, losses, rate, norm.detach(), state.micro_batch_size)


def _with_gradients(state: TrainState, batch: AnyBatch, noise: Noise, loss: Loss[AnyBatch]) -> Losses:
    """The losses of a batch; the parameters are given the gradients of their mean.

    Where memory does not hold a whole batch, it is taken in parts of half the size, and again of half, and so are the
    batches after it. Raises InputError when not even two cells fit.
    """
    averages = [b for m in state.network.modules() if isinstance(m, nn.BatchNorm1d) for b in m.buffers()]
    before = [b.clone() for b in averages]
    while True:
        size = state.micro_batch_size or len(batch[0])
        try:
            return _accumulated(state, batch, noise, loss, size)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size <= SMALLEST_PART:
                raise InputError(
                    f"the memory of {state.device} does not hold a step of {size} cells: lower --width, or take fewer "
                    "genes (`squidiff prepare --n-genes`)"
                ) from None
        # not before here, where the error and with it the tensors of the step are gone
        for buffer, value in zip(averages, before, strict=True):
            buffer.copy_(value)
        state.micro_batch_size = max(SMALLEST_PART, -(-size // 2))
        if state.device.type != "cpu":
            torch.get_device_module(state.device).empty_cache()


def _accumulated(state: TrainState, batch: AnyBatch, noise: Noise, loss: Loss[AnyBatch], size: int) -> Losses:
    state.optimizer.zero_grad(set_to_none=True)
    n_cells, done = len(batch[0]), []
    batch, noise = on_device(batch, state.device), on_device(noise, state.device)
    for part, part_of_noise in zip(in_parts(batch, size), in_parts(noise, size), strict=True):
        losses = loss.of(state.network, part, part_of_noise)
        (losses.loss.sum() / n_cells).backward()
        done.append(Losses(losses.loss.detach(), losses.position))
    return Losses(*map(torch.cat, zip(*done, strict=True)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory, of the machine or of an accelerator, did not suffice."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def in_parts(batch: AnyBatch, size: int) -> list[AnyBatch]:
    """The batch in even parts of `size` cells or fewer, but of 3 where one were alone: BatchNorm needs two."""
    n_cells = len(batch[0])
    n_parts = min(-(-n_cells // size), max(1, n_cells // 2))
    return [type(batch)(*part) for part in zip(*(t.tensor_split(n_parts) for t in batch), strict=True)]


def on_device(batch: AnyBatch, device: torch.device) -> AnyBatch:
    """The batch with its tensors on a device."""
    return type(batch)(*(t.to(device) for t in batch))


def validation_loss(
    state: TrainState, batches: Sequence[AnyBatch], seed: int, recipe: Recipe[AnyBatch] = RECIPE
) -> float:
    """Mean loss of the averaged weights over fixed batches (at least one), with the same noise at every call."""
    generator = torch.Generator().manual_seed(seed)
    with averaged_weights(state):
        sizes = [len(batch[0]) for batch in batches]
        of_each = [
            recipe.loss.without_gradient(state.network, batch, generator, state.micro_batch_size or n)
            for batch, n in zip(batches, sizes, strict=True)
        ]
    return float(np.average(of_each, weights=sizes))


def noise_error(network: nn.Module, batch: AnyBatch, seed: int, recipe: Recipe[AnyBatch], size: int) -> float:
    """Mean squared error of the predicted noise of a batch, in parts of `size` cells: the loss of Squidiff 1.0.8."""
    return recipe.noise_loss.without_gradient(network, batch, torch.Generator().manual_seed(seed), size)


@contextmanager
def averaged_weights(state: TrainState) -> Iterator[None]:
    """The network with its averaged weights, inside; as it was, after."""
    parameters = dict(state.network.named_parameters())
    with torch.no_grad():
        current = {name: p.detach().clone() for name, p in parameters.items()}
        for name, p in parameters.items():
            p.copy_(state.average[name])
        state.network.eval()
        try:
            yield
        finally:
            state.network.train()
            for name, p in parameters.items():
                p.copy_(current[name])
