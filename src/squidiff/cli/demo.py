"""squidiff demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from squidiff.cli.options import Device
from squidiff.cli.show import progress, say, show_scores


def demo(
    *,
    real: Annotated[bool, Parameter(help="real cells that come with scanpy, instead of simulated ones")] = False,
    out: Annotated[Path, Parameter(help="the folder to write to; an earlier demo in it is replaced")] = Path(
        "results/demo"
    ),
    seed: Annotated[int, Parameter(help="seed of data, training and sampling")] = 0,
    device: Device = "auto",
) -> None:
    """See the whole chain at work in three minutes: check, prepare, train, predict, evaluate, report."""
    from squidiff.workflows.demo import run_demo

    result = run_demo(out, real=real, seed=seed, device=device, say=say, progress=progress)
    show_scores(result.scores)
    for path in result.files:
        say(str(path))
