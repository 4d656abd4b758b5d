"""The mean under a combination, from its parts seen singly."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from squidiff.config import PART_SEPARATOR
from squidiff.response.embedding import Linear
from squidiff.response.noise import CAUTIONS, beyond_noise, risks, steadied
from squidiff.response.populations import MIN_CELLS, Population, Populations, Source
from squidiff.response.shift import CannotPredict, drawn

MAX_ASKED = 200
"""Populations that tell what the control cells' mean and the size of noise are."""


class Additive:
    """The source mean plus the shift of every part, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> Additive:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return np.asarray(source.mean + _shifts_of_parts(self.populations, key).sum(axis=0))


class _Context:
    """What the populations of one context and time tell of their control cells, of shifts and of noise."""

    def __init__(self, populations: Populations, context: str, time: float | None) -> None:
        self.populations = populations
        here = [i for i, key in enumerate(populations.keys) if (key.context, key.time) == (context, time)]
        treated = [i for i in here if populations.keys[i].condition and populations.sources[i] >= 0]
        treated = populations.reliable(treated)
        start = int(populations.sources[treated[0]])
        rows = [start, *drawn(treated, MAX_ASKED)]  # so that memory does not grow with a screen
        n_cells, self.variance = populations.n_cells[rows], populations.pooled_over(rows)
        self.measured, self.noise = populations.mean[start], self.variance / n_cells[0]
        self.control, self.noise_left = self.measured, self.noise
        if populations.keys[start].time == time:  # else all others differ from it by what time does
            self.control, self.noise_left = steadied(populations.mean[rows], self.variance, n_cells)
        # one shift tells but roughly how much of it is noise: all of them together tell it better
        self.usual_risks = np.mean([risks(*self._measured_shift(i)) for i in rows[1:]], axis=0)

    def shift(self, index: int) -> np.ndarray:
        """(G,) from the steadied control cells to a population, as far as it stands out of noise."""
        shift, noise = self._measured_shift(index)
        return beyond_noise(shift, noise, CAUTIONS[int(np.argmin(risks(shift, noise) + self.usual_risks))])

    def _measured_shift(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """And the variance of its noise, both (G,)."""
        populations, n = self.populations, self.populations.n_cells[index]
        # half by the population's own variance: one cell that shows a gene which no other does is no sign of a shift
        own = populations.variance[index] * n / (n - 1) if n >= MIN_CELLS else self.variance
        return populations.mean[index] - self.control, (self.variance + own) / (2 * n) + self.noise_left


class Summed(NamedTuple):
    """The mean under a combination as its parts make it up, and what it is made of, each (G,)."""

    mean: np.ndarray
    start: np.ndarray
    """Of the cells without any part."""
    largest: np.ndarray
    """The largest shift of a part, either way."""


class MeasuredParts:
    """As `Additive`, of what each part's shift shows beyond the noise of few cells; falls act one upon the other.

    Control cells are few as well: what all populations of the context and time agree in is their mean too
    (`steadied`), or the noise of one mean would stand in the shift of every part. How much of a shift is kept, it and
    the other shifts of the context and time tell (`risks`).

    Of two parts of which each leaves a third of a gene, both leave a ninth: a gene so never falls below 0. Rises add.
    Where means are negative, falls add as well.
    """

    def fit(self, populations: Populations) -> MeasuredParts:
        self.populations, self.in_proportion = populations, populations.is_non_negative
        self._contexts: dict[tuple[str, float | None], _Context] = {}
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return self.summed(key, source).mean

    def summed(self, key: Population, source: Source) -> Summed:
        """The mean of a combination, and what it is made of. Raises CannotPredict where a part was not seen alone."""
        parts, known = _parts_alone(self.populations, key), self._context(key)
        return self.sum_of(self.start(key, source), known.control, np.stack([known.shift(i) for i in parts]))

    def start(self, key: Population, source: Source) -> np.ndarray:
        """(G,) the mean of the cells to start from, steadied, in a context that answered to something.

        They are those of training, whose noise is known, or others, which may well lie elsewhere.
        """
        known = self._context(key)
        return known.control + beyond_noise(source.mean - known.measured, 2 * known.noise)

    def shift_of_part(self, key: Population, start: np.ndarray) -> np.ndarray | None:
        """(G,) what a part's shift shows beyond noise, of cells of mean `start`; None where it was not seen alone."""
        found = alone(self.populations, key)
        if found is None:
            return None
        shift, control = self._context(key).shift(found), self._context(key).control
        return np.where(shift < 0, _in_proportion(shift, control) * start, shift) if self.in_proportion else shift

    def _context(self, key: Population) -> _Context:
        here = key.context, key.time
        if here not in self._contexts:
            self._contexts[here] = _Context(self.populations, *here)
        return self._contexts[here]

    def sum_of(self, start: np.ndarray, control: np.ndarray, shifts: np.ndarray) -> Summed:
        """From the cells of `start`, the shifts of parts (parts x G) that were measured from `control`."""
        largest = np.take_along_axis(shifts, np.abs(shifts).argmax(axis=0)[None], axis=0)[0]
        if not self.in_proportion:
            return Summed(start + shifts.sum(axis=0), start, largest)
        start = np.maximum(start, 0.0)
        falls = np.maximum(_in_proportion(np.minimum(shifts, 0.0), control), -1.0)
        return Summed(start * (1 + falls).prod(axis=0) + np.maximum(shifts, 0.0).sum(axis=0), start, largest)


