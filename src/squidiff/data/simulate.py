"""A simulator of perturbed single cells whose truth is known: raw counts of cell types before and after conditions.

Owns: the generative model and the record of what it drew. Must not know: models, splits, normalisation.
"""

from __future__ import annotations

import math
import numbers
import string
from collections.abc import Iterable, Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.special import ndtri

from squidiff.config import InputError, check_seed, is_finite, require_kind

N_POSITION = 2
"""Dimensions of the space in which the cell types lie."""
LARGEST_CHANGE = 1.5
"""Bound, in natural logs, of a type's and of a condition's common effect: no single gene may take over the counts."""
COUNTED = ("n_genes", "n_cell_types", "n_cells", "n_programmes")
MAX_VALUES = 5_000_000_000
"""Of genes by cells, zeros too: tens of GB."""


def gamma_poisson(mean: np.ndarray, dispersion: float, rng: np.random.Generator) -> np.ndarray:
    """Negative binomial counts, drawn as a Poisson whose rate is gamma distributed.

    rate ~ Gamma(shape 1 / dispersion, scale mean * dispersion), count ~ Poisson(rate), hence
    E[count] = mean and Var[count] = mean + dispersion * mean^2 (Grün et al., Nature Methods 2014); dispersion 0 is a
    Poisson. Any shape of `mean` (>= 0, counts); returns int64 of the same shape.
    """
    mean = np.asarray(mean, dtype=np.float64)
    if dispersion == 0:
        return rng.poisson(mean)
    return rng.poisson(mean * rng.gamma(1.0 / dispersion, dispersion, size=mean.shape))


def simulate_perturbation(
    n_genes: int = 300,
    n_cell_types: int = 5,
    n_cells: int = 200,
    conditions: Sequence[str] = ("drug",),
    control: str = "control",
    seed: int = 0,
    *,
    median_library: float = 1300.0,
    library_sd: float = 0.3,
    dispersion: float = 0.4,
    base_sd: float = 2.2,
    type_gene_share: float = 0.3,
    type_sd: float = 0.7,
    response_share: float = 0.2,
    response_median: float = 0.9,
    modulation: float = 0.5,
    programme_sd: float = 0.3,
    n_programmes: int = 2,
) -> ad.AnnData:
    """Raw counts of `n_cells` cells for every cell type under the control and under every condition.

    In the manner of Splatter (Zappia et al., Genome Biology 2017), with cell types that share one space. For gene g,
    cell type t, condition k and cell c, everything in natural logarithms:

        u_t ~ N(0, I), centred                        position of the type, 2 numbers
        b_g: the quantiles of N(0, base_sd^2), shuffled   base profile, cut at 2 base_sd: no seed has a gene that takes
                                                      up half of the counts
        s_gt = 1.5 tanh(w_g . u_t / 1.5)              w_g ~ N(0, type_sd^2 I) for `type_gene_share` of the genes, else 0
        d_gkt = d_gk (1 + modulation tanh(v_gk . u_t))    v_gk a random unit vector, so near types respond alike and,
                                                      with modulation < 1, in the same direction
        |d_gk| ~ log-normal around response_median, at most 1.5, either sign, for `response_share` of the genes, else 0
        p_gkt = softmax over g of (b_g + s_gt + d_gkt)    expected share of gene g in a cell's counts; d = 0 for control
        l_c ~ log-normal(median_library, library_sd)  expected counts of the cell
        mu_gc = l_c p_gkt exp(a_g . z_c - |a_g|^2 / 2)    z_c ~ N(0, I): within-type programmes, with mean 1 over cells,
                                                      a_g ~ N(0, programme_sd^2 I)
        x_gc ~ negative binomial(mu_gc, dispersion)   see `gamma_poisson`

    Hence E[x_gc / l_c] = p_gkt exactly, and the genes of one cell are correlated through z_c. A condition's response
    is its own whatever its name ("A+B" is not built from "A" and "B"); the control cells of a seed do not depend on
    the conditions.

    Returns N x G, N = n_cells * n_cell_types * (1 + conditions):
    X: counts, float32 CSR. obs: cell_type, condition, library_size (l_c).
    var: base_log_mean (log of the base profile's share), log_fold_change_<condition> (d_gk).
    varm: programme (G x n_programmes, a_g); tables of G x cell types: expected_<condition> (p_gkt, control too) and
    log_fold_change_<condition> (d_gkt). The shares sum to one, so log(p_gkt / p_g,control,t) is d_gkt less one number
    a type. uns["simulation"]: seed and settings.

    Raises InputError for a setting out of range or a condition name that cannot be used.
    """
    settings = {k: v for k, v in locals().items() if k not in ("conditions", "control", "seed")}
    if isinstance(conditions, str):
        raise InputError(f"conditions is one text, {conditions!r}: give a tuple, ({conditions!r},)")
    require_kind(conditions, Iterable, "what names the conditions", "a tuple of texts")
    require_kind(seed, numbers.Integral, "seed", "a whole number")
    check_seed(seed)
    names = (control, *conditions)
    _check(settings, names)

    world, responses, cells = np.random.default_rng(seed).spawn(3)
    cell_types = [f"type {letter}" for letter in string.ascii_uppercase[:n_cell_types]]
    genes = pd.Index([f"gene_{i:0{max(3, len(str(n_genes)))}d}" for i in range(1, n_genes + 1)])

    position = world.normal(size=(n_cell_types, N_POSITION))
    position -= position.mean(axis=0)
    base = base_sd * world.permutation(np.minimum(ndtri((np.arange(n_genes) + 0.5) / n_genes), 2.0))
    type_weight = world.normal(0.0, type_sd, size=(n_genes, N_POSITION))
    type_weight[~_some(n_genes, type_gene_share, world)] = 0.0
    profile = base[:, None] + LARGEST_CHANGE * np.tanh(type_weight @ position.T / LARGEST_CHANGE)  # G x types
    loading = world.normal(0.0, programme_sd, size=(n_genes, n_programmes))

    var = pd.DataFrame({"base_log_mean": base - np.log(np.exp(base).sum())}, index=genes)
    varm: dict[str, np.ndarray | pd.DataFrame] = {"programme": loading}
    counts, obs = [], []
    for name, response_rng, cell_rng in zip(names, responses.spawn(len(names)), cells.spawn(len(names)), strict=True):
        change = np.zeros((n_genes, n_cell_types))
        if name != control:
            size = np.minimum(response_median * np.exp(response_rng.normal(0.0, 0.4, n_genes)), LARGEST_CHANGE)
            size *= response_rng.choice([-1.0, 1.0], n_genes) * _some(n_genes, response_share, response_rng)
            angle = response_rng.uniform(0.0, 2.0 * np.pi, n_genes)
            direction = np.column_stack([np.cos(angle), np.sin(angle)])  # G x 2
            change = size[:, None] * (1.0 + modulation * np.tanh(direction @ position.T))
            var[f"log_fold_change_{name}"] = size
            varm[f"log_fold_change_{name}"] = pd.DataFrame(change, index=genes, columns=cell_types)
        share = np.exp(profile + change)
        share /= share.sum(axis=0)
        varm[f"expected_{name}"] = pd.DataFrame(share, index=genes, columns=cell_types)
        for t, cell_type in enumerate(cell_types):
            library = median_library * np.exp(cell_rng.normal(0.0, library_sd, n_cells))
            programme = cell_rng.normal(size=(n_cells, n_programmes)) @ loading.T - 0.5 * (loading**2).sum(axis=1)
            mean = library[:, None] * share[:, t] * np.exp(programme)  # n_cells x G
            try:
                drawn = gamma_poisson(mean, dispersion, cell_rng)
            except ValueError:  # of numpy, for means that are not finite or beyond int64
                raise InputError(
                    "the cells have too many counts to draw: lower median_library, library_sd or programme_sd"
                ) from None
            counts.append(sp.csr_matrix(drawn.astype(np.float32)))
            obs.append(pd.DataFrame({"cell_type": cell_type, "condition": name, "library_size": library}))

    table = pd.concat(obs, ignore_index=True)
    table.index = pd.Index([f"cell_{i:0{len(str(len(table)))}d}" for i in range(1, len(table) + 1)])
    table["cell_type"] = pd.Categorical(table["cell_type"], categories=cell_types)
    table["condition"] = pd.Categorical(table["condition"], categories=names)
    record = {"seed": seed, "control": control, "conditions": ", ".join(conditions), **settings}
    return ad.AnnData(sp.vstack(counts, format="csr"), obs=table, var=var, varm=varm, uns={"simulation": record})


