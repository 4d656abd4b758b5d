"""How well each predictor of the mean knows a context that it has not seen, or a combination: each is left out in turn.

    python benchmarks/unseen_context.py PREPARED.h5ad CONDITION_COLUMN CONTROL CONTEXT_COLUMN,... [--combinations]
    python benchmarks/unseen_context.py simulated N_TYPES N_GENES

The treated cells of each context are left out, one condition at a time; each predictor is fitted on all the others
and predicts their mean from the context's control cells. Prints for each predictor the mean squared error, as a share
of the mean shift's, and delta Pearson, both averaged over what was left out. Simulated: seeds 10 to 13, 200 cells a
population. With --combinations those are left out, and errors are shares of the sum's.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace

import anndata as ad
import numpy as np

from squidiff.config import Schema
from squidiff.data.conditions import ConditionEncoder
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation
from squidiff.data.table import CellTable
from squidiff.response.groups import BASELINES
from squidiff.response.parts import split
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor

NAMES = ("no change", "mean shift", "weighted shift", "proportional shift")
OF_COMBINATIONS = ("no change", "additive", "linear parts", "mean of parts")
ANCHOR = "the model's anchor"


def summaries(adata: ad.AnnData, schema: Schema) -> Populations:
    """The populations of a data set, with their parts, which the model's anchor alone looks at."""
    table = CellTable.from_anndata(adata, schema)
    encoder = ConditionEncoder.fit(table.parts, schema)
    features = np.stack([encoder.describe(parts) for parts in table.parts])
    keys = tuple(Population(*key) for key in table.keys)
    found = Populations.summarise(table.blocks(), table.population, keys, features, has_control=True)
    return replace(found, parts=split(table.dense(np.arange(len(table.names))), table.population, found))


def left_out(populations: Populations, names: tuple[str, ...]) -> Iterator[dict[str, tuple[float, float]]]:
    """Mean squared error and delta Pearson of each predictor, for every population that all can predict."""
    for i in populations.treated:
        known, key = populations.only(np.delete(np.arange(len(populations.keys)), i)), populations.keys[i]
        start = known.source(key)
        assert start is not None  # the treated have a source
        source = Source(known.keys[start], known.mean[start])
        asked = (key, populations.features[i], source)
        scores = {}
        try:
            guesses = {name: BASELINES[name]().fit(known).predict(*asked) for name in names}
        except CannotPredict:
            continue
        for name, guess in {**guesses, ANCHOR: Anchor().fit(known).predict(*asked)[0]}.items():
            error = float(np.square(guess - populations.mean[i]).mean())
            changes = np.stack([guess, populations.mean[i]]) - source.mean
            scores[name] = (error, float(np.corrcoef(changes)[0, 1]) if changes.any(axis=1).all() else np.nan)
        yield scores


def data_sets(arguments: list[str]) -> Iterator[Populations]:
    if arguments[0] == "simulated":
        schema = Schema(condition_key="condition", control="control", context_keys=("cell_type",))
        for seed in range(10, 14):
            counts = simulate_perturbation(int(arguments[2]), int(arguments[1]), 200, seed=seed)
            yield summaries(normalize(counts, 1e4, None), schema)
    else:
        path, condition_key, control, context_keys = arguments
        schema = Schema(condition_key=condition_key, control=control, context_keys=tuple(context_keys.split(",")))
        yield summaries(ad.read_h5ad(path), schema)


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--combinations"]
    names = NAMES if len(arguments) == len(sys.argv) - 1 else OF_COMBINATIONS
    scores = [row for populations in data_sets(arguments) for row in left_out(populations, names)]
    plain = np.mean([row[names[1]][0] for row in scores])
    sys.stdout.write(f"{len(scores)} populations left out in turn\n")
    for name in (*names, ANCHOR):
        error, correlation = np.mean([row[name] for row in scores], axis=0)
        sys.stdout.write(f"{name:<20} {error / plain:6.3f} {correlation:6.3f}\n")


if __name__ == "__main__":
    main()
