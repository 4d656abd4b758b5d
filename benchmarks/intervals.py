"""How often the intervals of the mean shift hold, on the populations that a benchmark held out.

    python benchmarks/intervals.py results/bench

Of every task and seed in the folder: the share of genes whose true mean shift lies in its interval of 50 and of 90 %,
by mean over the populations held out; the mean width of that of 90 % by the mean size of a true shift; how many
populations the widths were learned from (0: a guess); and of how many populations it is said that they are far. Genes
that the source cells do not express are left out: any interval would hold their mean.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from squidiff.config import Schema, settings_from_json
from squidiff.data.table import CellTable, read_cells
from squidiff.estimator import Squidiff
from squidiff.estimator.fitted import Fitted, summarise
from squidiff.response.populations import Population, Source


def of_task(folder: Path) -> tuple[np.ndarray, int, int]:
    """Populations x (held at 50 %, at 90 %, width); how many the widths were learned from; how many are far."""
    schema = settings_from_json(Schema, json.loads((folder / "asked.json").read_text())["schema"])
    fitted = Squidiff.load(folder / "runs/squidiff", "cpu").fitted
    cells, truth = read_cells(folder / "train.h5ad"), read_cells(folder / "truth.h5ad")
    assert isinstance(fitted, Fitted)  # upstream's architecture has no intervals
    train = CellTable.from_anndata(cells, schema, fitted.genes)
    true = CellTable.from_anndata(truth, schema, fitted.genes)
    known = summarise(train, np.zeros((len(train.keys), fitted.encoder.n_features)), schema)
    anchor, uncertainty, rows, n_far, n_learned = fitted.anchor, fitted.uncertainty, [], 0, []
    for i, parts in enumerate(true.parts):
        key = Population(*true.keys[i])
        start = known.source(key)
        if start is None or (key.condition == "" and schema.control is not None) or known.keys[start] == key:
            continue
        source, described = Source(known.keys[start], known.mean[start]), fitted.encoder.describe(parts)
        mean, _, group = anchor.answer(key, described, source)
        interval = uncertainty.interval(key, mean, group, source)
        shift = true.dense(np.flatnonzero(true.population == i)).mean(axis=0) - source.mean
        shown = known.variance[start] > 0
        held = [((shift >= low) & (shift <= high))[shown].mean() for low, high in interval.bounds.values()]
        low, high = interval.bounds[0.9]
        rows.append([*held, (high - low)[shown].mean() / np.abs(shift[shown]).mean()])
        n_far += bool(uncertainty.far(key, described, source, group))
        n_learned += [] if group is None else [uncertainty.law(group, key).n_left_out]
    return np.array(rows).reshape(-1, 3), min(n_learned, default=0), n_far


def main() -> None:
    print("| task, seed | populations | held at 50 % | held at 90 % | width / mean shift | learned from | far |")
    print("|---|---|---|---|---|---|---|")
    for folder in sorted(Path(sys.argv[1]).glob("*/seed-*")):
        rows, n_learned, n_far = of_task(folder)
        if len(rows):
            held = " | ".join(f"{x:.2f}" for x in rows.mean(axis=0))
            print(f"| {folder.parent.name}, {folder.name[5:]} | {len(rows)} | {held} | {n_learned} | {n_far} |")


if __name__ == "__main__":
    main()
