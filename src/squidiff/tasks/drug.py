"""How cells answer to the doses of a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError
from squidiff.estimator import Squidiff
from squidiff.tasks.series import along


def dose_curves(
    model: Squidiff,
    query: Mapping[str, object],
    doses: Sequence[float],
    source: ad.AnnData | str | Path,
) -> pd.DataFrame:
    """`Squidiff.changes` of one query (obs columns and their values, without the dose) at each of the doses.

    The doses are in the unit of training's, and ascend. Raises InputError for a model that knows no doses.
    """
    key = model.schema.dose_key
    if key is None:
        raise InputError("this model was trained without doses (--dose-key): there is no curve over them")
    return model.changes(along(key, doses, query, "doses", "from the lowest to the highest"), source)


def monotonicity(curves: pd.DataFrame, dose_key: str) -> pd.DataFrame:
    """Of curves over dose, for each gene: whether it goes one way, how far, and at which dose it has gone half of it.

    Columns: gene; shift, at the highest dose; spearman, of shift and dose, 1 for a gene that always rises and -1 for
    one that always falls (NaN for one that does not move); half, the dose at which half of the largest shift is first
    reached, linear between the doses; the largest shifts first. Raises InputError for a table of several curves.
    """
    from scipy.stats import rankdata

    if dose_key not in curves or curves.duplicated(["gene", dose_key]).any():
        raise InputError(f"the table holds no single curve over {dose_key!r}: give that of one query")
    curves = curves.assign(**{dose_key: curves[dose_key].astype(float)})
    shifts = curves.pivot_table(index="gene", columns=dose_key, values="shift", sort=True, observed=True)
    doses = shifts.columns.to_numpy(dtype=float)
    values = shifts.to_numpy()
    ranks = rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    order = np.arange(len(doses)) - (len(doses) - 1) / 2
    length = np.linalg.norm(ranks, axis=1) * np.linalg.norm(order)
    spearman = np.divide(ranks @ order, length, out=np.full(len(values), np.nan), where=length > 0)
    half = [_first_half(doses, np.abs(row)) for row in values]
    table = pd.DataFrame({"gene": shifts.index, "shift": values[:, -1], "spearman": spearman, "half": half})
    return table.sort_values("shift", key=np.abs, ascending=False, kind="stable", ignore_index=True)


def _first_half(doses: np.ndarray, size: np.ndarray) -> float:
    """The dose at which a shift first has half of its largest size; NaN for one that is never there."""
    wanted = size.max() / 2
    if wanted == 0:
        return float("nan")
    i = int(np.argmax(size >= wanted))
    if i == 0:
        return float(doses[0])
    share = (wanted - size[i - 1]) / (size[i] - size[i - 1])
    return float(doses[i - 1] + share * (doses[i] - doses[i - 1]))
