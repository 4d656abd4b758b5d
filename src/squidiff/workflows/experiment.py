"""One experiment of a lab note: prepares, trains, predicts, scores, measures, and writes figures, page and note."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import Config, InputError, Schema, as_flags, settings_to_json
from squidiff.data.check import check
from squidiff.data.preprocess import Prepared, prepare
from squidiff.data.simulate import simulate_perturbation
from squidiff.data.table import group_rows, read_cells, write_all_cells, write_cells
from squidiff.estimator import Squidiff, Unpredictable
from squidiff.estimator.run_folder import BEFORE_DIVERGENCE, RUN_FILES, WEIGHTS
from squidiff.evaluate.scoring import LEAKS, MODEL, OVERALL
from squidiff.evaluate.verdict import severity
from squidiff.files import read_json, write_atomically, write_json
from squidiff.report.plots import save
from squidiff.report.tables import METRICS_CSV, read_scores
from squidiff.response.populations import Population
from squidiff.train.run import Record as LogLine
from squidiff.train.run import read_records
from squidiff.train.saving import STATE
from squidiff.workflows import pictures
from squidiff.workflows.benchmark import hash_file
from squidiff.workflows.demo import Progress
from squidiff.workflows.experiment_file import MEASURED, Experiment
from squidiff.workflows.experiment_record import DONE, FAILED, RECORD, Record, number, read_record
from squidiff.workflows.measure import Watch, early_oscillation, memory_growth
from squidiff.workflows.report import write_report
from squidiff.workflows.scores import write_scores

DATA, TRAIN, TRUTH, QUERIES, PREDICTED = "data.h5ad", "train.h5ad", "truth.h5ad", "queries.csv", "predicted.h5ad"
RUN, TRIALS, SCORES = "run", "trials", "scores"
LOSS, QUALITY, ASKED = "training_loss.png", "sample_quality.png", "asked.json"
FAILURES = (InputError, MemoryError, RuntimeError)
"""Of which torch's, when memory is not enough, are some."""
N_STEPS_OF_A_TRIAL_BATCH = 12
"""Of a batch size whose speed is measured: the first is not counted."""
Say = Callable[[str], None]


