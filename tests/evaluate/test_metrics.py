"""The metrics against scipy, closed forms and naive loops; resamples against cells that are really repeated."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gamma

from squidiff.evaluate import metrics
from squidiff.evaluate.baselines import NAMES, ZEROS_KEPT
from squidiff.evaluate.distributions import energy_distance, variance_error, variance_pearson, zero_fraction_error
from squidiff.evaluate.metrics import METRICS, score
from squidiff.evaluate.pairs import Pair, Resample

pearson, delta_pearson, mean_squared_error = (
    METRICS[name].function for name in ("pearson", "delta_pearson", "mean_squared_error")
)
UNBIASED = {"energy_distance", "normalised_energy_distance", "mmd", "energy_distance_top_genes"}
"""They pair no cell with itself among its own, and so are below 0 for a sample against itself."""
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def made_pair(rng: np.random.Generator, n: int = 9, m: int = 7, n_genes: int = 6) -> Pair:
    """Predicted and true cells with zeros, no gene constant; the cells are their own components."""
    predicted, truth = (
        rng.gamma(2.0, 1.0, (size, n_genes)) * rng.permuted(np.arange(size * n_genes) % 3 > 0).reshape(size, n_genes)
        for size in (n, m)
    )
    predicted, truth = predicted + 0.1 * np.eye(n, n_genes), truth + 0.1 * np.eye(m, n_genes)
    control, rivals = rng.gamma(2.0, 1.0, (8, n_genes)), rng.gamma(2.0, 1.0, (3, n_genes))
    means = control.mean(axis=0), rng.gamma(2.0, 1.0, n_genes)
    return Pair(predicted, truth, predicted, truth, *means, control, rivals=rivals)


def on(predicted: np.ndarray, truth: np.ndarray, control: np.ndarray | None = None) -> Resample:
    return Resample.whole(Pair(predicted, truth, predicted, truth, control))


def naive_energy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| by loops; no cell is paired with itself."""

    def mean(distances: list[float]) -> float:
        return sum(distances) / len(distances)

    def within(cells: np.ndarray) -> float:
        return mean([np.sqrt(sum((x - y) ** 2)) for i, x in enumerate(cells) for j, y in enumerate(cells) if i != j])

    across = mean([np.sqrt(sum((x - y) ** 2)) for x in predicted for y in truth])
    return 2 * across - within(predicted) - within(truth)


# --- energy distance


@quick
@given(seed=SEEDS, n=st.integers(2, 8), m=st.integers(2, 8))
def test_energy_distance_equals_a_double_loop(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    predicted, truth = rng.normal(size=(n, 3)), rng.normal(0.5, 2.0, (m, 3))
    assert energy_distance(on(predicted, truth)).item() == pytest.approx(naive_energy(predicted, truth), abs=1e-12)


@quick
@given(seed=SEEDS)
def test_energy_distance_of_numbers_is_scipys_but_for_the_bias(seed: int) -> None:
    """scipy's, squared, pairs every number with itself too: its within terms are (n - 1) / n of ours."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(12, 1)), rng.exponential(size=(17, 1))
    within = [np.abs(a - a.T).sum() / (len(a) * (len(a) - 1)) for a in (x, y)]
    biased = energy_distance(on(x, y)).item() + within[0] / len(x) + within[1] / len(y)
    assert biased == pytest.approx(scipy.stats.energy_distance(x.ravel(), y.ravel()) ** 2, abs=1e-12)


def mean_absolute_normal(mean: float, sd: float) -> float:
    """E|Z|, Z ~ N(mean, sd^2): the folded normal's mean."""
    return sd * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * sd**2)) + mean * (
        1 - 2 * scipy.stats.norm.cdf(-mean / sd)
    )


def test_energy_distance_of_two_gaussians() -> None:
    """Cells at 2000 equal quantiles of each: the means of |x - y| become the integrals of the folded normal."""
    grid = scipy.stats.norm.ppf((np.arange(2000) + 0.5) / 2000)[:, None]
    found = energy_distance(on(1.5 + 2.0 * grid, grid)).item()
    across = mean_absolute_normal(1.5, np.sqrt(1.0 + 4.0))
    expected = 2 * across - mean_absolute_normal(0.0, np.sqrt(8.0)) - mean_absolute_normal(0.0, np.sqrt(2.0))
    assert found == pytest.approx(expected, abs=3 * (2.26 + 1.13) / 2000)  # the pairs left out are 1 of 2000


