"""Preparation: scanpy's normalisation, and nothing of the held-out cells in what is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp

from squidiff.config import InputError, Preparation, Schema
from squidiff.data.matrix import as_matrix
from squidiff.data.preprocess import (
    Prepared,
    normalize,
    prepare,
)
from squidiff.data.splits import follow_any, parse_rule
from squidiff.data.survey import survey
from squidiff.data.table import CellTable, preparations
from squidiff.data.unit import Normalisation

SCHEMA = Schema(condition_key="condition", control="ctrl", context_keys=("type",))
SIZES = {("T", "ctrl"): 40, ("T", "A"): 25, ("B", "ctrl"): 31, ("B", "A"): 24}
HELD_OUT = "type=B,condition=A"


def made_counts(sparse: bool = True, n_genes: int = 60, seed: int = 0) -> ad.AnnData:
    """Raw counts of 120 cells in four populations; the total of obs is a third more than the cell's sum."""
    rng = np.random.default_rng(seed)
    labels = [key for key, n in SIZES.items() for _ in range(n)]
    obs = pd.DataFrame([labels[i] for i in rng.permutation(len(labels))], columns=["type", "condition"])
    obs.index = [f"cell {i}" for i in range(len(obs))]
    mean = rng.gamma(0.8, 2.0, n_genes) * np.exp(rng.normal(0.0, 0.5, (len(obs), n_genes)))
    counts = rng.poisson(mean).astype(np.float32)
    counts[:, 0] += 1
    obs["total"] = np.ceil(counts.sum(axis=1) * 4 / 3)
    obs["batch"] = pd.Categorical(rng.choice([1, 2], len(obs)))
    var = pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)])
    return ad.AnnData(sp.csr_matrix(counts) if sparse else counts, obs=obs, var=var)


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


def rows(adata: ad.AnnData, **values: str) -> np.ndarray:
    return np.logical_and.reduce([(adata.obs[c].astype(str) == v).to_numpy() for c, v in values.items()])


def sizes(adata: ad.AnnData) -> dict[tuple[str, str], int]:
    return adata.obs.groupby(["type", "condition"], observed=True).size().to_dict()


def made(**settings: object) -> Prepared:
    return prepare(made_counts(), SCHEMA, Preparation(**settings))


# --- normalisation


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("target_sum", [1e4, 50.0])
def test_normalisation_is_scanpys(sparse: bool, target_sum: float) -> None:
    adata = made_counts(sparse)
    expected = adata.copy()
    sc.pp.normalize_total(expected, target_sum=target_sum)
    sc.pp.log1p(expected)
    np.testing.assert_allclose(dense(normalize(adata, target_sum, None)), dense(expected), rtol=1e-6, atol=1e-6)


def test_totals_of_a_column_take_the_place_of_the_sums() -> None:
    adata = made_counts()
    expected = np.log1p(dense(adata).astype(np.float64) * 1e4 / adata.obs["total"].to_numpy()[:, None])
    np.testing.assert_allclose(dense(normalize(adata, 1e4, "total")), expected, rtol=1e-6)


def test_the_sums_come_back() -> None:
    adata = made_counts()
    np.testing.assert_allclose(
        np.expm1(dense(normalize(adata, 1e4, None)).astype(np.float64)).sum(axis=1), 1e4, rtol=1e-5
    )


