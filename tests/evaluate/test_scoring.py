"""The table of scores: what is matched, what the columns mean, and who wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from perturbed_cells import SCHEMA, made_cells, population

from squidiff.config import InputError, Schema
from squidiff.data.table import CellTable
from squidiff.evaluate.baselines import PERTURBED, PLAIN, principal_axes
from squidiff.evaluate.metrics import METRICS
from squidiff.evaluate.scorer import N_BOOTSTRAPS
from squidiff.evaluate.scoring import COLUMNS, MODEL, OVERALL, UNSCORED, compare, evaluate
from squidiff.evaluate.verdict import BEATS, TIES

N_GENES = 60
BEST_KNOWN = tuple(name for name, metric in METRICS.items() if not metric.needs)


def few(predicted: Any, truth: Any, *args: Any, **options: Any) -> pd.DataFrame:
    """As `evaluate`, with two baselines: a fifth of the time, where they are not what is tested."""
    return compare({MODEL: predicted}, truth, *args, names=("no change", "mean shift"), **options)


def held_out(adata: ad.AnnData) -> np.ndarray:
    return ((adata.obs["type"] == "T") & (adata.obs["condition"] == "A+B")).to_numpy()


def made(n_cells: int = 30, n_genes: int = N_GENES) -> tuple[ad.AnnData, ad.AnnData]:
    """Training cells, and the true cells of T under A+B."""
    adata = made_cells(n_cells, n_genes)
    return adata[~held_out(adata)].copy(), adata[held_out(adata)].copy()


def changed(adata: ad.AnnData, change: float = 0.0, **columns: str) -> ad.AnnData:
    """A copy whose values are higher by `change` and whose obs columns have other values."""
    copy = adata.copy()
    copy.X = copy.X.toarray() + np.float32(change)
    copy.obs = copy.obs.assign(**columns)
    return copy


def imperfect(truth: ad.AnnData) -> ad.AnnData:
    copy = truth.copy()
    copy.X = np.maximum(truth.X.toarray() + np.random.default_rng(0).normal(0.1, 0.3, truth.shape), 0).astype(
        np.float32
    )
    return copy


def of_model(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["method"] == MODEL].set_index("metric")


# --- the table


@pytest.mark.slow
def test_cells_that_are_alike_lie_as_near_without_training_cells_as_with_them() -> None:
    """Of axes fitted on the truth alone, half of it lay 1.06 from the other half."""
    train, truth = made(200, 400)
    halves = truth[::2].copy(), truth[1::2].copy()
    distances = [of_model(few(*halves, SCHEMA, train=known)).loc["energy_distance", "value"] for known in (train, None)]
    np.testing.assert_allclose(distances, 0.0, atol=0.1)


def test_a_row_a_population_metric_and_method() -> None:
    adata = made_cells()
    queried = adata[adata.obs["condition"] != "ctrl"].copy()
    table = evaluate(queried, adata, SCHEMA, train=adata)
    assert tuple(table.columns) == COLUMNS
    overall, table = table[table["condition"] == OVERALL], table[table["condition"] != OVERALL]
    assert set(overall["metric"]) == set(METRICS)
    assert set(overall["n_populations"]) == {9}
    assert not table.duplicated(["condition", "metric", "method"]).any()
    expected = {f"{t}, {c}" for t in ("T", "B", "NK") for c in ("A", "B", "A + B")}
    assert set(table["condition"]) == expected
    assert table.groupby("condition")["metric"].unique().map(list).map(tuple).unique().tolist() == [tuple(METRICS)]
    of_time = ("time ", "last time", "mixture of times", "optimal transport")
    methods = {name for name in PERTURBED if not name.startswith(of_time)}
    assert set(table["method"]) == methods | {MODEL}
    of_combinations = {name for name in methods if name.startswith(("additive", "mean of parts", "linear parts"))}
    assert set(table.loc[table["condition"].str.endswith(" A"), "method"]) == set(table["method"]) - of_combinations
    assert (table.loc[table["method"] != MODEL, "verdict"] == "").all()


def test_values_by_hand() -> None:
    train, truth = made()
    prediction = imperfect(truth)
    found = of_model(few(prediction, truth, SCHEMA, train=train))["value"]
    p, t = (np.asarray(x, dtype=np.float64) for x in (prediction.X, truth.X.toarray()))
    control = population(train, type="T", condition="ctrl").mean(axis=0)
    assert found["mean_squared_error"] == pytest.approx(np.square(p.mean(0) - t.mean(0)).mean())
    assert found["pearson"] == pytest.approx(np.corrcoef(p.mean(0), t.mean(0))[0, 1])
    assert found["delta_pearson"] == pytest.approx(np.corrcoef(p.mean(0) - control, t.mean(0) - control)[0, 1])
    assert found["zero_fraction_error"] == pytest.approx(np.abs((p == 0).mean(0) - (t == 0).mean(0)).mean())
    # the first 50 principal axes of the training cells, by a singular value decomposition
    cells = train.X.toarray().astype(np.float64)
    axes = np.linalg.svd(cells - cells.mean(axis=0), full_matrices=False)[2][:50].T
    x, y = p @ axes, t @ axes
    mean = {
        (a, b): np.mean([np.linalg.norm(u - v) for i, u in enumerate(c) for j, v in enumerate(d) if a != b or i != j])
        for a, c in (("x", x), ("y", y))
        for b, d in (("x", x), ("y", y))
    }
    expected = 2 * mean["x", "y"] - mean["x", "x"] - mean["y", "y"]
    assert found["energy_distance"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_the_floor_is_the_best_baseline_and_the_value_lies_in_its_interval() -> None:
    train, truth = made()
    table = evaluate(imperfect(truth), truth, SCHEMA, train=train)
    for name, rows in table.groupby("metric"):
        others = rows.loc[rows["method"] != MODEL, "value"]
        best = others.max() if METRICS[name].higher_is_better else others.min()
        np.testing.assert_array_equal(rows["floor"], best)
        assert rows["ceiling"].nunique() == 1
        is_known = rows["value"].notna() & METRICS[name].is_resampled  # type: ignore[index]
        assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"]))[is_known].all()
        assert rows.loc[~is_known, ["low", "high"]].isna().all(axis=None)
    of_means = table[table["metric"].isin(["pearson", "mean_squared_error"])]
    assert (of_means["low"] < of_means["high"]).all()


def test_four_times_the_cells_halve_the_interval_of_the_mean() -> None:
    widths = []
    for n_cells in (40, 160):
        _, truth = made(n_cells, 200)
        row = of_model(few(changed(truth, 0.5), truth, SCHEMA)).loc["mean_squared_error"]
        widths.append(row["high"] - row["low"])
    # 2.5 % and 97.5 % points of 200 resamples: each width is known to about a seventh
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=4 * 1.2 / np.sqrt(N_BOOTSTRAPS))


# --- matching


def test_genes_are_matched_by_name_in_any_order() -> None:
    train, truth = made()
    prediction = imperfect(truth)
    rng = np.random.default_rng(4)
    extra = ad.AnnData(np.ones((truth.n_obs, 2), np.float32), obs=truth.obs, var=pd.DataFrame(index=["other", "more"]))
    wider = ad.concat([truth, extra], axis=1, merge="first")
    other = [adata[:, rng.permutation(adata.n_vars)].copy() for adata in (wider, train)]
    one, same = few(prediction, truth, SCHEMA, train=train), few(prediction, other[0], SCHEMA, train=other[1])
    pd.testing.assert_frame_equal(one, same, check_exact=True)


def test_a_gene_that_is_missing_is_named_with_the_file() -> None:
    train, truth = made()
    with pytest.raises(InputError, match=r"^1 of the 60 genes .* are missing in the truth: gene 5; "):
        evaluate(truth, truth[:, truth.var_names != "gene 5"].copy(), SCHEMA, train=train)
    with pytest.raises(InputError, match=r"missing in the training data: gene 5; "):
        evaluate(truth, truth, SCHEMA, train=train[:, train.var_names != "gene 5"].copy())


def test_populations_without_truth_are_left_out() -> None:
    train, truth = made()
    both = ad.concat([imperfect(truth), changed(truth, condition="C")], index_unique="-")
    table = few(both, truth, SCHEMA, train=train)
    assert set(table["condition"]) == {"T, A + B"}
    pd.testing.assert_frame_equal(table, few(imperfect(truth), truth, SCHEMA, train=train), check_exact=True)


def test_no_common_population_is_refused_with_those_there_are() -> None:
    _, truth = made()
    message = r"^no population is in both files: predicted: 'T, C'; true: 'T, A \+ B'$"
    with pytest.raises(InputError, match=message):
        evaluate(changed(truth, condition="C"), truth, SCHEMA)


def test_a_combination_is_the_same_in_any_order() -> None:
    train, truth = made()
    one = few(imperfect(truth), truth, SCHEMA, train=train)
    turned = few(imperfect(truth), changed(truth, condition="B+A"), SCHEMA, train=train)
    pd.testing.assert_frame_equal(one, turned, check_exact=True)


def test_without_training_data_there_is_no_baseline_no_change_and_no_verdict() -> None:
    _, truth = made()
    table = evaluate(imperfect(truth), truth, SCHEMA)
    assert table["method"].tolist() == [MODEL] * len(BEST_KNOWN)
    assert table["metric"].tolist() == list(BEST_KNOWN)
    assert table["floor"].isna().all()
    assert table["ceiling"].notna().all()
    assert (table["verdict"] == "").all()


def test_without_a_schema_all_cells_are_one_population() -> None:
    train, truth = made()
    table = evaluate(imperfect(truth), truth, train=train)
    assert set(table["condition"]) == {"all cells"}
    assert set(table["method"]) == {MODEL, *PLAIN}
    assert set(table["metric"]) == set(BEST_KNOWN)  # there is no control to change from


# --- verdicts


def test_the_truth_itself_scores_best_and_never_loses() -> None:
    train, truth = made()
    rows = of_model(evaluate(truth, truth, SCHEMA, train=train))
    assert set(rows["verdict"]) <= {BEATS, TIES, ""}
    alone = [name for name, metric in METRICS.items() if metric.needs != "other conditions"]
    assert rows.index.tolist() == alone
    assert rows.index[rows["verdict"] == ""].tolist() == [n for n in alone if not METRICS[n].is_resampled]
    assert set(rows["note"]) == {"", "no verdict: it takes no resamples of cells"}
    others = {"energy_distance", "normalised_energy_distance", "mmd", "classifier_accuracy", "de_precision"}
    for name in set(alone) - others - {"energy_distance_top_genes"}:
        assert rows["value"][name] == pytest.approx(METRICS[name].best, abs=1e-9)
    assert rows["value"]["energy_distance"] < rows["floor"]["energy_distance"]
    assert rows["verdict"]["energy_distance"] == rows["verdict"]["mean_squared_error"] == BEATS


@pytest.mark.slow
def test_a_baselines_own_cells_do_not_beat_it() -> None:
    """The control cells as prediction: `no change` ties with them, and what knows more wins."""
    train, truth = made(60)
    control = train[(train.obs["type"] == "T") & (train.obs["condition"] == "ctrl")].copy()
    rows = of_model(evaluate(changed(control, condition="A+B"), truth, SCHEMA, train=train))
    for name in ("energy_distance", "mean_squared_error", "pearson"):
        assert rows["verdict"][name].startswith("loses to ")
        assert rows["verdict"][name] != "loses to no change"


@pytest.mark.slow
def test_a_shifted_prediction_loses() -> None:
    train, truth = made()
    rows = of_model(evaluate(changed(truth, 2.0), truth, SCHEMA, train=train))
    assert rows["value"]["mean_squared_error"] == pytest.approx(4.0, rel=1e-5)
    for name in ("energy_distance", "mean_squared_error", "zero_fraction_error"):
        assert rows["verdict"][name].startswith("loses to ")


@pytest.mark.slow
def test_the_truth_itself_beats_them_in_the_change_from_control() -> None:
    """As many true cells as control cells: `no change` then predicts exactly no change."""
    adata = made_cells(60, N_GENES)
    spare = [f"cell {i}" for t in range(3) for i in range(t * 243, t * 243 + 3)]
    adata = adata[~adata.obs_names.isin(spare)].copy()
    train, truth = adata[~held_out(adata)].copy(), adata[held_out(adata)].copy()
    assert len(population(train, type="T", condition="ctrl")) == truth.n_obs
    rows = of_model(evaluate(truth, truth, SCHEMA, train=train))
    assert rows["verdict"]["delta_pearson"] == BEATS


# --- several populations


def many(n_populations: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Training cells and true cells of so many conditions in type T, each with a control and effects of its own."""
    rng = np.random.default_rng(1)
    base = rng.normal(1.0, 0.7, 20)
    cells, obs = [], []
    for part in ("train", "truth"):
        for i in range(n_populations + 3):
            if (i < 3) != (part == "train") and i:
                continue
            effect = np.random.default_rng(100 + i).normal(0.0, 0.5, 20) * (i > 0)
            cells.append(np.log1p(rng.poisson(np.exp(base + effect), (25, 20))).astype(np.float32))
            obs += [{"type": "T", "condition": "ctrl" if i == 0 else f"c{i}", "part": part}] * 25
    adata = ad.AnnData(np.concatenate(cells), obs=pd.DataFrame(obs, index=[str(i) for i in range(len(obs))]))
    parts = [
        adata[(adata.obs["part"] == part) & (adata.obs["condition"] != "none")].copy() for part in ("train", "truth")
    ]
    return parts[0], parts[1][parts[1].obs["condition"] != "ctrl"].copy()


