"""How the command line speaks: tables, progress bars, one-sentence errors."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from squidiff.config import InputError, Schema, as_flags

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from squidiff.data.finding import CheckReport


OTHER_ENDINGS = {".csv", ".h5ad", ".json", ".loom", ".parquet", ".png", ".tsv", ".xls", ".xlsx", ".zarr"}
MISSING = "\N{EN DASH}"


class _Heard:
    """A standard stream that lets the work go on when nobody hears it: a closed pipe, a full disk, no stream at all."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="replace")  # a terminal that cannot show a dash shows '?'

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            return self._give_up(len(text))

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self, n: int = 0) -> int:
        """What is still in the buffer, and what comes, goes nowhere (as Python's documentation of SIGPIPE advises)."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return n

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def is_main_process() -> bool:
    """Whether this process is the one that speaks, of several that work together."""
    torch = sys.modules.get("torch")  # before it is loaded there are no others
    there = torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_rank() == 0


@contextmanager
def heard_or_not() -> Iterator[None]:
    """Inside, what is said never stops the work."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, error = (cast("TextIO", _Heard(stream or nowhere)) for stream in (sys.stdout, sys.stderr))
        with redirect_stdout(out), redirect_stderr(error):
            yield


def _visible(text: str) -> str:
    """The text with an escape for each character that data may tell a terminal something by, but for line ends.

    These are the control and the format characters of Unicode, such as those that turn the direction of writing.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf") and c != "\n" else c
        for c in text
    )


def say(text: str) -> None:
    """A line of output; the text is shown as it is, whatever brackets the data put into it."""
    _console().print(_visible(text), markup=False)


def say_where(data: Path, on_disk: bool | None) -> None:
    """Says so where cells stay on disk. Raises InputError when they cannot."""
    from squidiff.data.readers import stays_on_disk

    if stays_on_disk(data, on_disk):
        say(f"the cells of {data} stay on disk and are read as they are needed")


def say_unused(schema: Schema, *files: Path | None) -> None:
    """Says so where options name fewer columns than a file remembers: they replace all of these."""
    from squidiff.data.table import remembered_schema

    for file in files if schema != Schema() else ():
        known = None if file is None else remembered_schema(file)
        if known is not None and not set(known.columns) <= set(schema.columns):
            say(f"{file} remembers {as_flags(known)}: the options that are given replace all of it")
            return


def say_far(found: Iterable[str]) -> None:
    """In what predictions lie far from training, if in anything: the first of several reasons."""
    reasons = sorted(set(filter(None, found)))
    if reasons:
        more = f" (and {len(reasons) - 1} more in the column far)" if len(reasons) > 1 else ""
        say(f"far from training, so trust it less: {reasons[0]}{more}")


def say_warnings(report: CheckReport) -> None:
    """What the doctor warns of, a line each; `squidiff check` says what to do."""
    for finding in report.findings:
        if finding.severity == "warning":
            say(f"warning: {finding}")


def say_error(text: str) -> None:
    """One sentence on standard error, of whichever process."""
    _console(stderr=True, of_all=True).print(f"squidiff: {_visible(text)}", markup=False)


def refuse_overwriting(*files: Path | None) -> None:
    """Raises InputError when two of the files that a command reads and writes are one."""
    seen: set[Path] = set()
    for file in files:
        if file is None:
            continue
        if file.resolve() in seen:
            raise InputError(f"{file} is named twice, as input or output: write to another file")
        seen.add(file.resolve())


def require_ending(out: Path, ending: str) -> None:
    """Raises InputError when a file has the ending of another format than the one that is written."""
    if out.suffix.lower() in OTHER_ENDINGS - {ending}:
        raise InputError(f"{out} ends in {out.suffix!r}, but it will be written as {ending!r}: name it so")


def refuse_inside(run: Path | None, out: Path) -> None:
    """Raises InputError when a file is to be written into the folder of a run that is read."""
    if run is not None and run.resolve() in out.resolve().parents:
        raise InputError(f"{out} lies in the run folder {run}: write to another place")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table; numbers are given three decimals and set to the right, NaN is a dash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_visible(title)) if title else None, title_justify="left")
    numeric = [all(isinstance(row[i], (int, float)) for row in rows) for i in range(len(columns))]
    for name, is_number in zip(columns, numeric, strict=True):
        table.add_column(Text(_visible(name)), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_visible(_cell(value))) for value in row))
    _console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return _number(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; yields `advance(done, note="", total=None)`.

    The total may be given later. Without a terminal only the bar's end is shown.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bar = Progress(*columns, console=_console(stderr=True))
    task = bar.add_task(_visible(label), total=total, note="")

    def advance(done: int, note: object = "", total: int | None = None) -> None:
        bar.update(task, completed=done, note=_visible(str(note)), total=total)

    if bar.console.is_terminal:
        with bar:
            yield advance
    else:
        yield advance
        bar.console.print(bar.get_renderable())


MAX_ROWS = 40
"""Of scores that are shown, the worst; all are in the file."""


def show_scores(scores: pd.DataFrame) -> None:
    """The model beside floor and ceiling, the worst verdict first; the headline metrics, of single populations two."""
    from squidiff.evaluate.scoring import MODEL
    from squidiff.evaluate.verdict import severity

    _say_leaks(scores)
    model = _headline(scores[scores["method"] == MODEL])
    rows = [
        (r.condition, r.metric.replace("_", " "), r.value, _interval(r.low, r.high), r.floor, r.ceiling, r.verdict)
        for r in sorted(model.itertuples(), key=lambda r: severity(r.verdict))
    ]
    columns = ("population", "metric", "model", "95 % interval", "best baseline", "ceiling", "verdict")
    _show_first(columns, rows)


def show_comparison(scores: pd.DataFrame) -> None:
    """Predictions side by side, each with its verdict, in the order of the file."""
    from squidiff.evaluate.scoring import MODELS

    _say_leaks(scores)
    models = scores.attrs[MODELS]
    shown = _headline(scores[scores["method"].isin(models)])
    rows = []
    for (condition, metric), group in shown.groupby(["condition", "metric"], sort=False):
        of = group.set_index("method")
        first = of.iloc[0]
        each = [f"{_cell(float(of['value'][m]))} {of['verdict'][m]}".strip() for m in models]
        rows.append((condition, metric.replace("_", " "), *each, first["floor"], first["ceiling"]))
    _show_first(("population", "metric", *models, "best baseline", "ceiling"), rows)


def show_benchmark(table: pd.DataFrame) -> None:
    """Each task's methods on the headline metrics: the mean over seeds, lowest to highest, and their verdicts."""
    from squidiff.evaluate.metrics import HEADLINE
    from squidiff.evaluate.scoring import MODELS, OVERALL

    _say_leaks(table)
    whole = table.groupby(["task", "seed"])["condition"].transform(
        lambda c: OVERALL if (c == OVERALL).any() else c.iloc[0]
    )
    shown = table[table["method"].isin(table.attrs[MODELS]) & (table["condition"] == whole)]
    shown = shown[shown["metric"].isin(HEADLINE)]
    rows, several = [], table["seed"].nunique() > 1
    for (task, metric, method), group in shown.groupby(["task", "metric", "method"], sort=False):
        values, verdicts = group["value"].astype(float), group["verdict"].value_counts()
        said = "; ".join(v if len(group) == 1 else f"{n} of {len(group)}: {v}" for v, n in verdicts.items() if v)
        span = [_interval(values.min(), values.max())] if several else []
        numbers = (values.mean(skipna=False), *span, group["floor"].mean(), group["ceiling"].mean())
        rows.append((task, metric.replace("_", " "), method, *numbers, said))
    spans = ["lowest to highest"] if several else []
    show_table(("task", "metric", "method", "mean", *spans, "best baseline", "ceiling", "verdict"), rows)


