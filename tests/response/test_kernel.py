"""The kernel's shift: against scikit-learn's, on conditions in groups, and where it must say nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel

from made_populations import answer, ask, populations
from squidiff.response.embedding import ALPHAS, RidgeShift, errors_of_unseen
from squidiff.response.kernel import KernelShift, _Choice
from squidiff.response.populations import Populations, Source
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor

N_GENES = 40


class World(NamedTuple):
    """Conditions in groups that answer alike, some of them held out."""

    made: Populations
    asked: list[np.ndarray]
    true: list[np.ndarray]


def world(seed: int, n_features: int = 3, n_conditions: int = 60) -> World:
    rng = np.random.default_rng(seed)
    centres, effects = rng.normal(size=(10, n_features)), rng.normal(size=(10, N_GENES))
    group = rng.integers(0, 10, n_conditions + 20)
    described = centres[group] + 0.2 * rng.normal(size=(len(group), n_features))
    shifts = effects[group] + 0.3 * rng.normal(size=(len(group), N_GENES))
    features = np.column_stack([np.ones(len(group)), described])
    means: dict[tuple[str, str, float | None], object] = {("x", "", None): np.zeros(N_GENES)}
    means |= {("x", f"g{i}", None): shifts[i] for i in range(n_conditions)}
    made = populations(means, {f"g{i}": features[i] for i in range(n_conditions)})
    return World(made, list(features[n_conditions:]), list(effects[group[n_conditions:]]))


@pytest.mark.parametrize("strength", [1.0, 2.5, -1.0])
def test_the_answer_is_that_of_scikit_learns_kernel_ridge(strength: float) -> None:
    made, asked, _ = world(0)
    learned = KernelShift(_Choice(0.5, True, 0.1)).fit(made)
    described, shifts = made.features[1:, 1:], made.mean[1:]
    gamma = 1 / (2 * (0.5 * learned.unit) ** 2)
    common = shifts.mean(axis=0)
    known = KernelRidge(alpha=0.1, kernel="precomputed").fit(rbf_kernel(described, gamma=gamma), shifts - common)
    expected = common + known.predict(rbf_kernel(asked[0][None, 1:], described, gamma=gamma))[0]
    found = answer(learned, made, ask("x", "new"), strength * asked[0])
    np.testing.assert_allclose(found, strength * expected, atol=1e-9)


def test_errors_of_what_is_left_out_are_those_of_a_fit_for_each_penalty() -> None:
    made, _, _ = world(1)
    kernel, shifts = rbf_kernel(made.features[1:, 1:], gamma=0.3), made.mean[1:]
    rows = np.arange(60)
    folds = [(rows[rows % 3 != f], rows[rows % 3 == f]) for f in range(3)]
    strength = np.linspace(0.5, 2, 60)[:, None]
    found = errors_of_unseen(kernel, strength, shifts, folds)
    for i, base in enumerate((strength, np.ones((60, 1)))):
        for alpha, error in zip(ALPHAS, found[i], strict=True):
            expected = 0.0
            for fitted, out in folds:
                common = np.linalg.lstsq(base[fitted], shifts[fitted], rcond=None)[0]
                ridge = KernelRidge(alpha=alpha, kernel="precomputed")
                ridge.fit(kernel[np.ix_(fitted, fitted)], shifts[fitted] - base[fitted] @ common)
                guess = base[out] @ common + ridge.predict(kernel[np.ix_(out, fitted)])
                expected += float(np.square(guess - shifts[out]).sum())
            assert error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_groups_that_no_plane_tells_apart_are_told_apart_by_likeness_and_the_anchor_knows(seed: int) -> None:
    """Ten groups in three dimensions; before, the anchor had only the ridge, which the nearest conditions beat."""
    made, asked, true = world(seed)

    def error(predict: object) -> float:
        return float(np.mean([np.square(predict(f) - t).mean() for f, t in zip(asked, true, strict=True)]))  # type: ignore[operator]

    by_likeness, by_products = KernelShift().fit(made), RidgeShift().fit(made)
    of_kernel, of_ridge = (
        error(lambda f, of=of: answer(of, made, ask("x", "new"), f)) for of in (by_likeness, by_products)
    )
    assert of_kernel < 0.5 * of_ridge
    anchor, start = Anchor().fit(made), Source(ask("x", ""), made.mean[0])
    of_anchor = error(lambda f: anchor.predict(ask("x", "new"), f, start)[0])
    assert of_anchor < 1.2 * of_kernel


def test_what_lies_far_from_everything_has_the_common_effect() -> None:
    made, _, _ = world(2)
    learned = KernelShift().fit(made)
    far = answer(learned, made, ask("x", "new"), np.array([1.0, 100.0, 100.0, 100.0]))
    np.testing.assert_allclose(far, made.mean[1:].mean(axis=0), atol=1e-9)


def test_it_has_nothing_to_say_of_sums_nor_from_few_conditions() -> None:
    made, asked, _ = world(3)
    with pytest.raises(CannotPredict, match=r"^what describes 'A \+ B' is the sum of its parts, which lies near no"):
        answer(KernelShift(), made, ask("x", "A + B"), asked[0])
    few = made.only(np.arange(9))
    with pytest.raises(CannotPredict, match=r"^too few conditions are described to place 'new' among them$"):
        answer(KernelShift(), few, ask("x", "new"), asked[0])
