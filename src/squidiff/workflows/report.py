"""The page about a run, or about a folder that holds runs, scores and predictions: read from their files alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from squidiff.config import Config, InputError, Schema, as_flags, settings_from_json
from squidiff.evaluate.metrics import HEADLINE
from squidiff.evaluate.scoring import OVERALL
from squidiff.evaluate.verdict import severity
from squidiff.files import read_json
from squidiff.report.html import Picture, Section, Table, require_own, write_page
from squidiff.report.plots import to_png
from squidiff.report.tables import METRICS_CSV, models_of, read_scores
from squidiff.workflows import pictures

PAGE = "index.html"
METRICS_JSON, BENCHMARK_CSV = "metrics.json", "benchmark.csv"
MAX_RUNS, MAX_ROWS = 6, 1500
SCORE_COLUMNS = ["condition", "metric", "method", "value", "low", "high", "floor", "ceiling", "verdict"]
METHOD = (
    "The mean response of each population is predicted first, by simple predictors that are weighed by leaving training"
    " populations out. A diffusion model, which learned how cells lie around their mean, then generates the cells: it"
    " moves the cells that a prediction starts from to that mean, adds noise part of the way, and removes it again.",
    "Every score stands between a floor, the best of the simple baselines, and a ceiling, what halves of the true cells"
    " score against each other. Intervals are 95 % bootstraps. A verdict says whether the interval of the difference"
    " from every baseline lies above 0 (beats every baseline), holds 0 (ties), or lies below 0 for one (loses to it).",
)
UPSTREAM_METHOD = (
    "Squidiff's own network (He et al., Nature Methods 2025): a diffusion autoencoder, whose encoder gives each cell a"
    " latent, and whose denoiser generates cells from noise and a latent; predictions are arithmetic of latents.",
    METHOD[1],
)


DAMAGED = (InputError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading a file raises that is not what we wrote."""
Part, Source = TypeVar("Part"), TypeVar("Source", bound="Path | _Run | _Scores")


