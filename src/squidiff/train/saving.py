"""The saved states of a run: when they are written, which is taken up again, who may write, and how to be stopped."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from squidiff.config import Config, InputError
from squidiff.files import saying_where
from squidiff.train.checkpoint import Saved, Unreadable, read_state, save_state
from squidiff.train.loop import TrainState

STATE = Path("resume", "state.safetensors")
PREVIOUS = Path("resume", "previous.safetensors")
"""The state before; it stays until the newest one is whole."""
LOCK = Path("resume", "lock")


def has_state(folder: Path) -> bool:
    """Whether a run in the folder can be gone on with."""
    return (folder / STATE).exists() or (folder / PREVIOUS).exists()


def newest_state(folder: Path) -> tuple[Saved, str]:
    """The newest whole state of a run, and what to say of it: '' where nothing is.

    Raises InputError when neither of both can be read.
    """
    damaged: Unreadable | None = None
    for path in (folder / STATE, folder / PREVIOUS):
        if path.exists():
            try:
                saved = read_state(path)
            except Unreadable as error:
                damaged = error
            else:
                said = "" if damaged is None else f"{damaged}: the state before it, of step {saved.step}, is taken"
                return saved, said
    raise InputError(f"{damaged}; delete its folder to start anew")


class Saves:
    """Writes the states of one run, every so many steps or minutes, whichever comes first."""

    def __init__(self, folder: Path, config: Config, step: int, *, newest_is_whole: bool = True) -> None:
        self.folder, self.config, self._newest_is_whole = folder, config, newest_is_whole
        self._step, self._time = step, time.monotonic()

    def is_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self._time) / 60
        return step - self._step >= self.config.save_every_steps or minutes >= self.config.save_every_minutes

    def write(self, state: TrainState, kept: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
        """Writes a state; `kept` and `note` are what the run keeps beside it. Raises InputError when it cannot.

        All processes are to call it; the main one writes.
        """
        newest, previous = self.folder / STATE, self.folder / PREVIOUS

        def make_room() -> None:
            if newest.exists() and self._newest_is_whole:  # a damaged one takes no good one's place
                with saying_where(previous):
                    newest.replace(previous)

        state.processes.by_main(make_room)
        save_state(newest, state, kept, note)
        self._newest_is_whole = True
        self._step, self._time = state.step, time.monotonic()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, nobody else may train in the folder; the lock dies with its process, however that ends.

    Where a file system knows no locks (Lustre without flock), a file takes its place, and filelock warns: it may
    outlive its process. Raises InputError when another training is under way.
    """
    from filelock import FileLock, Timeout

    path = folder / LOCK
    with saying_where(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"another training is under way in {folder}: wait for it, stop it, or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def told_to_stop() -> Iterator[list[int]]:
    """Inside, the first SIGINT or SIGTERM is only noted, in the list, so that work can be saved; the next one acts.

    In the main thread, where signals arrive; elsewhere the list stays empty.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        restore()

    def restore() -> None:
        for number in handled:
            signal.signal(number, before[number])

    # a signal that is ignored, as SIGINT in a shell's background, stays so; None: not set by Python
    handled = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    for number in handled:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
