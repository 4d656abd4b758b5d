"""Squidiff: fit, encode, predict, save and load on AnnData. The public class."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import (
    Compute,
    Config,
    InputError,
    Sampling,
    Schema,
    require_kind,
    settings_from_json,
    settings_to_json,
)
from squidiff.data.dataset import Pairs, ShownPairs
from squidiff.data.finding import CheckReport
from squidiff.data.manifest import provenance
from squidiff.data.matrix import CellsOnDisk
from squidiff.data.queries import FAR, Query, read_queries, refuse_unknown_columns, told
from squidiff.data.shards import join
from squidiff.data.stream import BatchStream
from squidiff.data.table import CellTable, open_cells, remember_schema
from squidiff.data.unit import COUNTS, UNKNOWN
from squidiff.estimator.begin import begin, name_of, normalized
from squidiff.estimator.fitted import Fitted, begin_again, digest, rebuild
from squidiff.estimator.generate import Generator, understood
from squidiff.estimator.run_folder import (
    BEFORE_DIVERGENCE,
    FORMAT,
    WEIGHTS,
    begin_folder,
    end_folder,
    read_object,
    refuse_claim,
)
from squidiff.estimator.upstream import LatentGenerator, UpstreamFitted, rebuild_upstream
from squidiff.files import require_empty, write_json
from squidiff.train.checkpoint import read_tensors, write_tensors
from squidiff.train.loop import Recipe, Weights, noise_error
from squidiff.train.processes import Processes
from squidiff.train.run import METRICS, Diverged, Record, read_records, train, write_records
from squidiff.train.saving import has_state, locked, newest_state
from squidiff.train.upstream_checkpoint import write_upstream

MAX_VALIDATION_CELLS = 1024


class Squidiff:
    """Predicts how single cells change: given cells before a perturbation, the cells after it.

    >>> model = Squidiff(Schema(condition_key="condition", control="ctrl", context_keys=("cell_type",)))
    >>> predicted = model.fit(train).predict(queries, source=train)

    Input is log-normalised (or raw counts with `Config(normalize=True)`); output has the unit of the input after
    normalisation, is matched by gene name, and is non-negative where the training data were.

    Without a schema `fit` takes the one that its data remember, as `prepare` and `predict` note it, and of data that
    remember none it learns to make more cells like them, as it does with `Schema()`.

    `device` is its name, or a Compute. Where that asks for several processes, making a model starts them, by running
    the script anew in each; from then on all do the same with it, one of them writes, and `processes` tells which.
    """

    def __init__(
        self, schema: Schema | None = None, config: Config | None = None, device: str | Compute = "auto"
    ) -> None:
        require_kind(schema, (Schema, NoneType), "the schema", "Schema(...)")
        require_kind(config, (Config, NoneType), "the config", "Config(...)")
        self._told = schema
        self.schema = schema or Schema()
        self.config = config or Config()
        self.processes = Processes.start(device if isinstance(device, Compute) else Compute(device=device))
        self.device = self.processes.device
        self.manifest: dict[str, Any] = {}
        self.check: dict[str, Any] = {}
        self.provenance: dict[str, Any] = {}
        self.history: list[Record] = []
        self._fitted: Fitted | UpstreamFitted | None = None

    @property
    def fitted(self) -> Fitted | UpstreamFitted:
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
        as_given: bool = False,
        source_rows: np.ndarray | None = None,
        beside_others: bool = False,
        on_disk: bool | None = None,
        on_check: Callable[[CheckReport], None] | None = None,
        on_note: Callable[[str], None] | None = None,
        start: Squidiff | None = None,
    ) -> Squidiff:
        """Trains on AnnData, backed AnnData or a path; equal data, settings and machine give equal weights, bit by bit.

        With `out`, the run folder is written as training goes; with `resume` it goes on where an earlier run stopped.
        `as_given` takes raw counts as they are. `source_rows` (N,), of upstream's architecture with SMILES, is the row
        of the control cell that each cell is paired with, -1 for none; else one is drawn from its context.
        `beside_others` writes into a folder that holds other files, as long as none of them is to be replaced.
        `on_disk` leaves X in its .h5ad file (CSR or dense) or zarr store, from which cells are read as training goes,
        with the same result; None does so where X is backed already, or larger than 2 GB. `on_check` is given the
        doctor's report, before training; `on_note` a sentence where the schema is the data's, where not the newest
        state could be taken up again, and where training ends early. In the main thread, and with `out`, SIGINT and
        SIGTERM end it in order: the state is saved, and Stopped raised. With `start`, a model trained on other cells is
        trained further: it keeps what it knows of their populations and their conditions, and must have all their
        genes. Populations that are given once more whole count once; single cells of them that are, once more.
        Raises InputError when the data have errors (see `check`), when the folder holds another run or another process
        trains in it, and Diverged, an InputError, when the loss explodes: the model has the best weights before that,
        and they are saved in `out`/before-divergence, if there were any.
        """
        started = time.perf_counter()
        told, earlier = self._told, None
        if start is not None:
            earlier, told = self.processes.together(lambda: self._to_start_from(start)), start.schema
        begun = functools.partial(
            *(begin, data, told, self.config, self.processes, earlier, on_check, on_note),
            as_given=as_given,
            source_rows=source_rows,
            on_disk=on_disk,
            not_these=None if start is None else start.manifest.get("data_sha256"),
        )
        self.schema, fitted, pairs, recipe, self.check, self.manifest = self.processes.together(begun)
        folder = Path(out) if out is not None else None
        with nullcontext() if folder is None else self._claimed(folder, resume, beside_others):
            fitted, pairs = self._as_begun(fitted, pairs, folder if resume else None)
            error, diverged = self._train(fitted, pairs, recipe, folder, resume, on_record, on_note)
            self._fitted = fitted
            self.provenance = provenance(
                data="" if isinstance(data, ad.AnnData) else Path(data).name,
                device=str(self.device),
                seed=self.config.seed,
                seconds=round(time.perf_counter() - started, 1),
                noise_error=error,
                cells="on disk" if isinstance(pairs.table.cells, CellsOnDisk) else "in memory",
                processes=self.processes.n,
                precision=self.processes.compute.precision,
            )
            if diverged:
                where = "this model"
                if folder is not None and self.processes.by_main(lambda: not (folder / BEFORE_DIVERGENCE).exists()):
                    self.save(folder / BEFORE_DIVERGENCE)
                    where = str(folder / BEFORE_DIVERGENCE)
                raise Diverged(f"{diverged}; {where} has the best weights before that")
            if folder is not None:
                self.processes.by_main(functools.partial(self._write, folder))
        return self

    def encode(self, data: ad.AnnData | str | Path, *, on_disk: bool | None = None) -> np.ndarray:
        """z_sem of each cell under its own condition, N x Z. Genes are matched by name; `on_disk` as in `fit`.

        Training shows the encoder source cells (of a perturbation: control cells), so these are what it knows best.
        """
        return self.fitted.encode_table(self.table(open_cells(data, on_disk), name_of(data)), self.schema)

    def predict(
        self,
        queries: pd.DataFrame | str | Path,
        source: ad.AnnData | str | Path,
        sampling: Sampling | None = None,
        *,
        paired: bool = False,
        on_query: Callable[[int, int], None] | None = None,
        on_disk: bool | None = None,
    ) -> ad.AnnData:
        """Generates the cells of each query: a row of obs columns (condition, contexts, ...) and, if given, n_cells.

        Without n_cells there are as many cells as there are to start from. The cells of a query have the predicted mean
        together (not those of upstream's architecture): another number gives other cells and no longer list, fewer than
        ten are the first of ten (of all, where fewer are to start from), and genes that less than half a cell of so
        many would show stay silent. `source` holds the cells that predictions start from (the control cells of each
        query's context). obs of the result carries the query's columns, the query's row, the source cell, and in what
        the query lies far from training; obsm["X_z_sem"] the latent; varm["shift"] and varm["shift_low_50"] to
        varm["shift_high_90"] the mean shift of each gene and its intervals, a column a query (see `changes`);
        uns["squidiff"] the provenance. With `paired` each source cell has its own future, and no noise is drawn: it is
        inverted, and decoded as what is asked for. `on_query(i, n)` is called after each query; `on_disk` is as in
        `fit`. Raises InputError when genes or columns are missing or a query is of something unknown.
        """
        parts = self.predict_parts(queries, source, sampling, paired=paired, on_query=on_query, on_disk=on_disk)
        made = list(parts)
        return self.processes.by_main(lambda: join(made))

    def changes(
        self, queries: pd.DataFrame | str | Path, source: ad.AnnData | str | Path, *, on_disk: bool | None = None
    ) -> pd.DataFrame:
        """How each gene's mean is predicted to change: a row a query and gene, without generating cells.

        Columns: the query's own (asked_gene, say, where one is called as a column of these), gene, source_mean,
        shift, its intervals (shift_low_50, ... shift_high_90: of the mean of as many cells as training populations
        have), changes (whether 0 lies outside of that of 90 %), anchor (where the mean is from), far (in what the
        query lies far from training, or ''), and tried (whether the widths are of errors on populations that were
        left out, and no guess). Raises InputError as `predict`.
        """
        if isinstance(self.fitted, UpstreamFitted):
            raise InputError("upstream's architecture predicts cells and no means: it has no table of changes")
        asked, table = self._asked(queries, source, on_disk)
        generator, tables = Generator(self.fitted, table, self.schema, Sampling()), []
        for plan in understood(asked, generator.plan):
            interval = plan.interval.columns()
            of_gene = {"gene": self.fitted.genes, "source_mean": plan.mean - plan.interval.shift, **interval}
            beyond = (interval["shift_low_90"] > 0) | (interval["shift_high_90"] < 0)
            own = {"changes": beyond, "anchor": plan.predictor, FAR: plan.far, "tried": plan.interval.is_tried}
            asked_for = told(plan.query.columns, (*of_gene, *own))
            tables.append(pd.DataFrame(asked_for | of_gene | own))
        return pd.concat(tables, ignore_index=True)

    def predict_parts(
        self,
        queries: pd.DataFrame | str | Path,
        source: ad.AnnData | str | Path,
        sampling: Sampling | None = None,
        *,
        paired: bool = False,
        on_query: Callable[[int, int], None] | None = None,
        on_disk: bool | None = None,
    ) -> Iterator[ad.AnnData]:
        """The same cells in parts of a few thousand, each made when it is asked for: for more cells than memory.

        Of several processes each makes some of the parts, and the main one alone is given them.
        """
        sampling = Sampling() if sampling is None else sampling
        require_kind(sampling, Sampling, "the sampling", "Sampling(...)")
        make = LatentGenerator if isinstance(self.fitted, UpstreamFitted) else Generator
        asked, table = self.processes.together(lambda: self._asked(queries, source, on_disk))
        generator = self.processes.together(lambda: make(self.fitted, table, self.schema, sampling, paired))
        plans = self.processes.together(lambda: understood(asked, generator.plan))
        uns = {
            "sampling": settings_to_json(sampling) | ({"paired": True, "sampler": "ddim"} if paired else {}),
            "data_sha256": self.manifest.get("data_sha256", ""),
            "cells_sha256": self.manifest.get("cells_sha256", ""),
            "unit": self.fitted.normalisation.unit,
            "version": version("squidiff-ng"),
        }
        ends = list(itertools.accumulate(generator.n_blocks(plan) for plan in plans))
        blocks = itertools.chain.from_iterable(map(generator.blocks, plans))
        for done, part in enumerate(self.processes.in_turn(blocks), start=1):
            remember_schema(part, self.schema)
            part.uns["squidiff"] = uns
            yield part
            if on_query is not None and done in ends:
                on_query(ends.index(done) + 1, len(plans))

    def _asked(
        self, queries: pd.DataFrame | str | Path, source: ad.AnnData | str | Path, on_disk: bool | None
    ) -> tuple[list[Query], CellTable]:
        """What is asked for, and the cells that predictions start from."""
        asked, cells = read_queries(queries, self.schema), open_cells(source, on_disk)
        refuse_unknown_columns(asked, self.schema, cells.obs)
        return asked, self.table(cells, name_of(source))

    def save(self, folder: str | Path) -> None:
        """Writes a run folder, new or empty until then. Raises InputError when it is neither or cannot be written."""
        folder, _ = Path(folder), self.fitted

        def write() -> None:
            require_empty(folder)
            self._write(folder)

        self.processes.by_main(write)

    def _write(self, folder: Path) -> None:
        """All files of a run, model.safetensors last and whole."""
        settings = self._settings() | self.fitted.to_json()
        write_json(folder / "check.json", self.check)
        write_json(folder / "manifest.json", self.manifest)
        write_json(folder / "provenance.json", self.provenance)
        write_json(folder / "config.json", settings)
        write_records(folder / METRICS, self.history)
        write_tensors(folder / WEIGHTS, self.fitted.to_tensors(), {"config_sha256": digest(settings)})

    @classmethod
    def load(cls, folder: str | Path, device: str | Compute = "auto") -> Squidiff:
        """A trained model from a run folder; nothing in it is executed. Raises InputError when it is not whole."""
        require_kind(folder, (str, Path), "the run folder", "its path")
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            reason = "there is no such folder"
            if (folder / "config.json").is_file():
                reason = "training has not finished (continue it with --resume)"
            elif folder.exists():
                reason = "it is not a run folder, as `squidiff train --out` writes"
            raise InputError(f"{folder} holds no trained model: {reason}")
        saved = read_object(folder / "config.json")
        if saved.get("format") != FORMAT:
            raise InputError(f"{folder} has format {saved.get('format')!r}, this version reads {FORMAT}: train again")
        if not all(isinstance(saved.get(part), dict) for part in ("schema", "config")):
            raise InputError(f"{folder}/config.json has no schema or no config: it was cut or changed by hand")
        model = cls(settings_from_json(Schema, saved["schema"]), settings_from_json(Config, saved["config"]), device)
        model.manifest, model.check = read_object(folder / "manifest.json"), read_object(folder / "check.json")
        model.provenance = read_object(folder / "provenance.json")
        model.history = read_records(folder / METRICS)
        tensors, note = read_tensors(folder / WEIGHTS)
        if note.get("config_sha256") != digest(saved):
            raise InputError(
                f"{folder}/model.safetensors and config.json do not belong together: one is another run's, or "
                "config.json was changed by hand"
            )
        rebuilt = rebuild_upstream if model.config.architecture == "upstream" else rebuild
        model._fitted = rebuilt(saved, tensors, model.config, model.device)
        return model

    @classmethod
    def of(
        cls,
        fitted: Fitted | UpstreamFitted,
        schema: Schema,
        config: Config,
        *,
        manifest: dict[str, Any],
        provenance: dict[str, Any],
    ) -> Squidiff:
        """A model, on the CPU, of what was fitted elsewhere."""
        model = cls(schema, config, "cpu")
        model._fitted, model.manifest, model.provenance = fitted, manifest, provenance
        return model

    def _settings(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": version("squidiff-ng"),
            "schema": settings_to_json(self.schema),
            "config": settings_to_json(self.config),
        }

    @contextmanager
    def _claimed(self, folder: Path, resume: bool, beside_others: bool) -> Iterator[None]:
        """Inside, the run folder is this run's alone."""
        settings, further = self._settings(), self._upstream_files
        how = {"resume": resume, "beside_others": beside_others}

        def claim() -> None:
            refuse_claim(folder, settings, self.manifest, further=further, **how)  # before the lock makes a file in it
            held.enter_context(locked(folder))
            refuse_claim(folder, settings, self.manifest, further=further, **how)
            begin_folder(folder, settings, self.manifest, self.check, further)

        with ExitStack() as held:
            self.processes.by_main(claim)
            yield
        self.processes.by_main(functools.partial(end_folder, folder))

    def _as_begun(
        self, fitted: Fitted | UpstreamFitted, pairs: Pairs | ShownPairs, folder: Path | None
    ) -> tuple[Fitted | UpstreamFitted, Pairs | ShownPairs]:
        """Both as the run in the folder has them, if one is gone on with there.

        Raises InputError where not all processes see the same run and the same cells.
        """
        needs_it = self.processes.n > 1 or isinstance(fitted, Fitted)
        saved = newest_state(folder)[0] if needs_it and folder is not None and has_state(folder) else None
        seen = self.manifest["data_sha256"], None if saved is None else saved.step
        self.processes.require_same(seen, "cells and the same run folder")
        if saved is not None and isinstance(fitted, Fitted):
            return begin_again(fitted, pairs, self.config, saved)
        return fitted, pairs

    def _to_start_from(self, start: Squidiff) -> Fitted:
        """What a model leaves that is to be trained further. Raises InputError when this one cannot go on with it."""
        if not isinstance(start, Squidiff):
            raise InputError(f"start is {start!r}: give a model, as Squidiff.load returns")
        if isinstance(start.fitted, UpstreamFitted) or self.config.architecture == "upstream":
            raise InputError("upstream's architecture is trained further with `train --resume` alone")
        if self._told not in (None, start.schema):
            raise InputError("the model to start from has another schema: its columns and control must be the same")
        if start.config.normalize != self.config.normalize:
            raise InputError("the model to start from was trained with another --normalize: give the same")
        return start.fitted

    def _train(
        self,
        fitted: Fitted | UpstreamFitted,
        pairs: Pairs | ShownPairs,
        recipe: Recipe[Any],
        folder: Path | None,
        resume: bool,
        on_record: Callable[[Record], None] | None,
        on_note: Callable[[str], None] | None,
    ) -> tuple[float, str]:
        """The error of the predicted noise on training cells, and how training diverged, '' where it did not.

        Raises Diverged where no good weights had been kept.
        """
        config = self.config
        rows = np.random.default_rng((config.seed, 2)).permutation(pairs.target_rows())
        n_validation = min(round(config.validation_fraction * len(rows)), MAX_VALIDATION_CELLS)
        held, trained = rows[:n_validation], np.sort(rows[n_validation:])
        chunks = np.array_split(held, -(-len(held) // config.batch_size)) if len(held) else []
        rng = np.random.default_rng((config.seed, 3))
        held_pairs = pairs.on(self.device)
        diverged, share = "", {"rank": self.processes.rank, "n_processes": self.processes.n}
        is_upstream = folder is not None and config.architecture == "upstream"
        try:
            self.history = train(
                fitted.network,
                lambda n: BatchStream(held_pairs, trained, config.batch_size, config.seed, n, **share).draw,
                [pairs.batch(chunk, rng) for chunk in chunks],
                config,
                recipe,
                processes=self.processes,
                out=folder,
                resume=resume,
                on_record=on_record,
                on_save=functools.partial(self._save_as_upstream, folder) if is_upstream else None,
                on_note=on_note,
            )
        except Diverged as error:
            if not error.has_weights:
                raise
            self.history, diverged = error.records, str(error)
        some = trained[np.linspace(0, len(trained) - 1, min(len(trained), MAX_VALIDATION_CELLS)).astype(int)]
        batch = pairs.batch(some, np.random.default_rng((config.seed, 4)))
        size = self.history[-1].micro_batch_size or config.batch_size
        return noise_error(fitted.network, batch, config.seed, recipe, size), diverged

    def _as_sources(self, adata: ad.AnnData) -> ad.AnnData:
        """With upstream's drugs, cells that have no SMILES column are control cells all, as in its control files."""
        key = self.schema.condition_key
        is_upstream = self.config.architecture == "upstream"
        if not is_upstream or key is None or key != self.schema.smiles_key or key in adata.obs:
            return adata
        dose_key = self.schema.dose_key
        columns = {key: self.schema.control} | ({} if dose_key is None else {dose_key: 0.0})
        return ad.AnnData(X=adata.X, obs=adata.obs.assign(**columns), var=adata.var)

    def _save_as_upstream(self, folder: Path, newest: Weights, averages: Sequence[Weights]) -> None:
        """The files that upstream's training leaves: newest and averaged weights."""
        for name, average in zip(self._upstream_files, ({}, *averages), strict=True):
            write_upstream(folder / name, newest | average)

    @property
    def _upstream_files(self) -> tuple[str, ...]:
        decays = (self.config.ema_decay, *self.config.further_ema_decays)
        return "model.pt", *(f"model_{decay}.pt" for decay in decays)

    def table(self, adata: ad.AnnData, where: str, schema: Schema | None = None) -> CellTable:
        """Cells with the genes of training in its order, in its unit; `where` names them in an error.

        Their populations are those of the schema, the model's if none is given. Raises InputError as `predict`.
        """
        schema = self.schema if schema is None else schema
        table = CellTable.from_anndata(self._as_sources(adata), schema, self.fitted.genes, where)
        if self.fitted.normalisation.unit not in (COUNTS, UNKNOWN):
            table = normalized(table, adata.obs, self.config)
        self.fitted.require(table.survey, where)
        return table
