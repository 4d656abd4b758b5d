"""Upstream's training script: every flag, its files, and bad input in a sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from made_cells import logged
from squidiff.cli.upstream import train_squidiff
from squidiff.config import PRESETS, InputError
from squidiff.data.conditions import ConditionEncoder
from squidiff.data.table import CellTable
from squidiff.data.unit import Normalisation
from squidiff.estimator import Squidiff
from squidiff.estimator.upstream import begin_upstream
from squidiff.legacy.cells import DRUG_SCHEMA, dense, encode_drugs, read_paired_controls
from squidiff.legacy.flags import FLAGS, NO_EFFECT, settings
from squidiff.legacy.train import UpstreamLog, _paired
from squidiff.train.run import Record

UPSTREAMS = [
    "output_dim",
    "num_layers",
    "gene_size",
    "num_channels",
    "dropout",
    "class_cond",
    "use_checkpoint",
    "use_scale_shift_norm",
    "use_fp16",
    "use_encoder",
    "use_drug_structure",
    "drug_dimension",
    "comb_num",
    "learn_sigma",
    "diffusion_steps",
    "noise_schedule",
    "timestep_respacing",
    "use_kl",
    "predict_xstart",
    "rescale_timesteps",
    "rescale_learned_sigmas",
    "data_path",
    "control_data_path",
    "schedule_sampler",
    "lr",
    "weight_decay",
    "lr_anneal_steps",
    "batch_size",
    "microbatch",
    "ema_rate",
    "log_interval",
    "save_interval",
    "resume_checkpoint",
    "fp16_scale_growth",
    "logger_path",
    "use_ddim",
]
DEFAULTS = {name: flag.default for name, flag in FLAGS.items()}
SMALL = ("--gene_size", 40, "--output_dim", 40, "--lr_anneal_steps", 12, "--batch_size", 16, "--device", "cpu")
DOCS = Path(__file__).parents[2] / "docs" / "moving-from-squidiff.md"


def run(*tokens: object) -> None:
    train_squidiff([str(token) for token in tokens])


def refused(capsys: pytest.CaptureFixture[str], *tokens: object) -> str:
    """What is said when the script ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        run(*tokens)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds cells.h5ad, and treated.h5ad with control.h5ad, as upstream's data are."""
    monkeypatch.chdir(tmp_path)
    cells = logged()
    cells.obs["Group"] = 0
    cells.write_h5ad("cells.h5ad")
    is_treated = (cells.obs["condition"] == "drug").to_numpy()
    treated, control = cells[is_treated].copy(), cells[~is_treated].copy()
    treated.obs["SMILES"] = ["CCO+CCN" if i % 2 else "c1ccccc1O" for i in range(treated.n_obs)]
    treated.obs["dose"] = 9.0
    treated.write_h5ad("treated.h5ad")
    ad.AnnData(control.X, var=control.var).write_h5ad("control.h5ad")
    return tmp_path


def test_every_flag_of_upstream_is_there() -> None:
    assert sorted(FLAGS) == sorted(UPSTREAMS)


def test_upstreams_defaults_are_the_preset() -> None:
    found = settings(DEFAULTS, (), pytest.fail, seed=0)
    assert found == PRESETS["upstream"]


def test_every_flag_reaches_its_setting() -> None:
    given = {"num_layers": 2, "batch_size": 5, "lr": 0.5, "weight_decay": 0.25, "ema_rate": "0.5,0.25", "microbatch": 3}
    given |= {"lr_anneal_steps": 7e3, "log_interval": 12, "save_interval": 30, "diffusion_steps": 300}
    found = settings(DEFAULTS | given | {"noise_schedule": "cosine"}, list(given), pytest.fail, seed=9)
    assert found == dataclasses.replace(
        PRESETS["upstream"],
        n_blocks=2,
        batch_size=5,
        learning_rate=0.5,
        weight_decay=0.25,
        ema_decay=0.5,
        further_ema_decays=(0.25,),
        micro_batch_size=3,
        n_train_steps=7000,
        log_every_steps=6,  # divides 12 and 30
        save_every_steps=30,
        n_diffusion_steps=300,
        noise_schedule="cosine",
        seed=9,
    )


