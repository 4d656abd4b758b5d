"""Cells from the formats that they come in, through the ecosystem's own readers."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr

from squidiff.config import InputError
from squidiff.data.matrix import as_matrix
from squidiff.data.stamp import require_all_chunks, require_whole
from squidiff.data.survey import survey
from squidiff.files import read_json

FORMATS = ".h5ad, .zarr, .loom, 10x's .h5, a folder with matrix.mtx, .csv, .tsv or .txt (also .gz)"
LARGEST_IN_MEMORY = 2 * 10**9
"""Bytes of X: what is larger is read by rows from its file, if the user does not say otherwise."""
SHARDS = "shards.json"
"""Names the .h5ad files of a folder that hold one data set together."""
SHARD = re.compile(r"\d{5,}\.h5ad")
WRITTEN_NUMBER = r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?"
"""What is a number, and no name such as 01."""
FILE, TOTALS = "file", "n_counts_before_join"
"""obs columns of several files: which a cell is from, and its counts of all genes where only common ones are kept."""


@contextmanager
def quiet_about_names() -> Iterator[None]:
    """Without anndata's warnings of repeated names, of which the doctor speaks, and of files of its first format."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique")
        warnings.simplefilter("ignore", ad.OldFormatWarning)
        yield


def read_file(path: Path) -> ad.AnnData:
    """AnnData in memory. Raises InputError when the file is missing, of no known format, or damaged."""
    reader = _reader_of(path)
    with _reading(path):
        return reader(path)


def open_file(path: Path, on_disk: bool | None = None) -> ad.AnnData:
    """AnnData of X, obs, var and uns whose X stays in the file where `stays_on_disk`; else `read_file`."""
    if not stays_on_disk(path, on_disk):
        return read_file(path)
    with _reading(path):
        store = _store(path)
        tables = {name: ad.io.read_elem(store[name]) for name in ("obs", "var", "uns") if name in store}
        return ad.AnnData(X=_by_rows(store), **tables)


def noted(path: Path, name: str) -> Any:
    """What uns of an .h5ad file, zarr store or folder of shards holds under a name, None without; no cell is read."""
    with _reading(path):
        if (path / SHARDS).exists():
            path = next(iter(sorted(path.glob("*.h5ad"))), path)
        store = _store(path)
        return ad.io.read_elem(store["uns"][name]) if "uns" in store and name in store["uns"] else None


def stays_on_disk(path: Path, on_disk: bool | None = None) -> bool:
    """What `on_disk` says; with None, whether X is larger than LARGEST_IN_MEMORY and can be read by rows.

    Raises InputError as `read_file` does, and when X is to stay in a file from which rows cannot be read.
    """
    if on_disk is False:
        return False
    with _reading(path):
        store = _store(path)
        X = _by_rows(store)
        is_large = X is not None and _n_bytes(X) > LARGEST_IN_MEMORY
        is_missing = "obs" in store and "X" not in store  # which is said when X is asked for
    if on_disk and X is None and not is_missing:
        raise InputError(
            f"X of {path} cannot stay on disk: that takes an .h5ad file or a zarr store whose X is dense or CSR; write "
            "it as such, or leave --on-disk out"
        )
    return X is not None and bool(on_disk or is_large)


def _store(path: Path) -> Any:
    """An open .h5ad file or zarr store; empty for other formats."""
    reader = _reader_of(path)
    if reader is _read_zarr:
        return zarr.open_group(path, mode="r")
    return h5py.File(path) if reader is ad.read_h5ad else {}


def _by_rows(store: Any) -> Any:
    """The stored X, if rows can be read from it: dense, or CSR."""
    if "X" not in store or "obs" not in store or "encoding-type" not in store["obs"].attrs:  # anndata's first format
        return None
    stored = store["X"]
    X = stored if hasattr(stored, "dtype") else ad.io.sparse_dataset(stored)
    return None if isinstance(X, ad.abc.CSCDataset) else X


