"""Times the doctor on many sparse cells, and says what memory it takes besides them.

python benchmarks/check_cells.py [N_CELLS] [N_GENES]
"""

from __future__ import annotations

import sys
import time

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import Schema
from squidiff.data.check import check
from squidiff.train.run import peak_memory_mb

n_cells, n_genes = (int(argument) for argument in (*sys.argv[1:], 100_000, 2_000)[:2])
rng = np.random.default_rng(0)
blocks = [sp.random(n_cells // 10, n_genes, 0.1, format="csr", random_state=i, dtype=np.float32) for i in range(10)]
cells = sp.vstack(blocks, format="csr")
labels = {
    "condition": rng.choice(["ctrl", *(f"drug {i}" for i in range(200))], cells.shape[0]),
    "line": rng.choice(list("abcde"), cells.shape[0]),
}
adata = ad.AnnData(cells, obs=pd.DataFrame(labels, index=[f"c{i}" for i in range(cells.shape[0])]))
del blocks
before, started = peak_memory_mb() or 0.0, time.perf_counter()
report = check(adata, Schema(condition_key="condition", control="ctrl", context_keys=("line",)))
print(f"{cells.shape[0]:,} cells x {n_genes:,} genes, {cells.nnz:,} values ({cells.data.nbytes / 1e6:.0f} MB)")
print(f"{time.perf_counter() - started:.2f} s, peak memory {before:.0f} MB before, {peak_memory_mb():.0f} MB after")
print(f"findings: {len(report.findings)}")