@dataclass
class Account:
    """What the page will say; what could not be shown is noted with the reason."""

    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    not_shown: list[str] = field(default_factory=list)

    def draw(self, where: str, caption: str, draw: Callable[[], Figure]) -> None:
        """Adds a picture, or why there is none."""
        try:
            png = to_png(draw())
        except DAMAGED as error:
            said = str(error) if isinstance(error, InputError) else "a file of it was damaged, or changed by hand"
            self.not_shown.append(f"{caption}: {said}")
        else:
            self.pictures.setdefault(where, []).append(Picture(png, caption))

    def whole(self, sources: Sequence[Source], root: Path, read: Callable[[Source], Part]) -> list[Part]:
        """What is made of each path, run or table; one that is damaged is noted instead."""
        parts = []
        for source in sources:
            try:
                parts.append(read(source))
            except DAMAGED as error:
                said = str(error) if isinstance(error, InputError) else "it was damaged, or changed by hand"
                name = _relative(source, root) if isinstance(source, Path) else source.name
                self.not_shown.append(f"{name}: {said}")
        return parts

    def of(self, where: str) -> tuple[Picture, ...]:
        """The pictures of a section."""
        return tuple(self.pictures.get(where, ()))


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    title: str | None = None,
    question: str | None = None,
    commands: Sequence[str] = (),
    missing: Sequence[str] | None = None,
    failure: str = "",
) -> Path:
    """Writes the page about `folder`, `index.html` in it or `out`; returns its path.

    Runs, tables of scores and of a benchmark are looked for in the folder and in those below it. `question` is what
    was asked, `commands` what makes all of it again; without them they are told from the files. `missing` is what its
    caller knows not to be there, and why. Raises InputError when the folder holds none of these, unless that is given,
    and when there is a file in the page's place that is no page of ours. `failure` is why the work that it is about did
    not end.
    """
    page = out or folder / PAGE
    require_own(page)
    runs = sorted({path.parent for path in _below(folder, "config.json") if (path.parent / "manifest.json").is_file()})
    tables = sorted(path.parent for path in _below(folder, METRICS_CSV))
    benchmark = folder / BENCHMARK_CSV
    if missing is None and not runs and not tables and not benchmark.is_file():
        raise InputError(f"{folder} holds no run, no {METRICS_CSV} and no {BENCHMARK_CSV}: name a folder that does")
    account = Account(not_shown=list(missing or ()))
    scored = account.whole(tables, folder, lambda path: _Scores.read(path, folder, account))
    for scores in scored:
        scores.draw(account)
    told = account.whole(runs[:MAX_RUNS], folder, lambda path: _Run.read(path, folder))
    if len(runs) > MAX_RUNS:
        account.not_shown.append(f"{len(runs) - MAX_RUNS} of {len(runs)} runs: the first {MAX_RUNS} are shown")
    for run in told:
        run.draw(account, scored, is_alone=len(runs) == 1)
    if not tables:
        account.not_shown.append("How good the predictions are: no evaluation is there; run `squidiff evaluate`")
    whole = [f"squidiff benchmark FILE.toml --data DATA --out {folder.name}"] if benchmark.is_file() else []
    repeat = [*commands] or whole or [*(run.command for run in told), *(scores.command for scores in scored)]
    of_run = lambda make: account.whole(told, folder, make)  # noqa: E731
    sections = [
        Section("What was asked", (question or _question(scored, told),)),
        *of_run(_Run.data_section),
        *account.whole(scored, folder, lambda scores: scores.section(account)),
        *account.whole([benchmark] if benchmark.is_file() else [], folder, lambda path: _benchmark(path, account)),
        *of_run(lambda run: run.training_section(account)),
    ]
    if told or not failure:
        sections.append(Section("Method", UPSTREAM_METHOD if any(run.is_upstream for run in told) else METHOD))
    sections += [
        *of_run(_Run.settings_section),
        *of_run(_Run.provenance_section),
        Section(
            "Make it again", ("Inputs that lie elsewhere are named without their folder.",), commands=tuple(repeat)
        ),
        Section("Not shown, and why", items=tuple(account.not_shown) or ("Nothing was left out.",)),
    ]
    lead = [f"This did not end: {failure}"] if failure else []
    for scores in scored:
        lead += [sentence if len(scored) == 1 else f"{scores.name}: {sentence}" for sentence in scores.lead()]
    lead += [run.state for run in told if not run.is_whole]
    return write_page(
        page, title=title or _title(folder), lead=lead or ["Nothing has been scored yet."], sections=sections
    )


