"""The public class: what it predicts for every kind of task, that it repeats, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from made_cells import HELD_OUT, SCHEMA, SMALL, contents, counts, dense, logged, mean_of, small, split
from squidiff.config import InputError, Sampling, Schema
from squidiff.estimator import Squidiff
from squidiff.response.shift import BANDWIDTHS
from squidiff.train.run import Record

TRAIN, TRUTH = split()
QUERY = pd.DataFrame({"condition": ["drug"], "cell_type": [HELD_OUT]})
FILES = {"model.safetensors", "config.json", "metrics.jsonl", "check.json", "manifest.json", "provenance.json"}


@pytest.fixture(scope="module")
def model() -> Squidiff:
    return Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run folder of the same settings and data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=folder)
    return folder


def queries(n_cells: int | None = None, **columns: object) -> pd.DataFrame:
    """One query."""
    return pd.DataFrame([columns if n_cells is None else {**columns, "n_cells": n_cells}])


def trained(cells: ad.AnnData, schema: Schema) -> Squidiff:
    return Squidiff(schema, small(n_train_steps=2), "cpu").fit(cells)


def anchors(predicted: ad.AnnData) -> set[str]:
    return set(predicted.obs["anchor"])


def clear_of_zero(*means: np.ndarray) -> np.ndarray:
    """The genes that no mean has cut off at 0."""
    return np.all([m > 1e-3 for m in means], axis=0)


def assert_mean(predicted: ad.AnnData, mean: np.ndarray) -> None:
    """Of all predicted cells; a gene without any non-zero cell, or with a mean below zero, is left at 0."""
    values = dense(predicted)
    alive = (values > 0).any(axis=0)
    assert alive.sum() > 30
    np.testing.assert_allclose(values.mean(axis=0)[alive], mean[alive], rtol=0, atol=1e-3)
    assert mean[~alive].max(initial=0.0) < 0.05


# --- a prediction


def test_a_prediction_carries_genes_query_sources_latent_and_unit(model: Squidiff) -> None:
    asked = pd.DataFrame(
        {"condition": ["drug", "drug"], "cell_type": [HELD_OUT, "type B"], "note": ["x", "y"], "n_cells": [7, 3]}
    )
    predicted = model.predict(asked, TRAIN)
    assert list(predicted.var_names) == list(TRAIN.var_names)
    assert predicted.obs["cell_type"].tolist() == [HELD_OUT] * 7 + ["type B"] * 3
    assert predicted.obs["condition"].tolist() == ["drug"] * 10
    assert predicted.obs["note"].tolist() == ["x"] * 7 + ["y"] * 3
    assert "n_cells" not in predicted.obs
    assert predicted.obs_names.is_unique
    sources = TRAIN.obs.loc[predicted.obs["source_cell"]]
    assert set(sources["condition"]) == {"control"}
    assert sources["cell_type"].tolist() == predicted.obs["cell_type"].tolist()
    assert predicted.obs["anchor"].tolist()[7:] == ["seen in training"] * 3
    assert dense(predicted).min() >= 0
    assert predicted.uns["squidiff"]["unit"] == "log1p of counts per 10000"
    assert predicted.uns["squidiff"]["sampling"]["strength"] == Sampling().strength
    assert predicted.uns["squidiff"]["data_sha256"] == model.manifest["data_sha256"]


def test_the_latent_is_that_of_the_source_cell_and_the_query(model: Squidiff) -> None:
    """Equal source cells have equal latents; with the condition of another query the same cells have others."""
    predicted = model.predict(queries(100, condition="drug", cell_type=HELD_OUT), TRAIN)
    latent = pd.DataFrame(predicted.obsm["X_z_sem"], index=predicted.obs["source_cell"])
    assert latent.index.nunique() == 40  # 100 cells from 40 controls
    spread = latent.groupby(level=0).agg(np.ptp).to_numpy()
    assert spread.max() < 1e-5
    assert latent.groupby(level=0).mean().std().min() > 1e-4
    still = model.predict(queries(100, condition="control", cell_type=HELD_OUT), TRAIN)
    assert np.abs(still.obsm["X_z_sem"] - predicted.obsm["X_z_sem"]).max() > 1e-3


def test_without_n_cells_there_are_as_many_as_there_are_to_start_from_or_enough_for_a_mean(model: Squidiff) -> None:
    assert model.predict(QUERY, TRAIN).n_obs == 256
    controls = TRAIN[((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy()]
    many = ad.concat([controls] * 7, index_unique="-")
    assert many.n_obs == 280
    assert model.predict(QUERY, many).n_obs == 280


def test_few_cells_are_the_first_of_many(model: Squidiff) -> None:
    few, many = (model.predict(queries(n, condition="drug", cell_type=HELD_OUT), TRAIN) for n in (5, 50))
    assert np.array_equal(dense(few), dense(many)[:5])
    assert few.obs["source_cell"].tolist() == many.obs["source_cell"].tolist()[:5]


@pytest.mark.parametrize("n_cells", [256, 300])
def test_the_mean_of_many_cells_is_the_control_mean_plus_the_shift_of_the_other_types(
    model: Squidiff, n_cells: int
) -> None:
    predicted = model.predict(queries(n_cells, condition="drug", cell_type=HELD_OUT), TRAIN)
    own = mean_of(TRAIN, cell_type=HELD_OUT, condition="control")
    sources, shifts = [], []
    for other in ("type B", "type C"):
        sources.append(mean_of(TRAIN, cell_type=other, condition="control"))
        shifts.append(mean_of(TRAIN, cell_type=other, condition="drug") - sources[-1])
    distance = np.linalg.norm(np.array(sources) - own, axis=1)
    unit = np.median([*distance, np.linalg.norm(sources[0] - sources[1])])
    # two contexts cannot tell which bandwidth is best, so the predictions of all are averaged
    weights = np.exp([-distance / (h * unit) for h in BANDWIDTHS])
    expected = own + (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0) @ np.array(shifts)
    assert np.abs(expected - own - np.mean(shifts, axis=0)).max() > 5e-3
    assert anchors(predicted) == {"weighted shift"}
    assert_mean(predicted, np.maximum(expected, 0))


def test_a_population_seen_in_training_has_its_own_mean(model: Squidiff) -> None:
    predicted = model.predict(queries(256, condition="drug", cell_type="type B"), TRAIN)
    assert_mean(predicted, mean_of(TRAIN, cell_type="type B", condition="drug"))


def test_negative_data_are_not_cut_and_keep_the_mean() -> None:
    scaled = TRAIN.copy()
    scaled.X = (dense(TRAIN) - dense(TRAIN).mean(axis=0)).astype(np.float32)
    predicted = trained(scaled, SCHEMA).predict(queries(256, condition="drug", cell_type="type B"), scaled)
    assert dense(predicted).min() < -0.1
    expected = mean_of(scaled, cell_type="type B", condition="drug")
    np.testing.assert_allclose(dense(predicted).mean(axis=0), expected, rtol=0, atol=1e-4)


def test_seeds_of_sampling_and_strength(model: Squidiff) -> None:
    one, other = (dense(model.predict(QUERY, TRAIN, Sampling(seed=s))) for s in (0, 1))
    assert not np.array_equal(one, other)
    kept, anew = (
        model.predict(queries(60, condition="drug", cell_type=HELD_OUT), TRAIN, Sampling(strength=s))
        for s in (0.01, 1.0)
    )

    def likeness(predicted: ad.AnnData) -> float:
        source = TRAIN[predicted.obs["source_cell"].tolist()]
        residuals = [dense(x) - dense(x).mean(axis=0) for x in (predicted, source)]
        return float(np.corrcoef(*(r.ravel() for r in residuals))[0, 1])

    assert likeness(kept) > 0.85  # zeros that are switched on and off keep it below 1
    assert likeness(anew) < 0.5


def test_every_query_is_heard_of(model: Squidiff) -> None:
    heard: list[tuple[int, int]] = []
    model.predict(pd.concat([QUERY] * 3), TRAIN, on_query=lambda i, n: heard.append((i, n)))
    assert heard == [(1, 3), (2, 3), (3, 3)]


# --- equal in, equal out


def test_a_loaded_model_predicts_the_same_bits(model: Squidiff, tmp_path: Path) -> None:
    model.save(tmp_path / "run")
    loaded = Squidiff.load(tmp_path / "run", "cpu")
    assert (loaded.schema, loaded.config, loaded.manifest) == (model.schema, model.config, model.manifest)
    one, other = (m.predict(QUERY, TRAIN) for m in (model, loaded))
    assert np.array_equal(dense(one), dense(other))
    assert np.array_equal(one.obsm["X_z_sem"], other.obsm["X_z_sem"])
    assert one.obs.equals(other.obs)
    assert np.array_equal(loaded.encode(TRAIN), model.encode(TRAIN))


@pytest.mark.parametrize("kind", ["path", "text", "backed", "dense"])
def test_a_path_and_backed_and_dense_data_give_the_same_bits(
    model: Squidiff, run: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "train.h5ad"
    TRAIN.copy().write_h5ad(file)
    if kind == "dense":
        data: ad.AnnData | str | Path = TRAIN.copy()
        data.X = dense(TRAIN).astype(np.float32)
    else:
        data = {"path": file, "text": str(file), "backed": ad.read_h5ad(file, backed="r")}[kind]
    other = Squidiff(SCHEMA, SMALL, "cpu").fit(data, out=tmp_path / "run")
    if kind != "dense":  # sums over sparse cells are taken in another order
        assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
        assert np.array_equal(dense(other.predict(QUERY, data)), dense(model.predict(QUERY, TRAIN)))
    else:
        np.testing.assert_allclose(dense(other.predict(QUERY, data)), dense(model.predict(QUERY, TRAIN)), atol=1e-3)


def test_fitting_leaves_the_data_as_they_were() -> None:
    cells, before = counts(), counts()
    Squidiff(SCHEMA, small(n_train_steps=1, normalize=True), "cpu").fit(cells)
    assert (cells.X != before.X).nnz == 0
    assert cells.obs.equals(before.obs)


def test_another_seed_gives_another_model(model: Squidiff) -> None:
    other = Squidiff(SCHEMA, small(seed=1), "cpu").fit(TRAIN)
    assert np.abs(other.encode(TRAIN) - model.encode(TRAIN)).max() > 1e-3


def test_genes_are_matched_by_name(model: Squidiff) -> None:
    order = np.random.default_rng(0).permutation(TRAIN.n_vars)
    shuffled = TRAIN[:, order].copy()
    more = ad.AnnData(
        sp.hstack([shuffled.X, sp.csr_matrix(np.ones((TRAIN.n_obs, 2)))]).tocsr().astype(np.float32),
        obs=shuffled.obs,
        var=pd.DataFrame(index=[*shuffled.var_names, "new 1", "new 2"]),
    )
    expected = model.predict(QUERY, TRAIN)
    for source in (shuffled, more):
        predicted = model.predict(QUERY, source)
        assert list(predicted.var_names) == list(TRAIN.var_names)
        np.testing.assert_allclose(dense(predicted), dense(expected), rtol=0, atol=1e-6)


# --- the latent


def test_a_latent_in_a_batch_is_that_of_its_population_alone(model: Squidiff) -> None:
    """Chunks of a data set are encoded alike: to 1e-5, since sums in float32 depend on the number of rows."""
    whole = model.encode(TRAIN)
    assert whole.shape == (TRAIN.n_obs, SMALL.n_latent)
    controls = np.flatnonzero(((TRAIN.obs["cell_type"] == HELD_OUT) & (TRAIN.obs["condition"] == "control")).to_numpy())
    np.testing.assert_allclose(model.encode(TRAIN[controls].copy()), whole[controls], rtol=0, atol=1e-5)


def test_a_latent_is_the_same_for_a_cell_alone(model: Squidiff) -> None:
    whole = model.encode(TRAIN)
    rows = [0, 50, TRAIN.n_obs - 1]
    alone = np.concatenate([model.encode(TRAIN[[i]].copy()) for i in rows])
    np.testing.assert_allclose(alone, whole[rows], rtol=0, atol=1e-5)


def test_a_latent_follows_its_cell_when_cells_change_places(model: Squidiff) -> None:
    order = np.random.default_rng(0).permutation(TRAIN.n_obs)
    np.testing.assert_allclose(model.encode(TRAIN[order].copy()), model.encode(TRAIN)[order], rtol=0, atol=1e-5)


# --- what is refused


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
        ({"condition": "drug", "cell_type": "type X"}, r"no cells to start from in context 'type X': it has 'type A'"),
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


# --- the tasks


def test_a_time_between_two_has_the_mean_between_them() -> None:
    cells = logged(("early", "late"))
    cells.obs["day"] = cells.obs["condition"].map({"control": 0.0, "early": 1.0, "late": 4.0})
    schema = Schema(time_key="day")
    ends = cells[cells.obs["day"] != 1].copy()
    predicted = trained(ends, schema).predict(queries(300, day=1), ends)
    assert anchors(predicted) == {"time interpolation"}
    assert set(ends.obs.loc[predicted.obs["source_cell"], "day"]) == {0.0}
    assert_mean(predicted, 0.75 * mean_of(ends, day=0.0) + 0.25 * mean_of(ends, day=4.0))


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
    predicted = trained(cells, Schema()).predict(queries(256), cells)
    assert predicted.n_obs == 256
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
    assert anchors(predicted) == {"additive"}
    assert predicted.obs["condition"].unique().tolist() == [label]
    one, other, own = (mean_of(cells, cell_type="type C", condition=c) for c in ("A", "B", "control"))
    assert_mean(predicted, np.maximum(one + other - own, 0))


def test_a_dose_between_seen_ones_has_a_shift_in_proportion_to_its_logarithm() -> None:
    """Ridge on log10(dose + 1), without intercept: the shifts of doses 3 and 50 are as log10(4) to log10(51)."""
    cells = logged(("low", "middle", "high"))
    cells.obs["dose"] = cells.obs["condition"].map({"control": 0.0, "low": 1.0, "middle": 10.0, "high": 100.0})
    cells.obs["condition"] = np.where(cells.obs["condition"] == "control", "control", "drug")
    schema = Schema(condition_key="condition", control="control", context_keys=("cell_type",), dose_key="dose")
    model = trained(cells, schema)
    own = mean_of(cells, cell_type="type A", condition="control")
    means = {}
    for dose in (3, 50):
        predicted = model.predict(queries(256, condition="drug", cell_type="type A", dose=dose), cells)
        assert anchors(predicted) == {"ridge"}
        means[dose] = dense(predicted).mean(axis=0)
    clear = clear_of_zero(*means.values(), own)
    assert clear.sum() > 25
    shifts = {dose: (mean - own)[clear] for dose, mean in means.items()}
    assert np.linalg.norm(shifts[50]) > 0.1
    np.testing.assert_allclose(shifts[3], shifts[50] * np.log10(4) / np.log10(51), rtol=0, atol=2e-4)
    seen = model.predict(queries(256, condition="drug", cell_type="type A", dose=10), cells)
    assert anchors(seen) == {"seen in training"}


def test_the_other_direction_has_the_opposite_shift() -> None:
    cells = logged(("A", "B"))
    cells.obs["direction"] = cells.obs["condition"].map({"control": "", "A": "activation", "B": "knock-down"})
    schema = Schema(
        condition_key="condition", control="control", context_keys=("cell_type",), direction_key="direction"
    )
    predicted = trained(cells, schema).predict(
        queries(256, condition="A", cell_type="type A", direction="knock-down"), cells
    )
    assert anchors(predicted) == {"ridge"}
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
    assert anchors(predicted) == {"ridge"}
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
        assert anchors(predicted) == {"ridge"}
        return dense(predicted).mean(axis=0)

    own, ethanol, aspirin = (mean_of(cells, cell_type="type A", condition=c) for c in ("control", "ethanol", "aspirin"))
    propanol = mean("propanol", "CCCO")
    assert np.array_equal(propanol, mean("1-propanol", "OCCC"))  # one molecule, spelt in two ways
    assert np.linalg.norm(propanol - ethanol) < 0.8 * np.linalg.norm(propanol - aspirin)
    salicylic = mean("salicylic acid", "O=C(O)c1ccccc1O")
    assert np.linalg.norm(salicylic - aspirin) < 0.8 * np.linalg.norm(salicylic - ethanol)
    assert np.linalg.norm(salicylic - own) > 0.1
    with pytest.raises(InputError, match=r"^SMILES 'C\(' does not parse"):
        mean("broken", "C(")
    with pytest.raises(InputError, match=r"^condition 'nothing' is unknown .*: give its SMILES$"):
        model.predict(queries(condition="nothing", cell_type="type A"), cells)


# --- the run folder


def test_a_run_folder_holds_its_files_and_the_weights_come_last(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    seen: list[set[str]] = []

    def look(record: Record) -> None:
        seen.append({p.name for p in folder.iterdir()})

    model = Squidiff(SCHEMA, small(n_train_steps=30), "cpu").fit(TRAIN, out=folder, on_record=look)
    assert len(seen) == 6
    assert not any("model.safetensors" in names for names in seen)
    assert all({"check.json", "manifest.json", "config.json", "metrics.jsonl"} <= names for names in seen)
    assert "resume" in seen[-1]
    assert {p.name for p in folder.iterdir() if p.is_file()} == FILES
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert saved["genes"] == list(TRAIN.var_names)
    assert saved["config"]["width"] == 32
    assert saved["schema"]["control"] == "control"
    assert saved["vocabulary"] == {"kind": "one-hot", "names": ["drug"]}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["n_cells"] == TRAIN.n_obs
    assert sum(p["n_cells"] for p in manifest["populations"]) == TRAIN.n_obs
    assert json.loads((folder / "check.json").read_text(encoding="utf-8")) == model.check
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [r.step for r in model.history] == [5, 10, 15, 20, 25, 30]


def test_the_resumable_state_is_gone_when_training_is_done(run: Path) -> None:
    assert not (run / "resume").exists()


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_was(run: Path) -> None:
    before = contents(run)
    for resume in (False, True):
        with pytest.raises(InputError, match=r"already holds a trained model: choose another folder$"):
            Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=run, resume=resume)
    assert contents(run) == before


def test_a_folder_of_foreign_files_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years", encoding="utf-8")
    for resume in (False, True):
        with pytest.raises(InputError, match=r"is not empty and holds no run: choose another folder$"):
            Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=tmp_path, resume=resume)
    assert contents(tmp_path) == {"thesis.txt": b"years"}


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    def stop(record: Record) -> None:
        if record.step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=tmp_path / "run", on_record=stop)
    return tmp_path / "run"


def test_an_unfinished_run_goes_on_to_the_same_bits(unfinished: Path, run: Path) -> None:
    assert (unfinished / "resume").is_dir()
    Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=unfinished, resume=True)
    assert (unfinished / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (unfinished / "config.json").read_bytes() == (run / "config.json").read_bytes()


def test_an_unfinished_run_is_not_loaded_and_not_overwritten(unfinished: Path) -> None:
    before = contents(unfinished)
    with pytest.raises(InputError, match=r"holds no trained model: training has not finished .*--resume"):
        Squidiff.load(unfinished)
    with pytest.raises(InputError, match=r"holds an unfinished run: go on with --resume"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(TRAIN, out=unfinished)
    assert contents(unfinished) == before


@pytest.mark.parametrize(
    ("schema", "config", "message"),
    [
        (SCHEMA, small(width=16), r"was begun with another config \(width was 32, is 16\)$"),
        (SCHEMA, small(seed=1), r"was begun with another config \(seed was 0, is 1\)$"),
        (
            Schema(condition_key="condition", control="control"),
            SMALL,
            r"was begun with another schema \(context_keys was \['cell_type'\], is \[\]\)$",
        ),
    ],
)
def test_resuming_with_other_settings_is_refused(
    unfinished: Path, schema: Schema, config: object, message: str
) -> None:
    before = contents(unfinished)
    with pytest.raises(InputError, match=message):
        Squidiff(schema, config, "cpu").fit(TRAIN, out=unfinished, resume=True)
    assert contents(unfinished) == before


def test_resuming_with_other_data_is_refused(unfinished: Path) -> None:
    other, before = TRAIN.copy(), contents(unfinished)
    other.X.data[7] += 0.5
    with pytest.raises(InputError, match=r"was begun with other data: give the same file"):
        Squidiff(SCHEMA, SMALL, "cpu").fit(other, out=unfinished, resume=True)
    assert contents(unfinished) == before


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "check.json", "provenance.json"])
@pytest.mark.parametrize("fault", ["missing", "cut", "empty"])
def test_a_run_that_is_not_whole_is_refused(run: Path, tmp_path: Path, file: str, fault: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in contents(run).items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    if fault == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes((run / file).read_bytes()[: 0 if fault == "empty" else -20])
    with pytest.raises(InputError, match=rf"{file} (cannot be read|is not valid JSON)"):
        Squidiff.load(folder)


def test_weights_and_settings_of_two_runs_are_refused(run: Path, tmp_path: Path) -> None:
    other = Squidiff(SCHEMA, small(n_train_steps=1, width=16), "cpu").fit(TRAIN)
    other.save(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"model\.safetensors and config\.json do not belong together"):
        Squidiff.load(tmp_path / "run")


def test_a_folder_that_is_not_there_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no trained model: there is no such folder$"):
        Squidiff.load(tmp_path / "none")


def test_training_that_diverges_is_stopped_and_leaves_no_model(tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, learning_rate=1e30, n_warmup_steps=0)
    with pytest.raises(InputError, match=r"^training diverged at step \d+: lower --learning-rate, in another folder$"):
        Squidiff(SCHEMA, config, "cpu").fit(logged(), out=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(InputError, match="training has not finished"):
        Squidiff.load(tmp_path / "run", "cpu")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = Squidiff(SCHEMA, SMALL, "cpu").fit(logged())
    with torch.no_grad():
        model.fitted.network.denoiser.lift.weight[0, 0] = float("nan")
    model.save(tmp_path / "run")
    with pytest.raises(InputError, match=r"denoiser\.lift\.weight holds values that are not finite$"):
        Squidiff.load(tmp_path / "run", "cpu")


def test_counts_of_more_genes_are_scaled_as_in_training() -> None:
    """Training knew the total of its own genes: others in the source must not change the unit."""
    more = counts()
    few = more[:, :20].copy()
    config = dataclasses.replace(SMALL, normalize=True)
    model = Squidiff(SCHEMA, config, "cpu").fit(few)
    one, other = (model.predict(QUERY, source).to_df() for source in (few, more))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
