"""Whether stored values are those that were there at first: libraries give zeros where a file was cut or lost parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py

from squidiff.config import InputError


def stamp_of(stored: Any) -> Any:
    """What changes when the file or store of an array, or of anndata's CSR matrix, does: sizes and times.

    Of an .h5ad file that was deleted, or replaced by another, the open one counts, whose values stay as they were.
    """
    arrays = _arrays(stored)
    if isinstance(arrays["data"], h5py.Dataset):
        at = os.fstat(arrays["data"].file.id.get_vfd_handle())
        return at.st_size, at.st_mtime_ns
    return [_of_folder(array) for array in arrays.values()]


def require_whole(stored: Any, where: str) -> None:
    """Raises InputError when a CSR matrix lacks values, or a zarr store chunks of one, which are read as zeros.

    A chunk of zeros may be missing from a dense array by right.
    """
    arrays = _arrays(stored)
    if len(arrays) == 1:
        return
    if not isinstance(arrays["data"], h5py.Dataset):
        for name in ("data", "indices") if stored.shape[1] > 1 else ("data",):
            require_all_chunks(arrays[name], where)
    n, n_told = arrays["data"].shape[0], int(arrays["indptr"][-1])
    if n != n_told:
        raise InputError(f"{where} is damaged: it holds {n:,} values, of which its cells have {n_told:,}")


def require_all_chunks(array: Any, where: str) -> None:
    """Raises InputError when an array of a zarr store that is zero or empty nowhere lacks chunks."""
    missing = array.nchunks - array.nchunks_initialized
    if missing > 0:
        raise InputError(f"{where} is damaged: {missing} of {array.nchunks} chunks of {array.basename} are missing")


def _arrays(stored: Any) -> dict[str, Any]:
    """The arrays that hold a matrix."""
    group = getattr(stored, "group", None)
    return {"data": stored} if group is None else {name: group[name] for name in ("data", "indices", "indptr")}


def _of_folder(array: Any) -> tuple[int, ...]:
    """Number and size of the files of a zarr array, and when the last was written."""
    folder = Path(str(getattr(array.store, "root", ""))) / array.path
    files = [path.stat() for path in folder.rglob("*")]
    return len(files), sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)
