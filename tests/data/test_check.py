"""The doctor finds what is planted, counts it, and finds nothing in good data."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from squidiff.config import InputError, Schema
from squidiff.data.check import check
from squidiff.data.finding import CheckReport, Finding
from squidiff.data.table import CellTable

SCHEMA = Schema(
    condition_key="condition",
    control="ctrl",
    context_keys=("type",),
    time_key="day",
    dose_key="dose",
    smiles_key="smiles",
)
PLAIN = Schema(condition_key="condition", control="ctrl", context_keys=("type",))
N_CELLS, N_GENES = 80, 6


def good(sparse: bool = False) -> ad.AnnData:
    """80 log-normalised cells: two types under control and aspirin at two doses, 10 cells or more each."""
    counts = np.random.default_rng(0).poisson(2.0, (N_CELLS, N_GENES)) + np.eye(N_CELLS, N_GENES)
    counts[np.arange(N_CELLS), np.arange(N_CELLS) % N_GENES] += 1  # no cell is empty
    i = np.arange(N_CELLS)
    treated = i % 4 > 0
    obs = pd.DataFrame(
        {
            "type": np.where(i < 40, "T", "B"),
            "condition": np.where(treated, "aspirin", "ctrl"),
            "day": 1.5,
            "dose": np.where(treated, np.where(i % 2, 1.0, 10.0), np.nan),
            "smiles": np.where(treated, "CC(=O)OC1=CC=CC=C1C(=O)O", None),
        },
        index=[f"cell {k}" for k in i],
    )
    obs["type"] = pd.Categorical(obs["type"])
    x = np.log1p(counts).astype(np.float32)
    return ad.AnnData(sp.csr_matrix(x) if sparse else x, obs=obs, var=pd.DataFrame(index=list("abcdef")))


def put(adata: ad.AnnData, row: int, gene: int, value: float) -> None:
    """Sets one value of X, which is stored already when X is sparse."""
    x = adata.X.toarray() if sp.issparse(adata.X) else adata.X
    x[row, gene] = value
    adata.X = sp.csr_matrix(x) if sp.issparse(adata.X) else x


def each(adata: ad.AnnData, change: Callable[[np.ndarray], np.ndarray]) -> None:
    x = change(adata.X.toarray() if sp.issparse(adata.X) else adata.X).astype(np.float32)
    adata.X = sp.csr_matrix(x) if sp.issparse(adata.X) else x


def label(adata: ad.AnnData, rows: list[int], **values: object) -> None:
    for column, value in values.items():
        changed = adata.obs[column].astype(object)
        changed.iloc[rows] = value
        adata.obs[column] = changed


def plant_nan(adata: ad.AnnData) -> None:
    put(adata, 3, 0, np.nan)
    put(adata, 4, 1, np.inf)
    put(adata, 5, 1, -np.inf)


def plant_counts(adata: ad.AnnData) -> None:
    each(adata, lambda x: np.rint(np.expm1(x)) + 1)  # none is zero, so that dense and sparse hold as many


def plant_missing_column(adata: ad.AnnData) -> None:
    del adata.obs["dose"]


def plant_gap_in_type(adata: ad.AnnData) -> None:
    label(adata, [1, 2, 70], type=None)


def plant_gap_in_dose(adata: ad.AnnData) -> None:
    label(adata, [1, 2], dose=np.nan)  # both are treated; the controls have none anyway


def plant_gap_in_condition(adata: ad.AnnData) -> None:
    label(adata, [5], condition=np.nan)


def plant_two_genes_of_one_name(adata: ad.AnnData) -> None:
    adata.var_names = ["a", "b", "a", "a", "e", "f"]


def plant_no_control(adata: ad.AnnData) -> None:
    adata.obs["condition"] = "aspirin"
    label(adata, list(range(0, N_CELLS, 4)), dose=1.0, smiles="CC(=O)OC1=CC=CC=C1C(=O)O")


def plant_smiles(adata: ad.AnnData) -> None:
    label(adata, [1], smiles="C1CC(")


def plant_negative_dose(adata: ad.AnnData) -> None:
    label(adata, [1, 2, 3], dose=-1.0)


def plant_dose_in_words(adata: ad.AnnData) -> None:
    label(adata, [1, 2], dose="much")


def plant_empty_part(adata: ad.AnnData) -> None:
    label(adata, [1], condition="aspirin+", smiles="CCO+CCO")


def plant_time(adata: ad.AnnData) -> None:
    label(adata, [3], day="noon")


ERRORS = [
    (plant_nan, "NaN or infinite values", "X", 3),
    (plant_counts, "raw counts", "X", N_CELLS * N_GENES),
    (plant_missing_column, "column 'dose' is missing", "obs", 1),
    (plant_gap_in_type, "empty values in column 'type'", "obs", 3),
    (plant_gap_in_dose, "empty values in column 'dose'", "obs", 2),
    (plant_gap_in_condition, "empty values in column 'condition'", "obs", 1),
    (plant_two_genes_of_one_name, "duplicate gene names, such as 'a'", "var_names", 2),
    (plant_no_control, "no control 'ctrl'", "obs column 'condition'", 1),
    (plant_smiles, "SMILES 'C1CC(' does not parse: correct it or drop its cells", "obs", 1),
    (plant_negative_dose, "dose '-1.0' of condition 'aspirin' must be a number of 0 or more", "obs", 3),
    (
        plant_dose_in_words,
        "dose 'much' of condition 'aspirin' is not a number: write numbers, all in one unit",
        "obs",
        2,
    ),
    (plant_empty_part, "condition 'aspirin+' has an empty part: write parts as A+B", "obs", 1),
    (plant_time, "time 'noon' in column 'day' is not a number: write times as numbers, or as ranges of them", "obs", 1),
]


def plant_negative_values(adata: ad.AnnData) -> None:
    put(adata, 3, 0, -0.5)
    put(adata, 9, 4, -2.0)


def plant_values_not_logged(adata: ad.AnnData) -> None:
    put(adata, 3, 0, 20.5)
    put(adata, 3, 1, 400.25)
    put(adata, 4, 1, 20.0)  # as large as may be


def plant_constant_genes(adata: ad.AnnData) -> None:
    for row in range(N_CELLS):
        put(adata, row, 3, 1.5)


def plant_empty_genes(adata: ad.AnnData) -> None:
    for row in range(N_CELLS):
        put(adata, row, 0, 0.0)


def plant_empty_cells(adata: ad.AnnData) -> None:
    each(adata, lambda x: np.where(np.isin(np.arange(N_CELLS), [3, 60, 61])[:, None], 0.0, x))


def plant_two_cells_of_one_name(adata: ad.AnnData) -> None:
    adata.obs_names = ["cell 0", "cell 0", *adata.obs_names[2:]]


def plant_small_populations(adata: ad.AnnData) -> None:
    label(adata, list(range(1, 18, 2)), day=2.0)
    adata.obs["day"] = adata.obs["day"].astype(float)  # nine; of T under 10 of aspirin there are ten


def plant_no_control_in_a_type(adata: ad.AnnData) -> None:
    adata.obs["type"] = np.where(
        (adata.obs["type"] == "T") & (adata.obs["condition"] == "aspirin"), "NK", adata.obs["type"]
    )


def plant_held_out_cells(adata: ad.AnnData) -> None:
    adata.obs["split"] = pd.Categorical(np.where(np.arange(N_CELLS) < 7, "test", "train"))


def plant_one_cell(adata: ad.AnnData) -> None:
    label(adata, [1], day=2.0)
    adata.obs["day"] = adata.obs["day"].astype(float)


def plant_other_gap(adata: ad.AnnData) -> None:
    adata.obs["note"] = [None, *["seen"] * (N_CELLS - 1)]
    adata.obs["score"] = [np.nan, *[0.5] * (N_CELLS - 1)]


def plant_two_spellings(adata: ad.AnnData) -> None:
    label(adata, list(range(1, 40, 2)), condition="Aspirin")


def plant_times_as_text(adata: ad.AnnData) -> None:
    adata.obs["day"] = "1.5"


def plant_another_smiles(adata: ad.AnnData) -> None:
    label(adata, [1, 2], smiles="O=C(C)Oc1ccccc1C(=O)O")


def plant_another_name(adata: ad.AnnData) -> None:
    label(adata, [k for k in range(N_CELLS) if k % 4 == 1], condition="acetylsalicylate")


def plant_doses_in_two_units(adata: ad.AnnData) -> None:
    rows = [k for k in range(N_CELLS) if k % 4 == 2]
    label(adata, rows, dose=1e6)
    adata.obs["dose"] = adata.obs["dose"].astype(float)


def plant_a_batch_of_controls(adata: ad.AnnData) -> None:
    adata.obs["batch"] = np.where(adata.obs["condition"] == "ctrl", "monday", "tuesday")
    adata.obs["plate"] = np.where(np.arange(N_CELLS) % 8 < 4, "p1", "p2")  # holds both


def plant_genes_of_two_kinds(adata: ad.AnnData) -> None:
    adata.var_names = ["ACTB", "GAPDH", "CD3E", "ENSG00000111640", "ENSG00000075624", "MALAT1"]


def plant_genes_of_two_species(adata: ad.AnnData) -> None:
    adata.var_names = ["ACTB", "GAPDH", "CD3E", "Actb", "Gapdh", "MALAT1"]


WARNINGS = [
    (plant_one_cell, "populations of a single cell", "obs", 1),
    (plant_other_gap, "other columns with empty values, such as 'note'", "obs", 2),
    (
        plant_two_spellings,
        "labels that are nearly the same, such as 'Aspirin' and 'aspirin'",
        "obs column 'condition'",
        1,
    ),
    (plant_times_as_text, "numbers stored as text in column 'day'", "obs", N_CELLS),
    (
        plant_another_smiles,
        "drugs whose SMILES are written in several ways, such as 'CC(=O)OC1=CC=CC=C1C(=O)O' and "
        "'O=C(C)Oc1ccccc1C(=O)O'",
        "obs",
        1,
    ),
    (plant_another_name, "drugs of several names, such as 'acetylsalicylate' and 'aspirin'", "obs", 1),
    (plant_doses_in_two_units, "doses that may be in two units, such as 1 and 1e+06 of 'aspirin'", "obs", 1),
    (
        plant_a_batch_of_controls,
        "a batch that holds all control cells and no other: 'monday'",
        "obs column 'batch'",
        20,
    ),
    (plant_genes_of_two_kinds, "genes that have Ensembl identifiers (human)", "var_names", 2),
    (plant_genes_of_two_species, "genes that have symbols with one capital (as in mouse)", "var_names", 2),
    (plant_negative_values, "negative values", "X", 2),
    (plant_values_not_logged, "values above 20", "X", 2),
    (plant_constant_genes, "constant genes", "X", 1),
    (plant_empty_genes, "genes without a single count", "X", 1),
    (plant_empty_cells, "cells without a single count", "X", 3),
    (plant_two_cells_of_one_name, "duplicate cell names, such as 'cell 0'", "obs_names", 1),
    (plant_small_populations, "populations of fewer than 10 cells", "obs", 1),
    (plant_no_control_in_a_type, "conditions without control cells in their context", "obs", 30),
    (plant_held_out_cells, "held-out cells (column 'split' says test)", "obs", 7),
]
PLANTS = [*((*p, "error") for p in ERRORS), *((*p, "warning") for p in WARNINGS)]


def found(report: CheckReport) -> list[tuple[str, str, str, int]]:
    return [(f.severity, f.what, f.where, f.count) for f in report.findings]


# --- findings


@pytest.mark.parametrize("sparse", [False, True])
def test_good_data_have_no_finding(sparse: bool) -> None:
    kinds = ("log1p of counts that were not scaled to one total", "names")
    assert check(good(sparse), SCHEMA) == CheckReport(N_CELLS, N_GENES, (), *kinds)
    assert check(good(sparse)).errors == ()
    check(good(sparse), SCHEMA).raise_errors()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("plant", "what", "where", "count", "severity"), PLANTS, ids=[p[0].__name__.removeprefix("plant_") for p in PLANTS]
)
@pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique")
def test_what_is_planted_is_found_counted_and_nothing_else(
    plant: Callable[[ad.AnnData], None], what: str, where: str, count: int, severity: str, sparse: bool
) -> None:
    adata = good(sparse)
    plant(adata)
    assert found(check(adata, SCHEMA)) == [(severity, what, where, count)]


def test_an_unreadable_file_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "text.h5ad").write_text("not HDF5")
    for path in (tmp_path / "text.h5ad", tmp_path / "none.h5ad", tmp_path):
        report = check(path, SCHEMA)
        assert found(report) == [("error", "unusable file", "the file", 1)]
        assert str(path) in report.errors[0].remedy
        assert (report.n_cells, report.n_genes) == (0, 0)
    good().write_h5ad(tmp_path / "good.h5ad")
    assert check(tmp_path / "good.h5ad", SCHEMA).findings == ()


@pytest.mark.parametrize(("cells", "genes"), [(slice(0), slice(None)), (slice(None), slice(0))])
def test_no_cells_or_no_genes_is_an_error(cells: slice, genes: slice) -> None:
    (error,) = check(good()[cells, genes], SCHEMA).findings
    assert (error.severity, error.what) == ("error", "unusable file")
    assert "both must be there" in error.remedy


def test_counts_are_right_only_when_they_are_to_be_normalised() -> None:
    counts = good()
    plant_counts(counts)
    assert check(counts, SCHEMA, normalize=True).findings == ()
    report = check(good(), SCHEMA, normalize=True)
    expected = ("error", "--normalize on values that are not counts", "X", np.count_nonzero(good().X))
    assert found(report) == [expected]
    large = good()
    each(large, lambda x: np.rint(np.expm1(x)) + 100)
    assert check(large, SCHEMA, normalize=True).findings == ()  # counts may be large


@pytest.mark.parametrize("other", ["cafe\N{COMBINING ACUTE ACCENT}", "caf\N{ZERO WIDTH SPACE}\xe9", "\uff43af\xe9"])
def test_labels_that_differ_by_what_nobody_sees_are_told(other: str) -> None:
    adata = good()
    adata.obs["type"] = np.where(adata.obs["type"] == "T", "caf\xe9", other)
    assert any("labels that are nearly the same" in finding.what for finding in check(adata, SCHEMA).findings)


def test_raw_counts_are_counted_alike_dense_and_sparse() -> None:
    reports = []
    for sparse in (False, True):
        adata = good(sparse)
        each(adata, lambda x: np.rint(np.expm1(x)))
        reports.append(check(adata, SCHEMA))
    assert reports[0] == reports[1]


def test_every_cell_of_a_drug_that_does_not_parse_counts() -> None:
    adata = good()
    label(adata, [1, 2, 3], smiles="C1CC(")
    assert [f.count for f in check(adata, SCHEMA).errors] == [3]


def test_every_error_is_reported_at_once_and_errors_come_first() -> None:
    adata = good()
    adata.obs_names = ["cell 0", "cell 0", *adata.obs_names[2:]]
    put(adata, 3, 0, -0.5)
    plant_negative_dose(adata)
    plant_smiles(adata)
    plant_no_control(adata)
    label(adata, [1, 2], dose=-1.0)
    label(adata, [7], smiles="C1CC(")
    report = check(adata, SCHEMA)
    assert [f.severity for f in report.findings] == ["error"] * 3 + ["warning"] * 2
    assert {f.what.split(" ")[0] for f in report.errors} == {"no", "dose", "SMILES"}


def test_a_row_that_cannot_be_read_is_counted_by_its_message() -> None:
    adata = good()
    label(adata, [1, 3, 5], dose="x")
    label(adata, [2], dose="y")
    errors = {f.what.split("'")[1]: f.count for f in check(adata, SCHEMA).errors}
    assert errors == {"x": 3, "y": 1}


def test_a_part_without_an_embedding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("name,x\nibuprofen,1\n")
    schema = replace(PLAIN, embeddings=str(tmp_path / "e.csv"))
    (error,) = check(good(), schema).errors
    assert "'aspirin' is unknown" in error.what
    (tmp_path / "e.csv").write_text("name,x\naspirin,1\n")
    assert check(good(), schema).errors == ()
    (error,) = check(good(), replace(PLAIN, embeddings=str(tmp_path / "none.csv"))).errors
    assert "none.csv does not exist" in error.what


def test_labels_that_read_like_a_control_are_warned_of() -> None:
    cells = good()
    labels = cells.obs[PLAIN.condition_key].astype(str)
    labels.iloc[:2] = ["Vehicle ", "un-treated"]
    cells.obs[PLAIN.condition_key] = labels
    found = [f for f in check(cells, PLAIN).findings if "read like one" in f.what]
    (warning,) = found
    assert "'Vehicle ', 'un-treated'" in warning.what
    assert (warning.severity, warning.count) == ("warning", 2)


def test_open_times_are_warned_of_with_what_they_are_read_as() -> None:
    cells = good()
    cells.obs["bin"] = ["330-390", "> 650"] * (cells.n_obs // 2) + ["330-390"] * (cells.n_obs % 2)
    (warning,) = [f for f in check(cells, Schema(time_key="bin")).findings if "open to one side" in f.what]
    assert "'> 650' as 650" in warning.what


# --- the report


def made_report(n_errors: int, n_warnings: int = 1) -> CheckReport:
    errors = [Finding("error", f"wrong {i}", "X", 1200 + i, f"mend {i}") for i in range(n_errors)]
    warnings = [Finding("warning", "odd", "obs", 1, "look") for _ in range(n_warnings)]
    return CheckReport(5, 3, (*errors, *warnings))


def test_raise_errors_says_the_first_and_how_many_more() -> None:
    made_report(0).raise_errors()
    first = "wrong 0 (in X; 1,200): mend 0"
    for n, more in (
        (1, ""),
        (2, " (1 more error: see `squidiff check`)"),
        (4, " (3 more errors: see `squidiff check`)"),
    ):
        with pytest.raises(InputError) as caught:
            made_report(n).raise_errors()
        assert str(caught.value) == first + more


def test_the_report_goes_through_json_and_back() -> None:
    adata = good()
    plant_negative_dose(adata)
    plant_values_not_logged(adata)
    for report in (check(adata, SCHEMA), made_report(2)):
        read = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert CheckReport(**(read | {"findings": tuple(Finding(**f) for f in read["findings"])})) == report


def test_a_column_that_stands_there_twice_is_an_error() -> None:
    adata = good()
    adata.obs = pd.concat([adata.obs, adata.obs[["type", "day"]], adata.obs[["day"]]], axis=1)
    assert [f.what for f in check(adata, SCHEMA).errors] == [
        "column 'type' stands there twice",
        "column 'day' stands there twice",
    ]
    with pytest.raises(InputError, match="column 'type' stands twice in obs of the data: rename one"):
        CellTable.from_anndata(adata, PLAIN)


# --- two files


def test_what_training_and_held_out_cells_share_is_found(tmp_path: Path) -> None:
    adata = good()
    is_b = (adata.obs["type"] == "B").to_numpy()
    train, test = adata[~is_b].copy(), adata[is_b].copy()
    assert check(train, SCHEMA, held_out=test).findings == ()
    leak = ad.concat([train, test[:5]])
    shared = [f for f in check(leak, SCHEMA, held_out=test).findings if "held out too" in f.what]
    assert [(f.what, f.count) for f in shared] == [
        (f"cells that are held out too, such as {test.obs_names[0]!r}", 5),
        ("conditions that are held out too, such as 'B, aspirin @ 1'", 2),
    ]
    leak.obs_names = [f"renamed {i}" for i in range(leak.n_obs)]
    turned = test[:, ::-1].copy()
    alike = [f for f in check(leak, SCHEMA, held_out=turned).findings if "values are those" in f.what]
    assert [(f.what, f.count) for f in alike] == [("cells whose values are those of a held-out cell", 5)]
    assert found(check(train, SCHEMA, held_out=tmp_path / "none.h5ad")) == [
        ("error", "unusable held-out file", "the held-out file", 1)
    ]


def test_commands_name_the_file(tmp_path: Path) -> None:
    adata = good()
    plant_counts(adata)
    adata.write_h5ad(tmp_path / "mine.h5ad")
    (error,) = check(tmp_path / "mine.h5ad", SCHEMA).errors
    flags = "--condition-key condition --control ctrl --context-key type --time-key day --smiles-key smiles"
    said = f"{flags} --dose-key dose --normalize --out mine_prepared.h5ad"
    assert error.command == f"squidiff prepare {tmp_path / 'mine.h5ad'} {said}"


# --- the data stay


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("plant", [lambda adata: None, plant_values_not_logged, plant_small_populations])
def test_the_data_are_left_as_they_are(plant: Callable[[ad.AnnData], None], sparse: bool) -> None:
    adata, other = good(sparse), good(sparse)
    plant(adata)
    plant(other)
    check(adata, SCHEMA)
    check(adata, SCHEMA, normalize=True)
    assert CellTable.from_anndata(adata, SCHEMA).fingerprint() == CellTable.from_anndata(other, SCHEMA).fingerprint()
    pd.testing.assert_frame_equal(adata.obs, other.obs)
    assert adata.X.dtype == other.X.dtype


def test_control_cells_alone_are_pointed_out() -> None:
    cells = ad.AnnData(np.random.default_rng(0).gamma(1.0, 1.0, (30, 4)).astype(np.float32))
    cells.obs["condition"] = "ctrl"
    (finding,) = check(cells, Schema(condition_key="condition", control="ctrl")).findings
    assert (finding.severity, finding.what, finding.count) == ("warning", "control cells only", 30)


def test_an_embeddings_file_that_is_not_there_is_not_blamed_on_a_column(tmp_path: Path) -> None:
    cells = ad.AnnData(np.random.default_rng(0).gamma(1.0, 1.0, (30, 4)).astype(np.float32))
    cells.obs["condition"] = ["ctrl", "A"] * 15
    schema = Schema(condition_key="condition", control="ctrl", embeddings=str(tmp_path / "none.csv"))
    (finding,) = check(cells, schema).errors
    assert (finding.where, finding.remedy) == ("--embeddings", "correct the file")
