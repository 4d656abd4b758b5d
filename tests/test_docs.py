"""The documentation: nothing is left out of the site, every link leads somewhere, all code of the tutorials is run.

What needs Sphinx (the extra `docs`) is skipped without it; `make docs` installs it and runs these tests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import squidiff as sq
from squidiff.workflows.pictures import KINDS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))
TUTORIALS = [page for page in PAGES if page.startswith("tutorials/")]
LINKING = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *(DOCS / f"{page}.md" for page in PAGES)]
needs_sphinx = pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "myst_nb", "furo"))), reason="Sphinx is not installed: run `make docs`"
)


def fences(text: str) -> Iterator[tuple[str, str]]:
    """The info string and the body of every fenced block."""
    for match in re.finditer(r"^(`{3,})(.*?)\n(.*?)^\1$", text, re.DOTALL | re.MULTILINE):
        yield match[2].strip(), match[3]


def without_code(text: str) -> str:
    return re.sub(r"^(`{3,}).*?^\1$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^(`{3,}).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(file: Path, text: str) -> list[str]:
    """Relative links to files that are not there, or to headings that they do not have."""
    dead = []
    for link in re.findall(r"\]\(([^()\s]+)\)", without_code(text)):
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        if ":" in path:
            continue
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


def left_out(index: str, pages: list[str]) -> list[str]:
    """Pages that no table of contents names."""
    named = {line for info, body in fences(index) if info == "{toctree}" for line in body.splitlines()}
    return [page for page in pages if page not in named]


def missing_names(reference: str) -> list[str]:
    """Public names that the API reference lacks."""
    there = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", reference, re.MULTILINE))
    names = [f"squidiff.{name}" for name in sq.__all__ if name != "pl"] + [f"squidiff.pl.{kind}" for kind in KINDS]
    return [name for name in names if name not in there]


def never_run(text: str) -> list[str]:
    """Why code of a tutorial would not be run."""
    reasons = [] if re.match(r"---\nfile_format: mystnb\n", text) else ["the page is no executable document"]
    return reasons + [f"a block of {info or 'text'}" for info, _ in fences(text) if info != "{code-cell}"]


def wrong_citation(text: str) -> list[str]:
    """What a CITATION.cff lacks, or says otherwise than pyproject.toml."""
    cited = yaml.safe_load(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = {"title": project["name"], "version": project["version"], "license": project["license"]}
    said |= {"authors": project["authors"]}
    required = ("cff-version", "message", *said, "references")
    return [key for key in required if key not in cited or str(cited[key]) != str(said.get(key, cited[key]))]


def test_every_page_is_in_the_table_of_contents() -> None:
    assert left_out((DOCS / "index.md").read_text(encoding="utf-8"), [p for p in PAGES if p != "index"]) == []
    assert left_out("```{toctree}\n:hidden:\n\napi\n```", ["api", "data"]) == ["data"]


def test_every_public_name_is_in_the_reference() -> None:
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    assert missing_names(reference) == []
    assert missing_names(reference.replace("squidiff.pl.dose", "squidiff.dose")) == ["squidiff.pl.dose"]
    assert missing_names(reference.replace(":: squidiff.Config", ":: squidiff.C")) == ["squidiff.Config"]


@pytest.mark.parametrize("file", LINKING, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(file: Path) -> None:
    assert dead_links(file, file.read_text(encoding="utf-8")) == []


def test_dead_links_are_found() -> None:
    text = "[a](data.md) ![b](no.svg) [c](data.md#conditions) [d](data.md#nothing) [e](https://no.org) `[f](no.md)`"
    assert dead_links(DOCS / "index.md", text) == ["no.svg", "data.md#nothing"]


@pytest.mark.parametrize("page", TUTORIALS)
def test_all_code_of_a_tutorial_is_run(page: str) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert never_run(text) == []
    assert sum(info == "{code-cell}" for info, _ in fences(text)) > 5


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (body for info, body in fences((ROOT / "README.md").read_text(encoding="utf-8")) if info == "python")
    cells = sq.simulate_perturbation(n_genes=30, n_cell_types=3, n_cells=20, conditions=("stim",), control="ctrl")
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"type A": "B cells"})
    schema = sq.Schema(condition_key="condition", control="ctrl", context_keys=("cell_type",))
    held_out = sq.Preparation(normalize=True, hold_out=("condition=stim,cell_type=B cells",))
    prepared = sq.prepare(cells, schema, held_out)
    monkeypatch.chdir(tmp_path)
    prepared.train.write_h5ad("train.h5ad")
    prepared.test.write_h5ad("truth.h5ad")
    short = code.replace("sq.Squidiff(schema)", "sq.Squidiff(schema, sq.Config(n_train_steps=2))")
    assert short != code
    names: dict[str, Any] = {}
    exec(short, names)
    assert names["z"].shape == (prepared.train.n_obs, 64)
    assert "model" in set(names["table"]["method"])


def test_other_pages_have_no_python_that_nothing_runs() -> None:
    others = {page: (DOCS / f"{page}.md").read_text(encoding="utf-8") for page in PAGES if page not in TUTORIALS}
    infos = {page: [info for info, _ in fences(text)] for page, text in others.items()}
    assert [page for page, of_page in infos.items() if {"python", "{code-cell}"} & set(of_page)] == []


def test_code_that_would_not_be_run_is_found() -> None:
    assert never_run("# Page\n\n```python\n1 / 0\n```\n") == ["the page is no executable document", "a block of python"]


def test_the_citation_says_what_the_project_does() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert wrong_citation(text) == []
    assert wrong_citation(text.replace("\nversion: ", "\nversion: 9.")) == ["version"]
    assert wrong_citation(text.replace("\nmessage: ", "\nmassage: ")) == ["message"]
    assert yaml.safe_load(text)["references"][0]["journal"] == "Nature Methods"


OPTIONS = ("--fail-on-warning", "--keep-going", "--show-traceback")
"""As in `make docs`."""
CELL = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n# T\n\n```{code-cell}\n%s\n```\n"


def built(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """A site of one page, with the project's settings."""
    (folder / "conf.py").write_text((DOCS / "conf.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "index.md").write_text(page, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", *OPTIONS, str(folder), str(folder / "out")]
    environment = {**os.environ, "TMPDIR": str(folder)}  # where Sphinx leaves its report of an error
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_make_builds_with_the_options_that_are_tested() -> None:
    assert f"-m sphinx {' '.join(OPTIONS)} " in (ROOT / "Makefile").read_text(encoding="utf-8")


@needs_sphinx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        (CELL % "1 / 0", "ZeroDivisionError"),
        (CELL % "import warnings\nwarnings.warn('new in 9')", "stderr was found"),
        ("# T\n\n[nowhere](nowhere.md)\n", "nowhere.md"),
        ("# T\n\n```{eval-rst}\n.. autofunction:: squidiff.nothing\n```\n", "failed to import"),
    ],
    ids=["a cell that fails", "a cell that warns", "a dead link", "a name that is gone"],
)
def test_the_build_fails_on(page: str, complaint: str, tmp_path: Path) -> None:
    done = built(tmp_path, page)
    assert done.returncode != 0
    assert complaint in done.stdout + done.stderr


@needs_sphinx
@pytest.mark.slow
def test_docstrings_and_help_reach_the_page_as_they_are_written(tmp_path: Path) -> None:
    page = (
        "# T\n\n```{eval-rst}\n.. autoclass:: squidiff.Config\n.. autofunction:: squidiff.simulate_perturbation\n```\n"
    )
    done = built(tmp_path, page)
    assert done.returncode == 0, done.stderr
    shown = re.sub(r"<[^>]+>", "", (tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "n_train_steps (1000): optimiser steps" in shown
    assert "|d_gk| ~ log-normal around response_median" in shown
    assert "N = n_cells * n_cell_types * (1 + conditions)" in shown
    assert "Raw counts of n_cells cells" in shown
