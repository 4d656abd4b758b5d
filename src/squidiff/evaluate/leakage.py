"""What a prediction or its training saw of the truth: found from the cells, and from what files say of themselves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np

from squidiff.data.manifest import hash_names, hash_profiles
from squidiff.data.table import PREPARED, CellTable
from squidiff.response.populations import Population

FEW, FEW_NAMES = 0.01, 0.1
"""Shares of a population's cells that may be alike, and of all that may be named alike (as barcodes are), by chance."""
VARIABLE = "highly_variable"
"""Column of var in which scanpy marks the genes that it chose."""


@dataclass(frozen=True)
class Leak:
    """Something of the truth that was seen, as a sentence, and by which populations; None for all."""

    sentence: str
    populations: frozenset[Population] | None = None

    def touches(self, key: Population) -> bool:
        """Whether the scores of a population are of something that was seen."""
        return self.populations is None or key in self.populations


def find_leaks(
    predictions: Mapping[str, CellTable],
    target: CellTable,
    train: CellTable | None,
    scored: Sequence[Population],
    generated: Collection[Population] = (),
) -> list[Leak]:
    """Of the populations that are scored; `generated` are those whose task is more cells of what training saw."""
    leaks = []
    true = hash_profiles(target.blocks(), target.genes)
    for name, table in predictions.items():
        rows = _alike(hash_profiles(table.blocks(), table.genes), true, table, target, scored)
        if rows.any():
            what = f"{rows.sum():,} cells of the prediction{'' if len(predictions) == 1 else f' {name!r}'}"
            leaks.append(Leak(f"{what} are true cells, value for value", _populations(table, rows)))
    if train is None:
        return leaks
    known = hash_profiles(train.blocks(), train.genes)
    is_scored = _scored(target, scored)
    n_scored = int(is_scored.sum())
    rows = is_scored & np.isin(true, _rare(known)) & np.isin(true, _rare(true))
    named = is_scored & np.isin(target.names, train.names) & ~np.char.isdigit(target.names.astype(str))
    of_some = max(
        (rows & (target.population == i)).sum() / (target.population == i).sum() for i in set(target.population)
    )
    for found, share, few, what in (
        (rows, of_some, FEW, "are training cells, value for value"),
        (named, named.sum() / n_scored, FEW_NAMES, "have the name of a training cell"),
    ):
        if share > few:
            leaks.append(Leak(f"{found.sum():,} of {n_scored:,} true cells {what}", _populations(target, found)))
            break
    seen = [key for key in scored if key in set(map(_of, train.keys)) and key not in generated]
    if seen:
        more = "" if len(seen) == 1 else f" and {len(seen) - 1} more"
        leaks.append(Leak(f"training saw cells of the population asked for: {seen[0]}{more}", frozenset(seen)))
    return leaks


def find_leaks_of_files(
    predictions: Mapping[str, ad.AnnData], truth: ad.AnnData, train: ad.AnnData | None
) -> list[Leak]:
    """What the files say: genes that were chosen with the truth at hand, runs that were trained on something else."""
    if train is None:
        return []
    leaks = []
    for name, prediction in predictions.items():
        trained = _said(prediction, "squidiff").get("cells_sha256")
        if trained and trained != hash_names(sorted(train.obs_names)):
            whose = "the prediction" if len(predictions) == 1 else f"prediction {name!r}"
            leaks.append(Leak(f"{whose} is of a run that was trained on other cells than the training file holds"))
    settings = _said(train, PREPARED)
    held_out = "hold_out" in settings or settings.get("test_fraction")
    if settings and _same(settings, _said(truth, PREPARED)) and "n_genes" in settings and not held_out:
        leaks.append(Leak("the genes were chosen before the true cells were held out"))
    if VARIABLE in train.var and VARIABLE in truth.var:
        common = train.var_names.intersection(truth.var_names)
        columns = [c for c in (VARIABLE, "dispersions_norm", "variances_norm") if c in train.var and c in truth.var]
        if len(common) and all(train.var.loc[common, c].equals(truth.var.loc[common, c]) for c in columns):
            leaks.append(Leak(f"var[{VARIABLE!r}] is the same in training and truth: genes were chosen on both"))
    return leaks


def _said(adata: ad.AnnData, key: str) -> Mapping[str, Any]:
    value = adata.uns.get(key)
    return value if isinstance(value, Mapping) else {}


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two settings that were read from files are one: lists come back as arrays."""
    return one.keys() == other.keys() and all(np.array_equal(value, other[key]) for key, value in one.items())


def _alike(
    profiles: np.ndarray, true: np.ndarray, table: CellTable, target: CellTable, scored: Sequence[Population]
) -> np.ndarray:
    """Which predicted cells have the values of a true cell of their population; none where few have, as by chance."""
    found = np.zeros(len(profiles), dtype=bool)
    for key in scored:
        here, there = (t.population == t.keys.index(tuple(key)) for t in (table, target))
        alike = here & np.isin(profiles, true[there]) & (profiles != 0)
        if alike.sum() > FEW * here.sum():
            found |= alike
    return found


def _rare(profiles: np.ndarray) -> np.ndarray:
    """The profiles of single cells: what several cells share, as of few genes, others have by chance."""
    distinct, counts = np.unique(profiles, return_counts=True)
    return distinct[(counts == 1) & (distinct != 0)]


def _scored(table: CellTable, scored: Sequence[Population]) -> np.ndarray:
    return np.isin(table.population, [table.keys.index(tuple(key)) for key in scored])


def _populations(table: CellTable, rows: np.ndarray) -> frozenset[Population]:
    return frozenset(_of(table.keys[i]) for i in np.unique(table.population[rows]))


def _of(key: Any) -> Population:
    return Population(*key)
