"""Ridge and the mean of conditions: the closed form, its penalty by the leave-one-out error, on linear data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold

from made_populations import answer, ask, populations, source
from squidiff.config import InputError
from squidiff.response.embedding import (
    ALPHAS,
    N_FOLDS,
    N_NEIGHBOURS,
    PENALTY,
    DoseShift,
    MeanOfConditions,
    NearestConditions,
    PcaLinear,
    RidgeShift,
    described_alike,
)
from squidiff.response.populations import Populations

N_CONDITIONS, N_FEATURES, N_GENES = 30, 5, 7


def linear_data(noise: float) -> tuple[Populations, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shifts = strength m + features W + noise, in one context; also strengths, features, shifts and [m; W]."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(1 + N_FEATURES, N_GENES))
    strength = rng.uniform(0.5, 2.0, size=(N_CONDITIONS, 1))
    features = rng.normal(size=(N_CONDITIONS, N_FEATURES))
    described = np.hstack([strength, features])
    shifts = described @ weights + noise * rng.normal(size=(N_CONDITIONS, N_GENES))
    control = rng.normal(size=N_GENES)
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): control, ("b", "", None): control + 5}
    means |= {("a", f"c{i}", None): control + shift for i, shift in enumerate(shifts)}
    made = populations(means, {f"c{i}": row for i, row in enumerate(described)})
    return made, strength, features, shifts, weights


@pytest.mark.parametrize("noise", [1e-3, 0.1])
def test_unseen_features_are_predicted_to_within_the_noise(noise: float) -> None:
    made, strength, features, _, weights = linear_data(noise)
    unseen = np.random.default_rng(1).normal(size=(50, N_FEATURES))
    described = np.hstack([np.ones((50, 1)), unseen])
    own = made.mean[1]
    found = np.stack([answer(RidgeShift(), made, ask("b", "new"), row) for row in described])
    error = np.sqrt(np.mean((found - own - described @ weights) ** 2))
    # what the strength takes up first, features that go with it would explain too: that bias, and the weights' noise
    shared = np.abs(strength.T @ features).max() / np.square(strength).sum()
    assert error < 3 * noise * np.sqrt(N_FEATURES / N_CONDITIONS) + 3 * shared


@pytest.mark.parametrize("predictor", [DoseShift(), RidgeShift()])
def test_it_equals_the_normal_equations_at_the_best_of_the_penalties(predictor: DoseShift | RidgeShift) -> None:
    """m = b'Y / b'b; W = (F'F + a)^-1 F'(Y - b m); a (and b) err least where single rows, or folds, are left out."""
    made, strength, features, shifts, _ = linear_data(noise=2.0)
    asked, rows = 1.3 * features[4], np.arange(N_CONDITIONS)  # a seen condition at another strength
    is_dose = isinstance(predictor, DoseShift)
    folds = list(GroupKFold(N_CONDITIONS if is_dose else N_FOLDS).split(rows, groups=rows))

    def solve(f: np.ndarray, y: np.ndarray, alpha: float) -> np.ndarray:
        return np.linalg.solve(f.T @ f + alpha * np.eye(N_FEATURES), f.T @ y)

    options = {}
    for base in (strength,) if is_dose else (strength, np.ones_like(strength)):
        common = base.T @ shifts / np.square(base).sum()
        rest = shifts - base * common
        for alpha in ALPHAS:
            errors = [
                np.mean((features[out] @ solve(features[keep], rest[keep], alpha) - rest[out]) ** 2)
                for keep, out in folds
            ]
            own = 0.7 if base is strength else 1.0
            options[float(np.mean(errors))] = (alpha, own * common[0] + asked @ solve(features, rest, alpha))
    alpha, expected = options[min(options)]
    assert ALPHAS[0] < alpha < ALPHAS[-1]  # so noisy that the choice matters
    found = answer(predictor, made, ask("a", "new"), np.concatenate([[0.7], asked]))
    np.testing.assert_allclose(found, made.mean[0] + expected, rtol=1e-9)


def test_doses_of_one_drug_do_not_speak_for_its_fingerprint() -> None:
    """Effects are a drug's own, and each drug has twelve populations: left out one by one, the penalty would vanish."""
    rng = np.random.default_rng(0)
    drugs, effects = rng.random((50, 300)) < 0.1, rng.normal(size=(50, 40))
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): np.zeros(40) for c in "abc"}
    features = {}
    for d, (bits, effect) in enumerate(zip(drugs, effects, strict=True)):
        for strength in (0.5, 1.0, 1.5, 2.0):
            features[f"{d} @ {strength}"] = strength * np.concatenate([[1.0], bits])
            means |= {(c, f"{d} @ {strength}", None): strength * effect + 0.05 * rng.normal(size=40) for c in "abc"}
    made = populations(means, features)
    ridge = RidgeShift().fit(made)
    unseen = np.concatenate([[1.0], rng.random(300) < 0.1])
    found = ridge.predict(ask("a", "new"), unseen, source(made, ask("a", "new")))
    assert np.square(found).mean() < 0.1  # near the mean effect, 0; an effect has a mean square of 1
    dose, own = DoseShift().fit(made), source(made, ask("a", "x"))
    seen = dose.predict(ask("a", "new dose"), 1.2 * np.concatenate([[1.0], drugs[7]]), own)
    np.testing.assert_allclose(seen, 1.2 * effects[7], atol=0.15)
    with pytest.raises(InputError, match=r"^'new' was not seen at any strength$"):
        dose.predict(ask("a", "new"), unseen, own)


