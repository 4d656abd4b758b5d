"""Upstream's architecture as a model of ours: what it leaves behind, and predictions by its latent arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch

from squidiff.config import Config, InputError, Sampling, Schema, ShownBatch
from squidiff.data.conditions import ConditionEncoder
from squidiff.data.dataset import N_SOURCES, ShownPairs, at_most, rows_of
from squidiff.data.queries import Query
from squidiff.data.survey import Survey
from squidiff.data.table import CellTable
from squidiff.data.unit import Normalisation
from squidiff.diffusion.samplers import SAMPLERS
from squidiff.diffusion.schedule import StepSchedule
from squidiff.estimator.draws import choose, distinct, draw
from squidiff.estimator.fitted import in_chunks, load_vocabulary, summarise
from squidiff.estimator.generate import annotated, nothing_to_start_from
from squidiff.model.upstream import UpstreamDenoiser, UpstreamNetwork, UpstreamSizes
from squidiff.response.groups import LATENT_GROUPS
from squidiff.response.populations import Population, Populations, Source, draw_rows
from squidiff.response.stack import Anchor
from squidiff.train.checkpoint import require_finite_tensors
from squidiff.train.loop import Recipe
from squidiff.train.upstream_recipe import upstream_recipe


@dataclass(frozen=True)
class UpstreamFitted:
    """What training, or a checkpoint, leaves behind."""

    genes: tuple[str, ...]
    encoder: ConditionEncoder
    seen: tuple[Population, ...]
    """The populations of training; none where they are not known."""
    network: UpstreamNetwork
    schedule: StepSchedule
    normalisation: Normalisation

    @property
    def has_drugs(self) -> bool:
        return self.network.sizes.has_drugs

    def require(self, found: Survey, where: str) -> None:
        """Raises InputError when cells of the same genes are plainly in another unit."""
        self.normalisation.require(found, where)

    @torch.no_grad()
    def encode(self, cells: np.ndarray, drugs: np.ndarray) -> torch.Tensor:
        """z_sem (B x Z) of cells (B x G) and their drug encodings (B x D; D = 0 without drugs)."""
        shown = np.concatenate([cells, drugs], axis=1, dtype=np.float32)
        z_sem: torch.Tensor = self.network.encoder(torch.from_numpy(shown).to(self.network.device))
        return z_sem

    def drugs(self, table: CellTable) -> np.ndarray:
        """The drug encodings of a table's populations, P x D."""
        if not self.has_drugs:
            return np.zeros((len(table.keys), 0), dtype=np.float32)
        return np.stack([self.encoder.encode(parts) for parts in table.parts])

    def encode_table(self, table: CellTable, schema: Schema) -> np.ndarray:
        """z_sem of each cell under its own drugs, N x Z."""
        drugs, chunks = self.drugs(table), in_chunks(np.arange(len(table.names)))
        latents = (self.encode(table.dense(chunk), drugs[table.population[chunk]]) for chunk in chunks)
        return np.concatenate([z_sem.cpu().numpy() for z_sem in latents])

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """All arrays by name, as model.safetensors holds them."""
        network = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        return {"vocabulary.vectors": torch.from_numpy(np.ascontiguousarray(self.encoder.vectors)), **network}

    def to_json(self) -> dict[str, Any]:
        """What config.json says."""
        return {
            "genes": list(self.genes),
            "vocabulary": {"kind": self.encoder.kind, "names": list(self.encoder.names)},
            "populations": [list(key) for key in self.seen],
            "normalisation": asdict(self.normalisation),
        }


def begin_upstream(
    table: CellTable,
    encoder: ConditionEncoder,
    normalisation: Normalisation,
    schema: Schema,
    config: Config,
    device: torch.device,
    source_rows: np.ndarray | None = None,
) -> tuple[UpstreamFitted, ShownPairs, Recipe[ShownBatch]]:
    """An untrained model, the pairs to train it on and how.

    Without SMILES the encoder is shown the target itself. With them it is shown a control cell and the drug encoding;
    every target keeps one control cell: that of `source_rows` (N,), or one drawn from its context.
    """
    n_drugs = encoder.vectors.shape[1] if schema.smiles_key is not None else 0
    sizes = UpstreamSizes(
        len(table.genes), n_drugs, config.n_latent, config.width, config.width, config.n_blocks, config.width
    )
    network = UpstreamNetwork.initialise(sizes, config.seed).to(device)
    schedule = StepSchedule.named(config.noise_schedule, config.n_diffusion_steps)
    seen = tuple(Population(*key) for key in table.keys)
    fitted = UpstreamFitted(table.genes, encoder, seen, network, schedule, normalisation)
    if n_drugs and source_rows is None:
        source_rows = _draw_sources(table, schema, config.seed)
    pairs = ShownPairs(table, source_rows if n_drugs else None, fitted.drugs(table))
    return fitted, pairs, upstream_recipe(schedule)


