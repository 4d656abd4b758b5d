"""The chain of commands with cells on disk and predictions in shards."""

from __future__ import annotations

from pathlib import Path

import h5py
import pandas as pd
import pytest
from test_cli import SCHEMA_FLAGS, SMALL_FLAGS, squidiff

from made_cells import HELD_OUT, contents, dense, split
from squidiff.data.table import read_cells

QUERY = ["--query", f"condition=drug,cell_type={HELD_OUT},n_cells=300"]
QUERY += ["--query", "condition=control,cell_type=type B,n_cells=260"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    train, truth = split()
    train.write_h5ad("train.h5ad")
    truth.write_h5ad("truth.h5ad")
    train.to_df().to_csv("table.csv")
    return tmp_path


@pytest.mark.slow
def test_the_chain_on_disk_gives_what_the_chain_in_memory_gives(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = []
    for where, shards in (("--on-disk", ["--cells-per-shard", "200"]), ("--in-memory", [])):
        run, out = Path(f"run{where}"), Path(f"predicted{where}{'' if shards else '.h5ad'}")
        assert squidiff("train", "train.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, where, "--out", run) == 0
        said = capsys.readouterr().out
        assert ("the cells of train.h5ad stay on disk" in said) == (where == "--on-disk")
        assert squidiff("predict", run, "--source", "train.h5ad", *QUERY, where, *shards, "--out", out) == 0
        assert f"560 predicted cells of 40 genes: {out}" in capsys.readouterr().out.replace("\n", " ")
        assert squidiff("evaluate", out, "truth.h5ad", "--train", "train.h5ad", "--out", f"scores{where}") == 0
        scores.append(pd.read_csv(f"scores{where}/metrics.csv"))
        capsys.readouterr()
    one, two = (contents(Path(f"run{where}"))["model.safetensors"] for where in ("--on-disk", "--in-memory"))
    assert one == two
    assert sorted(path.name for path in Path("predicted--on-disk").iterdir()) == [
        "00000.h5ad",
        "00001.h5ad",
        "00002.h5ad",
        "shards.json",
    ]
    pd.testing.assert_frame_equal(*scores)
    shards, whole = read_cells("predicted--on-disk"), read_cells("predicted--in-memory.h5ad")
    assert (dense(shards) == dense(whole)).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["--cells-per-shard", "0", "--out", "new"], "--cells-per-shard is 0: it must be at least 1"),
        (["--cells-per-shard", "2.5", "--out", "new"], "--cells-per-shard is 2.5: it must be a whole number"),
        (["--cells-per-shard", "50", "--out", "run"], "run is there already and not an empty folder"),
        (["--cells-per-shard", "50", "--out", "train.h5ad"], "train.h5ad is named twice"),
        (["--cells-per-shard", "50", "--out", "truth.h5ad"], "truth.h5ad is there already and not an empty folder"),
        (["--cells-per-shard", "50", "--out", "run/more"], "run/more lies in the run folder run"),
        (
            ["--cells-per-shard", "50", "--out", "table.csv/more"],
            "table.csv/more/shards.json cannot be written: table.csv is a file",
        ),
        (["--on-disk", "--source", "table.csv", "--out", "new"], "X of table.csv cannot stay on disk"),
        (["--baseline", "mean shift", "--on-disk", "--out", "new"], "--on-disk and --cells-per-shard go with a run"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    here: Path, tokens: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert squidiff("train", "train.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, "--out", "run") == 0
    before = contents(here)
    capsys.readouterr()
    run = [] if "--baseline" in tokens else ["run"]
    source = [] if "--source" in tokens else ["--source", "train.h5ad"]
    assert squidiff("predict", *run, *source, *QUERY, *tokens) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"squidiff: {message}")
    assert said.err.count("\n") == 1
    assert contents(here) == before


def test_a_folder_of_shards_may_be_called_anything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert squidiff("train", "train.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, "--out", "run") == 0
    shards = ["--cells-per-shard", "300", "--out", "predicted.zarr"]
    assert squidiff("predict", "run", "--source", "train.h5ad", *QUERY, *shards) == 0
    assert squidiff("check", "predicted.zarr") == 0
    assert "predicted.zarr: 560 cells, 40 genes" in capsys.readouterr().out


def test_damage_that_training_meets_on_disk_names_the_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells, _ = split()
    cells.write_h5ad("packed.h5ad", compression="gzip")
    with h5py.File("packed.h5ad") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    with Path("packed.h5ad").open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    assert squidiff("train", "packed.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, "--on-disk", "--out", "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("squidiff: X of packed.h5ad cannot be read (")
    assert said.count("\n") == 1
    assert not Path("run").exists()
