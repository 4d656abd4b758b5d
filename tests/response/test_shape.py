"""Cells are moved to a mean exactly, with the share of zeros asked for, and are otherwise left as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression

from squidiff.response.shape import (
    N_COVARYING,
    N_QUANTILES,
    ZeroLaw,
    covary_as,
    move_to_mean,
    nonzero_quantiles,
    set_mean,
    take_values,
)

SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def made_cells(rng: np.random.Generator, n_cells: int, n_genes: int) -> np.ndarray:
    """Log-normalised in looks: between no zeros and only zeros, a gene."""
    values = rng.gamma(2.0, 1.0, (n_cells, n_genes))
    return np.where(rng.random((n_cells, n_genes)) < rng.choice([0.0, 0.3, 0.9, 1.0], n_genes), 0.0, values)


def zeros_of(cells: np.ndarray) -> np.ndarray:
    return (cells == 0).mean(axis=0)


# --- set_mean


@quick
@given(seed=SEEDS, n_cells=st.integers(1, 30))
def test_set_mean_by_its_definition(seed: int, n_cells: int) -> None:
    """Of a gene with k values > 0 and sum s: each gets (n m - s) / k more if n m > s, else is scaled by n m / s."""
    rng = np.random.default_rng(seed)
    cells, mean = made_cells(rng, n_cells, 5), rng.gamma(1.0, 1.5, 5) * rng.choice([0.0, 1.0], 5, p=[0.2, 0.8])
    found = set_mean(cells, mean)
    for g in range(5):
        positive = [x for x in cells[:, g] if x > 0]
        total, wanted = sum(positive), n_cells * mean[g]
        for before, after in zip(cells[:, g], found[:, g], strict=True):
            if before == 0:
                assert after == 0
            elif wanted > total:
                assert after == pytest.approx(before + (wanted - total) / len(positive))
            else:
                assert after == pytest.approx(before * wanted / total)


def test_set_mean_by_hand() -> None:
    cells = np.array([[0.0, 2.0, 0.0], [1.0, 4.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    moved = set_mean(cells, np.array([2.0, 0.75, 5.0]))
    assert moved.tolist() == [[0.0, 1.0, 0.0], [3.0, 2.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_negative_mean_counts_as_zero() -> None:
    assert set_mean(np.array([[1.0], [2.0]]), np.array([-3.0])).tolist() == [[0.0], [0.0]]


# --- move_to_mean


@quick
@given(seed=SEEDS, n_cells=st.integers(1, 40))
def test_moved_cells_have_the_mean_and_the_zeros_asked_for(seed: int, n_cells: int) -> None:
    rng = np.random.default_rng(seed)
    cells, quantiles = made_cells(rng, n_cells, 6), nonzero_quantiles(rng.gamma(2.0, 1.0, (7, 6)))
    mean, zero_fraction = rng.gamma(1.0, 1.0, 6) + 0.01, rng.random(6)
    before = cells.copy()
    moved = move_to_mean(cells, mean, zero_fraction, quantiles, rng.random(cells.shape))
    assert np.array_equal(cells, before)  # the input is left alone
    assert moved.min() >= 0
    assert (np.abs(zeros_of(moved) - zero_fraction) <= 0.5 / n_cells + 1e-12).all()
    some = (moved > 0).any(axis=0)
    np.testing.assert_allclose(moved.mean(axis=0)[some], mean[some], rtol=1e-12)
    assert (moved[:, ~some] == 0).all()


@quick
@given(seed=SEEDS)
def test_cells_that_are_already_there_stay_as_they_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = made_cells(rng, 25, 6)
    moved = move_to_mean(cells, cells.mean(axis=0), zeros_of(cells), rng.random((3, 6)), rng.random(cells.shape))
    np.testing.assert_allclose(moved, cells, rtol=1e-12)


def test_cells_switched_on_take_the_values_that_the_gene_has() -> None:
    """A mean above theirs shifts all values alike, so that they stay as far apart as they are."""
    cells, rng = np.zeros((400, 2)), np.random.default_rng(0)
    quantiles = nonzero_quantiles(np.array([[3.0, 0.0], [0.0, 7.0], [5.5, 0.0]]))  # zeros are no values
    moved = move_to_mean(cells, np.array([5.0, 2.0]), np.array([0.5, 0.75]), quantiles, rng.random(cells.shape))
    assert zeros_of(moved).tolist() == [0.5, 0.75]
    values = np.sort(moved[moved[:, 0] > 0, 0])
    assert values[-1] - values[0] == pytest.approx(2.5, rel=0.02)
    assert values.mean() == pytest.approx(10.0)  # half of the cells have all of the mean
    assert np.unique(moved[:, 1]) == pytest.approx([0.0, 8.0])


def test_quantiles_are_those_of_what_is_not_zero() -> None:
    rng = np.random.default_rng(0)
    cells = made_cells(rng, 5000, 8)
    found = nonzero_quantiles(cells)
    for gene in range(8):
        positive = cells[cells[:, gene] > 0, gene]
        expected = np.quantile(positive, (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES) if len(positive) else 0.0
        np.testing.assert_allclose(found[:, gene], expected, rtol=1e-6)


def test_a_gene_without_a_donor_keeps_its_zeros() -> None:
    cells = np.array([[0.0, 0.0], [0.0, 2.0]])
    moved = move_to_mean(cells, np.array([1.0, 3.0]), np.zeros(2), np.zeros((5, 2)), np.zeros((2, 2)))
    assert moved.tolist() == [[0.0, 0.0], [0.0, 6.0]]


def test_lots_say_which_cells_are_switched_and_go_with_them() -> None:
    rng = np.random.default_rng(3)
    cells, lots = np.tile(np.arange(1.0, 201.0)[:, None], (1, 50)), rng.random((200, 50))
    asked = (np.full(50, 60.0), np.full(50, 0.5), np.ones((1, 50)))
    moved = move_to_mean(cells, *asked, lots)
    np.testing.assert_array_equal(moved == 0, lots < np.sort(lots, axis=0)[100])
    order = rng.permutation(200)
    np.testing.assert_array_equal(move_to_mean(cells[order], *asked, lots[order]), moved[order])


@quick
@given(seed=SEEDS)
def test_no_value_is_above_the_highest_and_the_mean_stays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.where(rng.random((200, 6)) < 0.2, 0.0, rng.gamma(2.0, 1.0, (200, 6)))
    mean = cells.mean(axis=0) + rng.uniform(0.1, 1.0, 6)
    free, bounded = set_mean(cells, mean), set_mean(cells, mean, 5.0)
    assert free.max() > 5.0
    assert bounded.max() <= 5.0
    np.testing.assert_allclose(bounded.mean(axis=0), mean, rtol=1e-6)
    np.testing.assert_array_equal(bounded == 0, cells == 0)


def test_a_mean_that_the_highest_value_does_not_allow_is_come_near_to() -> None:
    cells = np.array([[1.0], [2.0], [0.0], [0.0]])
    assert set_mean(cells, np.array([9.0]), 3.0).ravel().tolist() == [3.0, 3.0, 0.0, 0.0]


# --- take_values


@quick
@given(seed=SEEDS, n_cells=st.integers(1, 40))
def test_taken_values_are_those_of_the_others_in_the_order_of_the_cells(seed: int, n_cells: int) -> None:
    rng = np.random.default_rng(seed)
    cells, others = rng.normal(size=(n_cells, 5)), made_cells(rng, n_cells, 5)
    taken = take_values(cells, others)
    np.testing.assert_array_equal(np.sort(taken, axis=0), np.sort(others, axis=0))
    for gene in range(5):
        in_order = taken[np.argsort(cells[:, gene]), gene]
        assert (np.diff(in_order) >= 0).all()


def test_cells_that_take_their_own_values_stay_as_they_are() -> None:
    cells = np.random.default_rng(0).normal(size=(30, 4))
    np.testing.assert_array_equal(take_values(cells, cells), cells)


def test_genes_that_go_together_still_do() -> None:
    """The rank correlation is that of the cells, whatever the values."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=2000)
    cells = np.stack([shared + 0.5 * rng.normal(size=2000), shared], axis=1)
    taken = take_values(cells, rng.gamma(0.3, 1.0, (2000, 2)))
    assert spearmanr(*taken.T).statistic == pytest.approx(spearmanr(*cells.T).statistic, abs=1e-12)


