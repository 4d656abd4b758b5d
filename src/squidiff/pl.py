"""Pictures in a notebook: `sq.pl.quality(predicted, truth, train=train)` draws and returns axes, as scanpy's do.

Each takes what the function of `workflows.pictures` of that name takes, and an optional `figure` to draw into.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from squidiff.workflows import pictures


def _on_screen(picture: Callable[..., Figure]) -> Callable[..., Any]:
    """Draws into a figure that pyplot knows, and so a notebook shows; returns its axes, one or a list."""

    @functools.wraps(picture)
    def shown(*args: Any, figure: Figure | None = None, **kwargs: Any) -> Any:
        from matplotlib import pyplot

        drawn = pyplot.figure() if figure is None else figure
        try:
            axes = picture(*args, figure=drawn, **kwargs).axes
        except Exception:
            if figure is None:
                pyplot.close(drawn)
            raise
        return axes[0] if len(axes) == 1 else axes

    said = inspect.signature(picture).replace(return_annotation="Axes | list[Axes]")
    shown.__signature__ = said  # type: ignore[attr-defined]  # what `help` shows, or it would say Figure
    return shown


loss = _on_screen(pictures.loss)
quality = _on_screen(pictures.quality)
violins = _on_screen(pictures.violins)
embedding = _on_screen(pictures.embedding)
response = _on_screen(pictures.response)
scores = _on_screen(pictures.scores)
compared = _on_screen(pictures.compared)
dose = _on_screen(pictures.dose)
trajectory = _on_screen(pictures.trajectory)
latent = _on_screen(pictures.latent)
