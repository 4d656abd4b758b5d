"""Writes a prediction and its truth as the pair of files that `cell-eval run` takes."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.readers import quiet_about_names
from squidiff.data.table import CellTable, read_cells, schema_of, write_all_cells
from squidiff.response.populations import Population

PREDICTED, REAL = "predicted.h5ad", "real.h5ad"
PERTURBATION, CONTEXT, CONTROL = "perturbation", "context", "control"


def write_cell_eval(
    predicted: ad.AnnData | Path,
    truth: ad.AnnData | Path,
    train: ad.AnnData | Path,
    schema: Schema | None,
    folder: Path,
) -> tuple[str, ...]:
    """Both files, with the populations that are in both and, of each of their contexts, the training file's controls.

    cell-eval wants control cells in either file, the same conditions in both, genes in one order, and no value below
    0: such a value of the prediction is written as 0. Returns the command that runs it. Raises InputError without a
    condition, a control, or control cells of a context.
    """
    prediction = read_cells(predicted)
    schema = schema_of(prediction, schema)
    if schema.condition_key is None or schema.control is None:
        raise InputError("cell-eval compares conditions with a control: give --condition-key and --control")
    table = CellTable.from_anndata(prediction, schema)
    target, known = (
        CellTable.from_anndata(read_cells(cells), schema, table.genes, where)
        for cells, where in ((truth, "the truth"), (train, "the training data"))
    )
    scored = [key for key in table.keys if key in target.keys and key[1]]
    for of, where in ((target, "the truth"), (known, "the training data")):
        if not of.survey.non_negative.all():
            raise InputError(f"cell-eval takes log-normalised values, but negative ones are in {where}")
    if any(key[1] == CONTROL for key in scored):
        raise InputError(f"a condition is called {CONTROL!r}, as control cells are for cell-eval: rename it")
    if not scored:
        raise InputError("no condition is in both the prediction and the truth")
    contexts = list(dict.fromkeys(_context(key) for key in scored))
    controls = [key for key in known.keys if not key[1] and _context(key) in contexts]
    missing = sorted(set(contexts) - {_context(key) for key in controls})
    if missing:
        raise InputError(
            f"the training data have no control cells of {missing[0] or 'these cells'!r}, which cell-eval needs"
        )
    with quiet_about_names():
        shared = [_cells(known, key) for key in controls]
        files = {
            folder / name: ad.concat([*(_cells(of, key) for key in scored), *shared], index_unique="-")
            for name, of in ((PREDICTED, table), (REAL, target))
        }
        write_all_cells(files)
    command = ["cell-eval", "run", "-ap", str(folder / PREDICTED), "-ar", str(folder / REAL)]
    command += ["--pert-col", PERTURBATION, "--control-pert", CONTROL]
    return (*command, *(["--celltype-col", CONTEXT] if len(contexts) > 1 else []), "-o", str(folder / "results"))


def _context(key: tuple[str, str, float | None]) -> str:
    context = Population(*key)._replace(condition="")
    return str(context) if context.context or context.time is not None else ""


def _cells(table: CellTable, key: tuple[str, str, float | None]) -> ad.AnnData:
    rows = np.flatnonzero(table.population == table.keys.index(key))
    obs = pd.DataFrame({PERTURBATION: key[1] or CONTROL, CONTEXT: _context(key)}, index=table.names[rows])
    return ad.AnnData(np.maximum(table.dense(rows), 0.0), obs=obs, var=pd.DataFrame(index=pd.Index(table.genes)))