def test_a_cell_without_counts_stays_zero() -> None:
    adata = made_counts(sparse=False)
    adata.X[3] = 0
    found = dense(normalize(adata, 1e4, None))
    assert (found[3] == 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_totals_that_are_not_positive_are_refused(bad: float) -> None:
    adata = made_counts()
    adata.obs.iloc[[2, 5], adata.obs.columns.get_loc("total")] = bad
    with pytest.raises(InputError, match=r"^column 'total' has 2 values that are not positive numbers: correct them$"):
        normalize(adata, 1e4, "total")
    with pytest.raises(InputError, match=r"^column 'sum' is missing in obs: it has type, condition, total, batch$"):
        normalize(adata, 1e4, "sum")


def test_normalising_comes_before_the_choice_of_genes() -> None:
    """So the sums are over all genes, not over those chosen."""
    found = made(normalize=True, n_genes=10).train
    expected = normalize(made_counts(), 1e4, None)[found.obs_names, found.var_names]
    np.testing.assert_array_equal(dense(found), dense(expected))


# --- rules


def test_training_and_held_out_cells_are_all_the_cells() -> None:
    prepared, adata = made(hold_out=(HELD_OUT, "type=T,condition=A")), made_counts()
    assert sizes(prepared.train) == {k: n for k, n in SIZES.items() if k[1] == "ctrl"}
    assert sizes(prepared.test) == {k: n for k, n in SIZES.items() if k[1] == "A"}
    assert set(prepared.train.obs["split"]) == {"train"}
    assert set(prepared.test.obs["split"]) == {"test"}
    for part in (prepared.train, prepared.test):
        np.testing.assert_array_equal(dense(part), dense(adata[part.obs_names]))
    assert sorted([*prepared.train.obs_names, *prepared.test.obs_names]) == sorted(adata.obs_names)


def test_clauses_of_a_rule_must_all_hold_and_any_rule_suffices() -> None:
    obs = made_counts().obs
    is_b, is_a, batch = obs["type"] == "B", obs["condition"] == "A", obs["batch"].astype(int)
    np.testing.assert_array_equal(follow_any(obs, ["type=B,condition=A"]), is_b & is_a)
    np.testing.assert_array_equal(follow_any(obs, ["type=B", "condition=A"]), is_b | is_a)
    np.testing.assert_array_equal(follow_any(obs, [" type = B , batch=2"]), is_b & (batch == 2))
    assert not follow_any(obs, []).any()


def test_dropped_cells_are_in_neither_part() -> None:
    prepared = made(drop=("type=T,condition=A",), hold_out=(HELD_OUT,))
    assert sizes(prepared.train) == {("T", "ctrl"): 40, ("B", "ctrl"): 31}
    assert sizes(prepared.test) == {("B", "A"): 24}
    assert made(drop=("type=T",)).test is None


def test_the_column_at_fault_is_named_and_none_where_values_never_meet() -> None:
    obs = pd.DataFrame({"type": ["T", "B"], "condition": ["A", "ctrl"]}, index=["1", "2"])
    with pytest.raises(InputError, match=r"^no cell matches 'type=Z,condition=A': column 'type' has values such as "):
        follow_any(obs, ["type=Z,condition=A"])
    with pytest.raises(InputError, match=r"^no cell matches 'type=T,condition=ctrl': each value is there, but never "):
        follow_any(obs, ["type=T,condition=ctrl"])


def test_rules_are_parsed() -> None:
    assert parse_rule("smiles=CC(=O)O") == {"smiles": "CC(=O)O"}  # only the first '=' separates
    assert parse_rule("type=") == {"type": ""}
    assert parse_rule("a=x, b = y z") == {"a": "x", "b": "y z"}


@pytest.mark.parametrize("rule", ["", "type", "=B", "type=B,", "type=B,condition", " =B"])
def test_a_rule_of_another_form_is_refused(rule: str) -> None:
    message = f"^'{rule}' is not of the form COLUMN=VALUE or COLUMN=VALUE,COLUMN=VALUE "
    with pytest.raises(InputError, match=message):
        made(hold_out=(rule,))
    with pytest.raises(InputError, match=message):
        made(drop=(rule,))


def test_a_column_named_twice_is_not_read_as_its_last_value() -> None:
    """No cell is both; what was meant may be either of two."""
    with pytest.raises(InputError):
        follow_any(made_counts().obs, ["type=B,type=T"])


@pytest.mark.parametrize("dtype", [float, np.float32, "Float64", "category"])
def test_a_rule_finds_a_number_however_it_is_written(dtype: object) -> None:
    doses = pd.Series([0.1, 2.0, np.nan, 10.0, 2.0]).astype(dtype)
    obs = pd.DataFrame({"dose": doses, "name": ["2.0", "2", "", "2", "1"]})
    for value in ("2", "2.0", "2e0"):
        assert follow_any(obs, [f"dose={value}"]).tolist() == [False, True, False, False, True]
    assert follow_any(obs, ["dose=0.1"]).tolist() == [True, False, False, False, False]
    assert follow_any(obs, ["dose="]).tolist() == [False, False, True, False, False]
    obs["batch"] = pd.Categorical([2, 1, None, 10, 1])
    assert follow_any(obs, ["batch=1.0"]).tolist() == [False, True, False, False, True]
    assert follow_any(obs, ["name=2"]).tolist() == [False, True, False, True, False]  # names stay what they are
    obs["treated"] = [True, False, True, False, False]
    assert follow_any(obs, ["treated=True"]).tolist() == obs["treated"].tolist()
    with pytest.raises(InputError, match="no cell matches 'treated=1'"):
        follow_any(obs, ["treated=1"])
    with pytest.raises(InputError, match="no cell matches 'dose=two'"):
        follow_any(obs, ["dose=two"])


def test_rules_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"^no cell matches 'type=NK': column 'type' has values such as 'T', 'B'"):
        made(drop=("type=NK",))
    with pytest.raises(InputError, match=r"^no cell matches 'type=T,condition=C'"):
        made(hold_out=("type=T,condition=C",))
    with pytest.raises(InputError, match=r"^column 'donor' is missing in obs: it has type, "):
        made(hold_out=("donor=1",))
    with pytest.raises(InputError, match=r"^no cell is left: drop fewer$"):
        made(drop=("type=T", "type=B"))
    with pytest.raises(InputError, match=r"^every cell is held out: hold out fewer$"):
        made(hold_out=("type=T", "type=B"))


