"""squidiff datasets list, squidiff datasets get."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from squidiff.cli.show import progress, say, show_table
from squidiff.config import InputError
from squidiff.files import require_writable, write_atomically

datasets = App(name="datasets", help="List data sets by name, and get their files.")


@datasets.command(name="list")
def show() -> None:
    """List the data sets that can be had by name."""
    from squidiff.data.downloads import DATASETS, describe

    show_table(("name", "what", "size", "source"), [describe(name) for name in DATASETS])


@datasets.command
def get(
    name: Annotated[str, Parameter(help="of a data set, as `squidiff datasets list` shows it")],
    /,
    *,
    out: Annotated[Path | None, Parameter(help="the .h5ad file to copy it to")] = None,
) -> None:
    """Download a data set once, check its hash, and say where it is. A broken download goes on where it stopped."""
    from squidiff.data.downloads import get_dataset

    if out is not None:
        require_writable(out)
        if out.exists():
            raise InputError(f"{out} is there already: name another file, or move it")
    with progress(name) as advance:
        path = get_dataset(name, on_bytes=lambda done, total: advance(done, total=total or None))
    if out is not None:
        write_atomically(out, lambda temporary: shutil.copyfile(path, temporary))
    say(str(out or path))
