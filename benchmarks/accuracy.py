"""How well upstream (PyPI's Squidiff 1.0.8, in an environment of its own) does on the benchmark's tasks, beside ours.

    python3 -m venv upstream
    upstream/bin/pip install torch==2.13.0 Squidiff==1.0.8 scanpy rdkit matplotlib scikit-learn
    python benchmarks/accuracy.py upstream/bin/python --data FOLDER --out FOLDER [--tasks kang-b-cells] [--minutes 5]

Both are trained on the same cells. Upstream trains by its own loop, loader and defaults for --minutes (or --steps, to
which its learning rate then falls, as its own option says) and samples by its own 1,000 steps of DDIM; ours trains by
its own defaults, and it is said when that took longer than the budget. Each predicted cell starts from a cell of the
source, so a population has as many as its source, --cells at most, of both models.

Upstream predicts by the arithmetic of mean latents, as `estimator.upstream.LatentGenerator` does it, but without the
noise that ours adds to them: the mean shift of other contexts, the shifts of a combination's parts added, or the mean
between the times around.
With drugs its encoder is shown control cells and the fingerprint that is asked for. The weights are the newest
(`model.pt`), which its sampler is given; its average (decay 0.9999) is still mostly the untrained model after the few
thousand steps of a CPU.

Its samples are bounded below, by 0, but not above, and after few steps of training have values in the hundreds. Scoring
refuses those, as no logarithm of a count is as large; so they are cut at 20, which makes their errors smaller.
times.csv says what share of the values was; `upstream/sampled.npz` holds them as they came.

OUT/TASK/seed-S keeps what each step made; a rerun does what is missing, and refuses what was made otherwise.
accuracy.csv has all scores of the tasks that were named last, times.csv what their training took.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import Config, InputError, Sampling, Schema, as_flags
from squidiff.data.queries import N_CELLS, read_queries
from squidiff.data.shards import join
from squidiff.data.survey import LARGEST_LOG_VALUE
from squidiff.data.table import CellTable, as_text, read_cells, remember_schema, write_cells
from squidiff.estimator.fitted import summarise
from squidiff.estimator.generate import annotated, understood
from squidiff.estimator.run_folder import WEIGHTS
from squidiff.estimator.upstream import LatentGenerator, LatentPlan, UpstreamFitted
from squidiff.evaluate.scoring import LEAKS, OVERALL
from squidiff.files import read_json, write_atomically, write_json
from squidiff.legacy.cells import dense
from squidiff.legacy.convert import convert
from squidiff.report.numbers import shown
from squidiff.response.populations import Population, draw_rows
from squidiff.workflows.benchmark import (
    PREDICTIONS,
    QUERIES,
    RUNS,
    TRAIN,
    Task,
    hash_file,
    is_made,
    prepare_task,
    read_benchmark,
    score_task,
)

OURS, UPSTREAM = "squidiff", "Squidiff 1.0.8"
SHOWN = (
    *("delta_pearson", "energy_distance", "variance_pearson", "variance_error"),
    *("zero_fraction_error", "correlation_distance"),
)
POPULATIONS, CELLS, MODEL = "populations.csv", "cells.h5ad", "model.pt"
LATENTS_MAY_DIFFER = 1e-3
"""Of the largest latent: upstream's encoder and ours, which the shifts are from, differ by rounding alone."""

TRAINING = """
import json, sys, time
import numpy as np, torch
import torch.distributed as dist
from importlib.metadata import version
from Squidiff import train_squidiff

assert version("Squidiff") == "1.0.8", version("Squidiff")
seconds, seed, told = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
del sys.argv[1:4]  # what is left are its own options
torch.manual_seed(seed)
if not torch.cuda.is_available():
    # The only shim: without CUDA its TrainLoop asks for the number of processes, but its script sets up no process
    # group, and so ends in an error. A group of this one process, within it, needs no port.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

class TimedLoop(train_squidiff.TrainLoop):
    def run_step(self, batch):
        super().run_step(batch)
        if time.perf_counter() - started >= seconds:
            self.lr_anneal_steps = self.step + 1  # so this was the last, after which run_loop saves

train_squidiff.TrainLoop = TimedLoop
args = train_squidiff.parse_args()
started = time.perf_counter()
losses = np.array([loss.item() for loss in train_squidiff.run_training(args)])
took = time.perf_counter() - started
curve = [part.mean() for part in np.array_split(losses, min(20, len(losses)))]
said = {"seconds": took, "steps": len(losses), "losses": curve}
said |= {name: args[name] for name in ("batch_size", "lr", "lr_anneal_steps", "num_layers", "use_drug_structure")}
with open(told, "w") as file:
    json.dump(said, file)
"""

