"""The files of a run as tables."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from squidiff.config import InputError


def training_metrics(run: Path) -> pd.DataFrame:
    """metrics.jsonl of a run folder, a row a line. Raises InputError when there is none or it is damaged."""
    path = run / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return pd.DataFrame(rows).astype({"validation_loss": float})