def _in_proportion(shifts: np.ndarray, control: np.ndarray) -> np.ndarray:
    return np.divide(shifts, control, out=np.zeros_like(shifts), where=control > 0)


class MeanOfParts:
    """The source mean plus the mean shift of the parts, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> MeanOfParts:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return np.asarray(source.mean + _shifts_of_parts(self.populations, key).mean(axis=0))


class LinearParts:
    """The source mean plus the parts' effects by least squares over all that the same context saw, singly or combined.

    A part so counts that was seen only within combinations, where these tell its effect from that of the others.
    """

    def fit(self, populations: Populations) -> LinearParts:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        seen, design, wanted = _counted_parts(self.populations, key)
        weights = wanted @ np.linalg.pinv(design)  # how much each seen shift counts: the effects of least norm
        if not np.allclose(weights @ design, wanted, atol=1e-8):
            raise CannotPredict(f"what context {key.context!r} saw does not tell the parts of {key.condition!r} apart")
        return np.asarray(source.mean + weights @ self.populations.shifts(seen))


class RidgeParts:
    """The same by ridge regression about a common effect of a part.

    The penalty is chosen once a context, by leaving out single populations of all that it saw.
    """

    def fit(self, populations: Populations) -> RidgeParts:
        self.populations, self._penalties = populations, dict[tuple[str, float | None], float]()
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        seen, design, wanted = _counted_parts(self.populations, key)
        here = key.context, key.time
        if here not in self._penalties:
            rows = self.populations.treated_at[here]
            self._penalties[here] = self._fitted(rows, _design(self.populations, rows)[1]).penalty
        linear = self._fitted(seen, design, self._penalties[here])
        return np.asarray(source.mean + linear.predict(wanted.sum(keepdims=True), wanted))

    def _fitted(self, rows: list[int], design: np.ndarray, penalty: float | None = None) -> Linear:
        return Linear.fit(design.sum(axis=1, keepdims=True), design, self.populations.shifts(rows), penalty)


def _counted_parts(populations: Populations, key: Population) -> tuple[list[int], np.ndarray, np.ndarray]:
    """All others that the context saw, how often each part is in them (n x P), and in what is asked for (P,)."""
    parts = parts_of(key)
    seen = [i for i in populations.treated_at.get((key.context, key.time), []) if populations.keys[i] != key]
    names, design = _design(populations, seen)
    if not set(parts) <= set(names):
        raise CannotPredict(f"{sorted(set(parts) - set(names))[0]!r} was not seen in context {key.context!r}")
    return seen, design, np.array([parts.count(name) for name in names], dtype=float)


def _design(populations: Populations, rows: list[int]) -> tuple[list[str], np.ndarray]:
    """The parts of some populations, and how often each is in each, n x P."""
    counts = [Counter(populations.keys[i].condition.split(PART_SEPARATOR)) for i in rows]
    names = sorted(set().union(*counts))
    return names, np.array([[of[name] for name in names] for of in counts], dtype=float)


def parts_of(key: Population) -> list[str]:
    """Of a combination. Raises CannotPredict for a single condition."""
    parts = key.condition.split(PART_SEPARATOR)
    if len(parts) < 2:
        raise CannotPredict(f"{key.condition!r} is not a combination")
    return parts


def _shifts_of_parts(populations: Populations, key: Population) -> np.ndarray:
    """Of the parts seen singly in the context, parts x G."""
    return populations.shifts(_parts_alone(populations, key))


def _parts_alone(populations: Populations, key: Population) -> list[int]:
    """The populations of the parts seen singly in the context."""
    found = []
    for part in parts_of(key):
        i = alone(populations, key._replace(condition=part))
        if i is None:
            raise CannotPredict(f"{part!r} was not seen alone in context {key.context!r}")
        found.append(i)
    return found


def alone(populations: Populations, key: Population) -> int | None:
    """The population of a part, None where it was not seen or has no control cells."""
    found = populations.find(key)
    return None if found is None or populations.sources[found] < 0 else found