# --- random choices


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.9])
def test_a_share_of_every_population_is_held_out(fraction: float) -> None:
    prepared = made(test_fraction=fraction)
    assert sizes(prepared.test) == {key: round(fraction * n) for key, n in SIZES.items()}
    assert sizes(prepared.train) == {key: n - round(fraction * n) for key, n in SIZES.items()}


def test_a_share_is_of_the_cells_that_no_rule_holds_out() -> None:
    prepared = made(test_fraction=0.5, hold_out=(HELD_OUT, "batch=1"))
    batch_2 = sizes(made_counts()[rows(made_counts(), batch="2")])
    batch_2.pop(("B", "A"))
    assert sizes(prepared.train) == {key: n - round(n / 2) for key, n in batch_2.items()}


def test_populations_are_capped() -> None:
    prepared = made(max_cells=25, hold_out=(HELD_OUT,))
    assert sizes(prepared.train) | sizes(prepared.test) == {key: min(n, 25) for key, n in SIZES.items()}
    assert prepared.train.obs_names.tolist() == [
        n for n in made_counts().obs_names if n in set(prepared.train.obs_names)
    ]


def test_cells_that_are_dropped_take_no_place_under_the_cap() -> None:
    prepared = made(max_cells=10, drop=("batch=1",))
    assert set(prepared.train.obs["batch"]) == {2}
    there = sizes(made_counts()[rows(made_counts(), batch="2")])
    assert min(there.values()) >= 10
    assert sizes(prepared.train) == dict.fromkeys(SIZES, 10)


