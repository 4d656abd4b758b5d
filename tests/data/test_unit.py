"""What X holds, and what kind of names the genes have, is told by the values and the names alone."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from squidiff.data.check import check
from squidiff.data.check_values import kinds_of_genes, main_kind
from squidiff.data.survey import survey
from squidiff.data.unit import Normalisation, recognise_unit

# --- what X is


def scaled(total: float = 1e4, genes: int = 30) -> np.ndarray:
    counts = np.random.default_rng(1).poisson(3.0, (60, genes)).astype(np.float64)
    return counts / counts.sum(axis=1, keepdims=True) * total


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (np.random.default_rng(0).poisson(2.0, (60, 30)), "raw counts"),
        (scaled(), "counts per 10,000, not logged"),
        (scaled(1e6), "counts per 1,000,000, not logged"),
        (np.log1p(scaled()), "log1p of counts per 10,000"),
        (np.log1p(scaled(1234)), "log1p of counts per 1,230"),
        (np.log1p(scaled())[:, :20], "log1p of scaled counts, some genes left out"),
        (
            np.log1p(np.random.default_rng(0).poisson(2.0, (60, 30))),
            "log1p of counts that were not scaled to one total",
        ),
        (np.random.default_rng(0).normal(size=(60, 30)), "values below 0, such as scaled ones"),
        (np.random.default_rng(0).gamma(2.0, size=(60, 30)), "unknown"),
        (np.zeros((60, 30)), "unknown"),
        (1.0 * np.eye(30), "0 and 1 alone"),
        (np.random.default_rng(0).poisson(2.0, (60, 30)) * 1e30, "unknown"),
    ],
)
def test_the_unit_is_told_by_the_values(kind: type, values: np.ndarray, unit: str) -> None:
    assert check(ad.AnnData(kind(values.astype(np.float32)))).unit == unit


def test_values_that_were_scaled_and_not_logged_are_pointed_out() -> None:
    (finding,) = check(ad.AnnData(scaled().astype(np.float32))).findings
    assert finding.what == "values above 20 (counts per 10,000, not logged)"
    assert finding.command == "sc.pp.log1p(adata)"


@pytest.mark.parametrize("column", ["n_counts_full", "total_counts", "nCount_RNA", "n.umi"])
def test_counts_of_some_of_the_genes_are_told_by_the_totals_in_obs(column: str) -> None:
    counts = np.random.default_rng(0).poisson(2.0, (60, 30)).astype(np.float32)
    adata = ad.AnnData(
        counts[:, :20], obs=pd.DataFrame({column: counts.sum(axis=1)}, index=[f"c{i}" for i in range(60)])
    )
    (finding,) = check(adata, normalize=True).findings
    assert finding.what == "cells with fewer counts than obs says"
    assert f"pass --total-counts-key {column}" in finding.remedy
    adata.obs[column] = adata.X.sum(axis=1)
    assert check(adata, normalize=True).findings == ()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["ACTB", "CD3E", "C1orf43", "HLA-A"] * 5, "names of several kinds"),
        (["ACTB", "CD3E", "MT-CO1", "HLA-A", "TP53"], "symbols in capitals (as in human)"),
        (["Actb", "Cd3e", "mt-Co1", "Gapdh"], "names of several kinds"),
        (["ENSG00000111640", "ENSG00000075624.17"], "Ensembl identifiers (human)"),
        (["ENSMUSG00000029580"], "Ensembl identifiers (mouse)"),
        (["WBGene00000001"], "WormBase identifiers"),
        (["0", "1", "2"], "numbers"),
    ],
)
def test_the_kind_of_gene_names_is_told(names: list[str], kind: str) -> None:
    assert main_kind(kinds_of_genes(names)) == kind


# --- looks_like_counts


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 1], [2, 5]], True),
        ([[0, 0], [0, 2]], True),
        ([[3, 3], [3, 3]], True),
        ([[0, 1], [1, 0]], False),  # may as well be a mask
        ([[0, 2**25], [4, 0]], False),  # whole because float32 has no more digits
        ([[0, 0], [0, 0]], False),
        ([[0, -1], [2, 5]], False),
        ([[0, 1], [2, 5.5]], False),
        ([[0, 0.6931], [1.0986, 0]], False),
    ],
)
def test_counts_are_whole_numbers_some_above_one(kind: type, values: list[list[float]], expected: bool) -> None:
    assert survey(kind(np.array(values, dtype=np.float32))).looks_like_counts is expected


def test_a_run_knows_the_unit_that_the_doctor_tells_also_where_a_cell_is_empty() -> None:
    cells = np.log1p(scaled())
    cells[7] = 0
    found = survey(cells.astype(np.float32))
    assert recognise_unit(cells.astype(np.float32), found) == "log1p of counts per 10,000"
    assert Normalisation.of(found, {}, "prepare").unit == "log1p of counts per 10000"
