"""How much of the way from the best baseline to the ceiling a model goes, from the table of a benchmark.

    python benchmarks/share_closed.py results/bench/benchmark.csv --means-only l1000-drugs [--model squidiff]

Of every task, by mean over its seeds: the model, the model beside it, the best baseline and the ceiling; and the share
closed, (model - baseline) / (ceiling - baseline). The last lines average the shares over the tasks whose ceiling lies
outside the 95 % interval of the best baseline: of others there is no way to go. The best baseline is the one of the
best mean, chosen for every task and metric with the truth in sight. Of tasks named by --means-only, whose populations
have too few cells or profiles for a distribution, delta Pearson alone is shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from squidiff.evaluate.baselines import NAMES

METRICS = (
    *("delta_pearson", "energy_distance", "variance_pearson", "variance_error"),
    *("zero_fraction_error", "correlation_distance"),
)
SHARED = METRICS[:2]
"""Whose shares are averaged."""


def rows_of_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Of every task and seed the mean over its populations, where it has several, or its only one."""
    is_mean = table["condition"] == "all populations"
    has_mean = table.groupby(["task", "seed"])["condition"].transform(lambda c: (c == "all populations").any())
    return table[is_mean | ~has_mean]


def of_one(rows: pd.DataFrame, model: str, beside: str) -> dict[str, float]:
    """Of one task and metric, all seeds: the values, and whether there is a way to go."""
    mean = rows.groupby("method")[["value", "low", "high", "ceiling"]].mean()
    baselines = mean[mean.index.isin(NAMES)].dropna(subset="value")
    higher = "pearson" in rows["metric"].iloc[0]
    best = baselines.loc[baselines["value"].idxmax() if higher else baselines["value"].idxmin()]
    ours, ceiling = float(mean.loc[model, "value"]), float(best["ceiling"])
    has_way = ceiling > best["high"] if higher else ceiling < best["low"]
    share = (ours - best["value"]) / (ceiling - best["value"]) if has_way else float("nan")
    values = rows.loc[rows["method"] == model, "value"]
    found = {"model": ours, "least": values.min(), "most": values.max()}
    found["beside"] = float(mean["value"].get(beside, float("nan")))
    return found | {
        "baseline": best["value"],
        "low": best["low"],
        "high": best["high"],
        "ceiling": ceiling,
        "share": share,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--model", default="squidiff")
    parser.add_argument("--beside", default="first level")
    parser.add_argument("--means-only", action="append", default=[], metavar="TASK")
    args = parser.parse_args()
    table = rows_of_tasks(pd.read_csv(args.table))
    found = {}
    for key, rows in table[table["metric"].isin(METRICS)].groupby(["task", "metric"], sort=False):
        is_asked = key[1] == METRICS[0] or key[0] not in args.means_only
        if is_asked and rows.loc[rows["method"].isin(NAMES), "value"].notna().any():
            found[key] = of_one(rows, args.model, args.beside)
    print(f"| task | metric | {args.model} (seeds) | {args.beside} | best baseline (95 %) | ceiling | share closed |")
    print("|---|---|---|---|---|---|---|")
    for (task, metric), of in found.items():
        share = f"{of['share']:.2f}" if metric in SHARED and of["share"] == of["share"] else "-"
        ours = f"{of['model']:.3f} ({of['least']:.3f} to {of['most']:.3f})"
        best = f"{of['baseline']:.3f}" + (f" ({of['low']:.3f} to {of['high']:.3f})" if of["low"] == of["low"] else "")
        other = f"{of['beside']:.3f}" if of["beside"] == of["beside"] else "-"
        numbers = f"{ours} | {other} | {best} | {of['ceiling']:.3f}"
        print(f"| {task} | {metric.replace('_', ' ')} | {numbers} | {share} |")
    for metric in SHARED:
        shares = [of["share"] for (_, name), of in found.items() if name == metric and of["share"] == of["share"]]
        mean = f"{sum(shares) / len(shares):.2f}" if shares else "no task has a way to go"
        print(f"share closed of {metric.replace('_', ' ')}, mean of {len(shares)} tasks: {mean}")


if __name__ == "__main__":
    main()
