"""By which populations rival predictors are compared, and what follows where none or few are there."""

from __future__ import annotations

import numpy as np
import pytest

from made_populations import answer, ask, populations, source
from squidiff.response.dose import SharedDose
from squidiff.response.fold import FoldShift
from squidiff.response.groups import ELSEWHERE, GROUPS, PREDICTORS
from squidiff.response.populations import Populations
from squidiff.response.rivals import MIN_AT, MIN_OWN, Tried
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor
from squidiff.response.time import TimeTrend

N_GENES = 200
Means = dict[tuple[str, str, float | None], object]


def anchored(made: Populations, context: str, condition: str, time: float | None = None) -> tuple[np.ndarray, str]:
    key = ask(context, condition, time)
    features = made.features_of.get(condition, np.zeros(made.features.shape[1]))
    return Anchor().fit(made).predict(key, features, source(made, key))


def one_hot(names: list[str]) -> dict[str, object]:
    return {name: [1.0, *np.eye(len(names))[i]] for i, name in enumerate(names)}


def tried(contexts: str, times: list[float | None], sides: list[int] | None = None) -> Tried:
    at = np.array([[np.nan if t is None else t, 1.0] for t in times])
    products = np.ones((len(times), 2, 2))
    return Tried(products, np.array(list(contexts), dtype=object), at, np.array(sides or [0] * len(times)))


# --- which populations tell


def test_the_own_context_at_the_same_time_tells_most_then_the_context_then_the_time_then_all() -> None:
    def nearest(found: Tried, side: int = 0, *, of_unseen: bool = False) -> list[int]:
        chosen = found.nearest(ask("a", "X", 1.0), np.ones(2), side, of_unseen=of_unseen)
        return np.flatnonzero(chosen).tolist()

    n, m = MIN_AT, MIN_OWN
    both = tried("a" * m + "b" * n, [1.0] * n + [2.0] * (m - n) + [1.0] * n)
    assert nearest(both) == list(range(n))
    assert nearest(both, of_unseen=True) == list(range(m))
    one_less = tried("a" * m + "b" * n, [1.0] * (n - 1) + [2.0] * (m - n + 1) + [1.0] * n)
    assert nearest(one_less) == list(range(m))
    few_here = tried("a" * 2 + "b" * n, [1.0] + [2.0] + [1.0] * n)
    assert nearest(few_here) == [0, *range(2, n + 2)]
    few = tried("abb", [1.0, 2.0, 1.0])
    assert nearest(few) == [0, 1, 2]
    one_time = tried("a" * (m - 1) + "b", [1.0] * m)  # the same time everywhere is no reason to ask fewer
    assert nearest(one_time) == list(range(m))


def test_what_lies_before_all_times_does_not_tell_of_what_lies_beyond() -> None:
    found = tried("aaaa", [1.0, 2.0, 3.0, 4.0], [-1, 0, 1, 1])
    for side, expected in ((1, [1, 2, 3]), (-1, [0, 1]), (0, [0, 1, 2, 3])):
        chosen = found.nearest(ask("a", "X", 9.0), np.ones(2), side, of_unseen=False)
        assert np.flatnonzero(chosen).tolist() == expected


def test_what_the_first_rival_could_not_be_tried_on_counts_for_nothing() -> None:
    found = tried("a" * MIN_OWN, [1.0] * MIN_AT + [2.0] * (MIN_OWN - MIN_AT))
    found.products[0] = np.nan
    chosen = found.nearest(ask("a", "X", 1.0), np.ones(2), 0, of_unseen=False)
    assert chosen.all()  # one too few at the time and in the context: all are asked


# --- a context that answered to nothing yet


def test_what_conditions_share_in_each_context_says_nothing_of_a_new_one() -> None:
    """Recorded: there the mean of conditions is that of other contexts, but it was weighed as if it were the own."""
    rng = np.random.default_rng(0)
    base, effect, of_context = (rng.normal(size=(n, N_GENES)) for n in (6, 12, 6))
    means: Means = {(f"c{c}", "", None): 10 + base[c] for c in range(6)}
    for c in range(5):
        for k in range(12):
            rest = 0.7 * rng.normal(size=N_GENES)
            means[f"c{c}", f"k{k:02d}", None] = 10 + base[c] + 0.5 * effect[k] + 1.5 * of_context[c] + rest
    made = populations(means, one_hot([f"k{k:02d}" for k in range(12)]))
    mean, _ = anchored(made, "c5", "k03")
    start = source(made, ask("c5", "")).mean
    true, alone = 0.5 * effect[3], answer(FoldShift(), made, ask("c5", "k03")) - start
    assert np.square(mean - start - true).sum() < 1.02 * np.square(alone - true).sum()