@pytest.mark.parametrize("settings", [{"test_fraction": 0.3}, {"max_cells": 12}])
def test_a_seed_draws_the_same_cells_and_another_seed_others(settings: dict[str, float]) -> None:
    one, same, other = (made(seed=seed, **settings).train.obs_names.tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_cells_without_a_label_may_be_dropped_under_a_cap() -> None:
    adata = made_counts()
    adata.obs.iloc[:4, adata.obs.columns.get_loc("condition")] = None
    rule = "condition="
    assert prepare(adata, SCHEMA, Preparation(drop=(rule,))).train.n_obs == 116
    assert prepare(adata, SCHEMA, Preparation(drop=(rule,), max_cells=1000)).train.n_obs == 116


# --- what is left, and what is said of it


def test_the_data_passed_in_stay_as_they_are() -> None:
    adata, other = made_counts(), made_counts()
    settings = Preparation(
        normalize=True, n_genes=9, hold_out=(HELD_OUT,), test_fraction=0.1, max_cells=20, drop=("batch=1",)
    )
    prepared = prepare(adata, SCHEMA, settings)
    prepared.train.X.data[:] = 7.0
    prepared.train.obs["type"] = "changed"
    assert CellTable.from_anndata(adata, SCHEMA).fingerprint() == CellTable.from_anndata(other, SCHEMA).fingerprint()
    pd.testing.assert_frame_equal(adata.obs, other.obs)
    assert not adata.uns


def test_the_report_counts_what_became_of_the_cells() -> None:
    prepared = made(normalize=True, n_genes=9, drop=("type=T,condition=A",), hold_out=(HELD_OUT,), max_cells=30)
    assert prepared.report == (
        "read 120 cells and 60 genes",
        "dropped 25 cells: type=T,condition=A",
        "dropped 11 cells: at most 30 a population",
        "scaled each cell to 10000 counts and took log1p",
        "kept the 9 genes that vary most over the training cells, by variance",
        "60 cells for training, 24 held out",
        "no training cell has A: a prediction needs --embeddings for them",
    )
    assert made().report == ("read 120 cells and 60 genes", "120 cells for training, 0 held out")


def test_the_settings_go_with_the_file(tmp_path: Path) -> None:
    prepared = made(normalize=True, n_genes=9, hold_out=(HELD_OUT,), seed=3)
    prepared.train.write_h5ad(tmp_path / "train.h5ad")
    read = ad.read_h5ad(tmp_path / "train.h5ad")
    found = read.uns["squidiff_preparation"]
    assert (found["normalize"], found["target_sum"], found["n_genes"], found["seed"]) == (True, 1e4, 9, 3)
    assert list(found["hold_out"]) == [HELD_OUT]
    assert "drop" not in found
    assert "max_cells" not in found
    np.testing.assert_array_equal(dense(read), dense(prepared.train))
    again = prepare(read, SCHEMA, Preparation(max_cells=20)).train
    of_both = [(settings["seed"], bool(settings["normalize"])) for settings in preparations(again)]
    assert of_both == [(0, False), (3, True)]


def test_genes_of_raw_counts_are_refused_not_overflown() -> None:
    adata = made_counts()
    adata.X = adata.X * 50
    with pytest.raises(InputError, match="normalize"):
        prepare(adata, SCHEMA, Preparation(n_genes=9))


def test_a_condition_is_held_out_in_every_spelling() -> None:
    """`B+A` is `A+B`, and what is held out must not be seen."""
    adata = made_counts()
    n = adata.n_obs
    labels = np.array(["ctrl", "A", "A+B", "B+A", "A+ctrl"])[np.arange(n) % 5]
    adata.obs["condition"] = labels
    prepared = prepare(adata, SCHEMA, Preparation(normalize=True, hold_out=("condition=A+B",)))
    assert prepared.test is not None
    assert set(prepared.test.obs["condition"]) == {"A+B", "B+A"}
    assert set(prepared.train.obs["condition"]) == {"ctrl", "A", "A+ctrl"}


def test_a_comma_in_a_value_is_written_with_a_backslash() -> None:
    assert parse_rule(r"drug=2\,5-x,type=T") == {"drug": "2,5-x", "type": "T"}


def test_a_column_of_the_name_that_is_written_is_refused() -> None:
    adata = made_counts()
    adata.obs["split"] = adata.obs["type"]
    with pytest.raises(InputError, match=r"^column 'split' is where the split is written: rename your column"):
        prepare(adata, Schema(context_keys=("split",)), Preparation(normalize=True))


# --- input


def test_a_path_and_backed_data_are_prepared_as_data_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5ad"
    made_counts().write_h5ad(path)
    settings = Preparation(normalize=True, n_genes=20)
    expected = prepare(made_counts(), SCHEMA, settings).train
    for source in (path, str(path), ad.read_h5ad(path, backed="r")):
        found = prepare(source, SCHEMA, settings).train
        assert list(found.var_names) == list(expected.var_names)
        np.testing.assert_array_equal(dense(found), dense(expected))


def test_repeated_cell_names_are_no_warning_here() -> None:
    """Of these the doctor speaks."""
    cells = made_counts()
    cells.obs_names = ["cell"] * cells.n_obs
    assert prepare(cells, SCHEMA, Preparation(normalize=True, n_genes=5, max_cells=9)).train.n_obs == 36


# --- the unit


def unit_of(adata: ad.AnnData, **done: object) -> Normalisation:
    return Normalisation.of(survey(as_matrix(adata)), done, "prepare")


def test_the_unit_is_what_was_done_or_what_the_values_say() -> None:
    """Counts that were scaled to one total tell it; those of some of the genes do not."""
    counts = made_counts()
    logged = normalize(counts, 2000.0, None)
    assert unit_of(logged, normalize=True, target_sum=2000.0).unit == "log1p of counts per 2000"
    found = unit_of(logged)
    assert (found.unit, found.known_from) == ("log1p of counts per 2000", "the values")
    assert found.typical_total == pytest.approx(2000, rel=1e-4)
    some = unit_of(logged[:, 10:].copy())
    assert (some.unit, some.known_from) == ("as given", "nothing")
    scaled = logged.copy()
    scaled.X = dense(logged) - 1.0
    assert unit_of(scaled) == Normalisation("as given", "nothing", None)


@pytest.mark.parametrize(("target_sum", "is_other"), [(2000.0, False), (6000.0, False), (1e6, True), (100.0, True)])
def test_cells_in_another_unit_are_told_from_other_cells(target_sum: float, is_other: bool) -> None:
    unit = unit_of(normalize(made_counts(), 2000.0, None), normalize=True, target_sum=2000.0)
    found = survey(as_matrix(normalize(made_counts(seed=5), target_sum, None)[:, 1:].copy()))
    if not is_other:
        unit.require(found, "it")
        return
    with pytest.raises(InputError, match=r"^X of it is in another unit than the training data: exp\(X\) - 1 sums to "):
        unit.require(found, "it")


def test_cells_scaled_to_another_total_are_told_however_near_it_is() -> None:
    """Recorded: totals within a factor of ten passed. Some genes alone have no one total, few profiles tell none."""
    unit = unit_of(normalize(made_counts(), 2000.0, None), normalize=True, target_sum=2000.0)
    for target_sum in (1000.0, 2100.0, 5000.0):
        other = normalize(made_counts(seed=5), target_sum, None)
        told = rf"^X of it is .* data: log1p of counts per {target_sum:g}, in training log1p of counts per 2000; normal"
        with pytest.raises(InputError, match=told):
            unit.require(survey(as_matrix(other)), "it")
        unit.require(survey(as_matrix(other[:, 3:].copy())), "it")
        unit.require(survey(as_matrix(other[:9].copy())), "it")


def test_negative_values_have_no_total_to_compare() -> None:
    scaled = normalize(made_counts(), 2000.0, None)
    scaled.X = dense(scaled) - 1.0
    unit_of(normalize(made_counts(), 1e6, None)).require(survey(as_matrix(scaled)), "it")


def test_what_is_held_out_and_left_in_no_training_cell_is_said() -> None:
    cells = made_counts()
    cells.obs["condition"] = np.where(rows(cells, type="T", condition="A"), "A+C", cells.obs["condition"])
    report = prepare(cells, SCHEMA, Preparation(hold_out=("condition=A+C",))).report
    assert report[-1] == "no training cell has C: a prediction needs --embeddings for them"
    assert not [line for line in made(hold_out=(HELD_OUT,)).report if "no training cell" in line]


def test_torch_keeps_to_the_threads_that_it_was_given() -> None:
    """scanpy's numba raised them, and what was trained afterwards had other last bits."""
    script = (
        "import squidiff as sq, torch\n"
        "raw = sq.simulate_perturbation(n_genes=30, n_cells=20, n_cell_types=2)\n"
        "schema = sq.Schema(condition_key='condition', control='control', context_keys=('cell_type',))\n"
        "sq.prepare(raw, schema, sq.Preparation(normalize=True, n_genes=10))\n"
        "print(torch.get_num_threads())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_NUM_THREADS"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_totals_below_a_cells_own_counts_are_no_totals() -> None:
    """Recorded: a column of shares was taken for totals, and values of 17 for logarithms of counts per 10,000."""
    adata = made_counts()
    adata.obs["share"] = 0.5
    with pytest.raises(
        InputError, match=r"^column 'share' is smaller than the counts in X of \d+ cells \(as 0\.5 where"
    ):
        prepare(adata, SCHEMA, Preparation(normalize=True, total_counts_key="share"))
    adata.X = adata.X * 0.99  # as of corrected counts, whose totals were rounded
    adata.obs["rounded"] = np.rint(np.asarray(adata.X.sum(axis=1)).ravel())
    assert normalize(adata, 1e4, "rounded").n_obs == adata.n_obs
