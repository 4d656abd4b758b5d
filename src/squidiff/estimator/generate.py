"""Generates the cells of queries from source cells, with a fitted model."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from squidiff.config import InputError, NoiseLevel, Sampling, Schema
from squidiff.data.queries import FAR, OWN_COLUMNS, Query
from squidiff.data.table import CellTable
from squidiff.diffusion.samplers import SAMPLERS, invert_ddim, last
from squidiff.diffusion.schedule import sampling_levels
from squidiff.estimator.draws import choose, distinct, draw
from squidiff.estimator.fitted import Fitted, summarise
from squidiff.response.groups import Group
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shape import ZeroLaw, covary_as, move_to_mean, take_values
from squidiff.response.shift import CannotPredict
from squidiff.response.time import interpolate, times_around
from squidiff.response.uncertainty import Interval
from squidiff.response.variation import Relatives, Variation

N_TOGETHER = 10
"""Cells that are given the predicted mean together, at least, or all where fewer are to start from. A query for fewer
has the first of them: a single cell would be the mean itself."""
N_BLOCK = 2048
"""Cells generated at once, about: memory does not grow with the number that is asked for."""
PLAIN_STRENGTH = 0.9
"""Of plain generation, at least: so noised, training cells give cells that lie as far from them as true cells do."""
REPEATED_STRENGTH = 0.75
"""Of cells that start from few source cells, each of which is used many times: less noised, they are its copies."""
MAX_ASSIGNED = 1024
"""Cells that optimal transport pairs at once."""
MAX_NAMED = 20
"""Queries that cannot be predicted, beside the first."""


AnyPlan = TypeVar("AnyPlan")


class Unpredictable(InputError):
    """Some of the populations that are asked for cannot be predicted."""

    def __init__(self, message: str, reasons: dict[int, str]) -> None:
        super().__init__(message)
        self.reasons = reasons
        """Why, by the number of the query from 0 on."""


@dataclass(frozen=True)
class Plan:
    """One population to generate, understood."""

    index: int
    query: Query
    start: int
    """Index of the source population in the source table."""
    onward: tuple[int, float] | None
    """Of a time between two: the population after it, and how far the time lies on the way there."""
    mean: np.ndarray
    """(G,) the anchor."""
    predictor: str
    """Where the anchor is from."""
    interval: Interval
    """Of the mean shift."""
    far: str
    """In what the query lies far from training; '' where it does not."""
    condition: np.ndarray
    """(C,)"""
    relatives: Relatives
    """What tells how its cells vary, see `response.variation`."""
    is_plain: bool
    """Plain generation: the source cells are of the very population that is asked for, and must not be handed back."""


@dataclass(frozen=True)
class _Cells:
    """Source cells of one block and what they draw."""

    names: np.ndarray
    source: np.ndarray
    """N x G, that the network is told of and that the moved cells are of, unless they come from two populations."""
    given: np.ndarray
    """N x G, what each gene's values are made of."""
    start: np.ndarray | None
    """N x G, where the diffusion starts, before it is set around the anchor; None: halfway
    between the moved and the shifted cells."""
    lots: np.ndarray
    noise: np.ndarray