def _draw_sources(table: CellTable, schema: Schema, seed: int) -> np.ndarray:
    """A row of the source population for each cell, (N,); -1 where there is none."""
    populations = summarise(table, np.zeros((len(table.keys), 1)), schema)
    rng = np.random.default_rng((seed, 5))
    mine = rows_of(table)
    there = at_most(N_SOURCES, mine, np.unique(populations.sources[populations.sources >= 0]), rng)
    rows = np.full(len(table.population), -1)
    for i, source in enumerate(populations.sources):
        if source >= 0:
            rows[mine[i]] = draw_rows(there[source], len(mine[i]), rng)
    return rows


def rebuild_upstream(
    saved: dict[str, Any], tensors: dict[str, torch.Tensor], config: Config, device: torch.device
) -> UpstreamFitted:
    """The inverse of `to_tensors` and `to_json`. Raises InputError when they do not belong together."""
    try:
        weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        network = UpstreamNetwork.from_state(weights)
        encoder = load_vocabulary(saved, tensors)
        genes = tuple(saved["genes"])
        if len(genes) != network.sizes.n_genes:
            raise ValueError(f"there are {len(genes)} gene names and {network.sizes.n_genes} genes")
        require_finite_tensors(tensors)
        return UpstreamFitted(
            genes,
            encoder,
            tuple(Population(*key) for key in saved["populations"]),
            network.to(device),
            StepSchedule.named(config.noise_schedule, config.n_diffusion_steps),
            Normalisation(**saved["normalisation"]),
        )
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the run's model.safetensors and config.json do not belong together: {error}") from error


@dataclass(frozen=True)
class LatentPlan:
    """One population to generate, understood."""

    index: int
    query: Query
    start: int
    """Index of the source population in the source table."""
    shift: np.ndarray
    """(Z,) added to the source cells' latents."""
    noise: np.ndarray
    """(Z,) the standard deviation of what is drawn and added to them as well."""
    drugs: np.ndarray
    """(D,) the drug encoding."""
    predictor: str