@pytest.mark.parametrize(
    ("n_steps", "log", "save"), [(100_000, 250, 10_000), (12_345, 1000, 10_000), (30_000, 5000, 77), (9, 10_000, 4)]
)
def test_a_record_ends_wherever_a_row_of_the_log_or_a_save_is_due(n_steps: int, log: int, save: int) -> None:
    values = DEFAULTS | {"lr_anneal_steps": n_steps, "log_interval": log, "save_interval": save}
    every = settings(values, (), pytest.fail, seed=0).log_every_steps
    assert log % every == save % every == 0
    assert every <= max(1, n_steps // 1000)


def test_the_log_has_a_row_for_each_interval(tmp_path: Path) -> None:
    config = settings(DEFAULTS | {"lr_anneal_steps": 12_345, "log_interval": 1000}, (), pytest.fail, seed=0)
    log = UpstreamLog(tmp_path, config, 1000, [])
    for step in [*range(config.log_every_steps, 12_345, config.log_every_steps), 12_345]:
        log.add(Record(step, 1.0, None, None, None, None, None, 1e-4, 1.0, None, None))
    assert pd.read_csv(tmp_path / "progress.csv")["step"].tolist() == [*range(1000, 12_001, 1000), 12_345]


def test_each_target_is_shown_the_control_of_its_row_and_its_drug(folder: Path) -> None:
    treated, control = ad.read_h5ad("treated.h5ad"), ad.read_h5ad("control.h5ad")
    treated.obs["dose"] = np.arange(treated.n_obs, dtype=float)
    cells, rows = _paired(treated, control)
    table = CellTable.from_anndata(cells, DRUG_SCHEMA)
    encoder = ConditionEncoder.fit(table.parts, DRUG_SCHEMA)
    config = dataclasses.replace(PRESETS["upstream"], width=8)
    unit, cpu = Normalisation.unknown(), torch.device("cpu")
    _, pairs, _ = begin_upstream(table, encoder, unit, DRUG_SCHEMA, config, cpu, rows)
    assert pairs.target_rows().tolist() == list(range(treated.n_obs))
    chosen = np.array([5, 0, 7, 12])
    target, shown = pairs.batch(chosen, np.random.default_rng(0))
    np.testing.assert_array_equal(target, dense(treated)[chosen])
    np.testing.assert_array_equal(shown[:, :40], dense(control)[chosen])
    drugs = encode_drugs(treated.obs["SMILES"].tolist(), treated.obs["dose"].tolist())
    assert len(np.unique(drugs[chosen], axis=0)) == 4
    np.testing.assert_allclose(shown[:, 40:], drugs[chosen], rtol=1e-6)


def test_controls_are_matched_by_gene_name_where_they_have_them(folder: Path) -> None:
    treated, control = ad.read_h5ad("treated.h5ad"), ad.read_h5ad("control.h5ad")
    control[:, ::-1].copy().write_h5ad("turned.h5ad")
    found = read_paired_controls(Path("turned.h5ad"), treated, Path("treated.h5ad"))
    np.testing.assert_array_equal(dense(found), dense(control))
    ad.AnnData(control.X).write_h5ad("nameless.h5ad")
    found = read_paired_controls(Path("nameless.h5ad"), treated, Path("treated.h5ad"))
    np.testing.assert_array_equal(dense(found), dense(control))
    control.var_names = ["another", *control.var_names[1:]]
    control.write_h5ad("other.h5ad")
    with pytest.raises(InputError, match=r"1 of the 40 genes of treated.h5ad are missing in other.h5ad"):
        read_paired_controls(Path("other.h5ad"), treated, Path("treated.h5ad"))


def test_the_plot_of_another_training_is_not_replaced(folder: Path, capsys: Any) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "loss_plot.pdf").write_text("theirs", encoding="utf-8")
    said = refused(capsys, "--logger_path", "log", "--resume_checkpoint", "out", "--data_path", "cells.h5ad", *SMALL)
    assert "out/loss_plot.pdf is there already" in said
    assert (folder / "out" / "loss_plot.pdf").read_text(encoding="utf-8") == "theirs"
    assert not (folder / "out" / "config.json").exists()


