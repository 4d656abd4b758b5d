"""The pictures by kind, from the files or objects that a user has: AnnData, run folders, tables of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from squidiff.config import InputError, Schema, check_seed
from squidiff.data.conditions import Part, canonical_label
from squidiff.data.table import CellTable, read_cells, schema_of
from squidiff.evaluate.metrics import HEADLINE
from squidiff.evaluate.scoring import OVERALL, Cells, require_one_unit
from squidiff.report import plots
from squidiff.report.plots import Series
from squidiff.report.tables import models_of, read_scores, training_metrics
from squidiff.response.populations import Population, Populations

N_COMPONENTS = 50
MAX_EMBEDDED = 2000
"""Real cells in a joint embedding, and at most as many of each other kind."""


@dataclass(frozen=True)
class Beside:
    """Predicted cells beside true and training ones, on the genes of the prediction."""

    predicted: CellTable
    truth: CellTable | None
    train: CellTable | None
    schema: Schema

    @classmethod
    def read(cls, predicted: Cells, truth: Cells | None, train: Cells | None, schema: Schema | None) -> Beside:
        """Raises InputError when a file cannot be read, lacks a column or a gene, or is in another unit than others."""
        first = read_cells(predicted)
        schema = schema_of(first, schema)
        table = CellTable.from_anndata(first, schema, tuple(map(str, first.var_names)), "the prediction")
        others = [
            None if cells is None else CellTable.from_anndata(read_cells(cells), schema, table.genes, where)
            for cells, where in ((truth, "the truth"), (train, "the training data"))
        ]
        require_one_unit({"the prediction": table}, *others)
        return cls(table, others[0], others[1], schema)

    @property
    def start(self) -> str:
        """What a prediction starts from, as pictures call it."""
        return plots.SOURCE_CELLS if self.schema.control is None else plots.CONTROL_CELLS

    @property
    def keys(self) -> list[Population]:
        """The populations that are predicted and, with a truth, true; control cells that stand beside are none."""
        keys = [Population(*key) for key in self.predicted.keys if self.truth is None or key in self.truth.keys]
        keys = [key for key in keys if key.condition or self.schema.control is None] or keys
        if not keys:
            raise InputError("no population is in both the prediction and the truth: name files of the same cells")
        return keys

    def choose(self, population: str | None) -> Population:
        """The population of that name or, without one, the one of the most cells."""
        if population is None:
            table = self.truth or self.predicted
            return max(self.keys, key=lambda key: int((table.population == table.keys.index(tuple(key))).sum()))
        found = [key for key in self.keys if str(key) == population]
        if not found:
            names = ", ".join(repr(str(key)) for key in self.keys[:8])
            raise InputError(f"--population is {population!r}: there are {names}")
        return found[0]

    def cells(self, table: CellTable, key: Population) -> np.ndarray:
        """The cells of a population, N x G; none where it is not there."""
        index = table.keys.index(tuple(key)) if tuple(key) in table.keys else -1
        return table.dense(np.flatnonzero(table.population == index))

    def control(self, key: Population) -> np.ndarray | None:
        """The cells that a prediction of `key` starts from; None in plain generation, or when there are none."""
        source = None if self.train is None else self.source(self.train, key)
        return None if source is None or self.train is None else self.cells(self.train, source)

    def source(self, table: CellTable, key: Population) -> Population | None:
        """The population of `table` that a prediction of `key` starts from; None in plain generation."""
        keys = tuple(Population(*k) for k in table.keys)
        nothing, n_cells = np.zeros((len(keys), 0)), np.bincount(table.population, minlength=len(keys))
        source = Populations(keys, nothing, nothing, nothing, n_cells, self.schema.control is not None, nothing).source(
            key
        )
        return None if source is None or keys[source] == key else keys[source]

    def require_control(self, key: Population) -> np.ndarray:
        """Raises InputError when there are no cells that a prediction of `key` starts from."""
        control = self.control(key)
        if control is None:
            raise InputError(f"there are no control cells for {str(key)!r}: pass --train with cells that hold them")
        return control

    def require_genes(self, genes: Sequence[str]) -> Sequence[str]:
        """Raises InputError for a gene that is not predicted."""
        genes = [genes] if isinstance(genes, str) else genes
        for gene in genes:
            if gene not in self.predicted.genes:
                raise InputError(f"--gene is {gene!r}: it is none of the {len(self.predicted.genes):,} predicted genes")
        return genes

    def series(self, table: CellTable | None, at: Mapping[Population, float]) -> Series | None:
        """Means of the populations of `table`, at the value of each."""
        keys = sorted((k for k in at if table is not None and tuple(k) in table.keys), key=at.__getitem__)
        if table is None or not keys:
            return None
        cells = [self.cells(table, key) for key in keys]
        mean = np.stack([c.mean(axis=0, dtype=np.float64) for c in cells])
        error = np.stack([c.std(axis=0, ddof=int(len(c) > 1)) / np.sqrt(len(c)) for c in cells])
        return Series(np.array([at[key] for key in keys]), mean, error)


NEEDED = {"truth": "the true cells", "train": "the training cells"}
Given = Cells | Beside
"""Predicted cells, or what was read of all files already; the others are then None."""


def _beside(
    predicted: Given, truth: Cells | None, train: Cells | None, schema: Schema | None, needs: Sequence[str] = ()
) -> Beside:
    """What was read already, or is read now. Raises InputError where what the picture needs is not given."""
    beside = predicted if isinstance(predicted, Beside) else Beside.read(predicted, truth, train, schema)
    for name in needs:
        if getattr(beside, name) is None:
            raise InputError(f"this picture needs {NEEDED[name]}: pass {name}")
    return beside


def loss(run: str | Path, *, figure: Figure | None = None) -> Figure:
    """Training loss of a run: raw and smoothed, validation, by quartile of the noise level, and the learning rate."""
    return plots.training_loss(training_metrics(Path(run)), figure=figure)


def quality(
    predicted: Given,
    truth: Cells | None,
    *,
    train: Cells | None = None,
    schema: Schema | None = None,
    population: str | None = None,
    genes: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Generated over real cells of one population: means against each other, and distributions of some genes."""
    beside = _beside(predicted, truth, train, schema, ["truth"])
    assert beside.truth is not None
    key = beside.choose(population)
    generated, real = beside.cells(beside.predicted, key), beside.cells(beside.truth, key)
    n = len(beside.keys)
    which = f"{key}{'' if n == 1 or population is not None else f', the largest of {n} populations'}"
    return plots.sample_quality(
        generated,
        real,
        beside.predicted.genes,
        beside.control(key),
        f"Predicted and true cells: {which}",
        chosen=beside.require_genes(genes),
        start=beside.start,
        figure=figure,
    )


