"""A stream in windows: every cell once an epoch, well mixed, and the same from disk as from memory."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from squidiff.config import InputError, Schema
from squidiff.data import dataset, stream
from squidiff.data.dataset import Pairs, ShownPairs, at_most
from squidiff.data.matrix import CellsOnDisk
from squidiff.data.stream import BatchStream
from squidiff.data.survey import survey
from squidiff.data.table import CellTable, open_cells

N_CELLS, N_CONTROL, BATCH = 400, 150, 10
SCHEMA = Schema(condition_key="condition", control="ctrl")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CELLS_AT_ONCE", 64)  # six batches
    monkeypatch.setattr(stream, "CELLS_PER_BLOCK", 4)
    monkeypatch.setattr(dataset, "N_SOURCES", 40)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cell i holds i + 1; control cells come first, as in many files."""
    cells = np.column_stack([np.arange(N_CELLS) + 1, np.ones(N_CELLS), np.zeros(N_CELLS)]).astype(np.float32)
    obs = pd.DataFrame({"condition": np.where(np.arange(N_CELLS) < N_CONTROL, "ctrl", "drug")})
    obs.index = obs.index.map("c{}".format)
    file = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    ad.AnnData(sp.csr_matrix(cells), obs=obs).write_h5ad(file)
    return file


def table(path: Path, on_disk: bool) -> CellTable:
    return CellTable.from_anndata(open_cells(path, on_disk), SCHEMA)


def pairs_of(kind: str, of: CellTable) -> Any:
    if kind == "pairs":
        return Pairs(of, np.array([0, 0]), np.zeros((2, 3)), np.eye(2))
    row = np.random.default_rng(0).integers(0, N_CONTROL, N_CELLS) if kind == "shown controls" else None
    return ShownPairs(of, row, np.eye(2, dtype=np.float32))


def cells_in(drawn: torch.Tensor) -> list[int]:
    return (drawn[:, 0].numpy().astype(int) - 1).tolist()


ROWS = np.delete(np.arange(N_CELLS), [3, 90, 300])  # as without validation cells


