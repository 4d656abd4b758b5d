"""Tensors on disk: safetensors, written whole or not at all, and never executed when read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from squidiff.config import InputError
from squidiff.files import write_atomically
from squidiff.model.network import Standardisation
from squidiff.train.loop import TrainState
from squidiff.train.processes import as_held, whole

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW remembers of a parameter."""
HASH = "values_sha256"
"""In the note: of all values."""


class Unreadable(InputError):
    """A file of tensors that is missing or damaged."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any] | None = None) -> None:
    """Writes tensors, and a JSON-able note in the same file, atomically."""
    flat = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    metadata = {"note": json.dumps({**(note or {}), HASH: _hash(flat)})}  # one entry: several come in any order
    write_atomically(path, lambda temporary: temporary.write_bytes(save(flat, metadata)))


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the note. Raises Unreadable when the file is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            # copied: a tensor lies where the file's header ends, and the last bit of MKL's products depends on that
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
        note = json.loads(metadata.get("note", "{}"))
        if not isinstance(note, dict):
            raise ValueError("its note is no JSON object")
        if note.pop(HASH, None) not in (None, _hash(tensors)):
            raise ValueError("its values are not those that were written")
    except (SafetensorError, OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read as a safetensors file: {error}") from error
    return tensors, note


def _hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all values: safetensors itself would not notice a changed one."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        whole.update(name.encode())
        values = tensors[name].reshape(-1)
        # a single value is contiguous whatever its stride, which `view` refuses
        whole.update(values.as_strided(values.shape, (1,)).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def require_finite_tensors(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError that names a tensor of values that are not finite."""
    damaged = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if damaged:
        raise ValueError(f"{damaged[0]} holds values that are not finite")


class Saved(NamedTuple):
    """A saved state, as it was read."""

    path: Path
    tensors: dict[str, torch.Tensor]
    note: dict[str, Any]

    @property
    def step(self) -> object:
        return self.note.get("step")

    def kept(self, prefix: str) -> dict[str, torch.Tensor]:
        """The tensors whose names begin so, without it."""
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


def save_state(path: Path, state: TrainState, kept: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
    """Writes all that resuming needs: weights, their averages, optimiser and random state, and what the run keeps.

    All processes are to call it; the main one writes. Raises InputError in all when it cannot.
    """
    tensors = {"generator": state.generator.get_state(), **kept}
    tensors |= {f"weights.{name}": whole(p) for name, p in state.network.named_parameters()}
    tensors |= {f"buffers.{name}": b for name, b in state.network.named_buffers()}
    tensors |= {f"average.{name}": whole(t) for name, t in state.average.items()}
    for i, average in enumerate(state.further):
        tensors |= {f"further.{i}.{name}": whole(t) for name, t in average.items()}
    unmoved = []  # a parameter that the loss does not depend on never has a gradient
    for name, p in state.network.named_parameters():
        if p in state.optimizer.state:
            tensors |= {f"optimizer.{name}.{moment}": whole(state.optimizer.state[p][moment]) for moment in MOMENTS}
        else:
            unmoved.append(name)
    of_state = {"step": state.step, "unmoved": unmoved, "micro_batch_size": state.micro_batch_size}
    of_state["scaler"] = state.processes.scaler
    state.processes.by_main(lambda: write_tensors(path, tensors, {**note, **of_state}))


def read_state(path: Path) -> Saved:
    """Raises Unreadable when the file is missing or damaged."""
    return Saved(path, *read_tensors(path))


def load_state(saved: Saved, state: TrainState, n_train_steps: int) -> None:
    """Fills a fresh state. Raises InputError when what was saved is not of this model and this number of steps."""
    tensors, note = saved.tensors, saved.note
    try:
        with torch.no_grad():
            for name, p in state.network.named_parameters():
                p.copy_(as_held(tensors[f"weights.{name}"], p))
                state.average[name].copy_(as_held(tensors[f"average.{name}"], p))
                for i, average in enumerate(state.further):
                    average[name].copy_(as_held(tensors[f"further.{i}.{name}"], p))
                if name not in note["unmoved"]:
                    moments = {moment: tensors[f"optimizer.{name}.{moment}"] for moment in MOMENTS}
                    state.optimizer.state[p] = {
                        moment: as_held(value, p) if value.ndim else value.to(state.device)
                        for moment, value in moments.items()
                    }
            for name, buffer in state.network.named_buffers():
                buffer.copy_(tensors[f"buffers.{name}"])
        state.generator.set_state(tensors["generator"])
        state.processes.set_scaler(note.get("scaler", {}))
        state.step = int(note["step"])
        sizes = (state.micro_batch_size, note["micro_batch_size"])
        state.micro_batch_size = min((int(size) for size in sizes if size is not None), default=None)
        if state.step > n_train_steps:
            raise ValueError(f"step {state.step} of {n_train_steps}")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise foreign(saved, error) from error


def foreign(saved: Saved, error: Exception) -> InputError:
    """What to say of a state that is not of this model."""
    return InputError(
        f"{saved.path} does not belong to this model ({error}): delete its folder to start anew, or name another --out"
    )


def load_standardisation(saved: Saved) -> Standardisation:
    """The standardisation that the run of a saved state was begun with. Raises InputError when it is not there."""
    try:
        return Standardisation.of_buffers(saved.kept("buffers."))
    except KeyError as error:
        raise foreign(saved, error) from error