def _n_bytes(X: Any) -> int:
    """What X takes in memory, as float32 with indices of 32 bits."""
    return 8 * X.group["data"].shape[0] if isinstance(X, ad.abc.CSRDataset) else 4 * X.size


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what readers raise into an InputError that names the file."""
    try:
        with quiet_about_names(), warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))  # of readers about themselves
            yield
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{path} needs a package to be read: {error}; install it, or convert the file") from error
    except Exception as error:  # each reader raises many kinds, none of which means anything else to the user
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} cannot be read as {_kind(path)}: {reason}") from error


def read_files(
    paths: Sequence[Path],
    join: Literal["inner", "outer"] = "inner",
    layer: str | None = None,
    use_raw: bool = False,
) -> tuple[ad.AnnData, str]:
    """One file, or the cells of several with an obs column that names each cell's file; and what became of the genes.

    X is that of `with_values_of`. `inner` keeps the genes that all files have; `outer` keeps all, 0 where a file lacks
    one. Raises InputError when files share a name or, with `inner`, no gene, or when some hold raw counts and some do
    not.
    """
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError("a file is named twice: name each once")
    parts = {name: _chosen(path, layer, use_raw) for name, path in zip(names, paths, strict=True)}
    if len(parts) == 1:
        return next(iter(parts.values())), ""
    for name, part in parts.items():
        if not part.var_names.is_unique:
            raise InputError(f"gene names of {name} are not unique: run `adata.var_names_make_unique()` first")
        part.raw = None
    is_counts = _is_counts(parts)
    common = functools.reduce(pd.Index.intersection, (part.var_names for part in parts.values()))
    if is_counts and join == "inner" and any(part.n_vars > len(common) for part in parts.values()):
        for part in parts.values():  # a cell's total is that of all its genes, whichever are kept
            part.obs[TOTALS] = np.asarray(part.X.sum(axis=1), dtype=np.float64).ravel()
    label = FILE
    while any(label in part.obs for part in parts.values()):
        label = f"{label}_joined"  # the user's own column stays
    with quiet_about_names():
        joined = ad.concat(parts, join=join, label=label, merge="same", fill_value=0)
        # `join` is of genes; a column of one file alone is empty for the others' cells
        obs = {name: ad.AnnData(obs=part.obs) for name, part in parts.items()}
        joined.obs = ad.concat(obs, join="outer", label=label).obs
    if joined.n_vars == 0:
        raise InputError(f"the files {', '.join(names)} share no gene: bring their gene names into one kind")
    if not joined.obs_names.is_unique:
        joined.obs_names = [f"{cell}-{file}" for cell, file in zip(joined.obs_names, joined.obs[label], strict=True)]
    n_genes = ", ".join(f"{part.n_vars:,} of {name}" for name, part in parts.items())
    kept = "that all files have" if join == "inner" else "that any file has"
    return joined, f"joined the {joined.n_vars:,} genes {kept}: {n_genes}"


def _chosen(path: Path, layer: str | None, use_raw: bool) -> ad.AnnData:
    try:
        return with_values_of(read_file(path), layer, use_raw)
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _is_counts(parts: Mapping[str, ad.AnnData]) -> bool:
    """Whether the files hold raw counts. Raises InputError when some do: joined they would pass for neither."""
    is_so = {name: survey(as_matrix(part, name)).looks_like_counts for name, part in parts.items() if part.n_obs}
    if len(set(is_so.values())) > 1:
        counts, others = ([name for name, found in is_so.items() if found == wanted] for wanted in (True, False))
        raise InputError(
            f"{', '.join(counts)} hold{'s' if len(counts) == 1 else ''} raw counts and {', '.join(others)} "
            f"do{'es' if len(others) == 1 else ''} not: bring them into one unit"
        )
    return all(is_so.values())


def with_annotations(adata: ad.AnnData, path: Path) -> tuple[ad.AnnData, str]:
    """The cells that a table names in its first column, with its other columns in obs; and what became of them.

    Cells without a row are left out; a column that is there already is replaced. Raises InputError when the table
    cannot be read, names a cell twice, or names none.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give a .csv, .tsv or .txt table of cells")
    separator = _separator(path)
    with _reading(path):  # a label such as NA stays what it is
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_values=[""])
        if isinstance(table.index, pd.RangeIndex):  # else R left the corner out, and the names are the index
            table = table.set_index(table.columns[0])
        elif table.iloc[:, -1:].isna().to_numpy().all():
            raise InputError(f"{path} has rows of more fields than its header: name every column, also the first")
        table.index = pd.Index(table.index.astype(str)).str.strip()
    if not len(table.columns):
        raise InputError(f"{path} has no column but the cells' names: give their labels")
    if not table.index.is_unique or not adata.obs_names.is_unique:
        where, names = (path, table.index) if not table.index.is_unique else ("the data", adata.obs_names)
        raise InputError(f"cell {names[names.duplicated()][0]!r} stands twice in {where}: names must be unique")
    found = adata.obs_names.isin(table.index)
    if not found.any():
        here, there = (repr(names[0]) if len(names) else "none" for names in (adata.obs_names, table.index))
        raise InputError(
            f"{path} names none of the cells: its first column must hold their names, as {here}, but holds {there}"
        )
    adata = adata[found].copy()
    table = table.loc[adata.obs_names]
    for name in table:
        values = table[name]
        is_number = values.dropna().str.fullmatch(WRITTEN_NUMBER).all()
        adata.obs[str(name)] = (values.astype(float) if is_number else values).to_numpy()
    n_without = int((~found).sum())
    left_out = f"; {n_without:,} cells that it does not name are left out" if n_without else ""
    return adata, f"{table.shape[1]} columns of {path} describe {adata.n_obs:,} cells{left_out}"


