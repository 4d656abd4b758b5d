"""Models and baselines on several tasks and seeds, as a TOML file says: runs what is missing, and makes one table."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from squidiff.config import Config, InputError, Preparation, Sampling, Schema, settings_to_json
from squidiff.data.preprocess import prepare
from squidiff.data.readers import read_file
from squidiff.data.table import write_all_cells, write_cells
from squidiff.estimator import Squidiff
from squidiff.estimator.run_folder import WEIGHTS
from squidiff.evaluate.baselines import NAMES
from squidiff.evaluate.scoring import ADVICE, COLUMNS_OF, GENES, LEAKS, MODELS, RESERVED, UNSCORED
from squidiff.files import json_writer, read_json, write_atomically, write_json, write_together
from squidiff.report.tables import NUMBERS
from squidiff.response.shift import CannotPredict
from squidiff.workflows.baseline import predict_baseline
from squidiff.workflows.scores import METRICS_JSON, as_json, write_scores
from squidiff.workflows.settings_file import part, read_toml, refuse_others, text

TABLE_CSV, TABLE_JSON = "benchmark.csv", "benchmark.json"
TRAIN, TRUTH, QUERIES, ASKED = "train.h5ad", "truth.h5ad", "queries.csv", "asked.json"
PREDICTIONS, RUNS = "predictions", "runs"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """Cells, what their columns mean, and what is held out of them."""

    name: str
    file: str
    schema: Schema
    preparation: Preparation

    @property
    def is_plain(self) -> bool:
        """Whether more cells of populations that training has are asked for."""
        return self.schema.condition_key is None and self.schema.time_key is None


@dataclass(frozen=True)
class Method:
    """A model that is trained, or a baseline."""

    name: str
    run: str
    """The method whose trained model this one samples from; mostly its own."""
    baseline: str | None
    config: Config
    sampling: Sampling


class Benchmark(NamedTuple):
    """What a benchmark file says."""

    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]


def read_benchmark(file: Path) -> Benchmark:
    """Reads a benchmark file: `seeds`, `[[task]]` and `[[method]]`; see docs/evaluation.md.

    A task has name, file, schema and prepare; a method has name and either baseline, or config and sampling: tables of
    the fields of Schema, Preparation, Config and Sampling but for the seed. With run, the name of a method before it,
    it samples from that method's model. Raises InputError for anything else.
    """
    said = read_toml(file)
    refuse_others(said, {"seeds", "task", "method"}, str(file))
    tasks = tuple(_task(entry, f"task {i + 1} of {file}") for i, entry in enumerate(_entries(said, "task", file)))
    methods: tuple[Method, ...] = ()
    for i, entry in enumerate(_entries(said, "method", file)):
        methods += (_method(entry, f"method {i + 1} of {file}", methods),)
    for kind, names in (("task", [t.name for t in tasks]), ("method", [m.name for m in methods])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"{file} has two of {kind} {twice[0]!r}: rename one")
    seeds = said.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"seeds of {file} are {seeds!r}: give a list of whole numbers from 0 on")
    return Benchmark(tasks, methods, tuple(dict.fromkeys(seeds)))


def run_benchmark(
    benchmark: Benchmark, data: Path, out: Path, *, device: str = "auto", say: Say = lambda text: None
) -> pd.DataFrame:
    """Runs what `out` does not hold yet, and writes benchmark.csv and benchmark.json; returns the table.

    `out/TASK/seed-S` keeps the training and true cells, the queries, each model's run, each prediction and its scores;
    the table has their rows, with the task and the seed before them. Files of the tasks lie in `data`. Raises
    InputError when `out` holds a part that was made otherwise.
    """
    tables, leaks = [], []
    for task in benchmark.tasks:
        for seed in benchmark.seeds:
            folder = out / task.name / f"seed-{seed}"
            prepare_task(task, seed, data, folder, say)
            predictions = {}
            for method in benchmark.methods:
                if method.sampling.first_level and task.is_plain:
                    continue  # it would hand back the training cells
                predictions[method.name] = folder / PREDICTIONS / f"{method.name}.h5ad"
                try:
                    _predict(method, task, seed, folder, predictions[method.name], device, say)
                except CannotPredict as reason:
                    del predictions[method.name]
                    say(f"{task.name}, seed {seed}: {method.name} is left out: {reason}")
            if not predictions:
                raise InputError(f"task {task.name!r}: no method can predict it")
            scores = score_task(predictions, folder, seed, say)
            leaks += [f"{task.name}, seed {seed}: {sentence}" for sentence in scores.attrs[LEAKS]]
            scores.insert(0, "task", task.name)
            scores.insert(1, "seed", seed)
            tables.append(scores)
    table = pd.concat(tables, ignore_index=True)
    table.attrs = {LEAKS: leaks, MODELS: [m.name for m in benchmark.methods], ADVICE: []}
    table.attrs |= {UNSCORED: {}, GENES: {}, COLUMNS_OF: {}}  # each task has its own
    said = as_json(table, seeds=list(benchmark.seeds))
    write_together({out / TABLE_CSV: lambda path: table.to_csv(path, index=False), out / TABLE_JSON: json_writer(said)})
    return table


def prepare_task(task: Task, seed: int, data: Path, folder: Path, say: Say) -> None:
    """Training and true cells, and the populations to predict: those of the true cells but for control."""
    path = data / task.file
    if not path.exists():
        raise InputError(f"{path} does not exist: name the folder of the data with --data")
    settings = dataclasses.replace(task.preparation, seed=seed)
    asked = {
        "data_sha256": hash_file(path),
        "schema": settings_to_json(task.schema),
        "preparation": settings_to_json(settings),
    }
    if is_made(folder / ASKED, asked, f"task {task.name!r}", folder / TRAIN, folder / TRUTH, folder / QUERIES):
        return
    say(f"{task.name}, seed {seed}: preparing {task.file}")
    prepared = prepare(read_file(path), task.schema, settings)
    if prepared.test is None:
        raise InputError(f"task {task.name!r} holds no cells out: name some with hold_out or test_fraction")
    columns = list(task.schema.columns)
    queries = prepared.test.obs[columns].value_counts(dropna=False).index.to_frame(index=False)
    if task.schema.condition_key is not None and task.schema.time_key is None:
        queries = queries[queries[task.schema.condition_key].astype(str) != task.schema.control]
    if not len(queries):
        raise InputError(f"task {task.name!r} holds out control cells alone: there is nothing to predict")
    write_all_cells({folder / TRAIN: prepared.train, folder / TRUTH: prepared.test})
    write_atomically(folder / QUERIES, lambda temporary: queries.to_csv(temporary, index=False))
    write_json(folder / ASKED, asked)


def _predict(method: Method, task: Task, seed: int, folder: Path, out: Path, device: str, say: Say) -> None:
    note = out.with_suffix(".json")
    config = dataclasses.replace(method.config, seed=seed)
    sampling = dataclasses.replace(method.sampling, seed=seed)
    asked = {
        "cells": hash_file(folder / TRAIN),
        "queries": hash_file(folder / QUERIES),
        "baseline": method.baseline,
        "config": settings_to_json(config),
        "sampling": settings_to_json(sampling),
    }
    if is_made(note, asked, f"method {method.name!r}", out):
        return
    say(f"{task.name}, seed {seed}: {method.name}")
    if method.baseline is not None:
        predicted = predict_baseline(method.baseline, folder / QUERIES, folder / TRAIN, task.schema, seed=seed)
    else:
        run = folder / RUNS / method.run
        if (run / WEIGHTS).exists():
            model = Squidiff.load(run, device)
            if model.config != config:
                raise InputError(f"{run} was trained with other settings: choose another --out, or delete that run")
        else:
            model = Squidiff(task.schema, config, device).fit(folder / TRAIN, out=run, resume=True)
        predicted = model.predict(folder / QUERIES, folder / TRAIN, sampling)
    write_cells(out, predicted)
    write_json(note, asked)


def score_task(predictions: Mapping[str, Path], folder: Path, seed: int, say: Say) -> pd.DataFrame:
    """Of all predictions of a task and seed: read back where they are of these files, or made."""
    asked = {name: hash_file(path) for name, path in predictions.items()} | {"truth": hash_file(folder / TRUTH)}
    note, written = folder / "scored.json", folder / METRICS_JSON
    if note.exists() and _noted(note) == asked and written.exists():
        said = _noted(written)
        try:
            scores = pd.DataFrame(said["scores"])
            scores = scores.astype(dict.fromkeys(NUMBERS, float))  # null is NaN
            scores.attrs = {name: said[name] for name in (LEAKS, UNSCORED, GENES, ADVICE, COLUMNS_OF)}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{written} is not what scoring wrote: delete it, and it is made again") from error
        scores.attrs[MODELS] = list(predictions)
        return scores
    say(f"{folder.parent.name}, seed {seed}: scoring")
    scores = write_scores(predictions, folder / TRUTH, folder / TRAIN, None, folder, seed=seed)
    write_json(note, asked)
    return scores


def is_made(note: Path, asked: Mapping[str, Any], what: str, *files: Path) -> bool:
    """Whether a step is done, and what it made is there. Raises InputError when it was done otherwise."""
    if not note.exists() or not all(path.exists() for path in files):
        return False
    if _noted(note) != asked:
        raise InputError(
            f"{note.parent} holds {what} as made otherwise, from other data or settings: choose another --out, or "
            "delete that folder"
        )
    return True


def _noted(path: Path) -> Any:
    """What a step wrote of itself. Raises InputError when it cannot be read."""
    try:
        return read_json(path)
    except InputError as error:
        raise InputError(f"{error}; delete it, and it is made again") from error


def hash_file(path: Path) -> str:
    """SHA-256 of a file, or of all files of a store."""
    whole = hashlib.sha256()
    for inner in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if inner.is_file():
            with inner.open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def _entries(said: Mapping[str, Any], kind: str, file: Path) -> Iterator[Mapping[str, Any]]:
    entries = said.get(kind)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file} has no [[{kind}]]: give at least one")
    return iter(entries)


def _task(entry: Mapping[str, Any], where: str) -> Task:
    refuse_others(entry, {"name", "file", "schema", "prepare"}, where)
    schema, preparation = part(Schema, entry, "schema", where), part(Preparation, entry, "prepare", where)
    return Task(text(entry, "name", where), text(entry, "file", where, is_path=True), schema, preparation)


def _method(entry: Mapping[str, Any], where: str, before: tuple[Method, ...]) -> Method:
    refuse_others(entry, {"name", "run", "baseline", "config", "sampling"}, where)
    name, baseline = text(entry, "name", where), entry.get("baseline")
    if name in NAMES or name in RESERVED:
        raise InputError(f"{where} is named {name!r}, as a baseline or a file that every table has: name it otherwise")
    if baseline is not None and baseline not in NAMES:
        raise InputError(f"{where}: there is no baseline {baseline!r}: choose one of {', '.join(NAMES)}")
    if baseline is not None and {"config", "sampling"} & set(entry):
        raise InputError(f"{where} has a baseline and settings of a model: give one of the two")
    config, sampling = part(Config, entry, "config", where), part(Sampling, entry, "sampling", where)
    if "run" not in entry:
        return Method(name, name, baseline, config, sampling)
    trained = {method.name: method for method in before if method.baseline is None and method.run == method.name}
    if entry["run"] not in list(trained) or baseline is not None or "config" in entry:
        raise InputError(
            f"{where} has run {entry['run']!r}: name a method before it that is trained, and give no baseline or config"
        )
    return Method(name, entry["run"], None, trained[entry["run"]].config, sampling)
