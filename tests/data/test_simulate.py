"""What the simulator says of its counts holds for them: the law of the noise, the means, the response, the seed."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from squidiff.config import InputError
from squidiff.data.simulate import gamma_poisson, simulate_perturbation

N_DRAWS = 200_000


def _equal(a: ad.AnnData, b: ad.AnnData) -> None:
    assert (a.X != b.X).nnz == 0
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert set(a.varm) == set(b.varm)
    for name in a.varm:
        np.testing.assert_array_equal(np.asarray(a.varm[name]), np.asarray(b.varm[name]))
        assert list(getattr(a.varm[name], "columns", [])) == list(getattr(b.varm[name], "columns", []))
    assert a.uns["simulation"] == b.uns["simulation"]


def _population(adata: ad.AnnData, condition: str, cell_type: str) -> tuple[np.ndarray, np.ndarray]:
    """Counts (n x G) and library sizes (n,) of one population."""
    rows = ((adata.obs["condition"] == condition) & (adata.obs["cell_type"] == cell_type)).to_numpy()
    return adata.X[rows].toarray().astype(float), adata.obs["library_size"].to_numpy()[rows]


@pytest.mark.parametrize(("mean", "dispersion"), [(0.3, 0.0), (0.3, 0.5), (4.0, 0.1), (4.0, 2.0), (50.0, 0.4)])
def test_gamma_poisson_has_the_moments_of_the_negative_binomial(mean: float, dispersion: float) -> None:
    counts = gamma_poisson(np.full(N_DRAWS, mean), dispersion, np.random.default_rng(1))
    variance = mean + dispersion * mean**2
    # Fourth central moment, by scipy: it gives the standard error of the sample variance.
    law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean)) if dispersion else stats.poisson(mean)
    fourth = (float(law.stats(moments="k")) + 3) * variance**2
    assert abs(counts.mean() - mean) < 4 * np.sqrt(variance / N_DRAWS)
    assert abs(counts.var() - variance) < 4 * np.sqrt((fourth - variance**2) / N_DRAWS)


def test_gamma_poisson_draws_from_the_negative_binomial() -> None:
    counts = gamma_poisson(np.full(N_DRAWS, 3.0), 0.7, np.random.default_rng(2))
    law = stats.nbinom(1 / 0.7, 1 / (1 + 0.7 * 3.0))
    observed = np.bincount(np.minimum(counts, 20), minlength=21)
    expected = N_DRAWS * np.append(law.pmf(np.arange(20)), law.sf(19))
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_the_seed_decides_every_bit() -> None:
    settings = {"n_genes": 40, "n_cell_types": 3, "n_cells": 20, "conditions": ("a", "b")}
    first, again, other = (simulate_perturbation(**settings, seed=seed) for seed in (7, 7, 8))
    _equal(first, again)
    assert (first.X != other.X).nnz > 100
    assert not np.array_equal(first.var["log_fold_change_a"], other.var["log_fold_change_a"])
    assert not np.array_equal(first.var["log_fold_change_a"], first.var["log_fold_change_b"])


def test_the_control_cells_do_not_depend_on_the_conditions() -> None:
    one, two = (simulate_perturbation(40, 3, 20, conditions) for conditions in (("a",), ("a", "b")))
    n = 3 * 20
    assert (one.X[: 2 * n] != two.X[: 2 * n]).nnz == 0
    assert two.n_obs == 3 * n


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_counts_look_like_a_cell_s(seed: int) -> None:
    adata = simulate_perturbation(seed=seed)
    assert isinstance(adata.X, sp.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.data.min() >= 1
    assert np.array_equal(adata.X.data, adata.X.data.round())
    assert 0.5 < 1 - adata.X.nnz / np.prod(adata.shape) < 0.8
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    assert 1_000 < np.median(total) < 3_000
    assert set(adata.obs["cell_type"]) == {"type A", "type B", "type C", "type D", "type E"}
    assert (adata.obs.groupby(["cell_type", "condition"], observed=True).size() == 200).all()


def test_counts_of_equal_cells_follow_the_mean_variance_law() -> None:
    adata = simulate_perturbation(200, 1, 4000, library_sd=0.0, programme_sd=0.0, dispersion=0.6)
    counts, library = _population(adata, "control", "type A")
    mean = library[0] * adata.varm["expected_control"]["type A"].to_numpy()
    seen = mean > 0.1
    variance = mean[seen] + 0.6 * mean[seen] ** 2
    ratio = counts.var(axis=0)[seen] / variance
    assert seen.sum() > 100
    assert abs(np.mean(ratio) - 1) < 0.02  # about 150 genes, each ratio with a standard error near 0.05
    assert abs(np.polyfit(np.log(variance), np.log(counts.var(axis=0)[seen]), 1)[0] - 1) < 0.01


def test_the_expected_shares_are_the_means_of_the_counts() -> None:
    adata = simulate_perturbation(n_cells=1000, conditions=("drug", "other"), seed=3)
    scores = []
    for condition in ("control", "drug", "other"):
        for cell_type, expected in adata.varm[f"expected_{condition}"].items():
            counts, library = _population(adata, condition, cell_type)
            share = counts / library[:, None]
            seen = counts.sum(axis=0) > 50
            error = share.std(axis=0)[seen] / np.sqrt(len(share))
            scores.append((share.mean(axis=0) - expected.to_numpy())[seen] / error)
    scores = np.concatenate(scores)
    assert abs(scores.mean()) < 0.1
    assert abs(np.mean(scores**2) - 1) < 0.15  # standard normal: neither biased nor too exact


def test_the_known_fold_change_is_the_log_ratio_of_treated_to_control() -> None:
    adata = simulate_perturbation(n_cells=2000, n_cell_types=3, seed=4)
    common, genes = adata.var["log_fold_change_drug"].to_numpy(), np.arange(adata.n_vars)
    assert np.count_nonzero(common) == 60
    assert (common > 0).any()
    assert (common < 0).any()
    for cell_type, change in adata.varm["log_fold_change_drug"].items():
        before, after = (adata.varm[f"expected_{c}"][cell_type].to_numpy() for c in ("control", "drug"))
        composition = np.log(after / before) - change.to_numpy()
        np.testing.assert_allclose(composition, composition[0], atol=1e-12)  # one number a type, for every gene
        shares, errors = [], []
        for condition in ("control", "drug"):
            counts, library = _population(adata, condition, cell_type)
            share = counts / library[:, None]
            shares.append(share.mean(axis=0))
            errors.append(share.std(axis=0) / np.sqrt(len(share)))
        seen = genes[(shares[0] > 1e-4) & (shares[1] > 1e-4)]
        ratio = np.log(shares[1][seen] / shares[0][seen]) - composition[0]
        error = np.sqrt(sum((e[seen] / s[seen]) ** 2 for e, s in zip(errors, shares, strict=True)))
        truth = change.to_numpy()[seen]
        assert len(seen) > 200
        assert np.max(np.abs(ratio - truth) / error) < 4.5
        assert abs(np.polyfit(truth, ratio, 1)[0] - 1) < 0.03


def test_near_cell_types_respond_alike_and_in_one_direction() -> None:
    adata = simulate_perturbation(n_genes=500, n_cell_types=12, n_cells=1, seed=5)
    common = adata.var["log_fold_change_drug"].to_numpy()
    change = adata.varm["log_fold_change_drug"].to_numpy()
    profile = np.log(adata.varm["expected_control"].to_numpy())
    pairs = np.triu_indices(12, 1)
    of_profile, of_response = (
        np.linalg.norm(m[:, pairs[0]] - m[:, pairs[1]], axis=0) for m in (profile - profile.mean(axis=0), change)
    )
    assert stats.spearmanr(of_profile, of_response).statistic > 0.8
    assert (np.sign(change) == np.sign(common)[:, None]).all()
    assert (np.abs(change - common[:, None]) <= 0.5 * np.abs(common)[:, None]).all()
    same = simulate_perturbation(50, 4, 1, modulation=0.0)
    np.testing.assert_array_equal(
        same.varm["log_fold_change_drug"].to_numpy(), np.tile(same.var[["log_fold_change_drug"]].to_numpy(), 4)
    )


def test_programmes_correlate_the_genes_of_a_cell_as_the_equations_say() -> None:
    # mu = p exp(a.z - |a|^2/2), so Cov(x_i / l, x_j / l) = p_i p_j (exp(a_i . a_j) - 1) for two genes.
    adata = simulate_perturbation(100, 1, 20_000, conditions=(), programme_sd=0.4, seed=6)
    counts, library = _population(adata, "control", "type A")
    expected = adata.varm["expected_control"]["type A"].to_numpy()
    top = np.argsort(expected)[-25:]
    covariance = np.cov((counts / library[:, None] / expected)[:, top].T)
    loading = adata.varm["programme"][top]
    law = np.exp(loading @ loading.T) - 1
    pairs = np.triu_indices(len(top), 1)
    assert law[pairs].std() > 0.1
    assert abs(np.polyfit(law[pairs], covariance[pairs], 1)[0] - 1) < 0.05
    assert stats.pearsonr(law[pairs], covariance[pairs]).statistic > 0.98


def test_it_survives_a_file(tmp_path: Path) -> None:
    adata = simulate_perturbation(30, 2, 10, ("drug", "other drug"), seed=9)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    _equal(adata, back)
    assert back.uns["simulation"]["seed"] == 9
    assert back.uns["simulation"]["conditions"] == "drug, other drug"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_cells": 0}, "n_cells is 0: it must be at least 1"),
        ({"dispersion": -0.1}, "dispersion is -0.1"),
        ({"response_share": 1.5}, "response_share is 1.5: it must lie between 0 and 1"),
        ({"median_library": 0.0}, "median_library is 0.0: it must be above 0"),
        ({"n_cell_types": 27}, "at most 26"),
        ({"conditions": ("control",)}, "one name twice"),
        ({"conditions": ("a/b",)}, "leave out '/'"),
        ({"conditions": "drug"}, "is one text"),
        ({"conditions": 3}, "what names the conditions is of type int: give a tuple of texts"),
        ({"conditions": (3,)}, "the name of a condition is of type int: give a text"),
        ({"n_genes": "a"}, "n_genes is of type str: give a whole number"),
        ({"n_genes": 30.5}, "n_genes is of type float: give a whole number"),
        ({"dispersion": "a"}, "dispersion is of type str: give a number"),
        ({"dispersion": float("nan")}, "dispersion is nan: it must be finite"),
        ({"median_library": float("inf")}, "median_library is inf: it must be finite"),
        ({"median_library": 1e300}, "too many counts to draw"),
        ({"n_cells": 10**12}, "too many to hold"),
        ({"n_genes": 10**9, "n_cells": 1, "n_cell_types": 1}, "too many to hold"),
        ({"n_programmes": 10**9}, "too many to hold"),
        ({"seed": -1}, "seed is -1: it must be from 0 to"),
        ({"seed": 0.5}, "seed is of type float: give a whole number"),
    ],
)
def test_a_setting_out_of_range_is_named(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate_perturbation(**settings)
