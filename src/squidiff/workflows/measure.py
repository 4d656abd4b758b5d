"""What is measured of a training run besides its loss: memory over time, utilisation, the shape of the early loss."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import psutil

from squidiff.report.plots import smoothed
from squidiff.train.run import Record

EARLY = 0.1
"""The first share of the steps, whose loss is compared with that of the second half."""
GROWS = 0.05
"""Share by which memory in the last quarter must lie above that in the second for a run to grow."""


@dataclass
class Watch:
    """Memory of this process at each record of a run, and the processor time that the run takes."""

    steps: list[int] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)
    seconds: float = 0.0
    utilisation: float = 0.0
    """Processor time by wall time and processors: 1 where all are busy all the time."""

    def __enter__(self) -> Watch:
        self._process = psutil.Process()
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        began, busy = self._began
        self.seconds = time.perf_counter() - began
        self.utilisation = (time.process_time() - busy) / (self.seconds * (os.cpu_count() or 1))

    def note(self, record: Record) -> None:
        """To be called at each record."""
        self.steps.append(record.step)
        self.resident_mb.append(self._process.memory_info().rss / 1e6)


def memory_growth(resident_mb: Sequence[float]) -> tuple[float, bool]:
    """By how much memory in the last quarter of a run lies above that in the second (MB), and whether that is much."""
    if len(resident_mb) < 8:
        return float("nan"), False
    quarters = np.array_split(np.asarray(resident_mb, dtype=float), 4)
    before, after = float(np.mean(quarters[1])), float(np.mean(quarters[3]))
    return after - before, after > (1 + GROWS) * before


def early_oscillation(records: Sequence[Record]) -> float:
    """How much wider the loss swings around its moving average in the first tenth of a run than in its second half.

    The ratio of the root mean squares of (loss - average) / average; NaN for fewer than 20 records.
    """
    if len(records) < 20:
        return float("nan")
    loss = pd.Series([record.loss for record in records])
    step = np.array([record.step for record in records])
    average = smoothed(loss, len(loss) / 15)
    swing = np.square(((loss - average) / average).to_numpy())
    early, late = swing[step <= EARLY * step[-1]], swing[step > step[-1] / 2]
    if len(early) < 2 or not late.mean() > 0:
        return float("nan")
    return float(np.sqrt(early.mean() / late.mean()))
