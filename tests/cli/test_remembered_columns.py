"""A file that `prepare` wrote says which column means what, so that nobody has to say it again to train on it."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pytest
from test_cli import SCHEMA_FLAGS, SMALL_FLAGS, squidiff

from made_cells import counts
from squidiff.config import Config, InputError, Schema
from squidiff.data.table import remember_schema, schema_of
from squidiff.estimator import Squidiff


@pytest.fixture
def train(tmp_path: Path) -> Path:
    counts().write_h5ad(tmp_path / "raw.h5ad")
    out = tmp_path / "train.h5ad"
    assert squidiff("prepare", tmp_path / "raw.h5ad", *SCHEMA_FLAGS, "--normalize", "--out", out) == 0
    return out


def test_without_options_training_goes_by_the_files_columns(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before, it was a model of cells without conditions, found out at the first query."""
    told, untold = tmp_path / "told", tmp_path / "untold"
    assert squidiff("train", train, *SMALL_FLAGS, *SCHEMA_FLAGS, "--out", told) == 0
    capsys.readouterr()
    assert squidiff("train", train, *SMALL_FLAGS, "--out", untold) == 0
    assert " ".join(SCHEMA_FLAGS) in " ".join(capsys.readouterr().out.split())
    assert (told / "model.safetensors").read_bytes() == (untold / "model.safetensors").read_bytes()


def test_what_is_prepared_again_keeps_them(train: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.h5ad"
    assert squidiff("prepare", train, "--drop", "cell_type=type B", "--out", out) == 0
    assert schema_of(ad.read_h5ad(out), None) == Schema("condition", "control", ("cell_type",))


def test_check_looks_at_them(train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = ad.read_h5ad(train)
    cells[cells.obs["condition"] != "control"].write_h5ad(tmp_path / "no_control.h5ad")
    assert squidiff("check", tmp_path / "no_control.h5ad") == 2
    assert "control" in capsys.readouterr().out


def test_from_python_a_model_without_columns_is_to_be_asked_for(train: Path) -> None:
    cells, config = ad.read_h5ad(train), Config(width=32, n_train_steps=2, n_warmup_steps=0)
    one, other = cells[::2].copy(), cells[1::2].copy()
    model = Squidiff(None, config, "cpu").fit(one)
    assert model.schema.context_keys == ("cell_type",)
    plain = Squidiff(Schema(), config, "cpu").fit(one)
    assert plain.schema == Schema()
    assert Squidiff(None, config, "cpu").fit(other, start=plain).schema == Schema()
    with pytest.raises(InputError, match="another schema"):
        Squidiff(model.schema, config, "cpu").fit(other, start=plain)


def test_options_that_name_fewer_columns_replace_all_and_say_so(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded: `--context-key` beside a file that remembers a condition trained a model without one, unsaid."""
    capsys.readouterr()
    assert squidiff("train", train, "--context-key", "cell_type", *SMALL_FLAGS, "--out", tmp_path / "run") == 0
    assert "the options that are given replace all of it" in " ".join(capsys.readouterr().out.split())
    assert squidiff("check", train, *SCHEMA_FLAGS) == 0
    assert "replace all" not in " ".join(capsys.readouterr().out.split())


def test_files_that_are_joined_keep_the_columns_that_they_remember(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells, other, out = ad.read_h5ad(train), tmp_path / "other.h5ad", tmp_path / "both.h5ad"
    cells.write_h5ad(other)
    assert squidiff("prepare", train, other, "--out", out) == 0
    assert schema_of(ad.read_h5ad(out), None) == Schema("condition", "control", ("cell_type",))
    remember_schema(cells, Schema(context_keys=("cell_type",)))
    cells.write_h5ad(other)
    capsys.readouterr()
    assert squidiff("prepare", train, other, "--out", out) == 2
    assert "the files remember different columns" in " ".join(capsys.readouterr().err.split())


def test_cells_without_any_column_are_said_to_be_taken_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts().write_h5ad(tmp_path / "raw.h5ad")
    assert squidiff("train", tmp_path / "raw.h5ad", "--normalize", *SMALL_FLAGS, "--out", tmp_path / "run") == 0
    assert "more cells like all of these together" in " ".join(capsys.readouterr().out.split())


def test_a_column_has_one_meaning() -> None:
    with pytest.raises(InputError, match="--context-key and --condition-key both name 'drug'"):
        Schema("drug", "control", ("cell_type", "drug"))
