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
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a safetensors file: {error}") from error
    return tensors, note


def save_state(path: Path, state: TrainState, best: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
    """Writes all that resuming needs: weights, their average, the best average so far, optimiser and random state."""
    tensors = {"generator": state.generator.get_state()}
    tensors |= {f"weights.{name}": p for name, p in state.network.named_parameters()}
    tensors |= {f"buffers.{name}": b for name, b in state.network.named_buffers()}
    tensors |= {f"average.{name}": t for name, t in state.average.items()}
    tensors |= {f"best.{name}": t for name, t in best.items()}
    for name, p in state.network.named_parameters():
        tensors |= {f"optimizer.{name}.{moment}": state.optimizer.state[p][moment] for moment in MOMENTS}
    write_tensors(path, tensors, {**note, "step": state.step})


def load_state(path: Path, state: TrainState) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Fills a fresh state from a file; returns the best average and the note. Raises InputError if it does not fit."""
    tensors, note = read_tensors(path)
    device = state.network.center.device
    try:
        with torch.no_grad():
            for name, p in state.network.named_parameters():
                p.copy_(tensors[f"weights.{name}"])
                state.average[name].copy_(tensors[f"average.{name}"])
                moments = {moment: tensors[f"optimizer.{name}.{moment}"] for moment in MOMENTS}
                state.optimizer.state[p] = {moment: value.to(device) for moment, value in moments.items()}
        state.generator.set_state(tensors["generator"])
        state.step = int(note["step"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path} does not belong to this model: {error}") from error
    best = {name.removeprefix("best."): t for name, t in tensors.items() if name.startswith("best.")}
    return best, note


def load_buffers(path: Path) -> dict[str, torch.Tensor]:
    """The network's buffers in a saved state: the standardisation that the run was begun with."""
    tensors, _ = read_tensors(path)
    return {name.removeprefix("buffers."): t for name, t in tensors.items() if name.startswith("buffers.")}
