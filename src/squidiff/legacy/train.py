"""Upstream's training script: its flags, its files and its log, over our training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import Config, InputError, Schema
from squidiff.data.matrix import as_matrix
from squidiff.data.survey import survey
from squidiff.data.table import as_text
from squidiff.estimator import Squidiff
from squidiff.files import require_writable, saying_where, write_atomically
from squidiff.legacy.cells import (
    DOSE,
    DRUG_SCHEMA,
    GROUP,
    SMILES,
    dense,
    read_paired_controls,
    read_upstream_cells,
    require_drugs,
)
from squidiff.legacy.flags import Say, whole
from squidiff.train.run import METRICS, Record, read_records


def train(
    values: Mapping[str, Any],
    config: Config,
    say: Say,
    *,
    device: str = "auto",
    on_record: Callable[[Record], None] | None = None,
) -> tuple[Squidiff, Path]:
    """Trains as upstream does; returns the model and the folder of its files. Raises InputError on bad input."""
    data, logs = Path(values["data_path"]), Path(values["logger_path"])
    folder = Path(values["resume_checkpoint"] or logs)
    require_writable(logs / LOG)
    require_writable(folder / LOSS_PLOT)
    has_drugs = values["use_drug_structure"]
    columns = (GROUP, SMILES, DOSE) if has_drugs else (GROUP,)
    cells = read_upstream_cells(data, values["gene_size"], columns)
    source_rows = None
    if has_drugs:
        if not values["control_data_path"]:
            raise InputError("--use_drug_structure True needs --control_data_path, the control cells paired by row")
        require_drugs(cells.obs, data)
        cells, source_rows = _paired(cells, read_paired_controls(Path(values["control_data_path"]), cells, data))
    elif values["control_data_path"]:
        say("--control_data_path has no use without --use_drug_structure True: it is ignored")
    if survey(as_matrix(cells)).looks_like_counts:
        say("X holds raw counts and is trained on as it is, as in upstream: log-normalised cells are better")
    model = Squidiff(DRUG_SCHEMA if has_drugs else Schema(), config, device)
    resume = (folder / "config.json").exists()
    earlier = read_records(folder / METRICS) if resume else []
    log = UpstreamLog(logs, config, whole("log_interval", values["log_interval"]), earlier)

    def record(new: Record) -> None:
        log.add(new)
        if on_record is not None:
            on_record(new)

    if not resume and (folder / LOSS_PLOT).exists():
        raise InputError(f"{folder / LOSS_PLOT} is there already, of another training: name another folder")
    if not resume and (logs / LOG).exists():
        say(f"{logs / LOG} and {PROGRESS} are of another training and are replaced, as in upstream")
    say(f"{'going on with the run in' if resume else 'training into'} {folder}")
    model.fit(
        cells,
        out=folder,
        resume=resume,
        on_record=record,
        as_given=True,
        source_rows=source_rows,
        beside_others=True,
    )
    return model, folder


def _paired(treated: ad.AnnData, controls: ad.AnnData) -> tuple[ad.AnnData, np.ndarray]:
    """Treated cells and then their controls in one table, and each treated cell's row of its control (-1: none)."""
    n = treated.n_obs
    obs = pd.DataFrame(
        {
            SMILES: [*as_text(treated.obs[SMILES]), *[""] * n],
            DOSE: [*treated.obs[DOSE].astype(float), *[0.0] * n],
        },
        index=[*(f"treated {name}" for name in treated.obs_names), *(f"control {i}" for i in range(n))],
    )
    cells = np.concatenate([dense(treated), dense(controls)])
    rows = np.concatenate([np.arange(n, 2 * n), np.full(n, -1)])
    return ad.AnnData(cells, obs=obs, var=treated.var[[]].copy()), rows


PROGRESS, LOG, LOSS_PLOT = "progress.csv", "log.txt", "loss_plot.pdf"
COLUMNS = (
    *("step", "samples"),
    *(f"{what}{part}" for what in ("loss", "mse") for part in ("", "_q0", "_q1", "_q2", "_q3")),
    "grad_norm",
)
"""Of progress.csv: upstream's, but for its param_norm. Its loss is a mean squared error and has both names."""


class UpstreamLog:
    """log.txt and progress.csv, with upstream's names of what is logged: a row for each interval of steps."""

    def __init__(self, folder: Path, config: Config, interval: int, earlier: Sequence[Record]) -> None:
        self.folder, self.config, self.interval = folder, config, interval
        self.earlier: Sequence[Record] | None = earlier
        self.window: list[Record] = []

    def add(self, record: Record) -> None:
        """Appends a row when an interval is full, or training ends; before the first, those of before a resumption."""
        if self.earlier is not None:
            kept = [row for r in self.earlier if r.step < record.step and (row := self._row_if_full(r))]
            self.earlier = None
            header = ",".join(COLUMNS) + "\n"
            for name, text in ((PROGRESS, header + _as_csv(kept)), (LOG, _as_text(kept))):
                write_atomically(self.folder / name, functools.partial(Path.write_text, data=text, encoding="utf-8"))
        row = self._row_if_full(record)
        if row is not None:
            for name, text in ((PROGRESS, _as_csv([row])), (LOG, _as_text([row]))):
                with saying_where(self.folder / name), (self.folder / name).open("a", encoding="utf-8") as file:
                    file.write(text)

    def _row_if_full(self, record: Record) -> dict[str, float] | None:
        self.window.append(record)
        if record.step % self.interval and record.step != self.config.n_train_steps:
            return None
        row, self.window = self._row(self.window), []
        return row

    def _row(self, window: Sequence[Record]) -> dict[str, float]:
        """Means over the records of an interval."""
        loss = [_mean(window, field) for field in ("loss", "loss_q1", "loss_q2", "loss_q3", "loss_q4")]
        n = window[-1].step
        values = (n, n * self.config.batch_size, *loss, *loss, _mean(window, "gradient_norm"))
        return dict(zip(COLUMNS, values, strict=True))


def _as_csv(rows: Sequence[Mapping[str, float]]) -> str:
    return "".join(",".join(map(str, row.values())) + "\n" for row in rows)


def _as_text(rows: Sequence[Mapping[str, float]]) -> str:
    return "".join("".join(f"| {n:<10} | {v:<10.4g} |\n" for n, v in row.items()) + "\n" for row in rows)


def _mean(window: Sequence[Record], field: str) -> float:
    values = [value for record in window if (value := getattr(record, field)) is not None]
    return float(np.mean(values)) if values else float("nan")
