"""Intervals hold as often as they say where the law of errors is known, and what is far is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from made_populations import ask, populations, source
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.stack import Anchor, LeftOut
from squidiff.response.uncertainty import LEVELS, NORMAL, UNTRIED, Uncertainty, fit_law


def left_out(rng: np.random.Generator, of_shift: float, of_spread: float, n_genes: int = 4000) -> LeftOut:
    shift, variance = rng.normal(size=n_genes), rng.gamma(2.0, 1.0, n_genes)
    noise = variance / 50
    size = np.sqrt(noise + (of_shift * shift) ** 2 + of_spread**2 * variance)
    return LeftOut(shift, size * rng.laplace(size=n_genes), noise, variance)


@pytest.mark.parametrize(("of_shift", "of_spread"), [(0.0, 0.0), (0.5, 0.0), (0.35, 0.2), (1.0, 0.5)])
def test_a_law_of_errors_is_found_and_its_widths_hold(of_shift: float, of_spread: float) -> None:
    rng = np.random.default_rng(0)
    law = fit_law([left_out(rng, of_shift, of_spread) for _ in range(6)])
    assert law.of_shift == pytest.approx(of_shift, abs=0.26)
    assert law.of_spread == pytest.approx(of_spread, abs=0.26)
    assert law.n_left_out == 6
    new = left_out(rng, of_shift, of_spread)
    for level in LEVELS:
        held = np.abs(new.error) <= law.half_width(level, new.shift, new.noise, new.variance)
        assert held.mean() == pytest.approx(level, abs=0.04)
        largest = np.abs(new.shift) > np.quantile(np.abs(new.shift), 0.95)
        assert held[largest].mean() == pytest.approx(level, abs=0.12)


def test_the_largest_shifts_have_widths_of_their_own() -> None:
    """Errors that do not grow with the shift beyond 1: of the largest, intervals are narrow as their errors are."""
    rng, found = np.random.default_rng(0), []
    for _ in range(6):
        shift = rng.normal(size=2000) * rng.choice([0.3, 3.0], 2000, p=[0.95, 0.05])
        error = 0.5 * np.minimum(np.abs(shift), 0.3) * rng.laplace(size=2000)
        found.append(LeftOut(shift, error, np.full(2000, 1e-6), np.full(2000, 0.01)))
    law = fit_law(found)
    large = np.array([4.0])
    assert law.half_width(0.9, large, np.array([1e-6]), np.array([0.01])) < 1.5


def test_genes_that_nothing_expresses_do_not_narrow_the_intervals() -> None:
    rng = np.random.default_rng(1)
    some = [left_out(rng, 0.3, 0.1) for _ in range(4)]
    silent = [LeftOut(*(np.concatenate([part, np.zeros(4000)]) for part in x)) for x in some]
    assert fit_law(silent) == fit_law(some)


def test_one_population_is_too_few_to_tell() -> None:
    law = fit_law([left_out(np.random.default_rng(0), 0.1, 0.1)])
    assert (law.of_shift, law.of_spread, law.widths, law.n_left_out) == (*UNTRIED, NORMAL, 1)


# --- of an anchor


def contexts(n: int, seed: int = 0) -> tuple[Populations, np.ndarray]:
    """n contexts whose shifts under X differ, and the treated mean of the last one, which is left out."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=500)
    means: dict[tuple[str, str, float | None], object] = {}
    for i in range(n):
        control = rng.normal(size=500)
        means[f"c{i}", "", None] = control
        means[f"c{i}", "X", None] = control + common + 0.5 * rng.normal(size=500)
    truth = means.pop((f"c{n - 1}", "X", None))
    return populations(means, variance=1e-4), np.asarray(truth)


def test_intervals_of_an_unseen_context_hold_as_often_as_they_say() -> None:
    held = {level: [] for level in LEVELS}  # type: dict[float, list[float]]
    for seed in range(5):
        made, truth = contexts(7, seed)
        key = ask("c6", "X")
        start = source(made, key)
        anchor = Anchor().fit(made)
        mean, _, group = anchor.answer(key, np.zeros(1), start)
        interval = Uncertainty(anchor).interval(key, mean, group, start)
        assert interval.is_tried
        for level, (low, high) in interval.bounds.items():
            held[level].append(((truth - start.mean >= low) & (truth - start.mean <= high)).mean())
    for level in LEVELS:
        assert np.mean(held[level]) == pytest.approx(level, abs=0.06)


