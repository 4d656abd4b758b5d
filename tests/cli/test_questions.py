"""The commands that ask a run: tables that hold what they say, and sentences where nothing can be said."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from test_cli import squidiff

from made_cells import HELD_OUT, SCHEMA, dense, logged, small
from squidiff.config import Schema
from squidiff.estimator import Squidiff

ASKED = ("--query", f"condition=low,cell_type={HELD_OUT}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells under two conditions and both, of which the held-out type was seen under none, and runs of them."""
    path = tmp_path_factory.mktemp("questions")
    cells = logged(("low", "high", "low+high"))
    held = ((cells.obs["cell_type"] == HELD_OUT) & (cells.obs["condition"] != "control")).to_numpy()
    cells[~held].copy().write_h5ad(path / "train.h5ad")
    wanted = held & (cells.obs["condition"] == "low").to_numpy()
    cells[wanted].copy().write_h5ad(path / "wanted.h5ad")
    Squidiff(SCHEMA, small(n_train_steps=2), "cpu").fit(path / "train.h5ad", out=path / "run")
    cells.obs["day"] = cells.obs["condition"].map({"control": 0, "low": 2, "high": 4, "low+high": 6}).astype(str)
    cells.write_h5ad(path / "days.h5ad")
    Squidiff(Schema(time_key="day"), small(n_train_steps=2), "cpu").fit(path / "days.h5ad", out=path / "timed")
    return path


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the cells and runs are those of `folder`."""
    for name in ("train.h5ad", "wanted.h5ad", "days.h5ad", "run", "timed"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_changes_are_written_with_their_intervals(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert squidiff("changes", "run", "--source", "train.h5ad", *ASKED, "--out", "changes.csv") == 0
    shown = capsys.readouterr().out
    table = pd.read_csv("changes.csv", keep_default_na=False)
    assert len(table) == 40
    assert f"{table['changes'].sum()} of 40 means change by more than their 90 % interval; from: fold shift" in shown
    assert (table["shift_low_90"] <= table["shift_high_90"]).all()
    assert table["tried"].all()


def test_of_several_populations_the_shown_changes_say_which_one_they_are_of(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pd.DataFrame({"condition": ["high", "low"], "cell_type": HELD_OUT}).to_csv("q.csv", index=False)
    assert squidiff("changes", "run", "--source", "train.h5ad", "--queries", "q.csv", "--out", "c.csv") == 0
    heading = next(line for line in capsys.readouterr().out.splitlines() if "gene" in line)
    assert "condition" in heading
    assert "cell_type" not in heading  # they share it


def test_columns_of_a_file_of_queries_that_mean_nothing_are_said_to_be_notes(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded: a dose that the model knows nothing of stood in the prediction as if it had been asked for."""
    pd.DataFrame({"condition": ["low"], "cell_type": HELD_OUT, "dose": 3, "n_cells": 20}).to_csv("q.csv", index=False)
    said = "q.csv has columns that the model does not use, which are kept as notes: dose"
    for command, out in (("changes", "c.csv"), ("predict", "p.h5ad")):
        assert squidiff(command, "run", "--source", "train.h5ad", "--queries", "q.csv", "--out", out) == 0
        assert said in capsys.readouterr().out.replace("\n", " ")


def test_candidates_are_ranked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"condition": ["control", "high", "low"], "cell_type": HELD_OUT}).to_csv("q.csv", index=False)
    given = ("--source", "train.h5ad", "--queries", "q.csv", "--target", "wanted.h5ad")
    assert squidiff("rank", "run", *given, "--out", "rank.csv") == 0
    table = pd.read_csv("rank.csv")
    assert table["condition"].iloc[0] == "low"
    assert table["energy_distance"].is_monotonic_increasing
    said = capsys.readouterr()
    assert "3/3" in said.err
    assert "together" not in said.out
    assert "1 of 3 have no share" not in said.out
    train = ad.read_h5ad("train.h5ad")
    train[((train.obs["cell_type"] == HELD_OUT) & (train.obs["condition"] == "control")).to_numpy()].write("still.h5ad")
    assert squidiff("rank", "run", *given[:-1], "still.h5ad", "--out", "still.csv") == 0
    told = "3 of 3 have no share: what they start from is as near to the target as its own cells are"
    assert told in capsys.readouterr().out.replace("\n", " ")
    whole = ("--source", "train.h5ad", "--queries", "q.csv", "--target", "days.h5ad")  # with its control cells
    assert squidiff("rank", "run", *whole, "--out", "whole.csv") == 0
    assert (
        "days.h5ad holds cells of 12 populations by condition, cell_type: they are the target together"
        in capsys.readouterr().out.replace("\n", " ")
    )


def test_interactions_are_written(here: Path) -> None:
    flags = ("--condition-key", "condition", "--control", "control", "--context-key", "cell_type")
    assert squidiff("interactions", "train.h5ad", *flags, "--n-null", 50, "--out", "pairs.csv") == 0
    table = pd.read_csv("pairs.csv")
    assert sorted(table["context"]) == ["type B", "type C"]
    assert set(table["condition"]) == {"high + low"}
    assert table["p"].between(1 / 51, 1).all()


