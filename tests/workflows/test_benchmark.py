"""A benchmark runs what is missing and nothing twice, keeps what it makes, and refuses what was made otherwise."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from made_cells import HELD_OUT, counts
from squidiff.config import InputError
from squidiff.evaluate.scoring import LEAKS
from squidiff.workflows.baseline import predict_baseline
from squidiff.workflows.benchmark import TABLE_CSV, TABLE_JSON, read_benchmark, run_benchmark

SMALL = "n_latent = 8, width = 32, n_blocks = 2, n_axes = 4, n_warmup_steps = 5, batch_size = 32, save_every_steps = 10"
FILE = f"""
seeds = [0, 3]

[[task]]
name = "held-out type"
file = "raw.h5ad"
schema = {{ condition_key = "condition", control = "control", context_keys = ["cell_type"] }}
prepare = {{ normalize = true, n_genes = 20, hold_out = ["condition=drug,cell_type={HELD_OUT}"] }}

[[method]]
name = "ours"
config = {{ {SMALL}, n_train_steps = 20 }}
sampling = {{ n_sample_steps = 4 }}

[[method]]
name = "floor"
baseline = "mean shift"
"""


def written(folder: Path, text: str = FILE) -> Path:
    counts().write_h5ad(folder / "raw.h5ad")
    (folder / "bench.toml").write_text(text, encoding="utf-8")
    return folder / "bench.toml"


def run(folder: Path, text: str = FILE) -> tuple[pd.DataFrame, list[str]]:
    """The table, and what was said to be done."""
    said: list[str] = []
    benchmark = read_benchmark(written(folder, text))
    return run_benchmark(benchmark, folder, folder / "out", device="cpu", say=said.append), said


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, list[str]]:
    folder = tmp_path_factory.mktemp("benchmark")
    return folder, *run(folder)


@pytest.mark.slow
def test_every_task_seed_and_method_is_in_one_table(done: tuple[Path, pd.DataFrame, list[str]]) -> None:
    folder, table, said = done
    assert len(said) == 2 * 4  # preparing, two methods and scoring, for either seed
    keys = table[["task", "seed", "condition", "metric", "method"]]
    assert not keys.duplicated().any()
    assert set(table["seed"]) == {0, 3}
    for _, rows in table.groupby("seed"):
        assert {"ours", "floor", "mean shift", "no change"} <= set(rows["method"])
    assert set(table[table["verdict"] != ""]["method"]) == {"ours", "floor"}
    read = pd.read_csv(folder / "out" / TABLE_CSV, keep_default_na=False, na_values={"value": [""]})
    np.testing.assert_allclose(read["value"], table["value"])
    assert (folder / "out" / TABLE_JSON).exists()
    assert table.attrs[LEAKS] == []


@pytest.mark.slow
def test_a_method_that_cannot_predict_a_task_is_left_out_of_it_and_said(tmp_path: Path) -> None:
    baselines = FILE[: FILE.index("[[method]]")].replace("[0, 3]", "[0]")
    baselines += (
        '[[method]]\nname = "sum"\nbaseline = "additive"\n[[method]]\nname = "floor"\nbaseline = "mean shift"\n'
    )
    table, said = run(tmp_path, baselines)
    assert "held-out type, seed 0: sum is left out: 'drug' is not a combination" in said
    assert "floor" in set(table["method"])
    assert "sum" not in set(table["method"])
    with pytest.raises(InputError, match=r"^task 'held-out type': no method can predict it$"):
        run(tmp_path, baselines[: baselines.rindex("[[method]]")])


@pytest.mark.slow
def test_a_baseline_as_method_is_the_baseline(done: tuple[Path, pd.DataFrame, list[str]]) -> None:
    kept = done[0] / "out" / "held-out type" / "seed-3"
    again = predict_baseline("mean shift", kept / "queries.csv", kept / "train.h5ad", seed=3)
    np.testing.assert_array_equal(ad.read_h5ad(kept / "predictions" / "floor.h5ad").X, again.X)
    values = done[1].query("seed == 3 and metric == 'mean_squared_error'").set_index("method")["value"]
    assert values["floor"] == pytest.approx(values["mean shift"], rel=1e-5)


@pytest.mark.slow
def test_what_is_there_is_not_made_again_and_what_is_missing_is(
    done: tuple[Path, pd.DataFrame, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    before = bytes_of(tmp_path / "out")
    _, said = run(tmp_path)
    assert said == []
    assert bytes_of(tmp_path / "out") == before
    kept = tmp_path / "out" / "held-out type" / "seed-0"
    (kept / "predictions" / "ours.h5ad").unlink()  # the note that it was made is not enough
    table, said = run(tmp_path)
    assert said == ["held-out type, seed 0: ours"]  # from the run that is there; the same cells, so the scores stay
    assert bytes_of(tmp_path / "out") == before
    pd.testing.assert_frame_equal(table, done[1], check_dtype=False)


@pytest.mark.slow
def test_a_note_that_was_changed_by_hand_is_said_with_the_cure(
    done: tuple[Path, pd.DataFrame, list[str]], tmp_path: Path
) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    kept = tmp_path / "out" / "held-out type" / "seed-0"
    for name, text in (("metrics.json", "{}"), ("scored.json", "{"), ("asked.json", "")):
        before = (kept / name).read_text()
        (kept / name).write_text(text)
        with pytest.raises(InputError, match=f"{name} .*delete it, and it is made again"):
            run(tmp_path)
        (kept / name).write_text(before)


@pytest.mark.slow
def test_what_was_made_otherwise_is_refused(done: tuple[Path, pd.DataFrame, list[str]], tmp_path: Path) -> None:
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    before = bytes_of(tmp_path / "out")
    for change in (("n_sample_steps = 4", "n_sample_steps = 5"), ("n_train_steps = 20", "n_train_steps = 21")):
        with pytest.raises(InputError, match="holds method 'ours' as made otherwise"):
            run(tmp_path, FILE.replace(*change))
    with pytest.raises(InputError, match="holds task 'held-out type' as made otherwise"):
        run(tmp_path, FILE.replace("n_genes = 20", "n_genes = 21"))
    assert bytes_of(tmp_path / "out") == before


@pytest.mark.slow
def test_a_benchmark_that_is_killed_goes_on_and_ends_the_same(
    done: tuple[Path, pd.DataFrame, list[str]], tmp_path: Path
) -> None:
    text = FILE.replace("n_train_steps = 20", "n_train_steps = 60").replace("seeds = [0, 3]", "seeds = [0]")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    expected, _ = run(tmp_path / "whole", text)
    file = written(tmp_path / "killed", text)
    command = [
        sys.executable,
        "-m",
        "squidiff",
        "benchmark",
        str(file),
        "--out",
        str(file.parent / "out"),
        "--device",
        "cpu",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = file.parent / "out" / "held-out type" / "seed-0" / "runs" / "ours" / "resume" / "state.safetensors"
    deadline = time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    table, said = run(tmp_path / "killed", text)
    assert said[0] == "held-out type, seed 0: ours"
    pd.testing.assert_frame_equal(table, expected)


WRONG = {
    "no TOML": ("seeds = [", "cannot be read as TOML"),
    "no task": ('[[method]]\nname = "a"', r"has no \[\[task\]\]"),
    "no method": ('[[task]]\nname = "a"\nfile = "b"', r"has no \[\[method\]\]"),
    "unknown key": (
        FILE + "\nepochs = 3",
        "method 2 of .* has 'epochs', which means nothing there: known are baseline",
    ),
    "unknown setting": (FILE.replace("n_genes", "n_gene"), "prepare of task 1 of .* has 'n_gene'"),
    "a value of another type": (FILE.replace("n_genes = 20", 'n_genes = "20"'), "--n-genes is '20'"),
    "no such baseline": (FILE.replace('"mean shift"', '"oracle"'), "there is no baseline 'oracle'"),
    "the name of a baseline": (
        FILE.replace('name = "floor"', 'name = "mean shift"'),
        "as a baseline or a file that every table has",
    ),
    "a run that is no name": (
        FILE.replace('name = "floor"', 'name = "floor"\nrun = [1]'),
        r"has run \[1\]: name a method",
    ),
    "two of one name": (FILE.replace('name = "floor"', 'name = "ours"'), "two of method 'ours'"),
    "a name that is a path": (FILE.replace('"held-out type"', '"../x"'), "give a text that can name a folder"),
    "the name of a file": (
        FILE.replace('name = "floor"', 'name = "truth"'),
        "as a baseline or a file that every table",
    ),
    "a name that is too long": (
        FILE.replace('"held-out type"', f'"{"x" * 300}"'),
        "give a text that can name a folder",
    ),
    "a name with a zero": (FILE.replace('"held-out type"', '"a\\u0000b"'), "give a text that can name a folder"),
    "a folder, not a file": (FILE.replace("raw.h5ad", "."), "nor a folder that holds cells"),
    "no seeds": (FILE.replace("[0, 3]", "[]"), r"seeds of .* are \[\]"),
    "nothing held out": (
        FILE.replace("hold_out", "drop").replace(f"condition=drug,cell_type={HELD_OUT}", "condition=drug"),
        "holds no cells out",
    ),
    "no such file": (FILE.replace("raw.h5ad", "none.h5ad"), "none.h5ad does not exist: name the folder of the data"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_file_is_said_in_one_sentence(tmp_path: Path, fault: str) -> None:
    text, message = WRONG[fault]
    with pytest.raises(InputError, match=message):
        run(tmp_path, text)
    assert not list((tmp_path / "out").rglob("*.h5ad"))


def test_the_projects_own_benchmark_can_be_read() -> None:
    benchmark = read_benchmark(Path(__file__).parents[2] / "benchmarks" / "bench.toml")
    assert {"kang-b-cells", "norman-pairs", "l1000-drugs"} <= {task.name for task in benchmark.tasks}