def test_where_control_cells_are_many_an_interval_holds_the_mean_of_as_many_cells_as_treated_populations_have() -> None:
    """Recorded: it was that of as many as all have, of which most were control cells, and held 74 % for 90."""
    rng, held, n_treated = np.random.default_rng(0), [], 20
    for _ in range(5):
        means: dict[tuple[str, str, float | None], object] = {(f"c{i}", "", None): np.full(500, 3.0) for i in range(20)}
        drawn = 4.0 + rng.normal(size=(8, 500)) / np.sqrt(n_treated)
        made = populations(means | {(f"c{i}", "X", None): drawn[i] for i in range(7)}, variance=1.0)
        n_cells = np.where([key.condition == "" for key in made.keys], 2000, n_treated)
        made, key = dataclasses.replace(made, n_cells=n_cells), ask("c7", "X")
        anchor, start = Anchor().fit(made), source(made, key)
        mean, _, group = anchor.answer(key, np.zeros(1), start)
        low, high = Uncertainty(anchor).interval(key, mean, group, start).bounds[0.9]
        held.append(((drawn[7] - 3.0 >= low) & (drawn[7] - 3.0 <= high)).mean())
    assert np.mean(held) == pytest.approx(0.9, abs=0.04)


def test_intervals_of_a_context_that_answered_to_nothing_are_wider_than_of_one_that_answered_to_others() -> None:
    """Recorded: they were learned of contexts whose other conditions told their strength, and held 76 % for 90."""
    rng = np.random.default_rng(1)
    held: dict[str, list[float]] = {"none": [], "others": []}
    described = {f"k{k}": [1.0, *np.eye(5)[k]] for k in range(5)}
    for _ in range(12):
        effect, strength = rng.normal(size=(5, 300)), rng.uniform(0.4, 1.6, 7)
        means: dict[tuple[str, str, float | None], object] = {(f"c{i}", "", None): np.full(300, 5.0) for i in range(7)}
        for i in range(7):
            for k in range(5):
                means[f"c{i}", f"k{k}", None] = 5.0 + strength[i] * effect[k] + 0.2 * rng.normal(size=300)
        for name, hidden in (("none", range(5)), ("others", range(1))):
            left = {key: mean for key, mean in means.items() if key not in {("c6", f"k{k}", None) for k in hidden}}
            made, key = populations(left, described, variance=1e-4), ask("c6", "k0")
            anchor, start = Anchor().fit(made), source(made, key)
            mean, _, group = anchor.answer(key, np.array(described["k0"]), start)
            low, high = Uncertainty(anchor).interval(key, mean, group, start).bounds[0.9]
            truth = np.asarray(means[tuple(key)]) - 5.0
            held[name].append(float(((truth >= low) & (truth <= high)).mean()))
    assert np.mean(held["others"]) == pytest.approx(0.9, abs=0.05)
    assert np.mean(held["none"]) > 0.8


def test_a_context_that_answered_to_nothing_beside_a_single_one_that_did_has_the_widths_of_that_one() -> None:
    rng = np.random.default_rng(0)
    described = {f"k{k}": [1.0, *rng.normal(size=4)] for k in range(20)}
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): np.full(50, 5.0) for c in "xy"}
    means |= {("x", name, None): 6.0 + rng.normal(size=50) for name in described}
    anchor = Anchor().fit(populations(means, described, variance=0.1))
    group = next(group for group in anchor.groups if group.leaves_conditions_out and "ridge" in group.names)
    told = Uncertainty(anchor)
    assert told.law(group, ask("y", "new")) == told.law(group, ask("x", "new"))
    assert told.law(group, ask("y", "new")).n_left_out == 20


