"""Nothing is lost: two states are kept, signals are heard, a folder is one run's, and a run that diverges ends well."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from easy_problem import CONTRARY, VALIDATION, batch, config, network, parameters, same, stream

from squidiff.config import Batch, Config, InputError, Stopped
from squidiff.train.checkpoint import read_state
from squidiff.train.loop import TrainState
from squidiff.train.run import Diverged, Record, train
from squidiff.train.saving import PREVIOUS, STATE, Saves, has_state, locked, newest_state, told_to_stop

OF_THE_MACHINE = {"cells_per_s": 0.0, "memory_mb": None}
SETTINGS = config(n_train_steps=40, save_every_steps=5, log_every_steps=5)


@pytest.fixture(autouse=True)
def _heard() -> Iterator[None]:
    """SIGINT as at a terminal: a shell that runs the tests in its background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def reproducible(records: list[Record]) -> list[Record]:
    return [dataclasses.replace(record, **OF_THE_MACHINE) for record in records]


def at_batch(n: int, do: Callable[[], object]) -> Callable[[int], Callable[[], Batch]]:
    """The stream, which does something when batch number n is drawn, for step n + 1."""

    def starting(first: int) -> Callable[[], Batch]:
        draw, numbers = stream(first), iter(range(first, 10**9))

        def next_one() -> Batch:
            if next(numbers) == n:
                do()
            return draw()

        return next_one

    return starting


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def stopped_run(folder: Path, settings: Config = SETTINGS, at: int = 33, number: int = signal.SIGTERM) -> None:
    with pytest.raises(Stopped) as stopped:
        train(network(settings), at_batch(at, send(number)), VALIDATION, settings, out=folder)
    assert stopped.value.number == number
    assert str(stopped.value) == f"stopped at step {at + 1}, which is saved"


def assert_goes_on_to_the_same_bits(folder: Path, notes: list[str], settings: Config = SETTINGS) -> None:
    whole, resumed = network(settings), network(config(seed=77))  # the weights must come from the file
    expected = train(whole, stream, VALIDATION, settings)
    heard: list[str] = []
    found = train(resumed, stream, VALIDATION, settings, out=folder, resume=True, on_note=heard.append)
    assert same(parameters(resumed), parameters(whole))
    assert reproducible(found) == reproducible(expected)
    assert heard == notes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("at", [0, 7, 19, 33, 39])
def test_at_a_signal_the_step_is_saved_and_nothing_is_done_twice(tmp_path: Path, number: int, at: int) -> None:
    before = signal.getsignal(number)
    stopped_run(tmp_path, at=at, number=number)
    assert signal.getsignal(number) is before
    assert read_state(tmp_path / STATE).step == at + 1
    assert_goes_on_to_the_same_bits(tmp_path, [])


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_the_second_signal_acts_at_once_whichever_the_first_was(first: int) -> None:
    def impatient() -> None:
        with told_to_stop() as asked:
            send(first)()
            assert asked == [first]
            send(signal.SIGINT)()

    with pytest.raises(KeyboardInterrupt):
        impatient()


def test_a_signal_that_is_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with told_to_stop() as asked:
        send(signal.SIGINT)()
        assert asked == []


def test_in_another_thread_training_runs_without_signals(tmp_path: Path) -> None:
    done: list[list[Record]] = []
    settings = config(n_train_steps=3)
    run = lambda: done.append(train(network(settings), stream, [], settings, out=tmp_path))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert [record.step for record in done[0]] == [3]


def test_two_states_are_kept(tmp_path: Path) -> None:
    stopped_run(tmp_path, at=12)
    assert (read_state(tmp_path / STATE).step, read_state(tmp_path / PREVIOUS).step) == (13, 10)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "one bit"])
