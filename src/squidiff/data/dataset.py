"""Training batches: target cells, a source cell for each, and what is known of their populations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from squidiff.config import Batch, ShownBatch
from squidiff.data.matrix import CellsOnDisk, Loaded, Rows, blocks, dense
from squidiff.data.table import CellTable

N_SOURCES = 32_768
"""Cells in memory at most that the source cells of an epoch are drawn from."""
MAX_HELD = 2**28
"""Bytes of cells that are held as one tensor in the machine's own memory, where they lie a second time."""


@dataclass(frozen=True)
class Held:
    """All cells, and what is known of their populations, as tensors of which batches are taken by index."""

    cells: torch.Tensor
    """N x G"""
    of_population: tuple[torch.Tensor, ...]
    """P x any each"""

    @classmethod
    def on(cls, device: torch.device, table: CellTable, *of_population: np.ndarray) -> Held | None:
        """On the device that trains, or None: where they are on disk, or do not fit."""
        shape = len(table.names), len(table.genes)
        tell = None if device.type == "cpu" else getattr(torch.get_device_module(device), "mem_get_info", None)
        free = MAX_HELD if tell is None else tell(device)[0] / 4
        if isinstance(table.cells, CellsOnDisk) or 4 * shape[0] * shape[1] > free:
            return None
        cells, first = torch.empty(shape, device=device), 0
        for block in blocks(table.cells):
            end = first + block.shape[0]
            cells[first:end] = torch.from_numpy(dense(block, np.arange(end - first)))
            first = end
        known = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(device) for a in of_population)
        return cls(cells, tuple(known))

    def rows(self, tensor: torch.Tensor, chosen: np.ndarray) -> torch.Tensor:
        """Rows of one of its tensors."""
        return tensor.index_select(0, torch.from_numpy(chosen).to(tensor.device, non_blocking=True))


class Sources(NamedTuple):
    """What the source cells of an epoch are drawn from."""

    rows: tuple[np.ndarray, ...]
    """Those of each population."""
    cells: Rows
    """What holds them."""


@dataclass(frozen=True)
class Pairs:
    """Which cells may be generated from which: populations that have a source, and their rows."""

    table: CellTable
    source: np.ndarray
    """(P,) index of the population that each population's prediction starts from; -1 where there is none."""
    anchor: np.ndarray
    """P x G, the mean of each population."""
    condition: np.ndarray
    """P x C, condition features."""
    pairing: Literal["random", "optimal-transport"] = "random"
    held: Held | None = None

    def on(self, device: torch.device) -> Pairs:
        """The same, with what its batches are of on the device that trains, if that holds it."""
        if self.pairing == "optimal-transport":  # which is found on the CPU
            return self
        return replace(self, held=Held.on(device, self.table, self.anchor, self.condition))

    @cached_property
    def rows(self) -> tuple[np.ndarray, ...]:
        """The cells of each population."""
        return rows_of(self.table)

    def target_rows(self) -> np.ndarray:
        """The cells whose population has a source."""
        return np.flatnonzero(self.source[self.table.population] >= 0)

    def sources(self, rng: np.random.Generator) -> Sources:
        """The source cells, or N_SOURCES that are drawn from more; in memory."""
        rows = at_most(N_SOURCES, self.rows, np.unique(self.source[self.source >= 0]), rng)
        if not isinstance(self.table.cells, CellsOnDisk):
            return Sources(rows, self.table.cells)
        return self._loaded if rows is self.rows else Sources(rows, self._load(rows))

    @cached_property
    def _loaded(self) -> Sources:
        return Sources(self.rows, self._load(self.rows))

    def _load(self, rows: Sequence[np.ndarray]) -> Loaded:
        return Loaded.of(self.table.cells, np.concatenate([rows[i] for i in np.unique(self.source) if i >= 0]))

    def batch(
        self,
        rows: np.ndarray,
        rng: np.random.Generator,
        targets: Rows | None = None,
        sources: Sources | None = None,
        share: slice = slice(None),
    ) -> Batch:
        """A share of the given target cells, each with a source cell drawn from its source population.

        Source cells are drawn for all, so that the shares of a batch are together the whole one. `targets` and
        `sources` hold the cells of the share in memory; without them each is taken from the table. With optimal
        transport the drawn ones are assigned so that the squared distances within each population of the batch are
        least (Tong et al., TMLR 2024); what they have in common, the mean shift, does not matter to that.
        """
        sources = sources or Sources(self.rows, self.table.cells)
        population = self.table.population[rows]
        source = np.empty_like(rows)
        for i in np.unique(population):
            here = population == i
            source[here] = rng.choice(sources.rows[self.source[i]], here.sum())
        rows, source, population = rows[share], source[share], population[share]
        if self.held is not None:
            cells = (self.held.rows(self.held.cells, chosen) for chosen in (rows, source))
            return Batch(*cells, *(self.held.rows(known, population) for known in self.held.of_population))
        target, drawn = dense(self.table.cells if targets is None else targets, rows), dense(sources.cells, source)
        if self.pairing == "optimal-transport":
            for i in np.unique(population):
                here = np.flatnonzero(population == i)
                cost = cdist(target[here], drawn[here], "sqeuclidean")
                drawn[here] = drawn[here[linear_sum_assignment(cost)[1]]]
        arrays = (target, drawn, self.anchor[population], self.condition[population])
        return Batch(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays))


