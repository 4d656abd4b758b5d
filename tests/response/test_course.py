"""How a mean goes on, told by cells that are not all as far: exact where they lie on a line, else silent."""

from __future__ import annotations

import numpy as np
import pytest

from squidiff.response.course import courses
from squidiff.response.populations import MIN_CELLS, Population

WAY = np.array([2.0, -1.0, 0.5, 0.0])
N = 200


def on_their_way(times: list[float], context: str = "", n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells (n a time) spread evenly over a unit of time around each, on a line, with a little noise; their times."""
    rng = np.random.default_rng(seed)
    of_cell = np.concatenate([time + np.linspace(-0.5, 0.5, n) for time in times])
    return 10 + of_cell[:, None] * WAY + 0.01 * rng.standard_normal((len(of_cell), len(WAY))), np.repeat(times, n)


def keys_of(times: list[float], context: str = "", condition: str = "") -> tuple[Population, ...]:
    return tuple(Population(context, condition, time) for time in times)


def test_cells_on_a_line_tell_its_direction_at_every_time() -> None:
    times = [0.0, 1.0, 2.0]
    cells, of_cell = on_their_way(times)
    found = courses(cells, np.searchsorted(times, of_cell), keys_of(times)).change
    np.testing.assert_allclose(found, np.tile(WAY, (3, 1)), atol=0.02)


def test_a_bend_shows_in_the_directions_at_its_ends() -> None:
    """A gene that rises and falls again: x = z (2 - z) has slope 2 - 2 z, beside genes that tell the time."""
    times, rng = [0.0, 2.0], np.random.default_rng(1)
    z = np.concatenate([time + np.linspace(-0.5, 0.5, N) for time in times])
    cells = np.stack([z * (2 - z), *(z + 0.01 * rng.standard_normal(len(z)) for _ in range(20))], axis=1)
    found = courses(cells, np.repeat([0, 1], N), keys_of(times)).change
    np.testing.assert_allclose(found[:, 0], [2.0, -2.0], atol=0.05)
    np.testing.assert_allclose(found[:, 1:], 1.0, atol=0.05)


def test_each_context_has_its_own_course() -> None:
    times = [0.0, 1.0]
    cells, of_cell = on_their_way(times)
    population = np.concatenate([np.searchsorted(times, of_cell), 2 + np.searchsorted(times, of_cell)])
    found = courses(np.concatenate([cells, -cells]), population, keys_of(times, "a") + keys_of(times, "b")).change
    np.testing.assert_allclose(found, [*[WAY] * 2, *[-WAY] * 2], atol=0.02)


@pytest.mark.parametrize("n_others", [0, MIN_CELLS - 1])
def test_one_time_alone_or_few_cells_at_the_other_tell_nothing(n_others: int) -> None:
    cells, of_cell = on_their_way([0.0, 1.0])
    kept = slice(0, N + n_others)
    found = courses(cells[kept], np.searchsorted([0.0, 1.0], of_cell)[kept], keys_of([0.0, 1.0])).change
    assert not found.any()


def test_cells_without_a_time_or_all_alike_tell_nothing() -> None:
    cells, _ = on_their_way([0.0, 1.0])
    assert not courses(cells, np.repeat([0, 1], N), (Population("", "A", None), Population("", "B", None))).change.any()
    assert not courses(np.ones_like(cells), np.repeat([0, 1], N), keys_of([0.0, 1.0])).change.any()


def test_a_single_gene_tells_its_own_course() -> None:
    times = [0.0, 1.0, 2.0]
    cells, of_cell = on_their_way(times)
    found = courses(cells[:, :1], np.searchsorted(times, of_cell), keys_of(times)).change
    np.testing.assert_allclose(found, np.full((3, 1), WAY[0]), atol=0.02)


def test_times_far_from_zero_make_no_difference() -> None:
    times = [0.0, 1.0, 2.0]
    cells, of_cell = on_their_way(times)
    population = np.searchsorted(times, of_cell)
    near, far = (courses(cells, population, keys_of([t + start for t in times])).change for start in (0.0, 1e9))
    np.testing.assert_allclose(far, near, rtol=1e-5, atol=1e-5)


def test_the_noise_is_about_the_variance_of_the_change_over_cells_drawn_anew() -> None:
    """A little above it: the regression has seen the gene, and so agrees with it less than by chance."""
    times, changes, told = [0.0, 1.0], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        z = np.concatenate([time + np.linspace(-0.5, 0.5, N) for time in times])
        clock = z[:, None] + 0.05 * rng.standard_normal((2 * N, 20))
        cells = np.concatenate([rng.standard_normal((2 * N, 1)), clock], axis=1)  # a gene that knows nothing of time
        found = courses(cells, np.repeat([0, 1], N), keys_of(times))
        changes.append(found.change[:, 0])
        told.append(found.noise)
    ratio = np.var(changes, axis=0) / np.mean(told, axis=0)
    assert (ratio > 0.5).all()
    assert (ratio < 1.1).all()