@pytest.mark.slow
def test_over_populations_there_is_their_mean_with_an_interval_of_its_own() -> None:
    train, truth = many(8)
    table = evaluate(imperfect_dense(truth), truth, SCHEMA, train=train)
    overall = of_model(table[table["condition"] == OVERALL])
    single = table[(table["condition"] != OVERALL) & (table["method"] == MODEL)]
    for name in ("delta_pearson", "energy_distance", "de_recall", "discrimination_l1"):
        values = single[single["metric"] == name]["value"]
        assert overall["value"][name] == pytest.approx(values.mean())
        assert overall["n_populations"][name] == len(values) == 8
        # Student's interval of the mean, but for the noise of 200 resamples
        width = 2 * scipy.stats.t.ppf(0.975, 7) * values.std(ddof=1) / np.sqrt(8)
        assert overall["high"][name] - overall["low"][name] == pytest.approx(width, rel=0.3)
        assert overall["verdict"][name] != ""
    assert overall["verdict"]["mean_squared_error"] == BEATS
    assert single[single["metric"] == "discrimination_l1"]["verdict"].eq("").all()


@pytest.mark.slow
def test_few_populations_have_no_interval_and_it_says_why() -> None:
    train, truth = many(4)
    overall = of_model(evaluate(imperfect_dense(truth), truth, SCHEMA, train=train).query("condition == @OVERALL"))
    assert overall[["low", "high"]].isna().all(axis=None)
    assert (overall["verdict"] == "").all()
    assert set(overall["note"]) == {"no interval: fewer than 5 populations have a value"}


