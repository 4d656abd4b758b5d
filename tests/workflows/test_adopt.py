"""What other tools leave is read as they leave it, and scored like any prediction."""

from __future__ import annotations

import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from squidiff.config import InputError, Schema
from squidiff.data.table import remember_schema
from squidiff.evaluate.scoring import compare
from squidiff.workflows.adopt import CELLS_OF_A_MEAN, adopt

SCHEMA = Schema(condition_key="condition", control="ctrl", context_keys=("cell_type",))
GENES = [f"g{i}" for i in range(30)]


def cells(n: int = 20, seed: int = 0, **columns: str) -> ad.AnnData:
    x = np.random.default_rng(seed).gamma(2.0, 1.0, (n, 30)).astype(np.float32)
    index = [f"{seed}-{i}" for i in range(n)]
    return ad.AnnData(x, obs=pd.DataFrame({**columns}, index=index), var=pd.DataFrame(index=GENES))


def test_scgen_leaves_the_label_of_the_control_cells(tmp_path: Path) -> None:
    made = cells(condition="ctrl", cell_type="B", batch="1")
    made.write_h5ad(tmp_path / "scgen.h5ad")
    adopt(tmp_path / "scgen.h5ad", "scgen", SCHEMA, tmp_path / "p.h5ad", columns=["condition=stim"])
    truth = cells(seed=1, condition="stim", cell_type="B")
    table = compare({"scGen": tmp_path / "p.h5ad"}, truth, names=())  # the file knows the schema
    assert set(table["condition"]) == {"B, stim"}
    found = table.set_index("metric")["value"]["mean_squared_error"]
    assert found == pytest.approx(np.square(made.X.mean(0) - truth.X.mean(0)).mean(), rel=1e-5)


def test_cellflow_leaves_genes_in_a_layer(tmp_path: Path) -> None:
    made = cells(condition="stim", cell_type="B")
    expected = made.X.copy()
    made.layers["X_recon"], made.X = expected, np.zeros_like(expected)
    made.obsm["X_pca"] = expected[:, :5]
    made.write_h5ad(tmp_path / "cellflow.h5ad")
    np.testing.assert_array_equal(
        adopt(tmp_path / "cellflow.h5ad", "cellflow", SCHEMA, tmp_path / "p.h5ad").X, expected
    )
    made.layers["other"] = expected + 1
    del made.layers["X_recon"]
    made.write_h5ad(tmp_path / "cellflow.h5ad")
    with pytest.raises(InputError, match="no layer 'X_recon': the layers are other"):
        adopt(tmp_path / "cellflow.h5ad", "cellflow", SCHEMA, tmp_path / "q.h5ad")
    found = adopt(tmp_path / "cellflow.h5ad", "cellflow", SCHEMA, tmp_path / "p.h5ad", layer="other")
    np.testing.assert_array_equal(found.X, expected + 1)


def test_gears_predicts_means_whose_scores_of_means_are_judged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    means = {name: rng.gamma(2.0, 1.0, 30).astype(np.float32) for name in ("FEV", "FEV_SAMD11")}
    np.savez(tmp_path / "gears.npz", genes=np.array(GENES), **means)
    schema = Schema(condition_key="condition", control="ctrl")
    found = adopt(tmp_path / "gears.npz", "gears", schema, tmp_path / "p.h5ad")
    assert found.obs["condition"].value_counts().to_dict() == {"FEV": CELLS_OF_A_MEAN, "FEV+SAMD11": CELLS_OF_A_MEAN}
    truth = ad.concat([cells(seed=1, condition="SAMD11+FEV"), cells(seed=2, condition="FEV")])
    train = ad.concat([cells(seed=3, condition="ctrl"), cells(seed=4, condition="SAMD11")])
    table = compare({"GEARS": tmp_path / "p.h5ad"}, truth, train=train, names=("no change",))
    rows = table[(table["condition"] == "FEV + SAMD11") & (table["method"] == "GEARS")].set_index("metric")
    expected = np.square(means["FEV_SAMD11"] - truth.X[:20].mean(0)).mean()
    assert rows["value"]["mean_squared_error"] == pytest.approx(expected, rel=1e-5)
    assert rows["verdict"]["mean_squared_error"] != ""


