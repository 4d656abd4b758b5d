"""Predicts how single cells change under drugs, doses, gene perturbations, combinations and differentiation.

The public names are loaded when first used: `import squidiff` imports no torch.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Importing a subpackage binds its name here, once. Done first, it does not hide the function of that name below.
import squidiff.evaluate  # noqa: F401

if TYPE_CHECKING:
    import anndata as ad
    import pandas as pd

    from squidiff.config import Config, InputError, Preparation, Sampling, Schema
    from squidiff.data.check import check
    from squidiff.data.preprocess import prepare
    from squidiff.data.simulate import simulate_perturbation
    from squidiff.estimator import Squidiff

__all__ = [
    "Config",
    "InputError",
    "Preparation",
    "Sampling",
    "Schema",
    "Squidiff",
    "check",
    "evaluate",
    "prepare",
    "simulate_perturbation",
]

_HOME = {
    "Config": "config",
    "InputError": "config",
    "Preparation": "config",
    "Sampling": "config",
    "Schema": "config",
    "Squidiff": "estimator",
    "check": "data.check",
    "prepare": "data.preprocess",
    "simulate_perturbation": "data.simulate",
}


def evaluate(
    predicted: ad.AnnData | str | Path,
    truth: ad.AnnData | str | Path,
    schema: Schema | None = None,
    *,
    train: ad.AnnData | str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores predicted cells against true ones, beside the baselines: see `squidiff.evaluate.scoring.evaluate`."""
    from squidiff.evaluate import scoring

    return scoring.evaluate(predicted, truth, schema, train=train, seed=seed)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("squidiff-ng")
    if name in _HOME:
        return getattr(importlib.import_module(f"squidiff.{_HOME[name]}"), name)
    raise AttributeError(f"module 'squidiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
