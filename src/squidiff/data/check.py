"""The input doctor: finds what is wrong with a data set before training does, and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from squidiff.config import InputError, Schema
from squidiff.data.conditions import ConditionEncoder, Part, parse_condition
from squidiff.data.table import (
    LARGEST_LOG_VALUE,
    as_matrix,
    as_text,
    group_rows,
    looks_like_counts,
    read_cells,
    stored_values,
)

FEW_CELLS = 10
"""A population of fewer cells says little of its mean."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. Errors stop training, warnings do not."""

    severity: Literal["error", "warning"]
    what: str
    where: str
    count: int
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} (in {self.where}; {self.count:,}): {self.remedy}"


@dataclass(frozen=True)
class CheckReport:
    """What the doctor found in a data set."""

    n_cells: int
    n_genes: int
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop training."""
        return tuple(f for f in self.findings if f.severity == "error")

    def raise_errors(self) -> None:
        """Raises InputError with the first error, and the number of the others, if there is any."""
        if self.errors:
            others = len(self.errors) - 1
            more = f" ({others} more error{'s' if others > 1 else ''}: see `squidiff check`)" if others else ""
            raise InputError(f"{self.errors[0]}{more}")

    def without(self, what: str) -> CheckReport:
        """The report without one kind of finding, for whoever means it so."""
        return replace(self, findings=tuple(f for f in self.findings if f.what != what))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, as in a run's check.json."""
        return {"n_cells": self.n_cells, "n_genes": self.n_genes, "findings": [asdict(f) for f in self.findings]}


def check(source: str | Path | ad.AnnData, schema: Schema | None = None, *, normalize: bool = False) -> CheckReport:
    """Examines a data set as training would see it.

    `normalize` says that X is known to hold raw counts, which are an error otherwise. Never raises on bad data: even an
    unreadable file is a finding.
    """
    schema = schema or Schema()
    try:
        adata = read_cells(source)
        cells = as_matrix(adata)
    except InputError as error:
        unusable = Finding("error", "unusable file", "the file", 1, str(error))
        return CheckReport(0, 0, (unusable,))
    missing = list(_missing_columns(adata, schema))
    findings = [*missing, *_values(cells, normalize), *_names(adata)]
    if not missing:
        empty = list(_empty_labels(adata, schema))
        labels = empty or [*_control(adata, schema), *_conditions(adata, schema)]
        findings += labels or _populations(adata, schema)
    findings.sort(key=lambda f: f.severity != "error")
    return CheckReport(adata.n_obs, adata.n_vars, tuple(findings))