def test_state_leaves_control_cells_beside_which_are_no_prediction(tmp_path: Path) -> None:
    made = ad.concat([cells(seed=i, condition=c, cell_type="B") for i, c in enumerate(("ctrl", "stim"))])
    made.write_h5ad(tmp_path / "adata_pred.h5ad")
    adopt(tmp_path / "adata_pred.h5ad", "state", SCHEMA, tmp_path / "p.h5ad")
    truth = ad.concat([cells(seed=9 + i, condition=c, cell_type="B") for i, c in enumerate(("ctrl", "stim"))])
    assert set(compare({"STATE": tmp_path / "p.h5ad"}, truth, names=())["condition"]) == {"B, stim"}


def test_what_cannot_be_adopted_is_said_in_a_sentence(tmp_path: Path) -> None:
    out = tmp_path / "p.h5ad"
    schema = Schema(condition_key="condition", control="ctrl")
    np.savez(tmp_path / "no_genes.npz", FEV=np.ones(3))
    np.savez(tmp_path / "short.npz", genes=np.array(GENES), FEV=np.ones(3))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"FEV": np.ones(3)}))
    np.savez(tmp_path / "objects.npz", genes=np.array([object()]), FEV=np.ones(1))
    (tmp_path / "empty.npz").touch()
    np.savez(tmp_path / "whole.npz", genes=np.array(GENES), FEV=np.ones(30))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.ones(3))
    np.savez(tmp_path / "one_name.npz", genes=np.array("g"), FEV=np.ones(1))
    np.savez(tmp_path / "twice.npz", genes=np.array(["g", "g"]), FEV=np.ones(2))
    np.savez(tmp_path / "again.npz", genes=np.array(["g"]), **{"B_A": np.ones(1), "A_B": np.ones(1)})
    np.savez(tmp_path / "complex.npz", genes=np.array(["g", "h"]), FEV=np.ones(2) * 1j)
    cells(condition="stim").write_h5ad(tmp_path / "no_context.h5ad")
    for name, message in (
        ("no_genes.npz", "must hold the array 'genes'"),
        ("short.npz", "'FEV' has shape"),
        ("pickle.npz", "cannot be read"),
        ("objects.npz", "cannot be read"),
        ("none.npz", "does not exist"),
        ("empty.npz", "cannot be read"),
        ("cut.npz", "cannot be read"),
        ("array.npz", "cannot be read"),
        ("one_name.npz", "must hold the array 'genes'"),
        ("twice.npz", "names a gene twice"),
        ("complex.npz", "each a real number"),
        ("again.npz", r"holds two profiles of 'A \+ B': keep one$"),
    ):
        with pytest.raises(InputError, match=message):
            adopt(tmp_path / name, "gears", schema, out)
    with pytest.raises(InputError, match="--layer has no use"):
        adopt(tmp_path / "whole.npz", "gears", schema, out, layer="x")
    cells(condition="ctrl", cell_type="B").write_h5ad(tmp_path / "control.h5ad")
    with pytest.raises(InputError, match=r"are labelled 'ctrl', the control: .* --set condition=LABEL"):
        adopt(tmp_path / "control.h5ad", "scgen", SCHEMA, out)
    with pytest.raises(InputError, match="--set names column 'Condition', none of the schema's"):
        adopt(tmp_path / "control.h5ad", "scgen", SCHEMA, out, columns=["Condition=stim"])
    twice = cells(condition="stim", cell_type="B")
    remember_schema(twice, SCHEMA)
    twice.write_h5ad(tmp_path / "remembers.h5ad")
    assert adopt(tmp_path / "remembers.h5ad", "state", None, tmp_path / "kept.h5ad").obs.shape[1] == 2
    with pytest.raises(InputError, match="column 'cell_type' is missing"):
        adopt(tmp_path / "no_context.h5ad", "scgen", SCHEMA, out)
    assert not out.exists()
