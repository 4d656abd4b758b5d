"""What a cell draws is bound to its name: nothing that stands beside it changes its prediction."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import kstest
from small_models import QUERY, TRAIN, queries, trained

from made_cells import HELD_OUT, dense
from squidiff.config import InputError, Sampling, Schema
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation
from squidiff.estimator import Squidiff
from squidiff.estimator.draws import choose, distinct, draw

NAMES = np.array([f"cell{i}" for i in range(60)], dtype=object)
GENES = tuple(f"gene{i}" for i in range(30))


def test_draws_are_uniform_normal_and_independent() -> None:
    uniform, normal = draw(np.repeat(NAMES, 5), np.tile(np.arange(5), 60), GENES, 0)
    assert kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    assert kstest(normal.ravel(), "norm").pvalue > 1e-3
    both = np.corrcoef(np.concatenate([uniform, normal], axis=1).T)[np.triu_indices(60, 1)]
    assert np.abs(both).max() < 5 / np.sqrt(300)
    assert np.abs(np.corrcoef(normal)[np.triu_indices(300, 1)]).max() < 5 / np.sqrt(30)


def test_a_draw_is_of_the_cell_the_gene_the_round_and_the_seed() -> None:
    rounds, order, genes = np.zeros(60, dtype=int), np.random.default_rng(0).permutation(60), GENES[::-1]
    for one, other in zip(draw(NAMES, rounds, GENES, 3), draw(NAMES[order], rounds, genes, 3), strict=True):
        np.testing.assert_array_equal(one[order][:, ::-1], other)
    for changed in (draw(NAMES, rounds + 1, GENES, 3), draw(NAMES, rounds, GENES, 4)):
        assert (changed[1] != draw(NAMES, rounds, GENES, 3)[1]).mean() > 0.99


@pytest.mark.parametrize("n", [1, 59, 60, 61, 200])
def test_every_cell_is_taken_once_before_one_is_taken_again(n: int) -> None:
    which, rounds = choose(NAMES, n, 0)
    counts = np.bincount(which, minlength=60)
    assert counts.sum() == n
    assert np.ptp(counts) <= 1
    assert (np.diff(rounds) >= 0).all()
    order = np.random.default_rng(1).permutation(60)
    assert NAMES[order][choose(NAMES[order], n, 0)[0]].tolist() == NAMES[which].tolist()


# --- predictions


def rows(predicted: ad.AnnData, **labels: object) -> np.ndarray:
    keep = np.logical_and.reduce([predicted.obs[c] == v for c, v in labels.items()])
    return dense(predicted[keep])


def test_a_prediction_does_not_change_with_other_queries_or_any_order(model: Squidiff) -> None:
    """Bit by bit: neither other queries, nor the order of queries, of cells and of genes, nor cells of no concern."""
    alone = dense(model.predict(QUERY, TRAIN))
    rng = np.random.default_rng(0)
    shuffled = TRAIN[rng.permutation(TRAIN.n_obs)][:, rng.permutation(TRAIN.n_vars)].copy()
    asked = pd.DataFrame({"condition": ["control", "drug", "drug"], "cell_type": ["type C", HELD_OUT, "type B"]})
    for table in (asked, asked[::-1].reset_index(drop=True)):
        np.testing.assert_array_equal(rows(model.predict(table, shuffled), condition="drug", cell_type=HELD_OUT), alone)
    needed = TRAIN[((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy()].copy()
    np.testing.assert_array_equal(dense(model.predict(QUERY, needed)), alone)


def test_fewer_cells_at_once_change_nothing_that_can_be_seen(model: Squidiff) -> None:
    one, other = (model.predict(QUERY, TRAIN, Sampling(cells_per_batch=n)) for n in (1024, 7))
    close = np.isclose(dense(one), dense(other), atol=1e-5)
    assert close.mean() > 0.999  # two that are all but equal may change places


def test_the_noise_of_a_source_cell_is_the_same_under_every_condition(model: Squidiff) -> None:
    asked = pd.DataFrame({"condition": ["control", "drug"], "cell_type": [HELD_OUT] * 2})
    predicted = model.predict(asked, TRAIN)
    sources = [predicted.obs.loc[predicted.obs["condition"] == c, "source_cell"].tolist() for c in ("control", "drug")]
    assert sources[0] == sources[1]


# --- pairs


def test_in_pairs_each_source_cell_has_one_future(model: Squidiff) -> None:
    paired = model.predict(QUERY, TRAIN, paired=True)
    controls = TRAIN[((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy()]
    assert sorted(paired.obs["source_cell"]) == sorted(controls.obs_names)
    again = model.predict(QUERY, TRAIN, Sampling(seed=0), paired=True)
    np.testing.assert_array_equal(dense(paired), dense(again))


def test_a_cell_that_does_not_change_comes_back(model: Squidiff) -> None:
    """Asked for the control cells themselves, inversion and decoding undo each other."""
    still = queries(None, condition="control", cell_type="type B")
    paired = model.predict(still, TRAIN, Sampling(n_sample_steps=200), paired=True)
    sources = dense(TRAIN[paired.obs["source_cell"].tolist()])
    assert np.abs(dense(paired) - sources).mean() < 0.02 * np.abs(sources).mean()


def test_a_future_keeps_the_identity_of_its_cell(model: Squidiff) -> None:
    """The cell that a future is nearest to, of all source cells, is its own far more often than without pairs."""
    found = {}
    for paired in (True, False):
        predicted = model.predict(QUERY, TRAIN, paired=paired)
        sources = dense(TRAIN[predicted.obs["source_cell"].tolist()])
        futures = dense(predicted) - dense(predicted).mean(axis=0)
        likeness = futures @ (sources - sources.mean(axis=0)).T
        found[paired] = (likeness.argmax(axis=1) == np.arange(len(futures))).mean()
    assert found[True] > 0.9
    assert found[True] > found[False]


@pytest.mark.parametrize(("asked", "message"), [(5, "n_cells has no use with --paired")])
def test_pairs_that_have_no_meaning_are_refused(model: Squidiff, asked: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.predict(queries(asked, condition="drug", cell_type=HELD_OUT), TRAIN, paired=True)


def test_plain_generation_has_no_pairs() -> None:
    plain = trained(TRAIN, Schema(context_keys=("cell_type",)))
    with pytest.raises(InputError, match="which have no other future: leave out --paired"):
        plain.predict(queries(None, cell_type="type B"), TRAIN, paired=True)


# --- plain generation


def test_plain_cells_are_no_nearer_to_training_cells_than_true_ones_are() -> None:
    """They start from training cells: these are noised so far that none can be told from what comes out."""
    cells = normalize(simulate_perturbation(40, 2, 300, seed=4), 1e4, None)
    cells = cells[(cells.obs["condition"] == "control").to_numpy()].copy()
    new = np.random.default_rng(0).random(cells.n_obs) < 0.3
    schema = Schema(context_keys=("cell_type",))
    predicted = trained(cells[~new].copy(), schema).predict(queries(None, cell_type="type A"), cells[~new].copy())
    made, seen, true = (
        dense(c[(c.obs["cell_type"] == "type A").to_numpy()]) for c in (predicted, cells[~new], cells[new])
    )
    nearest = {name: cdist(x, seen).min(axis=1) for name, x in (("made", made), ("true", true))}
    assert np.median(nearest["made"]) > 0.9 * np.median(nearest["true"])
    assert (nearest["made"] < np.quantile(nearest["true"], 0.05)).mean() < 0.1


def test_cells_of_one_name_draw_noise_of_their_own(model: Squidiff) -> None:
    """Recorded: they shared it, and what came of them lay together."""
    np.testing.assert_array_equal(distinct(NAMES), NAMES)
    assert len(set(distinct(np.array(["a", "b", "a", "a"], dtype=object)))) == 4
    nameless = TRAIN.copy()
    nameless.obs_names = ["cell"] * TRAIN.n_obs
    asked, from_noise = queries(40, condition="drug", cell_type=HELD_OUT), Sampling(strength=1.0)
    near = []
    for cells in (TRAIN, nameless):
        predicted = dense(model.predict(asked, cells, from_noise))
        near.append(np.median(np.sort(cdist(predicted, predicted), axis=1)[:, 1]))
    assert near[1] == pytest.approx(near[0], rel=0.1)
