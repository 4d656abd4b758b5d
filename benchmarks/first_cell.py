"""How long a user waits for the first cell: imports, loading a run, predicting one cell.

    python benchmarks/first_cell.py RUN TRAIN.h5ad CONDITION_COLUMN=VALUE,CONTEXT_COLUMN=VALUE

Prints seconds. Loading and drawing are timed after the imports, which are shown beside them.
"""

import sys
import time


def main() -> None:
    run, source, query = sys.argv[1:]
    start = time.perf_counter()
    import torch  # noqa: F401

    torch_ready = time.perf_counter()
    import anndata as ad
    import pandas as pd

    from squidiff.estimator import Squidiff

    ready = time.perf_counter()
    cells = ad.read_h5ad(source)
    read = time.perf_counter()
    model = Squidiff.load(run)
    loaded = time.perf_counter()
    columns = dict(clause.split("=") for clause in query.split(","))
    model.predict(pd.DataFrame([{**columns, "n_cells": 1}]), cells)
    drawn = time.perf_counter()
    for name, seconds in (
        ("import torch", torch_ready - start),
        ("import the rest", ready - torch_ready),
        ("read the source cells", read - ready),
        ("load the model", loaded - read),
        ("draw the first cell", drawn - loaded),
    ):
        sys.stdout.write(f"{name:<24}{seconds:6.2f} s\n")


if __name__ == "__main__":
    main()
