"""`--devices 2`: two processes train and predict as one, speak with one voice, and stop together."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from logged import steps
from safetensors.numpy import load_file

from made_cells import SCHEMA, dense, small, split
from squidiff.config import as_flags
from squidiff.data.table import read_cells
from squidiff.estimator import Squidiff

CONFIG = small(n_train_steps=200, validate_every_steps=20, patience=1000, save_every_steps=50)
FLAGS = [*shlex.split(as_flags(SCHEMA)), *shlex.split(as_flags(CONFIG)), "--device", "cpu"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    split()[0].write_h5ad(folder / "train.h5ad")
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> Squidiff:
    """Trained by one process, into the folder `one`."""
    return Squidiff(SCHEMA, CONFIG, "cpu").fit(folder / "train.h5ad", out=folder / "one")


def started(folder: Path, *tokens: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "squidiff", *map(str, tokens)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, **pipes)  # type: ignore[call-overload]


def ran(folder: Path, *tokens: object) -> tuple[int, str, str]:
    process = started(folder, *tokens)
    said, error = process.communicate(timeout=300)
    return process.returncode, said, error


def until_steps(process: subprocess.Popen[str], run: Path, n_steps: int = 1) -> None:
    """Waits for so many steps in the log."""
    end = time.monotonic() + 120
    while max(steps(run), default=0) < n_steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no steps within two minutes"
        time.sleep(0.01)


def assert_same_weights(one: Path, other: Path) -> None:
    """But for rounding."""
    found, expected = (load_file(run / "model.safetensors") for run in (one, other))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-4, err_msg=name)


def test_two_processes_leave_the_run_and_the_prediction_of_one(folder: Path, one: Squidiff) -> None:
    code, said, error = ran(folder, "train", "train.h5ad", *FLAGS, "--devices", 2, "--out", "two")
    assert code == 0, error
    assert said.splitlines()[-1] == "run: two"
    assert said.count("trained on cpu") == 1  # one speaks
    assert {p.name for p in (folder / "two").iterdir()} == {p.name for p in (folder / "one").iterdir()} | {
        "training_loss.png"
    }
    assert_same_weights(folder / "two", folder / "one")
    of_one, two = (pd.read_json(folder / name / "metrics.jsonl", lines=True) for name in ("one", "two"))
    for name in ("step", "loss", "validation_loss", "loss_q1", "loss_q4", "gradient_norm"):
        np.testing.assert_allclose(two[name], of_one[name], rtol=1e-4, err_msg=name)
    provenance = json.loads((folder / "two" / "provenance.json").read_text())
    assert (provenance["processes"], provenance["precision"]) == (2, "32")

    queries = pd.DataFrame({"condition": "drug", "cell_type": ["type A", "type B", "type C"], "n_cells": [5000, 3, 70]})
    queries.to_csv(folder / "queries.csv", index=False)
    asked = ("predict", "one", "--source", "train.h5ad", "--queries", "queries.csv", "--devices", 2)
    code, said, error = ran(folder, *asked, "--cells-per-shard", 999, "--out", "shards")
    assert code == 0, error
    assert said.splitlines()[-1] == "5,073 predicted cells of 40 genes: shards"
    whole, shared = one.predict(queries, folder / "train.h5ad"), read_cells(folder / "shards")
    assert list(shared.obs_names) == list(whole.obs_names)
    assert shared.obs["source_cell"].astype(str).tolist() == whole.obs["source_cell"].astype(str).tolist()
    np.testing.assert_allclose(dense(shared), dense(whole), rtol=0, atol=1e-5)


def test_two_processes_that_are_told_to_stop_stop_together_and_one_goes_on(folder: Path, one: Squidiff) -> None:
    process = started(folder, "train", "train.h5ad", *FLAGS, "--devices", 2, "--out", "stopped")
    until_steps(process, folder / "stopped")
    process.send_signal(signal.SIGTERM)  # of two, one is told
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.count("squidiff: stopped at step ") == 1
    assert "Traceback" not in error
    before = steps(folder / "stopped")
    assert before[-1] < CONFIG.n_train_steps
    resumed = Squidiff(SCHEMA, CONFIG, "cpu")
    resumed.fit(folder / "train.h5ad", out=folder / "stopped", resume=True)
    taken = [record.step for record in resumed.history]
    assert taken[: len(before)] == before
    assert taken == sorted(set(taken))
    assert taken[-1] == CONFIG.n_train_steps
    assert_same_weights(folder / "stopped", folder / "one")


def test_shares_of_the_network_are_saved_whole_and_taken_up_again_by_one(folder: Path, one: Squidiff) -> None:
    """Past validations and saves, which look at all of it between steps."""
    process = started(folder, "train", "train.h5ad", *FLAGS, "--devices", 2, "--strategy", "fsdp", "--out", "shared")
    until_steps(process, folder / "shared", 60)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, error
    Squidiff(SCHEMA, CONFIG, "cpu").fit(folder / "train.h5ad", out=folder / "shared", resume=True)
    assert_same_weights(folder / "shared", folder / "one")


def test_upstreams_architecture_trains_in_two_processes(folder: Path) -> None:
    upstream = ("--preset", "upstream", "--width", 16, "--n-train-steps", 20, "--batch-size", 32, "--device", "cpu")
    columns = shlex.split(as_flags(SCHEMA))
    code, said, error = ran(folder, "train", "train.h5ad", *columns, *upstream, "--devices", 2, "--out", "upstream")
    assert code == 0, error
    assert said.splitlines()[-1] == "run: upstream"
    assert (folder / "upstream" / "model.pt").exists()


def test_an_error_is_said_once(folder: Path, one: Squidiff) -> None:
    code, said, error = ran(folder, "train", "train.h5ad", *FLAGS, "--devices", 3, "--out", "odd")
    assert (code, said) == (2, "")
    assert error == "squidiff: --batch-size 32 cannot be shared evenly by 3 processes\n"
    assert not (folder / "odd").exists()
    asked = ("predict", "one", "--source", "train.h5ad", "--query", "condition=nothing,cell_type=type A")
    code, said, error = ran(folder, *asked, "--devices", 2, "--out", "none.h5ad")
    assert (code, error.count("squidiff: ")) == (2, 1), error


def test_a_process_that_dies_ends_the_work_with_a_sentence(folder: Path) -> None:
    process = started(folder, "train", "train.h5ad", *FLAGS, "--devices", 2, "--out", "dies")
    until_steps(process, folder / "dies")
    for child in psutil.Process(process.pid).children():
        child.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode in (2, -signal.SIGKILL)  # Fabric kills who waits for ever
    assert "Traceback" not in error
