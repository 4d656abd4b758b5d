"""The files of a run as tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from squidiff.config import InputError
from squidiff.evaluate.scoring import COLUMNS

METRICS_CSV = "metrics.csv"
TEXTS = ("condition", "metric", "method", "verdict", "note", "leak")


def training_metrics(run: Path) -> pd.DataFrame:
    """metrics.jsonl of a run folder, a row a line. Raises InputError when there is none or it is damaged."""
    path = run / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return pd.DataFrame(rows).astype({"validation_loss": float})


def read_scores(source: pd.DataFrame | str | Path) -> pd.DataFrame:
    """A table of scores from metrics.csv, from the folder that holds it, or as it is; empty texts are ''.

    Raises InputError when there is none or a column is missing.
    """
    if isinstance(source, pd.DataFrame):
        table, where = source, "the table of scores"
    else:
        path = Path(source) / METRICS_CSV if Path(source).is_dir() else Path(source)
        where = str(path)
        try:
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a table of scores: {error}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"{where} has no column {', '.join(missing)}: name what `squidiff evaluate` wrote")
    return table.assign(**{name: table[name].fillna("") for name in TEXTS})