def violins(
    predicted: Given,
    truth: Cells | None,
    *,
    train: Cells | None,
    schema: Schema | None = None,
    population: str | None = None,
    genes: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Real and generated cells of the genes that differ most from control, as paired violins."""
    beside = _beside(predicted, truth, train, schema, ["truth"])
    assert beside.truth is not None
    key = beside.choose(population)
    cells = beside.cells(beside.predicted, key), beside.cells(beside.truth, key), beside.require_control(key)
    chosen = beside.require_genes(genes)
    return plots.violins(*cells, beside.predicted.genes, str(key), chosen=chosen, start=beside.start, figure=figure)


def embedding(
    predicted: Given,
    truth: Cells | None,
    *,
    train: Cells | None = None,
    schema: Schema | None = None,
    populations: Sequence[str] = (),
    method: str = "pca",
    seed: int = 0,
    figure: Figure | None = None,
) -> Figure:
    """Real, generated and control cells of all populations, or of some, in one plane ('pca' or 'umap').

    As many real as generated cells of each, and in a space that is fitted on all: where it is of real cells alone,
    generated ones lie apart though they be alike.
    """
    check_seed(seed)
    beside = _beside(predicted, truth, train, schema, ["truth"])
    assert beside.truth is not None
    names = [populations] if isinstance(populations, str) else populations
    keys = list(dict.fromkeys(beside.choose(name) for name in names)) or beside.keys
    rng = np.random.default_rng(seed)
    real, generated, starts = list[np.ndarray](), list[np.ndarray](), dict[Population, np.ndarray]()
    for key in keys:
        of_both = [beside.cells(table, key) for table in (beside.truth, beside.predicted)]
        n = min(*map(len, of_both), max(MAX_EMBEDDED // len(keys), 2))
        for groups, cells in zip((real, generated), of_both, strict=True):
            groups.append(_some(cells, n, rng))
        source = None if beside.train is None else beside.source(beside.train, key)
        if source is not None and beside.train is not None and source not in starts:
            starts[source] = beside.cells(beside.train, source)
    some = {"real cells": np.concatenate(real), "generated cells": np.concatenate(generated)}
    if starts:
        some = {beside.start: _some(np.concatenate(list(starts.values())), len(some["real cells"]), rng)} | some
    components = _components(np.concatenate(list(some.values())))
    near = {name: components.transform(cells) for name, cells in some.items()}
    plane, ends = _plane(near, method, seed), np.cumsum([len(cells) for cells in real])[:-1]
    of_each = zip(*(np.split(near[name], ends) for name in ("real cells", "generated cells")), strict=True)
    of = str(keys[0]) if len(keys) == 1 else f"{len(keys)} populations"
    return plots.joint_embedding(plane, list(of_each), method.upper(), of, figure=figure)


def response(
    predicted: Given,
    truth: Cells | None = None,
    *,
    train: Cells | None,
    schema: Schema | None = None,
    populations: Sequence[str] = (),
    genes: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Heat map of the change from control by population, predicted and, with a truth, true."""
    beside = _beside(predicted, truth, train, schema)
    keys = [beside.choose(name) for name in populations] or beside.keys
    control = np.stack([beside.require_control(key).mean(axis=0) for key in keys])
    changes = [
        None if table is None else np.stack([beside.cells(table, key).mean(axis=0) for key in keys]) - control
        for table in (beside.predicted, beside.truth)
    ]
    assert changes[0] is not None
    names, chosen = [str(key) for key in keys], beside.require_genes(genes)
    return plots.response_map(
        changes[0], changes[1], names, beside.predicted.genes, chosen=chosen, start=beside.start, figure=figure
    )


def scores(
    table: pd.DataFrame | str | Path,
    *,
    population: str | None = None,
    method: str | None = None,
    metrics: Sequence[str] = HEADLINE,
    figure: Figure | None = None,
) -> Figure:
    """Each metric of one prediction between the best baseline and the ceiling, with its interval and verdict."""
    rows = _rows(read_scores(table), metrics)
    models = _models(rows)
    name = _one_of(method, models, "--method")
    conditions = list(dict.fromkeys(rows["condition"]))
    condition = _one_of(population, conditions, "--population")
    chosen = rows[(rows["method"] == name) & (rows["condition"] == condition)]
    title = condition if len(models) == 1 else f"{name}, {condition}"
    return plots.floor_to_ceiling(chosen, title, figure=figure)


def compared(
    table: pd.DataFrame | str | Path,
    *,
    population: str | None = None,
    methods: Sequence[str] = (),
    metrics: Sequence[str] = HEADLINE,
    figure: Figure | None = None,
) -> Figure:
    """Several predictions side by side, as `squidiff compare` scores them."""
    rows = _rows(read_scores(table), metrics)
    there = list(dict.fromkeys(rows["method"]))
    shown = [_one_of(name, there, "--method") for name in methods] or _models(rows)
    condition = _one_of(population, list(dict.fromkeys(rows["condition"])), "--population")
    return plots.side_by_side(rows[rows["condition"] == condition], shown, condition, figure=figure)


def dose(
    predicted: Given,
    truth: Cells | None = None,
    *,
    train: Cells | None = None,
    schema: Schema | None = None,
    population: str | None = None,
    genes: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Mean of some genes over the dose of one drug in one context; `population` is any one of its doses."""
    beside = _beside(predicted, truth, train, schema)
    if beside.schema.dose_key is None:
        raise InputError("the prediction has no doses: name their obs column with --dose-key")
    tables = [table for table in (beside.predicted, beside.truth, beside.train) if table is not None]
    dosed = {Population(*k): p for t in tables for k, p in zip(t.keys, t.parts, strict=True) if len(p) == 1}
    leading = _leading(beside, population, dosed)
    at = {k: float(p[0].dose or 0.0) for k, p in dosed.items() if _undosed(k, p) == _undosed(leading, dosed[leading])}
    control = leading._replace(condition="")
    series = [beside.series(table, at | {control: 0.0}) for table in (beside.predicted, beside.truth, beside.train)]
    assert series[0] is not None
    n = len(series[0].at)
    at_time = "" if leading.time is None else f"time {leading.time:g}"
    whose = ", ".join(part for part in (dosed[leading][0].name, leading.context, at_time) if part)
    title = f"{whose}: {n} predicted dose{'' if n == 1 else 's'}"
    chosen = beside.require_genes(genes)
    return plots.curves(*series, beside.predicted.genes, "dose", title, chosen=chosen, figure=figure)


def trajectory(
    predicted: Given,
    truth: Cells | None = None,
    *,
    train: Cells | None,
    schema: Schema | None = None,
    population: str | None = None,
    genes: Sequence[str] = (),
    figure: Figure | None = None,
) -> Figure:
    """Cells over time with the path of their means, and where the predicted populations lie on it."""
    beside = _beside(predicted, truth, train, schema, ["train"])
    assert beside.train is not None
    if beside.schema.time_key is None:
        raise InputError("the prediction has no times: name their obs column with --time-key")
    key = beside.choose(population)
    same = lambda k: k._replace(time=None) == key._replace(time=None)  # noqa: E731
    tables = [table for table in (beside.predicted, beside.truth, beside.train) if table is not None]
    at = {Population(*k): float(k[2] or 0.0) for t in tables for k in t.keys if same(Population(*k))}
    series = [beside.series(table, at) for table in (beside.predicted, beside.truth, beside.train)]
    if series[0] is None or series[2] is None:
        raise InputError(f"--train has no cells like {str(key)!r} at other times")
    of_path = [i for i, k in enumerate(beside.train.keys) if same(Population(*k))]
    rows = _some(np.flatnonzero(np.isin(beside.train.population, of_path)), 2 * MAX_EMBEDDED, np.random.default_rng(0))
    time = np.array([k[2] for k in beside.train.keys], dtype=float)[beside.train.population[rows]]
    cells = beside.train.dense(rows)
    plane = _components(cells, 2)
    return plots.trajectory(
        plane.transform(cells),
        time,
        series[0],
        plane.transform(series[2].mean),
        plane.transform(series[0].mean),
        series[2],
        series[1],
        beside.predicted.genes,
        f"{key._replace(time=None)}: {len(series[0].at)} predicted and {len(series[2].at)} known times",
        chosen=beside.require_genes(genes),
        figure=figure,
    )


def latent(
    run: str | Path, cells: Cells, *, color: str | None = None, seed: int = 0, figure: Figure | None = None
) -> Figure:
    """Cells by the latent that a trained run gives them, by condition (else time, else context) or an obs column."""
    from squidiff.estimator import Squidiff

    check_seed(seed)
    model = Squidiff.load(run, device="cpu")
    adata = read_cells(cells)
    schema = model.schema
    column = color or schema.condition_key or schema.time_key or next(iter(schema.context_keys), None)
    if column is None or column not in adata.obs:
        there = ", ".join(map(repr, adata.obs)) or "none"
        raise InputError(f"obs has no column {column!r} to colour by: choose one with --color, of {there}")
    rows = np.sort(_some(np.arange(adata.n_obs), 2 * MAX_EMBEDDED, np.random.default_rng(seed)))
    z = model.encode(adata[rows].copy())
    labels = adata.obs[column].astype(str).to_numpy()[rows].tolist()
    return plots.latent(_components(z, 2).transform(z), z, labels, column, figure=figure)


KINDS: dict[str, Callable[..., Figure]] = {
    "loss": loss,
    "quality": quality,
    "violins": violins,
    "embedding": embedding,
    "response": response,
    "scores": scores,
    "compared": compared,
    "dose": dose,
    "trajectory": trajectory,
    "latent": latent,
}
"""Every picture by its name."""


def _leading(beside: Beside, population: str | None, dosed: Mapping[Population, tuple[Part, ...]]) -> Population:
    """The population that is asked for or, without a name, one of the drug with the most predicted doses."""
    keys = [key for key in beside.keys if key in dosed] if population is None else [beside.choose(population)]
    if not keys or keys[0] not in dosed:
        raise InputError("no single drug is predicted: a dose curve is of one drug")
    drugs = [_undosed(key, dosed[key]) for key in keys]
    return max(keys, key=lambda key: drugs.count(_undosed(key, dosed[key])))


def _undosed(key: Population, parts: tuple[Part, ...]) -> Population:
    return key._replace(condition=canonical_label(tuple(Part(p.name, None, p.direction) for p in parts)))


def _components(cells: np.ndarray, n: int = N_COMPONENTS) -> PCA:
    if min(cells.shape) < 2:
        raise InputError(f"{len(cells)} cells of {cells.shape[1]} features have no plane: give at least two of each")
    return PCA(min(n, *cells.shape), svd_solver="full").fit(cells)


def _plane(near: Mapping[str, np.ndarray], method: str, seed: int) -> dict[str, np.ndarray]:
    if method == "pca":
        return {name: cells[:, :2] for name, cells in near.items()}
    if method != "umap":
        raise InputError(f"--method is {method!r}: choose pca or umap")
    import umap
    from threadpoolctl import threadpool_limits

    everything = np.concatenate(list(near.values()))
    n_neighbours = min(15, len(everything) - 1)
    with threadpool_limits({}):  # sets OpenMP's threads back, which numba raises for torch too
        plane = umap.UMAP(n_neighbors=n_neighbours, random_state=seed, n_jobs=1).fit_transform(everything)
    ends = np.cumsum([len(cells) for cells in near.values()])[:-1]
    return dict(zip(near, np.split(plane, ends), strict=True))


def _some(cells: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """At most n of them, drawn at random."""
    return cells if len(cells) <= n else cells[np.sort(rng.choice(len(cells), n, replace=False))]


def _rows(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    rows = table[table["metric"].isin(metrics)]
    if rows.empty:
        raise InputError(f"the table has none of the metrics {', '.join(metrics)}: choose others with --metric")
    return rows


def _models(rows: pd.DataFrame) -> list[str]:
    """The methods that are no baselines; all where there is none."""
    return models_of(rows) or list(dict.fromkeys(rows["method"]))


def _one_of(name: str | None, there: Sequence[str], flag: str) -> str:
    if name is None:
        return OVERALL if OVERALL in there else there[0]
    if name not in there:
        raise InputError(f"{flag} is {name!r}: there are {', '.join(map(repr, there[:12]))}")
    return name
