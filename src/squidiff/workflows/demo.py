"""The demo: the whole chain in one call, on simulated cells or on real ones that come with scanpy."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import pandas as pd

from squidiff.config import Config, InputError, Preparation, Sampling, Schema, as_flags, check_seed
from squidiff.data.check import check
from squidiff.data.datasets import load_pbmc68k
from squidiff.data.preprocess import prepare
from squidiff.data.simulate import simulate_perturbation
from squidiff.data.table import write_cells
from squidiff.estimator import RUN_FILES, Squidiff
from squidiff.evaluate.scoring import MODEL
from squidiff.files import write_atomically
from squidiff.report.plots import save, training_loss
from squidiff.report.tables import training_metrics
from squidiff.workflows.report import PAGE, write_report
from squidiff.workflows.scores import METRICS_CSV, METRICS_JSON, SAMPLE_QUALITY, write_scores

N_TRAIN_STEPS = 500
MARK = ".squidiff-demo"
"""A folder that holds this file is an earlier demo, and may be replaced."""
DATA, TRAIN, TRUTH, QUERIES = "data.h5ad", "train.h5ad", "held_out.h5ad", "queries.csv"
RUN, PREDICTED, LOSS = "run", "predicted.h5ad", "training_loss.png"
OUTPUTS = {MARK, DATA, TRAIN, TRUTH, QUERIES, PREDICTED, LOSS, PAGE, METRICS_CSV, METRICS_JSON, SAMPLE_QUALITY} | {
    f"{RUN}/{name}" for name in RUN_FILES
}
MIN_CELLS = 30
"""Of a real cell type that is generated."""

Progress = Callable[[str, int], AbstractContextManager[Callable[..., None]]]
"""Makes a progress bar from a label and a total; inside, it is advanced to a count, with a note."""


@dataclass(frozen=True)
class DemoTask:
    """A data set and what is asked of it."""

    data: ad.AnnData
    schema: Schema
    preparation: Preparation
    question: str


@dataclass(frozen=True)
class DemoResult:
    """What the demo left."""

    scores: pd.DataFrame
    files: tuple[Path, ...]


def simulated_task(seed: int) -> DemoTask:
    """Treated cells of a cell type whose treated cells are held out, in simulated counts with a known response."""
    schema = Schema(condition_key="condition", control="control", context_keys=("cell_type",))
    data = simulate_perturbation(seed=seed)
    held = str(data.obs["cell_type"].iloc[0])
    preparation = Preparation(normalize=True, hold_out=(f"condition=drug,cell_type={held}",), seed=seed)
    return DemoTask(
        data, schema, preparation, f"How do cells of {held} respond to a drug, seen only in other cell types?"
    )


def real_task(seed: int) -> DemoTask:
    """Blood cells, generated per type; a third of each type is held out."""
    data = load_pbmc68k()
    counts = data.obs["bulk_labels"].value_counts()
    kept = data.obs["bulk_labels"].isin(counts[counts >= MIN_CELLS].index)
    preparation = Preparation(test_fraction=1 / 3, seed=seed)
    question = f"Can blood cells of {int((counts >= MIN_CELLS).sum())} types be generated that look like unseen ones?"
    return DemoTask(data[kept].copy(), Schema(context_keys=("bulk_labels",)), preparation, question)


def run_demo(
    out: Path,
    *,
    real: bool = False,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None],
    progress: Progress,
) -> DemoResult:
    """Checks, prepares, trains, predicts, evaluates and reports; an earlier demo in `out` is replaced.

    Raises InputError when `out` holds something else.
    """
    check_seed(seed)
    _make_room(out)
    task = real_task(seed) if real else simulated_task(seed)
    say(task.question)
    write_cells(out / DATA, task.data)

    report = check(task.data, task.schema, normalize=task.preparation.normalize)
    report.raise_errors()
    say(f"checked {report.n_cells:,} cells, {report.n_genes:,} genes: {_findings(len(report.findings))}")
    prepared = prepare(task.data, task.schema, task.preparation)
    assert prepared.test is not None  # both tasks hold cells out
    say("; ".join(prepared.report[1:]))
    train, truth = out / TRAIN, out / TRUTH
    write_cells(train, prepared.train)
    write_cells(truth, prepared.test)

    config = Config(n_train_steps=N_TRAIN_STEPS, seed=seed)
    model = Squidiff(task.schema, config, device)
    with progress("training", N_TRAIN_STEPS) as advance:
        model.fit(train, out=out / RUN, on_record=lambda record: advance(record.step, record.live))
    say(f"trained {model.history[-1].step} steps on {model.device} in {model.provenance['seconds']:g} s")
    queries = prepared.test.obs[list(task.schema.columns)].value_counts().index.to_frame(index=False)
    write_atomically(out / QUERIES, lambda temporary: queries.to_csv(temporary, index=False))
    with progress("predicting", len(queries)) as advance:
        predicted = model.predict(out / QUERIES, train, Sampling(seed=seed), on_query=lambda i, n: advance(i))
    write_cells(out / PREDICTED, predicted)
    say(f"predicted {predicted.n_obs:,} cells of {len(queries)} population{'s' if len(queries) > 1 else ''}")

    save(training_loss(training_metrics(out / RUN)), out / LOSS)
    with progress("evaluating", len(queries)) as advance:
        scores = write_scores(
            {MODEL: out / PREDICTED}, truth, train, task.schema, out, seed=seed, on_population=lambda i, n: advance(i)
        )
    page = _write_page(out, task, real, seed)
    names = (RUN, PREDICTED, METRICS_CSV, LOSS, SAMPLE_QUALITY)
    return DemoResult(scores, (*(out / name for name in names), page))


def _make_room(out: Path) -> None:
    """Makes the folder; deletes an earlier demo in it, and never anything that a demo did not write."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: choose another folder with --out")
    there = sorted(path for path in out.rglob("*") if not path.is_dir() or path.is_symlink()) if out.is_dir() else []
    if there and not (out / MARK).is_file():
        raise InputError(f"{out} is not empty and holds no earlier demo: choose another folder with --out")
    foreign = [path for path in there if path.relative_to(out).as_posix() not in OUTPUTS]
    if foreign:
        raise InputError(
            f"{out} holds an earlier demo and {str(foreign[0].relative_to(out))!r}, which is none of its files: move "
            "that first"
        )
    for path in there:
        path.unlink()
    write_atomically(out / MARK, lambda temporary: temporary.touch())