def _say_leaks(scores: pd.DataFrame) -> None:
    from squidiff.evaluate.scoring import LEAKS

    for sentence in scores.attrs[LEAKS]:
        say(f"LEAK: {sentence}")


def _headline(scores: pd.DataFrame) -> pd.DataFrame:
    """The headline metrics: all of one population or of the mean over several, of which each has two."""
    from squidiff.evaluate.metrics import HEADLINE
    from squidiff.evaluate.scoring import OVERALL

    chosen = scores[scores["metric"].isin(HEADLINE)]
    two = {"energy_distance", "delta_pearson" if "delta_pearson" in set(chosen["metric"]) else "pearson"}
    is_overall = chosen["condition"] == OVERALL
    return chosen if not is_overall.any() else chosen[is_overall | chosen["metric"].isin(two)]


def _show_first(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    show_table(columns, rows[:MAX_ROWS])
    if len(rows) > MAX_ROWS:
        say(f"and {len(rows) - MAX_ROWS} more rows")


def _interval(low: float, high: float) -> str:
    return MISSING if low != low else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    """Three decimals or, of a small number, two digits."""
    if value != value:
        return MISSING
    return f"{value:.2g}" if 0 < abs(value) < 0.01 else f"{value:,.3f}"


def _console(stderr: bool = False, of_all: bool = False) -> Console:
    """That of the process that speaks or, at need, `of_all`."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, soft_wrap=True, quiet=not (of_all or is_main_process()))
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = 120
    return console
