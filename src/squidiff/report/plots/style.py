"""The one style of all pictures: colours, axes, legends, and how a picture is written.

Object-oriented matplotlib only, so that nothing global changes; text from data is never read as mathematics.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from squidiff.config import InputError
from squidiff.files import write_together

# Okabe and Ito's palette: told apart with every kind of colour vision (jfly.uni-koeln.de/color).
BLUE, ORANGE, SKY, GREEN = "#0072B2", "#D55E00", "#56B4E9", "#009E73"
AMBER, PURPLE, BLACK, GREY, LIGHT = "#E69F00", "#CC79A7", "#000000", "#767676", "#BDBDBD"
REAL, GENERATED, CONTROL = SKY, ORANGE, GREY
MARKERS = "osD^vPX*<>ph"
"""Groups are told apart by shape too, since a palette has eight colours."""
CONTROL_CELLS, SOURCE_CELLS = "control cells", "source cells"
"""What a prediction starts from; the latter where there is no control, but an earlier time."""
DPI = 150
LONGEST_NAME = 28
SUFFIXES = (".png", ".pdf", ".svg")


def canvas(width: float, height: float, given: Figure | None = None) -> Figure:
    """An empty white figure, in inches: the one that is given, or a new one that no global state knows of."""
    if given is None:
        given = Figure()
        FigureCanvasAgg(given)
    given.set_size_inches(width, height)
    given.set_layout_engine("constrained")
    given.set_facecolor("white")
    return given


def headline(figure: Figure, title: str) -> None:
    """The finding of a whole figure, above its panels."""
    width = int(figure.get_figwidth() * 8)
    figure.suptitle(textwrap.fill(title, width), fontsize=14, fontweight="bold", x=0.01, ha="left", parse_math=False)


def finish(axes: Axes, title: str, *, x: str = "", y: str = "", size: float = 11) -> None:
    """Title (what is found), names of the axes, a light grid, no box."""
    axes.set_title(title, loc="left", fontsize=size, parse_math=False)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors="#333333")
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def legend(axes: Axes, columns: int) -> None:
    """Inside, above the curves."""
    axes.legend(frameon=False, fontsize=9, ncols=columns, loc="upper right")


def clipped(name: str) -> str:
    """A name that fits beside a panel; of a long one the middle is left out, since names often differ at their ends."""
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - half - 1]}…{name[-half:]}"


def short(value: float) -> str:
    """A number in a title."""
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def to_png(figure: Figure) -> bytes:
    """A PNG of 150 dots an inch in 256 colours, a third as large as one of all."""
    whole, small = io.BytesIO(), io.BytesIO()
    with _without_words_on_glyphs():
        figure.savefig(whole, format="png", dpi=DPI)
    Image.open(whole).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def save(figure: Figure, *paths: Path) -> None:
    """Writes a PNG of 150 dots an inch, or a PDF or SVG where the name ends so; of several, all or none.

    The whole file or, on any failure, none; an older one stays until then. Raises InputError for another ending.
    """
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise InputError(f"{path} ends in {path.suffix!r}: a picture's name ends in {', '.join(SUFFIXES)}")
    write_together(dict.fromkeys(paths, picture_writer(figure)))


def picture_writer(figure: Figure) -> Callable[[Path], None]:
    """What writes a file as `save` does, for `write_together` with others."""

    def write(path: Path) -> None:
        # without a date the same numbers give the same file
        dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
        with _without_words_on_glyphs():
            figure.savefig(path, format=path.suffix[1:], dpi=DPI, metadata=dated.get(path.suffix))

    return write


@contextmanager
def _without_words_on_glyphs() -> Iterator[None]:
    """A label in a script that the font lacks is drawn as boxes, which needs no word on the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield
