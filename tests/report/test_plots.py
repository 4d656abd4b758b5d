"""The pictures say what the numbers say, and a file is written whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from squidiff.config import InputError
from squidiff.report.plots import sample_quality, save, smoothed, training_loss, trials_plot

N_GENES = 40


@pytest.fixture
def metrics() -> pd.DataFrame:
    """A run of 200 steps whose validation loss is lowest, 0.5, at step 150."""
    step = np.arange(10, 201, 10)
    table = pd.DataFrame({"step": step, "loss": 1.0 + 1.0 / step, "learning_rate": 1e-3 * np.minimum(step / 50, 1.0)})
    table["validation_loss"] = np.where(step % 50 == 0, 0.5 + (150 - step) ** 2 / 1e4, np.nan)
    for quartile, level in zip((1, 2, 3, 4), (0.25, 0.5, 1.25, 0.75), strict=True):
        table[f"loss_q{quartile}"] = level
    return table


@pytest.fixture
def cells() -> dict[str, np.ndarray]:
    """Log-like sparse cells: truth, a prediction near it, and control cells in which genes 3 and 7 differ most."""
    rng = np.random.default_rng(0)
    mean = rng.gamma(1.0, 1.0, N_GENES) + 0.2
    truth = np.maximum(rng.normal(mean, 0.8, (120, N_GENES)), 0.0)
    predicted = np.maximum(rng.normal(mean + rng.normal(0, 0.3, N_GENES), 0.8, (90, N_GENES)), 0.0)
    control = truth[:100].copy()
    control[:, [3, 7]] += 4.0
    return {"predicted": predicted, "truth": truth, "control": control}


def _genes() -> list[str]:
    return [f"gene_{i}" for i in range(N_GENES)]


def _texts(figure: Figure) -> Iterator[Text]:
    return (text for text in figure.findobj(Text) if text.get_text())


def _title(figure: Figure, start: str) -> str:
    return next(text.get_text() for text in _texts(figure) if text.get_text().startswith(start))


def test_smoothing_is_the_weighted_mean_of_the_past() -> None:
    assert smoothed(pd.Series(np.full(30, 0.7)), 8).to_numpy() == pytest.approx(np.full(30, 0.7), abs=1e-12)
    values, span = np.random.default_rng(0).normal(size=25), 6.0
    weight = 1 - 2 / (span + 1)
    expected = [np.average(values[: i + 1], weights=weight ** np.arange(i, -1, -1)) for i in range(25)]
    np.testing.assert_allclose(smoothed(pd.Series(values), span), expected, rtol=1e-10)
    with_gap = np.insert(values, 10, np.nan)
    np.testing.assert_allclose(np.delete(smoothed(pd.Series(with_gap), span).to_numpy(), 10), expected, rtol=1e-10)
    np.testing.assert_array_equal(smoothed(pd.Series(values), 0.2), values)  # a span below one row smooths nothing


def test_the_loss_titles_state_the_numbers_of_the_table(metrics: pd.DataFrame) -> None:
    top, middle, bottom = training_loss(metrics).axes
    assert top.get_title("left") == "Validation loss 0.75 after 200 steps, lowest at 150 (0.50)"
    assert middle.get_title("left") == "By quartile of the noise level: 1.25 for third, 0.25 for least noise"
    assert bottom.get_title("left") == "Learning rate: highest 0.001 at step 50, 0.001 at the end"
    assert bottom.get_xlabel() == "optimiser step"
    assert top.get_ylabel() == "loss: mean squared error of v"
    lines = {line.get_label(): line.get_xydata() for line in top.get_lines()}
    np.testing.assert_allclose(lines["each log"], metrics[["step", "loss"]])
    np.testing.assert_allclose(lines["validation"], metrics[["step", "validation_loss"]].dropna())
    assert {line.get_label(): line.get_ydata()[-1] for line in middle.get_lines()} == pytest.approx(
        {"least noise": 0.25, "second": 0.5, "third": 1.25, "most noise": 0.75}
    )


def test_both_losses_are_named_after_what_the_network_predicts(metrics: pd.DataFrame) -> None:
    labels = [panel.get_ylabel() for panel in training_loss(metrics, "eps").axes[:2]]
    assert labels == ["loss: mean squared error of eps"] * 2


def test_the_loss_title_says_when_the_end_is_the_lowest_or_not_validated(metrics: pd.DataFrame) -> None:
    last_is_lowest = metrics[metrics["step"] <= 150]
    assert (
        training_loss(last_is_lowest).axes[0].get_title("left") == "Validation loss 0.50 after 150 steps, lowest there"
    )
    never = metrics.assign(validation_loss=np.nan, loss=0.8)
    assert training_loss(never).axes[0].get_title("left") == "Training loss 0.80 after 200 steps (smoothed)"
    with pytest.raises(InputError, match="no metrics yet"):
        training_loss(metrics.head(0))


def test_a_wide_range_of_losses_is_drawn_on_a_logarithmic_axis(metrics: pd.DataFrame) -> None:
    assert training_loss(metrics).axes[0].get_yscale() == "linear"
    metrics.loc[0, "loss"] = 40.0
    assert training_loss(metrics).axes[0].get_yscale() == "log"


def test_the_quality_title_holds_scipy_s_correlation(cells: dict[str, np.ndarray]) -> None:
    figure = sample_quality(**cells, genes=_genes(), title="type A")
    means = {name: values.mean(axis=0) for name, values in cells.items()}
    found = [float(r) for r in re.findall(r"\d\.\d{3}", _title(figure, "Mean of 40 genes"))]
    expected = [stats.pearsonr(means["truth"], means[name]).statistic for name in ("predicted", "control")]
    assert found == pytest.approx(expected, abs=5e-4)
    assert expected[0] < 0.99  # else three digits could not tell a wrong statistic from this one


def test_the_genes_furthest_off_are_named_and_those_that_change_most_are_shown(cells: dict[str, np.ndarray]) -> None:
    figure = sample_quality(**cells, genes=_genes(), title="type A")
    error = np.abs(cells["predicted"].mean(axis=0) - cells["truth"].mean(axis=0))
    named = {text.get_text() for text in figure.axes[0].texts}
    assert named == {f"gene_{i}" for i in np.argsort(error)[-5:]}
    shown = [axes.get_title("left").split("\n")[0] for axes in figure.axes[1:]]
    assert len(shown) == 6
    assert set(shown[:2]) == {"gene_3", "gene_7"}
    variable = sample_quality(cells["predicted"], cells["truth"], _genes(), None, "type A").axes[1]
    assert variable.get_title("left").startswith(f"gene_{cells['truth'].var(axis=0).argmax()}\n")


def test_the_bars_and_the_zeros_add_up_to_all_cells(cells: dict[str, np.ndarray]) -> None:
    cells["predicted"][:27, 3] = 0.0
    panel = next(
        axes
        for axes in sample_quality(**cells, genes=_genes(), title="type A").axes
        if axes.get_title("left").startswith("gene_3\n")
    )
    zeros = [(cells[name][:, 3] == 0).mean() for name in ("truth", "predicted")]
    assert zeros[1] >= 0.3
    assert panel.get_title("left") == f"gene_3\nzeros: {zeros[0]:.0%} real, {zeros[1]:.0%} generated"
    # A stepped outline (x, y) holds the area of its histogram: divided by the width of a bin it is the sum of the bars.
    sums = []
    for patch in panel.patches:
        x, y = patch.get_xy().T
        width = np.diff(np.unique(x)).min()
        sums.append(np.sum((x[1:] - x[:-1]) * y[1:] * (x[1:] > x[:-1])) / width)
    assert sums == pytest.approx([100 * (1 - share) for share in zeros], rel=1e-6)


def test_labels_do_not_cover_each_other_even_when_all_genes_lie_in_one_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cells = rng.normal(5.0, 0.01, (30, 8))
    cells[:, 0] = 0.0
    figure = sample_quality(cells + rng.normal(0, 0.01, 8), cells, [f"a_long_name_{i}" for i in range(8)], None, "t")
    save(figure, tmp_path / "a.png")
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in box.corners())


def test_names_are_shown_as_they_are(cells: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = [f"$\\frac_{i}$" for i in range(N_GENES)]  # not valid mathematics: drawing it as such raises
    figure = sample_quality(**cells, genes=names, title="dose_$5 & $\\x")
    save(figure, tmp_path / "a.png")
    assert all(text.get_text() in names for text in figure.axes[0].texts)
    assert not any(text.get_parse_math() for text in _texts(figure) if "$" in text.get_text())
    assert sum("$" in text.get_text() for text in _texts(figure)) == 5 + 6 + 1


def test_means_that_do_not_vary_have_no_correlation() -> None:
    cells = np.ones((5, 4))
    figure = sample_quality(cells, cells, list("abcd"), None, "t")
    assert _title(figure, "Mean of") == "Mean of 4 genes: r = not defined"


def test_cells_that_do_not_fit_are_refused(cells: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"the truth cells are of shape \(120, 39\): they must be cells x 40 genes"):
        sample_quality(cells["predicted"], cells["truth"][:, 1:], _genes(), None, "t")
    cells["predicted"][0, 0] = np.nan
    with pytest.raises(InputError, match="the predicted cells hold NaN"):
        sample_quality(**cells, genes=_genes(), title="t")


def test_a_saved_figure_is_a_whole_picture_at_150_dots_an_inch(metrics: pd.DataFrame, tmp_path: Path) -> None:
    figure = training_loss(metrics)
    save(figure, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        picture.load()  # fails on a cut file
        assert picture.format == "PNG"
        assert picture.size == tuple((figure.get_size_inches() * 150).astype(int))
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20  # something is drawn
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_a_failure_leaves_the_old_picture_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    broken = Figure()
    broken.text(0.5, 0.5, r"$\frac$")  # cannot be drawn
    with pytest.raises(ValueError, match="frac"):
        save(broken, path)
    assert path.read_bytes() == b"old"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match=r"folder\.png is a folder"):  # fails after the temporary file was written
        save(Figure(), tmp_path / "folder.png")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "folder.png"]


def test_drawing_changes_nothing_global(metrics: pd.DataFrame, cells: dict[str, np.ndarray]) -> None:
    before = dict(matplotlib.rcParams)
    training_loss(metrics)
    sample_quality(**cells, genes=_genes(), title="t")
    assert dict(matplotlib.rcParams) == before


def trials() -> pd.DataFrame:
    """Four trials, of which the third is best if less is better and the first if more is; one was given up."""
    table = pd.DataFrame({"trial": [2, 1, 0, 3], "state": ["complete"] * 3 + ["pruned"]})
    return table.assign(energy_distance=[0.1, 0.3, 0.5, np.nan], seconds=1.0, width=[128, 1024, 256, 512])


@pytest.mark.parametrize(("higher", "best"), [(False, "0.1, trial 2"), (True, "0.5, trial 0")])
def test_the_trials_name_the_best_and_the_line_never_turns_back(higher: bool, best: str) -> None:
    figure = trials_plot(trials(), "energy_distance", higher)
    assert _title(figure, "Best") == f"Best energy distance {best} of 4"
    top, width = figure.axes
    so_far = next(line for line in top.lines if line.get_label() == "best so far").get_ydata()
    assert list(so_far) == ([0.5, 0.5, 0.5] if higher else [0.5, 0.3, 0.1])
    assert [line.get_xdata()[0] for line in top.lines if line.get_label() == "given up"] == [3]
    assert width.get_xscale() == "log"
    assert [text.get_text() for text in width.get_xticklabels()] == ["128", "256", "1,024"]


def test_without_a_trial_that_ended_there_is_nothing_to_draw() -> None:
    with pytest.raises(InputError, match=r"^no trial came to its end: there is nothing to draw$"):
        trials_plot(trials().iloc[3:], "energy_distance", False)