class Decoder:
    """Cells of latents by n steps from pure noise; what is the same for all cells is computed when it is made."""

    CELLS_AT_ONCE = 512
    """So many activations stay in a processor's cache."""

    def __init__(self, network: UpstreamNetwork, schedule: StepSchedule, n_steps: int, sampler: str) -> None:
        self.steps = schedule.sampling_steps(n_steps)
        self.levels = schedule.sampling_levels(self.steps)
        self.denoiser, self.sample = UpstreamDenoiser(network, self.levels[:-1], self.steps), SAMPLERS[sampler]

    def __call__(
        self, z_sem: torch.Tensor, x_t: torch.Tensor, on_step: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """Cells (N x G) of latents (N x Z) and noise (N x G). `on_step(i, n)` is called after every step."""
        parts = [t.split(self.CELLS_AT_ONCE) for t in (z_sem, x_t.to(z_sem))]
        n_done, n_steps, cells = 0, len(parts[0]) * len(self.steps), []
        for z, x in zip(*parts, strict=True):
            for state in self.sample(self.denoiser.bind(z), x, self.levels):  # noqa: B007 - the last is kept
                n_done += 1
                if on_step is not None:
                    on_step(n_done, n_steps)
            cells.append(state)
        return torch.cat(cells)


class LatentGenerator:
    """Plans and generates populations from one source table, by the arithmetic of mean latents or by drug encodings.

    Directions are taken between the source table's own populations: upstream's model keeps none of training.
    """

    def __init__(
        self, fitted: UpstreamFitted, table: CellTable, schema: Schema, sampling: Sampling, paired: bool = False
    ) -> None:
        if sampling.first_level:
            raise InputError("--first-level has no use with upstream's architecture, which has one level")
        if paired:
            raise InputError("--paired has no use with upstream's architecture, which clamps what it inverts")
        if sampling.strength != Sampling().strength:
            raise InputError("--strength has no use for upstream's architecture: it always starts from pure noise")
        self.fitted, self.table, self.sampling = fitted, table, sampling
        self.schema, self.has_control = schema, schema.control is not None
        self.decode = Decoder(fitted.network, fitted.schedule, sampling.n_sample_steps, sampling.sampler)
        self.names = distinct(table.names)
        cells = self.z_sem if not fitted.has_drugs else np.zeros((len(table.names), 1), dtype=np.float32)
        keys = tuple(Population(*key) for key in table.keys)
        features = np.zeros((len(keys), 1))
        self.starts = Populations.summarise([cells], table.population, keys, features, self.has_control)

    @cached_property
    def z_sem(self) -> np.ndarray:
        """Of the source cells, N x Z."""
        return self.fitted.encode_table(self.table, self.schema)

    def plan(self, index: int, query: Query) -> LatentPlan:
        """What will be generated for a query, from which cells. Raises InputError when it cannot be predicted."""
        key = Population(*query.key)
        # cells of a population that training did not see are the answer, should the source hold them
        is_start = key.condition == "" and (self.has_control or key.time is None)
        known = is_start or key in self.fitted.seen
        start = self.starts.source(key, itself=known)
        if start is None:
            raise nothing_to_start_from(key, self.starts)
        if self.fitted.has_drugs:
            drugs = self.fitted.encoder.encode(query.parts)
            nothing = np.zeros(1, np.float32)
            return LatentPlan(index, query, start, nothing, nothing, drugs, "drug structure")
        told = [i for i, there in enumerate(self.starts.keys) if known or there != key]
        seen = self.starts.only(np.array(told))
        anchor = Anchor(LATENT_GROUPS).fit(seen)
        source = Source(self.starts.keys[start], self.starts.mean[start])
        mean, predictor = anchor.predict(key, np.zeros(1), source)
        shift = (mean - source.mean).astype(np.float32)
        return LatentPlan(
            index, query, start, shift, _widening(seen, shift), np.zeros(0, np.float32), f"latents: {predictor}"
        )

    def n_blocks(self, plan: LatentPlan) -> int:
        """Of a plan's cells."""
        return -(-self._n_made(plan) // self.sampling.cells_per_batch)

    def _n_made(self, plan: LatentPlan) -> int:
        return plan.query.n_cells or int((self.table.population == plan.start).sum())

    def blocks(self, plan: LatentPlan) -> Iterator[Callable[[], ad.AnnData]]:
        """What makes the cells of a plan, block by block; the same seed and source cells give the same cells."""
        available = np.flatnonzero(self.table.population == plan.start)
        which, rounds = choose(self.names[available], self._n_made(plan), self.sampling.seed)
        for block in np.array_split(np.arange(len(which)), self.n_blocks(plan)):
            yield functools.partial(self._made, plan, available[which[block]], rounds[block], int(block[0]))

    def _made(self, plan: LatentPlan, rows: np.ndarray, rounds: np.ndarray, first: int) -> ad.AnnData:
        """The cells of a block that begins with number `first` of its plan, from source cells."""
        names, genes = self.table.names[rows], self.fitted.genes
        z_sem = self._latents(rows, rounds, plan)
        noise = draw(self.names[rows], rounds, genes, self.sampling.seed)[1]
        cells = sp.csr_matrix(self.decode(z_sem, torch.from_numpy(noise)).cpu().numpy())
        return annotated(cells, z_sem.cpu().numpy(), names, genes, plan.index, plan.query, plan.predictor, first)

    def _latents(self, rows: np.ndarray, rounds: np.ndarray, plan: LatentPlan) -> torch.Tensor:
        if self.fitted.has_drugs:
            return self.fitted.encode(self.table.dense(rows), np.tile(plan.drugs, (len(rows), 1)))
        directions = tuple(f"{i:06d}" for i in range(len(plan.noise)))
        drawn = draw(self.names[rows], rounds, directions, -1 - self.sampling.seed)[1]  # a stream of its own
        return torch.from_numpy(self.z_sem[rows] + plan.shift + plan.noise * drawn).to(self.fitted.network.device)


def _widening(latents: Populations, shift: np.ndarray) -> np.ndarray:
    """(Z,) how much wider latents are after a change than before: what to add to source cells' as noise, never 0.7.

    The root of the mean excess of variance over the populations that have another one as source, in proportion to how
    far the shift (Z,) goes of what theirs do on average, and no more than that; 0 where there is none.
    """
    changed = latents.reliable([i for i, source in enumerate(latents.sources) if source >= 0 and source != i])
    usual = float(np.linalg.norm(latents.shifts(changed), axis=1).mean()) if changed else 0.0
    if usual == 0:
        return np.zeros(latents.mean.shape[1], dtype=np.float32)
    excess = (latents.variance[changed] - latents.variance[latents.sources[changed]]).mean(axis=0)
    way = min(1.0, float(np.linalg.norm(shift)) / usual)
    return np.sqrt(way * np.maximum(excess, 0.0)).astype(np.float32)
