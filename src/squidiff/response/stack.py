"""The anchor: for each population asked for, the predictors of its mean that training has most to say for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from squidiff.config import InputError
from squidiff.response.combination import parts_of
from squidiff.response.dose import DoseElsewhere, HighestDose, doses_of
from squidiff.response.embedding import RidgeShift, described_alike, directions, holds_one_of
from squidiff.response.groups import (
    DOSES_ELSEWHERE,
    ELSEWHERE,
    GROUPS,
    HIGHEST_DOSE,
    PARTS_ELSEWHERE,
    PREDICTORS,
    RELATED,
    TUNED,
    Group,
)
from squidiff.response.interaction import InteractingParts, PartsElsewhere
from squidiff.response.kernel import KernelShift
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.related import RelatedPopulations
from squidiff.response.rivals import Fitted, Rivals
from squidiff.response.shift import CannotPredict, Predictor, drawn
from squidiff.response.tuned import TunedShift

MAX_ERRORS = 24
"""Populations that a group is tried on for its errors."""
SEEN = "seen in training"
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


class Lack(NamedTuple):
    """What training lacks beside the population that is asked for."""

    all_here: bool = False
    """All that its context showed under any condition."""
    n_parts: int = 0
    """Parts of a combination, alone in its context."""
    doses: int = 0
    """Its condition at its dose, and at higher ones (1) or lower ones (-1), in any context."""


class Anchor:
    """The mean of any population that training says something about: its own where it was seen, else by groups."""

    def __init__(self, groups: Sequence[Group] = GROUPS, whole: Anchor | None = None) -> None:
        """`whole` is one of all populations, where this is of a part: what takes long to choose is taken from it.

        That is how rivals are weighed, which hardly hangs on a few populations, and the ridge's penalty.
        """
        self.groups, self.whole = groups, whole
        self.described: dict[str, np.ndarray] = {}
        """The features of single parts that whoever asks for combinations has told of, for those that nobody saw."""

    def fit(self, populations: Populations) -> Anchor:
        self.populations = populations
        self._fitted: dict[str, Predictor] = {}
        self.rivals: Rivals = (
            Rivals(populations, self._predictor, self._again) if self.whole is None else self.whole.rivals
        )
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
        if key.time is not None and span is not None and span[0] < span[1]:
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
        n_parts = max(1, self._alone(key).count(None)) if PARTS_ELSEWHERE in group.names else 0
        in_proportion = HIGHEST_DOSE.get(group.names[0])
        doses = 0 if in_proportion is None else -1 if in_proportion else 1
        return Lack(key.condition != "" and self._is_new(key), n_parts, doses)

    def _is_new(self, key: Population) -> bool:
        """Whether its context answered to nothing yet."""
        return all(context != key.context for context, _ in self.populations.treated_at)

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
            again = Anchor(groups, self).fit(known)
            again.described = described
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
        weights = np.ones(1)
        if len(guesses) > 1:
            weights = self.rivals.weights(group, tuple(guesses), key, features, self._is_new(key))
        named = sorted(zip(weights, guesses, strict=True), reverse=True)
        parts = [(name, weight) for weight, name in named if weight >= SMALLEST_WEIGHT]
        label = parts[0][0] if len(parts) == 1 else ", ".join(f"{name} {weight:.0%}" for name, weight in parts)
        return np.asarray(weights @ np.stack(list(guesses.values()))), label

    def _again(self, populations: Populations) -> Fitted:
        """The same predictors, fitted on some of the populations."""
        return Anchor(self.groups, self).fit(populations)._predictor

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
        if self.whole is not None and name in ("ridge", "kernel ridge"):
            chosen = self.whole._predictor(name)
            if isinstance(chosen, RidgeShift):
                return RidgeShift(chosen.choice)
            assert isinstance(chosen, KernelShift)
            return KernelShift(chosen.choice)
        return PREDICTORS[name]()

    def _of_others(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        """The mean of a population, or by what other contexts show of its condition."""
        found = self.populations.find(key)
        return self._averaged(ELSEWHERE, key, features, source)[0] if found is None else self.populations.mean[found]
