"""The processes that work together: how they are started, and what they tell each other. lightning-fabric does both."""

from __future__ import annotations

import atexit
import functools
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from squidiff.config import Compute, InputError

Result = TypeVar("Result")
LOST = ("connection", "socket", "broken pipe", "timed out")
"""Words of gloo and NCCL where the other end is gone."""


class Processes:
    """One process of several that do one piece of work, or the only one.

    What they tell each other, they tell in the same order: every method below that says 'all' is to be called by all.
    """

    def __init__(self, compute: Compute) -> None:
        """Starts the others, where nobody did. Raises InputError where that cannot be."""
        devices, nodes = _started(compute)
        self.device = find_device(compute.device, is_one=devices * nodes == 1)
        if compute.precision == "16-mixed" and self.device.type == "cpu":
            raise InputError("--precision 16-mixed is not to be had on a CPU: use bf16-mixed or 32")
        if devices > 1 and self.device.index is not None:
            raise InputError(f"--device is {compute.device}, but --devices is {devices}: name the kind of device alone")
        n_there = devices if self.device.type == "cpu" else torch.get_device_module(self.device).device_count()
        if devices > n_there:
            raise InputError(f"--devices is {devices}, but this machine has {n_there}: ask for no more")
        self.compute, self.n, self.rank = compute, devices * nodes, 0
        self._start = functools.partial(_launched, compute, self.device, devices, nodes)
        if self.n > 1:
            self.rank, self.device = int(self._fabric.global_rank), self._fabric.device

    @functools.cached_property
    def _fabric(self) -> Any:
        """Loaded where it is used, which takes a second: a single process predicts without it."""
        return self._start()

    @classmethod
    def start(cls, compute: Compute) -> Processes:
        """Those of the settings; asked for again, the same ones."""
        return _start(compute)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    @contextmanager
    def others(self) -> Iterator[None]:
        """Inside, a process that ends leaves the others with an InputError, and not with one of a lost connection."""
        try:
            yield
        except RuntimeError as error:
            if self.n == 1 or not any(word in str(error).lower() for word in LOST):
                raise
            raise _shared("another process of this work ended, or cannot be reached: see what it said") from None

    # --- what they tell each other

    def gathered(self, value: Result) -> list[Result]:
        """What all have, in the order of their ranks."""
        if self.n == 1:
            return [value]
        values: list[Any] = [None] * self.n
        with self.others():
            torch.distributed.all_gather_object(values, value)
        return values

    def joined(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensors of all, one after the other."""
        if self.n == 1:
            return tensor
        return torch.cat(self.gathered(tensor.cpu())).to(tensor.device)

    def together(self, work: Callable[[], Result]) -> Result:
        """What the work gives in this one, after all have done it. Raises the InputError of any in all."""
        if self.n == 1:
            return work()
        result, error = _tried(work)
        for other in self.gathered(error):
            if other is not None:
                raise _shared(other)
        return result  # type: ignore[return-value] - without an error there is one

    def by_main(self, work: Callable[[], Result]) -> Result:
        """What the work gives that the main one does, told to all. Raises its InputError in all."""
        if self.n == 1:
            return work()
        told: list[Any] = [_tried(work) if self.is_main else None]
        with self.others():
            torch.distributed.broadcast_object_list(told)
        result, error = told[0]
        if error is not None:
            raise _shared(error)
        return result

    def in_turn(self, parts: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """What the parts of a work give, in their order: all do some of them, and the main one is given them."""
        waiting: list[Callable[[], Result]] = []
        for part in parts:
            waiting.append(part)
            if len(waiting) == self.n:
                yield from self._share_out(waiting)
                waiting = []
        if waiting:
            yield from self._share_out(waiting)

    def _share_out(self, parts: list[Callable[[], Result]]) -> Iterator[Result]:
        own = self.together(lambda: [part() for part in parts[self.rank : self.rank + 1]])
        if self.n == 1:
            yield from own
            return
        told: list[Any] | None = [None] * self.n if self.is_main else None
        with self.others():
            torch.distributed.gather_object(own, told)
        for results in told or ():
            yield from results

    def require_same(self, value: object, what: str) -> None:
        """Raises InputError in all where they do not have the same; `what` is said to be another one."""
        if any(other != value for other in self.gathered(value)):
            raise _shared(f"not all machines have the same {what}: put the files where all of them see them")

    # --- what a step needs

    def set_up(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training; of fsdp, its parameters are from now on this one's share of them."""
        precision = self._fabric.strategy.precision
        if getattr(precision, "scaler", None) is not None:  # that of a training before has come to a factor of its own
            precision.scaler = torch.amp.GradScaler(self.device.type)
        return self._fabric.setup_module(module)

    def take_shares(self, module: nn.Module) -> None:
        """Of fsdp: gives back what was brought together for a call that no backward pass followed."""
        from torch.distributed.fsdp import FSDPModule

        for each in module.modules():
            if isinstance(each, FSDPModule):
                each.reshard()

    def backward(self, loss: torch.Tensor, module: nn.Module) -> None:
        """Adds the gradients of a loss that was computed by the module: the mean over all, which all are told."""
        self._fabric.backward(loss, model=module)

    def without_telling(self, module: nn.Module, is_so: bool) -> AbstractContextManager[Any]:
        """Inside, gradients are added up in this one alone."""
        return self._fabric.no_backward_sync(module) if is_so and self.n > 1 else nullcontext()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients as they are without the factor that keeps small ones in float16."""
        self._fabric.strategy.precision.unscale_gradients(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of the optimiser; in float16, none where gradients were no numbers, after which the factor is less."""
        self._fabric.strategy.optimizer_step(optimizer)

    @property
    def scaler(self) -> dict[str, Any]:
        """What the factor of float16 remembers; empty in other precisions."""
        return dict(self._fabric.strategy.precision.state_dict())

    def set_scaler(self, remembered: dict[str, Any]) -> None:
        if remembered:
            self._fabric.strategy.precision.load_state_dict(remembered)


def find_device(name: str, *, is_one: bool = True) -> torch.device:
    """The device of that name; 'auto' is the accelerator that torch finds (CUDA, Apple's), or the CPU.

    Raises InputError when torch does not know it or this machine does not have it.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        if is_one or device.type == "cpu":  # of several, each has another one
            torch.zeros(1, device=device).item()  # the device 'meta' has no numbers to give
    except (AssertionError, ImportError, NotImplementedError, RuntimeError):
        raise InputError(f"device {name!r} is not to be had on this machine: use auto or cpu") from None
    return device


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each process holds a share of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, of which each process may hold a share: then all are to ask for it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def as_held(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor as another is held: on its device, and this process's share of it."""
    tensor = tensor.to(like.device)
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)  # type: ignore[attr-defined]