@pytest.mark.slow
def test_the_notes_own_command_writes_upstreams_files_to_the_logger_path(folder: Path) -> None:
    run("--logger_path", "log", "--data_path", "cells.h5ad", *SMALL, "--log_interval", 5)
    names = {path.name for path in (folder / "log").iterdir()}
    assert {"model.pt", "model_0.9999.pt", "loss_plot.pdf", "log.txt", "progress.csv", "model.safetensors"} <= names
    table = pd.read_csv("log/progress.csv")
    assert table["step"].tolist() == [5, 10, 12]
    assert table["samples"].tolist() == [80, 160, 192]
    records = [json.loads(line) for line in Path("log/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [r["loss"] for r in records]
    assert table["loss"].tolist() == pytest.approx([np.mean(losses[:5]), np.mean(losses[5:10]), np.mean(losses[10:])])
    assert Path("log/loss_plot.pdf").read_bytes().startswith(b"%PDF")
    assert "grad_norm" in Path("log/log.txt").read_text(encoding="utf-8")
    model = Squidiff.load("log", "cpu")
    assert model.fitted.network.sizes.width == 2048


@pytest.mark.slow
def test_drugs_are_paired_with_the_control_of_their_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        *("--logger_path", "log", "--resume_checkpoint", "out", "--data_path", "treated.h5ad", *SMALL),
        *("--use_drug_structure", "True", "--control_data_path", "control.h5ad", "--comb_num", 2),
    )
    assert "--comb_num is not needed" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in (folder / "log").iterdir()} == {"log.txt", "progress.csv"}
    assert torch.load("out/model.pt", weights_only=True)["encoder.fc1.weight"].shape == (2048, 40 + 1024)
    model = Squidiff.load("out", "cpu")
    asked = pd.DataFrame({"SMILES": ["CCO"], "dose": [1.0], "n_cells": [5]})
    assert model.predict(asked, "control.h5ad").shape == (5, 40)


@pytest.mark.slow
def test_every_average_has_its_file(folder: Path) -> None:
    run("--logger_path", "log", "--data_path", "cells.h5ad", *SMALL, "--ema_rate", "0.5,0.9", "--microbatch", 8)
    newest, quick, slow = (
        torch.load(f"log/{name}", weights_only=True)["output_layer.weight"]
        for name in ("model.pt", "model_0.5.pt", "model_0.9.pt")
    )
    assert 0 < (newest - quick).norm() < (newest - slow).norm()


@pytest.mark.slow
def test_false_is_false(folder: Path) -> None:
    run("--logger_path", "log", "--data_path", "cells.h5ad", *SMALL, "--use_drug_structure", "False")
    assert torch.load("log/model.pt", weights_only=True)["encoder.fc1.weight"].shape == (2048, 40)


