"""The mean at a dose that was never seen, from the doses around it: in the same context, or in others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

import numpy as np

from squidiff.config import DOSE_SEPARATOR, PART_SEPARATOR
from squidiff.response.combination import MeasuredParts, alone
from squidiff.response.embedding import directions
from squidiff.response.populations import Population, Populations, Source
from squidiff.response.shift import CannotPredict


class _Doses:
    """Fitted, it knows what populations were given, and what their shifts show."""

    def fit(self, populations: Populations) -> Self:
        self.populations, self.measured = populations, MeasuredParts().fit(populations)
        self.directions = directions(populations.features[:, 1:])
        return self


class DoseInterpolation(_Doses):
    """Source mean plus the shift of the same condition at doses around the one asked for, in the same context.

    Linear in the strength, log10(dose + 1), between two neighbours, of which no dose, with no shift, is the lowest; of
    each shift, what stands out of noise counts (`MeasuredParts`). Refused beyond the largest dose, and where one alone
    was seen.
    """

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        at_time = self.populations.treated_at.get((key.context, key.time), [])
        here = [i for i in at_time if self.populations.keys[i] != key]
        around, shares = _around(self.populations, self.directions, here, key, features)
        start = self.measured.start(key, source)
        shifts = [self.measured.shift_of_part(self.populations.keys[i], start) for i in around]  # all were seen
        return np.asarray(start + shares @ np.array(shifts, dtype=float))


class DoseElsewhere(_Doses):
    """The same with doses that other contexts were given: between what `of_dose` answers for them in this one."""

    def __init__(self, of_dose: Callable[[Population, np.ndarray, Source], np.ndarray]) -> None:
        self.of_dose = of_dose

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        at_time = [i for i in self.populations.treated if self.populations.keys[i].time == key.time]
        around, shares = _around(self.populations, self.directions, at_time, key, features)
        mean = (1 - shares.sum()) * source.mean
        for i, share in zip(around, shares, strict=True):
            asked = key._replace(condition=self.populations.keys[i].condition)
            mean = mean + share * self.of_dose(asked, self.populations.features[i], source)
        return np.asarray(mean)


class HighestDose(_Doses):
    """The source mean plus the shift of the same condition at its highest dose, for a higher one that nobody was given.

    As it is, since curves over doses saturate, or `in_proportion` to the strength, log10(dose + 1), and so for lower
    doses as well. Of the shift, what stands out of noise counts. Where other contexts were given a higher dose than
    this, it is theirs, for which `of_dose` answers in this context.
    """

    def __init__(self, of_dose: Callable[[Population, np.ndarray, Source], np.ndarray], in_proportion: bool) -> None:
        self.of_dose, self.in_proportion = of_dose, in_proportion

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        populations, wanted = self.populations, abs(float(features[0]))
        seen = [i for i in populations.treated_at.get((key.context, key.time), []) if populations.keys[i] != key]
        if populations.find(key) is None:  # else what others answer could have been learned from it
            seen += [i for i in populations.treated if populations.keys[i].time == key.time]
        at = doses_of(populations, self.directions, seen, features)
        if not at:
            raise CannotPredict(f"{key.condition!r} was not seen at any strength")
        highest = max(at.values())
        if wanted <= highest and not self.in_proportion:
            raise CannotPredict(f"{key.condition!r} was seen at strengths as large")
        found = next(i for i, strength in at.items() if strength == highest)  # of the own context, where it had it
        asked = key._replace(condition=populations.keys[found].condition)
        start, farther = source.mean, wanted / highest if self.in_proportion else 1.0
        if alone(populations, asked) is not None:
            start = self.measured.start(key, source)
        shift = self.measured.shift_of_part(asked, start)
        if shift is None:
            shift = self.of_dose(asked, populations.features[found], source) - start
        return np.asarray(start + shift * farther)


class SharedDose(_Doses):
    """The source mean plus the condition's shift at its next lower dose, and the step that others take from there.

    Others are conditions of the same context that were given both doses; of each the mean over them counts.
    """

    def predict(self, key: Population, features: np.ndarray, source: Source) -> np.ndarray:
        populations, wanted = self.populations, abs(float(features[0]))
        here = [i for i in populations.treated_at.get((key.context, key.time), []) if populations.keys[i] != key]
        own = doses_of(populations, self.directions, here, features)
        lower = {i: strength for i, strength in own.items() if strength < wanted}
        if not lower:
            raise CannotPredict(f"{key.condition!r} was seen at no lower dose in context {key.context!r}")
        nearest = max(lower, key=lambda i: lower[i])
        strengths = populations.features[:, 0]
        single = [i for i in here if i not in own and PART_SEPARATOR not in populations.keys[i].condition]
        before, after = (
            {self._drug(i): i for i in single if np.isclose(abs(strengths[i]), dose)}
            for dose in (lower[nearest], wanted)
        )
        both = [(before[other], after[other]) for other in before if other in after]
        if not both:
            raise CannotPredict(f"nothing else was given both doses of {key.condition!r} in context {key.context!r}")
        start = self.measured.start(key, source)
        said = start + self.measured.shift_of_part(populations.keys[nearest], start)
        step = np.mean([populations.mean[j] - populations.mean[i] for i, j in both], axis=0)
        return populations.bounded(said + step, said)

    def _drug(self, index: int) -> tuple[str, float, bytes]:
        """What a population was given, but for how much of it: several drugs may be described alike."""
        condition, strength = self.populations.keys[index].condition, self.populations.features[index, 0]
        return condition.split(DOSE_SEPARATOR)[0], float(np.sign(strength)), self.directions[index].tobytes()


def doses_of(
    populations: Populations, direction: np.ndarray, among: Iterable[int], features: np.ndarray
) -> dict[int, float]:
    """The populations among some that have what is described, at whatever dose, and the size of each one's strength."""
    if not features[1:].any() or features[0] == 0:  # of opposite directions together no size is known
        return {}
    asked, sign, strength = directions(features[None, 1:])[0], np.sign(features[0]), populations.features[:, 0]
    alike = [i for i in among if np.sign(strength[i]) == sign and np.array_equal(direction[i], asked)]
    return {i: abs(float(strength[i])) for i in alike}


def _around(
    populations: Populations, direction: np.ndarray, among: Iterable[int], key: Population, features: np.ndarray
) -> tuple[list[int], np.ndarray]:
    """Populations at the doses next to the one asked for, and the share of each; what is left is that of no dose.

    Raises CannotPredict where fewer than two doses are among them, none as large, or two conditions at one dose.
    """
    wanted, at, is_one_each = abs(float(features[0])), dict[float, int](), True
    for i, strength in doses_of(populations, direction, among, features).items():
        first = at.setdefault(strength, i)
        is_one_each &= populations.keys[first].condition == populations.keys[i].condition
    strengths = np.array([0.0, *sorted(at)])
    if not is_one_each or len(at) < 2 or not 0 < wanted <= strengths[-1]:
        raise CannotPredict(f"{key.condition!r} was not seen at doses around it in context {key.context!r}")
    right = int(np.searchsorted(strengths, wanted))
    share = (wanted - strengths[right - 1]) / (strengths[right] - strengths[right - 1])
    found = [(at[s], w) for s, w in zip(strengths[right - 1 : right + 1], (1 - share, share), strict=True) if s > 0]
    return [i for i, _ in found], np.array([w for _, w in found])
