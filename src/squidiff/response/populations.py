"""Populations of cells, summarised: what the predictors of the mean response learn from, and what they are asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from squidiff.config import CONTEXT_SEPARATOR
from squidiff.response.shape import LARGEST_LOGARITHM

if TYPE_CHECKING:
    from squidiff.response.course import Course
    from squidiff.response.parts import Parts

MIN_CELLS = 10
"""Of a population that others are predicted from: the mean of fewer is mostly noise."""
LEAST_LEFT = 0.1
"""Of a mean, after a fall by some amount: a gene that is low here would be switched off, and vary no more."""


class Population(NamedTuple):
    """Cells that share context, condition and time; also the question "what would these cells be?"."""

    context: str
    """The context columns' values; '' without context columns."""
    condition: str
    """The condition in its canonical spelling; '' for control cells and where there is no condition."""
    time: float | None
    """None where there is no time."""

    @property
    def values(self) -> list[str]:
        """Of the context columns, each."""
        return self.context.split(CONTEXT_SEPARATOR)

    def __str__(self) -> str:
        parts = [self.context, self.condition, "" if self.time is None else f"time {self.time:.12g}"]
        return ", ".join(p for p in parts if p) or "all cells"


class Source(NamedTuple):
    """The cells that a prediction starts from."""

    key: Population
    mean: np.ndarray
    """(G,)"""