@dataclass(frozen=True)
class _Run:
    """A run folder, whole or not."""

    name: str
    folder: Path
    schema: Schema
    config: Config
    files: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path, root: Path) -> _Run:
        files = {}
        for name in ("config", "manifest", "check", "provenance"):
            path = folder / f"{name}.json"
            found = read_json(path) if path.is_file() else {}
            files[name] = found if isinstance(found, dict) else {}
        settings = files["config"]
        schema = settings_from_json(Schema, settings.get("schema", {}))
        return cls(
            _relative(folder, root), folder, schema, settings_from_json(Config, settings.get("config", {})), files
        )

    @property
    def is_whole(self) -> bool:
        return (self.folder / "model.safetensors").is_file()

    @property
    def is_upstream(self) -> bool:
        return self.config.architecture == "upstream"

    @property
    def state(self) -> str:
        done = "finished" if self.is_whole else "did not finish: go on with `squidiff train ... --resume`"
        return f"The training of {self.name} {done}."

    @property
    def command(self) -> str:
        data = str(self.files["provenance"].get("data", "DATA.h5ad"))
        start = "--from EARLIER_RUN" if self.files["manifest"].get("started_from") else ""
        flags = (as_flags(self.schema), as_flags(self.config), start, "--out", self.folder.name)
        return " ".join(filter(None, ("squidiff train", data, *flags)))

    def draw(self, account: Account, scored: Sequence[_Scores], is_alone: bool) -> None:
        account.draw(self.name, f"Loss of {self.name} during training", lambda: pictures.loss(self.folder))
        train = next((scores.files["train"] for scores in scored if "train" in scores.files), None)
        if not self.is_whole:
            account.not_shown.append(f"The latent of {self.name}: its training did not finish")
        elif not is_alone:
            account.not_shown.append(f"The latent of {self.name}: there are several runs; see `squidiff plot latent`")
        elif train is None:
            account.not_shown.append(f"The latent of {self.name}: no evaluation names the training cells")
        elif self.schema.columns:
            caption = f"Training cells by the latent of {self.name}"
            account.draw(self.name, caption, lambda: pictures.latent(self.folder, train))

    def data_section(self) -> Section:
        manifest, check = self.files["manifest"], self.files["check"]
        populations = manifest.get("populations", [])
        facts = (
            ("Training cells", f"{manifest.get('n_cells', 0):,} in {len(populations)} populations"),
            ("Genes", f"{manifest.get('n_genes', 0):,}"),
            ("What X holds", str(check.get("unit", "unknown"))),
            ("Columns of obs", "; ".join(f"{k}: {v}" for k, v in _schema_facts(self.schema)) or "none"),
        )
        findings = pd.DataFrame(check.get("findings", []), columns=["severity", "what", "where", "count", "remedy"])
        findings["count"] = findings["count"].astype("Int64")
        said = "The doctor found nothing to complain of." if findings.empty else "What the doctor found in the data:"
        counts = pd.DataFrame(populations, columns=["context", "condition", "time", "n_cells"])
        counts = counts.rename(columns={"n_cells": "cells"}).dropna(axis="columns", how="all")
        tables = [] if findings.empty else [Table.of(findings, f"Findings in the data of {self.name}")]
        if len(counts):
            caption = f"Populations that {self.name} was trained on"
            tables.append(Table.of(counts, caption, folded=len(counts) > 8, exact=["time"]))
        return Section(f"Data of {self.name}", (said,), facts, tables=tuple(tables))

    def training_section(self, account: Account) -> Section:
        provenance = self.files["provenance"]
        records = (
            pictures.training_metrics(self.folder) if (self.folder / "metrics.jsonl").is_file() else pd.DataFrame()
        )
        facts = [("State", "finished" if self.is_whole else "did not finish")]
        if len(records):
            last = records.iloc[-1]
            facts += [("Steps", f"{int(last['step']):,} of {self.config.n_train_steps:,}")]
            facts += [("Loss at the end", f"{last['loss']:.3f}")]
            if records["validation_loss"].notna().any():
                facts += [("Lowest validation loss", f"{records['validation_loss'].min():.3f}")]
            facts += [("Cells a second", f"{records['cells_per_s'].median():,.0f} (median)")]
            facts += [("Peak memory", f"{records['memory_mb'].max():,.0f} MB")]
            if records["device_memory_mb"].notna().any():
                facts += [("Peak memory of the accelerator", f"{records['device_memory_mb'].max():,.0f} MB")]
        if "seconds" in provenance:
            facts += [("Time", f"{provenance['seconds']:g} s on {provenance.get('device', 'an unknown device')}")]
        return Section(f"Training of {self.name}", facts=tuple(facts), pictures=account.of(self.name))

    def settings_section(self) -> Section:
        usual = dataclasses.asdict(Config())
        rows = [(name, str(value), value != usual[name]) for name, value in dataclasses.asdict(self.config).items()]
        frame = pd.DataFrame([(name, value) for name, value, _ in rows], columns=["setting", "value"])
        caption = f"Settings of {self.name}; those that differ from the default stand out"
        return Section(
            f"Settings of {self.name}", tables=(Table.of(frame, caption, marked=[r[2] for r in rows], folded=True),)
        )

    def provenance_section(self) -> Section:
        provenance, manifest = self.files["provenance"], self.files["manifest"]
        facts = [("Seed", str(self.config.seed))]
        if manifest.get("started_from"):
            facts.append(("Went on from a run of this hash", str(manifest["started_from"])))
        facts += [(name, str(version)) for name, version in provenance.get("packages", {}).items()]
        names = {"python": "Python", "platform": "System", "n_processors": "Processors", "device": "Device"}
        facts += [(text, str(provenance[name])) for name, text in names.items() if name in provenance]
        facts += [(f"{n} (SHA-256)", str(manifest[n])) for n in ("data_sha256", "genes_sha256") if n in manifest]
        return Section(f"Provenance of {self.name}", facts=tuple((n.replace("_sha256", ""), v) for n, v in facts))


