"""Times the evaluation of many conditions, with ceilings and intervals; with --profile, says where the time goes.

python benchmarks/evaluate_speed.py [N_CONDITIONS] [N_CELLS] [N_GENES] [--profile]

Baselines are left out: they are fitted and scored as often as there are, and are not of the budget.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import Schema
from squidiff.evaluate import scoring
from squidiff.train.run import peak_memory_mb

given = [int(argument) for argument in sys.argv[1:] if argument != "--profile"]
n_conditions, n_cells, n_genes = given + [100, 500, 2000][len(given) :]
rng = np.random.default_rng(0)
base = rng.gamma(0.4, 0.6, n_genes)


def cells(seed: int, with_control: bool) -> ad.AnnData:
    """Log-normalised cells of all conditions, each with its own effect, and of control."""
    draw, effects = np.random.default_rng(seed), np.random.default_rng(1)
    blocks, labels = [], []
    for i in range(n_conditions + with_control):
        effect = np.exp(effects.normal(0, 0.5, n_genes) * (effects.random(n_genes) < 0.1))
        name, mean = (f"drug {i}", base * effect) if i < n_conditions else ("ctrl", base)
        counts = draw.poisson(mean, (n_cells, n_genes)).astype(np.float32)
        blocks.append(sp.csr_matrix(np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)))
        labels += [name] * n_cells
    obs = pd.DataFrame({"condition": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs)


predicted, truth, train = cells(2, False), cells(3, False), cells(4, True)
before, started = peak_memory_mb(), time.perf_counter()
profile = cProfile.Profile()
if "--profile" in sys.argv:
    profile.enable()
schema = Schema(condition_key="condition", control="ctrl")
table = scoring.compare({"model": predicted}, truth, schema, train=train, names=())
profile.disable()
seconds = time.perf_counter() - started
print(f"{n_conditions} conditions x {n_cells} cells x {n_genes:,} genes, {table['metric'].nunique()} metrics: ", end="")
print(f"{seconds:.0f} s, peak memory {before:,.0f} MB before, {peak_memory_mb():,.0f} MB after")
if "--profile" in sys.argv:
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)