@pytest.mark.parametrize("kind", ["pairs", "shown controls", "shown targets"])
def test_batches_from_disk_are_those_from_memory_bit_by_bit(path: Path, kind: str) -> None:
    there, here = (BatchStream(pairs_of(kind, table(path, w)), ROWS, BATCH, seed=3) for w in (True, False))
    assert isinstance(there.pairs.table.cells, CellsOnDisk)
    for _ in range(3 * len(ROWS) // BATCH):
        for one, other in zip(there.draw(), here.draw(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["pairs", "shown controls", "shown targets"])
def test_batches_taken_from_one_tensor_are_the_same_bit_by_bit(path: Path, kind: str) -> None:
    of = pairs_of(kind, table(path, False))
    held = of.on(torch.device("cpu"))
    assert held.held is not None
    there, here = (BatchStream(which, ROWS, BATCH, seed=3, rank=1, n_processes=2) for which in (held, of))
    for _ in range(2 * len(ROWS) // BATCH):
        for one, other in zip(there.draw(), here.draw(), strict=True):
            assert torch.equal(one, other)


def test_cells_on_disk_or_of_more_memory_than_there_is_are_not_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pairs_of("pairs", table(path, True)).on(torch.device("cpu")).held is None
    monkeypatch.setattr(dataset, "MAX_HELD", N_CELLS * 3 * 4 - 1)
    assert pairs_of("pairs", table(path, False)).on(torch.device("cpu")).held is None


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("n_drawn", [1, 6, 8, 38, 39, 60])
def test_a_stream_goes_on_in_the_middle_of_a_window(path: Path, on_disk: bool, n_drawn: int) -> None:
    whole = BatchStream(pairs_of("pairs", table(path, on_disk)), ROWS, BATCH, seed=0)
    for _ in range(n_drawn):
        whole.draw()
    resumed = BatchStream(pairs_of("pairs", table(path, on_disk)), ROWS, BATCH, seed=0, n_drawn=n_drawn)
    for _ in range(45):
        for one, other in zip(whole.draw(), resumed.draw(), strict=True):
            assert torch.equal(one, other)


def test_an_epoch_of_windows_has_every_cell_once_but_an_incomplete_batch() -> None:
    orders = []
    of = pairs_of("pairs", memory())
    drawn = BatchStream(of, ROWS, BATCH, seed=0)
    for _ in range(3):
        orders.append([cell for _ in range(39) for cell in cells_in(drawn.draw().target)])
        assert len(set(orders[-1])) == 390
        assert set(orders[-1]) <= set(ROWS.tolist())
    assert orders[0] != orders[1] != orders[2]
    assert set(orders[0]) != set(orders[1])  # it is not always the same cells that are left out


def memory() -> CellTable:
    cells = np.column_stack([np.arange(N_CELLS) + 1, np.ones(N_CELLS), np.zeros(N_CELLS)]).astype(np.float32)
    population = (np.arange(N_CELLS) >= N_CONTROL).astype(int)
    keys = (("", "", None), ("", "drug", None))
    return CellTable(cells, ("a", "b", "c"), np.arange(N_CELLS).astype(str), population, keys, ((), ()), survey(cells))


def test_batches_are_mixed_over_the_file_and_within_a_window() -> None:
    """Of 36 batches of 10 cells, two cells of one block of 4 meet in a batch little more often than within a window."""
    drawn = BatchStream(pairs_of("pairs", memory()), np.arange(N_CELLS), BATCH, seed=0)
    means, neighbours, n = [], 0, 0
    for _ in range(400):  # ten epochs
        cells = np.array(cells_in(drawn.draw().target))
        means.append(cells.mean())
        same_block = cells[:, None] // 4 == cells // 4
        neighbours += int(same_block.sum() - BATCH)
        n += 1
    # 10 of 60 cells of a window: of a cell's three neighbours each is in its batch with probability 9/59
    assert abs(neighbours / (n * BATCH) - 3 * 9 / 59) < 0.06
    spread = np.std(means) / (N_CELLS / np.sqrt(12) / np.sqrt(BATCH))
    assert 0.8 < spread < 1.6  # 1 for cells by themselves, 2 for whole blocks


def test_sources_of_an_epoch_are_few_and_over_epochs_all_of_them() -> None:
    drawn = BatchStream(pairs_of("pairs", memory()), ROWS, BATCH, seed=0)
    seen: set[int] = set()
    for _ in range(20):
        epoch = {cell for _ in range(39) for cell in cells_in(drawn.draw().source)}
        assert len(epoch) <= 40
        assert max(epoch) < N_CONTROL
        seen |= epoch
    assert len(seen) > 0.98 * N_CONTROL


def test_a_window_is_read_while_another_is_used_and_no_more_than_it(path: Path) -> None:
    reads = []

    class Watched(CellsOnDisk):
        def __getitem__(self, rows: Any) -> Any:
            reads.append((len(rows), threading.current_thread().name))
            return super().__getitem__(rows)

    of = table(path, True)
    watched = replace(of, cells=Watched(of.cells.stored, "it"))
    drawn = BatchStream(pairs_of("pairs", watched), ROWS, BATCH, seed=0)
    drawn.draw()
    waited = time.monotonic()
    while len(reads) < 3 and time.monotonic() - waited < 20:
        time.sleep(0.01)
    assert [n for n, _ in reads] == [40, 60, 60]  # sources, the window of the first batch, and the one after it
    for _ in range(19):
        drawn.draw()
    assert [n for n, _ in reads[:4]] == [40, 60, 60, 60]
    assert len(reads) <= 6  # sources, four windows, and one ahead
    assert all("read-ahead" in thread for _, thread in reads)


def test_a_file_that_goes_bad_while_it_is_read_ahead_is_said(path: Path) -> None:
    of = table(path, True)
    of.cells.stored.group.file.close()
    with pytest.raises(InputError, match="X of the data cannot be read"):
        BatchStream(pairs_of("pairs", of), ROWS, BATCH, seed=0).draw()


@pytest.mark.parametrize(
    ("sizes", "n", "kept"),
    [
        ([5, 7], 12, [5, 7]),
        ([5, 7], 11, [5, 6]),
        ([100, 3, 40], 53, [25, 3, 25]),
        ([100, 100, 100], 31, [10, 10, 10]),
        ([4, 4], 1, [1, 1]),  # none without any
    ],
)
def test_large_populations_give_way_to_small_ones(sizes: list[int], n: int, kept: list[int]) -> None:
    rows = tuple(np.split(np.arange(sum(sizes) + 9), np.cumsum(sizes)))  # the last one is no source
    drawn = at_most(n, rows, np.arange(len(sizes)), np.random.default_rng(0))
    assert [len(of) for of in drawn] == [*kept, 9]
    for before, after in zip(rows, drawn, strict=True):
        assert set(after) <= set(before)
        assert len(set(after)) == len(after)
    assert (drawn is rows) == (sum(sizes) <= n)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", ["pairs", "shown controls", "shown targets"])
def test_shares_of_a_batch_are_disjoint_and_cover_it_and_no_other_cells_are_read(
    path: Path, kind: str, on_disk: bool
) -> None:
    whole = BatchStream(pairs_of(kind, table(path, on_disk)), ROWS, BATCH, seed=3)
    shares = [
        BatchStream(pairs_of(kind, table(path, on_disk)), ROWS, BATCH, seed=3, rank=i, n_processes=5) for i in range(5)
    ]
    for _ in range(2 * len(ROWS) // BATCH):
        batch, parts = whole.draw(), [share.draw() for share in shares]
        for i, together in enumerate(batch):
            assert torch.equal(torch.cat([part[i] for part in parts]), together)
        windows = [share._window for share in shares]
        if on_disk:
            read = [set(window.targets.rows.tolist()) for window in windows]
            assert sum(map(len, read)) == len(set.union(*read)) == 60 or windows[0].order.size < 60
            assert set.union(*read) <= set(windows[0].order.tolist())


def test_where_there_are_fewer_cells_than_a_batch_shares_stay_even() -> None:
    shares = [BatchStream(pairs_of("pairs", memory()), ROWS[:7], 64, seed=0, rank=i, n_processes=3) for i in range(3)]
    drawn = [cells_in(share.draw().target) for share in shares]
    assert [len(cells) for cells in drawn] == [2, 2, 2]
    assert len({cell for cells in drawn for cell in cells}) == 6
