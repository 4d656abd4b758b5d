"""What a biologist asks, over the estimator: what to choose, what interacts, how a dose or a time goes on."""

from squidiff.tasks.choice import rank_conditions
from squidiff.tasks.combination import interactions
from squidiff.tasks.differentiation import speeds, trajectory
from squidiff.tasks.drug import dose_curves, monotonicity

__all__ = ["dose_curves", "interactions", "monotonicity", "rank_conditions", "speeds", "trajectory"]