def test_a_damaged_state_is_told_and_the_one_before_it_is_taken(tmp_path: Path, damage: str) -> None:
    stopped_run(tmp_path)
    content = bytearray((tmp_path / STATE).read_bytes())
    if damage == "cut":
        del content[-100:]
    content[-1] ^= 1
    (tmp_path / STATE).write_bytes(content)
    why = "its values are not those that were written" if damage == "one bit" else ".*"
    with pytest.raises(InputError, match=rf"state\.safetensors cannot be read as a safetensors file: {why}"):
        read_state(tmp_path / STATE)
    heard: list[str] = []
    train(network(), stream, VALIDATION, SETTINGS, out=tmp_path, resume=True, on_note=heard.append)
    assert len(heard) == 1
    assert heard[0].endswith(": the state before it, of step 30, is taken")
    stopped_again = tmp_path / "again"
    stopped_run(stopped_again)
    (stopped_again / STATE).write_bytes(b"")
    found = network(config(seed=77))
    train(found, stream, VALIDATION, SETTINGS, out=stopped_again, resume=True)
    whole = network()
    train(whole, stream, VALIDATION, SETTINGS)
    assert same(parameters(found), parameters(whole))


def test_a_run_killed_between_two_states_has_the_one_before(tmp_path: Path) -> None:
    stopped_run(tmp_path)
    (tmp_path / STATE).unlink()
    assert has_state(tmp_path)
    assert_goes_on_to_the_same_bits(tmp_path, [])


def test_a_damaged_state_takes_no_good_ones_place(tmp_path: Path) -> None:
    """The state before it is taken, and the next save fails as well."""
    stopped_run(tmp_path)
    (tmp_path / STATE).write_bytes(b"")
    saves = Saves(tmp_path, SETTINGS, 30, newest_is_whole=False)
    state, note = newest_state(tmp_path)
    assert (state.step, note != "") == (30, True)

    class FullDisk(TrainState):
        def __getattribute__(self, name: str) -> object:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        saves.write(object.__new__(FullDisk), {}, {})
    assert newest_state(tmp_path)[0].step == 30
    assert_goes_on_to_the_same_bits(tmp_path, [note])


def test_a_stop_at_the_last_validation_before_the_end_is_the_end(tmp_path: Path) -> None:
    """Told to stop in the step whose validation ends training: what is resumed ends there too."""
    settings = config(n_train_steps=400, ema_decay=0.5, patience=2)
    with pytest.raises(Stopped, match=r"^stopped at step 30, which is saved$"):
        train(network(settings), at_batch(29, send(signal.SIGTERM)), CONTRARY, settings, out=tmp_path)
    whole, resumed = network(settings), network(settings)
    expected = train(whole, stream, CONTRARY, settings)
    heard: list[str] = []
    found = train(resumed, stream, CONTRARY, settings, out=tmp_path, resume=True, on_note=heard.append)
    assert reproducible(found) == reproducible(expected)
    assert same(parameters(resumed), parameters(whole))
    assert heard == ["ended at step 30: the validation loss did not fall 2 times in a row (--patience)"]


def test_where_neither_state_can_be_read_it_says_what_to_do(tmp_path: Path) -> None:
    stopped_run(tmp_path)
    for name in (STATE, PREVIOUS):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"previous\.safetensors cannot be read .*; delete its folder to start anew$"):
        train(network(), stream, VALIDATION, SETTINGS, out=tmp_path, resume=True)


def test_a_state_is_due_after_steps_or_minutes(tmp_path: Path) -> None:
    by_steps, by_time = (
        Saves(tmp_path, config(save_every_steps=n, save_every_minutes=t), 7) for n, t in ((5, 9), (99, 1e-3))
    )
    assert [by_steps.is_due(step) for step in (8, 11, 12)] == [False, False, True]
    assert not by_time.is_due(8)
    time.sleep(0.07)
    assert by_time.is_due(8)


@pytest.mark.parametrize("part", ["window.loss", "best.denoiser.lift.weight"])
def test_a_state_that_lacks_what_the_run_keeps_is_refused(tmp_path: Path, part: str) -> None:
    from squidiff.train.checkpoint import write_tensors

    stopped_run(tmp_path)
    saved = read_state(tmp_path / STATE)
    write_tensors(tmp_path / STATE, {k: t for k, t in saved.tensors.items() if k != part}, saved.note)
    with pytest.raises(InputError, match=r"does not belong to this model .*: delete its folder to start anew"):
        train(network(), stream, VALIDATION, SETTINGS, out=tmp_path, resume=True)


