"""Scores predicted cells against true ones, beside the baselines: a tidy table with intervals and a verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from squidiff.config import InputError, Schema, check_seed, require_kind, settings_to_json
from squidiff.data.table import SCHEMA, CellTable, read_cells, schema_of
from squidiff.data.unit import PER_TOTAL, differ, scaled_to
from squidiff.evaluate.baselines import NAMES
from squidiff.evaluate.leakage import find_leaks, find_leaks_of_files
from squidiff.evaluate.metrics import METRICS, Metric
from squidiff.evaluate.scorer import MIN_CELLS, Scored, Scorer, resample_counts
from squidiff.evaluate.verdict import Estimate, difference, judge, judge_advantages
from squidiff.response.populations import Population

MODEL = "model"
OVERALL = "all populations"
"""In the column `condition`: the mean over the populations."""
LARGEST_VALUE = 1e9
FEW_LARGE = 0.001
"""Share of values that are too large for logarithms, in data that are none; a bad prediction may have fewer."""
MANY_NEGATIVE = 0.2
"""Share of negative values in data that were centred, where zeros become negative; corrected data have fewer."""
MAX_THREADS = 4
"""Populations that are scored at once: each takes some 100 MB."""
MIN_POPULATIONS = 5
"""Below which there is no interval over populations: resamples of few know nothing of their own noise."""
UNSCORED, LEAKS, MODELS, GENES = "unscored_populations", "leaks", "models", "genes"
ADVICE, COLUMNS_OF = "advice", "schema"
"""Keys of the table's attrs: how many predicted populations have no truth, and true ones no prediction; what leaked;
the names of the predictions; how many genes the truth has, and how many of them are scored; what else to know; and
what the obs columns were taken for."""
LOGARITHMS, CENTRED = "values from 0 on such as logarithms of counts", "values below 0"
RESERVED = ("truth", "train")
"""What no prediction may be called."""

COLUMNS = (
    *("condition", "metric", "method", "value", "low", "high", "floor", "ceiling", "verdict"),
    *("n_populations", "note", "leak"),
)
Cells = ad.AnnData | str | Path


def evaluate(
    predicted: Cells,
    truth: Cells,
    schema: Schema | None = None,
    *,
    train: Cells | None = None,
    seed: int = 0,
    on_population: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """One row a population, metric and method ('model' and the baselines), in the columns COLUMNS.

    Populations are matched by the schema's obs columns (without a schema, by that of the prediction, which remembers
    it), genes by the names of the prediction. low and high are a 95 %
    bootstrap interval over true and predicted cells; floor is the best baseline's value, ceiling that of the truth's
    own halves; the verdict stands in the model's rows. Of several populations there are rows of their mean too
    (OVERALL), whose intervals are over populations. note says why a value or a verdict is missing, and leak what was
    seen of the truth. Without `train` there are no baselines, no change from control and no search for leaks but of
    copied cells, and the principal components are the truth's. `on_population(i, n)` is called after each population.
    Raises InputError when no population is in both.
    """
    return compare({MODEL: predicted}, truth, schema, train=train, seed=seed, on_population=on_population)


def compare(
    predictions: Mapping[str, Cells],
    truth: Cells,
    schema: Schema | None = None,
    *,
    train: Cells | None = None,
    seed: int = 0,
    names: Sequence[str] = NAMES,
    on_population: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """As `evaluate`, of several predictions by name, each judged against the baselines; genes are those of the first.

    Only populations that are in all predictions are scored. `names` are the baselines that are tried.
    """
    check_seed(seed)
    require_kind(predictions, Mapping, "what holds the predictions", "a dictionary of cells by name")
    if not predictions:
        raise InputError("no prediction is given")
    for name in predictions:
        if name in names or name in RESERVED:
            raise InputError(f"{name!r} is the name of a baseline or of a file of this comparison: name it otherwise")
    files = {name: read_cells(cells) for name, cells in predictions.items()}
    first = next(iter(files.values()))
    true = read_cells(truth)
    trained = None if train is None else read_cells(train)
    schema = _schema(schema, [*files.values(), true, *([] if trained is None else [trained])])
    genes = tuple(sorted(map(str, first.var_names)))  # whatever order a file has them in
    label = dict.fromkeys(files, "the prediction") if len(files) == 1 else {name: f"{name!r}" for name in files}
    tables = {
        name: CellTable.from_anndata(file, schema, genes, label[name], whose="the prediction")
        for name, file in files.items()
    }
    target = CellTable.from_anndata(true, schema, genes, "the truth", whose="the prediction")
    known = (
        None
        if trained is None
        else CellTable.from_anndata(trained, schema, genes, "the training data", whose="the prediction")
    )
    require_one_unit({label[name]: table for name, table in tables.items()}, target, known)
    scored = _common(tables, target, known, schema.control)
    scorer = Scorer(tables, target, known, schema, seed, names)
    generated = {key for key in scored if scorer.is_generated(key)}
    leaks = find_leaks_of_files(files, true, trained) + find_leaks(tables, target, known, scored, generated)
    rivals = _Rivals(target, scored)
    found = []
    n_threads = min(MAX_THREADS, os.cpu_count() or 1, len(scored))
    # sorting and sums leave Python's lock; threads that each ask for all cores stand in each other's way
    with threadpool_limits(1 if n_threads > 1 else None), ThreadPoolExecutor(n_threads) as pool:
        for scores in pool.map(lambda key: scorer.score(key, rivals.of(key)), scored):
            found.append(scores)
            if on_population is not None:
                on_population(len(found), len(scored))
    rows = list(_overall(found, list(tables), seed))
    for scores in found:
        rows += _of_population(scores, list(tables))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    of_key = {str(key): "; ".join(leak.sentence for leak in leaks if leak.touches(key)) for key in scored}
    of_key[OVERALL] = "; ".join(leak.sentence for leak in leaks)
    table["leak"] = table["condition"].map(of_key)
    asked = [key for key in target.keys if key[1] or schema.control is None or Population(*key) in scored]
    predicted = {key for of in tables.values() for key in of.keys if key[1] or schema.control is None}
    table.attrs[UNSCORED] = {"predicted": len(predicted - set(target.keys)), "true": len(asked) - len(scored)}
    table.attrs[GENES] = {"scored": len(genes), "true": true.n_vars}
    table.attrs[COLUMNS_OF] = settings_to_json(schema)
    table.attrs[ADVICE] = list(_advice(tables, files, true, target, known, schema, scored))
    table.attrs[LEAKS] = [leak.sentence for leak in leaks]
    table.attrs[MODELS] = list(tables)
    return table


def _schema(given: Schema | None, files: Sequence[ad.AnnData]) -> Schema:
    """The one that is given, else the first that a file remembers."""
    if given is not None:
        return given
    return next((schema_of(file, None) for file in files if SCHEMA in file.uns), Schema())


def require_one_unit(tables: Mapping[str, CellTable], target: CellTable | None, train: CellTable | None) -> None:
    """Raises InputError where files hold counts, logarithms, other large values or centred ones, and not all alike."""
    given = {"the truth": target, **tables, "the training data": train}
    files = {name: table for name, table in given.items() if table is not None}
    for name, table in files.items():
        largest = max(float(table.survey.highest.max()), -float(table.survey.lowest.min()))
        if largest > LARGEST_VALUE:
            raise InputError(f"{name} holds values up to {largest:.3g}: no counts or logarithms of counts are as large")
    units = {name: _unit(table) for name, table in files.items()}
    # a prediction may be negative where the data are not: not every method knows of zeros
    first = next(name for name in ("the training data", *units) if name in units)
    for name, unit in units.items():
        may_differ = name in tables and {unit, units[first]} == {LOGARITHMS, CENTRED}
        if unit != units[first] and not may_differ:
            raise InputError(f"{name} holds {unit}, but {first} {units[first]}: give both in one unit")
    own, of_training = (None if table is None else scaled_to(table.survey) for table in (target, train))
    if differ(own, of_training):
        told = f"the truth holds {PER_TOTAL}{own:g}, but the training data {PER_TOTAL}{of_training:g}"
        raise InputError(f"{told}: give both in one unit")


def _unit(table: CellTable) -> str:
    if table.survey.looks_like_counts:
        return "raw counts"
    if table.survey.n_large > FEW_LARGE * table.survey.n_nonzero:
        return "values too large for logarithms of counts"
    is_centred = table.survey.n_negative > MANY_NEGATIVE * table.survey.n_nonzero
    return CENTRED if is_centred else LOGARITHMS


def _advice(
    tables: Mapping[str, CellTable],
    files: Mapping[str, ad.AnnData],
    true: ad.AnnData,
    target: CellTable,
    known: CellTable | None,
    schema: Schema,
    scored: Sequence[Population],
) -> Iterator[str]:
    """What whoever reads the table should know, in sentences."""
    if "squidiff" in true.uns and not any("squidiff" in file.uns for file in files.values()):
        yield "the truth is a file of predicted cells and the prediction is none: are the two swapped?"
    centred = [name for name, table in tables.items() if _unit(table) == CENTRED]
    if centred and _unit(target) != CENTRED:
        of = f" of {centred[0]!r}" if len(tables) > 1 else ""
        share = tables[centred[0]].survey.n_negative / max(tables[centred[0]].survey.n_nonzero, 1)
        yield (
            f"{share:.0%} of the predicted values{of} are below 0, and of the true ones next to none: if they were "
            "centred or scaled, undo that, or the scores say nothing"
        )
    if not schema.columns:
        yield "no column is named, so all cells are one population: pass schema options, as --condition-key"
    if known is None:
        return
    if schema.control is not None and not any(not key[1] for key in known.keys):
        there = ", ".join(repr(key[1]) for key in known.keys[:4])
        yield f"the training data hold no control {schema.control!r}, so there are no baselines: they hold {there}"
    contexts = {key[0] for key in known.keys}
    missing = sorted({key.context for key in scored} - contexts)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        have = ", ".join(map(repr, sorted(contexts)[:4]))
        yield f"the training data have no cells of context {missing[0]!r}{more}, so no baselines: they have {have}"


def _common(
    tables: Mapping[str, CellTable], target: CellTable, train: CellTable | None, control: str | None
) -> list[Population]:
    first = next(iter(tables.values()))
    common = [key for key in first.keys if all(key in table.keys for table in (*tables.values(), target))]
    if control is not None:  # control cells that stand beside are no prediction, but those at an unseen time may be
        known = () if train is None else train.keys
        is_new = lambda key: train is not None and key[2] is not None and key not in known  # noqa: E731
        treated = any(key[1] for table in tables.values() for key in table.keys)
        common = [key for key in common if key[1] or is_new(key) or not treated]
    if not common:
        both = "both" if len(tables) == 1 else "all"
        said = "; ".join(f"{name if len(tables) > 1 else 'predicted'}: {_names(t)}" for name, t in tables.items())
        raise InputError(f"no population is in {both} files: {said}; true: {_names(target)}")
    return [Population(*key) for key in common]


class _Rivals:
    """The true means of the populations that share context and time."""

    def __init__(self, target: CellTable, scored: Sequence[Population]) -> None:
        self.scored = [key for key in scored if key.condition]
        rows = {key: np.flatnonzero(target.population == target.keys.index(tuple(key))) for key in self.scored}
        self.mean = {key: target.dense(of_key).mean(axis=0, dtype=np.float64) for key, of_key in rows.items()}

    def of(self, key: Population) -> np.ndarray | None:
        """(R, G) of the others; None when there is none."""
        others = [k for k in self.scored if k != key and k._replace(condition="") == key._replace(condition="")]
        return np.stack([self.mean[k] for k in others]) if others and key in self.mean else None


def _of_population(scored: Scored, models: Sequence[str]) -> Iterator[dict[str, object]]:
    few = f"no verdict: fewer than {MIN_CELLS} true or predicted cells"
    notes = {m: few for m in models if scored.n_cells[m] < MIN_CELLS}
    for name, ceiling in scored.ceiling.items():
        metric = METRICS[name]
        estimates = {method: of[name] for method, of in scored.estimates.items()}
        capped = {m: e.at_most(metric.best, metric.higher_is_better) for m, e in estimates.items()}
        baselines = {m: e for m, e in capped.items() if m not in models}
        verdicts = {m: "" if m in notes else judge(capped[m], baselines, metric.higher_is_better) for m in models}
        floor = _floor(metric, [estimates[m].value for m in baselines])
        yield from _rows(
            str(scored.key), name, estimates, verdicts, (floor, ceiling), dict.fromkeys(estimates, 1), notes
        )


def _overall(found: Sequence[Scored], models: Sequence[str], seed: int) -> Iterator[dict[str, object]]:
    """The means over populations.

    Judged against every baseline on the populations that it can predict; those that cannot predict all have no row.
    """
    if len(found) < 2:
        return
    drawn = resample_counts(len(found), np.random.default_rng((seed, 2)))
    for name, metric in METRICS.items():
        having = [i for i, scored in enumerate(found) if name in scored.ceiling]
        if not having:
            continue
        values = {
            method: np.array([_value(found[i], method, name) for i in having])
            for method in dict.fromkeys(m for i in having for m in found[i].estimates)
        }
        is_known = {m: np.isfinite(v) for m, v in values.items()}
        verdicts, notes = {}, {}
        for model in models:
            verdicts[model], notes[model] = _verdict_of_mean(model, values, models, metric, drawn[:, having])
        estimates = {}
        for method in (m for m in values if all(m in found[i].estimates for i in having)):
            of_method = Estimate.over_populations(values[method], drawn[:, having])
            n = is_known[method].sum()
            if n < MIN_POPULATIONS:
                of_method = Estimate(of_method.value, np.full(1, np.nan))
                notes[method] = f"no interval: fewer than {MIN_POPULATIONS} populations have a value"
            elif n < len(having):
                lacking = f"{len(having) - n} of {len(having)} populations have no value: {metric.undefined}"
                notes[method] = "; ".join(filter(None, (lacking, notes.get(method))))
            estimates[method] = of_method
        # the mean of a baseline over other populations than the models' says nothing beside theirs
        asked = np.any([is_known[m] for m in models], axis=0)
        comparable = [m for m in estimates if m not in models and not (asked != is_known[m]).any()]
        floor = _floor(metric, [estimates[m].value for m in comparable])
        ceilings = Estimate.over_populations(np.array([found[i].ceiling[name] for i in having]), drawn[:, having])
        numbers = {m: int(known.sum()) for m, known in is_known.items()}
        yield from _rows(OVERALL, name, estimates, verdicts, (floor, ceilings.value), numbers, notes)


def _verdict_of_mean(
    model: str, values: Mapping[str, np.ndarray], models: Sequence[str], metric: Metric, drawn: np.ndarray
) -> tuple[str, str]:
    """The verdict over populations of values (P,) by method, and a note on who was not judged."""
    clip = np.minimum if metric.higher_is_better else np.maximum
    sign = 1 if metric.higher_is_better else -1
    capped = {m: clip(v, metric.best) for m, v in values.items()}
    advantages = {m: sign * difference(capped[model], v) for m, v in capped.items() if m not in models}
    n_common = {m: int(np.isfinite(a).sum()) for m, a in advantages.items()}
    spread = {m: Estimate.over_populations(a, drawn) for m, a in advantages.items() if n_common[m] >= MIN_POPULATIONS}
    few = sorted(m for m, n in n_common.items() if 0 < n < MIN_POPULATIONS)
    note = f"not judged, as they predict fewer than {MIN_POPULATIONS} populations: {', '.join(few)}" if few else ""
    # a prediction that has no value where another method has one has not been tried there
    others_know = np.isfinite([*values.values()]).any(axis=0)
    if (others_know & ~np.isfinite(values[model])).any():
        return "", note
    return judge_advantages(spread), note


def _value(scored: Scored, method: str, metric: str) -> float:
    of_method = scored.estimates.get(method)
    return float("nan") if of_method is None else of_method[metric].value


def _floor(metric: Metric, values: Sequence[float]) -> float:
    """The best of the baselines' values; NaN where none has one."""
    known = [value for value in values if not np.isnan(value)]
    return (max if metric.higher_is_better else min)(known, default=float("nan"))


