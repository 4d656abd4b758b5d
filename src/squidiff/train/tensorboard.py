"""What a run logs, for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from squidiff.config import InputError
from squidiff.train.run import Record


@contextmanager
def to_tensorboard(folder: Path) -> Iterator[Callable[[Record], None]]:
    """Yields what writes a record's numbers into a folder of event files; needs the extra `tensorboard`.

    Steps that a resumed run does again replace those of before. Raises InputError without tensorboard.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--logger tensorboard needs tensorboard: install it with `pip install 'squidiff-ng[tensorboard]'`"
        ) from None
    writers: list[SummaryWriter] = []

    def write(record: Record) -> None:
        if not writers:  # at the first record, since a run that is refused should leave no folder
            writers.append(SummaryWriter(folder, purge_step=record.step))
        for name, value in asdict(record).items():
            if value is not None and name != "step":
                writers[0].add_scalar(name, value, record.step)

    try:
        yield write
    finally:
        for writer in writers:
            writer.close()
