"""The files of a run as tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from squidiff.config import InputError
from squidiff.evaluate.baselines import NAMES
from squidiff.evaluate.scoring import COLUMNS

METRICS_CSV = "metrics.csv"
NUMBERS = ("value", "low", "high", "floor", "ceiling")
TEXTS = ("condition", "metric", "method", "verdict", "note", "leak")


def training_metrics(run: Path) -> pd.DataFrame:
    """metrics.jsonl of a run folder, a row a line; a last line that was cut is left out.

    Raises InputError when there is none, or it is damaged.
    """
    path = run / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        if not rows:
            raise InputError(f"{path} holds no line yet: training ended before its first logging interval")
        table = pd.DataFrame(rows).astype({"validation_loss": float})
        return table.astype(dict.fromkeys(("step", "loss", "learning_rate"), float)).astype({"step": int})
    except (KeyError, OSError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}; it was damaged, or changed by hand") from error


def read_scores(source: pd.DataFrame | str | Path) -> pd.DataFrame:
    """A table of scores from metrics.csv, from the folder that holds it, or as it is; empty texts are ''.

    Raises InputError when there is none or a column is missing.
    """
    if isinstance(source, pd.DataFrame):
        table, where = source, "the table of scores"
    else:
        path = Path(source) / METRICS_CSV if Path(source).is_dir() else Path(source)
        where = str(path)
        if not path.exists():
            raise InputError(f"{path} does not exist: name what `squidiff evaluate` wrote")
        try:
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str), keep_default_na=False, na_values=[""])
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as a table of scores: {error}") from error
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise InputError(f"{where} has no column {', '.join(missing)}: name what `squidiff evaluate` wrote")
    if table.empty:
        raise InputError(f"{where} has no row: nothing was scored")
    try:
        table = table.astype(dict.fromkeys(NUMBERS, float))
    except ValueError as error:
        raise InputError(f"{where} holds a text where a number belongs: {error}") from error
    return table.assign(**{name: table[name].fillna("") for name in TEXTS})


def models_of(table: pd.DataFrame) -> list[str]:
    """The methods of a table of scores that are no baselines, in its order."""
    return [name for name in dict.fromkeys(table["method"]) if name not in NAMES]