def _findings(n: int) -> str:
    return "nothing to complain of" if n == 0 else f"{n} warning{'s' if n > 1 else ''}"


def _write_page(out: Path, task: DemoTask, real: bool, seed: int) -> Path:
    names = as_flags(task.schema)
    prepare_flags = " ".join(
        [f"--hold-out {shlex.quote(rule)}" for rule in task.preparation.hold_out]
        + ([f"--test-fraction {task.preparation.test_fraction!r}"] if task.preparation.test_fraction else [])
        + (["--normalize"] if task.preparation.normalize else [])
    )
    commands = [
        f"squidiff demo{' --real' if real else ''} --seed {seed}",
        "# or, step by step, beside what is here:",
        f"squidiff prepare {DATA} {names} {prepare_flags} --seed {seed} --out again_train.h5ad "
        "--held-out again_truth.h5ad",
        f"squidiff train again_train.h5ad {names} --n-train-steps {N_TRAIN_STEPS} --seed {seed} --out again_run",
        f"squidiff predict again_run --queries {QUERIES} --source again_train.h5ad --seed {seed} --out again.h5ad",
        f"squidiff evaluate again.h5ad again_truth.h5ad --train again_train.h5ad {names} --seed {seed} --out again",
    ]
    title = f"Squidiff demo: {'real cells' if real else 'simulated perturbation'}"
    return write_report(out, title=title, question=task.question, commands=commands)
