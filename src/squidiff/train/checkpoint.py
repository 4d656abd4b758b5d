"""Tensors on disk: safetensors, written whole or not at all, and never executed when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from squidiff.config import InputError
from squidiff.files import write_atomically
from squidiff.model.network import Standardisation
from squidiff.train.loop import TrainState

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any] | None = None) -> None:
    """Writes tensors, and a JSON-able note in the same file, atomically."""
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    metadata = {"note": json.dumps(note or {})}
    write_atomically(path, lambda temporary: temporary.write_bytes(save(flat, metadata)))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the note. Raises InputError when the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            note = json.loads((file.metadata() or {}).get("note", "{}"))
            if not isinstance(note, dict):
                raise ValueError("its note is no JSON object")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a safetensors file: {error}") from error
    return tensors, note


def require_finite_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError that names a tensor of values that are not finite."""
    damaged = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if damaged:
        raise ValueError(f"{damaged[0]} holds values that are not finite")


def save_state(path: Path, state: TrainState, best: Mapping[str, torch.Tensor], best_loss: float) -> None:
    """Writes all that resuming needs: weights, their averages, the best one if any, optimiser and random state."""
    tensors = {"generator": state.generator.get_state()}
    tensors |= {f"weights.{name}": p for name, p in state.network.named_parameters()}
    tensors |= {f"buffers.{name}": b for name, b in state.network.named_buffers()}
    tensors |= {f"average.{name}": t for name, t in state.average.items()}
    tensors |= {f"best.{name}": t for name, t in best.items()}
    for i, average in enumerate(state.further):
        tensors |= {f"further.{i}.{name}": t for name, t in average.items()}
    unmoved = []  # a parameter that the loss does not depend on never has a gradient
    for name, p in state.network.named_parameters():
        if p in state.optimizer.state:
            tensors |= {f"optimizer.{name}.{moment}": state.optimizer.state[p][moment] for moment in MOMENTS}
        else:
            unmoved.append(name)
    note = {"step": state.step, "validation_loss": best_loss, "keeps_best": bool(best), "unmoved": unmoved}
    write_tensors(path, tensors, note)


def load_state(path: Path, state: TrainState, n_train_steps: int) -> tuple[dict[str, torch.Tensor], float]:
    """Fills a fresh state from a file; returns the best average, if one was kept, and its validation loss.

    Raises InputError when the file is damaged or is not of this model and this number of steps.
    """
    try:
        tensors, note = read_tensors(path)
    except InputError as error:
        raise InputError(f"{error}; delete its folder to start anew") from error
    best: dict[str, torch.Tensor] = {}
    try:
        with torch.no_grad():
            for name, p in state.network.named_parameters():
                p.copy_(tensors[f"weights.{name}"])
                state.average[name].copy_(tensors[f"average.{name}"])
                for i, average in enumerate(state.further):
                    average[name].copy_(tensors[f"further.{i}.{name}"])
                if name not in note["unmoved"]:
                    moments = {moment: tensors[f"optimizer.{name}.{moment}"] for moment in MOMENTS}
                    state.optimizer.state[p] = {moment: value.to(state.device) for moment, value in moments.items()}
                if note["keeps_best"]:
                    best[name] = tensors[f"best.{name}"].to(state.average[name])
            for name, buffer in state.network.named_buffers():
                buffer.copy_(tensors[f"buffers.{name}"])
        state.generator.set_state(tensors["generator"])
        state.step, best_loss = int(note["step"]), float(note["validation_loss"])
        if state.step > n_train_steps:
            raise ValueError(f"step {state.step} of {n_train_steps}")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not belong to this model ({error}): delete its folder to start anew, or name another --out"
        ) from error
    return best, best_loss


def load_standardisation(path: Path) -> Standardisation:
    """The standardisation that the run of a saved state was begun with. Raises InputError when it is not there."""
    tensors, _ = read_tensors(path)
    try:
        return Standardisation.of_buffers({name.removeprefix("buffers."): t for name, t in tensors.items()})
    except KeyError as error:
        raise InputError(f"{path} is no saved state ({error} is missing): delete its folder to start anew") from error
