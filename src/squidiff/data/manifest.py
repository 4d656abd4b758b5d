"""What a split or a run saw: cells, populations, genes, hashes. JSON-able; no torch."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import numpy as np

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
        "cells_sha256": hash_names(table.names),
        "data_sha256": table.fingerprint(),
    }


def hash_names(names: Any) -> str:
    """SHA-256 of a sequence of names, in their order."""
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()


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