@pytest.mark.slow
def test_a_baseline_of_some_populations_is_judged_on_these() -> None:
    """All combinations are lost to `additive`, which says nothing of the singles: the mean over all loses to it."""
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(4)]
    effect = {name: rng.normal(0.0, 1.0, 30) for name in names}
    base = rng.normal(5.0, 1.0, 30)
    doubles = [f"{a}+{b}" for i, a in enumerate(names) for b in names[i + 1 :]]

    def cells(conditions: list[str], error: float) -> ad.AnnData:
        means = [
            base + sum(effect.get(part, np.zeros(30)) for part in c.split("+")) for c in conditions for _ in range(20)
        ]
        noise = rng.normal(0.0, 0.3, (len(means), 30)) + error * rng.normal(0.0, 1.0, 30)
        obs = pd.DataFrame(
            {"type": "T", "condition": np.repeat(conditions, 20)}, index=[str(i) for i in range(len(means))]
        )
        return ad.AnnData((np.array(means) + noise).astype(np.float32), obs=obs)

    train, truth, predicted = cells(["ctrl", *names], 0), cells([*doubles, "g1"], 0), cells([*doubles, "g1"], 0.5)
    table = compare({MODEL: predicted}, truth, SCHEMA, train=train, names=("no change", "additive"))
    overall = table[table["condition"] == OVERALL]
    assert set(overall["method"]) == {MODEL, "no change"}
    assert of_model(overall)["verdict"]["mean_squared_error"] == "loses to additive"


