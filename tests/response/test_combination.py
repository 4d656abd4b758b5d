"""Additive: exact where effects add, whatever the order of the parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from made_populations import NO_FEATURES, answer, ask, populations

from squidiff.config import InputError
from squidiff.response.combination import Additive
from squidiff.response.populations import Populations, Source

OWN = np.array([1.0, 2.0, 3.0])
EFFECT = {"A": np.array([0.5, 0.0, -1.0]), "B": np.array([0.25, 4.0, 0.0]), "C @ 0.1": np.array([0.0, -1.0, 1.5])}


@pytest.fixture
def made() -> Populations:
    means: dict[tuple[str, str, float | None], object] = {("a", "", None): OWN, ("b", "", None): 10 * OWN}
    means |= {("a", part, None): OWN + effect for part, effect in EFFECT.items()}
    means |= {("b", "A", None): 10 * OWN + 7.0, ("b", "D", None): OWN}
    return populations(means)


@pytest.mark.parametrize("parts", [c for n in (2, 3) for c in itertools.permutations(EFFECT, n)])
def test_effects_that_add_are_exact_in_any_order(made: Populations, parts: tuple[str, ...]) -> None:
    expected = OWN + sum(EFFECT[part] for part in parts)
    np.testing.assert_allclose(answer(Additive(), made, ask("a", " + ".join(parts))), expected, atol=1e-14)


def test_a_part_twice_counts_twice_and_the_context_is_its_own(made: Populations) -> None:
    np.testing.assert_allclose(answer(Additive(), made, ask("b", "A + A")), 10 * OWN + 14.0, atol=1e-13)


def test_singles_of_the_same_time_count() -> None:
    means: dict[tuple[str, str, float | None], object] = {("", "", t): [10 * t] for t in (1.0, 2.0)}
    means |= {("", part, t): [10 * t + t * effect] for part, effect in (("A", 1.0), ("B", 3.0)) for t in (1.0, 2.0)}
    made = populations(means)
    for t in (1.0, 2.0):
        assert answer(Additive(), made, ask("", "A + B", t)).tolist() == [10 * t + 4 * t]


def test_what_cannot_be_added_is_refused(made: Populations) -> None:
    with pytest.raises(InputError, match=r"^'A' is not a combination$"):
        answer(Additive(), made, ask("a", "A"))
    with pytest.raises(InputError, match="'D' was not seen alone in context 'a'"):
        answer(Additive(), made, ask("a", "A + D"))


def test_other_cells_to_start_from_keep_the_shifts(made: Populations) -> None:
    """The source may be other control cells than those of training."""
    found = Additive().fit(made).predict(ask("a", "A + B"), NO_FEATURES, Source(ask("a", ""), OWN + 5.0))
    np.testing.assert_allclose(found, OWN + 5.0 + EFFECT["A"] + EFFECT["B"], atol=1e-14)
