"""Before the first step of a training: cells that were looked at, in one unit, and what is fitted on them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import Config, InputError, Schema, require_even, settings_to_json
from squidiff.data.check import examine
from squidiff.data.conditions import ConditionEncoder
from squidiff.data.dataset import Pairs, ShownPairs
from squidiff.data.finding import CheckReport
from squidiff.data.manifest import describe_table
from squidiff.data.matrix import scale_and_log
from squidiff.data.preprocess import scaling
from squidiff.data.queries import refuse_own_names
from squidiff.data.table import CellTable, open_cells, preparations, schema_of
from squidiff.data.unit import Normalisation
from squidiff.estimator.fitted import Fitted, begin_anchored, begin_from
from squidiff.estimator.upstream import UpstreamFitted, begin_upstream
from squidiff.train.loop import Recipe
from squidiff.train.processes import Processes

MIN_CELLS = 10
"""Of training: fewer have no axes worth the name."""


class Begun(NamedTuple):
    """What a training starts from."""

    schema: Schema
    """What was given or, without, what the data remember."""
    fitted: Fitted | UpstreamFitted
    pairs: Pairs | ShownPairs
    recipe: Recipe[Any]
    check: dict[str, Any]
    """The doctor's report."""
    manifest: dict[str, Any]


def begin(
    data: ad.AnnData | str | Path,
    schema: Schema | None,
    config: Config,
    processes: Processes,
    earlier: Fitted | None,
    on_check: Callable[[CheckReport], None] | None,
    on_note: Callable[[str], None] | None,
    *,
    as_given: bool,
    source_rows: np.ndarray | None,
    on_disk: bool | None,
    not_these: str | None,
) -> Begun:
    """What `Squidiff.fit` trains; `earlier` is what it starts from, if from anything. Raises InputError as `fit`.

    `not_these` is the hash of cells that it must not be given again.
    """
    adata, where = open_cells(data, on_disk), name_of(data)
    if schema is None:
        say = on_note if processes.is_main else None
        schema = schema_of(adata, None, say, where)
        if say is not None and schema == Schema():
            say(f"no column of {where} is named: the model learns to make more cells like all of these together")
    if source_rows is not None and (config.architecture != "upstream" or schema.smiles_key is None):
        raise InputError("source_rows have no use but with upstream's architecture and SMILES: leave them out")
    if config.architecture == "upstream" and schema.embeddings is not None:
        raise InputError("--embeddings have no use with upstream's architecture: leave them out")
    require_even(config, processes.n)
    refuse_own_names(schema)
    report, found = examine(adata, schema, config.normalize, where)
    if as_given:
        report = report.without("raw counts")
    report.raise_errors()
    if on_check is not None and processes.is_main:
        on_check(report)
    genes = None if earlier is None else earlier.genes
    table = CellTable.from_anndata(adata, schema, genes, where=where, found=None if genes else found)
    if not as_given:
        table = normalized(table, adata.obs, config)
    encoder = _encoder(table, schema, earlier)
    normalisation = _normalisation(adata, table, config)
    if config.architecture == "upstream":
        fit = functools.partial(begin_upstream, source_rows=source_rows)
    elif earlier is not None:
        earlier.require(table.survey, where)
        fit = functools.partial(begin_from, earlier=earlier)
    else:
        fit = begin_anchored
    fitted, pairs, recipe = fit(table, encoder, normalisation, schema, config, processes.device)
    n_cells = len(pairs.target_rows())
    if n_cells < MIN_CELLS:
        which = "" if schema.control is None else ", those with control cells in their context"
        raise InputError(f"{n_cells} cells can be trained on{which}: give {MIN_CELLS} or more")
    if min(config.batch_size, round((1 - config.validation_fraction) * n_cells)) < 2 * processes.n:
        raise InputError(
            f"{n_cells} cells in batches of {config.batch_size} cannot be shared by {processes.n} processes"
        )
    manifest = describe_table(table)
    if not_these is not None and manifest["data_sha256"] == not_these:
        raise InputError("the model to start from was trained on these very cells: give new ones")
    manifest["vocabulary_sha256"] = hashlib.sha256(encoder.vectors.tobytes()).hexdigest()
    manifest["started_from"] = "" if earlier is None else earlier.hash()
    return Begun(schema, fitted, pairs, recipe, report.to_json(), manifest)


def normalized(table: CellTable, obs: pd.DataFrame, config: Config) -> CellTable:
    """The table in the unit of training; totals are those of its genes, or those that obs gives."""
    is_counts = table.survey.looks_like_counts
    if config.normalize and not is_counts:
        raise InputError("the model was trained with --normalize, but X does not hold raw counts: give raw counts")
    if not config.normalize and is_counts:
        raise InputError("X holds raw counts, but the model was trained on normalised values: normalise them alike")
    if not is_counts:
        return table
    factor = scaling(obs, table.survey, config.target_sum, config.total_counts_key)
    return table.with_cells(scale_and_log(table.cells, factor))


def name_of(data: ad.AnnData | str | Path) -> str:
    """What an error calls the data."""
    return "the data" if isinstance(data, ad.AnnData) else str(data)


def _encoder(table: CellTable, schema: Schema, earlier: Fitted | None) -> ConditionEncoder:
    """Of the cells' conditions; with a model to start from its own embeddings, where their file is gone."""
    if earlier is not None and schema.embeddings is not None and not Path(schema.embeddings).exists():
        return earlier.encoder
    return ConditionEncoder.fit(table.parts, schema)


def _normalisation(adata: ad.AnnData, table: CellTable, config: Config) -> Normalisation:
    if config.normalize:
        return Normalisation.of(table.survey, settings_to_json(config), "train")
    done = next((settings for settings in preparations(adata) if settings.get("normalize")), {})
    return Normalisation.of(table.survey, done, "prepare")
