"""What was seen of the truth is found, and nothing is found where nothing was seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from perturbed_cells import SCHEMA, made_cells

from squidiff.config import Preparation, Schema
from squidiff.data.preprocess import prepare
from squidiff.evaluate.scoring import LEAKS, MODEL, OVERALL, compare, evaluate

N_GENES = 60


def split() -> tuple[ad.AnnData, ad.AnnData, ad.AnnData]:
    """Training cells, true cells of T under A+B and under B, and other cells as prediction of these."""
    adata = made_cells(40, N_GENES)
    held_out = ((adata.obs["type"] == "T") & adata.obs["condition"].isin(["A+B", "B"])).to_numpy()
    truth = adata[held_out].copy()
    predicted = truth.copy()
    predicted.X = predicted.X.toarray() + np.float32(0.25)
    return adata[~held_out].copy(), truth, predicted


def leaks(predicted: ad.AnnData, truth: ad.AnnData, train: ad.AnnData | None) -> list[str]:
    """Without the baselines, which see none of it and take most of the time."""
    return compare({MODEL: predicted}, truth, SCHEMA, train=train, names=()).attrs[LEAKS]


def barcodes(n: int, seed: int) -> list[str]:
    letters = np.random.default_rng(seed).choice(list("ACGT"), (n, 16))
    return ["".join(row) + "-1" for row in letters]


@pytest.mark.slow
def test_clean_files_have_none() -> None:
    train, truth, predicted = split()
    table = evaluate(predicted, truth, SCHEMA, train=train)
    assert table.attrs[LEAKS] == []
    assert (table["leak"] == "").all()


@pytest.mark.slow
def test_copied_cells_are_found_without_a_training_file_and_only_their_population_is_touched() -> None:
    train, truth, predicted = split()
    copies = np.flatnonzero(truth.obs["condition"] == "B")[:10]
    x = predicted.X.copy()
    x[copies] = truth.X[copies].toarray()
    predicted.X = x
    expected = "10 cells of the prediction are true cells, value for value"
    assert leaks(predicted, truth, None) == [expected]
    table = evaluate(predicted, truth, SCHEMA, train=train)
    assert dict(table.groupby("condition")["leak"].first()) == {"T, B": expected, "T, A + B": "", OVERALL: expected}
    assert (table.groupby("condition")["leak"].nunique() == 1).all()


def test_true_cells_in_training_are_found_by_value_and_then_by_name() -> None:
    train, truth, predicted = split()
    some = truth[:30].copy()
    some.obs["type"] = "another"  # under a false label, and with other names
    some.obs_names = [f"x{i}" for i in range(30)]
    both = ad.concat([train, some])
    assert leaks(predicted, truth, both) == ["30 of 80 true cells are training cells, value for value"]
    train.obs_names, truth.obs_names = barcodes(train.n_obs, 1), barcodes(80, 2)
    renamed = ad.concat([train, some])
    renamed.obs_names = [*train.obs_names, *truth.obs_names[:30]]
    renamed.X = renamed.X.toarray() * np.float32(1.01)  # another normalisation
    assert leaks(predicted, truth, renamed) == ["30 of 80 true cells have the name of a training cell"]


def test_a_single_cell_alike_by_chance_is_none() -> None:
    train, truth, predicted = split()
    many = ad.concat([truth] * 3, index_unique="-")
    many.X = many.X.toarray() + np.repeat([0, 0.5, 0.75], 80)[:, None].astype(np.float32)
    train.X = np.vstack([many.X[:1], train.X.toarray()[1:]])
    assert leaks(predicted, many, train) == []


def test_a_population_that_training_saw_is_found_but_not_where_that_is_the_task() -> None:
    train, truth, predicted = split()
    seen, rest = truth[::2].copy(), truth[1::2].copy()
    assert leaks(predicted, rest, ad.concat([train, seen])) == [
        "training saw cells of the population asked for: T, B and 1 more"
    ]
    types = Schema(context_keys=("type",))
    table = evaluate(predicted, rest, types, train=seen)
    assert table.attrs[LEAKS] == []


def test_genes_chosen_with_the_truth_are_found() -> None:
    train, truth, predicted = split()
    whole = made_cells(40, N_GENES)
    before = prepare(whole, SCHEMA, Preparation(n_genes=40)).train  # and only then held out
    late = [before[np.isin(before.obs_names, names)].copy() for names in (train.obs_names, truth.obs_names)]
    assert leaks(predicted[:, before.var_names].copy(), late[1], late[0]) == [
        "the genes were chosen before the true cells were held out"
    ]
    rules = ("type=T,condition=A+B", "type=T,condition=B")
    prepared = prepare(whole, SCHEMA, Preparation(n_genes=40, hold_out=rules))
    assert prepared.test is not None
    assert leaks(predicted[:, prepared.train.var_names].copy(), prepared.test, prepared.train) == []


def test_genes_that_an_earlier_preparation_chose_are_found(tmp_path: Path) -> None:
    predicted, whole = split()[2], made_cells(40, N_GENES)
    rules = ("type=T,condition=A+B", "type=T,condition=B")

    def found(*steps: Preparation) -> list[str]:
        train, test = whole, None
        for step in steps:
            prepared = prepare(train, SCHEMA, step)
            train, test = prepared.train, prepared.test if prepared.test is not None else test
        assert test is not None
        for name, part in (("train", train), ("test", test)):  # as files have it
            part.write_h5ad(tmp_path / f"{name}.h5ad")
        read = [ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("test", "train")]
        return leaks(predicted[:, train.var_names].copy(), *read)

    chosen, held_out, capped = Preparation(n_genes=40), Preparation(hold_out=rules), Preparation(max_cells=30)
    late = ["the genes were chosen before the true cells were held out"]
    assert found(chosen, held_out) == found(chosen, capped, held_out) == late
    assert found(held_out, chosen) == found(capped, held_out, chosen) == []


@pytest.mark.parametrize("alike", [True, False])
def test_genes_that_scanpy_marked_in_both_files_alike_were_chosen_on_both(alike: bool) -> None:
    train, truth, predicted = split()
    marks = pd.DataFrame({"highly_variable": True, "dispersions_norm": np.arange(60.0)}, index=train.var_names)
    train.var = marks
    truth.var = marks if alike else marks.assign(dispersions_norm=1.0)
    expected = ["var['highly_variable'] is the same in training and truth: genes were chosen on both"]
    assert leaks(predicted, truth, train) == (expected if alike else [])


@pytest.mark.parametrize(("change", "found"), [(lambda a: a[::-1], 0), (lambda a: a[:-7], 1)])
def test_a_run_that_was_trained_on_something_else_is_found(
    change: Callable[[ad.AnnData], ad.AnnData], found: int
) -> None:
    from squidiff.data.manifest import hash_names

    train, truth, predicted = split()
    predicted.uns["squidiff"] = {"cells_sha256": hash_names(sorted(train.obs_names))}
    assert len(leaks(predicted, truth, change(train).copy())) == found


@pytest.mark.slow
def test_names_that_are_numbers_or_agree_as_barcodes_do_are_no_leak() -> None:
    train, truth, predicted = split()
    for form in ("{}", "cell_{}", "c{}", "{}-0", "0-{}"):
        for cells in (train, truth):
            cells.obs_names = [form.format(i) for i in range(cells.n_obs)]
        assert leaks(predicted, truth, train) == []
    train.obs_names, truth.obs_names = barcodes(409, 1), barcodes(80, 2)
    truth.obs_names = [*train.obs_names[:4], *truth.obs_names[4:]]  # 10 % of the first population
    assert leaks(predicted, truth, train) == []
    truth.obs_names = [*train.obs_names[:5], *truth.obs_names[5:]]
    assert leaks(predicted, truth, train) == ["5 of 80 true cells have the name of a training cell"]


@pytest.mark.slow
def test_cells_that_stand_twice_in_training_are_found_and_no_other_population_is_accused() -> None:
    train, truth, predicted = split()
    of_b = truth[truth.obs["condition"] == "B"].copy()
    of_b.obs["type"] = "another"
    twice = ad.concat([train, of_b, of_b, truth[(truth.obs["condition"] == "A+B").to_numpy()][:0]], index_unique="-")
    table = evaluate(predicted, truth, SCHEMA, train=twice)
    assert table.attrs[LEAKS] == ["40 of 80 true cells are training cells, value for value"]
    assert set(table.loc[table["leak"] != "", "condition"]) == {"T, B", OVERALL}


def test_a_few_twins_among_the_true_cells_hide_no_copies() -> None:
    train, truth, _ = split()
    x = truth.X.toarray()
    x[1] = x[0]
    truth.X = x
    copies = ad.concat([truth] * 12, index_unique="-")
    found = leaks(copies, truth, None)
    assert found == [f"{12 * 78:,} cells of the prediction are true cells, value for value"]
    known = ad.concat([train] * 8 + [truth], index_unique="-")
    known.obs["type"] = "another"
    assert leaks(truth[::-1].copy(), truth, known)[1:] == ["78 of 80 true cells are training cells, value for value"]


@pytest.mark.parametrize("n_genes", [5, 10, 20])
def test_cells_of_few_genes_that_are_equal_by_chance_are_no_leak(n_genes: int) -> None:
    rng = np.random.default_rng(n_genes)
    obs = pd.DataFrame({"type": "T", "condition": np.repeat(["ctrl", "A", "B"], 500)})
    obs.index = obs.index.astype(str)
    cells = [ad.AnnData(rng.poisson(0.4, (1500, n_genes)).astype(np.float32), obs=obs.copy()) for _ in range(3)]
    for i, part in enumerate(cells):
        part.X = np.log1p(part.X)
        part.obs_names = [f"{i}-{j}" for j in range(1500)]
    train, truth, predicted = cells
    train, truth = train[:1000].copy(), truth[1000:].copy()
    assert leaks(predicted[1000:].copy(), truth, train) == []


@pytest.mark.slow
def test_one_population_of_many_in_training_is_found() -> None:
    train, truth, _ = split()
    rng = np.random.default_rng(3)
    obs = pd.DataFrame({"type": "T", "condition": np.repeat([f"x{i}" for i in range(60)], 40)})
    obs.index = [f"y{i}" for i in range(2400)]
    more = ad.AnnData(rng.gamma(2.0, 1.0, (2400, N_GENES)).astype(np.float32), obs=obs, var=truth.var)
    hidden = more[more.obs["condition"] == "x7"].copy()
    hidden.obs["condition"] = "A"
    hidden.obs_names = [f"z{i}" for i in range(40)]
    known = ad.concat([train, hidden])
    other = more.copy()
    other.X = other.X + np.float32(0.1)
    (found,) = leaks(other[:400].copy(), more[:400].copy(), known)
    assert found == "40 of 400 true cells are training cells, value for value"


def test_genes_chosen_on_all_cells_before_prepare_are_found_too() -> None:
    whole = made_cells(40, N_GENES)
    whole.var["highly_variable"] = np.arange(N_GENES) % 2 == 0
    prepared = prepare(whole, SCHEMA, Preparation(n_genes=40, hold_out=("type=T,condition=A+B", "type=T,condition=B")))
    assert prepared.test is not None
    predicted = split()[2][:, prepared.train.var_names].copy()
    assert leaks(predicted, prepared.test, prepared.train) == [
        "var['highly_variable'] is the same in training and truth: genes were chosen on both"
    ]
    for cells in (prepared.train, prepared.test):  # cut to the chosen: nothing tells on which cells that was
        cells.var["highly_variable"] = True
    assert leaks(predicted, prepared.test, prepared.train) == []