def test_where_contexts_are_alike_but_for_noise_their_treated_mean_is_nearer_than_a_noisy_start() -> None:
    """Recorded: every rival started from the control cells of the context, of whom there were few."""
    rng = np.random.default_rng(1)
    effect, means = rng.normal(size=N_GENES), Means()
    for c in range(12):
        means[f"c{c:02d}", "", None] = 10 + rng.normal(size=N_GENES)  # control cells are few
        if c:
            means[f"c{c:02d}", "X", None] = 10 + effect + 0.2 * rng.normal(size=N_GENES)
    mean, name = anchored(populations(means), "c00", "X")
    assert name.startswith("mean treated")
    assert np.square(mean - 10 - effect).mean() < 0.1  # from the start it would be 1 and more


# --- where nothing was tried


def test_of_panels_that_share_no_drug_half_is_what_other_drugs_do_here() -> None:
    rng = np.random.default_rng(2)
    means: Means = {(c, "", None): 10 + rng.normal(size=20) for c in "ab"}
    means |= {("a", f"k{k}", None): 10 + rng.normal(size=20) for k in range(4)}
    means |= {("b", f"k{k}", None): 10 + rng.normal(size=20) for k in range(4, 8)}
    made = populations(means, one_hot([f"k{k}" for k in range(8)]))
    mean, name = anchored(made, "a", "k5")
    assert name == "mean of conditions 50%, fold shift 50%"
    guesses = [answer(PREDICTORS[n](), made, ask("a", "k5")) for n in ("mean of conditions", "fold shift")]
    np.testing.assert_allclose(mean, np.mean(guesses, axis=0), atol=1e-12)


@pytest.mark.parametrize("n_contexts", [MIN_AT, MIN_AT + 1])
def test_a_bold_rival_counts_where_enough_contexts_told(n_contexts: int) -> None:
    """One of them is asked for: of MIN_AT contexts too few are left."""
    rng, means = np.random.default_rng(1), Means()
    effect = rng.normal(size=N_GENES)
    for c in range(n_contexts):
        means[f"c{c}", "", None] = 10 + rng.normal(size=N_GENES)
        if c:
            means[f"c{c}", "X", None] = 10 + effect + 0.2 * rng.normal(size=N_GENES)
    _, name = anchored(populations(means), "c0", "X")
    assert ("mean treated" in name) == (n_contexts > MIN_AT)


def test_of_a_new_context_every_context_left_out_counts_once_whatever_times_it_has() -> None:
    """Recorded: one arbitrary population of each said at which time it lay, and contexts were dropped by it."""
    rng, means = np.random.default_rng(5), Means()
    effect = rng.normal(size=(3, N_GENES))
    for c in range(7):
        for t in (1.0, 2.0):
            means[f"c{c}", "", t] = 10 + rng.normal(size=N_GENES)
            if c:
                for k in range(3):
                    means[f"c{c}", f"k{k}", t] = 10 + effect[k] + 0.2 * rng.normal(size=N_GENES)
    made = populations(means, one_hot(["k0", "k1", "k2"]))
    rivals = Anchor().fit(made).rivals
    assert rivals.tried(ELSEWHERE, is_new=True).products.shape[0] == 6
    mixed = made.only(rng.permutation(len(made.keys)))
    one, other = (anchored(of, "c0", "k1", 2.0) for of in (made, mixed))
    assert one[1].startswith("mean treated")
    np.testing.assert_allclose(one[0], other[0], atol=1e-9)


def test_before_the_first_time_other_first_times_tell_and_no_last_ones() -> None:
    """At the last time all drugs are as control cells; at the first, which is asked for, they are half way."""
    means = drugs_over_time(4, "washed out")
    true = np.asarray(means.pop(("x", "k0", 1.0)))
    made = populations(means, one_hot([f"k{k}" for k in range(6)]))
    rivals = Anchor().fit(made).rivals
    trend = next(group for group in GROUPS if group.names[0] == "time trend")
    assert set(rivals.tried(trend, is_new=False).sides.tolist()) == {-1, 0, 1}
    mean, _ = anchored(made, "x", "k0", 1.0)
    assert np.square(mean - true).mean() < np.square(10 - true).mean()