@functools.cache
def _start(compute: Compute) -> Processes:
    return Processes(compute)


def _started(compute: Compute) -> tuple[int, int]:
    """Devices a machine, and machines: those that torchrun or srun started, where nothing else was asked for."""
    devices, nodes = compute.devices, compute.nodes
    if devices * nodes > 1:
        return devices, nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        n_local = int(os.environ["LOCAL_WORLD_SIZE"])
        return n_local, int(os.environ["WORLD_SIZE"]) // n_local
    return devices, nodes


def _launched(compute: Compute, device: torch.device, devices: int, nodes: int) -> Any:
    """Fabric, with all processes running."""
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # not before: it sets its own when it is loaded
    chosen: int | list[int] = devices
    if device.index is not None and devices == 1:
        chosen = [device.index]
    precision = "32-true" if compute.precision == "32" else compute.precision
    environment = _environment(devices, nodes)
    try:
        strategy = _strategy(compute, device, devices * nodes)
        fabric = Fabric(
            accelerator=device.type,
            strategy=strategy,
            devices=chosen,
            num_nodes=nodes,
            precision=precision,
            plugins=environment,
        )
        fabric.launch()
    except (RuntimeError, ValueError) as error:
        asked = f"training on {device}" if devices * nodes == 1 else f"--devices {devices} and --nodes {nodes}"
        raise InputError(f"{asked} cannot be started: {error}") from None
    atexit.register(_leave)
    return fabric


def _environment(devices: int, nodes: int) -> Any:
    """Who starts the processes, and where the first of them is; None where fabric finds that out.

    Raises InputError where it would wait for processes that nobody starts.
    """
    from lightning_fabric.plugins import environments as known

    from squidiff.train.slurm import Step

    if devices * nodes == 1:  # one process is one process, whatever a cluster's job gives it room for
        return known.LightningEnvironment()
    if known.TorchElasticEnvironment.detect():
        return None
    if Step.detect():
        return Step(devices, nodes)
    if known.LSFEnvironment.detect() or known.MPIEnvironment.detect():
        return None
    if nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise InputError(
            f"--nodes is {nodes}, but nothing says where the first machine is: start it by srun or torchrun, or with "
            "MASTER_ADDR, MASTER_PORT and NODE_RANK set on each machine"
        )
    return known.LightningEnvironment()  # of a SLURM job without srun too: there is this process alone


def _leave() -> None:
    """Ends gloo's threads while Python still runs: later, one that is alive aborts a process that is done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _strategy(compute: Compute, device: torch.device, n: int) -> Any:
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    backend = torch.distributed.get_default_backend_for_device(device)
    if device.type != "cpu":  # what is no tensor of a device is told by gloo, which does not wait for a GPU
        backend = f"cpu:gloo,{device.type}:{backend}"
    if compute.strategy == "fsdp":
        return ModelParallelStrategy(_sharded, n, 1, process_group_backend=backend)
    if n == 1:
        return "auto"
    # of buffers only BatchNorm's averages change, and those of the main process are what is saved
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    at_every_step = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return DDPStrategy(process_group_backend=backend, **{at_every_step: False})


def _sharded(module: nn.Module, mesh: Any) -> nn.Module:
    """The parameters in shares: those of a block are brought together where it is used, the others for the whole."""
    from torch.distributed.fsdp import fully_shard

    mesh = mesh["data_parallel"]
    for blocks in [each for each in module.modules() if isinstance(each, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def _tried(work: Callable[[], Result]) -> tuple[Result | None, str | None]:
    """What the work gives, and the sentence of an InputError, one of both."""
    try:
        return work(), None
    except InputError as error:
        return None, str(error)


def _shared(sentence: str) -> InputError:
    """An InputError that all processes raise."""
    error = InputError(sentence)
    error.is_shared = True
    return error