SAMPLING = """
import sys, time
import numpy as np, torch
from Squidiff import dist_util
from Squidiff.scrna_datasets import Drug_dose_encoder
from Squidiff.script_util import create_model_and_diffusion, model_and_diffusion_defaults

model_path, asked_path, out_path, seed = sys.argv[1:]
asked = np.load(asked_path)
n_genes, has_drugs = asked["cells"].shape[1], "smiles" in asked
sizes = dict(gene_size=n_genes, output_dim=n_genes, use_encoder=True, use_drug_structure=has_drugs)
model, diffusion = create_model_and_diffusion(**{**model_and_diffusion_defaults(), **sizes})
model.load_state_dict(dist_util.load_state_dict(model_path, map_location="cpu"))
model.to(dist_util.dev()).eval()
torch.manual_seed(int(seed))
cells, drugs = torch.from_numpy(asked["cells"]).to(dist_util.dev()), None
if has_drugs:
    encoded = Drug_dose_encoder(asked["smiles"].tolist(), asked["dose"].tolist())
    drugs = torch.tensor(encoded, dtype=torch.float32).to(dist_util.dev())
with torch.no_grad():
    z_sem = model.encoder(cells, label=None, drug_dose=drugs) + torch.from_numpy(asked["shift"]).to(dist_util.dev())
started, samples = time.perf_counter(), []
for i, z in enumerate(z_sem.split(256)):
    print(f"cells from {256 * i} on", flush=True)
    kwargs = {"z_mod": z}
    samples.append(diffusion.ddim_sample_loop(model, (len(z), n_genes), noise=None, model_kwargs=kwargs))
took = time.perf_counter() - started
np.savez(out_path, seconds=took, z_sem=z_sem.cpu().numpy(), sample=torch.cat(samples).cpu().numpy())
"""


