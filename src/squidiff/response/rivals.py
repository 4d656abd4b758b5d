"""How rival predictors of a mean are weighed: by how they err on training populations that are left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from squidiff.config import PART_SEPARATOR
from squidiff.response.embedding import MIN_CONDITIONS, described_alike, folds_of_unseen
from squidiff.response.groups import Group
from squidiff.response.populations import Population, Populations
from squidiff.response.shift import CannotPredict, Predictor, drawn, likelihood

MAX_LEFT_OUT = 200
"""Populations that predictors are compared on."""
MIN_TRIED = 8
"""Of these, that rivals are compared on, where the first of them was tried on as many."""
MIN_AT = 5
"""At the time and the strength asked for, that suffice to compare them there."""
MIN_OWN = 10
"""Of one context, that suffice to compare them there."""
MAX_CONTEXTS = 12
"""Contexts that these are of: of each it has to be learned how it answers."""
N_FOLDS = 3
"""In which conditions are left out to compare predictors of unseen ones."""
SMALLEST_SHARE = 1e-9
"""Of the errors of all predictors, what is as good as none."""
SUM_TO_ONE = 1e6
"""How much a sum of weights other than 1 counts, in squared errors of the best predictor."""
Fitted = Callable[[str], Predictor]
"""A predictor by its name, fitted on some populations."""


class Tried(NamedTuple):
    """How K rivals err on n populations that none of them looked at."""

    products: np.ndarray
    """n x K x K, of their errors, mean over genes; NaN of those that cannot predict it."""
    contexts: np.ndarray
    """(n,) of the populations."""
    at: np.ndarray
    """n x 2, their time (NaN without) and the size of their strength."""
    sides: np.ndarray
    """(n,) on which side of the other times of the same context and condition they lie (see `_side`)."""

    @classmethod
    def on(cls, populations: Populations, found: Sequence[tuple[int, np.ndarray]], n_rivals: int) -> Tried:
        """From the index of each population and the products, K x K."""
        keys = [populations.keys[i] for i, _ in found]
        at = [_time_and_strength(key, populations.features[i]) for key, (i, _) in zip(keys, found, strict=True)]
        return cls(
            np.array([products for _, products in found]).reshape(-1, n_rivals, n_rivals),
            np.array([key.context for key in keys], dtype=object),
            np.array(at, dtype=float).reshape(-1, 2),
            np.array([_side(populations, key) for key in keys], dtype=int),
        )

    def nearest(self, key: Population, features: np.ndarray, side: int, *, of_unseen: bool) -> np.ndarray:
        """Which of them tell most of what is asked for, as far as the first rival was tried there, (n,).

        Those of the same context at the same time and dose, where they are MIN_AT, else of the same context, where they
        are MIN_OWN, else at the same time and dose, else all: a context may answer otherwise than others, and what is
        right between two times or doses need not be so before or beyond them. Unseen conditions are compared at all
        times and doses. What lies before the times that are known never tells of what lies beyond them, nor the other
        way round.
        """
        can_tell = (self.sides != -side) | (side == 0)
        is_tried = can_tell & self.is_tried
        here, at = is_tried & (self.contexts == key.context), is_tried & self.is_at(key, features)
        if of_unseen or at.sum() == is_tried.sum():  # in the latter case there is but one time and dose
            at[:] = False
        for some, least in ((here & at, MIN_AT), (here, MIN_OWN), (at, MIN_AT)):
            if some.sum() >= least:
                return some
        return np.asarray(can_tell)

    @property
    def is_tried(self) -> np.ndarray:
        """On which of them the first rival could be tried, (n,)."""
        return np.isfinite(self.products[:, 0, 0])

    def is_at(self, key: Population, features: np.ndarray) -> np.ndarray:
        """Which of them are of the same time and dose, (n,)."""
        alike = np.isclose(self.at, np.array(_time_and_strength(key, features)), equal_nan=True)
        if PART_SEPARATOR in key.condition:  # of several doses together no size is known
            alike[:, 1] = True
        return np.asarray(alike.all(axis=1))


class Rivals:
    """The predictors of each group, tried on training populations that are left out when they are first asked for."""

    def __init__(self, populations: Populations, fitted: Fitted, again: Callable[[Populations], Fitted]) -> None:
        """`fitted` are those fitted on the populations, `again` fits them on some of these."""
        self.populations, self.fitted, self.again = populations, fitted, again
        self.n_described = len(np.unique(described_alike(populations.features[populations.treated, 1:])))
        self._tried: dict[tuple[Group, bool], Tried] = {}

    def weights(
        self, group: Group, names: tuple[str, ...], key: Population, features: np.ndarray, is_new: bool
    ) -> np.ndarray:
        """Of some of a group's predictors, by the populations left out that all of them can predict.

        By those of them that tell most of the one asked for (`Tried.nearest`); `is_new` says that its context answered
        to nothing yet. One that could be tried on few counts nothing, or the others would be compared on these few
        alone; nor does a bold one without MIN_AT of the same time and dose. Few conditions hardly tell whether one more
        shares what they do: before they are asked, half of it is expected. Where nothing could be tried the first
        stands alone, or with what its group has `beside`.
        """
        of_unseen = group.leaves_conditions_out
        is_new &= group.leaves_contexts_out and not of_unseen
        chosen = [group.names.index(name) for name in names]
        found = self.tried(group, is_new)
        nearest, at = np.ones(len(found.products), dtype=bool), found.is_tried
        if not is_new:
            nearest = found.nearest(key, features, _side(self.populations, key), of_unseen=of_unseen)
            at = at & found.is_at(key, features)
        products = found.products[nearest][:, chosen][:, :, chosen]
        can = np.isfinite(np.diagonal(products, axis1=1, axis2=2))
        compared = [k for k, name in enumerate(names) if name not in group.bold or at.sum() >= MIN_AT]
        while can[:, compared].all(axis=1).sum() < min(MIN_TRIED, can[:, 0].sum()):
            compared.remove(min(compared[1:], key=lambda k: int(can[:, k].sum())))
        products = products[can[:, compared].all(axis=1)][:, compared][:, :, compared]
        weights, expected = np.eye(len(names))[0], None
        if of_unseen and self.n_described < MIN_CONDITIONS and "no change" in names:
            weights[0] = weights[names.index("no change")] = 0.5
            expected = weights[compared]
        if len(products):
            weights[compared] = stacked(products, expected)
        elif group.beside in names and not is_new:
            weights[0] = weights[names.index(group.beside)] = 0.5
        return weights

    def tried(self, group: Group, is_new: bool) -> Tried:
        """How a group's predictors err; on whole contexts left out for a context that `is_new`."""
        if (group, is_new) not in self._tried:
            leave_out = self._contexts if is_new else self._conditions if group.leaves_conditions_out else self._singly
            found = leave_out(group) if len(group.names) > 1 else []
            self._tried[group, is_new] = Tried.on(self.populations, found, len(group.names))
        return self._tried[group, is_new]

    def _singly(self, group: Group) -> list[tuple[int, np.ndarray]]:
        """Of predictors that never look at the population asked for."""
        keys = self.populations.keys
        asked = [i for i in self.populations.treated if group.applies(keys[i])]
        names = sorted({keys[i].context for i in asked})
        contexts = {names[k] for k in drawn(range(len(names)), MAX_CONTEXTS)}
        left_out = drawn([i for i in asked if keys[i].context in contexts], MAX_LEFT_OUT)
        return [(i, self._products(self.fitted, group, i)) for i in left_out]

    def _contexts(self, group: Group) -> list[tuple[int, np.ndarray]]:
        """Of predictors that saw nothing that a context answered to; a context counts once, since it errs alike."""
        keys, found = self.populations.keys, list[tuple[int, np.ndarray]]()
        asked = [i for i in self.populations.treated if group.applies(keys[i])]
        names = sorted({keys[i].context for i in asked})
        for k in drawn(range(len(names)), MAX_CONTEXTS):
            known = [i for i, key in enumerate(keys) if key.context != names[k] or key.condition == ""]
            again = self.again(self.populations.only(np.array(known)))
            left_out = drawn([i for i in asked if keys[i].context == names[k]], MAX_LEFT_OUT // MAX_CONTEXTS)
            products = {i: self._products(again, group, i) for i in left_out}
            by_first = [i for i, of_one in products.items() if np.isfinite(of_one[0, 0])]
            if by_first:
                found.append((by_first[0], np.mean([products[i] for i in by_first], axis=0)))
        return found

    def _conditions(self, group: Group) -> list[tuple[int, np.ndarray]]:
        """Of predictors that are fitted without every condition that is described alike.

        Only the choice of the ridge's penalty has seen them: to make it anew in every fold takes long.
        """
        keys, treated = self.populations.keys, np.array(self.populations.treated, dtype=int)
        others, found = np.setdiff1d(np.arange(len(keys)), treated), list[tuple[int, np.ndarray]]()
        n_folds = N_FOLDS if self.n_described >= MIN_CONDITIONS else self.n_described  # of few each one tells much
        features, conditions = self.populations.features[treated, 1:], [keys[i].condition for i in treated]
        for known, left_out in folds_of_unseen(features, conditions, n_folds):
            again = self.again(self.populations.only(np.sort(np.concatenate([others, treated[known]]))))
            asked = drawn(treated[left_out].tolist(), MAX_LEFT_OUT)
            found += [(i, self._products(again, group, i)) for i in asked]
        return found

    def _products(self, fitted: Fitted, group: Group, index: int) -> np.ndarray:
        """K x K, of the errors on one population, mean over genes; NaN of those that cannot, or if the first cannot."""
        populations, source = self.populations, self.populations.source_of(index)
        assert source is not None  # only the treated are asked for
        errors = np.full((len(group.names), populations.mean.shape[1]), np.nan)
        for k, name in enumerate(group.names):
            try:
                guess = fitted(name).predict(populations.keys[index], populations.features[index], source)
            except CannotPredict:
                if k == 0:  # then it is not asked how the others err, which may take long
                    break
                continue
            errors[k] = guess - populations.mean[index]
        return np.asarray(errors @ errors.T / errors.shape[1])


def stacked(products: np.ndarray, expected: np.ndarray | None = None) -> np.ndarray:
    """Weights (K,) of K predictors, none below 0, their sum 1, by the products of their errors (populations x K x K).

    Those whose average errs least on all populations and on one more, on which the best weights are the expected ones,
    by likelihood if not given, and to stray from them errs as the best predictor does on average: two that err
    otherwise are better than the better one of them, and on few populations it is not known how they err.
    """
    total, n = products.sum(axis=0), len(products)
    first = likelihood(np.diag(total), n) if expected is None else expected
    first = first / first.sum()
    best = max(float(np.diag(total).min()), SMALLEST_SHARE * float(total.trace()))
    if best <= np.finfo(float).tiny:  # none errs
        return np.asarray(first)
    # the minimum of w' total w + |w - first|^2 best / n, as a least squares problem
    scaled = total / best + np.eye(len(first)) / n
    root = np.linalg.cholesky(scaled + SUM_TO_ONE).T
    weights, _ = nnls(root, np.linalg.solve(root.T, first / n + SUM_TO_ONE))
    return np.asarray(weights / weights.sum())


def _side(populations: Populations, key: Population) -> int:
    """Of a time among the others of the same context and condition: 1 beyond all, -1 before all, 0 between or alone."""
    at = populations.over_time(key.context, key.condition) if key.time is not None else []
    times = [populations.keys[i].time or 0.0 for i in at if populations.keys[i] != key]
    if key.time is None or not times:
        return 0
    return int(key.time > max(times)) - int(key.time < min(times))


def _time_and_strength(key: Population, features: np.ndarray) -> tuple[float, float]:
    return np.nan if key.time is None else key.time, abs(float(features[0])) if len(features) else 0.0
