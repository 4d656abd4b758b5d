"""Neither the order nor the size of predictions, nor what one of them lacks, changes what is said of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from perturbed_cells import SCHEMA
from test_scoring import imperfect, imperfect_dense, made, many

from squidiff.config import InputError, Schema
from squidiff.data.conditions import Part
from squidiff.data.table import CellTable, remember_schema
from squidiff.evaluate import scoring
from squidiff.evaluate.baselines import Baselines
from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Pair
from squidiff.evaluate.scoring import ADVICE, MODEL, OVERALL
from squidiff.evaluate.verdict import BEATS
from squidiff.response.populations import Population
from squidiff.workflows.baseline import predict_baseline

FEW = ("no change", "mean shift", "mean shift, zeros kept", "mean of conditions", "optimal transport")
"""Baselines enough for what is tested here, in a fifth of the time."""


def compare(*args: Any, **options: Any) -> pd.DataFrame:
    return scoring.compare(*args, **{"names": FEW, **options})


def evaluate(predicted: ad.AnnData, *args: Any, **options: Any) -> pd.DataFrame:
    return compare({MODEL: predicted}, *args, **options)


def rows_of(table: pd.DataFrame, method: str) -> pd.DataFrame:
    return table[table["method"] == method].set_index(["condition", "metric"])


def test_the_order_of_predictions_changes_nothing() -> None:
    train, truth = made(24)
    big = imperfect(truth)
    small = big[::2].copy()
    one, other = (
        compare(predictions, truth, SCHEMA, train=train)
        for predictions in ({"big": big, "small": small}, {"small": small, "big": big})
    )
    for method in ("mean shift", "no change"):
        at = [rows_of(table, method)["value"].loc[("T, A + B", "coverage")] for table in (one, other)]
        assert at[0] == at[1]
    for metric in ("mean_squared_error", "coverage", "variance_error"):
        at = [rows_of(table, "big")["value"].loc[("T, A + B", metric)] for table in (one, other)]
        assert at[0] == at[1]


def test_a_baseline_is_the_same_whichever_others_are_tried() -> None:
    train, truth = made(24)
    few, one = (
        rows_of(compare({MODEL: imperfect(truth)}, truth, SCHEMA, train=train, names=names), "mean shift, zeros kept")
        for names in (FEW, FEW[2:3])
    )
    pd.testing.assert_frame_equal(few[["value", "low", "high"]], one[["value", "low", "high"]], check_exact=True)


def test_the_order_of_cells_and_genes_changes_nothing() -> None:
    train, truth = made(24)
    predicted, rng = imperfect(truth), np.random.default_rng(3)
    told = evaluate(predicted, truth, SCHEMA, train=train)
    moved = predicted[rng.permutation(predicted.n_obs)][:, rng.permutation(predicted.n_vars)].copy()
    others = truth[rng.permutation(truth.n_obs)][:, rng.permutation(truth.n_vars)].copy()
    pd.testing.assert_frame_equal(evaluate(moved, others, SCHEMA, train=train), told, check_exact=True)
    again = train[rng.permutation(train.n_obs)].copy()  # sums in another order, and other first cells
    same = evaluate(moved, others, SCHEMA, train=again)
    pd.testing.assert_series_equal(same["value"], told["value"], rtol=1e-6, atol=1e-7)
    assert same["verdict"].tolist() == told["verdict"].tolist()


def test_a_population_is_scored_alike_whatever_others_there_are() -> None:
    train, truth = many(4)
    predicted = imperfect_dense(truth)
    one = predicted.obs["condition"].iloc[-1]
    alone, beside = (
        compare({MODEL: predicted}, true, SCHEMA, train=train).set_index(["condition", "metric", "method"])["value"]
        for true in (truth[truth.obs["condition"] == one].copy(), truth)
    )
    both = [row for row in alone.index.intersection(beside.index) if row[0] != OVERALL]
    assert len(both) > 100
    pd.testing.assert_series_equal(alone[both], beside[both], check_exact=True)


def test_copies_of_the_cells_that_a_baseline_starts_from_are_not_paired_with_each_other() -> None:
    """33 control cells, and ten times as many predicted: were copies paired, the baseline would seem narrower."""
    train, truth = made(30)
    floor = Baselines(CellTable.from_anndata(train, SCHEMA), SCHEMA)
    key, parts = Population("T", "A + B", None), (Part("A"), Part("B"))
    true = truth.X.toarray().astype(np.float64)
    found = {}
    for n in (33, 330):
        cells, origin = floor.drawn("no change", key, parts, n, np.random.default_rng(0))
        pair = Pair(cells.astype(np.float64), true, cells.astype(np.float64), true, predicted_origin=origin)
        control = train[(train.obs["type"] == "T") & (train.obs["condition"] == "ctrl")].X.toarray().astype(np.float64)
        pair = replace(pair, control=control, control_mean=control.mean(axis=0))
        found[n] = score(pair, ["energy_distance", "mmd", "energy_distance_top_genes"])
        naive = score(replace(pair, predicted_origin=None), ["energy_distance"])["energy_distance"]
        assert (naive > found[n]["energy_distance"] + 0.05) == (n == 330)
    assert found[330] == pytest.approx(found[33], rel=1e-9)  # each of the 33 stands ten times


@pytest.mark.slow
def test_a_population_without_a_value_for_anybody_does_not_excuse_another() -> None:
    train, truth = many(7)
    model = imperfect_dense(truth)
    flat = (truth.obs["condition"] == "c5").to_numpy()
    model.X[flat] = model.X[flat].mean(axis=0)
    alone = np.flatnonzero(truth.obs["condition"] == "c6")[1:]
    kept = np.setdiff1d(np.arange(truth.n_obs), alone)  # of c6 one true cell is left, which has no variance
    table = evaluate(model, truth[kept].copy(), SCHEMA, train=train)
    row = rows_of(table, MODEL).loc[(OVERALL, "variance_pearson")]
    assert row["verdict"] == ""
    assert row["n_populations"] == 5
    assert row["note"].startswith("2 of 7 populations have no value")


@pytest.mark.slow
def test_a_baseline_read_from_a_file_ties_with_itself_over_populations() -> None:
    train, truth = many(6)
    queries = pd.DataFrame({"type": "T", "condition": [f"c{i}" for i in range(6)]})
    for seed in (1, 4):
        same = predict_baseline("mean of conditions", queries, train, SCHEMA, seed=seed)
        table = compare({"same": same}, truth, SCHEMA, train=train, names=("mean of conditions",))
        mine = rows_of(table, "same").loc[OVERALL]
        of_means = mine.loc[["pearson", "r2", "mean_squared_error", "mean_absolute_error", "cosine", "delta_pearson"]]
        assert not of_means["verdict"].str.contains("beats|loses", regex=True).any(), of_means["verdict"]


@pytest.mark.slow
def test_a_prediction_that_lacks_values_or_cells_takes_none_from_the_others() -> None:
    train, truth = many(6)
    good, flat = imperfect_dense(truth), imperfect_dense(truth)
    flat.X[:] = flat.X.mean(axis=0)
    few = good[:: max(1, good.n_obs // 30)].copy()
    alone = evaluate(good, truth, SCHEMA, train=train)
    beside = compare({"good": good, "flat": flat}, truth, SCHEMA, train=train)
    a, b = rows_of(alone, MODEL).loc[OVERALL], rows_of(beside, "good").loc[OVERALL]
    assert a.loc["variance_pearson", "n_populations"] == b.loc["variance_pearson", "n_populations"] == 6
    assert np.isfinite(b.loc["variance_pearson", ["low", "high"]].astype(float)).all()
    assert rows_of(beside, "flat").loc[(OVERALL, "variance_pearson"), "n_populations"] == 0
    pair = compare({"good": good, "few": few}, truth, SCHEMA, train=train)
    first = pair["condition"].unique()[1]
    verdicts = {name: rows_of(pair, name)["verdict"].loc[(first, "mean_squared_error")] for name in ("good", "few")}
    assert verdicts["few"] == ""
    assert verdicts["good"] != ""


def test_control_cells_alone_are_no_population_in_common() -> None:
    train, truth = made()
    control = train[(train.obs["type"] == "T") & (train.obs["condition"] == "ctrl")].copy()
    misspelt = imperfect(truth)
    misspelt.obs["condition"] = misspelt.obs["condition"].astype(str) + "x"
    with pytest.raises(InputError, match="no population is in both files"):
        evaluate(ad.concat([misspelt, control]), ad.concat([truth, control]), SCHEMA, train=train)
    timed = Schema(condition_key="condition", control="ctrl", context_keys=("type",), time_key="day")
    both = [ad.concat([cells, control]) for cells in (imperfect(truth), truth)]
    for cells in both:
        cells.obs["day"] = 1.0
    table = evaluate(*both, timed)
    assert set(table["condition"]) == {"T, A + B, time 1"}


def test_a_prediction_of_one_profile_does_not_win_by_having_no_noise() -> None:
    train, truth = made(20)
    flat = truth.copy()
    flat.X = np.repeat(np.asarray(truth.X.mean(axis=0)), truth.n_obs, axis=0)
    rows = rows_of(evaluate(flat, truth, SCHEMA, train=train), MODEL)
    assert np.isnan(rows.loc[("T, A + B", "correlation_distance"), "value"])
    assert rows["verdict"].loc[("T, A + B", "variance_error")] != BEATS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.expm1, "the truth holds values from 0 on .*, but the training data values too large"),
        (lambda x: x - x.mean(axis=0), "the truth holds values from 0 on .*, but the training data values below 0"),
    ],
)
def test_training_cells_in_another_unit_are_refused(change: Callable[[np.ndarray], np.ndarray], message: str) -> None:
    train, truth = made(20)
    predicted = imperfect(truth)
    train.X = change(train.X.toarray() * (2 if change is np.expm1 else 1)).astype(np.float32)
    with pytest.raises(InputError, match=message):
        evaluate(predicted, truth, SCHEMA, train=train)


def test_the_schema_is_taken_from_whichever_file_remembers_it() -> None:
    train, truth = made(20)
    remember_schema(train, SCHEMA)
    table = evaluate(imperfect(truth), truth, train=train)
    assert set(table["condition"]) == {"T, A + B"}
    table = evaluate(imperfect(truth), truth)
    assert table.attrs[ADVICE] == [
        "no column is named, so all cells are one population: pass schema options, as --condition-key"
    ]


def test_labels_of_training_that_match_nothing_are_named() -> None:
    train, truth = made(20)
    other = train.copy()
    other.obs["type"] = other.obs["type"].astype(str) + "-cells"
    (said,) = evaluate(imperfect(truth), truth, SCHEMA, train=other).attrs[ADVICE]
    assert said.startswith("the training data have no cells of context 'T', so no baselines: they have 'B-cells', ")
    treated = train[train.obs["condition"] != "ctrl"].copy()
    (said,) = evaluate(imperfect(truth), truth, SCHEMA, train=treated).attrs[ADVICE]
    assert said.startswith("the training data hold no control 'ctrl', so there are no baselines: they hold 'A'")


def test_predictions_that_were_centred_are_noticed() -> None:
    train, truth = made(20)
    predicted = imperfect(truth)
    predicted.X = predicted.X - predicted.X.mean(axis=0)
    (said,) = evaluate(predicted, truth, SCHEMA, train=train).attrs[ADVICE]
    assert "of the predicted values are below 0, and of the true ones next to none" in said


def test_swapped_files_are_noticed() -> None:
    train, truth = made(20)
    predicted = imperfect(truth)
    predicted.uns["squidiff"] = {"unit": "log1p"}
    assert evaluate(predicted, truth, SCHEMA, train=train).attrs[ADVICE] == []
    (said,) = evaluate(truth, predicted, SCHEMA, train=train).attrs[ADVICE]
    assert said.endswith("are the two swapped?")


def test_training_cells_that_are_all_alike_have_no_space_in_which_cells_are_near() -> None:
    train, truth = made(20)
    train.X = np.ones(train.shape, dtype=np.float32)
    rows = rows_of(evaluate(imperfect(truth), truth, SCHEMA, train=train), MODEL).loc["T, A + B"]
    for name in ("energy_distance", "mmd", "sliced_wasserstein", "coverage", "fidelity", "classifier_accuracy"):
        assert np.isnan(rows["value"][name]), name
        assert rows["note"][name] != ""


def test_an_interval_holds_its_value_and_nothing_that_cannot_be() -> None:
    train, truth = made(20)
    table = evaluate(truth, truth, SCHEMA, train=train)
    known = table[table["low"].notna()]
    assert (known["low"] <= known["value"] + 1e-12).all()
    assert (known["high"] >= known["value"] - 1e-12).all()
    bounds = known["metric"].map(lambda name: METRICS[name].best)
    higher = known["metric"].map(lambda name: METRICS[name].higher_is_better)
    may_pass = known["metric"].map(lambda name: METRICS[name].may_pass_best)
    assert (known["high"] <= bounds)[higher & ~may_pass].all()
    assert (known["low"] >= bounds)[~higher & ~may_pass].all()


def test_a_few_negative_values_are_no_other_unit() -> None:
    train, truth = made(20)
    x = train.X.toarray()
    x[0, 0] = -1e-6
    train.X = x
    assert not evaluate(imperfect(truth), truth, SCHEMA, train=train).empty


def test_the_schema_of_a_later_prediction_is_found() -> None:
    _, truth = made(20)
    second = imperfect(truth)
    remember_schema(second, SCHEMA)
    table = compare({"a": imperfect(truth), "b": second}, truth)
    assert set(table["condition"]) == {"T, A + B"}


@pytest.mark.slow
def test_the_floor_is_over_the_populations_of_the_model() -> None:
    train, truth = many(7)
    model = imperfect_dense(truth)
    model.X[(truth.obs["condition"] == "c5").to_numpy()] = 1.0  # without variance there, where baselines have one
    table = evaluate(model, truth, SCHEMA, train=train)
    row = rows_of(table, MODEL).loc[(OVERALL, "variance_pearson")]
    assert row["n_populations"] == 6
    assert np.isnan(row["floor"])


def test_transported_cells_of_few_later_ones_are_not_paired_with_each_other() -> None:
    """100 cells before and 12 after: near the later time, cells that went to one of these lie near each other."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(5, 1, (100, 10)), rng.normal(8, 1, (12, 10))]).astype(np.float32)
    obs = pd.DataFrame({"day": [0.0] * 100 + [2.0] * 12}, index=[f"c{i}" for i in range(112)])
    schema = Schema(time_key="day")
    baselines = Baselines(CellTable.from_anndata(ad.AnnData(x, obs=obs), schema), schema)
    cells, origin = baselines.drawn("optimal transport", Population("", "", 1.8), (), 100, np.random.default_rng(0))
    assert set(origin) == set(range(100, 112))
    near = np.linalg.norm(cells - x[origin], axis=1)
    others = np.linalg.norm(cells - x[100 + (origin - 99) % 12], axis=1)
    assert near.mean() < 0.5 * others.mean()