@dataclass(frozen=True)
class _Scores:
    """A table of scores, and the files that it is of, as far as they are found."""

    name: str
    folder: Path
    table: pd.DataFrame
    said: dict[str, Any]
    files: dict[str, Path]

    @classmethod
    def read(cls, folder: Path, root: Path, account: Account) -> _Scores:
        path = folder / METRICS_JSON
        said = read_json(path) if path.is_file() else {}
        files = {}
        for name, text in (said.get("files") or {}).items():
            places = (folder / Path(text).name, root / Path(text).name, Path(text))
            there = next((place for place in places if place.exists()), None)
            if there is None:
                account.not_shown.append(f"Pictures of {name}: {Path(text).name} is not where it was")
            else:
                files[name] = there
        return cls(_relative(folder, root), folder, read_scores(folder), said, files)

    @property
    def models(self) -> list[str]:
        return models_of(self.table) or [str(self.table["method"].iloc[0])]

    @property
    def command(self) -> str:
        files = self.said.get("files") or {}
        of = [
            f"{m}={Path(files[m]).name}" if len(self.models) > 1 else Path(files[m]).name
            for m in self.models
            if m in files
        ]
        names = {name: Path(files[name]).name for name in ("truth", "train") if name in files}
        train = f" --train {names['train']}" if "train" in names else ""
        if len(self.models) > 1:
            truth = names.get("truth", "TRUTH.h5ad")
            return f"squidiff compare {' '.join(of)} --truth {truth}{train} --out {self.folder.name}"
        predicted = of[0] if of else "PREDICTED.h5ad"
        return f"squidiff evaluate {predicted} {names.get('truth', 'TRUTH.h5ad')}{train} --out {self.folder.name}"

    @property
    def of_models(self) -> pd.DataFrame:
        rows = self.table[self.table["method"].isin(self.models)]
        return rows[rows["metric"].isin(HEADLINE)]

    def lead(self) -> list[str]:
        """The verdicts, counted, the worst first; what leaked stands before them."""
        leaks = [f"LEAK: {sentence}" for sentence in self.said.get("leaks", [])]
        whole = OVERALL if (self.table["condition"] == OVERALL).any() else None
        sentences = []
        for model, rows in self.of_models.groupby("method", sort=False):
            counted = rows[rows["condition"] == whole] if whole else rows
            counts = counted["verdict"].value_counts()
            said = "; ".join(f"{counts[v]} {v or 'without a verdict'}" for v in sorted(counts.index, key=severity))
            who = "the model" if len(self.models) == 1 else str(model)
            sentences.append(f"Against the simple baselines, of {len(counted)} scores of {who}: {said}.")
        return leaks + sentences

    def draw(self, account: Account) -> None:
        """Every picture that the files allow."""
        add = lambda caption, draw: account.draw(self.folder.as_posix(), caption, draw)  # noqa: E731
        for model in self.models[:3]:
            add(f"Scores of {model}, from floor to ceiling", lambda m=model: pictures.scores(self.table, method=m))
        if len(self.models) > 1:
            add("The predictions beside each other", lambda: pictures.compared(self.table))
        predicted, truth = self.files.get(self.models[0]), self.files.get("truth")
        if predicted is None or truth is None:
            account.not_shown.append(f"Pictures of cells of {self.name}: the predicted or the true cells are not there")
            return
        try:
            schema = settings_from_json(Schema, self.said["schema"]) if "schema" in self.said else None
            beside = pictures.Beside.read(predicted, truth, self.files.get("train"), schema)
        except InputError as error:
            account.not_shown.append(f"Pictures of cells of {self.name}: {error}")
            return
        who = "" if len(self.models) == 1 else f" ({self.models[0]})"
        add(
            f"Predicted and true cells{who}: the mean of each gene, and some genes in full",
            lambda: pictures.quality(beside, None),
        )
        add(f"Real, generated and control cells in one plane{who}", lambda: pictures.embedding(beside, None))
        if beside.schema.control is not None:
            add(f"Genes that differ most from control{who}", lambda: pictures.violins(beside, None, train=None))
            add(f"Change from control by population{who}", lambda: pictures.response(beside, train=None))
        if beside.schema.dose_key is not None:
            add(f"Means over the dose{who}", lambda: pictures.dose(beside))
        if beside.schema.time_key is not None:
            add(f"Cells and means over time{who}", lambda: pictures.trajectory(beside, train=None))

    def section(self, account: Account) -> Section:
        mine, everything = self.of_models, self.table[self.table["metric"].isin(HEADLINE)]
        mine = mine.iloc[sorted(range(len(mine)), key=lambda i: severity(mine["verdict"].iloc[i]))]
        is_whole = mine["condition"] == OVERALL
        if not is_whole.any():
            is_whole[:] = True
        tables = [Table.of(_for_people(mine[is_whole]), "Scores of the prediction, the worst verdict first")]
        if not is_whole.all():
            tables.append(Table.of(_for_people(mine[~is_whole]), "The same of each population", folded=True))
        if len(everything) > MAX_ROWS:
            account.not_shown.append(f"{len(everything):,} rows of all methods: see {METRICS_CSV}")
        else:
            is_model = everything["method"].isin(self.models)
            caption = "The prediction beside every baseline; its rows stand out"
            tables.append(Table.of(_for_people(everything), caption, marked=is_model, folded=True))
        rest = self.table[self.table["method"].isin(self.models) & ~self.table["metric"].isin(HEADLINE)]
        if len(rest) and len(rest) <= MAX_ROWS:
            tables.append(Table.of(_for_people(rest), "Every other metric of the prediction", folded=True))
        notes = [f"Leak: {sentence}." for sentence in self.said.get("leaks", [])] + list(self.said.get("advice", []))
        text = (
            "Low and high bound the uncertainty of the value. The floor is what the best simple baseline reaches, the "
            "ceiling what the noise of the data allows; a dash means not measured.",
            *notes,
        )
        title = (
            "How good are the predictions?"
            if self.name == "this folder"
            else f"How good are the predictions: {self.name}?"
        )
        return Section(title, text, tables=tuple(tables), pictures=account.of(self.folder.as_posix()))


