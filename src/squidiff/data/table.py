"""AnnData and a Schema, validated once into a frozen CellTable; what is behind trusts it."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import (
    CONTEXT_SEPARATOR,
    InputError,
    Preparation,
    Schema,
    as_flags,
    require_kind,
    settings_from_json,
    settings_to_json,
)
from squidiff.data.conditions import Part, canonical_label, parse_condition, read_number
from squidiff.data.matrix import CellsOnDisk, Matrix, as_matrix, blocks, dense, of_genes
from squidiff.data.readers import noted, open_file, quiet_about_names, read_file
from squidiff.data.survey import Survey, survey
from squidiff.files import Write, json_writer, write_together

Key = tuple[str, str, float | None]
"""Context, condition in its canonical spelling, time: the fields of response.Population."""


SCHEMA, PREPARED = "squidiff_schema", "squidiff_preparation"
"""Keys of uns: what the obs columns mean, and the settings of `prepare`."""
BEFORE = "before"
"""Among these settings, those of the `prepare` before."""

TIME_RANGE = re.compile(r"\s*(-?[\d.]+)\s*(?:-|\u2013|to)\s*(-?[\d.]+)\s*")
"""A time that is given as a range."""
OPEN_TIME = re.compile(r"\s*[<>\u2264\u2265]")
"""How a time begins that is given as all before or after one."""


@dataclass(frozen=True)
class CellTable:
    """N cells of G genes, each in one of P populations (cells that share context, condition and time)."""

    cells: Matrix | CellsOnDisk
    """N x G, float32."""
    genes: tuple[str, ...]
    names: np.ndarray
    """(N,) the cells' names."""
    population: np.ndarray
    """(N,) index into `keys`."""
    keys: tuple[Key, ...]
    parts: tuple[tuple[Part, ...], ...]
    """(P,) what each population's condition consists of."""
    survey: Survey
    """Of the cells' values."""

    @classmethod
    def from_anndata(
        cls,
        adata: ad.AnnData,
        schema: Schema,
        genes: Sequence[str] | None = None,
        where: str = "the data",
        found: Survey | None = None,
        whose: str = "the model",
    ) -> CellTable:
        """Raises InputError for a missing column or gene, NaN, or a condition that cannot be read.

        With `genes` the table has these, matched by name, in this order. `where` names the data in an error, `whose`
        whose genes they are, and `found` is the survey of X, should it be known. Cells that are on disk stay there.
        """
        order = None if genes is None else gene_order(adata.var_names, genes, where, whose)
        cells = as_matrix(adata, where)
        if order is not None:
            cells = of_genes(cells, order)
        population, keys, parts = group_rows(adata.obs, schema, f"obs of {where}")
        names = tuple(map(str, adata.var_names if genes is None else genes))
        found = found if found is not None and order is None else survey(cells)
        found.require_finite(where)
        return cls(cells, names, np.asarray(adata.obs_names, dtype=str), population, keys, parts, found)

    def with_cells(self, cells: Matrix | CellsOnDisk) -> CellTable:
        """The same with other values."""
        return replace(self, cells=cells, survey=survey(cells))

    def in_order(self) -> CellTable:
        """The same with the populations in the order of their keys, and not in that of the cells."""
        order = sorted(range(len(self.keys)), key=lambda i: (*self.keys[i][:2], self.keys[i][2] or 0.0))
        keys, parts = (tuple(values[i] for i in order) for values in (self.keys, self.parts))
        return replace(self, population=np.argsort(order)[self.population], keys=keys, parts=parts)

    def dense(self, rows: np.ndarray) -> np.ndarray:
        """Some cells, rows x G, float32."""
        return dense(self.cells, rows)

    def blocks(self) -> Iterator[Matrix]:
        """All cells in consecutive parts."""
        return blocks(self.cells)

    def fingerprint(self) -> str:
        """SHA-256 of the cells, their names, genes and populations, however the cells are stored."""
        data, indices, whole = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        lengths = []
        for block in self.blocks():
            matrix = sp.csr_matrix(block, copy=True)
            matrix.eliminate_zeros()
            data.update(matrix.data.tobytes())
            indices.update(matrix.indices.astype(np.int64).tobytes())
            lengths.append(np.diff(matrix.indptr).astype(np.int64))
        for part in (data.digest(), indices.digest(), np.concatenate(lengths).tobytes(), self.population.tobytes()):
            whole.update(part)
        whole.update(repr((self.genes, self.keys, self.names.tolist())).encode())
        return whole.hexdigest()


def read_cells(source: str | Path | ad.AnnData) -> ad.AnnData:
    """AnnData in memory, from a path, a backed AnnData or an AnnData. Raises InputError when it cannot be read."""
    require_kind(source, (str, Path, ad.AnnData), "what holds the cells", "AnnData or a path")
    if isinstance(source, ad.AnnData):
        return _to_memory(source) if source.isbacked else source
    return read_file(Path(source))


