"""The processes that one srun of SLURM started."""

from __future__ import annotations

import os

from lightning_fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment

from squidiff.config import InputError

N_PORTS, FIRST_PORT = 17_000, 15_000
"""Below those that Linux gives to connections that go out."""


class Step(ClusterEnvironment):
    """A job step's tasks as one work, from the variables of the step.

    lightning-fabric's own SLURMEnvironment goes by those of the job: it looks for the first process on the job's first
    machine, where a step on other ones has none, gives all steps of a job one port, and refuses `srun --ntasks`.
    """

    def __init__(self, devices: int, nodes: int) -> None:
        """Raises InputError where srun did not start as many tasks as are asked for."""
        super().__init__()
        tasks, machines = _number("SLURM_STEP_NUM_TASKS"), _number("SLURM_STEP_NUM_NODES")
        if (tasks, machines) != (devices * nodes, nodes):
            raise InputError(
                f"srun started {tasks} task(s) on {machines} machine(s), but --devices is {devices} and --nodes is "
                f"{nodes}: start it by srun --nodes={nodes} --ntasks={devices * nodes} --ntasks-per-node={devices}"
            )

    @staticmethod
    def detect() -> bool:
        """Whether srun started several: one alone may be a shell, from which others are started as anywhere."""
        return os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1"

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        machines = os.environ["SLURM_STEP_NODELIST"]
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(machines)

    @property
    def main_port(self) -> int:
        """One of each step, so that those of one job can run beside each other."""
        own = FIRST_PORT + (_number("SLURM_JOB_ID") + 101 * _number("SLURM_STEP_ID")) % N_PORTS
        return int(os.environ.get("MASTER_PORT") or own)

    def world_size(self) -> int:
        return _number("SLURM_STEP_NUM_TASKS")

    def set_world_size(self, size: int) -> None:
        """It is srun's."""

    def global_rank(self) -> int:
        return _number("SLURM_PROCID")

    def set_global_rank(self, rank: int) -> None:
        """It is srun's."""

    def local_rank(self) -> int:
        return _number("SLURM_LOCALID")

    def node_rank(self) -> int:
        return _number("SLURM_NODEID")


def _number(name: str) -> int:
    return int(os.environ[name])
