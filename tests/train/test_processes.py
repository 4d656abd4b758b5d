"""Several processes train as one does, tell each other what they must, and are asked for in a sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from easy_problem import config, network, parameters, same, stream

from squidiff.config import Compute, InputError
from squidiff.train.loop import TrainState, training_steps
from squidiff.train.processes import Processes

SCRIPT = Path(__file__).with_name("two_processes.py")


def ran(folder: Path, n: int, strategy: str, *launcher: str) -> dict[str, torch.Tensor]:
    """What the script found."""
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(n), strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, torch.Tensor] = torch.load(folder / f"{n}-{strategy}.pt", weights_only=True)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def joined(folder: Path) -> dict[str, torch.Tensor]:
    return ran(folder, 1, "ddp")


def assert_alike(found: dict[str, torch.Tensor], joined: dict[str, torch.Tensor]) -> None:
    """Gradients and first losses to 1e-6 of the largest number of each; what comes later, to 3e-6 of its length.

    AdamW divides by the gradients, so of a weight whose gradient is rounding alone the way is, too.
    """
    assert found.keys() == joined.keys()
    assert sum(name.startswith("gradient") for name in joined) == sum(name.startswith("weight") for name in joined)
    for name, expected in joined.items():
        if name.startswith(("gradient", "loss 0")):
            largest = float(expected.abs().max())
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6 * largest, msg=name)
        else:
            assert (found[name] - expected).norm() <= 3e-6 * expected.norm(), name


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_the_joined_batch(folder: Path, joined: dict[str, torch.Tensor]) -> None:
    assert_alike(ran(folder, 2, "ddp"), joined)


@pytest.mark.slow
def test_two_processes_that_each_hold_a_share_of_the_network_have_them_too(
    folder: Path, joined: dict[str, torch.Tensor]
) -> None:
    """Started by torchrun, which says how many there are."""
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    assert_alike(ran(folder, 2, "fsdp", *torchrun), joined)


@pytest.mark.slow
def test_no_process_ends_while_its_threads_still_talk(folder: Path) -> None:
    """They abort one that is done, now and then: "terminate called without an active exception"."""
    if not (folder / "left-1.txt").exists():
        ran(folder, 2, "ddp")
    for rank in (0, 1):
        assert (folder / f"left-{rank}.txt").read_text() == "still connected: False"


@pytest.mark.slow
def test_what_one_process_says_all_hear(folder: Path) -> None:
    if not (folder / "heard-1.txt").exists():
        ran(folder, 2, "ddp")
    main, other = ((folder / f"heard-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert main[:3] == ["gathered [0, 1]", "main done by 0", "together done by 0"]
    assert other[:3] == ["gathered [0, 1]", "main done by 0", "together done by 1"]
    errors = [
        "by_main 0: process 0 cannot, shared: True",
        "by_main 1: nothing",  # what another one would do it is not asked for
        "together 0: process 0 cannot, shared: True",
        "together 1: process 1 cannot, shared: True",
    ]
    assert main[3:7] == other[3:7] == errors
    assert main[7] == "parts [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]"
    assert other[7] == "parts []"


@pytest.mark.slow
def test_half_precision_learns_nearly_the_same_with_weights_that_stay_whole() -> None:
    found = {}
    for precision in ("32", "bf16-mixed"):
        processes = Processes.start(Compute(device="cpu", precision=precision))
        trained, settings = network(), config(n_train_steps=60)
        state = TrainState.start(trained, settings, processes=processes)
        losses = [step.losses.loss.mean().item() for step in training_steps(state, stream(0), settings)]
        found[precision] = losses, parameters(trained)
    (exact, whole), (half, halved) = found["32"], found["bf16-mixed"]
    assert {p.dtype for p in halved.values()} == {torch.float32}
    assert half == pytest.approx(exact, rel=0.05)
    assert half[-1] < 0.7 * half[0]
    assert not same(whole, halved)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"precision": "16-mixed"}, "--precision 16-mixed is not to be had on a CPU: use bf16-mixed or 32"),
        ({"precision": "64"}, "--precision is '64': choose one of 32, bf16-mixed, 16-mixed"),
        ({"strategy": "zero"}, "--strategy is 'zero': choose one of ddp, fsdp"),
        ({"devices": 0}, "--devices is 0: it must be at least 1"),
        ({"device": "nonsense"}, "device 'nonsense' is not to be had on this machine: use auto or cpu"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(asked: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        Processes.start(Compute(**{"device": "cpu"} | asked))
    assert str(error.value) == sentence


def test_more_gpus_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squidiff.train.processes.find_device", lambda name, is_one: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)  # of a machine that has them
    with pytest.raises(InputError, match=r"^--devices is 8, but this machine has 4: ask for no more$"):
        Processes(Compute(device="cuda", devices=8))


def test_what_differs_between_processes_is_refused_in_all() -> None:
    two = object.__new__(Processes)
    two.n, two.gathered = 1, lambda value: [value, ("other", 30)]
    two.require_same(("other", 30), "run folder")
    with pytest.raises(InputError, match=r"^not all machines have the same run folder: put the files where") as error:
        two.require_same(("one", 0), "run folder")
    assert error.value.is_shared


def test_an_index_of_a_device_and_several_devices_exclude_each_other() -> None:
    with pytest.raises(InputError, match=r"^--device is cuda:1, but --devices is 2: name the kind of device alone$"):
        Processes(Compute(device="cuda:1", devices=2))


def test_a_lost_connection_is_said_in_a_sentence_and_other_errors_stay_what_they_are() -> None:
    alone = Processes.start(Compute(device="cpu"))
    two = object.__new__(Processes)
    two.n = 2
    with pytest.raises(InputError, match=r"^another process of this work ended"), two.others():
        raise RuntimeError("gloo/pair.cc:537] Read error: Connection reset by peer")
    for processes, text in ((two, "shapes cannot be multiplied"), (alone, "Connection reset by peer")):
        with pytest.raises(RuntimeError, match=text), processes.others():
            raise RuntimeError(text)
