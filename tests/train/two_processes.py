"""Run by a test, as `two_processes.py FOLDER N STRATEGY`: trains the network of the defaults, says what came out.

One process is given the joined batch.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

import numpy as np
import torch

from squidiff.config import Batch, Compute, Config, InputError
from squidiff.model.network import Network, Standardisation
from squidiff.train.loop import TrainState, training_steps
from squidiff.train.processes import Processes, whole

N_GENES, N_CONDITION, N_CELLS, N_STEPS = 50, 7, 64, 8
SETTINGS = Config(n_axes=8, n_train_steps=20, n_warmup_steps=2, batch_size=N_CELLS, max_grad_norm=None)


def network() -> Network:
    rng = np.random.default_rng(0)
    axes = torch.from_numpy(np.linalg.qr(rng.normal(size=(N_GENES, 8)))[0].astype(np.float32))
    ones = (torch.ones(N_GENES), torch.ones(N_GENES))
    fitted = Standardisation(torch.zeros(N_GENES), *ones, axes, torch.ones(8), torch.tensor(0.5))
    begun = Network.initialise(SETTINGS, fitted, N_CONDITION)
    for p in begun.parameters():  # a layer that starts at zero gives those before it no gradient
        if not p.any():
            p.data.copy_(torch.from_numpy(rng.normal(0, 0.05, p.shape).astype(np.float32)))
    return begun


def batch(i: int) -> Batch:
    rng = np.random.default_rng((3, i))
    sizes = (N_GENES, N_GENES, N_GENES, N_CONDITION)
    return Batch(*(torch.from_numpy(rng.normal(size=(N_CELLS, n)).astype(np.float32)) for n in sizes))


def main(folder: Path, n: int, strategy: str) -> None:
    atexit.register(say_whether_left, folder)  # what is registered first is done last
    processes = Processes.start(Compute(device="cpu", devices=n, strategy=strategy))
    state = TrainState.start(network(), SETTINGS, processes=processes)
    own = np.array_split(np.arange(N_CELLS), processes.n)[processes.rank]
    numbers = iter(range(N_STEPS))
    steps = training_steps(state, lambda: Batch(*(t[own] for t in batch(next(numbers)))), SETTINGS)
    found = {}
    for i in range(N_STEPS):
        found[f"loss {i}"] = processes.joined(next(steps).losses.loss)
        if i == 0:  # later ones are of weights that differ by rounding
            gradients = ((name, p.grad) for name, p in state.network.named_parameters())
            found |= {f"gradient {name}": whole(g) for name, g in gradients if g is not None}
    found |= {f"weight {name}": whole(p.detach()) for name, p in state.network.named_parameters()}
    if processes.is_main:
        torch.save(found, folder / f"{n}-{strategy}.pt")
    if n == 2:
        say_what_is_told(processes, folder)


def say_whether_left(folder: Path) -> None:
    still = torch.distributed.is_initialized()
    (folder / f"left-{os.environ.get('LOCAL_RANK', '0')}.txt").write_text(f"still connected: {still}", encoding="utf-8")


def say_what_is_told(processes: Processes, folder: Path) -> None:
    """What each process hears, and the sentences that it ends in, one file a process."""

    def fail(where: int) -> str:
        if processes.rank == where:
            raise InputError(f"process {where} cannot")
        return f"done by {processes.rank}"

    heard = [f"gathered {processes.gathered(processes.rank)}"]
    heard += [f"main {processes.by_main(lambda: fail(1))}", f"together {processes.together(lambda: fail(2))}"]
    for what in (processes.by_main, processes.together):
        for where in (0, 1):
            try:
                what(lambda where=where: fail(where))
                heard.append(f"{what.__name__} {where}: nothing")
            except InputError as error:
                heard.append(f"{what.__name__} {where}: {error}, shared: {error.is_shared}")
    parts = list(processes.in_turn([lambda i=i: (i, processes.rank) for i in range(5)]))
    heard.append(f"parts {parts}")
    (folder / f"heard-{processes.rank}.txt").write_text("\n".join(heard), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
