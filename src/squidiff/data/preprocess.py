"""Normalise, choose genes on training cells, hold cells out."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Preparation, Schema, require_kind, settings_to_json
from squidiff.data.manifest import describe_table
from squidiff.data.matrix import as_matrix, in_memory, scale_and_log
from squidiff.data.readers import quiet_about_names, read_gene_list, with_values_of
from squidiff.data.splits import follow_any, held_out_cells
from squidiff.data.survey import Survey, survey
from squidiff.data.table import (
    CellTable,
    group_rows,
    matched,
    preparations,
    read_cells,
    remember_preparation,
    remember_schema,
    require_columns,
)

ROUNDING = 1e-3
"""Of totals that were written down."""
RARE = 0.005
"""Share of the cells: a gene that fewer show is hardly one to be learned from."""
SPLIT = "split"
"""obs column that `prepare` writes: train or test."""


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made of a data set."""

    train: ad.AnnData
    test: ad.AnnData | None
    report: tuple[str, ...]
    """What was dropped and held out, a sentence each."""
    manifest: dict[str, Any]
    """The settings, the seed among them, and what both parts hold, with hashes; JSON-able."""


def prepare(source: ad.AnnData | str | Path, schema: Schema, settings: Preparation) -> Prepared:
    """Drops, normalises, holds out and chooses genes, in this order. The data set passed in stays as it is.

    Raises InputError for a missing column, a rule that no cell matches, values that are not finite, more genes asked
    for than there are, or a share so small that it holds no cell out.
    """
    require_kind(schema, Schema, "the schema", "Schema(...)")
    require_kind(settings, Preparation, "what is to be prepared", "Preparation(...)")
    adata = with_values_of(read_cells(source), settings.layer, settings.use_raw)
    return prepare_values(adata, schema, settings)


@quiet_about_names()
def prepare_values(adata: ad.AnnData, schema: Schema, settings: Preparation) -> Prepared:
    """The same, of data whose X is already that of the layer, or of .raw, that the settings name."""
    if SPLIT in schema.columns:
        raise InputError(f"column {SPLIT!r} is where the split is written: rename your column of that name")
    report = [f"read {adata.n_obs:,} cells and {adata.n_vars:,} genes"]
    dropped = follow_any(adata.obs, settings.drop)
    if settings.drop:
        report.append(f"dropped {int(dropped.sum()):,} cells: {'; '.join(settings.drop)}")
    kept = cap_populations(adata.obs, ~dropped, schema, settings)
    if settings.max_cells is not None:
        n_over = int((~dropped).sum() - kept.sum())
        report.append(f"dropped {n_over:,} cells: at most {settings.max_cells:,} a population")
    if not kept.any():
        raise InputError("no cell is left: drop fewer")
    if survey(as_matrix(adata[kept])).n_bad:
        raise InputError("X holds NaN or infinite values: run `squidiff check` on the file")
    prepared = adata[kept].copy()
    if settings.normalize:
        prepared = normalize(prepared, settings.target_sum, settings.total_counts_key)
        report.append(f"scaled each cell to {settings.target_sum:g} counts and took log1p")
    held_out = held_out_cells(prepared.obs, schema, settings)
    if settings.split == "random" and held_out.mean() < settings.test_fraction / 2:
        report.append(
            f"only {held_out.mean():.1%} of the cells are held out, as populations of few cells lose none: hold out by "
            "--split"
        )
    if held_out.all():
        raise InputError("every cell is held out: hold out fewer")
    if settings.test_fraction > 0 and not held_out.any():
        raise InputError(f"--test-fraction {settings.test_fraction:g} of every population is no cell: hold out more")
    prepared, told = _with_chosen_genes(prepared, held_out, settings)
    report += told
    if SPLIT in prepared.obs and not preparations(adata):
        report.append(f"the obs column {SPLIT!r} that was there is replaced")
    prepared.obs[SPLIT] = pd.Categorical(np.where(held_out, "test", "train"), categories=["train", "test"])
    remember_schema(prepared, schema)
    remember_preparation(prepared, settings)
    train, test = prepared[~held_out].copy(), prepared[held_out].copy()
    report.append(f"{train.n_obs:,} cells for training, {test.n_obs:,} held out")
    parts = {"train": train, "test": test}
    tables = {name: CellTable.from_anndata(part, schema) for name, part in parts.items() if part.n_obs}
    unseen = sorted(_part_names(tables.get("test")) - _part_names(tables["train"]))
    if unseen and schema.smiles_key is None and schema.embeddings is None:
        more = f" and {len(unseen) - 5} more" if len(unseen) > 5 else ""
        report.append(f"no training cell has {', '.join(unseen[:5])}{more}: a prediction needs --embeddings for them")
    manifest = {"settings": settings_to_json(settings), "schema": settings_to_json(schema), "report": report}
    manifest |= {name: describe_table(tables[name]) if name in tables else None for name in parts}
    return Prepared(train, test if test.n_obs else None, tuple(report), manifest)


def _with_chosen_genes(adata: ad.AnnData, held_out: np.ndarray, settings: Preparation) -> tuple[ad.AnnData, list[str]]:
    """The cells with the genes that are named, or that vary most over those that are not held out, and what is said."""
    if settings.genes is not None:
        wanted = read_gene_list(Path(settings.genes))
        unknown = [gene for gene in wanted if gene not in adata.var_names]
        if unknown:
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise InputError(f"{settings.genes} names genes that the data lack: {', '.join(unknown[:5])}{more}")
        adata = matched(adata, wanted).copy()
        return adata, [f"kept the {adata.n_vars:,} genes of {settings.genes}"]
    if settings.n_genes is None:
        return adata, []
    chosen = most_variable_genes(adata[~held_out], settings.n_genes, settings.keep, settings.genes_by)
    adata = adata[:, chosen].copy()
    n_showing = np.asarray((as_matrix(adata[~held_out]) != 0).sum(axis=0)).ravel()
    n_rare = int((n_showing < RARE * (~held_out).sum()).sum())
    rare = f"; {n_rare:,} of them are found in less than {RARE:.1%} of these cells" if n_rare else ""
    which = f"that vary most over the training cells, by {settings.genes_by}{_besides(settings.keep)}"
    return adata, [f"kept the {chosen.sum():,} genes {which}{rare}"]


