"""The doctor on obs: labels, conditions, doses, SMILES, populations, batches, and what two files share."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema
from squidiff.data.conditions import ConditionEncoder, Part, canonical_smiles, parse_condition
from squidiff.data.finding import Finding, Mend
from squidiff.data.manifest import hash_profiles
from squidiff.data.matrix import as_matrix, blocks
from squidiff.data.table import OPEN_TIME, as_text, group_rows, read_time

FEW_CELLS = 10
"""A population of fewer cells says little of its mean."""
DOSE_SPAN = 1e5
"""Doses of one drug that differ by this factor are likely in two units."""
BATCHES = re.compile(
    r".*(batch|plate|lane|chip|pool|library|channel|replicate|donor|patient|sample|run).*", re.IGNORECASE
)
"""Names that obs columns go by whose cells were handled together."""
CONTROLS = {
    *("control", "ctrl", "ctl", "negctrl", "negativecontrol", "untreated", "unstimulated", "unperturbed", "vehicle"),
    *("mock", "dmso", "nontargeting", "nt"),
}
"""What control cells are called, squeezed."""
MAX_SHOWN = 4
Conditions = Mapping[tuple[Part, ...], int]
"""Number of cells of each condition."""


def check_missing(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    for column in schema.columns:
        if column not in adata.obs.columns:
            there = ", ".join(map(str, adata.obs.columns))
            remedy = f"name one of the columns there are: {there}"
            if not there:
                remedy = "there is no column: join a table of the cells' labels by `squidiff prepare --obs TABLE`"
            yield Finding("error", f"column {column!r} is missing", "obs", 1, remedy)
        elif not isinstance(adata.obs[column], pd.Series):
            yield Finding("error", f"column {column!r} stands there twice", "obs", 1, "rename one")


def check_labels(adata: ad.AnnData, schema: Schema, mend: Mend) -> Iterator[Finding]:
    """Findings on obs, whose columns are all there."""
    is_control = _is_control(adata.obs, schema)
    yield from _unused_gaps(adata.obs, schema)
    gaps = list(_gaps(adata.obs, schema, is_control, mend))
    yield from gaps
    if gaps:
        return
    errors = [*_control(adata.obs, schema, is_control), *_conditions(adata, schema)]
    yield from errors
    yield from _spellings(adata.obs, schema)
    yield from _like_control(adata.obs, schema)
    if not errors:
        yield from _open_times(adata.obs, schema)
        yield from _populations(adata, schema, mend)
        yield from _batches(adata.obs, schema, is_control)


def _gaps(obs: pd.DataFrame, schema: Schema, is_control: np.ndarray, mend: Mend) -> Iterator[Finding]:
    for column in schema.columns:
        empty = obs[column].isna().to_numpy()
        if column in (schema.smiles_key, schema.dose_key, schema.direction_key):
            empty &= ~is_control  # a control has no drug, no dose, no direction
        if empty.any():
            command = _dropping(obs, schema, column, empty, mend)
            what, n = f"empty values in column {column!r}", int(empty.sum())
            yield Finding("error", what, "obs", n, "fill them or drop the cells", command)


def _dropping(obs: pd.DataFrame, schema: Schema, column: str, empty: np.ndarray, mend: Mend) -> str:
    """The command that drops cells without a value but, where control cells need none, those of conditions alone."""
    if column not in (schema.smiles_key, schema.dose_key, schema.direction_key):
        return mend(f"--drop {shlex.quote(f'{column}=')}")
    conditions = as_text(obs[schema.condition_key])[empty].unique()
    rules = [f"{column}=,{schema.condition_key}={c}" for c in map(_escaped, conditions)]
    return mend(" ".join(f"--drop {shlex.quote(rule)}" for rule in rules)) if len(rules) <= 5 else ""


def _escaped(label: str) -> str:
    return label.replace(",", r"\,")


def _unused_gaps(obs: pd.DataFrame, schema: Schema) -> Iterator[Finding]:
    has_gaps = obs.isna().any().to_numpy()
    columns = [str(c) for c, gaps in zip(obs.columns, has_gaps, strict=True) if gaps and c not in schema.columns]
    if columns:
        what = f"other columns with empty values, such as {columns[0]!r}"
        yield Finding("warning", what, "obs", len(columns), "nothing to do unless you use these columns")


def _is_control(obs: pd.DataFrame, schema: Schema) -> np.ndarray:
    if schema.condition_key is None:
        return np.zeros(len(obs), dtype=bool)
    labels = obs[schema.condition_key]
    return np.asarray((as_text(labels) == schema.control) & labels.notna())


def _control(obs: pd.DataFrame, schema: Schema, is_control: np.ndarray) -> Iterator[Finding]:
    if schema.control is not None and not is_control.any():
        labels = sorted(as_text(obs[schema.condition_key]).unique())
        alike = [label for label in labels if _squeezed(label) == _squeezed(schema.control)]
        there = ", ".join(map(repr, alike or labels[:5]))
        remedy = f"name the control: column {schema.condition_key!r} has {there}"
        yield Finding("error", f"no control {schema.control!r}", f"obs column {schema.condition_key!r}", 1, remedy)


def _conditions(adata: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    """Every distinct row of the schema's columns is read; the first error of each kind of message is kept."""
    if not schema.columns:
        return
    rows = pd.DataFrame({column: as_text(adata.obs[column]) for column in schema.columns})
    counts = rows.value_counts(sort=False)
    problems: dict[str, int] = {}
    conditions: dict[tuple[Part, ...], int] = {}
    for row, n in counts.items():
        try:
            parts = parse_condition(dict(zip(schema.columns, row, strict=True)), schema)
            conditions[parts] = conditions.get(parts, 0) + int(n)
        except InputError as error:
            problems[str(error)] = problems.get(str(error), 0) + int(n)
    try:
        ConditionEncoder.fit(conditions, schema)
    except InputError as error:
        problems |= _problems_of_parts(conditions, schema) or {str(error): 1}
    for message, n in problems.items():
        about_file = schema.embeddings is not None and message.startswith("embeddings file")
        where, remedy = ("--embeddings", "correct the file") if about_file else ("obs", "correct the column")
        what, _, own_remedy = message.rpartition(": ")
        if schema.embeddings is not None and own_remedy == "add a row for it to the embeddings":
            message, remedy = what, f"{own_remedy}, or leave its cells out"
        yield Finding("error", message, where, n, remedy)
    if not problems:
        yield from _doses(conditions)
        yield from _drugs(conditions)