def test_twice_the_strength_and_the_features_shift_twice() -> None:
    """Three drugs at four strengths each, and effects in proportion."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(3, N_GENES))
    features, means = {}, {("", "", None): np.zeros(N_GENES)}
    for d in range(3):
        for strength in (0.5, 1.0, 2.0, 4.0):
            features[f"{d} @ {strength}"] = strength * np.concatenate([[1.0], np.eye(3)[d]])
            means["", f"{d} @ {strength}", None] = strength * effects[d]
    made = populations(means, features)
    once, twice, none, other = (
        answer(DoseShift(), made, ask("", "new"), k * features["1 @ 1.0"]) for k in (1.5, 3.0, 1e-9, -1.5)
    )
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-10)
    np.testing.assert_allclose(none, 0.0, atol=1e-7)
    np.testing.assert_allclose(other, -once, rtol=1e-10)
    np.testing.assert_allclose(once, 1.5 * effects[1], rtol=1e-3)


def test_features_that_say_nothing_leave_the_mean_effect() -> None:
    """Effects that have nothing to do with the features: the penalty rises until the mean is all that is left."""
    rng = np.random.default_rng(3)
    features = np.hstack([np.ones((40, 1)), rng.normal(size=(40, 60))])
    shifts = 2.0 + rng.normal(size=(40, 50))
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.zeros(50)}
    means |= {("", f"c{i}", None): shift for i, shift in enumerate(shifts)}
    made = populations(means, {f"c{i}": row for i, row in enumerate(features)})
    asked = np.concatenate([[1.0], rng.normal(size=60)])
    found = answer(RidgeShift(), made, ask("", "new"), asked)
    np.testing.assert_allclose(found, shifts.mean(axis=0), atol=0.1)


def test_features_that_no_training_condition_has_are_refused() -> None:
    features = {"A": [1.0, 1.0, 0.0, 0.0], "B": [1.0, 0.0, 1.0, 0.0], "A + B": [2.0, 1.0, 1.0, 0.0]}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): [0.0, 0.0]}
    means |= {("", name, None): [row[1], 2 * row[2]] for name, row in features.items()}
    made = populations(means, features)
    for row in ([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]):
        with pytest.raises(InputError, match="nothing in training resembles condition 'C'"):
            answer(RidgeShift(), made, ask("", "C"), np.array(row))
    found = answer(RidgeShift(), made, ask("", "A + A"), np.array([2.0, 2.0, 0.0, 0.0]))
    np.testing.assert_allclose(found, [2.0, 0.0], atol=0.01)


@pytest.mark.parametrize(
    "means",
    [
        {("", "", None): [0.0], ("c", "", None): [1.0]},  # no condition at all
        {("a", "X", None): [0.0], ("b", "", None): [1.0]},  # none with control cells
    ],
)
def test_without_a_shift_to_learn_from_it_refuses(means: dict[tuple[str, str, float | None], object]) -> None:
    made = populations({**means, ("b", "", None): [1.0]}, {"X": [1.0, 1.0]})
    with pytest.raises(InputError, match="nothing in training resembles condition 'X'"):
        answer(RidgeShift(), made, ask("b", "X"), np.array([1.0, 1.0]))
    with pytest.raises(InputError, match="no other condition was seen in training"):
        answer(MeanOfConditions(), made, ask("b", "X"))


def test_one_treated_population_is_enough() -> None:
    made = populations({("", "", None): [0.0, 1.0], ("", "X", None): [2.0, 1.0]}, {"X": [1.0, 1.0]})
    found = answer(RidgeShift(), made, ask("", "X @ 3"), np.array([0.5, 0.5]))
    np.testing.assert_allclose(found, [1.0, 1.0], atol=1e-12)  # half the strength, half the effect


def test_the_mean_of_conditions_is_that_of_the_own_context_or_else_of_all() -> None:
    means: dict[tuple[str, str, float | None], object] = {
        ("a", "", None): [1.0],
        ("a", "X", None): [3.0],
        ("a", "Y", None): [9.0],
        ("b", "", None): [10.0],
        ("b", "X", None): [11.0],
        ("new", "", None): [50.0],
    }
    made = populations(means)
    assert answer(MeanOfConditions(), made, ask("a", "Z")).tolist() == [1.0 + (2.0 + 8.0) / 2]
    assert answer(MeanOfConditions(), made, ask("a", "X")).tolist() == [1.0 + 8.0]  # never its own answer
    assert answer(MeanOfConditions(), made, ask("new", "Z")).item() == pytest.approx(50.0 + (2.0 + 8.0 + 1.0) / 3)


# --- nearest conditions


def families(noise: float) -> tuple[Populations, np.ndarray]:
    """Six families of five conditions that lie together and act alike, but for noise; also the families' effects."""
    rng = np.random.default_rng(3)
    centres, effects = 10 * rng.normal(size=(6, 4)), rng.normal(size=(6, N_GENES))
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): np.ones(N_GENES)}
    features = {}
    for family in range(6):
        for i in range(5):
            name = f"{family}{i}"
            features[name] = np.concatenate([[1.0], centres[family] + rng.normal(size=4)])
            means["a", name, None] = 1 + effects[family] + noise * rng.normal(size=N_GENES)
    return populations(means, features), effects


