"""Tables and arrays to pictures.

Owns: the one style and the figures. Must not know: models, AnnData, how the numbers came about. Each function draws
into the figure that it is given or into a new one, and returns it.
"""

from squidiff.report.plots.cells import joint_embedding, latent, violins
from squidiff.report.plots.changes import Series, curves, response_map, trajectory
from squidiff.report.plots.quality import sample_quality
from squidiff.report.plots.scores import floor_to_ceiling, side_by_side
from squidiff.report.plots.style import CONTROL_CELLS, SOURCE_CELLS, picture_writer, save, to_png
from squidiff.report.plots.training import smoothed, training_loss
from squidiff.report.plots.trials import trials_plot

__all__ = [
    "CONTROL_CELLS",
    "SOURCE_CELLS",
    "Series",
    "curves",
    "floor_to_ceiling",
    "joint_embedding",
    "latent",
    "picture_writer",
    "response_map",
    "sample_quality",
    "save",
    "side_by_side",
    "smoothed",
    "to_png",
    "training_loss",
    "trajectory",
    "trials_plot",
    "violins",
]
