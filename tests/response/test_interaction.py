"""Combinations learned from other combinations: laws that are known, shared rests, and what no part tells."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from made_populations import answer, ask, populations
from squidiff.response.combination import MeasuredParts
from squidiff.response.interaction import SHARES, InteractingParts, PartsElsewhere
from squidiff.response.populations import Populations, Source
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor, Lack
from squidiff.response.uncertainty import Uncertainty

N_GENES = 200
PARTS = tuple("ABCDEFGH")
PAIRS = tuple(itertools.combinations(PARTS, 2))
HELD_OUT = ("A", "B")
CONTROL = np.full(N_GENES, 5.0)


def effects(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {part: rng.normal(size=N_GENES) * (rng.random(N_GENES) < 0.3) for part in PARTS}


def screen(
    of_pair: dict[tuple[str, str], np.ndarray], contexts: str = "x", last_sees: int | None = None
) -> Populations:
    """Every part alone and every pair but HELD_OUT, without noise; the last context may see fewer pairs."""
    means: dict[tuple[str, str, float | None], object] = {}
    for context in contexts:
        means[context, "", None] = CONTROL
        means |= {(context, part, None): CONTROL + effect for part, effect in effects().items()}
        pairs = [pair for pair in of_pair if context != contexts[-1] or pair != HELD_OUT]
        seen = pairs if last_sees is None or context != contexts[-1] else pairs[:last_sees]
        means |= {(context, " + ".join(pair), None): CONTROL + of_pair[pair] for pair in seen}
    return populations(means)


def summed(law: object) -> dict[tuple[str, str], np.ndarray]:
    of = effects()
    return {pair: law(of[pair[0]], of[pair[1]]) for pair in PAIRS}  # type: ignore[operator]


def error(
    predictor: InteractingParts | MeasuredParts, made: Populations, true: np.ndarray, context: str = "x"
) -> float:
    guess = answer(predictor, made, ask(context, "A + B"))
    return float(np.square(guess - CONTROL - true).mean())


def test_without_combinations_to_learn_from_parts_add_as_they_were_measured() -> None:
    alone = screen({})
    asked = ask("x", "A + B")
    np.testing.assert_array_equal(answer(InteractingParts(), alone, asked), answer(MeasuredParts(), alone, asked))


@pytest.mark.parametrize(
    ("law", "coefficients"),
    [
        (lambda one, other: one + other, (0.0, 0.0)),
        (lambda one, other: (one + other) / 2, (-0.5, 0.0)),
        (lambda one, other: np.where(np.abs(one) > np.abs(other), one, other), (0.0, -1.0)),
        (lambda one, other: 1.2 * (one + other), (0.2, 0.0)),
    ],
    ids=["sums", "means", "the larger one", "more than sums"],
)
def test_the_law_of_the_combinations_that_were_seen_is_that_of_one_more(
    law: object, coefficients: tuple[float, float]
) -> None:
    """Falls are multiplied in a sum of measured parts, which none of these laws does: so not exactly."""
    of_pair = summed(law)
    made = screen(of_pair)
    learned = InteractingParts().fit(made)
    np.testing.assert_allclose(learned.law.coefficients(), coefficients, atol=0.08)
    before = error(MeasuredParts(), made, of_pair[HELD_OUT])
    assert error(learned, made, of_pair[HELD_OUT]) < max(
        0.1 * before, 0.01 * float(np.square(of_pair[HELD_OUT]).mean())
    )


def test_a_part_that_was_measured_off_is_set_right_by_the_combinations_that_hold_it() -> None:
    of_pair = summed(np.add)
    made, off = screen(of_pair), np.random.default_rng(1).normal(size=N_GENES)
    mean = made.mean.copy()
    mean[made.find(ask("x", "A"))] += off
    wrong = dataclasses.replace(made, mean=mean)
    assert error(InteractingParts(), wrong, of_pair[HELD_OUT]) < 0.15 * error(MeasuredParts(), wrong, of_pair[HELD_OUT])


@pytest.mark.parametrize("last_sees", [None, 0])
def test_what_a_pair_does_beyond_its_sum_in_other_contexts_it_does_here(last_sees: int | None) -> None:
    rng = np.random.default_rng(2)
    of_pair = {pair: total + rng.normal(size=N_GENES) for pair, total in summed(np.add).items()}
    made = screen(of_pair, "abc", last_sees)
    assert error(InteractingParts(), made, of_pair[HELD_OUT], "c") < 0.2 * error(
        MeasuredParts(), made, of_pair[HELD_OUT], "c"
    )


def test_of_three_parts_the_pairs_that_they_hold_tell() -> None:
    """What pairs have of their own, a triple that holds three of them has of all three."""
    rng = np.random.default_rng(3)
    of_pair = summed(np.add)
    own = {pair: rng.normal(size=N_GENES) for pair in PAIRS}
    pairs = {pair: of_pair[pair] + own[pair] for pair in PAIRS}
    triples = {
        three: sum(effects()[part] for part in three) + sum(own[pair] for pair in itertools.combinations(three, 2))
        for three in itertools.combinations(PARTS, 3)
    }
    asked = triples.pop(("A", "B", "C"))
    made = screen({**pairs, **triples})  # type: ignore[dict-item]
    errors = [
        float(np.square(answer(of, made, ask("x", "A + B + C")) - CONTROL - asked).mean())
        for of in (InteractingParts(), MeasuredParts())
    ]
    assert errors[0] < 0.3 * errors[1]


def test_where_rests_are_noise_nothing_is_learned_from_them() -> None:
    rng = np.random.default_rng(4)
    of_pair = {pair: total + rng.normal(scale=0.5, size=N_GENES) for pair, total in summed(np.add).items()}
    made = screen(of_pair)
    true = sum(effects()[part] for part in HELD_OUT)
    assert error(InteractingParts(), made, true) < error(MeasuredParts(), made, true) + 0.02 * 0.5**2


def test_the_very_combination_counts_nothing_and_the_others_as_if_it_were_not_there() -> None:
    """By the closed form of kriging with one left out, against kriging of what is left."""
    rng = np.random.default_rng(5)
    made = screen({pair: rng.normal(size=N_GENES) for pair in PAIRS[:12]})
    learned = InteractingParts().fit(made)
    for shares in SHARES:
        _, of_part, of_pair, _ = shares
        i, parts = 4, [frozenset(pair) for pair in PAIRS[1:12]]
        shared = np.array([[len(one & other) for other in parts] for one in parts])
        covariance = shares[0] + of_part * shared + of_pair * (shared == 2)
        rest = np.delete(np.arange(11), i)
        expected = np.linalg.solve(covariance[np.ix_(rest, rest)] + np.eye(10), covariance[rest, i])
        alone = [kernel._replace(likelihood=1.0) for kernel in learned.kernels if kernel.shares == shares]
        if alone:
            one = InteractingParts().fit(made)
            one.kernels = alone
            weights = one._weights(ask("x", " + ".join(PAIRS[1:12][i])))
            assert weights[i] == 0.0
            np.testing.assert_allclose(np.delete(weights, i), expected, atol=1e-12)


def test_to_leave_a_combination_out_is_to_learn_without_it() -> None:
    """Recorded: the two coefficients had seen it, and rivals were compared with what knew the answer."""
    pairs = summed(lambda one, other: (one + other) / 2)
    made = screen({pair: pairs[pair] for pair in [HELD_OUT, *pairs][:3]})
    seen = [i for i in made.treated if "+" in made.keys[i].condition]
    for i in seen:
        without = made.only(np.setdiff1d(np.arange(len(made.keys)), i))
        asked = made.keys[i], made.features[i], Source(ask("x", ""), CONTROL)
        found, expected = (InteractingParts().fit(of).predict(*asked) for of in (made, without))
        moved = float(np.square(expected - CONTROL).mean())
        assert np.square(found - expected).mean() < 0.002 * moved


def test_neither_the_order_of_populations_nor_that_of_genes_changes_the_answer() -> None:
    rng = np.random.default_rng(6)
    made = screen({pair: total + rng.normal(size=N_GENES) for pair, total in summed(np.add).items()})
    found = answer(InteractingParts(), made, ask("x", "A + B"))
    genes, mixed = rng.permutation(N_GENES), made.only(rng.permutation(len(made.keys)))
    mixed = dataclasses.replace(mixed, mean=mixed.mean[:, genes])
    np.testing.assert_allclose(answer(InteractingParts(), mixed, ask("x", "A + B")), found[genes], atol=1e-9)


def test_a_law_leaves_a_tenth_of_the_sum_where_no_mean_of_training_is_below_0() -> None:
    for made in (screen(summed(np.add)), screen({pair: total - 10.0 for pair, total in summed(np.add).items()})):
        learned = InteractingParts().fit(made)
        learned.law = learned.law._replace(with_rest=20 * learned.law.products[:, :, 0])  # a law of 20 times the sum
        found = learned.predict(ask("x", "A + B"), made.features[0], Source(ask("x", ""), CONTROL))
        left = found / learned.sums.summed(ask("x", "A + B"), Source(ask("x", ""), CONTROL)).mean
        assert (left.min() == pytest.approx(0.1)) == (made.mean.min() >= 0.0)


def asked_of(
    made: Populations, condition: str, features: list[float], described: dict[str, np.ndarray] | None = None
) -> tuple[np.ndarray, list[tuple[str, list[float]]]]:
    """What PartsElsewhere makes of 10 for whatever it asks for, and what it asked for."""
    asked: list[tuple[str, list[float]]] = []

    def of_part(key: object, features: np.ndarray, source: Source) -> np.ndarray:
        asked.append((key.condition, features.tolist()))  # type: ignore[attr-defined]
        return source.mean + 10.0

    key, source = ask("x", condition), Source(ask("x", ""), made.mean[0])
    predictor = PartsElsewhere(InteractingParts().fit(made), of_part, described or {}).fit(made)
    return predictor.predict(key, np.array(features), source), asked


def test_parts_that_no_context_saw_alone_are_asked_for_by_the_features_that_are_left() -> None:
    features = {"A": [1.0, 1.0, 0.0, 0.0], "B": [1.0, 0.0, 1.0, 0.0]}
    made = populations(
        {("x", "", None): [1.0], ("x", "A", None): [3.0], ("y", "", None): [1.0], ("y", "B", None): [4.0]}, features
    )
    mean, asked = asked_of(made, "A + C", [2.0, 1.0, 0.5, 0.25])
    assert (mean.tolist(), asked) == ([13.0], [("C", [1.0, 0.0, 0.5, 0.25])])
    mean, asked = asked_of(made, "A + B", [2.0, 1.0, 1.0, 0.0])
    assert (mean.tolist(), asked) == ([13.0], [("B", features["B"])])
    mean, asked = asked_of(made, "A + C + D", [4.0, 1.0, 0.5, 0.25])
    assert asked == [("C + D", [3.0, 0.0, 0.5, 0.25])]
    with pytest.raises(CannotPredict, match=r"^no part of 'C \+ D' was seen alone$"):
        asked_of(made, "C + D", [2.0, 0.0, 0.5, 0.25])
    told = {"C": np.array([1.0, 0.0, 0.25, 0.25]), "D": np.array([1.0, 0.0, 0.25, 0.0])}
    mean, asked = asked_of(made, "C + D", [2.0, 0.0, 0.5, 0.25], told)
    assert (mean.tolist(), asked) == ([21.0], [(part, of.tolist()) for part, of in told.items()])


def test_a_combination_of_parts_that_other_contexts_saw_is_their_sum_here() -> None:
    of = effects()
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): CONTROL for c in "abx"}
    means |= {(c, part, None): CONTROL + of[part] for c in "ab" for part in "AB"}
    means |= {("x", "A", None): CONTROL + of["A"]}
    made = populations(means, {"A": [1.0, 1.0, 0.0], "B": [1.0, 0.0, 1.0], "A + B": [2.0, 1.0, 1.0]})
    mean, name = Anchor().fit(made).predict(ask("x", "A + B"), np.array([2.0, 1.0, 1.0]), Source(ask("x", ""), CONTROL))
    assert name == "parts elsewhere"
    shift = mean - CONTROL
    assert np.corrcoef(shift, of["A"] + of["B"])[0, 1] > 0.99
    assert np.linalg.norm(shift) == pytest.approx(np.linalg.norm(of["A"] + of["B"]), rel=0.1)


def unseen(n_parts: int) -> tuple[Populations, np.ndarray]:
    """Thirty conditions with embeddings that tell nothing, every pair of the first ten, and features to ask by."""
    rng = np.random.default_rng(7)
    names = [f"P{i:02d}" for i in range(30)]
    of = {name: rng.normal(size=N_GENES) * (rng.random(N_GENES) < 0.3) for name in names}
    embedding = {name: [1.0, *rng.normal(size=8)] for name in names}
    means: dict[tuple[str, str, float | None], object] = {("x", "", None): CONTROL}
    means |= {("x", name, None): CONTROL + of[name] for name in names}
    features = dict(embedding)
    for one, other in itertools.combinations(names[:10], 2):
        label = f"{one} + {other}"
        means["x", label, None] = CONTROL + of[one] + of[other]
        features[label] = np.add(embedding[one], embedding[other]).tolist()
    new = [rng.normal(size=8) for _ in range(n_parts)]
    return populations(means, features), np.array([n_parts, *np.sum(new, axis=0)])


def test_what_parts_of_seen_combinations_tell_is_not_taken_for_what_embeddings_tell() -> None:
    """Recorded: combinations of a left-out part stayed, so that embeddings of pure noise were trusted, and moved genes.

    Nothing is known of two genes that nobody perturbed but what others do on average, which here is nothing.
    """
    made, features = unseen(2)
    mean, name = Anchor().fit(made).predict(ask("x", "Y + Z"), features, Source(ask("x", ""), CONTROL))
    usual = np.linalg.norm(made.mean[1:31] - CONTROL, axis=1).mean()
    assert np.linalg.norm(mean - CONTROL) < 0.2 * usual, name


def test_of_a_combination_with_one_unseen_gene_the_seen_one_is_there() -> None:
    made, features = unseen(1)
    seen = made.features[made.find(ask("x", "P03"))]
    key = ask("x", "P03 + Z")
    mean, name = Anchor().fit(made).predict(key, features + seen, Source(ask("x", ""), CONTROL))
    assert name == "parts elsewhere"
    true = made.mean[made.find(ask("x", "P03"))] - CONTROL
    assert np.linalg.norm(mean - CONTROL - true) < 0.3 * np.linalg.norm(true)


def test_falls_to_nothing_stay_there_whatever_cells_a_combination_starts_from() -> None:
    """Recorded: shifts of training's control cells on cells of lower means fell below 0, and two such made a rise."""
    control, low = [4.0] * 4, [1.0, 4.0, 4.0, 4.0]
    means = {("x", "", None): control, ("x", "A", None): low, ("x", "B", None): low}
    means |= {("y", "", None): control, ("y", "C", None): [4.0, 4.0, 4.0, 5.0]}
    made = populations(means, {"A": [1.0, 1, 0, 0], "B": [1.0, 0, 1, 0], "C": [1.0, 0, 0, 1]})
    anchor, features = Anchor().fit(made), np.array([3.0, 1, 1, 1])
    for start in (1.0, 2.0, 4.0):
        source = Source(ask("x", ""), np.array([start, 4.0, 4.0, 4.0]))
        mean, name = anchor.predict(ask("x", "A + B + C"), features, source)
        assert name == "parts elsewhere"
        assert mean[0] < 0.3 * start