class Settings(NamedTuple):
    """What was asked for on the command line."""

    python: Path
    data: Path
    out: Path
    minutes: float
    steps: int | None
    batch_size: int | None
    our_steps: int
    cells: int
    max_populations: int | None
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, help="the Python that has Squidiff 1.0.8")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the files that bench.toml names")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", help="names of bench.toml; else all of its tasks")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=5, help="of upstream's training, which ours should not exceed")
    budget.add_argument("--steps", type=int, help="of upstream's training, however long they take")
    parser.add_argument("--batch-size", type=int, help="upstream's, if not its package's default of 128")
    parser.add_argument("--our-steps", type=int, default=Config().n_train_steps, help="to try this script quickly")
    parser.add_argument("--cells", type=int, default=256, help="predicted cells a population, at most")
    parser.add_argument("--max-populations", type=int, help="of a task, evenly drawn from all in their order")
    parser.add_argument("--seed", type=int, default=0)
    said = vars(parser.parse_args())
    names = said.pop("tasks")
    tasks = {task.name: task for task in read_benchmark(Path(__file__).with_name("bench.toml")).tasks}
    unknown = sorted(set(names or ()) - set(tasks))
    if unknown:
        parser.error(f"there is no task {unknown[0]!r}: choose of {', '.join(tasks)}")
    settings = Settings(**said | {name: said[name].absolute() for name in ("python", "out")})  # steps run elsewhere
    scores, times = [], []
    for name in names or tasks:
        try:
            of_task, took = compared(tasks[name], settings)
        except InputError as error:  # the other tasks are as good without it
            say(f"{name} is left out: {error}")
            continue
        for sentence in of_task.attrs[LEAKS]:
            say(f"{name} leaks: {sentence}")
        scores.append(of_task.assign(task=name, seed=settings.seed))
        times.append({"task": name, **took})
    if not scores:
        sys.exit("no task was scored")
    table, timed = pd.concat(scores, ignore_index=True), pd.DataFrame(times)
    table = table[["task", "seed", *(c for c in table if c not in ("task", "seed"))]]
    write_atomically(settings.out / "accuracy.csv", lambda path: table.to_csv(path, index=False))
    write_atomically(settings.out / "times.csv", lambda path: timed.to_csv(path, index=False))
    sys.stdout.write(f"\n{OURS} / {UPSTREAM} / best baseline / ceiling\n\n{scores_in_markdown(table)}\n")
    sys.stdout.write(f"\n{in_markdown(timed)}\n")


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def compared(task: Task, settings: Settings) -> tuple[pd.DataFrame, dict[str, object]]:
    """The scores of both models and of the baselines, and what training and sampling took."""
    folder = settings.out / task.name / f"seed-{settings.seed}"
    prepare_task(task, settings.seed, settings.data, folder, say)
    write_populations(task.schema, folder, settings)
    theirs = predict_upstream(task.schema, folder, settings)
    ours = predict_ours(task.schema, folder, settings)
    trained, sampled = read_json(folder / "upstream/training.json"), read_json(folder / "upstream/sampling.json")
    # of a run that was interrupted and went on, its last part alone
    seconds = read_json(folder / RUNS / OURS / "provenance.json")["seconds"]
    if settings.steps is None and seconds > 60 * settings.minutes:
        say(f"{task.name}: ours trained for {seconds:.0f} s, longer than the {settings.minutes:g} minutes of upstream")
    took = {
        "training s, ours": seconds,
        "training s, upstream": trained["seconds"],
        "steps, ours": settings.our_steps,
        "steps, upstream": trained["steps"],
        "first loss, upstream": trained["losses"][0],
        "last loss, upstream": trained["losses"][-1],
        "cells": sampled["cells"],
        "sampling s, upstream": sampled["seconds"],
        "share of values cut, upstream": sampled["cut"],
    }
    return score_task({OURS: ours, UPSTREAM: theirs}, folder, settings.seed, say), took


def write_populations(schema: Schema, folder: Path, settings: Settings) -> None:
    """The populations that both are asked for, with numbers of cells: those of the source, --cells at most."""
    table = CellTable.from_anndata(read_cells(folder / TRAIN), schema)
    starts = summarise(table, np.zeros((len(table.keys), 1)), schema)
    queries = read_queries(folder / QUERIES, schema)
    queries.sort(key=lambda query: query.key)
    if settings.max_populations is not None and settings.max_populations < len(queries):
        drawn = np.linspace(0, len(queries) - 1, settings.max_populations).round().astype(int)
        queries = [queries[i] for i in drawn]
    rows = []
    for query in queries:
        start = starts.source(Population(*query.key), itself=False)
        there = None if start is None else int(starts.n_cells[start])
        n_cells = settings.cells if there is None else min(settings.cells, there)
        rows.append({**query.columns, N_CELLS: n_cells})
    write_atomically(folder / POPULATIONS, lambda path: pd.DataFrame(rows).to_csv(path, index=False))