def _missing_columns(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    for column in schema.columns:
        if column not in adata.obs.columns:
            there = ", ".join(map(str, adata.obs.columns)) or "none"
            yield Finding(
                "error", f"column {column!r} is missing", "obs", 1, f"name one of the columns there are: {there}"
            )


def _values(cells: np.ndarray | sp.csr_matrix, normalize: bool) -> Iterator[Finding]:
    values = stored_values(cells)
    n_bad = int((~np.isfinite(values)).sum())
    if n_bad:
        yield Finding("error", "NaN or infinite values", "X", n_bad, "replace them or drop their cells or genes")
        return
    if looks_like_counts(cells):
        if not normalize:
            remedy = "pass --normalize, or give log-normalised values"
            yield Finding("error", "raw counts", "X", int(np.count_nonzero(values)), remedy)
    elif normalize:
        remedy = "leave --normalize out: X does not hold raw counts"
        yield Finding("error", "--normalize on values that are not counts", "X", int(np.count_nonzero(values)), remedy)
    n_negative = int((values < 0).sum())
    if n_negative:
        remedy = "log-normalised values are never negative; scaled data lose the zeros, so give unscaled values"
        yield Finding("warning", "negative values", "X", n_negative, remedy)
    n_large = int((values > LARGEST_LOG_VALUE).sum())
    if n_large and not normalize and not looks_like_counts(cells):
        remedy = "if the values were not logged, take log1p first"
        yield Finding("warning", f"values above {LARGEST_LOG_VALUE:g}", "X", n_large, remedy)
    constant = _column_range(cells) == 0
    if constant.any():
        remedy = "they cannot be learned from; choose genes with `squidiff prepare --n-genes`"
        yield Finding("warning", "constant genes", "X", int(constant.sum()), remedy)
    n_empty = int((np.asarray(abs(cells).sum(axis=1)).ravel() == 0).sum())
    if n_empty:
        yield Finding("warning", "cells without a single count", "X", n_empty, "drop them")


def _column_range(cells: np.ndarray | sp.csr_matrix) -> np.ndarray:
    if sp.issparse(cells):
        return np.asarray((cells.max(axis=0) - cells.min(axis=0)).toarray()).ravel()
    return np.asarray(np.ptp(cells, axis=0))


def _names(adata: ad.AnnData) -> Iterator[Finding]:
    for names, severity, what, remedy in (
        (adata.var_names, "error", "duplicate gene names", "run `adata.var_names_make_unique()`"),
        (adata.obs_names, "warning", "duplicate cell names", "run `adata.obs_names_make_unique()`"),
    ):
        n = int(names.duplicated().sum())
        if n:
            where = "var_names" if severity == "error" else "obs_names"
            example = names[names.duplicated()][0]
            yield Finding(severity, f"{what}, such as {example!r}", where, n, remedy)  # type: ignore[arg-type]


def _empty_labels(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    is_control = _is_control(adata, schema)
    for column in schema.columns:
        empty = adata.obs[column].isna().to_numpy()
        if column in (schema.smiles_key, schema.dose_key, schema.direction_key):
            empty &= ~is_control  # a control has no drug, no dose, no direction
        if empty.any():
            yield Finding(
                "error", f"empty values in column {column!r}", "obs", int(empty.sum()), "fill them or drop the cells"
            )


def _is_control(adata: ad.AnnData, schema: Schema) -> np.ndarray:
    if schema.condition_key is None:
        return np.zeros(adata.n_obs, dtype=bool)
    return np.asarray(as_text(adata.obs[schema.condition_key]) == schema.control)


def _control(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    if schema.control is not None and not _is_control(adata, schema).any():
        values = ", ".join(sorted(as_text(adata.obs[schema.condition_key]).unique())[:5])
        remedy = f"name the control: column {schema.condition_key!r} has {values}"
        yield Finding("error", f"no control {schema.control!r}", f"obs column {schema.condition_key!r}", 1, remedy)


def _conditions(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    """Every distinct row of the schema's columns is read; the first error of each kind of message is kept."""
    if not schema.columns:
        return
    rows = pd.DataFrame({column: as_text(adata.obs[column]) for column in schema.columns})
    counts = rows.value_counts(sort=False)
    problems: dict[str, int] = {}
    conditions: dict[tuple[Part, ...], int] = {}
    for row, n in counts.items():
        try:
            parts = parse_condition(dict(zip(schema.columns, row, strict=True)), schema)
            conditions[parts] = conditions.get(parts, 0) + int(n)
        except InputError as error:
            problems[str(error)] = problems.get(str(error), 0) + int(n)
    try:
        ConditionEncoder.fit(conditions, schema)
    except InputError as error:
        problems |= _problems_of_parts(conditions, schema) or {str(error): 1}
    for message, n in problems.items():
        about_file = schema.embeddings is not None and message.startswith("embeddings file")
        where, remedy = ("--embeddings", "correct the file") if about_file else ("obs", "correct the column")
        yield Finding("error", message, where, n, remedy)


def _problems_of_parts(conditions: dict[tuple[Part, ...], int], schema: Schema) -> dict[str, int]:
    """What is wrong with single conditions, and how many cells have it; empty when it lies in no single one."""
    problems: dict[str, int] = {}
    try:
        known = None if schema.embeddings is None else ConditionEncoder.fit([], schema)
    except InputError:
        return problems
    for parts, n in conditions.items():
        try:
            ConditionEncoder.fit([parts], schema) if known is None else known.encode(parts)
        except InputError as error:
            problems[str(error)] = problems.get(str(error), 0) + n
    return problems


def _populations(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    try:
        population, keys, _ = group_rows(adata.obs, schema)
    except InputError as error:
        yield Finding("error", str(error), "obs", 1, "correct the column")
        return
    n_cells = np.bincount(population, minlength=len(keys))
    small = [k for k, n in zip(keys, n_cells, strict=True) if n < FEW_CELLS]
    if small:
        example = ", ".join(str(part) for part in small[0] if part)
        remedy = f"their means are uncertain; the first is {example!r}"
        yield Finding("warning", f"populations of fewer than {FEW_CELLS} cells", "obs", len(small), remedy)
    if schema.control is not None:
        if all(condition == "" for _, condition, _ in keys):
            remedy = (
                f"nothing can be learned of a condition: column {schema.condition_key!r} holds {schema.control!r} alone"
            )
            yield Finding("warning", "control cells only", "obs", int(n_cells.sum()), remedy)
        with_control = {context for context, condition, _ in keys if condition == ""}
        orphans = [k for k in keys if k[0] not in with_control]
        if orphans:
            n = int(sum(n_cells[keys.index(k)] for k in orphans))
            remedy = f"training leaves these cells out; the first context is {orphans[0][0]!r}"
            yield Finding("warning", "conditions without control cells in their context", "obs", n, remedy)
    if "split" in adata.obs.columns and (adata.obs["split"].astype(str) == "test").any():
        n = int((adata.obs["split"].astype(str) == "test").sum())
        yield Finding("warning", "held-out cells (column 'split' says test)", "obs", n, "do not train on them")