def test_errors_of_parts_elsewhere_are_found_where_no_context_has_control_cells() -> None:
    made = populations(
        {("x", "A", None): [1.0, 2.0], ("x", "B", None): [3.0, 1.0], ("y", "", None): [2.0, 2.0]},
        {"A": [1.0, 1, 0], "B": [1.0, 0, 1]},
    )
    anchor = Anchor().fit(made)
    _, name, group = anchor.answer(ask("x", "A + B"), np.array([2.0, 1, 1]), Source(ask("x", ""), np.full(2, 2.0)))
    assert name == "parts elsewhere"
    assert group is not None
    assert anchor.errors(group, Lack(n_parts=1)) == []


def test_many_combinations_of_parts_that_nobody_saw_alone_leave_room_for_those_that_teach() -> None:
    """Recorded: what is learned from was drawn before what tells nothing was left out."""
    made = screen(summed(np.add))
    others = {("x", f"U{i} + V{i}", None): CONTROL for i in range(400)}
    known = {tuple(key): row for key, row in zip(made.keys, made.mean, strict=True)}
    learned = InteractingParts().fit(populations({**known, **others}))  # type: ignore[dict-item]
    assert len(learned.seen) == len(PAIRS) - 1
    assert sum(kernel.likelihood for kernel in learned.kernels) == pytest.approx(1.0)


