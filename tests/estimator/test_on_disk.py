"""Cells on disk train the same model, bit by bit, and give the same predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from small_models import QUERY, queries
from test_upstream_architecture import DRUGS, drugged, settings

from made_cells import HELD_OUT, SCHEMA, contents, counts, dense, logged, small
from squidiff.config import Config, InputError, Sampling, Schema
from squidiff.data import dataset, matrix, stream
from squidiff.estimator import Squidiff, generate
from squidiff.train.saving import STATE


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with many more cells than are in memory at once: 240 cells in windows of 64."""
    monkeypatch.setattr(stream, "CELLS_AT_ONCE", 64)
    monkeypatch.setattr(stream, "CELLS_PER_BLOCK", 4)
    monkeypatch.setattr(dataset, "N_SOURCES", 50)
    monkeypatch.setattr(matrix, "ROWS_AT_ONCE", 100)
    monkeypatch.setattr(generate, "N_BLOCK", 100)


def raw() -> ad.AnnData:
    cells = counts()
    cells.obs["total"] = cells.X.sum(axis=1) + 100.0
    return cells


def dense_cells() -> ad.AnnData:
    cells = logged()
    return ad.AnnData(dense(cells).astype(np.float32), obs=cells.obs, var=cells.var)


CASES: dict[str, tuple[ad.AnnData, Schema, Config]] = {
    "ours": (logged(), SCHEMA, small()),
    "ours, dense": (dense_cells(), SCHEMA, small()),
    "optimal transport": (logged(), SCHEMA, small(pairing="optimal-transport")),
    "raw counts": (raw(), SCHEMA, small(normalize=True)),
    "raw counts of some genes": (raw(), SCHEMA, small(normalize=True, total_counts_key="total")),
    "upstream": (logged(), SCHEMA, settings(validation_fraction=0.1)),
    "upstream, drugs": (drugged(), DRUGS, settings()),
}


def tensors(model: Squidiff) -> dict[str, np.ndarray]:
    return {name: t.cpu().numpy() for name, t in model.fitted.to_tensors().items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_training_and_prediction_are_the_same_bit_by_bit(case: str, tmp_path: Path) -> None:
    cells, schema, config = CASES[case]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    models = []
    for on_disk in (True, False):
        model = Squidiff(schema, config, "cpu").fit(tmp_path / "cells.h5ad", on_disk=on_disk)
        assert model.provenance["cells"] == ("on disk" if on_disk else "in memory")
        models.append(model)
    there, here = models
    assert there.manifest == here.manifest
    assert there.check == here.check
    for name, t in tensors(there).items():
        np.testing.assert_array_equal(t, tensors(here)[name])
    asked = QUERY if schema is SCHEMA else queries(SMILES="CCO", dose=3.0)
    asked = asked.assign(n_cells=290)
    sampling = Sampling(n_sample_steps=3)
    # other genes beside those of training, in another order, in which they are stored
    X = np.concatenate([0 * dense(cells), dense(cells)[:, ::-1]], axis=1).astype(np.float32)
    other = ad.AnnData(X if isinstance(cells.X, np.ndarray) else sp.csr_matrix(X), obs=cells.obs)
    other.var_names = [*(f"other {i}" for i in range(cells.n_vars)), *cells.var_names[::-1]]
    other.write_h5ad(tmp_path / "other.h5ad")
    for file in ("cells.h5ad", "other.h5ad"):
        one, two = (here.predict(asked, tmp_path / file, sampling, on_disk=on_disk) for on_disk in (True, False))
        np.testing.assert_array_equal(dense(one), dense(two))
        np.testing.assert_array_equal(one.obsm["X_z_sem"], two.obsm["X_z_sem"])
        assert one.obs.equals(two.obs)
        z_sem = [here.encode(tmp_path / file, on_disk=on_disk) for on_disk in (True, False)]
        np.testing.assert_array_equal(*z_sem)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_from_disk_or_from_memory(tmp_path: Path) -> None:
    cells = logged()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    whole = Squidiff(SCHEMA, small(), "cpu").fit(cells, out=tmp_path / "whole")

    def stop(record: Any) -> None:
        if record.step == 15:
            raise KeyboardInterrupt

    for first, then in ((True, False), (False, True)):
        run = tmp_path / f"run {first}"
        with pytest.raises(KeyboardInterrupt):
            Squidiff(SCHEMA, small(), "cpu").fit(tmp_path / "cells.h5ad", out=run, on_record=stop, on_disk=first)
        assert (run / STATE).exists()
        Squidiff(SCHEMA, small(), "cpu").fit(tmp_path / "cells.h5ad", out=run, resume=True, on_disk=then)
        assert contents(run)["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]
    assert whole.provenance["cells"] == "in memory"


def test_parts_of_a_prediction_are_the_whole(model: Squidiff) -> None:
    asked = queries(n_cells=290, condition="drug", cell_type=HELD_OUT)
    sampling = Sampling(n_sample_steps=3)
    parts = list(model.predict_parts(asked, logged(), sampling))
    whole = model.predict(asked, logged(), sampling)
    assert [part.n_obs for part in parts] == [97, 97, 96]
    np.testing.assert_array_equal(np.concatenate([dense(part) for part in parts]), dense(whole))
    assert [name for part in parts for name in part.obs_names] == list(whole.obs_names)
    assert len(set(whole.obs_names)) == 290
    for part in parts:
        assert part.uns["squidiff"] == whole.uns["squidiff"]


def test_raw_counts_and_bad_cells_on_disk_are_refused_as_in_memory(tmp_path: Path) -> None:
    raw().write_h5ad(tmp_path / "raw.h5ad")
    cells = logged()
    cells.X.data[5] = np.nan
    cells.write_h5ad(tmp_path / "bad.h5ad")
    for name, message in (("raw", "raw counts"), ("bad", "NaN or infinite values")):
        said = []
        for on_disk in (True, False):
            with pytest.raises(InputError, match=message) as caught:
                Squidiff(SCHEMA, small(), "cpu").fit(tmp_path / f"{name}.h5ad", on_disk=on_disk)
            said.append(str(caught.value))
        assert said[0] == said[1]