def open_cells(source: str | Path | ad.AnnData, on_disk: bool | None = None) -> ad.AnnData:
    """AnnData whose X stays on disk if `on_disk` says so or, with None, where it is large or the AnnData is backed.

    Of a file, X, obs, var and uns alone. Raises InputError when it cannot be read, or not in that way.
    """
    require_kind(source, (str, Path, ad.AnnData), "what holds the cells", "AnnData or a path")
    if not isinstance(source, ad.AnnData):
        return open_file(Path(source), on_disk)
    if not source.isbacked:
        if on_disk:
            raise InputError("the data are in memory already: pass a path, or leave on_disk out")
        return source
    if on_disk is False or source.is_view or "X" not in source.file or isinstance(source.X, ad.abc.CSCDataset):
        return _to_memory(source)
    return ad.AnnData(X=source.X, obs=source.obs, var=source.var, uns=source.uns)


def _to_memory(backed: ad.AnnData) -> ad.AnnData:
    try:
        return backed.to_memory()
    except KeyError:  # of anndata, where there is no X
        return ad.AnnData(obs=backed.obs, var=backed.var, uns=backed.uns, layers=backed.layers)


def write_cells(path: Path, adata: ad.AnnData) -> None:
    """Writes an .h5ad file atomically. Raises InputError when it cannot be written."""
    write_all_cells({path: adata})


def write_all_cells(files: Mapping[Path, ad.AnnData], notes: Mapping[Path, Any] | None = None) -> None:
    """Writes .h5ad files and JSON files: all, or none where one cannot be written.

    Texts become categories, as in AnnData's writer. A file is made in memory: HDF5 that runs out of disk while it
    writes takes the process with it.
    """
    writes: dict[Path, Write] = {}
    for path, adata in files.items():
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file, quiet_about_names():
            adata.strings_to_categoricals()
            ad.io.write_elem(file, "/", adata)
            if adata.raw is None and "raw" in file:  # an empty one, on which backed readers trip
                del file["raw"]
        writes[path] = functools.partial(_write_buffer, buffer=buffer)
    write_together(writes | {path: json_writer(value) for path, value in (notes or {}).items()})


def _write_buffer(path: Path, buffer: io.BytesIO) -> None:
    path.write_bytes(buffer.getbuffer())


def remember_schema(adata: ad.AnnData, schema: Schema) -> None:
    """Notes in uns which obs column means what, for whoever reads the file."""
    values = settings_to_json(schema)
    if schema.embeddings is not None:
        values["embeddings"] = str(Path(schema.embeddings).resolve())  # to be found from another folder
    adata.uns[SCHEMA] = {name: value for name, value in values.items() if value not in (None, [])}


def schema_of(
    adata: ad.AnnData, schema: Schema | None, say: Callable[[str], None] | None = None, where: str = "the data"
) -> Schema:
    """The schema that is given or, without one, that the data remember; the empty one when they remember none.

    `say` is told what `where` remembers, where that is taken.
    """
    remembered = adata.uns.get(SCHEMA)
    if schema is not None or not isinstance(remembered, Mapping):
        return schema or Schema()
    schema = _read_schema(remembered)
    if say is not None and schema != Schema():
        say(f"columns, as {where} remembers them: {as_flags(schema)}")
    return schema


def remember_preparation(adata: ad.AnnData, settings: Preparation) -> None:
    """Notes in uns how the cells were prepared, and keeps what is noted of an earlier time."""
    done = {name: value for name, value in settings_to_json(settings).items() if value not in (None, [])}
    adata.uns[PREPARED] = done | ({BEFORE: adata.uns[PREPARED]} if PREPARED in adata.uns else {})


def preparations(adata: ad.AnnData) -> list[dict[str, Any]]:
    """The settings of each `prepare` that the data went through, the latest first."""
    settings, found = adata.uns.get(PREPARED), []
    while isinstance(settings, Mapping):
        found.append({name: value for name, value in settings.items() if name != BEFORE})
        settings = settings.get(BEFORE)
    return found


def remembered_schema(path: Path) -> Schema | None:
    """The one that a file remembers, None without; no cell is read."""
    values = noted(path, SCHEMA)
    return _read_schema(values) if isinstance(values, Mapping) else None


def _read_schema(values: Mapping[str, Any]) -> Schema:
    of_schema = {str(name): value.tolist() if hasattr(value, "tolist") else value for name, value in values.items()}
    try:
        return settings_from_json(Schema, of_schema)
    except InputError as error:
        raise InputError(f"uns[{SCHEMA!r}] of the data cannot be used: {error}") from error


def matched(adata: ad.AnnData, genes: Sequence[str], where: str = "the data", whose: str = "the model") -> ad.AnnData:
    """The data with these genes in this order. Raises InputError that counts and names the missing ones."""
    order = gene_order(adata.var_names, genes, where, whose)
    return adata if order is None else adata[:, order]


