"""squidiff report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.show import say
from squidiff.config import InputError
from squidiff.files import require_writable


def report(
    folder: Annotated[Path, Parameter(help="a run folder, or one that holds runs, scores or a benchmark")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="the page to write (default: index.html in the folder)")] = None,
    title: Annotated[str | None, Parameter(help="its title")] = None,
    question: Annotated[str | None, Parameter(help="what was asked, in a sentence")] = None,
) -> None:
    """Write one self-contained HTML page about a run, or about all that a folder holds."""
    from squidiff.workflows.report import PAGE, write_report

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out} ends in {out.suffix!r}, but it will be written as a page: name it .html")
    require_writable(out or folder / PAGE)
    say(f"{write_report(folder, out, title=title, question=question)}")
