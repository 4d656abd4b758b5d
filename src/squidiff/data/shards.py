"""More cells than memory holds, written as a folder of .h5ad files as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import anndata as ad
import pandas as pd

from squidiff.data.readers import SHARDS, quiet_about_names
from squidiff.data.table import write_cells
from squidiff.files import require_empty, write_json


def join(parts: Iterable[ad.AnnData]) -> ad.AnnData:
    """Parts of one data set as one, with the uns of the first, and of tables in varm every column once."""
    parts = list(parts)
    with quiet_about_names():
        whole = ad.concat(parts, uns_merge="first")
    for name in parts[0].varm:
        columns = {column: part.varm[name][column] for part in parts for column in part.varm[name]}
        whole.varm[name] = pd.DataFrame(columns, index=whole.var_names)
    return whole


def write_shards(folder: Path, parts: Iterable[ad.AnnData], cells_per_shard: int) -> int:
    """Writes cells as they come, in files of so many, and last of all the list of files; returns the number of cells.

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


def _gathered(parts: Iterable[ad.AnnData], n: int) -> Iterator[ad.AnnData]:
    """The cells in pieces of n, the last with fewer."""
    waiting: list[ad.AnnData] = []
    for part in parts:
        waiting.append(part)
        if sum(w.n_obs for w in waiting) >= n:
            whole = join(waiting)
            yield from (_piece(whole, first, first + n) for first in range(0, whole.n_obs - n + 1, n))
            waiting = [_piece(whole, whole.n_obs - whole.n_obs % n, whole.n_obs)] if whole.n_obs % n else []
    if waiting:
        yield join(waiting)


def _piece(whole: ad.AnnData, first: int, end: int) -> ad.AnnData:
    """Some of the cells, with the columns of varm that are of their queries (cells are named QUERY-NUMBER)."""
    piece = whole[first:end].copy()
    queries = set(piece.obs_names.str.split("-").str[0])
    for name in piece.varm:
        piece.varm[name] = piece.varm[name][[column for column in piece.varm[name] if column in queries]]
    return piece
