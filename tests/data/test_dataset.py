"""Batches: every cell once an epoch, sources of the right population, and bit by bit the same when resumed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from squidiff.data.dataset import Pairs
from squidiff.data.stream import BatchStream
from squidiff.data.survey import survey
from squidiff.data.table import CellTable

POPULATION = np.array([0, 1, 2, 3] * 12)  # 0 is the control of 1, 2 of itself, 3 has no source
SOURCE = np.array([0, 0, 2, -1])


def made_pairs(sparse: bool = False) -> Pairs:
    """Cell i holds (i + 1, 1000 + its population): a batch tells which cells it is of."""
    cells = np.column_stack([np.arange(len(POPULATION)) + 1, 1000 + POPULATION]).astype(np.float32)
    names = np.array([f"cell {i}" for i in range(len(cells))])
    keys = tuple(("", name, None) for name in ("", "X", "Y", "Z"))
    cells = sp.csr_matrix(cells) if sparse else cells
    table = CellTable(cells, ("g", "h"), names, POPULATION, keys, ((),) * 4, survey(cells))
    anchor = np.arange(8.0).reshape(4, 2)
    condition = np.eye(4)[:, :3]
    return Pairs(table, SOURCE, anchor, condition)


def cells_of(drawn: torch.Tensor) -> list[int]:
    return (drawn[:, 0].numpy().astype(int) - 1).tolist()


def targets(stream: BatchStream, n_batches: int) -> list[int]:
    """The target cells of the next batches, in their order."""
    return [cell for _ in range(n_batches) for cell in cells_of(stream.draw().target)]


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def pairs(request: pytest.FixtureRequest) -> Pairs:
    return made_pairs(request.param)


def test_targets_are_the_cells_whose_population_has_a_source(pairs: Pairs) -> None:
    assert pairs.target_rows().tolist() == [i for i in range(48) if i % 4 != 3]


@pytest.mark.parametrize("batch_size", [1, 9, 36, 1000])
def test_an_epoch_has_every_row_once(pairs: Pairs, batch_size: int) -> None:
    rows = pairs.target_rows()
    stream = BatchStream(pairs, rows, batch_size, seed=0)
    n_batches = max(1, len(rows) // batch_size)
    orders = []
    for _ in range(3):
        orders.append(targets(stream, n_batches))
        assert sorted(orders[-1]) == rows.tolist()
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_an_incomplete_last_batch_is_left_out(pairs: Pairs) -> None:
    rows = pairs.target_rows()
    stream = BatchStream(pairs, rows, 10, seed=0)
    for _ in range(4):
        drawn = targets(stream, 3)
        assert len(drawn) == len(set(drawn)) == 30
        assert set(drawn) <= set(rows.tolist())


@pytest.mark.parametrize("n_drawn", [1, 3, 4, 11])
def test_resuming_draws_the_same_batches_bit_by_bit(pairs: Pairs, n_drawn: int) -> None:
    rows = pairs.target_rows()
    whole = BatchStream(pairs, rows, 9, seed=3)
    for _ in range(n_drawn):
        whole.draw()
    resumed = BatchStream(pairs, rows, 9, seed=3, n_drawn=n_drawn)
    for _ in range(9):
        for one, other in zip(whole.draw(), resumed.draw(), strict=True):
            assert torch.equal(one, other)
    assert whole.n_drawn == resumed.n_drawn == n_drawn + 9


def test_another_seed_draws_other_batches(pairs: Pairs) -> None:
    rows = pairs.target_rows()
    one, other = (BatchStream(pairs, rows, 36, seed).draw() for seed in (0, 1))
    assert cells_of(one.target) != cells_of(other.target)
    # sorted: the same sources for other targets would be the same draw
    assert sorted(cells_of(one.source)) != sorted(cells_of(other.source))


def test_a_source_comes_from_the_source_population_and_each_of_its_cells_is_as_likely(pairs: Pairs) -> None:
    rows = pairs.target_rows()
    stream = BatchStream(pairs, rows, 36, seed=0)
    counts = np.zeros((4, len(POPULATION)))
    n_epochs = 200
    for _ in range(n_epochs):
        batch = stream.draw()
        for target, source in zip(cells_of(batch.target), cells_of(batch.source), strict=True):
            counts[POPULATION[target], source] += 1
    for p in (0, 1, 2):
        allowed = SOURCE[p] == POPULATION
        assert counts[p, ~allowed].sum() == 0
        expected = n_epochs  # 12 targets an epoch over 12 source cells
        assert np.abs(counts[p, allowed] - expected).max() < 5 * np.sqrt(expected)


def test_a_batch_holds_the_cells_and_what_is_known_of_their_populations(pairs: Pairs) -> None:
    rows = np.array([5, 0, 2, 40])
    batch = pairs.batch(rows, np.random.default_rng(0))
    population = POPULATION[rows]
    assert batch.target.tolist() == [[i + 1, 1000 + p] for i, p in zip(rows, population, strict=True)]
    assert batch.source[:, 1].tolist() == (1000 + SOURCE[population]).tolist()
    assert batch.anchor.tolist() == [[2.0 * p, 2.0 * p + 1] for p in population]
    assert batch.condition.tolist() == np.eye(4)[population, :3].tolist()
    assert {part.dtype for part in batch} == {torch.float32}


def made_cells(pairing: str) -> tuple[Pairs, np.ndarray]:
    """Control cells and treated ones, moved by 5, all on a line: the best pairs are those of equal rank."""
    rng = np.random.default_rng(0)
    along = rng.permutation(40).astype(np.float32)
    cells = np.column_stack([along, 0 * along, 0 * along])
    cells[20:, 1] = 5.0  # the treated ones
    population = np.repeat([0, 1], 20)
    keys = (("", "", None), ("", "X", None))
    table = CellTable(cells, ("g", "h", "i"), np.arange(40).astype(str), population, keys, ((), ()), survey(cells))
    return Pairs(table, np.array([0, 0]), np.zeros((2, 3)), np.zeros((2, 1)), pairing), cells  # type: ignore[arg-type]


def test_optimal_transport_pairs_cells_of_equal_rank_and_draws_the_same_sources() -> None:
    rows = np.arange(20, 40)
    by_pairing = {
        name: made_cells(name)[0].batch(rows, np.random.default_rng(3)) for name in ("random", "optimal-transport")
    }
    one, other = by_pairing["random"], by_pairing["optimal-transport"]
    assert torch.equal(one.target, other.target)
    assert sorted(one.source[:, 0].tolist()) == sorted(other.source[:, 0].tolist())
    order = other.target[:, 0].argsort()
    assert (other.source[order, 0].diff() >= 0).all()
    assert not (one.source[one.target[:, 0].argsort(), 0].diff() >= 0).all()


def test_optimal_transport_stays_within_each_population() -> None:
    pairs = replace(made_pairs(), pairing="optimal-transport")
    batch = pairs.batch(pairs.target_rows(), np.random.default_rng(0))
    plain = made_pairs().batch(pairs.target_rows(), np.random.default_rng(0))
    assert torch.equal(batch.source[:, 1], plain.source[:, 1])  # the population
    distance, at_random = (((b.target - b.source) ** 2).sum().item() for b in (batch, plain))
    assert distance < at_random
