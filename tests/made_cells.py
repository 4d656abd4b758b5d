"""What the tests of whole jobs start from: small simulated cells, their schema, and settings that train in a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

from squidiff.config import Config, Schema
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation

SCHEMA = Schema(condition_key="condition", control="control", context_keys=("cell_type",))
HELD_OUT = "type A"
SMALL = Config(
    n_latent=8,
    width=32,
    n_blocks=2,
    n_axes=4,
    n_train_steps=20,
    n_warmup_steps=5,
    batch_size=32,
    save_every_steps=10,
    validate_every_steps=10,
    log_every_steps=5,
)


def small(**changes: Any) -> Config:
    return dataclasses.replace(SMALL, **changes)


def counts(conditions: tuple[str, ...] = ("drug",), seed: int = 0, n_cells: int = 40) -> ad.AnnData:
    """Raw counts of 40 genes, 3 cell types and `n_cells` cells a population; obs as text, so that it can be edited."""
    cells = simulate_perturbation(40, 3, n_cells, conditions, seed=seed)
    for column in ("cell_type", "condition"):
        cells.obs[column] = cells.obs[column].astype(str).astype(object)
    return ad.AnnData(cells.X, obs=cells.obs, var=cells.var[[]])


def logged(conditions: tuple[str, ...] = ("drug",), seed: int = 0, n_cells: int = 40) -> ad.AnnData:
    """The same, scaled to 10,000 counts a cell and logged."""
    return normalize(counts(conditions, seed, n_cells), 1e4, None)


def split() -> tuple[ad.AnnData, ad.AnnData]:
    """Training cells, and the treated cells of one type, which are held out."""
    cells = logged()
    held = ((cells.obs["cell_type"] == HELD_OUT) & (cells.obs["condition"] == "drug")).to_numpy()
    return cells[~held].copy(), cells[held].copy()


def dense(cells: ad.AnnData) -> np.ndarray:
    """N x G, float64."""
    values = cells.X if isinstance(cells.X, np.ndarray) else cells.X.toarray()
    return np.asarray(values, dtype=np.float64)


def mean_of(cells: ad.AnnData, **values: object) -> np.ndarray:
    """The mean (G,) of the cells whose obs columns have these values."""
    chosen = np.ones(cells.n_obs, dtype=bool)
    for column, value in values.items():
        chosen &= (cells.obs[column] == value).to_numpy()
    assert chosen.any()
    return dense(cells[chosen]).mean(axis=0)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
