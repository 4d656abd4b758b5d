"""The mean under a condition that was never seen, from what describes it: fingerprints, embeddings, doses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from squidiff.config import DOSE_SEPARATOR, PART_SEPARATOR
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict, drawn

ALPHAS = tuple(10.0**k for k in range(-3, 7))
N_FOLDS = 5
MAX_ROWS = 600
"""Populations that penalties are compared on."""
N_NEIGHBOURS = (1, 2, 3, 5, 10, 20)
N_COMPONENTS = 10
PENALTY = 0.1
"""Both of `PcaLinear`, as in Ahlmann-Eltze et al."""
SAME = 1e-6
"""Distances that differ by less, as shares of themselves, are one."""
MIN_CONDITIONS = 10
"""Fewer cannot tell whether what describes them helps."""
Fold = tuple[np.ndarray, np.ndarray]
"""Indices of what is fitted on and of what is left out."""


class MeanOfConditions:
    """The source mean plus the mean shift over the other conditions: those seen in the same context, or else all.

    A condition that many cells answer to alike is predicted well by what conditions do on average (Ahlmann-Eltze et
    al., Nature Methods 2025).
    """

    def fit(self, populations: Populations) -> MeanOfConditions:
        self.populations = populations
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        keys = self.populations.keys
        others = [
            i for i in self.populations.treated if keys[i].condition != key.condition and keys[i].time == key.time
        ]
        here = [i for i in others if keys[i].context == key.context]
        if not others or key.condition == "":
            raise CannotPredict("no other condition was seen in training")
        return np.asarray(source.mean + self.populations.shifts(here or others).mean(axis=0))


class DoseShift:
    """Source mean plus a linear function of the features, of a condition seen at other strengths (doses, contexts).

    With s the total strength of a condition (its first feature) and f its other features, the shift is s m + B f: m is
    the mean effect of a unit of strength, by least squares, and B a ridge regression of what is left, its penalty among
    ALPHAS by leaving out one population at a time. No strength is no shift, and the opposite strength the opposite one.
    """

    def fit(self, populations: Populations) -> DoseShift:
        treated = populations.treated
        strength, features = populations.features[treated, :1], populations.features[treated, 1:]
        self.directions = set(map(bytes, directions(features[features.any(axis=1)])))
        if self.directions:
            self.linear = Linear.fit(strength, features, populations.shifts(treated))
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if bytes(directions(features[None, 1:])[0]) not in self.directions:
            raise CannotPredict(f"{key.condition!r} was not seen at any strength")
        return source.mean + self.linear.predict(features[:1], features[1:])


class RidgeShift:
    """Source mean plus a linear function of the features, of a condition that was never seen: b m + B f.

    As `DoseShift`, but the common effect m goes with the strength, b = s, or with none, b = 1; which of them, and the
    penalty of B, are those that predict best when all populations of conditions that are described alike, as the doses
    of one drug, are left out together, in N_FOLDS folds: what fingerprints do not tell is left to the common effect.
    Of fewer than MIN_CONDITIONS conditions, which cannot tell, b = s and single populations are left out.
    A `choice` of (whether b = s, penalty) that is given is not made anew.
    """

    def __init__(self, choice: tuple[bool, float] | None = None) -> None:
        self.choice = choice

    def fit(self, populations: Populations) -> RidgeShift:
        treated = populations.treated
        strength, features = populations.features[treated, :1], populations.features[treated, 1:]
        self.seen = features.any(axis=0)
        if self.seen.any():
            shifts = populations.shifts(treated)
            conditions = [populations.keys[i].condition for i in treated]
            self.choice = self.choice or self._choose(strength, features, shifts, conditions)
            goes_with_strength, penalty = self.choice
            base = strength if goes_with_strength else np.ones_like(strength)
            self.linear = Linear.fit(base, features, shifts, penalty)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if self.choice is None or not features[1:][self.seen].any():
            raise CannotPredict(f"nothing in training resembles condition {key.condition!r}")
        base = features[:1] if self.choice[0] else np.ones(1)
        return source.mean + self.linear.predict(base, features[1:])

    def _choose(
        self, strength: np.ndarray, features: np.ndarray, shifts: np.ndarray, conditions: list[str]
    ) -> tuple[bool, float]:
        if len(np.unique(described_alike(features))) < MIN_CONDITIONS:
            return True, Linear.fit(strength, features, shifts).penalty
        rows = drawn(range(len(features)), MAX_ROWS)
        s, f, y = (part[rows].astype(np.float64) for part in (strength, features, shifts))
        folds = folds_of_unseen(f, [conditions[i] for i in rows], N_FOLDS)
        base, alpha = np.unravel_index(first_best(errors_of_unseen(f @ f.T, s, y, folds)), (2, len(ALPHAS)))
        return base == 0, ALPHAS[alpha]


class NearestConditions:
    """The source mean plus the mean shift of the k conditions whose features are nearest, in the same context if any.

    Euclidean. k is that of N_NEIGHBOURS that predicts best when all that is described alike is left out together. With
    `here_alone` it has nothing to say in a context that answered to nothing yet.
    """

    def __init__(self, here_alone: bool = False) -> None:
        self.here_alone = here_alone

    def fit(self, populations: Populations) -> NearestConditions:
        self.populations = populations
        # of those as near the order decides, which must not be that of the file
        by_name = functools.partial(sorted, key=populations.name_of)
        rows = by_name(drawn(by_name(populations.treated), MAX_ROWS))
        self.k = self._choose(populations.features[rows, 1:], populations.shifts(rows)) if rows else 1
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if not features[1:].any():
            raise CannotPredict(f"nothing describes condition {key.condition!r}")
        here = self.populations.treated_at.get((key.context, key.time), [])
        others = np.array([i for i in here if self.populations.keys[i] != key], dtype=int)
        if not len(others) and not self.here_alone:
            others = np.array([i for i in self.populations.treated if self.populations.keys[i] != key], dtype=int)
        if not len(others):
            raise CannotPredict("no other condition was seen in training")
        distance = np.linalg.norm(self.populations.features[others, 1:] - features[1:], axis=1)
        farthest = np.sort(distance)[: self.k][-1]
        nearest = others[distance <= farthest * (1 + SAME)].tolist()  # all that are as near, whatever order they are in
        return np.asarray(source.mean + self.populations.shifts(nearest).mean(axis=0))

    def _choose(self, features: np.ndarray, shifts: np.ndarray) -> int:
        from scipy.spatial.distance import cdist

        alike = described_alike(features)
        distance = cdist(features, features)
        distance[alike[:, None] == alike] = np.inf
        errors = np.zeros(len(N_NEIGHBOURS))
        for row, order in enumerate(np.argsort(distance, axis=1, kind="stable")[:, : N_NEIGHBOURS[-1]]):
            near = shifts[order[np.isfinite(distance[row, order])]]
            if len(near):
                means = np.cumsum(near, axis=0) / np.arange(1, len(near) + 1)[:, None]
                errors += [np.square(means[min(k, len(near)) - 1] - shifts[row]).mean() for k in N_NEIGHBOURS]
        return N_NEIGHBOURS[first_best(errors)]


class PcaLinear:
    """The source mean plus b + G W p: genes G and conditions p in a space of few components, W by ridge regression.

    The linear model of Ahlmann-Eltze et al. (Nature Methods 2025): b is the mean shift, G (genes x components) are the
    principal components of the training means with genes as observations; p of a gene that is perturbed is its own row
    of G, summed over the parts. Of conditions that are no measured genes, p are principal components of their features.
    With Y the shifts less b, W = (G'G + a)^-1 G'Y P (P'P + a)^-1.
    """

    def fit(self, populations: Populations) -> PcaLinear:
        self.row = {gene: i for i, gene in enumerate(populations.genes)}
        treated, keys, means = populations.treated, populations.keys, populations.mean
        self.can_predict = min(means.shape) > 1 and len({keys[i].condition for i in treated}) > 1
        if not self.can_predict:
            return self
        placed = [i for i in treated if self._rows(keys[i].condition) is not None]
        self.of_genes = len(placed) >= MIN_CONDITIONS
        center, axes = _principal_axes(means.T)
        self.G = (means.T - center) @ axes
        if not self.of_genes:
            self.center, self.axes = _principal_axes(populations.features[treated, 1:].astype(np.float64))
        used = placed if self.of_genes else treated
        P = np.stack([self._describe(keys[i].condition, populations.features[i]) for i in used])
        shifts = populations.shifts(used)
        self.b = shifts.mean(axis=0)
        inner = self.G.T @ (shifts - self.b).T @ P
        right = np.linalg.solve(P.T @ P + PENALTY * np.eye(P.shape[1]), inner.T).T
        self.W = np.linalg.solve(self.G.T @ self.G + PENALTY * np.eye(self.G.shape[1]), right)
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        if not self.can_predict or (self.of_genes and self._rows(key.condition) is None):
            raise CannotPredict(f"nothing places condition {key.condition!r} among the principal components")
        if not self.of_genes and not features[1:].any():
            raise CannotPredict(f"nothing describes condition {key.condition!r}")
        return np.asarray(source.mean + self.b + self.G @ self.W @ self._describe(key.condition, features))

    def _describe(self, condition: str, features: np.ndarray) -> np.ndarray:
        if not self.of_genes:
            return np.asarray((features[1:].astype(np.float64) - self.center) @ self.axes)
        rows = self._rows(condition)
        assert rows is not None  # only such are asked for
        return np.asarray(np.sign(features[0]) * self.G[rows].sum(axis=0))

    def _rows(self, condition: str) -> list[int] | None:
        """Which measured genes the parts are, whatever their dose and direction; None if one is none."""
        rows = [self.row.get(part, self.row.get(part.split(" ")[0])) for part in condition.split(PART_SEPARATOR)]
        return None if None in rows else [row for row in rows if row is not None]


def _principal_axes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and the first N_COMPONENTS principal axes, as columns; rows may be all alike (scikit-learn warns then)."""
    center = rows.mean(axis=0)
    return center, np.linalg.svd(rows - center, full_matrices=False)[2][:N_COMPONENTS].T


class Linear(NamedTuple):
    """Shift = base * common + ridge(features)."""

    common: np.ndarray
    weights: np.ndarray
    """G x F"""
    penalty: float

    @classmethod
    def fit(cls, base: np.ndarray, features: np.ndarray, shifts: np.ndarray, penalty: float | None = None) -> Linear:
        """From P x 1, P x F and P x G. Without a penalty, by leaving single rows out (scikit-learn's closed form)."""
        from sklearn.linear_model import Ridge, RidgeCV

        # float32 is too coarse for small penalties
        base, features = base.astype(np.float64), features.astype(np.float64)
        common = common_shift(base, shifts)
        ridge = Ridge(penalty, fit_intercept=False) if penalty else RidgeCV(ALPHAS, fit_intercept=False)
        ridge.fit(features, shifts - base * common)
        return cls(common, np.atleast_2d(ridge.coef_), penalty or float(ridge.alpha_))

    def predict(self, base: np.ndarray, features: np.ndarray) -> np.ndarray:
        return np.asarray(base * self.common + self.weights @ features)


def common_shift(base: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(G,) the effect of a unit of base (P x 1), by least squares on P x G."""
    return np.asarray((base * shifts).sum(axis=0) / max(float(np.square(base).sum()), 1e-12))


def first_best(errors: np.ndarray) -> int:
    """The first, in flat order, of those that err least; what differs by rounding, as by cells' order, is as good."""
    return int(np.argmax(errors <= errors.min() * (1 + 1e-9)))


def errors_of_unseen(kernel: np.ndarray, strength: np.ndarray, shifts: np.ndarray, folds: list[Fold]) -> np.ndarray:
    """Squared error of what is left out in folds, where the common effect goes with the strength or with none, 2 x A.

    By each of ALPHAS; of ridge regression in its dual form, K (K + a)^-1 Y with K the kernel, P x P, and one
    decomposition K = QwQ' a fold for all penalties: a fit for each would take ten times as long.
    """
    errors = np.zeros((2, len(ALPHAS)))
    for fitted, left_out in folds:
        w, Q = np.linalg.eigh(kernel[np.ix_(fitted, fitted)])
        across = kernel[np.ix_(left_out, fitted)] @ Q
        for i, base in enumerate((strength, np.ones_like(strength))):
            common = common_shift(base[fitted], shifts[fitted])
            within = Q.T @ (shifts[fitted] - base[fitted] * common)
            rest = shifts[left_out] - base[left_out] * common
            errors[i] += [np.square(rest - across @ (within / (w[:, None] + a))).sum() for a in ALPHAS]
    return errors


def folds_of_unseen(features: np.ndarray, conditions: Sequence[str], n_folds: int) -> list[Fold]:
    """Folds of rows that are described alike (P x F, without the strength), which are left out together.

    So are the combinations that hold a left-out part, which would tell of it; they themselves are asked for only where
    there are fewer than MIN_CONDITIONS single conditions.
    """
    from sklearn.model_selection import GroupKFold

    alike, asked = described_alike(features), np.array([PART_SEPARATOR not in c for c in conditions], dtype=bool)
    if len(np.unique(alike[asked])) < MIN_CONDITIONS:
        asked[:] = True
    rows, folds = np.flatnonzero(asked), []
    n_folds = min(n_folds, len(np.unique(alike[rows])))
    for _, found in GroupKFold(n_folds).split(rows, groups=alike[rows]) if n_folds > 1 else ():
        left_out = rows[found]
        folds.append((np.flatnonzero(~holds_one_of(conditions, {conditions[i] for i in left_out})), left_out))
    return folds


def holds_one_of(conditions: Sequence[str], some: set[str]) -> np.ndarray:
    """Which of the conditions are among some, or have a part that is, at whatever dose, (P,)."""
    names = {c.split(DOSE_SEPARATOR)[0] for c in some if PART_SEPARATOR not in c}

    def holds(condition: str) -> bool:
        return condition in some or any(p.split(DOSE_SEPARATOR)[0] in names for p in condition.split(PART_SEPARATOR))

    return np.array([holds(condition) for condition in conditions], dtype=bool)


def described_alike(features: np.ndarray) -> np.ndarray:
    """Which rows (P x F) are one and the same but for a factor, as one drug at any dose: P labels."""
    return np.asarray(np.unique(directions(features), axis=0, return_inverse=True)[1].ravel())


def directions(features: np.ndarray) -> np.ndarray:
    """Rows (P x F, without the strength) of length 1, their first number positive, rounded so that equals are equal.

    So a row and its opposite, as a knock-down's and an activation's, are one.
    """
    if not features.shape[1]:
        return features
    length = np.linalg.norm(features, axis=1, keepdims=True)
    rows = np.round(features / np.where(length > 0, length, 1.0), 4)
    first = np.take_along_axis(rows, (rows != 0).argmax(axis=1)[:, None], axis=1)
    return rows * np.where(first < 0, -1.0, 1.0) + 0.0
