"""The user's own vectors of condition parts (genes, drugs, stimuli), from CSV, .npz or the uns of an .h5ad file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from squidiff.config import InputError

NAMES, VECTORS = "names", "vectors"


def read_embeddings(where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names and vectors (names x F), float32.

    `FILE.csv`: a header, then a row for each part, its name first. `FILE.npz`: arrays `names` (N,) and `vectors`
    (N x F), or an array for each name. `FILE.h5ad:KEY`: uns[KEY], a table with the names as index, or a vector for
    each name.
    Raises InputError that says what is wrong with the file.
    """
    path, _, key = where.partition(".h5ad:")
    if key:
        names, vectors = _of_uns(Path(f"{path}.h5ad"), key)
    elif not Path(where).is_file():
        raise InputError(f"embeddings file {where} does not exist")
    elif where.endswith(".npz"):
        names, vectors = _of_npz(Path(where))
    elif where.endswith(".h5ad"):
        raise InputError(f"embeddings file {where} needs a key of uns: write {where}:KEY")
    else:
        names, vectors = _of_csv(Path(where))
    if vectors.ndim != 2 or len(names) != len(vectors) or 0 in vectors.shape or not np.isfinite(vectors).all():
        raise InputError(f"embeddings file {where} must have rows, at least one column of numbers and no gaps")
    if len(set(names)) != len(names):
        raise InputError(
            f"embeddings file {where} names a part twice: {pd.Index(names)[pd.Index(names).duplicated()][0]!r}"
        )
    return names, vectors


def refuse_other_marks(header: Sequence[object], what: str) -> None:
    """Raises InputError where a CSV file has other marks than commas between its columns, by its header."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and mark in str(header[0]):
            raise InputError(f"{what} has {name} between its columns: write it with commas")


def _of_csv(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        table = pd.read_csv(path, dtype={0: str}, keep_default_na=False)  # a gene may be called NA
        vectors = _numbers(table.iloc[:, 1:].replace("", "nan"))
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"embeddings file {path} cannot be read as a table of names and numbers: {error}") from None
    refuse_other_marks(list(table.columns), f"embeddings file {path}")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first field of longer rows as the index
        raise InputError(
            f"embeddings file {path} has rows of more fields than its header: name every column, also the first"
        )
    return tuple(map(str, table.iloc[:, 0])), vectors


def _of_npz(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    try:
        with path.open("rb") as binary, np.load(binary, allow_pickle=False) as file:
            return _of_arrays(dict(file), str(path))
    except InputError:
        raise
    except Exception as error:  # of numpy, zipfile and zlib, of which each has its own
        raise InputError(f"embeddings file {path} cannot be read as arrays: {error}") from None


def _of_uns(path: Path, key: str) -> tuple[tuple[str, ...], np.ndarray]:
    if not path.is_file():
        raise InputError(f"embeddings file {path} does not exist")
    try:
        with h5py.File(path) as file:
            there = list(file["uns"]) if "uns" in file else []
            if key not in there:
                raise InputError(f"embeddings file {path} has no {key!r} in uns: it has {', '.join(there) or 'none'}")
            value = ad.io.read_elem(file["uns"][key])
    except InputError:
        raise
    except Exception as error:  # of h5py and anndata, likewise
        raise InputError(f"embeddings file {path} cannot be read: {error}") from None
    if isinstance(value, pd.DataFrame):
        return _of_arrays({NAMES: value.index.to_numpy(dtype=str), VECTORS: value.to_numpy()}, str(path))
    return _of_arrays(value, f"{path}:{key}")


def _of_arrays(arrays: Any, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """From `names` and `vectors`, or from a vector for each name."""
    if not isinstance(arrays, Mapping):
        raise InputError(f"embeddings file {where} must hold a table, or a vector for each name")
    try:
        if set(arrays) == {NAMES, VECTORS}:
            return tuple(map(str, arrays[NAMES])), _numbers(arrays[VECTORS])
        names = tuple(map(str, arrays))
        return names, np.array([_numbers(vector).ravel() for vector in arrays.values()])
    except (TypeError, ValueError) as error:
        raise InputError(f"embeddings file {where} must have vectors of numbers, all of one length: {error}") from None


def _numbers(values: Any) -> np.ndarray:
    """As float32. Raises TypeError where they are dates, complex numbers or records, which numpy would take too."""
    values = np.asarray(values)
    if values.dtype.kind in "cmMV":
        raise TypeError(f"they are of type {values.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
        return values.astype(np.float32)
