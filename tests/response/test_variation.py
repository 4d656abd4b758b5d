"""What a condition does to zeros, spread and correlation is learned where it was seen, and expected elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from squidiff.response.populations import Population, Populations
from squidiff.response.shape import ZeroLaw, least_map, nonzero_quantiles
from squidiff.response.variation import LARGEST_CHANGE, Covariances, Relatives, Variation, widened

G, N = 30, 1500
KEYS = tuple(Population(context, condition, None) for context in "abc" for condition in ("", "drug"))
ASKED = Population("d", "drug", None)
ELSEWHERE = Relatives((1, 3, 5))


def drawn(rng: np.random.Generator, *, together: float = 0.0, width: float = 1.0, off: float = 0.0) -> np.ndarray:
    """Cells whose first ten genes share a factor, whose values are `width` times as wide, and `off` of them off."""
    factor = rng.normal(size=(N, 1)) * (np.arange(G) < 10)
    noise = rng.normal(size=(N, G))
    cells = 4.0 + width * 0.3 * (np.sqrt(together) * factor + np.sqrt(1 - together * (np.arange(G) < 10)) * noise)
    return np.where(rng.random((N, G)) < 0.1 + off, 0.0, np.maximum(cells, 0.1))


def learned(rng: np.random.Generator, signs: tuple[float, ...] = (1.0, 1.0, 1.0), **change: float) -> Variation:
    """Of three contexts whose treated cells are changed, each as its sign says."""
    cells = []
    for sign in signs:
        cells += [drawn(rng), drawn(rng, **{name: sign * value for name, value in change.items()})]
    return of_cells(cells)


def of_cells(cells: list[np.ndarray], non_negative: bool = True) -> Variation:
    everything, population = np.concatenate(cells), np.repeat(np.arange(len(cells)), [len(c) for c in cells])
    features = np.array([[float(key.condition != "")] for key in KEYS])
    made = Populations.summarise([everything], population, KEYS, features, has_control=True)
    axes = np.linalg.svd(everything - everything.mean(axis=0), full_matrices=False)[2][:5].T
    covariances = Covariances.of(np.array_split(everything, 3), population, made, axes)
    law = ZeroLaw().fit(made.mean, made.zero_fraction)
    return Variation(made, law, nonzero_quantiles(everything), np.full(G, non_negative), covariances)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def of_block(cells: np.ndarray) -> float:
    """The mean correlation of the first ten genes."""
    return float(np.corrcoef(cells[:, :10], rowvar=False)[np.triu_indices(10, 1)].mean())


def test_relatives_are_itself_then_the_condition_elsewhere_then_others_here(rng: np.random.Generator) -> None:
    variation = learned(rng)
    shift = variation.populations.shifts([3])[0]
    assert variation.relatives(KEYS[1], shift) == ((1,), 1.0)
    assert variation.relatives(ASKED, shift) == ((1, 3, 5), 1.0)
    other = Population("b", "another", None)
    assert variation.relatives(other, 2 * shift) == ((3,), 1.0)
    assert variation.relatives(other, shift / 4) == ((3,), pytest.approx(0.25))
    assert variation.relatives(Population("d", "", None), shift).at == ()


def test_genes_go_together_as_the_condition_made_them_elsewhere(rng: np.random.Generator) -> None:
    def without_zeros(together: float) -> np.ndarray:
        return drawn(rng, together=together, off=-0.1)

    variation = of_cells([without_zeros(0.8 * (i % 2)) for i in range(len(KEYS))])
    source, truth = without_zeros(0.0), without_zeros(0.8)
    made = variation.correlate(ELSEWHERE, source, source)
    assert abs(of_block(source)) < 0.02
    assert of_block(truth) == pytest.approx(0.8, abs=0.02)
    assert of_block(made) == pytest.approx(0.75, abs=0.06)
    assert 0.2 < of_block(variation.correlate(ELSEWHERE._replace(share=0.5), source, source)) < 0.7
    np.testing.assert_allclose(made.mean(axis=0), source.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(made.std(axis=0), source.std(axis=0), atol=1e-9)


def test_noise_alone_makes_no_genes_go_together(rng: np.random.Generator) -> None:
    variation, source = learned(rng), drawn(rng)
    assert variation.correlate(ELSEWHERE, source, source) is source
    few = of_cells([drawn(rng)[:120] for _ in KEYS])
    assert few.correlate(ELSEWHERE, source, source) is source


def test_the_spread_is_changed_as_much_as_elsewhere(rng: np.random.Generator) -> None:
    variation = learned(rng, width=1.7)
    np.testing.assert_allclose(variation.missed(ELSEWHERE.at).width, 1.7, rtol=0.06)


def test_where_contexts_disagree_little_is_expected(rng: np.random.Generator) -> None:
    cells = [drawn(rng, width=width) for width in (1.0, 1.6, 1.0, 1 / 1.6, 1.0, 1.0)]
    width = of_cells(cells).missed((1, 3, 5)).width
    np.testing.assert_allclose(width, 1.0, atol=0.05)


def test_more_zeros_than_the_law_says_are_expected_elsewhere(rng: np.random.Generator) -> None:
    variation = learned(rng, off=0.2)
    mean, zeros = variation.populations.mean, variation.populations.zero_fraction
    variation.law = ZeroLaw().fit(mean, np.full_like(zeros, 0.1))  # of which the mean says nothing
    expected = variation.law.follow(mean[0], zeros[0], mean[1])
    found = variation.zero_fraction(ELSEWHERE, expected)
    assert np.abs(expected - 0.3).mean() > 0.06
    assert np.abs(found - 0.3).mean() < 0.02
    rare = of_cells([drawn(rng, off=off) for off in (0.88, 0.84)] * 3)
    mean, zeros = rare.populations.mean, rare.populations.zero_fraction
    rare.law = ZeroLaw().fit(mean, np.full_like(zeros, 0.98))
    found = rare.zero_fraction(Relatives((1,)), rare.law.follow(mean[0], zeros[0], mean[1]))
    np.testing.assert_allclose(found.mean(), zeros[1].mean(), atol=0.004)
    np.testing.assert_array_equal(variation.zero_fraction(Relatives(), expected), expected)
    always, never = variation.zero_fraction(Relatives((1,)), np.array([0.0, 1.0] * (G // 2)))[:2]
    assert (always, never) == (0.0, 1.0)


def test_no_change_is_larger_than_could_be_meant(rng: np.random.Generator) -> None:
    width = learned(rng, width=40.0).missed((1, 3, 5)).width
    assert width.max() <= np.exp(LARGEST_CHANGE / 2) + 1e-9


def test_the_order_of_populations_means_nothing_and_few_cells_tell_no_covariance(rng: np.random.Generator) -> None:
    variation, source = learned(rng, together=0.8), drawn(rng)
    np.testing.assert_allclose(
        variation.correlate(ELSEWHERE, source, source), variation.correlate(Relatives((5, 1, 3)), source, source)
    )
    few = of_cells([drawn(rng)[:20] for _ in KEYS])
    assert few.correlate(ELSEWHERE, source, source) is source
    assert variation.correlate(ELSEWHERE, source[:20], source[:1]).shape == (20, G)  # no covariance, and no fault


def summed(cells: np.ndarray, population: np.ndarray, axes: np.ndarray) -> Covariances:
    made = Populations.summarise([cells], population, KEYS[:2], np.zeros((2, 1)), has_control=True)
    return Covariances.of([sp.csr_matrix(cells[:70]), sp.csr_matrix(cells[70:])], population, made, axes)


def test_covariances_are_those_of_standardised_cells(rng: np.random.Generator) -> None:
    cells, axes = drawn(rng, together=0.5)[:300], np.linalg.qr(rng.normal(size=(G, 4)))[0]
    cells[:, 3] = 7.0  # a gene that does not vary
    found = summed(cells, np.repeat([0, 1], [120, 180]), axes)
    of_second = cells[120:]
    scaled = (of_second - of_second.mean(axis=0)) / np.where(np.arange(G) == 3, 1.0, of_second.std(axis=0))
    np.testing.assert_allclose(found.matrices[1], np.cov(scaled @ axes, rowvar=False), rtol=1e-5, atol=1e-6)


def test_of_covariances_that_are_joined_that_of_more_cells_counts(rng: np.random.Generator) -> None:
    axes = np.eye(G)[:, :3]
    one, other = (
        summed(drawn(rng)[: n_a + n_b], np.repeat([0, 1], [n_a, n_b]), axes) for n_a, n_b in ((100, 300), (200, 60))
    )
    joined = one.joined(other, [(0, 0), (1, 1), (0, None), (None, 1)])
    np.testing.assert_array_equal(joined.n_cells, [200, 300, 100, 60])
    np.testing.assert_array_equal(joined.matrices[1], one.matrices[1])
    np.testing.assert_array_equal(joined.matrices[0], other.matrices[0])


def test_values_lie_wider_about_their_mean_and_zeros_stay(rng: np.random.Generator) -> None:
    cells, can = drawn(rng), np.arange(G) < 20
    wide = widened(cells, np.full(G, 1.3), can)
    np.testing.assert_array_equal((wide == 0)[:, can], (cells == 0)[:, can])
    shown = np.where(cells == 0, np.nan, cells)[:, can]
    np.testing.assert_allclose(
        np.nanstd(np.where(cells == 0, np.nan, wide)[:, can], axis=0), 1.3 * np.nanstd(shown, axis=0), rtol=0.01
    )
    np.testing.assert_allclose(wide[:, ~can].std(axis=0), 1.3 * cells[:, ~can].std(axis=0))
    assert widened(cells, np.full(G, 50.0), can)[:, can].min() == 0.0


def test_the_least_map_gives_the_wanted_covariance(rng: np.random.Generator) -> None:
    start, end = (m @ m.T + np.eye(4) for m in rng.normal(size=(2, 4, 4)))
    found = least_map(start, end)
    np.testing.assert_allclose(found @ start @ found.T, end, atol=1e-9)
    np.testing.assert_allclose(found, found.T, atol=1e-9)