def test_intervals_of_two_unseen_parts_are_learned_whatever_was_asked_before() -> None:
    """Recorded: what describes the parts that are left out with a pair was known of parts that were asked for alone."""
    rng = np.random.default_rng(0)
    names = [f"P{i:02d}" for i in range(14)]
    described = {name: np.array([1.0, *rng.normal(size=4)]) for name in names}
    described |= {f"{a} + {b}": described[a] + described[b] for a, b in itertools.combinations(names, 2)}
    effects, pairs = rng.normal(size=(5, 20)), list(itertools.combinations(names[:8], 2))[:20]
    seen = [*names[:12], *(" + ".join(pair) for pair in pairs)]
    means: dict[tuple[str, str, float | None], object] = {("c", "", None): np.full(20, 3.0)}
    means |= {("c", name, None): 3.0 + 0.3 * described[name] @ effects + 0.1 * rng.normal(size=20) for name in seen}
    made, key, found = populations(means, {name: described[name] for name in seen}, variance=0.01), "P12 + P13", []
    for before in ([], names[:8]):
        anchor, start = Anchor().fit(made), Source(ask("c", ""), np.full(20, 3.0))
        anchor.described |= {name: described[name] for name in (*before, "P12", "P13")}
        mean, label, group = anchor.answer(ask("c", key), described[key], start)
        found.append(Uncertainty(anchor).interval(ask("c", key), mean, group, start))
        assert label == "parts elsewhere"
        assert found[-1].is_tried
    np.testing.assert_array_equal(found[0].bounds[0.9], found[1].bounds[0.9])
