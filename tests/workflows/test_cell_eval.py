"""The pair of files that cell-eval takes: by running it, and where definitions coincide its figures are ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from squidiff.config import InputError, Schema
from squidiff.evaluate import scoring
from squidiff.workflows.cell_eval import PREDICTED, REAL, write_cell_eval

SCHEMA = Schema(condition_key="condition", control="ctrl")
N_CONDITIONS, N_GENES = 6, 60


def made(seed: int, conditions: list[str], contexts: tuple[str, ...] = ("T",)) -> ad.AnnData:
    """Log-normalised cells whose conditions act alike at every seed."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(99).normal(0.5, 0.8, N_GENES)
    cells, obs = [], []
    for context in contexts:
        for condition in conditions:
            of = np.random.default_rng(sum(map(ord, condition)))
            effect = of.normal(0, 0.8, N_GENES) * (condition != "ctrl") * (of.random(N_GENES) < 0.4)
            cells.append(np.log1p(rng.poisson(np.exp(base + effect), (60, N_GENES))).astype(np.float32))
            obs += [{"condition": condition, "type": context}] * 60
    frame = pd.DataFrame(obs, index=[f"{seed}-{i}" for i in range(len(obs))])
    return ad.AnnData(np.concatenate(cells), obs=frame, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


NAMES = [f"drug{i}" for i in range(N_CONDITIONS)]


@pytest.mark.slow
def test_cell_eval_runs_on_the_files_and_agrees_where_definitions_coincide(tmp_path: Path) -> None:
    predicted, truth, train = made(1, NAMES), made(2, NAMES), made(3, ["ctrl", "drug0"])
    predicted.X = predicted.X * np.float32(0.8)
    command = write_cell_eval(predicted, truth, train, SCHEMA, tmp_path)
    done = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    theirs = pd.read_csv(tmp_path / "results" / "results.csv").set_index("perturbation")
    table = scoring.compare({"model": predicted}, truth, SCHEMA, train=train, names=())
    ours = table[table["method"] == "model"].pivot(index="condition", columns="metric", values="value")
    ours = ours.loc[theirs.index]
    for mine, other in (
        ("delta_pearson", "pearson_delta"),
        ("mean_squared_error", "mse"),
        ("mean_absolute_error", "mae"),
    ):
        np.testing.assert_allclose(ours[mine], theirs[other], rtol=1e-5)
    for distance in ("l1", "l2", "cosine"):  # theirs is 1 - rank / n, ours 1 - rank / (n - 1)
        expected = 1 - (1 - theirs[f"discrimination_score_{distance}"]) * N_CONDITIONS / (N_CONDITIONS - 1)
        np.testing.assert_allclose(ours[f"discrimination_{distance}"], expected, atol=1e-12)
    # both: Wilcoxon and 5 %, theirs over the fold change and ours over p; the sets of genes are nearly one
    np.testing.assert_allclose(ours["de_recall"], theirs["de_sig_genes_recall"], atol=0.06)


def test_both_files_hold_the_same_conditions_and_controls_context_by_context(tmp_path: Path) -> None:
    both = Schema(condition_key="condition", control="ctrl", context_keys=("type",))
    truth, train = made(2, NAMES[:2], ("T", "B")), made(3, ["ctrl", "drug5"], ("T", "B", "NK"))
    predicted = made(1, NAMES[:3], ("T", "B"))
    predicted.X = predicted.X - 0.5
    command = write_cell_eval(predicted, truth, train, both, tmp_path)
    assert "--celltype-col" in command
    files = [ad.read_h5ad(tmp_path / name) for name in (PREDICTED, REAL)]
    for file in files:
        counts = file.obs.groupby(["context", "perturbation"], observed=True).size()
        assert counts.to_dict() == {(t, c): 60 for t in ("T", "B") for c in ("control", "drug0", "drug1")}
        assert file.X.min() >= 0
    controls = [f[(f.obs["perturbation"] == "control").to_numpy()].X for f in files]
    np.testing.assert_array_equal(*controls)


@pytest.mark.parametrize(
    ("schema", "train", "message"),
    [
        (Schema(context_keys=("type",)), ["ctrl"], "compares conditions with a control: give --condition-key"),
        (SCHEMA, ["drug1"], "the training data have no control cells of 'these cells'"),
    ],
)
def test_what_cell_eval_cannot_take_is_refused(tmp_path: Path, schema: Schema, train: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_cell_eval(made(1, NAMES[:1]), made(2, NAMES[:1]), made(3, train), schema, tmp_path)
    assert not list(tmp_path.iterdir())


def test_negative_truth_is_no_log_value(tmp_path: Path) -> None:
    truth = made(2, NAMES[:1])
    truth.X = truth.X - 1
    with pytest.raises(InputError, match="negative ones are in the truth"):
        write_cell_eval(made(1, NAMES[:1]), truth, made(3, ["ctrl"]), SCHEMA, tmp_path)


def test_a_condition_of_the_controls_name_is_no_control(tmp_path: Path) -> None:
    truth = made(2, ["control", *NAMES[:1]])
    with pytest.raises(InputError, match="a condition is called 'control', as control cells are for cell-eval"):
        write_cell_eval(made(1, ["control"]), truth, made(3, ["ctrl"]), SCHEMA, tmp_path)
