"""What upstream computed for two tiny models, and how near to it a result has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent / "data" / "upstream"
VARIANTS = ("autoencoder", "drug")
TOLERANCE = 1e-4
"""Of a float32 result, relative to the largest value: samples of untrained models reach several hundred."""


def checkpoint(variant: str) -> Path:
    return FOLDER / f"{variant}_model.pt"


def state(variant: str) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint(variant), weights_only=True)


def oracle(name: str) -> dict[str, Any]:
    """Tensors by name; texts stay arrays."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(a) if (a := file[key]).dtype.kind != "U" else a for key in file}


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()
