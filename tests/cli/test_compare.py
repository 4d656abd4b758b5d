"""Predictions side by side, in the terminal and in the files."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from test_cli import PREPARE, QUERY, squidiff

from made_cells import HELD_OUT, counts


@pytest.mark.slow
def test_predictions_side_by_side_and_what_leaked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy of the truth is scored, and called a leak on the first line, in the table and in the JSON."""
    monkeypatch.chdir(tmp_path)
    counts().write_h5ad("raw.h5ad")
    rule = f"condition=drug,cell_type={HELD_OUT}"
    train, truth, one = (tmp_path / f"{name}.h5ad" for name in ("train", "truth", "one"))
    assert squidiff(*PREPARE, "--hold-out", rule, "--held-out", truth, "--out", train) == 0
    assert squidiff("predict", "--baseline", "mean shift", "--source", train, *QUERY, "--out", one) == 0
    capsys.readouterr()
    compared = ["compare", one, f"copied={truth}", "--truth", truth, "--train", train]
    assert squidiff(*compared, "--out", tmp_path / "both") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("LEAK: ")
    assert "cells of the prediction 'copied' are true cells, value for value" in shown.splitlines()[0]
    assert "ties" in shown
    scores = pd.read_csv(tmp_path / "both" / "metrics.csv")
    assert {"one", "copied", "mean shift"} <= set(scores["method"])
    assert scores["leak"].str.contains("value for value").all()
    said = json.loads((tmp_path / "both" / "metrics.json").read_text(encoding="utf-8"))
    assert list(said)[:2] == ["format", "leaks"]
    assert len(said["scores"]) == len(scores)
    written = pd.DataFrame(said["scores"])[["value", "low", "floor"]].astype(float)
    pd.testing.assert_frame_equal(written, scores[["value", "low", "floor"]], rtol=1e-12)
    assert squidiff("evaluate", one, truth, "--out", tmp_path / "alone") == 0
    assert "without --train there are no baselines" in capsys.readouterr().out
    before = (tmp_path / "alone" / "metrics.csv").read_bytes()
    (tmp_path / "alone" / "sample_quality.png").unlink()
    (tmp_path / "alone" / "sample_quality.png").mkdir()  # the tables of before stay where the picture cannot be written
    assert squidiff("evaluate", one, truth, "--seed", 1, "--out", tmp_path / "alone") == 2
    assert (tmp_path / "alone" / "metrics.csv").read_bytes() == before