def test_energy_distance_is_zero_on_average_between_samples_of_one_distribution() -> None:
    rng = np.random.default_rng(0)
    values = np.array(
        [energy_distance(on(rng.normal(size=(5, 4)), rng.normal(size=(8, 4)))).item() for _ in range(800)]
    )
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean()) < 4 * error
    bias = 2 * gamma(2.5) / gamma(2.0) * (1 / 5 + 1 / 8)  # E|x - x'|, and how often a cell would meet itself
    assert error < bias / 20  # so that pairing cells with themselves would show


@quick
@given(seed=SEEDS)
def test_energy_distance_keeps_under_swap_shift_and_rotation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(6, 4)), rng.normal(1.0, 2.0, (9, 4))
    before = energy_distance(on(x, y)).item()
    rotation, shift = np.linalg.qr(rng.normal(size=(4, 4)))[0], rng.normal(0.0, 5.0, 4)
    assert energy_distance(on(y, x)).item() == pytest.approx(before, abs=1e-12)
    assert energy_distance(on(x @ rotation + shift, y @ rotation + shift)).item() == pytest.approx(before, abs=1e-11)
    assert energy_distance(on(3 * x, 3 * y)).item() == pytest.approx(3 * before, abs=1e-11)


@quick
@given(seed=SEEDS)
def test_energy_distance_grows_with_a_shift_and_is_all_shift_far_away(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, 3))
    direction = np.array([0.6, 0.0, 0.8])
    values = [energy_distance(on(x + d * direction, x)).item() for d in (0.0, 0.5, 1.0, 4.0, 1e6)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(2e6, rel=1e-5)


def test_energy_distance_of_a_single_cell_is_not_known() -> None:
    x = np.random.default_rng(0).normal(size=(5, 2))
    assert np.isnan(energy_distance(on(x[:1], x)).item())
    assert np.isnan(energy_distance(on(x, x[:1])).item())


# --- correlations and errors


@quick
@given(seed=SEEDS)
def test_correlations_equal_scipys(seed: int) -> None:
    pair = made_pair(np.random.default_rng(seed))
    sample, control = Resample.whole(pair), pair.control_mean
    p, t = pair.predicted.mean(axis=0), pair.truth.mean(axis=0)
    assert pearson(sample).item() == pytest.approx(scipy.stats.pearsonr(p, t).statistic, abs=1e-12)
    expected = scipy.stats.pearsonr(p - control, t - control).statistic
    assert delta_pearson(sample).item() == pytest.approx(expected, abs=1e-12)
    logs = [np.log(np.var(cells, axis=0)) for cells in (pair.predicted, pair.truth)]
    assert variance_pearson(sample).item() == pytest.approx(scipy.stats.pearsonr(*logs).statistic, abs=1e-10)


@quick
@given(seed=SEEDS)
def test_a_change_scaled_correlates_fully_and_one_turned_round_negatively(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, control = rng.gamma(2.0, 1.0, (6, 8)), rng.gamma(2.0, 1.0, 8)
    change = truth.mean(axis=0) - control
    for factor, expected in ((0.3, 1.0), (5.0, 1.0), (-1.0, -1.0)):
        predicted = np.tile(control + factor * change, (3, 1))
        assert delta_pearson(on(predicted, truth, control)).item() == pytest.approx(expected)


def test_no_predicted_change_has_no_correlation() -> None:
    rng = np.random.default_rng(0)
    truth, control = rng.gamma(2.0, 1.0, (6, 8)), rng.gamma(2.0, 1.0, 8)
    around = rng.normal(size=(4, 8))
    assert np.isnan(delta_pearson(on(control + around - around.mean(axis=0), truth, control)).item())
    assert np.isnan(delta_pearson(on(truth, truth, None)).item())


def test_variances_are_compared_where_both_vary() -> None:
    """Gene 0 is constant in the prediction and gene 1 in the truth; the others' variances are 1, 4, 9 and 1, 2, 3."""
    sign = np.array([[1.0], [-1.0]])
    predicted, truth = sign * np.array([0.0, 7.0, 1.0, 2.0, 3.0]), sign * np.sqrt([50.0, 0.0, 1.0, 2.0, 3.0])
    expected = scipy.stats.pearsonr(np.log([1.0, 4.0, 9.0]), np.log([1.0, 2.0, 3.0])).statistic
    assert variance_pearson(on(predicted, truth)).item() == pytest.approx(expected)
    assert variance_pearson(on(5 * predicted, truth)).item() == pytest.approx(expected)  # a factor changes no shape
    few = predicted * [0, 1, 1, 0, 0]  # varies in one of four genes that truly do
    assert np.isnan(variance_pearson(on(few, truth))).all()


def test_the_error_of_variances_sees_their_size_and_genes_that_do_not_vary() -> None:
    sign = np.array([[1.0], [-1.0]])
    predicted, truth = sign * np.array([0.0, 7.0, 1.0, 2.0]), sign * np.sqrt([8.0, 0.0, 1.0, 3.0])
    e = 3.0 / 100  # of the mean true variance
    expected = np.abs(np.log((np.array([0.0, 49.0, 1.0, 4.0]) + e) / (np.array([8.0, 0.0, 1.0, 3.0]) + e))).mean()
    assert variance_error(on(predicted, truth)).item() == pytest.approx(expected)
    assert variance_error(on(truth / 10, truth)).item() > 2
    assert variance_error(on(truth + 5, truth)).item() == pytest.approx(0, abs=1e-12)
    assert np.isnan(variance_error(on(predicted, 0 * truth))).all()


def test_errors_by_hand() -> None:
    predicted = np.array([[0.0, 2.0], [0.0, 4.0]])
    truth = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 4.0]])
    sample = on(predicted, truth)
    assert mean_squared_error(sample).item() == pytest.approx(((0 - 1) ** 2 + (3 - 1) ** 2) / 2)
    assert zero_fraction_error(sample).item() == pytest.approx((abs(1 - 0.25) + abs(0 - 0.75)) / 2)