def _some(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: a random choice of round(share * n), at least one unless the share is 0."""
    chosen = np.zeros(n, dtype=bool)
    chosen[rng.choice(n, size=max(round(share * n), int(share > 0)), replace=False)] = True
    return chosen


def _check(settings: dict[str, float], names: Sequence[str]) -> None:
    at_least = {"n_genes": 2, "n_cell_types": 1, "n_cells": 1, "n_programmes": 0} | dict.fromkeys(
        ("library_sd", "dispersion", "base_sd", "type_sd", "response_median", "programme_sd"), 0.0
    )
    for name, value in settings.items():
        if name in COUNTED:
            require_kind(value, numbers.Integral, name, "a whole number")
        else:
            require_kind(value, numbers.Real, name, "a number")
        if not is_finite(value):
            raise InputError(f"{name} is {value}: it must be finite")
    for name, low in at_least.items():
        if not settings[name] >= low:
            raise InputError(f"{name} is {settings[name]}: it must be at least {low}")
    if not settings["median_library"] > 0:
        raise InputError(f"median_library is {settings['median_library']}: it must be above 0")
    for name in ("type_gene_share", "response_share", "modulation"):
        if not 0 <= settings[name] <= 1:
            raise InputError(f"{name} is {settings[name]}: it must lie between 0 and 1")
    if settings["n_cell_types"] > len(string.ascii_uppercase):
        raise InputError(
            f"n_cell_types is {settings['n_cell_types']}: it must be at most {len(string.ascii_uppercase)}"
        )
    n_values = len(names) * math.prod(settings[name] for name in ("n_genes", "n_cell_types", "n_cells"))
    if n_values > MAX_VALUES or settings["n_genes"] * max(settings["n_programmes"], 1) > MAX_VALUES / 100:
        raise InputError(
            f"{n_values:,} values of genes by cells are too many to hold: lower n_cells, n_genes or n_programmes"
        )
    for name in names:
        require_kind(name, str, "the name of a condition", "a text")
    if len(set(names)) < len(names):
        raise InputError(
            f"the conditions {', '.join(names)} hold one name twice: name the control and each condition once"
        )
    for name in names:
        if not name or "/" in name:
            raise InputError(
                f"the condition {name!r} cannot name a column of an h5ad file: leave out '/' and empty names"
            )
