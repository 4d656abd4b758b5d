"""Cells are dropped before they are examined: what the doctor advises can be done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import SCHEMA_FLAGS, squidiff

from made_cells import counts, logged
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


def test_the_file_of_genes_is_not_written_over(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("g.manifest.json").write_text("gene_001\n")
    assert squidiff("prepare", "cells.h5ad", *SCHEMA_FLAGS, "--genes", "g.manifest.json", "--out", "g.h5ad") == 2
    assert "g.manifest.json is named twice, as input or output" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_warnings_of_the_data_are_said_by_prepare_and_by_train(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what a killed writer left is removed."""
    left = Path(".prepared.squidiff-4711.h5ad")
    left.touch()
    drops = ["--drop", "condition=", "--drop", "quality=bad", "--drop", "cell_type=type B,condition=control"]
    assert squidiff("prepare", "cells.h5ad", *SCHEMA_FLAGS, *drops, "--out", "prepared.h5ad") == 0
    assert not left.exists()
    expected = "warning: conditions without control cells in their context (in obs; "
    assert expected in capsys.readouterr().out
    small = ["--n-train-steps", "2", "--width", "16", "--n-latent", "4", "--n-blocks", "1", "--device", "cpu"]
    assert squidiff("train", "prepared.h5ad", *SCHEMA_FLAGS, *small, "--out", "run") == 0
    assert expected in capsys.readouterr().out
    assert squidiff("train", "prepared.h5ad", *SCHEMA_FLAGS, *small, "--out", "run", "--resume") == 2
    shown = capsys.readouterr()
    assert "training starts" not in shown.out
    assert "run already holds a trained model" in shown.err


def test_files_that_share_some_genes_are_scaled_by_the_totals_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = counts(), counts()
    two.var_names = [*one.var_names[:-10], *(f"other {i}" for i in range(10))]
    one.write_h5ad("one.h5ad")
    two.write_h5ad("two.h5ad")
    assert squidiff("prepare", "one.h5ad", "two.h5ad", *SCHEMA_FLAGS, "--normalize", "--out", "p.h5ad") == 0
    n = one.n_vars
    assert f"joined the {n - 10} genes that all files have: {n} of one, {n} of two" in capsys.readouterr().out
    prepared = read_cells("p.h5ad")
    whole = one.X.toarray() if hasattr(one.X, "toarray") else one.X
    expected = np.log1p(1e4 * whole[0, :-10] / whole[0].sum())
    np.testing.assert_allclose(prepared[0].X.toarray()[0], expected, rtol=1e-5)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The labels of the cells of counts.csv, in another order, of all but the first three."""
    monkeypatch.chdir(tmp_path)
    cells = counts()
    pd.DataFrame(cells.to_df(), index=cells.obs_names, columns=cells.var_names).to_csv("counts.csv")
    return cells.obs.iloc[:2:-1]


@pytest.mark.parametrize("corner", [True, False])
def test_a_table_of_labels_is_joined_by_the_names_of_cells(
    table: pd.DataFrame, corner: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    text = table.to_csv(sep="\t")
    Path("labels.tsv").write_text(text if corner else text.lstrip("\t"))  # as R writes it
    labels = ["--obs", "labels.tsv", *SCHEMA_FLAGS]
    assert squidiff("prepare", "counts.csv", *labels, "--normalize", "--out", "p.h5ad") == 0
    assert "3 cells that it does not name are left out" in capsys.readouterr().out
    prepared = read_cells("p.h5ad")
    assert list(prepared.obs_names) == list(counts().obs_names[3:])
    for column in table:
        assert list(prepared.obs[column].astype(str)) == list(counts().obs[column].astype(str)[3:])


def test_labels_stay_as_they_are_written(table: pd.DataFrame) -> None:
    table = table.assign(donor=[f"{i % 2 + 1:02}" for i in range(len(table))], day=[0.1 * 3, *range(1, len(table))])
    table.to_csv("labels.csv")
    arguments = ["--obs", "labels.csv", *SCHEMA_FLAGS, "--normalize", "--out", "p.h5ad"]
    assert squidiff("prepare", "counts.csv", *arguments) == 0
    prepared = read_cells("p.h5ad")
    assert set(prepared.obs["donor"]) == {"01", "02"}
    assert sorted(prepared.obs["day"])[:3] == [0.1 * 3, 1.0, 2.0]


def test_a_field_too_many_does_not_shift_the_labels(table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = table.to_csv().splitlines()
    Path("labels.csv").write_text("\n".join(["cell" + head, *(f"{row}," for row in rows)]))
    arguments = ["--obs", "labels.csv", *SCHEMA_FLAGS, "--normalize", "--out", "p.h5ad"]
    assert squidiff("prepare", "counts.csv", *arguments) == 2
    assert "labels.csv has rows of more fields than its header" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.rename(index="{}-1".format), "names none of the cells: its first column must hold their"),
        (lambda table: pd.concat([table, table[:1]]), "stands twice in labels.csv: names must be unique"),
        (lambda table: table[[]], "labels.csv has no column but the cells' names: give their labels"),
    ],
)
def test_a_table_that_describes_no_cells_is_refused(
    change: object, message: str, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    change(table).to_csv("labels.csv")
    labels = ["--obs", "labels.csv", *SCHEMA_FLAGS]
    assert squidiff("prepare", "counts.csv", *labels, "--normalize", "--out", "p.h5ad") == 2
    assert message in capsys.readouterr().err
    assert not Path("p.h5ad").exists()