def test_a_shift_of_every_cell_squares_in_the_error() -> None:
    pair = made_pair(np.random.default_rng(0))
    shifted = on(pair.truth + np.arange(6.0), pair.truth)
    assert mean_squared_error(shifted).item() == pytest.approx(np.square(np.arange(6.0)).mean())


# --- resamples


@quick
@given(seed=SEEDS)
def test_resamples_are_cells_repeated(seed: int) -> None:
    """Of means, zeros and variances; every resample of the batch for itself."""
    rng = np.random.default_rng(seed)
    pair = made_pair(rng)
    truth_counts, predicted_counts = rng.integers(1, 4, (3, len(pair.truth))), rng.integers(1, 4, (3, 9))
    sample = Resample(pair, truth_counts.astype(float), predicted_counts.astype(float))
    found = {name: metric.function(sample) for name, metric in METRICS.items() if metric.is_resampled}
    for b in range(3):
        truth, predicted = (
            np.repeat(pair.truth, truth_counts[b], axis=0),
            np.repeat(pair.predicted, predicted_counts[b], 0),
        )
        known = {"predicted": predicted, "truth": truth, "expressed": pair.truly_expressed}
        expected = score(dataclasses.replace(pair, predicted_pcs=predicted, truth_pcs=truth, **known), found)
        for name in set(found) - UNBIASED:
            assert found[name][b] == pytest.approx(expected[name], rel=1e-9, abs=1e-12, nan_ok=True)


@quick
@given(seed=SEEDS)
def test_the_energy_distance_of_a_resample_pairs_no_cell_with_its_copy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pair = made_pair(rng, 5, 4, 3)
    counts = [np.array([2, 0, 1, 3]), np.array([1, 1, 0, 2, 4])]
    x, y = (np.repeat(cells, c, axis=0) for cells, c in zip((pair.truth, pair.predicted), counts, strict=True))
    ids = [np.repeat(np.arange(len(c)), c) for c in counts]
    across = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    within = [
        np.mean([np.linalg.norm(c[i] - c[j]) for i in range(len(c)) for j in range(len(c)) if k[i] != k[j]])
        for c, k in zip((x, y), ids, strict=True)
    ]
    sample = Resample(pair, counts[0][None].astype(float), counts[1][None].astype(float))
    assert energy_distance(sample).item() == pytest.approx(2 * across - sum(within), abs=1e-12)


# --- the table of metrics


def test_every_metric_and_baseline_is_in_the_docs() -> None:
    """Under its own name, or that of the statistic that it takes of changes or of the top genes."""
    docs = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    shortened = [re.sub("^delta_|_from_perturbed|_top_genes$", "", name) for name in METRICS]
    assert [name for name in shortened if f"`{name}`" not in docs and "discrimination" not in name] == []
    assert [name for name in NAMES if not name.endswith(ZEROS_KEPT) and f"`{name}`" not in docs] == []


