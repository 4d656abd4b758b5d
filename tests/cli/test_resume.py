"""Training killed at any moment and resumed ends in the same bytes; nothing needs to be told to it but --resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from logged import steps

from made_cells import split

FLAGS = ["--condition-key", "condition", "--control", "control", "--context-key", "cell_type", "--n-latent", "8"]
FLAGS += ["--width", "32", "--n-blocks", "2", "--n-axes", "4", "--n-train-steps", "160", "--batch-size", "32"]
FLAGS += ["--n-warmup-steps", "20", "--save-every-steps", "20", "--validate-every-steps", "20"]
FLAGS += ["--log-every-steps", "10", "--patience", "1000", "--device", "cpu"]

pytestmark = pytest.mark.slow


def train(data: Path, out: Path, *more: str, limit: Callable[[], object] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "squidiff", "train", str(data), *FLAGS, "--out", str(out), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, env=os.environ, preexec_fn=limit)  # type: ignore[call-overload]


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


@pytest.mark.parametrize("n_steps", [0, 100], ids=["first state", "two thirds"])
def test_a_run_killed_and_resumed_ends_in_the_same_bytes(data: Path, whole: Path, tmp_path: Path, n_steps: int) -> None:
    run = tmp_path / "run"
    process = train(data, run)
    try:
        until_saved(process, run, n_steps)
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
    assert before < 160
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert steps(run) == steps(whole) == list(range(10, 170, 10))
    for one, other in zip(*((r / "metrics.jsonl").read_text().splitlines() for r in (run, whole)), strict=True):
        kept = [{k: v for k, v in json.loads(x).items() if "loss" in k or k == "learning_rate"} for x in (one, other)]
        assert kept[0] == kept[1]
    left = {p.name for p in run.iterdir()}
    assert left == {p.name for p in whole.iterdir()}


def until_saved(process: subprocess.Popen[str], run: Path, n_steps: int = 0) -> None:
    """Waits for a saved state and for so many steps."""
    end = time.monotonic() + 120
    while not ((run / "resume" / "state.safetensors").exists() and max(steps(run), default=0) >= n_steps):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "no saved state within two minutes"
        time.sleep(0.002)


def assert_resumes_to(whole: Path, data: Path, run: Path) -> str:
    """What it said."""
    resumed = train(data, run, "--resume")
    said, error = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, error
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    return said


def test_a_run_that_is_told_to_stop_says_so_and_resumes(data: Path, whole: Path, tmp_path: Path) -> None:
    """As SIGINT, of which `train/test_saving.py` speaks too."""
    number = signal.SIGTERM
    process = train(data, tmp_path / "run")
    until_saved(process, tmp_path / "run", 60)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert error.splitlines()[-1].startswith("squidiff: stopped at step ")
    assert "Traceback" not in error
    assert_resumes_to(whole, data, tmp_path / "run")


def test_a_second_process_is_refused_while_the_first_trains(data: Path, tmp_path: Path) -> None:
    process = train(data, tmp_path / "run")
    try:
        until_saved(process, tmp_path / "run")
        process.send_signal(signal.SIGSTOP)  # it holds its lock and goes no further
        second = train(data, tmp_path / "run", "--resume")
        _, error = second.communicate(timeout=120)
        assert second.returncode == 2
        assert "another training is under way in" in error
    finally:
        process.kill()
        process.communicate()


def test_a_full_disk_ends_training_in_a_sentence_and_the_state_before_is_gone_on_with(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    """No file may grow beyond a few kB: the next state does not fit, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    run = tmp_path / "run"
    process = train(data, run)
    until_saved(process, run, 60)
    process.kill()
    process.communicate()
    kept = {path.name for path in (run / "resume").iterdir()}
    limits = (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    full = train(data, run, "--resume", limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    _, error = full.communicate(timeout=120)
    assert full.returncode == 2, error
    assert "cannot be written: File too large" in error.replace("\n", " ")
    assert "Traceback" not in error
    assert {path.name for path in (run / "resume").iterdir()} <= kept | {"previous.safetensors"}
    assert_resumes_to(whole, data, run)
