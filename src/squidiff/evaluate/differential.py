"""Differential expression of cells against control: Wilcoxon's rank sum for every gene at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.stats

FALSE_DISCOVERY_RATE = 0.05


@dataclass(frozen=True)
class Differential:
    """Of G genes."""

    p: np.ndarray
    """(G,) two-sided, of the normal approximation with ties and continuity corrected."""
    p_adjusted: np.ndarray
    """(G,) by Benjamini and Hochberg (1995)."""
    effect: np.ndarray
    """(G,) P(cell > control) + P(equal) / 2 - 1/2: from -1/2 to 1/2."""

    @property
    def is_significant(self) -> np.ndarray:
        """(G,)"""
        return self.p_adjusted < FALSE_DISCOVERY_RATE

    def top(self, k: int) -> np.ndarray:
        """The k genes of the smallest p, of equal ones those of the larger effect."""
        return self._order[:k]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.lexsort((-np.abs(self.effect), self.p))


def rank_sum(cells: np.ndarray, control: np.ndarray) -> Differential:
    """Of cells (N x G) against control cells (C x G). A gene that is the same in all cells has p = 1.

    What scipy's `mannwhitneyu` gives, in a third of the time: t tied ranks take (t^3 - t) / 12 from the sum of the
    squared ranks, which so tells the correction for ties.
    """
    n, m = len(cells), len(control)
    total = n + m
    ranks = scipy.stats.rankdata(np.concatenate([cells, control]), axis=0)
    u = ranks[:n].sum(axis=0) - n * (n + 1) / 2
    ties = 12 * (total * (total + 1) * (2 * total + 1) / 6 - np.square(ranks).sum(axis=0))
    variance = n * m / 12 * (total + 1 - ties / (total * max(total - 1, 1)))
    spread = np.sqrt(np.maximum(variance, 0.0))
    away = np.maximum(np.abs(u - n * m / 2) - 0.5, 0.0)  # corrected for continuity
    z = np.divide(away, spread, out=np.zeros_like(away), where=spread > 1e-9 * total)
    p = np.minimum(2 * scipy.stats.norm.sf(z), 1.0)
    return Differential(p, scipy.stats.false_discovery_control(p, method="bh"), u / (n * m) - 0.5)
