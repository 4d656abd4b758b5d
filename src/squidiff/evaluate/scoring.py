"""Scores predicted cells against true ones, beside the baselines: a tidy table with intervals and a verdict."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from squidiff.config import InputError, Schema, check_seed
from squidiff.data.table import CellTable, read_cells, schema_of
from squidiff.evaluate.baselines import NAMES
from squidiff.evaluate.leakage import find_leaks, find_leaks_of_files
from squidiff.evaluate.metrics import METRICS, Metric
from squidiff.evaluate.scorer import MIN_CELLS, Scored, Scorer, resample_counts
from squidiff.evaluate.verdict import Estimate, judge, judge_advantages
from squidiff.response.populations import Population

MODEL = "model"
OVERALL = "all populations"
"""In the column `condition`: the mean over the populations."""
LARGEST_VALUE = 1e9
MAX_THREADS = 4
"""Populations that are scored at once: each takes some 100 MB."""
MIN_POPULATIONS = 5
"""Below which there is no interval over populations: resamples of few know nothing of their own noise."""
UNSCORED, LEAKS, MODELS, GENES = "unscored_populations", "leaks", "models", "genes"
"""Keys of the table's attrs: how many predicted populations have no truth, and true ones no prediction; what leaked;
the names of the predictions; how many genes the truth has, and how many of them are scored."""
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
    if not predictions:
        raise InputError("no prediction is given")
    for name in predictions:
        if name in names or name in RESERVED:
            raise InputError(f"{name!r} is the name of a baseline or of a file of this comparison: name it otherwise")
    files = {name: read_cells(cells) for name, cells in predictions.items()}
    first = next(iter(files.values()))
    schema = schema_of(first, schema)
    genes = tuple(map(str, first.var_names))
    label = dict.fromkeys(files, "the prediction") if len(files) == 1 else {name: f"{name!r}" for name in files}
    tables = {name: CellTable.from_anndata(file, schema, genes, label[name]) for name, file in files.items()}
    true = read_cells(truth)
    target = CellTable.from_anndata(true, schema, genes, "the truth")
    trained = None if train is None else read_cells(train)
    known = None if trained is None else CellTable.from_anndata(trained, schema, genes, "the training data")
    _require_one_unit({label[name]: table for name, table in tables.items()}, target, known)
    scored = _common(tables, target, known, schema.control)
    scorer = Scorer(tables, target, known, schema, seed, names)
    generated = {key for key in scored if scorer.is_generated(key)}
    leaks = find_leaks_of_files(files, true, trained) + find_leaks(tables, target, known, scored, generated)
    rivals = _Rivals(target, scored)
    found = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:  # sorting and sums leave Python's lock
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
    table.attrs[LEAKS] = [leak.sentence for leak in leaks]
    table.attrs[MODELS] = list(tables)
    return table


def _require_one_unit(tables: Mapping[str, CellTable], target: CellTable, train: CellTable | None) -> None:
    name, first = next(iter(tables.items()))
    others = {**tables, "the truth": target} | ({} if train is None else {"the training data": train})
    for other, table in others.items():
        largest = max(float(table.survey.highest.max()), -float(table.survey.lowest.min()))
        if largest > LARGEST_VALUE:
            raise InputError(
                f"{other} holds values up to {largest:.3g}: no counts or logarithms of counts are as large"
            )
        if table.survey.looks_like_counts != first.survey.looks_like_counts:
            raise InputError(f"of {name} and {other}, one holds raw counts and one does not: give one unit")


def _common(
    tables: Mapping[str, CellTable], target: CellTable, train: CellTable | None, control: str | None
) -> list[Population]:
    first = next(iter(tables.values()))
    common = [key for key in first.keys if all(key in table.keys for table in (*tables.values(), target))]
    if control is not None:  # control cells that stand beside are no prediction, but those at an unseen time may be
        known = () if train is None else train.keys
        common = [key for key in common if key[1] or (key[2] is not None and key not in known)] or common
    if not common:
        both = "both" if len(tables) == 1 else "all"
        raise InputError(f"no population is in {both} files: predicted are {_names(first)}, true are {_names(target)}")
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
    why = "" if scored.n_cells >= MIN_CELLS else f"no verdict: fewer than {MIN_CELLS} true or predicted cells"
    for name, ceiling in scored.ceiling.items():
        metric = METRICS[name]
        estimates = {method: of[name] for method, of in scored.estimates.items()}
        capped = {m: e.at_most(metric.best, metric.higher_is_better) for m, e in estimates.items()}
        baselines = {m: e for m, e in capped.items() if m not in models}
        verdicts = {m: "" if why else judge(capped[m], baselines, metric.higher_is_better) for m in models}
        yield from _rows(str(scored.key), name, estimates, verdicts, ceiling, 1, why)


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
        sign, clip = (1, np.minimum) if metric.higher_is_better else (-1, np.maximum)
        values = {
            method: np.array([_value(found[i], method, name) for i in having])
            for method in dict.fromkeys(m for i in having for m in found[i].estimates)
        }
        capped = {m: clip(v, metric.best) for m, v in values.items()}
        verdicts, few = {}, set()
        for model in models:
            advantages = {m: sign * (capped[model] - v) for m, v in capped.items() if m not in models}
            enough = {m: a for m, a in advantages.items() if np.isfinite(a).sum() >= MIN_POPULATIONS}
            few |= {m for m, a in advantages.items() if 0 < np.isfinite(a).sum() < MIN_POPULATIONS}
            spread = {m: Estimate.over_populations(a, drawn[:, having]) for m, a in enough.items()}
            # a prediction that has no value where others have one has not been tried there
            is_whole = np.isfinite(values[model]).all() or not np.isfinite([*values.values()]).any(axis=0).all()
            verdicts[model] = judge_advantages(spread) if is_whole else ""
        complete = [m for m in values if all(m in found[i].estimates for i in having)]
        n = int(np.isfinite([values[m] for m in models]).all(axis=0).sum())
        why, aside = "", ""
        if n < MIN_POPULATIONS:
            why = f"no interval: fewer than {MIN_POPULATIONS} populations have a value"
        elif n < len(having):
            aside = f"{len(having) - n} of {len(having)} populations have no value: {metric.undefined}"
        elif few:
            aside = f"not judged, as they predict fewer than {MIN_POPULATIONS} populations: {', '.join(sorted(few))}"
        estimates = {m: Estimate.over_populations(values[m], drawn[:, having]) for m in complete}
        if why:
            estimates = {m: Estimate(e.value, np.full(1, np.nan)) for m, e in estimates.items()}
        ceilings = Estimate.over_populations(np.array([found[i].ceiling[name] for i in having]), drawn[:, having])
        yield from _rows(OVERALL, name, estimates, verdicts, ceilings.value, n, why, aside)


def _value(scored: Scored, method: str, metric: str) -> float:
    of_method = scored.estimates.get(method)
    return float("nan") if of_method is None else of_method[metric].value


def _rows(
    condition: str,
    name: str,
    estimates: Mapping[str, Estimate],
    verdicts: Mapping[str, str],
    ceiling: float,
    n_populations: int,
    why_not_judged: str,
    aside: str = "",
) -> Iterator[dict[str, object]]:
    metric = METRICS[name]
    others = [e.value for m, e in estimates.items() if m not in verdicts and not np.isnan(e.value)]
    floor = (max if metric.higher_is_better else min)(others, default=float("nan"))
    for method, estimate in estimates.items():
        note = metric.undefined if np.isnan(estimate.value) else why_not_judged
        if not note and method in verdicts:
            note = aside
            if not note and not verdicts[method]:
                note = _unjudged(metric, bool(others))
        numbers = (estimate.value, *estimate.interval(), floor, ceiling)
        row = (condition, name, method, *numbers, verdicts.get(method, ""), n_populations, note)
        yield dict(zip(COLUMNS, row, strict=False))


def _unjudged(metric: Metric, has_floor: bool) -> str:
    if not has_floor:
        return "no verdict: no baseline has a value"
    if not metric.is_resampled:
        return "no verdict: it takes no resamples of cells"
    return "no verdict: some resamples of cells have no value"


def _names(table: CellTable) -> str:
    names = [repr(str(Population(*key))) for key in table.keys]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
