"""Generates the cells of queries from source cells, with a fitted model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from squidiff.config import InputError, Sampling, Schema
from squidiff.data.queries import OWN_COLUMNS, Query
from squidiff.data.table import CellTable
from squidiff.diffusion.samplers import SAMPLERS, last
from squidiff.diffusion.schedule import sampling_levels
from squidiff.estimator.fitted import Fitted, summarise
from squidiff.response.populations import Population, Populations, Source, draw_rows
from squidiff.response.shape import ZeroLaw, move_to_mean, take_values
from squidiff.response.stack import Anchor

N_REFERENCE = 256
"""Cells generated at least for a query, so that one cell does not depend on how few are asked for."""
N_BLOCK = 4096
"""Cells generated at once, about: memory does not grow with the number that is asked for."""
MAX_DONORS = 2000
"""Cells whose values may switch on a gene in a source cell."""


AnyPlan = TypeVar("AnyPlan")


@dataclass(frozen=True)
class Plan:
    """One population to generate, understood."""

    index: int
    query: Query
    start: int
    """Index of the source population in the source table."""
    mean: np.ndarray
    """(G,) the anchor."""
    predictor: str
    """Where the anchor is from."""
    condition: np.ndarray
    """(C,)"""
    from_noise: bool
    """Plain generation: the source cells are of the very population that is asked for, and must not be handed back."""


class Generator:
    """Plans and generates populations from one source table. What depends on the source population alone is kept."""

    def __init__(self, fitted: Fitted, table: CellTable, schema: Schema, sampling: Sampling) -> None:
        self.fitted, self.table, self.sampling = fitted, table, sampling
        self.starts = summarise(table, np.zeros((len(table.keys), fitted.encoder.n_features)), schema)

    @cached_property
    def anchor(self) -> Anchor:
        """Answers with the mean of any population."""
        return Anchor().fit(self.fitted.populations)

    @cached_property
    def law(self) -> ZeroLaw:
        """How zero fractions follow the mean, over the training populations."""
        return ZeroLaw().fit(self.fitted.populations.mean, self.fitted.populations.zero_fraction)

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
        mean, predictor = self.anchor.predict(key, features, source)
        mean = np.where(self.fitted.non_negative, np.maximum(mean, 0.0), mean)
        condition = self.fitted.condition(key, features, source.mean, mean)
        return Plan(index, query, start, mean, predictor, condition, from_noise=source.key == key)

    def generate(self, plan: Plan) -> Iterator[ad.AnnData]:
        """The cells of a plan, in blocks; the same seed and query number give the same cells."""
        rng = np.random.default_rng((self.sampling.seed, plan.index))
        available = np.flatnonzero(self.table.population == plan.start)
        n_cells = plan.query.n_cells or max(len(available), N_REFERENCE)
        rows = draw_rows(available, max(n_cells, N_REFERENCE), rng)
        zero_fraction = self.law.follow(self.starts.mean[plan.start], self.starts.zero_fraction[plan.start], plan.mean)
        blocks = np.array_split(rows, -(-len(rows) // N_BLOCK))
        donors, first = self._donors(plan, rng), 0
        for block in blocks:
            cells, z_sem = self._block(self.table.dense(block), plan, zero_fraction, donors, rng)
            if not self.fitted.non_negative.all():
                cells = cells.toarray()
            names = self.table.names[block[: n_cells - first]]
            yield annotated(cells, z_sem, names, self.fitted.genes, plan.index, plan.query, plan.predictor, first)
            first += len(block)

    def _block(
        self,
        source: np.ndarray,
        plan: Plan,
        zero_fraction: np.ndarray,
        donors: np.ndarray,
        rng: np.random.Generator,
    ) -> tuple[sp.csr_matrix, np.ndarray]:
        """Cells from source cells (N x G), their mean the anchor, and their latents (N x Z)."""
        # source cells moved to the anchor mean: where the diffusion starts, and what each gene's values are
        moved = move_to_mean(source, plan.mean, zero_fraction, donors, rng, self.fitted.highest)
        shifted = source + (plan.mean - source.mean(axis=0))
        moved = np.where(self.fitted.non_negative, moved, shifted).astype(np.float32)
        cells, z_sem = self._denoised(source, None if plan.from_noise else moved, plan, rng)
        return sp.csr_matrix(take_values(cells, moved)), z_sem

    def _donors(self, plan: Plan, rng: np.random.Generator) -> np.ndarray:
        """Cells (D x G) that lend their values, of all populations but the very one that is asked for.

        Its cells are the answer, should the source hold them and not start from them.
        """
        asked = [i for i, key in enumerate(self.table.keys) if key == plan.query.key and i != plan.start]
        others = np.flatnonzero(~np.isin(self.table.population, asked))
        return self.table.dense(rng.choice(others, min(len(others), MAX_DONORS), replace=False))

    @torch.no_grad()
    def _denoised(
        self, source: np.ndarray, start: np.ndarray | None, plan: Plan, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generated cells (N x G, unit of the data) and their latents (N x Z), from moved cells or from pure noise."""
        network = self.fitted.network
        device = network.center.device
        levels = sampling_levels(self.sampling.n_sample_steps, 1.0 if start is None else self.sampling.strength)
        anchor = torch.from_numpy(plan.mean.astype(np.float32)).to(device)
        cells, latents = [], []
        for chunk in np.array_split(np.arange(len(source)), -(-len(source) // self.sampling.cells_per_batch)):
            z_sem = self.fitted.encode(source[chunk], np.tile(plan.condition, (len(chunk), 1)))
            noise = rng.standard_normal((len(chunk), source.shape[1]), dtype=np.float32)
            x_t = levels[0].sigma * torch.from_numpy(noise).to(device)
            if start is not None:
                moved = torch.from_numpy(start[chunk]).to(device)
                x_t = x_t + levels[0].alpha * network.standardise(moved, anchor)
            x0 = last(SAMPLERS[self.sampling.sampler](network.denoise(z_sem), x_t, levels))
            cells.append(network.restore(x0, anchor).cpu().numpy())
            latents.append(z_sem.cpu().numpy())
        return np.concatenate(cells), np.concatenate(latents)


def understood(queries: Sequence[Query], plan: Callable[[int, Query], AnyPlan]) -> list[AnyPlan]:
    """The plans of all queries, before one is generated. Raises InputError, which names the query of several."""
    plans = []
    for i, query in enumerate(queries):
        try:
            plans.append(plan(i, query))
        except InputError as error:
            if len(queries) == 1:
                raise
            raise InputError(f"query {i + 1}: {error}") from error
    return plans


def nothing_to_start_from(key: Population, starts: Populations) -> InputError:
    """Says which contexts the source has cells to start from in."""
    contexts = {key.context for key in starts.keys if key.condition == ""}
    if not contexts:
        return InputError("the source has no control cells to start from: add them")
    names = sorted(map(repr, contexts))
    there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return InputError(f"the source has no cells to start from in context {key.context!r}: it has {there}")


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
    columns = dict(zip(OWN_COLUMNS, (predictor, source_names), strict=True)) | query.columns
    obs = pd.DataFrame(columns, index=pd.Index([f"{index}-{first + i}" for i in range(n_cells)]))
    predicted = ad.AnnData(X=cells[:n_cells], obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    predicted.obsm["X_z_sem"] = z_sem[:n_cells]
    return predicted
