"""Queries: the populations that a user asks for, as a table of obs columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.conditions import Part
from squidiff.data.table import Key, group_rows

N_CELLS = "n_cells"


@dataclass(frozen=True)
class Query:
    """One population to predict."""

    key: Key
    parts: tuple[Part, ...]
    columns: dict[str, object]
    """The obs columns that every predicted cell carries."""
    n_cells: int | None
    """None: as many as there are cells to start from."""


def read_queries(queries: pd.DataFrame | str | Path, schema: Schema) -> list[Query]:
    """The queries of a table or a CSV file. Raises InputError when it cannot be read or lacks a column."""
    table = queries if isinstance(queries, pd.DataFrame) else _read_csv(Path(queries))
    if table.empty:
        raise InputError("there is no query: give a row for each population to predict")
    counts = _n_cells(table)
    population, keys, parts = group_rows(table, schema, "the queries")
    columns = table.drop(columns=N_CELLS, errors="ignore").to_dict("records")
    return [
        Query(keys[i], parts[i], {str(k): v for k, v in row.items()}, n)
        for i, row, n in zip(population, columns, counts, strict=True)
    ]


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give a CSV file of queries")
    try:
        # all as text, so that a dose of 1 stays "1" and a cell type NA stays "NA"
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from error


def _n_cells(table: pd.DataFrame) -> list[int | None]:
    if N_CELLS not in table.columns:
        return [None] * len(table)
    counts = pd.to_numeric(table[N_CELLS], errors="coerce").to_numpy(dtype=float)
    if not ((counts >= 1) & (counts == np.rint(counts))).all():
        bad = table[N_CELLS].to_numpy()[~((counts >= 1) & (counts == np.rint(counts)))][0]
        raise InputError(f"{N_CELLS} of a query is {bad!r}: it must be a whole number of 1 or more")
    return [int(n) for n in counts]
