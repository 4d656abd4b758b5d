"""The fold shift: ratios of counts where these hold elsewhere, differences where those do, and what bounds both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made_populations import answer, ask, populations
from squidiff.response.fold import PULLS, SATURATION, FoldShift
from squidiff.response.noise import beyond_noise
from squidiff.response.parts import Parts
from squidiff.response.populations import Populations, Source
from squidiff.response.shift import MeanShift, WeightedShift

CONTEXTS = "abcdef"


def made_by(treated: np.ndarray, control: np.ndarray) -> Populations:
    """Contexts x G means under X, of all but the last, and of control cells."""
    means: dict[tuple[str, str, float | None], object] = {
        (c, "", None): m for c, m in zip(CONTEXTS, control, strict=True)
    }
    means |= {(c, "X", None): m for c, m in zip(CONTEXTS[:-1], treated, strict=False)}
    return populations(means)


def levels(seed: int = 0, n_genes: int = 200) -> np.ndarray:
    """Control counts of six contexts that differ much from one gene to the next."""
    return np.random.default_rng(seed).lognormal(-1.0, 1.5, size=(len(CONTEXTS), n_genes))


def error(predictor: FoldShift | MeanShift | WeightedShift, made: Populations, truth: np.ndarray) -> float:
    return float(np.square(answer(predictor, made, ask("f", "X")) - truth).mean())


def test_where_ratios_of_counts_hold_elsewhere_they_are_followed() -> None:
    """Falls, so that nothing saturates: every count is halved, or falls to a tenth."""
    counts, ratio = levels(), np.tile([0.5, 0.1], 100)
    control, treated = np.log1p(counts), np.log1p(counts * ratio)
    made = made_by(treated, control)
    fold = error(FoldShift(), made, treated[-1])
    assert fold < 0.1 * error(MeanShift(), made, treated[-1])
    assert fold < 0.1 * error(WeightedShift(), made, treated[-1])


def test_each_gene_goes_the_way_that_it_went_elsewhere() -> None:
    """Half of the genes fall by a ratio, half by a difference: a mean over both would be off in either."""
    counts = levels()
    control = np.log1p(counts) + 1.0
    ratio = np.arange(200) % 2 == 0
    treated = np.where(ratio, np.log1p(np.expm1(control) * 0.2), control - 0.9)
    made = made_by(treated, control)
    weights = FoldShift().fit(made).weights.sum(axis=(0, 1, 3))  # of pseudo-counts, from differences to ratios
    assert weights[0][~ratio].mean() > 2 * weights[0][ratio].mean()
    assert weights[-2:, ratio].sum(axis=0).mean() > weights[-2:, ~ratio].sum(axis=0).mean()


def test_where_differences_hold_elsewhere_it_is_no_worse_than_a_pull_and_saturation_make_it() -> None:
    control = np.log1p(levels())
    shift = np.random.default_rng(1).uniform(0.0, 1.0, 200)
    made = made_by(control + shift, control)
    moved = answer(FoldShift(), made, ask("f", "X"))
    above = control[-1] > control[:-1].max(axis=0)  # of which the others' level can only take away
    assert above.sum() > 10
    assert (moved[above] <= (control[-1] + shift)[above] + 1e-9).all()
    assert (moved[above] > control[-1][above]).mean() > 0.9


def test_negative_means_take_differences_alone() -> None:
    rng = np.random.default_rng(2)
    control = rng.normal(size=(len(CONTEXTS), 30))
    fitted = FoldShift().fit(made_by(control - 0.7, control))
    assert fitted.pseudo_counts == (1.0,)
    moved = answer(fitted, made_by(control - 0.7, control), ask("f", "X"))
    level = (control[:-1] - 0.7).mean(axis=0)  # near it the pull does nothing
    assert np.abs(moved - (control[-1] - 0.7)).max() <= max(PULLS) * np.abs(level - control[-1]).max() + 1.0
    np.testing.assert_allclose(np.median(moved - control[-1]), -0.7, atol=0.15)


def test_means_that_are_no_logarithms_do_not_overflow() -> None:
    counts = levels() * 1000
    moved = answer(FoldShift(), made_by(counts * 2, counts), ask("f", "X"))
    assert np.isfinite(moved).all()


@pytest.mark.parametrize("fall", [0.9, 0.3, 0.0])
def test_what_falls_is_never_silenced_unless_it_is_silent_elsewhere(fall: float) -> None:
    counts = levels()
    control = np.log1p(counts)
    moved = answer(FoldShift(), made_by(np.log1p(counts * fall), control), ask("f", "X"))
    assert (moved > 0).all()
    assert (moved <= control[-1] + max(PULLS) * 10).all()


def test_a_rise_beyond_what_others_reach_is_cut_by_the_saturation() -> None:
    """One other context: its level is all that is known, and its ratio all that moves."""
    control = np.array([[1.0, 1.0], [2.0, 2.0]])
    means: dict[tuple[str, str, float | None], object] = {
        ("a", "", None): control[0],
        ("b", "", None): control[1],
        ("a", "X", None): control[0] + 0.5,
    }
    moved = answer(FoldShift(), populations(means), ask("b", "X"))
    count, ratio = np.expm1(2.0), lambda a: (np.expm1(1.5) + a) / (np.expm1(1.0) + a)
    by_hand = []
    for a in (1.0, 0.3, 0.1, 0.03, 0.01):
        rise = np.log1p(count * ratio(a) + a * (ratio(a) - 1))
        cut = rise - SATURATION * (rise - 2.0)  # its level, 1.5, lies below where b starts
        by_hand += [cut + pull * (1.5 - cut) for pull in PULLS]
    np.testing.assert_allclose(moved, np.mean(by_hand), rtol=1e-12)


def test_a_mean_below_zero_is_no_count_and_says_nothing_of_other_genes() -> None:
    """As corrected logarithms have it: once, one such gene of a part left all genes where they were."""
    control = np.full((len(CONTEXTS), 3), 1.0)
    made = made_by(control[:-1] + np.array([0.8, 0.0, 0.4]), control)
    means = np.stack([made.mean] * 2).reshape(2, -1, 3)
    shares = np.full(2 * len(made.keys), 0.5)
    parts = Parts(np.tile(np.arange(len(made.keys)), 2), shares, means.reshape(-1, 3).copy())
    parts.mean[:, 1] = np.where(np.arange(len(shares)) % 2, 2.1, -0.1)
    with_parts = replace(made, parts=parts)
    shift = answer(FoldShift(), with_parts, ask("f", "X")) - 1.0
    assert np.isfinite(shift).all()
    assert shift[0] > 0.6
    assert shift[2] > 0.3
    source = Source(ask("f", ""), np.array([1.0, -0.03, 1.0]))
    predicted = FoldShift().fit(made).predict(ask("f", "X"), np.zeros(1), source)
    assert predicted[1] == pytest.approx(-0.03, abs=0.1)  # others do not change it, the pull towards them moves it


def test_a_shift_that_is_no_number_is_not_told_as_none() -> None:
    assert np.isnan(beyond_noise(np.array([np.nan]), np.array([1.0]))).all()
