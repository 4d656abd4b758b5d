"""A file that changes under way is found: HDF5 and zarr give zeros for what is no longer there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from squidiff.config import InputError
from squidiff.data.check import check
from squidiff.data.matrix import CellsOnDisk, as_matrix, dense
from squidiff.data.readers import read_file
from squidiff.data.table import open_cells

N_CELLS, N_GENES = 4000, 300
pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")


def made(is_sparse: bool) -> ad.AnnData:
    """Large enough that HDF5 keeps no copy of it in its cache."""
    x = np.random.default_rng(0).poisson(1.0, (N_CELLS, N_GENES)).astype(np.float32) + np.float32(0.5)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(N_CELLS)])
    return ad.AnnData(sp.csr_matrix(x) if is_sparse else x, obs=obs)


def written(folder: Path, kind: str) -> tuple[Path, np.ndarray]:
    adata = made("csr" in kind)
    path = folder / ("cells.zarr" if "zarr" in kind else "cells.h5ad")
    adata.write_zarr(path) if "zarr" in kind else adata.write_h5ad(path)
    return path, adata.X.toarray() if "csr" in kind else adata.X


def opened(path: Path) -> CellsOnDisk:
    cells = as_matrix(open_cells(path, on_disk=True), str(path))
    assert isinstance(cells, CellsOnDisk)
    return cells


def truncate(path: Path) -> None:
    os.truncate(path, 100_000)


def overwrite(path: Path) -> None:
    whole = path.read_bytes()
    with path.open("r+b") as file:  # in place, and of the same size
        file.seek(len(whole) // 2)
        file.write(bytes(1000))


def remove_chunk(path: Path) -> None:
    chunks_of(path)[-1].unlink()


def chunks_of(path: Path) -> list[Path]:
    values = path / "X" / "data" if (path / "X" / "data").exists() else path / "X"
    return sorted(p for p in values.rglob("*") if p.is_file() and p.name[0] != "." and p.name != "zarr.json")


def change_chunk(path: Path) -> None:
    chunk = chunks_of(path)[-1]
    chunk.write_bytes(chunk.read_bytes())  # values in place, as another writer would


def write_anew(path: Path) -> None:
    shutil.rmtree(path)
    other = made((path / "X" / "indptr").exists())
    other.X = other.X * 2
    other.write_zarr(path)


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    *((kind, damage) for kind in ("csr h5ad", "dense h5ad") for damage in (truncate, overwrite)),
    *(
        (kind, damage)
        for kind in ("csr zarr", "dense zarr")
        for damage in (shutil.rmtree, remove_chunk, change_chunk, write_anew)
    ),
]


@pytest.mark.parametrize(("kind", "damage"), DAMAGE)
def test_values_of_a_file_that_changed_are_not_used(tmp_path: Path, kind: str, damage: Callable[[Path], None]) -> None:
    path, expected = written(tmp_path, kind)
    cells = opened(path)
    np.testing.assert_array_equal(dense(cells, np.arange(10)), expected[:10])
    damage(path)
    with pytest.raises(
        InputError, match=r"was changed while its cells were read|cannot be read \(.*damaged or removed"
    ):
        dense(cells, np.arange(N_CELLS - 10, N_CELLS))


@pytest.mark.parametrize("kind", ["csr h5ad", "dense h5ad"])
def test_a_file_that_was_deleted_or_replaced_by_another_is_read_to_its_end(tmp_path: Path, kind: str) -> None:
    path, expected = written(tmp_path, kind)
    cells = opened(path)
    path.unlink()
    path.write_text("another", encoding="utf-8")
    np.testing.assert_array_equal(dense(cells, np.arange(N_CELLS)), expected)


def test_a_store_that_lacks_values_from_the_start_is_damaged(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "csr zarr")
    n = len(chunks_of(path))
    remove_chunk(path)
    message = f"X of {path} is damaged: 1 of {n} chunks of data are missing"
    with pytest.raises(InputError, match=message):
        read_file(path)
    with pytest.raises(InputError, match="is damaged: 1 of"):
        opened(path)
    assert message in check(path).errors[0].remedy


@pytest.mark.parametrize("array", ["X/indices", "X/indptr", "obs/_index", "var/_index"])
def test_whichever_array_lacks_its_parts(tmp_path: Path, array: str) -> None:
    path, _ = written(tmp_path, "csr zarr")
    for part in (path / array).iterdir():
        if part.name[0] != "." and part.name != "zarr.json":
            part.unlink()
    with pytest.raises(InputError, match=f"{array[0]}.* is damaged: "):
        read_file(path)
    assert [f.what for f in check(path).errors] == ["unusable file"]
