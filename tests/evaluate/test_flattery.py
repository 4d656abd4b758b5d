"""What would flatter a prediction, and does not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from perturbed_cells import SCHEMA
from test_scoring import imperfect, imperfect_dense, made, many, of_model

from squidiff.config import InputError
from squidiff.data.conditions import Part
from squidiff.data.table import CellTable
from squidiff.evaluate.baselines import Baselines
from squidiff.evaluate.scoring import GENES, MODEL, OVERALL, UNSCORED, compare, evaluate
from squidiff.evaluate.verdict import BEATS, TIES, Estimate, judge
from squidiff.response.populations import Population


@pytest.mark.slow
def test_a_model_that_has_no_value_for_some_populations_has_no_verdict_over_all() -> None:
    """Control cells as prediction have no correlation of changes, and so cannot lower a mean by abstaining."""
    train, truth = many(8)
    control = train[train.obs["condition"] == "ctrl"].X.mean(axis=0)
    lazy = imperfect_dense(truth)
    rows = truth.obs["condition"].isin(["c3", "c4", "c5"]).to_numpy()
    lazy.X[rows] = control
    table = evaluate(lazy, truth, SCHEMA, train=train)
    rows = of_model(table[table["condition"] == OVERALL])
    assert rows["verdict"]["delta_pearson"] == ""
    assert rows["n_populations"]["delta_pearson"] == 5
    assert rows["note"]["delta_pearson"].startswith("3 of 8 populations have no value: a profile, or its change")
    assert rows["verdict"]["mean_squared_error"] != ""


@pytest.mark.slow
def test_equal_predictions_are_judged_alike_and_more_cells_alone_do_not_win() -> None:
    train, truth = made(12)
    one = evaluate(imperfect(truth), truth, SCHEMA, train=train)
    both = compare({"one": imperfect(truth), "same": imperfect(truth)}, truth, SCHEMA, train=train)
    verdicts = both.set_index(["method", "metric"])["verdict"]
    assert verdicts["one"].equals(verdicts["same"])
    assert one["value"].notna().any()
    floor = Baselines(CellTable.from_anndata(train, SCHEMA), SCHEMA)
    key, parts = Population("T", "A + B", None), (Part("A"), Part("B"))
    cells = floor.cells("mean shift, zeros kept", key, parts, 600, np.random.default_rng(5)).astype(np.float32)
    obs = pd.DataFrame({"type": "T", "condition": "A+B"}, index=[str(i) for i in range(600)])
    more = ad.AnnData(cells, obs=obs, var=truth.var)
    rows = evaluate(more, truth, SCHEMA, train=train).set_index(["metric", "method"])["value"]
    assert rows["coverage", MODEL] == pytest.approx(rows["coverage", "mean shift, zeros kept"], abs=0.2)


def test_what_is_better_than_the_best_does_not_win_over_it() -> None:
    best = Estimate(0.0, np.linspace(-0.02, 0.02, 201))
    lucky = Estimate(-0.3, np.linspace(-0.31, -0.29, 201))
    assert judge(lucky, {"floor": best}, False) == BEATS
    assert judge(lucky.at_most(0.0, False), {"floor": best.at_most(0.0, False)}, False) == TIES


@pytest.mark.slow
def test_control_cells_beside_are_neither_scored_nor_counted() -> None:
    train, truth = made()
    control = train[(train.obs["type"] == "T") & (train.obs["condition"] == "ctrl")].copy()
    both = [ad.concat([cells, control]) for cells in (imperfect(truth), truth)]
    table = evaluate(*both, SCHEMA, train=train)
    assert set(table["condition"]) == {"T, A + B"}
    assert table.attrs[UNSCORED] == {"predicted": 0, "true": 0}


@pytest.mark.slow
def test_genes_that_are_not_predicted_are_counted() -> None:
    train, truth = made()
    table = evaluate(imperfect(truth)[:, :20].copy(), truth, SCHEMA, train=train)
    assert table.attrs[GENES] == {"scored": 20, "true": 60}


def test_values_that_cannot_be_expression_are_refused() -> None:
    train, truth = made()
    huge = truth.copy()
    huge.X = huge.X * np.float32(1e25)
    with pytest.raises(InputError, match=r"the prediction holds values up to .*e\+25: no counts or logarithms"):
        evaluate(huge, truth, SCHEMA, train=train)
