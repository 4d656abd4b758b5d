"""What is predicted for every kind of task."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_models import TRAIN, anchors, assert_mean, clear_of_zero, queries, trained

from made_cells import HELD_OUT, SCHEMA, dense, logged, mean_of
from squidiff.config import InputError, Sampling, Schema
from squidiff.data.preprocess import normalize
from squidiff.data.simulate import simulate_perturbation
from squidiff.estimator import Squidiff
from squidiff.estimator.fitted import Fitted


def test_a_time_between_two_has_the_mean_between_them() -> None:
    cells = logged(("early", "late"))
    cells.obs["day"] = cells.obs["condition"].map({"control": 0.0, "early": 1.0, "late": 4.0})
    schema = Schema(time_key="day")
    ends = cells[cells.obs["day"] != 1].copy()
    predicted = trained(ends, schema).predict(queries(30, day=1), ends)
    assert anchors(predicted) == {"time interpolation"}
    assert set(ends.obs.loc[predicted.obs["source_cell"], "day"]) == {0.0}
    assert_mean(predicted, 0.75 * mean_of(ends, day=0.0) + 0.25 * mean_of(ends, day=4.0))


def times() -> tuple[ad.AnnData, Schema]:
    """Cell types over days 0, 3 and 6; no conditions."""
    cells = logged(("early", "late"))
    cells.obs["day"] = cells.obs["condition"].map({"control": 0.0, "early": 3.0, "late": 6.0})
    return cells, Schema(time_key="day", context_keys=("cell_type",))


def test_between_more_than_two_times_the_cells_tell_the_course_and_a_saved_run_keeps_it(tmp_path: Path) -> None:
    cells, _ = times()
    model = trained(cells, Schema(time_key="day"))
    model.save(tmp_path / "run")
    one, other = (m.predict(queries(day=4.5), cells) for m in (model, Squidiff.load(tmp_path / "run", "cpu")))
    assert anchors(one) == {"time course"}
    np.testing.assert_array_equal(dense(one), dense(other))
    assert isinstance(model.fitted, Fitted)
    course = model.fitted.populations.course
    assert course is not None
    assert course.change.any(axis=1).all()


def test_a_context_of_one_time_goes_on_much_as_the_others_do() -> None:
    cells, schema = times()
    seen = cells[((cells.obs["cell_type"] != HELD_OUT) | (cells.obs["day"] == 0)).to_numpy()].copy()
    predicted = trained(seen, schema).predict(queries(256, day=3, cell_type=HELD_OUT), seen)
    assert anchors(predicted) == {"shared step"}
    others = [mean_of(seen, cell_type=t, day=3.0) - mean_of(seen, cell_type=t, day=0.0) for t in ("type B", "type C")]
    step = dense(predicted).mean(axis=0) - mean_of(seen, cell_type=HELD_OUT, day=0.0)
    assert np.corrcoef(step, np.mean(others, axis=0))[0, 1] > 0.9


@pytest.mark.parametrize("day", [0.0, 3.0, 6.0])
def test_a_source_that_holds_the_answer_does_not_give_it_away(day: float) -> None:
    """Asked for a day that training did not see, from the file before it was split."""
    cells, schema = times()
    seen = cells[((cells.obs["cell_type"] != HELD_OUT) | (cells.obs["day"] != day)).to_numpy()].copy()
    model, asked = trained(seen, schema), queries(256, day=day, cell_type=HELD_OUT)
    one, other = (model.predict(asked, source) for source in (seen, cells))
    assert anchors(one) == anchors(other)
    assert "seen in training" not in anchors(one)
    np.testing.assert_allclose(dense(one).mean(axis=0), dense(other).mean(axis=0), atol=1e-5)


def test_a_time_beyond_those_seen_is_a_trend_and_one_far_beyond_is_refused() -> None:
    cells, schema = times()
    model = trained(cells, schema)
    assert anchors(model.predict(queries(day=7, cell_type=HELD_OUT), cells)) == {"time trend"}
    for day in (-7, 13):
        with pytest.raises(
            InputError,
            match=rf"time {day} cannot be predicted: it is farther beyond the times seen, 0 to 6, than they span$",
        ):
            model.predict(queries(day=day, cell_type=HELD_OUT), cells)


def test_control_cells_of_a_new_context_are_generated_from_themselves() -> None:
    seen = TRAIN[(TRAIN.obs["cell_type"] != HELD_OUT).to_numpy()].copy()
    predicted = trained(seen, SCHEMA).predict(queries(256, condition="control", cell_type=HELD_OUT), TRAIN)
    assert anchors(predicted) == {"no change"}
    assert_mean(predicted, mean_of(TRAIN, cell_type=HELD_OUT, condition="control"))


@pytest.mark.parametrize("schema", [Schema(context_keys=("cell_type",)), Schema()], ids=["contexts", "nothing"])
def test_plain_generation_has_the_mean_and_no_copies(schema: Schema) -> None:
    cells = logged(())
    chosen = {key: "type B" for key in schema.context_keys} or {"note": "any"}
    model = trained(cells, schema)
    predicted = model.predict(queries(256, **chosen), cells)
    assert anchors(predicted) == {"seen in training"}
    # it starts from pure noise whatever the strength, which is how far source cells are noised
    unmoved = model.predict(queries(256, **chosen), cells, Sampling(strength=0.05))
    assert np.array_equal(dense(unmoved), dense(predicted))
    values, true = dense(predicted), dense(cells)
    expected = mean_of(cells, **chosen) if schema.context_keys else true.mean(axis=0)
    assert_mean(predicted, expected)
    nearest = np.linalg.norm(values[:, None] - true[None], axis=2).min(axis=1)
    among_true = np.linalg.norm(true[:, None] - true[None], axis=2)
    np.fill_diagonal(among_true, np.inf)
    assert np.median(nearest) > 0.3 * np.median(among_true.min(axis=1))


def test_plain_generation_of_nothing_in_particular_needs_no_column_but_n_cells() -> None:
    cells = logged(())
    predicted = trained(cells, Schema()).predict(queries(30), cells)
    assert predicted.n_obs == 30
    assert_mean(predicted, dense(cells).mean(axis=0))


def test_a_context_that_was_not_seen_is_refused_in_plain_generation() -> None:
    cells = logged(())
    with pytest.raises(
        InputError, match=r"^the source has no cells to start from in context 'type X': it has 'type A'"
    ):
        trained(cells, Schema(context_keys=("cell_type",))).predict(queries(cell_type="type X"), cells)


@pytest.mark.parametrize("label", ["A+B", "B + A"])
def test_a_combination_of_seen_parts_is_their_sum(label: str) -> None:
    cells = logged(("A", "B"))
    predicted = trained(cells, SCHEMA).predict(queries(256, condition=label, cell_type="type C"), cells)
    assert anchors(predicted) == {"interacting parts"}
    assert predicted.obs["condition"].unique().tolist() == [label]
    one, other, own = (mean_of(cells, cell_type="type C", condition=c) for c in ("A", "B", "control"))
    change = dense(predicted).mean(axis=0) - own
    assert np.corrcoef(change, one + other - 2 * own)[0, 1] > 0.95


def test_a_dose_between_seen_ones_has_a_shift_in_proportion_to_its_logarithm() -> None:
    """Between neighbours in log10(dose + 1), and of no dose no shift, but for the noise of what was measured."""
    cells = logged(("low", "middle", "high"))
    cells.obs["dose"] = cells.obs["condition"].map({"control": 0.0, "low": 1.0, "middle": 10.0, "high": 100.0})
    cells.obs["condition"] = np.where(cells.obs["condition"] == "control", "control", "drug")
    schema = Schema(condition_key="condition", control="control", context_keys=("cell_type",), dose_key="dose")
    model = trained(cells, schema)
    own = mean_of(cells, cell_type="type A", condition="control")
    seen_at = {dose: mean_of(cells, cell_type="type A", dose=float(dose)) - own for dose in (0, 1, 10, 100)}

    def mean_at(dose: float, anchor: str) -> np.ndarray:
        predicted = model.predict(queries(256, condition="drug", cell_type="type A", dose=dose), cells)
        assert anchors(predicted) == {anchor}
        assert set(predicted.obs["far"]) == {"the dose is beyond those seen" if dose > 100 else ""}
        return dense(predicted).mean(axis=0)

    for low, high in ((0, 1), (1, 10), (10, 100)):
        places = np.log10([low + 1, high + 1]) @ [[0.75, 0.5, 0.25], [0.25, 0.5, 0.75]]
        first, middle, last = means = [mean_at(10**place - 1, "dose interpolation") for place in places]
        clear = clear_of_zero(*means)
        np.testing.assert_allclose(middle[clear], (first + last)[clear] / 2, rtol=0, atol=5e-3)
        measured = (seen_at[low] + seen_at[high]) / 2
        assert np.corrcoef(middle - own, measured)[0, 1] > 0.98
    beyond = mean_at(400, "highest dose")  # the simulated condition is stronger there by no law of doses
    np.testing.assert_array_equal(beyond, mean_at(900, "highest dose"))
    assert np.corrcoef(beyond - own, seen_at[100])[0, 1] > 0.95
    none = model.predict(queries(None, condition="drug", cell_type="type A", dose=0), cells)
    assert anchors(none) == {"no change"}
    seen = model.predict(queries(256, condition="drug", cell_type="type A", dose=10), cells)
    assert anchors(seen) == {"seen in training"}


def test_two_opposite_perturbations_are_not_nothing() -> None:
    cells = logged(("A", "B"))
    cells.obs["direction"] = cells.obs["condition"].map({"control": "", "A": "activation", "B": "knock-down"})
    schema = Schema(
        condition_key="condition", control="control", context_keys=("cell_type",), direction_key="direction"
    )
    asked = queries(None, condition="A+B", cell_type="type A", direction="activation+knock-down")
    assert anchors(trained(cells, schema).predict(asked, cells)) == {"interacting parts"}


def test_the_other_direction_has_the_opposite_shift() -> None:
    cells = logged(("A", "B"))
    cells.obs["direction"] = cells.obs["condition"].map({"control": "", "A": "activation", "B": "knock-down"})
    schema = Schema(
        condition_key="condition", control="control", context_keys=("cell_type",), direction_key="direction"
    )
    predicted = trained(cells, schema).predict(
        queries(256, condition="A", cell_type="type A", direction="knock-down"), cells
    )
    assert anchors(predicted) == {"dose shift"}
    own = mean_of(cells, cell_type="type A", condition="control")
    activated = np.mean(
        [
            mean_of(cells, cell_type=t, condition="A") - mean_of(cells, cell_type=t, condition="control")
            for t in ("type A", "type B", "type C")
        ],
        axis=0,
    )
    mean = dense(predicted).mean(axis=0)
    clear = clear_of_zero(mean, own)
    assert np.corrcoef((mean - own)[clear], -activated[clear])[0, 1] > 0.999


def test_embeddings_describe_a_gene_that_was_never_seen(tmp_path: Path) -> None:
    """C = A + B in the embedding, so its shift is the sum of theirs but for the shrinkage of the ridge."""
    cells = logged(("A", "B"))
    file = tmp_path / "genes.csv"
    file.write_text("gene,x,y\nA,1,0\nB,0,1\nC,1,1\n", encoding="utf-8")
    schema = Schema(condition_key="condition", control="control", context_keys=("cell_type",), embeddings=str(file))
    model = trained(cells, schema)
    model.save(tmp_path / "run")
    file.unlink()  # the run holds what it needs
    loaded = Squidiff.load(tmp_path / "run", "cpu")
    predicted = loaded.predict(queries(256, condition="C", cell_type="type A"), cells)
    assert "ridge" in anchors(predicted).pop()  # beside no change, as of two conditions neither tells of the other
    own = mean_of(cells, cell_type="type A", condition="control")
    shift = sum(
        mean_of(cells, cell_type=t, condition=c) - mean_of(cells, cell_type=t, condition="control")
        for t in ("type A", "type B", "type C")
        for c in ("A", "B")
    )
    mean = dense(predicted).mean(axis=0)
    clear = clear_of_zero(mean, own)
    assert np.corrcoef((mean - own)[clear], shift[clear])[0, 1] > 0.999
    with pytest.raises(InputError, match=r"^condition 'D' is unknown .*: add a row for it to the embeddings$"):
        loaded.predict(queries(condition="D", cell_type="type A"), cells)


def test_a_drug_that_was_never_seen_is_known_by_its_structure() -> None:
    pytest.importorskip("rdkit", reason="SMILES need the extra 'drug'")
    cells = logged(("ethanol", "aspirin"))
    smiles = {"control": "", "ethanol": "CCO", "aspirin": "CC(=O)Oc1ccccc1C(=O)O"}
    cells.obs["smiles"] = cells.obs["condition"].map(smiles)
    schema = Schema(condition_key="condition", control="control", context_keys=("cell_type",), smiles_key="smiles")
    model = trained(cells, schema)

    def mean(name: str, structure: str) -> np.ndarray:
        asked = queries(256, condition=name, cell_type="type A", smiles=structure)
        predicted = model.predict(asked, cells)
        assert "ridge" in anchors(predicted).pop()
        return dense(predicted).mean(axis=0)

    own, ethanol, aspirin = (mean_of(cells, cell_type="type A", condition=c) for c in ("control", "ethanol", "aspirin"))
    propanol = mean("propanol", "CCCO")
    assert np.array_equal(propanol, mean("1-propanol", "OCCC"))  # one molecule, spelt in two ways
    salicylic = mean("salicylic acid", "O=C(O)c1ccccc1O")
    for new, like, unlike in ((propanol, ethanol, aspirin), (salicylic, aspirin, ethanol)):
        alike, other = (np.corrcoef(new - own, known - own)[0, 1] for known in (like, unlike))
        assert alike > other + 0.3  # of two drugs neither tells of the other, so that the change itself is a part of it
        assert np.linalg.norm(new - own) > 0.1
    with pytest.raises(InputError, match=r"^SMILES 'C\(' does not parse"):
        mean("broken", "C(")
    with pytest.raises(InputError, match=r"^condition 'nothing' is unknown .*: give its SMILES$"):
        model.predict(queries(condition="nothing", cell_type="type A"), cells)


def test_a_run_of_several_types_knows_their_parts_and_a_saved_one_too(tmp_path: Path) -> None:
    counts = simulate_perturbation(n_genes=60, n_cell_types=3, n_cells=120, seed=3)
    cells = normalize(counts, 1e4, None)
    seen = cells[~((cells.obs["cell_type"] == "type A") & (cells.obs["condition"] == "drug")).to_numpy()].copy()
    model = trained(seen, SCHEMA)
    assert isinstance(model.fitted, Fitted)
    assert model.fitted.populations.parts is not None
    assert set(model.fitted.populations.parts.rows) == set(range(5))
    model.save(tmp_path / "run")
    asked = queries(condition="drug", cell_type="type A")
    one, other = (m.predict(asked, seen) for m in (model, Squidiff.load(tmp_path / "run", "cpu")))
    assert "fold shift" in anchors(one).pop()
    np.testing.assert_array_equal(dense(one), dense(other))


def test_a_dose_of_none_at_another_time_is_what_untreated_cells_are_then() -> None:
    rng = np.random.default_rng(0)
    rows = [("control", 0, day) for day in (0, 4, 12)] + [("drug", 10, day) for day in (4, 8, 12)]
    obs = pd.DataFrame([row for row in rows for _ in range(60)], columns=["condition", "dose", "day"])
    obs.index = obs.index.astype(str)
    rates = 1 + obs["day"].to_numpy()[:, None] * np.linspace(0, 0.4, 20) + (obs["dose"] > 0).to_numpy()[:, None]
    cells = ad.AnnData(np.log1p(rng.poisson(rates)).astype(np.float32), obs=obs)
    schema = Schema(condition_key="condition", control="control", time_key="day", dose_key="dose")
    model = trained(cells, schema)
    none, untreated = (
        dense(model.predict(queries(100, condition=name, dose=0, day=8), cells)).mean(axis=0)
        for name in ("drug", "control")
    )
    np.testing.assert_allclose(none, untreated, rtol=0, atol=1e-6)
    earlier = dense(cells[((obs["day"] == 4) & (obs["dose"] == 0)).to_numpy()]).mean(axis=0)
    assert np.abs(none - earlier).max() > 0.3
