"""Cells are dropped before they are examined: what the doctor advises can be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import SCHEMA_FLAGS, squidiff

from made_cells import logged
from squidiff.data.table import read_cells


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """cells.h5ad: 7 cells have no condition, and another, of bad quality, holds the only NaN."""
    monkeypatch.chdir(tmp_path)
    cells = logged()
    cells.obs["condition"] = pd.Categorical(cells.obs["condition"].where(np.arange(cells.n_obs) >= 7, None))
    cells.obs["quality"] = np.where(np.arange(cells.n_obs) == 50, "bad", "good")
    cells.X = cells.X.toarray()
    cells.X[50, 3] = np.nan
    cells.write_h5ad("cells.h5ad")
    return tmp_path


def test_what_is_dropped_need_not_be_right(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drops = ["--drop", "condition=", "--drop", "quality=bad"]
    assert squidiff("prepare", "cells.h5ad", *SCHEMA_FLAGS, *drops, "--out", "prepared.h5ad") == 0
    assert "dropped 8 cells: condition=; quality=bad" in capsys.readouterr().out
    assert read_cells("prepared.h5ad").n_obs == logged().n_obs - 8


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        (["quality=bad"], "empty values in column 'condition' (in obs; 7)"),
        (["condition="], "NaN or infinite values (in X; 1)"),
        (["quality=bad", "quality=good"], "no cell is left: drop fewer"),
    ],
)
def test_what_is_left_must_be(here: Path, drops: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [token for drop in drops for token in ("--drop", drop)]
    assert squidiff("prepare", "cells.h5ad", *SCHEMA_FLAGS, *tokens, "--out", "prepared.h5ad") == 2
    assert capsys.readouterr().err.startswith(f"squidiff: {message}")
    assert not Path("prepared.h5ad").exists()
