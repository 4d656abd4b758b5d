"""Steps and cells a second of training, the share of the machine's own matrix multiplication it reaches, and memory.

    python3 -m venv upstream
    upstream/bin/pip install torch==2.13.0 Squidiff==1.0.8 scanpy rdkit matplotlib scikit-learn
    python benchmarks/training.py speed upstream/bin/python [--rounds 3]
    python benchmarks/training.py memory
    python benchmarks/training.py device

`speed`: 100 genes of simulated cells (and 1,000). Upstream's architecture at batch 64, by Squidiff 1.0.8's own loop and
by ours, and the default model at several batch sizes. Each run is a process of its own, the runs take turns, and of
speeds the fastest of the rounds counts, as a neighbour on the machine can only slow one down; within a run the median
over windows of steps, without the first. The rate of matrix multiplication is that of one large product in float32, the
fastest of several before and after the run; the products of a step are counted by torch's own counter. What is compared
(with upstream, with that rate) is compared within a round: the median of the rounds. bf16-mixed pays on processors that
multiply bfloat16 themselves, and costs on others.

`memory`: the peak of a whole process, by batch size and number of genes, with the cells in memory.

`device`: the accelerator that torch finds, in float32 and in bfloat16; of six windows of steps the median, without the
first. Before that it trains a few steps where any wait for the device between two of them is an error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

from squidiff.config import PRESETS, Compute, Config, Schema
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation
from squidiff.estimator import Squidiff
from squidiff.model.linear import has_onednn
from squidiff.train import run
from squidiff.train.loop import Step, TrainState
from squidiff.train.run import Record, peak_memory_mb

SCHEMA = Schema(condition_key="condition", control="control", context_keys=("cell_type",))
PRECISIONS = ("32", "bf16-mixed")
UPSTREAM = """
import json, sys, time
import numpy as np, torch
import torch.distributed as dist
from Squidiff import train_squidiff

