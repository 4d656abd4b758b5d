"""The page nests, escapes what comes from data, and holds everything that it shows; numbers are written alike."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from squidiff.report.html import Picture, Section, Table, write_page
from squidiff.report.numbers import shown
from squidiff.report.plots import to_png

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


@pytest.fixture(scope="module")
def png() -> bytes:
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "a")
    return to_png(figure)


def _write(folder: Path, png: bytes, text: str = "type A") -> Page:
    frame = pd.DataFrame({"population": ["drug", text], "value": [0.91234, np.nan], "verdict": ["ties", text]})
    section = Section(
        f"On {text}",
        text=(text,),
        facts=((text, text),),
        items=(text,),
        tables=(Table.of(frame, f"Scores of {text}", marked=[True, False]), Table.of(frame, "Folded", folded=True)),
        pictures=(Picture(png, text),),
        commands=(f"squidiff train {text} > log && true",),
    )
    lead = [f"{text} & all"]
    return Page(
        write_page(folder / "page.html", title=f"Report on {text}", lead=lead, sections=[section, Section("No")])
    )


def test_the_page_holds_its_pictures_and_names_no_other_file(tmp_path: Path, png: bytes) -> None:
    page = _write(tmp_path, png)
    assert page.open == []
    sources = [a["src"] for tag, a in page.tags if tag == "img"]
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == png
    named = [v for _, a in page.tags for n, v in a.items() if n in ("src", "href") and not v.startswith(("data:", "#"))]
    assert named == []
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?:", text)


def test_only_the_scripts_that_are_ours_may_run(tmp_path: Path, png: bytes) -> None:
    page = _write(tmp_path, png)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = page.texts["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    assert not [n for _, a in page.tags for n in a if n.startswith("on")]


@pytest.mark.parametrize(
    "text", [SCRIPT, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "R&D </td></table>", "</style></title>"]
)
def test_texts_from_data_stay_texts(tmp_path: Path, png: bytes, text: str) -> None:
    page, plain = _write(tmp_path, png, text), _write(tmp_path, png, "plain")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert page.texts["title"] == [f"Report on {text}"] == page.texts["h1"]
    assert page.texts["dt"] == page.texts["dd"] == page.texts["figcaption"] == [text]
    assert page.texts["td"][3] == page.texts["td"][5] == text
    assert page.texts["code"] == [f"squidiff train {text} > log && true"]
    assert page.texts["caption"] == [f"Scores of {text}", "Folded"]
    assert next(a["alt"] for tag, a in page.tags if tag == "img") == text


def test_the_tables_hold_numbers_to_sort_by_and_headings_that_are_buttons(tmp_path: Path, png: bytes) -> None:
    page = _write(tmp_path, png)
    assert page.texts["td"][:6] == ["drug", "0.912", "ties", "type A", DASH, "type A"]
    numbers = [a.get("data-number") for tag, a in page.tags if tag == "td"][:6]
    assert numbers == [None, "0.91234", None, None, None, None]
    assert [a.get("class") for tag, a in page.tags if tag == "tr"][:3] == [None, "marked", None]
    assert page.texts["button"][:3] == ["population", "value", "verdict"]
    assert len([tag for tag, _ in page.tags if tag == "details"]) == 1


def test_headings_and_labels_belong_to_something(tmp_path: Path, png: bytes) -> None:
    page = _write(tmp_path, png)
    identities = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(identities)) == len(identities)
    referred = {a[n] for _, a in page.tags for n in ("aria-labelledby", "aria-describedby", "for") if n in a}
    referred |= {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert referred <= set(identities)
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")] == ["h1", "h2", "h2"]
    assert all("alt" in a for tag, a in page.tags if tag == "img")


def test_a_long_table_can_be_filtered_and_a_short_one_needs_not(tmp_path: Path) -> None:
    frame = pd.DataFrame({"gene": [f"g{i}" for i in range(12)]})
    for n, expected in ((12, 1), (11, 0)):
        sections = [Section("Genes", tables=(Table.of(frame[:n], "Genes"),))]
        page = Page(write_page(tmp_path / "page.html", title="t", lead=[], sections=sections))
        assert len([tag for tag, _ in page.tags if tag == "input"]) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (47, "47"),
        (np.int64(-12345), f"{MINUS}12,345"),
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


def test_numbers_that_name_something_are_not_rounded() -> None:
    """Recorded: days 10.05 and 10.1 were both 10.1."""
    frame = pd.DataFrame({"time": [10.0, 10.05, 10.1], "cells": [4, 47, 1200], "score": [0.12345, 2.0, np.nan]})
    table = Table.of(frame, "Times", exact=["time"])
    texts = [[cell.text for cell in cells] for _, cells in table.rows]
    assert texts == [["10", "4", "0.123"], ["10.05", "47", "2.00"], ["10.1", "1,200", DASH]]
    assert [cells[0].number for _, cells in table.rows] == [10.0, 10.05, 10.1]


def test_a_failure_leaves_the_old_page_and_no_other_file(tmp_path: Path, png: bytes) -> None:
    _write(tmp_path, png)
    before = (tmp_path / "page.html").read_bytes()
    with pytest.raises(ValueError, match="not enough values"):
        write_page(tmp_path / "page.html", title="t", lead=[], sections=[Section("x", facts=(("one",),))])  # type: ignore[arg-type]
    with pytest.raises(jinja2.UndefinedError):
        write_page(tmp_path / "page.html", title="t", lead=[], sections=[None])  # type: ignore[list-item]
    assert (tmp_path / "page.html").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_picture_keeps_its_colours_in_a_third_of_the_bytes() -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    axes.scatter(*np.random.default_rng(0).random((2, 500)), color="#0072B2")
    plain = io.BytesIO()
    figure.savefig(plain, format="png", dpi=150)
    small = to_png(figure)
    assert len(small) < plain.tell() / 2
    drawn, kept = (np.asarray(Image.open(file).convert("RGB"), dtype=int) for file in (plain, io.BytesIO(small)))
    assert np.abs(drawn - kept).max() <= 8
