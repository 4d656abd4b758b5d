"""Splits hold out whole units, the right ones, and nothing of them stays in training."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from squidiff.cli.app import main
from squidiff.config import InputError, Preparation, Schema
from squidiff.data.preprocess import most_variable_genes, prepare
from squidiff.data.splits import held_out_cells
from squidiff.data.table import group_rows

SMILES = {  # two with a benzene ring alone, two with a naphthalene, two without a ring
    "phenol": "Oc1ccccc1",
    "toluene": "Cc1ccccc1",
    "naphthol": "Oc1cccc2ccccc12",
    "naphthalene": "c1ccc2ccccc2c1",
    "ethanol": "CCO",
    "propanol": "CCCO",
}
RINGS = dict(zip(SMILES, ("one", "one", "two", "two", "none", "none"), strict=True))
SCHEMA = Schema(condition_key="drug", control="none", context_keys=("line",), time_key="hour", smiles_key="smiles")


def table() -> pd.DataFrame:
    """Five cells of every line, hour and treatment: none, six drugs, three pairs."""
    pairs = ["phenol+ethanol", "naphthol+toluene", "propanol+ethanol"]
    rows = [
        (line, hour, drug, "+".join(SMILES[part] for part in drug.split("+")) if drug != "none" else "")
        for line in ("A", "B", "C", "D")
        for hour in (0, 6, 12, 24)
        for drug in ("none", *SMILES, *pairs)
        for _ in range(5)
    ]
    frame = pd.DataFrame(rows, columns=["line", "hour", "drug", "smiles"])
    return frame.sample(frac=1.0, random_state=0).set_axis([f"c{i}" for i in range(len(rows))])


OBS = table()


def held(split: str, fraction: float = 0.3, seed: int = 0, schema: Schema = SCHEMA) -> np.ndarray:
    return held_out_cells(OBS, schema, Preparation(split=split, test_fraction=fraction, seed=seed))  # type: ignore[arg-type]


def units(split: str, rows: np.ndarray) -> set[object]:
    """What some cells are of, read from obs by other means than the split's."""
    obs = OBS[rows]
    if split == "context":
        return set(obs["line"])
    if split == "time":
        return set(obs["hour"])
    if split == "combination":
        return {drug for drug in obs["drug"] if "+" in drug}
    if split == "condition":
        return set(obs["drug"]) - {"none"}
    names = {part for drug in obs["drug"] for part in drug.split("+")} - {"none"}
    return names if split == "drug" else {RINGS[name] for name in names}


@pytest.mark.parametrize(
    ("split", "n"), [("condition", 3), ("context", 1), ("drug", 2), ("scaffold", 1), ("combination", 1), ("time", 1)]
)
@pytest.mark.parametrize("seed", range(4))
def test_whole_units_are_held_out_and_nothing_of_them_is_left(split: str, n: int, seed: int) -> None:
    mask = held(split, seed=seed)
    treated = (OBS["drug"] != "none").to_numpy()
    if split == "context":  # the control cells of an unseen context are what a prediction starts from
        assert not (mask & ~treated).any()
        assert len(units(split, mask)) == n
        assert not units(split, mask) & units(split, ~mask & treated)
    elif split in ("condition", "combination", "time"):
        assert len(units(split, mask)) == n
        assert not units(split, mask) & units(split, ~mask)
    else:  # a pair is held out with either of its parts, so its other part may be seen elsewhere
        gone = units(split, np.ones(len(OBS), dtype=bool)) - units(split, ~mask)
        assert len(gone) == n
        assert all(gone & units(split, OBS.index == cell) for cell in OBS.index[mask])
    if split != "time":
        assert not (mask & ~treated).any()
    else:
        assert 0 not in units(split, mask)
    population = group_rows(OBS, SCHEMA)[0]
    assert not set(population[mask]) & set(population[~mask])


def test_a_drug_of_two_names_or_spellings_is_one() -> None:
    """Else it would stay in training under its other name."""
    obs = OBS[~OBS["drug"].str.contains(r"\+", regex=True)].copy()
    phenol = np.flatnonzero(obs["drug"] == "phenol")
    obs.iloc[phenol[::2], obs.columns.get_loc("drug")] = "carbolic acid"
    obs.iloc[phenol[1::4], obs.columns.get_loc("smiles")] = "c1ccccc1O"
    for seed in range(6):
        rows = held_out_cells(obs, SCHEMA, Preparation(split="drug", test_fraction=0.3, seed=seed))
        assert len(set(rows[phenol])) == 1


def test_a_split_depends_on_the_seed_alone() -> None:
    assert np.array_equal(held("condition"), held("condition"))
    assert len({held("condition", seed=seed).tobytes() for seed in range(8)}) > 3
    turned = OBS[::-1]
    again = held_out_cells(turned, SCHEMA, Preparation(split="condition", test_fraction=0.3))
    assert np.array_equal(again[::-1], held("condition"))