@pytest.mark.slow
def test_a_folder_that_holds_an_unfinished_run_is_gone_on_with(folder: Path, capsys: Any) -> None:
    few = ("--lr_anneal_steps", 8, "--save_interval", 4, "--log_interval", 3)  # a state of this network is a GB
    tokens = ("--logger_path", "log", "--data_path", "cells.h5ad", *SMALL, *few)
    run(*tokens, "--resume_checkpoint", "whole")
    expected = Path("log/progress.csv").read_text(encoding="utf-8")
    from squidiff.train import run as training

    class Stopped(Exception):
        pass

    write = training._Log.write

    def stop(self: Any, record: Any) -> None:
        write(self, record)
        if record.step == 6:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Log, "write", stop)
        with pytest.raises(Stopped):
            run(*tokens, "--resume_checkpoint", "cut")
    assert (folder / "cut" / "resume").is_dir()
    run(*tokens, "--resume_checkpoint", "cut")
    assert Path("log/progress.csv").read_text(encoding="utf-8") == expected
    said = " ".join(capsys.readouterr().out.split())
    assert "log/log.txt and progress.csv are of another training and are replaced" in said
    assert "going on with the run in cut" in said
    one, other = (torch.load(f"{name}/model.pt", weights_only=True) for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_files_of_others_stay_and_a_finished_model_is_not_replaced(folder: Path, capsys: Any) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    tokens = ("--logger_path", "log", "--data_path", "cells.h5ad", *SMALL, "--resume_checkpoint", "out")
    run(*tokens)
    assert (folder / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert "out already holds a trained model" in refused(capsys, *tokens)
    (folder / "theirs").mkdir()
    (folder / "theirs" / "model.pt").write_bytes(b"months of work")
    assert "theirs holds 'model.pt' and no run" in refused(capsys, *tokens[:-1], "theirs")
    assert (folder / "theirs" / "model.pt").read_bytes() == b"months of work"


@pytest.mark.slow
def test_raw_counts_are_taken_but_not_in_silence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = ad.read_h5ad("cells.h5ad")
    cells.X = np.random.default_rng(0).poisson(3.0, cells.shape).astype(np.float32)
    cells.write_h5ad("counts.h5ad")
    run("--logger_path", "log", "--data_path", "counts.h5ad", *SMALL)
    assert "X holds raw counts and is trained on as it is" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", [name for name, flag in FLAGS.items() if flag.refusal])
def test_what_is_refused_is_refused_in_the_sentence_of_the_docs(name: str) -> None:
    other = {bool: not FLAGS[name].default, int: 7, str: "other"}[type(FLAGS[name].default)]
    with pytest.raises(InputError, match=f"^--{name} {other} is refused: ") as error:
        settings(DEFAULTS | {name: other, "diffusion_steps": 500}, [name], pytest.fail, seed=0)
    assert FLAGS[name].refusal in DOCS.read_text(encoding="utf-8")
    assert str(error.value).endswith(str(FLAGS[name].refusal))
    assert settings(DEFAULTS, [name], lambda text: None, seed=0) == PRESETS["upstream"]  # its default is no offence


@pytest.mark.parametrize("name", [*(name for name, flag in FLAGS.items() if flag.notice), "rescale_timesteps"])
def test_what_never_had_an_effect_is_one_line(name: str) -> None:
    said: list[str] = []
    assert settings(DEFAULTS | {name: 3}, [name], said.append, seed=0) == PRESETS["upstream"]
    assert said == [f"--{name} {FLAGS[name].notice or NO_EFFECT}"]
    assert f"`--{name}`" in DOCS.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("--data_path", ""), "train_squidiff.py needs --logger_path FOLDER and --data_path CELLS.h5ad"),
        (
            ("--gene_size", 41, "--output_dim", 41),
            "cells.h5ad has 40 genes, but the model 41: --gene_size must be what both have",
        ),
        (("--output_dim", 30), "--output_dim is 30, --gene_size 40: both are the number of genes"),
        (("--use_drug_structure", "maybe"), "'maybe' is neither True nor False"),
        (("--use_drug_structure", "True"), "column 'SMILES' is missing in obs of cells.h5ad"),
        (("--use_drug_structure", "True", "--data_path", "treated.h5ad"), "needs --control_data_path"),
        (("--lr_anneal_steps", 0), "--lr_anneal_steps is 0: it must be a whole number of 1 or more"),
        (("--ema_rate", "0.9;0.99"), "--ema_rate is '0.9;0.99': it must be numbers such as 0.9999,0.999"),
        (("--lr_anneal_steps", "inf"), "--lr_anneal_steps is inf: it must be a whole number of 1 or more"),
        (("--lr", -1), "--lr is -1.0: it must be at least 0.0"),
        (("--num_layers", 0), "--num_layers is 0: it must be at least 1"),
        (("--microbatch", 1), "--microbatch is 1: it must be at least 2"),
        (("--ema_rate", "0.9,1"), "--ema_rate is 1.0: it must be at most"),
        (("--diffusion_steps", 20), "20 steps of linear noise are too few: take 21 or more"),
        (("--noise_schedule", "sqrt"), "--noise_schedule is 'sqrt': choose one of linear, cosine"),
        (("--batch_size", "many"), "argument --batch_size: invalid int value: 'many'"),
        (("--nonsense", 1), "unrecognized arguments: --nonsense 1"),
        (("--data_path", "bare.h5ad"), "column 'Group' is missing in obs of bare.h5ad"),
    ],
)
def test_bad_input_is_one_sentence(
    tokens: tuple[object, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = ad.read_h5ad("cells.h5ad")
    ad.AnnData(cells.X, var=cells.var).write_h5ad("bare.h5ad")
    assert message in refused(capsys, "--logger_path", "log", "--data_path", "cells.h5ad", *SMALL, *tokens)
    assert not (folder / "log").exists()


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("SMILES", ["CCO", "C1CC"], "obs of bad.h5ad, row 1: SMILES 'C1CC' does not parse"),
        ("dose", [1.0, -1.0], "obs of bad.h5ad, row 1 has dose '-1.0'"),
        ("dose", None, "column 'dose' is missing in obs of bad.h5ad"),
    ],
)
def test_bad_drugs_name_their_row(column: str, values: Any, message: str, folder: Path, capsys: Any) -> None:
    cells = ad.read_h5ad("treated.h5ad")
    if values is None:
        del cells.obs[column]
    else:
        cells.obs[column] = [values[min(i, 1)] for i in range(cells.n_obs)]
    cells.write_h5ad("bad.h5ad")
    tokens = ("--use_drug_structure", "True", "--control_data_path", "control.h5ad", "--data_path", "bad.h5ad")
    assert message in refused(capsys, "--logger_path", "log", *SMALL, *tokens)


def test_treated_and_control_cells_must_be_as_many(folder: Path, capsys: Any) -> None:
    ad.read_h5ad("control.h5ad")[:-1].copy().write_h5ad("short.h5ad")
    tokens = ("--use_drug_structure", "True", "--control_data_path", "short.h5ad", "--data_path", "treated.h5ad")
    said = refused(capsys, "--logger_path", "log", *SMALL, *tokens)
    assert "short.h5ad has 119 cells and treated.h5ad has 120: controls are paired by row" in said
