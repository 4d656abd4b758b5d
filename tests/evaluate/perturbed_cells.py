"""Log-normalised cells of three types under control, A, B and A+B, whose effects differ by type."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import Schema

SCHEMA = Schema(condition_key="condition", control="ctrl", context_keys=("type",))
CONDITIONS = ("ctrl", "A", "B", "A+B")


def made_cells(n_cells: int = 30, n_genes: int = 12, seed: int = 0, sparse: bool = True) -> ad.AnnData:
    """`n_cells` cells of each of 12 populations, and 3 more of each control; no gene is 0 throughout a population."""
    rng = np.random.default_rng(seed)
    effect = {"ctrl": np.zeros(n_genes), "A": rng.normal(0.0, 0.6, n_genes), "B": rng.normal(0.0, 0.6, n_genes)}
    effect["A+B"] = effect["A"] + effect["B"]
    cells, obs = [], []
    for name in ("T", "B", "NK"):
        base, response = rng.normal(1.0, 0.7, n_genes), rng.normal(1.0, 0.2, n_genes)
        for condition in CONDITIONS:
            n = n_cells + 3 * (condition == "ctrl")
            counts = rng.poisson(np.exp(base + response * effect[condition]), (n, n_genes))
            counts[np.arange(n_genes) % n, np.arange(n_genes)] += 1
            cells.append(np.log1p(counts).astype(np.float32))
            obs += [{"type": name, "condition": condition}] * n
    x = np.concatenate(cells)
    frame = pd.DataFrame(obs, index=[f"cell {i}" for i in range(len(x))])
    var = pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(x) if sparse else x, obs=frame, var=var)


def population(adata: ad.AnnData, **values: str) -> np.ndarray:
    """The cells, dense, whose obs columns have these values."""
    rows = np.logical_and.reduce([(adata.obs[column] == value).to_numpy() for column, value in values.items()])
    chosen = adata.X[rows]
    return np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen, dtype=np.float64)
