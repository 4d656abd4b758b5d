"""Training killed at any moment and resumed ends in the same bytes; nothing needs to be told to it but --resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from made_cells import split

FLAGS = ["--condition-key", "condition", "--control", "control", "--context-key", "cell_type", "--n-latent", "8"]
FLAGS += ["--width", "32", "--n-blocks", "2", "--n-axes", "4", "--n-train-steps", "600", "--batch-size", "32"]
FLAGS += ["--n-warmup-steps", "20", "--save-every-steps", "20", "--validate-every-steps", "20"]
FLAGS += ["--log-every-steps", "10", "--device", "cpu"]

pytestmark = pytest.mark.slow


def train(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "squidiff", "train", str(data), *FLAGS, "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)


def steps(run: Path) -> list[int]:
    """Of the whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line)["step"] for line in text.splitlines() if line.endswith("}")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.h5ad"
    split()[0].write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """A run that nobody interrupted."""
    out = data.with_name("whole")
    process = train(data, out)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


@pytest.mark.parametrize("n_steps", [0, 150, 400], ids=["first state", "a quarter", "two thirds"])
def test_a_run_killed_and_resumed_ends_in_the_same_bytes(data: Path, whole: Path, tmp_path: Path, n_steps: int) -> None:
    run = tmp_path / "run"
    process = train(data, run)
    try:
        end = time.monotonic() + 120
        while not ((run / "resume" / "state.safetensors").exists() and max(steps(run), default=0) >= n_steps):
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < end, "no saved state within two minutes"
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "model.safetensors").exists()

    refused = train(data, run)
    _, error = refused.communicate(timeout=120)
    assert refused.returncode == 2
    assert "holds an unfinished run: go on with --resume" in error
    assert error.count("\n") == 1
    assert "Traceback" not in error

    before = steps(run)[-1]
    resumed = train(data, run, "--resume")
    _, error = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, error
    assert before < 600
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert steps(run) == steps(whole) == list(range(10, 610, 10))
    for one, other in zip(*((r / "metrics.jsonl").read_text().splitlines() for r in (run, whole)), strict=True):
        kept = [{k: v for k, v in json.loads(x).items() if "loss" in k or k == "learning_rate"} for x in (one, other)]
        assert kept[0] == kept[1]
    left = {p.name for p in run.iterdir()}
    assert left == {p.name for p in whole.iterdir()}