@contextmanager
def silently(label: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar that is not shown."""
    yield lambda done, note="": None


def folder_of(experiment: Experiment, out: Path) -> Path:
    """Of the note: `DATE_NAME`. Without a date in the file, that of the newest note of this name, else today's."""
    if experiment.date is None:
        earlier = sorted(p for p in out.glob(f"{'[0-9]' * 8}_{experiment.name}") if p.is_dir())
        if earlier:
            return earlier[-1]
    return out / f"{experiment.date or datetime.date.today():%Y%m%d}_{experiment.name}"


def run_experiment(
    experiment: Experiment,
    file: Path,
    folder: Path,
    *,
    device: str = "auto",
    say: Say = lambda text: None,
    progress: Progress = silently,
) -> Record:
    """Runs what `folder/expNN` does not hold yet, and returns the record; figures, page and note are the caller's.

    What was measured once is not measured again. A failure after the data were prepared is in the record too. Raises
    InputError when the folder holds the experiment as run with other settings, or the data cannot be used.
    """
    here = folder / experiment.folder
    asked = _asked(experiment, file)
    earlier = read_record(here / RECORD) if (here / RECORD).exists() else None
    is_other = (here / ASKED).exists() and read_json(here / ASKED) != asked
    if is_other and (earlier is None or earlier.status == DONE) and (here / RUN).exists():
        raise InputError(
            f"{here} holds this experiment as run with other settings or data: give it another number, or delete that "
            "folder"
        )
    if earlier is not None and earlier.status == DONE and not is_other:
        say(f"{experiment.folder} was run on {earlier.date}; nothing is measured again")
        return _said_again(earlier, experiment, here)
    if is_other:
        _clear_failed(here)
    record = Record(experiment.number, _said(experiment), date=datetime.date.today().isoformat())
    write_json(here / ASKED, asked)
    runner = _Runner(experiment, file, here, record, device, say, progress)
    try:
        runner.run()
    except FAILURES as error:
        record.status, record.failure = FAILED, (str(error).strip() or type(error).__name__).splitlines()[0]
    record.metrics = _judged(experiment, runner.measured)
    write_json(here / RECORD, dataclasses.asdict(record))
    return record


def _clear_failed(here: Path) -> None:
    """Removes what a failed try left: cells, and a run that was never whole. Raises InputError for one that is."""
    for whole in (here / RUN / WEIGHTS, here / TRIALS):
        if whole.exists():
            raise InputError(
                f"{whole} is of other settings or data: give the experiment another number, or delete {here}"
            )
    for name in (TRAIN, TRUTH, QUERIES, PREDICTED, *(f"{RUN}/{file}" for file in RUN_FILES)):
        (here / name).unlink(missing_ok=True)
    shutil.rmtree(here / RUN / BEFORE_DIVERGENCE, ignore_errors=True)
    for folder in ((here / RUN / STATE).parent, here / RUN):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _said_again(record: Record, experiment: Experiment, here: Path) -> Record:
    """With the texts, the targets and the choice of metrics of today."""
    record.said = _said(experiment)
    measured = {row["name"]: row["value"] for row in record.metrics if row["name"] in MEASURED}
    if (here / SCORES / METRICS_CSV).exists():
        measured |= _of_scores(read_scores(here / SCORES), experiment, record)
    record.metrics = _judged(experiment, measured)
    write_json(here / RECORD, dataclasses.asdict(record))
    return record


def write_figures(here: Path, experiment: Experiment, file: Path, record: Record) -> Path:
    """The two figures, where their files are there, and the page; both are noted in the record. Returns the page."""
    draws: dict[str, Callable[[], Any]] = {}
    if (here / RUN / "metrics.jsonl").exists():
        draws[LOSS] = lambda: pictures.loss(here / RUN)
    if (here / PREDICTED).exists() and (here / TRUTH).exists():
        draws[QUALITY] = lambda: pictures.quality(
            here / PREDICTED, here / TRUTH, train=here / TRAIN, schema=experiment.schema
        )
    record.figures = []
    record.missing = [said for said in record.missing if not said.startswith((LOSS, QUALITY))]  # of an earlier time
    for name, draw in draws.items():
        try:
            save(draw(), here / name)
            record.figures.append(name)
        except InputError as error:
            record.missing.append(f"{name}: {error}")
    title = f"{experiment.folder}: {experiment.texts['title'] or experiment.name}"
    return write_report(
        here,
        title=title,
        question=experiment.texts["purpose"] or None,
        commands=[f"squidiff experiment {shlex.quote(file.name)}"],
        missing=record.missing,
        failure=record.failure,
    )


@dataclass
class _Runner:
    """Runs what the folder does not hold yet, and notes it in the record."""

    experiment: Experiment
    file: Path
    here: Path
    record: Record
    device: str
    say: Say
    progress: Progress
    measured: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        flags = as_flags(self.experiment.schema)
        data = self._data()
        self.record.files["data"] = data.name
        report = check(data, self.experiment.schema, normalize=self.experiment.preparation.normalize)
        self.record.observations["findings"] = [str(finding) for finding in report.findings]
        _note(self.record, "check", f"squidiff check {data.name} {flags}", "")
        report.raise_errors()
        prepared = prepare(data, self.experiment.schema, self.experiment.preparation)
        self.say("; ".join(prepared.report[1:]) or "all cells are for training")
        files = {self.here / TRAIN: prepared.train}
        if prepared.test is not None:
            files[self.here / TRUTH] = prepared.test
        write_all_cells(files)
        options = as_flags(self.experiment.preparation)
        held_out = "" if prepared.test is None else f" --held-out {TRUTH}"
        command = f"squidiff prepare {data.name} {flags} {options} --out {TRAIN}{held_out}"
        _note(self.record, "prepare", command, options)

        queries = None if prepared.test is None else self._queries(prepared.test)
        self.record.samples = _samples(prepared, queries, self.experiment.schema)
        config = self._tuned() if self.experiment.grid else self.experiment.config
        model = self._trained(config)
        options = as_flags(config)
        _note(self.record, "train", f"squidiff train {TRAIN} {flags} {options} --out {RUN}", _parameters(config))
        self.measured |= self._measured_of_training(model)
        if self.experiment.batch_sizes:
            self.record.observations["batch_sizes"] = list(self._speeds(config))

        if queries is None:
            self.record.missing.append("scores: no cells were held out, so nothing can be compared with the truth")
            return
        predicted = self._predicted(model, queries)
        self.record.samples = _samples(prepared, predicted, self.experiment.schema)
        options = as_flags(self.experiment.sampling)
        command = f"squidiff predict {RUN} --queries {QUERIES} --source {TRAIN} {options} --out {PREDICTED}"
        _note(self.record, "predict", command, options)
        self.say("scoring")
        seed = self.experiment.config.seed
        scores = write_scores(
            {MODEL: self.here / PREDICTED},
            self.here / TRUTH,
            self.here / TRAIN,
            self.experiment.schema,
            self.here / SCORES,
            seed=seed,
        )
        _note(
            self.record, "evaluate", f"squidiff evaluate {PREDICTED} {TRUTH} --train {TRAIN} {flags} --out {SCORES}", ""
        )
        self.measured |= _of_scores(scores, self.experiment, self.record)

    def _data(self) -> Path:
        """The cells as a file; a simulated set is written. Paths in the file are from its own folder."""
        wanted = self.experiment.data
        if wanted.file is not None:
            path = self.file.parent / wanted.file
            if not wanted.columns:
                return path
            cells = read_cells(path)
        else:
            cells = simulate_perturbation(**{"seed": self.experiment.config.seed, **wanted.simulate})
        for column, values in wanted.columns.items():
            if column in cells.obs:
                raise InputError(f"columns.{column} is a column that the data have already: name it otherwise")
            labels = cells.obs[self.experiment.schema.condition_key].astype(str)
            unknown = sorted(set(labels) - set(values) - {str(self.experiment.schema.control)})
            if unknown:
                raise InputError(f"columns.{column} gives no value for condition {unknown[0]!r}")
            cells.obs[column] = [values.get(label, "") for label in labels]
        write_cells(self.here / DATA, cells)
        return self.here / DATA

    def _tuned(self) -> Config:
        """The settings of the grid with the lowest validation loss, each trained on as many cells as the others."""
        base = self.experiment.config
        if base.validation_fraction == 0:
            raise InputError("a grid needs validation cells: leave validation_fraction above 0")
        for values in itertools.product(*self.experiment.grid.values()):
            chosen = dict(zip(self.experiment.grid, values, strict=True))
            if "batch_size" in chosen and "n_train_steps" not in chosen:
                chosen["n_train_steps"] = max(1, round(base.n_train_steps * base.batch_size / chosen["batch_size"]))
            config = dataclasses.replace(base, **chosen)
            name = ", ".join(f"{n} {v:g}" for n, v in chosen.items())
            self.say(f"trial: {name}")
            run = self.here / TRIALS / name.replace(", ", "_").replace(" ", "-")
            try:
                model = self._fit(config, run)
                losses = [r.validation_loss for r in model.history if r.validation_loss is not None]
                trial = {"validation_loss": min(losses), "seconds": model.provenance["seconds"], "failure": ""}
            except FAILURES as error:
                trial = {"validation_loss": None, "seconds": None, "failure": str(error).strip().splitlines()[0]}
            self.record.trials.append({**chosen, **trial})
        known = [t for t in self.record.trials if t["validation_loss"] is not None]
        if not known:
            raise InputError(f"every trial of the grid failed; the first: {self.record.trials[0]['failure']}")
        best = min(known, key=lambda trial: trial["validation_loss"])
        return dataclasses.replace(base, **{n: best[n] for n in (*self.experiment.grid, "n_train_steps") if n in best})

    def _trained(self, config: Config) -> Squidiff:
        self.say(f"training {config.n_train_steps:,} steps")
        with Watch() as watch:
            model = self._fit(config, self.here / RUN, watch)
        if watch.steps:  # else the run was there already
            growth, grew = memory_growth(watch.resident_mb)
            self.record.observations |= {
                "utilisation": watch.utilisation,
                "memory_steps": watch.steps,
                "memory_mb": watch.resident_mb,
                "memory_growth_mb": None if np.isnan(growth) else growth,
                "memory_grew": grew,
            }
        return model

    def _fit(self, config: Config, run: Path, watch: Watch | None = None) -> Squidiff:
        """The run that is there, whole, or one that is begun or goes on."""
        if (run / WEIGHTS).exists():
            return Squidiff.load(run, self.device)
        model = Squidiff(self.experiment.schema, config, self.device)
        with self.progress("training", config.n_train_steps) as advance:

            def on_record(line: LogLine) -> None:
                advance(line.step, line.live)
                if watch is not None:
                    watch.note(line)

            return model.fit(self.here / TRAIN, out=run, resume=True, on_record=on_record)

    def _measured_of_training(self, model: Squidiff) -> dict[str, float]:
        history = read_records(self.here / RUN / "metrics.jsonl")
        last, config = history[-1], model.config
        n_trained = model.manifest["n_cells"] * (1 - config.validation_fraction)
        oscillation = early_oscillation(history)
        validated = [line.validation_loss for line in history if line.validation_loss is not None]
        self.record.observations |= {
            "device": str(model.device),
            "n_steps": last.step,
            "epochs": last.step * config.batch_size / n_trained,
            "cells_per_s": float(np.median([r.cells_per_s for r in history])),
            "early_oscillation": None if np.isnan(oscillation) else oscillation,
            "n_warmup_steps": config.n_warmup_steps,
            "lowest_validation_loss": min(validated, default=None),
        }
        self.record.tools = {"Python": model.provenance["python"], **model.provenance["packages"]}
        began = time.perf_counter()
        Squidiff.load(self.here / RUN, str(model.device))
        measured = {
            "training_loss": last.loss,
            "noise_error": model.provenance.get("noise_error", float("nan")),
            "training_minutes": model.provenance["seconds"] / 60,
            "load_seconds": time.perf_counter() - began,
        }
        if last.memory_mb is not None:
            measured["memory_gb"] = last.memory_mb / 1e3
        if last.device_memory_mb is not None:
            measured["gpu_memory_gb"] = last.device_memory_mb / 1e3
        return measured

    def _speeds(self, config: Config) -> Iterator[dict[str, Any]]:
        """Cells a second at each batch size, by the median of a few steps after the first."""
        for batch_size in self.experiment.batch_sizes:
            self.say(f"speed at batch size {batch_size}")
            steps = N_STEPS_OF_A_TRIAL_BATCH
            few = dataclasses.replace(
                config, batch_size=batch_size, n_train_steps=steps, log_every_steps=1, validation_fraction=0.0
            )
            try:
                history = Squidiff(self.experiment.schema, few, self.device).fit(self.here / TRAIN).history
                yield {"batch_size": batch_size, "cells_per_s": float(np.median([r.cells_per_s for r in history[1:]]))}
            except FAILURES as error:
                yield {"batch_size": batch_size, "cells_per_s": None, "failure": str(error).splitlines()[0]}

    def _queries(self, truth: ad.AnnData) -> pd.DataFrame:
        columns = list(self.experiment.schema.columns)
        if not columns:
            return pd.DataFrame({"n_cells": [self.experiment.n_samples or truth.n_obs]})
        counts = truth.obs[columns].value_counts(dropna=False).reset_index(name="n_cells")
        key, control = self.experiment.schema.condition_key, self.experiment.schema.control
        if key is not None and self.experiment.schema.time_key is None:
            counts = counts[counts[key].astype(str) != control]
        if counts.empty:
            raise InputError("only control cells are held out: there is nothing to predict")
        if self.experiment.n_samples is not None:
            counts["n_cells"] = self.experiment.n_samples
        return counts

    def _predicted(self, model: Squidiff, queries: pd.DataFrame) -> pd.DataFrame:
        """The queries that were predicted: all, or those that the model can."""
        self.say(f"sampling {len(queries)} population{'s' if len(queries) > 1 else ''}")
        write_atomically(self.here / QUERIES, lambda temporary: queries.to_csv(temporary, index=False))
        began = time.perf_counter()
        try:
            predicted = model.predict(self.here / QUERIES, self.here / TRAIN, self.experiment.sampling)
        except Unpredictable as error:
            refused = error.reasons
            if len(refused) == len(queries):
                raise
            first, *others = refused.values()
            more = f" (and {len(others)} more)" if others else ""
            n_missing = f"scores of {len(refused)} of {len(queries)} held-out populations"
            self.record.missing.append(f"{n_missing}: {first}{more}")
            return self._predicted(model, queries.drop(index=queries.index[list(refused)]))
        seconds = time.perf_counter() - began
        write_cells(self.here / PREDICTED, predicted)
        self.measured["seconds_per_sample"] = seconds / predicted.n_obs
        return queries


def _of_scores(scores: pd.DataFrame, experiment: Experiment, record: Record) -> dict[str, float]:
    """The metrics of all populations together, or of the only one."""
    mine = scores[scores["method"] == MODEL]
    whole = OVERALL if (mine["condition"] == OVERALL).any() else mine["condition"].iloc[0]
    rows = mine[mine["condition"] == whole].set_index("metric")
    shown = rows.loc[[name for name in experiment.metrics if name in rows.index]]
    counts = shown["verdict"].value_counts()
    record.verdicts = {v or "no verdict": int(counts[v]) for v in sorted(counts.index, key=severity)}
    record.leaks = list(scores.attrs.get(LEAKS, record.leaks))
    record.observations["floors"] = {n: number(rows["floor"][n]) for n in shown.index}
    record.observations["ceilings"] = {n: number(rows["ceiling"][n]) for n in shown.index}
    wanted = dict.fromkeys((*experiment.metrics, *experiment.targets))
    return {name: float(rows["value"][name]) for name in wanted if name in rows.index}


def _judged(experiment: Experiment, measured: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each value and each target; a target without a value is not met and not missed."""
    rows = []
    for name in dict.fromkeys((*experiment.targets, *measured)):
        value, target = number(measured.get(name)), experiment.targets.get(name)
        met = None if value is None or target is None else target.is_met(value)
        rows.append({"name": name, "value": value, "target": str(target) if target else None, "met": met})
    return rows


def _samples(prepared: Prepared, queries: pd.DataFrame | None, schema: Schema) -> list[dict[str, Any]]:
    """A row a population: trained on, predicted, and held out without being predicted, as control cells are."""
    rows = [{"kind": "training", **population} for population in prepared.manifest["train"]["populations"]]
    if prepared.test is None or queries is None:
        return rows
    asked = {Population(*key) for key in group_rows(queries, schema, "the queries")[1]}
    for population in prepared.manifest["test"]["populations"]:
        key = Population(*(population[name] for name in Population._fields))
        rows.append({"kind": "predicted" if key in asked else "held out", **population})
    return rows


def _note(record: Record, kind: str, command: str, parameters: str) -> None:
    record.steps = [step for step in record.steps if step["kind"] != kind]
    record.steps.append({"kind": kind, "command": " ".join(command.split()), "parameters": parameters})


def _parameters(config: Config) -> str:
    names = ("n_train_steps", "batch_size", "learning_rate", "n_warmup_steps", "width", "n_latent", "seed")
    return ", ".join(f"{name} {getattr(config, name):g}" for name in names)


def _said(experiment: Experiment) -> dict[str, Any]:
    return {"name": experiment.name, "language": experiment.language, **experiment.texts} | {
        name: list(values) for name, values in experiment.lists.items()
    }


def _asked(experiment: Experiment, file: Path) -> dict[str, Any]:
    """All that the numbers depend on; texts may change."""
    data = dataclasses.asdict(experiment.data)
    if experiment.data.file is not None:
        path = file.parent / experiment.data.file
        if not path.exists():
            raise InputError(f"{path} does not exist: file of data is looked for from the folder of {file.name}")
        data["sha256"] = hash_file(path)
    parts = (experiment.schema, experiment.preparation, experiment.config, experiment.sampling)
    return {
        "data": data,
        **{type(settings).__name__.lower(): settings_to_json(settings) for settings in parts},
        "grid": {name: list(values) for name, values in experiment.grid.items()},
        "n_samples": experiment.n_samples,
    }
