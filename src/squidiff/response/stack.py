"""The anchor: for each population asked for, the predictors of its mean that training has most to say for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from squidiff.config import PART_SEPARATOR, InputError
from squidiff.response.combination import Additive, LinearParts, MeanOfParts, RidgeParts, parts_of
from squidiff.response.dose import DoseElsewhere, DoseInterpolation, HighestDose, doses_of
from squidiff.response.embedding import (
    MIN_CONDITIONS,
    DoseShift,
    MeanOfConditions,
    NearestConditions,
    PcaLinear,
    RidgeShift,
    described_alike,
    directions,
    folds_of_unseen,
    holds_one_of,
)
from squidiff.response.fold import FoldShift
from squidiff.response.interaction import InteractingParts, PartsElsewhere
from squidiff.response.kernel import KernelShift
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.related import RelatedPopulations
from squidiff.response.shared_time import SharedCourse, SharedStep
from squidiff.response.shift import (
    CannotPredict,
    MeanShift,
    MeanTreated,
    NoChange,
    Predictor,
    TrainingMean,
    TwoWay,
    WeightedShift,
    drawn,
    likelihood,
)
from squidiff.response.time import TimeCourse, TimeInterpolation, TimeShift, TimeTrend
from squidiff.response.tuned import TunedShift

BASELINES: dict[str, Callable[[], Predictor]] = {
    "no change": NoChange,
    "training mean": TrainingMean,
    "mean treated": MeanTreated,
    "mean shift": MeanShift,
    "weighted shift": WeightedShift,
    "proportional shift": lambda: WeightedShift(in_proportion=True),
    "two-way": TwoWay,
    "mean of conditions": MeanOfConditions,
    "additive": Additive,
    "mean of parts": MeanOfParts,
    "linear parts": LinearParts,
    "dose shift": DoseShift,
    "ridge": RidgeShift,
    "nearest conditions": NearestConditions,
    "PCA linear": PcaLinear,
    "time interpolation": TimeInterpolation,
    "time shift": TimeShift,
}
"""The baselines by name, in the order in which they are shown."""
PREDICTORS: dict[str, Callable[[], Predictor]] = BASELINES | {
    "interacting parts": InteractingParts,
    "ridge of parts": RidgeParts,
    "fold shift": FoldShift,
    "kernel ridge": KernelShift,
    "nearest here": lambda: NearestConditions(here_alone=True),
    "dose interpolation": DoseInterpolation,
    "shared course": SharedCourse,
    "shared step": SharedStep,
    "time course": TimeCourse,
    "time trend": TimeTrend,
}
"""These, and what the anchor is further made of."""

CHOOSE = ("ridge", "kernel ridge")
"""Predictors of unseen conditions whose choices take long, and are made once for all that is left out."""
MAX_LEFT_OUT = 200
"""Populations that predictors are compared on."""
MIN_TRIED = 8
"""Of these, that rivals are compared on, where the first of them was tried on as many."""
MIN_OWN = 10
"""Of one context, that suffice to compare them there."""
MAX_CONTEXTS = 12
"""Contexts that these are of: of each it has to be learned how it answers."""
N_FOLDS = 3
"""In which conditions are left out to compare predictors of unseen ones."""
MAX_ERRORS = 24
"""Populations that a group is tried on for its errors."""
SEEN = "seen in training"
SMALLEST_SHARE = 1e-9
"""Of the errors of all predictors, what is as good as none."""
SUM_TO_ONE = 1e6
"""How much a sum of weights other than 1 counts, in squared errors of the best predictor."""
SMALLEST_WEIGHT = 0.005
"""Below it a predictor is not named."""


class LeftOut(NamedTuple):
    """One training population, predicted by what was learned without it."""

    shift: np.ndarray
    """(G,) predicted, from the source mean."""
    error: np.ndarray
    """(G,) true minus predicted mean."""
    noise: np.ndarray
    """(G,) the variance that sampling of cells gives the difference of both means, if all vary as the source's do; 0 of
    genes that the source does not show."""
    variance: np.ndarray
    """(G,) of the cells that the prediction starts from."""


class Tried(NamedTuple):
    """How rivals err on n populations that none of them looked at."""

    products: np.ndarray
    """n x K x K, of their errors, mean over genes; NaN of those that cannot predict it."""
    contexts: np.ndarray
    """(n,) of the populations."""

    @classmethod
    def on(cls, found: Sequence[tuple[str, np.ndarray]], n_rivals: int) -> Tried:
        """From the context and the products, K x K, of each."""
        contexts = np.array([context for context, _ in found], dtype=object)
        return cls(np.array([products for _, products in found]).reshape(-1, n_rivals, n_rivals), contexts)


class Lack(NamedTuple):
    """What training lacks beside the population that is asked for."""

    all_here: bool = False
    """All that its context showed under any condition."""
    n_parts: int = 0
    """Parts of a combination, alone in its context."""
    doses: int = 0
    """Its condition at its dose, and at higher ones (1) or lower ones (-1), in any context."""


class Group(NamedTuple):
    """Predictors that are averaged, each by how it errs; the group answers where its first one can."""

    names: tuple[str, ...]
    applies: Callable[[Population], bool]
    leaves_conditions_out: bool = False
    """Whether they are tried on conditions that were never seen, and not on populations."""


DOSES_ELSEWHERE = "doses elsewhere"
"""It asks the anchor itself about the doses around."""
HIGHEST_DOSE = {"highest dose": False, "dose in proportion": True}
"""They ask the anchor itself about it; whether they go on in proportion."""
PARTS_ELSEWHERE = "parts elsewhere"
"""It asks the anchor itself about the parts of a combination."""
TUNED = {"tuned fold shift": "fold shift", "tuned two-way": "two-way"}
"""By what is tuned: one of PREDICTORS."""
RELATED = "related populations"
"""What it sets right is the fold shift."""
ELSEWHERE = Group(
    (
        "fold shift",
        *TUNED,
        RELATED,
        "two-way",
        "dose interpolation",
        "shared step",
        "mean of conditions",
        "nearest here",
        "no change",
    ),
    lambda key: key.condition != "",
)
"""Of a condition that was seen in other contexts."""
GROUPS = (
    Group(("interacting parts", "ridge of parts", "nearest here"), lambda key: PART_SEPARATOR in key.condition),
    Group(("shared course", RELATED), lambda key: key.time is not None),
    Group(("time course",), lambda key: key.time is not None),
    Group(("time interpolation",), lambda key: key.time is not None),
    ELSEWHERE,
    Group(("dose interpolation",), lambda key: key.condition != ""),
    Group((DOSES_ELSEWHERE,), lambda key: key.condition != ""),
    Group(("shared step",), lambda key: key.time is not None),
    Group(("time shift",), lambda key: key.time is not None),
    Group(("time trend",), lambda key: key.time is not None),
    Group(("linear parts", "ridge of parts", "nearest here"), lambda key: PART_SEPARATOR in key.condition),
    Group((PARTS_ELSEWHERE,), lambda key: PART_SEPARATOR in key.condition, leaves_conditions_out=True),
    Group(tuple(HIGHEST_DOSE), lambda key: key.condition != ""),
    Group(("dose in proportion",), lambda key: key.condition != ""),
    Group(("dose shift",), lambda key: key.condition != ""),
    Group(
        ("ridge", "kernel ridge", "nearest conditions", "mean of conditions", "no change"),
        lambda key: key.condition != "",
        leaves_conditions_out=True,
    ),
)
"""What is asked for a population that training did not see, until one can answer: first what the same context says of
the parts or of other times, then the same condition elsewhere, then parts as far as anything tells of them, last what
resembles the condition."""


BASELINE_GROUPS = (
    Group(("additive",), lambda key: PART_SEPARATOR in key.condition),
    Group(("time interpolation",), lambda key: key.time is not None),
    Group(("proportional shift", "two-way", "mean of conditions", "no change"), lambda key: key.condition != ""),
    Group(("time shift",), lambda key: key.time is not None),
    Group(("dose shift",), lambda key: key.condition != ""),
    Group(("ridge", "mean of conditions", "no change"), lambda key: key.condition != "", leaves_conditions_out=True),
)
"""The same of baselines alone: what is compared with the model must not be made of it."""

LATENT_GROUPS = (
    Group(("additive",), lambda key: PART_SEPARATOR in key.condition),
    Group(("time interpolation",), lambda key: key.time is not None),
    Group(("mean shift",), lambda key: key.condition != ""),
    Group(("time shift",), lambda key: key.time is not None),
    Group(("time trend",), lambda key: key.time is not None),
)
"""The same of mean latents: sums of differences only, since a latent has no zeros and no proportions."""


class Anchor:
    """The mean of any population that training says something about: its own where it was seen, else by groups."""

    def __init__(self, groups: Sequence[Group] = GROUPS) -> None:
        self.groups = groups
        self.described: dict[str, np.ndarray] = {}
        """The features of single parts that whoever asks for combinations has told of, for those that nobody saw."""

    def fit(self, populations: Populations) -> Anchor:
        self.populations = populations
        self._fitted: dict[str, Predictor] = {}
        self._errors: dict[Group, Tried] = {}
        self.n_described = len(np.unique(described_alike(populations.features[populations.treated, 1:])))
        return self

    def predict(self, key: Population, features: np.ndarray, source: Source) -> tuple[np.ndarray, str]:
        """The mean (G,) and where it is from. Raises InputError when training says nothing of it."""
        mean, label, _ = self.answer(key, features, source)
        return mean, label

    def answer(self, key: Population, features: np.ndarray, source: Source) -> tuple[np.ndarray, str, Group | None]:
        """The same, and the group that answered; None for what was seen in training or does not change."""
        found = self.populations.find(key)
        if found is not None:
            return self.populations.mean[found], SEEN, None
        if source.key == key:
            return source.mean, "no change", None
        reasons = []
        span = self.populations.time_span
        if key.condition and key.time is not None and span is not None and span[0] < span[1]:
            beyond = max(span[0] - key.time, key.time - span[1])
            if beyond > span[1] - span[0]:
                seen = f"the times seen, {span[0]:g} to {span[1]:g},"
                raise InputError(f"{key} cannot be predicted: it is farther beyond {seen} than they span")
        for group in self.groups:
            if group.applies(key):
                try:
                    return *self._averaged(group, key, features, source), group
                except CannotPredict as reason:
                    reasons.append(str(reason))
        raise InputError(
            f"{key} cannot be predicted: {'; '.join(dict.fromkeys(reasons)) or 'it was not seen in training'}"
        )

    def lack(self, group: Group, key: Population) -> Lack:
        """Of a population that a group answers for."""
        answered = {context for context, _ in self.populations.treated_at}
        n_parts = max(1, self._alone(key).count(None)) if PARTS_ELSEWHERE in group.names else 0
        in_proportion = HIGHEST_DOSE.get(group.names[0])
        doses = 0 if in_proportion is None else -1 if in_proportion else 1
        return Lack(key.condition != "" and key.context not in answered, n_parts, doses)

    def _alone(self, key: Population) -> list[int | None]:
        """The population of each part of a combination alone, None where it was not seen."""
        return [self.populations.find(key._replace(condition=part)) for part in parts_of(key)]

    def errors(self, group: Group, lack: Lack) -> list[LeftOut]:
        """How a group would have predicted training populations, each left out of all that it learns from.

        So is what lacks beside, and of a group for unseen conditions everything under what is described alike. How
        rivals are weighed, the ridge's penalty, and the directions that cells of other times tell, have seen them.
        """
        populations, keys = self.populations, self.populations.keys
        groups = (group, *self.groups) if PARTS_ELSEWHERE in group.names else (group,)
        asks_elsewhere = not {DOSES_ELSEWHERE, *HIGHEST_DOSE}.isdisjoint(group.names)
        for needed in (*groups, *([ELSEWHERE] if asks_elsewhere else [])):
            self._left_out(needed)  # of all populations: what is kept must not come from a part of them
        alike = described_alike(populations.features[:, 1:]) if group.leaves_conditions_out else None
        asked = [i for i, key in enumerate(keys) if group.applies(key) and populations.sources[i] >= 0]
        described = populations.features_of | self.described  # what describes a part is known without its cells
        found = []
        for i in drawn(populations.reliable(asked), MAX_ERRORS):
            known = populations.only(np.setdiff1d(np.arange(len(keys)), self._out_with(i, lack, alike)))
            start = known.source(keys[i])
            if start is None or known.keys[start] == keys[i]:
                continue
            source = Source(known.keys[start], known.mean[start])
            again = Anchor(groups).fit(known)
            again.described, again.n_described = described, self.n_described
            again._fitted = {name: self._anew(name).fit(known) for of in groups for name in of.names if name in CHOOSE}
            again._errors = (
                self._errors
            )  # how rivals are weighed hardly hangs on one population, and takes long to find
            try:
                mean, _, answered = again.answer(keys[i], populations.features[i], source)
            except InputError:
                continue
            if answered != group:
                continue
            spread = known.variance_of(start)
            # of cells like the source's, as it has to be taken of populations that nobody has seen; genes that it does
            # not show teach nothing: most of them no other cell shows either, and any interval would hold them
            noise = spread * (1 / populations.n_cells[i] + 1 / known.n_cells[start]) * (source.mean != 0)
            found.append(LeftOut(mean - source.mean, populations.mean[i] - mean, noise, spread))
        return found

    def _out_with(self, index: int, lack: Lack, alike: np.ndarray | None) -> np.ndarray:
        """The populations that are left out with one; with labels of what is described alike, all that is as this."""
        populations, keys = self.populations, self.populations.keys
        asked, out = keys[index], [index]
        if lack.all_here:
            out += [j for j in populations.treated if keys[j].context == asked.context]
        if lack.n_parts:
            out += [j for j in self._alone(asked)[: lack.n_parts] if j is not None]
        if lack.doses:
            features = populations.features
            dosed = doses_of(populations, directions(features[:, 1:]), populations.treated, features[index])
            out += [j for j, strength in dosed.items() if lack.doses * (strength - abs(features[index, 0])) >= 0]
        if alike is not None:
            same = {keys[j].condition for j in populations.treated if alike[j] == alike[index]}
            out += np.flatnonzero(holds_one_of([key.condition for key in keys], same)).tolist()
        return np.unique(out)

    def _averaged(self, group: Group, key: Population, features: np.ndarray, source: Source) -> tuple[np.ndarray, str]:
        lead, *others = group.names
        guesses = {lead: self._predictor(lead).predict(key, features, source)}
        for name in others:
            try:
                guesses[name] = self._predictor(name).predict(key, features, source)
            except CannotPredict:
                continue
        weights = self._weights(group, tuple(guesses), key.context) if len(guesses) > 1 else np.ones(1)
        named = sorted(zip(weights, guesses, strict=True), reverse=True)
        parts = [(name, weight) for weight, name in named if weight >= SMALLEST_WEIGHT]
        label = parts[0][0] if len(parts) == 1 else ", ".join(f"{name} {weight:.0%}" for name, weight in parts)
        return np.asarray(weights @ np.stack(list(guesses.values()))), label

    def _weights(self, group: Group, names: tuple[str, ...], context: str) -> np.ndarray:
        """Of predictors, by the populations left out that all of them can predict; the first alone without any.

        By those of the context asked for alone, where they are MIN_OWN: it may answer otherwise than others.
        Few conditions hardly tell whether one more shares what they do: before they are asked, half of it is expected.

        One that could be tried on few of them counts nothing, or the others would be compared on these few alone.
        """
        chosen = [group.names.index(name) for name in names]
        found = self._left_out(group)
        is_own = (found.contexts == context) & np.isfinite(found.products[:, 0, 0])  # of what the first was tried on
        if is_own.sum() < MIN_OWN:
            is_own[:] = True
        products = found.products[is_own][:, chosen][:, :, chosen]
        tried, compared = np.isfinite(np.diagonal(products, axis1=1, axis2=2)), list(range(len(names)))
        while tried[:, compared].all(axis=1).sum() < min(MIN_TRIED, tried[:, 0].sum()):
            compared.remove(min(compared[1:], key=lambda k: int(tried[:, k].sum())))
        products = products[tried[:, compared].all(axis=1)][:, compared][:, :, compared]
        weights, expected = np.eye(len(names))[0], None
        if group.leaves_conditions_out and self.n_described < MIN_CONDITIONS and "no change" in names:
            weights[0] = weights[names.index("no change")] = 0.5
            expected = weights[compared]
        if len(products):
            weights[compared] = stacked(products, expected)
        return weights

    def _left_out(self, group: Group) -> Tried:
        """By what a group's K predictors are weighed; nothing of one."""
        if group not in self._errors:
            leave_out = self._conditions_left_out if group.leaves_conditions_out else self._populations_left_out
            found = leave_out(group) if len(group.names) > 1 else []
            self._errors[group] = Tried.on(found, len(group.names))
        return self._errors[group]

    def _populations_left_out(self, group: Group) -> list[tuple[str, np.ndarray]]:
        """Of predictors that never look at the population asked for."""
        keys = self.populations.keys
        asked = [i for i in self.populations.treated if group.applies(keys[i])]
        names = sorted({keys[i].context for i in asked})
        contexts = {names[k] for k in drawn(range(len(names)), MAX_CONTEXTS)}
        left_out = drawn([i for i in asked if keys[i].context in contexts], MAX_LEFT_OUT)
        predictors = [self._predictor(name) for name in group.names]
        return [(keys[i].context, _products_of_errors(predictors, self.populations, i)) for i in left_out]

    def _conditions_left_out(self, group: Group) -> list[tuple[str, np.ndarray]]:
        """The same, of predictors that are fitted without every condition that is described alike.

        Only the choice of the ridge's penalty has seen them: to make it anew in every fold takes long.
        """
        keys, treated = self.populations.keys, np.array(self.populations.treated, dtype=int)
        others, of_each = np.setdiff1d(np.arange(len(keys)), treated), list[tuple[str, np.ndarray]]()
        n_folds = N_FOLDS if self.n_described >= MIN_CONDITIONS else self.n_described  # of few each one tells much
        features, conditions = self.populations.features[treated, 1:], [keys[i].condition for i in treated]
        for fitted, left_out in folds_of_unseen(features, conditions, n_folds):
            known = self.populations.only(np.sort(np.concatenate([others, treated[fitted]])))
            predictors = [self._anew(name).fit(known) for name in group.names]
            asked = drawn(treated[left_out].tolist(), MAX_LEFT_OUT)
            of_each += [(keys[i].context, _products_of_errors(predictors, self.populations, i)) for i in asked]
        return of_each

    def _anew(self, name: str) -> Predictor:
        known = self._predictor(name)
        if isinstance(known, RidgeShift):
            return RidgeShift(known.choice)
        return KernelShift(known.choice) if isinstance(known, KernelShift) else PREDICTORS[name]()

    def _predictor(self, name: str) -> Predictor:
        if name not in self._fitted:  # fitted when first asked: loading a model must not wait for what it will not use
            self._fitted[name] = self._made(name).fit(self.populations)
        return self._fitted[name]

    def _made(self, name: str) -> Predictor:
        if name == DOSES_ELSEWHERE:
            return DoseElsewhere(self._of_others)
        if name in HIGHEST_DOSE:
            return HighestDose(self._of_others, HIGHEST_DOSE[name])
        if name == PARTS_ELSEWHERE:
            interacting = self._predictor("interacting parts")
            assert isinstance(interacting, InteractingParts)
            return PartsElsewhere(interacting, lambda *asked: self.predict(*asked)[0], self.described)
        if name in TUNED:
            return TunedShift(self._predictor(TUNED[name]), self._predictor("dose interpolation"))
        if name == RELATED:
            return RelatedPopulations(self._predictor("fold shift"))
        return PREDICTORS[name]()

    def _of_others(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        """The mean of a population, or by what other contexts show of its condition."""
        found = self.populations.find(key)
        return self._averaged(ELSEWHERE, key, features, source)[0] if found is None else self.populations.mean[found]


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


def _products_of_errors(predictors: list[Predictor], populations: Populations, index: int) -> np.ndarray:
    """K x K, of the predictors' errors on one population, mean over genes; NaN where one cannot predict it."""
    source = populations.source_of(index)
    assert source is not None  # only the treated are asked for
    errors = np.full((len(predictors), populations.mean.shape[1]), np.nan)
    for row, predictor in zip(errors, predictors, strict=True):
        with suppress(CannotPredict):
            guess = predictor.predict(populations.keys[index], populations.features[index], source)
            row[:] = guess - populations.mean[index]
    return np.asarray(errors @ errors.T / errors.shape[1])
