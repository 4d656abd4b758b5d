"""A trained model that is trained further: it keeps what it knew, and learns what is new."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from small_models import QUERY, TRAIN, anchors, assert_mean, queries

from made_cells import HELD_OUT, SCHEMA, SMALL, dense, mean_of, small
from squidiff.config import InputError, Schema
from squidiff.data.conditions import ConditionEncoder
from squidiff.estimator import Squidiff
from squidiff.estimator.fitted import Fitted
from squidiff.response.populations import Population
from squidiff.train.run import Record

FALL = np.where(np.arange(TRAIN.n_vars) % 2, 1.0, 0.7)


def cells_of(**labels: str) -> ad.AnnData:
    keep = np.logical_and.reduce([TRAIN.obs[column] == value for column, value in labels.items()])
    return TRAIN[keep].copy()


def new_cells() -> ad.AnnData:
    """Control cells of type B, and such of which half of the genes fall, and which are called another drug."""
    control = cells_of(cell_type="type B", condition="control")
    treated = control.copy()
    treated.X = (dense(control) * FALL).astype(np.float32)
    treated.obs["condition"] = "another drug"
    return ad.concat([control, treated], index_unique="-new")


def fitted(model: Squidiff) -> Fitted:
    assert isinstance(model.fitted, Fitted)
    return model.fitted


@pytest.fixture(scope="module")
def further(model: Squidiff) -> Squidiff:
    return Squidiff(SCHEMA, small(n_train_steps=3), "cpu").fit(new_cells(), start=model)


def test_it_knows_the_populations_of_both(model: Squidiff, further: Squidiff) -> None:
    before, after = fitted(model).populations, fitted(further).populations
    assert set(after.keys) == {*before.keys, Population("type B", "another drug", None)}
    for key in before.keys:
        one, other = before.find(key), after.find(key)
        assert one is not None
        assert other is not None
        assert after.n_cells[other] == before.n_cells[one]  # of type B's control cells too, which were given again
        np.testing.assert_allclose(after.mean[other], before.mean[one], atol=1e-6)
        np.testing.assert_allclose(after.variance[other], before.variance[one], atol=1e-5)
        np.testing.assert_allclose(after.zero_fraction[other], before.zero_fraction[one], atol=1e-6)


def test_what_it_was_asked_before_it_answers_as_before(model: Squidiff, further: Squidiff) -> None:
    assert anchors(further.predict(QUERY, TRAIN)) == {"fold shift"}
    seen = queries(256, condition="drug", cell_type="type C")
    assert_mean(further.predict(seen, TRAIN), mean_of(TRAIN, cell_type="type C", condition="drug"))


def test_it_answers_for_the_new_condition_in_every_context(further: Squidiff) -> None:
    predicted = further.predict(queries(None, condition="another drug", cell_type=HELD_OUT), TRAIN)
    own = mean_of(TRAIN, cell_type=HELD_OUT, condition="control")
    assert np.corrcoef(dense(predicted).mean(axis=0) - own, own * (FALL - 1))[0, 1] > 0.9


def test_before_its_first_step_the_network_is_the_one_that_it_starts_from(model: Squidiff) -> None:
    """The same latents and cells, although there is a feature more."""
    same = Squidiff(SCHEMA, small(n_train_steps=1, learning_rate=0.0), "cpu").fit(new_cells(), start=model)
    control = cells_of(cell_type="type C", condition="control")
    np.testing.assert_allclose(same.encode(control), model.encode(control), atol=1e-5)
    weights = [fitted(m).network.denoiser.state_dict() for m in (same, model)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_run_that_was_trained_further_is_saved_and_loaded(model: Squidiff, further: Squidiff, tmp_path: Path) -> None:
    further.save(tmp_path / "run")
    again = Squidiff.load(tmp_path / "run", "cpu")
    np.testing.assert_array_equal(dense(again.predict(QUERY, TRAIN)), dense(further.predict(QUERY, TRAIN)))
    assert again.manifest["started_from"] == fitted(model).hash()


def test_what_cannot_go_on_is_refused(model: Squidiff) -> None:
    with pytest.raises(InputError, match="has another schema"):
        Squidiff(Schema(context_keys=("cell_type",)), SMALL, "cpu").fit(new_cells(), start=model)
    with pytest.raises(InputError, match="of another size: give its --width"):
        Squidiff(SCHEMA, small(width=SMALL.width + 8), "cpu").fit(new_cells(), start=model)
    with pytest.raises(InputError, match="missing"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(new_cells()[:, :30].copy(), start=model)
    centred = new_cells()
    centred.X = dense(centred) - 0.5
    with pytest.raises(InputError, match=r"^X of the data has negative values, that of training had none"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(centred, start=model)
    with pytest.raises(InputError, match="trained on these very cells"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, start=model)
    with pytest.raises(InputError, match=r"give a model, as Squidiff\.load returns"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(new_cells(), start="run")  # type: ignore[arg-type]


class Stopped(Exception):
    """Breaks a training off."""


def test_it_is_resumed_from_the_same_start_alone(model: Squidiff, tmp_path: Path) -> None:
    """As an uninterrupted training would be; with another start, or none, it is another run."""

    def stop(record: Record) -> None:
        if record.step == 15:
            raise Stopped

    config = small(n_train_steps=20)
    whole = Squidiff(SCHEMA, config, "cpu").fit(new_cells(), start=model)
    with pytest.raises(Stopped):
        Squidiff(SCHEMA, config, "cpu").fit(new_cells(), start=model, out=tmp_path, on_record=stop)
    for other, message in (
        (None, "was begun with --from, which is not given now: give"),
        (Squidiff(SCHEMA, small(seed=1), "cpu").fit(TRAIN), "was begun with other --from: give"),
    ):
        with pytest.raises(InputError, match=message):
            Squidiff(SCHEMA, config, "cpu").fit(new_cells(), start=other, out=tmp_path, resume=True)
    again = Squidiff(SCHEMA, config, "cpu").fit(new_cells(), start=model, out=tmp_path, resume=True)
    np.testing.assert_array_equal(dense(again.predict(QUERY, TRAIN)), dense(whole.predict(QUERY, TRAIN)))


def test_one_name_is_one_drug_and_times_keep_their_places() -> None:
    cells = new_cells()
    cells.obs["day"] = np.where(cells.obs["condition"] == "control", "0", "4")
    timed = Squidiff(Schema(time_key="day"), SMALL, "cpu").fit(cells)
    later = cells.copy()
    later.obs["day"] = np.where(cells.obs["condition"] == "control", "8", "12")
    later.obs_names = [f"{name}-later" for name in later.obs_names]
    after = Squidiff(Schema(time_key="day"), SMALL, "cpu").fit(later, start=timed)
    assert fitted(after).time_span == (0.0, 4.0)
    one = ConditionEncoder("embedding", ("a", "b"), np.eye(2, dtype=np.float32))
    other = ConditionEncoder("embedding", ("b", "c"), np.eye(2, dtype=np.float32))
    with pytest.raises(InputError, match="'b' is described by other numbers than in the model"):
        one.with_names_of(other)
