"""Evaluates, and leaves the table, as CSV and as JSON, and the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from squidiff.config import Schema, settings_from_json
from squidiff.data.table import read_cells
from squidiff.evaluate.scoring import ADVICE, COLUMNS_OF, GENES, LEAKS, UNSCORED, compare
from squidiff.files import json_writer, write_together
from squidiff.report.plots import picture_writer
from squidiff.report.tables import METRICS_CSV
from squidiff.workflows import pictures

METRICS_JSON, SAMPLE_QUALITY = "metrics.json", "sample_quality.png"


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
    training = None if train is None else read_cells(train)
    scores = compare(files, target, schema, train=training, seed=seed, on_population=on_population)
    of_files = {name: str(path) for name, path in predictions.items()} | {"truth": str(truth)}
    said = as_json(scores, files=of_files | ({} if train is None else {"train": str(train)}), seed=seed)
    used = settings_from_json(Schema, scores.attrs[COLUMNS_OF])
    picture = pictures.quality(first, target, train=training, schema=used)
    write_together(
        {
            out / METRICS_CSV: lambda temporary: scores.to_csv(temporary, index=False),
            out / METRICS_JSON: json_writer(said),
            out / SAMPLE_QUALITY: picture_writer(picture),
        }
    )
    return scores


def as_json(scores: pd.DataFrame, **more: Any) -> dict[str, Any]:
    """The table as JSON-able values, what leaked first; what is not known is null."""
    said = {name: scores.attrs[name] for name in (LEAKS, UNSCORED, GENES, ADVICE, COLUMNS_OF)}
    rows = scores.astype(object).where(scores.notna(), None).to_dict("records")
    return {"format": 1, **said, "version": version("squidiff-ng"), **more, "scores": rows}