@dataclass(frozen=True)
class Populations:
    """P populations of G genes, described by C condition features each."""

    keys: tuple[Population, ...]
    features: np.ndarray
    """P x C, see `data.conditions.ConditionEncoder.encode`; 0 for control cells."""
    mean: np.ndarray
    """P x G"""
    zero_fraction: np.ndarray
    """P x G"""
    n_cells: np.ndarray
    """(P,)"""
    has_control: bool
    """Whether a condition of '' marks control cells (else it only says that there is no condition column)."""
    variance: np.ndarray
    """P x G, over the cells of each: what the noise of its mean is made of."""
    genes: tuple[str, ...] = ()
    """Their names, (G,); () where nothing asks for them."""
    course: Course | None = None
    """How their means go on, see `response.course`; None where nothing asks for it."""
    parts: Parts | None = None
    """Of populations, see `response.parts`; None where nothing asks for them."""

    @classmethod
    def summarise(
        cls,
        blocks: Iterable[np.ndarray | sp.csr_matrix],
        population: np.ndarray,
        keys: tuple[Population, ...],
        features: np.ndarray,
        has_control: bool,
        genes: tuple[str, ...] = (),
    ) -> Populations:
        """Summaries of cells (N x G, in consecutive blocks), each of the population whose index is given (N,).

        Every population has a cell.
        """
        n_cells = np.bincount(population, minlength=len(keys))
        mean = nonzero = squares = np.zeros(0)
        first = 0
        for block in blocks:
            if first == 0:
                mean, nonzero, squares = np.zeros((3, len(keys), block.shape[1]))
            here, index = np.unique(population[first : first + block.shape[0]], return_inverse=True)
            member = sp.csr_matrix((1.0 / n_cells[here][index], (index, np.arange(len(index)))))
            mean[here] += _dense(member @ block)
            nonzero[here] += _dense(member @ (block != 0).astype(np.float32))
            squared = block.power(2) if isinstance(block, sp.csr_matrix) else np.square(block)
            squares[here] += _dense(member @ squared)
            first += len(index)
        variance = np.maximum(squares - np.square(mean), 0.0)
        return cls(keys, features, mean, np.clip(1.0 - nonzero, 0.0, 1.0), n_cells, has_control, variance, genes)

    def joined(self, others: Populations) -> Populations:
        """Both, with the cells of equal keys as one population; the features of `others` where both have some.

        A population that both have whole, as control cells that are given again beside new conditions, counts once.
        Features are of one length, and genes the same. They have no parts, since those of both are not the same ones.
        """
        keys = tuple(dict.fromkeys((*self.keys, *others.keys)))
        parts = [(of, [of.find(key) for key in keys]) for of in (self, others)]
        n = np.array([[0 if i is None else of.n_cells[i] for i in rows] for of, rows in parts])
        of_both = list(zip(parts[0][1], parts[1][1], strict=True))
        n[0, [self._is_same(i, others, j) for i, j in of_both]] = 0
        share = (n / n.sum(axis=0))[:, :, None]

        def pooled(values: Callable[[Populations], np.ndarray]) -> np.ndarray:
            of_each = [np.stack([values(of)[i or 0] for i in rows]) for of, rows in parts]
            return np.asarray((share * of_each).sum(axis=0))

        mean = pooled(lambda of: of.mean)
        variance = pooled(lambda of: of.variance + np.square(of.mean)) - np.square(mean)
        rows = [(self, i) if j is None else (others, j) for i, j in of_both]
        features = np.stack([of.features[i or 0] for of, i in rows])
        zeros, variance = pooled(lambda of: of.zero_fraction), np.maximum(variance, 0.0)
        course = None
        if self.course is not None and others.course is not None:
            course = self.course.joined(others.course, of_both)
        return Populations(keys, features, mean, zeros, n.sum(axis=0), self.has_control, variance, self.genes, course)

    def _is_same(self, i: int | None, others: Populations, j: int | None) -> bool:
        """Whether one's cells are the other's, but for the rounding of sums in another order."""
        if i is None or j is None or self.n_cells[i] != others.n_cells[j]:
            return False
        of_both = (self.mean[i], others.mean[j]), (self.variance[i], others.variance[j])
        return all(np.allclose(one, other, rtol=1e-4, atol=1e-6) for one, other in of_both)

    def only(self, indices: np.ndarray) -> Populations:
        """Some of them."""
        return Populations(
            tuple(self.keys[i] for i in indices),
            self.features[indices],
            self.mean[indices],
            self.zero_fraction[indices],
            self.n_cells[indices],
            self.has_control,
            self.variance[indices],
            self.genes,
            None if self.course is None else self.course.only(indices),
            None if self.parts is None else self.parts.only(indices),
        )

    def find(self, key: Population) -> int | None:
        """The index of a population, None if there is none of that key."""
        return self._index.get(key)

    def source(self, key: Population, *, itself: bool = True) -> int | None:
        """The index of the population that a prediction of `key` starts from; None when there is none.

        With a control, the control cells of the same context (at the same time, or else the nearest); with time alone,
        the cells of the nearest earlier time, or of the earliest; in plain generation, the cells of the same context.
        Without `itself`, the population of that very key does not count.
        """
        same = [i for i in self._without_condition.get(key.context, []) if itself or self.keys[i] != key]
        if not same:
            return None
        if key.time is None:
            return same[0]
        same = sorted(self.reliable(same), key=lambda i: self.keys[i].time or 0.0)  # of two as near, the earlier one
        times = np.array([self.keys[i].time for i in same], dtype=float)
        earlier = times < key.time
        if self.has_control or not earlier.any():
            return same[int(np.argmin(np.abs(times - key.time)))]
        return same[int(np.argmax(np.where(earlier, times, -np.inf)))]

    @cached_property
    def sources(self) -> np.ndarray:
        """(P,) the index of each population's own source; -1 where it has none."""
        found = (self.source(key) for key in self.keys)
        return np.array([-1 if i is None else i for i in found])

    def source_of(self, index: int) -> Source | None:
        """The source of one of these populations."""
        i = int(self.sources[index])
        return None if i < 0 else Source(self.keys[i], self.mean[i])

    def shifts(self, indices: Sequence[int]) -> np.ndarray:
        """From their sources, of populations that have one, populations x G."""
        chosen = list(indices)
        return np.asarray(self.mean[chosen] - self.mean[self.sources[chosen]])

    @cached_property
    def pooled_variance(self) -> np.ndarray:
        """(G,) within populations, over all cells: less noisy than one of few cells."""
        return self.pooled_over(slice(None))

    def pooled_over(self, indices: list[int] | slice) -> np.ndarray:
        """The same of some of them."""
        n_cells = self.n_cells[indices]
        return np.asarray(n_cells / n_cells.sum() @ self.variance[indices])

    def variance_of(self, index: int) -> np.ndarray:
        """(G,) of the cells of one population; over all, where these are too few or do not show a gene."""
        n = self.n_cells[index]
        if n < MIN_CELLS:
            return self.pooled_variance
        own = self.variance[index] * n / (n - 1)
        return np.where(own > 0, own, self.pooled_variance)

    def noise(self, indices: Sequence[int]) -> np.ndarray:
        """The variances of what sampling of cells adds to their `shifts`, populations x G."""
        chosen = list(indices)
        each = 1 / self.n_cells[chosen] + 1 / self.n_cells[self.sources[chosen]]
        return np.asarray(each[:, None] * self.pooled_variance)

    @cached_property
    def treated(self) -> list[int]:
        """The populations under a condition that have a source, those of enough cells if there are such."""
        return self.reliable([i for i, key in enumerate(self.keys) if key.condition and self.sources[i] >= 0])

    @cached_property
    def treated_at(self) -> dict[tuple[str, float | None], list[int]]:
        """The same by context and time."""
        groups: dict[tuple[str, float | None], list[int]] = defaultdict(list)
        for i in self.treated:
            groups[self.keys[i].context, self.keys[i].time].append(i)
        return dict(groups)

    def elsewhere(self, key: Population) -> list[int]:
        """The populations of other contexts under the same condition at the same time that have a source.

        Only those of enough cells, and with a source of enough cells, unless there is none such.
        """
        same = self._by_condition.get((key.condition, key.time), [])
        others = [i for i in same if self.keys[i].context != key.context and self.sources[i] >= 0]
        enough = [i for i in others if min(self.n_cells[i], self.n_cells[self.sources[i]]) >= MIN_CELLS]
        return enough or others

    def over_time(self, context: str, condition: str) -> list[int]:
        """The populations of a context under a condition, by time."""
        of_condition = self._by_context.get((context, condition), [])
        return sorted(of_condition, key=lambda i: self.keys[i].time or 0.0)

    def name_of(self, index: int) -> tuple[str, str, float]:
        """What populations can be put into an order by, whatever order they are in."""
        key = self.keys[index]
        return key.context, key.condition, key.time or 0.0

    def reliable(self, indices: Sequence[int]) -> list[int]:
        """Those of the populations that have enough cells for a mean, or all when none has."""
        return [i for i in indices if self.n_cells[i] >= MIN_CELLS] or list(indices)

    @cached_property
    def time_span(self) -> tuple[float, float] | None:
        """Earliest and latest time; None without any."""
        times = [key.time for key in self.keys if key.time is not None]
        return (min(times), max(times)) if times else None

    @cached_property
    def features_of(self) -> dict[str, np.ndarray]:
        """What describes each condition."""
        return dict(zip((key.condition for key in self.keys), self.features, strict=True))

    @cached_property
    def is_non_negative(self) -> bool:
        """Whether no mean is below 0."""
        return bool(self.mean.min() >= 0)

    @cached_property
    def are_logarithms(self) -> bool:
        """Whether means may be those of logarithms of counts."""
        return self.is_non_negative and bool(self.mean.max() <= LARGEST_LOGARITHM)

    def bounded(self, mean: np.ndarray, start: np.ndarray) -> np.ndarray:
        """A mean that is `start` and a change, no lower than LEAST_LEFT of `start` where none of these is below 0."""
        return np.maximum(mean, LEAST_LEFT * np.maximum(start, 0.0)) if self.is_non_negative else mean

    @cached_property
    def contexts(self) -> tuple[str, ...]:
        """Every context once."""
        return tuple(dict.fromkeys(key.context for key in self.keys))

    @cached_property
    def _index(self) -> dict[Population, int]:
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def _without_condition(self) -> dict[str, list[int]]:
        return self._grouped(lambda key: key.context if key.condition == "" else None)

    @cached_property
    def _by_condition(self) -> dict[tuple[str, float | None], list[int]]:
        return self._grouped(lambda key: (key.condition, key.time))

    @cached_property
    def _by_context(self) -> dict[tuple[str, str], list[int]]:
        return self._grouped(lambda key: (key.context, key.condition))

    def _grouped(self, of: Any) -> dict[Any, list[int]]:
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, key in enumerate(self.keys):
            group = of(key)
            if group is not None:
                groups[group].append(i)
        return dict(groups)


def draw_rows(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of the rows in random order; each as often as any other, give or take one."""
    whole, rest = divmod(n, len(rows))
    return np.concatenate([*(rng.permutation(rows) for _ in range(whole)), rng.permutation(rows)[:rest]])


def _dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix, dtype=np.float64)