class Generator:
    """Plans and generates populations from one source table. What depends on the source population alone is kept.

    The cells of a query are the same whatever else is asked for, and in whatever order cells, genes and queries come:
    all that is random is bound to the names of source cells and genes, and all sums go over the cells in one order.
    """

    def __init__(
        self, fitted: Fitted, table: CellTable, schema: Schema, sampling: Sampling, paired: bool = False
    ) -> None:
        self.fitted, self.table, self.sampling, self.paired = fitted, table, sampling, paired
        self.starts = summarise(table, np.zeros((len(table.keys), fitted.encoder.n_features)), schema)
        self.names = distinct(table.names)
        self._order: dict[int, np.ndarray] = {}

    @cached_property
    def law(self) -> ZeroLaw:
        """How zero fractions follow the mean, over the training populations."""
        return ZeroLaw().fit(self.fitted.populations.mean, self.fitted.populations.zero_fraction)

    @cached_property
    def variation(self) -> Variation:
        """How conditions change the way in which cells vary."""
        fitted = self.fitted
        return Variation(fitted.populations, self.law, fitted.quantiles, fitted.non_negative, fitted.covariances)

    def plan(self, index: int, query: Query) -> Plan:
        """What will be generated for a query, from which cells. Raises InputError when it cannot be predicted."""
        key, starts = Population(*query.key), self.starts
        # cells of a population that training did not see are the answer, should the source hold them; only control
        # cells are always given
        known = self.fitted.populations.find(key) is not None or (starts.has_control and key.condition == "")
        start = starts.source(key, itself=known)
        if start is None:
            raise nothing_to_start_from(key, starts)
        source = Source(starts.keys[start], starts.mean[start])
        features = self.fitted.encoder.describe(query.parts)
        mean, predictor, group = self._answer(key, query, features, source)
        mean = np.where(self.fitted.non_negative, np.maximum(mean, 0.0), mean)
        condition = self.fitted.condition(key, features, source.mean, mean)
        is_plain = source.key == key
        if self.paired and is_plain and not starts.has_control:
            raise InputError(f"{key} starts from its own cells, which have no other future: leave out --paired")
        if self.sampling.first_level and self.paired:
            raise InputError("--paired and --first-level exclude each other: without the diffusion nothing is inverted")
        if self.sampling.first_level and is_plain and not starts.has_control:
            raise InputError(f"the first level of {key} are its own cells: leave out --first-level")
        if self.paired and query.n_cells is not None:
            raise InputError("n_cells has no use with --paired: there is one cell for each source cell")
        onward = None if self.paired or is_plain else self._onward(key, start)
        interval = self.fitted.uncertainty.interval(key, mean, group, source)
        far = "; ".join(self.fitted.uncertainty.far(key, features, source, group))
        is_new = is_plain and not self.paired
        relatives = Relatives()
        if is_treated(query) and not onward and not is_plain:
            relatives = self.variation.relatives(key, mean - source.mean)
        return Plan(index, query, start, onward, mean, predictor, interval, far, condition, relatives, is_new)

    def _answer(
        self, key: Population, query: Query, features: np.ndarray, source: Source
    ) -> tuple[np.ndarray, str, Group | None]:
        """The mean, where it is from, and the group that answered."""
        if len(query.parts) > 1:
            self.fitted.anchor.described |= {str(p): self.fitted.encoder.describe((p,)) for p in query.parts}
        if not query.parts or is_treated(query):
            return self.fitted.anchor.answer(key, features, source)
        untreated = key._replace(condition="")  # a drug at dose 0 changes nothing, but control cells change with time
        if source.key != untreated:
            try:
                return self.fitted.anchor.answer(untreated, np.zeros_like(features), source)
            except InputError:
                pass
        return source.mean, "no change", None

    def _onward(self, key: Population, start: int) -> tuple[int, float] | None:
        """The population after a time between two, if the one before it is what the prediction starts from."""
        if key.time is None:
            return None
        others = [i for i, other in enumerate(self.starts.keys) if other != key]
        try:
            before, after, share = times_around(self.starts.only(np.array(others)), key)
        except CannotPredict:
            return None
        return (others[after], share) if others[before] == start and share > 0 else None

    def n_blocks(self, plan: Plan) -> int:
        """Of a plan's cells."""
        return -(-self._n_made(plan) // (MAX_ASSIGNED if plan.onward else N_BLOCK))

    def _n_asked(self, plan: Plan) -> int:
        return plan.query.n_cells or int(self.starts.n_cells[plan.start])

    def _n_made(self, plan: Plan) -> int:
        return max(self._n_asked(plan), min(int(self.starts.n_cells[plan.start]), N_TOGETHER))

    def blocks(self, plan: Plan) -> Iterator[Callable[[], ad.AnnData]]:
        """What makes the cells of a plan, block by block; the same seed and source cells give the same cells."""
        zeros, mean = self.starts.zero_fraction[plan.start], self.starts.mean[plan.start]
        if plan.onward is not None:
            after, share = plan.onward
            zeros, mean = (
                (1 - share) * of[plan.start] + share * of[after] for of in (self.starts.zero_fraction, self.starts.mean)
            )
        zero_fraction = self.variation.zero_fraction(plan.relatives, self.law.follow(mean, zeros, plan.mean))
        n = self._n_made(plan)
        picks = [self._pick(plan.start, n)]
        if plan.onward is not None:
            picks.append(self._pick(plan.onward[0], n))
        for block in np.array_split(np.arange(n), self.n_blocks(plan)):
            picked = [(rows[block], rounds[block]) for rows, rounds in picks]
            yield functools.partial(self._made, plan, picked, zero_fraction, int(block[0]))

    def _made(
        self, plan: Plan, picked: list[tuple[np.ndarray, np.ndarray]], zero_fraction: np.ndarray, first: int
    ) -> ad.AnnData:
        """The cells of a block that begins with number `first` of its plan."""
        given = self._given(plan, picked)
        cells, z_sem = self._block(given, plan, zero_fraction)
        if not self.fitted.non_negative.all():
            cells = cells.toarray()
        names = given.names[: self._n_asked(plan) - first]
        part = annotated(cells, z_sem, names, self.fitted.genes, plan.index, plan.query, plan.predictor, first)
        part.obs[FAR] = plan.far
        for name, values in plan.interval.columns().items():
            part.varm[name] = pd.DataFrame({str(plan.index): values}, index=part.var_names)
        return part

    def _pick(self, population: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n source cells of a population, and for the how manyth time each is taken."""
        if population not in self._order:  # of many queries that start from the same cells
            rows = np.flatnonzero(self.table.population == population)
            self._order[population] = rows[choose(self.names[rows], len(rows), self.sampling.seed)[0]]
        rows = self._order[population]
        if n <= len(rows):
            return rows[:n], np.zeros(n, dtype=int)
        which, rounds = choose(self.names[rows], n, self.sampling.seed)
        return rows[which], rounds

    def _given(self, plan: Plan, picks: list[tuple[np.ndarray, np.ndarray]]) -> _Cells:
        """The source cells of a block, and what they draw.

        At a time between two the diffusion starts between pairs of cells, which optimal transport finds; the values of
        genes are those of cells from before and from after, as many of either as the time is near.
        """
        rows, rounds = picks[0]
        names, source = self.table.names[rows], self.table.dense(rows)
        lots, noise = draw(self.names[rows], rounds, self.fitted.genes, self.sampling.seed)
        if plan.onward is None:
            return _Cells(names, source, source, None, lots, noise)
        later, share = self.table.dense(picks[1][0]), plan.onward[1]
        is_later = np.diff(np.floor(share * np.arange(len(rows) + 1) + 0.5)) > 0  # evenly among the others
        mixed = np.where(is_later[:, None], later, source)
        return _Cells(names, source, mixed, interpolate(source, later, share), lots, noise)

    def _block(self, given: _Cells, plan: Plan, zero_fraction: np.ndarray) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells from source cells, their mean the anchor, and their latents (N x Z)."""
        fitted = self.fitted
        # what each gene's values are
        moved = move_to_mean(given.given, plan.mean, zero_fraction, fitted.quantiles, given.lots, fitted.highest)
        shifted = given.given + (plan.mean - given.given.mean(axis=0))
        moved = np.where(fitted.non_negative, moved, shifted)
        moved = self.variation.spread_out(plan.relatives, moved, plan.mean, fitted.highest).astype(np.float32)
        if self.sampling.first_level:
            return sp.csr_matrix(moved), self._encoded(given.source, plan).cpu().numpy()
        # the diffusion starts halfway: what is switched on by lot forgets how genes go together, what is shifted zeros
        start = (moved + shifted) / 2 if given.start is None else given.start + (plan.mean - given.start.mean(axis=0))
        cells, z_sem = self._denoised(given, start.astype(np.float32), plan)
        if plan.is_plain:  # the source cells are of this very population, and show how its genes go together
            cells = covary_as(cells, given.given, min(len(cells), int(self.starts.n_cells[plan.start])))
        cells = self.variation.correlate(plan.relatives, cells, given.source)
        return sp.csr_matrix(take_values(cells, moved)), z_sem

    @torch.no_grad()
    def _denoised(self, given: _Cells, start: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
        """Generated cells (N x G, unit of the data) and their latents (N x Z).

        From the start noised part of the way or, in pairs, from the noise that the denoiser would turn into the source
        cell, were it asked for what the source cell is.
        """
        network = self.fitted.network
        device = network.center.device
        levels = sampling_levels(self.sampling.n_sample_steps, self._strength(plan))
        anchor = torch.from_numpy(plan.mean.astype(np.float32)).to(device)
        cells, latents = [], []
        n = len(given.source)
        for chunk in np.array_split(np.arange(n), -(-n // self.sampling.cells_per_batch)):
            z_sem = self._encoded(given.source[chunk], plan)
            if self.paired:
                x_t = self._inverted(given.source[chunk], plan, levels)
            else:
                noise, moved = (torch.from_numpy(a[chunk]).to(device) for a in (given.noise, start))
                x_t = levels[0].sigma * noise + levels[0].alpha * network.standardise(moved, anchor)
            x0 = last(SAMPLERS[self._sampler](network.denoise(z_sem), x_t, levels))
            cells.append(network.restore(x0, anchor).cpu().numpy())
            latents.append(z_sem.cpu().numpy())
        return np.concatenate(cells), np.concatenate(latents)

    def _strength(self, plan: Plan) -> float:
        """More than is asked for where source cells are used several times, or given back as they are."""
        strength = self.sampling.strength
        if plan.is_plain:
            return max(PLAIN_STRENGTH, strength)
        repeated = 1 - min(1.0, int(self.starts.n_cells[plan.start]) / self._n_made(plan))
        return strength + repeated * max(REPEATED_STRENGTH - strength, 0.0)

    def _encoded(self, source: np.ndarray, plan: Plan) -> torch.Tensor:
        return self.fitted.encode(source, np.tile(plan.condition, (len(source), 1)))

    @property
    def _sampler(self) -> str:
        return "ddim" if self.paired else self.sampling.sampler  # the steps that `invert_ddim` goes back

    def _inverted(self, source: np.ndarray, plan: Plan, levels: list[NoiseLevel]) -> torch.Tensor:
        """Source cells (N x G) at the highest level, on the way that leads back to them under their own condition."""
        network, key = self.fitted.network, self.starts.keys[plan.start]
        mean = self.starts.mean[plan.start]
        seen = self.fitted.populations.find(key)
        features = np.zeros(self.fitted.encoder.n_features) if seen is None else self.fitted.populations.features[seen]
        own = self.fitted.condition(key, features, mean, mean)
        z_sem = self.fitted.encode(source, np.tile(own, (len(source), 1)))
        cells, anchor = (torch.from_numpy(a.astype(np.float32)).to(network.center.device) for a in (source, mean))
        clean = levels[-1].alpha * network.standardise(cells, anchor)
        return last(invert_ddim(network.denoise(z_sem), clean.float(), levels))


def is_treated(query: Query) -> bool:
    """Whether it asks for something given at a dose above 0."""
    return any(part.strength for part in query.parts)


def understood(queries: Sequence[Query], plan: Callable[[int, Query], AnyPlan]) -> list[AnyPlan]:
    """The plans of all queries, before one is generated. Raises Unpredictable, which names those that have none."""
    plans, errors = [], dict[int, InputError]()
    for i, query in enumerate(queries):
        try:
            plans.append(plan(i, query))
        except InputError as error:
            errors[i] = error
    if not errors:
        return plans
    first, error = next(iter(errors.items()))
    reasons = {i: str(error) for i, error in errors.items()}
    if len(queries) == 1:
        raise Unpredictable(str(error), reasons) from error
    others = [str(i + 1) for i in errors if i != first]
    named = ", ".join(others[:MAX_NAMED]) + (" and more" if len(others) > MAX_NAMED else "")
    also = f"; {len(others)} more of {len(queries)} queries cannot be predicted: {named}" if others else ""
    raise Unpredictable(f"query {first + 1}: {error}{also}", reasons) from error


def nothing_to_start_from(key: Population, starts: Populations) -> InputError:
    """Says which contexts the source has cells to start from in, those first that are most like the one asked for."""
    contexts = {start.context: start.values for start in starts.keys if start.condition == ""}
    if not contexts:
        return InputError("the source has no control cells to start from: add them")
    nowhere = [value for n, value in enumerate(key.values) if all(v[n : n + 1] != [value] for v in contexts.values())]
    alike = sorted(contexts, key=lambda name: (-sum(map(operator.eq, contexts[name], key.values)), name))
    names = list(map(repr, alike))
    there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    kind = "control cells" if starts.has_control else "cells"
    of_values = f", and none at all with {', '.join(map(repr, nowhere))}" if nowhere and len(key.values) > 1 else ""
    return InputError(f"the source has no {kind} to start from in context {key.context!r}{of_values}: it has {there}")


def annotated(
    cells: sp.csr_matrix | np.ndarray,
    z_sem: np.ndarray,
    source_names: np.ndarray,
    genes: tuple[str, ...],
    index: int,
    query: Query,
    predictor: str,
    first: int,
) -> ad.AnnData:
    """Predicted cells of one query from number `first` on, as many as there are names of source cells."""
    n_cells = len(source_names)
    columns = dict(zip(OWN_COLUMNS, (predictor, source_names, ""), strict=True)) | query.columns
    obs = pd.DataFrame(columns, index=pd.Index([f"{index}-{first + i}" for i in range(n_cells)]))
    predicted = ad.AnnData(X=cells[:n_cells], obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    predicted.obsm["X_z_sem"] = z_sem[:n_cells]
    return predicted
