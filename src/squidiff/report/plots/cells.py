"""Cells as they lie: genes as violins, and clouds of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from squidiff.config import InputError
from squidiff.evaluate.differential import rank_sum
from squidiff.report.plots.style import (
    AMBER,
    BLACK,
    BLUE,
    CONTROL,
    CONTROL_CELLS,
    GENERATED,
    GREEN,
    GREY,
    LIGHT,
    MARKERS,
    ORANGE,
    PURPLE,
    REAL,
    SKY,
    SOURCE_CELLS,
    canvas,
    clipped,
    finish,
    headline,
)

GROUP_COLOURS = (BLUE, ORANGE, GREEN, AMBER, PURPLE, SKY, BLACK)
N_GROUPS = len(MARKERS) - 1
"""Told apart; the cells of the rest are drawn as one."""
N_VIOLINS = 8
MAX_POINTS = 3000
"""Of one group: more would be a blot and a large file."""
MAX_SILHOUETTE = 4000


def violins(
    predicted: np.ndarray,
    truth: np.ndarray,
    control: np.ndarray,
    genes: Sequence[str],
    title: str,
    *,
    chosen: Sequence[str] = (),
    start: str = CONTROL_CELLS,
    figure: Figure | None = None,
) -> Figure:
    """Real and generated cells side by side, of the genes that truly differ most from control.

    predicted S x G, truth N x G, control K x G, which the picture calls `start`; genes: G names. The genes are those
    that are chosen or, if none is, the first by Wilcoxon's rank sum between truth and control. Bars are means, diamonds
    the control cells' means.
    """
    found = rank_sum(truth, control)
    shown = [genes.index(gene) for gene in chosen] or found.top(N_VIOLINS).tolist()
    figure = canvas(max(7.0, 1.25 * len(shown) + 1.5), 4.8, figure)
    axes = figure.subplots()
    places = np.arange(len(shown))
    for cells, colour, side, away in ((truth, REAL, "low", -0.2), (predicted, GENERATED, "high", 0.2)):
        values = [cells[:, gene].astype(float) for gene in shown]
        bodies = axes.violinplot(values, places, widths=0.85, side=side, showextrema=False)["bodies"]
        for body in bodies:  # type: ignore[attr-defined]
            body.set(facecolor=colour, edgecolor=colour, alpha=0.75)
        means = [v.mean() for v in values]
        axes.hlines(means, places + min(2 * away, 0.0), places + max(2 * away, 0.0), color=BLACK, linewidth=1.6)
    axes.scatter(places, control[:, shown].mean(axis=0), marker="D", s=26, color=CONTROL, edgecolors="white", zorder=4)
    axes.set_xticks(places, [clipped(genes[gene]) for gene in shown], parse_math=False)
    if max(len(clipped(genes[gene])) for gene in shown) > 9:
        axes.tick_params(axis="x", labelrotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    truly = np.sign(truth.mean(axis=0) - control.mean(axis=0))[shown]
    same = int((np.sign(predicted.mean(axis=0) - control.mean(axis=0))[shown] == truly)[truly != 0].sum())
    which = "genes that were asked for" if chosen else f"genes that differ most from {start}"
    said = f"{same} of {int((truly != 0).sum())} {which} move as they truly do"
    if not truly.any():
        said = f"none of {len(shown)} {which} truly moves"
    headline(figure, title)
    finish(axes, said, y="expression (unit of the data)")
    axes.grid(axis="x", visible=False)
    handles = [
        Patch(color=REAL, alpha=0.75, label="real"),
        Patch(color=GENERATED, alpha=0.75, label="generated"),
        Line2D([], [], color=BLACK, linewidth=1.6, label="mean"),
        Line2D([], [], color=CONTROL, marker="D", linestyle="", label=f"mean of {start}"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def joint_embedding(
    points: Mapping[str, np.ndarray],
    near: Sequence[tuple[np.ndarray, np.ndarray]],
    method: str,
    of: str,
    *,
    figure: Figure | None = None,
) -> Figure:
    """Real, generated and control cells in one plane; `of` says which.

    points: by "control cells" or "source cells" (optional), "real cells" and "generated cells", N x 2 each. near: the
    real and the generated cells of each population in the space in which cells are near each other, N x D, of which the
    title tells how well they mix: the share of generated cells whose nearest neighbour in their population is real.
    (Generated cells of two populations may come from the same source cells, and are then nearest to each other.)
    """
    figure = canvas(7.2, 6.4, figure)
    axes = figure.subplots()
    starts = dict.fromkeys((CONTROL_CELLS, SOURCE_CELLS), (LIGHT, "D", 12))
    styles = {**starts, "real cells": (REAL, "o", 18), "generated cells": (GENERATED, "x", 18)}
    for name, (colour, marker, size) in styles.items():
        if name in points:
            some = points[name][:MAX_POINTS]
            axes.scatter(*some.T, s=size, c=colour, marker=marker, alpha=0.6, linewidths=0.8, label=name)
    shares = [(mixing(real, made), len(made)) for real, made in near]
    known = [(share, n) for share, n in shares if np.isfinite(share)]
    said = "too few cells, or too alike, to tell how they mix"
    if known:
        share = np.average([share for share, _ in known], weights=[n for _, n in known])
        said = f"the nearest neighbour of {share:.0%} of generated cells is real (50% if alike)"
    finish(axes, f"{of}, {method}: {said}", x=f"{method} 1", y=f"{method} 2", size=10)
    _plane(axes)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, markerscale=1.4)
    return figure


def mixing(real: np.ndarray, generated: np.ndarray) -> float:
    """Share of generated cells (S x D) whose nearest other cell is real (N x D): 1/2 if both are drawn alike.

    Of equal numbers of both, the first of each; NaN where one has fewer than two cells, or all are alike.
    """
    n = min(len(real), len(generated))
    if n < 2 or not np.ptp(np.concatenate([real, generated]), axis=0).any():
        return float("nan")
    cells = np.concatenate([real[:n], generated[:n]])
    # two neighbours, as a cell that stands twice may be found before itself
    nearest = NearestNeighbors(n_neighbors=2).fit(cells).kneighbors(cells[n:], return_distance=False)
    other = np.where(nearest[:, 0] == np.arange(n, 2 * n), nearest[:, 1], nearest[:, 0])
    return float((other < n).mean())


def latent(
    points: np.ndarray, z: np.ndarray, labels: Sequence[str], what: str, *, figure: Figure | None = None
) -> Figure:
    """Cells by their latent: points N x 2 to draw, z N x Z, a label each; `what` names what the labels are.

    The title holds the silhouette of the labels in the whole latent space: 1 for clusters that lie far apart, 0 for
    labels that the latent does not tell.
    """
    names, index, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(points) != len(labels):
        raise InputError(f"there are {len(points)} cells and {len(labels)} labels: give one label a cell")
    figure = canvas(8.2, 6.2, figure)
    axes = figure.subplots()
    common = np.argsort(-counts, kind="stable")
    rest = np.isin(index, common[N_GROUPS:])
    if rest.any():
        name = f"{len(names) - N_GROUPS} others"
        axes.scatter(*points[rest].T, s=8, color=LIGHT, linewidths=0, label=name)
    for i, group in enumerate(common[:N_GROUPS]):
        style = {"color": GROUP_COLOURS[i % len(GROUP_COLOURS)], "marker": MARKERS[i], "linewidths": 0}
        some = points[index == group][:MAX_POINTS]
        axes.scatter(*some.T, s=14, alpha=0.6, label=clipped(str(names[group])) or "(none)", **style)
    said = "one group"
    if 2 <= len(names) < len(z):
        score = silhouette_score(z, index, sample_size=min(len(z), MAX_SILHOUETTE), random_state=0)
        said = f"silhouette {score:.2f} (1: apart, 0: not told apart)"
    finish(axes, f"Latent of {len(z):,} cells by {what}: {said}", x="first axis of z_sem", y="second axis of z_sem")
    _plane(axes)
    shown = figure.legend(loc="outside right upper", frameon=False, fontsize=9, markerscale=1.6)
    for text in shown.get_texts():
        text.set_parse_math(False)
    return figure


def _plane(axes: Axes) -> None:
    """Axes without numbers, which say nothing in such a plane."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(GREY)
