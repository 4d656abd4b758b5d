"""What a prediction and a latent are, and that equal input gives equal output."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_models import QUERY, TRAIN, anchors, assert_mean, queries, trained

from made_cells import HELD_OUT, SCHEMA, SMALL, counts, dense, mean_of, small
from squidiff.config import Sampling
from squidiff.estimator import Squidiff
from squidiff.estimator.fitted import Fitted
from squidiff.response.fold import FoldShift
from squidiff.response.populations import Population, Source

# --- a prediction


def test_a_prediction_carries_genes_query_sources_latent_and_unit(model: Squidiff) -> None:
    asked = pd.DataFrame(
        {"condition": ["drug", "drug"], "cell_type": [HELD_OUT, "type B"], "note": ["x", "y"], "n_cells": [7, 3]}
    )
    predicted = model.predict(asked, TRAIN)
    assert list(predicted.var_names) == list(TRAIN.var_names)
    assert predicted.obs["cell_type"].tolist() == [HELD_OUT] * 7 + ["type B"] * 3
    assert predicted.obs["condition"].tolist() == ["drug"] * 10
    assert predicted.obs["note"].tolist() == ["x"] * 7 + ["y"] * 3
    assert "n_cells" not in predicted.obs
    assert predicted.obs_names.is_unique
    sources = TRAIN.obs.loc[predicted.obs["source_cell"]]
    assert set(sources["condition"]) == {"control"}
    assert sources["cell_type"].tolist() == predicted.obs["cell_type"].tolist()
    assert predicted.obs["anchor"].tolist()[7:] == ["seen in training"] * 3
    assert dense(predicted).min() >= 0
    assert predicted.uns["squidiff"]["unit"] == "log1p of counts per 10000"
    assert predicted.uns["squidiff"]["sampling"]["strength"] == Sampling().strength
    assert predicted.uns["squidiff"]["data_sha256"] == model.manifest["data_sha256"]


def test_the_latent_is_that_of_the_source_cell_and_the_query(model: Squidiff) -> None:
    """Equal source cells have equal latents; with the condition of another query the same cells have others."""
    predicted = model.predict(queries(100, condition="drug", cell_type=HELD_OUT), TRAIN)
    latent = pd.DataFrame(predicted.obsm["X_z_sem"], index=predicted.obs["source_cell"])
    assert latent.index.nunique() == 40  # 100 cells from 40 controls
    spread = latent.groupby(level=0).agg(np.ptp).to_numpy()
    assert spread.max() < 1e-5
    assert latent.groupby(level=0).mean().std().min() > 1e-4
    still = model.predict(queries(100, condition="control", cell_type=HELD_OUT), TRAIN)
    assert np.abs(still.obsm["X_z_sem"] - predicted.obsm["X_z_sem"]).max() > 1e-3


def test_without_n_cells_there_are_as_many_as_there_are_to_start_from(model: Squidiff) -> None:
    predicted = model.predict(QUERY, TRAIN)
    controls = TRAIN[((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy()]
    assert sorted(predicted.obs["source_cell"]) == sorted(controls.obs_names)


def test_fewer_cells_than_ten_are_the_first_of_ten(model: Squidiff) -> None:
    few, many = (model.predict(queries(n, condition="drug", cell_type=HELD_OUT), TRAIN) for n in (5, 10))
    assert np.array_equal(dense(few), dense(many)[:5])
    assert few.obs["source_cell"].tolist() == many.obs["source_cell"].tolist()[:5]


@pytest.mark.parametrize("n_controls", [1, 3, 12])
def test_as_many_as_there_are_to_start_from_are_those_that_come_without_n_cells(
    model: Squidiff, n_controls: int
) -> None:
    is_start = ((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy()
    source = TRAIN[~is_start | (np.cumsum(is_start) <= n_controls)].copy()
    asked, all_of_them = (
        model.predict(queries(n, condition="drug", cell_type=HELD_OUT), source) for n in (n_controls, None)
    )
    assert np.array_equal(dense(asked), dense(all_of_them))


@pytest.mark.parametrize("n_cells", [20, 300])
def test_the_mean_of_the_cells_is_the_control_mean_plus_the_shift_of_the_other_types(
    model: Squidiff, n_cells: int
) -> None:
    predicted = model.predict(queries(n_cells, condition="drug", cell_type=HELD_OUT), TRAIN)
    own = Population(HELD_OUT, "", None)
    assert isinstance(model.fitted, Fitted)
    start = Source(own, mean_of(TRAIN, cell_type=HELD_OUT, condition="control"))
    fold = FoldShift().fit(model.fitted.populations)
    expected = fold.predict(own._replace(condition="drug"), np.zeros(1), start)
    shifts = [
        mean_of(TRAIN, cell_type=t, condition="drug") - mean_of(TRAIN, cell_type=t, condition="control")
        for t in ("type B", "type C")
    ]
    assert np.abs(expected - start.mean - np.mean(shifts, axis=0)).max() > 5e-3
    assert anchors(predicted) == {"fold shift"}
    assert_mean(predicted, np.maximum(expected, 0))


def test_a_population_seen_in_training_has_its_own_mean(model: Squidiff) -> None:
    predicted = model.predict(queries(256, condition="drug", cell_type="type B"), TRAIN)
    assert_mean(predicted, mean_of(TRAIN, cell_type="type B", condition="drug"))


def test_negative_data_are_not_cut_and_keep_the_mean() -> None:
    scaled = TRAIN.copy()
    scaled.X = (dense(TRAIN) - dense(TRAIN).mean(axis=0)).astype(np.float32)
    predicted = trained(scaled, SCHEMA).predict(queries(256, condition="drug", cell_type="type B"), scaled)
    assert dense(predicted).min() < -0.1
    expected = mean_of(scaled, cell_type="type B", condition="drug")
    np.testing.assert_allclose(dense(predicted).mean(axis=0), expected, rtol=0, atol=1e-4)


def test_a_gene_with_a_negative_value_does_not_make_the_others_negative() -> None:
    odd = TRAIN.copy()
    odd.X = dense(TRAIN).astype(np.float32)
    odd.X[0, 7] = -1e-6
    predicted = dense(trained(odd, SCHEMA).predict(queries(300, condition="drug", cell_type=HELD_OUT), odd))
    others = np.arange(40) != 7
    assert predicted[:, others].min() == 0
    assert (predicted[:, others] == 0).mean() > 0.2  # zeros are kept
    assert (predicted[:, 7] == 0).mean() < 0.01


def test_no_value_is_above_the_highest_of_training(model: Squidiff) -> None:
    many = dense(model.predict(queries(3000, condition="drug", cell_type=HELD_OUT), TRAIN))
    assert many.max() <= np.float32(dense(TRAIN).max())


@pytest.mark.slow
def test_more_cells_than_a_block_have_the_mean_and_are_not_repeated(model: Squidiff) -> None:
    predicted = model.predict(queries(9000, condition="drug", cell_type="type B"), TRAIN)
    assert predicted.n_obs == 9000
    assert_mean(predicted, mean_of(TRAIN, cell_type="type B", condition="drug"))
    assert len(np.unique(dense(predicted), axis=0)) == 9000


def test_seeds_of_sampling_and_strength(model: Squidiff) -> None:
    one, other = (dense(model.predict(QUERY, TRAIN, Sampling(seed=s))) for s in (0, 1))
    assert not np.array_equal(one, other)
    kept, anew = (
        model.predict(queries(60, condition="drug", cell_type=HELD_OUT), TRAIN, Sampling(strength=s))
        for s in (0.01, 1.0)
    )

    def likeness(predicted: ad.AnnData) -> float:
        source = TRAIN[predicted.obs["source_cell"].tolist()]
        residuals = [dense(x) - dense(x).mean(axis=0) for x in (predicted, source)]
        return float(np.corrcoef(*(r.ravel() for r in residuals))[0, 1])

    assert likeness(kept) > 0.85  # zeros that are switched on and off keep it below 1
    assert likeness(anew) < 0.5


def test_genes_that_are_switched_on_go_together_as_they_did_in_the_source_cells() -> None:
    """Genes that few control cells show, and these together: what shows more of them must not be drawn by lot."""
    rng = np.random.default_rng(0)
    names = [(t, c) for t in ("A", "B", "C") for c in ("control", "drug") for _ in range(150)]
    obs = pd.DataFrame(names, columns=["cell_type", "condition"], index=[f"c{i}" for i in range(len(names))])
    rates = np.tile(rng.uniform(0.3, 1.5, 30), (len(obs), 1))
    rates[:, :8] = rng.choice([0.1, 4.0], (len(obs), 1), p=[0.8, 0.2])
    rates[(obs["condition"] == "control").to_numpy(), :8] /= 10
    cells = ad.AnnData(np.log1p(rng.poisson(rates)).astype(np.float32), obs=obs)
    model = trained(cells[(names != np.array(["A", "drug"])).any(axis=1)].copy(), SCHEMA)

    def together(sampling: Sampling) -> float:
        predicted = dense(model.predict(queries(condition="drug", cell_type="A"), cells, sampling))
        return float(np.corrcoef(predicted[:, :8], rowvar=False)[np.triu_indices(8, 1)].mean())

    by_lot = together(Sampling(first_level=True))
    assert by_lot > 0.02
    assert together(Sampling()) > 2 * by_lot


def test_every_query_is_heard_of(model: Squidiff) -> None:
    heard: list[tuple[int, int]] = []
    model.predict(pd.concat([QUERY] * 3), TRAIN, on_query=lambda i, n: heard.append((i, n)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


# --- equal in, equal out


def test_a_loaded_model_predicts_the_same_bits(model: Squidiff, tmp_path: Path) -> None:
    model.save(tmp_path / "run")
    loaded = Squidiff.load(tmp_path / "run", "cpu")
    assert (loaded.schema, loaded.config, loaded.manifest) == (model.schema, model.config, model.manifest)
    one, other = (m.predict(QUERY, TRAIN) for m in (model, loaded))
    assert np.array_equal(dense(one), dense(other))
    assert np.array_equal(one.obsm["X_z_sem"], other.obsm["X_z_sem"])
    assert one.obs.equals(other.obs)
    assert np.array_equal(loaded.encode(TRAIN), model.encode(TRAIN))


def test_one_gene_is_enough(tmp_path: Path) -> None:
    """Its tensors have one value each."""
    train = TRAIN[:, :1].copy()
    trained = Squidiff(SCHEMA, small(n_train_steps=2), "cpu").fit(train, out=tmp_path / "run")
    one, other = (m.predict(QUERY, train) for m in (trained, Squidiff.load(tmp_path / "run", "cpu")))
    assert one.var_names.equals(train.var_names)
    assert np.array_equal(dense(one), dense(other))


@pytest.mark.parametrize("kind", ["path", "text", "backed", "dense"])
def test_a_path_and_backed_and_dense_data_give_the_same_bits(
    model: Squidiff, run: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "train.h5ad"
    TRAIN.copy().write_h5ad(file)
    if kind == "dense":
        data: ad.AnnData | str | Path = TRAIN.copy()
        data.X = dense(TRAIN).astype(np.float32)
    else:
        data = {"path": file, "text": str(file), "backed": ad.read_h5ad(file, backed="r")}[kind]
    other = Squidiff(SCHEMA, SMALL, "cpu").fit(data, out=tmp_path / "run")
    if kind != "dense":  # sums over sparse cells are taken in another order
        assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
        assert np.array_equal(dense(other.predict(QUERY, data)), dense(model.predict(QUERY, TRAIN)))
    else:
        np.testing.assert_allclose(dense(other.predict(QUERY, data)), dense(model.predict(QUERY, TRAIN)), atol=1e-3)


def test_fitting_leaves_the_data_as_they_were() -> None:
    cells, before = counts(), counts()
    Squidiff(SCHEMA, small(n_train_steps=1, normalize=True), "cpu").fit(cells)
    assert (cells.X != before.X).nnz == 0
    assert cells.obs.equals(before.obs)


def test_another_seed_gives_another_model(model: Squidiff) -> None:
    other = Squidiff(SCHEMA, small(seed=1), "cpu").fit(TRAIN)
    assert np.abs(other.encode(TRAIN) - model.encode(TRAIN)).max() > 1e-3


def test_genes_are_matched_by_name(model: Squidiff) -> None:
    order = np.random.default_rng(0).permutation(TRAIN.n_vars)
    shuffled = TRAIN[:, order].copy()
    more = ad.AnnData(
        sp.hstack([shuffled.X, sp.csr_matrix(np.ones((TRAIN.n_obs, 2)))]).tocsr().astype(np.float32),
        obs=shuffled.obs,
        var=pd.DataFrame(index=[*shuffled.var_names, "new 1", "new 2"]),
    )
    expected = model.predict(QUERY, TRAIN)
    for source in (shuffled, more):
        predicted = model.predict(QUERY, source)
        assert list(predicted.var_names) == list(TRAIN.var_names)
        np.testing.assert_allclose(dense(predicted), dense(expected), rtol=0, atol=1e-6)


# --- the latent


def test_a_latent_in_a_batch_is_that_of_its_population_alone(model: Squidiff) -> None:
    """Chunks of a data set are encoded alike: to 1e-5, since sums in float32 depend on the number of rows."""
    whole = model.encode(TRAIN)
    assert whole.shape == (TRAIN.n_obs, SMALL.n_latent)
    controls = np.flatnonzero(((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy())
    np.testing.assert_allclose(model.encode(TRAIN[controls].copy()), whole[controls], rtol=0, atol=1e-5)


def test_a_latent_is_the_same_for_a_cell_alone(model: Squidiff) -> None:
    whole = model.encode(TRAIN)
    rows = [0, 50, TRAIN.n_obs - 1]
    alone = np.concatenate([model.encode(TRAIN[[i]].copy()) for i in rows])
    np.testing.assert_allclose(alone, whole[rows], rtol=0, atol=1e-5)


def test_a_latent_follows_its_cell_when_cells_change_places(model: Squidiff) -> None:
    order = np.random.default_rng(0).permutation(TRAIN.n_obs)
    np.testing.assert_allclose(model.encode(TRAIN[order].copy()), model.encode(TRAIN)[order], rtol=0, atol=1e-5)


def test_pairing_by_optimal_transport_trains_another_model_that_repeats() -> None:
    def encoded(pairing: str) -> np.ndarray:
        return Squidiff(SCHEMA, small(n_train_steps=3, pairing=pairing), "cpu").fit(TRAIN).encode(TRAIN)

    one, same, other = encoded("optimal-transport"), encoded("optimal-transport"), encoded("random")
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
