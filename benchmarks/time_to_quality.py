"""How many seconds of training on two cores it takes until generated cells are as good as true ones, beside upstream.

    python3 -m venv upstream
    upstream/bin/pip install torch==2.13.0 Squidiff==1.0.8 scanpy rdkit matplotlib scikit-learn
    OMP_WAIT_POLICY=PASSIVE python benchmarks/time_to_quality.py upstream/bin/python --out FOLDER [--minutes 5]

The setting is that of experiments/exp01.toml: 100 genes, 6 simulated cell types, treated and not, 200 training cells of
each of the 12 populations; cells of each are generated and compared with true ones that were never trained on. Without
the Python of upstream, ours alone is measured.

Quality is reached where, at once,
  r: in every population the Pearson correlation over genes of mean expression, generated and true, is 0.99 or more;
  energy: the energy distance, mean over the populations, lies below the 95th percentile of what random halves of the
  truth have. A half has --cells cells a population, and as many are generated and compared with as many true ones:
  50 by default, as the experiment holds out 100.
Also said is how many populations lie below the percentile of their own halves. Of cells that are true 95 % do, so that
all 12 do in 54 % of the cases alone: fresh true cells are shown beside. The more cells, the lower the bar: --cells 200
is the strictest. (With another number other cells are simulated, those of training too.)

Ours are the defaults, trained anew for each number of steps (the learning rate falls to 0 at the last of them), so 1
step is the untrained model. Seconds are wall seconds of `Squidiff.fit`, with all that it does before and after the
steps, in this process on two threads; one fit before is not counted, which pays for the imports. Upstream's are those
of its training script on two threads, without the imports; its batch is 64 and all else its default. It samples by its
own 1,000 steps of DDIM from the latents of training cells; values above 20 are cut there, as in accuracy.py, which
makes its errors smaller.

Read the figures with care: ours gives the cells of a known population the mean and, gene by gene, the values of its
training cells by construction, and its untrained network is the best linear denoiser. Copies of training cells are in
the table to show what the bar means. What tells generated cells from copies is the last column: the median distance to
the nearest training cell of the population, as a share of the same of true cells; of copies it is 0.

The loss is, of both, the mean squared error of the noise at upstream's 1,000 levels, of ours by the saved weights over
training cells and of upstream's the mean over the last twentieth of its steps. The units differ (ours divides each gene
by its standard deviation in a population), so only rows of one model can be compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from accuracy import MODEL, OURS, SAMPLING, TRAINING, UPSTREAM, in_markdown, run, say
from scipy.spatial.distance import cdist

from squidiff.config import Config, Sampling, Schema
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation
from squidiff.data.survey import LARGEST_LOG_VALUE
from squidiff.data.table import CellTable, write_cells
from squidiff.estimator import Squidiff
from squidiff.evaluate.baselines import principal_axes
from squidiff.evaluate.metrics import score
from squidiff.evaluate.pairs import Pair
from squidiff.files import read_json, write_atomically
from squidiff.report.numbers import shown

SCHEMA = Schema(context_keys=("cell_type", "condition"))
N_GENES, N_TYPES, N_TRAIN = 100, 6, 200
"""Of experiments/exp01.toml; training cells are of a population."""
R, ENERGY = "pearson", "energy_distance"
WANTED_R, PERCENTILE = 0.99, 95
N_SPLITS = 500
N_THREADS = 2
UPSTREAM_BATCH = 64
STEPS = (1, 25, 50, 100, 200, 400, Config().n_train_steps)
BELOW = f"below, of {2 * N_TYPES}"
"""The column that counts populations."""
Cells = dict[str, np.ndarray]
"""Of each population, N x G."""


@dataclass(frozen=True)
class Data:
    """The simulated cells."""

    train: ad.AnnData
    truth: Cells
    """Two halves of each population; cells are compared with the first."""
    fresh: Cells
    """Further true cells, as many as are compared."""
    queries: pd.DataFrame
    """The populations' columns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", type=Path, nargs="?", help="the Python that has Squidiff 1.0.8")
    parser.add_argument("--out", type=Path, required=True, help="for the table and upstream's files")
    parser.add_argument("--minutes", type=float, default=5, help="of upstream's training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of ours; upstream has the first")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="of ours, a training each")
    parser.add_argument(
        "--cells", type=int, default=50, help=f"compared of a population, {N_TRAIN} at most: so many are trained on"
    )
    arguments = parser.parse_args()
    if arguments.cells > N_TRAIN:
        parser.error(f"--cells is {arguments.cells}: there are {N_TRAIN} training cells of a population")
    torch.set_num_threads(N_THREADS)
    os.environ["OMP_NUM_THREADS"] = str(N_THREADS)  # of upstream's process
    data = simulated(arguments.cells)
    judge = Judge(data)
    rows = reference_rows(data, judge)
    row_of_ours(data, judge, 1, 0)  # pays for the imports
    for seed in arguments.seeds:
        for n_steps in arguments.steps:
            rows.append(row_of_ours(data, judge, n_steps, seed))
            say(f"seed {seed}, {n_steps} steps: {rows[-1]['training s']:.1f} s")
    if arguments.python is not None:
        python, folder = arguments.python.absolute(), arguments.out.absolute() / "upstream"  # it runs elsewhere
        rows.append(row_of_upstream(python, folder, data, judge, arguments.minutes, arguments.seeds[0]))
    table = pd.DataFrame(rows).astype({"seed": "Int64", "steps": "Int64", BELOW: "Int64"})
    write_atomically(arguments.out / "time_to_quality.csv", lambda path: table.to_csv(path, index=False))
    sys.stdout.write(f"{in_markdown(table)}\n\n{first_reached(table)}\n")


