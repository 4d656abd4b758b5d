"""The tasks of an srun are one work, of their own step; what would wait for nobody is refused.

The variables are those that SLURM 22.05 sets. A real one, of two hosts, is started by benchmarks/slurm.sh.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric.plugins.environments import LightningEnvironment
from test_processes import SCRIPT, assert_alike, ran

from squidiff.config import Compute, InputError
from squidiff.train.processes import Processes, _environment
from squidiff.train.slurm import Step


def variables(n_tasks: int, nodes: str = "n[3-4]", n_nodes: int = 1, rank: int = 0, step: int = 0) -> dict[str, str]:
    """Of a task, in a job of two hosts whose first one is out of reach."""
    there = {"ID": step, "NODELIST": nodes, "NUM_NODES": n_nodes, "NUM_TASKS": n_tasks}
    task = {"JOB_ID": 1234, "JOB_NAME": "job", "PROCID": rank, "LOCALID": rank, "NODEID": 0, "NTASKS": n_tasks}
    job = {"NODELIST": "out-of-reach,n[3-4]", "NTASKS_PER_NODE": 1, "NNODES": n_nodes}
    return {f"SLURM_{k}": str(v) for k, v in {**{f"STEP_{k}": v for k, v in there.items()}, **task, **job}.items()}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, of: dict[str, str]) -> None:
    for name, value in of.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_two_tasks_of_a_step_have_the_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    """On another machine than the job's first, where lightning-fabric's own would look for the first process."""
    joined = ran(tmp_path, 1, "ddp")
    command = [sys.executable, str(SCRIPT), str(tmp_path), "2", "ddp"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = {"MASTER_PORT": str(free.getsockname()[1])}
    tasks = [
        subprocess.Popen(
            command, env=os.environ | variables(2, "localhost", rank=rank) | port, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    said = [task.communicate(timeout=300)[1] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert_alike(torch.load(tmp_path / "2-ddp.pt", weights_only=True), joined)


def test_a_step_is_found_on_its_own_machines_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, variables(4, n_nodes=2, rank=1))
    step = _environment(2, 2)
    assert isinstance(step, Step)
    assert step.creates_processes_externally
    assert (step.world_size(), step.global_rank(), step.local_rank(), step.node_rank()) == (4, 1, 1, 0)
    assert step.main_address == "n3"
    first = step.main_port
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    assert 15_000 <= step.main_port != first <= 32_767
    monkeypatch.setenv("MASTER_ADDR", "other")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert (step.main_address, step.main_port) == ("other", 29500)


@pytest.mark.parametrize(("devices", "nodes"), [(4, 1), (2, 2), (1, 2)])
def test_another_number_of_tasks_than_is_asked_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, devices: int, nodes: int
) -> None:
    set_all(monkeypatch, variables(2))
    with pytest.raises(InputError) as error:
        Processes(Compute(device="cpu", devices=devices, nodes=nodes))
    assert str(error.value) == (
        f"srun started 2 task(s) on 1 machine(s), but --devices is {devices} and --nodes is {nodes}: start it by srun "
        f"--nodes={nodes} --ntasks={devices * nodes} --ntasks-per-node={devices}"
    )


@pytest.mark.parametrize("of", [{}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "job"}, variables(1)])
def test_where_one_task_is_all_there_is_it_starts_the_others(
    monkeypatch: pytest.MonkeyPatch, of: dict[str, str]
) -> None:
    """On no cluster, in a batch script without srun, in a shell that srun started."""
    set_all(monkeypatch, of)
    assert isinstance(_environment(2, 1), LightningEnvironment)


def test_one_process_is_one_whatever_srun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, variables(4))
    assert isinstance(_environment(1, 1), LightningEnvironment)


def test_machines_that_nobody_starts_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^--nodes is 2, but nothing says where the first machine is: start it by "):
        Processes(Compute(device="cpu", devices=1, nodes=2))
    monkeypatch.setenv("MASTER_ADDR", "here")
    assert isinstance(_environment(1, 2), LightningEnvironment)
