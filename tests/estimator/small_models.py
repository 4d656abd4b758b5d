"""What the tests of the estimator start from: small cells, queries, and what is asserted of predicted cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from made_cells import HELD_OUT, dense, small, split
from squidiff.config import Schema
from squidiff.estimator import Squidiff

TRAIN, _ = split()
QUERY = pd.DataFrame({"condition": ["drug"], "cell_type": [HELD_OUT]})
FILES = {"model.safetensors", "config.json", "metrics.jsonl", "check.json", "manifest.json", "provenance.json"}


def queries(n_cells: int | None = None, **columns: object) -> pd.DataFrame:
    """One query."""
    return pd.DataFrame([columns if n_cells is None else {**columns, "n_cells": n_cells}])


def trained(cells: ad.AnnData, schema: Schema) -> Squidiff:
    return Squidiff(schema, small(n_train_steps=2), "cpu").fit(cells)


def anchors(predicted: ad.AnnData) -> set[str]:
    return set(predicted.obs["anchor"])


def clear_of_zero(*means: np.ndarray) -> np.ndarray:
    """The genes that no mean has cut off at 0."""
    return np.all([m > 1e-3 for m in means], axis=0)


def assert_mean(predicted: ad.AnnData, mean: np.ndarray) -> None:
    """Of all predicted cells; a gene without any non-zero cell, or with a mean below zero, is left at 0."""
    values = dense(predicted)
    alive = (values > 0).any(axis=0)
    assert alive.sum() > 30
    np.testing.assert_allclose(values.mean(axis=0)[alive], mean[alive], rtol=0, atol=1e-3)
    assert mean[~alive].max(initial=0.0) < 0.05