@pytest.mark.parametrize(
    ("split", "schema", "message"),
    [
        ("time", Schema(condition_key="drug", control="none"), "--split time needs --time-key"),
        ("scaffold", Schema(condition_key="drug", control="none"), "--split scaffold needs --smiles-key"),
        ("context", Schema(condition_key="drug", control="none"), "--split context needs --context-key"),
        ("drug", Schema(context_keys=("line",)), "--split drug needs --condition-key"),
    ],
)
def test_a_split_says_what_it_needs(split: str, schema: Schema, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held(split, schema=schema)


def test_a_split_that_leaves_nothing_is_refused() -> None:
    one = OBS[(OBS["line"] == "A").to_numpy()]
    with pytest.raises(InputError, match="--split context has 1 to draw from, and 1 would be held out"):
        held_out_cells(one, SCHEMA, Preparation(split="context", test_fraction=0.5))
    with pytest.raises(InputError, match="is given without --test-fraction"):
        Preparation(split="time")


# --- genes, inputs and the manifest


def counts() -> ad.AnnData:
    rng = np.random.default_rng(0)
    rate = rng.gamma(1.0, 2.0, (1, 30)) * np.where(np.arange(len(OBS))[:, None] % 2, 1.0, rng.gamma(2.0, 0.5, (1, 30)))
    return ad.AnnData(
        sp.csr_matrix(rng.poisson(rate).astype(np.float32)),
        obs=OBS.copy(),
        var=pd.DataFrame(index=[f"g{i}" for i in range(30)]),
    )


def test_genes_to_keep_are_kept_and_the_rest_is_the_most_variable() -> None:
    adata = counts()
    plain = prepare(adata, SCHEMA, Preparation(normalize=True, n_genes=8)).train
    dull = sorted(set(adata.var_names) - set(plain.var_names))[:2]
    kept = prepare(adata, SCHEMA, Preparation(normalize=True, n_genes=8, keep=(",".join(dull),))).train
    assert kept.n_vars == 8
    assert set(dull) <= set(kept.var_names)
    assert len(set(kept.var_names) & set(plain.var_names)) == 6
    with pytest.raises(InputError, match="--keep nope is no gene of the data"):
        most_variable_genes(kept, 4, ("nope",))
    with pytest.raises(InputError, match="--keep is given without --n-genes"):
        Preparation(keep=("g1",))


def test_a_gene_to_keep_must_be_there_even_where_all_genes_are_kept() -> None:
    adata = ad.AnnData(np.random.default_rng(0).random((20, 3), dtype=np.float32), var=pd.DataFrame(index=list("abc")))
    with pytest.raises(InputError, match="--keep z is no gene of the data"):
        most_variable_genes(adata, 3, ("z",))
    assert Preparation(n_genes=3, keep=("a,",)).keep == ("a",)


def test_what_prepare_cannot_hold_out_or_replaces_is_in_its_report() -> None:
    obs = pd.DataFrame({"drug": [f"d{i // 2}" for i in range(40)], "split": "mine"}, index=[str(i) for i in range(40)])
    obs.iloc[:10, 0] = "none"
    adata = ad.AnnData(np.random.default_rng(0).random((40, 3), dtype=np.float32), obs=obs)
    schema = Schema(condition_key="drug", control="none")
    report = prepare(adata, schema, Preparation(test_fraction=0.2)).report
    assert "only 5.0% of the cells are held out" in " ".join(report)
    assert "the obs column 'split' that was there is replaced" in report


def test_genes_of_a_file_are_taken_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "genes.txt").write_text("g7\ng2\ng29\n")
    settings = Preparation(normalize=True, genes=str(tmp_path / "genes.txt"))
    assert list(prepare(counts(), SCHEMA, settings).train.var_names) == ["g7", "g2", "g29"]
    (tmp_path / "genes.txt").write_text("g7\nx\n")
    with pytest.raises(InputError, match="names genes that the data lack: x"):
        prepare(counts(), SCHEMA, settings)


def test_prepare_joins_files_takes_a_layer_and_writes_a_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adata = counts()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X * 0
    half = np.arange(adata.n_obs) % 2 == 0
    adata[half].copy().write_h5ad("one.h5ad")
    adata[~half].copy()[:, ::-1].copy().write_h5ad("other.h5ad")
    schema = ["--condition-key", "drug", "--control", "none", "--context-key", "line", "--time-key", "hour"]
    options = ["--layer", "counts", "--normalize", "--split", "condition", "--test-fraction", "0.3", "--seed", "5"]
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "one.h5ad", "other.h5ad", *schema, *options, "--out", "train.h5ad", "--held-out", "test.h5ad"])
    assert not stop.value.code
    train, test = ad.read_h5ad("train.h5ad"), ad.read_h5ad("test.h5ad")
    expected = held("condition", seed=5)
    names = [f"c{i}" for i in range(len(OBS))]
    assert set(test.obs_names) == set(np.array(names)[expected])
    assert set(train.obs_names) == set(np.array(names)[~expected])
    np.testing.assert_allclose(np.expm1(train.X.toarray()).sum(axis=1), 1e4, rtol=1e-4)
    manifest = json.loads(Path("train.manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["seed"] == 5
    assert manifest["files"] == ["one.h5ad", "other.h5ad"]
    assert (manifest["train"]["n_cells"], manifest["test"]["n_cells"]) == (train.n_obs, test.n_obs)
    assert manifest["train"]["data_sha256"] != manifest["test"]["data_sha256"]
    assert {p["condition"] for p in manifest["test"]["populations"]} == {
        " + ".join(sorted(drug.split("+"))) for drug in OBS[expected]["drug"]
    }