def _problems_of_parts(conditions: Conditions, schema: Schema) -> dict[str, int]:
    """What is wrong with single conditions, and how many cells have it; empty when it lies in no single one."""
    problems: dict[str, int] = {}
    try:
        known = None if schema.embeddings is None else ConditionEncoder.fit([], schema)
    except InputError:
        return problems
    for parts, n in conditions.items():
        try:
            ConditionEncoder.fit([parts], schema) if known is None else known.encode(parts)
        except InputError as error:
            problems[str(error)] = problems.get(str(error), 0) + n
    return problems


def _doses(conditions: Conditions) -> Iterator[Finding]:
    doses: dict[str, set[float]] = defaultdict(set)
    for part in (part for parts in conditions for part in parts if part.dose):
        doses[part.name].add(float(part.dose))  # type: ignore[arg-type]
    wide = [(name, min(of), max(of)) for name, of in doses.items() if max(of) >= DOSE_SPAN * min(of)]
    if wide:
        name, low, high = wide[0]
        what = f"doses that may be in two units, such as {low:g} and {high:g} of {name!r}"
        yield Finding("warning", what, "obs", len(wide), "write all doses in one unit")


def _drugs(conditions: Conditions) -> Iterator[Finding]:
    """Drugs that are spelled, or called, in several ways."""
    spellings: dict[str, set[str]] = defaultdict(set)
    names: dict[str, dict[str, str]] = defaultdict(dict)  # nearly equal ones are one, and said of the labels
    for part in (part for parts in conditions for part in parts if part.smiles):
        drug = canonical_smiles(str(part.smiles))
        spellings[drug].add(str(part.smiles))
        names[drug][_squeezed(part.name)] = part.name
    many = [sorted(of) for of in spellings.values() if len(of) > 1]
    if many:
        what = f"drugs whose SMILES are written in several ways, such as {many[0][0]!r} and {many[0][1]!r}"
        yield Finding("warning", what, "obs", len(many), "write one SMILES a drug: each spelling counts as a condition")
        return
    called = [sorted(of.values()) for of in names.values() if len(of) > 1]
    if called:
        what = f"drugs of several names, such as {called[0][0]!r} and {called[0][1]!r}"
        yield Finding("warning", what, "obs", len(called), "call a drug by one name: each name counts as a condition")


