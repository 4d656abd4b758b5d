"""Upstream's checkpoints on disk: `model.pt`, `model_0.9999.pt`. Never executed when read."""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from squidiff.config import InputError
from squidiff.files import write_atomically
from squidiff.model.upstream import UpstreamNetwork
from squidiff.train.checkpoint import require_finite_tensors

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which a state dict may lie, as in upstream's loader and in much other code."""
PARALLEL = "module."
"""What torch puts before the names of a model that was trained by several processes."""


def read_upstream(path: Path) -> UpstreamNetwork:
    """The network of a checkpoint, on the CPU and in evaluation mode.

    Raises InputError when the file is missing, cut, holds code or is no checkpoint of upstream's network.
    """
    loaded = _load(path)
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(t, torch.Tensor) for t in loaded.values()):
        raise InputError(f"{path} holds no state dict (names and tensors): give a model.pt as upstream saves it")
    state = {
        str(key).removeprefix(PARALLEL): t.detach().float() if t.is_floating_point() else t for key, t in loaded.items()
    }
    try:
        require_finite_tensors(state)
        return UpstreamNetwork.from_state(state)
    except ValueError as error:  # an InputError is one
        raise InputError(f"{path} cannot be used: {error}") from None


def write_upstream(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Writes a state dict as upstream does, atomically; the same tensors are the same bytes."""
    buffer = io.BytesIO()  # to a file, torch writes the file's name into it
    torch.save({key: t.detach().to("cpu").clone() for key, t in state.items()}, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give a checkpoint such as model.pt")
    unreadable = f"{path} cannot be read as a checkpoint: it was cut, or is another kind of file"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles of newer protocols, which are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower() or _is_pickle_of_objects(path):
            raise InputError(
                f"{path} holds more than tensors, which could run code when loaded: it is refused; save the model's "
                "state_dict alone"
            ) from None
        raise InputError(unreadable) from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception:  # torch raises many kinds for a damaged file, none of which means anything else to the user
        raise InputError(unreadable) from None


def _is_pickle_of_objects(path: Path) -> bool:
    """Whether a bare pickle names a class or a function; its instructions are read, not followed."""
    try:
        return any(
            code.name in ("GLOBAL", "STACK_GLOBAL", "INST") for code, _, _ in pickletools.genops(path.read_bytes())
        )
    except (ValueError, IndexError):  # no pickle, or a cut one
        return False
