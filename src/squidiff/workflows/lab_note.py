"""An experiment and the note that it belongs to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from squidiff.config import InputError
from squidiff.files import require_writable, write_json
from squidiff.report.note import write_note
from squidiff.report.note_text import beside, head, sections
from squidiff.workflows.demo import Progress
from squidiff.workflows.experiment import Say, folder_of, run_experiment, silently, write_figures
from squidiff.workflows.experiment_file import Experiment
from squidiff.workflows.experiment_record import RECORD, Record, read_record


def run_into_note(
    experiment: Experiment,
    file: Path,
    out: Path,
    *,
    device: str = "auto",
    say: Say = lambda text: None,
    progress: Progress = silently,
) -> tuple[Record, Path]:
    """Runs the experiment, draws its figures and its page, and writes it into its note; returns record and note.

    An experiment that failed gets a page and a section too, which say so. Raises InputError as `run_experiment`, and
    when the note cannot be written.
    """
    folder = folder_of(experiment, out)
    note = folder / f"{folder.name}.md"
    require_writable(note)
    record = run_experiment(experiment, file, folder, device=device, say=say, progress=progress)
    here = folder / experiment.folder
    write_figures(here, experiment, file, record)
    write_json(here / RECORD, dataclasses.asdict(record))
    records = _records(folder, say)
    last = [record for record in records if record["number"] != experiment.number] + [dataclasses.asdict(record)]
    write_note(note, sections(last), head=head(records, folder.name), beside=beside(last))
    return record, note


def _records(folder: Path, say: Say) -> list[dict[str, Any]]:
    """Of every experiment of the note that has one; one that cannot be read is left out, and said."""
    records = []
    for path in sorted(folder.glob(f"exp[0-9][0-9]/{RECORD}")):
        try:
            records.append(dataclasses.asdict(read_record(path)))
        except InputError as error:
            say(f"left out of the summary: {error}")
    return records
