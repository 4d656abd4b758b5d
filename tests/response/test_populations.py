"""Summaries of cells, against a naive loop; and the rules of what a prediction starts from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from made_populations import ask, populations
from squidiff.response.course import Course
from squidiff.response.populations import Population, Populations

FORMATS = {"dense": np.asarray, "csr": sp.csr_matrix, "csr with stored zeros": lambda x: with_stored_zeros(x)}


def with_stored_zeros(cells: np.ndarray) -> sp.csr_matrix:
    """Every value stored, the zeros too, as some writers do."""
    n, g = cells.shape
    return sp.csr_matrix((cells.ravel(), np.tile(np.arange(g), n), np.arange(0, n * g + 1, g)), shape=(n, g))


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_populations=st.integers(1, 5),
    n_more=st.integers(0, 30),
    n_genes=st.integers(1, 4),
)
def test_summaries_equal_a_naive_loop(form: str, seed: int, n_populations: int, n_more: int, n_genes: int) -> None:
    rng = np.random.default_rng(seed)
    population = rng.permutation(np.concatenate([np.arange(n_populations), rng.integers(0, n_populations, n_more)]))
    cells = (rng.poisson(0.7, (len(population), n_genes)) * rng.uniform(0.5, 2, n_genes)).astype(np.float32)
    keys = tuple(Population("", str(i), None) for i in range(n_populations))
    features = rng.normal(size=(n_populations, 2))
    found = Populations.summarise([FORMATS[form](cells)], population, keys, features, has_control=True)
    for i in range(n_populations):
        members = [row for row, p in zip(cells.tolist(), population.tolist(), strict=True) if p == i]
        assert found.n_cells[i] == len(members)
        for g in range(n_genes):
            column = [row[g] for row in members]
            assert found.mean[i, g] == pytest.approx(sum(column) / len(column), rel=1e-12)
            assert found.zero_fraction[i, g] == pytest.approx(column.count(0.0) / len(column), abs=1e-12)
    assert found.keys == keys
    assert np.array_equal(found.features, features)
    of_each = [cells[population == i].astype(float) for i in range(len(keys))]
    np.testing.assert_allclose(found.variance, [own.var(axis=0) for own in of_each], atol=1e-6)
    within = sum(np.square(own - own.mean(axis=0)).sum(axis=0) for own in of_each)
    np.testing.assert_allclose(found.pooled_variance, within / len(cells), atol=1e-6)


def test_negative_values_are_not_zeros() -> None:
    cells = np.array([[-1.0], [0.0], [3.0], [-2.0]], dtype=np.float32)
    found = Populations.summarise([cells], np.zeros(4, dtype=int), (ask("", ""),), np.zeros((1, 0)), has_control=False)
    assert found.mean.item() == 0.0
    assert found.zero_fraction.item() == pytest.approx(0.25)


def source_key(made: Populations, key: Population) -> tuple[str, str, float | None] | None:
    found = made.source(key)
    return None if found is None else tuple(made.keys[found])


def test_a_perturbation_starts_from_the_control_cells_of_its_context() -> None:
    made = populations({("a", "X", None): [0], ("b", "", None): [1], ("a", "", None): [2], ("c", "X", None): [3]})
    assert source_key(made, ask("a", "X")) == ("a", "", None)
    assert source_key(made, ask("b", "never seen")) == ("b", "", None)
    assert source_key(made, ask("a", "")) == ("a", "", None)
    assert source_key(made, ask("c", "X")) is None
    assert source_key(made, ask("never seen", "X")) is None


@pytest.mark.parametrize(
    ("time", "start"), [(6.0, 6.0), (12.0, 12.0), (10.0, 12.0), (8.0, 6.0), (24.0, 24.0), (99.0, 24.0), (0.0, 6.0)]
)
def test_with_times_it_starts_from_the_control_cells_nearest_in_time(time: float, start: float) -> None:
    made = populations({("a", "", 12.0): [0], ("a", "", 24.0): [1], ("a", "", 6.0): [2], ("b", "", 10.0): [3]})
    assert source_key(made, ask("a", "X", time)) == ("a", "", start)


@pytest.mark.parametrize(
    ("time", "start"), [(24.0, 12.0), (12.0, 6.0), (11.9, 6.0), (99.0, 24.0), (6.0, 6.0), (0.0, 6.0)]
)
def test_with_time_alone_it_starts_from_the_nearest_earlier_time(time: float, start: float) -> None:
    means = {("a", "", 12.0): [0], ("a", "", 24.0): [1], ("a", "", 6.0): [2], ("b", "", 11.0): [3]}
    assert source_key(populations(means, has_control=False), ask("a", "", time)) == ("a", "", start)


def test_plain_generation_starts_from_the_same_context() -> None:
    made = populations({("a", "", None): [0], ("b", "", None): [1]}, has_control=False)
    assert source_key(made, ask("b", "")) == ("b", "", None)
    assert source_key(made, ask("c", "")) is None


def test_new_cells_tell_how_a_time_goes_on_unless_they_are_silent() -> None:
    earlier = replace(
        populations({("a", "", 0.0): [0], ("a", "", 1.0): [1]}), course=Course(np.array([[1.0], [2.0]]), np.ones(2))
    )
    new = populations({("a", "", 1.0): [3], ("a", "", 0.0): [4], ("b", "", 2.0): [5]})
    new = replace(new, course=Course(np.array([[7.0], [0.0], [0.0]]), np.full(3, 9.0)))
    joined = earlier.joined(new)
    assert [key.time for key in joined.keys] == [0.0, 1.0, 2.0]
    assert joined.course is not None
    assert joined.course.change.ravel().tolist() == [1.0, 7.0, 0.0]
    assert joined.course.noise.tolist() == [1.0, 9.0, 9.0]
    assert earlier.joined(replace(new, course=None)).course is None


def test_a_population_that_is_given_again_counts_once_and_other_cells_of_it_beside() -> None:
    rng = np.random.default_rng(0)
    cells, more = rng.gamma(1.0, size=(40, 6)).astype(np.float32), rng.gamma(1.0, size=(20, 6)).astype(np.float32)
    keys, features = (ask("a", ""), ask("a", "X")), np.zeros((2, 1))

    def of(control: np.ndarray, treated: np.ndarray) -> Populations:
        rows = np.repeat([0, 1], [len(control), len(treated)])
        blocks = [np.concatenate([control, treated])]
        return Populations.summarise(blocks, rows, keys, features, has_control=True, genes=tuple("abcdef"))

    joined = of(cells, more).joined(of(cells[::-1], cells[:20]))
    assert joined.n_cells.tolist() == [40, 40]
    np.testing.assert_allclose(joined.mean[0], cells.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(joined.mean[1], np.concatenate([more, cells[:20]]).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(joined.variance[1], np.concatenate([more, cells[:20]]).var(axis=0), rtol=1e-5)


def test_find_needs_the_whole_key() -> None:
    made = populations({("a", "", 1.0): [0], ("a", "X", 1.0): [1], ("b", "X", 1.0): [2], ("b", "X", 2.0): [3]})
    assert [made.find(key) for key in made.keys] == [0, 1, 2, 3]
    assert made.find(ask("a", "X", 2.0)) is None


def test_without_itself_a_time_starts_from_another() -> None:
    made = populations({("a", "", t): [t] for t in (3.0, 6.0, 9.0)}, has_control=False)
    for time, start in ((3.0, 6.0), (6.0, 3.0), (9.0, 6.0)):
        found = made.source(ask("a", "", time), itself=False)
        assert found is not None
        assert made.keys[found].time == start
    assert populations({("a", "", None): [0]}, has_control=False).source(ask("a", ""), itself=False) is None


def test_the_sources_of_all_are_those_of_each() -> None:
    means = {("a", "", 1.0): [0], ("a", "X", 2.0): [1], ("b", "X", 1.0): [2], ("c", "", 5.0): [3], ("c", "Y", 4.0): [4]}
    made = populations(means)
    assert [made.source(key) for key in made.keys] == [0, 0, None, 3, 3]
    assert made.sources.tolist() == [0, 0, -1, 3, 3]
    assert made.source_of(2) is None
    source = made.source_of(4)
    assert source is not None
    assert (source.key, source.mean.tolist()) == (ask("c", "", 5.0), [3])


def test_elsewhere_and_over_time() -> None:
    means = {("a", "", 2.0): [0], ("a", "X", 2.0): [1], ("b", "X", 2.0): [2], ("c", "", 2.0): [3], ("c", "X", 2.0): [4]}
    means |= {("d", "", 2.0): [5], ("d", "X", 1.0): [6], ("d", "X", 3.0): [7], ("d", "X", 2.0): [8]}
    made = populations(means)
    assert made.elsewhere(ask("a", "X", 2.0)) == [4, 8]  # b has no control cells
    assert made.elsewhere(ask("a", "Y", 2.0)) == []
    assert made.over_time("d", "X") == [6, 8, 7]
    assert made.over_time("d", "Y") == []


def test_a_population_names_what_it_has() -> None:
    assert str(Population("T cell", "A + B", 24.0)) == "T cell, A + B, time 24"
    assert str(Population("", "", 0.0)) == "time 0"
    assert str(Population("", "", None)) == "all cells"


def test_of_two_controls_as_near_in_time_the_earlier_is_the_source_in_any_order() -> None:
    means = {("T", "", 0.0): [1.0], ("T", "", 12.0): [2.0], ("T", "A", 12.0): [3.0]}
    for made in (populations(means), populations(dict(reversed(means.items())))):
        found = made.source(ask("T", "A", 6.0))
        assert found is not None
        assert made.keys[found].time == 0.0
