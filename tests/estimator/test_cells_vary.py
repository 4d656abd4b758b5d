"""Predicted cells vary as the condition made cells vary elsewhere, whichever way the model came about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_models import queries

from made_cells import dense, small
from squidiff.config import Schema
from squidiff.estimator import Squidiff
from squidiff.estimator.fitted import Fitted

SCHEMA = Schema(condition_key="condition", control="control", context_keys=("cell_type",))
N, G, N_TOGETHER = 200, 40, 12


def population(rng: np.random.Generator, cell_type: str, condition: str, n: int = N) -> ad.AnnData:
    """Cells of which, treated, a half switches twelve genes on together."""
    answers = (rng.random((n, 1)) < 0.5) & (condition == "drug") & (np.arange(G) < N_TOGETHER)
    rate = np.linspace(0.5, 3.0, G) + 5.0 * answers
    obs = pd.DataFrame({"condition": condition, "cell_type": cell_type}, index=[str(i) for i in range(n)])
    cells = ad.AnnData(np.log1p(rng.poisson(rate)).astype(np.float32), obs=obs)
    cells.obs_names = [f"{cell_type} {condition} {i}" for i in range(n)]
    return cells


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    rng = np.random.default_rng(0)
    parts = [population(rng, t, c) for t in "abc" for c in ("control", "drug") if (t, c) != ("c", "drug")]
    return ad.concat([*parts, population(rng, "d", "control", 30)])


@pytest.fixture(scope="module")
def model(cells: ad.AnnData) -> Squidiff:
    return Squidiff(SCHEMA, small(n_train_steps=2), "cpu").fit(cells)


def fitted(model: Squidiff) -> Fitted:
    assert isinstance(model.fitted, Fitted)
    return model.fitted


def together(predicted: ad.AnnData) -> float:
    """The mean correlation of the genes that the drug switches on."""
    correlation = np.corrcoef(dense(predicted)[:, :N_TOGETHER], rowvar=False)
    return float(correlation[np.triu_indices(N_TOGETHER, 1)].mean())


def asked(model: Squidiff, cells: ad.AnnData, cell_type: str = "c", n_cells: int | None = None) -> ad.AnnData:
    return model.predict(queries(n_cells, condition="drug", cell_type=cell_type), cells)


def test_half_of_the_cells_answer_where_half_did_elsewhere(model: Squidiff, cells: ad.AnnData) -> None:
    truth = together(population(np.random.default_rng(1), "c", "drug"))
    without = Squidiff.of(
        replace(fitted(model), covariances=None), SCHEMA, model.config, manifest=model.manifest, provenance={}
    )
    assert truth > 0.3
    assert together(asked(model, cells)) == pytest.approx(truth, abs=0.12)
    assert together(asked(without, cells)) < truth / 2  # as of a run that was saved before


def test_a_saved_run_makes_the_same_cells(model: Squidiff, cells: ad.AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "run")
    loaded = Squidiff.load(tmp_path / "run", "cpu")
    assert (dense(asked(loaded, cells)) == dense(asked(model, cells))).all()
    assert fitted(loaded).covariances is not None


@pytest.mark.parametrize("knows", [True, False])
def test_training_further_adds_what_new_cells_tell(model: Squidiff, cells: ad.AnnData, knows: bool) -> None:
    start = Squidiff(SCHEMA, model.config, "cpu").fit(cells[cells.obs["cell_type"].isin(["a", "c"])].copy())
    if not knows:  # as a run that was saved before
        start = Squidiff.of(
            replace(fitted(start), covariances=None), SCHEMA, model.config, manifest=start.manifest, provenance={}
        )
    more = cells[cells.obs["cell_type"] == "b"].copy()
    further = Squidiff(SCHEMA, small(n_train_steps=2), "cpu").fit(more, start=start)
    known = fitted(further).covariances
    assert known is not None
    n_cells = dict(zip((str(key) for key in fitted(further).populations.keys), known.n_cells.tolist(), strict=True))
    assert n_cells == {"a": N * knows, "a, drug": N * knows, "b": N, "b, drug": N, "c": N * knows}
    assert together(asked(further, cells)) > 0.2 * knows


def test_cells_of_few_source_cells_are_no_copies(model: Squidiff, cells: ad.AnnData) -> None:
    """Of 30 cells that are asked for 150 times, five come from each; they differ more than those of the first round."""
    many = asked(model, cells, "d", 150)
    once = asked(model, cells, "d")
    assert set(many.obs["source_cell"].value_counts()) == {5}
    first = many[~many.obs["source_cell"].duplicated()]
    moved = dense(first[np.argsort(first.obs["source_cell"])]) - dense(once[np.argsort(once.obs["source_cell"])])
    assert np.abs(moved).mean() > 0.05  # less noised, the first of each would be the very cell


def test_one_gene_has_nothing_to_go_with(cells: ad.AnnData) -> None:
    one = cells[:, :1].copy()
    predicted = asked(Squidiff(SCHEMA, small(n_train_steps=2), "cpu").fit(one), one)
    assert np.isfinite(dense(predicted)).all()
