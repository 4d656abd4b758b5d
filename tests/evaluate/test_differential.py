"""Differential expression is scipy's, gene by gene."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.evaluate.differential import Differential, rank_sum
from squidiff.evaluate.metrics import METRICS
from squidiff.evaluate.pairs import Pair, Resample


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 30), m=st.integers(1, 30))
def test_it_is_scipys_rank_sum(seed: int, n: int, m: int) -> None:
    """Of numbers without ties, with many, and of a gene that is constant."""
    rng = np.random.default_rng(seed)
    cells, control = (
        np.column_stack([rng.normal(size=k), rng.poisson(1.0, k), rng.poisson(0.2, k), np.ones(k)]) for k in (n, m)
    )
    found = rank_sum(cells, control)
    for i in range(4):
        expected = scipy.stats.mannwhitneyu(cells[:, i], control[:, i], method="asymptotic")
        p = 1.0 if np.isnan(expected.pvalue) else expected.pvalue
        assert found.p[i] == pytest.approx(p, rel=1e-9)
        assert found.effect[i] == pytest.approx(expected.statistic / (n * m) - 0.5)
    np.testing.assert_allclose(found.p_adjusted, scipy.stats.false_discovery_control(found.p))


def test_without_a_difference_one_gene_in_twenty_falls_below_five_percent_and_none_is_significant() -> None:
    rng = np.random.default_rng(0)
    found = rank_sum(rng.poisson(1.0, (80, 2000)), rng.poisson(1.0, (60, 2000)))
    assert 0.03 < (found.p < 0.05).mean() < 0.06
    assert not found.is_significant.any()


def test_the_top_genes_are_the_most_significant_and_of_equal_ones_those_of_larger_effect() -> None:
    p, effect = np.array([0.5, 0.0, 0.0, 0.2]), np.array([0.0, 0.2, -0.4, 0.1])
    assert Differential(p, p, effect).top(3).tolist() == [2, 1, 3]


def made(predicted_shift: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Genes 0 to 9 of 40 truly differ by 3; what a prediction of such shifts scores, at k = 5."""
    monkeypatch.setattr("squidiff.evaluate.metrics.N_TOP_GENES", 5)
    rng = np.random.default_rng(0)
    control, truth, predicted = rng.normal(size=(3, 50, 40))
    truth[:, :10] += 3
    pair = Pair(predicted + predicted_shift, truth, predicted, truth, control.mean(axis=0), None, control)
    return {n: METRICS[n].function(Resample.whole(pair)).item() for n in ("de_overlap", "de_precision", "de_recall")}


def test_overlap_precision_and_recall_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    genes = np.arange(40)
    all_found = made(np.where(genes < 10, 3.0, 0.0), monkeypatch)
    assert all_found == {"de_overlap": 1.0, "de_precision": 1.0, "de_recall": 1.0}
    half = made(np.where((genes >= 5) & (genes < 15), 3.0, 0.0), monkeypatch)
    assert half == {"de_overlap": 0.5, "de_precision": pytest.approx(0.5, abs=0.5), "de_recall": 0.5}
    wrong = made(np.where(genes >= 20, 3.0, 0.0), monkeypatch)
    assert wrong == {"de_overlap": 0.0, "de_precision": 0.0, "de_recall": 0.0}


def test_where_nothing_truly_differs_they_are_not_known() -> None:
    rng = np.random.default_rng(1)
    control, truth, predicted = rng.normal(size=(3, 30, 10))
    pair = Pair(predicted, truth, predicted, truth, control.mean(axis=0), None, control)
    for name in ("de_overlap", "de_precision", "de_recall"):
        assert np.isnan(METRICS[name].function(Resample.whole(pair))).all()
