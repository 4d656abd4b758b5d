"""The commands, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cyclopts import App, CycloptsError, Parameter

from squidiff.cli import (
    benchmark,
    convert,
    data,
    datasets,
    demo,
    evaluate,
    experiment,
    options,
    plot,
    predict,
    report,
    tasks,
    train,
    tune,
)
from squidiff.cli.show import heard_or_not, is_main_process, say_error
from squidiff.config import InputError, Stopped, flag

EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128
"""Added to the number of the signal that ended the work, as a shell does."""
GOES_ON = "training goes on with `train --resume`, a search, an experiment or a benchmark with the same command"
LONG = ("train", "tune", "experiment", "benchmark", "demo")
"""Commands that train; what the others write is whole or not there."""
THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}
"""How OpenMP's threads wait for each other, read when torch is loaded. By themselves they spin for milliseconds, and
where another process holds one of the cores a training step takes ten times as long; asleep at once, they are woken
for every product. GNU's may spin for about 20 microseconds: the time from one operation to the next.
"""


def _version() -> str:
    from importlib.metadata import version

    return f"squidiff {version('squidiff-ng')}"


app = App(
    name="squidiff",
    help="Predict how single cells change under drugs, doses, gene perturbations, combinations and time.",
    version=_version,
    suppress_keyboard_interrupt=False,
    config=[options.take_settings, options.take_preset, options.refuse_fractions],
    default_parameter=Parameter(negative=(), name_transform=lambda name: flag(name).removeprefix("--")),
)
for command in (
    *(demo.demo, data.check, data.prepare, train.train, tune.tune, predict.predict),
    *(tasks.changes, tasks.rank, tasks.interactions, tasks.dose_curve, tasks.trajectory),
    *(evaluate.evaluate, evaluate.compare, evaluate.adopt, benchmark.benchmark),
    *(plot.plot, report.report, experiment.experiment),
    *(convert.convert, convert.export),
):
    app.command(command)
app.command(datasets.datasets)


def main(tokens: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process: 0, 2 for input that cannot be used, 128 and its number after a signal."""
    command = next(iter(sys.argv[1:] if tokens is None else tokens), "")
    again = GOES_ON if command in LONG else "nothing was left half-written: give the command again"
    with ending_with_a_sentence(again):
        app(tokens, exit_on_error=False, print_error=False)


@contextmanager
def ending_with_a_sentence(interrupted: str) -> Iterator[None]:
    """Inside, what cannot be used ends the process with one sentence and code 2, a signal with 128 + its number."""
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    with heard_or_not():
        try:
            yield
        except (InputError, CycloptsError, OSError) as error:
            # the main process says it and ends so: Fabric is not to kill it first for one of the others
            if not is_main_process() and getattr(error, "is_shared", False):
                sys.exit(0)
            say_error(_sentence(error))
            sys.exit(EXIT_BAD_INPUT)
        except Stopped as stopped:
            if not is_main_process():
                sys.exit(0)
            say_error(f"{stopped}; {interrupted}")
            sys.exit(EXIT_SIGNAL + stopped.number)
        except KeyboardInterrupt:
            if is_main_process():
                say_error(f"interrupted; {interrupted}")
            sys.exit(EXIT_SIGNAL + signal.SIGINT)


def _sentence(error: Exception) -> str:
    cause = error.__cause__
    if isinstance(error, CycloptsError) and isinstance(cause, InputError):
        return str(cause)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read or written: {error.strerror}; name another file or folder"
    return " ".join(str(error).split())
