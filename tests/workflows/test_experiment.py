"""An experiment from its file to figures, page and note; run again, it leaves the author's words alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from squidiff.config import InputError
from squidiff.data.table import CellTable
from squidiff.estimator import Squidiff
from squidiff.report.note_words import WORDS
from squidiff.train.run import Record as LogLine
from squidiff.train.run import read_records
from squidiff.workflows.experiment_file import read_experiment
from squidiff.workflows.experiment_record import FAILED, read_record
from squidiff.workflows.lab_note import run_into_note
from squidiff.workflows.measure import early_oscillation, memory_growth

ROOT = Path(__file__).resolve().parents[2]
FILE = """
name = "testing"
experiment = {number}
date = 2025-11-01
language = "{language}"
title = "<b> | check"
author = "A. \\"B\\""
next_steps = ["more genes"]
[data]
simulate = {{ n_genes = 20, n_cell_types = 1, n_cells = 60 }}
[schema]
context_keys = ["cell_type", "condition"]
[prepare]
normalize = true
test_fraction = 0.3333
[config]
width = 16
n_latent = 4
n_train_steps = {steps}
batch_size = 16
log_every_steps = 1
{more}
"""


def write(folder: Path, number: int = 1, language: str = "en", steps: int = 24, more: str = "") -> Path:
    path = folder / f"exp{number:02}.toml"
    path.write_text(FILE.format(number=number, language=language, steps=steps, more=more), encoding="utf-8")
    return path


def run(file: Path) -> tuple[object, Path]:
    return run_into_note(read_experiment(file), file, file.parent / "results", device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object, Path]:
    folder = tmp_path_factory.mktemp("experiment")
    record, note = run(write(folder, more="[observe]\nbatch_sizes = [8]"))
    return folder, record, note


@pytest.mark.slow
def test_everything_lies_where_the_note_says(done: tuple[Path, object, Path]) -> None:
    note = done[2]
    assert note.parent.name == "20251101_testing"
    assert note.name == "20251101_testing.md"
    text = note.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets == ["exp01/training_loss.png", "exp01/sample_quality.png", "exp01/index.html"]
    assert all((note.parent / target).is_file() for target in targets)
    assert {p.name for p in (note.parent / "exp01").iterdir()} >= {
        "metrics.json",
        "run",
        "index.html",
        "predicted.h5ad",
    }
    assert json.loads((note.parent / "exp01" / "metrics.json").read_text())["status"] == "done"
    assert str(note.parent) not in text  # nobody's folders


@pytest.mark.slow
def test_the_numbers_of_the_note_are_those_of_the_files(done: tuple[Path, object, Path]) -> None:
    _, record, note = done
    here = note.parent / "exp01"
    values = {row["name"]: row["value"] for row in record.metrics}
    scores = pd.read_csv(here / "scores" / "metrics.csv")
    whole = scores[(scores["method"] == "model") & (scores["condition"] == "all populations")].set_index("metric")
    assert values["pearson"] == pytest.approx(whole.loc["pearson", "value"])
    provenance = json.loads((here / "run" / "provenance.json").read_text())
    assert values["training_minutes"] == provenance["seconds"] / 60
    assert values["noise_error"] == provenance["noise_error"]
    assert values["training_loss"] == read_records(here / "run" / "metrics.jsonl")[-1].loss
    met = {row["name"]: row["met"] for row in record.metrics}
    assert met["training_minutes"] is True
    assert met["gpu_memory_gb"] is None
    assert met["pearson"] is (values["pearson"] > 0.8)
    n_trained = 80 * 0.9
    assert record.observations["epochs"] == pytest.approx(24 * 16 / n_trained)
    assert len(record.observations["memory_mb"]) == 24
    assert [of["batch_size"] for of in record.observations["batch_sizes"]] == [8]


@pytest.mark.slow
def test_the_noise_error_is_that_of_the_predicted_noise(done: tuple[Path, object, Path]) -> None:
    """Of a Gaussian denoiser: computed here from its closed form, at the 1,000 steps, with other noise."""
    _, _, note = done
    model = Squidiff.load(note.parent / "exp01" / "run", device="cpu")
    network = model.fitted.network
    train = ad.read_h5ad(note.parent / "exp01" / "train.h5ad")
    table = CellTable.from_anndata(train, model.schema)
    x = table.dense(np.arange(len(table.names)))
    mean = np.stack([x[table.population == i].mean(axis=0) for i in range(len(table.keys))])
    standard = (x - mean[table.population]) / network.scale.numpy()
    # the untrained part: E|eps - E[eps | x_t]|^2 with the covariance of the cells is at least what was measured
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha2 = np.cumprod(1 - betas)
    variance = np.linalg.eigvalsh(np.cov(standard.T))
    error = np.mean([np.mean(a * variance / (a * variance + 1 - a)) for a in alpha2])
    said = json.loads((note.parent / "exp01" / "run" / "provenance.json").read_text())["noise_error"]
    assert said == pytest.approx(error, rel=0.15)


@pytest.mark.slow
def test_the_texts_of_the_file_are_data_and_stay_in_their_place(done: tuple[Path, object, Path]) -> None:
    text = done[2].read_text(encoding="utf-8")
    assert 'author: "A. \\"B\\""' in text
    assert "## Experiment 1: Exp01 (&lt;b> | check)" in text
    assert "| Exp01 | &lt;b> \\| check | " in text
    for table in re.findall(r"(?:^>? ?\|.*\n)+", text, re.MULTILINE):
        n_columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(n_columns) == 1, table


@pytest.mark.slow
def test_running_again_keeps_what_its_author_wrote_and_measures_nothing_again(
    done: tuple[Path, object, Path], tmp_path: Path
) -> None:
    file = write(tmp_path)
    _, note = run(file)
    before = note.read_text(encoding="utf-8")
    weights = (note.parent / "exp01" / "run" / "model.safetensors").stat().st_mtime_ns
    edited = before.replace("- [ ] more genes", "- [x] more genes\n- [ ] ask Aiko").replace(
        "### Discussion", "### 考察"
    )
    note.write_text(edited, encoding="utf-8")
    said = []
    file.write_text(file.read_text().replace('author = "A.', 'author = "C.'), encoding="utf-8")
    run_into_note(read_experiment(file), file, tmp_path / "results", device="cpu", say=said.append)
    after = note.read_text(encoding="utf-8")
    assert "- [x] more genes\n- [ ] ask Aiko" in after
    assert "### 考察" in after
    assert '**Operator**: C. "B"' in after
    assert (note.parent / "exp01" / "run" / "model.safetensors").stat().st_mtime_ns == weights
    assert said[0].startswith("exp01 was run on")
    assert note.with_name(note.name + ".bak").read_text(encoding="utf-8") == edited


@pytest.mark.slow
def test_other_settings_are_refused_and_other_targets_are_not(done: tuple[Path, object, Path], tmp_path: Path) -> None:
    file = write(tmp_path, steps=10)
    _, note = run(file)
    before = note.read_bytes()
    with pytest.raises(InputError, match="as run with other settings or data"):
        run(write(tmp_path, steps=11))
    assert note.read_bytes() == before
    record, _ = run(write(tmp_path, steps=10, more='[targets]\npearson = "> 0.99999"'))
    assert [(row["name"], row["met"]) for row in record.metrics if row["target"]] == [("pearson", False)]
    assert "✗ Fail" in note.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_second_experiment_in_the_other_language_comes_after_the_first(tmp_path: Path) -> None:
    run(write(tmp_path, 2, steps=6))
    _, note = run(write(tmp_path, 1, "ja", steps=6))
    text = note.read_text(encoding="utf-8")
    assert text.index("Exp01 (") < text.index("Exp02 (")
    assert "| 実験 | タイトル |" in text
    assert len(re.findall(r"^\| Exp0[12] \|", text, re.MULTILINE)) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('[evaluate]\nmetrics = ["pearson"]', ""),
        ("[sampling]\nn_sample_steps = 2", ""),
    ],
)
def test_without_held_out_cells_the_note_says_that_nothing_was_compared(tmp_path: Path, more: str, said: str) -> None:
    file = write(tmp_path, steps=6, more=more)
    file.write_text(file.read_text().replace("test_fraction = 0.3333\n", ""), encoding="utf-8")
    record, note = run(file)
    text = note.read_text(encoding="utf-8")
    assert "Not shown: scores: no cells were held out" in text
    assert record.figures == ["training_loss.png"]
    page = (note.parent / "exp01" / "index.html").read_text(encoding="utf-8")
    assert "no cells were held out" in page
    assert "--held-out" not in text
    again = [sys.executable, "-m", "squidiff", "experiment", str(file), "--out", str(note.parent.parent)]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "the note lacks a part: scores: no cells were held out" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_training_that_fails_still_has_a_page_and_a_section(tmp_path: Path) -> None:
    file = write(tmp_path, more="learning_rate = 1e30\nmax_grad_norm = 1e30\nn_warmup_steps = 0")
    record, note = run(file)
    assert record.status == FAILED
    assert "diverged" in record.failure
    text = note.read_text(encoding="utf-8")
    assert "The experiment did not finish: training diverged" in text
    page = (note.parent / "exp01" / "index.html").read_text(encoding="utf-8")
    assert "<p>This did not end: training diverged" in page
    assert '"noise_error"' in (note.parent / "exp01" / "metrics.json").read_text()


@pytest.mark.slow
def test_a_grid_takes_the_lowest_validation_loss_and_shows_as_many_cells_to_each(tmp_path: Path) -> None:
    more = "[grid]\nlearning_rate = [1e-6, 0.01]\nbatch_size = [16, 32]"
    record, note = run(write(tmp_path, steps=20, more=more))
    assert [(t["batch_size"], t["n_train_steps"]) for t in record.trials] == [(16, 20), (32, 10)] * 2
    best = min(record.trials, key=lambda trial: trial["validation_loss"])
    model = Squidiff.load(note.parent / "exp01" / "run", device="cpu")
    assert (model.config.learning_rate, model.config.batch_size) == (best["learning_rate"], best["batch_size"])
    validated = [line.validation_loss for line in model.history if line.validation_loss is not None]
    assert min(validated) == pytest.approx(best["validation_loss"])


@pytest.mark.slow
def test_a_trial_that_fails_takes_no_other_with_it_even_before_its_first_line(tmp_path: Path) -> None:
    more = "log_every_steps = 20\n[grid]\nlearning_rate = [1e12, 0.001]".replace("log_every_steps = 20\n", "")
    file = write(tmp_path, steps=24, more=more)
    file.write_text(file.read_text().replace("log_every_steps = 1\n", "log_every_steps = 20\n"), encoding="utf-8")
    record, note = run(file)
    assert (record.status, record.failure) == ("done", "")
    assert ["diverged" in trial["failure"] for trial in record.trials] == [True, False]
    assert "diverged" in note.read_text(encoding="utf-8")
    alone = write(tmp_path, 2, steps=24, more="learning_rate = 1e12\nmax_grad_norm = 1e30")
    alone.write_text(alone.read_text().replace("log_every_steps = 1\n", "log_every_steps = 20\n"), encoding="utf-8")
    record, note = run(alone)
    assert record.status == FAILED
    assert (note.parent / "exp02" / "index.html").is_file()


@pytest.mark.slow
def test_a_failed_experiment_can_be_corrected_and_keeps_what_was_measured(tmp_path: Path) -> None:
    file = write(tmp_path, more="learning_rate = 1e30\nmax_grad_norm = 1e30\nn_warmup_steps = 0")
    assert run(file)[0].status == FAILED
    file = write(tmp_path, steps=6)
    file.write_text(file.read_text().replace("test_fraction = 0.3333\n", ""), encoding="utf-8")
    record, note = run(file)
    assert (record.status, record.failure) == ("done", "")
    assert "did not finish" not in note.read_text(encoding="utf-8")
    assert not (note.parent / "exp01" / "truth.h5ad").exists()  # of the try before


@pytest.mark.slow
def test_trials_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    more = "[grid]\nlearning_rate = [0.001, 1e30]"
    file = write(tmp_path, steps=6, more=more)
    file.write_text(file.read_text().replace('context_keys = ["cell_type", "condition"]', CONTROLLED))
    run(file)
    record = tmp_path / "results" / "20251101_testing" / "exp01" / "metrics.json"
    record.write_text(record.read_text().replace('"status": "done"', '"status": "failed"'))
    with pytest.raises(InputError, match="is of other settings or data"):
        run(write(tmp_path, steps=7, more=more))


def test_what_cannot_be_asked_is_said_before_training(tmp_path: Path) -> None:
    file = write(tmp_path)
    text = file.read_text().replace('context_keys = ["cell_type", "condition"]', CONTROLLED)
    text = text.replace("n_cell_types = 1", "n_cell_types = 2")
    file.write_text(text.replace("test_fraction = 0.3333", 'hold_out = ["condition=control,cell_type=type A"]'))
    record, note = run(file)
    assert "only control cells are held out" in record.failure
    assert not (note.parent / "exp01" / "run").exists()


@pytest.mark.parametrize(
    ("column", "message"),
    [("dose", ""), ("library_size", "columns.library_size is a column that the data have already: name it otherwise")],
)
def test_columns_are_added_and_none_is_replaced(tmp_path: Path, column: str, message: str) -> None:
    file = write(tmp_path)
    text = file.read_text().replace("[schema]", f'[data.columns.{column}]\ndrug = "1"\n[schema]')
    text = text.replace('context_keys = ["cell_type", "condition"]', CONTROLLED)
    file.write_text(text.replace("test_fraction = 0.3333", 'hold_out = ["condition=control"]'))
    assert run(file)[0].failure.startswith(message or "only control cells")


CONTROLLED = 'condition_key = "condition"\ncontrol = "control"\ncontext_keys = ["cell_type"]'


@pytest.mark.slow
def test_only_what_was_predicted_is_called_so(tmp_path: Path) -> None:
    file = write(tmp_path, steps=6)
    file.write_text(file.read_text().replace('context_keys = ["cell_type", "condition"]', CONTROLLED))
    record, _ = run(file)
    kinds = {(sample["condition"], sample["kind"]) for sample in record.samples}
    assert kinds == {("", "training"), ("drug", "training"), ("", "held out"), ("drug", "predicted")}


def test_what_cannot_be_predicted_is_missing_and_the_others_are_scored(tmp_path: Path) -> None:
    file = write(tmp_path, steps=2)
    text = file.read_text().replace('context_keys = ["cell_type", "condition"]', CONTROLLED)
    text = text.replace("n_cell_types = 1", 'n_cell_types = 2, conditions = ["a", "b"]')
    held_out = 'hold_out = ["condition=a,cell_type=type A", "condition=b"]'
    file.write_text(text.replace("test_fraction = 0.3333", held_out))
    record, note = run(file)
    assert (record.status, record.failure) == ("done", "")
    assert any("scores of 2 of 3 held-out populations" in said and "'b'" in said for said in record.missing)
    assert [s["condition"] for s in record.samples if s["kind"] == "predicted"] == ["a"]
    assert {s["condition"] for s in record.samples if s["kind"] == "held out"} == {"b"}
    scores = pd.read_csv(note.parent / "exp01" / "scores" / "metrics.csv")
    assert set(scores[scores["method"] == "model"]["condition"]) == {"type A, a"}


def test_memory_that_is_not_enough_is_a_failure_with_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nat frame 0")

    monkeypatch.setattr(Squidiff, "fit", fit)
    record, note = run(write(tmp_path))
    assert record.failure == "DefaultCPUAllocator: can't allocate memory"
    assert "allocate memory" in note.read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_picture_that_could_not_be_drawn_is_forgotten_once_it_can(tmp_path: Path) -> None:
    file = write(tmp_path, steps=6)
    _, note = run(file)
    predicted = note.parent / "exp01" / "predicted.h5ad"
    cells = predicted.read_bytes()
    predicted.write_bytes(b"no cells")
    assert "Not shown: sample_quality.png" in run(file)[1].read_text(encoding="utf-8")
    predicted.write_bytes(cells)
    assert "Not shown" not in run(file)[1].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["said"].pop("title"),
        lambda record: record["said"].update(language="fr"),
        lambda record: record["said"].update(tags=3),
        lambda record: record["metrics"][0].pop("met"),
        lambda record: record["metrics"][0].update(value="good"),
        lambda record: record["samples"][0].update(n_cells=None),
        lambda record: record.update(number="1"),
        lambda record: record.update(status="fine"),
        lambda record: record.update(observations=[]),
    ],
)
def test_a_record_that_a_note_could_not_tell_is_none(
    done: tuple[Path, object, Path], tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    whole = done[2].parent / "exp01" / "metrics.json"
    assert read_record(whole).number == 1
    record = json.loads(whole.read_text())
    edit(record)
    (tmp_path / "metrics.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is no record of an experiment: it was changed by hand; delete its folder"):
        read_record(tmp_path / "metrics.json")


@pytest.mark.slow
def test_another_experiments_damaged_record_is_left_out_and_said(tmp_path: Path) -> None:
    run(write(tmp_path, 2, steps=6))
    record = tmp_path / "results" / "20251101_testing" / "exp02" / "metrics.json"
    record.write_text('{"number": 1}')
    said: list[str] = []
    file = write(tmp_path, steps=6)
    run_into_note(read_experiment(file), file, tmp_path / "results", device="cpu", say=said.append)
    assert any("is no record of an experiment" in text for text in said)
    with pytest.raises(InputError, match="is no record of an experiment"):
        run(write(tmp_path, 2, steps=6))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('language = "en"', 'language = "fr"', "choose one of en, ja"),
        ("experiment = 1", "experiment = 0", "from 1 to 99"),
        ("date = 2025-11-01", 'date = "2025-11-01"', "without quotes"),
        ('name = "testing"', 'name = "../x"', "can name a folder"),
        ("simulate = ", 'file = "a.h5ad"\nsimulate = ', "one of the two"),
        ("n_genes = 20", "genes = 20", "has 'genes', which means nothing there"),
        ("n_genes = 20", "n_genes = 1", "n_genes is 1"),
        ("width = 16", "widht = 16", "has 'widht'"),
        ("width = 16", 'width = "16"', "must be of type int"),
        ("[config]", '[targets]\npearson = "good"\n[config]', "write it as '< 0.05'"),
        ("[config]", '[targets]\nquality = "> 1"\n[config]', "name 'quality': known are"),
        ("[config]", '[evaluate]\nmetrics = ["r"]\n[config]', "choose some of"),
        ("[config]", '[targets]\npearson = "> 1e999"\n[config]', "write it as '< 0.05'"),
        ("[config]", '[evaluate]\nmetrics = [["pearson"]]\n[config]', "choose some of"),
        ("[config]", "[grid]\nlearning_rate = [nan]\n[config]", "cannot be read as TOML: nan is no finite number"),
        ("n_genes = 20", "n_genes = 20, dispersion = 1e999", "cannot be read as TOML: 1e999 is no finite number"),
        ("[config]", f"[grid]\nbatch_size = [{'9' * 400}]\n[config]", "give a list of finite numbers"),
        ("width = 16", f"learning_rate = {'9' * 400}", "it must be finite"),
        ("width = 16", f"width = {'9' * 5000}", "cannot be read as TOML: Exceeds the limit"),
        ("[data]", f"x = {'[' * 20_000}\n[data]", "cannot be read as TOML: maximum recursion depth"),
        ("[config]", "[grid]\nseed = [1]\n[config]", "has 'seed'"),
        ("[schema]", '[data.columns."a/b"]\n[schema]', "columns.a/b of data"),
        ("[schema]", "[data.columns._index]\n[schema]", "cannot name a column of an .h5ad file"),
        ('next_steps = ["more genes"]', "next_steps = 3", "give a list of texts"),
        ("[data]", "[data", "cannot be read as TOML"),
    ],
)
def test_a_wrong_file_is_said_in_a_sentence(before: str, after: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(file.read_text().replace(before, after), encoding="utf-8")
    if message == "n_genes is 1":  # the simulator says so: the experiment failed, and its note tells
        assert message in run(file)[0].failure
        return
    with pytest.raises(InputError, match=re.escape(message)):
        run(file)
    assert not (tmp_path / "results").exists()


def test_a_file_of_an_editor_that_marks_its_beginning_is_read(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_experiment(file).name == "testing"


def test_both_languages_have_the_same_words_with_the_same_places() -> None:
    places = {
        language: {k: set(re.findall(r"{(\w+)}", v)) for k, v in words.items()} for language, words in WORDS.items()
    }
    assert places["en"] == places["ja"]
    columns = [k for k in WORDS["en"] if k.endswith("_columns")]
    assert all(WORDS["en"][k].count("|") == WORDS["ja"][k].count("|") for k in columns)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_projects_own_experiments_can_be_read(path: Path) -> None:
    experiment = read_experiment(path)
    assert experiment.folder == path.stem
    assert experiment.name == "squidiff-testing"


# --- what is measured


def line(step: int, loss: float) -> LogLine:
    return LogLine(step, loss, None, None, None, None, None, 1e-3, 1.0, None, None)


def test_memory_that_leaks_is_told_from_memory_that_does_not() -> None:
    assert memory_growth(np.full(40, 500.0)) == (0.0, False)
    growth, grew = memory_growth(500.0 + 10 * np.arange(40))
    assert growth == pytest.approx(200.0)
    assert grew
    assert np.isnan(memory_growth([1.0] * 7)[0])


def test_an_early_loss_that_swings_is_told_from_one_that_does_not() -> None:
    noise = np.random.default_rng(0).normal(size=400)
    even = early_oscillation([line(i + 1, 1 + 0.01 * noise[i]) for i in range(400)])
    assert even == pytest.approx(1.0, abs=0.35)
    wild = early_oscillation([line(i + 1, 1 + (0.1 if i < 40 else 0.01) * noise[i]) for i in range(400)])
    assert wild > 5
    assert np.isnan(early_oscillation([line(i + 1, 1.0) for i in range(10)]))
