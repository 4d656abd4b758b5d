"""An endless stream of training batches, from memory or from disk in one and the same order."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from squidiff.data.dataset import Sources
from squidiff.data.matrix import CellsOnDisk, Loaded, Rows
from squidiff.data.table import CellTable

CELLS_AT_ONCE = 16_384
"""In memory at once, besides as many that are read ahead."""
CELLS_PER_BLOCK = 64
"""Neighbours in a file that are read together."""

AnyBatch = TypeVar("AnyBatch", covariant=True)


class DrawsBatches(Protocol[AnyBatch]):
    """What a stream draws from."""

    @property
    def table(self) -> CellTable: ...

    def sources(self, rng: np.random.Generator) -> Sources: ...

    def batch(
        self, rows: np.ndarray, rng: np.random.Generator, targets: Any, sources: Any, share: slice
    ) -> AnyBatch: ...


class _Window(NamedTuple):
    """What a stretch of batches needs."""

    order: np.ndarray
    """The target cells."""
    targets: Rows
    """The share of them."""
    sources: Sources


class BatchStream(Generic[AnyBatch]):
    """Endless batches: every cell once an epoch, in an order that depends on the seed and the epoch alone.

    An epoch is cut into windows of CELLS_AT_ONCE cells. Each holds random blocks of neighbouring cells, mixed, so that
    cells on disk are read in pieces, the next window while the batches of this one are used. Where cells are does not
    change their order. The stream's state is the number of batches drawn, so that training resumes bit by bit from one
    integer. Of `n_processes` that train together each reads and is given its even share of every batch.
    """

    def __init__(
        self,
        pairs: DrawsBatches[AnyBatch],
        rows: np.ndarray,
        batch_size: int,
        seed: int,
        n_drawn: int = 0,
        *,
        rank: int = 0,
        n_processes: int = 1,
    ) -> None:
        self.pairs = pairs
        self.rows = rows
        n_cells = min(batch_size, len(rows)) // n_processes
        self.size = n_cells * n_processes
        self.share = slice(rank * n_cells, (rank + 1) * n_cells)
        self.seed = seed
        self.n_drawn = n_drawn
        self._n_batches = len(rows) // self.size
        self._batches_per_window = min(self._n_batches, max(1, CELLS_AT_ONCE // self.size))
        self._is_on_disk = isinstance(pairs.table.cells, CellsOnDisk)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="squidiff-read-ahead")
        self._epoch, self._here = -1, (-1, -1)
        self._ahead: tuple[tuple[int, int], Future[_Window]] | None = None

    def draw(self) -> AnyBatch:
        """The next batch, or the share of it: of batch_size cells or of all if there are fewer.

        An epoch's incomplete last is left out.
        """
        epoch, position = divmod(self.n_drawn, self._n_batches)
        number, position = divmod(position, self._batches_per_window)
        if (epoch, number) != self._here:
            self._window = self._take(epoch, number)
            self._here = epoch, number
        chosen = self._window.order[position * self.size : (position + 1) * self.size]
        source_rng = np.random.default_rng((self.seed, 1, self.n_drawn))
        self.n_drawn += 1
        return self.pairs.batch(chosen, source_rng, self._window.targets, self._window.sources, self.share)

    def _take(self, epoch: int, number: int) -> _Window:
        """A window; the one after it is read ahead from now on."""
        if not self._is_on_disk:
            return self._read(epoch, number)
        if self._ahead is None or self._ahead[0] != (epoch, number):
            self._ahead = (epoch, number), self._reader.submit(self._read, epoch, number)
        window = self._ahead[1].result()
        is_last = (number + 1) * self._batches_per_window >= self._n_batches
        after = (epoch + 1, 0) if is_last else (epoch, number + 1)
        self._ahead = after, self._reader.submit(self._read, *after)
        return window

    def _read(self, epoch: int, number: int) -> _Window:
        if epoch != self._epoch:
            self._blocks = self._mixed_blocks(epoch)
            self._sources = self.pairs.sources(np.random.default_rng((self.seed, 6, epoch)))
            self._epoch = epoch
        n_cells = self._batches_per_window * self.size
        order = self._blocks[number * n_cells : (number + 1) * n_cells]
        if self._n_batches > self._batches_per_window:
            order = np.random.default_rng((self.seed, 7, epoch, number)).permutation(order)
        cells = self.pairs.table.cells
        if isinstance(cells, CellsOnDisk):
            in_batches = order[: len(order) // self.size * self.size].reshape(-1, self.size)
            cells = Loaded.of(cells, in_batches[:, self.share].ravel())
        return _Window(order, cells, self._sources)

    def _mixed_blocks(self, epoch: int) -> np.ndarray:
        """All cells: blocks of neighbours in random order or, where one window holds all, each cell by itself."""
        size = CELLS_PER_BLOCK if self._n_batches > self._batches_per_window else 1
        blocks = np.random.default_rng((self.seed, 0, epoch)).permutation(-(-len(self.rows) // size))
        places = (blocks[:, None] * size + np.arange(size)).ravel()
        return self.rows[places[places < len(self.rows)]]
