"""A checkpoint of upstream's as a run of ours, and back."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from squidiff.config import PRESETS, InputError, Schema
from squidiff.data.conditions import ConditionEncoder
from squidiff.data.manifest import hash_names, provenance
from squidiff.data.readers import read_gene_list, require_unique
from squidiff.data.table import read_cells, require_columns, schema_of
from squidiff.data.unit import Normalisation
from squidiff.diffusion.schedule import StepSchedule
from squidiff.estimator import Squidiff
from squidiff.estimator.upstream import UpstreamFitted
from squidiff.legacy.beside import beside
from squidiff.legacy.cells import DRUG_SCHEMA
from squidiff.train.upstream_checkpoint import read_upstream, write_upstream


def convert(
    checkpoint: Path,
    genes: Path,
    schema: Schema | None = None,
    *,
    n_diffusion_steps: int | None = None,
    noise_schedule: Literal["linear", "cosine"] | None = None,
) -> Squidiff:
    """A model of ours with a checkpoint's weights; `genes` is a text file of names, one a line, or an .h5ad file.

    Without a schema it is the one that the .h5ad file remembers, or upstream's columns for drugs, or none (plain
    generation). The levels of training are in no checkpoint: where they are not given they are those of the run in
    whose folder it lies, or upstream's 1,000 linear steps. Raises InputError when the genes are not as many as the
    model's or not those of the run, or when the schema does not fit it.
    """
    known = beside(checkpoint)
    network = read_upstream(checkpoint)
    sizes = network.sizes
    names, remembered, obs = _read_genes(genes)
    if len(names) != sizes.n_genes:
        raise InputError(f"{genes} names {len(names)} genes, but {checkpoint} is a model of {sizes.n_genes}")
    if known.genes not in (None, names):
        raise InputError(f"{genes} has other genes, or in another order, than the run in {checkpoint.parent}")
    if schema is not None and obs is not None:
        require_columns(obs, schema.columns, f"obs of {genes}")
    has_drugs = sizes.has_drugs
    schema = schema or remembered or (DRUG_SCHEMA if has_drugs else Schema())
    if has_drugs != (schema.smiles_key is not None):
        remedy = "name the obs column of the SMILES with --smiles-key" if has_drugs else "leave --smiles-key out"
        was = "with" if has_drugs else "without"
        raise InputError(f"{checkpoint} was trained {was} drug structure: {remedy}")
    if schema.embeddings is not None:
        raise InputError("--embeddings have no use with upstream's architecture: leave them out")
    config = dataclasses.replace(
        PRESETS["upstream"],
        width=sizes.width,
        n_latent=sizes.n_latent,
        n_blocks=sizes.n_blocks,
        n_diffusion_steps=known.n_diffusion_steps if n_diffusion_steps is None else n_diffusion_steps,
        noise_schedule=noise_schedule or known.noise_schedule,
    )
    encoder = ConditionEncoder("smiles" if has_drugs else "one-hot", (), np.zeros((0, sizes.n_fingerprint), np.float32))
    schedule = StepSchedule.named(config.noise_schedule, config.n_diffusion_steps)
    fitted = UpstreamFitted(names, encoder, (), network, schedule, Normalisation.unknown())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return Squidiff.of(
        fitted,
        schema,
        config,
        manifest={"n_genes": len(names), "genes_sha256": hash_names(names), "populations": []},
        provenance=provenance(converted_from=checkpoint.name, checkpoint_sha256=digest),
    )


def export(model: Squidiff, path: Path) -> None:
    """Writes a checkpoint that upstream loads. Raises InputError for a model of another architecture."""
    if not isinstance(model.fitted, UpstreamFitted):
        raise InputError(
            "only models of upstream's architecture become its checkpoints (train with --preset upstream, or convert): "
            "this one has this project's own"
        )
    write_upstream(path, model.fitted.network.state_dict())


def _read_genes(path: Path) -> tuple[tuple[str, ...], Schema | None, pd.DataFrame | None]:
    """Gene names, and the schema and obs of an .h5ad file. Raises InputError when they cannot be read."""
    if path.suffix not in (".h5ad", ".h5"):
        return read_gene_list(path), None, None
    cells = read_cells(path)
    names, schema = tuple(map(str, cells.var_names)), schema_of(cells, None)
    require_unique(names, path)
    return names, None if schema == Schema() else schema, cells.obs
