"""How a condition changes the zeros, the spread and the correlation of genes, beside their means, as training shows.

Cells that are moved to a mean keep what else their source has: of cells half of which answer, all would be half moved.
What a move like that misses of treated populations in training is learned here, and expected of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import logit

from squidiff.response.noise import CAUTIONS, beyond_noise, risks
from squidiff.response.populations import Population, Populations
from squidiff.response.shape import ZeroLaw, least_map, set_mean
from squidiff.response.shift import drawn

N_AXES = 20
MIN_SAMPLED = 100
"""Cells of a population, that its covariance is known by."""
LOG_VARIANCE_NOISE = 2.5
"""Variance of the logarithm of a variance, times the number of cells: 2 of normal values, more of longer tails."""
NOISE_OF_ALL = 10.0
"""The same of genes that may be negative, whose values are those of all cells: few may show such a gene."""
SMALLEST_SPREAD = 1e-6
N_ROUNDS = 5
SMALLEST_SHARE = 1e-3
"""Of the longest direction's variance, that the shortest keeps: what is taken from it may be more than it has."""
MAX_RELATIVES = 12
LARGEST_CHANGE = 2.0
"""Of the logit of a zero fraction and the logarithm of a variance."""


class Covariances(NamedTuple):
    """How the genes of P populations go together, on axes that all have in common."""

    axes: np.ndarray
    """G x K"""
    matrices: np.ndarray
    """P x K x K, the covariance of standardised genes"""
    n_cells: np.ndarray
    """(P,) that tell it"""

    @classmethod
    def of(
        cls, blocks: Iterable[np.ndarray | sp.csr_matrix], population: np.ndarray, known: Populations, axes: np.ndarray
    ) -> Covariances:
        """From cells (N x G, in consecutive blocks) of the populations whose means and variances are known (N,)."""
        spread = np.sqrt(known.variance)
        per_spread = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > SMALLEST_SPREAD)
        matrices, first = np.zeros((len(known.keys), axes.shape[1], axes.shape[1])), 0
        for block in blocks:
            of_block = population[first : first + block.shape[0]]
            cells = block.toarray() if isinstance(block, sp.csr_matrix) else block
            on_axes = ((cells - known.mean[of_block]) * per_spread[of_block]) @ axes
            np.add.at(matrices, of_block, on_axes[:, :, None] * on_axes[:, None, :])
            first += len(of_block)
        return cls(axes, matrices / np.maximum(known.n_cells - 1, 1)[:, None, None], known.n_cells.copy())

    def shapes(self, n_populations: int, n_genes: int) -> dict[str, tuple[int, ...]]:
        """What the arrays of so many populations and genes must be, by their names in a run."""
        k = self.axes.shape[-1]
        return {
            "covariances.axes": (n_genes, k),
            "covariances.matrices": (n_populations, k, k),
            "covariances.n_cells": (n_populations,),
        }

    def joined(self, others: Covariances, rows: Sequence[tuple[int | None, int | None]]) -> Covariances:
        """Of populations that lie here, there (rows of both, on the same axes) or in both: that of more cells."""
        of_each = [
            (self, i) if j is None or (i is not None and self.n_cells[i] > others.n_cells[j]) else (others, j)
            for i, j in rows
        ]
        matrices, n_cells = (np.stack([of[field][i] for of, i in of_each]) for field in (1, 2))
        return Covariances(self.axes, matrices, n_cells)


class Relatives(NamedTuple):
    """Treated populations of training that tell how cells vary under a condition."""

    at: tuple[int, ...] = ()
    share: float = 1.0
    """How much of what they tell is expected."""


class Missed(NamedTuple):
    """What a move to a mean misses of some populations."""

    logits: np.ndarray
    """(G,) by which zero fractions are to be changed"""
    width: np.ndarray
    """(G,) the factor of the spread of values that are not zero, of genes that may be negative of all"""
    turn: np.ndarray | None
    """K x K on the common axes: the map but for the identity; None where nothing stands out"""


