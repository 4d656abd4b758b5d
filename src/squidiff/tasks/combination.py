"""Whether two perturbations do more, or less, together than the sum of what each does alone."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema, check_seed
from squidiff.data.table import CellTable, read_cells, schema_of
from squidiff.data.unit import Normalisation
from squidiff.response.populations import Population

N_NULL = 1000
MAX_NULL = 100_000
"""Of 1,000 cells they take 2 GB."""
MIN_CELLS = 10
LEFT_OUT = "left_out"
N_GENES = 5
"""That are named: those that add least to what is seen."""


def interactions(
    cells: ad.AnnData | str | Path,
    schema: Schema | None = None,
    *,
    pairs: ad.AnnData | str | Path | None = None,
    n_null: int = N_NULL,
    seed: int = 0,
) -> pd.DataFrame:
    """Every combination whose parts were also seen alone, in one context, beside the sum of its parts' effects.

    With d the change of the mean from control cells, r = d(A + B) - d(A) - d(B) is what interacts. Columns: context,
    condition, time; n_cells; effect and additive, the lengths of d(A + B) and of d(A) + d(B); interaction, the length
    of r, and expected, the mean length that sampling of cells alone gives it; strength, the share of |d(A) + d(B)|
    that the part of r beyond it is; fit, how much of d(A) + d(B) is there (the projection, its noise taken out: below
    1 they buffer each other, above 1 they go beyond; NaN where the sum is noise); p, by the null that r is noise
    (`n_null` bootstraps of the cells of all populations around their means), and q, p corrected for the number of
    combinations (Benjamini and Hochberg 1995); genes, those that r is largest in. Combinations come from `pairs`
    where it is given, such as predicted cells, else from `cells`; control cells and parts always from `cells`. Raises
    InputError when there is none; attrs[LEFT_OUT] is how many lack cells of their own, of a part or of the control.
    """
    from scipy.stats import false_discovery_control

    check_seed(seed)
    if not isinstance(n_null, int) or not 1 <= n_null <= MAX_NULL:
        raise InputError(f"--n-null is {n_null!r}: it must be a whole number from 1 to {MAX_NULL:,}")
    adata = read_cells(cells)
    schema = schema_of(adata, schema)
    if schema.control is None:
        raise InputError("interactions need a condition and its control: give --condition-key and --control")
    table = both = CellTable.from_anndata(adata, schema)
    _require_logged(table, "the cells")
    if all(key[1] for key in table.keys):
        raise InputError(
            f"no cell is labelled {schema.control!r}, the control: give a file that has control cells (combinations of "
            "another file are its pairs), or name their label"
        )
    if pairs is not None:
        both = CellTable.from_anndata(read_cells(pairs), schema, table.genes, "the pairs", whose="the cells")
        _require_logged(both, "the pairs")
        Normalisation.of(table.survey, {}, "the values").require(both.survey, "the pairs")
    rows, n_left_out = [], 0
    for key, of_pair in sorted(
        zip((Population(*k) for k in both.keys), both.parts, strict=True), key=lambda x: str(x[0])
    ):
        parts = [str(part) for part in of_pair]
        rng = np.random.default_rng(seed)  # the same for every pair: none depends on the others
        alone = [_cells_of(table, key._replace(condition=part)) for part in parts]
        together, control = _cells_of(both, key), _cells_of(table, key._replace(condition=""))
        if len(parts) < 2:
            continue
        if together is None or control is None or any(part is None for part in alone):
            n_left_out += 1
            continue
        found = _one(together, [part for part in alone if part is not None], control, n_null, rng, table.genes)
        rows.append(dict(zip(("context", "condition", "time"), key, strict=True)) | found)
    if not rows:
        raise InputError(
            f"no combination has {MIN_CELLS} cells, and both its parts and control cells in the same context: there is "
            "nothing to compare it with"
        )
    scores = pd.DataFrame(rows)
    scores.attrs[LEFT_OUT] = n_left_out
    scores.insert(scores.columns.get_loc("p") + 1, "q", false_discovery_control(scores["p"]))
    return scores.sort_values(["p", "strength"], ascending=[True, False], kind="stable", ignore_index=True)


def _require_logged(table: CellTable, where: str) -> None:
    if table.survey.looks_like_counts:
        raise InputError(f"X of {where} holds raw counts: normalise it (squidiff prepare --normalize)")


def _cells_of(table: CellTable, key: Population) -> np.ndarray | None:
    """The cells of a population; None of one that has fewer than MIN_CELLS."""
    if tuple(key) not in table.keys:
        return None
    rows = np.flatnonzero(table.population == table.keys.index(tuple(key)))
    order = np.argsort(table.names[rows].astype(str), kind="stable")  # sums do not depend on the order of the file
    return table.dense(rows[order]) if len(rows) >= MIN_CELLS else None


def _one(
    together: np.ndarray,
    alone: list[np.ndarray],
    control: np.ndarray,
    n_null: int,
    rng: np.random.Generator,
    genes: tuple[str, ...],
) -> dict[str, object]:
    base = control.mean(axis=0, dtype=np.float64)
    effect = together.mean(axis=0, dtype=np.float64) - base
    additive = sum(part.mean(axis=0, dtype=np.float64) - base for part in alone) + np.zeros_like(base)
    rest = effect - additive
    # r is m(AB) - m(A) - m(B) + (k - 1) m(control) of k parts
    weighed = [(together, 1.0), *((part, -1.0) for part in alone), (control, len(alone) - 1.0)]
    null = np.linalg.norm(sum(w * _noise_of_mean(cells, n_null, rng) for cells, w in weighed), axis=1)
    length, size = float(np.linalg.norm(rest)), float(np.linalg.norm(additive))
    # the sum's own noise would pull the projection on it below 1, and control cells are in both
    of_control = float(control.var(axis=0, dtype=np.float64).sum()) / len(control)
    of_sum = (
        sum(float(part.var(axis=0, dtype=np.float64).sum()) / len(part) for part in alone)
        + len(alone) ** 2 * of_control
    )
    squared = size**2 - of_sum
    expected = float(null.mean())
    beyond = np.sqrt(max(length**2 - float(np.square(null).mean()), 0.0))
    largest = np.argsort(-np.abs(rest), kind="stable")[:N_GENES]
    return {
        "n_cells": len(together),
        "effect": float(np.linalg.norm(effect)),
        "additive": size,
        "interaction": length,
        "expected": expected,
        "strength": beyond / size if size > 0 else np.nan,
        "fit": (float(effect @ additive) - len(alone) * of_control) / squared if squared > 0 else np.nan,
        "p": (1 + int((null >= length).sum())) / (1 + n_null),
        "genes": ", ".join(f"{genes[g]} {rest[g]:+.2f}" for g in largest),
    }


def _noise_of_mean(cells: np.ndarray, n_null: int, rng: np.random.Generator) -> np.ndarray:
    """How the mean of resampled cells differs from the mean, n_null x G."""
    weights = rng.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=n_null) / len(cells)
    return np.asarray((weights - 1 / len(cells)) @ cells)