def imperfect_dense(truth: ad.AnnData) -> ad.AnnData:
    copy = truth.copy()
    copy.X = np.maximum(truth.X + np.random.default_rng(0).normal(0.0, 0.3, truth.shape), 0).astype(np.float32)
    return copy


# --- several predictions


@pytest.mark.slow
def test_several_predictions_stand_in_one_table_as_each_would_alone() -> None:
    train, truth = made()
    good, bad = imperfect(truth), changed(truth, 2.0)
    both = compare({"good": good, "bad": bad}, truth, SCHEMA, train=train)
    assert {"good", "bad", "mean shift"} <= set(both["method"])
    verdict = both.set_index(["method", "metric"])["verdict"]
    assert verdict["bad", "mean_squared_error"].startswith("loses to ")
    assert (both[~both["method"].isin(["good", "bad"])]["verdict"] == "").all()
    alone = evaluate(good, truth, SCHEMA, train=train)
    own = (
        both[both["method"] == "good"]
        .reset_index(drop=True)
        .drop(columns=["method", "verdict", "low", "high", "floor"])
    )
    expected = alone[alone["method"] == MODEL].reset_index(drop=True)[own.columns]
    pd.testing.assert_frame_equal(own.drop(columns=["ceiling"]), expected.drop(columns=["ceiling"]))


