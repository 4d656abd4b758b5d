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

from squidiff.config import Batch, Compute, Config, InputError
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
from squidiff.train.processes import Processes, is_sharded, whole

N_UPSTREAM_STEPS = 1000
SMALLEST_PART = 2
"""Cells of a backward pass: BatchNorm needs two."""
Weights = dict[str, torch.Tensor]
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


@dataclass(frozen=True)
class Loss(Generic[AnyBatch]):
    """A loss, and the noise that it is taken at."""

    draw: Callable[[torch.Size, torch.Generator], Noise]
    """For targets of that shape, B x G."""
    of: Callable[[nn.Module, AnyBatch, Noise], Losses]
    """A batch, or a part of it with its part of the noise."""

    def without_gradient(self, objective: nn.Module, batch: AnyBatch, generator: torch.Generator, size: int) -> float:
        """The mean of a batch, taken in parts of so many cells or fewer; of the objective of this loss."""
        noise, device = self.draw(batch[0].shape, generator), next(objective.parameters()).device
        parts = zip(in_parts(batch, size), in_parts(noise, size), strict=True)
        with torch.no_grad():
            of_each = (objective(Taken(on_device(part, device), on_device(drawn, device))) for part, drawn in parts)
            losses = [of_part.loss for of_part in of_each]
        return torch.cat(losses).mean().item()


class Taken(Generic[AnyBatch]):
    """What a loss is of. No tuple: Fabric and DDP would go through one and change the precision of its tensors."""

    def __init__(self, batch: AnyBatch, noise: Noise) -> None:
        self.batch, self.noise = batch, noise


class Objective(nn.Module):
    """A network and its loss as one module, whose call is what processes share and precision is chosen for."""

    def __init__(self, network: nn.Module, loss: Loss[Any]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, taken: Taken[Any]) -> Losses:
        return self.loss.of(self.network, taken.batch, taken.noise)


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
        return denoise(x_t, schedule.levels_for(step, x_t)).eps

    return upstream_loss(predict_eps, network.standardise(batch.target, batch.anchor), schedule, noise)


RECIPE: Recipe[Batch] = Recipe(
    Loss(draw_noise, _network_losses),
    Loss(functools.partial(draw_upstream_noise, n_steps=N_UPSTREAM_STEPS), _noise_losses),
    learning_rate,
    _young_decay,
    keeps_average=True,
)
"""Of this project's own architecture."""


@dataclass
class TrainState:
    """All that a step changes; with the batches' position it is all that resuming needs."""

    network: nn.Module
    objective: nn.Module
    """The network's, as it is called in training."""
    recipe: Recipe[Any]
    processes: Processes
    average: Weights
    """Moving average of the network's parameters."""
    further: tuple[Weights, ...]
    """The same by config.further_ema_decays."""
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    """Of noise and levels, on the CPU."""
    micro_batch_size: int | None
    """Cells a backward pass, None for all of a batch; less than was asked for once memory did not hold as many."""
    step: int = 0

    @property
    def device(self) -> torch.device:
        return self.processes.device

    def weights(self) -> tuple[Weights, ...]:
        """The network's newest state, then its averages, whole: so all processes are to ask for it."""
        newest = {name: whole(t) for name, t in self.network.state_dict().items()}
        return newest, *({name: whole(t) for name, t in each.items()} for each in (self.average, *self.further))

    @classmethod
    def start(
        cls,
        network: nn.Module,
        config: Config,
        recipe: Recipe[Any] | None = None,
        processes: Processes | None = None,
    ) -> TrainState:
        """The state before the first step, of this project's recipe and of one process if nothing else is said."""
        recipe, processes = recipe or RECIPE, processes or Processes.start(Compute(device="cpu"))
        network.train()
        objective = processes.set_up(Objective(network, recipe.loss))
        # float16 needs gradients without its factor before they are clipped, which the fused optimiser would not see
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=not processes.scaler,
        )
        average = {name: p.detach().clone() for name, p in network.named_parameters()}
        further = tuple({name: t.clone() for name, t in average.items()} for _ in config.further_ema_decays)
        generator = torch.Generator().manual_seed(config.seed)
        return cls(
            network, objective, recipe, processes, average, further, optimizer, generator, config.micro_batch_size
        )


def training_steps(state: TrainState, draw: Callable[[], AnyBatch], config: Config) -> Iterator[Step]:
    """Steps from state.step to config.n_train_steps; the state is changed in place and is whole at each yield.

    `draw` gives this process's share of the next batch, as large as that of any other.
    """
    recipe, processes = state.recipe, state.processes
    parameters = list(state.network.parameters())
    averages = [state.average[name] for name, _ in state.network.named_parameters()]
    tried = processes.n == 1 or is_sharded(parameters[0])  # where all take part in every product, none can try alone
    while state.step < config.n_train_steps:
        batch = draw()
        noise = _share_of_noise(state, batch)
        if not tried:  # while some tell their gradients, none can begin again
            processes.together(functools.partial(_try, state, batch, noise))
            sizes = [size for size in processes.gathered(state.micro_batch_size) if size is not None]
            state.micro_batch_size, tried = min(sizes, default=None), True
        losses = _with_gradients(state, batch, noise)
        processes.unscale(state.optimizer)
        norm = whole(_clipped(parameters, config.max_grad_norm))
        rate = recipe.learning_rate(state.step, config)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        processes.step(state.optimizer)
        state.step += 1
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - recipe.decay(state.step, config))
        for decay, average in zip(config.further_ema_decays, state.further, strict=True):
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters], 1 - decay)
        yield Step(state.step, losses, rate, norm.detach(), state.micro_batch_size)


