"""One page that a biologist can read: verdict, numbers, pictures and how to repeat them, in a single file.

Owns: the page and how numbers are written on it. Must not know: how the numbers came about. The page needs no network
and no other file; every text that comes from data is escaped by the template.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd

from squidiff.files import write_atomically
from squidiff.report.numbers import shown

COLUMNS = ("condition", "metric", "method", "value", "low", "high", "floor", "ceiling", "verdict")
NUMBERS = ("value", "low", "high", "floor", "ceiling")


def write_page(
    folder: Path,
    *,
    title: str,
    summary: Sequence[tuple[str, str]],
    metrics: pd.DataFrame,
    figures: Sequence[tuple[Path, str]],
    commands: Sequence[str],
    verdict: str,
    files: Sequence[str],
) -> Path:
    """Writes `folder/index.html`, whole or not at all, and returns its path.

    summary: (name, value) facts. metrics: a row for each condition, metric and method, with the columns of COLUMNS
    (numbers, or texts that are shown as they are; NaN as an en dash); rows whose method is "model" stand out.
    figures: (PNG file, caption), embedded. commands: shell lines that repeat the run. files: names of what else lies in
    the folder. Raises KeyError for a missing column, OSError for a picture that cannot be read.
    """
    page = _template().render(
        title=title,
        verdict=verdict,
        summary=summary,
        columns=[(name, name in NUMBERS) for name in COLUMNS],
        rows=[
            {"model": row["method"] == "model", "cells": [(shown(row[name]), name in NUMBERS) for name in COLUMNS]}
            for row in metrics[list(COLUMNS)].to_dict("records")
        ],
        figures=[(base64.b64encode(path.read_bytes()).decode("ascii"), caption) for path, caption in figures],
        commands=commands,
        files=files,
    )
    path = folder / "index.html"
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("squidiff", "report")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
