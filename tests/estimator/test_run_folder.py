"""A run folder: whole or not there, never another, and gone on with bit by bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_models import FILES, QUERY, TRAIN

from made_cells import SCHEMA, SMALL, contents, counts, logged, small
from squidiff.config import InputError, Schema
from squidiff.estimator import Squidiff
from squidiff.train.run import Record


def test_a_run_folder_holds_its_files_and_the_weights_come_last(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    seen: list[set[str]] = []

    def look(record: Record) -> None:
        seen.append({p.name for p in folder.iterdir()})

    model = Squidiff(SCHEMA, small(n_train_steps=30), "cpu").fit(TRAIN, out=folder, on_record=look)
    assert len(seen) == 6
    assert not any("model.safetensors" in names for names in seen)
    assert all({"check.json", "manifest.json", "config.json", "metrics.jsonl"} <= names for names in seen)
    assert "resume" in seen[-1]
    assert {p.name for p in folder.iterdir() if p.is_file()} == FILES
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert saved["genes"] == list(TRAIN.var_names)
    assert saved["config"]["width"] == 32
    assert saved["schema"]["control"] == "control"
    assert saved["vocabulary"] == {"kind": "one-hot", "names": ["drug"]}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["n_cells"] == TRAIN.n_obs
    assert sum(p["n_cells"] for p in manifest["populations"]) == TRAIN.n_obs
    assert json.loads((folder / "check.json").read_text(encoding="utf-8")) == model.check
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [r.step for r in model.history] == [5, 10, 15, 20, 25, 30]


def test_the_resumable_state_is_gone_when_training_is_done(run: Path) -> None:
    assert not (run / "resume").exists()


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_was(run: Path) -> None:
    before = contents(run)
    for resume in (False, True):
        with pytest.raises(
            InputError,
            match=rf"already holds a trained model: choose another folder{', or train it further' if resume else '$'}",
        ):
            Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=run, resume=resume)
    assert contents(run) == before


def test_a_folder_of_foreign_files_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"and no run: choose another folder$"):
            Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=tmp_path, resume=resume)
    assert contents(tmp_path) == {"thesis.txt": b"years"}


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    def stop(record: Record) -> None:
        if record.step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=tmp_path / "run", on_record=stop)
    return tmp_path / "run"


def test_an_unfinished_run_goes_on_to_the_same_bits(unfinished: Path, run: Path) -> None:
    assert (unfinished / "resume").is_dir()
    Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=unfinished, resume=True)
    assert (unfinished / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (unfinished / "config.json").read_bytes() == (run / "config.json").read_bytes()


def test_an_unfinished_run_is_not_loaded_and_not_overwritten(unfinished: Path) -> None:
    before = contents(unfinished)
    with pytest.raises(InputError, match=r"holds no trained model: training has not finished .*--resume"):
        Squidiff.load(unfinished)
    with pytest.raises(InputError, match=r"holds an unfinished run: go on with --resume"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=unfinished)
    assert contents(unfinished) == before


@pytest.mark.parametrize(
    ("schema", "config", "message"),
    [
        (SCHEMA, small(width=16), r"config \(--width was 32, is 16\): give the same, or another folder$"),
        (SCHEMA, small(seed=1), r"was begun with another config \(--seed was 0, is 1\): give"),
        (
            Schema(condition_key="condition", control="control"),
            SMALL,
            r"was begun with another schema \(--context-key was \['cell_type'\], is \[\]\): give",
        ),
    ],
)
def test_resuming_with_other_settings_is_refused(
    unfinished: Path, schema: Schema, config: object, message: str
) -> None:
    before = contents(unfinished)
    with pytest.raises(InputError, match=message):
        Squidiff(schema, config, "cpu").fit(TRAIN, out=unfinished, resume=True)
    assert contents(unfinished) == before


def test_resuming_with_other_data_is_refused(unfinished: Path) -> None:
    other, before = TRAIN.copy(), contents(unfinished)
    other.X.data[7] += 0.5
    with pytest.raises(InputError, match=r"was begun with other data: give the same"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(other, out=unfinished, resume=True)
    assert contents(unfinished) == before


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "check.json", "provenance.json"])
@pytest.mark.parametrize("fault", ["missing", "cut", "empty"])
def test_a_run_that_is_not_whole_is_refused(run: Path, tmp_path: Path, file: str, fault: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in contents(run).items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    if fault == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((run / file).read_bytes()[: 0 if fault == "empty" else -20])
    with pytest.raises(InputError, match=rf"{file} (cannot be read|is not valid JSON)"):
        Squidiff.load(folder)


def test_weights_of_another_run_of_the_same_shape_are_refused(run: Path, tmp_path: Path) -> None:
    """Other genes, as many: nothing but the run itself tells them apart."""
    other = TRAIN.copy()
    other.var_names = [f"other_{i}" for i in range(40)]
    Squidiff(SCHEMA, SMALL, "cpu").fit(other).save(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"do not belong together: one is another run's, or config\.json was changed"):
        Squidiff.load(tmp_path / "run")


@pytest.mark.parametrize("place", ["a file", "a folder with a file", "a run"])
def test_saving_overwrites_nothing(model: Squidiff, run: Path, tmp_path: Path, place: str) -> None:
    target = run if place == "a run" else tmp_path / "mine"
    if place == "a file":
        target.write_text("years", encoding="utf-8")
    elif place == "a folder with a file":
        target.mkdir()
        (target / "config.json").write_text("mine", encoding="utf-8")
    before = contents(target.parent)
    with pytest.raises(InputError, match=r"is there already and not an empty folder: choose another$"):
        model.save(target)
    assert contents(target.parent) == before


def test_a_run_that_was_killed_before_its_settings_were_written_is_begun_again(run: Path, tmp_path: Path) -> None:
    for name in ("check.json", "manifest.json"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_weights_and_settings_of_two_runs_are_refused(run: Path, tmp_path: Path) -> None:
    other = Squidiff(SCHEMA, small(n_train_steps=1, width=16), "cpu").fit(TRAIN)
    other.save(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors and config\.json do not belong together"):
        Squidiff.load(tmp_path / "run")


def test_a_folder_that_is_not_there_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no trained model: there is no such folder$"):
        Squidiff.load(tmp_path / "none")


def test_training_that_diverges_is_stopped_and_leaves_no_model(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, n_warmup_steps=0)
    with pytest.raises(InputError, match=r"^training diverged at step \d+, its loss is nan: lower --learning-rate"):
        Squidiff(SCHEMA, config, "cpu").fit(logged(), out=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(InputError, match="training has not finished"):
        Squidiff.load(tmp_path / "run", "cpu")


def test_training_that_diverges_late_leaves_its_best_weights_beside_and_is_not_finished(tmp_path: Path) -> None:
    """After its first step, which is validated, the second one's loss explodes."""
    leaping = {"learning_rate": 1.0, "n_warmup_steps": 0, "ema_decay": 0.999}
    config = dataclasses.replace(SMALL, validate_every_steps=1, log_every_steps=1, **leaping)
    message = r"^training diverged at step \d+, its loss is .* folder; .*before-divergence has the best weights before"
    model = Squidiff(SCHEMA, config, "cpu")
    with pytest.raises(InputError, match=message):
        model.fit(logged(), out=tmp_path / "run")
    kept = Squidiff.load(tmp_path / "run" / "before-divergence", "cpu")
    pd.testing.assert_frame_equal(kept.predict(QUERY, logged()).to_df(), model.predict(QUERY, logged()).to_df())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(InputError, match="training has not finished"):
        Squidiff.load(tmp_path / "run", "cpu")
    with pytest.raises(InputError, match=r"^training diverged at step"):  # and does so again
        Squidiff(SCHEMA, config, "cpu").fit(logged(), out=tmp_path / "run", resume=True)


def test_a_folder_of_ones_own_that_is_called_resume_stays(tmp_path: Path) -> None:
    (tmp_path / "run" / "resume").mkdir(parents=True)
    (tmp_path / "run" / "resume" / "cv.txt").write_text("years", encoding="utf-8")
    with pytest.raises(InputError, match=r"holds 'resume' and no run: choose another folder$"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(logged(), out=tmp_path / "run")
    assert (tmp_path / "run" / "resume" / "cv.txt").read_text(encoding="utf-8") == "years"


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Squidiff(SCHEMA, SMALL, "cpu").fit(logged())
    with torch.no_grad():
        model.fitted.network.denoiser.lift.weight[0, 0] = float("nan")
    model.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"denoiser\.lift\.weight holds values that are not finite$"):
        Squidiff.load(tmp_path / "run", "cpu")


def test_counts_of_more_genes_are_scaled_as_in_training() -> None:
    """Training knew the total of its own genes: others in the source must not change the unit."""
    more = counts()
    few = more[:, :20].copy()
    config = dataclasses.replace(SMALL, normalize=True)
    model = Squidiff(SCHEMA, config, "cpu").fit(few)
    one, other = (model.predict(QUERY, source).to_df() for source in (few, more))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