def simulated(n_cells: int) -> Data:
    """Log-normalised cells: of every population training cells, two halves of truth, and as many fresh ones."""
    n_each = N_TRAIN + 3 * n_cells
    counts = simulate_perturbation(n_genes=N_GENES, n_cell_types=N_TYPES, n_cells=n_each, seed=0)
    adata = normalize(counts, 1e4, None)
    position = adata.obs.groupby(list(SCHEMA.context_keys), observed=True).cumcount().to_numpy()
    train = adata[position < N_TRAIN].copy()
    truth = by_population(adata[(position >= N_TRAIN) & (position < N_TRAIN + 2 * n_cells)])
    fresh = by_population(adata[position >= N_TRAIN + 2 * n_cells])
    queries = train.obs[list(SCHEMA.context_keys)].drop_duplicates().reset_index(drop=True)
    return Data(train, truth, fresh, queries)


def by_population(adata: ad.AnnData) -> Cells:
    """The cells of each population, in the order of the populations' names."""
    table = CellTable.from_anndata(adata, SCHEMA)
    found = {key[0]: table.dense(np.flatnonzero(table.population == i)) for i, key in enumerate(table.keys)}
    return dict(sorted(found.items()))


class Judge:
    """Compares cells with the first half of the truth, and knows how random halves of it compare."""

    def __init__(self, data: Data) -> None:
        self.train = by_population(data.train)
        self.center, self.axes = principal_axes(CellTable.from_anndata(data.train, SCHEMA), seed=0)
        self.n_cells = len(next(iter(data.fresh.values())))
        self.truth = {name: cells[: self.n_cells] for name, cells in data.truth.items()}
        halves = [self._halves(cells) for cells in data.truth.values()]
        self.r, self.energy = (np.array([[of[metric] for of in splits] for splits in halves]) for metric in (R, ENERGY))
        """Of halves, populations x splits."""
        self.bar = float(np.percentile(self.energy.mean(axis=0), PERCENTILE))
        self.bars = np.percentile(self.energy, PERCENTILE, axis=1)
        self.nearest = self._to_nearest(self.truth)

    def row(self, cells: Cells) -> dict[str, float | int | str]:
        """The table's columns of quality, of as many cells of each population as are compared."""
        scores = pd.DataFrame([self._scores(cells[name], truth) for name, truth in self.truth.items()])
        r, energy = float(scores[R].min()), float(scores[ENERGY].mean())
        return {
            "r, mean": float(scores[R].mean()),
            "r, least": r,
            "energy distance": energy,
            BELOW: int((scores[ENERGY] < self.bars).sum()),
            "reached": "yes" if r >= WANTED_R and energy < self.bar else "no",
            "to nearest": self._to_nearest(cells) / self.nearest,
        }

    def _halves(self, truth: np.ndarray) -> list[dict[str, float]]:
        """The scores of random halves of a population against each other."""
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(truth)) for _ in range(N_SPLITS)]
        return [self._scores(truth[order[: self.n_cells]], truth[order[self.n_cells :]]) for order in orders]

    def _scores(self, predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        arrays = (predicted, truth, self._pcs(predicted), self._pcs(truth))
        return score(Pair(*(a.astype(np.float64) for a in arrays)), (R, ENERGY))

    def _pcs(self, cells: np.ndarray) -> np.ndarray:
        return np.asarray((cells - self.center) @ self.axes)

    def _to_nearest(self, cells: Cells) -> float:
        """The median distance of a cell to the nearest training cell of its population, on principal components."""
        found = [cdist(self._pcs(of), self._pcs(self.train[name])).min(axis=1) for name, of in cells.items()]
        return float(np.median(np.concatenate(found)))


def reference_rows(data: Data, judge: Judge) -> list[dict[str, object]]:
    """What random halves of the truth, fresh true cells, and copies of training cells do."""
    low = 100 - PERCENTILE
    r = {"r, mean": np.percentile(judge.r.mean(axis=0), low), "r, least": np.percentile(judge.r.min(axis=0), low)}
    copies = {name: cells[: judge.n_cells] for name, cells in judge.train.items()}
    unknown: dict[str, object] = dict.fromkeys(("seed", "steps", "training s", "sampling s", "loss"))
    return [
        {"cells": f"halves: {PERCENTILE} % are better", **unknown, **r, "energy distance": judge.bar},
        {"cells": "fresh true cells", **unknown, **judge.row(data.fresh)},
        {"cells": "copies of training cells", **unknown, **judge.row(copies)},
    ]


def row_of_ours(data: Data, judge: Judge, n_steps: int, seed: int) -> dict[str, object]:
    """Trains with the default settings but for the number of steps, and generates cells of each population."""
    model = Squidiff(SCHEMA, replace(Config(), n_train_steps=n_steps, seed=seed), "cpu")
    started = time.perf_counter()
    model.fit(data.train)
    trained = time.perf_counter()
    predicted = model.predict(data.queries.assign(n_cells=judge.n_cells), data.train, Sampling(seed=seed))
    took = {"training s": trained - started, "sampling s": time.perf_counter() - trained}
    told = {"cells": OURS, "seed": seed, "steps": model.history[-1].step, **took}
    return told | {"loss": model.provenance["noise_error"]} | judge.row(by_population(predicted))


def row_of_upstream(
    python: Path, folder: Path, data: Data, judge: Judge, minutes: float, seed: int
) -> dict[str, object]:
    """Trains for so many minutes and samples, by upstream's own code in processes of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = data.train.obs.groupby(list(SCHEMA.context_keys), observed=True).ngroup()
    obs = pd.DataFrame({"Group": codes.to_numpy(dtype=float)}, index=data.train.obs_names)
    write_cells(folder / "cells.h5ad", ad.AnnData(data.train.X.toarray(), obs, data.train.var[[]].copy()))
    options = {"data_path": folder / "cells.h5ad", "gene_size": N_GENES, "output_dim": N_GENES}
    options |= {"batch_size": UPSTREAM_BATCH, "logger_path": folder, "resume_checkpoint": folder}
    flags = [text for name, value in options.items() for text in (f"--{name}", value)]
    say(f"{UPSTREAM} trains for {minutes:g} minutes")
    run(python, "-c", TRAINING, 60 * minutes, seed, folder / "training.json", *flags, log=folder / "training.log")
    for path in (*folder.glob("opt*.pt"), *folder.glob("model_*.pt")):
        path.unlink()  # the optimiser's state and the average, a GB
    trained = read_json(folder / "training.json")
    steps, loss = trained["steps"], trained["losses"][-1]
    starts = np.concatenate([cells[: judge.n_cells] for cells in judge.train.values()])
    np.savez(folder / "asked.npz", cells=starts, shift=np.float32(0))
    say(f"{UPSTREAM} made {steps:,} steps, loss {shown(loss)}, and samples {len(starts):,} cells")
    files = folder / MODEL, folder / "asked.npz", folder / "sampled.npz"
    run(python, "-c", SAMPLING, *files, seed, log=folder / "sampling.log")
    sampled = dict(np.load(folder / "sampled.npz"))
    say(f"{(sampled['sample'] > LARGEST_LOG_VALUE).mean():.2%} of its values were cut")
    cells = np.split(np.minimum(sampled["sample"], np.float32(LARGEST_LOG_VALUE)), len(judge.train))
    took = {"training s": trained["seconds"], "sampling s": float(sampled["seconds"])}
    told = {"cells": UPSTREAM, "seed": seed, "steps": steps, **took, "loss": loss}
    return told | judge.row(dict(zip(judge.train, cells, strict=True)))


def first_reached(table: pd.DataFrame) -> str:
    """A sentence a seed of ours: the fewest steps, of those tried, and whether the most reach it."""
    lines = []
    for seed, rows in table[table["cells"] == OURS].groupby("seed"):
        rows = rows.sort_values("steps")
        first = earliest(rows[rows["reached"] == "yes"])
        singly = earliest(rows[(rows["reached"] == "yes") & (rows[BELOW] == 2 * N_TYPES)])
        last = f"{rows['steps'].iloc[-1]:,} steps: {rows['reached'].iloc[-1]}"
        lines.append(f"Seed {seed}: {first}; with every population below its own: {singly}; {last}.")
    return "\n".join(lines)


def earliest(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "never reached"
    return f"reached after {rows['training s'].iloc[0]:.1f} s (steps: {rows['steps'].iloc[0]:,})"


if __name__ == "__main__":
    main()
