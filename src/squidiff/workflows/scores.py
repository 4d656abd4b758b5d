"""Evaluates, and leaves the table, as CSV and as JSON, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from squidiff.config import Schema
from squidiff.data.table import CellTable, read_cells, schema_of
from squidiff.evaluate.scoring import GENES, LEAKS, UNSCORED, compare
from squidiff.files import json_writer, write_together
from squidiff.report.plots import sample_quality, save
from squidiff.response.populations import Population, Populations

METRICS_CSV, METRICS_JSON, SAMPLE_QUALITY = "metrics.csv", "metrics.json", "sample_quality.png"


def write_scores(
    predictions: Mapping[str, Path],
    truth: Path,
    train: Path | None,
    schema: Schema | None,
    out: Path,
    *,
    seed: int = 0,
    on_population: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Writes metrics.csv, metrics.json and sample_quality.png to `out`; returns the table of `evaluate` or `compare`.

    The picture is of the first prediction and of the population with the most true cells.
    """
    files = {name: read_cells(path) for name, path in predictions.items()}
    target = read_cells(truth)
    first = next(iter(files.values()))
    schema = schema_of(first, schema)
    training = None if train is None else read_cells(train)
    scores = compare(files, target, schema, train=training, seed=seed, on_population=on_population)
    of_files = {name: str(path) for name, path in predictions.items()} | {"truth": str(truth)}
    said = as_json(scores, files=of_files | ({} if train is None else {"train": str(train)}), seed=seed)
    write_together(
        {
            out / METRICS_CSV: lambda temporary: scores.to_csv(temporary, index=False),
            out / METRICS_JSON: json_writer(said),
        }
    )

    tables = [CellTable.from_anndata(first, schema)]
    tables += [CellTable.from_anndata(a, schema, tables[0].genes) for a in (target, training) if a is not None]
    common = [key for key in tables[0].keys if str(Population(*key)) in set(scores["condition"])]
    key = max(common, key=lambda key: (tables[1].population == tables[1].keys.index(key)).sum())
    generated, real = (t.dense(np.flatnonzero(t.population == t.keys.index(key))) for t in tables[:2])
    control = None if training is None else _control_cells(tables[2], Population(*key), schema)
    which = f"{Population(*key)}{'' if len(common) == 1 else f', the largest of {len(common)} populations'}"
    figure = sample_quality(generated, real, tables[0].genes, control, f"Predicted and true cells: {which}")
    save(figure, out / SAMPLE_QUALITY)
    return scores


def as_json(scores: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """The table as JSON-able values, what leaked first; what is not known is null."""
    said = {name: scores.attrs[name] for name in (LEAKS, UNSCORED, GENES)}
    rows = scores.astype(object).where(scores.notna(), None).to_dict("records")
    return {"format": 1, **said, "version": version("squidiff-ng"), **more, "scores": rows}


def _control_cells(train: CellTable, key: Population, schema: Schema) -> np.ndarray | None:
    """The cells that a prediction of `key` starts from; None in plain generation, or when there are none."""
    keys = tuple(Population(*k) for k in train.keys)
    nothing, n_cells = np.zeros((len(keys), 0)), np.bincount(train.population, minlength=len(keys))
    populations = Populations(keys, nothing, nothing, nothing, n_cells, schema.control is not None)
    source = populations.source(key)
    if source is None or keys[source] == key:
        return None
    return train.dense(np.flatnonzero(train.population == source))
