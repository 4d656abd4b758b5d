"""How good a score can be: the truth against itself, in halves."""

from __future__ import annotations

import dataclasses

import numpy as np

from squidiff.evaluate.metrics import METRICS, Pair, score

N_SPLITS = 10


def split_half_ceiling(pair: Pair, rng: np.random.Generator) -> dict[str, float]:
    """The mean over random splits of each metric between one half of the true cells, as prediction, and the other.

    NaN for fewer than four true cells. Halves are noisier than the whole, so a good model may pass this ceiling.
    """
    m = len(pair.truth)
    if m < 4:
        return dict.fromkeys(METRICS, float("nan"))
    scores = []
    for _ in range(N_SPLITS):
        order = rng.permutation(m)
        one, other = order[: m // 2], order[m // 2 :]
        halves = dataclasses.replace(
            pair,
            predicted=pair.truth[one],
            predicted_pcs=pair.truth_pcs[one],
            truth=pair.truth[other],
            truth_pcs=pair.truth_pcs[other],
        )
        scores.append(score(halves))
    return {name: float(np.mean([s[name] for s in scores])) for name in METRICS}
