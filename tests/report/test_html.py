"""The page is one file that needs nothing else, and texts from data stay texts."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from squidiff.report.html import COLUMNS, write_page
from squidiff.report.numbers import shown
from squidiff.report.plots import save

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
SCRIPT = "<script>alert(1)</script>"
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """What a browser sees: tags with their attributes, the text inside each, and whether the tags nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "a")
    save(figure, tmp_path / "picture.png")
    return tmp_path / "picture.png"


def _write(folder: Path, text: str = "type A", **changes: object) -> Path:
    row = ("drug", "delta_pearson", "model", 0.91234, np.nan, 0.95, 0.5, None, "better than the floor")
    content = {
        "title": f"Report on {text}",
        "summary": [("cells", "2,000"), (text, text)],
        "metrics": pd.DataFrame(
            [row, (text, "mse", "mean shift", "n/a", 0.1, 0.2, 0.3, 12345.6, text)], columns=COLUMNS
        ),
        "figures": [],
        "commands": [f"squidiff train {text} > log && true"],
        "verdict": f"{text} & all",
        "files": ["model.safetensors", text],
    }
    return write_page(folder, **(content | changes))


def test_the_page_holds_its_picture_and_asks_for_nothing(tmp_path: Path, picture: Path) -> None:
    page = Page(_write(tmp_path, figures=[(picture, "Loss by step")]))
    assert page.open == []
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "base"} & set(tags)
    references = {
        name: value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")
    }
    assert list(references) == ["src"]
    head, _, data = references["src"].partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == picture.read_bytes()
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == ["Loss by step"]
    style = page.texts["style"][0]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in (tmp_path / "index.html").read_text(encoding="utf-8").replace(data, "")


@pytest.mark.parametrize("text", [SCRIPT, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "R&D </td></table>"])
def test_texts_from_data_stay_texts(tmp_path: Path, picture: Path, text: str) -> None:
    page = Page(_write(tmp_path, text, figures=[(picture, text)]))
    plain = Page(_write(tmp_path, "plain", figures=[(picture, "plain")]))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.texts["title"] == [f"Report on {text}"] == page.texts["h1"]
    assert page.texts["dt"][1] == page.texts["dd"][1] == text
    assert page.texts["td"][18] == page.texts["td"][26] == text
    assert page.texts["code"][0] == f"squidiff train {text} > log && true"
    assert page.texts["code"][2] == page.texts["figcaption"][0] == text
    assert next(attributes["alt"] for tag, attributes in page.tags if tag == "img") == text


def test_the_table_shows_every_value_and_marks_the_model(tmp_path: Path) -> None:
    page = Page(_write(tmp_path))
    assert page.texts["th"] == 2 * list(COLUMNS)  # the model's rows alone, then all
    first = ["drug", "delta_pearson", "model", "0.912", DASH, "0.950", "0.500", DASH, "better than the floor"]
    assert page.texts["td"][:9] == page.texts["td"][9:18] == first
    assert page.texts["td"][21:26] == ["n/a", "0.100", "0.200", "0.300", "12,346"]
    rows = [attributes.get("class") for tag, attributes in page.tags if tag == "tr"]
    assert rows == [None, "model", None, "model", None]
    right = [attributes.get("class") == "number" for tag, attributes in page.tags if tag == "td"]
    assert right == ([False] * 3 + [True] * 5 + [False]) * 3
    headings = [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")]
    assert headings == ["h1", "h2", "h2", "h2", "h2"]
    identities = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identities)) == len(identities)
    assert {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes} <= set(
        identities
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.99961, "1.00"),
        (0.0123, "0.0123"),
        (0.009999, "0.0100"),
        (-0.25, f"{MINUS}0.250"),
        (3.14159, "3.14"),
        (99.96, "100"),
        (-np.inf, f"{MINUS}inf"),
        (1234567.0, "1.23e+06"),
        (2e-5, f"2.00e{MINUS}05"),
        (np.float32(0.5), "0.500"),
        (np.nan, DASH),
        (None, DASH),
        ("-0.1 (n = 3)", "-0.1 (n = 3)"),
    ],
)
def test_numbers_are_written_to_three_digits(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_failure_leaves_the_old_page_and_no_other_file(tmp_path: Path) -> None:
    path = _write(tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileNotFoundError):
        _write(tmp_path, "other", figures=[(tmp_path / "missing.png", "missing")])
    with pytest.raises(KeyError, match="ceiling"):
        _write(tmp_path, "other", metrics=pd.DataFrame([dict.fromkeys(COLUMNS, "x")]).drop(columns="ceiling"))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["index.html"]


def test_what_is_empty_has_no_heading(tmp_path: Path) -> None:
    empty = pd.DataFrame(columns=list(COLUMNS))
    page = Page(_write(tmp_path, summary=[], metrics=empty, commands=[], files=[]))
    assert [tag for tag, _ in page.tags if tag in ("h2", "table", "ul", "pre", "dl")] == []
    assert page.texts["p"] == ["type A & all"]
