"""A baseline's cells are training cells moved to the mean that its predictor gives."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from perturbed_cells import SCHEMA, made_cells, population

from squidiff.config import InputError, Schema
from squidiff.data.conditions import Part
from squidiff.data.table import CellTable
from squidiff.evaluate.baselines import NAMES, PERTURBED, PLAIN, ZEROS_KEPT, Baselines
from squidiff.response.groups import BASELINES
from squidiff.response.populations import Population, Source
from squidiff.response.shift import CannotPredict

BOTH = Population("T", "A + B", None)
PARTS = (Part("A"), Part("B"))
NOT_HERE = ("training mean", "time interpolation", "time shift", "last time point", "mixture of times")
NOT_HERE += ("optimal transport",)
PERTURBATION = tuple(name for name in BASELINES if name not in (*NOT_HERE, "no change"))


def trained() -> ad.AnnData:
    """All cells but those of T under A+B."""
    adata = made_cells()
    return adata[~((adata.obs["type"] == "T") & (adata.obs["condition"] == "A+B"))].copy()


def fitted(adata: ad.AnnData, schema: Schema = SCHEMA) -> Baselines:
    return Baselines(CellTable.from_anndata(adata, schema), schema)


def made_times() -> tuple[ad.AnnData, Schema]:
    """Cells at times 0, 1 and 4 of two lines; nothing else."""
    rng = np.random.default_rng(2)
    obs = pd.DataFrame([{"line": f, "day": t} for f in "xy" for t in (0.0, 1.0, 4.0) for _ in range(20)])
    obs.index = obs.index.astype(str)
    cells = np.log1p(rng.poisson(2.0 + obs["day"].to_numpy()[:, None], (120, 6))).astype(np.float32)
    return ad.AnnData(cells, obs=obs), Schema(time_key="day", context_keys=("line",))


def made_contexts() -> tuple[ad.AnnData, Schema]:
    """Two contexts without conditions; in context x the first two genes are equal, in y all is higher by 10."""
    rng = np.random.default_rng(3)
    cells = rng.gamma(2.0, 1.0, (200, 5)).astype(np.float32)
    cells[:, 1] = cells[:, 0]
    cells[150:] += 10
    obs = pd.DataFrame({"line": ["x"] * 150 + ["y"] * 50}, index=[str(i) for i in range(200)])
    return ad.AnnData(cells, obs=obs), Schema(context_keys=("line",))


def draw(baselines: Baselines, name: str, n_cells: int | None = None, seed: int = 0) -> np.ndarray:
    return baselines.cells(name, BOTH, PARTS, n_cells, np.random.default_rng(seed))


# --- means


def mean_by(name: str, baselines: Baselines) -> np.ndarray:
    """Of A+B in T, by the predictor itself."""
    made = baselines.populations
    start = made.source(BOTH)
    assert start is not None
    source = Source(made.keys[start], made.mean[start])
    return BASELINES[name]().fit(made).predict(BOTH, baselines.encoder.describe(PARTS), source)


@pytest.mark.parametrize("name", PERTURBATION)
@pytest.mark.parametrize("n_cells", [None, 10, 90])
def test_cells_have_the_mean_of_the_predictor(name: str, n_cells: int | None) -> None:
    """Few or many of them, so that a floor is not that of a small draw."""
    baselines = fitted(trained())
    mean = mean_by(name, baselines)
    cells = draw(baselines, name, n_cells)
    assert len(cells) == (n_cells or 33)
    np.testing.assert_allclose(cells.mean(axis=0), mean, atol=1e-5)


def test_means_by_their_definitions() -> None:
    adata, baselines = trained(), fitted(trained())
    mean = {
        (t, c): population(adata, type=t, condition=c).mean(axis=0)
        for t in ("T", "B", "NK")
        for c in ("ctrl", "A", "B")
    }
    mean |= {(t, "A+B"): population(adata, type=t, condition="A+B").mean(axis=0) for t in ("B", "NK")}
    own = mean["T", "ctrl"]
    expected = {
        "no change": own,
        "mean treated": (mean["B", "A+B"] + mean["NK", "A+B"]) / 2,
        "mean shift": own + sum(mean[t, "A+B"] - mean[t, "ctrl"] for t in ("B", "NK")) / 2,
        "additive": mean["T", "A"] + mean["T", "B"] - own,
    }
    for name, wanted in expected.items():
        np.testing.assert_allclose(draw(baselines, name).mean(axis=0), wanted, atol=1e-5, err_msg=name)


def test_cells_at_a_time_between_have_the_mean_between() -> None:
    adata, schema = made_times()
    key = Population("x", "", 3.0)
    cells = fitted(adata, schema).cells("time interpolation", key, (), None, np.random.default_rng(0))
    before, after = (adata.X[((adata.obs["line"] == "x") & (adata.obs["day"] == t)).to_numpy()].mean(0) for t in (1, 4))
    np.testing.assert_allclose(cells.mean(axis=0), before / 3 + 2 * after / 3, atol=1e-5)


def test_a_shift_moves_every_cell_alike() -> None:
    """So the covariance of the source cells stays; more cells than there are, are still theirs, shifted."""
    adata = trained()
    cells, source = draw(fitted(adata), "mean shift"), population(adata, type="T", condition="ctrl")
    np.testing.assert_allclose(np.cov(cells.T), np.cov(source.T), atol=1e-5)
    many = draw(fitted(adata), "mean shift", 400)
    differences = (source[:, None] - source).reshape(-1, source.shape[1])
    assert max(np.abs(differences - d).max(axis=1).min() for d in (many - many[0])[:40]) < 1e-5


@pytest.mark.parametrize("name", PERTURBATION)
@pytest.mark.parametrize("n_cells", [None, 11, 200])
def test_zeros_kept_stays_non_negative_and_reaches_the_mean_with_any_number(name: str, n_cells: int | None) -> None:
    baselines = fitted(trained())
    cells = draw(baselines, name + ZEROS_KEPT, n_cells)
    assert len(cells) == (n_cells or 33)
    assert cells.min() == 0
    mean = mean_by(name, baselines)
    some = cells.any(axis=0)
    np.testing.assert_allclose(cells[:, some].mean(axis=0), np.maximum(mean, 0)[some], atol=1e-5)


def test_zeros_kept_comes_nearer_to_the_true_share_of_zeros() -> None:
    baselines = fitted(trained())
    truth = (population(made_cells(400), type="T", condition="A+B") == 0).mean(axis=0)
    shifted, kept = ((draw(baselines, "additive" + suffix) == 0).mean(axis=0) for suffix in ("", ZEROS_KEPT))
    assert np.abs(kept - truth).mean() < np.abs(shifted - truth).mean() / 2


def test_data_with_negative_values_have_no_zeros_to_keep() -> None:
    adata = trained()
    adata.X = adata.X.toarray() - 0.5
    baselines = fitted(adata)
    with pytest.raises(CannotPredict, match="no zeros to keep in data with negative values"):
        draw(baselines, "mean shift" + ZEROS_KEPT)
    assert draw(baselines, "mean shift").min() < 0


# --- cells


def as_rows(cells: np.ndarray) -> list[tuple[float, ...]]:
    return sorted(map(tuple, np.asarray(cells, dtype=np.float64)))


def test_no_change_returns_the_source_cells() -> None:
    adata, source = trained(), population(trained(), type="T", condition="ctrl")
    baselines = fitted(adata)
    assert as_rows(draw(baselines, "no change")) == as_rows(source)
    few = as_rows(draw(baselines, "no change", 20))
    assert len(few) == 20
    assert all(few.count(row) <= as_rows(source).count(row) for row in few)  # each once, while there are enough
    assert set(as_rows(draw(baselines, "no change", 300))) == set(as_rows(source))


def test_the_mean_of_the_control_is_that_of_the_source_cells() -> None:
    adata = trained()
    expected = population(adata, type="T", condition="ctrl").mean(axis=0)
    np.testing.assert_allclose(fitted(adata).control_mean(BOTH), expected, rtol=1e-6)
    assert fitted(adata).control_mean(Population("another", "A", None)) is None
    assert fitted(*made_contexts()).control_mean(Population("x", "", None)) is None


def test_of_times_alone_a_change_is_measured_from_all_training_cells() -> None:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"t": np.repeat(["0", "1", "3"], 20)}, index=[f"cell{i}" for i in range(60)])
    adata = ad.AnnData(rng.random((60, 4), dtype=np.float32), obs=obs, var=pd.DataFrame(index=list("wxyz")))
    adata = adata[5:].copy()  # unequal numbers: cells count alike, and not times
    baselines = fitted(adata, Schema(time_key="t"))
    expected = adata.X.mean(axis=0)
    np.testing.assert_allclose(baselines.control_mean(Population("", "", 2.0)), expected, rtol=1e-6)
    starts = as_rows(baselines.control_cells(Population("", "", 2.0), 100, rng))
    assert starts == as_rows(adata.X[adata.obs["t"] == "1"])  # what is compared cell by cell starts a prediction


def test_plain_generation_by_all_cells_and_by_shuffled_genes() -> None:
    adata, schema = made_contexts()
    baselines, key = fitted(adata, schema), Population("x", "", None)
    everything = baselines.cells("all cells", key, (), 200, np.random.default_rng(0))
    assert as_rows(everything) == as_rows(adata.X)
    shuffled = baselines.cells("shuffled genes", key, (), None, np.random.default_rng(0))
    np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(adata.X[:150], axis=0))
    assert abs(np.corrcoef(shuffled[:, 0], shuffled[:, 1])[0, 1]) < 4 / np.sqrt(150)  # they were one and the same


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith(NOT_HERE)])
def test_a_seed_draws_the_same_cells_and_dense_and_sparse_agree(name: str) -> None:
    if name not in PERTURBED:
        one, schema = made_contexts()
        key, parts = Population("x", "", None), ()
    else:
        one, schema, key, parts = trained(), SCHEMA, BOTH, PARTS
    dense = one.copy()
    dense.X = one.X.toarray() if hasattr(one.X, "toarray") else one.X
    found = [
        fitted(adata, schema).cells(name, key, parts, 25, np.random.default_rng(seed))
        for adata, seed in ((one, 0), (one, 0), (dense, 0), (one, 1))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], atol=1e-5)
    assert not np.array_equal(found[0], found[3])


def test_between_two_times_cells_are_mixed_or_on_the_way() -> None:
    adata, schema = made_times()
    baselines, key = fitted(adata, schema), Population("x", "", 3.0)  # two thirds of the way from 1 to 4
    before, after = (adata.X[((adata.obs["line"] == "x") & (adata.obs["day"] == t)).to_numpy()] for t in (1, 4))
    mixed, moved, last = (
        baselines.cells(name, key, (), n, np.random.default_rng(0))
        for name, n in (("mixture of times", 12), ("optimal transport", None), ("last time point", None))
    )
    assert sum(row in as_rows(after) for row in as_rows(mixed)) == 8
    assert sum(row in as_rows(before) for row in as_rows(mixed)) == 4
    np.testing.assert_allclose(moved.mean(axis=0), before.mean(axis=0) / 3 + 2 * after.mean(axis=0) / 3, atol=1e-5)
    assert as_rows(last) == as_rows(before)
    many = baselines.cells("optimal transport", key, (), 2500, np.random.default_rng(0))
    assert many.shape == (2500, 6)


def test_pca_scgen_is_the_mean_shift_as_far_as_the_components_reach() -> None:
    baselines = fitted(trained())
    center, axes = baselines.principal_axes
    shifted = draw(baselines, "mean shift", 33)
    expected = center + (shifted - center) @ axes @ axes.T
    found = draw(baselines, "PCA scGen", 33)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.cov(found.T), np.cov(expected.T), atol=1e-5)


@pytest.mark.parametrize("name", ["diagonal Gaussian", "factor Gaussian"])
def test_gaussian_cells_lie_around_the_mean_of_the_anchor(name: str) -> None:
    baselines = fitted(trained())
    found = draw(baselines, name, 50)
    mean = mean_by("additive", baselines)  # what the anchor takes of a combination whose parts were seen here
    np.testing.assert_allclose(found.mean(axis=0), mean, atol=1e-6)
    adata, schema = made_contexts()
    plain = fitted(adata, schema).cells(name, Population("x", "", None), (), 4000, np.random.default_rng(0))
    np.testing.assert_allclose(plain.var(axis=0), adata.X[:150].var(axis=0), rtol=0.15)
    together = np.corrcoef(plain[:, 0], plain[:, 1])[0, 1]
    assert together > 0.99 if name == "factor Gaussian" else abs(together) < 0.1


def test_the_mean_over_conditions_needs_no_description_of_the_one_asked_for() -> None:
    """Else the strongest simple baseline for genes that were never perturbed would be left out."""
    adata = trained()
    own = population(adata, type="T", condition="ctrl").mean(axis=0)
    shifts = [population(adata, type="T", condition=c).mean(axis=0) - own for c in ("A", "B")]
    unknown = BOTH._replace(condition="C"), (Part("C"),)
    cells = fitted(adata).cells("mean of conditions", *unknown, None, np.random.default_rng(0))
    np.testing.assert_allclose(cells.mean(axis=0), own + np.mean(shifts, axis=0), atol=1e-5)


# --- what cannot be predicted


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        InputError, match=r"no baseline 'nothing': choose one of 'no change', .*, 'shuffled genes'$"
    ) as caught:
        draw(fitted(trained()), "nothing")
    assert not isinstance(caught.value, CannotPredict)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("name", sorted(set(PERTURBED) ^ set(PLAIN)))
def test_plain_generation_and_perturbation_refuse_each_others_baselines(name: str) -> None:
    plain = name in PLAIN
    baselines = fitted(trained()) if plain else fitted(*made_contexts())
    key, parts = (BOTH, PARTS) if plain else (Population("x", "", None), ())
    with pytest.raises(CannotPredict, match=f"'{name}' is {'' if plain else 'not '}a baseline of plain generation"):
        baselines.cells(name, key, parts, None, np.random.default_rng(0))


def test_what_training_says_nothing_of_cannot_be_predicted() -> None:
    baselines, rng = fitted(trained()), np.random.default_rng(0)
    with pytest.raises(CannotPredict, match="no cells to start from in context 'another'"):
        baselines.cells("no change", BOTH._replace(context="another"), PARTS, None, rng)
    unknown = BOTH._replace(condition="C"), (Part("C"),)
    for name in sorted(set(PERTURBATION) - {"mean of conditions"} | {"time interpolation", "factor Gaussian"}):
        with pytest.raises(CannotPredict, match=r"'C'|no other context|elsewhere|has no time"):
            baselines.cells(name, *unknown, None, rng)
    single = BOTH._replace(condition="A"), (Part("A"),)
    with pytest.raises(CannotPredict, match="'A' is not a combination"):
        baselines.cells("additive", *single, None, rng)
    with pytest.raises(CannotPredict, match="has no time"):
        draw(baselines, "time interpolation")