def test_the_nearest_conditions_are_scikit_learns_neighbours_and_as_many_as_act_alike() -> None:
    from sklearn.neighbors import KNeighborsRegressor

    made, _ = families(noise=0.5)
    predictor = NearestConditions().fit(made)
    assert predictor.k == 3  # of 1, 2, 3, 5, ...: four others are of the family, and a fifth is not
    judge = KNeighborsRegressor(predictor.k).fit(made.features[1:, 1:], made.mean[1:] - 1)
    for asked in made.features[1:] + np.random.default_rng(5).normal(size=made.features[1:].shape):
        found = answer(predictor, made, ask("a", "new"), asked)
        np.testing.assert_allclose(found, 1 + judge.predict(asked[None, 1:])[0], atol=1e-12)


def test_a_condition_is_no_neighbour_of_itself_and_nothing_is_near_to_nothing() -> None:
    made, effects = families(noise=0.0)
    np.testing.assert_allclose(answer(NearestConditions(), made, ask("a", "20"), made.features[11]), 1 + effects[2])
    with pytest.raises(InputError, match="nothing describes condition 'new'"):
        answer(NearestConditions(), made, ask("a", "new"), np.array([1.0, 0, 0, 0, 0]))
    assert set(N_NEIGHBOURS) >= {1, 5}


# --- linear in principal components


def perturbed_genes(n_genes: int = 40) -> Populations:
    """Knocked-down genes that are measured themselves: each shift is what a low-rank map makes of the gene's row."""
    rng = np.random.default_rng(7)
    base = rng.gamma(2.0, size=n_genes)
    loadings, mixing = rng.normal(size=(n_genes, 2)), rng.normal(size=(2, 2))
    genes = [f"g{i}" for i in range(n_genes)]
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): base}
    for i in range(30):
        means["a", f"g{i}", None] = base + loadings @ mixing @ loadings[i]
    made = populations(means, {f"g{i}": np.ones(1) for i in range(30)})
    return dataclasses.replace(made, genes=tuple(genes))


def test_pca_linear_solves_the_two_sided_ridge_problem() -> None:
    """Where its two penalties are as one: the gradient of |Y - G W P'|^2 + the penalties' terms is 0 at W."""
    made = perturbed_genes()
    model = PcaLinear().fit(made)
    G, P = model.G, np.stack([model.G[i] for i in range(30)])
    Y = (made.mean[1:] - made.mean[0]).T - model.b[:, None]
    k = np.eye(G.shape[1])
    left, right = G.T @ G + PENALTY * k, P.T @ P + PENALTY * k
    np.testing.assert_allclose(left @ model.W @ right, G.T @ Y @ P, rtol=1e-8, atol=1e-8)


