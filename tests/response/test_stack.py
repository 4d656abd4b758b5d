"""The anchor: a training population's own mean, else the shift that leaving contexts out recommends, else the rest."""

from __future__ import annotations

import numpy as np
import pytest
from made_populations import NO_FEATURES, ask, populations

from squidiff.config import InputError
from squidiff.response.populations import Populations
from squidiff.response.shift import CannotPredict
from squidiff.response.stack import BASELINES, Anchor

POSITION = {"a1": 0.0, "a2": 0.1, "b1": 50.0, "b2": 50.1}


def two_pairs(shifts: dict[str, float]) -> Populations:
    """Four contexts in two near pairs that lie far apart, and a new one beside the first pair; two genes."""
    means: dict[tuple[str, str, float | None], object] = {(c, "", None): [at, 1.0] for c, at in POSITION.items()}
    means |= {(c, "X", None): [POSITION[c], 1.0 + shift] for c, shift in shifts.items()}
    return populations({**means, ("new", "", None): [0.05, 1.0]})


def test_near_contexts_that_respond_alike_choose_the_weighted_shift() -> None:
    anchor = Anchor().fit(two_pairs({"a1": 1.0, "a2": 1.0, "b1": -1.0, "b2": -1.0}))
    mean, name = anchor.predict(ask("new", "X"), NO_FEATURES)
    assert name == "weighted shift"
    np.testing.assert_allclose(mean, [0.05, 2.0], atol=1e-12)  # the far pair weighs exp(-50)


def test_near_contexts_that_respond_unlike_choose_the_plain_mean() -> None:
    """Left out, each is guessed 8/3 off by the weighted shift, which asks its neighbour, and 4/3 off by the mean."""
    anchor = Anchor().fit(two_pairs({"a1": 3.0, "a2": 1.0, "b1": 3.0, "b2": 1.0}))
    mean, name = anchor.predict(ask("new", "X"), NO_FEATURES)
    assert name == "mean shift"
    np.testing.assert_allclose(mean, [0.05, 3.0], atol=1e-12)


def test_a_population_seen_in_training_has_its_own_mean() -> None:
    made = two_pairs({"a1": 1.0, "a2": 1.0, "b1": -1.0, "b2": 7.0})
    anchor = Anchor().fit(made)
    for key, expected in zip(made.keys, made.mean, strict=True):
        mean, name = anchor.predict(key, NO_FEATURES)
        assert name == "seen in training"
        np.testing.assert_array_equal(mean, expected)


FEATURES = {"A": [1.0, 0.0], "B": [0.0, 1.0], "A + B": [1.0, 1.0]}


def test_where_no_other_context_helps_the_first_of_the_others_that_can_answers() -> None:
    effect = {"": 0.0, "A": 2.0, "B": 3.0}
    means = {("x", c, t): [10.0 + effect[c] + t] for c in effect for t in (1.0, 3.0)}
    anchor = Anchor().fit(populations(means, FEATURES))

    mean, name = anchor.predict(ask("x", "A + B", 3.0), np.array(FEATURES["A + B"]))
    assert (name, mean.tolist()) == ("additive", [18.0])
    mean, name = anchor.predict(ask("x", "A", 2.0), np.zeros(2))  # features that ridge knows nothing of
    assert (name, mean.tolist()) == ("time interpolation", [14.0])
    mean, name = anchor.predict(ask("x", "", 2.0), np.zeros(2))
    assert (name, mean.tolist()) == ("time interpolation", [12.0])
    mean, name = anchor.predict(ask("x", "A @ 0.5", 1.0), np.array([0.5, 0.0]))
    assert name == "ridge"
    assert mean.item() == pytest.approx(12.0, abs=0.01)


def test_what_nothing_can_predict_is_refused_with_every_reason() -> None:
    anchor = Anchor().fit(two_pairs({"a1": 1.0}))
    reasons = (
        "^new, Z cannot be predicted: condition 'Z' was seen in no other context; 'Z' is not a combination; "
        "new, Z has no time; nothing in training resembles condition 'Z'$"
    )
    with pytest.raises(InputError, match=reasons):
        anchor.predict(ask("new", "Z"), NO_FEATURES)


def test_every_baseline_answers_to_its_name() -> None:
    """One question that all can answer, each with its own number."""
    means: dict[tuple[str, str, float | None], object] = {
        ("a", "", 1.0): [0.0],
        ("a", "", 3.0): [0.0],
        ("a", "A", 1.0): [1.0],
        ("a", "A", 3.0): [2.0],
        ("a", "B", 1.0): [10.0],
        ("a", "B", 3.0): [20.0],
        ("a", "A + B", 1.0): [111.0],
        ("a", "A + B", 3.0): [222.0],
        ("b", "", 2.0): [1.0],
        ("b", "A + B", 2.0): [501.0],
        ("c", "", 2.0): [3.0],
        ("c", "A + B", 2.0): [203.0],
        ("a", "", 2.0): [0.0],
        ("a", "A", 2.0): [4.0],
        ("a", "B", 2.0): [40.0],
    }
    made = populations(means, FEATURES)
    weights = np.exp([-1.0, -3.0])
    expected = {
        "no change": 0.0,
        "mean treated": (501 + 203) / 2,
        "mean shift": (500 + 200) / 2,
        "weighted shift": weights @ [500, 200] / weights.sum(),
        "additive": 44.0,
        "time interpolation": (111 + 222) / 2,
    }
    key, features = ask("a", "A + B", 2.0), np.array(FEATURES["A + B"])
    makers = {name: make for name, make in BASELINES.items() if name != "training mean"}
    found = {name: make().fit(made).predict(key, features).item() for name, make in makers.items()}
    assert BASELINES["training mean"]().fit(made).predict(ask("b", "A + B", 2.0), features).item() == 501.0
    with pytest.raises(CannotPredict, match=r"^a, A \+ B, time 2 was not seen in training$"):
        BASELINES["training mean"]().fit(made).predict(key, features)
    ridge = found.pop("ridge")
    assert found == pytest.approx(expected)
    assert 44.0 < ridge < 500.0  # a compromise of the singles and of the combination in other contexts
