"""Evaluates, and leaves the table and the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from squidiff.config import Schema
from squidiff.data.table import CellTable, read_cells, schema_of
from squidiff.evaluate.scoring import evaluate
from squidiff.files import write_atomically
from squidiff.report.plots import sample_quality, save
from squidiff.response.populations import Population, Populations

METRICS_CSV, SAMPLE_QUALITY = "metrics.csv", "sample_quality.png"


def write_scores(
    predicted: Path,
    truth: Path,
    train: Path | None,
    schema: Schema | None,
    out: Path,
    *,
    seed: int = 0,
    on_population: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Writes metrics.csv and sample_quality.png to `out`; returns the table of `evaluate`.

    The picture is of the population with the most true cells.
    """
    prediction, target = read_cells(predicted), read_cells(truth)
    schema = schema_of(prediction, schema)
    training = None if train is None else read_cells(train)
    scores = evaluate(prediction, target, schema, train=training, seed=seed, on_population=on_population)
    write_atomically(out / METRICS_CSV, lambda temporary: scores.to_csv(temporary, index=False))

    tables = [CellTable.from_anndata(prediction, schema)]
    tables += [CellTable.from_anndata(a, schema, tables[0].genes) for a in (target, training) if a is not None]
    common = [key for key in tables[0].keys if key in tables[1].keys]
    key = max(common, key=lambda key: (tables[1].population == tables[1].keys.index(key)).sum())
    generated, real = (t.dense(np.flatnonzero(t.population == t.keys.index(key))) for t in tables[:2])
    control = None if training is None else _control_cells(tables[2], Population(*key), schema)
    which = f"{Population(*key)}{'' if len(common) == 1 else f', the largest of {len(common)} populations'}"
    figure = sample_quality(generated, real, tables[0].genes, control, f"Predicted and true cells: {which}")
    save(figure, out / SAMPLE_QUALITY)
    return scores


def _control_cells(train: CellTable, key: Population, schema: Schema) -> np.ndarray | None:
    """The cells that a prediction of `key` starts from; None in plain generation, or when there are none."""
    keys = tuple(Population(*k) for k in train.keys)
    nothing, n_cells = np.zeros((len(keys), 0)), np.bincount(train.population, minlength=len(keys))
    populations = Populations(keys, nothing, nothing, nothing, n_cells, schema.control is not None)
    source = populations.source(key)
    if source is None or keys[source] == key:
        return None
    return train.dense(np.flatnonzero(train.population == source))
