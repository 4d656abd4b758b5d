"""Ranking, dose curves, trajectories and tables of changes, of models trained on simulated cells."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from made_cells import HELD_OUT, SCHEMA, SMALL, dense, logged, mean_of, small
from squidiff.config import InputError, Schema
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation
from squidiff.estimator import Squidiff
from squidiff.tasks import dose_curves, monotonicity, rank_conditions, speeds, trajectory

FEW = small(n_train_steps=2)
CELLS = logged(("low", "high"))
SEEN = CELLS[~((CELLS.obs["cell_type"] == HELD_OUT) & (CELLS.obs["condition"] != "control")).to_numpy()].copy()


def with_doses() -> tuple[ad.AnnData, Schema]:
    """A drug whose shift goes with log10(dose + 1): doses 0, 1, 9 and 99 are 0, 1, 2 and 3 thirds of the whole way."""
    rng = np.random.default_rng(0)
    whole, blocks = rng.normal(size=30), []
    for dose, share in ((0.0, 0.0), (1.0, np.log10(2)), (9.0, 1.0), (99.0, 2.0)):
        cells = 6.0 + share * whole + 0.3 * rng.normal(size=(40, 30))
        name = "control" if dose == 0 else "drug"
        obs = pd.DataFrame({"condition": name, "dose": dose}, index=[f"{dose:g}-{i}" for i in range(40)])
        blocks.append(
            ad.AnnData(cells.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))
        )
    return ad.concat(blocks), Schema(condition_key="condition", control="control", dose_key="dose")


@pytest.fixture(scope="module")
def model() -> Squidiff:
    return Squidiff(SCHEMA, FEW, "cpu").fit(SEEN)


@pytest.fixture(scope="module")
def dosed() -> tuple[Squidiff, ad.AnnData]:
    cells, schema = with_doses()
    return Squidiff(schema, FEW, "cpu").fit(cells), cells


# --- changes


def test_changes_are_those_of_the_predicted_cells(model: Squidiff) -> None:
    asked = pd.DataFrame({"condition": ["low", "high"], "cell_type": [HELD_OUT, HELD_OUT]})
    table, predicted = model.changes(asked, SEEN), model.predict(asked, SEEN)
    assert len(table) == 2 * SEEN.n_vars
    own = mean_of(SEEN, cell_type=HELD_OUT, condition="control")
    for i, condition in enumerate(("low", "high")):
        rows = table[table["condition"] == condition]
        np.testing.assert_allclose(rows["source_mean"], own, atol=1e-5)
        moved = mean_of(predicted, condition=condition) - own
        np.testing.assert_allclose(rows["shift"], moved, atol=1e-3)
        np.testing.assert_allclose(predicted.varm["shift"][str(i)], rows["shift"])
        assert (rows["shift_low_90"] <= rows["shift_low_50"]).all()
        assert (rows["shift_low_50"] <= rows["shift"]).all()
        assert (rows["shift"] <= rows["shift_high_50"]).all()
        assert ((rows["shift_low_90"] > 0) | (rows["shift_high_90"] < 0)).tolist() == rows["changes"].tolist()


def test_truly_changed_means_lie_in_the_intervals_as_often_as_they_say(model: Squidiff) -> None:
    table = model.changes(pd.DataFrame({"condition": ["high"], "cell_type": [HELD_OUT]}), SEEN)
    truth = mean_of(CELLS, cell_type=HELD_OUT, condition="high") - table["source_mean"].to_numpy()
    inside = {p: ((truth >= table[f"shift_low_{p}"]) & (truth <= table[f"shift_high_{p}"])).mean() for p in (50, 90)}
    assert 0.3 < inside[50] < 0.8
    assert inside[90] > 0.75


# --- ranking


def test_the_condition_that_made_the_target_comes_first(model: Squidiff) -> None:
    asked = pd.DataFrame({"condition": ["control", "low", "high"], "cell_type": [HELD_OUT] * 3})
    for condition in ("low", "high"):
        target = CELLS[((CELLS.obs["cell_type"] == HELD_OUT) & (CELLS.obs["condition"] == condition)).to_numpy()].copy()
        ranked = rank_conditions(model, asked, SEEN, target)
        assert ranked["condition"].iloc[0] == condition
        assert ranked["share"].iloc[0] > 0.5
        assert ranked["energy_distance"].is_monotonic_increasing
        assert (ranked["low"] <= ranked["high"]).all()
        still = ranked[ranked["condition"] == "control"].iloc[0]
        assert still["share"] == pytest.approx(0.0, abs=0.1)


def test_a_target_of_few_cells_or_in_another_unit_is_refused(model: Squidiff) -> None:
    asked = pd.DataFrame({"condition": ["low"], "cell_type": [HELD_OUT]})
    with pytest.raises(InputError, match="the target has 5 cells: give 10 or more"):
        rank_conditions(model, asked, SEEN, CELLS[:5].copy(), on_query=lambda i, n: pytest.fail("predicted before"))
    other = CELLS.copy()
    other.X = np.expm1(dense(CELLS)).astype(np.float32) / 7
    with pytest.raises(InputError, match=r"^X of the target is in another unit"):
        rank_conditions(model, asked, SEEN, other)


def test_a_candidate_is_judged_alike_whatever_stands_beside_it(model: Squidiff) -> None:
    """Neither other candidates nor the order of cells move a number of it."""
    wanted = (CELLS.obs["cell_type"] == HELD_OUT) & (CELLS.obs["condition"] == "low")
    target = CELLS[wanted.to_numpy()].copy()
    asked = pd.DataFrame({"condition": ["high", "low"], "cell_type": [HELD_OUT] * 2})
    rng = np.random.default_rng(0)
    one = rank_conditions(model, asked, SEEN, target)
    turned = rank_conditions(
        model,
        asked[::-1].reset_index(drop=True),
        SEEN[rng.permutation(SEEN.n_obs)].copy(),
        target[rng.permutation(target.n_obs)].copy(),
    )
    pd.testing.assert_frame_equal(one, turned, rtol=1e-9)
    alone = rank_conditions(model, asked[1:].reset_index(drop=True), SEEN, target)
    pd.testing.assert_frame_equal(alone, one[one["condition"] == "low"].reset_index(drop=True), rtol=1e-9)


def test_what_cannot_be_compared_is_refused(model: Squidiff) -> None:
    asked = pd.DataFrame({"condition": ["low"], "cell_type": [HELD_OUT]})
    twice = SEEN.copy()
    twice.obs_names = [f"c{i % 50}" for i in range(SEEN.n_obs)]
    with pytest.raises(InputError, match="cells of the source have one name"):
        rank_conditions(model, asked, twice, CELLS)
    with pytest.raises(InputError, match="candidate 1 has 3 cells: give 10 or more"):
        rank_conditions(model, asked.assign(n_cells=3), SEEN, CELLS)
    scaled = CELLS.copy()
    scaled.X = dense(CELLS) - 1.0
    with pytest.raises(InputError, match="X of the target has negative values"):
        rank_conditions(model, asked, SEEN, scaled)


def test_a_condition_column_may_be_called_gene(model: Squidiff) -> None:
    schema = Schema(condition_key="gene", control="control", context_keys=("cell_type",))
    cells = SEEN.copy()
    cells.obs = cells.obs.rename(columns={"condition": "gene"})
    renamed = Squidiff(schema, FEW, "cpu").fit(cells)
    table = renamed.changes(pd.DataFrame({"gene": ["low"], "cell_type": [HELD_OUT]}), cells)
    assert set(table["asked_gene"]) == {"low"}
    assert list(table["gene"]) == list(cells.var_names)
    far = cells.copy()
    far.obs["far"] = "x"
    with pytest.raises(InputError, match="column 'far' has a name that predictions keep for themselves"):
        Squidiff(Schema(context_keys=("far",)), FEW, "cpu").fit(far)


# --- doses


def test_a_dose_between_two_lies_between_them_and_the_curve_goes_one_way(dosed: tuple[Squidiff, ad.AnnData]) -> None:
    model, cells = dosed
    curves = dose_curves(model, {"condition": "drug"}, [1, 3, 9, 30, 99], cells)
    ways = monotonicity(curves, "dose")
    moves = ways["shift"].abs() > 0.3
    assert (ways["spearman"][moves].abs() > 0.89).all()
    whole = mean_of(cells, dose=99.0) - mean_of(cells, dose=0.0)
    between = curves[curves["dose"] == 30]["shift"].to_numpy()
    assert np.corrcoef(between, whole)[0, 1] > 0.99
    size = float(between @ whole / (whole @ whole))
    assert size == pytest.approx(np.log10(31) / 2, abs=0.1)


def test_half_of_the_way_is_found_between_two_doses() -> None:
    curves = pd.DataFrame(
        {"gene": ["g"] * 3 + ["still"] * 3, "dose": [0.0, 10.0, 20.0] * 2, "shift": [0.0, 1.0, 4.0, 0.0, 0.0, 0.0]}
    )
    ways = monotonicity(curves, "dose").set_index("gene")
    assert ways.loc["g", "half"] == pytest.approx(10 + 10 / 3)
    assert ways.loc["g", "spearman"] == pytest.approx(1.0)
    assert np.isnan(ways.loc["still", "spearman"])
    assert np.isnan(ways.loc["still", "half"])


def test_doses_that_make_no_curve_are_refused(model: Squidiff, dosed: tuple[Squidiff, ad.AnnData]) -> None:
    with pytest.raises(InputError, match="trained without doses"):
        dose_curves(model, {"condition": "low", "cell_type": HELD_OUT}, [1, 2], SEEN)
    for doses in ([1], [2, 1], [1, 1]):
        with pytest.raises(InputError, match="give two or more, each once, from the lowest to the highest"):
            dose_curves(dosed[0], {"condition": "drug"}, doses, dosed[1])
    with pytest.raises(InputError, match="of which --doses gives the values"):
        dose_curves(dosed[0], {"condition": "drug", "dose": 3}, [1, 2], dosed[1])


# --- times


def test_a_trajectory_passes_through_what_was_seen_and_its_speed_is_the_slope() -> None:
    cells = CELLS.copy()
    cells.obs["day"] = cells.obs["condition"].map({"control": "0", "low": "2", "high": "6"})
    model = Squidiff(Schema(time_key="day"), FEW, "cpu").fit(cells)
    predicted = trajectory(model, [0, 2, 4, 6, 8], cells)
    for day in ("0", "2", "6"):
        np.testing.assert_allclose(mean_of(predicted, day=float(day)), mean_of(cells, day=day), atol=2e-3)
    assert set(predicted.obs.loc[predicted.obs["day"] == 8, "far"]) == {"time 8 is beyond the times seen, 0 to 6"}
    assert set(predicted.obs.loc[predicted.obs["day"] < 8, "far"]) == {""}
    table = speeds(model, [0, 2, 6], cells)
    first = table[table["start"] == 0].set_index("gene").loc[list(cells.var_names)]
    slope = (mean_of(cells, day="2") - mean_of(cells, day="0")) / 2
    np.testing.assert_allclose(first["speed"], slope, atol=1e-5)
    assert np.square(first["share"]).sum() == pytest.approx(1.0)
    assert table["share"].iloc[0] == table.loc[table["start"] == 0, "share"].max()


def test_times_that_make_no_trajectory_are_refused(model: Squidiff) -> None:
    with pytest.raises(InputError, match="trained without times"):
        trajectory(model, [0, 1], SEEN)


def test_simulated_cells_of_the_held_out_type_are_reached() -> None:
    """The whole way on other cells than above: most of the distance to the truth is gone."""
    cells = normalize(simulate_perturbation(100, 5, 60, seed=3), 1e4, None)
    held = ((cells.obs["cell_type"] == "type B") & (cells.obs["condition"] == "drug")).to_numpy()
    model = Squidiff(SCHEMA, SMALL, "cpu").fit(cells[~held].copy())
    ranked = rank_conditions(
        model, pd.DataFrame({"condition": ["drug"], "cell_type": ["type B"]}), cells[~held].copy(), cells[held].copy()
    )
    assert ranked["share"].item() > 0.6
