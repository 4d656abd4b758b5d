"""The values of cells, N x G: in memory, or in a file from which rows are read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from squidiff.config import InputError
from squidiff.data.stamp import require_whole, stamp_of

Matrix = np.ndarray | sp.csr_matrix
"""In memory; CSR is in its canonical format."""
ROWS_AT_ONCE = 8192
VALUES_AT_ONCE = 2**24
"""Of a block, zeros included: 67 MB, were it dense."""


@dataclass(frozen=True)
class CellsOnDisk:
    """Cells of an open .h5ad file or zarr store, CSR or dense; float32, as `as_matrix` makes them, once they are read.

    Raises InputError when a part cannot be read: damage is found only then.
    """

    stored: Any
    """anndata's CSRDataset, or a dense array of h5py or zarr."""
    where: str
    """Names the file in an error."""
    gene_order: np.ndarray | None = None
    """(G,) which of the stored genes the cells have, in which order; None: all of them."""
    factor: np.ndarray | None = None
    """(N,) with it, the values are log1p(factor * stored)."""
    stamp: Any = None
    """Of the file as it was first seen; None: whether it changes is not looked at."""

    @property
    def shape(self) -> tuple[int, int]:
        n_cells, n_genes = self.stored.shape
        return n_cells, n_genes if self.gene_order is None else len(self.gene_order)

    def __getitem__(self, rows: np.ndarray | slice) -> Matrix:
        """Some cells, in the order that is asked for; each is read once."""
        if isinstance(rows, slice):
            return self._read(rows)
        distinct, place = np.unique(rows, return_inverse=True)
        cells = self._read(distinct)
        return cells if len(distinct) == len(rows) and (np.diff(rows) > 0).all() else cells[place]

    def _read(self, rows: np.ndarray | slice) -> Matrix:
        """Of sorted rows."""
        try:
            # zarr has another name for rows in any order
            stored = self.stored.oindex[rows] if hasattr(self.stored, "oindex") else self.stored[rows]
            is_changed = self.stamp is not None and stamp_of(self.stored) != self.stamp
        except Exception as error:  # h5py, zarr and their filters raise many kinds, all of which mean damage
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"X of {self.where} cannot be read ({reason}): the file was damaged or removed") from error
        if is_changed:
            raise InputError(f"{self.where} was changed while its cells were read: put it back as it was")
        cells = _real(stored)
        cells = cells if self.gene_order is None else of_genes(cells, self.gene_order)
        return cells if self.factor is None else scale_and_log(cells, self.factor[rows])


def as_matrix(adata: ad.AnnData, where: str = "the data") -> Matrix | CellsOnDisk:
    """X as float32, dense or CSR in its canonical format; X itself stays as it is, and on disk if it is there.

    Raises InputError when there is none or it does not hold real numbers.
    """
    X = adata.X
    if X is None:
        others = [*(f"--layer {name}" for name in adata.layers), *(["--use-raw"] if adata.raw is not None else [])]
        or_takes = f", or let `squidiff prepare` take them by {' or '.join(others)}" if others else ""
        raise InputError(f"X of {where} is missing: put the values to use into X{or_takes}")
    if 0 in adata.shape:
        raise InputError(f"there are {adata.n_obs} cells and {adata.n_vars} genes in {where}: both must be there")
    if X.dtype.kind not in "biuf":
        raise InputError(f"X holds values of type {X.dtype}: it must hold real numbers")
    if isinstance(X, np.ndarray) or sp.issparse(X):
        return _real(X)
    require_whole(X, where)
    return CellsOnDisk(X, where, stamp=stamp_of(X))


def in_memory(adata: ad.AnnData) -> Matrix:
    """The same, read whole should it be on disk."""
    cells = as_matrix(adata)
    return cells[:] if isinstance(cells, CellsOnDisk) else cells


def _real(X: Any) -> Matrix:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found as that
        if not sp.issparse(X):
            return np.asarray(X, dtype=np.float32)
        try:
            if X.format in ("csr", "csc"):
                X.check_format(full_check=True)  # scipy reads where a damaged file's indices point, and crashes
        except ValueError as error:
            raise InputError(f"X is no sparse matrix ({error}): the file was damaged") from None
        cells = sp.csr_matrix(X, dtype=np.float32)
    if not cells.has_canonical_format:
        # scipy sorts in place when it first needs to, and may share the indices, but not the values, with X
        cells = cells.copy()
        cells.sum_duplicates()
    return cells


def blocks(cells: Matrix | CellsOnDisk) -> Iterator[Matrix]:
    """All cells, in consecutive parts whose size does not depend on where they are stored."""
    n_cells, n_genes = cells.shape
    size = max(1, min(ROWS_AT_ONCE, VALUES_AT_ONCE // n_genes))
    if size >= n_cells and not isinstance(cells, CellsOnDisk):
        yield cells
        return
    for first in range(0, n_cells, size):
        yield cells[first : first + size]


def dense(cells: Rows, rows: np.ndarray) -> np.ndarray:
    """Some cells, rows x G, float32."""
    chosen = cells[rows]
    return chosen.toarray() if sp.issparse(chosen) else np.asarray(chosen)


def of_genes(cells: Matrix | CellsOnDisk, order: np.ndarray) -> Any:
    """The cells with these genes, in this order."""
    if isinstance(cells, CellsOnDisk):
        return replace(cells, gene_order=order if cells.gene_order is None else cells.gene_order[order])
    if not sp.issparse(cells):
        return np.take(cells, order, axis=1)
    chosen = cells[:, order]
    chosen.sort_indices()
    return chosen


def scale_and_log(cells: Matrix | CellsOnDisk, factor: np.ndarray) -> Any:
    """log1p(factor * X), the factor (N,) being each cell's own; CSR."""
    if isinstance(cells, CellsOnDisk):
        return replace(cells, factor=factor)
    scaled = sp.csr_matrix(cells, copy=True)
    scaled.data *= np.repeat(factor, np.diff(scaled.indptr)).astype(np.float32)
    np.log1p(scaled.data, out=scaled.data)
    return scaled


@dataclass(frozen=True)
class Loaded:
    """Some of the rows of other cells, in memory; they go by the rows that they have there."""

    rows: np.ndarray
    """Sorted."""
    cells: Matrix

    @classmethod
    def of(cls, cells: Matrix | CellsOnDisk, rows: np.ndarray) -> Loaded:
        rows = np.unique(rows)
        return cls(rows, cells[rows])

    def __getitem__(self, rows: np.ndarray) -> Matrix:
        return self.cells[np.searchsorted(self.rows, rows)]


Rows = Matrix | CellsOnDisk | Loaded
"""Whatever gives cells by their rows."""
