"""squidiff experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.options import Device
from squidiff.cli.show import progress, say, show_table
from squidiff.config import InputError


def experiment(
    file: Annotated[Path, Parameter(help="a TOML file of one experiment: data, settings, targets, language")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the folder of all notes")] = Path("results"),
    device: Device = "auto",
) -> None:
    """Run one experiment of a lab note, and write its section into OUT/DATE_NAME/DATE_NAME.md.

    What the author wrote into the note stays; what is there of the experiment already is not run again.
    """
    from squidiff.report.numbers import shown
    from squidiff.workflows.experiment_file import read_experiment
    from squidiff.workflows.experiment_record import FAILED
    from squidiff.workflows.lab_note import run_into_note

    record, note = run_into_note(read_experiment(file), file, out, device=device, say=say, progress=progress)
    status = {True: "pass", False: "FAIL", None: ""}
    names = [row["name"].replace("_", " ") for row in record.metrics]
    values = [(shown(row["value"]), row["target"] or "", status[row["met"]]) for row in record.metrics]
    rows = [(name, *of) for name, of in zip(names, values, strict=True)]
    show_table(("metric", "value", "target", "status"), rows)
    say(f"note: {note}")
    if record.status == FAILED:
        raise InputError(record.failure)
    if record.missing:
        raise InputError(f"the note lacks a part: {'; '.join(record.missing)}")
