"""The input doctor: finds what is wrong with a data set before training does, and says what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import anndata as ad

from squidiff.config import InputError, Schema, as_flags
from squidiff.data.check_labels import check_labels, check_leakage, check_missing
from squidiff.data.check_values import (
    check_names,
    check_values,
    kinds_of_genes,
    main_kind,
    totals_of_more_genes,
)
from squidiff.data.finding import CheckReport, Finding, Mend
from squidiff.data.matrix import as_matrix
from squidiff.data.survey import Survey, survey
from squidiff.data.table import open_cells, schema_of
from squidiff.data.unit import COUNTS, recognise_unit


def check(
    source: str | Path | ad.AnnData,
    schema: Schema | None = None,
    *,
    normalize: bool = False,
    held_out: str | Path | ad.AnnData | None = None,
) -> CheckReport:
    """Examines a data set as training would see it, and what it shares with held-out cells.

    Without a schema the one that the data remember is taken. `normalize` says that X is known to hold raw counts, which
    are an error otherwise. Never raises on bad data: even an unreadable file is a finding.
    """
    try:
        others = None if held_out is None else open_cells(held_out)
    except InputError as error:
        return CheckReport(0, 0, (Finding("error", "unusable held-out file", "the held-out file", 1, str(error)),))
    try:
        data = "DATA.h5ad" if isinstance(source, ad.AnnData) else str(source)
        cells = open_cells(source)
        return examine(cells, schema_of(cells, schema), normalize, data, others)[0]
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
    mend = _command(data, schema if not missing else Schema(), unit == COUNTS, totals_of_more_genes(found, adata.obs))
    findings = [*missing, *check_values(found, adata.obs, unit, normalize, mend), *check_names(adata, kinds)]
    if not missing:
        findings += check_labels(adata, schema, mend)
        if others is not None:
            findings += check_leakage(adata, others, schema)
    findings.sort(key=lambda f: f.severity != "error")
    return CheckReport(adata.n_obs, adata.n_vars, tuple(findings), unit, main_kind(kinds)), found


def _command(data: str, schema: Schema, is_counts: bool, totals: str | None) -> Mend:
    """The command of `prepare` that mends something, as it can be pasted: it says all that training would want."""
    words = ["squidiff prepare", shlex.quote(data), as_flags(schema)]
    if is_counts:
        words += ["--normalize"] + ([f"--total-counts-key {shlex.quote(totals)}"] if totals else [])
    out = f"--out {shlex.quote(Path(data).stem + '_prepared.h5ad')}"
    return lambda options="": " ".join(word for word in (*words, options, out) if word)
