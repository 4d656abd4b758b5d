"""The mean of an unseen context from how other contexts change, between differences and ratios of counts."""

from __future__ import annotations

import numpy as np

from squidiff.response.noise import beyond_noise
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import context_weights, drawn, elsewhere, median_distance

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

    All of this twice where populations have parts: for whole contexts, and for each part of the context's control
    cells from the parts of the others, averaged by how many cells a part has.

    The predictions by both, and all BANDWIDTHS, PSEUDO_COUNTS and PULLS, are averaged, each by its likelihood over the
    training populations when each one's context is left out in turn, and gene by gene by the gene's own errors there.
    Of the shift, what stands out of the noise of few cells is kept (`beyond_noise`).
    """

    def fit(self, populations: Populations) -> FoldShift:
        self.populations, mean = populations, populations.mean
        self.pseudo_counts = PSEUDO_COUNTS if populations.are_logarithms else PSEUDO_COUNTS[:1]
        self.unit = median_distance(mean[np.unique(populations.sources[populations.treated])])
        seen = [i for i in populations.treated if len(populations.elsewhere(populations.keys[i])) > 1]
        n_levels = 1 if populations.parts is None else 2
        surprise = np.zeros((n_levels, len(PULLS), len(self.pseudo_counts), len(BANDWIDTHS)))
        of_gene = np.zeros((*surprise.shape, mean.shape[1]))
        left_out = drawn(seen, MAX_LEFT_OUT)
        for i in left_out:
            source = populations.source_of(i)
            assert source is not None  # the treated have one
            guesses = self._predict_all(populations.keys[i], source)[0]
            errors = np.square(guesses - mean[i])
            of_all = np.maximum(errors.mean(axis=-1), LEAST)
            surprise += np.log(of_all)
            of_gene += errors / of_all.min() / len(left_out)
        # of a gene its own errors speak as well, as far as it errs at all
        choices = tuple(range(surprise.ndim))
        usual = of_gene.mean(axis=choices) + SMALLEST_ERROR
        against = surprise[..., None] * N_DIRECTIONS / 2 + OF_OWN_ERRORS * of_gene / usual
        self.weights = np.exp(against.min(axis=choices) - against)
        self.weights /= self.weights.sum(axis=choices)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        guesses, others, weights = self._predict_all(key, source)
        mean = np.einsum("lpabg,lpabg->g", self.weights, guesses)
        share = self.weights.sum(axis=(0, 1, 2)).mean(axis=-1) @ weights
        noise = np.square(share) @ self.populations.noise(others)
        return np.asarray(source.mean + beyond_noise(mean - source.mean, noise))

    def _predict_all(self, key: Population, source: Source) -> tuple[np.ndarray, list[int], np.ndarray]:
        """The prediction by each choice, levels x pulls x pseudo-counts x bandwidths x G.

        And the populations under the same condition elsewhere, with how much each counts, bandwidths x populations.
        """
        others, means = elsewhere(self.populations, key), self.populations.mean
        control, treated = means[self.populations.sources[others]], means[others]
        weights = context_weights(control, source.mean, self.unit, BANDWIDTHS)
        whole = self._changed(source.mean, control, treated, weights)
        of_parts = [] if self.populations.parts is None else [self._by_parts(others, source, whole, weights)]
        return np.stack([whole, *of_parts]), others, weights

    def _by_parts(self, others: list[int], source: Source, whole: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The same, averaged over the parts of the source; `whole` again where it or the others have none.

        And as far as it has none: what others without parts count, bandwidth by bandwidth, whole contexts do here too.
        """
        parts, sources = self.populations.parts, self.populations.sources
        assert parts is not None  # only then is it asked for
        start = self.populations.find(source.key)
        are_split = np.array([i in parts.rows and int(sources[i]) in parts.rows for i in others])
        if start not in parts.rows or not are_split.any():
            return whole
        known = [i for i, is_split in zip(others, are_split, strict=True) if is_split]
        of_treated = np.concatenate([parts.rows[i] for i in known])
        of_control = np.concatenate([parts.rows[int(sources[i])] for i in known])
        control, treated, own = parts.mean[of_control], parts.mean[of_treated], parts.rows[start]
        mean = source.mean - parts.share[own] @ parts.mean[own]  # 0 where the source is the cells of training
        for row in own:
            of_parts = context_weights(control, parts.mean[row], self.unit, BANDWIDTHS) * parts.share[of_control]
            of_parts /= of_parts.sum(axis=1, keepdims=True)
            mean = mean + parts.share[row] * self._changed(parts.mean[row], control, treated, of_parts)
        counted = weights[:, are_split].sum(axis=1)[:, None]
        return np.asarray(counted * mean + (1 - counted) * whole)

    def _changed(self, mean: np.ndarray, control: np.ndarray, treated: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """A mean (G,), changed as others are by each choice, pulls x pseudo-counts x bandwidths x G."""
        level = weights @ treated
        changed = [mean + weights @ (treated - control)]  # of a = 1 h is the identity, and defined for all numbers
        if len(self.pseudo_counts) > 1:
            count, before, after = (np.expm1(np.maximum(m, 0.0)) for m in (mean, control, treated))
            changed += [_moved(mean, count, before, after, weights, a) for a in self.pseudo_counts[1:]]
        moved = np.stack(changed)
        moved -= SATURATION * np.maximum(moved - np.maximum(level, mean), 0.0)
        return np.stack([moved + pull * (level - moved) for pull in PULLS])


def _moved(
    mean: np.ndarray, count: np.ndarray, before: np.ndarray, after: np.ndarray, weights: np.ndarray, a: float
) -> np.ndarray:
    """`mean` (G,) after the weighted changes of h, one row for each row of weights (W x contexts), by counts.

    Below 0, where corrected logarithms may have a mean of few cells, there is no count: what lies there stays.
    """
    ratio = np.exp(weights @ (np.log(after + a) - np.log(before + a)))
    return np.asarray(np.log1p(count * ratio + a * np.maximum(ratio - 1.0, 0.0)) + np.minimum(mean, 0.0))
