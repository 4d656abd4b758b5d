"""The mean under a combination, from its parts seen singly."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from squidiff.config import PART_SEPARATOR
from squidiff.response.noise import beyond_noise, cautions, steadied
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict


class Additive:
    """The source mean plus the shift of every part, each as seen singly in the same context."""

    def fit(self, populations: Populations) -> Additive:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        return np.asarray(source.mean + _shifts_of_parts(self.populations, key).sum(axis=0))


class _Measured(NamedTuple):
    """What the populations of one context and time tell of their control cells, shifts and noise."""

    control: np.ndarray
    """(G,) the mean of the control cells, steadied by all."""
    measured: np.ndarray
    """(G,) the same as measured."""
    noise: np.ndarray
    """(G,) of that."""
    shifts: dict[int, np.ndarray]
    """(G,) by population, as far as they stand out of noise."""

    @classmethod
    def of(cls, populations: Populations, context: str, time: float | None) -> _Measured:
        here = [i for i, key in enumerate(populations.keys) if (key.context, key.time) == (context, time)]
        treated = [i for i in here if populations.keys[i].condition and populations.sources[i] >= 0]
        start = int(populations.sources[treated[0]])
        rows = [start, *populations.reliable(treated)]
        n_cells, variance = populations.n_cells, populations.pooled_over(rows)
        control, left = steadied(populations.mean[rows], variance, n_cells[rows])
        # one cell that shows a gene which no other does is no sign of a shift: its own population's variance says so
        around = (variance + populations.variance[treated]) / 2
        shifts, noise = populations.mean[treated] - control, around / n_cells[treated, None] + left
        filtered = beyond_noise(shifts, noise, cautions(shifts, noise)[:, None])
        shifts_of = dict(zip(treated, filtered, strict=True))
        return cls(control, populations.mean[start], variance / n_cells[start], shifts_of)


class MeasuredParts:
    """As `Additive`, of what each part's shift shows beyond the noise of few cells; falls act one upon the other.

    Control cells are few as well: what all populations of the context and time agree in is their mean too
    (`steadied`), or the noise of one mean would stand in the shift of every part. How much of a shift is kept, it and
    the other shifts of the context and time tell (`cautions`).

    Of two parts of which each leaves a third of a gene, both leave a ninth: a gene so never falls below 0. Rises add.
    Where means are negative, falls add as well.
    """

    def fit(self, populations: Populations) -> MeasuredParts:
        self.populations, self.in_proportion = populations, populations.mean.min() >= 0
        self._known: dict[tuple[str, float | None], _Measured] = {}
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        parts = _parts_alone(self.populations, key)
        known = self._measured(key.context, key.time)
        shifts = np.stack([known.shifts[i] for i in parts])
        # the cells to start from are those of training, whose noise is known, or others, which may well lie elsewhere
        start = known.control + beyond_noise(source.mean - known.measured, 2 * known.noise)
        if not self.in_proportion:
            return np.asarray(start + shifts.sum(axis=0))
        start = np.maximum(start, 0.0)
        falls = np.divide(np.minimum(shifts, 0.0), known.control, out=np.zeros_like(shifts), where=known.control > 0)
        return np.asarray(start * (1 + falls).prod(axis=0) + np.maximum(shifts, 0.0).sum(axis=0))

    def _measured(self, context: str, time: float | None) -> _Measured:
        if (context, time) not in self._known:
            self._known[context, time] = _Measured.of(self.populations, context, time)
        return self._known[context, time]


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
        parts = _parts(key)
        seen = [
            i for i in self.populations.treated_at.get((key.context, key.time), []) if self.populations.keys[i] != key
        ]
        counts = [Counter(self.populations.keys[i].condition.split(PART_SEPARATOR)) for i in seen]
        names = sorted(set().union(*counts))
        if not set(parts) <= set(names):
            raise CannotPredict(f"{sorted(set(parts) - set(names))[0]!r} was not seen in context {key.context!r}")
        design = np.array([[of[name] for name in names] for of in counts], dtype=float)
        wanted = np.array([parts.count(name) for name in names], dtype=float)
        weights = wanted @ np.linalg.pinv(design)  # how much each seen shift counts: the effects of least norm
        if not np.allclose(weights @ design, wanted, atol=1e-8):
            raise CannotPredict(f"what context {key.context!r} saw does not tell the parts of {key.condition!r} apart")
        return np.asarray(source.mean + weights @ self.populations.shifts(seen))


def _parts(key: Population) -> list[str]:
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
    for part in _parts(key):
        i = populations.find(key._replace(condition=part))
        if i is None or populations.sources[i] < 0:
            raise CannotPredict(f"{part!r} was not seen alone in context {key.context!r}")
        found.append(i)
    return found