def gene_order(
    there: pd.Index, genes: Sequence[str], where: str = "the data", whose: str = "the model"
) -> np.ndarray | None:
    """Which of the genes that are there are these, in their order; None where they are the same already.

    Raises InputError that counts and names the missing ones.
    """
    if not there.is_unique:
        twice = there[there.duplicated()][0]
        raise InputError(
            f"gene names of {where} are not unique ({twice!r} twice): run `adata.var_names_make_unique()` first"
        )
    missing = [g for g in genes if g not in there]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        alike = set(map(str.lower, missing)) & set(there.astype(str).str.lower())
        case = f" ({len(alike)} differ in upper and lower case alone)" if alike else ""
        raise InputError(
            f"{len(missing)} of the {len(genes)} genes of {whose} are missing in {where}{case}: "
            f"{', '.join(missing[:5])}{more}; prepare the data with the same genes"
        )
    return None if list(there) == list(genes) else there.get_indexer(list(genes))


def can_name_column(name: str) -> bool:
    """Whether a column of an .h5ad file can have this name."""
    return bool(name.strip()) and name not in (".", "..", "_index") and not {"/", "\0"} & set(name)


def require_columns(obs: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Raises InputError that names a missing column and the columns there are."""
    for column in columns:
        if column not in obs.columns:
            there = ", ".join(map(str, obs.columns)) or "none"
            raise InputError(f"column {column!r} is missing in {where}: it has {there}")
        if not isinstance(obs[column], pd.Series):
            raise InputError(f"column {column!r} stands twice in {where}: rename one")


def group_rows(
    obs: pd.DataFrame, schema: Schema, where: str = "obs"
) -> tuple[np.ndarray, tuple[Key, ...], tuple[tuple[Part, ...], ...]]:
    """The population of each row (N,), the populations' keys and the parts of their conditions.

    A SMILES column may be absent (a query of known drugs) unless it names the condition too; any other may not.
    """
    optional = schema.smiles_key if schema.smiles_key != schema.condition_key else None
    columns = [c for c in schema.columns if c in obs.columns or c != optional]
    require_columns(obs, columns, where)
    for column in columns:
        if obs[column].isna().any() and column not in (schema.smiles_key, schema.dose_key, schema.direction_key):
            raise InputError(
                f"column {column!r} of {where} has {int(obs[column].isna().sum())} empty values: fill or drop them"
            )
    if not columns:
        return np.zeros(len(obs), dtype=np.int64), (("", "", None),), ((),)
    frame = pd.DataFrame({column: as_text(obs[column]) for column in columns})
    seen: dict[Key, tuple[int, tuple[Part, ...]]] = {}
    times: dict[float | None, set[str]] = {}
    index = []
    for row in frame.drop_duplicates().itertuples(index=False, name=None):
        values = dict(zip(columns, row, strict=True))
        parts = parse_condition(values, schema)
        context = CONTEXT_SEPARATOR.join(values[key].replace("|", "||") for key in schema.context_keys)
        key = (context, canonical_label(parts), _time(values, schema))
        if schema.time_key is not None:
            times.setdefault(key[2], set()).add(values[schema.time_key].replace(" ", ""))
        index.append(seen.setdefault(key, (len(seen), parts))[0])
    for labels in times.values():
        if len(labels) > 1 and any(map(OPEN_TIME.match, labels)):
            first, other, *_ = sorted(labels, key=lambda label: (OPEN_TIME.match(label) is None, label))
            raise InputError(
                f"times {first!r} and {other!r} in column {schema.time_key!r} of {where} are one number: write "
                "numbers, or ranges as 330-390"
            )
    distinct_row = frame.groupby(columns, sort=False).ngroup().to_numpy()
    return np.array(index)[distinct_row], tuple(seen), tuple(parts for _, parts in seen.values())


def as_text(column: pd.Series) -> pd.Series:
    """A column as text: 1 and 1.0 are the same label, 0.1 is '0.1' at any precision, and what is empty is ''."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        used = column.cat.remove_unused_categories().cat
        labels = np.append(as_text(pd.Series(used.categories)).to_numpy(dtype=object), "")  # the last of code -1
        return pd.Series(labels[used.codes], index=column.index, name=column.name).astype(str)
    is_missing = column.isna()
    if pd.api.types.is_float_dtype(column):
        there = column.dropna()
        whole = (there % 1 == 0).all() and (there.abs() < 2**63).all()
        column = column.astype("Int64") if whole else column.astype(str)  # numpy writes a float32 as short as it is
    return column.astype(object).where(~is_missing, "").astype(str)


def _time(values: dict[str, str], schema: Schema) -> float | None:
    if schema.time_key is None:
        return None
    text = values[schema.time_key]
    try:
        return read_time(text)
    except ValueError:
        raise InputError(
            f"time {text!r} in column {schema.time_key!r} is not a number: write times as numbers, or as ranges of them"
        ) from None


def read_time(text: str) -> float:
    """A number; of a range as 330-390 its middle, and of an open one as < 100 or > 650 its end.

    Raises ValueError where it is neither, or not finite.
    """
    within = TIME_RANGE.fullmatch(text)
    ends = [text.strip().lstrip("<>=\u2264\u2265 ")] if within is None else within.groups()
    time = sum(map(read_number, ends)) / len(ends)
    if not np.isfinite(time):
        raise ValueError(f"{text} is not finite")
    return float(f"{time:.12g}")  # 0.1 * 3 is 0.3, as it is of doses
