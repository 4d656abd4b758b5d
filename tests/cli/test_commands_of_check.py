"""What the doctor says to paste does what it says: the finding is gone, and no error comes in its place."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from test_cli import SCHEMA_FLAGS, squidiff

from made_cells import counts, logged


def of_some_genes(adata: ad.AnnData) -> None:
    adata.obs["n_counts"] = np.asarray(adata.X.sum(axis=1)).ravel() + 1000.0


def empty_gene(adata: ad.AnnData) -> None:
    x = adata.X.toarray() if hasattr(adata.X, "toarray") else adata.X
    x[:, 3] = 0
    adata.X = x


def empty_condition(adata: ad.AnnData) -> None:
    adata.obs["condition"] = adata.obs["condition"].astype(object).where(np.arange(adata.n_obs) >= 7, None)


def split_column(adata: ad.AnnData) -> None:
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 5 == 0, "test", "train")


def spelling(adata: ad.AnnData) -> None:
    """Of the control, mostly written in another way, and of a type; the named control is the rarer spelling."""
    labels = adata.obs["condition"].astype(str).to_numpy(dtype=object)
    of_control = np.flatnonzero(labels == "control")
    labels[of_control[len(of_control) // 4 :]] = "Control"
    labels[np.flatnonzero(labels == "drug")[:5]] = "Drug"
    adata.obs["condition"] = labels


def dose_as_text(adata: ad.AnnData) -> None:
    adata.obs["dose"] = pd.Categorical(np.where(adata.obs["condition"] == "control", "", "0.5"))


def missing_dose(adata: ad.AnnData) -> None:
    """Of a few treated cells; control cells have none."""
    rows = np.flatnonzero(adata.obs["condition"] != "control")
    adata.obs["dose"] = 0.5
    adata.obs.loc[adata.obs["condition"] == "control", "dose"] = np.nan
    adata.obs.iloc[rows[:3], adata.obs.columns.get_loc("dose")] = np.nan


def scaled(adata: ad.AnnData) -> None:
    x = adata.X.toarray() * 9
    adata.X = (x - x.mean(axis=0)).astype(np.float32)


def not_logged(adata: ad.AnnData) -> None:
    adata.X = np.expm1(adata.X.toarray() * 1.01)


def empty_cell(adata: ad.AnnData) -> None:
    x = adata.X.toarray()
    x[4] = 0
    adata.X = x


def of_one_name(adata: ad.AnnData) -> None:
    adata.var_names = [*adata.var_names[:-1], adata.var_names[0]]
    adata.obs_names = [*adata.obs_names[:-1], adata.obs_names[0]]


CASES: dict[str, tuple[bool, Callable[[ad.AnnData], None], list[str]]] = {
    "raw counts": (True, lambda adata: None, []),
    "raw counts of some genes": (True, of_some_genes, []),
    "an empty gene of raw counts": (True, empty_gene, []),
    "an empty gene": (False, empty_gene, []),
    "an empty condition of raw counts": (True, empty_condition, []),
    "an empty condition": (False, empty_condition, []),
    "held-out cells of raw counts": (True, split_column, []),
    "spellings": (False, spelling, []),
    "doses as text": (False, dose_as_text, ["--dose-key", "dose"]),
    "doses that are missing": (False, missing_dose, ["--dose-key", "dose"]),
    "scaled values": (False, scaled, []),
    "values that were not logged": (False, not_logged, []),
    "an empty cell": (False, empty_cell, []),
    "names that stand twice": (False, of_one_name, []),
}


def findings(path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    squidiff("check", path, *SCHEMA_FLAGS, *flags, "--json")
    return json.loads(capsys.readouterr().out)["findings"]


@pytest.mark.filterwarnings("ignore:(Observation|Variable) names are not unique")
@pytest.mark.parametrize("case", CASES)
def test_a_pasted_command_mends_what_it_is_for(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    is_counts, defect, flags = CASES[case]
    adata = counts() if is_counts else logged()
    defect(adata)
    path = Path("my cells.h5ad")
    adata.write_h5ad(path)
    found = findings(path, flags, capsys)
    commands = [f for f in found if f["command"]]
    assert commands or case == "scaled values"
    errors = {f["what"] for f in found if f["severity"] == "error"}
    for finding in commands:
        if finding["command"].startswith("squidiff "):
            mended = Path("my cells_prepared.h5ad")
            mended.unlink(missing_ok=True)
            code = squidiff(*shlex.split(finding["command"])[1:])
            if errors - {finding["what"], "raw counts"}:
                continue  # another error must be mended first
            assert code == 0, capsys.readouterr().err
        else:
            mended = Path("mended.h5ad")
            names = {"adata": ad.read_h5ad(path), "sc": sc, "pd": pd}
            exec(finding["command"], names)
            names["adata"].write_h5ad(mended)
        after = findings(mended, flags, capsys)
        assert finding["what"] not in [f["what"] for f in after]
        assert {f["what"] for f in after if f["severity"] == "error"} <= errors - {finding["what"]}
        if case == "doses that are missing":
            assert ad.read_h5ad(mended).n_obs == adata.n_obs - 3  # and every control cell is there


def test_commands_can_be_followed_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And stand in the text on lines of their own, whole."""
    monkeypatch.chdir(tmp_path)
    adata = counts()
    empty_gene(adata)
    adata.write_h5ad("prepared.h5ad")
    path = Path("prepared.h5ad")
    for _ in range(2):
        capsys.readouterr()
        squidiff("check", path, *SCHEMA_FLAGS)
        lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
        command = next(line for line in lines if line.startswith("squidiff prepare"))
        assert squidiff(*shlex.split(command)[1:]) == 0
        path = Path(f"{path.stem}_prepared.h5ad")
    assert findings(path, [], capsys) == []
