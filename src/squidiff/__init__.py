"""Predicts how single cells change under drugs, doses, gene perturbations, combinations and differentiation.

The public names are loaded when first used: `import squidiff` imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from squidiff import evaluate

if TYPE_CHECKING:
    from squidiff import pl
    from squidiff.config import Compute, Config, InputError, Preparation, Sampling, Schema
    from squidiff.data.check import check
    from squidiff.data.preprocess import prepare
    from squidiff.data.simulate import simulate_perturbation
    from squidiff.estimator import Squidiff
    from squidiff.evaluate.scoring import compare

__all__ = [
    "Compute",
    "Config",
    "InputError",
    "Preparation",
    "Sampling",
    "Schema",
    "Squidiff",
    "check",
    "compare",
    "evaluate",
    "pl",
    "prepare",
    "simulate_perturbation",
]

_HOME = {
    "Compute": "config",
    "Config": "config",
    "InputError": "config",
    "Preparation": "config",
    "Sampling": "config",
    "Schema": "config",
    "Squidiff": "estimator",
    "check": "data.check",
    "compare": "evaluate.scoring",
    "prepare": "data.preprocess",
    "simulate_perturbation": "data.simulate",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("squidiff-ng")
    if name == "pl":
        return importlib.import_module("squidiff.pl")
    if name in _HOME:
        return getattr(importlib.import_module(f"squidiff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'squidiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
