"""Pictures of cells and of changes say what the numbers say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.metrics import silhouette_score

from squidiff.config import InputError
from squidiff.evaluate.differential import rank_sum
from squidiff.report.plots import Series, curves, joint_embedding, latent, response_map, save, trajectory, violins
from squidiff.report.plots.cells import mixing
from squidiff.report.plots.style import clipped

GENES = [f"gene_{i}" for i in range(30)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_cells_of_one_distribution_mix_and_others_do_not(rng: np.random.Generator) -> None:
    assert mixing(rng.normal(size=(1500, 3)), rng.normal(size=(1500, 3))) == pytest.approx(0.5, abs=0.05)
    assert mixing(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 50) == 0.0
    cells = rng.normal(size=(200, 3))
    assert mixing(cells, cells.copy()) == 1.0  # each is nearest to its own copy
    assert np.isnan(mixing(cells[:1], cells))


def test_the_violins_are_of_the_genes_that_differ_most(rng: np.random.Generator) -> None:
    control, truth = rng.normal(size=(2, 90, 30)) + 5
    truth[:, [4, 11]] += 3.0
    predicted = truth.copy()
    predicted[:, 11] -= 6.0  # the wrong way
    figure = violins(predicted, truth, control, GENES, "type A")
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert shown == [GENES[i] for i in rank_sum(truth, control).top(8)]
    assert set(shown[:2]) == {"gene_4", "gene_11"}
    n_right = sum(
        np.sign(predicted[:, g].mean() - control[:, g].mean()) == np.sign(rank_sum(truth, control).effect[g])
        for g in rank_sum(truth, control).top(8)
    )
    assert figure.axes[0].get_title("left").startswith(f"{n_right} of 8 genes")
    named = violins(predicted, truth, control, GENES, "type A", chosen=["gene_7"])
    assert [label.get_text() for label in named.axes[0].get_xticklabels()] == ["gene_7"]


def test_violins_bear_genes_that_are_zero_everywhere(tmp_path: Path) -> None:
    cells = np.zeros((5, 30))
    save(violins(cells, cells, cells, GENES, "t"), tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_the_plane_holds_every_kind_and_states_the_mixing_within_populations(rng: np.random.Generator) -> None:
    points = {name: rng.normal(size=(40, 2)) for name in ("control cells", "real cells", "generated cells")}
    real, made = rng.normal(size=(2, 40, 5))
    figure = joint_embedding(points, [(real, made + 99)], "PCA", "two days")
    assert figure.axes[0].get_title("left").startswith("two days, PCA: the nearest neighbour of 0% of generated cells")
    assert sorted(c.get_label() for c in figure.axes[0].collections) == sorted(points)
    alone = mixing(real, made)
    assert 0.3 < alone < 0.7
    # the same cells generated for another population are no neighbours
    figure = joint_embedding(points, [(real, made), (rng.permutation(real), made)], "PCA", "two days")
    assert f"{alone:.0%} of generated cells" in figure.axes[0].get_title("left")


def test_the_latent_title_holds_scikit_learns_silhouette(rng: np.random.Generator) -> None:
    z = np.concatenate([rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) + 3])
    labels = ["a"] * 50 + ["$b$"] * 60
    figure = latent(z[:, :2], z, labels, "condition")
    assert f"silhouette {silhouette_score(z, labels):.2f}" in figure.axes[0].get_title("left")
    many = [str(i % 40) for i in range(110)]
    assert "29 others" in _labels(latent(z[:, :2], z, many, "condition"))
    with pytest.raises(InputError, match="110 cells and 109 labels"):
        latent(z[:, :2], z, labels[:-1], "condition")


def test_the_map_shows_the_genes_that_change_and_their_correlation(rng: np.random.Generator) -> None:
    truth = rng.normal(size=(4, 30)) * 0.01
    truth[:, 3] += 2.0
    predicted = truth + rng.normal(size=(4, 30)) * 0.1
    figure = response_map(predicted, truth, list("abcd"), GENES)
    assert figure.axes[-2].get_xticklabels()[0].get_text() == "gene_3"
    r = np.corrcoef(predicted.ravel(), truth.ravel())[0, 1]
    assert f"r = {r:.2f}" in _labels(figure)[0] or any(f"r = {r:.2f}" in text for text in _labels(figure))
    drawn = [image.get_array() for axes in figure.axes for image in axes.images]
    assert {(float(d.min()), float(d.max())) for d in drawn} == {
        (float(v.min()), float(v.max())) for v in (predicted, truth)
    }
    with pytest.raises(InputError, match="41 populations do not fit"):
        response_map(rng.normal(size=(41, 30)), None, ["a"] * 41, GENES)


@pytest.fixture
def series(rng: np.random.Generator) -> Series:
    mean = np.outer(np.arange(4.0), rng.permutation(30))
    return Series(np.array([0.0, 0.1, 1.0, 10.0]), mean, np.full((4, 30), 0.5))


def test_the_curves_are_those_of_the_table_with_two_errors(series: Series) -> None:
    figure = curves(series, None, series, GENES, "dose", "drug")
    shown = [GENES.index(axes.get_title("left")) for axes in figure.axes]
    assert set(shown) == set(np.argsort(-series.mean.var(axis=0))[:6])
    line = figure.axes[0].containers[1]
    np.testing.assert_allclose(line[0].get_ydata(), series.mean[:, shown[0]])
    low, high = line[1][0].get_xydata()[:, 1], line[1][1].get_xydata()[:, 1]
    np.testing.assert_allclose(high - low, 2.0)
    assert figure.axes[0].get_xscale() == "symlog"  # doses from 0.1 to 10


def test_of_one_predicted_dose_the_training_cells_choose_the_genes_and_the_axis(series: Series) -> None:
    """Recorded: the first six genes of the file, and training doses of 0 to 0.1 on one spot."""
    one = Series(np.array([10.0]), series.mean[-1:], series.error[-1:])
    figure = curves(one, None, series, GENES, "dose", "drug")
    shown = {GENES.index(axes.get_title("left")) for axes in figure.axes}
    assert shown == set(np.argsort(-series.mean.var(axis=0))[:6])
    assert figure.axes[0].get_xscale() == "symlog"


def test_names_that_differ_at_their_ends_alone_can_be_told_apart() -> None:
    names = [f"B cells, (2R,3S,4S,5R)-2-(6-aminopurin-9-yl)oxolane @ {dose:g}" for dose in (1, 10)]
    assert len({clipped(name) for name in names}) == 2
    assert {len(clipped(name)) for name in names} == {28}


def test_the_path_runs_through_the_means(series: Series, rng: np.random.Generator) -> None:
    cells, time = rng.normal(size=(80, 2)), rng.choice(series.at, 80)
    path = rng.normal(size=(4, 2))
    later = Series(np.array([5.0]), series.mean[:1], series.error[:1])
    figure = trajectory(cells, time, later, path, np.zeros((1, 2)), series, None, GENES, "neurons")
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata(), path)
    assert "5" in _labels(figure)
    assert sorted(axes.get_title("left") for axes in figure.axes[2:]) == sorted(
        GENES[i] for i in np.argsort(-series.mean.var(axis=0))[:4]
    )
