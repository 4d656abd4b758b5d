"""The page of a run or of a folder: what it says is what the files say, and a browser has nothing to complain of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import squidiff as sq
from squidiff.cli.report import report
from squidiff.config import InputError
from squidiff.workflows.report import write_report
from squidiff.workflows.scores import write_scores

SCHEMA = sq.Schema(condition_key="drug", control="DMSO", context_keys=("line",))
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, cells and scores; a gene and a cell line are named as scripts."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = [(line, drug) for line in ("A", EVIL) for drug in ("DMSO", "imatinib")]
    obs = pd.DataFrame(np.repeat(np.array(rows, dtype=object), 20, axis=0), columns=["line", "drug"])
    mean = rng.gamma(2.0, 1.0, 15) + (obs[["drug"]] == "imatinib").to_numpy() * rng.normal(size=15)
    x = np.maximum(rng.normal(mean, 0.5), 0).astype(np.float32)
    genes = [EVIL, *(f"g{i}" for i in range(14))]
    cells = ad.AnnData(x, obs.set_axis(obs.index.astype(str)), pd.DataFrame(index=genes))
    held = ((obs["drug"] == "imatinib") & (obs["line"] == EVIL)).to_numpy()
    truth, train = cells[held].copy(), cells[~held].copy()
    predicted = truth.copy()
    predicted.X = np.maximum(truth.X + rng.normal(0, 0.2, truth.shape), 0).astype(np.float32)
    for name, adata in (("truth", truth), ("train", train), ("predicted", predicted)):
        adata.write_h5ad(root / f"{name}.h5ad")
    config = sq.Config(width=16, n_latent=4, n_train_steps=4, batch_size=16, log_every_steps=1)
    sq.Squidiff(SCHEMA, config).fit(root / "train.h5ad", out=root / "run")
    files = [root / f"{name}.h5ad" for name in ("predicted", "truth", "train")]
    write_scores({"model": files[0]}, files[1], files[2], SCHEMA, root / "scores")
    return root


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "all")
    return tmp_path / "all"


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_tells_the_run_the_scores_and_the_pictures(copied: Path) -> None:
    report(copied, question="Does it work?")
    page = text_of(copied / "index.html")
    assert len(page) < 5e6
    scores = pd.read_csv(copied / "scores" / "metrics.csv", keep_default_na=False)
    verdicts = scores[(scores["method"] == "model") & (scores["metric"] == "delta_pearson")]["verdict"]
    assert verdicts.iloc[0] in page
    manifest = json.loads((copied / "run" / "manifest.json").read_text())
    for said in (
        "Does it work?",
        f"{manifest['n_cells']:,} in 3 populations",
        manifest["data_sha256"],
        "squidiff train train.h5ad --condition-key drug --control DMSO --context-key line",
        "squidiff evaluate predicted.h5ad truth.h5ad --train train.h5ad --out scores",
        "Nothing was left out.",
    ):
        assert said in page, said
    assert page.count("<figure>") == 7
    assert str(copied) not in page  # nobody's folders


def test_each_missing_part_is_named(copied: Path, folder: Path) -> None:
    (copied / "truth.h5ad").unlink()
    said = (copied / "scores" / "metrics.json").read_text()
    (copied / "scores" / "metrics.json").write_text(said.replace(str(folder), "/elsewhere"))
    (copied / "run" / "model.safetensors").unlink()
    (copied / "run" / "metrics.jsonl").unlink()
    page = text_of(write_report(copied))
    for said in (
        "truth.h5ad is not where it was",
        "The training of run did not finish",
        "Loss of run during training",
        "The latent of run: its training did not finish",
    ):
        assert said in page, said
    assert page.count("<figure>") == 1  # of the scores


def test_a_run_that_went_on_from_another_says_so(copied: Path) -> None:
    manifest = json.loads((copied / "run" / "manifest.json").read_text())
    assert "--from" not in text_of(write_report(copied))
    (copied / "run" / "manifest.json").write_text(json.dumps(manifest | {"started_from": "0123abc"}))
    page = text_of(write_report(copied))
    assert "--from EARLIER_RUN --out run" in page
    assert "0123abc" in page


def test_a_run_alone_has_a_page_that_says_that_nothing_was_scored(folder: Path, tmp_path: Path) -> None:
    page = text_of(write_report(folder / "run", tmp_path / "page.html"))
    assert "Nothing has been scored yet." in page
    assert "no evaluation is there; run `squidiff evaluate`" in page
    assert not (folder / "run" / "index.html").exists()


@pytest.mark.slow
def test_a_benchmark_stands_in_the_page(copied: Path) -> None:
    table = pd.read_csv(copied / "scores" / "metrics.csv")
    table.insert(0, "task", "my task")
    table.insert(1, "seed", 3)
    table.to_csv(copied / "benchmark.csv", index=False)
    page = text_of(write_report(copied))
    assert "1 tasks, 1 seeds." in page
    assert "my task" in page


@pytest.mark.slow
def test_of_several_tables_each_verdict_names_its_own(copied: Path) -> None:
    shutil.copytree(copied / "scores", copied / "task" / "seed-0")
    shutil.copytree(copied / "run", copied / "task" / "seed-0" / "runs" / "ours")
    page = text_of(write_report(copied))
    assert "<p>scores: Against the simple baselines" in page
    assert "<p>task/seed-0: Against the simple baselines" in page
    assert "Training of task/seed-0/runs/ours" in page


def test_a_page_replaces_pages_alone(folder: Path, tmp_path: Path) -> None:
    """Also those of earlier versions, which do not say who made them."""
    run, page = folder / "run", tmp_path / "page.html"
    said = text_of(write_report(run, page))
    assert '<meta name="generator" content="squidiff">' in said
    page.write_text(said.replace('<meta name="generator" content="squidiff">\n', ""), encoding="utf-8")
    assert text_of(write_report(run, page)) == said
    page.write_text("<html>mine</html>")
    with pytest.raises(InputError, match=r"page\.html is there already and no page of squidiff's: name another file"):
        write_report(run, page)
    assert page.read_text() == "<html>mine</html>"
    weights = (run / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "page"):
        with pytest.raises(InputError, match=r"but it will be written as a page: name it \.html$"):
            report(run, out=run / name)
    assert (run / "model.safetensors").read_bytes() == weights


def test_what_was_changed_by_hand_is_said_or_shown_as_it_is(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    provenance, log = (tmp_path / "run" / name for name in ("provenance.json", "metrics.jsonl"))
    provenance.write_text(json.dumps(json.loads(provenance.read_text()) | {"data": {"a": 1}}))
    first, *others = log.read_text().splitlines()
    log.write_text("\n".join([json.dumps(json.loads(first) | {"loss": 10**400}), *others, ""]))
    page = text_of(write_report(tmp_path / "run"))
    assert "squidiff train {&#39;a&#39;: 1}" in page
    assert "int too large to convert to float; it was damaged, or changed by hand" in page


def test_a_folder_without_anything_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run, no metrics\.csv"):
        write_report(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        write_report(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("scores/metrics.json", "[1, 2]"),
        ("scores/metrics.json", '{"files": {"model": 3}}'),
        ("scores/metrics.csv", ""),
        ("scores/metrics.csv", "condition,metric\n"),
        ("run/manifest.json", '{"populations": [1, 2], "n_cells": "x"}'),
        ("run/config.json", "{bad"),
        ("run/check.json", "[]"),
        ("run/metrics.jsonl", ""),
        ("run/metrics.jsonl", "{}\n"),
    ],
)
def test_a_damaged_part_is_named_and_the_rest_is_shown(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    page = text_of(write_report(copied))
    assert "Not shown, and why" in page
    assert "Nothing was left out." not in page or name == "run/check.json"
    assert "Make it again" in page
    shown = "How good are the predictions" if name.startswith("run") else "Training of run"
    assert shown in page


@pytest.mark.slow
def test_a_last_line_that_was_cut_is_left_out(copied: Path) -> None:
    log = copied / "run" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"step": 5, "lo')
    assert "Loss of run during training" in text_of(write_report(copied))


# --- in a browser

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine: install it, as Debian's package chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
def test_a_browser_finds_no_error_asks_for_nothing_and_runs_no_script_of_the_data(
    folder: Path, tmp_path: Path, browser: object
) -> None:
    path = write_report(folder, tmp_path / "page.html")
    page = browser.new_page()
    said, asked, alerts = [], [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: alerts.append(dialog.message))
    page.goto(path.as_uri())
    assert said == alerts == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    assert EVIL in page.locator("main").inner_text()
    page.close()


@pytest.mark.slow
def test_tables_sort_filter_and_pictures_enlarge_by_keyboard(folder: Path, tmp_path: Path, browser: object) -> None:
    page = browser.new_page()
    page.goto(write_report(folder, tmp_path / "page.html").as_uri())
    table = page.locator("table", has_text="Scores of the prediction")
    values = lambda: [float(t.get_attribute("data-number")) for t in table.locator("td:nth-child(4)").all()]  # noqa: E731
    heading = table.locator("thead button", has_text="value")
    heading.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    assert table.locator("th[aria-sort=ascending]").count() == 1
    page.keyboard.press("Enter")
    assert values() == sorted(values(), reverse=True)

    page.locator("summary", has_text="beside every baseline").click()
    every = page.locator("table", has_text="The prediction beside every baseline")
    n_rows = every.locator("tbody tr").count()
    page.locator("details[open] input").fill("DELTA no-such-word")
    assert every.locator("tbody tr:visible").count() == 0
    page.locator("details[open] input").fill("delta model")
    kept = every.locator("tbody tr:visible").count()
    assert 0 < kept < n_rows
    assert page.locator("details[open] [role=status]").inner_text() == f"{kept} of {n_rows} rows"

    page.locator("button.picture").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").evaluate("dialog => dialog.open && dialog.querySelector('img').naturalWidth > 300")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").evaluate("dialog => dialog.open")
    page.close()


@pytest.mark.slow
def test_both_colour_schemes_can_be_read_and_print_unfolds_everything(
    folder: Path, tmp_path: Path, browser: object
) -> None:
    path = write_report(folder, tmp_path / "page.html")
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(path.as_uri())
        for element in ("body", "dt", "figcaption", "a"):
            assert contrast(page, element) >= 4.5, (scheme, element)  # WCAG 2.1, level AA
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        page.close()


def contrast(page: object, element: str) -> float:
    """Contrast of an element's text and the page, as WCAG 2.1 defines it."""
    texts = page.evaluate(
        f"[getComputedStyle(document.querySelector('main {element}, {element}')).color,"
        " getComputedStyle(document.body).backgroundColor]"
    )
    levels = []
    for text in texts:
        channels = np.array([int(n) for n in text[4:-1].split(",")]) / 255
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(levels) / min(levels)
