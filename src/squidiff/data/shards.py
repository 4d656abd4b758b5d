"""More cells than memory holds, written as a folder of .h5ad files as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata as ad

from squidiff.config import InputError
from squidiff.data.readers import SHARDS, quiet_about_names
from squidiff.data.table import write_cells
from squidiff.files import write_json


def join(parts: Iterable[ad.AnnData]) -> ad.AnnData:
    """Parts of one data set as one, with the uns of the first."""
    with quiet_about_names():
        return ad.concat(list(parts), uns_merge="first")


def write_shards(folder: Path, parts: Iterable[ad.AnnData], cells_per_shard: int) -> int:
    """Writes cells as they come, in files of about so many, and last of all the list of files; returns their number.

    Raises InputError when the folder holds anything, or cannot be written.
    """
    require_empty(folder)
    n_cells, names = 0, []
    for i, shard in enumerate(_gathered(parts, cells_per_shard)):
        names.append(f"{i:05d}.h5ad")
        write_cells(folder / names[-1], shard)
        n_cells += shard.n_obs
    write_json(folder / SHARDS, {"files": names, "n_cells": n_cells})
    return n_cells


def require_empty(folder: Path) -> None:
    """Raises InputError when there is a file in its place, or anything in the folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not an empty folder: choose another")


def _gathered(parts: Iterable[ad.AnnData], n: int) -> Iterator[ad.AnnData]:
    """Parts joined until they have n cells, the last ones with fewer; a part is never cut."""
    waiting: list[ad.AnnData] = []
    for part in parts:
        waiting.append(part)
        if sum(w.n_obs for w in waiting) >= n:
            yield join(waiting)
            waiting = []
    if waiting:
        yield join(waiting)
