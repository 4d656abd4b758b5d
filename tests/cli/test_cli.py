"""The command line: every setting is a flag, every error is one sentence and exit code 2, and the chain holds."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from made_cells import HELD_OUT, contents, counts, dense, mean_of, split
from squidiff.cli.app import main
from squidiff.cli.show import say, say_error, show_table
from squidiff.config import PRESETS, Config, Preparation, Sampling, Schema

SCHEMA_FLAGS = ["--condition-key", "condition", "--control", "control", "--context-key", "cell_type"]
SMALL_FLAGS = ["--n-latent", "8", "--width", "32", "--n-blocks", "2", "--n-axes", "4", "--n-train-steps", "20"]
SMALL_FLAGS += ["--n-warmup-steps", "5", "--batch-size", "32", "--save-every-steps", "10", "--device", "cpu"]
QUERY = ["--query", f"condition=drug,cell_type={HELD_OUT}"]
MARKUP = "[bold]x[/bold]"
HAS = {
    "check": (Schema,),
    "prepare": (Schema, Preparation),
    "train": (Schema, Config),
    "predict": (Schema, Sampling),
    "evaluate": (Schema,),
}


def squidiff(*tokens: object) -> int:
    """The exit code of a command; 0 where it just returns."""
    try:
        main([str(token) for token in tokens])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.h5ad, truth.h5ad, raw.h5ad, text.h5ad, queries.csv and a finished run."""
    folder = tmp_path_factory.mktemp("cli")
    train, truth = split()
    train.write_h5ad(folder / "train.h5ad")
    truth.write_h5ad(folder / "truth.h5ad")
    counts().write_h5ad(folder / "raw.h5ad")
    train[:, 3:].copy().write_h5ad(folder / "few_genes.h5ad")
    (folder / "text.h5ad").write_text("cells, many cells\n", encoding="utf-8")
    (folder / "queries.csv").write_text(f"condition,cell_type,n_cells\ndrug,{HELD_OUT},60\n", encoding="utf-8")
    assert squidiff("train", folder / "train.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, "--out", folder / "run") == 0
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The same as working folder, so that commands read as they would be typed."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    return folder


# --- errors


PREPARE = ["prepare", "raw.h5ad", *SCHEMA_FLAGS, "--normalize"]
TRAIN = ["train", "train.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, "--out", "new"]
PREDICT = ["predict", "run", "--source", "train.h5ad", "--out", "new/p.h5ad", "--device", "cpu"]
WRONG = {
    "a query of an unknown column": ([*PREDICT, "--query", "bogus=3"], "column 'bogus' of the queries means nothing"),
    "an output below a file": (
        ["predict", "run", "--source", "train.h5ad", "--queries", "queries.csv", "--out", "text.h5ad/p.h5ad"],
        "text.h5ad is a file, not a folder",
    ),
    "export into the run": (["export", "run", "--upstream", "run/config.json"], "lies in the run folder run"),
    "a fraction of a step": (
        ["train", "train.h5ad", *SCHEMA_FLAGS, "--n-train-steps", "1.5", "--out", "new"],
        "--n-train-steps is 1.5: it must be a whole number",
    ),
    "a fraction of a gene": (
        [*PREPARE, "--out", "new/t.h5ad", "--n-genes", "2.5"],
        "--n-genes is 2.5: it must be a whole",
    ),
    "no such file": (["train", "none.h5ad", *TRAIN[2:]], "none.h5ad does not exist or is not a file"),
    "a folder, not a file": (["train", "run", *TRAIN[2:]], "run does not exist or is not a file"),
    "unreadable": (["train", "text.h5ad", *TRAIN[2:]], "text.h5ad cannot be read as an .h5ad file"),
    "unreadable to prepare": (["prepare", "text.h5ad", "--out", "new/t.h5ad"], "text.h5ad cannot be read"),
    "missing column": ([*TRAIN, "--time-key", "day"], "column 'day' is missing"),
    "missing column to prepare": (
        ["prepare", "raw.h5ad", "--context-key", "donor", "--normalize", "--out", "new/t.h5ad"],
        "column 'donor' is missing",
    ),
    "no such control": (
        ["train", "train.h5ad", "--condition-key", "condition", "--control", "DMSO", "--out", "new"],
        "no control 'DMSO'",
    ),
    "control alone": (["train", "train.h5ad", "--control", "control", "--out", "new"], "without --condition-key"),
    "raw counts": (["train", "raw.h5ad", *TRAIN[2:]], "raw counts"),
    "unknown option": ([*TRAIN, "--n-epochs", "3"], "--n-epochs"),
    "unknown command": (["trian", "train.h5ad"], "trian"),
    "not a number": ([*TRAIN, "--seed", "many"], "many"),
    "out of range": ([*TRAIN, "--validation-fraction", "0.7"], "--validation-fraction is 0.7: it must be at most 0.5"),
    "no such choice": ([*PREDICT, *QUERY, "--sampler", "euler"], "euler"),
    "no such device": (
        ["train", "train.h5ad", *SCHEMA_FLAGS, "--out", "new", "--device", "nonsense"],
        "device 'nonsense' is not to be had",
    ),
    "no --out": (["train", "train.h5ad", *SCHEMA_FLAGS], "--out"),
    "a finished run": ([*TRAIN[:-1], "run"], "run already holds a trained model: choose another folder"),
    "genes are missing": (
        ["predict", "run", "--source", "few_genes.h5ad", "--out", "new/p.h5ad", *QUERY],
        "3 of the 40 genes of the model are missing",
    ),
    "unknown condition": (
        [*PREDICT, "--query", f"condition=drag,cell_type={HELD_OUT}"],
        "condition 'drag' is unknown",
    ),
    "unknown context": ([*PREDICT, "--query", "condition=drug,cell_type=type X"], "context 'type X'"),
    "query without '='": ([*PREDICT, "--query", "drug"], "'drug' is not of the form COLUMN=VALUE"),
    "query column": ([*PREDICT, "--query", "condition=drug"], "column 'cell_type' is missing in the queries"),
    "no queries": (PREDICT, "--queries FILE.csv or by --query"),
    "queries twice": ([*PREDICT, *QUERY, "--queries", "queries.csv"], "one of the two"),
    "no such queries": ([*PREDICT, "--queries", "none.csv"], "none.csv does not exist"),
    "no such run": (["predict", "none", *PREDICT[2:], *QUERY], "none holds no trained model: there is no such folder"),
    "schema of a run": ([*PREDICT, *QUERY, "--control", "control", "--condition-key", "condition"], "--baseline only"),
    "run and baseline": ([*PREDICT, *QUERY, "--baseline", "mean shift"], "one of the two"),
    "no such baseline": (
        ["predict", "--baseline", "oracle", *PREDICT[2:], *QUERY, *SCHEMA_FLAGS],
        "there is no baseline 'oracle'",
    ),
    "out is the input": (["prepare", "raw.h5ad", "--out", "raw.h5ad"], "raw.h5ad is named twice"),
    "both outputs are one": (
        ["prepare", "raw.h5ad", "--out", "new/t.h5ad", "--held-out", "new/t.h5ad", "--test-fraction", "0.2"],
        "new/t.h5ad is named twice",
    ),
    "the prediction is part of the run": (
        ["predict", "run", "--source", "train.h5ad", "--out", "run/model.safetensors", *QUERY],
        "run/model.safetensors lies in the run folder run",
    ),
    "no seed": (["evaluate", "train.h5ad", "train.h5ad", "--out", "new", "--seed", "-1"], "--seed is -1: it must be"),
    "no seed of a demo": (["demo", "--out", "new", "--seed", "-1"], "--seed is -1: it must be"),
    "nothing held out": (
        [*PREPARE, "--out", "new/t.h5ad", "--held-out", "new/h.h5ad", "--test-fraction", "0.001"],
        "--test-fraction 0.001 of every population is no cell",
    ),
    "the prediction is the source": (
        ["predict", "run", "--source", "train.h5ad", "--out", "train.h5ad", *QUERY],
        "train.h5ad is named twice",
    ),
    "held-out without a file": (
        ["prepare", "raw.h5ad", "--out", "new/t.h5ad", "--test-fraction", "0.2"],
        "--held-out) go together",
    ),
    "no cell matches": (
        ["prepare", "raw.h5ad", "--normalize", "--out", "new/t.h5ad", "--drop", "cell_type=type X"],
        "no cell matches 'cell_type=type X'",
    ),
    "no population in both": (
        ["evaluate", "train.h5ad", "truth.h5ad", *SCHEMA_FLAGS, "--out", "new"],
        "no population is in both files",
    ),
    "cell-eval without training cells": (
        ["evaluate", "truth.h5ad", "truth.h5ad", *SCHEMA_FLAGS, "--out", "new", "--cell-eval", "new/pair"],
        "--cell-eval needs --train",
    ),
    "cell-eval over the prediction": (
        ["evaluate", "predicted.h5ad", "truth.h5ad", "--train", "train.h5ad", "--out", "new", "--cell-eval", "."],
        "predicted.h5ad is named twice",
    ),
    "a prediction without a name": (["compare", "=a.h5ad", "--truth", "truth.h5ad", "--out", "new"], "no name"),
    "nothing to compare": (["compare", "--truth", "truth.h5ad", "--out", "new"], "no prediction is given"),
    "two of one name": (
        ["compare", "a=train.h5ad", "a=truth.h5ad", "--truth", "truth.h5ad", "--out", "new"],
        "two predictions are named 'a'",
    ),
    "scores below a file": (
        ["evaluate", "truth.h5ad", "truth.h5ad", *SCHEMA_FLAGS, "--out", "text.h5ad/new"],
        "text.h5ad is a file, not a folder",
    ),
    "nothing to adopt": (
        ["adopt", "none.npz", "--tool", "gears", *SCHEMA_FLAGS, "--out", "new/p.h5ad"],
        "none.npz does",
    ),
    "no such tool": (["adopt", "truth.h5ad", "--tool", "oracle", "--out", "new/p.h5ad"], "oracle"),
    "a name that is too long": (["check", f"{'x' * 300}.h5ad"], ".h5ad cannot be read or written: File name too long"),
    "no such prediction": (["evaluate", "none.h5ad", "truth.h5ad", "--out", "new"], "none.h5ad does not exist"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    command, sentence = WRONG[fault]
    before = contents(here)
    assert squidiff(*command) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("squidiff: ")
    assert shown.err.endswith("\n")
    assert shown.err.count("\n") == 1
    assert sentence in shown.err
    assert "Traceback" not in shown.err
    assert contents(here) == before
    assert not (here / "new").exists()


def test_a_run_that_is_not_whole_is_one_sentence(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes((here / "run" / name).read_bytes())
    out = tmp_path.with_name("p.h5ad")
    assert squidiff("predict", tmp_path, "--source", "train.h5ad", "--out", out, *QUERY) == 2
    shown = capsys.readouterr().err
    assert "training has not finished (continue it with --resume)" in shown
    assert shown.count("\n") == 1
    assert squidiff("predict", here, "--source", "train.h5ad", "--out", out, *QUERY) == 2
    assert "it is not a run folder, as `squidiff train --out` writes" in capsys.readouterr().err
    assert not out.exists()


def test_an_output_that_cannot_be_written_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file stands where a folder would have to be."""
    before = contents(here)
    out = "queries.csv/p.h5ad"
    assert squidiff("prepare", "raw.h5ad", "--normalize", "--out", out) == 2
    assert squidiff(*PREDICT[:4], "--out", out, "--baseline", "mean shift", *QUERY, *SCHEMA_FLAGS) == 2
    assert squidiff("predict", "--baseline", "mean shift", *PREDICT[2:4], "--out", out, *QUERY, *SCHEMA_FLAGS) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "queries.csv is a file, not a folder" in lines[0]
    assert all(f"{out} cannot be written" in line for line in (lines[0], lines[2]))
    assert contents(here) == before


def test_of_two_outputs_both_are_written_or_none(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "t.h5ad"
    out.write_text("old", encoding="utf-8")
    command = [*PREPARE, "--test-fraction", "0.2", "--out", out]
    for place in (tmp_path, here / "queries.csv" / "h.h5ad"):  # a folder, and a file in the place of one
        assert squidiff(*command, "--held-out", place) == 2
        assert contents(tmp_path) == {"t.h5ad": b"old"}
    assert squidiff(*command, "--held-out", tmp_path / "h.h5ad") == 0
    assert ad.read_h5ad(out).n_obs + ad.read_h5ad(tmp_path / "h.h5ad").n_obs == 240
    capsys.readouterr()


# --- nobody listens


def run_in(folder: Path, *tokens: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """A process of its own, in which every warning is an error."""
    command = [sys.executable, "-W", "error", "-m", "squidiff", *map(str, tokens)]
    return subprocess.run(command, cwd=folder, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_does_not_stop_the_work(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.h5ad"
    with open("/dev/full", "wb") as full:
        ran = run_in(folder, "prepare", "raw.h5ad", "--normalize", "--out", out, stdout=full, stderr=subprocess.PIPE)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ad.read_h5ad(out).n_obs == 240


@pytest.mark.slow
def test_a_reader_that_has_had_enough_does_not_stop_the_work(folder: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    held = ["--test-fraction", "0.2", "--held-out", tmp_path / "h.h5ad", "--out", tmp_path / "t.h5ad"]
    ran = run_in(folder, *PREPARE, *held, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert sorted(contents(tmp_path)) == ["h.h5ad", "t.h5ad", "t.manifest.json"]


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_letter_shows_another(folder: Path) -> None:
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = run_in(folder, "check", "raw.h5ad", *SCHEMA_FLAGS, env=ascii_only, capture_output=True)
    assert ran.returncode == 2
    assert b"raw counts" in ran.stdout
    assert ran.stderr == b""


# --- help and version


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert squidiff("--version") == 0
    assert capsys.readouterr().out == f"squidiff {version('squidiff-ng')}\n"


@pytest.mark.parametrize("command", HAS)
def test_every_setting_is_a_flag_with_its_help(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert squidiff(command, "--help") == 0
    shown = capsys.readouterr().out
    words = [line.strip("\N{BOX DRAWINGS LIGHT VERTICAL} *") for line in shown.splitlines()]
    rows = {row.split()[0]: row for row in words if row.startswith("--")}
    for kind in HAS[command]:
        for field in dataclasses.fields(kind):
            name = {"context_keys": "--context-key"}.get(field.name, "--" + field.name.replace("_", "-"))
            assert " ".join(field.metadata["help"].split()) in " ".join(rows[name].split())
    assert not [flag for flag in rows if "_" in flag or flag.startswith("--no-")]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert squidiff("--help") == 0
    shown = capsys.readouterr().out
    words = {line.split()[1] for line in shown.splitlines() if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL}")}
    assert {"demo", *HAS} <= words


def test_python_dash_m_is_the_command() -> None:
    ran = run_in(Path.cwd(), "--version", capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"squidiff {version('squidiff-ng')}\n", "")


# --- check


def test_check_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert squidiff("check", "train.h5ad", *SCHEMA_FLAGS, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_cells"], report["n_genes"]) == (200, 40)
    assert [f for f in report["findings"] if f["severity"] == "error"] == []
    assert squidiff("check", "raw.h5ad", *SCHEMA_FLAGS, "--json") == 2
    report = json.loads(capsys.readouterr().out)
    assert [f["what"] for f in report["findings"] if f["severity"] == "error"] == ["raw counts"]
    assert squidiff("check", "text.h5ad", "--json") == 2
    assert json.loads(capsys.readouterr().out)["findings"][0]["what"] == "unusable file"


def test_check_in_words(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert squidiff("check", "raw.h5ad", *SCHEMA_FLAGS, "--normalize") == 0
    assert "raw.h5ad: 240 cells, 40 genes" in capsys.readouterr().out
    assert squidiff("check", "raw.h5ad", *SCHEMA_FLAGS) == 2
    shown = capsys.readouterr()
    assert "raw counts" in shown.out
    assert "pass --normalize" in shown.out
    assert shown.err == ""


def test_texts_from_data_are_shown_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells, _ = split()
    cells.obs["cell_type"] = cells.obs["cell_type"].replace({"type B": MARKUP})
    rare = ((cells.obs["cell_type"] == MARKUP) & (cells.obs["condition"] == "drug")).to_numpy().nonzero()[0][3:]
    cells = cells[np.setdiff1d(np.arange(cells.n_obs), rare)].copy()
    cells.write_h5ad("[red]t.h5ad")
    assert squidiff("check", "[red]t.h5ad", *SCHEMA_FLAGS) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("[red]t.h5ad: ")
    assert MARKUP in shown
    asked = ["--query", f"condition={MARKUP},cell_type={MARKUP}"]
    base = ["predict", "--baseline", "mean shift", "--source", "[red]t.h5ad", *SCHEMA_FLAGS, "--out", "[i]p.h5ad"]
    assert squidiff(*base, *asked) == 2
    assert f"condition '{MARKUP}'" in capsys.readouterr().err
    assert squidiff(*base, "--query", f"condition=drug,cell_type={MARKUP},n_cells=20") == 0
    assert "[i]p.h5ad" in capsys.readouterr().out
    assert squidiff("evaluate", "[i]p.h5ad", "[red]t.h5ad", *SCHEMA_FLAGS, "--out", "scores") == 0
    assert MARKUP in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\rb\tc\x9bd", r"a\rb\tc\x9bd"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}gnp", r"\u202egnp"),
        ("\N{ZERO WIDTH SPACE}T", r"\u200bT"),
        ("[b]細胞 é \N{EN DASH}", "[b]細胞 é \N{EN DASH}"),
        ("two\nlines", "two\nlines"),
    ],
)
def test_what_would_tell_the_terminal_something_is_shown_escaped(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(text)
    say_error(text)
    assert capsys.readouterr() == (f"{shown}\n", f"squidiff: {shown}\n")
    show_table([text], [[text]], title=text)
    lines = [line.strip("┃│ ") for line in capsys.readouterr().out.splitlines()]
    assert all(lines.count(line) == 3 for line in shown.splitlines())


# --- the whole chain


@pytest.mark.slow
def test_the_chain_from_counts_to_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "raw.h5ad"
    raw.write_bytes((folder / "raw.h5ad").read_bytes())
    rule = f"condition=drug,cell_type={HELD_OUT}"
    prepared = ["--normalize", "--n-genes", "30", "--hold-out", rule, "--held-out", "truth.h5ad", "--out", "train.h5ad"]
    assert squidiff("prepare", raw, *SCHEMA_FLAGS, *prepared) == 0
    shown = capsys.readouterr().out
    assert "200 cells for training, 40 held out" in shown
    train, truth = ad.read_h5ad("train.h5ad"), ad.read_h5ad("truth.h5ad")
    assert (train.shape, truth.shape) == ((200, 30), (40, 30))
    assert list(train.var_names) == list(truth.var_names)

    assert squidiff("train", "train.h5ad", *SCHEMA_FLAGS, *SMALL_FLAGS, "--out", "run") == 0
    assert "trained on cpu in" in capsys.readouterr().out
    saved = json.loads(Path("run/config.json").read_text(encoding="utf-8"))
    assert (saved["config"]["width"], saved["config"]["n_train_steps"]) == (32, 20)
    assert saved["schema"]["context_keys"] == ["cell_type"]
    assert Path("run/training_loss.png").read_bytes().startswith(b"\x89PNG")

    Path("q.csv").write_text(f"condition,cell_type,n_cells\ndrug,{HELD_OUT},60\n", encoding="utf-8")
    answered = ["--source", "train.h5ad", "--device", "cpu"]
    assert squidiff("predict", "run", "--queries", "q.csv", *answered, "--out", "one.h5ad") == 0
    assert "60 predicted cells of 30 genes: one.h5ad" in capsys.readouterr().out
    assert squidiff("predict", "run", "--query", f"{rule},n_cells=60", *answered, "--out", "two.h5ad") == 0
    one, two = ad.read_h5ad("one.h5ad"), ad.read_h5ad("two.h5ad")
    assert np.array_equal(dense(one), dense(two))  # a file of queries and a query say the same
    assert list(one.var_names) == list(train.var_names)
    assert squidiff("predict", "run", "--queries", "q.csv", *answered, "--seed", "1", "--out", "two.h5ad") == 0
    assert not np.array_equal(dense(one), dense(ad.read_h5ad("two.h5ad")))

    capsys.readouterr()
    scored = ["truth.h5ad", *SCHEMA_FLAGS, "--train", "train.h5ad"]
    assert squidiff("evaluate", "one.h5ad", *scored, "--out", "scores") == 0
    scores = pd.read_csv("scores/metrics.csv")
    assert Path("scores/sample_quality.png").read_bytes().startswith(b"\x89PNG")
    assert set(scores["condition"]) == {f"{HELD_OUT}, drug"}
    assert {"model", "no change", "mean shift", "mean treated"} <= set(scores["method"])
    model = scores[scores["method"] == "model"].set_index("metric")
    assert "energy distance" in capsys.readouterr().out
    change = dense(one).mean(axis=0) - mean_of(train, condition="control", cell_type=HELD_OUT)
    true = dense(truth).mean(axis=0) - mean_of(train, condition="control", cell_type=HELD_OUT)
    assert model.loc["delta_pearson", "value"] == pytest.approx(np.corrcoef(change, true)[0, 1], abs=1e-5)


@pytest.mark.slow
def test_files_of_ours_remember_the_schema(here: Path, tmp_path: Path) -> None:
    """Prepared cells and predictions say which column means what, so that nobody has to say it again."""
    rule = f"condition=drug,cell_type={HELD_OUT}"
    train, truth, one, other = (tmp_path / f"{name}.h5ad" for name in ("train", "truth", "one", "other"))
    assert squidiff(*PREPARE, "--hold-out", rule, "--held-out", truth, "--out", train) == 0
    command = ["predict", "--baseline", "mean shift", "--source", train, *QUERY]
    assert squidiff(*command, "--out", one) == 0
    assert squidiff(*command, *SCHEMA_FLAGS, "--out", other) == 0
    assert np.array_equal(dense(ad.read_h5ad(one)), dense(ad.read_h5ad(other)))
    asked = [*QUERY, "--source", train, "--device", "cpu", "--out", tmp_path / "p.h5ad"]
    assert squidiff("predict", "run", *asked) == 0
    for predicted in (one, tmp_path / "p.h5ad"):
        assert squidiff("evaluate", predicted, truth, "--train", train, "--out", tmp_path / "a") == 0
        assert squidiff("evaluate", predicted, truth, "--train", train, *SCHEMA_FLAGS, "--out", tmp_path / "b") == 0
        scores = [(tmp_path / name / "metrics.csv").read_bytes() for name in "ab"]
        assert scores[0] == scores[1]
        assert f"{HELD_OUT}, drug".encode() in scores[0]


def test_a_baseline_predicts_without_a_run(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.h5ad"
    command = ["predict", "--baseline", "mean shift", "--source", "train.h5ad", *QUERY]
    assert squidiff(*command, *SCHEMA_FLAGS, "--out", out) == 0
    predicted, train = ad.read_h5ad(out), ad.read_h5ad("train.h5ad")
    assert predicted.n_obs == 40
    assert set(predicted.obs["cell_type"]) == {HELD_OUT}
    shifts = [
        mean_of(train, condition="drug", cell_type=t) - mean_of(train, condition="control", cell_type=t)
        for t in ("type B", "type C")
    ]
    controls = dense(train[((train.obs["condition"] == "control") & (train.obs["cell_type"] == HELD_OUT)).to_numpy()])
    moved = dense(predicted) - np.mean(shifts, axis=0)  # each predicted cell is a control cell, shifted
    nearest = np.linalg.norm(moved[:, None] - controls[None], axis=2).min(axis=1)
    assert nearest.max() < 1e-4


def test_no_change_gives_control_cells_back(here: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.h5ad"
    command = ["predict", "--baseline", "no change", "--source", "train.h5ad", *QUERY, *SCHEMA_FLAGS, "--out", out]
    assert squidiff(*command) == 0
    train = ad.read_h5ad("train.h5ad")
    controls = train[((train.obs["condition"] == "control") & (train.obs["cell_type"] == HELD_OUT)).to_numpy()]
    one, other = (np.sort(dense(x), axis=0) for x in (ad.read_h5ad(out), controls))
    assert np.array_equal(one, other)


@pytest.mark.slow
def test_a_preset_gives_what_was_not_given_even_where_that_is_the_usual_value(tmp_path: Path) -> None:
    split()[0].write_h5ad(tmp_path / "train.h5ad")
    small = [
        "--width",
        "16",
        "--n-train-steps",
        "4",
        "--batch-size",
        "256",
        "--device",
        "cpu",
    ]
    command = ("train", tmp_path / "train.h5ad", *SCHEMA_FLAGS, "--preset", "upstream", *small)
    assert squidiff(*command, "--out", tmp_path / "run") == 0
    found = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["config"]
    given = {"width": 16, "n_train_steps": 4, "batch_size": 256}
    assert Config(**found) == dataclasses.replace(PRESETS["upstream"], **given)
    assert (tmp_path / "run" / "loss_plot.pdf").read_bytes().startswith(b"%PDF")
    assert squidiff(*command, "--preset", "other", "--out", tmp_path / "none") == 2