def predict_upstream(schema: Schema, folder: Path, settings: Settings) -> Path:
    """Upstream's cells, from its training and its sampling unless they are there."""
    work, out = folder / "upstream", folder / PREDICTIONS / "upstream.h5ad"
    train_upstream(schema, folder, work, settings)
    asked = {"model": hash_file(work / MODEL), "populations": hash_file(folder / POPULATIONS), "seed": settings.seed}
    if is_made(out.with_suffix(".json"), asked, f"the prediction of {UPSTREAM}", out, work / "sampling.json"):
        return out
    fitted = convert(work / MODEL, folder / TRAIN, schema).fitted
    assert isinstance(fitted, UpstreamFitted)  # a checkpoint of upstream's is nothing else
    table = CellTable.from_anndata(read_cells(folder / TRAIN), schema, fitted.genes)
    generator = LatentGenerator(fitted, table, schema, Sampling(seed=settings.seed))
    plans = understood(read_queries(folder / POPULATIONS, schema), generator.plan)
    starts = [start_rows(table, plan, settings.seed) for plan in plans]
    rows, of_plan = np.concatenate(starts), np.repeat(np.arange(len(plans)), [len(start) for start in starts])
    cells, shift = table.dense(rows), np.stack([plan.shift for plan in plans])[of_plan]
    given = {"cells": cells, "shift": shift}
    if fitted.has_drugs:
        given |= {name: values[of_plan] for name, values in drugs_of(plans).items()}
    np.savez(work / "asked.npz", allow_pickle=False, **given)
    say(f"{folder.parent.name}, seed {settings.seed}: {UPSTREAM} samples {len(cells)} cells")
    files = work / MODEL, work / "asked.npz", work / "sampled.npz"
    run(settings.python, "-c", SAMPLING, *files, settings.seed, log=work / "sampling.log")
    sampled = dict(np.load(work / "sampled.npz"))
    z_sem = fitted.encode(cells, np.stack([plan.drugs for plan in plans])[of_plan]).cpu().numpy() + shift
    if np.abs(z_sem - sampled["z_sem"]).max() > LATENTS_MAY_DIFFER * np.abs(z_sem).max():
        raise InputError(f"latents of {UPSTREAM} and ours of the same weights differ: the shifts are not its own")
    parts = []
    for i, (plan, start) in enumerate(zip(plans, starts, strict=True)):
        x, z = (sampled[name][of_plan == i] for name in ("sample", "z_sem"))
        parts.append(annotated(x, z, table.names[start], fitted.genes, plan.index, plan.query, plan.predictor, 0))
    predicted = join(parts)
    too_large = float((predicted.X > LARGEST_LOG_VALUE).mean())
    predicted.X = np.minimum(predicted.X, np.float32(LARGEST_LOG_VALUE))
    remember_schema(predicted, schema)
    predicted.uns["squidiff"] = {"tool": UPSTREAM}
    write_cells(out, predicted)
    write_json(work / "sampling.json", {"seconds": float(sampled["seconds"]), "cells": len(cells), "cut": too_large})
    write_json(out.with_suffix(".json"), asked)
    return out


def start_rows(table: CellTable, plan: LatentPlan, seed: int) -> np.ndarray:
    """The source cells of a population: as many as it asks for, each as often as any other, give or take one."""
    available = np.flatnonzero(table.population == plan.start)
    assert plan.query.n_cells is not None  # write_populations says it
    return draw_rows(available, plan.query.n_cells, np.random.default_rng((seed, plan.index)))


def drugs_of(plans: Sequence[LatentPlan]) -> dict[str, np.ndarray]:
    """SMILES and doses of what is asked for: single drugs, as all of the tasks' are."""
    drugs = [plan.query.parts[0] for plan in plans]
    return {"smiles": np.array([str(drug.smiles) for drug in drugs]), "dose": np.array([drug.dose for drug in drugs])}


