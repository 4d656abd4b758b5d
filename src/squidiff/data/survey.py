"""What one pass over X tells of its values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from squidiff.config import InputError
from squidiff.data.matrix import CellsOnDisk, Matrix, blocks

LARGEST_LOG_VALUE = 20.0
"""log1p of half a billion: what is larger was not logged."""


@dataclass(frozen=True)
class Survey:
    """Of N x G values."""

    n_bad: int
    """NaN or infinite. With any, what follows is of no use."""
    n_nonzero: int
    n_negative: int
    n_large: int
    """Above LARGEST_LOG_VALUE."""
    is_whole: bool
    """Whether every value is a whole number."""
    lowest: np.ndarray
    """(G,) of each gene."""
    highest: np.ndarray
    """(G,)"""
    n_expressed: np.ndarray
    """(N,) genes of each cell whose value is not 0."""
    totals: np.ndarray
    """(N,) sum of each cell."""
    total_counts: np.ndarray | None
    """(N,) sum(expm1(X)) of each cell: its counts, if X is their log1p. None where X has negative values."""

    @property
    def looks_like_counts(self) -> bool:
        """Whether every value is a whole number of 0 or more, and some are larger than 1.

        A float32 of 2^24 or more is always whole, and no cell has as many counts of a gene.
        """
        is_in_range = not self.n_bad and self.lowest.min() >= 0 and 1 < self.highest.max() < 2**24
        return bool(self.is_whole and is_in_range)

    @property
    def non_negative(self) -> np.ndarray:
        """Which genes have no negative value, (G,)."""
        return self.lowest >= 0

    def require_finite(self, where: str) -> None:
        """Raises InputError when a value is NaN or infinite."""
        if self.n_bad:
            raise InputError(f"X of {where} holds NaN or infinite values: run `squidiff check` on the file")


def survey(cells: Matrix | CellsOnDisk) -> Survey:
    """One pass over N x G cells, block by block."""
    n_bad = n_nonzero = n_negative = n_large = 0
    is_whole = True
    lowest, highest = np.full(cells.shape[1], np.inf, np.float32), np.full(cells.shape[1], -np.inf, np.float32)
    n_expressed, totals, total_counts = [], [], []
    # NaN of a damaged file may warn; infinite sums, where values were not logged, say as much
    with np.errstate(over="ignore", invalid="ignore"):
        for block in blocks(cells):
            values = block.data if sp.issparse(block) else block
            n_bad += values.size - int(np.isfinite(values).sum())
            n_negative += int((values < 0).sum())
            n_large += int((values > LARGEST_LOG_VALUE).sum())
            is_whole = is_whole and bool((values == np.rint(values)).all())
            by_gene = block.tocsc() if sp.issparse(block) else block
            np.minimum(lowest, _ravel(by_gene.min(axis=0)), out=lowest)
            np.maximum(highest, _ravel(by_gene.max(axis=0)), out=highest)
            n_expressed.append(_ravel((block != 0).sum(axis=1)))
            n_nonzero += int(n_expressed[-1].sum())
            totals.append(_ravel(block.sum(axis=1, dtype=np.float64)))
            if not n_negative and not n_bad:
                total_counts.append(_ravel(np.expm1(block).sum(axis=1, dtype=np.float64)))
    return Survey(
        n_bad,
        n_nonzero,
        n_negative,
        n_large,
        is_whole,
        lowest,
        highest,
        np.concatenate(n_expressed),
        np.concatenate(totals),
        None if n_negative or n_bad else np.concatenate(total_counts),
    )


def _ravel(of_axis: np.ndarray | sp.spmatrix) -> np.ndarray:
    return np.asarray(of_axis.toarray() if sp.issparse(of_axis) else of_axis).ravel()