def _rows(
    condition: str,
    name: str,
    estimates: Mapping[str, Estimate],
    verdicts: Mapping[str, str],
    bounds: tuple[float, float],
    n_populations: Mapping[str, int],
    notes: Mapping[str, str],
) -> Iterator[dict[str, object]]:
    """One a method; bounds are floor and ceiling."""
    metric = METRICS[name]
    has_baseline = any(m not in verdicts and not np.isnan(e.value) for m, e in estimates.items())
    for method, estimate in estimates.items():
        note = metric.undefined if np.isnan(estimate.value) else notes.get(method, "")
        if not note and method in verdicts and not verdicts[method]:
            note = _unjudged(metric, has_baseline)
        interval = metric.within(*estimate.interval())
        numbers = (estimate.value, *interval, *bounds)
        row = (condition, name, method, *numbers, verdicts.get(method, ""), n_populations[method], note)
        yield dict(zip(COLUMNS, row, strict=False))


def _unjudged(metric: Metric, has_floor: bool) -> str:
    if not has_floor:
        return "no verdict: no baseline has a value"
    if not metric.is_resampled:
        return "no verdict: it takes no resamples of cells"
    return "no verdict: most resamples of cells have no value, of this or of a baseline"


def _names(table: CellTable) -> str:
    names = [repr(str(Population(*key))) for key in table.keys]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