def _spellings(obs: pd.DataFrame, schema: Schema) -> Iterator[Finding]:
    """Labels that differ in case, spaces, dashes or what Unicode hides alone, and numbers that are stored as text."""
    for column in schema.columns:
        labels = as_text(obs[column])
        if column in (schema.time_key, schema.dose_key):
            yield from _numbers_as_text(obs[column], labels)
        elif column != schema.smiles_key:  # there, case says which atoms are aromatic
            alike: dict[str, set[str]] = defaultdict(set)
            for label in labels.unique():
                alike[_squeezed(label)].add(label)
            groups = [sorted(of) for of in alike.values() if len(of) > 1]
            if groups:
                some = "; ".join(" and ".join(map(repr, of)) for of in groups[:MAX_SHOWN])
                what = f"labels that are nearly the same, such as {some}"
                remedy = "if they mean one thing, write them alike"
                counts = labels.value_counts()
                best = [max(of, key=lambda label: (label == schema.control, counts[label])) for of in groups]
                new = {label: to for of, to in zip(groups, best, strict=True) for label in of if label != to}
                command = f"adata.obs[{column!r}] = adata.obs[{column!r}].astype(str).replace({new!r})"
                yield Finding("warning", what, f"obs column {column!r}", len(groups), remedy, command)


def _like_control(obs: pd.DataFrame, schema: Schema) -> Iterator[Finding]:
    """Labels beside the control that read like one."""
    if schema.control is None:
        return
    counts = as_text(obs[schema.condition_key]).value_counts().sort_index()
    alike = _squeezed(schema.control)  # which is said of spellings
    like = [label for label in counts.index if _squeezed(label) in CONTROLS - {alike}]
    if like:
        what = f"labels beside the control that read like one, such as {', '.join(map(repr, like[:MAX_SHOWN]))}"
        remedy = f"if their cells are untreated, label them {schema.control!r}: as they are they count as treated"
        column = f"obs column {schema.condition_key!r}"
        yield Finding("warning", what, column, int(counts[like].sum()), remedy)


def _open_times(obs: pd.DataFrame, schema: Schema) -> Iterator[Finding]:
    if schema.time_key is None:
        return
    labels = as_text(obs[schema.time_key])
    is_open = labels.str.match(OPEN_TIME)
    if is_open.any():
        try:
            there = ", ".join(f"{label!r} as {read_time(label):g}" for label in sorted(labels[is_open].unique()))
        except ValueError:  # which is said of populations
            return
        what = f"times that are open to one side, which are read as their end: {there}"
        remedy = "how fast cells change there is wrong unless that is when they are: name a column of numbers"
        yield Finding("warning", what, f"obs column {schema.time_key!r}", int(is_open.sum()), remedy)


def _squeezed(label: str) -> str:
    seen = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")  # none is seen
    return re.sub(r"(?<=\w)[\s_-]+(?=\w)", "", seen.strip()).casefold()


def _numbers_as_text(column: pd.Series, labels: pd.Series) -> Iterator[Finding]:
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column.dropna()
    is_text = pd.api.types.infer_dtype(values) == "string"
    written = labels[labels != ""].unique()
    if is_text and len(written) and pd.notna(pd.to_numeric(written, errors="coerce")).all():
        what = f"numbers stored as text in column {column.name!r}"
        call = f"pd.to_numeric(adata.obs[{column.name!r}].astype(str), errors='coerce')"  # a control's may be empty
        n = int((labels != "").sum())
        yield Finding("warning", what, "obs", n, "they are read as numbers", f"adata.obs[{column.name!r}] = {call}")


