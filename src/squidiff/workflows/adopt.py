"""Reads what other tools predict, and writes it as `squidiff predict` would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.readers import with_values_of
from squidiff.data.splits import parse_rule
from squidiff.data.table import CellTable, read_cells, remember_schema, schema_of, write_cells
from squidiff.response.populations import Population

Tool = Literal["scgen", "cellflow", "gears", "state"]
GENES = "genes"
"""The array of gene names in a file of mean profiles."""
CELLS_OF_A_MEAN = 100
"""Equal cells that a mean profile is written as."""


@dataclass(frozen=True)
class _Form:
    """How a tool's output is read."""

    layer: str | None = None
    """Where the predicted values are, if not in X."""
    joins: str | None = None
    """What stands between the parts of a combination, if not '+'."""


FORMS: Mapping[str, _Form] = {
    "scgen": _Form(),
    "cellflow": _Form(layer="X_recon"),
    "gears": _Form(joins="_"),
    "state": _Form(),
}
assert set(FORMS) == set(get_args(Tool))


def adopt(
    file: Path, tool: Tool, schema: Schema | None, out: Path, *, columns: Sequence[str] = (), layer: str | None = None
) -> ad.AnnData:
    """Writes the prediction of another tool to `out`, with the schema in it; returns it.

    `columns` (COLUMN=VALUE) are set for all cells, as scGen leaves the control's label on cells it predicted; `layer`
    names where the values are. A `.npz` file holds mean profiles: an array of gene names and one a condition, as
    `numpy.savez(file, genes=..., **prediction)` of GEARS' predictions; each is written as CELLS_OF_A_MEAN equal cells.
    Without a schema it is the one that the file remembers. Raises InputError when the file cannot be read, a column of
    the schema is missing, one that is set is none of it, or there are only control cells.
    """
    form = FORMS[tool]
    if file.suffix == ".npz":
        if layer is not None:
            raise InputError(f"--layer has no use with {file}, which has no layers: leave it out")
        schema = schema or Schema()
        adata = _of_means(file, schema, form)
    else:
        adata = read_cells(file)
        if not adata.var_names.is_unique:
            raise InputError(f"gene names of {file} are not unique: rename or merge them first")
        schema = schema_of(adata, schema)
        where = layer or form.layer
        if where is not None:
            adata = with_values_of(adata, where, False)
        adata = ad.AnnData(X=adata.X, obs=adata.obs.copy(), var=adata.var[[]])
    for rule in columns:
        for column, value in parse_rule(rule).items():
            if column not in schema.columns:
                there = ", ".join(schema.columns) or "none"
                raise InputError(f"--set names column {column!r}, none of the schema's, which are: {there}")
            adata.obs[column] = value
    table = CellTable.from_anndata(adata, schema, where=str(file))  # that it can be evaluated
    n_cells = np.bincount(table.population)
    if file.suffix == ".npz" and n_cells.max() > CELLS_OF_A_MEAN:
        again = Population(*table.keys[n_cells.argmax()])
        raise InputError(f"{file} holds two profiles of {str(again)!r}: keep one")
    if schema.control is not None and schema.time_key is None and not any(key[1] for key in table.keys):
        raise InputError(
            f"all cells of {file} are labelled {schema.control!r}, the control: name what was predicted, as with "
            f"--set {schema.condition_key}=LABEL"
        )
    kept = [column for column in schema.columns if column in adata.obs]
    adata.obs = adata.obs[kept]
    remember_schema(adata, schema)
    adata.uns["squidiff"] = {"tool": tool}
    write_cells(out, adata)
    return adata


def _of_means(file: Path, schema: Schema, form: _Form) -> ad.AnnData:
    if schema.condition_key is None:
        raise InputError(f"{file} holds a profile a condition: name the obs column of conditions with --condition-key")
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            profiles = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # numpy and zipfile raise many kinds, all of which mean this
        raise InputError(
            f"{file} cannot be read: it is damaged, or holds objects and not plain arrays: "
            f"write genes=numpy.array(gene_names, dtype=str)"
        ) from error
    genes = profiles.pop(GENES, None)
    if genes is None or genes.ndim != 1 or genes.dtype.kind not in "US" or not profiles:
        raise InputError(f"{file} must hold the array {GENES!r} of gene names, and one array a condition")
    if len(set(genes.tolist())) < len(genes):
        raise InputError(f"{file} names a gene twice in {GENES!r}: names must be unique")
    for name, profile in profiles.items():
        if profile.shape != genes.shape or profile.dtype.kind not in "biuf":
            what = f"shape {profile.shape} of {profile.dtype}"
            raise InputError(f"{file}: {name!r} has {what}, but there are {len(genes)} genes, each a real number")
    labels = {name: name.replace(form.joins, "+") if form.joins else name for name in profiles}
    obs = pd.DataFrame({schema.condition_key: np.repeat(list(labels.values()), CELLS_OF_A_MEAN)})
    obs.index = obs.index.astype(str)
    x = np.repeat(np.stack(list(profiles.values())).astype(np.float32), CELLS_OF_A_MEAN, axis=0)
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=pd.Index(genes.astype(str))))
