"""The data set that scanpy ships is read whole, unscaled and without a warning."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

from squidiff.data.datasets import load_pbmc68k

COUNTS = {
    "Dendritic": 240,
    "CD14+ Monocyte": 129,
    "CD19+ B": 95,
    "CD4+/CD25 T Reg": 68,
    "CD8+ Cytotoxic T": 54,
    "CD8+/CD45RA+ Naive Cytotoxic": 43,
    "CD56+ NK": 31,
    "CD4+/CD45RO+ Memory": 19,
    "CD34+": 13,
    "CD4+/CD45RA+/CD25- Naive T": 8,
}


def test_it_holds_the_700_labelled_cells_and_nothing_else() -> None:
    adata = load_pbmc68k()
    assert adata.shape == (700, 765)
    assert adata.obs["bulk_labels"].value_counts().to_dict() == COUNTS
    assert list(adata.obs) == ["bulk_labels"]
    assert list(adata.var) == []
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique


def test_the_values_are_log_counts_and_sparse() -> None:
    X = load_pbmc68k().X
    assert isinstance(X, sp.csr_matrix)
    assert X.dtype == np.float32
    assert X.has_sorted_indices
    assert X.data.min() > 0
    assert X.data.max() < np.log1p(1e4)
    assert 0.6 < 1 - X.nnz / np.prod(X.shape) < 0.75
    # Undone, the values of a cell are multiples of one number, its scale: counts 1, 2, 3, ... (to three decimals).
    for cell in range(20):
        counts = np.expm1(X[cell].data.astype(float))
        ratio = counts / counts.min()
        small = ratio[ratio < 6]
        np.testing.assert_allclose(small, small.round(), atol=0.03)


@pytest.mark.filterwarnings("ignore")
def test_it_equals_what_scanpy_reads() -> None:
    ours, theirs = load_pbmc68k(), sc.datasets.pbmc68k_reduced()
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert list(ours.var_names) == list(theirs.raw.var_names)
    assert (ours.X != theirs.raw.X).nnz == 0
    assert list(ours.obs["bulk_labels"]) == list(theirs.obs["bulk_labels"])
