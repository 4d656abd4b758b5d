"""Metrics of how cells are distributed: in the space of principal components, or gene by gene."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from squidiff.evaluate.means import pearson, top_genes
from squidiff.evaluate.pairs import CELLS_PER_BLOCK, Resample, among, distance, sums

N_DIRECTIONS = 64
N_NEIGHBOURS = 5
N_CORRELATED = 200
"""Genes, those that vary most in the truth, whose correlations are compared."""
N_FOLDS = 5
SMALLEST_VARIANCE = 1e-8
"""Of a gene that varies; noise of rounding lies below."""


def energy_distance(sample: Resample) -> np.ndarray:
    """2 E|x - y| - E|x - x'| - E|y - y'|, Euclidean on principal components, unbiased (Szekely and Rizzo 2013).

    The within terms are over pairs of different cells, so that it is 0 on average for two samples of one distribution.
    """
    if not sample.pair.has_space:
        return sample.unknown
    return 2 * sample.kernels_across[0] - sample.kernels_of_truth[0] - sample.kernels_of_prediction[0]


def normalised_energy_distance(sample: Resample) -> np.ndarray:
    """The energy distance by 2 E|x - y|: 1 for distributions that are far apart."""
    across = sample.kernels_across[0]
    return np.divide(energy_distance(sample), 2 * across, out=sample.unknown, where=across > 0)


def mmd(sample: Resample) -> np.ndarray:
    """Squared maximum mean discrepancy, unbiased, mean over Gaussian kernels of five bandwidths (Gretton et al. 2012).

    The bandwidths are the truth's alone, so that a prediction cannot choose its own.
    """
    if len(sample.pair.kernels) < 2:
        return sample.unknown
    return sample.kernels_of_truth[1] + sample.kernels_of_prediction[1] - 2 * sample.kernels_across[1]


def wasserstein(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The 1-Wasserstein distance of each column of x (N x K) and y (M x K), (K,): the mean gap of their quantiles."""
    n, m = len(x), len(y)
    ends = np.unique(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))  # where one of both steps
    widths = np.diff(ends, prepend=0) / (n * m)
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    return np.asarray(widths @ np.abs(x[(ends - 1) // m] - y[(ends - 1) // n]))


def gene_wasserstein(sample: Resample) -> np.ndarray:
    """Mean over genes of the 1-Wasserstein distance."""
    return np.array([wasserstein(sample.pair.predicted, sample.pair.truth).mean()])


def gene_wasserstein_top_genes(sample: Resample) -> np.ndarray:
    """The same over the genes that differ most between truth and control; NaN where there is no control."""
    genes = top_genes(sample.pair)
    if genes is None:
        return sample.unknown
    return np.array([wasserstein(sample.pair.predicted[:, genes], sample.pair.truth[:, genes]).mean()])


def energy_distance_top_genes(sample: Resample) -> np.ndarray:
    """The energy distance on those genes as they are, without principal components; NaN where there is no control."""
    genes = top_genes(sample.pair)
    if genes is None:
        return sample.unknown
    x, y = sample.pair.predicted[:, genes], sample.pair.truth[:, genes]
    across = sums([distance], y, x, sample.truth_weights, sample.predicted_weights)
    within = among([distance], y, sample.truth_counts) + among(
        [distance], x, sample.predicted_counts, sample.pair.predicted_origin
    )
    return np.asarray((2 * across - within)[0])


def sliced_wasserstein(sample: Resample) -> np.ndarray:
    """Mean of the 1-Wasserstein distance over fixed random directions of the principal components (Bonneel 2015)."""
    pair = sample.pair
    if not pair.truth_pcs.shape[1]:
        return sample.unknown
    directions = np.random.default_rng(0).normal(size=(pair.truth_pcs.shape[1], N_DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    return np.array([wasserstein(pair.predicted_pcs @ directions, pair.truth_pcs @ directions).mean()])


def variance_pearson(sample: Resample) -> np.ndarray:
    """Pearson correlation over genes of the logarithms of the variances, of the genes that vary in both.

    NaN where fewer than half of the genes that truly vary are predicted to. It is blind to the size of variances, which
    `variance_error` sees.
    """
    found = sample.unknown
    for i, (predicted, truth) in enumerate(zip(sample.predicted_variance, sample.truth_variance, strict=True)):
        both = (truth > SMALLEST_VARIANCE) & (predicted > SMALLEST_VARIANCE)
        if 2 * both.sum() >= (truth > SMALLEST_VARIANCE).sum():
            found[i] = pearson(np.log(predicted[both])[None], np.log(truth[both])[None])[0]
    return found


def variance_error(sample: Resample) -> np.ndarray:
    """Mean over genes of |log((predicted + e) / (true + e))| of the variances; e is a hundredth of the mean true one.

    So that genes of few counts, which may vary in one sample and not in another, weigh little. NaN where none varies.
    """
    predicted, truth = sample.predicted_variance, sample.truth_variance
    e = truth.mean(axis=1, keepdims=True) / 100
    e[e == 0] = np.nan
    return np.asarray(np.abs(np.log((predicted + e) / (truth + e))).mean(axis=1))


def zero_fraction_error(sample: Resample) -> np.ndarray:
    """Mean over genes of the absolute difference of the share of cells in which the gene is zero."""
    truth = sample.truth_weights @ (sample.pair.truth == 0)
    predicted = sample.predicted_weights @ (sample.pair.predicted == 0)
    return np.asarray(np.abs(predicted - truth).mean(axis=1))


def correlation_distance(sample: Resample) -> np.ndarray:
    """Root mean square difference of the correlations of two genes, over pairs of the genes that vary most in truth.

    Of those that vary in truth, NaN when fewer than two do; one that is predicted not to vary goes with none. NaN too
    when fewer than half are predicted to vary: what does not vary has no noise, and is not so a better prediction.
    """
    truth, predicted = sample.pair.truth, sample.pair.predicted
    most = np.argsort(-truth.var(axis=0), kind="stable")[:N_CORRELATED]
    genes = most[truth[:, most].var(axis=0) > SMALLEST_VARIANCE]
    if len(genes) < 2 or 2 * (predicted[:, genes].var(axis=0) > SMALLEST_VARIANCE).sum() < len(genes):
        return sample.unknown
    gap = _correlations(predicted[:, genes]) - _correlations(truth[:, genes])
    return np.sqrt([np.square(gap[np.triu_indices(len(genes), 1)]).mean()])


def _correlations(cells: np.ndarray) -> np.ndarray:
    """G x G; 0 of a gene that does not vary."""
    varies = cells.var(axis=0) > SMALLEST_VARIANCE
    found = np.zeros((cells.shape[1], cells.shape[1]))
    if varies.sum() > 1:
        found[np.ix_(varies, varies)] = np.corrcoef(cells[:, varies], rowvar=False)
    return found


def classifier_accuracy(sample: Resample) -> np.ndarray:
    """How well a linear classifier tells predicted from true cells, cross-validated and balanced: 0.5 for not at all.

    Lopez-Paz and Oquab (2017); linear discriminant analysis on principal components. NaN with fewer than ten of either.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    cells = np.concatenate([sample.pair.predicted_pcs, sample.pair.truth_pcs])
    is_true = np.arange(len(cells)) >= len(sample.pair.predicted)
    if min(is_true.sum(), (~is_true).sum()) < 2 * N_FOLDS or not np.ptp(cells, axis=0).any():
        return sample.unknown
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-3)
    accuracy = cross_val_score(model, cells, is_true, cv=folds, scoring="balanced_accuracy").mean()
    return np.array([max(accuracy, 0.5)])  # below, it learned what the other folds deny: near copies on both sides


def fidelity(sample: Resample) -> np.ndarray:
    """Share of predicted cells that lie within the neighbourhood of a true one (Kynkaanniemi et al. 2019)."""
    return _neighbourhoods(sample)[0]


def coverage(sample: Resample) -> np.ndarray:
    """Share of true cells that have a predicted one in their neighbourhood (Naeem et al. 2020)."""
    return _neighbourhoods(sample)[1]


def _neighbourhoods(sample: Resample) -> tuple[np.ndarray, np.ndarray]:
    """A true cell's neighbourhood reaches to its N_NEIGHBOURS-th nearest true cell."""
    truth, predicted = sample.pair.truth_pcs, sample.pair.predicted_pcs
    if len(truth) <= N_NEIGHBOURS or not sample.pair.has_space:
        return sample.unknown, sample.unknown
    is_near, n_covered = np.zeros(len(predicted), dtype=bool), 0
    for first in range(0, len(truth), CELLS_PER_BLOCK):
        block = truth[first : first + CELLS_PER_BLOCK]
        radius = np.partition(cdist(block, truth), N_NEIGHBOURS, axis=1)[:, N_NEIGHBOURS]  # the cell itself is at 0
        inside = cdist(block, predicted) <= radius[:, None]
        is_near |= inside.any(axis=0)
        n_covered += int(inside.any(axis=1).sum())
    return np.array([is_near.mean()]), np.array([n_covered / len(truth)])
