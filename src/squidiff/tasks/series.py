"""Questions that ask for one population at several values of a number: doses, or times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from squidiff.config import InputError
from squidiff.data.conditions import read_number


def along(key: str, values: Sequence[object], query: Mapping[str, object], what: str, order: str) -> pd.DataFrame:
    """One query for each value of the obs column `key`; `query` gives the other columns.

    `what` and `order` are for the sentences: "doses", "from the lowest to the highest". Raises InputError for values
    that are no finite numbers, fewer than two or not ascending, and for a query that gives the column itself.
    """
    numbers = _as_numbers(values, what)
    if len(numbers) < 2 or numbers != sorted(set(numbers)):
        raise InputError(f"{what} are {numbers}: give two or more, each once, {order}")
    if key in query:
        raise InputError(f"the query gives {key!r}, of which --{what} gives the values: leave it out")
    return pd.DataFrame([{**query, key: number} for number in numbers])


def _as_numbers(values: Sequence[object], what: str) -> list[float]:
    try:
        numbers = [read_number(str(value)) for value in values]
    except ValueError:
        raise InputError(f"{what} are {list(values)}: give numbers") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{what} are {list(values)}: give finite numbers")
    return numbers
