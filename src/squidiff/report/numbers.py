"""How numbers are written for people."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


def shown(value: Any) -> str:
    """A cell of the table: texts as they are, counts whole, other numbers to three digits, missing ones as a dash.

    Counts are integers, missing None or NaN.
    """
    if isinstance(value, str):
        return value
    if value is None or pd.isna(value):
        return MISSING
    if isinstance(value, int | np.integer):
        return f"{value:,}".replace("-", MINUS)
    number = float(value)
    scientific = f"{number:.2e}"  # rounded first: 0.9996 is 1.00
    exponent = int(scientific.partition("e")[2]) if np.isfinite(number) else 0
    text = f"{number:,.{max(0, 2 - exponent)}f}" if -4 < exponent < 6 else scientific
    return ("0" if number == 0 else text).replace("-", MINUS)