HOLDS = """
import sys, time
from pathlib import Path
from squidiff.train.saving import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_folder_is_one_processs_and_free_when_that_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        message = r"^another training is under way in .*: wait for it, stop it, or choose another folder$"
        with pytest.raises(InputError, match=message), locked(tmp_path):
            pass
    finally:
        owner.kill()
        owner.communicate()
    with locked(tmp_path):
        pass


def test_training_stops_where_the_validation_loss_no_longer_falls() -> None:
    settings = config(n_train_steps=400, ema_decay=0.5, patience=2)
    trained = network(settings)
    records = train(trained, stream, CONTRARY, settings)
    losses = [r.validation_loss for r in records if r.validation_loss is not None]
    assert losses == sorted(losses)
    assert [r.step for r in records if r.validation_loss is not None] == [10, 20, 30]
    assert records[-1].step == 30
    to_the_end = network(settings)
    ended = train(to_the_end, stream, CONTRARY, dataclasses.replace(settings, n_train_steps=60, patience=None))
    assert ended[-1].step == 60


def no_numbers() -> Batch:
    return batch(0)._replace(target=torch.full((32, 8), torch.nan))


def breaking(at: int) -> Callable[[int], Callable[[], Batch]]:
    """The stream, of which the batch for step `at` and those after it hold no numbers."""
    return lambda first: iter(batch(i) if i + 1 < at else no_numbers() for i in range(first, 10**6)).__next__


def test_a_run_that_diverges_ends_with_its_best_weights_and_keeps_its_good_state(tmp_path: Path) -> None:
    trained = network()
    with pytest.raises(
        Diverged, match=r"^training diverged at step 25, its loss is nan: lower --learning-rate"
    ) as found:
        train(trained, breaking(23), VALIDATION, SETTINGS, out=tmp_path)
    assert found.value.has_weights
    assert [r.step for r in found.value.records] == [5, 10, 15, 20]
    assert read_state(tmp_path / STATE).step == 20
    assert same(parameters(trained), read_state(tmp_path / STATE).kept("best."))


def test_without_validation_cells_a_run_that_diverges_keeps_no_broken_weights() -> None:
    with pytest.raises(Diverged) as found:
        train(network(), breaking(3), [], config(n_train_steps=10, validate_every_steps=5, log_every_steps=5))
    assert not found.value.has_weights


def test_a_validation_loss_that_explodes_at_once_is_no_best_one() -> None:
    large = [batch(10**6)._replace(target=1e4 * batch(10**6).target)]
    with pytest.raises(Diverged, match=r"diverged at step 10, its loss is .*e\+") as found:
        train(network(), stream, large, SETTINGS)
    assert not found.value.has_weights


def test_a_gradient_that_is_no_number_is_noticed_before_it_is_saved(tmp_path: Path) -> None:
    trained = network()
    gradients = iter(range(10**6))
    trained.denoiser.lift.weight.register_hook(lambda g: g * (torch.nan if next(gradients) == 11 else 1.0))
    settings = dataclasses.replace(SETTINGS, save_every_steps=1)
    with pytest.raises(Diverged, match=r"^training diverged at step 12, its gradient is nan"):
        train(trained, stream, VALIDATION, settings, out=tmp_path)
    assert read_state(tmp_path / STATE).step == 11


def test_a_signal_in_a_run_that_has_diverged_saves_nothing_over_its_good_state(tmp_path: Path) -> None:
    def draws(first: int) -> Callable[[], Batch]:
        broken = breaking(22)(first)
        stops = at_batch(22, send(signal.SIGTERM))(first)
        return lambda: (stops(), broken())[1]

    with pytest.raises(Diverged):
        train(network(), draws, VALIDATION, SETTINGS, out=tmp_path)
    assert read_state(tmp_path / STATE).step == 20


def test_a_loss_that_explodes_is_no_loss() -> None:
    def draws(first: int) -> Callable[[], Batch]:
        large = lambda i: batch(i)._replace(target=batch(i).target * (1 if i < 12 else 1e3))  # noqa: E731
        return iter(map(large, range(first, 10**6))).__next__

    with pytest.raises(Diverged, match=r"diverged at step 15, its loss is .*e") as found:
        train(network(), draws, VALIDATION, SETTINGS)
    assert found.value.has_weights


def test_the_average_of_the_loss_moves_a_tenth_of_the_way() -> None:
    records = train(network(), stream, VALIDATION, SETTINGS)
    average = records[0].loss
    for record in records:
        average += (record.loss - average) / 10
        assert record.loss_average == pytest.approx(average, rel=1e-12)
