"""Parts of populations are found where there are some, and tell what whole contexts cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from made_populations import answer, ask
from squidiff.response.fold import FoldShift
from squidiff.response.parts import MAX_POPULATIONS, MIN_CONTROL_CELLS, N_PARTS, Parts, split
from squidiff.response.populations import Population, Populations

N_GENES = 40
SHARES = {"a": (0.6, 0.2, 0.2), "b": (0.2, 0.6, 0.2), "c": (0.2, 0.2, 0.6), "d": (0.34, 0.33, 0.33)}


def cells_of(context: str, condition: str, n: int, seed: int) -> np.ndarray:
    """Log-normalised cells of three kinds, in shares of the context's own; the drug changes each kind otherwise."""
    rng, kinds = np.random.default_rng(seed), np.random.default_rng(0)
    level = kinds.uniform(0.5, 3.0, (N_PARTS, N_GENES)) * (kinds.random((N_PARTS, N_GENES)) < 0.7)
    change = kinds.normal(0, 0.6, (N_PARTS, N_GENES)) * (level > 0)
    counts = (np.array(SHARES[context]) * n).round().astype(int)
    kind = np.repeat(np.arange(N_PARTS), counts)
    cells = level[kind] + (change[kind] if condition else 0) + rng.normal(0, 0.1, (len(kind), N_GENES))
    return np.maximum(cells, 0.0)


def made(
    contexts: str, conditions: tuple[str, ...] = ("", "drug"), n: int = 300
) -> tuple[Populations, np.ndarray, np.ndarray]:
    keys = tuple(Population(c, condition, None) for c in contexts for condition in conditions)
    of_each = [cells_of(key.context, key.condition, n, i) for i, key in enumerate(keys)]
    population = np.repeat(np.arange(len(keys)), [len(cells) for cells in of_each])
    cells = np.concatenate(of_each)
    features = np.array([[float(key.condition != "")] for key in keys])
    return Populations.summarise([cells], population, keys, features, True), cells, population


def test_parts_have_the_shares_and_means_of_the_kinds() -> None:
    populations, cells, population = made("ab")
    parts = split(cells, population, populations)
    assert parts is not None
    for i, key in enumerate(populations.keys):
        rows = parts.rows[i]
        assert sorted(parts.share[rows].round(2)) == sorted(SHARES[key.context])
        np.testing.assert_allclose(parts.share[rows] @ parts.mean[rows], populations.mean[i], atol=1e-10)
    control, treated = (parts.share[parts.rows[i]] for i in (0, 1))
    np.testing.assert_allclose(control, treated, atol=0.01)  # the parts of both are in one order


