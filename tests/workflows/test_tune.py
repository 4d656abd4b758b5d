"""A search for settings: worth what the evaluation says, gone on with, shared, and its best settings are taken."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from made_cells import HELD_OUT, SCHEMA, logged, small
from squidiff.config import Config, InputError, Preparation, Sampling
from squidiff.data.preprocess import prepare
from squidiff.estimator import Squidiff
from squidiff.evaluate.scoring import MODEL, compare
from squidiff.workflows.settings_file import part, read_toml
from squidiff.workflows.tune import BEST_TOML, STORAGE, TRIALS_CSV, TRIALS_PNG, tune

optuna = pytest.importorskip("optuna")
HIDDEN = Preparation(hold_out=(f"condition=drug,cell_type={HELD_OUT}",))
BASE = small(n_train_steps=8, validate_every_steps=2, patience=None)


def propose(trial: Any, base: Config) -> Config:
    return dataclasses.replace(base, learning_rate=trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True))


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    logged().write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def search(cells: Path, **more: Any) -> pd.DataFrame:
    given = {"base": BASE, "propose": propose, "device": "cpu", "n_trials": 2}
    return tune(cells, SCHEMA, HIDDEN, cells.with_name("tuned"), **{**given, **more})


@pytest.mark.slow
def test_a_trial_is_worth_what_the_evaluation_says_of_its_model(cells: Path) -> None:
    table = search(cells, metric="mean_squared_error")
    prepared = prepare(cells, SCHEMA, HIDDEN)
    for _, row in table.iterrows():
        config = dataclasses.replace(BASE, learning_rate=row["learning_rate"])
        model = Squidiff(SCHEMA, config, "cpu").fit(prepared.train)
        queries = prepared.test.obs[list(SCHEMA.columns)].drop_duplicates()
        predicted = model.predict(queries, prepared.train, Sampling(seed=config.seed))
        scores = compare({MODEL: predicted}, prepared.test, SCHEMA, train=prepared.train, names=())
        assert row["mean_squared_error"] == scores.loc[scores["metric"] == "mean_squared_error", "value"].item()
    assert table["mean_squared_error"].is_monotonic_increasing  # the best first
    assert sorted(table["trial"]) == [0, 1]


@pytest.mark.slow
def test_it_goes_on_where_it_stopped_and_its_best_settings_can_be_taken(cells: Path) -> None:
    first, out = search(cells, n_trials=1), cells.with_name("tuned")
    assert {path.name for path in out.iterdir()} == {STORAGE, TRIALS_CSV, TRIALS_PNG, BEST_TOML}
    both = search(cells, n_trials=2)
    assert len(both) == 2
    assert first["learning_rate"].item() in set(both["learning_rate"])
    pd.testing.assert_frame_equal(search(cells, n_trials=2), both)
    best = part(Config, read_toml(out / BEST_TOML), "config", "best.toml")
    assert best == dataclasses.replace(BASE, learning_rate=both["learning_rate"].iloc[0], patience=best.patience)
    np.testing.assert_allclose(pd.read_csv(out / TRIALS_CSV)["energy_distance"], both["energy_distance"])


@pytest.mark.slow
def test_what_stops_a_search_leaves_the_trials_that_ended_and_no_traceback(
    cells: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Recorded: optuna printed one, and neither table nor settings were written."""
    asked: list[int] = []

    def stopped(trial: Any, base: Config) -> Config:
        if not isinstance(trial, optuna.trial.FixedTrial):
            asked.append(trial.number)
        if len(asked) > 1 and not isinstance(trial, optuna.trial.FixedTrial):
            raise KeyboardInterrupt
        return propose(trial, base)

    with pytest.raises(KeyboardInterrupt):
        search(cells, propose=stopped)
    assert pd.read_csv(cells.with_name("tuned") / TRIALS_CSV)["state"].tolist().count("complete") == 1
    assert (cells.with_name("tuned") / BEST_TOML).exists()
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_higher_is_better_where_the_metric_says_so(cells: Path) -> None:
    table = search(cells, metric="delta_pearson", n_trials=3)
    assert table["delta_pearson"].is_monotonic_decreasing


@pytest.mark.slow
def test_a_trial_that_does_worse_than_most_is_given_up_as_is_one_that_diverges(cells: Path) -> None:
    rates = iter([1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 0.03, 1e30])

    def next_rate(trial: Any, base: Config) -> Config:
        rate = 1e-4 if isinstance(trial, optuna.trial.FixedTrial) else next(rates)
        return dataclasses.replace(base, learning_rate=rate, n_warmup_steps=0)

    table = search(cells, propose=next_rate, n_trials=7)
    states = dict(zip(table["trial"], table["state"], strict=True))
    assert states == {**dict.fromkeys(range(5), "complete"), 5: "pruned", 6: "pruned"}


def test_trials_on_other_cells_or_settings_are_refused(cells: Path) -> None:
    search(cells, n_trials=1)
    with pytest.raises(InputError, match=r"tuned holds trials on other cells or settings: give the same, or another"):
        search(cells, base=dataclasses.replace(BASE, width=16))
    adata = logged()
    adata.X[0, 0] += 1
    adata.write_h5ad(cells)
    with pytest.raises(InputError, match="holds trials on other cells"):
        search(cells)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_trials": 0}, r"^--n-trials is 0 and --minutes None: both must be above 0$"),
        ({"minutes": 0.0}, r"^--n-trials is 2 and --minutes 0\.0: both must be above 0$"),
        ({"metric": "luck"}, r"^there is no metric 'luck': choose of "),
        ({"metric": "delta_pearson_from_perturbed"}, r"has no value on the cells held out: choose another --metric$"),
        ({"storage": "nonsense://x"}, r"^the trials in nonsense://x cannot be read: "),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(cells: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search(cells, **given)


def test_without_anything_held_out_nothing_can_be_judged(cells: Path) -> None:
    with pytest.raises(InputError, match=r"^nothing is held out: name it by --hold-out, or by --split and --test-frac"):
        tune(cells, SCHEMA, Preparation(), cells.with_name("tuned"))


def test_without_optuna_the_extra_is_named(cells: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=re.escape("pip install 'squidiff-ng[tune]'")):
        search(cells)


SHARED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from test_tune import search
print(*search(Path(sys.argv[1]), n_trials=6)["trial"])
"""


@pytest.mark.slow
def test_two_processes_share_one_storage(cells: Path) -> None:
    script = SHARED.format(path=sys.path)
    command = [sys.executable, "-c", script, str(cells)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "12"]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    table = pd.read_csv(cells.with_name("tuned") / TRIALS_CSV)
    assert len(table) in (6, 7)  # both may begin a last one at the same time
    assert table["learning_rate"].nunique() == len(table)
