"""The input doctor: finds what is wrong with a data set before training does, and says what to do."""

from __future__ import annotations

from pathlib import Path

import anndata as ad

from squidiff.config import InputError, Schema
from squidiff.data.check_labels import check_labels, check_leakage, check_missing
from squidiff.data.check_values import check_names, check_values, kinds_of_genes, main_kind
from squidiff.data.finding import CheckReport, Finding
from squidiff.data.matrix import as_matrix
from squidiff.data.survey import Survey, survey
from squidiff.data.table import open_cells
from squidiff.data.unit import recognise_unit


def check(
    source: str | Path | ad.AnnData,
    schema: Schema | None = None,
    *,
    normalize: bool = False,
    held_out: str | Path | ad.AnnData | None = None,
) -> CheckReport:
    """Examines a data set as training would see it, and what it shares with held-out cells.

    `normalize` says that X is known to hold raw counts, which are an error otherwise. Never raises on bad data: even an
    unreadable file is a finding.
    """
    try:
        others = None if held_out is None else open_cells(held_out)
        data = "DATA.h5ad" if isinstance(source, ad.AnnData) else str(source)
        return examine(open_cells(source), schema or Schema(), normalize, data, others)[0]
    except InputError as error:
        return CheckReport(0, 0, (Finding("error", "unusable file", "the file", 1, str(error)),))


def examine(
    adata: ad.AnnData, schema: Schema, normalize: bool, data: str, others: ad.AnnData | None = None
) -> tuple[CheckReport, Survey]:
    """The findings on cells, which a command calls `data`, and what is known of their values.

    Raises InputError when the values, or those of the others, cannot be read.
    """
    cells = as_matrix(adata, data)
    found = survey(cells)
    unit, kinds = recognise_unit(cells, found), kinds_of_genes(adata.var_names)
    missing = list(check_missing(adata, schema))
    findings = [*missing, *check_values(found, adata.obs, unit, normalize, data), *check_names(adata, kinds)]
    if not missing:
        findings += check_labels(adata, schema, data)
        if others is not None:
            findings += check_leakage(adata, others, schema)
    findings.sort(key=lambda f: f.severity != "error")
    return CheckReport(adata.n_obs, adata.n_vars, tuple(findings), unit, main_kind(kinds)), found
