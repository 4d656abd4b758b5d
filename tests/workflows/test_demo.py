"""The demo leaves every file that it names, beats the trivial guesses, and destroys nothing of anybody else's."""

from __future__ import annotations

import html
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from made_cells import contents
from squidiff.config import InputError
from squidiff.evaluate.metrics import HEADLINE, METRICS
from squidiff.evaluate.scoring import OVERALL
from squidiff.workflows.demo import MARK, DemoResult, run_demo

FILES = {"data.h5ad", "train.h5ad", "held_out.h5ad", "queries.csv", "predicted.h5ad", "metrics.csv", "metrics.json"}
PICTURES = {"training_loss.png", "sample_quality.png"}


class Told:
    """Hears what the demo says, and the bars that it moves."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: dict[str, tuple[int, int]] = {}

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[..., None]]:
        self.done[label] = (0, total)

        def advance(done: int, note: object = "") -> None:
            assert done >= self.done[label][0]
            self.done[label] = (done, total)

        yield advance


def demo(out: Path, **options: Any) -> tuple[DemoResult, Told]:
    told = Told()
    return run_demo(out, device="cpu", say=told.lines.append, progress=told.progress, **options), told


def values(out: Path, method: str) -> pd.DataFrame:
    """Populations x metrics."""
    scores = pd.read_csv(out / "metrics.csv")
    return scores[scores["method"] == method].pivot(index="condition", columns="metric", values="value")


def assert_whole(out: Path, result: DemoResult, told: Told) -> None:
    assert {p.name for p in out.iterdir()} == FILES | PICTURES | {MARK, "run", "index.html"}
    for path in result.files:
        assert path.exists()
    for name in PICTURES:
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert (out / "run" / "model.safetensors").is_file()
    assert all(done == total for done, total in told.done.values())
    assert set(told.done) == {"training", "predicting", "evaluating"}
    page = html.unescape((out / "index.html").read_text(encoding="utf-8"))
    scores = result.scores[result.scores["metric"].isin(HEADLINE)]
    mine = scores[scores["method"] == "model"]
    mine = mine[mine["condition"] == OVERALL] if (mine["condition"] == OVERALL).any() else mine
    for verdict, n in mine["verdict"].value_counts().items():
        assert f"{n} {verdict or 'without a verdict'}" in page
    assert told.lines[0] in page  # the question


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Iterator[None]:
    """A quarter of the demo's own, which CI runs from the wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("squidiff.workflows.demo.N_TRAIN_STEPS", 200)
        yield


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoResult, Told]:
    out = tmp_path_factory.mktemp("real") / "demo"
    return out, *demo(out, real=True)


@pytest.mark.slow
def test_the_demo_on_real_cells(real: tuple[Path, DemoResult, Told]) -> None:
    out = real[0]
    assert_whole(*real)
    model = values(out, "model")
    asked = pd.read_csv(out / "queries.csv")
    assert set(model.index) == {*asked["bulk_labels"], OVERALL}
    without_control = {name for name, metric in METRICS.items() if not metric.needs}
    assert set(model.columns) == without_control
    anybody = values(out, "all cells")
    assert (model["energy_distance"] < anybody["energy_distance"]).all()  # each type is told from the mixture


@pytest.mark.slow
def test_the_simulated_demo_in_the_place_of_an_earlier_one(real: tuple[Path, DemoResult, Told], tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(real[0], out)
    assert_whole(out, *demo(out))
    assert {p.name for p in (out / "run").iterdir()} == {p.name for p in (real[0] / "run").iterdir()}
    old, new = contents(real[0]), contents(out)
    assert new.keys() == old.keys()
    assert [name for name in new if new[name] == old[name]] == [MARK]
    model = values(out, "model")
    assert model.index.tolist() == ["type A, drug"]
    # there is one drug alone
    known = {name for name, metric in METRICS.items() if metric.needs not in ("perturbed mean", "other conditions")}
    assert set(model.columns) == known
    assert np.isfinite(model.to_numpy()).all()
    truth, train = (ad.read_h5ad(out / name) for name in ("held_out.h5ad", "train.h5ad"))
    assert set(zip(truth.obs["cell_type"], truth.obs["condition"], strict=True)) == {("type A", "drug")}
    assert not set(truth.obs_names) & set(train.obs_names)
    for name in ("mean treated", "mean shift"):
        assert model["delta_pearson"].item() > values(out, name)["delta_pearson"].item()
    for name in ("no change", "mean treated", "mean shift"):
        assert model["energy_distance"].item() < values(out, name)["energy_distance"].item()


@pytest.mark.parametrize("name", ["thesis.txt", "run/model.safetensors", "data.h5ad"])
def test_a_folder_of_other_things_is_refused_and_left_as_it_was(tmp_path: Path, name: str) -> None:
    out = tmp_path / "mine"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("years", encoding="utf-8")
    with pytest.raises(InputError, match=r"mine is not empty and holds no earlier demo: choose another folder"):
        demo(out)
    assert contents(out) == {name: b"years"}


@pytest.mark.parametrize("name", ["thesis.txt", "run/thesis.txt", "run/deep/thesis.txt"])
def test_an_earlier_demo_with_something_else_in_it_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    files = (MARK, "data.h5ad", "run/config.json", name)
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("years", encoding="utf-8")
    with pytest.raises(InputError, match=rf"holds an earlier demo and '{name}', which is none of its files"):
        demo(tmp_path)
    assert contents(tmp_path) == dict.fromkeys(files, b"years")


def test_a_seed_that_cannot_be_one_is_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    (tmp_path / MARK).write_text("earlier", encoding="utf-8")
    with pytest.raises(InputError, match=r"^--seed is -1: it must be from 0 to 2147483647$"):
        demo(tmp_path, seed=-1)
    assert contents(tmp_path) == {MARK: b"earlier"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file", encoding="utf-8")
    with pytest.raises(InputError, match=r"demo is a file: choose another folder with --out$"):
        demo(tmp_path / "demo")
    assert (tmp_path / "demo").read_text(encoding="utf-8") == "a file"
