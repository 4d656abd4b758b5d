"""Interpolation in time: exact on straight lines, constant beyond what was seen."""

from __future__ import annotations

import numpy as np
import pytest
from made_populations import NO_FEATURES, ask, populations

from squidiff.config import InputError
from squidiff.response.time import TimeInterpolation

START, SLOPE = np.array([1.0, 0.0, 5.0]), np.array([0.5, 2.0, -1.0])
TIMES = (6.0, 0.0, 24.0, 12.0)  # in no order


@pytest.fixture
def line() -> TimeInterpolation:
    means: dict[tuple[str, str, float | None], object] = {("a", "", t): START + t * SLOPE for t in TIMES}
    means |= {("b", "", t): [99.0, 99.0, 99.0] for t in (1.0, 7.0)} | {("a", "X", 3.0): [-5.0, -5.0, -5.0]}
    return TimeInterpolation().fit(populations(means, has_control=False))


@pytest.mark.parametrize("time", [0.0, 0.1, 3.0, 6.0, 8.5, 12.0, 23.0, 24.0])
def test_a_straight_line_is_exact(line: TimeInterpolation, time: float) -> None:
    np.testing.assert_allclose(line.predict(ask("a", "", time), NO_FEATURES), START + time * SLOPE, atol=1e-13)


@pytest.mark.parametrize(("time", "end"), [(-3.0, 0.0), (24.1, 24.0), (1e6, 24.0)])
def test_beyond_the_times_seen_it_stays_at_the_end(line: TimeInterpolation, time: float, end: float) -> None:
    np.testing.assert_allclose(line.predict(ask("a", "", time), NO_FEATURES), START + end * SLOPE, atol=1e-13)


@pytest.mark.parametrize("time", [0.0, 3.0, 9.0])
def test_a_single_time_is_all_there_is(line: TimeInterpolation, time: float) -> None:
    assert line.predict(ask("a", "X", time), NO_FEATURES).tolist() == [-5.0, -5.0, -5.0]


def test_only_the_neighbours_in_time_count() -> None:
    bent = populations({("", "", 0.0): [0.0], ("", "", 1.0): [10.0], ("", "", 2.0): [0.0], ("", "", 3.0): [-6.0]})
    found = [TimeInterpolation().fit(bent).predict(ask("", "", t), NO_FEATURES).item() for t in (0.25, 1.5, 2.5)]
    assert found == pytest.approx([2.5, 5.0, -3.0])


def test_without_a_time_or_without_cells_it_refuses(line: TimeInterpolation) -> None:
    with pytest.raises(InputError, match=r"^a has no time$"):
        line.predict(ask("a", ""), NO_FEATURES)
    with pytest.raises(InputError, match=r"^b, X was seen at no time$"):
        line.predict(ask("b", "X", 3.0), NO_FEATURES)