def _besides(keep: Sequence[str]) -> str:
    return f", {', '.join(keep)} in any case" if keep else ""


def _part_names(table: CellTable | None) -> set[str]:
    """The drugs, genes or stimuli of some cells, none of no cells."""
    return set() if table is None else {part.name for parts in table.parts for part in parts}


def normalize(adata: ad.AnnData, target_sum: float, total_counts_key: str | None) -> ad.AnnData:
    """A copy with log1p(X / total * target_sum), total being the cell's sum or its value in an obs column.

    Cells without counts stay zero. Raises InputError when the column is missing or not positive.
    """
    cells = in_memory(adata)
    normalized = adata.copy()
    normalized.X = scale_and_log(cells, scaling(adata.obs, survey(cells), target_sum, total_counts_key))
    return normalized


def scaling(obs: pd.DataFrame, found: Survey, target_sum: float, total_counts_key: str | None) -> np.ndarray:
    """target_sum / total of each cell, (N,). Raises InputError when the column is missing or not positive."""
    totals = found.totals
    if total_counts_key is not None:
        require_columns(obs, [total_counts_key], "obs")
        totals = pd.to_numeric(obs[total_counts_key], errors="coerce").to_numpy(dtype=np.float64)
        if not (totals > 0).all():
            n = int((~(totals > 0)).sum())
            raise InputError(f"column {total_counts_key!r} has {n} values that are not positive numbers: correct them")
        too_small = totals < found.totals * (1 - ROUNDING) - 0.5  # totals may be whole where X is not
        if too_small.any():
            total, counted = totals[too_small][0], found.totals[too_small][0]
            raise InputError(
                f"column {total_counts_key!r} is smaller than the counts in X of {int(too_small.sum())} cells (as "
                f"{total:g} where X has {counted:g}): name the column of all counts of a cell"
            )
    return np.asarray(target_sum / np.maximum(totals, 1e-12), dtype=np.float32)


def cap_populations(obs: pd.DataFrame, kept: np.ndarray, schema: Schema, settings: Preparation) -> np.ndarray:
    """Which of the kept rows stay, (N,), when each population keeps at most `max_cells`, drawn with the seed."""
    if settings.max_cells is None:
        return kept
    rng = np.random.default_rng(settings.seed)
    candidates = np.flatnonzero(kept)
    population = group_rows(obs.iloc[candidates], schema)[0]
    stay = np.zeros(len(obs), dtype=bool)
    for i in np.unique(population):
        rows = candidates[population == i]
        stay[rng.permutation(rows)[: settings.max_cells]] = True
    return stay


def most_variable_genes(
    adata: ad.AnnData, n_genes: int, keep: Sequence[str] = (), by: Literal["variance", "dispersion"] = "variance"
) -> np.ndarray:
    """Which genes are the n most variable of log values, (G,): by their variance, or by scanpy's default dispersion.

    Those of `keep` come first. Raises InputError when one is missing, and for a dispersion of negative values.
    """
    from sklearn.preprocessing import StandardScaler

    if n_genes > adata.n_vars:
        raise InputError(f"--n-genes is {n_genes} but the data have {adata.n_vars} genes: ask for fewer")
    missing = sorted(set(keep) - set(adata.var_names))
    if missing or len(set(keep)) > n_genes:
        near = difflib.get_close_matches(missing[0], adata.var_names, n=3) if missing else []
        or_is = f"; there are {', '.join(near)}" if near else ""
        raise InputError(
            f"--keep {missing[0]} is no gene of the data{or_is}" if missing else "--keep names more than --n-genes"
        )
    if n_genes == adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    bare = ad.AnnData(X=in_memory(adata))
    found = survey(bare.X)
    if found.looks_like_counts:
        raise InputError("variable genes are chosen on log values, but X holds raw counts: pass --normalize")
    if found.n_large:
        highest = found.highest.max()
        raise InputError(f"variable genes are chosen on log values, but X holds {highest:.3g}: take log1p first")
    if (found.lowest == found.highest).all():
        raise InputError("variable genes cannot be chosen: no gene varies over the training cells")
    if by == "dispersion" and found.n_negative:
        raise InputError("X holds negative values, which have no dispersion: leave --genes-by out")
    if by == "variance":
        spread = StandardScaler(with_mean=False).fit(bare.X).var_
    else:
        import scanpy as sc
        from threadpoolctl import threadpool_limits

        # numba raises OpenMP's threads, which torch shares and the last bits of its sums hang on: they are set back
        with threadpool_limits({}), warnings.catch_warnings():  # of genes without values, which come last
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.filterwarnings("ignore", message="`n_top_genes` > number of normalized dispersions")
            table = sc.pp.highly_variable_genes(bare, n_top_genes=n_genes, inplace=False)
        spread = table["dispersions_norm"].fillna(-np.inf).to_numpy()
    chosen = np.zeros(adata.n_vars, dtype=bool)
    chosen[np.lexsort((-spread, ~np.isin(adata.var_names, list(keep))))[:n_genes]] = True
    return chosen
