"""Cells come in as they were written, from every format, and what cannot be read is one sentence."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from squidiff.config import InputError
from squidiff.data.check import check
from squidiff.data.readers import FILE, read_file, read_files, with_values_of

COUNTS = np.random.default_rng(0).poisson(1.0, (7, 5)).astype(np.float32)
CELLS, GENES = [f"AAC{i}-1" for i in range(7)], ["ACTB", "CD3E", "CD19", "LYZ", "NKG7"]


def cells() -> ad.AnnData:
    return ad.AnnData(sp.csr_matrix(COUNTS), obs=pd.DataFrame(index=CELLS), var=pd.DataFrame(index=GENES))


def as_h5ad(folder: Path) -> Path:
    cells().write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def as_zarr(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata about the version of the format that it writes
        cells().write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def as_csv(folder: Path) -> Path:
    pd.DataFrame(COUNTS, CELLS, GENES).to_csv(folder / "cells.csv")
    return folder / "cells.csv"


def as_csv_gz(folder: Path) -> Path:
    pd.DataFrame(COUNTS, CELLS, GENES).to_csv(folder / "cells.csv.gz")
    return folder / "cells.csv.gz"


def as_tsv(folder: Path) -> Path:
    pd.DataFrame(COUNTS, CELLS, GENES).to_csv(folder / "cells.tsv", sep="\t")
    return folder / "cells.tsv"


def as_10x_folder(folder: Path) -> Path:
    """As Cell Ranger 3 and later write it: genes in rows, gzipped."""
    files = {
        "barcodes.tsv": "".join(f"{cell}\n" for cell in CELLS),
        "features.tsv": "".join(f"ENSG{i:011d}\t{gene}\tGene Expression\n" for i, gene in enumerate(GENES)),
    }
    for name, text in files.items():
        with gzip.open(folder / f"{name}.gz", "wt") as file:
            file.write(text)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as binary:
        scipy.io.mmwrite(binary, sp.coo_matrix(COUNTS.T.astype(int)))
    return folder


def as_starsolo_folder(folder: Path) -> Path:
    """The same, not compressed."""
    as_10x_folder(folder)
    for path in list(folder.glob("*.gz")):
        (folder / path.name.removesuffix(".gz")).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    return folder


def as_10x_h5(folder: Path) -> Path:
    """As Cell Ranger 3 and later write it: a CSC matrix of genes x cells."""
    matrix = sp.csc_matrix(COUNTS.T.astype(np.int32))
    with h5py.File(folder / "cells.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        group["shape"] = matrix.shape
        group["barcodes"] = np.array(CELLS, dtype="S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{i:011d}" for i in range(5)], dtype="S")
        features["name"] = np.array(GENES, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * 5, dtype="S")
        features["genome"] = np.array(["GRCh38"] * 5, dtype="S")
    return folder / "cells.h5"


WRITERS = [as_h5ad, as_zarr, as_csv, as_csv_gz, as_tsv, as_10x_folder, as_starsolo_folder, as_10x_h5]


@pytest.mark.parametrize("write", WRITERS, ids=[w.__name__ for w in WRITERS])
def test_every_format_gives_the_same_cells(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    found = read_file(path)
    np.testing.assert_array_equal(found.X.toarray() if sp.issparse(found.X) else found.X, COUNTS)
    assert list(found.obs_names) == CELLS
    assert list(found.var_names) == GENES
    assert check(path, normalize=True).errors == ()


def test_a_table_of_genes_by_cells_is_told() -> None:
    """Recorded: 300 genes were taken for cells, and a model was trained."""
    ids = [f"ENSG{i:011d}" for i in range(30)]
    for genes, barcodes in (
        (ids, [f"cell_{i}" for i in range(20)]),
        (
            [f"CD{i}A" for i in range(30)],
            ["".join(np.random.default_rng(i).choice(list("ACGT"), 16)) for i in range(20)],
        ),
    ):
        upright = ad.AnnData(np.random.default_rng(0).poisson(2.0, (20, 30)).astype(np.float32))
        upright.obs_names, upright.var_names = barcodes, genes
        found = [[f.what for f in check(of, normalize=True).findings] for of in (upright, upright.T)]
        assert [any("those of genes" in what for what in of) for of in found] == [False, True]


def test_a_loom_file_needs_its_package_or_is_read(tmp_path: Path) -> None:
    try:
        cells().write_loom(tmp_path / "cells.loom")
    except ImportError:
        (tmp_path / "cells.loom").write_bytes(as_h5ad(tmp_path).read_bytes())
        with pytest.raises(InputError, match=r"cells.loom needs a package to be read: .*loompy"):
            read_file(tmp_path / "cells.loom")
        return
    np.testing.assert_array_equal(read_file(tmp_path / "cells.loom").X.toarray(), COUNTS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.h5ad", None, "does not exist or is not a file"),
        ("text.h5ad", b"cells", r"text.h5ad cannot be read as an .h5ad file: it is of another format"),
        ("zipped.h5ad.gz", b"\x1f\x8b", r"zipped.h5ad.gz cannot be read as an .h5ad file"),
        ("words.csv", b"cell,a,b\nx,1,much\n", "words.csv is no table of numbers"),
        ("empty.csv", b"", r"empty.csv cannot be read as a .csv file"),
        ("bare.mtx", b"%%MatrixMarket", "bare.mtx has no names of cells and genes"),
        ("cut.csv.gz", b"\x1f\x8b\x08", r"cut.csv.gz cannot be read as a .csv file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_file(tmp_path / name)
    with pytest.raises(InputError, match="nor a folder that holds cells"):
        read_file(tmp_path)


def test_an_hdf5_file_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.arange(3)
    with pytest.raises(InputError, match=r"other.h5 cannot be read as an .h5 file"):
        read_file(tmp_path / "other.h5")


def test_several_files_are_joined_by_gene_name(tmp_path: Path) -> None:
    one, other = cells(), cells()[:4, ["LYZ", "ACTB", "CD19"]].copy()
    other.var_names = ["LYZ", "ACTB", "XIST"]
    one.write_h5ad(tmp_path / "one.h5ad")
    other.write_h5ad(tmp_path / "other.h5ad")
    paths = [tmp_path / "one.h5ad", tmp_path / "other.h5ad"]
    inner, outer = (read_files(paths, join)[0] for join in ("inner", "outer"))
    assert list(inner.var_names) == ["ACTB", "LYZ"]
    np.testing.assert_array_equal(inner[7:].X.toarray(), COUNTS[:4][:, [0, 3]])
    assert set(outer.var_names) == {*GENES, "XIST"}
    assert outer[:7, "XIST"].X.sum() == 0
    np.testing.assert_array_equal(outer[7:, "XIST"].X.toarray().ravel(), COUNTS[:4, 2])
    assert outer.obs[FILE].tolist() == ["one"] * 7 + ["other"] * 4
    assert outer.obs_names.is_unique
    assert outer.obs_names[0] == "AAC0-1-one"
    other.var_names = ["a", "b", "c"]
    other.write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(InputError, match="the files one, other share no gene"):
        read_files(paths)
    with pytest.raises(InputError, match="a file is named twice"):
        read_files([paths[0], paths[0]])


def test_x_may_be_taken_from_a_layer_or_from_raw() -> None:
    adata = cells()
    adata.layers["counts"] = adata.X * 2
    adata.raw = adata
    few = adata[:, :3].copy()
    np.testing.assert_array_equal(with_values_of(few, "counts", False).X.toarray(), COUNTS[:, :3] * 2)
    np.testing.assert_array_equal(with_values_of(few, None, True).X.toarray(), COUNTS)
    assert with_values_of(few, None, False) is few
    np.testing.assert_array_equal(few.X.toarray(), COUNTS[:, :3])
    with pytest.raises(InputError, match="there is no layer 'spliced': the layers are counts"):
        with_values_of(few, "spliced", False)
    with pytest.raises(InputError, match=r"there is no \.raw"):
        with_values_of(cells(), None, True)


def test_names_in_a_table_are_taken_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_text("cell,TP53,1,TP53\n001,1,2,3\nNA,4,5,6\n1e3,7,8,\n")
    cells = read_file(tmp_path / "cells.csv")
    assert list(cells.var_names) == ["TP53", "1", "TP53"]
    assert list(cells.obs_names) == ["001", "NA", "1e3"]
    np.testing.assert_array_equal(cells.X.toarray(), [[1, 2, 3], [4, 5, 6], [7, 8, np.nan]])
    assert {"duplicate gene names, such as 'TP53'", "NaN or infinite values"} <= {
        f.what for f in check(tmp_path / "cells.csv").findings
    }
    (tmp_path / "r.tsv").write_text("a\tb\nx\t1\t2\ny\t3\t4\n")  # as R's write.table has it
    cells = read_file(tmp_path / "r.tsv")
    assert (list(cells.obs_names), list(cells.var_names)) == (["x", "y"], ["a", "b"])


def test_joining_keeps_the_columns_that_one_file_alone_has(tmp_path: Path) -> None:
    for name, columns in (("one", {"condition": "A", "dose": 2.0}), ("two", {"condition": "ctrl"})):
        obs = pd.DataFrame(columns, index=[f"{name} {i}" for i in range(3)])
        ad.AnnData(np.ones((3, 2), np.float32), obs=obs).write_h5ad(tmp_path / f"{name}.h5ad")
    for join in ("inner", "outer"):
        obs = read_files([tmp_path / "one.h5ad", tmp_path / "two.h5ad"], join)[0].obs  # type: ignore[arg-type]
        assert obs["dose"].tolist()[:3] == [2.0, 2.0, 2.0]
        assert obs["dose"].isna().tolist() == [False] * 3 + [True] * 3
        assert obs["condition"].tolist() == ["A"] * 3 + ["ctrl"] * 3
        assert obs["file"].tolist() == ["one"] * 3 + ["two"] * 3


def two_files(folder: Path, **changes: Any) -> list[Path]:
    paths = []
    for name in ("one", "two"):
        x = np.random.default_rng(len(paths)).poisson(3.0, (5, 4)).astype(np.float32)
        obs = pd.DataFrame({"file": name.upper()}, index=[f"{name}{i}" for i in range(5)])
        made = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=list("abcd")))
        if name == "one":
            made.raw = made.copy()
        if name == "two" and changes.get("logged"):
            made.X = np.log1p(made.X)
        if name == "one" and changes.get("layer"):
            made.layers["counts"] = made.X
        paths.append(folder / f"{name}.h5ad")
        made.write_h5ad(paths[-1])
    return paths


def test_counts_and_logarithms_are_not_joined(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^one holds raw counts and two does not: bring them into one unit$"):
        read_files(two_files(tmp_path, logged=True))


def test_a_column_of_the_users_stays_beside_that_of_the_files(tmp_path: Path) -> None:
    joined, said = read_files(two_files(tmp_path))
    assert joined.obs["file"].tolist() == ["ONE"] * 5 + ["TWO"] * 5
    assert joined.obs["file_joined"].tolist() == ["one"] * 5 + ["two"] * 5
    assert said == "joined the 4 genes that all files have: 4 of one, 4 of two"


def test_a_layer_that_one_of_the_files_lacks_is_said_with_the_file(tmp_path: Path) -> None:
    paths = two_files(tmp_path, layer=True)
    with pytest.raises(InputError, match=r"two\.h5ad: there is no layer 'counts': the layers are none$"):
        read_files(paths, layer="counts")


def test_a_cell_keeps_its_total_of_all_genes_when_files_share_some(tmp_path: Path) -> None:
    paths = two_files(tmp_path)
    other = ad.read_h5ad(paths[1])
    other.var_names = list("abcz")
    other.write_h5ad(paths[1])
    joined, said = read_files(paths)
    assert list(joined.var_names) == list("abc")
    totals = np.concatenate([ad.read_h5ad(path).X.sum(axis=1) for path in paths])
    np.testing.assert_array_equal(joined.obs["n_counts_before_join"], totals)
    assert said == "joined the 3 genes that all files have: 4 of one, 4 of two"
    assert "n_counts_before_join" not in read_files(paths, "outer")[0].obs


def test_a_table_whose_first_column_is_a_gene_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n0,1\n1,0\n", encoding="utf-8")
    with pytest.raises(InputError, match="has no names of cells: its first column must hold them"):
        read_file(tmp_path / "t.csv")
