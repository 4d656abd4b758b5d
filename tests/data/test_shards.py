"""A folder of shards is the data set that was written, once it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from squidiff.config import InputError
from squidiff.data.readers import SHARDS
from squidiff.data.shards import join, write_shards
from squidiff.data.table import read_cells, write_cells


def parts(sizes: list[int]) -> Iterator[ad.AnnData]:
    rng = np.random.default_rng(0)
    for i, n in enumerate(sizes):
        obs = pd.DataFrame({"condition": f"drug {i}", "n": i}, index=[f"{i}-{j}" for j in range(n)])
        part = ad.AnnData(sp.csr_matrix(rng.poisson(1.0, (n, 3)).astype(np.float32)), obs=obs)
        part.obsm["X_z_sem"] = rng.random((n, 2), dtype=np.float32)
        part.uns["made"] = {"seed": 1}
        yield part


@pytest.mark.parametrize("size", [1, 5, 7, 100])
def test_shards_are_read_as_the_whole(size: int, tmp_path: Path) -> None:
    sizes = [3, 4, 2, 6]
    assert write_shards(tmp_path / "out", parts(sizes), size) == 15
    found, whole = read_cells(tmp_path / "out"), join(parts(sizes))
    np.testing.assert_array_equal(found.X.toarray(), whole.X.toarray())
    np.testing.assert_array_equal(found.obsm["X_z_sem"], whole.obsm["X_z_sem"])
    assert found.obs.astype(str).equals(whole.obs.astype(str))
    assert found.uns["made"]["seed"] == 1
    shards = [read_cells(file).n_obs for file in sorted((tmp_path / "out").glob("*.h5ad"))]
    assert shards == {1: [1] * 15, 5: [5] * 3, 7: [7, 7, 1], 100: [15]}[size]


def test_a_shard_is_whole_when_the_next_part_is_made_and_an_unfinished_folder_is_no_data(tmp_path: Path) -> None:
    def broken() -> Iterator[ad.AnnData]:
        for i, part in enumerate(parts([4, 4, 4])):
            if i == 2:
                assert [path.name for path in sorted(tmp_path.iterdir())] == ["00000.h5ad", "00001.h5ad"]
                raise KeyboardInterrupt
            yield part

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, broken(), 4)
    assert read_cells(tmp_path / "00001.h5ad").n_obs == 4
    with pytest.raises(InputError, match=r"holds an unfinished prediction, without shards\.json"):
        read_cells(tmp_path)


def test_nothing_that_is_there_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("mine", "file"):
        with pytest.raises(InputError, match=rf"{name} is there already and not an empty folder: choose another"):
            write_shards(tmp_path / name, parts([2]), 1)


def test_a_list_of_shards_that_are_missing_or_no_list_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shards(folder, parts([2, 2]), 2)
    (folder / "00001.h5ad").unlink()
    with pytest.raises(InputError, match=r"00001.h5ad does not exist"):
        read_cells(folder)
    write_cells(tmp_path / "00000.h5ad", read_cells(folder / "00000.h5ad"))
    elsewhere = ["../00000.h5ad", str(tmp_path / "00000.h5ad"), ".", "00000.h5ad\0"]
    lists = [json.dumps({"files": [name], "n_cells": 2}) for name in elsewhere]
    lists += [json.dumps({"files": ["00000.h5ad"] * 2, "n_cells": 4})]
    for text in ("[]", "{}", '{"files": 3}', '{"files": []}', "{", *lists):
        (folder / SHARDS).write_text(text)
        with pytest.raises(InputError, match=r"does not list the files of a prediction|is not valid JSON"):
            read_cells(folder)
    (folder / SHARDS).write_text('{"files": ["00000.h5ad"], "n_cells": 4}')
    with pytest.raises(InputError, match="does not hold the cells and genes that its"):
        read_cells(folder)
