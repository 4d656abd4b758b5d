"""One page that a biologist can read, in a single file: text, tables that sort and filter, pictures that enlarge.

Owns: how a page looks and behaves. Must not know: what the page is about. The page needs no network and no other file;
every text that comes from data is escaped by the template, and a policy in the page lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
import pandas as pd

from squidiff.config import InputError
from squidiff.files import write_atomically
from squidiff.report.numbers import shown

MANY_ROWS = 12
"""From which on a table has a field to filter it."""


@dataclass(frozen=True)
class Picture:
    """A PNG file's bytes, what it shows in one sentence, and what to say of it where it cannot be seen."""

    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """What an img element takes."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the number to sort by where it is one."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Table:
    """A table whose rows can be sorted and filtered; some stand out, and a long one may be folded."""

    caption: str
    columns: tuple[tuple[str, bool], ...]
    """Name, and whether it holds numbers."""
    rows: tuple[tuple[bool, tuple[Cell, ...]], ...]
    """Whether it stands out, and its cells."""
    folded: bool = False

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        caption: str,
        *,
        marked: Iterable[bool] | None = None,
        folded: bool = False,
        exact: Container[str] = (),
    ) -> Table:
        """Counts whole, numbers to three digits but those of `exact` columns, what is missing as a dash."""
        numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame]
        stands_out = [False] * len(frame) if marked is None else list(marked)
        rows = tuple(
            (bool(mark), tuple(_cell(value, name in exact) for name, value in zip(frame, row, strict=True)))
            for mark, row in zip(stands_out, frame.itertuples(index=False, name=None), strict=True)
        )
        return cls(caption, tuple(zip(map(str, frame.columns), numeric, strict=True)), rows, folded)


@dataclass(frozen=True)
class Section:
    """A part of the page under its own heading; what is empty is left out."""

    title: str
    text: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    """Name and value."""
    items: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    commands: tuple[str, ...] = ()


_MARKS = (
    b'<meta name="generator" content="squidiff">',
    b"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-",
)
"""In the head of a page: of ours, and of ours before it said so."""


def require_own(path: Path) -> None:
    """Raises InputError when there is a file that is no page of ours, and so not to be replaced."""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(1000)
        if not any(mark in head for mark in _MARKS):
            raise InputError(
                f"{path} is there already and no page of squidiff's: name another file by --out, or move it"
            )


def write_page(path: Path, *, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """Writes the page, whole or not at all, and returns its path. `lead` is what to know first, a sentence a line."""
    script = _resource("page.js")
    policy = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    page = _template().render(
        title=title,
        lead=lead,
        sections=sections,
        many=MANY_ROWS,
        style=markupsafe.Markup(_resource("page.css")),  # ours, not data
        script=markupsafe.Markup(script),
        policy=policy,
    )
    write_atomically(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


def _cell(value: Any, is_exact: bool) -> Cell:
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and not pd.isna(value)
    text = f"{value:.15g}" if is_number and is_exact else shown(value)
    return Cell(text, float(value) if is_number else None)


def _resource(name: str) -> str:
    return (importlib.resources.files("squidiff") / "report" / name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("squidiff", "report")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.j2")
