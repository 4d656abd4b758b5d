"""Settings of training, chosen by how well populations that are held out are predicted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import pandas as pd

from squidiff.config import Config, InputError, Preparation, Sampling, Schema, check_seed, settings_to_json
from squidiff.data.preprocess import prepare
from squidiff.data.readers import read_file
from squidiff.data.table import CellTable, schema_of
from squidiff.estimator import Squidiff
from squidiff.evaluate.metrics import METRICS
from squidiff.evaluate.scoring import MODEL, OVERALL, compare
from squidiff.files import require_writable, write_together
from squidiff.report.plots import save, trials_plot
from squidiff.train.run import Diverged, Record

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.storages import BaseStorage

TRIALS_CSV, BEST_TOML, TRIALS_PNG, STORAGE = "trials.csv", "best.toml", "trials.png", "trials.log"
METRIC = "energy_distance"
Say = Callable[[str], None]


def suggest(trial: Trial, base: Config) -> Config:
    """Settings that a trial is to try, within ranges around what serves most data; all others are those of `base`."""
    found: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256, 512]),
        "width": trial.suggest_categorical("width", [128, 256, 512, 1024]),
        "n_blocks": trial.suggest_int("n_blocks", 1, 4),
        "n_latent": trial.suggest_categorical("n_latent", [16, 32, 64, 128]),
        "n_train_steps": trial.suggest_int("n_train_steps", 250, 2000, step=250),
        "warmup_share": trial.suggest_float("warmup_share", 0.0, 0.3, step=0.1),
    }
    found["n_warmup_steps"] = round(found.pop("warmup_share") * found["n_train_steps"])
    if base.architecture == "upstream":
        found["noise_schedule"] = trial.suggest_categorical("noise_schedule", ["linear", "cosine"])
    return dataclasses.replace(base, **found)


def tune(
    data: Path,
    schema: Schema | None,
    preparation: Preparation,
    out: Path,
    *,
    base: Config = Config(),
    n_trials: int = 20,
    minutes: float | None = None,
    metric: str = METRIC,
    storage: str | None = None,
    device: str = "auto",
    say: Say = lambda text: None,
    propose: Callable[[Trial, Config], Config] = suggest,
) -> pd.DataFrame:
    """Trains with other settings until the storage holds `n_trials`, or `minutes` have passed; returns a row a trial.

    Without a schema the one that the data remember is taken.
    The preparation holds cells out, and a trial is worth the metric of their prediction, its mean over populations. A
    trial whose validation loss lies above the median of the others at the same step, or diverges, is given up. Trials
    lie in `out`, or in `storage`, a URL of a database, which several processes and machines may share: each goes on
    where the others are. Writes trials.csv, trials.png and best.toml, which `squidiff train --settings` takes, into
    `out`.

    Raises InputError without anything held out, for a metric that these cells have no value of, or when the storage
    holds trials on other data.
    """
    optuna = _optuna()
    check_seed(base.seed)
    if n_trials < 1 or (minutes is not None and not minutes > 0):
        raise InputError(f"--n-trials is {n_trials} and --minutes {minutes}: both must be above 0")
    if metric not in METRICS:
        raise InputError(f"there is no metric {metric!r}: choose of {', '.join(METRICS)}")
    if not preparation.hold_out and preparation.test_fraction == 0:
        raise InputError("nothing is held out: name it by --hold-out, or by --split and --test-fraction")
    require_writable(out / TRIALS_CSV)
    cells = read_file(data)
    schema = schema_of(cells, schema, say, str(data))
    prepared = prepare(cells, schema, preparation)
    asked = _hash(prepared.train, prepared.test, schema, base, metric)
    study = _study(optuna, storage, out, asked, METRICS[metric].higher_is_better)

    def worth(trial: Trial) -> float:
        # by the trial's number, so that processes that begin at once do not try the same
        study.sampler = optuna.samplers.TPESampler(seed=base.seed + trial.number)
        config = propose(trial, base)
        say(f"trial {trial.number}: {', '.join(f'{name} {_short(value)}' for name, value in trial.params.items())}")
        try:
            value = _worth(config, schema, prepared.train, prepared.test, metric, device, _judge(trial, optuna))
        except Diverged as error:
            raise optuna.TrialPruned from error
        say(f"trial {trial.number}: {metric.replace('_', ' ')} {value:.4g}")
        return value

    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    if len(study.get_trials(deepcopy=False, states=states)) < n_trials:
        timeout = None if minutes is None else 60 * minutes
        try:
            study.optimize(worth, timeout=timeout, callbacks=[optuna.study.MaxTrialsCallback(n_trials, states)])
        except BaseException:  # whatever ends it, a signal too: the trials that ended are told
            with suppress(InputError):
                _write(study, out, base, propose, metric, optuna)
            raise
    return _write(study, out, base, propose, metric, optuna)


def _worth(
    config: Config,
    schema: Schema,
    train: ad.AnnData,
    test: ad.AnnData,
    metric: str,
    device: str,
    on_record: Callable[[Record], None],
) -> float:
    """The metric of the prediction of the cells held out, by a model of these settings."""
    model = Squidiff(schema, config, device).fit(train, on_record=on_record)
    queries = test.obs[list(schema.columns)].drop_duplicates()
    predicted = model.predict(queries, train, Sampling(seed=config.seed))
    scores = compare({MODEL: predicted}, test, schema, train=train, seed=config.seed, names=())
    of_metric = scores[(scores["metric"] == metric) & (scores["method"] == MODEL)].set_index("condition")["value"]
    value = float(of_metric[OVERALL] if OVERALL in of_metric.index else of_metric.mean())
    if math.isnan(value):
        raise InputError(f"{metric} has no value on the cells held out: choose another --metric")
    return value


def _judge(trial: Trial, optuna: Any) -> Callable[[Record], None]:
    def judge(record: Record) -> None:
        if record.validation_loss is not None:
            trial.report(record.validation_loss, record.step)
            if trial.should_prune():
                raise optuna.TrialPruned

    return judge


def _study(optuna: Any, storage: str | None, out: Path, asked: str, higher_is_better: bool) -> Study:
    """The trials so far, of the same question. Raises InputError when there are others, or they cannot be read."""
    try:
        kept: str | BaseStorage = storage or _journal(out / STORAGE)
        names = optuna.study.get_all_study_names(kept)
        if names and asked not in names and storage is None:
            raise InputError(f"{out} holds trials on other cells or settings: give the same, or another --out")
        return optuna.create_study(
            study_name=asked,
            storage=kept,
            load_if_exists=True,
            direction="maximize" if higher_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(),
        )
    except InputError:
        raise
    except Exception as error:  # of whatever database, file or address was named
        raise InputError(f"the trials in {storage or out / STORAGE} cannot be read: {error}") from error


def _journal(path: Path) -> BaseStorage:
    """A file that grows by whole lines, with a lock, so that processes and machines can share it."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def _write(
    study: Study, out: Path, base: Config, propose: Callable[[Trial, Config], Config], metric: str, optuna: Any
) -> pd.DataFrame:
    """The trials that ended, the best first, as a table, a picture and the settings of the best one."""
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), metric: t.value, "seconds": _seconds(t)} | t.params
        for t in study.trials
        if t.state.is_finished()
    ]
    table = pd.DataFrame(rows)
    done = table[table["state"] == "complete"] if len(table) else table
    if not len(done):
        raise InputError("no trial came to its end: give more --minutes")
    higher = study.direction == optuna.study.StudyDirection.MAXIMIZE
    table = table.sort_values(metric, ascending=not higher, na_position="last", kind="stable", ignore_index=True)
    best = propose(optuna.trial.FixedTrial(study.best_params), base)
    text = f"# {metric} {study.best_value:.6g} of trial {study.best_trial.number}, on cells that were held out\n"
    write_together(
        {
            out / TRIALS_CSV: lambda path: table.to_csv(path, index=False),
            out / BEST_TOML: lambda path: path.write_text(text + as_toml(best), encoding="utf-8"),
        }
    )
    save(trials_plot(table, metric, higher), out / TRIALS_PNG)
    return table


def as_toml(config: Config) -> str:
    """The settings that are not the default ones, as a table of TOML."""
    usual = settings_to_json(Config())
    said = {name: value for name, value in settings_to_json(config).items() if value != usual[name]}
    return "[config]\n" + "".join(
        f"{name} = {json.dumps(value)}\n" for name, value in said.items() if value is not None
    )


def _seconds(trial: Any) -> float:
    return round(trial.duration.total_seconds(), 1) if trial.duration is not None else math.nan


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _hash(train: ad.AnnData, test: ad.AnnData, schema: Schema, base: Config, metric: str) -> str:
    """Of what makes trials comparable."""
    cells = [CellTable.from_anndata(part, schema).fingerprint() for part in (train, test)]
    asked = [settings_to_json(schema), settings_to_json(base), metric, *cells]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _optuna() -> Any:
    """Raises InputError without it."""
    try:
        import optuna
    except ImportError:
        raise InputError("tuning needs optuna: install it with `pip install 'squidiff-ng[tune]'`") from None
    optuna.logging.set_verbosity(logging.ERROR)  # a trial that is stopped is warned of with a traceback
    return optuna
