"""Squidiff: fit, encode, predict, save and load on AnnData. The public class."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from squidiff.config import Config, InputError, Sampling, Schema, settings_from_json, settings_to_json
from squidiff.data.check import check
from squidiff.data.conditions import N_TIME_FEATURES, ConditionEncoder, time_features
from squidiff.data.dataset import BatchStream, Pairs
from squidiff.data.manifest import describe_table, provenance
from squidiff.data.preprocess import normalize
from squidiff.data.queries import Query, read_queries
from squidiff.data.table import CellTable, as_matrix, looks_like_counts, read_cells, stored_values
from squidiff.diffusion.samplers import SAMPLERS, last
from squidiff.diffusion.schedule import sampling_levels
from squidiff.files import read_json, write_json
from squidiff.model.network import Network, Standardisation
from squidiff.response.populations import Population, Populations
from squidiff.response.shape import ZeroLaw, cut_to_mean, move_to_mean
from squidiff.response.stack import Anchor
from squidiff.train.checkpoint import read_tensors, write_tensors
from squidiff.train.loop import find_device
from squidiff.train.run import STATE, Record, train

WEIGHTS = "model.safetensors"
FORMAT = 1
"""Of the run folder; raised when an older version could not read it."""

SMALLEST_SCALE = 0.01
"""Of a gene, as a share of the largest: what hardly varies must not be blown up into noise."""
MIN_CELLS = 10
"""Of training: fewer have no axes worth the name."""
MAX_CELLS_FOR_AXES = 20_000
MAX_VALIDATION_CELLS = 1024
MAX_DONORS = 2000
"""Cells whose values may switch on a gene in a source cell."""
N_REFERENCE = 256
"""Cells generated at least for a query, so that one cell does not depend on how few are asked for."""


@dataclass(frozen=True)
class Fitted:
    """What training leaves behind, and all that a prediction needs."""

    genes: tuple[str, ...]
    encoder: ConditionEncoder
    populations: Populations
    network: Network
    non_negative: bool

    @property
    def time_span(self) -> tuple[float, float] | None:
        """Earliest and latest time in training; None where there is no time."""
        times = [k.time for k in self.populations.keys if k.time is not None]
        return (min(times), max(times)) if times else None


class Squidiff:
    """Predicts how single cells change: given cells before a perturbation, the cells after it.

    >>> model = Squidiff(Schema(condition_key="condition", control="ctrl", context_keys=("cell_type",)))
    >>> predicted = model.fit(train).predict(queries, source=train)

    Input is log-normalised (or raw counts with `Config(normalize=True)`); output has the unit of the input after
    normalisation, is matched by gene name, and is non-negative where the training data were.
    """

    def __init__(self, schema: Schema | None = None, config: Config | None = None, device: str = "auto") -> None:
        self.schema = schema or Schema()
        self.config = config or Config()
        self.device = find_device(device)
        self.manifest: dict[str, Any] = {}
        self.check: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.history: list[Record] = []
        self._fitted: Fitted | None = None

    @property
    def fitted(self) -> Fitted:
        """Raises InputError before `fit` or `load`."""
        if self._fitted is None:
            raise InputError("this model is not trained: call fit, or load a run")
        return self._fitted

    def fit(
        self,
        data: ad.AnnData | str | Path,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        on_record: Callable[[Record], None] | None = None,
    ) -> Squidiff:
        """Trains on AnnData, backed AnnData or a path; equal data, settings and machine give equal weights, bit by bit.

        With `out`, the run folder is written as training goes; with `resume` it goes on where an earlier run stopped.
        Raises InputError when the data have errors (see `check`), or when the folder holds another run.
        """
        started = time.perf_counter()
        adata = read_cells(data)
        report = check(adata, self.schema, normalize=self.config.normalize)
        report.raise_errors()
        table = CellTable.from_anndata(self._normalized(adata), self.schema)
        encoder = ConditionEncoder.fit(table.parts, self.schema)
        populations = summarise(table, np.stack([encoder.encode(parts) for parts in table.parts]), self.schema)
        source = np.array([-1 if (s := populations.source(k)) is None else s for k in populations.keys])
        n_cells = int((source[table.population] >= 0).sum())
        if n_cells < MIN_CELLS:
            raise InputError(f"{n_cells} cells can be trained on, those with control cells in their context: give more")
        standardisation = fit_standardisation(table, populations, self.config)
        network = Network.initialise(self.config, standardisation, n_condition(populations, standardisation))

        folder = Path(out) if out is not None else None
        self.check, self.manifest = report.to_json(), describe_table(table)
        self.manifest["vocabulary_sha256"] = hashlib.sha256(encoder.vectors.tobytes()).hexdigest()
        if folder is not None:
            self._claim(folder, resume)
        non_negative = bool(stored_values(table.cells).min(initial=0.0) >= 0)
        self._fitted = Fitted(table.genes, encoder, populations, network.to(self.device), non_negative)
        pairs = Pairs(table, source, populations.mean, self._own_conditions(populations))
        self.history = self._train(pairs, folder, resume, on_record)
        self.provenance = provenance(
            device=str(self.device), seed=self.config.seed, seconds=round(time.perf_counter() - started, 1)
        )
        if folder is not None:
            self.save(folder)
            shutil.rmtree((folder / STATE).parent, ignore_errors=True)
        return self

    def encode(self, data: ad.AnnData | str | Path) -> np.ndarray:
        """z_sem of each cell under its own condition, N x Z. Genes are matched by name."""
        table = self._table(data)
        features = np.stack([self.fitted.encoder.encode(parts) for parts in table.parts])
        condition = self._own_conditions(summarise(table, features, self.schema))[table.population]
        rows = np.arange(len(table.names))
        chunks = np.array_split(rows, max(1, len(rows) // Sampling().cells_per_batch))
        return np.concatenate([self._encode(table.dense(chunk), condition[chunk]).cpu().numpy() for chunk in chunks])

    def predict(
        self,
        queries: pd.DataFrame | str | Path,
        source: ad.AnnData | str | Path,
        sampling: Sampling | None = None,
        *,
        on_query: Callable[[int, int], None] | None = None,
    ) -> ad.AnnData:
        """Generates the cells of each query: a row of obs columns (condition, contexts, ...) and, if given, n_cells.

        `source` holds the cells that predictions start from (the control cells of each query's context). obs of the
        result carries the query's columns, the query's row and the source cell; obsm["X_z_sem"] the latent;
        uns["squidiff"] the provenance. `on_query(i, n)` is called after each query. Raises InputError when genes or
        columns are missing or a query is of something unknown.
        """
        sampling = sampling or Sampling()
        asked = read_queries(queries, self.schema)
        table = self._table(source)
        starts = summarise(table, np.zeros((len(table.keys), self.fitted.encoder.n_features)), self.schema)
        plans = [
            self._plan(i, query, table, starts) for i, query in enumerate(asked)
        ]  # nothing is generated before all is understood
        law = ZeroLaw().fit(self.fitted.populations.mean, self.fitted.populations.zero_fraction)
        results = []
        for i, plan in enumerate(plans):
            results.append(self._generate(plan, table, law, sampling, np.random.default_rng((sampling.seed, i))))
            if on_query is not None:
                on_query(i + 1, len(plans))
        predicted = ad.concat(results)
        predicted.uns["squidiff"] = {
            "sampling": settings_to_json(sampling),
            "data_sha256": self.manifest["data_sha256"],
            "unit": f"log1p of counts per {self.config.target_sum:g}"
            if self.config.normalize
            else "as the training data",
            "version": version("squidiff-ng"),
        }
        return predicted

    def save(self, folder: str | Path) -> None:
        """Writes the run folder, model.safetensors last and whole. Raises InputError when it cannot be written."""
        folder, fitted = Path(folder), self.fitted
        write_json(folder / "check.json", self.check)
        write_json(folder / "manifest.json", self.manifest)
        write_json(folder / "provenance.json", self.provenance)
        write_json(
            folder / "config.json",
            {
                **self._settings(),
                "genes": list(fitted.genes),
                "vocabulary": {"kind": fitted.encoder.kind, "names": list(fitted.encoder.names)},
                "populations": [list(k) for k in fitted.populations.keys],
                "non_negative": fitted.non_negative,
            },
        )
        populations = {
            "populations.mean": fitted.populations.mean,
            "populations.zero_fraction": fitted.populations.zero_fraction,
            "populations.features": fitted.populations.features,
            "populations.n_cells": fitted.populations.n_cells,
            "vocabulary.vectors": fitted.encoder.vectors,
        }
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in populations.items()}
        tensors |= {f"network.{name}": t for name, t in fitted.network.state_dict().items()}
        write_tensors(folder / WEIGHTS, tensors)

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Squidiff:
        """A trained model from a run folder; nothing in it is executed. Raises InputError when it is not whole."""
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            state = (
                "training has not finished (continue it with --resume)"
                if folder.is_dir()
                else "there is no such folder"
            )
            raise InputError(f"{folder} holds no trained model: {state}")
        saved = read_json(folder / "config.json")
        if saved.get("format") != FORMAT:
            raise InputError(f"{folder} has format {saved.get('format')!r}, this version reads {FORMAT}: train again")
        model = cls(settings_from_json(Schema, saved["schema"]), settings_from_json(Config, saved["config"]), device)
        model.manifest, model.check = read_json(folder / "manifest.json"), read_json(folder / "check.json")
        model.provenance = read_json(folder / "provenance.json")
        tensors, _ = read_tensors(folder / WEIGHTS)
        model._fitted = _rebuild(saved, tensors, model.config, model.device)
        return model

    def _settings(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": version("squidiff-ng"),
            "schema": settings_to_json(self.schema),
            "config": settings_to_json(self.config),
        }

    def _claim(self, folder: Path, resume: bool) -> None:
        """Makes the run folder, or makes sure that an unfinished run in it is this one."""
        if (folder / WEIGHTS).exists():
            raise InputError(f"{folder} already holds a trained model: choose another folder")
        if (folder / "config.json").exists():
            if not resume:
                raise InputError(f"{folder} holds an unfinished run: go on with --resume, or choose another folder")
            earlier, manifest = read_json(folder / "config.json"), read_json(folder / "manifest.json")
            for part, value in self._settings().items():
                if earlier.get(part) != value:
                    raise InputError(
                        f"{folder} was begun with another {part} ({_difference(earlier.get(part), value)})"
                    )
            for part, what in (("data_sha256", "data"), ("vocabulary_sha256", "embeddings")):
                if manifest.get(part) != self.manifest[part]:
                    raise InputError(f"{folder} was begun with other {what}: give the same file, or another folder")
            return
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty and holds no run: choose another folder")
        write_json(folder / "check.json", self.check)
        write_json(folder / "manifest.json", self.manifest)
        write_json(folder / "config.json", self._settings())

    def _train(
        self, pairs: Pairs, folder: Path | None, resume: bool, on_record: Callable[[Record], None] | None
    ) -> list[Record]:
        config = self.config
        rows = np.random.default_rng((config.seed, 2)).permutation(pairs.target_rows())
        n_validation = round(config.validation_fraction * len(rows))
        held = rows[: min(n_validation, MAX_VALIDATION_CELLS)]
        chunks = np.array_split(held, -(-len(held) // config.batch_size)) if len(held) else []
        rng = np.random.default_rng((config.seed, 3))
        return train(
            self.fitted.network,
            lambda n: BatchStream(pairs, np.sort(rows[n_validation:]), config.batch_size, config.seed, n).draw,
            [pairs.batch(chunk, rng) for chunk in chunks],
            config,
            out=folder,
            resume=resume,
            on_record=on_record,
        )

    def _table(self, data: ad.AnnData | str | Path) -> CellTable:
        return CellTable.from_anndata(self._normalized(read_cells(data)), self.schema, self.fitted.genes)

    def _normalized(self, adata: ad.AnnData) -> ad.AnnData:
        is_counts = looks_like_counts(as_matrix(adata))
        if self.config.normalize and not is_counts:
            raise InputError("the model was trained with --normalize, but X does not hold raw counts: give raw counts")
        if not self.config.normalize and is_counts:
            raise InputError("X holds raw counts, but the model was trained on normalised values: normalise them alike")
        return normalize(adata, self.config.target_sum, self.config.total_counts_key) if is_counts else adata

    def _own_conditions(self, populations: Populations) -> np.ndarray:
        """Condition features of populations that have cells, P x C; means are those of training where it saw them."""
        rows = []
        for key, features in zip(populations.keys, populations.features, strict=True):
            known = self.fitted.populations if key in self.fitted.populations.keys else populations
            own = known.keys.index(key)
            source = known.source(key)
            start = known.mean[own if source is None else source]
            rows.append(self._condition(key, features, start, known.mean[own]))
        return np.stack(rows)

    def _condition(self, key: Population, features: np.ndarray, start: np.ndarray, anchor: np.ndarray) -> np.ndarray:
        """Condition features (C,): those of the parts, of the time, and where the source and the anchor mean lie."""
        network, span = self.fitted.network, self.fitted.time_span
        gaussian = network.denoiser.gaussian
        center, scale, axes = (t.cpu().numpy() for t in (network.center, network.scale, gaussian.axes))
        spread = np.sqrt(gaussian.axis_variance.cpu().numpy())
        where = [((mean - center) / scale) @ axes / spread for mean in (start, anchor)]
        times = [] if span is None or key.time is None else [time_features(key.time, span)]
        return np.concatenate([features, *times, *where]).astype(np.float32)

    @torch.no_grad()
    def _encode(self, source: np.ndarray, condition: np.ndarray) -> torch.Tensor:
        arrays = (source, condition)
        cells, features = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)).to(self.device) for a in arrays)
        return self.fitted.network.encode(cells, features)

    def _plan(self, index: int, query: Query, table: CellTable, starts: Populations) -> Plan:
        """What will be generated for a query, from which cells. Raises InputError when it cannot be predicted."""
        key = Population(*query.key)
        start = starts.source(key)
        if start is None:
            there = ", ".join(sorted({repr(k.context) for k in starts.keys if k.condition == ""})) or "none"
            raise InputError(f"the source has no cells to start from in context {key.context!r}: it has {there}")
        features = self.fitted.encoder.encode(query.parts)
        known = self.fitted.populations.with_population(
            starts.keys[start], starts.mean[start], starts.zero_fraction[start], int(starts.n_cells[start])
        )
        mean, predictor = Anchor().fit(known).predict(key, features)
        condition = self._condition(key, features, starts.mean[start], mean)
        rows = np.flatnonzero(table.population == start)
        return Plan(index, query, rows, mean, condition, predictor, from_noise=starts.keys[start] == key)

    def _generate(
        self, plan: Plan, table: CellTable, law: ZeroLaw, sampling: Sampling, rng: np.random.Generator
    ) -> ad.AnnData:
        fitted = self.fitted
        n_cells = plan.query.n_cells or len(plan.rows)
        rows = draw_rows(plan.rows, max(n_cells, N_REFERENCE), rng)
        source = table.dense(rows)
        zero_fraction = law.follow(table.dense(plan.rows), plan.mean)
        start = None if plan.from_noise else self._moved(source, plan.mean, zero_fraction, table, rng)
        levels = sampling_levels(sampling.n_sample_steps, 1.0 if start is None else sampling.strength)
        cells, latents = [], []
        for chunk in np.array_split(np.arange(len(rows)), -(-len(rows) // sampling.cells_per_batch)):
            z_sem = self._encode(source[chunk], np.tile(plan.condition, (len(chunk), 1)))
            noise = rng.standard_normal((len(chunk), len(fitted.genes)), dtype=np.float32)
            x_t = levels[0].sigma * torch.from_numpy(noise).to(self.device)
            anchor = torch.from_numpy(plan.mean.astype(np.float32)).to(self.device)
            if start is not None:
                x_t = x_t + levels[0].alpha * fitted.network.standardise(
                    torch.from_numpy(start[chunk]).to(self.device), anchor
                )
            with torch.no_grad():
                x0 = last(SAMPLERS[sampling.sampler](fitted.network.denoise(z_sem), x_t, levels))
            cells.append(fitted.network.restore(x0, anchor).cpu().numpy())
            latents.append(z_sem.cpu().numpy())
        generated = np.concatenate(cells)
        if fitted.non_negative:
            generated = cut_to_mean(generated, plan.mean, zero_fraction)
        else:
            generated = generated + (plan.mean - generated.mean(axis=0))
        generated = generated[:n_cells].astype(np.float32)
        obs = pd.DataFrame({"anchor": plan.predictor, "source_cell": table.names[rows[:n_cells]]} | plan.query.columns)
        obs.index = pd.Index([f"{plan.index}-{j}" for j in range(n_cells)])
        predicted = ad.AnnData(
            X=sp.csr_matrix(generated) if (generated == 0).mean() > 0.5 else generated,
            obs=obs,
            var=pd.DataFrame(index=pd.Index(fitted.genes)),
        )
        predicted.obsm["X_z_sem"] = np.concatenate(latents)[:n_cells]
        return predicted

    def _moved(
        self,
        source: np.ndarray,
        mean: np.ndarray,
        zero_fraction: np.ndarray,
        table: CellTable,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """Source cells moved to the anchor mean: where the diffusion starts, and what strength 0 would leave."""
        if not self.fitted.non_negative:
            return np.asarray(source + (mean - source.mean(axis=0)), dtype=np.float32)
        donors = table.dense(draw_rows(np.arange(len(table.names)), min(len(table.names), MAX_DONORS), rng))
        return move_to_mean(source, mean, zero_fraction, donors, rng).astype(np.float32)


@dataclass(frozen=True)
class Plan:
    """One population to generate, understood."""

    index: int
    query: Query
    rows: np.ndarray
    """The source cells, rows of the source table."""
    mean: np.ndarray
    """(G,) the anchor."""
    condition: np.ndarray
    """(C,)"""
    predictor: str
    """Where the anchor is from."""
    from_noise: bool
    """Plain generation: the source cells are of the very population that is asked for, and must not be handed back."""


def summarise(table: CellTable, features: np.ndarray, schema: Schema) -> Populations:
    """The populations of a table, with the condition features (P x F) that are given."""
    keys = tuple(Population(*k) for k in table.keys)
    return Populations.summarise(table.cells, table.population, keys, features, schema.control is not None)


def n_condition(populations: Populations, standardisation: Standardisation) -> int:
    """C, the number of condition features: of the parts, of the time, and two places on the axes."""
    has_time = any(k.time is not None for k in populations.keys)
    return populations.features.shape[1] + N_TIME_FEATURES * has_time + 2 * standardisation.axes.shape[1]


def fit_standardisation(table: CellTable, populations: Populations, config: Config) -> Standardisation:
    """Scales and principal axes of the training cells; the axes from at most MAX_CELLS_FOR_AXES cells, drawn."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng((config.seed, 4))
    rows = np.sort(rng.permutation(len(table.names))[:MAX_CELLS_FOR_AXES])
    cells = table.dense(rows)
    residual = cells - populations.mean[table.population[rows]].astype(np.float32)
    if not np.ptp(cells, axis=0).any():
        raise InputError("no gene varies over the training cells: X holds one and the same profile")
    scale, spread = (np.maximum(s, SMALLEST_SCALE * max(s.max(), 1e-6)) for s in (residual.std(0), cells.std(0)))
    residual /= scale
    n_axes = min(config.n_axes, *(n - 1 for n in residual.shape))
    pca = PCA(n_axes, random_state=config.seed).fit(residual)
    on_axes = pca.explained_variance_
    rest = (residual.var(axis=0).sum() - on_axes.sum()) / (residual.shape[1] - n_axes)
    arrays = (cells.mean(axis=0), spread, scale, pca.components_.T, on_axes, np.maximum(rest, 1e-4))
    return Standardisation(*(torch.from_numpy(np.array(a, dtype=np.float32)) for a in arrays))


def draw_rows(rows: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n of the rows in random order; each as often as any other, give or take one."""
    return np.concatenate([rng.permutation(rows) for _ in range(-(-n // len(rows)))])[:n]


def _difference(before: Any, now: Any) -> str:
    """The first setting that differs, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if before.get(key) != now[key]:
                return f"{key} was {before.get(key)!r}, is {now[key]!r}"
    return f"was {before!r}, is {now!r}"


def _rebuild(saved: dict[str, Any], tensors: dict[str, torch.Tensor], config: Config, device: torch.device) -> Fitted:
    """The inverse of what `save` writes. Raises InputError when tensors and settings do not belong together."""
    try:
        arrays = {name: t.numpy() for name, t in tensors.items() if not name.startswith("network.")}
        weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
        names = (
            "center",
            "spread",
            "scale",
            "denoiser.gaussian.axes",
            "denoiser.gaussian.axis_variance",
            "denoiser.gaussian.rest_variance",
        )
        standardisation = Standardisation(*(weights[name] for name in names))
        keys = tuple(Population(context, condition, time) for context, condition, time in saved["populations"])
        populations = Populations(
            keys,
            arrays["populations.features"],
            arrays["populations.mean"],
            arrays["populations.zero_fraction"],
            arrays["populations.n_cells"],
            saved["schema"]["control"] is not None,
        )
        network = Network.initialise(config, standardisation, n_condition(populations, standardisation))
        network.load_state_dict(weights)
        vocabulary = saved["vocabulary"]
        encoder = ConditionEncoder(vocabulary["kind"], tuple(vocabulary["names"]), arrays["vocabulary.vectors"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the run's model.safetensors and config.json do not belong together: {error}") from error
    return Fitted(tuple(saved["genes"]), encoder, populations, network.to(device), bool(saved["non_negative"]))
