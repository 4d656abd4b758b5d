"""Upstream's training script: its flags, its files and its log, over our training."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import Config, InputError, Schema
from squidiff.data.table import as_matrix, looks_like_counts
from squidiff.estimator import Squidiff
from squidiff.files import write_atomically
from squidiff.legacy.cells import DOSE, GROUP, SMILES, dense, drugs_of, read_paired_controls, read_upstream_cells
from squidiff.legacy.convert import DRUG_SCHEMA
from squidiff.legacy.flags import Say, whole
from squidiff.train.run import METRICS, STATE, Record, read_records


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
    has_drugs = values["use_drug_structure"]
    columns = (GROUP, SMILES, DOSE) if has_drugs else (GROUP,)
    cells = read_upstream_cells(data, values["gene_size"], columns)
    source_rows = None
    if has_drugs:
        if not values["control_data_path"]:
            raise InputError("--use_drug_structure True needs --control_data_path, the control cells paired by row")
        drugs_of(cells.obs, 1024, data)  # names the row of what cannot be read
        controls = read_paired_controls(Path(values["control_data_path"]), values["gene_size"], cells.n_obs, data)
        cells, source_rows = _paired(cells, controls)
    if looks_like_counts(as_matrix(cells)):
        say("X holds raw counts and is trained on as it is, as in upstream: log-normalised cells are better")
    model = Squidiff(DRUG_SCHEMA if has_drugs else Schema(), config, device)
    earlier = read_records(folder / METRICS)
    log = UpstreamLog(logs, config, whole("log_interval", values["log_interval"]), earlier)

    def record(new: Record) -> None:
        log.add(new)
        if on_record is not None:
            on_record(new)

    resume = (folder / STATE).exists()
    say(f"{'going on with the run in' if resume else 'training into'} {folder}")
    model.fit(
        cells,
        out=folder,
        resume=resume or (folder / "config.json").exists(),
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
            SMILES: [*treated.obs[SMILES].astype(str), *[""] * n],
            DOSE: [*treated.obs[DOSE].astype(float), *[0.0] * n],
        },
        index=[*(f"treated {name}" for name in treated.obs_names), *(f"control {i}" for i in range(n))],
    )
    cells = np.concatenate([dense(treated), dense(controls)])
    rows = np.concatenate([np.arange(n, 2 * n), np.full(n, -1)])
    return ad.AnnData(cells, obs=obs, var=treated.var[[]].copy()), rows


class UpstreamLog:
    """log.txt and progress.csv, with upstream's names of what is logged: a row for each interval of steps."""

    def __init__(self, folder: Path, config: Config, interval: int, earlier: Sequence[Record]) -> None:
        self.folder, self.config, self.interval = folder, config, interval
        self.records = list(earlier)

    def add(self, record: Record) -> None:
        """Both files are written anew when an interval is full, or training ends."""
        self.records = [*(r for r in self.records if r.step < record.step), record]
        if record.step % self.interval and record.step != self.config.n_train_steps:
            return
        rows = [self._row(list(window)) for _, window in itertools.groupby(self.records, self._interval_of)]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = "\n".join("".join(f"| {name:<10} | {value:<10.4g} |\n" for name, value in row.items()) for row in rows)
        write_atomically(self.folder / "progress.csv", lambda path: path.write_text(table.getvalue(), encoding="utf-8"))
        write_atomically(self.folder / "log.txt", lambda path: path.write_text(text, encoding="utf-8"))

    def _interval_of(self, record: Record) -> int:
        return (record.step - 1) // self.interval

    def _row(self, window: Sequence[Record]) -> dict[str, float]:
        """Means over the records of an interval."""
        fields = {"": "loss"} | {f"_q{q}": f"loss_q{q + 1}" for q in range(4)}
        row: dict[str, float] = {"step": window[-1].step, "samples": window[-1].step * self.config.batch_size}
        for what in ("loss", "mse"):
            row |= {f"{what}{name}": _mean(window, field) for name, field in fields.items()}
        return row | {"grad_norm": _mean(window, "gradient_norm")}


def _mean(window: Sequence[Record], field: str) -> float:
    values = [value for record in window if (value := getattr(record, field)) is not None]
    return float(np.mean(values)) if values else float("nan")
