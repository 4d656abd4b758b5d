"""Scores any pair of AnnData, with floors, ceilings, intervals and a verdict. No torch.

The unit can be called: `squidiff.evaluate(predicted, truth, schema, train=train)` is `evaluate.scoring.evaluate`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import anndata as ad
    import pandas as pd

    from squidiff.config import Schema


class _Unit(ModuleType):
    """A module has one name in its package; this one is asked for as a function and as a place."""

    def __call__(
        self,
        predicted: ad.AnnData | str | Path,
        truth: ad.AnnData | str | Path,
        schema: Schema | None = None,
        *,
        train: ad.AnnData | str | Path | None = None,
        seed: int = 0,
        on_population: Callable[[int, int], None] | None = None,
    ) -> pd.DataFrame:
        """See `squidiff.evaluate.scoring.evaluate`."""
        from squidiff.evaluate.scoring import evaluate

        return evaluate(predicted, truth, schema, train=train, seed=seed, on_population=on_population)


sys.modules[__name__].__class__ = _Unit