def train_upstream(schema: Schema, folder: Path, work: Path, settings: Settings) -> None:
    """Upstream's `model.pt` in `work`, by its own loop on its own form of the training cells."""
    budget = {"minutes": settings.minutes} if settings.steps is None else {"steps": settings.steps}
    asked = {"cells": hash_file(folder / TRAIN), "seed": settings.seed, "batch_size": settings.batch_size, **budget}
    told = work / "training.json"
    if is_made(work / "trained.json", asked, f"a training of {UPSTREAM}", work / MODEL, told):
        return
    work.mkdir(parents=True, exist_ok=True)
    train = read_cells(folder / TRAIN)
    obs = pd.DataFrame({"Group": np.zeros(train.n_obs)}, index=train.obs_names)  # it asks for it and never looks
    options: dict[str, object] = {"data_path": work / CELLS, "gene_size": train.n_vars, "output_dim": train.n_vars}
    options |= {"logger_path": work, "resume_checkpoint": work}  # it saves in the latter, and not without it
    if schema.smiles_key is not None and schema.dose_key is not None:
        obs["SMILES"] = as_text(train.obs[schema.smiles_key])
        obs["dose"] = pd.to_numeric(as_text(train.obs[schema.dose_key]))
        options["use_drug_structure"] = True
    if settings.steps is not None:
        options["lr_anneal_steps"] = settings.steps
    if settings.batch_size is not None:
        options["batch_size"] = settings.batch_size
    write_cells(work / CELLS, ad.AnnData(dense(train), obs=obs, var=train.var[[]].copy()))
    seconds = 60 * settings.minutes if settings.steps is None else float("inf")
    say(f"{folder.parent.name}, seed {settings.seed}: training {UPSTREAM}")
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    run(settings.python, "-c", TRAINING, seconds, settings.seed, told, *flags, log=work / "training.log")
    for path in (*work.glob("opt*.pt"), *work.glob("model_*.pt")):
        path.unlink()  # the optimiser's state and the average, a GB
    write_json(work / "trained.json", asked)


def predict_ours(schema: Schema, folder: Path, settings: Settings) -> Path:
    """Our cells, by the commands that a user gives."""
    out, model = folder / PREDICTIONS / f"{OURS}.h5ad", folder / RUNS / OURS
    asked: dict[str, object] = {"seed": settings.seed, "n_train_steps": settings.our_steps}
    asked |= {"cells": hash_file(folder / TRAIN), "populations": hash_file(folder / POPULATIONS)}
    if is_made(out.with_suffix(".json"), asked, f"the prediction of {OURS}", out):
        return out
    say(f"{folder.parent.name}, seed {settings.seed}: {OURS}")
    seed, ours = ("--seed", settings.seed), (sys.executable, "-m", "squidiff")
    if not (model / WEIGHTS).exists():
        steps, columns = ("--n-train-steps", settings.our_steps), shlex.split(as_flags(schema))
        command = (*ours, "train", folder / TRAIN, "--out", model, "--resume", *seed, *steps, *columns)
        run(*command, log=folder / "training.log")
    asked_for = ("--queries", folder / POPULATIONS, "--source", folder / TRAIN)
    run(*ours, "predict", model, *asked_for, "--out", out, *seed, log=folder / "prediction.log")
    write_json(out.with_suffix(".json"), asked)
    return out


def run(*command: object, log: Path) -> None:
    """Runs a command from the folder of its log, with the settings of threads that our own command makes."""
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [str(part) for part in command], stdout=file, stderr=subprocess.STDOUT, cwd=log.parent, env=environment
        )
    if done.returncode:
        raise InputError(f"a step ended with code {done.returncode}: see {log}")


def scores_in_markdown(table: pd.DataFrame) -> str:
    """A row a task, a column a metric: ours, upstream's, the best baseline's and the ceiling."""
    rows = []
    for name, of_task in table.groupby("task", sort=False):
        mean = of_task["condition"] == OVERALL
        of_task = of_task[mean] if mean.any() else of_task  # of a single population there is no mean
        row = {"task": name}
        for metric in SHOWN:
            by_method = of_task[of_task["metric"] == metric].set_index("method")
            values = [by_method["value"].get(method) for method in (OURS, UPSTREAM)]
            bounds = by_method.loc[OURS, ["floor", "ceiling"]] if OURS in by_method.index else (None, None)
            row[metric.replace("_", " ")] = " / ".join(map(shown, (*values, *bounds)))
        rows.append(row)
    return in_markdown(pd.DataFrame(rows))


def in_markdown(table: pd.DataFrame) -> str:
    values = [[f"{v:,}" if isinstance(v, int) else shown(v) for v in row] for row in table.astype(object).to_numpy()]
    rows = [list(table.columns), ["---"] * table.shape[1], *values]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
