"""The mean of an unseen context from how other contexts change, between differences and ratios of counts."""

from __future__ import annotations

import numpy as np

from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shape import LARGEST_LOGARITHM
from squidiff.response.shift import beyond_noise, context_weights, drawn, elsewhere, median_distance

BANDWIDTHS = (0.06, 0.12, 0.25, 0.5)
"""Of the weights of contexts, in median distances between them."""
PSEUDO_COUNTS = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Of log-normalised cells: from differences of logarithms (1) to ratios of counts."""
PULLS = (0.0, 0.1)
"""Towards the level that treated cells have elsewhere."""
SATURATION = 0.3
"""Of a rise beyond the level that others reach, what is taken away."""
N_DIRECTIONS = 2
"""In which the errors of a population speak for one choice: fewer than for rival predictors, since all of these choices
err alike."""
OF_OWN_ERRORS = 2.0
"""How much a gene's own errors, as a share of its mean error over all choices, speak for one, beside those of all."""
SMALLEST_ERROR = 0.02
"""Of a gene, as a share of the mean over genes: what hardly errs has nothing to say."""
LEAST = 1e-12
"""Mean squared error that is as good as none."""
MAX_LEFT_OUT = 60


class FoldShift:
    """The source mean, moved as the other contexts are: by differences, by ratios of counts, and by what lies between.

    With h(m) = log(exp(m) - 1 + a), a gene of mean m moves by the weighted mean of h(treated) - h(control) over the
    other contexts. Of log-normalised cells a = 1 makes this the weighted shift, and a towards 0 a ratio of counts: a
    gene that is low elsewhere and high here then falls, or rises, in proportion. Contexts are weighted as in
    `WeightedShift`. A gene that falls, falls by no more than in proportion, in counts, and so never to 0: the
    variance of a gene that few cells express hangs on it. A gene that rises saturates: of what it would rise beyond
    the weighted mean level that it reaches elsewhere, SATURATION is taken away. A pull takes the mean that share of
    the way to this level.

    The predictions by all BANDWIDTHS, PSEUDO_COUNTS and PULLS are averaged, each by its likelihood over the training
    populations when each one's context is left out in turn, and gene by gene by the gene's own errors there.
    Of the shift, what stands out of the noise of few cells is kept (`beyond_noise`).
    """

    def fit(self, populations: Populations) -> FoldShift:
        self.populations, mean = populations, populations.mean
        are_logarithms = mean.min() >= 0 and mean.max() <= LARGEST_LOGARITHM
        self.pseudo_counts = PSEUDO_COUNTS if are_logarithms else PSEUDO_COUNTS[:1]
        self.unit = median_distance(mean[np.unique(populations.sources[populations.treated])])
        seen = [i for i in populations.treated if len(populations.elsewhere(populations.keys[i])) > 1]
        surprise = np.zeros((len(PULLS), len(self.pseudo_counts), len(BANDWIDTHS)))
        of_gene = np.zeros((*surprise.shape, mean.shape[1]))
        left_out = drawn(seen, MAX_LEFT_OUT)
        for i in left_out:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            guesses = self._predict_all(*self._others(populations.keys[i], source), source)
            errors = np.square(guesses - mean[i])
            of_all = np.maximum(errors.mean(axis=-1), LEAST)
            surprise += np.log(of_all)
            of_gene += errors / of_all.min() / len(left_out)
        # of a gene its own errors speak as well, as far as it errs at all
        usual = of_gene.mean(axis=(0, 1, 2)) + SMALLEST_ERROR
        against = surprise[..., None] * N_DIRECTIONS / 2 + OF_OWN_ERRORS * of_gene / usual
        self.weights = np.exp(against.min(axis=(0, 1, 2)) - against)
        self.weights /= self.weights.sum(axis=(0, 1, 2))
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        others, weights = self._others(key, source)
        mean = np.einsum("pabg,pabg->g", self.weights, self._predict_all(others, weights, source))
        share = self.weights.sum(axis=(0, 1)).mean(axis=-1) @ weights
        noise = np.square(share) @ self.populations.noise(others)
        return np.asarray(source.mean + beyond_noise(mean - source.mean, noise))

    def _others(self, key: Population, source: Source) -> tuple[list[int], np.ndarray]:
        """The populations under the same condition elsewhere, and how much each counts, bandwidths x populations."""
        others = elsewhere(self.populations, key)
        control = self.populations.mean[self.populations.sources[others]]
        return others, context_weights(control, source.mean, self.unit, BANDWIDTHS)

    def _predict_all(self, others: list[int], weights: np.ndarray, source: Source) -> np.ndarray:
        """The prediction by each choice, pulls x pseudo-counts x bandwidths x G."""
        control, treated = self.populations.mean[self.populations.sources[others]], self.populations.mean[others]
        level = weights @ treated
        moved = np.stack([_moved(source.mean, control, treated, weights, a) for a in self.pseudo_counts])
        moved -= SATURATION * np.maximum(moved - np.maximum(level, source.mean), 0.0)
        return np.stack([moved + pull * (level - moved) for pull in PULLS])


def _moved(mean: np.ndarray, control: np.ndarray, treated: np.ndarray, weights: np.ndarray, a: float) -> np.ndarray:
    """`mean` (G,) after the weighted changes of h, one row for each row of weights (W x contexts)."""
    if a == 1.0:  # h is the identity, and defined for all numbers
        return np.asarray(mean + weights @ (treated - control))
    count, before, after = np.expm1(mean), np.log(np.expm1(control) + a), np.log(np.expm1(treated) + a)
    ratio = np.exp(weights @ (after - before))
    return np.asarray(np.log1p(count * ratio + a * np.maximum(ratio - 1.0, 0.0)))
