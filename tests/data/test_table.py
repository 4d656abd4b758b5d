"""The cell table: genes by name, cells by population, and a fingerprint of all of it."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from made_cells import logged
from squidiff.config import InputError, Schema
from squidiff.data.matrix import as_matrix
from squidiff.data.table import (
    CellTable,
    as_text,
    group_rows,
    matched,
    read_cells,
    remembered_schema,
    require_columns,
    schema_of,
    write_cells,
)

SCHEMA = Schema(
    condition_key="condition", control="ctrl", context_keys=("type", "donor"), time_key="day", dose_key="dose"
)
N_CELLS, N_GENES = 60, 8


def made_obs(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "type": rng.choice(["T", "B"], N_CELLS),
            "donor": rng.choice([1, 2], N_CELLS),
            "condition": pd.Categorical(rng.choice(["ctrl", "A", "A+B", "B+A"], N_CELLS)),
            "day": rng.choice([0.0, 2.5], N_CELLS),
            "dose": rng.choice(["1", "1.0", "10"], N_CELLS),
            "ignored": rng.random(N_CELLS),
        },
        index=[f"cell {i}" for i in range(N_CELLS)],
    )
    obs.loc[obs["condition"] == "ctrl", "dose"] = None
    return obs


def made_cells(sparse: bool = True, seed: int = 0) -> ad.AnnData:
    cells = np.random.default_rng(seed).poisson(0.8, (N_CELLS, N_GENES)).astype(np.float32)
    var = pd.DataFrame(index=[f"gene {i}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(cells) if sparse else cells, obs=made_obs(seed), var=var)


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)


# --- genes


@pytest.mark.parametrize("sparse", [True, False])
def test_genes_are_matched_by_name_whatever_their_order(sparse: bool) -> None:
    adata = made_cells(sparse)
    wanted = [f"gene {i}" for i in (6, 0, 3)]
    shuffled = adata[:, np.random.default_rng(1).permutation(N_GENES)]
    for data in (adata, shuffled):
        table = CellTable.from_anndata(data, SCHEMA, wanted)
        assert table.genes == tuple(wanted)
        np.testing.assert_array_equal(table.dense(np.arange(N_CELLS)), dense(adata)[:, [6, 0, 3]])


def test_missing_genes_are_counted_and_five_are_named() -> None:
    adata = made_cells()
    with pytest.raises(InputError, match=r"^2 of the 3 genes .* are missing in the data: X1, X2; "):
        matched(adata, ["X1", "gene 0", "X2"])
    with pytest.raises(InputError, match=r"^7 of the 7 genes .*: X0, X1, X2, X3, X4 and 2 more; "):
        CellTable.from_anndata(adata, SCHEMA, [f"X{i}" for i in range(7)])


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_gene_names_that_are_not_unique_cannot_be_matched() -> None:
    adata = made_cells()
    adata.var_names = ["gene 0"] * 2 + [f"gene {i}" for i in range(2, N_GENES)]
    with pytest.raises(InputError, match=r"^gene names .*are not unique .*twice.*: run "):
        matched(adata, ["gene 0", "gene 2"])


# --- values


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(sparse: bool, bad: float) -> None:
    adata = made_cells(sparse)
    (adata.X.data if sparse else adata.X[5])[3] = bad
    with pytest.raises(InputError, match=r"^X .*holds NaN or infinite values: "):
        CellTable.from_anndata(adata, SCHEMA)


def test_data_without_cells_genes_or_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"^there are 0 cells and 8 genes in the data: "):
        as_matrix(made_cells()[:0])
    with pytest.raises(InputError, match=r"^there are 60 cells and 0 genes in the data: "):
        as_matrix(made_cells()[:, :0])
    empty = ad.AnnData(obs=made_obs(), var=made_cells().var)
    with pytest.raises(InputError, match=r"^X of the data is missing: put the values to use into X$"):
        as_matrix(empty)
    empty.layers["counts"] = made_cells().X
    with pytest.raises(InputError, match=r"^X of the data is missing: put .* into X, or let .* by --layer counts$"):
        as_matrix(empty)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_a_sparse_matrix_of_any_order_is_read_and_left_as_it_is(dtype: type) -> None:
    """scipy sorts indices in place: where they are shared and the values are not, values change their genes."""
    counts = np.random.default_rng(0).poisson(1.0, (50, 30))
    unsorted = sp.csr_matrix(counts.astype(dtype))[:, np.random.default_rng(1).permutation(30)]
    assert not unsorted.has_sorted_indices
    expected = unsorted.toarray()
    adata = ad.AnnData(unsorted)
    cells = as_matrix(adata)
    np.testing.assert_array_equal(cells.toarray(), expected)
    abs(cells).sum(axis=1), cells.max(axis=0), np.expm1(cells).sum(axis=0)  # what sorts
    np.testing.assert_array_equal(cells.toarray(), expected)
    np.testing.assert_array_equal(adata.X.toarray(), expected)


def test_values_that_are_stored_twice_are_summed_once() -> None:
    twice = sp.csr_matrix((np.ones(3, dtype=np.float32), [1, 1, 0], [0, 3]), shape=(1, 2))
    cells = as_matrix(ad.AnnData(twice))
    assert cells.toarray().tolist() == [[1.0, 2.0]]
    assert cells.nnz == 2
    assert twice.nnz == 3


@pytest.mark.parametrize("kind", [complex, object, "U5"])
def test_values_that_are_no_real_numbers_are_refused(kind: object) -> None:
    bad = ad.AnnData(dense(made_cells()).astype(kind), obs=made_obs())
    with pytest.raises(InputError, match=r"^X holds values of type .*: it must hold real numbers$"):
        as_matrix(bad)


def test_what_float32_cannot_hold_is_found_as_infinite() -> None:
    cells = dense(made_cells()).astype(np.float64)
    cells[3, 2] = 1e300
    assert np.isinf(as_matrix(ad.AnnData(cells))[3, 2])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pd.Series([0.1, 10.6, 3.0], dtype="float32"), ["0.1", "10.6", "3.0"]),
        (pd.Series([0.1, np.nan], dtype="float64"), ["0.1", ""]),
        (pd.Series([1.0, 2.0, np.nan]), ["1", "2", ""]),
        (pd.Series([1.0, 2.0]).astype("category"), ["1", "2"]),
        (pd.Series([0.5, None], dtype="float32").astype("category"), ["0.5", ""]),
        (pd.Series(["1.0", None, "x"]).astype("category"), ["1.0", "", "x"]),
        (pd.Series([True, False]), ["True", "False"]),
        (pd.Series([3, None], dtype="Int64"), ["3", ""]),
    ],
)
def test_a_column_is_read_as_a_person_would_type_it(column: pd.Series, expected: list[str]) -> None:
    assert as_text(column).tolist() == expected


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.asarray, lambda x: x.astype(int)])
def test_every_kind_of_matrix_gives_the_same_cells(kind: type) -> None:
    cells = dense(made_cells())
    found = as_matrix(ad.AnnData(kind(cells)))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray() if sp.issparse(found) else found, cells)


# --- populations


def canonical(row: pd.Series) -> tuple[str, str, float]:
    """The key of a row, written for these data alone."""
    dose = "" if row["condition"] == "ctrl" else f"{float(row['dose']):g}"
    name = {"ctrl": "", "A": f"A @ {dose}", "A+B": f"A @ {dose} + B @ {dose}", "B+A": f"A @ {dose} + B @ {dose}"}
    return f"{row['type']} | {row['donor']}", name[row["condition"]], row["day"]


def test_rows_are_grouped_as_pandas_groups_them() -> None:
    obs = made_obs()
    population, keys, parts = group_rows(obs, SCHEMA)
    groups = obs.reset_index(drop=True).groupby(obs.reset_index(drop=True).apply(canonical, axis=1)).indices
    assert len(keys) == len(set(keys)) == len(parts)
    assert {key: np.flatnonzero(population == i).tolist() for i, key in enumerate(keys)} == {
        key: rows.tolist() for key, rows in groups.items()
    }
    for (_, condition, _), described in zip(keys, parts, strict=True):
        assert " + ".join(map(str, described)) == condition


def test_without_a_schema_all_cells_are_one_population() -> None:
    population, keys, parts = group_rows(made_obs(), Schema())
    assert (set(population.tolist()), keys, parts) == ({0}, (("", "", None),), ((),))


@pytest.mark.parametrize("column", ["condition", "type", "day"])
def test_empty_values_are_counted_and_refused(column: str) -> None:
    obs = made_obs()
    obs[column] = obs[column].astype(object)
    obs.iloc[[3, 7], obs.columns.get_loc(column)] = None
    with pytest.raises(InputError, match=f"^column '{column}' of obs has 2 empty values: "):
        group_rows(obs, SCHEMA)


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"^column 'day' is missing in the queries: it has type, donor$"):
        require_columns(made_obs()[["type", "donor"]], ["type", "day"], "the queries")
    with pytest.raises(InputError, match=r"^column 'condition' is missing in obs: it has none$"):
        group_rows(pd.DataFrame(index=["a"]), SCHEMA)


def test_only_the_smiles_may_be_left_out() -> None:
    schema = Schema(condition_key="drug", control="DMSO", smiles_key="smiles", dose_key="dose")
    _, keys, parts = group_rows(pd.DataFrame({"drug": ["x"], "dose": [2]}), schema)
    assert keys == (("", "x @ 2", None),)
    assert parts[0][0].smiles is None
    with pytest.raises(InputError, match="column 'dose' is missing"):
        group_rows(pd.DataFrame({"drug": ["x"], "smiles": ["CCO"]}), schema)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("1.2.3-4", "time '1.2.3-4' in column 'day' is not a number"),
        ("noon", "'noon' in column 'day' is not a number"),
        ("inf", "is not a number"),
        ("1_0", "time '1_0' in column 'day' is not a number"),
        ("\uff11-\uff13", "is not a number"),
    ],
)
def test_a_time_that_is_no_time_is_refused(time: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        group_rows(pd.DataFrame({"day": ["1", time]}), Schema(time_key="day"))


# --- fingerprint


@pytest.mark.parametrize(
    ("written", "time"),
    [("330-390", 360.0), ("< 100", 100.0), ("> 650", 650.0), ("1.5 to 2", 1.75), ("-4--2", -3.0), ("-4", -4.0)],
)
def test_a_range_of_times_is_its_middle_and_an_open_one_its_end(written: str, time: float) -> None:
    _, keys, _ = group_rows(pd.DataFrame({"bin": [written]}), Schema(time_key="bin"))
    assert keys == (("", "", time),)


@pytest.mark.parametrize("others", [["> 450"], ["450"], ["400-500"], ["330-390", "> 450"]])
def test_an_open_time_that_is_the_number_of_another_is_refused(others: list[str]) -> None:
    """Recorded: cells before and after one time were one population."""
    table = pd.DataFrame({"bin": ["< 450", *others]})
    assert len(group_rows(pd.DataFrame({"bin": ["< 450", "<450", "> 500"]}), Schema(time_key="bin"))[1]) == 2
    with pytest.raises(InputError, match=r"^times '<450' and '.*' in column 'bin' of obs are one number: write"):
        group_rows(table, Schema(time_key="bin"))


@pytest.mark.parametrize("sparse", [True, False])
def test_equal_tables_have_equal_fingerprints(sparse: bool) -> None:
    one, other = (CellTable.from_anndata(made_cells(sparse), SCHEMA).fingerprint() for _ in range(2))
    assert one == other


def change_value(adata: ad.AnnData) -> None:
    (adata.X.data if sp.issparse(adata.X) else adata.X[4])[4] += np.float32(1e-6)


def change_place(adata: ad.AnnData) -> None:
    """Two neighbouring genes of a cell, of which one is zero, swap their values."""
    row = dense(adata)[4]
    at = next(i for i in range(N_GENES - 1) if (row[i] == 0) != (row[i + 1] == 0))
    adata.X[4, at], adata.X[4, at + 1] = row[at + 1], row[at]
    if sp.issparse(adata.X):
        adata.X.eliminate_zeros()


def change_gene(adata: ad.AnnData) -> None:
    adata.var_names = [*adata.var_names[:-1], "another"]


def change_name(adata: ad.AnnData) -> None:
    adata.obs_names = [*adata.obs_names[:-1], "another"]


def change_population(adata: ad.AnnData) -> None:
    """The last cell moves to the population of the first; the populations there are stay the same."""
    adata.obs.iloc[-1] = adata.obs.iloc[0]


def rename_population(adata: ad.AnnData) -> None:
    adata.obs["type"] = adata.obs["type"].map({"T": "T", "B": "NK"})


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize(
    "change", [change_value, change_place, change_gene, change_name, change_population, rename_population]
)
@pytest.mark.filterwarnings("ignore:Changing the sparsity structure")
def test_one_change_changes_the_fingerprint(sparse: bool, change: type) -> None:
    changed = made_cells(sparse)
    change(changed)
    before, after = (CellTable.from_anndata(a, SCHEMA).fingerprint() for a in (made_cells(sparse), changed))
    assert before != after


# --- files


def test_what_is_written_is_read_backed_and_brought_into_memory(tmp_path: Path) -> None:
    """Recorded: the file held an empty raw, which anndata's backed reader does not find."""
    with_raw = logged()
    with_raw.raw = with_raw
    for name, cells in (("plain", logged()), ("raw", with_raw)):
        write_cells(tmp_path / f"{name}.h5ad", cells)
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        assert (backed.to_memory().raw is None) == (name == "plain")
        assert backed[:3].to_memory().n_obs == 3


