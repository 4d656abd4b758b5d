"""The user's data are used as they are and left as they were, however they are stored."""

from __future__ import annotations

import re
from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from small_models import TRAIN, queries

import squidiff as sq
from made_cells import HELD_OUT, SCHEMA, SMALL, counts, dense


def shuffled(adata: ad.AnnData, dtype: type) -> tuple[ad.AnnData, np.ndarray]:
    """The genes in another order, with the indices of X unsorted, as `adata[:, genes].copy()` leaves them."""
    order = np.random.default_rng(0).permutation(adata.n_vars)
    cells = ad.AnnData(sp.csr_matrix(adata.X, dtype=dtype)[:, order], obs=adata.obs.copy(), var=adata.var.iloc[order])
    assert not cells.X.has_sorted_indices
    return cells, dense(adata)[:, order]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_unsorted_counts_are_prepared_right_and_stay_as_they_are(dtype: type) -> None:
    cells, values = shuffled(counts(), dtype)
    sq.check(cells, SCHEMA, normalize=True)
    prepared = sq.prepare(cells, SCHEMA, sq.Preparation(normalize=True)).train
    np.testing.assert_array_equal(cells.X.toarray(), values)
    expected = np.log1p(values / values.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(dense(prepared), expected, rtol=1e-5)
    kept = sq.prepare(cells, SCHEMA, sq.Preparation()).train
    np.testing.assert_array_equal(dense(kept), values)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unsorted_values_train_and_predict_right_and_stay_as_they_are(dtype: type) -> None:
    cells, values = shuffled(TRAIN, dtype)
    model = sq.Squidiff(SCHEMA, SMALL, "cpu").fit(cells)
    predicted = model.predict(queries(300, condition="drug", cell_type="type B"), cells)
    model.encode(cells)
    np.testing.assert_array_equal(cells.X.toarray(), values)
    rows = ((cells.obs["condition"] == "drug") & (cells.obs["cell_type"] == "type B")).to_numpy()
    np.testing.assert_allclose(dense(predicted).mean(axis=0), values[rows].mean(axis=0), atol=1e-3)
    sq.evaluate(predicted, cells, SCHEMA, train=cells)
    np.testing.assert_array_equal(cells.X.toarray(), values)


def test_values_that_were_not_logged_cost_no_training() -> None:
    linear = TRAIN.copy()
    linear.X = np.expm1(dense(TRAIN)).astype(np.float32)
    model = sq.Squidiff(SCHEMA, SMALL, "cpu").fit(linear)
    assert model.fitted.normalisation.typical_total is None
    assert model.predict(queries(condition="drug", cell_type=HELD_OUT), linear).uns["squidiff"]["unit"] == "as given"


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model: model.fit(None), "what holds the cells is of type NoneType: give AnnData or a path"),
        (
            lambda model: sq.evaluate(TRAIN, dense(TRAIN)),
            "what holds the cells is of type ndarray: give AnnData or a path",
        ),
        (lambda model: sq.prepare(TRAIN, SCHEMA, {}), "what is to be prepared is of type dict: give Preparation(...)"),
        (
            lambda model: sq.prepare(TRAIN, sq.Preparation(), SCHEMA),
            "the schema is of type Preparation: give Schema(...)",
        ),
        (lambda model: sq.Squidiff(SMALL, SCHEMA), "the schema is of type Config: give Schema(...)"),
        (lambda model: sq.Squidiff.load(None), "the run folder is of type NoneType: give its path"),
        (lambda model: sq.compare([TRAIN], TRAIN), "what holds the predictions is of type list: give a dictionary of"),
        (
            lambda model: model.predict(queries(condition="drug", cell_type=HELD_OUT), TRAIN, {"seed": 1}),
            "the sampling is of type dict: give Sampling(...)",
        ),
    ],
)
def test_what_is_of_another_kind_is_named(
    model: sq.Squidiff, use: Callable[[sq.Squidiff], object], message: str
) -> None:
    """Recorded: these were TypeErrors and AttributeErrors."""
    with pytest.raises(sq.InputError, match=f"^{re.escape(message)}"):
        use(model)
