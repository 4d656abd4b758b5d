"""Which cells are held out: by rules, or as a share of the cells, conditions, contexts, drugs, ... drawn at random."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import pandas as pd

from squidiff.config import InputError, Preparation, Schema, flag
from squidiff.data.conditions import Part, canonical_smiles, scaffold
from squidiff.data.table import Key, as_text, group_rows, require_columns

Units = Callable[[Key, tuple[Part, ...]], set[Hashable]]
"""What a population is held out with: its units of a split. Without any it is never held out."""

UNITS: dict[str, tuple[Units, str]] = {
    "condition": (lambda key, parts: {key[1]} - {""}, "condition_key"),
    "context": (lambda key, parts: {key[0]} - {""}, "context_keys"),
    "drug": (lambda key, parts: {_drug(part) for part in parts}, "condition_key"),
    "scaffold": (lambda key, parts: {scaffold(part.smiles) for part in parts if part.smiles}, "smiles_key"),
    "combination": (lambda key, parts: {key[1]} if len(parts) > 1 else set(), "condition_key"),
    "time": (lambda key, parts: {key[2]} - {None}, "time_key"),
}
"""Of every split by units: what they are, and the schema's column that it needs."""


def _drug(part: Part) -> str:
    """What a drug is, whatever it is called and however its SMILES is written."""
    return canonical_smiles(part.smiles) if part.smiles else part.name


def held_out_cells(obs: pd.DataFrame, schema: Schema, settings: Preparation) -> np.ndarray:
    """Which rows are held out, (N,): those that follow a rule, and the share that is drawn at random.

    A rule on the schema's columns alone holds out whole populations: `B+A` with `A+B`, which are one condition.
    """
    held_out = follow_any(obs, settings.hold_out)
    for rule in settings.hold_out:
        if set(parse_rule(rule)) <= set(schema.columns):
            population = group_rows(obs, schema)[0]
            held_out |= np.isin(population, population[follow_any(obs, [rule])])
    if settings.test_fraction > 0:
        if settings.split == "random":
            held_out |= _cells_at_random(obs, schema, settings, held_out)
        else:
            held_out |= _units_at_random(obs, schema, settings)
    return held_out


def _cells_at_random(obs: pd.DataFrame, schema: Schema, settings: Preparation, held_out: np.ndarray) -> np.ndarray:
    """The same share of every population."""
    rng = np.random.default_rng((settings.seed, 1))
    population = group_rows(obs, schema)[0]
    drawn = np.zeros(len(obs), dtype=bool)
    for i in np.unique(population):
        rows = np.flatnonzero((population == i) & ~held_out)
        drawn[rng.permutation(rows)[: round(settings.test_fraction * len(rows))]] = True
    return drawn


def _units_at_random(obs: pd.DataFrame, schema: Schema, settings: Preparation) -> np.ndarray:
    """All cells of some units: at least one, never all. Control cells stay, and so does the earliest time."""
    units_of, needed = UNITS[settings.split]
    if not getattr(schema, needed):
        raise InputError(f"--split {settings.split} needs {flag(needed)}: name the obs column")
    population, keys, parts = group_rows(obs, schema)
    of_population = [units_of(key, of) for key, of in zip(keys, parts, strict=True)]
    if settings.split == "context" and schema.control is not None:
        of_population = [units if key[1] else set() for key, units in zip(keys, of_population, strict=True)]
    units = sorted(set().union(*of_population))  # type: ignore[type-var]
    if settings.split == "time":
        units = units[1:]
    n = max(1, round(settings.test_fraction * len(units)))
    if len(units) < 2 or n == len(units):
        raise InputError(
            f"--split {settings.split} has {len(units)} to draw from, and {n} would be held out: both training and "
            "held-out cells must have some"
        )
    rng = np.random.default_rng((settings.seed, 4))
    drawn = {units[i] for i in rng.permutation(len(units))[:n]}
    return np.array([bool(of & drawn) for of in of_population])[population]


def follow_any(obs: pd.DataFrame, rules: Sequence[str]) -> np.ndarray:
    """Which rows follow at least one rule, (N,): `COLUMN=VALUE`, or several joined by ',' that must all hold."""
    total = np.zeros(len(obs), dtype=bool)
    for rule in rules:
        wanted = parse_rule(rule)
        require_columns(obs, list(wanted), "obs")
        has = {column: _is(obs[column], value) for column, value in wanted.items()}
        follows = np.all(list(has.values()), axis=0)
        if not follows.any():
            column = next((column for column, here in has.items() if not here.any()), None)
            if column is None:
                raise InputError(f"no cell matches {rule!r}: each value is there, but never all in one cell")
            values = as_text(obs[column]).value_counts().index[:6]
            raise InputError(
                f"no cell matches {rule!r}: column {column!r} has values such as {', '.join(map(repr, values))}"
            )
        total |= follows
    return total


def _is(column: pd.Series, value: str) -> np.ndarray:
    """Which values of a column are this one, as text or, of a column of numbers, as a number: 2 is 2.0."""
    text = as_text(column)
    found = text == value
    labels = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    if pd.api.types.is_numeric_dtype(labels):
        found |= pd.to_numeric(text, errors="coerce") == pd.to_numeric(value, errors="coerce")
    return found.to_numpy()


def parse_rule(rule: str) -> dict[str, str]:
    r"""`a=x,b=y` -> {"a": "x", "b": "y"}; a comma of a value is written `\,`. Raises InputError on another form."""
    pairs = [clause.replace(r"\,", ",").partition("=") for clause in re.split(r"(?<!\\),", rule)]
    if not all(column.strip() and equals for column, equals, _ in pairs):
        raise InputError(
            f"{rule!r} is not of the form COLUMN=VALUE or COLUMN=VALUE,COLUMN=VALUE (a comma within a value is '\\,')"
        )
    rules = {column.strip(): value.strip() for column, _, value in pairs}
    if len(rules) < len(pairs):
        raise InputError(f"{rule!r} names a column twice: no cell has two values; repeat the option for either value")
    return rules
