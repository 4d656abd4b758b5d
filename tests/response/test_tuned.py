"""What a context shows of how it answers, learned from the conditions that it shares with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from made_populations import answer, ask, populations
from squidiff.response.dose import DoseInterpolation
from squidiff.response.law import SHARES, share_of_common, solve
from squidiff.response.populations import Populations, Source
from squidiff.response.shift import CannotPredict, MeanShift, Predictor
from squidiff.response.stack import Anchor
from squidiff.response.tuned import TunedShift

N_GENES = 120
CONTEXTS = "abcdef"
CONTROL = np.full(N_GENES, 6.0)
Effect = Callable[[np.random.Generator], dict[tuple[str, int], np.ndarray]]


def screen(effect: Effect, seed: int = 0, n_here: int = 12) -> tuple[Populations, np.ndarray]:
    """Thirteen conditions in six contexts, of which the last one lacks condition 0, and all but n_here others."""
    rng = np.random.default_rng(seed)
    of = effect(rng)
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): CONTROL for c in CONTEXTS}
    for (context, k), shift in of.items():
        if context != "f" or 0 < k <= n_here:
            means[context, f"k{k}", None] = CONTROL + shift + 0.1 * rng.normal(size=N_GENES)
    return populations(means), of["f", 0]


def stronger(rng: np.random.Generator) -> dict[tuple[str, int], np.ndarray]:
    """Contexts answer alike, each more or less; the last one twice as strongly as most."""
    strength = dict(zip(CONTEXTS, (0.8, 0.9, 1.0, 1.1, 1.2, 2.0), strict=True))
    of = [rng.normal(size=N_GENES) * (rng.random(N_GENES) < 0.3) for _ in range(13)]
    return {(c, k): strength[c] * of[k] for c in CONTEXTS for k in range(13)}


def in_two_ways(rng: np.random.Generator) -> dict[tuple[str, int], np.ndarray]:
    """a, b and f answer one way and c, d and e another, with control cells that are all alike."""
    of = rng.normal(size=(2, 13, N_GENES)) * (rng.random((2, 13, N_GENES)) < 0.3)
    return {(c, k): of[int(c in "cde"), k] for c in CONTEXTS for k in range(13)}


def with_one_more(rng: np.random.Generator) -> dict[tuple[str, int], np.ndarray]:
    """In every context all conditions do one more thing, another one in each."""
    of, more = rng.normal(size=(13, N_GENES)), dict(zip(CONTEXTS, rng.normal(size=(6, N_GENES)), strict=True))
    return {(c, k): of[k] + more[c] for c in CONTEXTS for k in range(13)}


def error(predictor: Predictor, made: Populations, true: np.ndarray) -> float:
    return float(np.square(answer(predictor, made, ask("f", "k0")) - CONTROL - true).mean())


def tuned(base: Predictor, made: Populations) -> TunedShift:
    return TunedShift(base.fit(made)).fit(made)


@pytest.mark.parametrize("n_here", [12, 3])
@pytest.mark.parametrize("effect", [stronger, in_two_ways, with_one_more])
def test_a_context_that_answers_in_its_own_way_is_known_by_other_conditions(effect: Effect, n_here: int) -> None:
    """Recorded: before, strength and likeness of the answers counted for nothing, only that of control cells."""
    made, true = screen(effect, n_here=n_here)
    before = error(MeanShift(), made, true)
    assert error(tuned(MeanShift(), made), made, true) < (0.15 if n_here == 12 else 0.5) * before
    key, start = ask("f", "k0"), Source(ask("f", ""), CONTROL)
    of_anchor, name = Anchor().fit(made).predict(key, np.zeros(1), start)
    assert "tuned" in name or effect is with_one_more
    assert np.square(of_anchor - CONTROL - true).mean() < (0.15 if n_here == 12 else 0.5) * before


def test_where_contexts_differ_by_chance_alone_little_is_lost() -> None:
    def by_chance(rng: np.random.Generator) -> dict[tuple[str, int], np.ndarray]:
        of = rng.normal(size=(13, N_GENES))
        return {(c, k): of[k] + 0.5 * rng.normal(size=N_GENES) for c in CONTEXTS for k in range(13)}

    errors = np.array(
        [
            (error(tuned(MeanShift(), made), made, true), error(MeanShift(), made, true))
            for made, true in (screen(by_chance, seed) for seed in range(5))
        ]
    )
    assert errors[:, 0].mean() < 1.1 * errors[:, 1].mean()


def test_a_condition_never_tells_of_itself() -> None:
    """Nothing of what training has of the very population but the variance about the law."""
    made, _ = screen(stronger)
    key = ask("f", "k3")
    i = made.find(key)
    without = made.only(np.delete(np.arange(len(made.keys)), i))
    np.testing.assert_allclose(
        answer(tuned(MeanShift(), made), made, key), answer(tuned(MeanShift(), without), without, key), atol=0.02
    )


def test_fewer_than_two_shared_conditions_say_nothing() -> None:
    sentence = "^fewer than 2 other conditions were seen in 'f' and elsewhere$"
    for n_here in (0, 1):
        made, _ = screen(stronger, n_here=n_here)
        with pytest.raises(CannotPredict, match=sentence):
            answer(tuned(MeanShift(), made), made, ask("f", "k0"))
    made, _ = screen(stronger, n_here=2)
    with pytest.raises(CannotPredict, match=sentence):  # of the two that are there one is asked for
        answer(tuned(MeanShift(), made), made, ask("f", "k1"))


def test_the_order_of_populations_changes_nothing_and_a_tenth_is_left() -> None:
    made, _ = screen(lambda rng: {k: -2.9 * np.abs(s) for k, s in stronger(rng).items()})
    made = made.only(np.flatnonzero((made.mean >= -9).all(axis=1)))
    clipped = populations({tuple(k): np.maximum(m, 0.0) for k, m in zip(made.keys, made.mean, strict=True)})  # type: ignore[misc]
    found = answer(tuned(MeanShift(), clipped), clipped, ask("f", "k0"))
    said = answer(MeanShift(), clipped, ask("f", "k0"))
    assert said.min() > 0
    assert (found / said).min() == pytest.approx(0.1)
    order = np.random.default_rng(0).permutation(len(clipped.keys))
    mixed = clipped.only(order)
    np.testing.assert_allclose(answer(tuned(MeanShift(), mixed), mixed, ask("f", "k0")), found, atol=1e-9)


def test_the_law_is_ridge_regression_and_learns_nothing_of_nothing() -> None:
    rng = np.random.default_rng(1)
    products = np.array([[4.0, 1.0], [1.0, 2.0]])
    true = np.array([0.3, -0.2])
    np.testing.assert_allclose(solve(1e6 * products, 1e6 * products @ true, 1.0, 10), true, atol=1e-5)
    np.testing.assert_allclose(solve(products, products @ true, 1e9, 10), 0.0, atol=1e-7)
    np.testing.assert_array_equal(solve(np.zeros((2, 2)), np.zeros(2), 0.0, 10), 0.0)
    assert share_of_common(rng.normal(size=(20, 500))) < 0.2
    largest = max(SHARES) * 20 / (1 + max(SHARES) * 20)
    assert share_of_common(np.ones((20, 1)) * rng.normal(size=500)) == pytest.approx(largest, abs=1e-3)


def test_the_line_between_doses_of_the_own_context_is_a_term_beside_what_others_show_at_the_dose() -> None:
    """Recorded: a line between the doses around answered alone, though other contexts had the very dose."""
    errors = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        means: dict[tuple[str, str, float | None], object] = {(c, "", None): CONTROL for c in CONTEXTS}
        features: dict[str, list[float]] = {}
        half, usual = 10 ** rng.uniform(0, 2, 8), rng.normal(size=(8, N_GENES))
        for c, k in itertools.product(CONTEXTS, range(8)):
            effect = usual[k] * (1 + 0.3 * rng.normal(size=N_GENES))
            for dose in (1, 10, 100):
                name, strength = f"k{k} @ {dose}", np.log10(dose + 1)
                features[name] = [strength, *(strength * (np.arange(8) == k))]
                means[c, name, None] = CONTROL + effect * dose / (dose + half[k])
        true = {f"k{k} @ 10": np.asarray(means.pop(("f", f"k{k} @ 10", None))) for k in range(4)}
        made = populations(means, features)
        line, elsewhere = DoseInterpolation().fit(made), MeanShift().fit(made)
        for of in (line, TunedShift(elsewhere).fit(made), TunedShift(elsewhere, line).fit(made)):
            guesses = [
                of.predict(ask("f", name), np.array(features[name]), Source(ask("f", ""), CONTROL)) for name in true
            ]
            errors.append(np.square(np.array(guesses) - list(true.values())).mean())
    of_line, of_others, of_both = np.reshape(errors, (4, 3)).mean(axis=0)
    assert of_both < 0.8 * min(of_line, of_others)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_terms_that_hang_on_each_other_have_a_law_at_any_scale(scale: float) -> None:
    """Recorded: contexts that answer in exact proportion made a singular matrix where means are large."""
    of = np.random.default_rng(2).normal(size=(6, 30))
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): np.full(30, 9.0 * scale) for c in "abc"}
    for strength, c in ((1.0, "a"), (2.0, "b"), (3.0, "c")):
        means |= {(c, f"k{k}", None): (9.0 + strength * of[k]) * scale for k in range(6)}
    true = np.asarray(means.pop(("c", "k0", None)))
    made = populations(means)
    found = answer(tuned(MeanShift(), made), made, ask("c", "k0"))
    np.testing.assert_allclose(found, np.maximum(true, 0.0) if made.mean.min() >= 0 else true, atol=0.2 * scale)
