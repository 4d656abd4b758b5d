"""How cells go on over time: populations at any times, and how fast each gene changes on the way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Sampling
from squidiff.data.queries import FAR, told
from squidiff.estimator import Squidiff
from squidiff.tasks.series import along


def trajectory(
    model: Squidiff,
    times: Sequence[float],
    source: ad.AnnData | str | Path,
    *,
    query: Mapping[str, object] | None = None,
    sampling: Sampling | None = None,
    on_query: Callable[[int, int], None] | None = None,
) -> ad.AnnData:
    """The cells at each of the times, as `Squidiff.predict` gives them; `query` gives the other columns and n_cells.

    Times may lie between those of training, or beyond them by at most what they span: obs says of which it is far.
    Raises InputError for a model that knows no times.
    """
    return model.predict(_at(model, times, query), source, sampling, on_query=on_query)


def speeds(
    model: Squidiff,
    times: Sequence[float],
    source: ad.AnnData | str | Path,
    *,
    query: Mapping[str, object] | None = None,
) -> pd.DataFrame:
    """How fast each gene's mean changes from one of the times to the next: the direction of the trajectory.

    Columns: those of the query; start and end, two times; gene; mean, at the start; speed, the change of the mean in a
    unit of time; low and high, of its 90 % interval (as of independent means at both times); share, of the whole speed
    (the length over genes) that is the gene's; far. The fastest genes of each step first.
    """
    asked = _at(model, times, query)
    key = str(model.schema.time_key)
    times = asked[key].tolist()
    changes = model.changes(asked, source)
    mean = (changes["source_mean"] + changes["shift"]).to_numpy().reshape(len(times), -1)
    half = (changes["shift_high_90"] - changes["shift_low_90"]).to_numpy().reshape(len(times), -1) / 2
    genes = changes["gene"].to_numpy()[: mean.shape[1]]
    tables = []
    for i, (start, end) in enumerate(itertools.pairwise(times)):
        speed = (mean[i + 1] - mean[i]) / (end - start)
        width = np.sqrt(half[i] ** 2 + half[i + 1] ** 2) / (end - start)
        whole = float(np.linalg.norm(speed))
        share = np.abs(speed) / whole if whole > 0 else np.zeros_like(speed)
        of_step = {"start": start, "end": end, "gene": genes, "mean": mean[i], "speed": speed}
        of_step |= {"low": speed - width, "high": speed + width, "share": share}
        far = changes[FAR].to_numpy().reshape(len(times), -1)[i : i + 2, 0]
        table = pd.DataFrame(
            {**told(query or {}, of_step), **of_step, FAR: "; ".join(filter(None, dict.fromkeys(far)))}
        )
        tables.append(table.sort_values("share", ascending=False, kind="stable"))
    return pd.concat(tables, ignore_index=True)


def _at(model: Squidiff, times: Sequence[float], query: Mapping[str, object] | None) -> pd.DataFrame:
    """A query for each time."""
    key = model.schema.time_key
    if key is None:
        raise InputError("this model was trained without times (--time-key): there is no trajectory")
    return along(key, times, query or {}, "times", "from the first to the last")