@dataclass(frozen=True)
class ShownPairs:
    """Upstream's pairs: what the encoder is shown beside each target cell, the same at every step."""

    table: CellTable
    source_row: np.ndarray | None
    """(N,) row of the control cell that is shown, -1 for cells that are no targets; None: the target itself."""
    drugs: np.ndarray
    """P x D, the populations' drug encodings; D = 0 without drugs."""
    held: Held | None = None

    def on(self, device: torch.device) -> ShownPairs:
        """As `Pairs.on`."""
        return replace(self, held=Held.on(device, self.table, self.drugs))

    def target_rows(self) -> np.ndarray:
        """The cells that have something to be shown."""
        rows = np.arange(len(self.table.population))
        return rows if self.source_row is None else rows[self.source_row >= 0]

    def sources(self, rng: np.random.Generator) -> Sources:
        """The cells that are shown, in memory; nothing is drawn."""
        return self._sources

    @cached_property
    def _sources(self) -> Sources:
        cells: Rows = self.table.cells
        if self.source_row is not None and isinstance(cells, CellsOnDisk):
            cells = Loaded.of(cells, self.source_row[self.source_row >= 0])
        return Sources((), cells)

    def batch(
        self,
        rows: np.ndarray,
        rng: np.random.Generator,
        targets: Rows | None = None,
        sources: Sources | None = None,
        share: slice = slice(None),
    ) -> ShownBatch:
        """A share of the given target cells and what is shown; nothing is drawn. The rest is as in `Pairs.batch`."""
        rows = rows[share]
        if self.held is not None:
            target = shown = self.held.rows(self.held.cells, rows)
            if self.source_row is not None:
                shown = self.held.rows(self.held.cells, self.source_row[rows])
            drugs = self.held.rows(self.held.of_population[0], self.table.population[rows])
            return ShownBatch(target, torch.cat([shown, drugs], dim=1))
        target = cells = dense(self.table.cells if targets is None else targets, rows)
        if self.source_row is not None:
            cells = dense(self.table.cells if sources is None else sources.cells, self.source_row[rows])
        shown = np.concatenate([cells, self.drugs[self.table.population[rows]]], axis=1)
        return ShownBatch(*(torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in (target, shown)))


def rows_of(table: CellTable) -> tuple[np.ndarray, ...]:
    """The cells of each population."""
    order = np.argsort(table.population, kind="stable")
    ends = np.cumsum(np.bincount(table.population, minlength=len(table.keys)))
    return tuple(np.split(order, ends[:-1]))


def at_most(
    n: int, rows: tuple[np.ndarray, ...], chosen: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """The rows of each population, of which the chosen ones have at most n together: large ones are drawn from.

    Rows are returned as they are where they are no more.
    """
    sizes = np.sort([len(rows[i]) for i in chosen])
    left = n - np.concatenate([[0], np.cumsum(sizes[:-1])])  # to share between a population and the larger ones
    share = left // np.arange(len(sizes), 0, -1)
    if (sizes <= share).all():
        return rows
    largest = max(1, int(share[np.argmax(sizes > share)]))
    drawn = {int(i): np.sort(rng.permutation(rows[i])[:largest]) for i in chosen if len(rows[i]) > largest}
    return tuple(drawn.get(i, of) for i, of in enumerate(rows))
