"""squidiff benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.options import Device
from squidiff.cli.show import say, show_benchmark


def benchmark(
    file: Annotated[Path, Parameter(help="a TOML file of tasks, methods and seeds")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the folder of all that is made; what it holds already is not made again")],
    data: Annotated[Path | None, Parameter(help="the folder of the data files, if not that of the TOML file")] = None,
    device: Device = "auto",
) -> None:
    """Run models and baselines on several tasks and seeds, and write one table; goes on where it stopped."""
    from squidiff.workflows.benchmark import TABLE_CSV, read_benchmark, run_benchmark

    table = run_benchmark(read_benchmark(file), data or file.parent, out, device=device, say=say)
    show_benchmark(table)
    say(f"all methods and metrics: {out / TABLE_CSV}")
