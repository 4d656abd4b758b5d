"""Generates the cells of queries from source cells, with a fitted model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from squidiff.config import InputError, Sampling, Schema
from squidiff.data.queries import Query
from squidiff.data.table import CellTable
from squidiff.diffusion.samplers import SAMPLERS, last
from squidiff.diffusion.schedule import sampling_levels
from squidiff.estimator.fitted import Fitted, summarise
from squidiff.response.populations import Population
from squidiff.response.shape import ZeroLaw, cut_to_mean, move_to_mean
from squidiff.response.stack import Anchor

N_REFERENCE = 256
"""Cells generated at least for a query, so that one cell does not depend on how few are asked for."""
MAX_DONORS = 2000
"""Cells whose values may switch on a gene in a source cell."""


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
        self._anchors: dict[int, Anchor] = {}

    @cached_property
    def law(self) -> ZeroLaw:
        """How zero fractions follow the mean, over the training populations."""
        return ZeroLaw().fit(self.fitted.populations.mean, self.fitted.populations.zero_fraction)

    def plan(self, index: int, query: Query) -> Plan:
        """What will be generated for a query, from which cells. Raises InputError when it cannot be predicted."""
        key, starts = Population(*query.key), self.starts
        start = starts.source(key)
        if start is None:
            there = ", ".join(sorted({repr(k.context) for k in starts.keys if k.condition == ""})) or "none"
            raise InputError(f"the source has no cells to start from in context {key.context!r}: it has {there}")
        features = self.fitted.encoder.encode(query.parts)
        mean, predictor = self._anchor(start).predict(key, features)
        condition = self.fitted.condition(key, features, starts.mean[start], mean)
        return Plan(index, query, start, mean, predictor, condition, from_noise=starts.keys[start] == key)

    def _anchor(self, start: int) -> Anchor:
        if start not in self._anchors:
            starts = self.starts
            known = self.fitted.populations.with_population(
                starts.keys[start], starts.mean[start], starts.zero_fraction[start], int(starts.n_cells[start])
            )
            self._anchors[start] = Anchor().fit(known)
        return self._anchors[start]

    def generate(self, plan: Plan) -> ad.AnnData:
        """The cells of a plan; the same seed and query number give the same cells."""
        rng = np.random.default_rng((self.sampling.seed, plan.index))
        available = np.flatnonzero(self.table.population == plan.start)
        n_cells = plan.query.n_cells or len(available)
        rows = draw_rows(available, max(n_cells, N_REFERENCE), rng)
        source = self.table.dense(rows)
        zero_fraction = self.law.follow(self.starts.mean[plan.start], self.starts.zero_fraction[plan.start], plan.mean)
        start = None if plan.from_noise else self._moved(source, plan, zero_fraction, rng)
        cells, z_sem = self._denoised(source, start, plan, rng)
        if self.fitted.non_negative:
            cells = cut_to_mean(cells, plan.mean, zero_fraction)
        else:
            cells = cells + (plan.mean - cells.mean(axis=0))
        return self._annotated(cells[:n_cells].astype(np.float32), z_sem[:n_cells], self.table.names[rows], plan)

    def _moved(self, source: np.ndarray, plan: Plan, zero_fraction: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Source cells moved to the anchor mean: where the diffusion starts, and what strength 0 would leave."""
        if not self.fitted.non_negative:
            return np.asarray(source + (plan.mean - source.mean(axis=0)), dtype=np.float32)
        # cells of the very population that is asked for are the answer, should the source hold them
        asked = [i for i, key in enumerate(self.table.keys) if key == plan.query.key]
        others = np.flatnonzero(~np.isin(self.table.population, asked))
        donors = self.table.dense(draw_rows(others, min(len(others), MAX_DONORS), rng))
        return move_to_mean(source, plan.mean, zero_fraction, donors, rng).astype(np.float32)

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

    def _annotated(self, cells: np.ndarray, z_sem: np.ndarray, source_names: np.ndarray, plan: Plan) -> ad.AnnData:
        ours = {"anchor": plan.predictor, "source_cell": source_names[: len(cells)]}
        obs = pd.DataFrame(ours | plan.query.columns, index=pd.Index([f"{plan.index}-{i}" for i in range(len(cells))]))
        predicted = ad.AnnData(
            X=sp.csr_matrix(cells) if (cells == 0).mean() > 0.5 else cells,
            obs=obs,
            var=pd.DataFrame(index=pd.Index(self.fitted.genes)),
        )
        predicted.obsm["X_z_sem"] = z_sem
        return predicted


def draw_rows(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of the rows in random order; each as often as any other, give or take one."""
    whole, rest = divmod(n, len(rows))
    return np.concatenate([*(rng.permutation(rows) for _ in range(whole)), rng.permutation(rows)[:rest]])
