"""Training on more cells than memory holds: the file, made in chunks, and an epoch from disk and from memory.

python benchmarks/cells_on_disk.py make CELLS.h5ad [N_CELLS] [N_GENES]
python benchmarks/cells_on_disk.py train CELLS.h5ad [N_STEPS]
python benchmarks/cells_on_disk.py predict CELLS.h5ad [N_CELLS]
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import Config, Schema
from squidiff.data.matrix import scale_and_log
from squidiff.data.shards import write_shards
from squidiff.estimator import Squidiff
from squidiff.train.run import peak_memory_mb

SCHEMA = Schema(condition_key="condition", control="ctrl", context_keys=("line",))
LINES, CONDITIONS = list("abcde"), ["ctrl", *(f"drug {i}" for i in range(9))]
CHUNK = 20_000


def make(path: Path, n_cells: int = 1_000_000, n_genes: int = 2_000) -> None:
    """Counts of log-normalised cells, sorted by line and condition, as files of many experiments are."""
    rng = np.random.default_rng(0)
    kinds = np.sort(rng.integers(len(LINES) * len(CONDITIONS), size=n_cells))
    line, condition = np.divmod(kinds, len(CONDITIONS))
    labels = {"line": (line, LINES), "condition": (condition, CONDITIONS)}
    columns = {name: pd.Categorical.from_codes(codes, of) for name, (codes, of) in labels.items()}
    obs = pd.DataFrame(columns, index=[f"cell {i}" for i in range(n_cells)])
    base = rng.gamma(0.4, 0.25, (len(LINES), n_genes))
    effect = np.exp(rng.normal(0, 0.3, (len(CONDITIONS), n_genes)) * (rng.random((len(CONDITIONS), n_genes)) < 0.2))
    with h5py.File(path, "w") as file:
        for first in range(0, n_cells, CHUNK):
            here = slice(first, first + CHUNK)
            mean = base[line[here]] * effect[condition[here]]
            depth = rng.gamma(4.0, 50.0, (len(mean), 1)) / mean.sum(axis=1, keepdims=True)
            counts = sp.csr_matrix(rng.poisson(mean * depth).astype(np.float32))
            cells = scale_and_log(counts, 1e4 / np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0))
            if first == 0:
                genes = pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)])
                ad.io.write_elem(file, "/", ad.AnnData(cells, obs=obs.iloc[here], var=genes))
            else:
                ad.io.sparse_dataset(file["X"]).append(cells)
        ad.io.write_elem(file, "obs", obs)
        print(f"{n_cells:,} cells x {n_genes:,} genes, {file['X/data'].shape[0]:,} values: {path}")


def train(path: Path, n_steps: int | None = None) -> None:
    """An epoch, or some steps, in a process each."""
    with h5py.File(path) as file:
        n_cells = len(file["obs/line"]["codes"])
    config = Config()
    n_steps = n_steps or (n_cells - min(round(config.validation_fraction * n_cells), 1024)) // config.batch_size
    for where in ("on disk", "in memory", "on disk"):
        subprocess.run([sys.executable, __file__, "once", str(path), str(n_steps), where], check=True)


def once(path: Path, n_steps: int, where: str) -> None:
    started = time.perf_counter()
    marks: list[float] = []
    config = Config(n_train_steps=n_steps, validate_every_steps=n_steps)
    model = Squidiff(SCHEMA, config).fit(
        path, on_disk=where == "on disk", on_record=lambda r: marks.append(time.perf_counter())
    )
    steps = [record.step for record in model.history]
    speed = (steps[-2] - steps[0]) * config.batch_size / (marks[-2] - marks[0])  # without start and last validation
    weights = hashlib.sha256(b"".join(t.cpu().numpy().tobytes() for t in model.fitted.to_tensors().values()))
    print(
        f"{where}: {n_steps:,} steps, {speed:,.0f} cells/s, {marks[-1] - started:.0f} s in all, "
        f"peak memory {peak_memory_mb():,.0f} MB, weights {weights.hexdigest()[:16]}",
        flush=True,
    )


def predict(path: Path, n_cells: int = 100_000) -> None:
    """A population generated into shards, by a model of few steps: what it knows does not matter to its speed."""
    folder = Path(tempfile.mkdtemp(dir=path.parent))
    try:
        model = Squidiff(SCHEMA, Config(n_train_steps=20)).fit(path, on_disk=True)
        started, before = time.perf_counter(), peak_memory_mb()
        query = pd.DataFrame({"line": ["c"], "condition": ["drug 3"], "n_cells": [n_cells]})
        write_shards(folder / "predicted", model.predict_parts(query, path, on_disk=True), 20_000)
        seconds = time.perf_counter() - started
        print(
            f"{n_cells:,} cells in {seconds:.0f} s; peak memory {before:,.0f} MB before, {peak_memory_mb():,.0f} after"
        )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    command, path, *rest = sys.argv[1:]
    if command == "once":
        once(Path(path), int(rest[0]), rest[1])
    else:
        {"make": make, "train": train, "predict": predict}[command](Path(path), *map(int, rest))