def _share_of_noise(state: TrainState, batch: tuple[Any, ...]) -> Noise:
    """What is drawn for this process's share of a batch, and is drawn for the whole in all alike.

    An accelerator draws it itself, from a seed that is drawn on the CPU: so the state of one generator is all there is.
    """
    n_cells, n, generator = len(batch[0]), state.processes.n, state.generator
    if state.device.type != "cpu":
        seed = torch.randint(2**62, (), generator=generator).item()
        generator = torch.Generator(state.device).manual_seed(int(seed))
    noise = state.recipe.loss.draw(torch.Size([n * n_cells, *batch[0].shape[1:]]), generator)
    first = state.processes.rank * n_cells
    return Noise(*(drawn[first : first + n_cells] for drawn in noise))


def _clipped(parameters: list[nn.Parameter], max_norm: float | None) -> torch.Tensor:
    """The norm of all gradients, which are then clipped if there is a highest one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = _norm(gradients)
    # on a CPU the norm is known by now, and a pass over all gradients is spared where it would change nothing
    if max_norm is not None and (norm.device.type != "cpu" or not max_norm / (norm + 1e-6) >= 1):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def _norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Of all of them as one vector."""
    if all(type(g) is torch.Tensor and g.device.type == "cpu" for g in gradients):  # none that processes have shares of
        # torch's own norm takes twice as long there, and of four million numbers is wrong in the fifth digit
        return torch.stack([torch.dot(g.flatten(), g.flatten()) for g in gradients]).sum().sqrt()
    return nn.utils.get_total_norm(gradients)


def _try(state: TrainState, batch: AnyBatch, noise: Noise) -> None:
    """Finds how many cells fit the memory; BatchNorm's averages stay as they were."""
    averages = _averages(state.network)
    _with_gradients(state, batch, noise, alone=True)
    _put_back(averages)


def _averages(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """BatchNorm's, each with a copy."""
    layers = (module for module in network.modules() if isinstance(module, nn.BatchNorm1d))
    return [(buffer, buffer.clone()) for layer in layers for buffer in layer.buffers()]


def _put_back(averages: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for buffer, before in averages:
        buffer.copy_(before)


def _with_gradients(state: TrainState, batch: AnyBatch, noise: Noise, *, alone: bool = False) -> Losses:
    """The losses of a batch; the parameters are given the gradients of their mean, over all processes unless `alone`.

    Where memory does not hold a whole batch, it is taken in parts of half the size, and again of half, and so are the
    batches after it. Raises InputError when not even two cells fit.
    """
    averages = _averages(state.network)
    while True:
        size = state.micro_batch_size or len(batch[0])
        try:
            return _accumulated(state, batch, noise, size, alone)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if state.processes.n > 1 and not alone:
                raise InputError(
                    f"the memory of {state.device} did not hold {size} cells, which it held before: go on from the "
                    f"last saved state with --resume and --micro-batch-size {max(SMALLEST_PART, size // 2)}"
                ) from None
            if size <= SMALLEST_PART:
                raise InputError(
                    f"the memory of {state.device} does not hold a step of {size} cells: lower --width, or take fewer "
                    "genes (`squidiff prepare --n-genes`)"
                ) from None
        # not before here, where the error and with it the tensors of the step are gone
        _put_back(averages)
        state.micro_batch_size = max(SMALLEST_PART, -(-size // 2))
        if state.device.type != "cpu":
            torch.get_device_module(state.device).empty_cache()


def _accumulated(state: TrainState, batch: AnyBatch, noise: Noise, size: int, alone: bool) -> Losses:
    state.optimizer.zero_grad(set_to_none=True)
    n_cells, done = len(batch[0]), []
    batch, noise = on_device(batch, state.device), on_device(noise, state.device)
    parts = list(zip(in_parts(batch, size), in_parts(noise, size), strict=True))
    for i, part in enumerate(parts, start=1):
        with state.processes.without_telling(state.objective, alone or i < len(parts)):
            losses = state.objective(Taken(*part))
            state.processes.backward(losses.loss.sum() / n_cells, state.objective)
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


def validation_loss(state: TrainState, batches: Sequence[AnyBatch], seed: int) -> float:
    """Mean loss of the averaged weights over fixed batches (at least one), with the same noise at every call."""
    generator = torch.Generator().manual_seed(seed)
    with averaged_weights(state):
        sizes = [len(batch[0]) for batch in batches]
        of_each = [
            state.recipe.loss.without_gradient(state.objective, batch, generator, state.micro_batch_size or n)
            for batch, n in zip(batches, sizes, strict=True)
        ]
    return float(np.average(of_each, weights=sizes))


def noise_error(network: nn.Module, batch: AnyBatch, seed: int, recipe: Recipe[AnyBatch], size: int) -> float:
    """Mean squared error of the predicted noise of a batch, in parts of `size` cells: the loss of Squidiff 1.0.8."""
    objective, generator = Objective(network, recipe.noise_loss), torch.Generator().manual_seed(seed)
    return recipe.noise_loss.without_gradient(objective, batch, generator, size)


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
            state.processes.take_shares(state.objective)
            for name, p in parameters.items():
                p.copy_(current[name])