def test_pca_linear_predicts_a_gene_that_was_never_perturbed() -> None:
    made = perturbed_genes()
    known = made.only(np.arange(26))  # control and 25 genes
    found = np.stack([answer(PcaLinear(), known, ask("a", f"g{i}"), np.ones(1)) for i in range(25, 30)])
    truth, flat = made.mean[26:], known.mean[1:].mean(axis=0)
    assert np.square(found - truth).sum() < 0.1 * np.square(flat - truth).sum()


def test_pca_linear_adds_the_parts_and_knows_no_other_names() -> None:
    made = perturbed_genes()
    model = PcaLinear().fit(made)
    own, at = made.mean[0], model.G @ model.W
    found = answer(PcaLinear(), made, ask("a", "g3 @ 2 + g38 knock-down"), np.array([-2.0]))
    np.testing.assert_allclose(found, own + model.b - at @ (model.G[3] + model.G[38]))
    with pytest.raises(InputError, match="nothing places condition 'drug'"):
        answer(PcaLinear(), made, ask("a", "drug"), np.ones(1))


def test_pca_linear_of_drugs_reads_what_describes_them() -> None:
    made, _, _, _, weights = linear_data(noise=1e-3)
    unseen = np.concatenate([[1.0], np.random.default_rng(2).normal(size=N_FEATURES)])
    flat = answer(MeanOfConditions(), made, ask("a", "new"), unseen)
    found = answer(PcaLinear(), made, ask("a", "new"), unseen)
    truth = made.mean[0] + unseen @ weights
    assert np.square(found - truth).mean() < 0.5 * np.square(flat - truth).mean()
    with pytest.raises(InputError, match="nothing describes condition 'new'"):
        answer(PcaLinear(), made, ask("a", "new"), np.eye(1 + N_FEATURES)[0])


def test_a_row_its_multiples_and_its_opposite_are_described_alike_and_no_other() -> None:
    rows = np.array([[1.0, 1.0, -1.0], [2.0, 2.0, -2.0], [-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    label = described_alike(rows)
    assert label[0] == label[1] == label[2]
    assert len(set(label[[0, 3, 4]])) == 3
    assert described_alike(np.zeros((3, 0))).tolist() == [0, 0, 0]


def test_of_conditions_that_are_as_near_all_count_in_whatever_order() -> None:
    """Recorded: of one-hot features, which lie at one distance, those that stood first in the file were the nearest."""
    rng = np.random.default_rng(0)
    features = {f"c{k}": np.array([1.0, *np.eye(6)[k]]) for k in range(6)}
    effects = {name: rng.normal(size=30) for name in features}
    asked, answers, chosen = ask("", "new"), [], []
    for names in (list(features), list(features)[::-1]):
        means: dict[tuple[str, str, float | None], object] = {("", "", None): np.zeros(30)}
        means |= {("", name, None): effects[name] for name in names}
        made = populations(means, features)
        answers.append(answer(NearestConditions(), made, asked, np.array([1.0, *np.ones(6)])))
        chosen.append(NearestConditions().fit(made).k)
    assert chosen[0] == chosen[1]
    np.testing.assert_allclose(answers[0], np.mean(list(effects.values()), axis=0), atol=1e-12)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-12)


def test_the_nearest_here_are_none_where_the_context_answered_to_nothing() -> None:
    features = {"A": np.array([1.0, 1.0, 0.0]), "B": np.array([1.0, 0.9, 0.1])}
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): np.zeros(2) for c in "ab"}
    made = populations({**means, ("a", "A", None): np.ones(2), ("b", "A", None): 5 * np.ones(2)}, features)
    asked = ask("b", "B"), features["B"]
    np.testing.assert_array_equal(answer(NearestConditions(here_alone=True), made, *asked), [5.0, 5.0])
    made = populations({**means, ("a", "A", None): np.ones(2)}, features)
    np.testing.assert_array_equal(answer(NearestConditions(), made, *asked), [1.0, 1.0])
    with pytest.raises(InputError, match="no other condition"):
        answer(NearestConditions(here_alone=True), made, *asked)
