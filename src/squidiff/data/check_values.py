"""The doctor on X and on the names of cells and genes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.data.finding import Finding, Mend
from squidiff.data.survey import LARGEST_LOG_VALUE, Survey
from squidiff.data.unit import COUNTS

FEWER_COUNTS = "cells with fewer counts than obs says"
"""A finding, which who names the column of totals need not hear."""
TOTALS = re.compile(
    r"(n[._]?counts?([._].*)?|total[._]?(counts?|umis?)([._].*)?|ncount[._]?rna|n[._]?umis?)", re.IGNORECASE
)
"""Names that obs columns of a cell's total counts go by (scanpy, Seurat and others)."""


def check_values(found: Survey, obs: pd.DataFrame, unit: str, normalize: bool, mend: Mend) -> Iterator[Finding]:
    """Findings on X (N x G), whose unit is recognised."""
    if found.n_bad:
        yield Finding("error", "NaN or infinite values", "X", found.n_bad, "replace them or drop their cells or genes")
        return
    if unit == COUNTS:
        if not normalize:
            remedy = "pass --normalize, or give log-normalised values"
            yield Finding("error", "raw counts", "X", found.n_nonzero, remedy, mend())
        yield from _left_out_genes(found, obs)
    elif normalize:
        remedy = "leave --normalize out: X does not hold raw counts"
        yield Finding("error", "--normalize on values that are not counts", "X", found.n_nonzero, remedy)
    if found.n_negative:
        remedy = "log-normalised values are never negative; scaled data lose the zeros, so give unscaled values"
        yield Finding("warning", "negative values", "X", found.n_negative, remedy)
    if found.n_large and unit != COUNTS:
        what = f"values above {LARGEST_LOG_VALUE:g}" + (f" ({unit})" if "not logged" in unit else "")
        remedy = "if the values were not logged, take log1p first"
        command = "" if found.n_negative else "sc.pp.log1p(adata)"  # scaled values have no logarithm
        yield Finding("warning", what, "X", found.n_large, remedy, command)
    yield from _empty(found, mend)


def totals_of_more_genes(found: Survey, obs: pd.DataFrame) -> str | None:
    """The obs column that knows larger totals than the counts add up to: genes were left out."""
    for column in obs.columns:
        if not TOTALS.fullmatch(str(column)) or not isinstance(obs[column], pd.Series):
            continue
        totals = pd.to_numeric(obs[column], errors="coerce").to_numpy(dtype=np.float64)
        is_short = totals > 1.01 * found.totals
        if is_short.mean() > 0.5 and (totals >= 0.99 * found.totals).all():
            return str(column)
    return None


def _left_out_genes(found: Survey, obs: pd.DataFrame) -> Iterator[Finding]:
    column = totals_of_more_genes(found, obs)
    if column is not None:
        n = int((pd.to_numeric(obs[column]).to_numpy() > 1.01 * found.totals).sum())
        remedy = f"some genes were left out: when normalising, pass --total-counts-key {column}"
        yield Finding("warning", FEWER_COUNTS, f"obs column {column!r}", n, remedy)


def _empty(found: Survey, mend: Mend) -> Iterator[Finding]:
    is_varying = found.lowest != found.highest
    is_zero = ~is_varying & (found.highest == 0)
    n_varying = int(is_varying.sum())
    command = mend(f"--n-genes {min(2000, n_varying)}") if n_varying else ""
    for what, chosen in (("genes without a single count", is_zero), ("constant genes", ~is_varying & ~is_zero)):
        if chosen.any():
            remedy = "they carry no information: choose genes that vary, as `prepare --n-genes` does"
            yield Finding("warning", what, "X", int(chosen.sum()), remedy, command)
    n_empty = int((found.n_expressed == 0).sum())
    if n_empty:
        command = "sc.pp.filter_cells(adata, min_counts=1)"
        yield Finding("warning", "cells without a single count", "X", n_empty, "drop them", command)


def check_names(adata: ad.AnnData, kinds: Counter[str]) -> Iterator[Finding]:
    """Findings on the names of cells and genes, whose kinds are counted."""
    for names, severity, what, where, call in (
        (adata.var_names, "error", "duplicate gene names", "var_names", "adata.var_names_make_unique()"),
        (adata.obs_names, "warning", "duplicate cell names", "obs_names", "adata.obs_names_make_unique()"),
    ):
        n = int(names.duplicated().sum())
        if n:
            example = names[names.duplicated()][0]
            yield Finding(severity, f"{what}, such as {example!r}", where, n, f"run `{call}`", call)  # type: ignore[arg-type]
    if looks_transposed(adata, kinds):
        what, remedy = "cell names that are those of genes", "the table looks transposed: rows must be cells"
        yield Finding("warning", what, "obs_names", adata.n_obs, remedy, "adata = adata.T")
    there = [(kind, n) for kind, n in kinds.most_common() if kind in MIXABLE and n >= SOME * adata.n_vars]
    if len(there) > 1:
        (main, _), (other, n) = there[:2]
        remedy = f"most are {main}: bring them into one kind, or keep the genes of one species"
        yield Finding("warning", f"genes that have {other}", "var_names", n, remedy)


SOME = 0.05
"""Of the genes: fewer names of another kind are exceptions that every annotation has."""
_KINDS = {
    "Ensembl identifiers (human)": re.compile(r"ENSG\d{11}(\.\d+)?"),
    "Ensembl identifiers (mouse)": re.compile(r"ENSMUSG\d{11}(\.\d+)?"),
    "Ensembl identifiers (other species)": re.compile(r"ENS[A-Z]{3,4}G\d{11}(\.\d+)?"),
    "FlyBase identifiers": re.compile(r"FBgn\d{7}"),
    "WormBase identifiers": re.compile(r"WBGene\d{8}"),
    "numbers": re.compile(r"\d+"),
    "symbols in capitals (as in human)": re.compile(r"(?=.*[A-Z]{2})[A-Z0-9.\-_/@]*(orf\d+)?"),
    "symbols with one capital (as in mouse)": re.compile(r"[A-Z][a-z]{2,}[A-Za-z0-9.\-_]*"),
}
MIXABLE = tuple(kind for kind in _KINDS if kind != "numbers")
"""Kinds that do not go together."""


_BARCODE = re.compile(r".*[ACGTN]{8,}.*")


def looks_transposed(adata: ad.AnnData, kinds: Counter[str]) -> bool:
    """Whether names of cells are those of genes, and names of genes, whose kinds are counted, are not."""
    if kinds.total() == 0 or adata.n_obs == 0:
        return False

    def are_genes(of: Counter[str], names: pd.Index) -> bool:
        return main_kind(of) in MIXABLE and np.mean([bool(_BARCODE.fullmatch(str(name))) for name in names]) < SOME

    # genes are few beside cells, whose names are mostly not asked for so
    return not are_genes(kinds, adata.var_names) and are_genes(kinds_of_genes(adata.obs_names), adata.obs_names)


def kinds_of_genes(names: Iterable[str]) -> Counter[str]:
    """How many names are of each kind."""
    return Counter(next((kind for kind, form in _KINDS.items() if form.fullmatch(str(n))), "names") for n in names)


def main_kind(kinds: Counter[str]) -> str:
    """The kind that at least nine of ten genes have, in words."""
    kind, n = kinds.most_common(1)[0]
    return kind if n >= 0.9 * kinds.total() else "names of several kinds"
