"""How good a score can be: the truth against itself, in halves."""

from __future__ import annotations

import dataclasses

import numpy as np

from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Pair

N_SPLITS = 10
N_COSTLY_SPLITS = 3
"""Of the metrics that take no resamples, as they cost more."""


def split_half_ceiling(pair: Pair, rng: np.random.Generator) -> dict[str, float]:
    """The mean over random splits of each metric between one half of the true cells, as prediction, and the other.

    NaN for fewer than four true cells. Halves are noisier than the whole, so a good model may pass this ceiling.
    """
    m = len(pair.truth)
    if m < 4:
        return dict.fromkeys(METRICS, float("nan"))
    scores: dict[str, list[float]] = {name: [] for name in METRICS}
    for i in range(N_SPLITS):
        order = rng.permutation(m)
        one, other = order[: m // 2], order[m // 2 :]
        halves = dataclasses.replace(
            pair,
            predicted=pair.truth[one],
            predicted_pcs=pair.truth_pcs[one],
            truth=pair.truth[other],
            truth_pcs=pair.truth_pcs[other],
            expressed=pair.truly_expressed,  # of all true cells: halves would tell fewer genes
        )
        names = [name for name, metric in METRICS.items() if metric.is_resampled or i < N_COSTLY_SPLITS]
        for name, value in score(halves, names).items():
            scores[name].append(value)
    return {name: float(np.mean(values)) for name, values in scores.items()}
