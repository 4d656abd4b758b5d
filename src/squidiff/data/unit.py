"""What unit X is in, as far as its values, or whoever made them, tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from squidiff.config import InputError
from squidiff.data.matrix import CellsOnDisk, Matrix, dense
from squidiff.data.survey import Survey

COUNTS, UNKNOWN = "raw counts", "unknown"
"""Units in which cells are taken as they are."""
PER_TOTAL = "log1p of counts per "
"""And the total that counts were scaled to."""
SAME_TOTAL = 0.02
"""Cells whose totals differ by less than this share of the median were scaled to one total."""
EXACT_TOTAL, MIN_SCALED = 1e-3, 10
"""The same by less than this share, as rounding leaves it, of as many cells at least."""
OTHER_UNIT = 10.0
"""Totals that differ by this factor are not those of other cells but of another unit."""
N_PROBED = 200
"""Cells whose values are looked at one by one."""


def recognise_unit(cells: Matrix | CellsOnDisk, found: Survey) -> str:
    """What X holds, in words, the survey being its own; UNKNOWN where the values do not tell.

    A cell's scaled counts are multiples of what one count became; when their sums differ from cell to cell, genes were
    left out after scaling, and the total that they were scaled to cannot be told.
    """
    if found.looks_like_counts:
        return COUNTS
    if found.n_bad:
        return UNKNOWN
    if found.is_whole and found.lowest.min() >= 0 and found.highest.max() == 1:
        return "0 and 1 alone"
    if found.n_negative:
        return "values below 0, such as scaled ones"
    if _is_one_total(found.totals):
        return f"counts per {_round(found.totals)}, not logged"
    total = found.total_counts
    if total is not None and np.isfinite(total).all():
        if _is_one_total(total):
            return f"{PER_TOTAL}{_round(total)}"
        probed = [np.expm1(row[row > 0].astype(np.float64)) for row in _some_cells(cells)]
        probed = [row for row in probed if row.size and row.max() > 1.5 * row.min()]
        if probed and np.mean([_are_multiples(row, 1.0) for row in probed]) > 0.9:
            return "log1p of counts that were not scaled to one total"
        if probed and np.mean([_are_multiples(row, row.min()) for row in probed]) > 0.9:
            return "log1p of scaled counts, some genes left out"
    return UNKNOWN


def _is_one_total(totals: np.ndarray) -> bool:
    """Whether all cells but empty ones have one sum."""
    totals = totals[totals > 0]
    return bool(totals.size > 1 and np.ptp(totals) < SAME_TOTAL * np.median(totals))


def scaled_to(found: Survey) -> float | None:
    """The total that all cells were scaled to before they were logged; None where they plainly have none.

    Plainly: to one total exactly, by MIN_SCALED cells, since few profiles of many cells may be as alike by chance.
    """
    total = found.total_counts
    if total is None or not np.isfinite(total).all():
        return None
    total = total[total > 0]
    is_one = len(total) >= MIN_SCALED and np.ptp(total) < EXACT_TOTAL * np.median(total)
    return float(np.median(total)) if is_one else None


def differ(total: float | None, other: float | None) -> bool:
    """Whether two totals that cells were scaled to are known and not one."""
    return total is not None and other is not None and abs(total - other) > SAME_TOTAL * max(total, other)


def _round(totals: np.ndarray) -> str:
    return f"{float(f'{np.median(totals[totals > 0]):.3g}'):,.10g}"


def _some_cells(cells: Matrix | CellsOnDisk) -> np.ndarray:
    return dense(cells, np.unique(np.linspace(0, cells.shape[0] - 1, N_PROBED).astype(int)))


def _are_multiples(values: np.ndarray, unit: float) -> bool:
    """Whether the smaller values are whole multiples of a unit, as closely as float32 can tell."""
    ratio = values / unit
    ratio = ratio[ratio < 50]
    return bool(ratio.size and (np.abs(ratio - np.rint(ratio)) < 0.02).all() and ratio.max() > 0.5)


@dataclass(frozen=True)
class Normalisation:
    """The unit of X, as far as it is known; kept with a model, so that other data can be told to be in another."""

    unit: str
    """`log1p of counts per N`, `as given`, COUNTS or UNKNOWN."""
    known_from: Literal["train", "prepare", "the values", "nothing"]
    """Who scaled and logged the counts, or else what the unit was inferred from."""
    typical_total: float | None
    """Median over cells of sum(expm1(X)) over the genes; None where X has negative values."""

    @classmethod
    def of(cls, found: Survey, done: Mapping[str, Any], by: Literal["train", "prepare"]) -> Self:
        """Of normalised cells; `done` holds the settings `normalize` and `target_sum` of whoever prepared them."""
        total = found.total_counts
        median = None if total is None or not np.isfinite(total).all() else float(np.median(total))
        if bool(done.get("normalize", False)):
            return cls(f"{PER_TOTAL}{float(done.get('target_sum', 0)):g}", by, median)
        if found.looks_like_counts:
            return cls(COUNTS, "the values", None)
        if total is not None and median is not None and _is_one_total(total):
            return cls(f"{PER_TOTAL}{float(_round(total).replace(',', '')):g}", "the values", median)
        return cls("as given", "nothing", median)

    @classmethod
    def unknown(cls) -> Self:
        """Of a model whose training data nobody described."""
        return cls(UNKNOWN, "nothing", None)

    def require(self, found: Survey, where: str) -> None:
        """Raises InputError when cells of the same genes are plainly in another unit."""
        total = found.total_counts
        if total is None or not self.typical_total:
            return
        here, median = scaled_to(found), float(np.median(total))
        if self.unit.startswith(PER_TOTAL) and differ(here, float(self.unit.removeprefix(PER_TOTAL))):
            raise InputError(
                f"X of {where} is in another unit than the training data: {PER_TOTAL}{here:g}, in training "
                f"{self.unit}; normalise both alike"
            )
        if not self.typical_total / OTHER_UNIT < median < self.typical_total * OTHER_UNIT:
            raise InputError(
                f"X of {where} is in another unit than the training data: exp(X) - 1 sums to {median:.3g} a cell, in "
                f"training to {self.typical_total:.3g}; normalise both alike ({self.unit})"
            )
