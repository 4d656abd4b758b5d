"""Upstream's architecture as a model of ours: trains, resumes bit by bit, and predicts by latent arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from small_models import QUERY, TRAIN, queries

from made_cells import HELD_OUT, SCHEMA, SMALL, counts, dense, logged
from squidiff.config import PRESETS, Config, InputError, Sampling, Schema
from squidiff.data.conditions import fingerprint
from squidiff.diffusion.samplers import last, sample_ddim
from squidiff.diffusion.schedule import StepSchedule
from squidiff.estimator import Squidiff
from squidiff.estimator.draws import draw
from squidiff.estimator.upstream import UpstreamFitted
from squidiff.model.upstream import UpstreamDenoiser
from squidiff.train.saving import STATE

FEW = Sampling(n_sample_steps=3, sampler="ddim")
DRUGS = Schema(condition_key="SMILES", control="", smiles_key="SMILES", dose_key="dose")


def settings(**changes: Any) -> Config:
    small = {"width": 16, "n_latent": 5, "n_blocks": 2, "n_train_steps": 20, "batch_size": 32}
    every = {"log_every_steps": 5, "save_every_steps": 10}
    return dataclasses.replace(PRESETS["upstream"], **(small | every | changes))


def trained(cells: ad.AnnData = TRAIN, schema: Schema = SCHEMA, **changes: Any) -> Squidiff:
    return Squidiff(schema, settings(**changes), "cpu").fit(cells)


def drugged() -> ad.AnnData:
    cells = logged()
    treated = (cells.obs["condition"] == "drug").to_numpy()
    cells.obs["SMILES"] = np.where(treated, "CCO", "")
    cells.obs["dose"] = np.where(treated, 9.0, 0.0)
    return cells


def fitted(model: Squidiff) -> UpstreamFitted:
    assert isinstance(model.fitted, UpstreamFitted)
    return model.fitted


@pytest.fixture(scope="module")
def model() -> Squidiff:
    return trained()


TYPES = ("type A", "type B", "type C")


def decoded(model: Squidiff, z_sem: np.ndarray, names: np.ndarray, seed: int = 0) -> np.ndarray:
    """Cells of latents by three steps of DDIM, from the noise of the cells' names: by other calls than the model's."""
    noise = torch.from_numpy(draw(names, np.zeros(len(names), dtype=int), fitted(model).genes, seed)[1])
    schedule = StepSchedule.named("linear", 1000)
    steps = schedule.sampling_steps(3)
    levels = schedule.sampling_levels(steps)
    denoise = UpstreamDenoiser(fitted(model).network, levels[:-1], steps).bind(torch.from_numpy(z_sem))
    return last(sample_ddim(denoise, noise, levels)).numpy()


def of(cells: ad.AnnData, condition: str, cell_type: str) -> ad.AnnData:
    return cells[((cells.obs["condition"] == condition) & (cells.obs["cell_type"] == cell_type)).to_numpy()].copy()


def assert_drawn_around(
    found: np.ndarray, expected: np.ndarray, changes: list[tuple[np.ndarray, np.ndarray]], way: float = 1.0
) -> None:
    """Latents are the expected ones and noise: as much as latents are wider after these changes than before."""
    excess = np.mean([after.var(axis=0) - before.var(axis=0) for before, after in changes], axis=0)
    spread = np.sqrt(way * np.maximum(excess, 0))
    rest = found - expected
    np.testing.assert_allclose(rest[:, spread == 0], 0, atol=1e-5)
    drawn = rest[:, spread > 0] / spread[spread > 0]
    assert np.abs(drawn.mean(axis=0)).max(initial=0.0) < 5 / np.sqrt(len(drawn))
    assert np.abs(drawn.std(axis=0) - 1).max(initial=0.0) < 5 / np.sqrt(2 * len(drawn))


def test_a_prediction_is_the_source_latent_plus_the_mean_direction_of_other_contexts(model: Squidiff) -> None:
    predicted = model.predict(QUERY, TRAIN, FEW)
    mean = {
        (condition, context): model.encode(of(TRAIN, condition, context)).mean(axis=0)
        for condition in ("drug", "control")
        for context in ("type B", "type C")
    }
    direction = np.mean([mean["drug", c] - mean["control", c] for c in ("type B", "type C")], axis=0)
    source = TRAIN[predicted.obs["source_cell"].tolist()].copy()
    assert set(source.obs["cell_type"]) == {HELD_OUT}
    assert set(source.obs["condition"]) == {"control"}
    z_sem = model.encode(source) + direction.astype(np.float32)
    np.testing.assert_allclose(predicted.obsm["X_z_sem"], z_sem, rtol=0, atol=1e-5)
    cells = decoded(model, predicted.obsm["X_z_sem"], predicted.obs["source_cell"].to_numpy())
    np.testing.assert_allclose(dense(predicted), cells, rtol=0, atol=1e-4 * cells.max())
    assert set(predicted.obs["anchor"]) == {"latents: mean shift"}
    assert predicted.X.min() >= 0


def test_cells_of_the_population_that_is_asked_for_do_not_reach_the_prediction(model: Squidiff) -> None:
    everything = logged()  # holds the answer too
    np.testing.assert_array_equal(
        model.predict(QUERY, everything, FEW).obsm["X_z_sem"], model.predict(QUERY, TRAIN, FEW).obsm["X_z_sem"]
    )


def test_two_genes_are_z_a_plus_z_b_minus_z_control() -> None:
    cells = logged(("A", "B"))
    model = trained(cells)
    predicted = model.predict(queries(condition="A+B", cell_type="type B"), cells, FEW)
    latents = {(c, t): model.encode(of(cells, c, t)) for c in ("A", "B", "control") for t in TYPES}
    z = {c: latents[c, "type B"].mean(axis=0) for c in ("A", "B", "control")}
    source = model.encode(cells[predicted.obs["source_cell"].tolist()].copy())
    expected = source + z["A"] + z["B"] - 2 * z["control"]
    changes = [(latents["control", t], latents[c, t]) for c in ("A", "B") for t in TYPES]
    assert_drawn_around(predicted.obsm["X_z_sem"], expected, changes)


def test_a_time_between_is_on_the_line_between_the_mean_latents() -> None:
    cells = logged()
    cells.obs["day"] = np.where(cells.obs["condition"] == "drug", 3.0, 0.0)
    model = trained(cells, Schema(time_key="day"))
    predicted = model.predict(queries(day=1.0), cells, FEW)
    early, late = (cells[(cells.obs["day"] == day).to_numpy()].copy() for day in (0.0, 3.0))
    shift = (model.encode(late).mean(axis=0) - model.encode(early).mean(axis=0)) / 3
    source = model.encode(cells[predicted.obs["source_cell"].tolist()].copy())
    change = (model.encode(early), model.encode(late))
    assert_drawn_around(predicted.obsm["X_z_sem"], source + shift, [change], way=1 / 3)


def test_with_drugs_the_encoder_is_shown_control_cells_and_the_drug_that_is_asked_for() -> None:
    cells = drugged()
    model = trained(cells, DRUGS)
    assert fitted(model).network.sizes.n_fingerprint == 1024
    asked = queries(SMILES="CCN+CCO", dose=99.0, n_cells=30)
    predicted = model.predict(asked, cells, FEW)
    control = cells[predicted.obs["source_cell"].tolist()].copy()
    assert set(control.obs["SMILES"]) == {""}
    drug = 2 * (fingerprint("CCN") + fingerprint("CCO"))  # log10(99 + 1)
    shown = np.concatenate([dense(control), np.tile(drug, (30, 1))], axis=1).astype(np.float32)
    with torch.no_grad():
        z_sem = fitted(model).network.encoder(torch.from_numpy(shown)).numpy()
    np.testing.assert_allclose(predicted.obsm["X_z_sem"], z_sem, rtol=0, atol=1e-5)
    bare = ad.AnnData(control.X, obs=pd.DataFrame(index=control.obs_names), var=control.var)
    assert model.predict(asked, bare, FEW).n_obs == 30  # upstream's control files have no SMILES column


def test_plain_generation_decodes_the_cells_own_latents() -> None:
    model = trained(TRAIN, Schema())
    predicted = model.predict(queries(7), TRAIN, FEW)
    own = model.encode(TRAIN[predicted.obs["source_cell"].tolist()].copy())
    np.testing.assert_allclose(predicted.obsm["X_z_sem"], own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("schema", [SCHEMA, DRUGS], ids=["autoencoder", "drug"])
def test_a_run_folder_gives_the_model_back_with_upstreams_files_beside_it(schema: Schema, tmp_path: Path) -> None:
    cells, asked = (TRAIN, QUERY) if schema is SCHEMA else (drugged(), queries(SMILES="CCC", dose=1.0, n_cells=9))
    model = Squidiff(schema, settings(ema_decay=0.9), "cpu").fit(cells, out=tmp_path / "run")
    again = Squidiff.load(tmp_path / "run", "cpu")
    one, other = model.predict(asked, cells, FEW), again.predict(asked, cells, FEW)
    np.testing.assert_array_equal(dense(one), dense(other))
    newest, averaged = (torch.load(tmp_path / "run" / f, weights_only=True) for f in ("model.pt", "model_0.9.pt"))
    own = fitted(model).network.state_dict()
    assert all(torch.equal(newest[name], own[name]) for name in own)
    assert list(newest) == list(averaged) == list(own)
    assert not torch.equal(newest["input_layer.weight"], averaged["input_layer.weight"])
    assert torch.equal(newest["encoder.bn1.running_mean"], averaged["encoder.bn1.running_mean"])


def test_an_interrupted_run_goes_on_bit_by_bit(tmp_path: Path) -> None:
    """BatchNorm's running statistics too, which are no parameters."""

    def stop(record: Any) -> None:
        if record.step == 15:
            raise KeyboardInterrupt

    whole = Squidiff(SCHEMA, settings(), "cpu").fit(TRAIN, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Squidiff(SCHEMA, settings(), "cpu").fit(TRAIN, out=tmp_path / "cut", on_record=stop)
    assert (tmp_path / "cut" / STATE).exists()
    assert (tmp_path / "cut" / "model.pt").exists()  # as upstream, at every save
    resumed = Squidiff(SCHEMA, settings(), "cpu").fit(TRAIN, out=tmp_path / "cut", resume=True)
    one, other = (fitted(m).network.state_dict() for m in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [r.loss for r in whole.history] == [r.loss for r in resumed.history]
    files = [(tmp_path / name / "model_0.9999.pt") for name in ("whole", "cut")]
    one, other = (torch.load(f, weights_only=True) for f in files)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_takes_the_control_cells_that_it_is_given() -> None:
    cells = drugged()
    is_control = (cells.obs["SMILES"] == "").to_numpy()
    rows = np.where(is_control, -1, np.flatnonzero(is_control)[0])
    one = Squidiff(DRUGS, settings(), "cpu").fit(cells, source_rows=rows)
    moved = cells.copy()  # all other control cells are noise that must not matter
    X = dense(moved)
    X[np.flatnonzero(is_control)[1:]] += 1.0
    moved.X = X.astype(np.float32)
    same, other = Squidiff(DRUGS, settings(), "cpu").fit(moved, source_rows=rows), trained(moved, DRUGS)
    weights = [fitted(model).network.state_dict()["output_layer.weight"] for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    with pytest.raises(InputError, match="source_rows have no use but with upstream's architecture and SMILES"):
        Squidiff(SCHEMA, settings(), "cpu").fit(TRAIN, source_rows=np.zeros(TRAIN.n_obs, int))


def test_a_missing_smiles_is_no_control() -> None:
    cells = drugged()
    treated = np.flatnonzero(cells.obs["SMILES"] == "CCO")
    cells.obs["SMILES"] = [None if i == treated[0] else text for i, text in enumerate(cells.obs["SMILES"])]
    with pytest.raises(InputError, match="empty values in column 'SMILES'"):
        trained(cells, DRUGS)


def test_cells_without_a_smiles_column_are_controls_for_upstreams_architecture_alone() -> None:
    cells, own = drugged(), dataclasses.replace(SMALL, n_train_steps=2)
    bare = cells.copy()
    del bare.obs["SMILES"]
    all_controls = cells.copy()
    all_controls.obs["SMILES"], all_controls.obs["dose"] = "", 0.0
    upstreams = trained(cells, DRUGS)
    assert np.array_equal(upstreams.encode(bare), upstreams.encode(all_controls))
    with pytest.raises(InputError, match="column 'SMILES' is missing"):
        Squidiff(DRUGS, own, "cpu").fit(cells).encode(bare)


def test_the_preset_is_upstreams_defaults() -> None:
    preset = PRESETS["upstream"]
    assert (preset.width, preset.n_blocks, preset.n_latent, preset.batch_size) == (2048, 3, 60, 64)
    assert (preset.learning_rate, preset.weight_decay, preset.n_train_steps) == (1e-4, 0.0, 100_000)
    assert (preset.ema_decay, preset.max_grad_norm, preset.n_warmup_steps) == (0.9999, None, 0)
    assert (preset.n_diffusion_steps, preset.noise_schedule, preset.validation_fraction) == (1000, "linear", 0.0)


def test_a_validation_loss_is_of_the_evaluation_mode_and_leaves_training_as_it_is() -> None:
    model = trained(validation_fraction=0.2, validate_every_steps=10)
    losses = [r.validation_loss for r in model.history if r.validation_loss is not None]
    assert len(losses) == 2
    assert not fitted(model).network.training
    assert fitted(model).network.encoder.bn1.num_batches_tracked == 20  # training steps alone


def test_settings_of_another_architecture_are_refused() -> None:
    with pytest.raises(InputError, match="--n-diffusion-steps has no use with --architecture squidiff"):
        Config(n_diffusion_steps=500)
    with pytest.raises(InputError, match="--n-axes has no use with --architecture upstream"):
        settings(n_axes=8)


def test_sampling_says_what_it_cannot_do(model: Squidiff) -> None:
    with pytest.raises(InputError, match="--strength has no use for upstream's architecture"):
        model.predict(QUERY, TRAIN, Sampling(strength=0.5))
    with pytest.raises(InputError, match="1001 sampling steps are asked for, but the model has 1000"):
        model.predict(QUERY, TRAIN, Sampling(n_sample_steps=1001))
    with pytest.raises(InputError, match="the source has no control cells to start from in context 'type Z'"):
        model.predict(queries(condition="drug", cell_type="type Z"), TRAIN, FEW)
    with pytest.raises(InputError, match="cannot be predicted"):
        model.predict(queries(condition="unheard of", cell_type="type B"), TRAIN, FEW)


def test_raw_counts_are_taken_only_where_that_is_meant() -> None:
    raw = counts()
    with pytest.raises(InputError, match="raw counts"):
        Squidiff(SCHEMA, settings(), "cpu").fit(raw)
    model = Squidiff(SCHEMA, settings(), "cpu").fit(raw, as_given=True)
    assert model.fitted.normalisation.unit == "raw counts"
    predicted = model.predict(queries(condition="drug", cell_type="type B", n_cells=5), raw, FEW)
    assert predicted.uns["squidiff"]["unit"] == "raw counts"
