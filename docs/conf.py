"""Settings of the documentation site, which `make docs` builds.

The API reference is made of the docstrings. These are plain text with names between single backticks, so they are
turned into reStructuredText here, and the help of every setting, which the command line shows, is set under its class.

Pages are written for GitHub too, where a link is a path from the file that holds it. Links to the files of PAGES are
turned to the pages that include them.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import posixpath
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version as version_of
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "CHANGELOG.md": "changelog.md"}
"""Files from outside, and the page here that includes each."""

# The kernels of the tutorials inherit it: threads that spin while they wait crawl on a machine that is shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

project = "squidiff"
author = "the squidiff-ng authors"
release = version = version_of("squidiff-ng")
extensions = ["myst_nb", "sphinx.ext.autodoc"]

html_theme = "furo"
html_title = f"squidiff {release}"
html_show_copyright = False
smartquotes = False
"""Or `--flag` would get a dash."""

myst_heading_anchors = 3
"""Links such as `data.md#conditions` are those that GitHub knows."""
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "warn"
"""Whatever a tutorial warns of is a warning of the build, and so an error of `make docs`."""
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100


def plain_to_rst(lines: list[str]) -> Iterator[str]:
    """A docstring's paragraphs, in which only backticks mean something; indented blocks and examples stay."""
    for is_blank, paragraph in groupby(lines, lambda line: not line.strip()):
        block = list(paragraph)
        if is_blank or block[0].startswith(">>>"):
            yield from block
        elif all(line.startswith("    ") for line in block):
            yield from ("::", "", *block)
        else:
            # code at odd places, between the backticks that split the text
            parts = "\n".join(block).split("`")
            odd = (f"``{part}``" if i % 2 else re.sub(r"([\\*|_])", r"\\\1", part) for i, part in enumerate(parts))
            yield from "".join(odd).split("\n")


def settings_of(kind: object) -> list[dataclasses.Field[Any]]:
    """The fields of a settings class that have a help text; none of anything else."""
    is_class = isinstance(kind, type) and dataclasses.is_dataclass(kind)
    return [field for field in dataclasses.fields(kind) if "help" in field.metadata] if is_class else []


def write_docstring(app: Any, what: str, name: str, obj: object, options: Any, lines: list[str]) -> None:
    if name == "squidiff.evaluate":  # a module that is called as the function is
        lines[:] = (inspect.getdoc(import_module("squidiff.evaluate.scoring").evaluate) or "").split("\n")
    lines[:] = plain_to_rst(lines)
    for field in settings_of(obj):
        text = " ".join(plain_to_rst([field.metadata["help"]]))
        lines += [f"* ``{field.name}`` (``{field.default!r}``): {text}"]
    lines.append("")


def write_signature(app: Any, what: str, name: str, obj: object, *rest: Any) -> tuple[str, str] | None:
    return ("(...)", "") if settings_of(obj) else None  # its settings are listed, with their help


def with_links(text: str, folder: str, page: str) -> str:
    """The text of a file in `folder`, with the links to other files as they are from a page in `page`."""

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        target = f"docs/{PAGES[path]}" if path in PAGES else path
        return f"]({posixpath.relpath(target, page)}{match[2] or ''})" if (ROOT / path).is_file() else match[0]

    return re.sub(r"\]\(([^()#:\s]+)(#[^()\s]*)?\)", link, text)


def folder_of(docname: str) -> str:
    return posixpath.dirname(f"docs/{docname}")


def read_page(app: Any, docname: str, source: list[str]) -> None:
    source[0] = with_links(source[0], folder_of(docname), folder_of(docname))


def read_included(app: Any, path: Path, docname: str, content: list[str]) -> None:
    folder = (ROOT / "docs" / path).resolve().relative_to(ROOT.resolve()).parent.as_posix()
    content[0] = with_links(content[0], folder, folder_of(docname))


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", write_docstring)
    app.connect("autodoc-process-signature", write_signature)
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
