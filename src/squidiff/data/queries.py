"""Queries: the populations that a user asks for, as a table of obs columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.conditions import Part
from squidiff.data.embeddings import refuse_other_marks
from squidiff.data.table import Key, as_text, can_name_column, group_rows

N_CELLS = "n_cells"
MAX_CELLS = 10_000_000
"""Of one query: as sparse cells of 1,000 genes, tens of GB."""
FAR = "far"
OWN_COLUMNS = ("anchor", "source_cell", FAR)
"""What a prediction adds to obs: where the mean is from, the name of the cell that it started from, and in what the
query lies far from training ('' where it does not)."""


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
    if not isinstance(queries, pd.DataFrame | str | Path):
        kind = type(queries).__name__
        raise InputError(
            f"the queries are a {kind}: give a table, as pandas.DataFrame([{{...}}]), or a CSV file's path"
        )
    table = queries if isinstance(queries, pd.DataFrame) else _read_csv(Path(queries))
    if len(table) == 0:
        raise InputError("there is no query: give a row for each population to predict")
    table = _named(table, schema)
    counts = _n_cells(table)
    columns = table.drop(columns=N_CELLS, errors="ignore")
    population, keys, parts = group_rows(columns, schema, "the queries")
    for name in columns:
        if not (isinstance(columns[name].dtype, np.dtype) and columns[name].dtype.kind in "biuf"):
            columns[name] = as_text(columns[name])  # texts, and what AnnData could not write
            if columns[name].str.contains("\0", regex=False).any():
                raise InputError(f"column {name!r} of the queries holds the character NUL: remove it")
    return [
        Query(keys[p], parts[p], {str(name): columns[name].iloc[i] for name in columns}, counts[i])
        for i, p in enumerate(population)
    ]


def refuse_unknown_columns(queries: Sequence[Query], schema: Schema, obs: pd.DataFrame) -> None:
    """Raises InputError when a query asks for a value of a column that is none of the schema's, and cells have others.

    Else it is a note, which predicted cells carry: the source (obs) has no such column, or that value alone.
    """
    for name in queries[0].columns:
        if name not in schema.columns and name in obs.columns:
            there = set(as_text(obs[name]))
            if any(there != set(as_text(pd.Series([query.columns[name]]))) for query in queries):
                require_known([name], schema)


def refuse_own_names(schema: Schema) -> None:
    """Raises InputError when a column of the schema has a name that predictions keep for themselves."""
    clashing = sorted({*schema.columns} & {*OWN_COLUMNS})
    if clashing:
        raise InputError(f"column {clashing[0]!r} has a name that predictions keep for themselves: rename it")


def told(columns: Mapping[str, object], own: Iterable[str]) -> dict[str, object]:
    """A query's columns beside the `own` ones of a table: what has a name of theirs is called asked_NAME."""
    names = set(own)
    return {f"asked_{name}" if name in names else name: value for name, value in columns.items()}


def require_known(names: Iterable[str], schema: Schema) -> None:
    """Raises InputError when one of the queries' columns is none of the schema's."""
    for name in names:
        if name in (*schema.columns, N_CELLS):
            continue
        known = ", ".join(map(repr, schema.columns)) or "none: it generates cells like those of the source"
        raise InputError(
            f"column {name!r} of the queries means nothing to this model, whose columns are {known}; leave it out, or "
            "train (or convert) with a schema that has it"
        )


def _named(table: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    """A copy without the columns that have neither a name nor a value, as spreadsheets leave them.

    Raises InputError for a name that stands there twice or that an .h5ad file or a prediction cannot have.
    """
    is_left_over = [not str(name).strip() and (as_text(table.iloc[:, i]) == "").all() for i, name in enumerate(table)]
    table = table.loc[:, ~np.array(is_left_over, dtype=bool)].copy()
    repeated = table.columns[table.columns.duplicated()]
    if len(repeated):
        raise InputError(f"column {repeated[0]!r} of the queries stands there twice: keep one")
    for name in map(str, table.columns):
        if name in ("_index", *OWN_COLUMNS):
            raise InputError(
                f"column {name!r} of the queries has a name that predictions keep for themselves: rename it"
            )
        if not can_name_column(name.replace("/", "|") if name in schema.columns else name):
            raise InputError(f"column {name!r} of the queries cannot name a column of an .h5ad file: rename it")
    return table


def _read_csv(path: Path) -> pd.DataFrame:
    """All as text, so that a dose of 1 stays "1" and a cell type NA stays "NA"."""
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file: give a CSV file of queries")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [row for row in csv.reader(file, strict=True) if row] or [[]]
        header, rows = [name.strip() for name in header], [[value.strip() for value in row] for row in rows]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}; save it as UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as a CSV file: {error}") from error
    refuse_other_marks(header, str(path))
    rows = [row for row in rows if any(row)]
    for i, row in enumerate(rows):
        if len(row) != len(header):
            fields = f"query {i + 1} has {len(row)} fields, the header {len(header)}"
            raise InputError(f"{path} cannot be read as a CSV file: {fields}")
    return pd.DataFrame(rows, columns=header)


def _n_cells(table: pd.DataFrame) -> list[int | None]:
    if N_CELLS not in table.columns:
        return [None] * len(table)
    counts = pd.to_numeric(table[N_CELLS], errors="coerce").to_numpy(dtype=float)
    is_empty = (table[N_CELLS].isna() | (table[N_CELLS].astype(str).str.strip() == "")).to_numpy()
    is_count = np.isfinite(counts) & (counts >= 1) & (counts == np.rint(counts)) | is_empty
    if (np.isfinite(counts) & (counts > MAX_CELLS)).any():
        raise InputError(f"{N_CELLS} of a query is more than {MAX_CELLS:,}: split it into several predictions")
    if not is_count.all():
        bad = table[N_CELLS].to_numpy()[~is_count][0]
        raise InputError(f"{N_CELLS} of a query is {str(bad)!r}: it must be a whole number of 1 or more")
    return [None if empty else int(n) for n, empty in zip(counts, is_empty, strict=True)]