def test_cells_are_read_from_a_path_a_backed_file_and_memory(tmp_path: Path) -> None:
    adata = made_cells()
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    backed = ad.read_h5ad(path, backed="r")
    expected = CellTable.from_anndata(adata, SCHEMA).fingerprint()
    for source in (path, str(path), backed, adata):
        assert CellTable.from_anndata(read_cells(source), SCHEMA).fingerprint() == expected
    backed.file.close()


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.h5ad does not exist or is not a file: "):
        read_cells(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("not HDF5")
    with pytest.raises(InputError, match=r"text\.h5ad cannot be read as an \.h5ad file: [^\n]*$"):
        read_cells(tmp_path / "text.h5ad")


@pytest.mark.parametrize(
    "values",
    [
        {"context_keys": 3},
        {"context_keys": "cell_type"},
        {"context_keys": np.array([1, 2])},
        {"condition_key": np.array(["a", "b"]), "control": "c"},
        {"fingerprint": np.array(["a", "b"])},
        {"another": 1},
    ],
)
def test_a_remembered_schema_that_was_changed_is_refused(values: dict[str, object], tmp_path: Path) -> None:
    adata = ad.AnnData(np.ones((2, 2), dtype=np.float32), uns={"squidiff_schema": values})
    adata.write_h5ad(tmp_path / "a.h5ad")
    for read in (lambda: schema_of(adata, None), lambda: remembered_schema(tmp_path / "a.h5ad")):
        with pytest.raises(InputError, match=r"^uns\['squidiff_schema'\] of the data cannot be used: "):
            read()


def test_labels_do_not_depend_on_how_numbers_are_stored() -> None:
    schema = Schema(context_keys=("donor",))
    whole = group_rows(pd.DataFrame({"donor": [1, 2, 1]}), schema)
    with_point = group_rows(pd.DataFrame({"donor": [1.0, 2.0, 1.0]}), schema)
    assert whole[1] == with_point[1] == (("1", "", None), ("2", "", None))


def test_contexts_of_two_columns_do_not_collide() -> None:
    obs = pd.DataFrame({"a": ["x | y", "x"], "b": ["z", "y | z"]})
    assert len(group_rows(obs, Schema(context_keys=("a", "b")))[1]) == 2


def test_the_fingerprint_does_not_depend_on_how_cells_are_stored() -> None:
    values = np.array([[0.0, 1.5], [2.5, 0.0]], dtype=np.float32)
    stored_zeros = sp.csr_matrix((np.array([0.0, 1.5, 2.5], np.float32), [0, 1, 0], [0, 2, 3]), shape=(2, 2))
    kinds = (values, sp.csr_matrix(values), sp.csc_matrix(values), stored_zeros)
    obs = pd.DataFrame(index=["c1", "c2"])
    prints = {CellTable.from_anndata(ad.AnnData(kind, obs=obs), Schema()).fingerprint() for kind in kinds}
    assert len(prints) == 1


def test_whole_numbers_in_categories_may_be_missing_and_floats_huge() -> None:
    column = pd.Series(pd.Categorical.from_codes([1, -1, 0, 1], [3, 7]), index=list("abcd"), name="dose")
    assert as_text(column).to_dict() == {"a": "7", "b": "", "c": "3", "d": "7"}
    unused = pd.Series(pd.Categorical([2.0, None, 1.0], categories=[1.0, 1.5, 2.0]))
    assert as_text(unused).tolist() == ["2", "", "1"]
    assert as_text(pd.Series([1e300, 2.0, np.nan])).tolist() == ["1e+300", "2.0", ""]
    assert as_text(pd.Series(pd.Categorical([None, None]))).tolist() == ["", ""]
    assert as_text(pd.Series(pd.Categorical([True, None, False]))).tolist() == ["True", "", "False"]


def test_times_that_differ_by_rounding_are_one() -> None:
    keys = group_rows(pd.DataFrame({"day": [0.1 * 3, 0.3, 0.31]}), Schema(time_key="day"))[1]
    assert [key[2] for key in keys] == [0.3, 0.31]
