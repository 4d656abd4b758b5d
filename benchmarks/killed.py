"""Training that is killed at random moments, and resumed, ends in the same bytes as training that is not.

    python benchmarks/killed.py [--times 100] [--seed 0]

Each round starts `squidiff train` on simulated cells, kills it (SIGKILL), goes on with `--resume`, which is killed
again, and compares model.safetensors with that of a run that was left alone. One kill of five comes at a random moment
of the whole process; the others within a random part of a second after it has written a state, in which it may write
the next one. Prints how many were killed before and after a state was there, and fails at the first difference.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation

FLAGS = "--condition-key condition --control control --context-key cell_type --n-train-steps 60 --save-every-steps 5"
FLAGS += " --log-every-steps 4 --validate-every-steps 7 --width 64 --n-warmup-steps 5 --device cpu"


def command(data: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "squidiff", "train", str(data), *FLAGS.split(), "--out", str(run), *more]


def hash_of(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def await_new_state(process: subprocess.Popen[bytes], run: Path) -> None:
    """Until a state is there that was not before, or the process has ended."""
    before = written(run)
    while process.poll() is None and written(run) == before:
        time.sleep(0.005)


def written(run: Path) -> int | None:
    """When the newest state was."""
    try:
        return (run / "resume" / "state.safetensors").stat().st_mtime_ns
    except FileNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, quiet = random.Random(arguments.seed), {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "cells.h5ad"
        normalize(simulate_perturbation(n_genes=60, n_cell_types=3, n_cells=60), 1e4, None).write_h5ad(data)
        started = time.perf_counter()
        subprocess.run(command(data, folder / "whole"), check=True, **quiet)
        whole, seconds = hash_of(folder / "whole"), time.perf_counter() - started
        n_killed, n_runs, in_states = 0, 0, {"before a state": 0, "with a state": 0, "too late": 0}
        while n_killed < arguments.times:
            run = folder / f"run-{n_runs}"
            n_runs += 1
            while not (run / "model.safetensors").exists():
                process = subprocess.Popen(command(data, run, "--resume"), **quiet)
                if rng.random() < 0.2:
                    patience = rng.uniform(0.1, 1.05) * seconds
                else:
                    await_new_state(process, run)
                    patience = rng.uniform(0, 1)
                try:
                    process.wait(timeout=patience)
                except subprocess.TimeoutExpired:
                    process.kill()
                    has_state = any((run / "resume").glob("*.safetensors"))
                    in_states["with a state" if has_state else "before a state"] += 1
                    n_killed += 1
                else:
                    in_states["too late"] += 1
                _, error = process.communicate()
                if process.returncode not in (0, -9):
                    sys.exit(f"after {n_killed} kills it ended with {process.returncode}: {error.decode()}")
            if hash_of(run) != whole:
                sys.exit(f"after {n_killed} kills {run} differs")
            sys.stderr.write(f"{n_killed} kills, {n_runs} runs\n")
    print(f"killed {n_killed} times in {n_runs} runs ({in_states}): all ended in the same bytes")


if __name__ == "__main__":
    main()
