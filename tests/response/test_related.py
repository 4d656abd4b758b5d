"""Contexts of several keys: a donor is known by his other cell types."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made_populations import NO_FEATURES, answer, ask, populations, source
from squidiff.response.fold import FoldShift
from squidiff.response.groups import RELATED
from squidiff.response.populations import Populations
from squidiff.response.related import RelatedPopulations
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import Anchor

N_GENES, N_TYPES, N_DONORS = 60, 4, 5
ASKED = ask("t0 | d0", "X")


def study(
    strength: np.ndarray, own: float = 0.0, noise: float = 0.1, seed: int = 0
) -> tuple[Populations, np.ndarray, np.ndarray]:
    """Types in donors under X: the effect of the type times the donor's strength, and what the donor has of his own.

    What t0 of d0 shows is left out; it is returned with the effect that the type has.
    """
    rng = np.random.default_rng(seed)
    start, effect = rng.normal(size=(N_TYPES, N_GENES)), rng.normal(size=(N_TYPES, N_GENES)) * 0.2
    effect += rng.normal(size=N_GENES)
    of_donor = own * rng.normal(size=(N_DONORS, N_GENES))
    means: dict[tuple[str, str, float | None], object] = {}
    for t in range(N_TYPES):
        for d in range(N_DONORS):
            before = start[t] + 0.1 * rng.normal(size=N_GENES)
            after = before + strength[d] * effect[t] + of_donor[d] + noise * rng.normal(size=N_GENES)
            means |= {(f"t{t} | d{d}", "", None): before, (f"t{t} | d{d}", "X", None): after}
    truth = np.asarray(means.pop(("t0 | d0", "X", None)))
    return populations(means, variance=1e-4), truth, effect[0]


def error(predictor: FoldShift | RelatedPopulations, made: Populations, truth: np.ndarray) -> float:
    return float(np.square(answer(predictor, made, ASKED) - truth).mean())


def related(made: Populations) -> RelatedPopulations:
    return RelatedPopulations(FoldShift().fit(made))


STRONG = np.array([2.0, 0.5, 1.0, 1.5, 0.7])


@pytest.mark.parametrize(("strength", "own"), [(STRONG, 0.0), (np.ones(N_DONORS), 0.7), (STRONG, 0.7)])
def test_a_donor_who_answers_otherwise_is_known_by_his_other_types(strength: np.ndarray, own: float) -> None:
    for seed in range(3):
        made, truth, _ = study(strength, own, seed=seed)
        without = error(FoldShift(), made, truth)
        assert error(related(made), made, truth) < 0.35 * without
        mean, label = Anchor().fit(made).predict(ASKED, NO_FEATURES, source(made, ASKED))
        assert RELATED in label
        assert np.square(mean - truth).mean() < 0.4 * without


def test_where_donors_answer_alike_next_to_nothing_changes() -> None:
    """What a relative missed holds its own noise, and that of the context asked for were it not left out."""
    for seed in range(3):
        made, truth, _ = study(np.ones(N_DONORS), noise=0.3, seed=seed)
        assert error(related(made), made, truth) < 1.1 * error(FoldShift(), made, truth)


def test_what_relatives_missed_is_of_all_others_but_them_and_the_context_asked_for() -> None:
    """By hand, where all contexts are alike before, so that the proportional shift is the plain mean of the others."""
    rng = np.random.default_rng(5)
    names = [f"t{t} | d{d}" for t in range(2) for d in range(3)]
    shift = {name: rng.normal(size=8) for name in names}
    means: dict[tuple[str, str, float | None], object] = {(name, "", None): np.full(8, -1.0) for name in names}
    made = populations(means | {(name, "X", None): -1.0 + shift[name] for name in names})
    learned = related(made).fit(made)
    learned.said.fit(made)
    asked = ask("t0 | d0", "X")
    of_type, _, of_donor, *_ = learned._relatives(asked, NO_FEATURES, source(made, asked))
    assert [made.keys[i].context for i in of_type] == ["t0 | d1", "t0 | d2"]
    assert [made.keys[i].context for i in of_donor] == ["t1 | d0"]
    stronger, beyond = learned._missed(of_donor, made.find(asked))
    said = np.mean([shift[name] for name in names if name not in ("t0 | d0", "t1 | d0")], axis=0)
    missed = shift["t1 | d0"] - said
    assert stronger == pytest.approx(said @ missed / (said @ said))
    np.testing.assert_allclose(beyond, missed - stronger * said)


def test_a_context_that_was_seen_is_predicted_as_well_as_one_that_was_not_and_no_better() -> None:
    """Rivals are weighed by such predictions."""
    errors = np.zeros(2)
    for seed in range(12):
        made, truth, _ = study(STRONG, own=0.5, seed=seed)
        seen = made.joined(populations({ASKED: truth}, variance=1e-4))
        errors += [np.square(answer(related(of), of, ASKED) - truth).mean() for of in (seen, made)]
    assert errors[0] == pytest.approx(errors[1], rel=0.15)


def test_a_donor_who_was_never_given_a_drug_is_known_by_other_drugs() -> None:
    """Recorded: the law leaned on relatives under the same condition, of which there are none."""
    rng, conditions = np.random.default_rng(0), ("X", "Y", "Z")
    own, effect = rng.normal(size=(N_DONORS, N_GENES)), {c: rng.normal(size=N_GENES) for c in conditions}
    means: dict[tuple[str, str, float | None], object] = {}
    for t in range(N_TYPES):
        for d in range(N_DONORS):
            start = rng.normal(size=N_GENES)
            means[f"t{t} | d{d}", "", None] = start
            for c in conditions:
                means[f"t{t} | d{d}", c, None] = start + effect[c] + own[d] + 0.2 * rng.normal(size=N_GENES)
    truth = np.asarray(means["t0 | d0", "X", None])
    made = populations({k: m for k, m in means.items() if not (k[0].endswith("d0") and k[1] == "X")}, variance=1e-4)
    assert error(related(made), made, truth) < 0.15 * error(FoldShift(), made, truth)


def test_what_no_relative_tells_is_left_to_others() -> None:
    made, _, _ = study(STRONG)
    few = made.only(
        np.array([i for i, key in enumerate(made.keys) if key.context in ("t0 | d0", "t1 | d1", "t2 | d2")])
    )
    with pytest.raises(
        CannotPredict, match=r"^no related context, time or dose of t0 \| d0, X was seen under the condition$"
    ):
        answer(related(few), few, ASKED)
    single = replace(made, keys=tuple(key._replace(context=key.context.replace(" | ", "/")) for key in made.keys))
    with pytest.raises(CannotPredict, match="no related context, time or dose"):
        answer(related(single), single, ask("t0/d0", "X"))


def test_a_context_that_answers_strongly_at_other_times_does_at_this_one() -> None:
    """Control cells at the start alone, as of one stimulus over hours in several species."""
    rng, contexts, times = np.random.default_rng(0), "abcde", (2.0, 4.0, 6.0)
    effect, strength = {t: rng.normal(size=N_GENES) for t in times}, dict(zip(contexts, STRONG, strict=True))
    start = {c: rng.normal(size=N_GENES) for c in contexts}
    means: dict[tuple[str, str, float | None], object] = {(c, "", 0.0): start[c] for c in contexts}
    for c in contexts:
        for t in times:
            means[c, "LPS", t] = start[c] + strength[c] * effect[t] + 0.05 * rng.normal(size=N_GENES)
    key = ask("a", "LPS", 6.0)
    truth = np.asarray(means.pop(tuple(key)))  # type: ignore[call-overload]
    made = populations(means, variance=1e-4)
    without = np.square(answer(FoldShift(), made, key) - truth).mean()
    assert np.square(answer(related(made), made, key) - truth).mean() < 0.1 * without


def test_of_times_the_nearest_are_relatives_and_of_doses_the_next_lower_ones() -> None:
    """Effects saturate: what a higher dose tells of a lower one is not what a lower tells of a higher."""
    strength = {f"A @ {d}": [float(np.log10(d + 1)), float(np.log10(d + 1))] for d in (1, 10, 100, 1000)}
    means = {("a", condition, t): [1.0] for condition in ("", *strength) for t in (0.0, 1.0, 2.0, 4.0)}
    made = populations(means, strength)
    learned, start = related(made).fit(made), source(made, ask("a", "", 1.0))
    *_, times, doses = learned._relatives(ask("a", "A @ 100", 1.0), np.array(strength["A @ 100"]), start)
    assert [made.keys[i].time for i in times] == [0.0, 2.0]
    assert [(made.keys[i].condition, made.keys[i].time) for i in doses] == [("A @ 10", 1.0), ("A @ 1", 1.0)]
    *_, doses = learned._relatives(ask("a", "A @ 0.5", 1.0), np.log10(1.5) * np.ones(2), start)
    assert doses == []
    *_, times, _ = learned._relatives(ask("a", "A @ 100", 3.0), np.array(strength["A @ 100"]), start)
    assert [made.keys[i].time for i in times] == [2.0, 4.0]
    assert learned._relatives(ask("a", "B", None), np.array([1.0, 0.0]), start) == [[], []]


def test_the_order_of_populations_changes_nothing() -> None:
    """Recorded: of many relatives some were drawn by where they stood."""
    rng = np.random.default_rng(0)
    means: dict[tuple[str, str, float | None], object] = {}
    for t in range(4):
        for d in range(5):  # more than MAX_CONTEXTS of a kind, and than MAX_LEARNED in all
            start = rng.normal(size=N_GENES)
            means[f"t{t} | d{d}", "", None] = start
            means |= {(f"t{t} | d{d}", c, None): start + rng.normal(size=N_GENES) for c in "XYZ"}
    del means["t0 | d0", "X", None]
    found = []
    for order in (np.arange(len(means)), rng.permutation(len(means)), rng.permutation(len(means))):
        keys = [list(means)[i] for i in order]
        made = populations({key: means[key] for key in keys}, variance=1e-4)
        made = replace(made, n_cells=np.full(len(keys), 30))
        found.append(answer(related(made), made, ASKED))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-9)