# --- ZeroLaw


@quick
@given(seed=SEEDS, n_populations=st.integers(1, 12))
def test_the_law_never_rises_and_goes_through_points_that_never_rise(seed: int, n_populations: int) -> None:
    rng = np.random.default_rng(seed)
    mean = rng.permuted(np.cumsum(rng.random((n_populations, 3)) + 0.01, axis=0), axis=0)
    falling = np.exp(-mean)
    law = ZeroLaw().fit(mean, falling)
    np.testing.assert_allclose(np.stack([law.predict(row) for row in mean]), falling, rtol=1e-12)
    any_law = ZeroLaw().fit(mean, rng.random((n_populations, 3)))
    grid = np.stack([any_law.predict(np.full(3, m)) for m in np.linspace(-1, mean.max() + 1, 60)])
    assert (np.diff(grid, axis=0) <= 1e-12).all()
    np.testing.assert_allclose(grid[0], any_law.predict(mean.min(axis=0)))  # constant beyond the populations
    np.testing.assert_allclose(grid[-1], any_law.predict(mean.max(axis=0)))


def test_the_law_equals_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    mean, zeros = rng.random((20, 4)), rng.random((20, 4))
    law = ZeroLaw().fit(mean, zeros)
    asked = rng.uniform(-0.1, 1.1, (50, 4))
    found = np.stack([law.predict(row) for row in asked])
    for g in range(4):
        other = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(mean[:, g], zeros[:, g])
        np.testing.assert_allclose(found[:, g], other.predict(asked[:, g]), atol=1e-12)


