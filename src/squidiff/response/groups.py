"""The predictors of a mean by name, and which of them are asked for what, and weighed against each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from squidiff.config import PART_SEPARATOR
from squidiff.response.combination import Additive, LinearParts, MeanOfParts, RidgeParts
from squidiff.response.dose import DoseInterpolation, SharedDose
from squidiff.response.embedding import DoseShift, MeanOfConditions, NearestConditions, PcaLinear, RidgeShift
from squidiff.response.fold import FoldShift
from squidiff.response.interaction import InteractingParts
from squidiff.response.kernel import KernelShift
from squidiff.response.populations import Population
from squidiff.response.shared_time import SharedCourse, SharedStep
from squidiff.response.shift import (
    MeanShift,
    MeanTreated,
    NoChange,
    Predictor,
    TrainingMean,
    TwoWay,
    WeightedShift,
)
from squidiff.response.time import TimeCourse, TimeInterpolation, TimeShift, TimeTrend

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
    "shared dose": SharedDose,
    "shared course": SharedCourse,
    "shared step": SharedStep,
    "time course": TimeCourse,
    "time interpolation": lambda: TimeInterpolation(itself=False),
    "time trend": TimeTrend,
}
"""These, and what the anchor is further made of."""


class Group(NamedTuple):
    """Predictors that are averaged, each by how it errs; the group answers where its first one can."""

    names: tuple[str, ...]
    applies: Callable[[Population], bool]
    leaves_conditions_out: bool = False
    """Whether they are tried on conditions that were never seen, and not on populations."""
    bold: tuple[str, ...] = ()
    """Those that pass over what is known of the very population, and count only where that was seen to be right for
    others, at the same time and dose; of a context that `leaves_contexts_out`, in as many contexts."""
    leaves_contexts_out: bool = True
    """Whether, for a context that answered to nothing yet, they are tried on whole contexts."""
    beside: str = ""
    """What counts as much as the first where nothing could be tried."""


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
COMMON = ("mean of conditions", "nearest here", "no change")
"""What else may be said of any condition."""
BETWEEN = ("fold shift", "tuned fold shift", *COMMON)
"""What else may be said between two times."""
BEYOND = ("shared dose", "mean of conditions", "no change")
"""And beyond the highest dose, or below the only one."""
ELSEWHERE = Group(
    (
        "fold shift",
        *TUNED,
        RELATED,
        "two-way",
        "mean treated",
        "dose interpolation",
        "shared step",
        *COMMON,
    ),
    lambda key: key.condition != "",
    bold=("mean treated",),
    beside="mean of conditions",
)
"""Of a condition that was seen in other contexts."""
GROUPS = (
    Group(("interacting parts", "ridge of parts", "nearest here"), lambda key: PART_SEPARATOR in key.condition),
    Group(("shared course", RELATED, "time interpolation", *BETWEEN), lambda key: key.time is not None, bold=BETWEEN),
    Group(("time course",), lambda key: key.time is not None),
    Group(("time interpolation", *BETWEEN), lambda key: key.time is not None, bold=BETWEEN),
    ELSEWHERE,
    Group(("dose interpolation", *COMMON), lambda key: key.condition != "", bold=COMMON),
    Group((DOSES_ELSEWHERE,), lambda key: key.condition != ""),
    Group(("shared step", *COMMON), lambda key: key.time is not None, bold=COMMON),
    Group(("time shift",), lambda key: key.time is not None),
    Group(("time trend", *COMMON), lambda key: key.time is not None, bold=COMMON),
    Group(("linear parts", "ridge of parts", "nearest here"), lambda key: PART_SEPARATOR in key.condition),
    Group((PARTS_ELSEWHERE,), lambda key: PART_SEPARATOR in key.condition, leaves_conditions_out=True),
    Group((*HIGHEST_DOSE, *BEYOND), lambda key: key.condition != "", bold=BEYOND),
    Group(("dose in proportion", *BEYOND), lambda key: key.condition != "", bold=BEYOND),
    Group(("dose shift",), lambda key: key.condition != ""),
    Group(
        ("ridge", "kernel ridge", "nearest conditions", "PCA linear", "mean of conditions", "no change"),
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
    Group(
        ("proportional shift", "two-way", "mean of conditions", "no change"),
        lambda key: key.condition != "",
        leaves_contexts_out=False,  # on Kang's cell types the average so is nearer to the truth
    ),
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