def _separator(path: Path) -> str:
    return "," if path.name.removesuffix(".gz").endswith(".csv") else "\t"


def read_gene_list(path: Path) -> tuple[str, ...]:
    """The gene names of a text file, one a line. Raises InputError when it cannot be read or names one twice."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of gene names: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{path} names no gene: give one a line")
    for name in names:
        if "\t" in name or name[0] in "\"'":
            raise InputError(f"{path} holds the line {name!r}: give one bare name a line")
    require_unique(names, path)
    return names


def require_unique(genes: Sequence[str], path: Path) -> None:
    """Raises InputError that names a gene which stands there twice."""
    repeated = pd.Index(genes)[pd.Index(genes).duplicated()]
    if len(repeated):
        raise InputError(f"{path} names gene {repeated[0]!r} twice: names must be unique")


def with_values_of(adata: ad.AnnData, layer: str | None, use_raw: bool) -> ad.AnnData:
    """The data with X from a layer, or with X and genes of `.raw`. Raises InputError when it is not there."""
    if layer is not None:
        if layer not in adata.layers:
            there = ", ".join(map(str, adata.layers)) or "none"
            raise InputError(f"there is no layer {layer!r}: the layers are {there}")
        chosen = adata.copy()
        chosen.X = adata.layers[layer].copy()
        return chosen
    if use_raw:
        if adata.raw is None:
            raise InputError("there is no .raw: leave --use-raw out")
        raw = adata.raw.to_adata()
        raw.uns = adata.uns
        return raw
    return adata


def _reader_of(path: Path) -> Callable[[Path], ad.AnnData]:
    name = path.name.removesuffix(".gz")
    if path.is_dir():
        if (path / SHARDS).is_file():
            return _read_shards
        if path.suffix == ".zarr" or any((path / marker).exists() for marker in (".zgroup", "zarr.json")):
            return _read_zarr
        if any((path / f"matrix.mtx{end}").exists() for end in ("", ".gz")):
            return _read_10x_folder
        if any(SHARD.fullmatch(file.name) for file in path.iterdir()):
            raise InputError(f"{path} holds an unfinished prediction, without {SHARDS}: predict again, to a new folder")
        raise InputError(
            f"{path} does not exist or is not a file, nor a folder that holds cells: give one of {FORMATS}"
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give the path of an .h5ad file")
    path.open("rb").close()  # of a file that may not be read, h5py tells all but that
    if name.endswith((".csv", ".tsv", ".txt")):
        return _read_table
    if name.endswith(".loom"):
        return _read_loom
    if name.endswith(".mtx"):
        raise InputError(f"{path} has no names of cells and genes: give the folder that holds it and its .tsv files")
    if not h5py.is_hdf5(path):
        raise InputError(f"{path} cannot be read as an .h5ad file: it is of another format, or was cut")
    if name.endswith(".h5") and _is_10x(path):
        return _read_10x_h5
    return ad.read_h5ad


def _kind(path: Path) -> str:
    if path.is_dir():
        return "cells and genes"
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return f"{'an' if suffix in ('.h5ad', '.h5') else 'a'} {suffix or '.h5ad'} file"


def _is_10x(path: Path) -> bool:
    with h5py.File(path) as file:
        return "obs" not in file


def _read_10x_h5(path: Path) -> ad.AnnData:
    import scanpy as sc

    return sc.read_10x_h5(path)


def _read_10x_folder(path: Path) -> ad.AnnData:
    import scanpy as sc

    if not all((path / name).exists() for name in ("matrix.mtx", "features.tsv")):
        return sc.read_10x_mtx(path)
    # not compressed, as STARsolo leaves it, which scanpy does not read
    features, barcodes = (
        pd.read_csv(path / f"{name}.tsv", sep="\t", header=None, dtype=str) for name in ("features", "barcodes")
    )
    adata = ad.io.read_mtx(path / "matrix.mtx").T
    adata.X = sp.csr_matrix(adata.X)
    adata.obs_names, adata.var_names = barcodes[0].to_numpy(), features[min(1, features.shape[1] - 1)].to_numpy()
    adata.var["gene_ids"] = features[0].to_numpy()
    adata.var_names_make_unique()
    return adata


def _read_zarr(path: Path) -> ad.AnnData:
    store = zarr.open_group(path, mode="r")
    for name in ("X", *(f"layers/{layer}" for layer in store.get("layers", {}))):
        if name in store and not hasattr(store[name], "dtype"):
            require_whole(ad.io.sparse_dataset(store[name]), f"{name} of {path}")
    for table in ("obs", "var"):
        names = store[table].attrs.get("_index") if table in store else None
        if names in getattr(store.get(table), "keys", dict)():
            require_all_chunks(store[table][names], f"{table} of {path}")
    return ad.read_zarr(path)


def _read_shards(folder: Path) -> ad.AnnData:
    listed = read_json(folder / SHARDS)
    names = listed.get("files") if isinstance(listed, dict) else None
    is_list = isinstance(names, list) and all(isinstance(name, str) and SHARD.fullmatch(name) for name in names)
    if not names or not is_list or len(set(names)) < len(names):
        raise InputError(f"{folder / SHARDS} does not list the files of a prediction: predict again")
    parts = [read_file(folder / name) for name in names]
    n_cells = sum(part.n_obs for part in parts)
    if n_cells != listed.get("n_cells") or any(not part.var_names.equals(parts[0].var_names) for part in parts):
        raise InputError(f"{folder} does not hold the cells and genes that its {SHARDS} lists: predict again")
    return ad.concat(parts, uns_merge="first")


def _read_loom(path: Path) -> ad.AnnData:
    return ad.io.read_loom(path, validate=False)


def _read_table(path: Path) -> ad.AnnData:
    """Cells in rows, genes in columns; a first column of names. Names are taken as they are written."""
    separator = _separator(path)
    header = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False)
    table = pd.read_csv(path, sep=separator, header=None, skiprows=1, converters={0: str})
    cells = table.pop(0)
    if cells.duplicated().any() and pd.to_numeric(cells, errors="coerce").notna().all():
        raise InputError(
            f"{path} has no names of cells: its first column must hold them, but holds numbers that repeat"
        )
    genes = header.iloc[0].tolist()[header.shape[1] - table.shape[1] :]  # R leaves the corner out
    if table.empty or len(genes) != table.shape[1] or not all(kind.kind in "biuf" for kind in table.dtypes):
        raise InputError(
            f"{path} is no table of numbers: it must have a cell a row, its name first, and a gene a column"
        )
    obs, var = pd.DataFrame(index=pd.Index(cells.to_numpy())), pd.DataFrame(index=pd.Index(genes))
    return ad.AnnData(sp.csr_matrix(table.to_numpy(dtype="float32")), obs=obs, var=var)