def test_a_context_of_another_mixture_is_predicted_by_its_parts() -> None:
    populations, cells, population = made("abcd")
    hidden = populations.find(ask("d", "drug"))
    assert hidden is not None
    kept = np.delete(np.arange(len(populations.keys)), hidden)
    whole = populations.only(kept)
    in_parts = replace(populations, parts=split(cells, population, populations)).only(kept)
    errors = [
        np.square(answer(FoldShift(), known, ask("d", "drug")) - populations.mean[hidden]).sum()
        for known in (whole, in_parts)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_where_parts_tell_nothing_more_the_prediction_is_as_good() -> None:
    """All kinds change alike, so that whole contexts say all."""
    populations, cells, population = made("abcd")
    shift = np.random.default_rng(5).normal(0, 0.5, N_GENES)
    treated = np.array([key.condition != "" for key in populations.keys])[population]
    control = np.concatenate([cells_of(key.context, "", 300, 100 + i) for i, key in enumerate(populations.keys)])
    cells = np.maximum(control + treated[:, None] * shift, 0.0)
    populations = Populations.summarise([cells], population, populations.keys, populations.features, True)
    hidden = populations.find(ask("d", "drug"))
    assert hidden is not None
    kept = np.delete(np.arange(len(populations.keys)), hidden)
    parts = split(cells, population, populations)
    whole, in_parts = (
        np.square(answer(FoldShift(), known.only(kept), ask("d", "drug")) - populations.mean[hidden]).sum()
        for known in (populations, replace(populations, parts=parts))
    )
    assert in_parts < 1.2 * whole


def test_contexts_too_small_to_be_split_tell_of_their_likes_all_the_same() -> None:
    """Recorded: of one cell type in several donors those with few control cells were left out, and others answered."""
    rng, n = np.random.default_rng(3), {"like": 60, "asked": 300, "other": 300, "another": 300}
    shift = {name: rng.normal(0, 0.6, N_GENES) for name in ("other", "another", "like")} | {"asked": None}
    base = {name: cells_of("d", "", size, 7) for name, size in n.items()}
    for name in ("other", "another"):
        base[name] = np.abs(base[name] + rng.normal(0, 1.0, N_GENES))
    shift["asked"] = shift["like"]
    keys = tuple(Population(name, condition, None) for name in n for condition in ("", "drug"))
    of_each = [np.maximum(base[key.context] + (shift[key.context] if key.condition else 0), 0.0) for key in keys]
    population, cells = np.repeat(np.arange(len(keys)), [len(c) for c in of_each]), np.concatenate(of_each)
    features = np.array([[float(key.condition != "")] for key in keys])
    populations = Populations.summarise([cells], population, keys, features, True)
    hidden = populations.find(ask("asked", "drug"))
    assert hidden is not None
    kept = np.delete(np.arange(len(keys)), hidden)
    parts = split(cells, population, populations)
    assert parts is not None
    assert sorted(keys[i].context for i in parts.rows) == ["another", "another", "asked", "asked", "other", "other"]
    whole, in_parts = (
        np.square(answer(FoldShift(), known.only(kept), ask("asked", "drug")) - populations.mean[hidden]).sum()
        for known in (populations, replace(populations, parts=parts))
    )
    assert in_parts < 2 * whole  # 14 times as much before


def test_some_populations_take_their_parts_with_them() -> None:
    parts = Parts(np.array([0, 0, 2, 2]), np.array([0.4, 0.6, 0.1, 0.9]), np.arange(8.0).reshape(4, 2))
    some = parts.only(np.array([2, 1]))
    assert some.population.tolist() == [0, 0]
    assert some.share.tolist() == [0.1, 0.9]
    assert some.mean.tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert parts.only(np.array([1])).rows == {}


@pytest.mark.parametrize("case", ["one context", "no control", "few cells", "many populations", "all alike"])
def test_where_nothing_would_be_learned_there_are_no_parts(case: str) -> None:
    n = MIN_CONTROL_CELLS - 5 if case == "few cells" else 300
    conditions = (
        ("", *(f"drug {i}" for i in range(MAX_POPULATIONS // 2))) if case == "many populations" else ("", "drug")
    )
    populations, cells, population = made(
        "a" if case == "one context" else "ab", conditions, 12 if len(conditions) > 2 else n
    )
    if case == "no control":
        populations = replace(populations, has_control=False)
    if case == "all alike":
        cells = np.ones_like(cells)
    assert split(cells, population, populations) is None


def test_parts_of_few_treated_cells_have_the_mean_shift_and_no_negative_mean() -> None:
    """Of the treated cells of b one kind is missing; the others fall by more than it has."""
    populations, cells, population = made("ab")
    kind = np.repeat(np.arange(N_PARTS), (np.array(SHARES["b"]) * 300).round().astype(int))
    treated = np.flatnonzero(population == 3)
    fallen = np.maximum(cells[population == 2] - 5.0, 0.0)
    cells[treated] = fallen
    gone = treated[kind == 0]
    cells, population = np.delete(cells, gone, axis=0), np.delete(population, gone)
    populations = Populations.summarise([cells], population, populations.keys, populations.features, True)
    parts = split(cells, population, populations)
    assert parts is not None
    assert parts.mean.min() >= 0
    assert np.isfinite(answer(FoldShift(), replace(populations, parts=parts), ask("a", "drug"))).all()