def test_a_trajectory_and_its_speeds_are_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--source", "days.h5ad", "--times", "0,0-2,8")  # a range is its middle
    assert squidiff("trajectory", "timed", *given, "--out", "cells.h5ad", "--speeds", "speeds.csv") == 0
    assert "far from training, so trust it less: time 8 is beyond the times seen, 0 to 6" in capsys.readouterr().out
    assert squidiff("predict", "timed", "--query", "day=8", "--source", "days.h5ad", "--out", "far.h5ad") == 0
    assert "far from training, so trust it less: time 8 is beyond the times seen, 0 to 6" in capsys.readouterr().out
    cells = ad.read_h5ad("cells.h5ad")
    assert sorted(cells.obs["day"].unique()) == [0.0, 1.0, 8.0]
    assert list(cells.varm["shift_high_90"].columns) == ["0", "1", "2"]
    assert len(pd.read_csv("speeds.csv")) == 2 * 40


def test_pairs_and_the_first_level_are_flags_of_predict(here: Path) -> None:
    for flag in ("--paired", "--first-level"):
        assert squidiff("predict", "run", "--source", "train.h5ad", *ASKED, flag, "--out", f"out{flag}.h5ad") == 0
    paired, first = (ad.read_h5ad(f"out{flag}.h5ad") for flag in ("--paired", "--first-level"))
    assert sorted(paired.obs["source_cell"]) == sorted(first.obs["source_cell"])
    np.testing.assert_allclose(dense(paired).mean(axis=0), dense(first).mean(axis=0), atol=1e-4)


def test_a_run_is_trained_further(here: Path) -> None:
    given = ("train", "wanted.h5ad", "--from", "run", "--n-train-steps", 2, "--out", "further")
    assert squidiff(*given) == 2  # treated cells alone: there is nothing to start from
    cells = ad.concat([ad.read_h5ad("wanted.h5ad"), ad.read_h5ad("train.h5ad")[:40]])
    cells.write_h5ad("more.h5ad")
    assert squidiff("train", "more.h5ad", "--from", "run", "--n-train-steps", 2, "--out", "further") == 0
    known = Squidiff.load("further", "cpu").predict(
        pd.DataFrame({"condition": ["low"], "cell_type": [HELD_OUT]}), "train.h5ad"
    )
    assert set(known.obs["anchor"]) == {"seen in training"}


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("changes", "run", "--source", "train.h5ad", "--out", "c.csv"), "give populations to predict by --queries"),
        (("changes", "run", "--source", "train.h5ad", *ASKED, "--out", "run/c.csv"), "lies in the run folder"),
        (("changes", "run", "--source", "train.h5ad", *ASKED, "--out", "train.h5ad"), "is named twice"),
        (
            ("rank", "run", "--source", "train.h5ad", *ASKED, "--target", "none.h5ad", "--out", "r.csv"),
            "none.h5ad does not exist",
        ),
        (("interactions", "wanted.h5ad", "--out", "i.csv"), "interactions need a condition and its control"),
        (
            ("dose-curve", "run", "--source", "train.h5ad", "--query", "condition=low", "--doses", "1,2", "--out", "d"),
            "trained without doses",
        ),
        (
            (
                "dose-curve",
                "run",
                "--source",
                "train.h5ad",
                "--query",
                "condition=low",
                "--doses",
                "-1,1_0",
                "--out",
                "d",
            ),
            "--doses is '-1,1_0': give numbers, separated by ','",
        ),
        (
            ("trajectory", "timed", "--source", "days.h5ad", "--times", "1,x", "--out", "t.h5ad"),
            "--times is '1,x': give numbers, separated by ','",
        ),
        (("trajectory", "run", "--source", "train.h5ad", "--times", "1,2", "--out", "t.h5ad"), "trained without times"),
        (
            (
                "trajectory",
                "timed",
                "--source",
                "days.h5ad",
                "--times",
                "1,2",
                "--out",
                "t.h5ad",
                "--speeds",
                "./t.h5ad",
            ),
            "is named twice",
        ),
        (
            ("trajectory", "timed", "--source", "days.h5ad", "--times", "1,2", "--out", "t", "--speeds", "timed/s.csv"),
            "lies in the run folder",
        ),
        (("changes", "run", "--source", "train.h5ad", "--query", "bogus=1", "--out", "c"), "column 'bogus'"),
        (("train", "train.h5ad", "--from", "run", "--width", 7, "--out", "o"), "--width has no use with --from"),
        (("train", "train.h5ad", "--from", "run", "--time-key", "x", "--out", "o"), "schema options have no use"),
        (
            ("predict", "run", "--source", "train.h5ad", *ASKED, "--paired", "--baseline", "no change", "--out", "p"),
            "one of the two",
        ),
        (
            ("predict", "run", "--source", "train.h5ad", *ASKED, "--first-level", "--strength", 0.7, "--out", "p"),
            "--strength has no use with --first-level",
        ),
        (
            ("predict", "run", "--source", "train.h5ad", *ASKED, "--out", "p.csv"),
            "p.csv ends in '.csv', but it will be written as '.h5ad': name it so",
        ),
        (
            ("changes", "run", "--source", "train.h5ad", *ASKED, "--out", "c.xlsx"),
            "c.xlsx ends in '.xlsx', but it will be written as '.csv': name it so",
        ),
        (
            ("predict", "--source", "train.h5ad", *ASKED, "--baseline", "no change", "--out", "p"),
            "the source does not say what its obs columns mean: give --condition-key and --control",
        ),
        (
            ("predict", "--source", "train.h5ad", *ASKED, "--strength", 0.7, "--baseline", "no change", "--out", "p"),
            "of how cells are generated --seed alone goes with --baseline",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], tokens: tuple[object, ...], message: str
) -> None:
    before = sorted(here.iterdir())
    assert squidiff(*tokens) == 2
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert "Traceback" not in shown
    assert sorted(here.iterdir()) == before