def _populations(adata: ad.AnnData, schema: Schema, mend: Mend) -> Iterator[Finding]:
    try:
        population, keys, _ = group_rows(adata.obs, schema)
    except InputError as error:
        yield Finding("error", str(error), "obs", 1, "correct the column")
        return
    n_cells = np.bincount(population, minlength=len(keys))
    for what, few in (
        ("populations of a single cell", n_cells == 1),
        (f"populations of fewer than {FEW_CELLS} cells", (n_cells > 1) & (n_cells < FEW_CELLS)),
    ):
        if few.any():
            example = ", ".join(str(part) for part in keys[int(np.argmax(few))] if part)
            remedy = f"their means are uncertain; the first is {example!r}"
            yield Finding("warning", what, "obs", int(few.sum()), remedy)
    if schema.control is not None:
        if all(condition == "" for _, condition, _ in keys):
            remedy = (
                f"nothing can be learned of a condition: column {schema.condition_key!r} holds {schema.control!r} alone"
            )
            yield Finding("warning", "control cells only", "obs", int(n_cells.sum()), remedy)
        with_control = {context for context, condition, _ in keys if condition == ""}
        orphans = [i for i, (context, _, _) in enumerate(keys) if context not in with_control]
        if orphans:
            remedy = f"training leaves these cells out; the first context is {keys[orphans[0]][0]!r}"
            n = int(n_cells[orphans].sum())
            yield Finding("warning", "conditions without control cells in their context", "obs", n, remedy)
    split = adata.obs.get("split")
    n = int((split.astype(str) == "test").sum()) if isinstance(split, pd.Series) else 0
    if n:
        what = "held-out cells (column 'split' says test)"
        yield Finding("warning", what, "obs", n, "do not train on them", mend("--drop split=test"))


def _batches(obs: pd.DataFrame, schema: Schema, is_control: np.ndarray) -> Iterator[Finding]:
    """Columns of batches none of which holds control cells beside others, all control cells being of one batch."""
    if not is_control.any() or is_control.all():
        return
    for column in obs.columns:
        if column in schema.columns or not BATCHES.fullmatch(str(column)) or not isinstance(obs[column], pd.Series):
            continue
        batch = as_text(obs[column])
        of_control, of_others = set(batch[is_control]), set(batch[~is_control])
        if len(of_control) == 1 and not of_control & of_others:
            what = f"a batch that holds all control cells and no other: {next(iter(of_control))!r}"
            remedy = "what a condition does cannot be told from what the batch does; say so where you show it"
            yield Finding("warning", what, f"obs column {column!r}", int(is_control.sum()), remedy)


def check_leakage(train: ad.AnnData, held_out: ad.AnnData, schema: Schema) -> Iterator[Finding]:
    """What training and held-out cells share: cells, by name and by value, and populations other than control."""
    shared = train.obs_names.intersection(held_out.obs_names)
    if len(shared):
        what = f"cells that are held out too, such as {shared[0]!r}"
        yield Finding("warning", what, "obs_names", len(shared), "hold other cells out, or drop them here")
    here, there = (hash_profiles(blocks(as_matrix(adata)), adata.var_names) for adata in (train, held_out))
    n_alike = int(np.isin(here[here != 0], there).sum())
    if n_alike > len(shared):
        what = "cells whose values are those of a held-out cell"
        yield Finding("warning", what, "X", n_alike, "hold other cells out, or drop them here")
    try:
        here, there = (set(group_rows(adata.obs, schema)[1]) for adata in (train, held_out))
    except InputError:
        return  # said of the file itself
    both = sorted(key for key in here & there if key[1])
    if both:
        context, condition, _ = both[0]
        example = ", ".join(part for part in (context, condition) if part)
        what = f"conditions that are held out too, such as {example!r}"
        remedy = "fine for cells of a known condition; a test of unseen ones must not share any"
        yield Finding("warning", what, "obs", len(both), remedy)
