"""The metrics: what is measured between predicted and true cells, a row of METRICS each. NaN stays NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from squidiff.evaluate import distributions, means
from squidiff.evaluate.means import N_TOP_GENES, of_means
from squidiff.evaluate.pairs import Pair, Resample


@dataclass(frozen=True)
class Metric:
    """A metric, a value for each resample (B,); its best value and direction."""

    function: Callable[[Resample], np.ndarray]
    best: float
    higher_is_better: bool
    needs: Literal["", "control", "perturbed mean", "other conditions"] = ""
    """What must be known besides the cells."""
    is_resampled: bool = True
    """Whether it takes resamples, and so has an interval; else the whole pair alone, as it costs more."""
    undefined: str = "not defined for these cells"
    """Why it has no value where it is NaN."""
    source: str = "its definition"
    """Who proposed it."""
    may_pass_best: bool = False
    """Whether noise may take it beyond its best value, as unbiased distances below 0."""

    def within(self, low: float, high: float) -> tuple[float, float]:
        """An interval without what no value can be."""
        if self.may_pass_best:
            return low, high
        clip = min if self.higher_is_better else max
        return clip(low, self.best), clip(high, self.best)


def _expressed(sample: Resample) -> tuple[np.ndarray, np.ndarray, np.ndarray, int] | None:
    """Which genes truly differ, and are predicted to go in that direction; which of these also significantly.

    Then the genes that are predicted to differ most, as many as truly do, and this number. None where none does.
    """
    truth, predicted = sample.pair.truly_expressed, sample.pair.predicted_expressed
    if truth is None or predicted is None or not truth.is_significant.any():
        return None
    is_alike = truth.is_significant & (np.sign(truth.effect) == np.sign(predicted.effect))
    n = int(truth.is_significant.sum())
    return is_alike, is_alike & predicted.is_significant, predicted.top(n), n


def de_overlap(sample: Resample) -> np.ndarray:
    """Share of the k truly differential genes that are among the k most significant of the prediction.

    And change in the same direction. Wilcoxon, false discovery rate 5 %; k is the number of truly differential ones.
    NaN where there is none.
    """
    found = _expressed(sample)
    return sample.unknown if found is None else np.array([found[0][found[2]].mean()])


def de_precision(sample: Resample) -> np.ndarray:
    """Share of the N_TOP_GENES most significant genes of the prediction that truly differ, in the same direction."""
    found = _expressed(sample)
    if found is None:
        return sample.unknown
    predicted = sample.pair.predicted_expressed
    assert predicted is not None
    return np.array([found[0][predicted.top(N_TOP_GENES)].mean()])


def de_recall(sample: Resample) -> np.ndarray:
    """Share of the truly differential genes that are significant in the prediction, in the same direction."""
    found = _expressed(sample)
    return sample.unknown if found is None else np.array([found[1].sum() / found[3]])


def _control(pair: Pair) -> np.ndarray | None:
    return pair.control_mean


def _perturbed(pair: Pair) -> np.ndarray | None:
    return pair.perturbed_mean


_CORRELATIONS = {
    "pearson": partial(of_means, means.pearson),
    "spearman": partial(of_means, means.pearson, ranked=True),
    "r2": partial(of_means, means.r2),
    "cosine": partial(of_means, means.cosine),
}
_FLAT = "a profile, or its change, is the same for all genes, or there is one gene"
_NOT_EXPRESSED = "no gene truly differs from control at a false discovery rate of 5 %"
_ONE_CELL = "there is a single true or predicted cell, or the training cells do not vary"
_FEW_CELLS = "there are too few true or predicted cells, or they do not vary"
_ERRORS = {"mean_squared_error": means.mean_squared_error, "mean_absolute_error": means.mean_absolute_error}
_DISTRIBUTIONS = {
    "energy_distance": Metric(distributions.energy_distance, 0.0, False, undefined=_ONE_CELL),
    "normalised_energy_distance": Metric(distributions.normalised_energy_distance, 0.0, False, undefined=_ONE_CELL),
    "mmd": Metric(distributions.mmd, 0.0, False, undefined=_FEW_CELLS),
    "gene_wasserstein": Metric(distributions.gene_wasserstein, 0.0, False, is_resampled=False),
    "sliced_wasserstein": Metric(distributions.sliced_wasserstein, 0.0, False, "", False, _FEW_CELLS),
    "variance_pearson": Metric(distributions.variance_pearson, 1.0, True, undefined=_FEW_CELLS),
    "variance_error": Metric(distributions.variance_error, 0.0, False, undefined=_FEW_CELLS),
    "zero_fraction_error": Metric(distributions.zero_fraction_error, 0.0, False),
    "correlation_distance": Metric(distributions.correlation_distance, 0.0, False, "", False, _FEW_CELLS),
    "classifier_accuracy": Metric(distributions.classifier_accuracy, 0.5, False, "", False, _FEW_CELLS),
    "fidelity": Metric(distributions.fidelity, 1.0, True, "", False, _FEW_CELLS),
    "coverage": Metric(distributions.coverage, 1.0, True, "", False, _FEW_CELLS),
    "energy_distance_top_genes": Metric(
        distributions.energy_distance_top_genes, 0.0, False, "control", False, _ONE_CELL
    ),
    "gene_wasserstein_top_genes": Metric(distributions.gene_wasserstein_top_genes, 0.0, False, "control", False),
}


def _of_profiles(top: bool) -> dict[str, Metric]:
    """On the top genes, or on all."""
    suffix = "_top_genes" if top else ""
    rows: dict[str, Metric] = {}
    for name, of in _CORRELATIONS.items():
        of_itself = Metric(of(None, top), 1.0, True, "control" if top else "", undefined=_FLAT)
        rows[f"{name}{suffix}"] = of_itself
        rows[f"delta_{name}{suffix}"] = replace(of_itself, function=of(_control, top), needs="control")
        of_own = replace(of_itself, function=of(_perturbed, top), needs="perturbed mean")
        rows[f"delta_{name}_from_perturbed{suffix}"] = of_own
    for name, statistic in _ERRORS.items():  # the same of changes, whatever the reference
        rows[f"{name}{suffix}"] = Metric(of_means(statistic, None, top), 0.0, False, "control" if top else "")
    rows[f"sign_agreement{suffix}"] = Metric(
        of_means(means.sign_agreement, _control, top), 1.0, True, "control", undefined="no gene truly changes"
    )
    return rows


_TABLE: dict[str, Metric] = {
    **_of_profiles(top=False),
    **_of_profiles(top=True),
    "de_overlap": Metric(de_overlap, 1.0, True, "control", False, _NOT_EXPRESSED),
    "de_precision": Metric(de_precision, 1.0, True, "control", False, _NOT_EXPRESSED),
    "de_recall": Metric(de_recall, 1.0, True, "control", False, _NOT_EXPRESSED),
    **{
        f"discrimination_{name}": Metric(
            means.discrimination(distance), 1.0, True, "other conditions", False, "the prediction is control itself"
        )
        for name, distance in (("l1", "cityblock"), ("l2", "euclidean"), ("cosine", "cosine"))
    },
    **_DISTRIBUTIONS,
}

_SOURCES = {
    "_from_perturbed": "Vinas Torne et al., Nature Biotechnology 2025",
    "de_": "Wilcoxon 1945; Benjamini and Hochberg 1995",
    "discrimination_": "Virtual Cell Challenge 2025",
    "energy_distance": "Szekely and Rizzo 2013",
    "mmd": "Gretton et al. 2012",
    "sliced_wasserstein": "Bonneel et al. 2015",
    "classifier_accuracy": "Lopez-Paz and Oquab 2017",
    "fidelity": "Kynkaanniemi et al. 2019",
    "coverage": "Naeem et al. 2020",
}
"""By a part of the metric's name."""


def _with_source(name: str, metric: Metric) -> Metric:
    source = next((s for part, s in _SOURCES.items() if part in name), metric.source)
    return replace(metric, source=source, may_pass_best="energy_distance" in name or name == "mmd")


METRICS: dict[str, Metric] = {name: _with_source(name, metric) for name, metric in _TABLE.items()}
"""Every metric by its name."""

HEADLINE = (
    "delta_pearson",
    "energy_distance",
    "pearson",
    "mean_squared_error",
    "variance_pearson",
    "zero_fraction_error",
)
"""Those that are shown to a person; all are in the table."""


def score(pair: Pair, names: Iterable[str] = METRICS) -> dict[str, float]:
    """Each metric's value."""
    sample = Resample.whole(pair)
    return {name: float(METRICS[name].function(sample)[0]) for name in names}
