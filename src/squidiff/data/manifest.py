"""What a split or a run saw: cells, populations, genes, hashes. JSON-able; no torch."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.data.matrix import Matrix
from squidiff.data.table import CellTable


def describe_table(table: CellTable) -> dict[str, Any]:
    """Counts a population, genes and the fingerprint of a table."""
    counts = np.bincount(table.population, minlength=len(table.keys))
    return {
        "n_cells": len(table.names),
        "n_genes": len(table.genes),
        "populations": [
            {"context": context, "condition": condition, "time": time, "n_cells": int(n)}
            for (context, condition, time), n in zip(table.keys, counts, strict=True)
        ],
        "genes_sha256": hash_names(table.genes),
        "cells_sha256": hash_names(sorted(table.names)),
        "data_sha256": table.fingerprint(),
    }


def hash_names(names: Any) -> str:
    """SHA-256 of a sequence of names, in their order."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()


def hash_profiles(cells: Iterable[Matrix], genes: Sequence[str]) -> np.ndarray:
    """A hash of the values of each cell (N x G, in consecutive blocks), whatever the order of its genes, (N,).

    0 of a cell that has none.
    """
    of_gene = pd.util.hash_array(np.array(genes, dtype=object), categorize=False) | np.uint64(1)
    profiles = []
    for block in cells:
        matrix = sp.csr_matrix(block, copy=True)
        matrix.eliminate_zeros()
        of_value = pd.util.hash_array(matrix.data) * of_gene[matrix.indices]  # odd factors lose no bit
        sums = np.concatenate([[np.uint64(0)], np.cumsum(of_value, dtype=np.uint64)])
        profiles.append(sums[matrix.indptr[1:]] - sums[matrix.indptr[:-1]])
    return np.concatenate(profiles)


def provenance(**more: Any) -> dict[str, Any]:
    """Versions and machine, with whatever else the caller knows of the run."""
    packages = ("squidiff-ng", "torch", "anndata", "numpy", "scipy", "scikit-learn")
    return {
        "python": sys.version.split()[0],
        "packages": {name: version(name) for name in packages},
        "platform": platform.platform(),
        "n_processors": os.cpu_count(),
        **more,
    }
