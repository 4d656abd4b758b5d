"""The charts of scores: better is to the right and darker, and the titles count what the table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from squidiff.config import InputError
from squidiff.report.plots import floor_to_ceiling, save, side_by_side


@pytest.fixture
def rows() -> pd.DataFrame:
    """Two metrics, of which one is better when lower, by two predictions."""
    columns = ["condition", "metric", "method", "value", "low", "high", "floor", "ceiling", "verdict"]
    table = [
        ("A", "delta_pearson", "ours", 0.8, 0.7, 0.9, 0.6, 0.95, "beats every baseline"),
        ("A", "delta_pearson", "theirs", 0.5, 0.4, 0.6, 0.6, 0.95, "loses to no change"),
        ("A", "energy_distance", "ours", 0.3, 0.2, 0.4, 0.5, 0.01, "beats every baseline"),
        ("A", "energy_distance", "theirs", 0.2, 0.1, 0.3, 0.5, 0.01, "beats every baseline"),
        ("A", "pearson", "ours", np.nan, np.nan, np.nan, np.nan, 0.9, ""),
        ("A", "pearson", "theirs", np.nan, np.nan, np.nan, np.nan, 0.9, ""),
    ]
    return pd.DataFrame(table, columns=columns)


def _at(figure: Figure, panel: int, label: str) -> float:
    """Where a mark lies on its panel, from 0, the left, to 1."""
    axes = figure.axes[panel]
    colours = {"floor": "#767676", "ceiling": "#009E73", "value": "#0072B2"}
    marks = [line for line in axes.lines if line.get_color() == colours[label] and line.get_marker() != "None"]
    left, right = axes.get_xlim()
    return float((marks[0].get_xdata()[0] - left) / (right - left))


def test_better_is_to_the_right_whatever_the_direction(rows: pd.DataFrame) -> None:
    figure = floor_to_ceiling(rows[rows["method"] == "ours"], "A")
    assert len(figure.axes) == 2  # what has no value is not drawn
    for panel in (0, 1):
        assert _at(figure, panel, "floor") < _at(figure, panel, "value") < _at(figure, panel, "ceiling")
    assert "A: 2 better than every baseline" in [text.get_text() for text in figure.findobj(Text)]
    worse = floor_to_ceiling(rows[rows["method"] == "theirs"], "A")
    assert _at(worse, 0, "value") < _at(worse, 0, "floor")
    title = next(text.get_text() for text in worse.findobj(Text) if text.get_text().startswith("A: "))
    assert title.split(": ")[1].split("; ") == ["1 worse than a baseline", "1 better than every baseline"]


def test_the_table_names_who_is_best_and_shades_by_goodness(rows: pd.DataFrame) -> None:
    extra = rows.assign(metric=rows["metric"].replace("delta_pearson", "cosine"))
    figure = side_by_side(pd.concat([rows, extra[extra["metric"] == "cosine"]]), ["ours", "theirs"], "A")
    assert "A: ours has the best value in 2 of 3 rows" in [text.get_text() for text in figure.findobj(Text)]
    shade = figure.axes[0].images[0].get_array()
    by_metric = dict(zip([t.get_text() for t in figure.axes[0].get_yticklabels()], np.asarray(shade), strict=True))
    assert by_metric["energy distance"].tolist() == pytest.approx([0.2 / 0.49, 0.3 / 0.49, 0.0, 1.0])
    bold = {t.get_text() for t in figure.axes[0].texts if t.get_fontweight() == "bold"}
    assert bold == {"0.800", "0.200"}


def test_the_headline_counts_who_is_best_alone_and_where_a_baseline_is() -> None:
    methods, values = ["a", "b"], {"pearson": (0.5, 0.5), "mean_squared_error": (0.1, 0.2), "spearman": (0.2, 0.3)}
    rows = pd.DataFrame(
        [
            {"condition": "p", "metric": metric, "method": m, "value": v, "floor": 0.15, "ceiling": 1.0}
            for metric, of in values.items()
            for m, v in zip(methods, of, strict=True)
        ]
    )
    figure = side_by_side(rows, methods, "p")
    (title,) = [text.get_text() for text in figure.findobj(Text) if "best value" in text.get_text()]
    assert title == "p: a has the best value in 2 of 3 rows (1 shared)"
    rows["floor"] = [0.6, 0.6, 0.3, 0.3, 0.1, 0.1]
    figure = side_by_side(rows, methods, "p")
    (title,) = [text.get_text() for text in figure.findobj(Text) if "best value" in text.get_text()]
    assert title.replace("\n", " ").endswith("(1 shared); the best baseline is better in 1")


def test_a_table_without_values_is_refused(rows: pd.DataFrame) -> None:
    nothing = rows[rows["metric"] == "pearson"]
    for draw in (lambda: floor_to_ceiling(nothing, "A"), lambda: side_by_side(nothing, ["ours"], "A")):
        with pytest.raises(InputError, match="nothing to draw"):
            draw()


def test_the_same_numbers_give_the_same_file(rows: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(side_by_side(rows, ["ours"], "A"), *(tmp_path / f"{name}{suffix}" for suffix in (".png", ".pdf")))
    for suffix in (".png", ".pdf"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with pytest.raises(InputError, match=r"ends in '.jpg'"):
        save(side_by_side(rows, ["ours"], "A"), tmp_path / "a.jpg")