def test_the_law_is_read_between_its_points() -> None:
    law = ZeroLaw().fit(np.array([[1.0], [3.0]]), np.array([[0.8], [0.2]]))
    assert [law.predict(np.array([m])).item() for m in (0.0, 1.5, 2.0, 9.0)] == pytest.approx([0.8, 0.65, 0.5, 0.2])


@quick
@given(seed=SEEDS)
def test_cells_whose_mean_does_not_change_keep_their_zeros(seed: int) -> None:
    rng = np.random.default_rng(seed)
    law = ZeroLaw().fit(rng.random((6, 5)), rng.random((6, 5)))
    cells = made_cells(rng, 20, 5)
    np.testing.assert_allclose(
        law.follow(cells.mean(axis=0), zeros_of(cells), cells.mean(axis=0)), zeros_of(cells), atol=1e-15
    )


def test_zeros_follow_the_change_of_the_law_and_stay_a_share() -> None:
    law = ZeroLaw().fit(np.array([[0.0] * 4, [10.0] * 4]), np.array([[1.0] * 4, [0.0] * 4]))  # 1 - mean / 10
    cells = np.array([[0.0, 0.0, 4.0, 3.0], [4.0, 1.0, 4.0, 3.0]])  # means 2, 0.5, 4, 3; zeros 0.5, 0.5, 0, 0
    found = law.follow(cells.mean(axis=0), zeros_of(cells), np.array([4.0, 9.0, 1.0, 0.0]))
    ratio = [np.expm1(4) / np.expm1(2), np.expm1(9) / np.expm1(0.5)]  # of counts: 0.5 to these powers
    assert found == pytest.approx([(0.5 - 0.2 + 0.5 ** ratio[0]) / 2, 0.5 ** ratio[1] / 2, (0.3 + 0.0) / 2, 1.0])


def test_one_gene_beyond_logarithms_changes_the_unit_on_both_sides() -> None:
    law = ZeroLaw().fit(np.array([[1.0, 19.0], [6.0, 21.0]]), np.array([[0.5, 0.1], [0.5, 0.1]]))
    found = law.follow(np.array([5.0, 19.0]), np.array([0.5, 0.1]), np.array([5.0, 21.0]))
    assert found[0] == pytest.approx(0.5)  # it did not move
    assert found[1] == pytest.approx((0.1 + 0.1 ** (21 / 19)) / 2)


