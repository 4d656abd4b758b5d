"""Which genes preparation chooses: on training cells alone, those that vary most."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from test_preprocess import HELD_OUT, SCHEMA, SIZES, dense, made, made_counts

from squidiff.config import InputError, Preparation, Schema
from squidiff.data.preprocess import most_variable_genes, normalize, prepare
from squidiff.data.splits import held_out_cells


def test_the_genes_are_those_of_the_largest_variance_or_scanpys() -> None:
    adata = normalize(made_counts(), 1e4, None)
    expected = sc.pp.highly_variable_genes(ad.AnnData(adata.X), n_top_genes=20, inplace=False)["highly_variable"]
    np.testing.assert_array_equal(most_variable_genes(adata, 20, by="dispersion"), expected)
    largest = np.sort(np.argsort(-dense(adata).astype(np.float64).var(axis=0))[:20])
    np.testing.assert_array_equal(np.flatnonzero(most_variable_genes(adata, 20)), largest)
    assert set(made(normalize=True, n_genes=20, genes_by="dispersion").train.var_names) == set(
        adata.var_names[expected.to_numpy()]
    )


def test_a_gene_that_one_type_alone_answers_with_is_chosen_before_one_that_no_cell_shows() -> None:
    """Recorded: by dispersions IFIT1 and IFIT3 were left out, and genes of three cells in ten thousand kept."""
    rng = np.random.default_rng(0)
    rates = np.full((2000, 60), 0.5)
    rates[:, 30:] = 0.002  # which hardly a cell shows
    rates[:500, :5] = 6.0  # responses
    adata = ad.AnnData(rng.poisson(rates).astype(np.float32))
    adata = normalize(adata, 1e4, None)
    assert most_variable_genes(adata, 10)[:5].all()
    assert not most_variable_genes(adata, 20)[30:].any()


@pytest.mark.parametrize("n_genes", [1, 17, 60])
def test_as_many_genes_as_asked_for_in_the_order_they_had(n_genes: int) -> None:
    chosen = list(made(normalize=True, n_genes=n_genes).train.var_names)
    assert len(chosen) == n_genes
    assert sorted(chosen, key=lambda name: int(name.split()[1])) == chosen


def test_held_out_cells_do_not_touch_what_is_kept_of_the_others() -> None:
    """Their values changed, and even without them: the training cells are the same, bit by bit."""
    adata, settings = made_counts(), Preparation(normalize=True, n_genes=15, hold_out=(HELD_OUT,), test_fraction=0.2)
    held_out = held_out_cells(adata.obs, SCHEMA, settings)
    changed = adata.copy()
    values = dense(adata)
    values[held_out] = np.random.default_rng(1).poisson(5.0, (held_out.sum(), 60)) * np.arange(60)
    changed.X = sp.csr_matrix(values)
    one, other = prepare(adata, SCHEMA, settings), prepare(changed, SCHEMA, settings)
    assert one.train.obs_names.tolist() == adata.obs_names[~held_out].tolist()
    assert one.train.var_names.tolist() == other.train.var_names.tolist()
    np.testing.assert_array_equal(dense(one.train), dense(other.train))
    alone = prepare(adata[~held_out].copy(), SCHEMA, Preparation(normalize=True, n_genes=15))
    np.testing.assert_array_equal(dense(alone.train), dense(one.train))
    # and the choice does depend on the cells it is made on
    everything = prepare(changed, SCHEMA, Preparation(normalize=True, n_genes=15))
    assert everything.train.var_names.tolist() != one.train.var_names.tolist()


def test_more_genes_than_there_are_cannot_be_kept() -> None:
    with pytest.raises(InputError, match=r"^--n-genes is 61 but the data have 60 genes: ask for fewer$"):
        made(normalize=True, n_genes=61)


def test_genes_that_hardly_a_cell_shows_are_counted_among_the_chosen() -> None:
    counts = np.random.default_rng(0).poisson(2.0, (300, 20)).astype(np.float32)
    counts[:, :3] = 0
    counts[0, :3] = 5  # three genes that one cell of 300 shows, which vary much for their mean
    obs = pd.DataFrame({"type": "T", "condition": "control"}, index=[f"cell {i}" for i in range(300)])
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(20)]))
    report = prepare(adata, Schema(context_keys=("type",)), Preparation(normalize=True, n_genes=19)).report
    told = next(line for line in report if line.startswith("kept the"))
    assert any(told.endswith(f"; {n} of them are found in less than 0.5% of these cells") for n in (2, 3))


# --- what genes cannot be chosen on


def cells_of(values: np.ndarray) -> ad.AnnData:
    labels = [key for key, n in SIZES.items() for _ in range(n)][: len(values)]
    obs = pd.DataFrame(labels, columns=["type", "condition"], index=[str(i) for i in range(len(values))])
    return ad.AnnData(values.astype(np.float32), obs=obs, var=pd.DataFrame(index=list("abcd")))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((60, 4)), r"^variable genes cannot be chosen: no gene varies over the training cells$"),
        (np.full((60, 4), 0.7), r"^variable genes cannot be chosen: no gene varies"),
        (np.random.default_rng(0).gamma(1.0, 900.0, (60, 4)), r"^variable genes are chosen on log values, but X holds"),
        (np.where(np.eye(60, 4) > 0, np.nan, 1.5), r"^X holds NaN or infinite values: run `squidiff check`"),
        (np.where(np.eye(60, 4) > 0, np.inf, 1.5), r"^X holds NaN or infinite values"),
    ],
)
def test_values_that_genes_cannot_be_chosen_on_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(cells_of(values), SCHEMA, Preparation(n_genes=2))


@pytest.mark.parametrize("shift", [-3.0, 0.0])
def test_constant_genes_and_negative_values_are_no_obstacle(shift: float) -> None:
    values = np.random.default_rng(0).gamma(1.0, 1.0, (60, 4)) + shift
    values[:, 2] = 0.0
    prepared = prepare(cells_of(values), SCHEMA, Preparation(n_genes=2))
    assert prepared.train.n_vars == 2
    assert "c" not in prepared.train.var_names
