"""How predicted cells vary where a simulated condition changes more than their mean, beside the baselines' cells.

    python benchmarks/variation.py [half respond] ... [--seeds 20 21 22]

Counts of 250 genes (about 2,500 a cell, negative binomial, four gene modules) of 150 cells a population, five contexts,
log-normalised; the treated cells of the first context are held out. Each law says what the condition does. Prints, for
each, the mean over seeds of five metrics: ours / best baseline of each seed / half of the true cells against the other.
One step of training, so this is the first level and the start of the diffusion. The laws were chosen while building.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import squidiff as sq
from squidiff.data.simulate import gamma_poisson

N_GENES, N_CELLS, N_CONTEXTS, DEPTH, DISPERSION = 250, 150, 5, 2500, 0.3
METRICS = ("energy_distance", "variance_error", "variance_pearson", "zero_fraction_error", "correlation_distance")
SCHEMA = sq.Schema(condition_key="condition", control="ctrl", context_keys=("context",))
Effect = Callable[["World", int, np.ndarray], tuple[np.ndarray, np.ndarray, float]]
"""Of a world, a number of cells and the effect on a context (G,): the change of each treated cell (N x G or G), its
modules (K x G) and its depth."""


class World:
    """What all contexts of a screen have in common."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.base = rng.normal(0, 1.8, N_GENES)
        self.modules = _modules(rng, 4, 0.5)
        self.others = _modules(rng, 2, 0.8)
        self.effect = _sparse(rng, 0.2, 1.0)
        self.silent = rng.choice(N_GENES, 30, replace=False)
        self.on = np.zeros(N_GENES)
        self.on[self.silent] = rng.uniform(8, 11, 30)

    def cells(self, n: int, profile: np.ndarray, modules: np.ndarray, depth: float) -> np.ndarray:
        """Log-normalised cells, n x G."""
        rng = self.rng
        log_share = profile + rng.normal(size=(n, len(modules))) @ modules
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        library = depth * np.exp(rng.normal(-0.06, 0.35, n))
        counts = gamma_poisson(library[:, None] * share / share.sum(axis=1, keepdims=True), DISPERSION, rng)
        return np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _modules(rng: np.random.Generator, n: int, sd: float) -> np.ndarray:
    modules = np.zeros((n, N_GENES))
    for module in modules:
        module[rng.choice(N_GENES, 40, replace=False)] = rng.normal(0, sd, 40)
    return modules


def _sparse(rng: np.random.Generator, share: float, sd: float) -> np.ndarray:
    return rng.normal(0, sd, N_GENES) * (rng.random(N_GENES) < share)


def _some(world: World, n: int) -> np.ndarray:
    return (world.rng.random(n) < 0.5)[:, None]


LAWS: dict[str, Effect] = {
    "all respond": lambda w, n, e: (e, w.modules, DEPTH),
    "half respond": lambda w, n, e: (1.8 * e * _some(w, n), w.modules, DEPTH),
    "each as much as it likes": lambda w, n, e: (w.rng.gamma(2, 0.5, n)[:, None] * np.abs(e), w.modules, DEPTH),
    "half switch genes on": lambda w, n, e: (w.on * _some(w, n) + 0.3 * e, w.modules, DEPTH),
    "a module more": lambda w, n, e: (0.7 * e, np.concatenate([w.modules, w.others]), DEPTH),
    "modules are lost": lambda w, n, e: (0.7 * e, 0.3 * w.modules, DEPTH),
    "sequenced deeper": lambda w, n, e: (e, w.modules, 4 * DEPTH),
}


def screen(law: Effect, seed: int, silent: bool) -> tuple[ad.AnnData, ad.AnnData]:
    """Training and held-out cells."""
    world, parts, labels = World(seed), [], []
    if silent:
        world.base[world.silent] = -9.0
    for context in range(N_CONTEXTS):
        profile = world.base + _sparse(world.rng, 0.3, 0.5)
        effect = world.effect * (1 + 0.3 * world.rng.normal(size=N_GENES))
        for condition in ("ctrl", "drug"):
            n = N_CELLS * (2 if (context, condition) == (0, "drug") else 1)
            change, modules, depth = law(world, n, effect) if condition == "drug" else (0.0, world.modules, DEPTH)
            parts.append(world.cells(n, np.broadcast_to(profile + change, (n, N_GENES)), modules, depth))
            labels += [(f"c{context}", condition)] * n
    obs = pd.DataFrame(labels, columns=["context", "condition"], index=[f"cell-{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"gene-{i}" for i in range(N_GENES)])
    cells = ad.AnnData(sp.csr_matrix(np.concatenate(parts), dtype=np.float32), obs=obs, var=var)
    held_out = ((cells.obs["context"] == "c0") & (cells.obs["condition"] == "drug")).to_numpy()
    return cells[~held_out].copy(), cells[held_out].copy()


def scored(law: str, seed: int) -> pd.DataFrame:
    """Metrics x (value, floor, ceiling) of one law and seed."""
    train, truth = screen(LAWS[law], seed, silent="on" in law.split())
    model = sq.Squidiff(SCHEMA, sq.Config(n_train_steps=1, seed=seed), "cpu").fit(train)
    predicted = model.predict(truth.obs.drop_duplicates().assign(n_cells=N_CELLS), train, sq.Sampling(seed=seed))
    table = sq.evaluate(predicted, truth, SCHEMA, train=train)
    of_model = table[table["method"] == "model"].set_index("metric")
    return of_model.loc[list(METRICS), ["value", "floor", "ceiling"]].astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("laws", nargs="*", default=list(LAWS), help=f"of {', '.join(LAWS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[20, 21, 22])
    asked = parser.parse_args()
    print(f"| law | {' | '.join(name.replace('_', ' ') for name in METRICS)} |")
    print(f"|{'---|' * (len(METRICS) + 1)}")
    for law in asked.laws:
        mean = sum(scored(law, seed) for seed in asked.seeds) / len(asked.seeds)
        print(f"| {law} | {' | '.join(' / '.join(f'{x:.3f}' for x in row) for row in mean.to_numpy())} |", flush=True)


if __name__ == "__main__":
    main()
