"""What a prediction or its training saw of the truth: found from the cells, and from what files say of themselves."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np

from squidiff.data.manifest import hash_names, hash_profiles
from squidiff.data.table import CellTable, preparations
from squidiff.response.populations import Population

FEW, FEW_NAMES = 0.01, 0.1
"""Shares of a population's cells that may be alike, and that may be named alike (as barcodes are), by chance."""
CHANCE, MOST = 3.0, 0.5
"""How many times as often as within the true cells equal profiles may be met, and the most that is let pass."""
MAX_STEM = 10
DIGITS = re.compile(r"\d+")
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
    rows = is_scored & _many(np.isin(true, known) & _tells(true), target, FEW + _chance(true, len(known)))
    named = is_scored & _many(np.isin(target.names, train.names) & ~_counted(target.names), target, FEW_NAMES)
    for found, what in ((rows, "are training cells, value for value"), (named, "have the name of a training cell")):
        if found.any():
            sentence = f"{found.sum():,} of {is_scored.sum():,} true cells {what}"
            leaks.append(Leak(sentence, _populations(target, found)))
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
    if _chose_genes_on_both(train, truth):
        leaks.append(Leak("the genes were chosen before the true cells were held out"))
    if VARIABLE in train.var and VARIABLE in truth.var:
        common = train.var_names.intersection(truth.var_names)
        columns = [c for c in (VARIABLE, "dispersions_norm", "variances_norm") if c in train.var and c in truth.var]
        # where all genes are chosen ones and nothing says how, the files may have been cut to them
        tells = len(common) > 0 and (len(columns) > 1 or train.var.loc[common, VARIABLE].nunique() > 1)
        if tells and all(train.var.loc[common, c].equals(truth.var.loc[common, c]) for c in columns):
            leaks.append(Leak(f"var[{VARIABLE!r}] is the same in training and truth: genes were chosen on both"))
    return leaks


def _chose_genes_on_both(train: ad.AnnData, truth: ad.AnnData) -> bool:
    """Whether a preparation that both went through chose genes before one of these held cells out."""
    for of_train, of_truth in zip(preparations(train)[::-1], preparations(truth)[::-1], strict=False):
        if not _same(of_train, of_truth) or "hold_out" in of_train or of_train.get("test_fraction"):
            return False
        if "n_genes" in of_train:
            return True
    return False


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
        alike = here & np.isin(profiles, true[there][_tells(true[there])])
        if alike.sum() > (FEW + _chance(true[there])) * here.sum():
            found |= alike
    return found


def _tells(profiles: np.ndarray) -> np.ndarray:
    """Which profiles are of a single cell: what several share, as of few genes, others have by chance."""
    _, index, counts = np.unique(profiles, return_inverse=True, return_counts=True)
    return np.asarray((counts[index] == 1) & (profiles != 0))


def _chance(profiles: np.ndarray, n_others: int | None = None) -> float:
    """A bound on the share that is alike by chance: of how many profiles have a twin and, if given, of how many try."""
    twins = 1 - _tells(profiles).mean()
    return float(min(CHANCE * twins * max(1.0, (n_others or 0) / len(profiles)), MOST))


def _many(rows: np.ndarray, table: CellTable, share: float) -> np.ndarray:
    """The rows of the populations in which they are more than a share."""
    n_cells = np.bincount(table.population, minlength=len(table.keys))
    n_rows = np.bincount(table.population[rows], minlength=len(table.keys))
    return np.asarray(rows & (n_rows > share * n_cells)[table.population])


def _counted(names: np.ndarray) -> np.ndarray:
    """Which names are a counter's, as `cell_12` or `0-12`, and so stand in any file: many differ in digits alone."""
    stems = np.array([DIGITS.sub("", name) for name in names.astype(str)], dtype=str)
    _, index, counts = np.unique(stems, return_inverse=True, return_counts=True)
    return np.asarray(counts[index] > MAX_STEM)


def _scored(table: CellTable, scored: Sequence[Population]) -> np.ndarray:
    return np.isin(table.population, [table.keys.index(tuple(key)) for key in scored])


def _populations(table: CellTable, rows: np.ndarray) -> frozenset[Population]:
    return frozenset(_of(table.keys[i]) for i in np.unique(table.population[rows]))


def _of(key: Any) -> Population:
    return Population(*key)