def test_a_prediction_may_not_be_named_as_a_baseline_and_all_must_have_the_population() -> None:
    train, truth = made()
    with pytest.raises(InputError, match="'mean shift' is the name of a baseline"):
        compare({"mean shift": truth}, truth, SCHEMA, train=train)
    with pytest.raises(InputError, match="no population is in all files"):
        compare({"a": truth, "b": changed(truth, condition="C")}, truth, SCHEMA)
    with pytest.raises(InputError, match="missing in 'b': gene 5"):
        compare({"a": truth, "b": truth[:, truth.var_names != "gene 5"].copy()}, truth, SCHEMA)


# --- what has no value


def test_what_is_not_known_says_why() -> None:
    train, truth = made()
    flat = truth.copy()
    flat.X = np.full(truth.shape, 1.5, dtype=np.float32)
    rows = of_model(few(flat, truth, SCHEMA, train=train))
    assert np.isnan(rows["value"]["pearson"])
    assert "the same for all genes" in rows["note"]["pearson"]
    assert "do not vary" in rows["note"]["variance_pearson"]
    three = of_model(few(flat[:3].copy(), truth, SCHEMA, train=train))
    assert three["note"]["mean_squared_error"] == "no verdict: fewer than 10 true or predicted cells"
    one = of_model(few(truth[:1].copy(), truth, SCHEMA, train=train))
    assert (
        one["note"]["energy_distance"] == "there is a single true or predicted cell, or the training cells do not vary"
    )
    table = few(flat, truth, SCHEMA, train=train)
    assert (table.loc[table["value"].isna(), "note"] != "").all()
    unjudged = (table["method"] == MODEL) & (table["verdict"] == "")
    assert (table.loc[unjudged, "note"] != "").all()


# --- principal axes


def test_the_principal_axes_are_those_of_a_singular_value_decomposition() -> None:
    adata = made_cells(10, 70)
    center, axes = principal_axes(CellTable.from_anndata(adata, SCHEMA), seed=0)
    cells = adata.X.toarray().astype(np.float64)
    expected = np.linalg.svd(cells - cells.mean(axis=0), full_matrices=False)[2][: axes.shape[1]].T
    assert axes.shape[1] == 50
    np.testing.assert_allclose(center, cells.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.abs((axes * expected).sum(axis=0))[:10], 1.0, atol=1e-4)
    np.testing.assert_allclose(axes.T @ axes, np.eye(50), atol=1e-5)