# --- one line under many drugs over time


def drugs_over_time(seed: int, effect: str) -> Means:
    """One line, six drugs, times 1 to 4: effects that grow, or are gone at the last time; k0 is the one asked for."""
    rng = np.random.default_rng(seed)
    size = {"grows": [0.1, 0.4, 0.7, 1.0], "washed out": [0.5, 0.9, 1.0, 0.0]}[effect]
    means: Means = {("x", "", float(t)): np.full(N_GENES, 10.0) for t in range(1, 5)}
    for k in range(6):
        own = rng.normal(size=N_GENES)
        for t in range(1, 5):
            means["x", f"k{k}", float(t)] = 10 + own * size[t - 1] + 0.1 * rng.normal(size=N_GENES)
    return means


@pytest.mark.parametrize(("effect", "time", "largest"), [("washed out", 4.0, 0.1), ("grows", 1.0, 0.1)])
def test_a_trend_is_weighed_against_no_change_as_other_drugs_tell_at_that_time(
    effect: str, time: float, largest: float
) -> None:
    """Recorded: a trend or a step answered alone, and said 1 where all other drugs had been washed out."""
    means = drugs_over_time(3, effect)
    true = means.pop(("x", "k0", time))
    made = populations(means, one_hot([f"k{k}" for k in range(6)]))
    mean, _ = anchored(made, "x", "k0", time)
    assert np.square(mean - np.asarray(true)).mean() < largest


def test_a_trend_does_not_see_the_time_that_it_is_tried_on() -> None:
    means: Means = {("a", "", t): [t, 2 * t - 9] for t in (0.0, 1.0, 2.0, 3.0)}
    made = populations(means, has_control=False)
    without = made.only(np.arange(3))
    asked = ask("a", "", 3.0), np.zeros(1), source(without, ask("a", "", 3.0))
    expected = TimeTrend().fit(without).predict(*asked)
    np.testing.assert_array_equal(TimeTrend().fit(made).predict(*asked), expected)


# --- from one dose to the next


def test_a_dose_beyond_goes_on_by_the_step_that_other_drugs_take() -> None:
    """At the highest dose all add 5 to the first gene; two others were given both doses, one the highest alone."""
    toxic, features, means = np.array([5.0, 0.0, 0.0]), {}, Means()
    means["x", "", None] = np.full(3, 10.0)
    own = {"a": [0.0, 1.0, 0.0], "b": [0.0, 0.0, 2.0], "c": [0.0, 3.0, 1.0], "d": [9.0, 9.0, 9.0]}
    for k, (drug, effect) in enumerate(own.items()):
        for dose in (1.0, 2.0):
            features[f"{drug} @ {dose:g}"] = [dose, *(dose * np.eye(4)[k])]
            if (drug, dose) not in {("a", 2.0), ("d", 1.0)}:
                means["x", f"{drug} @ {dose:g}", None] = 10 + np.array(effect) + (toxic if dose == 2 else 0.0)
    made = populations(means, features)
    asked = ask("x", "a @ 2"), np.array(features["a @ 2"]), source(made, ask("x", ""))
    predictor = SharedDose().fit(made)
    own_shift = predictor.measured.shift_of_part(ask("x", "a @ 1"), asked[2].mean)
    np.testing.assert_allclose(predictor.predict(*asked), asked[2].mean + own_shift + toxic, atol=1e-12)
    alike = populations(means | {("x", "e @ 2", None): np.full(3, 99.0)}, features | {"e @ 2": features["d @ 2"]})
    np.testing.assert_allclose(SharedDose().fit(alike).predict(*asked), predictor.predict(*asked), atol=1e-12)
    with pytest.raises(CannotPredict, match=r"^'d @ 1' was seen at no lower dose in context 'x'$"):
        predictor.predict(ask("x", "d @ 1"), np.array(features["d @ 1"]), asked[2])
    with pytest.raises(CannotPredict, match=r"^nothing else was given both doses of 'a @ 3' in context 'x'$"):
        predictor.predict(ask("x", "a @ 3"), 1.5 * np.array(features["a @ 2"]), asked[2])
