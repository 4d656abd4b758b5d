"""Queries: the populations that a user asks for, as a table of obs columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.conditions import Part
from squidiff.data.table import Key, group_rows

N_CELLS = "n_cells"
MAX_CELLS = 10_000_000
"""Of one query: at 1,000 genes, 40 GB."""


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
    if len(table) == 0:
        raise InputError("there is no query: give a row for each population to predict")
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise InputError(f"column {repeated[0]!r} of the queries stands there twice: keep one")
    if "_index" in table.columns:
        raise InputError("column '_index' of the queries has a name that AnnData keeps for itself: rename it")
    counts = _n_cells(table)
    population, keys, parts = group_rows(table, schema, "the queries")
    columns = table.drop(columns=N_CELLS, errors="ignore")
    for name in columns:
        if not pd.api.types.is_numeric_dtype(columns[name]):  # texts, and what AnnData could not write
            columns[name] = columns[name].astype(str)
    return [
        Query(keys[p], parts[p], {str(name): columns[name].iloc[i] for name in columns}, counts[i])
        for i, p in enumerate(population)
    ]


def _read_csv(path: Path) -> pd.DataFrame:
    """All as text, so that a dose of 1 stays "1" and a cell type NA stays "NA"."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give a CSV file of queries")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
        header, rows = [name.strip() for name in header], [[value.strip() for value in row] for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from error
    for i, row in enumerate(rows):
        if len(row) != len(header):
            fields = f"query {i + 1} has {len(row)} fields, the header {len(header)}"
            raise InputError(f"{path} cannot be read as a CSV file: {fields}")
    return pd.DataFrame(rows, columns=header)


def _n_cells(table: pd.DataFrame) -> list[int | None]:
    if N_CELLS not in table.columns:
        return [None] * len(table)
    counts = pd.to_numeric(table[N_CELLS], errors="coerce").to_numpy(dtype=float)
    is_count = np.isfinite(counts) & (counts >= 1) & (counts == np.rint(counts))
    if (counts > MAX_CELLS).any():
        raise InputError(f"{N_CELLS} of a query is more than {MAX_CELLS:,}: split it into several predictions")
    if not is_count.all():
        bad = table[N_CELLS].to_numpy()[~is_count][0]
        raise InputError(f"{N_CELLS} of a query is {str(bad)!r}: it must be a whole number of 1 or more")
    return [int(n) for n in counts]
