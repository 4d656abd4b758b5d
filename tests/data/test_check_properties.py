"""Data of any shape made wrong in one way at a time: the defect is found, and none is invented where there is none."""

from __future__ import annotations

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from squidiff.config import Schema
from squidiff.data.check import check

SCHEMA = Schema(condition_key="treatment", control="vehicle", context_keys=("line",), time_key="hour", dose_key="dose")
STORED = (np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array)


@st.composite
def clean(draw: st.DrawFn) -> ad.AnnData:
    """Log-normalised cells of one to three lines, with control and one to three drugs in each, ten or more of each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lines, drugs = ["K562", "A549", "MCF7"][: draw(st.integers(1, 3))], ["x", "y", "z"][: draw(st.integers(1, 3))]
    n_genes = draw(st.integers(3, 12))
    labels = [(line, drug) for line in lines for drug in ["vehicle", *drugs] for _ in range(draw(st.integers(10, 14)))]
    order = rng.permutation(len(labels))
    counts = rng.poisson(2.0, (len(labels), n_genes)) + 1.0 * (np.arange(n_genes) == rng.integers(n_genes))
    counts[np.arange(len(labels)), rng.integers(n_genes, size=len(labels))] += 1
    scaled = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    obs = pd.DataFrame([labels[i] for i in order], columns=["line", "treatment"]).assign(hour=24.0)
    obs["dose"] = np.where(obs["treatment"] == "vehicle", 0.0, 1.5)
    obs.index = pd.Index([f"cell{i}" for i in range(len(obs))])
    if draw(st.booleans()):
        obs = obs.astype({"line": "category", "treatment": "category"})
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    stored = draw(st.sampled_from(STORED))
    return ad.AnnData(stored(scaled.astype(dtype)), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray() if sp.issparse(adata.X) else adata.X.copy()


def values(change: Callable[[np.ndarray, int], None]) -> Callable[[ad.AnnData, int], None]:
    """A defect of X at a row."""

    def plant(adata: ad.AnnData, row: int) -> None:
        x = dense(adata)
        change(x, row)
        adata.X = x

    return plant


def label(column: str, value: object) -> Callable[[ad.AnnData, int], None]:
    """A defect of one cell's label."""

    def plant(adata: ad.AnnData, row: int) -> None:
        changed = adata.obs[column].astype(object)
        changed.iloc[row] = value
        adata.obs[column] = changed

    return plant


def set_at(value: float) -> Callable[[np.ndarray, int], None]:
    def change(x: np.ndarray, row: int) -> None:
        x[row, row % x.shape[1]] = value

    return change


def raw(x: np.ndarray, row: int) -> None:
    x[:] = np.rint(np.expm1(x) / 10) + 1


def nothing_at(x: np.ndarray, row: int) -> None:
    x[row] = 0.0


def one_value(x: np.ndarray, row: int) -> None:
    x[:, row % x.shape[1]] = 1.25


def rename_gene(adata: ad.AnnData, row: int) -> None:
    adata.var_names = ["g1", *adata.var_names[1:]]


def rename_cell(adata: ad.AnnData, row: int) -> None:
    names = list(adata.obs_names)
    names[row] = names[row - 1]
    adata.obs_names = names


def drop_column(adata: ad.AnnData, row: int) -> None:
    del adata.obs[SCHEMA.columns[row % len(SCHEMA.columns)]]


def drop_control(adata: ad.AnnData, row: int) -> None:
    adata.obs["treatment"] = adata.obs["treatment"].astype(object).replace("vehicle", "w")


def drop_control_here(adata: ad.AnnData, row: int) -> None:
    here = (adata.obs["line"] == adata.obs["line"].iloc[row]) & (adata.obs["treatment"] != "vehicle")
    adata.obs["line"] = adata.obs["line"].astype(object).where(~here, "new line")


DEFECTS: dict[str, tuple[Callable[[ad.AnnData, int], None], str]] = {
    "NaN or infinite values": (values(set_at(np.nan)), "error"),
    "NaN or infinite": (values(set_at(-np.inf)), "error"),
    "raw counts": (values(raw), "error"),
    "negative values": (values(set_at(-1.0)), "warning"),
    "values above 20": (values(set_at(1e4)), "warning"),
    "cells without a single count": (values(nothing_at), "warning"),
    "constant genes": (values(one_value), "warning"),
    "duplicate gene names": (rename_gene, "error"),
    "duplicate cell names": (rename_cell, "warning"),
    "column '": (drop_column, "error"),
    "empty values in column 'line'": (label("line", None), "error"),
    "empty values in column 'hour'": (label("hour", np.nan), "error"),
    "no control 'vehicle'": (drop_control, "error"),
    "conditions without control cells": (drop_control_here, "warning"),
    "labels that are nearly the same": (label("line", "k-562"), "warning"),
    "dose '-2.0' of condition": (label("dose", -2.0), "error"),
    "dose '10 uM' of condition": (label("dose", "10 uM"), "error"),
    "time 'late' in column 'hour'": (label("hour", "late"), "error"),
}


@pytest.mark.slow
@given(clean())
@settings(max_examples=60, deadline=None)
def test_clean_data_have_no_finding(adata: ad.AnnData) -> None:
    assert check(adata, SCHEMA).findings == ()
    assert check(adata).findings == ()


@pytest.mark.slow
@given(clean(), st.sampled_from(sorted(DEFECTS)), st.integers(0, 10**6))
@settings(max_examples=250, deadline=None)
def test_a_defect_is_found_and_told_as_what_it_is(adata: ad.AnnData, what: str, row: int) -> None:
    plant, severity = DEFECTS[what]
    treated = np.flatnonzero(adata.obs["treatment"] != "vehicle")  # a control's dose means nothing
    at = int(treated[row % len(treated)] if what.startswith("dose") else row % adata.n_obs)
    plant(adata, at)
    report = check(adata, SCHEMA)
    assert [f.severity for f in report.findings if f.what.startswith(what)] == [severity]
    others = [f.what for f in report.findings if not f.what.startswith(what) and f.severity == "error"]
    assert not others
