"""Additive: exact where effects add, whatever the order of the parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_populations import NO_FEATURES, ask, populations

from squidiff.config import InputError
from squidiff.response.combination import Additive

OWN = np.array([1.0, 2.0, 3.0])
EFFECT = {"A": np.array([0.5, 0.0, -1.0]), "B": np.array([0.25, 4.0, 0.0]), "C @ 0.1": np.array([0.0, -1.0, 1.5])}


@pytest.fixture
def additive() -> Additive:
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): OWN, ("b", "", None): 10 * OWN}
    means |= {("a", part, None): OWN + effect for part, effect in EFFECT.items()}
    means |= {("b", "A", None): 10 * OWN + 7.0, ("b", "D", None): OWN}
    return Additive().fit(populations(means))


@pytest.mark.parametrize("parts", [c for n in (2, 3) for c in itertools.permutations(EFFECT, n)])
def test_effects_that_add_are_exact_in_any_order(additive: Additive, parts: tuple[str, ...]) -> None:
    expected = OWN + sum(EFFECT[part] for part in parts)
    np.testing.assert_allclose(additive.predict(ask("a", " + ".join(parts)), NO_FEATURES), expected, atol=1e-14)


def test_a_part_twice_counts_twice_and_the_context_is_its_own(additive: Additive) -> None:
    np.testing.assert_allclose(additive.predict(ask("b", "A + A"), NO_FEATURES), 10 * OWN + 14.0, atol=1e-13)


def test_singles_of_the_same_time_count() -> None:
    means: dict[tuple[str, str, float | None], object] = {("", "", t): [10 * t] for t in (1.0, 2.0)}
    means |= {("", part, t): [10 * t + t * effect] for part, effect in (("A", 1.0), ("B", 3.0)) for t in (1.0, 2.0)}
    additive = Additive().fit(populations(means))
    for t in (1.0, 2.0):
        assert additive.predict(ask("", "A + B", t), NO_FEATURES).tolist() == [10 * t + 4 * t]


def test_what_cannot_be_added_is_refused(additive: Additive) -> None:
    with pytest.raises(InputError, match=r"^'A' is not a combination$"):
        additive.predict(ask("a", "A"), NO_FEATURES)
    with pytest.raises(InputError, match="'D' was not seen alone in context 'a'"):
        additive.predict(ask("a", "A + D"), NO_FEATURES)
    with pytest.raises(InputError, match="no cells to start from for c, A"):
        additive.predict(ask("c", "A + B"), NO_FEATURES)