n_steps, n_window = int(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
ends = []

class Timed(train_squidiff.TrainLoop):
    def run_step(self, batch):
        super().run_step(batch)
        if (self.step + 1) % n_window == 0:
            ends.append(time.perf_counter())
        if self.step + 1 >= n_steps:
            self.lr_anneal_steps = self.step + 1

    def save(self):
        pass

train_squidiff.TrainLoop = Timed
train_squidiff.run_training(train_squidiff.parse_args())
print(json.dumps({"steps_per_s": float(n_window / np.median(np.diff(ends)))}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("python", type=Path, help="the Python that has Squidiff 1.0.8")
    speed.add_argument("--rounds", type=int, default=3)
    commands.add_parser("memory")
    commands.add_parser("device")
    one = commands.add_parser("one", help="one run of ours, as JSON")
    one.add_argument("preset", choices=PRESETS)
    one.add_argument("batch_size", type=int)
    one.add_argument("n_genes", type=int)
    one.add_argument("n_steps", type=int)
    one.add_argument("precision", choices=PRECISIONS)
    arguments = parser.parse_args()
    if arguments.command == "one":
        sizes = (arguments.batch_size, arguments.n_genes, arguments.n_steps)
        print(json.dumps(one_run(arguments.preset, *sizes, arguments.precision)))
    elif arguments.command == "memory":
        show_memory()
    elif arguments.command == "device":
        show_device()
    else:
        show_speed(arguments.python.absolute(), arguments.rounds)


def cells(n_genes: int, n_cells: int = 2400) -> ad.AnnData:
    """Log-normalised cells of four types, half of them treated."""
    counts = simulate_perturbation(n_genes=n_genes, n_cell_types=4, n_cells=n_cells // 8, seed=0)
    return normalize(counts, 1e4, None)


def settings(preset: str, batch_size: int, n_steps: int) -> Config:
    """Six records, and nothing but steps between them."""
    every = {"log_every_steps": max(1, n_steps // 6), "validate_every_steps": 10**9, "save_every_steps": 10**9}
    return replace(PRESETS[preset], batch_size=batch_size, n_train_steps=n_steps, patience=None, **every)


def one_run(preset: str, batch_size: int, n_genes: int, n_steps: int, precision: str) -> dict[str, Any]:
    """Trains and measures."""
    from torch.utils.flop_counter import FlopCounterMode

    count_products_of_linear_layers()
    config = settings(preset, batch_size, n_steps)
    adata, records = cells(n_genes, max(2400, int(1.3 * batch_size))), []
    compute = Compute(device="cpu", precision=precision)
    Squidiff(SCHEMA, config, compute).fit(adata, on_record=records.append)
    rates = [record.cells_per_s for record in records[1:]] or [records[0].cells_per_s]
    found = {"cells_per_s": float(np.median(rates)), "peak_mb": peak_memory_mb()}
    flops = []
    for n in (1, 2):  # what goes before and after steps is in both
        with FlopCounterMode(display=False) as counter:
            Squidiff(SCHEMA, replace(config, n_train_steps=n, validation_fraction=0.0), compute).fit(adata)
        flops.append(counter.get_total_flops())
    return found | {"steps_per_s": found["cells_per_s"] / batch_size, "flops_per_step": flops[1] - flops[0]}


def count_products_of_linear_layers() -> None:
    """torch's counter does not know those of oneDNN."""
    from torch.utils.flop_counter import register_flop_formula

    if has_onednn():

        @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
        def count(x: torch.Size, weight: torch.Size, *_: object, **__: object) -> int:
            return 2 * x[0] * x[1] * weight[0]


def matmul_rate(size: int = 2048, n: int = 8) -> float:
    """Of float32, in multiplications and additions a second: the fastest of n products."""
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(n):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def run_ours(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, __file__, "one", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run_upstream(python: Path, n_genes: int, n_steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        adata = cells(n_genes)
        adata.X, adata.obs["Group"] = np.asarray(adata.X.todense()), 0
        adata.write_h5ad(Path(folder) / "cells.h5ad")
        options = {"data_path": "cells.h5ad", "gene_size": n_genes, "output_dim": n_genes, "batch_size": 64}
        options |= {"logger_path": "log", "resume_checkpoint": folder, "lr_anneal_steps": 100_000}
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command = [str(python), "-c", UPSTREAM, str(n_steps), str(max(1, n_steps // 6)), *flags]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"cells_per_s": 64 * found["steps_per_s"]}


def show_speed(python: Path, n_rounds: int) -> None:
    runs = [("upstream", 64, 100, 60), ("squidiff", 64, 100, 300), ("squidiff", 256, 100, 240)]
    runs += [("squidiff", 1024, 100, 90), ("squidiff", 256, 1000, 120), ("squidiff", 1024, 1000, 60)]
    ours = [(*each, precision) for each in runs for precision in PRECISIONS]
    found, theirs = {}, []
    for _ in range(n_rounds):
        theirs.append(run_upstream(python, 100, 60))
        for each in ours:
            before, of = matmul_rate(), run_ours(*each)
            matmul = max(before, matmul_rate())
            of |= {"matmul": matmul, "share": of["flops_per_step"] * of["steps_per_s"] / matmul}
            found.setdefault(each, []).append(of)
    rates = [of["matmul"] / 1e9 for of_rounds in found.values() for of in of_rounds]
    threads = torch.get_num_threads()
    print(f"matrix multiplication: {min(rates):.0f} to {max(rates):.0f} GFLOP/s (float32, {threads} threads)\n")
    columns = "steps/s | cells/s | times upstream's cells/s | share of matrix multiplication"
    print(f"| model | batch | genes | precision | {columns} |\n|---|---|---|---|---|---|---|---|")
    fastest = max(of["steps_per_s"] for of in theirs)
    print(f"| Squidiff 1.0.8 | 64 | 100 | 32 | {fastest:.2f} | {64 * fastest:,.0f} | 1 | |")
    for (preset, batch_size, n_genes, _, precision), of_rounds in found.items():
        steps = max(of["steps_per_s"] for of in of_rounds)
        share = f"{np.median([of['share'] for of in of_rounds]):.0%}" if precision == "32" else ""
        pairs = zip(of_rounds, theirs, strict=True)
        times = np.median([of["cells_per_s"] / of_theirs["cells_per_s"] for of, of_theirs in pairs])
        of_upstream = f"{times:.1f}" if n_genes == 100 else ""
        name = "upstream's architecture, ours" if preset == "upstream" else "default"
        numbers = f"{steps:.2f} | {steps * batch_size:,.0f} | {of_upstream} | {share}"
        print(f"| {name} | {batch_size:,} | {n_genes:,} | {precision} | {numbers} |")


def show_device() -> None:
    wait_for_nothing()
    print("| model | batch | genes | precision | steps/s | cells/s | peak memory |\n|---|---|---|---|---|---|---|")
    runs = [("squidiff", 64, 100, 600), ("squidiff", 256, 100, 600), ("squidiff", 256, 1000, 600)]
    runs += [("squidiff", 4096, 1000, 200), ("squidiff", 16_384, 1000, 90)]
    runs += [("upstream", 64, 100, 300), ("upstream", 4096, 100, 90), ("upstream", 16_384, 100, 60)]
    made = {n_genes: cells(n_genes, 24_000) for n_genes in (100, 1000)}
    for preset, batch_size, n_genes, n_steps in runs:
        for precision in PRECISIONS:
            records: list[Record] = []
            torch.cuda.reset_peak_memory_stats()
            model = Squidiff(SCHEMA, settings(preset, batch_size, n_steps), Compute(precision=precision))
            model.fit(made[n_genes], on_record=records.append)
            rate = float(np.median([record.cells_per_s for record in records[1:]]))
            numbers = f"{rate / batch_size:.0f} | {rate:,.0f} | {records[-1].device_memory_mb:,.0f} MB"
            print(f"| {preset} | {batch_size:,} | {n_genes:,} | {precision} | {numbers} |", flush=True)


def wait_for_nothing() -> None:
    """Fails where a step waits for the device; the first ones may, which set things up."""
    steps = run.training_steps

    def watched(state: TrainState, *rest: Any) -> Iterator[Step]:
        going = steps(state, *rest)
        while True:
            torch.cuda.set_sync_debug_mode("error" if state.step > 2 else "default")
            try:
                step = next(going, None)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            if step is None:
                return
            yield step

    run.training_steps = watched
    try:
        for preset in PRESETS:
            for precision in PRECISIONS:
                Squidiff(SCHEMA, settings(preset, 64, 30), Compute(precision=precision)).fit(cells(100))
    finally:
        run.training_steps = steps
    print("no step waits for the device\n")


def show_memory() -> None:
    print("| model | genes | batch 64 | batch 4,096 |\n|---|---|---|---|")
    for preset, name in (("squidiff", "default"), ("upstream", "upstream's architecture")):
        for n_genes in (100, 500, 2000, 14_000):
            peaks = [run_ours(preset, batch_size, n_genes, 3, "32")["peak_mb"] for batch_size in (64, 4096)]
            print(f"| {name} | {n_genes:,} | " + " | ".join(f"{peak:,.0f} MB" for peak in peaks) + " |", flush=True)


if __name__ == "__main__":
    main()
