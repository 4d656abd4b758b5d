"""What an experiment of a lab note is: read from a TOML file, each fault a sentence."""

from __future__ import annotations

import datetime
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squidiff.config import Config, InputError, Preparation, Sampling, Schema, is_finite
from squidiff.data.simulate import simulate_perturbation
from squidiff.data.table import can_name_column
from squidiff.evaluate.metrics import HEADLINE, METRICS
from squidiff.workflows.settings_file import part, read_toml, refuse_others, text

LANGUAGES = ("en", "ja")
MEASURED = (
    "noise_error",
    "training_loss",
    "training_minutes",
    "memory_gb",
    "gpu_memory_gb",
    "seconds_per_sample",
    "load_seconds",
)
"""What is measured of a run, besides the metrics of evaluation; `docs/lab-note.md` defines each."""
DEFAULT_TARGETS = {
    "noise_error": "< 0.05",
    "training_minutes": "< 60",
    "gpu_memory_gb": "< 16",
    "seconds_per_sample": "< 1.0",
    "pearson": "> 0.80",
}
"""Those of the lab's first experiment."""
GRID = ("learning_rate", "batch_size", "width", "n_latent", "n_blocks", "n_train_steps")
_TARGET = re.compile(r"(<=|>=|<|>)\s*(\d+(?:\.\d+)?(?:e-?\d+)?)")
_TEXTS = ("title", "author", "purpose", "background", "design", "discussion")
_LISTS = ("tags", "references", "next_steps", "issues")


@dataclass(frozen=True)
class Target:
    """A bound that a measured value is to keep."""

    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}"

    def is_met(self, value: float) -> bool:
        """Whether the value keeps it."""
        return {
            "<": value < self.bound,
            "<=": value <= self.bound,
            ">": value > self.bound,
            ">=": value >= self.bound,
        }[self.sign]


@dataclass(frozen=True)
class Data:
    """Where the cells come from: a file, or the project's simulator."""

    file: str | None
    simulate: dict[str, Any]
    columns: dict[str, dict[str, str]]
    """More obs columns: for each, its value by condition."""


@dataclass(frozen=True)
class Experiment:
    """One experiment of a note."""

    name: str
    number: int
    language: str
    date: datetime.date | None
    texts: dict[str, str]
    lists: dict[str, tuple[str, ...]]
    data: Data
    schema: Schema
    preparation: Preparation
    config: Config
    sampling: Sampling
    targets: dict[str, Target]
    metrics: tuple[str, ...]
    grid: dict[str, tuple[float, ...]]
    batch_sizes: tuple[int, ...]
    n_samples: int | None

    @property
    def folder(self) -> str:
        """Of the experiment, in that of its note."""
        return f"exp{self.number:02}"


def read_experiment(file: Path) -> Experiment:
    """Reads an experiment file; see docs/lab-note.md. Raises InputError for anything that means nothing."""
    said, where = read_toml(file), str(file)
    known = {"name", "experiment", "language", "date", *_TEXTS, *_LISTS}
    known |= {"data", "schema", "prepare", "config", "sampling", "targets", "evaluate", "grid", "observe", "seed"}
    refuse_others(said, known, where)
    number, date, seed = said.get("experiment", 1), said.get("date"), said.get("seed", 0)
    if type(number) is not int or not 1 <= number <= 99:
        raise InputError(f"experiment of {where} is {number!r}: give its number in the note, from 1 to 99")
    if type(seed) is not int or seed < 0:
        raise InputError(f"seed of {where} is {seed!r}: give a whole number from 0 on")
    if date is not None and type(date) is not datetime.date:
        raise InputError(f"date of {where} is {date!r}: write it as 2026-11-01, without quotes")
    language = said.get("language", "en")
    if language not in LANGUAGES:
        raise InputError(f"language of {where} is {language!r}: choose one of {', '.join(LANGUAGES)}")
    schema = part(Schema, said, "schema", where)
    evaluate, observe = (_table(said, name, where) for name in ("evaluate", "observe"))
    refuse_others(evaluate, {"metrics", "n_samples"}, f"evaluate of {where}")
    refuse_others(observe, {"batch_sizes"}, f"observe of {where}")
    seeded = {"seed": seed}
    return Experiment(
        text(said, "name", where),
        number,
        language,
        date,
        {name: _text_of(said, name, where) for name in _TEXTS},
        {name: _texts_of(said, name, where) for name in _LISTS},
        _data(said, schema, where),
        schema,
        _seeded(part(Preparation, said, "prepare", where), seeded),
        _seeded(part(Config, said, "config", where), seeded),
        _seeded(part(Sampling, said, "sampling", where), seeded),
        _targets(said, where),
        _metrics(evaluate, where),
        _grid(said, where),
        _whole(observe, "batch_sizes", where, at_least=2),
        next(iter(_whole({"n_samples": [evaluate["n_samples"]]}, "n_samples", where)), None)
        if "n_samples" in evaluate
        else None,
    )


