"""A checkpoint of upstream's becomes a run and the run a checkpoint, tensor by tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from made_cells import SCHEMA, SMALL, dense, split
from squidiff.cli.app import main
from squidiff.config import PRESETS, InputError, Sampling, Schema
from squidiff.estimator import Squidiff
from squidiff.legacy.cells import DRUG_SCHEMA
from squidiff.legacy.convert import convert, export
from upstream_oracles import VARIANTS, assert_near, checkpoint, oracle, state

GENES = [f"g{i}" for i in range(30)]


@pytest.fixture
def genes(tmp_path: Path) -> Path:
    (tmp_path / "genes.txt").write_text("\n".join(GENES) + "\n\n", encoding="utf-8")
    return tmp_path / "genes.txt"


def cells(variant: str = "autoencoder", name: str = "x_start") -> ad.AnnData:
    values = oracle(f"{variant}_io")[name].numpy()
    return ad.AnnData(values, obs=pd.DataFrame(index=[f"c{i}" for i in range(12)]), var=pd.DataFrame(index=GENES))


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_is_the_same_checkpoint(variant: str, genes: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(checkpoint(variant)), "--genes", str(genes), "--out", str(tmp_path / "run")])
    assert not stop.value.code
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / "run"), "--upstream", str(tmp_path / "model.pt")])
    assert not stop.value.code
    back, given = torch.load(tmp_path / "model.pt", weights_only=True), state(variant)
    assert list(back) == list(given)
    assert all(torch.equal(back[name], given[name]) for name in given)


def test_a_converted_run_encodes_as_upstream_whatever_the_order_of_the_genes(genes: Path, tmp_path: Path) -> None:
    convert(checkpoint("autoencoder"), genes).save(tmp_path / "run")
    model = Squidiff.load(tmp_path / "run", "cpu")
    shuffled = cells()[:, GENES[::-1]].copy()
    assert_near(torch.from_numpy(model.encode(shuffled)), oracle("autoencoder_io")["z_sem"])
    assert model.provenance["converted_from"] == "autoencoder_model.pt"


def test_a_converted_drug_model_predicts_from_upstreams_columns(genes: Path) -> None:
    model = convert(checkpoint("drug"), genes)
    assert model.schema == DRUG_SCHEMA
    given = oracle("drug_io")
    asked = pd.DataFrame({"SMILES": given["smiles"][:2], "dose": given["dose"].numpy()[:2], "n_cells": [12, 12]})
    control = cells("drug", "control")
    predicted = model.predict(asked, control, Sampling(n_sample_steps=2))
    first = predicted[predicted.obs["source_cell"] == "c0"]
    assert_near(torch.from_numpy(first.obsm["X_z_sem"][:1]), given["z_sem"][:1])
    assert predicted.uns["squidiff"]["unit"] == "unknown"


def test_an_h5ad_gives_genes_and_the_schema_that_it_remembers(tmp_path: Path) -> None:
    data = cells()
    data.uns["squidiff_schema"] = {"condition_key": "condition", "control": "ctrl"}
    data.write_h5ad(tmp_path / "data.h5ad")
    model = convert(checkpoint("autoencoder"), tmp_path / "data.h5ad")
    assert model.schema == Schema(condition_key="condition", control="ctrl")
    assert model.fitted.genes == tuple(GENES)


def test_latent_arithmetic_with_a_schema_leaves_the_answer_out(genes: Path) -> None:
    model = convert(checkpoint("autoencoder"), genes, Schema(condition_key="c", control="ctrl", context_keys=("t",)))
    data = ad.concat([cells(), cells()], index_unique="-")
    data.obs["t"] = ["a"] * 12 + ["b"] * 12
    data.obs["c"] = np.tile(["ctrl"] * 6 + ["stim"] * 6, 2)
    data.X[18:] += 1.0  # the answer
    asked = pd.DataFrame({"c": ["stim"], "t": ["b"]})
    few = Sampling(n_sample_steps=2)
    one = model.predict(asked, data, few)
    other = model.predict(asked, data[:18].copy(), few)
    np.testing.assert_allclose(one.obsm["X_z_sem"], other.obsm["X_z_sem"], rtol=0, atol=1e-5)


def test_what_does_not_fit_is_said(genes: Path, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("a\nb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"few\.txt names 2 genes, but .* is a model of 30"):
        convert(checkpoint("drug"), tmp_path / "few.txt")
    (tmp_path / "twice.txt").write_text("\n".join([*GENES[:-1], "g0"]), encoding="utf-8")
    with pytest.raises(InputError, match="names gene 'g0' twice"):
        convert(checkpoint("drug"), tmp_path / "twice.txt")
    (tmp_path / "numbered.txt").write_text("\n".join(f"{i}\t{name}" for i, name in enumerate(GENES)), encoding="utf-8")
    with pytest.raises(InputError, match="give one bare name a line"):
        convert(checkpoint("drug"), tmp_path / "numbered.txt")
    cells().write_h5ad(tmp_path / "cells.h5ad")
    with pytest.raises(InputError, match=r"column 'condition' is missing in obs of .*cells.h5ad"):
        convert(checkpoint("autoencoder"), tmp_path / "cells.h5ad", SCHEMA)
    with pytest.raises(InputError, match="cannot be read as a list of gene names"):
        convert(checkpoint("drug"), tmp_path / "none.txt")
    with pytest.raises(InputError, match="was trained with drug structure: name the obs column of the SMILES"):
        convert(checkpoint("drug"), genes, SCHEMA)
    with pytest.raises(InputError, match="was trained without drug structure: leave --smiles-key out"):
        convert(checkpoint("autoencoder"), genes, DRUG_SCHEMA)
    own = Squidiff(SCHEMA, SMALL, "cpu").fit(split()[0])
    with pytest.raises(InputError, match="only models of upstream's architecture become its checkpoints"):
        export(own, tmp_path / "model.pt")


def test_the_levels_of_training_are_those_of_the_run_beside_or_those_given(tmp_path: Path, capsys: Any) -> None:
    small = {"width": 8, "n_latent": 4, "n_blocks": 1, "n_train_steps": 2, "batch_size": 4, "n_diffusion_steps": 50}
    config = dataclasses.replace(PRESETS["upstream"], **small, noise_schedule="cosine")
    Squidiff(config=config, device="cpu").fit(cells(), out=tmp_path / "run")
    genes = tmp_path / "cells.h5ad"
    cells().write_h5ad(genes)
    inside, outside = tmp_path / "run" / "model.pt", tmp_path / "model.pt"
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "run"), "--upstream", str(outside)])
    said = " ".join(capsys.readouterr().out.split())
    assert "trained with 50 cosine steps: a checkpoint does not tell, and upstream's sampler takes 1,000 linear" in said

    def levels(model: Squidiff) -> tuple[int, str]:
        return model.config.n_diffusion_steps, model.config.noise_schedule

    assert levels(convert(inside, genes)) == (50, "cosine")
    assert levels(convert(outside, genes)) == (1000, "linear")
    options = ("--n-diffusion-steps", "50", "--noise-schedule", "cosine", "--out", str(tmp_path / "again"))
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(outside), "--genes", str(genes), *options])
    assert not stop.value.code
    again, first = (Squidiff.load(tmp_path / name, "cpu") for name in ("again", "run"))
    assert levels(again) == (50, "cosine")
    asked = pd.DataFrame({"n_cells": [3]})
    one, same = (model.predict(asked, cells(), Sampling(n_sample_steps=5)) for model in (again, first))
    assert np.array_equal(dense(one), dense(same))
    cells()[:, ::-1].copy().write_h5ad(genes)
    with pytest.raises(InputError, match=r"has other genes, or in another order, than the run in"):
        convert(inside, genes)