def test_the_energy_distance_of_few_genes_sees_every_direction() -> None:
    """Two genes, the second of which varies less and is 5 too high: far from the truth in every cell."""
    cells = (np.random.default_rng(0).normal(size=(300, 2)) * [3, 1]).astype(np.float32)
    truth = ad.AnnData(cells, obs=pd.DataFrame(index=[str(i) for i in range(300)]), var=pd.DataFrame(index=["a", "b"]))
    prediction = truth.copy()
    prediction.X = cells + np.float32([0, 5])
    assert of_model(few(prediction, truth, Schema()))["value"]["energy_distance"] > 1.0


@pytest.mark.parametrize("n_truth", [1, 2, 3])
def test_a_truth_of_few_cells_is_scored_without_a_warning(n_truth: int) -> None:
    _, truth = made()
    rows = of_model(few(imperfect(truth), truth[:n_truth].copy(), SCHEMA))
    assert rows["ceiling"].isna().all()
    p, t = imperfect(truth).X.mean(axis=0), truth[:n_truth].X.toarray().mean(axis=0)
    assert rows["value"]["mean_squared_error"] == pytest.approx(np.square(p - t).mean(), rel=1e-5)


# --- seeds and files


def test_a_seed_gives_the_same_table_and_the_data_stay() -> None:
    train, truth = made()
    prediction = imperfect(truth)
    before = [CellTable.from_anndata(a, SCHEMA).fingerprint() for a in (prediction, truth, train)]
    one, same, other = (few(prediction, truth, SCHEMA, train=train, seed=seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(one, same, check_exact=True)
    assert (of_model(one)["low"] != of_model(other)["low"]).all()
    np.testing.assert_allclose(of_model(one)["value"], of_model(other)["value"], rtol=1e-4)  # only the resamples differ
    assert [CellTable.from_anndata(a, SCHEMA).fingerprint() for a in (prediction, truth, train)] == before


def test_files_give_what_memory_gives(tmp_path: Path) -> None:
    train, truth = made()
    data = {"prediction": imperfect(truth), "truth": truth, "train": train}
    paths = {name: tmp_path / f"{name}.h5ad" for name in data}
    for name, adata in data.items():
        adata.write_h5ad(paths[name])
    read = few(paths["prediction"], str(paths["truth"]), SCHEMA, train=paths["train"])
    expected = few(data["prediction"], truth, SCHEMA, train=train)
    pd.testing.assert_frame_equal(read, expected, check_exact=True)


def test_populations_in_one_file_alone_are_counted() -> None:
    obs = pd.DataFrame({"type": ["T", "T", "B", "B", "NK", "NK"]}, index=[f"c{i}" for i in range(6)])
    cells = ad.AnnData(np.random.default_rng(0).random((6, 4), dtype=np.float32), obs=obs)
    schema = Schema(context_keys=("type",))
    scores = few(cells[:2].copy(), cells, schema)
    assert scores.attrs[UNSCORED] == {"predicted": 0, "true": 2}
    assert set(scores["condition"]) == {"T"}


def dense_like(truth: ad.AnnData, value: float) -> ad.AnnData:
    copy = truth.copy()
    copy.X = np.full(truth.shape, value, dtype=np.float32)
    return copy


def test_cells_that_are_all_alike_are_scored_without_a_warning() -> None:
    train, truth = made()
    for value in (0.0, 1.5):
        table = few(*(dense_like(a, value) for a in (truth, truth)), SCHEMA, train=dense_like(train, value))
        assert (table.loc[table["value"].isna(), "note"] != "").all()
        assert set(table["verdict"]) <= {TIES, ""}


@pytest.mark.slow
def test_nothing_to_score_is_said_with_the_file() -> None:
    train, truth = made()
    with pytest.raises(InputError, match="there are 0 cells and 60 genes in the prediction: both must be there"):
        evaluate(truth[:0].copy(), truth, SCHEMA, train=train)
    with pytest.raises(InputError, match="there are 0 cells and 60 genes in the truth"):
        evaluate(truth, truth[:0].copy(), SCHEMA, train=train)
    assert set(evaluate(truth[:, :1].copy(), truth, SCHEMA, train=train)["condition"]) == {"T, A + B"}