def _seeded(settings: Any, seed: dict[str, int]) -> Any:
    import dataclasses

    return dataclasses.replace(settings, **seed)


def _data(said: Mapping[str, Any], schema: Schema, where: str) -> Data:
    data = _table(said, "data", where)
    refuse_others(data, {"file", "simulate", "columns"}, f"data of {where}")
    file, simulate = data.get("file"), data.get("simulate")
    if (file is None) == (simulate is None):
        raise InputError(f"data of {where} must name a file, or what to simulate: one of the two")
    if file is not None and (not isinstance(file, str) or not file):
        raise InputError(f"file of data of {where} is {file!r}: give the path of the cells")
    simulate = simulate if simulate is not None else {}
    if not isinstance(simulate, dict):
        raise InputError(f"simulate of data of {where} is {simulate!r}: write it as a table")
    refuse_others(simulate, set(inspect.signature(simulate_perturbation).parameters), f"simulate of data of {where}")
    columns = _table(data, "columns", where)
    for column, values in columns.items():
        if not can_name_column(column):
            raise InputError(f"columns.{column} of data of {where} cannot name a column of an .h5ad file: rename it")
        if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
            raise InputError(f"columns.{column} of data of {where} must give a text for each condition")
    if columns and schema.condition_key is None:
        raise InputError(f"columns of data of {where} are given by condition: name condition_key in schema")
    return Data(file, simulate, columns)


def _targets(said: Mapping[str, Any], where: str) -> dict[str, Target]:
    """The default ones where the file has none."""
    given = _table(said, "targets", where) if "targets" in said else DEFAULT_TARGETS
    targets = {}
    for name, value in given.items():
        if name not in METRICS and name not in MEASURED:
            raise InputError(f"targets of {where} name {name!r}: known are {', '.join((*MEASURED, *METRICS))}")
        found = _TARGET.fullmatch(value.strip()) if isinstance(value, str) else None
        if found is None or float(found[2]) == float("inf"):
            raise InputError(f"target {name} of {where} is {value!r}: write it as '< 0.05' or '> 0.8'")
        targets[name] = Target(found[1], float(found[2]))
    return targets


def _metrics(evaluate: Mapping[str, Any], where: str) -> tuple[str, ...]:
    metrics = evaluate.get("metrics", list(HEADLINE))
    if not isinstance(metrics, list) or not metrics or not all(name in list(METRICS) for name in metrics):
        raise InputError(f"metrics of evaluate of {where} are {metrics!r}: choose some of {', '.join(METRICS)}")
    return tuple(metrics)


def _grid(said: Mapping[str, Any], where: str) -> dict[str, tuple[float, ...]]:
    grid = _table(said, "grid", where)
    refuse_others(grid, set(GRID), f"grid of {where}")
    for name, values in grid.items():
        is_list = isinstance(values, list) and all(type(v) in (int, float) and is_finite(v) for v in values)
        if not values or not is_list:
            raise InputError(f"grid.{name} of {where} is {values!r}: give a list of finite numbers")
    return {name: tuple(values) for name, values in grid.items()}


def _table(said: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    table = said.get(name, {})
    if not isinstance(table, dict):
        raise InputError(f"{name} of {where} is {table!r}: write it as a table, [{name}]")
    return table


def _text_of(said: Mapping[str, Any], name: str, where: str) -> str:
    value = said.get(name, "")
    if not isinstance(value, str):
        raise InputError(f"{name} of {where} is {value!r}: give a text")
    return value.strip()


def _texts_of(said: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = said.get(name, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{name} of {where} is {values!r}: give a list of texts")
    return tuple(value.strip() for value in values)


def _whole(said: Mapping[str, Any], name: str, where: str, at_least: int = 1) -> tuple[int, ...]:
    values = said.get(name, [])
    if not isinstance(values, list) or not all(type(v) is int and v >= at_least for v in values):
        raise InputError(f"{name} of {where} is {values!r}: give whole numbers from {at_least} on")
    return tuple(values)