def held_of_unseen(made: Populations, n_known: int) -> np.ndarray:
    """Whether intervals hold, populations beyond the first `n_known` x LEVELS x genes; all start from the first one."""
    known, held = made.only(np.arange(n_known)), []
    anchor = Anchor().fit(known)
    uncertainty, start = Uncertainty(anchor), Source(known.keys[0], known.mean[0])
    for key, described, truth in zip(made.keys[n_known:], made.features[n_known:], made.mean[n_known:], strict=True):
        mean, _, group = anchor.answer(key, described, start)
        bounds = uncertainty.interval(key, mean, group, start).bounds
        shift = truth - start.mean
        held.append([(bounds[level][0] <= shift) & (shift <= bounds[level][1]) for level in LEVELS])
    return np.array(held)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_of_unseen_conditions_of_one_or_two_cells_hold_as_often_as_they_say(seed: int) -> None:
    """As of bulk profiles of drugs: what cells a population has is most of the noise of its mean."""
    rng = np.random.default_rng(seed)
    names = ["", *(f"d{i}" for i in range(120))]
    n_cells = np.array([20, *rng.integers(1, 3, 120)])
    measured = 0.1 * rng.normal(size=(121, 200)) + rng.normal(size=(121, 200)) / np.sqrt(n_cells)[:, None]
    features = {name: np.array([1.0, *rng.normal(size=6)]) for name in names[1:]}
    means = {("a", name, None): mean for name, mean in zip(names, measured, strict=True)}
    made = dataclasses.replace(populations(means, features, variance=1.0), n_cells=n_cells)
    np.testing.assert_allclose(held_of_unseen(made, 91).mean(axis=(0, 2)), LEVELS, atol=0.05)


def test_of_a_gene_that_only_treated_cells_show_the_interval_is_no_point() -> None:
    rng = np.random.default_rng(0)
    features = {f"d{i}": np.array([1.0, *rng.normal(size=4)]) for i in range(40)}
    rate = rng.gamma(0.3, 1.0, 300)
    counts = {name: rng.poisson(rate * np.exp(0.5 * rng.normal(size=300)), (40, 300)) for name in ["", *features]}
    cells = {name: np.log1p(x) for name, x in counts.items()}
    made = populations({("a", name, None): x.mean(axis=0) for name, x in cells.items()}, features)
    variances = np.stack([x.var(axis=0) for x in cells.values()])
    made = dataclasses.replace(made, n_cells=np.full(41, 40), variance=variances)
    silent = (made.mean[0] == 0) & (made.mean[1:] > 0).any(axis=0)
    assert silent.sum() > 30
    assert held_of_unseen(made, 31)[:, LEVELS.index(0.9), silent].mean() > 0.85


def test_of_what_training_saw_only_the_noise_of_cells_is_uncertain() -> None:
    made, _ = contexts(4)
    key = ask("c1", "X")
    start = source(made, key)
    anchor = Anchor().fit(made)
    mean, _, group = anchor.answer(key, np.zeros(1), start)
    interval = Uncertainty(anchor).interval(key, mean, group, start)
    n = [made.n_cells[i] for i in (made.find(key), made.source(key)) if i is not None]
    low, high = interval.bounds[0.9]
    each = [1e-4 / (k - 1) for k in n]
    np.testing.assert_allclose(high - low, 2 * NORMAL[0.9][0] * np.sqrt(sum(each)))


def test_a_population_of_one_cell_is_not_certain() -> None:
    made, _ = contexts(4)
    few = dataclasses.replace(made, n_cells=np.where(np.arange(len(made.keys)) == 3, 1, made.n_cells))
    key = few.keys[3]
    start = source(few, key)
    anchor = Anchor().fit(few)
    mean, _, group = anchor.answer(key, np.zeros(1), start)
    low, high = Uncertainty(anchor).interval(key, mean, group, start).bounds[0.9]
    assert (high - low).min() > 2 * NORMAL[0.9][0] * np.sqrt(1e-4)


def far(made: Populations, key: Population, features: np.ndarray | None = None) -> list[str]:
    features = np.zeros(made.features.shape[1]) if features is None else features
    start, anchor = source(made, key), Anchor().fit(made)
    group = anchor.answer(key, features, start)[2]
    return Uncertainty(anchor).far(key, features, start, group)


def test_a_context_beyond_any_neighbour_is_far() -> None:
    made, _ = contexts(5)
    assert far(made, ask("c4", "X")) == []
    means = {(k.context, k.condition, k.time): m for k, m in zip(made.keys, made.mean, strict=True)}
    away = populations({**means, ("odd", "", None): 10.0 + np.zeros(500)}, variance=1e-4)
    start, anchor = source(away, ask("odd", "X")), Anchor().fit(made)
    group = anchor.answer(ask("odd", "X"), np.zeros(1), start)[2]
    told = Uncertainty(anchor).far(ask("odd", "X"), np.zeros(1), start, group)
    assert "times as far from any of training's" in told[0]