@quick
@given(seed=SEEDS)
def test_the_truth_as_prediction_scores_best(seed: int) -> None:
    """But for unbiased distances, which then pair each cell with itself across, at distance 0."""
    pair = made_pair(np.random.default_rng(seed))
    same = dataclasses.replace(pair, predicted=pair.truth, predicted_pcs=pair.truth_pcs)
    scores = score(same)
    m = len(pair.truth)
    within = sum(np.linalg.norm(a - b) for a in pair.truth for b in pair.truth) / (m * (m - 1))
    for name in ("energy_distance", "energy_distance_top_genes"):  # a cell's genes are its components, and all are top
        assert scores.pop(name) == pytest.approx(-2 * within / m)
    assert scores.pop("normalised_energy_distance") < 0
    assert scores.pop("mmd") < 0
    known = {name for name, value in scores.items() if not np.isnan(value)}
    assert set(scores) - known <= {"classifier_accuracy", "de_overlap", "de_precision", "de_recall"}
    precision = scores.pop("de_precision")  # of 50 genes, not all of which differ
    assert np.isnan(precision) or 0 < precision <= 1
    best = {name: METRICS[name].best for name in known - {"de_precision"}}
    assert {name: scores[name] for name in best} == pytest.approx(best, abs=1e-12)


@quick
@given(seed=SEEDS)
def test_no_prediction_scores_better_than_the_best(seed: int) -> None:
    pair = made_pair(np.random.default_rng(seed))
    for name, value in score(pair).items():
        gap = METRICS[name].best - value if METRICS[name].higher_is_better else value - METRICS[name].best
        assert gap >= 0 or name in UNBIASED or np.isnan(value)


@pytest.mark.parametrize("name", METRICS)
def test_a_worse_prediction_scores_worse(name: str) -> None:
    """Noise of a gene's own size on means, zeros lost, variances shuffled."""
    rng = np.random.default_rng(0)
    scale = rng.gamma(1.0, 1.0, 40) + 0.1
    rate, effect = rng.random(40), np.where(np.arange(40) % 2, np.exp(rng.normal(0.0, 1.0, 40)), 1.0)
    control, truth = (
        rng.gamma(1.0, 1.0, (150, 40)) * s * (rng.random((150, 40)) < rate) for s in (scale, scale * effect)
    )
    near = truth + rng.normal(0.0, 0.02, 40) * (truth > 0)
    far = rng.permutation(near.T).T
    means = (control.mean(axis=0), control.mean(axis=0) * rng.gamma(9.0, 1 / 9, 40))
    others = truth.mean(axis=0) * np.exp(rng.normal(0.0, 0.3, (20, 40)))
    pairs = (Pair(cells, truth, cells, truth, *means, control, rivals=others) for cells in (near, far))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_TOP_GENES", 5)
        values = [score(pair, [name])[name] for pair in pairs]
    assert (values[0] > values[1]) == METRICS[name].higher_is_better


# --- discrimination


def test_discrimination_counts_the_conditions_that_are_farther() -> None:
    """Rivals at 1, 2, 4 and 8 along one gene, the truth at 3, control at 0."""
    rivals = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0]])
    truth = np.array([[3.0, 0.0]])
    for at, score_of in ((3.0, 1.0), (2.6, 1.0), (2.5, 0.875), (1.0, 0.5), (8.0, 0.5), (0.0, 0.5), (9.0, 0.5)):
        pair = Pair(np.array([[at, 0.0]]), truth, truth, truth, np.zeros(2), rivals=rivals)
        found = score(pair, ["discrimination_l1", "discrimination_l2"])
        assert list(found.values()) == [score_of, score_of], at


def test_discrimination_by_angle_is_blind_to_size_and_sees_signs() -> None:
    rivals, truth = np.array([[0.0, 1.0], [-1.0, 0.0]]), np.array([[1.0, 0.0]])
    for predicted, expected in (([9.0, 1.0], 1.0), ([-9.0, 1.0], 0.0), ([1.0, 9.0], 0.5)):
        pair = Pair(np.array([predicted]), truth, truth, truth, np.zeros(2), rivals=rivals)
        assert score(pair, ["discrimination_cosine"])["discrimination_cosine"] == expected
    control = Pair(np.zeros((1, 2)), truth, truth, truth, np.zeros(2), rivals=rivals)
    assert np.isnan(score(control, ["discrimination_cosine"])["discrimination_cosine"])


def test_every_metric_says_who_proposed_it() -> None:
    assert METRICS["mmd"].source == "Gretton et al. 2012"
    assert METRICS["delta_pearson_from_perturbed_top_genes"].source.startswith("Vinas Torne")
    assert METRICS["de_recall"].source.startswith("Wilcoxon")
    assert METRICS["pearson"].source == "its definition"