class Variation:
    """What a move to a new mean misses of how cells vary, over the training populations."""

    def __init__(
        self,
        populations: Populations,
        law: ZeroLaw,
        quantiles: np.ndarray,
        non_negative: np.ndarray,
        covariances: Covariances | None,
    ) -> None:
        """`quantiles` (Q x G): values of genes that are switched on; `non_negative` (G,): genes that have zeros."""
        self.populations, self.law, self.covariances = populations, law, covariances
        self.switched_on = quantiles.mean(axis=0), quantiles.var(axis=0)
        self.non_negative = non_negative
        self._missed: dict[tuple[int, ...], Missed] = {}

    def relatives(self, key: Population, shift: np.ndarray) -> Relatives:
        """What is most like a population: itself, its condition elsewhere, or other conditions here.

        Of other conditions as much is expected as the predicted shift of the mean (G,) is of theirs: a dose that does
        little changes little. None of cells that nothing was given.
        """
        populations = self.populations
        seen = populations.find(key)
        if not populations.has_control or not key.condition:
            return Relatives()
        if seen is not None:
            return Relatives((seen,)) if populations.sources[seen] >= 0 else Relatives()
        elsewhere = populations.elsewhere(key)
        if elsewhere:
            return Relatives(self._some(elsewhere))
        here = list(self._some(populations.treated_at.get((key.context, key.time), [])))
        theirs = np.square(populations.shifts(here)).sum() / max(len(here), 1)
        return Relatives(tuple(here), min(1.0, float(np.sqrt(np.square(shift).sum() / theirs))) if theirs > 0 else 1.0)

    def _some(self, indices: list[int]) -> tuple[int, ...]:
        """The same whatever order training had them in."""
        return tuple(drawn(sorted(indices, key=self.populations.name_of), MAX_RELATIVES))

    def missed(self, relatives: tuple[int, ...]) -> Missed:
        """What is missed of these populations, which many queries may share."""
        if relatives not in self._missed:
            at, start = list(relatives), self.populations.sources[list(relatives)].tolist()
            self._missed[relatives] = Missed(self._logits(at, start), self._width(at, start), self._turned(at, start))
        return self._missed[relatives]

    def zero_fraction(self, relatives: Relatives, zeros: np.ndarray) -> np.ndarray:
        """What the law says (G,), set right by what it misses in relatives."""
        if not relatives.at:
            return zeros
        change = np.exp(relatives.share * self.missed(relatives.at).logits)
        odds = np.divide(zeros, 1 - zeros, out=np.ones_like(zeros), where=zeros < 1) * change
        return np.where((zeros > 0) & (zeros < 1) & self.non_negative, odds / (1 + odds), zeros)

    def _logits(self, at: list[int], start: list[int]) -> np.ndarray:
        populations = self.populations
        expected = np.stack(
            [
                self.law.follow(populations.mean[s], populations.zero_fraction[s], populations.mean[i])
                for i, s in zip(at, start, strict=True)
            ]
        )
        n_cells = populations.n_cells[at][:, None]
        found = (populations.zero_fraction[at] * n_cells + 0.5) / (n_cells + 1)
        tells = (expected > 0.01) & (expected < 0.99)  # beyond, a cell more or less is a large change
        missed = np.where(tells, logit(found) - logit(np.clip(expected, 0.01, 0.99)), 0.0)
        middle = (found + expected) / 2
        of_both = 1 / (1 / n_cells + 1 / populations.n_cells[start][:, None])
        return _pooled(missed, of_both * middle * (1 - middle) * tells)

    def _width(self, at: list[int], start: list[int]) -> np.ndarray:
        populations = self.populations
        mean, variance, shown = self._of_shown(at)
        mean_before, variance_before, shown_before = self._of_shown(start)
        # after a move: some keep their value, those switched on take others, and all are scaled where they come down
        kept = np.minimum(1.0, np.divide(shown_before, shown, out=np.ones_like(shown), where=shown > 0))
        moved = kept * mean_before + (1 - kept) * self.switched_on[0]
        squares = kept * (variance_before + mean_before**2) + (1 - kept) * (
            self.switched_on[1] + self.switched_on[0] ** 2
        )
        down = np.minimum(1.0, np.divide(mean, moved, out=np.ones_like(mean), where=moved > 0))
        expected = np.where(self.non_negative, (squares - moved**2) * down**2, variance_before)
        n_shown = shown * populations.n_cells[at][:, None], shown_before * populations.n_cells[start][:, None]
        tells = (np.minimum(*n_shown) >= 10) & (variance > 1e-9) & (expected > 1e-9)
        missed = np.log(np.divide(variance, expected, out=np.ones_like(variance), where=tells))
        of_one = np.where(self.non_negative, LOG_VARIANCE_NOISE, NOISE_OF_ALL)
        noise = of_one * sum(1 / np.maximum(n, 1.0) for n in n_shown)
        return np.asarray(np.exp(_pooled(missed, tells / noise) / 2))

    def spread_out(
        self, relatives: Relatives, cells: np.ndarray, mean: np.ndarray, highest: float = np.inf
    ) -> np.ndarray:
        """Cells (N x G) whose values lie as much farther apart, or nearer, as those of relatives do after the move.

        Their mean (G,) stays, and of genes that have zeros no value is above `highest`.
        """
        if not relatives.at:
            return cells
        wide = widened(cells, self.missed(relatives.at).width ** relatives.share, self.non_negative)
        return np.where(self.non_negative, set_mean(wide, mean, highest), wide)

    def _of_shown(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean and variance of the values that are not zero, of genes that may be negative of all, and their share."""
        populations = self.populations
        mean, variance = populations.mean[indices], populations.variance[indices]
        shown = np.where(self.non_negative, 1 - populations.zero_fraction[indices], 1.0)
        squares = np.divide(variance + mean**2, shown, out=np.zeros_like(mean), where=shown > 0)
        mean = np.divide(mean, shown, out=np.zeros_like(mean), where=shown > 0)
        return mean, np.maximum(squares - mean**2, 0.0), shown

    def correlate(self, relatives: Relatives, cells: np.ndarray, source: np.ndarray) -> np.ndarray:
        """Cells (N x G) whose genes go together otherwise than those of source cells (M x G), as the condition wants.

        By the mean, over relatives, of the maps that give the cells of the source the covariance of the treated by
        moving them least (optimal transport between normal laws). Of what few cells tell, only the directions are kept
        that are longer than noise makes the longest (the semicircle law, Wigner 1958). Means and spread stay, and so do
        fewer cells than MIN_SAMPLED.
        """
        turn = self.missed(relatives.at).turn if relatives.at else None
        if turn is None or len(cells) < MIN_SAMPLED:
            return cells
        assert self.covariances is not None
        axes, identity = self.covariances.axes, np.eye(len(turn))
        moved, change = _standardised(cells), identity + relatives.share * turn
        before, here = (_covariance(of, axes) for of in (_standardised(source), moved))
        lengths, directions = np.linalg.eigh(here + change @ before @ change - before)
        wanted = (directions * np.maximum(lengths, SMALLEST_SHARE * lengths.max())) @ directions.T
        for _ in range(N_ROUNDS):  # genes that go together more vary more, until they are standardised again
            turned = least_map(_covariance(moved, axes), wanted) - identity
            moved = _standardised(moved + moved @ axes @ turned @ axes.T)
        return np.asarray(cells.mean(axis=0) + moved * cells.std(axis=0))

    def _turned(self, at: list[int], start: list[int]) -> np.ndarray | None:
        if self.covariances is None or not self.covariances.axes.shape[1]:
            return None
        n = self.covariances.n_cells
        pairs = [(i, s) for i, s in zip(at, start, strict=True) if min(n[i], n[s]) >= MIN_SAMPLED]
        if not pairs:
            return None
        matrices = self.covariances.matrices
        identity = np.eye(matrices.shape[1])
        maps = np.stack([least_map(matrices[s], matrices[i]) - identity for i, s in pairs])
        noise = np.array([0.5 * (1 / n[i] + 1 / n[s]) for i, s in pairs])  # of an entry
        weights = (1 / noise) / (1 / noise).sum()
        mean = np.einsum("j,jab->ab", weights, maps)
        of_entry = float((weights**2 * noise).sum())
        if len(pairs) > 1:  # contexts that differ by more than noise tell less
            apart = float(weights**2 @ np.square(maps - mean).mean(axis=(1, 2))) * len(pairs) / (len(pairs) - 1)
            of_entry = max(of_entry, apart)
        lengths, directions = np.linalg.eigh(mean)
        edge = 4 * len(identity) * of_entry
        kept = np.where(lengths**2 > edge, lengths**2 / (lengths**2 + edge), 0.0)
        return np.asarray((directions * (lengths * kept)) @ directions.T) if kept.any() else None


def widened(cells: np.ndarray, width: np.ndarray, non_negative: np.ndarray) -> np.ndarray:
    """Cells (N x G) whose values that are not zero, or all of genes that may be negative, lie so much farther apart."""
    shown = (cells != 0) | ~non_negative
    mean = np.divide(cells.sum(axis=0), shown.sum(axis=0), out=np.zeros(cells.shape[1]), where=shown.any(axis=0))
    lowest = np.where(non_negative, np.minimum(np.where(shown, cells, np.inf).min(axis=0), mean) / 2, -np.inf)
    return np.where(shown, np.maximum(mean + (cells - mean) * width, lowest), 0.0)


def _standardised(cells: np.ndarray) -> np.ndarray:
    center, spread = cells.mean(axis=0, dtype=np.float64), cells.std(axis=0, dtype=np.float64)
    return np.divide(cells - center, spread, out=np.zeros(cells.shape), where=spread > SMALLEST_SPREAD)


def _covariance(cells: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """K x K, of cells (N x G) on axes (G x K)."""
    return np.atleast_2d(np.cov(cells @ axes, rowvar=False))


def _pooled(missed: np.ndarray, information: np.ndarray) -> np.ndarray:
    """What is missed (J x G, with its information: inverse variances) as far as it stands out of noise, (G,).

    What all genes have in common, as of deeper sequencing, and what a gene has beyond that. Relatives that differ by
    more than their noise tell less, all alike (Birge 1932).
    """
    total = information.sum(axis=0)
    tells = total > 0
    if not tells.any():
        return np.zeros_like(total)
    mean = np.divide((information * missed).sum(axis=0), total, out=np.zeros_like(total), where=tells)
    n_free = (information > 0).sum(axis=0) - 1
    several = n_free > 0
    apart = 1.0
    if several.any():
        apart = float(((information * np.square(missed - mean)).sum(axis=0)[several] / n_free[several]).mean())
    noise = np.divide(max(1.0, apart), total, out=np.zeros_like(total), where=tells)
    common = float(total @ mean / total.sum())
    own = np.where(tells, mean - common, 0.0)
    kept = beyond_noise(own, noise, CAUTIONS[int(np.argmin(risks(own, noise)))])
    return np.where(tells, np.clip(common + kept, -LARGEST_CHANGE, LARGEST_CHANGE), 0.0)