def test_a_time_beyond_those_seen_is_far() -> None:
    made = populations({("a", "", t): [t, 1.0] for t in (0.0, 1.0, 2.0)}, has_control=False)
    assert far(made, ask("a", "", 1.5)) == []
    assert far(made, ask("a", "", 3.0)) == ["time 3 is beyond the times seen, 0 to 2"]


def test_a_condition_unlike_any_other_is_far() -> None:
    rng = np.random.default_rng(0)
    features = {f"c{i}": np.concatenate([[1.0], rng.normal(size=5)]) for i in range(15)}
    means: dict[tuple[str, str, float | None], object] = {("", "", None): np.zeros(20)}
    means |= {("", c, None): rng.normal(size=20) for c in features}
    made = populations(means, features)
    assert far(made, ask("", "new"), features["c3"] + 0.01 * (np.arange(6) > 0)) == []
    assert "the condition is" in far(made, ask("", "new"), np.concatenate([[1.0], np.full(5, 30.0)]))[0]
    assert "the dose is beyond those seen" in far(made, ask("", "new"), 2 * features["c3"])


def test_many_genes_that_do_not_move_leave_no_width_without_errors() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3):
        shift = rng.normal(size=400) * (rng.random(400) < 0.1)
        found.append(LeftOut(shift, rng.normal(size=400), np.full(400, 0.1), np.full(400, 1.0)))
    law = fit_law(found)
    assert all(np.isfinite(width).all() for width in law.widths.values())
    assert (law.half_width(0.9, np.zeros(400), np.full(400, 0.1), np.full(400, 1.0)) > 0).all()


def test_a_combination_of_parts_that_others_saw_is_near_and_one_with_an_unseen_part_as_far_as_that_is() -> None:
    """Recorded: the sum of what describes two high doses lay far from every single one, and was said to."""
    features = {
        f"{name} @ {dose}": [s, s * (name == "A"), s * (name == "B")]
        for name in "AB"
        for dose, s in ((1, 0.3), (1000, 3.0))
    }
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): [5.0] for c in "abx"}
    means |= {(c, condition, None): [6.0] for c in "ab" for condition in features}
    made = populations(means, features)
    anchor, source = Anchor().fit(made), Source(ask("x", ""), np.array([5.0]))
    key, both = ask("x", "A @ 1000 + B @ 1000"), np.array([6.0, 3.0, 3.0])
    _, name, group = anchor.answer(key, both, source)
    assert name == "parts elsewhere"
    assert Uncertainty(anchor).far(key, both, source, group) == []
    unseen = np.array([43.0, 3.0, 40.0])
    assert "times as far" in Uncertainty(anchor).far(ask("x", "A @ 1000 + C @ 9"), unseen, source, group)[0]


def test_doses_are_far_by_the_highest_one_of_their_own_drug_in_combinations_too() -> None:
    """Recorded: the limit was the strongest condition of all, and combinations had none."""
    doses = {"A": (1, 10), "B": (1, 100)}
    features = {
        f"{n} @ {d}": [np.log10(d + 1), np.log10(d + 1) * (n == "A"), np.log10(d + 1) * (n == "B")]
        for n in doses
        for d in doses[n]
    }
    features["A @ 10 + B @ 10"] = np.add(features["A @ 10"], [np.log10(11), 0, np.log10(11)]).tolist()
    made = populations({("x", "", None): [5.0]} | {("x", condition, None): [6.0] for condition in features}, features)
    anchor, source = Anchor().fit(made), Source(ask("x", ""), np.array([5.0]))
    group, told = anchor.groups[0], Uncertainty(anchor)
    for condition, is_far in (
        ("A @ 10 + B @ 100", False),
        ("A @ 99", True),
        ("B @ 99", False),
        ("A @ 1 + B @ 1000", True),
        ("A @ 11 activation", True),
    ):
        found = told.far(ask("x", condition), np.zeros(3), source, group)
        assert (found == ["the dose is beyond those seen"]) == is_far, condition
    for name in ("A @ 10uM", "A @ ", " @ 3", "A @ B @ 5", "@", ""):  # names of a data set without doses
        assert told.far(ask("x", name), np.zeros(3), source, group) == []
    asked = ask("x", "A @ 1 + B @ 1 + C @ 1")
    assert told.far(asked, np.zeros(3), source, group) == ["it has 3 parts, and what was seen has 2 at most"]