def test_zeros_of_rare_genes_go_with_the_mean() -> None:
    """Twice the counts, twice the cells that show it; where the gene was silent, the law alone."""
    law = ZeroLaw().fit(np.array([[0.0] * 2, [1.0] * 2]), np.array([[1.0] * 2, [0.9] * 2]))  # 1 - mean / 10
    here = np.array([0.001, 0.0])
    found = law.follow(here, np.array([0.999, 1.0]), np.log1p(2 * np.expm1(here) + [0.0, np.expm1(0.5)]))
    assert 1 - found[0] == pytest.approx((0.002 + 0.0011) / 2, rel=1e-2)
    assert found[1] == pytest.approx(0.95)


# --- how genes go together


def correlated(rng: np.random.Generator, n_cells: int, n_genes: int) -> np.ndarray:
    """Cells with as many strong directions as genes, each gene in a unit of its own."""
    mixed = rng.normal(size=(n_genes, n_genes)) * np.geomspace(1, 0.05, n_genes)[:, None]
    return (rng.normal(size=(n_cells, n_genes)) @ mixed + rng.normal(size=n_genes)) * rng.uniform(0.1, 5, n_genes)


def test_cells_covary_as_others_on_these_axes_and_nothing_else_changes() -> None:
    rng = np.random.default_rng(0)
    cells, like = correlated(rng, 300, 40), correlated(rng, 500, 40)
    found = covary_as(cells, like, len(like))
    axes = np.linalg.svd((like - like.mean(axis=0)) / like.std(axis=0), full_matrices=False)[2]
    before, after, wanted = (x / like.std(axis=0) @ axes.T for x in (cells, found, like))
    on = slice(N_COVARYING)
    np.testing.assert_allclose(np.cov(after[:, on].T), np.cov(wanted[:, on].T), atol=1e-8)
    np.testing.assert_allclose(after[:, N_COVARYING:], before[:, N_COVARYING:], atol=1e-8)
    np.testing.assert_allclose(found.mean(axis=0), cells.mean(axis=0), atol=1e-8)


def test_cells_that_covary_alike_stay_and_others_are_moved_least() -> None:
    rng = np.random.default_rng(1)
    cells = correlated(rng, 400, 30)
    np.testing.assert_allclose(covary_as(cells, cells + 3.0, len(cells)), cells, atol=1e-7)
    like = correlated(rng, 400, 30)
    moved = np.square((covary_as(cells, like, 400) - cells) / like.std(axis=0)).sum(axis=1).mean()
    # of normal laws the squared Wasserstein distance is known: tr(C + D - 2 (C^1/2 D C^1/2)^1/2)
    axes = np.linalg.svd((like - like.mean(axis=0)) / like.std(axis=0), full_matrices=False)[2][:N_COVARYING].T
    c, d = (np.cov(x / like.std(axis=0) @ axes, rowvar=False) for x in (cells, like))
    crossed = np.sqrt(np.maximum(np.linalg.eigvals(c @ d).real, 0)).sum()
    assert moved == pytest.approx((np.trace(c) + np.trace(d) - 2 * crossed) * 399 / 400, rel=1e-6)


def test_few_cells_tell_nothing_of_how_genes_go_together() -> None:
    rng = np.random.default_rng(2)
    cells, few = correlated(rng, 50, 10), correlated(rng, 9, 10)
    np.testing.assert_array_equal(covary_as(cells, few, 9), cells)
    flat = np.zeros((200, 10))
    flat[:, :3] = correlated(rng, 200, 3)  # only three genes vary: no other is changed
    np.testing.assert_array_equal(covary_as(cells, flat, 200)[:, 3:], cells[:, 3:])
    for repeated in (np.repeat(few, 30, axis=0), np.zeros((270, 10))):
        assert np.isfinite(covary_as(cells, repeated, 25)).all()
    assert np.isfinite(covary_as(np.zeros((50, 10)), correlated(rng, 100, 10), 100)).all()
