"""What is known of one experiment of a lab note, as a file beside its results holds it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from squidiff.config import InputError
from squidiff.files import read_json
from squidiff.report.note_text import head, sections

RECORD = "metrics.json"
DONE, FAILED = "done", "failed"


@dataclass
class Record:
    """What is known of an experiment; metrics.json holds it, and the note is made of it alone."""

    number: int
    said: dict[str, Any]
    """What its author wrote in the file."""
    status: str = DONE
    failure: str = ""
    date: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, str]] = field(default_factory=list)
    """kind, command and parameters of each step of the methods."""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    """name, value, target and whether it is met: true, false, or null where it was not measured."""
    verdicts: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    observations: dict[str, Any] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What could not be shown or measured, and why."""
    files: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)


def read_record(path: Path) -> Record:
    """Raises InputError when the file is no record of an experiment."""
    said = read_json(path)
    try:
        record = Record(**said)
        for value in (record.number, *(row["value"] for row in record.metrics)):
            number(value)
        for tell in (sections, lambda records: head(records, "")):  # what the note could not tell is no record
            tell([dataclasses.asdict(record)])
        return record
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} is no record of an experiment: it was changed by hand; delete its folder") from error


def number(value: Any) -> float | None:
    """None for a value that is not known, or not finite."""
    return None if value is None or not np.isfinite(value) else float(value)
