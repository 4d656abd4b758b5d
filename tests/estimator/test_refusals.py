"""What the estimator refuses, and the units that it tells apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_models import QUERY, TRAIN, trained

from made_cells import HELD_OUT, SCHEMA, SMALL, counts, dense, small
from squidiff.config import InputError, Preparation
from squidiff.data.preprocess import prepare
from squidiff.estimator import Squidiff
from squidiff.estimator.generate import nothing_to_start_from
from squidiff.response.populations import Population, Populations


def test_missing_genes_are_counted_and_named(model: Squidiff) -> None:
    few = TRAIN[:, 3:].copy()
    message = r"^3 of the 40 genes of the model are missing in [^;]*: gene_001, gene_002, gene_003; prepare .*$"
    with pytest.raises(InputError, match=message):
        model.predict(QUERY, few)
    with pytest.raises(InputError, match=r"^7 of the 40 .*gene_005 and 2 more; "):
        model.predict(QUERY, TRAIN[:, 7:].copy())
    with pytest.raises(InputError, match=message):
        model.encode(few)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"condition": "druk", "cell_type": HELD_OUT}, r"^condition 'druk' is unknown .*'drug'.*: train with it, or "),
        (
            {"condition": "drug", "cell_type": "type X"},
            r"no control cells to start from in context 'type X': it has",
        ),
        ({"condition": "drug"}, r"^column 'cell_type' is missing in the queries: it has condition$"),
        ({"condition": "drug", "cell_type": HELD_OUT, "n_cells": 0}, r"^n_cells of a query is .*0.*: .* 1 or more$"),
        ({"condition": "drug", "cell_type": HELD_OUT, "n_cells": 2.5}, r"^n_cells of a query is .*2\.5"),
        ({"condition": "drug", "cell_type": None}, r"^column 'cell_type' of the queries has 1 empty values"),
        ({"condition": "drug+", "cell_type": HELD_OUT}, r"^condition 'drug\+' has an empty part"),
    ],
)
def test_a_query_that_cannot_be_answered_is_refused_in_one_sentence(
    model: Squidiff, query: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        model.predict(pd.DataFrame([query]), TRAIN)
    assert "\n" not in str(caught.value)


def test_of_several_queries_those_that_cannot_be_answered_are_named(model: Squidiff) -> None:
    asked = pd.DataFrame({"condition": ["drug", "druk", "drug", *["drog"] * 30], "cell_type": [HELD_OUT] * 33})
    with pytest.raises(InputError, match=r"^query 2: condition 'druk' is unknown[^;]*$"):
        model.predict(asked[:3], TRAIN)
    with pytest.raises(
        InputError, match=r"^query 2: condition 'druk' .*; 2 more of 5 queries cannot be predicted: 4, 5$"
    ):
        model.predict(asked[:5], TRAIN)
    with pytest.raises(InputError, match=r"; 30 more of 33 queries .*: 4, 5, .* 23 and more$"):
        model.predict(asked, TRAIN)


def test_an_untrained_model_says_so(tmp_path: Path) -> None:
    for use in (lambda m: m.predict(QUERY, TRAIN), lambda m: m.encode(TRAIN), lambda m: m.save(tmp_path / "run")):
        with pytest.raises(InputError, match=r"^this model is not trained: call fit, or load a run$"):
            use(Squidiff(SCHEMA, SMALL, "cpu"))
    assert not (tmp_path / "run").exists()


def test_counts_and_log_values_are_not_confused(model: Squidiff, tmp_path: Path) -> None:
    raw = counts()
    with pytest.raises(InputError, match=r"^raw counts \(in X; [\d,]+\): pass --normalize"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(raw, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match=r"^X holds raw counts, but the model was trained on normalised values"):
        model.predict(QUERY, raw)
    with pytest.raises(InputError, match=r"^--normalize on values that are not counts"):
        Squidiff(SCHEMA, small(normalize=True), "cpu").fit(TRAIN)


def test_counts_are_normalised_by_the_model_when_it_is_told_to() -> None:
    raw = counts()[TRAIN.obs_names].copy()
    normalising = Squidiff(SCHEMA, small(normalize=True), "cpu").fit(raw)
    told = normalising.predict(QUERY, raw)
    assert told.uns["squidiff"]["unit"] == "log1p of counts per 10000"
    logs = Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN).predict(QUERY, TRAIN)
    assert np.array_equal(dense(told), dense(logs))
    with pytest.raises(InputError, match=r"^the model was trained with --normalize, but X does not hold raw counts"):
        normalising.predict(QUERY, TRAIN)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda a: a.obs.drop(columns="cell_type", inplace=True), r"^column 'cell_type' is missing"),
        (lambda a: a.obs.replace({"condition": {"control": "ctrl"}}, inplace=True), r"^no control 'control'"),
        (lambda a: setattr(a, "var_names", ["g", "g", *a.var_names[2:]]), r"^duplicate gene names, such as 'g'"),
        (lambda a: a.X.data.__setitem__(0, np.nan), r"^NaN or infinite values \(in X; 1\)"),
    ],
)
def test_what_the_doctor_finds_stops_training_before_anything_is_written(
    tmp_path: Path, fault: object, message: str
) -> None:
    bad = TRAIN.copy()
    fault(bad)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        Squidiff(SCHEMA, SMALL, "cpu").fit(bad, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_populations_of_one_cell_each_are_refused_in_a_sentence() -> None:
    """Their spread is 0, by which the loss divides: once, training was said to diverge, and to want a lower rate."""
    one = TRAIN[~TRAIN.obs.duplicated(["condition", "cell_type"])].copy()
    with pytest.raises(InputError, match=r"^no two cells of a population differ, and how they do is what is learned"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(one)


def test_the_unit_is_remembered_and_another_one_refused(tmp_path: Path) -> None:
    raw = counts()
    prepared = prepare(raw, SCHEMA, Preparation(normalize=True, target_sum=5000.0)).train
    model = Squidiff(SCHEMA, SMALL, "cpu").fit(prepared)
    model.save(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert saved["normalisation"]["unit"] == "log1p of counts per 5000"
    assert saved["normalisation"]["known_from"] == "prepare"
    loaded = Squidiff.load(tmp_path / "run", "cpu")
    assert loaded.predict(QUERY, prepared).uns["squidiff"]["unit"] == "log1p of counts per 5000"
    million = prepare(raw, SCHEMA, Preparation(normalize=True, target_sum=1e6)).train
    linear, empty = prepared.copy(), prepared.copy()
    linear.X = np.expm1(dense(prepared)).astype(np.float32)
    empty.X = np.zeros(prepared.shape, dtype=np.float32)
    for source in (million, linear, empty):
        with pytest.raises(InputError, match=r"^X of the data is in another unit than the training data: .* alike"):
            loaded.predict(QUERY, source)


def test_a_unit_that_nobody_tells_is_as_given() -> None:
    some_genes = TRAIN[:, 5:].copy()
    predicted = trained(some_genes, SCHEMA).predict(QUERY, some_genes)
    assert predicted.uns["squidiff"]["unit"] == "as given"


def test_a_query_of_a_column_that_the_model_does_not_know_is_refused_but_a_note_is_carried() -> None:
    model = Squidiff(config=small(n_train_steps=2), device="cpu").fit(TRAIN)  # plain generation
    asked = pd.DataFrame({"cell_type": [HELD_OUT], "n_cells": [3]})
    with pytest.raises(InputError, match=r"column 'cell_type' of the queries means nothing to this model"):
        model.predict(asked, TRAIN)
    alike = TRAIN[(TRAIN.obs["cell_type"] == HELD_OUT).to_numpy()].copy()
    assert model.predict(asked, alike).obs["cell_type"].tolist() == [HELD_OUT] * 3  # all cells are of what is asked for
    assert model.predict(asked.rename(columns={"cell_type": "note"}), TRAIN).obs["note"].tolist() == [HELD_OUT] * 3


def test_a_donor_that_nobody_saw_is_named_and_contexts_that_are_most_alike_come_first() -> None:
    key = Population("T | d9", "drug", None)
    keys = tuple(Population(f"{t} | d{d}", "", None) for t in "AT" for d in range(5))
    zeros = np.zeros((len(keys), 2))
    starts = Populations(keys, np.zeros((len(keys), 1)), zeros, zeros, np.full(len(keys), 9), True, zeros)
    said = str(nothing_to_start_from(key, starts))
    assert said.startswith(
        "the source has no control cells to start from in context 'T | d9', and none at all with 'd9': it has 'T | d0'"
    )
    assert said.endswith("'A | d2' and 2 more")
