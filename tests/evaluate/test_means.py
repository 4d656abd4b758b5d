"""Statistics of profiles against scipy and scikit-learn, and of which genes and changes they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score
from test_metrics import made_pair

from squidiff.evaluate import means
from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Resample

SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return means.pearson(means.ranks(a), means.ranks(b))


@quick
@given(seed=SEEDS, ties=st.booleans())
def test_statistics_are_those_of_scipy_and_scikit_learn(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 20))
    if ties:
        a, b = a.round(), b.round()
    rows = list(zip(a, b, strict=True))
    np.testing.assert_allclose(means.pearson(a, b), [scipy.stats.pearsonr(x, y).statistic for x, y in rows], atol=1e-12)
    np.testing.assert_allclose(spearman(a, b), [scipy.stats.spearmanr(x, y).statistic for x, y in rows], atol=1e-12)
    np.testing.assert_allclose(means.r2(a, b), [r2_score(y, x) for x, y in rows], atol=1e-12)
    np.testing.assert_allclose(
        means.cosine(a, b), [1 - scipy.spatial.distance.cosine(x, y) for x, y in rows], atol=1e-12
    )
    np.testing.assert_allclose(
        means.mean_absolute_error(a, b), [mean_absolute_error(x, y) for x, y in rows], atol=1e-12
    )


def test_what_does_not_vary_has_no_correlation_and_no_r2() -> None:
    flat, line = np.full((1, 5), 3.0), np.arange(5.0)[None]
    for statistic in (means.pearson, spearman):
        assert np.isnan(statistic(flat, line)).all()
        assert np.isnan(statistic(line, flat)).all()
        assert np.isnan(statistic(line[:, :1], line[:, :1])).all()
    assert np.isnan(means.r2(line, flat)).all()
    assert means.r2(flat, line).item() == pytest.approx(-0.5)  # worse than the mean, 2
    assert np.isnan(means.cosine(0 * flat, line)).all()
    assert np.isnan(means.sign_agreement(line, 0 * line)).all()


def test_signs_are_compared_where_the_truth_changes() -> None:
    truth, predicted = np.array([[1.0, -1.0, 0.0, 2.0]]), np.array([[0.1, 3.0, 5.0, 0.0]])
    assert means.sign_agreement(predicted, truth).item() == pytest.approx(1 / 3)


@quick
@given(seed=SEEDS)
def test_changes_are_from_the_reference_and_top_genes_are_those_of_the_truth(seed: int) -> None:
    pair = made_pair(np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(means, "N_TOP_GENES", 4)
        values = score(pair)
    predicted, truth = pair.predicted.mean(axis=0), pair.truth.mean(axis=0)
    p = [
        scipy.stats.mannwhitneyu(t, c, method="asymptotic").pvalue
        for t, c in zip(pair.truth.T, pair.control.T, strict=True)
    ]
    assert pair.truly_expressed is not None
    top = pair.truly_expressed.top(4)
    assert max(np.array(p)[top]) <= min(np.delete(p, top))
    for name, base in (("", 0.0), ("delta_", pair.control_mean), ("_from_perturbed", pair.perturbed_mean)):
        prefix, suffix = ("delta_", name) if name.startswith("_") else (name, "")
        for genes, end in ((slice(None), ""), (top, "_top_genes")):
            a, b = (predicted - base)[genes], (truth - base)[genes]
            found = values[f"{prefix}spearman{suffix}{end}"]
            assert found == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
            assert values[f"{prefix}r2{suffix}{end}"] == pytest.approx(r2_score(b, a))


def test_without_a_reference_its_metrics_are_not_known() -> None:
    pair = dataclasses.replace(
        made_pair(np.random.default_rng(0)), control_mean=None, perturbed_mean=None, control=None
    )
    for name, value in score(pair).items():
        if METRICS[name].needs:
            assert np.isnan(value)
            assert np.isnan(METRICS[name].function(Resample(pair, np.ones((3, 7)), np.ones((3, 9))))).all()
