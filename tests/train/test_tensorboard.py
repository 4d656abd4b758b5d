"""What TensorBoard reads back is what metrics.jsonl says, also of a run that was resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
from easy_problem import batch, config, network, stream

from squidiff.train.run import Record, train
from squidiff.train.tensorboard import to_tensorboard

SETTINGS = config(n_train_steps=40)


def test_tensorboard_reads_every_number_once(tmp_path: Path) -> None:
    def stop(record: Record) -> None:
        log(record)
        if record.step == 25:
            raise KeyboardInterrupt

    with to_tensorboard(tmp_path / "log") as log, pytest.raises(KeyboardInterrupt):
        train(network(), stream, [batch(10**6)], SETTINGS, out=tmp_path, on_record=stop)
    with to_tensorboard(tmp_path / "log") as log:  # from the state of step 20 on
        records = train(network(), stream, [batch(10**6)], SETTINGS, out=tmp_path, resume=True, on_record=log)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "log")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [r.step for r in records] == list(range(5, 45, 5))
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r.loss for r in records], rel=1e-6)
    assert [e.step for e in events.Scalars("validation_loss")] == [10, 20, 30, 40]
    assert "micro_batch_size" not in events.Tags()["scalars"]


def test_a_run_without_a_record_leaves_no_folder(tmp_path: Path) -> None:
    with to_tensorboard(tmp_path / "log"):
        pass
    assert not (tmp_path / "log").exists()