def _benchmark(path: Path, account: Account) -> Section:
    table = read_scores(path)
    rows = table[table["metric"].isin(HEADLINE) & table["method"].isin(models_of(table))]
    if len(rows) > MAX_ROWS:
        account.not_shown.append(f"{len(rows) - MAX_ROWS:,} of {len(rows):,} rows of the benchmark: see {path.name}")
    shown = _for_people(rows[:MAX_ROWS], ["task", "seed", *SCORE_COLUMNS])
    said = (f"{rows['task'].nunique()} tasks, {rows['seed'].nunique()} seeds.",) if "task" in rows else ()
    return Section("Benchmark", said, tables=(Table.of(shown, "Scores by task, seed, population and metric"),))


def _for_people(rows: pd.DataFrame, columns: Sequence[str] = SCORE_COLUMNS) -> pd.DataFrame:
    shown = rows[[name for name in columns if name in rows]].copy()
    shown["metric"] = shown["metric"].str.replace("_", " ")
    return shown.rename(columns={"condition": "population"})


def _question(scored: Sequence[_Scores], runs: Sequence[_Run]) -> str:
    asked = dict.fromkeys(c for scores in scored for c in scores.table["condition"] if c != OVERALL)
    if asked:
        names = list(asked)
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return f"What are the cells of these populations like: {'; '.join(names[:5])}{more}?"
    if not runs:
        return "Nothing was trained, predicted or scored here."
    return f"What was learned by {' and '.join(run.name for run in runs)}? Nothing was predicted or scored here yet."


def _title(folder: Path) -> str:
    return f"Report on {folder.resolve().name}"


def _relative(folder: Path, root: Path) -> str:
    return "this folder" if folder == root else folder.relative_to(root).as_posix()


def _schema_facts(schema: Schema) -> list[tuple[str, str]]:
    said = {name: value for name, value in dataclasses.asdict(schema).items() if value and name != "fingerprint"}
    return [
        (re.sub("_keys?$", "", n).replace("_", " "), ", ".join(v) if isinstance(v, tuple) else str(v))
        for n, v in said.items()
    ]


def _below(folder: Path, name: str) -> list[Path]:
    """Files of that name in the folder and up to four folders deeper, as a benchmark has its runs."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name a run, or a folder that holds runs or scores")
    return [path for depth in range(5) for path in folder.glob("/".join(["*"] * depth + [name])) if path.is_file()]
