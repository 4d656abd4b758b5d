"""Cells in a file are those in memory: rows, genes and units, and what one pass tells of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from squidiff.config import InputError, Schema
from squidiff.data import matrix, readers
from squidiff.data.check import check
from squidiff.data.matrix import CellsOnDisk, Loaded, as_matrix, blocks, dense, of_genes, scale_and_log
from squidiff.data.survey import Survey, survey
from squidiff.data.table import CellTable, open_cells, read_cells
from squidiff.response.populations import Population, Populations

SCHEMA = Schema()
N_CELLS, N_GENES = 53, 12
COUNTS = np.random.default_rng(0).poisson(0.7, (N_CELLS, N_GENES))


def made(X: np.ndarray | sp.spmatrix) -> ad.AnnData:
    obs = pd.DataFrame({"total": COUNTS.sum(axis=1) + 1.0}, index=[f"c{i}" for i in range(X.shape[0])])
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(X.shape[1])]))


def in_any_order() -> sp.csr_matrix:
    """CSR whose indices are not sorted, and some of whose values are stored in two parts."""
    cells = sp.csr_matrix(COUNTS.astype(np.float32))
    rows = [np.repeat(np.arange(N_CELLS), np.diff(cells.indptr))[::-1]] * 2
    halves = sp.coo_matrix((np.tile(cells.data[::-1] / 2, 2), (np.concatenate(rows), np.tile(cells.indices[::-1], 2))))
    order = np.argsort(halves.row, kind="stable")
    unsorted = sp.csr_matrix(cells.shape, dtype=np.float32)
    unsorted.data, unsorted.indices = halves.data[order].astype(np.float32), halves.col[order].astype(np.int32)
    unsorted.indptr = 2 * cells.indptr
    return unsorted


KINDS: dict[str, Callable[[Path], Path]] = {
    "csr": lambda folder: written(made(sp.csr_matrix(COUNTS.astype(np.float32))), folder / "cells.h5ad"),
    "whole numbers": lambda folder: written(made(sp.csr_matrix(COUNTS.astype(np.int64))), folder / "cells.h5ad"),
    "packed": lambda folder: written(made(sp.csr_matrix(COUNTS * 1.0)), folder / "cells.h5ad", compression="gzip"),
    "any order": lambda folder: written(made(in_any_order()), folder / "cells.h5ad"),
    "dense": lambda folder: written(made(COUNTS.astype(np.float64)), folder / "cells.h5ad"),
    "zarr, csr": lambda folder: written(made(sp.csr_matrix(COUNTS.astype(np.float32))), folder / "cells.zarr"),
    "zarr, dense": lambda folder: written(made(COUNTS.astype(np.float32)), folder / "cells.zarr"),
}


def written(adata: ad.AnnData, path: Path, **options: str) -> Path:
    if path.suffix == ".zarr":
        with readers.quiet_about_names(), pytest.warns(UserWarning, match="zarr v2"):
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path, **options)
    return path


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return KINDS[request.param](tmp_path)


def on_disk(path: Path) -> CellsOnDisk:
    cells = as_matrix(open_cells(path, on_disk=True), str(path))
    assert isinstance(cells, CellsOnDisk)
    return cells


# --- rows


@pytest.mark.parametrize("rows", [[3], [5, 1, 40], [7, 7, 2, 7], list(range(N_CELLS))[::-1], list(range(10, 30))])
def test_rows_come_in_the_order_that_is_asked_for(path: Path, rows: list[int]) -> None:
    cells = on_disk(path)
    np.testing.assert_array_equal(dense(cells, np.array(rows)), COUNTS[rows])
    assert dense(cells, np.array(rows)).dtype == np.float32
    loaded = Loaded.of(cells, np.array([*rows, 50, 11]))
    np.testing.assert_array_equal(dense(loaded, np.array(rows)), COUNTS[rows])
    assert loaded.cells.shape[0] == len({*rows, 50, 11})


def test_blocks_are_all_cells_whatever_holds_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "ROWS_AT_ONCE", 20)
    for cells in (on_disk(path), as_matrix(read_cells(path))):
        parts = [block.toarray() if sp.issparse(block) else block for block in blocks(cells)]
        assert [len(part) for part in parts] == [20, 20, 13]
        np.testing.assert_array_equal(np.concatenate(parts), COUNTS)
    assert all(block.has_canonical_format for block in blocks(on_disk(path)) if sp.issparse(block))
    monkeypatch.setattr(matrix, "VALUES_AT_ONCE", 5 * N_GENES)
    assert {block.shape[0] for block in blocks(on_disk(path))} == {5, 3}


def test_genes_and_units_are_those_in_memory_bit_by_bit(path: Path) -> None:
    order, factor = np.array([7, 0, 3]), np.linspace(0.5, 1e4, N_CELLS).astype(np.float32)
    rows = np.array([30, 2, 2, 17])
    there, here = on_disk(path), as_matrix(read_cells(path))
    for make in (
        lambda cells: of_genes(cells, order),
        lambda cells: scale_and_log(cells, factor),
        lambda cells: scale_and_log(of_genes(of_genes(cells, order[::-1]), np.array([2, 0])), factor),
        lambda cells: of_genes(scale_and_log(cells, factor), order),
    ):
        assert make(there).shape == make(here).shape
        np.testing.assert_array_equal(dense(make(there), rows), dense(make(here), rows))
    scaled = np.log1p(COUNTS[rows][:, order] * factor[rows, None].astype(np.float64))
    np.testing.assert_allclose(dense(scale_and_log(of_genes(there, order), factor), rows), scaled, rtol=1e-6)


# --- one pass


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 5)),
        elements=st.sampled_from([0, 0, 0, 1, 2, 7, 0.5, 21, -1, 2**24, np.inf, np.nan]),
    ),
    st.booleans(),
    st.integers(1, 10),
)
def test_a_survey_says_what_the_whole_matrix_says_whatever_the_blocks(X: np.ndarray, sparse: bool, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "ROWS_AT_ONCE", size)
        found = survey(sp.csr_matrix(X) if sparse else X)
    finite = np.isfinite(X).all()
    assert found.n_bad == (~np.isfinite(X)).sum()
    assert found.n_nonzero == np.count_nonzero(X)
    assert (found.n_negative, found.n_large) == ((X < 0).sum(), (X > 20).sum())
    assert found.n_expressed.tolist() == (X != 0).sum(axis=1).tolist()
    if finite:
        assert found.is_whole == (X % 1 == 0).all()
        np.testing.assert_array_equal(found.lowest, X.min(axis=0))
        np.testing.assert_array_equal(found.highest, X.max(axis=0))
        np.testing.assert_allclose(found.totals, X.sum(axis=1, dtype=float), rtol=1e-6)
        expected = (X >= 0).all() and (X % 1 == 0).all() and 1 < X.max() < 2**24
        assert found.looks_like_counts == expected
    assert (found.total_counts is None) == (not finite or bool((X < 0).any()))
    if finite and found.total_counts is not None and X.max() < 30:
        np.testing.assert_allclose(found.total_counts, np.expm1(X.astype(float)).sum(axis=1), rtol=1e-5)


def test_a_survey_a_fingerprint_and_means_are_the_same_on_disk_bit_by_bit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "ROWS_AT_ONCE", 20)
    tables = [CellTable.from_anndata(open_cells(path, on_disk=where), SCHEMA) for where in (True, False)]
    there, here = (table.survey for table in tables)
    for field in fields(Survey):
        np.testing.assert_array_equal(getattr(there, field.name), getattr(here, field.name))
    assert tables[0].fingerprint() == tables[1].fingerprint()
    population, keys = np.arange(N_CELLS) % 3, tuple(Population("", name, None) for name in "abc")
    means = [Populations.summarise(t.blocks(), population, keys, np.zeros((3, 1)), False) for t in tables]
    np.testing.assert_array_equal(means[0].mean, means[1].mean)
    np.testing.assert_array_equal(means[0].zero_fraction, means[1].zero_fraction)
    np.testing.assert_allclose(means[0].mean[1], COUNTS[1::3].mean(axis=0))
    np.testing.assert_allclose(means[0].zero_fraction[2], (COUNTS[2::3] == 0).mean(axis=0), atol=1e-12)


# --- what stays on disk


def test_large_cells_stay_on_disk_and_small_ones_do_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(as_matrix(open_cells(path)), CellsOnDisk)
    X = as_matrix(read_cells(path))
    size = 8 * X.nnz if sp.issparse(X) else 4 * X.size
    monkeypatch.setattr(readers, "LARGEST_IN_MEMORY", size - 1)
    assert isinstance(as_matrix(open_cells(path)), CellsOnDisk)
    assert not isinstance(as_matrix(open_cells(path, on_disk=False)), CellsOnDisk)


def test_a_backed_anndata_stays_on_disk_and_a_part_of_it_does_not(tmp_path: Path) -> None:
    path = KINDS["csr"](tmp_path)
    backed = ad.read_h5ad(path, backed="r")
    cells = open_cells(backed)
    assert isinstance(as_matrix(cells), CellsOnDisk)
    assert list(cells.obs_names) == list(backed.obs_names)
    np.testing.assert_array_equal(dense(as_matrix(cells), np.arange(N_CELLS)), COUNTS)
    for other in (open_cells(backed, on_disk=False), open_cells(backed[:7])):
        assert isinstance(other.X, sp.csr_matrix)
    assert open_cells(backed[:7]).n_obs == 7
    backed.file.close()


def test_cells_that_cannot_be_read_by_rows_are_read_whole_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csc = written(made(sp.csc_matrix(COUNTS.astype(np.float32))), tmp_path / "columns.h5ad")
    made(COUNTS).to_df().to_csv(tmp_path / "table.csv")
    monkeypatch.setattr(readers, "LARGEST_IN_MEMORY", 0)
    for path in (csc, tmp_path / "table.csv"):
        np.testing.assert_array_equal(dense(as_matrix(open_cells(path)), np.arange(N_CELLS)), COUNTS)
        with pytest.raises(InputError, match=rf"X of .*{path.name} cannot stay on disk: that takes an .h5ad file or"):
            open_cells(path, on_disk=True)
    backed = ad.read_h5ad(csc, backed="r")
    assert sp.issparse(open_cells(backed).X)
    backed.file.close()
    with pytest.raises(InputError, match="the data are in memory already: pass a path"):
        open_cells(made(COUNTS), on_disk=True)
    with pytest.raises(InputError, match=r"none.h5ad does not exist or is not a file"):
        open_cells(tmp_path / "none.h5ad", on_disk=True)


def test_damage_that_is_met_late_names_the_file(tmp_path: Path) -> None:
    path = KINDS["packed"](tmp_path)
    whole = path.read_bytes()
    cells = on_disk(path)
    with cells.stored.group.file as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    path.write_bytes(whole[: chunk.byte_offset] + b"\xff" * chunk.size + whole[chunk.byte_offset + chunk.size :])
    with pytest.raises(InputError, match=r"X of .*cells.h5ad cannot be read \(.*\): the file was damaged or removed"):
        on_disk(path)[np.arange(5)]


def test_files_without_a_version_at_their_root_stay_on_disk_and_a_missing_x_is_said(tmp_path: Path) -> None:
    path = KINDS["csr"](tmp_path)
    with h5py.File(path, "r+") as file:
        for name in list(file.attrs):
            del file.attrs[name]
    np.testing.assert_array_equal(dense(on_disk(path), np.arange(N_CELLS)), COUNTS)
    with h5py.File(path, "r+") as file:
        del file["X"]
    for source in (path, ad.read_h5ad(path, backed="r")):
        for where in (True, None, False):
            with pytest.raises(InputError, match=r"^X of the data is missing"):
                as_matrix(open_cells(source, on_disk=where))
        assert ["is missing: put the values" in finding.remedy for finding in check(source).errors] == [True]
