"""Interactions: none where effects add, found where they do not, and p-values that are uniform under the null."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from squidiff.config import InputError, Schema
from squidiff.tasks import interactions

SCHEMA = Schema(condition_key="gene", control="ctrl")
EFFECT = {"A": np.array([1.0, 0.0, 0.0, 0.5]), "B": np.array([0.0, 2.0, 0.0, 0.5])}


def screen(rest: np.ndarray, seed: int = 0, n: int = 60, condition: str = "A+B") -> ad.AnnData:
    """Normal cells of ctrl, A, B and both, whose effects add but for `rest`."""
    rng = np.random.default_rng(seed)
    means = {"ctrl": np.zeros(4), **EFFECT, condition: EFFECT["A"] + EFFECT["B"] + rest}
    cells = np.concatenate([5.0 + mean + rng.normal(size=(n, 4)) for mean in means.values()]).astype(np.float32)
    obs = pd.DataFrame({"gene": np.repeat(list(means), n)}, index=[f"c{i}" for i in range(len(cells))])
    return ad.AnnData(cells, obs=obs, var=pd.DataFrame(index=list("wxyz")))


def test_p_is_uniform_where_effects_add() -> None:
    p = [interactions(screen(np.zeros(4), seed), SCHEMA, n_null=200)["p"].item() for seed in range(60)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.05) < 0.15


def test_what_does_not_add_is_found_with_its_size_and_gene() -> None:
    rest = np.array([0.0, 0.0, 3.0, 0.0])
    found = interactions(screen(rest, n=400), SCHEMA).iloc[0]
    assert found["p"] < 0.01
    assert found["interaction"] == pytest.approx(3.0, abs=0.6)
    assert found["strength"] == pytest.approx(3.0 / np.linalg.norm(EFFECT["A"] + EFFECT["B"]), abs=0.25)
    assert found["genes"].startswith("y +")
    assert found["fit"] == pytest.approx(1.0, abs=0.15)
    assert found["condition"] == "A + B"


def test_two_that_buffer_each_other_fit_less_than_their_sum() -> None:
    rest = -0.5 * (EFFECT["A"] + EFFECT["B"])
    found = interactions(screen(rest), SCHEMA).iloc[0]
    assert found["fit"] == pytest.approx(0.5, abs=0.15)
    assert found["p"] < 0.01


def test_the_fit_of_effects_that_add_is_one_although_few_cells_tell_them() -> None:
    fits = [interactions(screen(np.zeros(4), seed, n=20), SCHEMA, n_null=2)["fit"].item() for seed in range(60)]
    assert np.mean(fits) == pytest.approx(1.0, abs=4 * np.std(fits) / np.sqrt(60))
    assert np.std(fits) < 0.4


def test_pairs_may_come_from_predicted_cells() -> None:
    cells = screen(np.zeros(4))
    seen, pairs = cells[cells.obs["gene"] != "A+B"].copy(), screen(np.array([0.0, 0.0, 3.0, 0.0]), 1)
    found = interactions(seen, SCHEMA, pairs=pairs[pairs.obs["gene"] == "A+B"].copy())
    assert found["p"].item() < 0.01
    np.testing.assert_array_equal(found, interactions(seen, SCHEMA, pairs=pairs[pairs.obs["gene"] == "A+B"].copy()))


def test_without_a_pair_that_can_be_compared_it_says_so() -> None:
    with pytest.raises(InputError, match="no combination has 10 cells, and both its parts and control cells"):
        interactions(screen(np.zeros(4), condition="A+C"), SCHEMA)
    with pytest.raises(InputError, match="need a condition and its control"):
        interactions(screen(np.zeros(4)), Schema())
    with pytest.raises(InputError, match=r"^no cell is labelled 'nobody', the control: give a file that has control"):
        interactions(screen(np.zeros(4)), Schema(condition_key="gene", control="nobody"))


def test_one_pair_does_not_move_another_and_no_order_does() -> None:
    """A second pair, and cells in another order."""
    cells = screen(np.zeros(4))
    third = cells[cells.obs["gene"] == "B"].copy()
    both = cells[cells.obs["gene"] == "A+B"].copy()
    third.obs["gene"], both.obs["gene"] = "C", "A+C"
    more = ad.concat([cells, third, both], index_unique="-")
    cells.obs_names = [f"{name}-0" for name in cells.obs_names]
    order = np.random.default_rng(0).permutation(more.n_obs)
    found = interactions(more[order].copy(), SCHEMA, n_null=50).set_index("condition").loc["A + B"]
    alone = interactions(cells, SCHEMA, n_null=50).set_index("condition").loc["A + B"]
    assert found.drop("q").equals(alone.drop("q"))


def test_raw_counts_and_another_unit_are_refused() -> None:
    counts = screen(np.zeros(4))
    counts.X = np.rint(np.abs(counts.X)).astype(np.float32)
    with pytest.raises(InputError, match="X of the cells holds raw counts"):
        interactions(counts, SCHEMA)
    with pytest.raises(InputError, match="X of the pairs holds raw counts"):
        interactions(screen(np.zeros(4)), SCHEMA, pairs=counts)
    with pytest.raises(InputError, match="--seed is -3"):
        interactions(screen(np.zeros(4)), SCHEMA, seed=-3)
    for n in (0, 10**17):
        with pytest.raises(InputError, match=f"--n-null is {n}: it must be a whole number from 1 to 100,000"):
            interactions(screen(np.zeros(4)), SCHEMA, n_null=n)
