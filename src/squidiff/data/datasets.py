"""Named data sets of real cells: read from the files of an installed package, nothing is downloaded."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import InputError


def load_pbmc68k() -> ad.AnnData:
    """700 blood cells of 10x Genomics' "68k PBMC" as scanpy ships them (`scanpy.datasets.pbmc68k_reduced`).

    X: 700 x 765, float32 CSR, log1p of counts scaled to one total per cell over all genes, rounded to three decimals;
    the file's scaled X is left out. obs: bulk_labels, one of ten cell types. Source: Zheng et al., Nature
    Communications 2017. Reads the file by its path and does not import scanpy, which takes seconds and warns.

    Raises InputError where scanpy, or its file, is not installed.
    """
    package = importlib.util.find_spec("scanpy")
    if package is None or package.origin is None:
        raise InputError("the data set pbmc68k comes with scanpy, which is not installed: pip install scanpy")
    path = Path(package.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    if not path.is_file():
        raise InputError(f"the data set pbmc68k is not at {path}: reinstall scanpy")
    with h5py.File(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", ad.OldFormatWarning)  # the file is of anndata's first format
        X = sp.csr_matrix(ad.io.read_elem(file["raw.X"]), dtype=np.float32)
        genes = ad.io.read_elem(file["raw.var"])["index"].astype(str)
        cells = ad.io.read_elem(file["obs"])
        labels = ad.io.read_elem(file["uns/bulk_labels_categories"]).astype(str)
    X.sort_indices()
    obs = pd.DataFrame(
        {"bulk_labels": pd.Categorical.from_codes(cells["bulk_labels"], categories=labels.tolist())},
        index=pd.Index(cells["index"].astype(str)),
    )
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
