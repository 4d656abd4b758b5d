"""A run: what it logs and when, which weights it keeps, and that an interruption leaves no trace in either."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from easy_problem import CONTRARY, VALIDATION, batch, config, network, parameters, run, same, stream, weights

from squidiff.config import Batch, Config
from squidiff.train.loop import TrainState, learning_rate, validation_loss
from squidiff.train.run import METRICS, Record, train
from squidiff.train.saving import STATE

OF_THE_MACHINE = ("cells_per_s", "memory_mb")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def reproducible(record: Record | dict[str, Any]) -> dict[str, Any]:
    values = record if isinstance(record, dict) else dataclasses.asdict(record)
    return {k: v for k, v in values.items() if k not in OF_THE_MACHINE}


def interrupted(folder: Path, settings: Config, at: int) -> None:
    """A run that ends when the record of step `at` is written."""

    def stop(record: Record) -> None:
        if record.step >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(settings), stream, VALIDATION, settings, out=folder, on_record=stop)


def test_metrics_are_logged_at_their_steps_with_every_field(tmp_path: Path) -> None:
    settings = config(n_train_steps=33, log_every_steps=5, validate_every_steps=8)
    heard: list[Record] = []
    records = train(network(settings), stream, VALIDATION, settings, out=tmp_path, on_record=heard.append)
    written = lines(tmp_path)
    assert [set(line) for line in written] == [{f.name for f in dataclasses.fields(Record)}] * len(written)
    assert [Record(**line) for line in written] == records == heard
    assert [r.step for r in records] == [5, 8, 10, 15, 16, 20, 24, 25, 30, 32, 33]
    assert [r.step for r in records if r.validation_loss is not None] == [8, 16, 24, 32, 33]
    assert [r.learning_rate for r in records] == [learning_rate(r.step - 1, settings) for r in records]
    assert all(r.cells_per_s > 0 for r in records)
    assert all(r.memory_mb is None or 10 < r.memory_mb < 1e6 for r in records)


def test_a_record_is_the_mean_over_the_steps_since_the_last(tmp_path: Path) -> None:
    settings = config(n_train_steps=20, log_every_steps=5, validate_every_steps=7)
    records = train(network(settings), stream, VALIDATION, settings, out=tmp_path)
    _, steps = run(settings)
    ends = [r.step for r in records]
    for start, record in zip([0, *ends], records, strict=False):
        loss = torch.cat([s.losses.loss for s in steps[start : record.step]])
        assert record.loss == loss.mean().item()
        position = torch.cat([s.losses.position for s in steps[start : record.step]])
        quarters = [loss[(position >= q / 4) & (position < (q + 1) / 4)].mean().item() for q in range(4)]
        norms = torch.stack([s.gradient_norm for s in steps[start : record.step]])
        assert record.gradient_norm == pytest.approx(norms.mean().item(), rel=1e-6)
        assert [record.loss_q1, record.loss_q2, record.loss_q3, record.loss_q4] == pytest.approx(quarters, rel=1e-6)


@pytest.mark.parametrize(("validation", "best"), [(VALIDATION, -1), (CONTRARY, 0)], ids=["improves", "worsens"])
def test_the_network_ends_with_the_weights_of_the_lowest_validation_loss(validation: list[Batch], best: int) -> None:
    settings = config(n_train_steps=60, ema_decay=0.5)
    trained = network(settings)
    losses = [r.validation_loss for r in train(trained, stream, validation, settings) if r.validation_loss is not None]
    assert len(losses) == 6
    assert min(losses) == losses[best]
    state = TrainState.start(trained, settings)  # its average is the network as it is
    assert validation_loss(state, validation, settings.seed) == min(losses)


def test_without_validation_the_newest_average_is_kept() -> None:
    trained = network()
    records = train(trained, stream, [], config())
    assert [r.validation_loss for r in records] == [None] * len(records)
    state, _ = run(config())
    assert same(parameters(trained), state.average)
    assert not same(parameters(trained), weights(state))


@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [15, 25, 30, 35])
def test_after_an_interruption_weights_and_records_are_those_of_a_run_without_one(
    tmp_path: Path, stopped_at: int
) -> None:
    settings = config(n_train_steps=40)
    whole = network(settings)
    expected = train(whole, stream, VALIDATION, settings, out=_made(tmp_path / "whole"))
    folder = _made(tmp_path / "resumed")
    interrupted(folder, settings, stopped_at)
    resumed = network(config(seed=77))  # the weights must come from the file
    records = train(resumed, stream, VALIDATION, settings, out=folder, resume=True)
    assert [r.step for r in records] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [reproducible(r) for r in records] == [reproducible(r) for r in expected]
    assert [reproducible(line) for line in lines(folder)] == [reproducible(r) for r in expected]
    assert same(parameters(resumed), parameters(whole))


def test_a_line_that_was_cut_is_written_anew(tmp_path: Path) -> None:
    settings = config(n_train_steps=40)
    interrupted(tmp_path, settings, 25)
    path = tmp_path / METRICS
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    records = train(network(settings), stream, VALIDATION, settings, out=tmp_path, resume=True)
    assert [line["step"] for line in lines(tmp_path)] == [r.step for r in records] == [5, 10, 15, 20, 25, 30, 35, 40]


def test_the_best_weights_of_before_an_interruption_are_not_forgotten(tmp_path: Path) -> None:
    """The lowest validation loss was at step 10, before the saved state; what comes after is worse."""
    settings = config(n_train_steps=60, ema_decay=0.5)

    def stop(record: Record) -> None:
        if record.step == 35:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(network(settings), stream, CONTRARY, settings, out=tmp_path, on_record=stop)
    resumed = network(settings)
    records = train(resumed, stream, CONTRARY, settings, out=tmp_path, resume=True)
    losses = [r.validation_loss for r in records if r.validation_loss is not None]
    assert min(losses) == losses[0]
    state = TrainState.start(resumed, settings)
    assert validation_loss(state, CONTRARY, settings.seed) == losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("save_every_steps", [1, 3, 7, 12])
def test_records_do_not_depend_on_where_the_state_was_saved(tmp_path: Path, save_every_steps: int) -> None:
    """A record's losses are means over the steps since the line before, whether or not the run stopped in between."""
    settings = config(n_train_steps=40, save_every_steps=save_every_steps, log_every_steps=5, validate_every_steps=8)
    expected = train(network(settings), stream, VALIDATION, settings)
    interrupted(tmp_path, settings, 30)
    assert (tmp_path / STATE).exists()
    records = train(network(settings), stream, VALIDATION, settings, out=tmp_path, resume=True)
    assert [reproducible(r) for r in records] == [reproducible(r) for r in expected]


@pytest.mark.slow
def test_without_resume_a_run_starts_anew(tmp_path: Path) -> None:
    settings = config(n_train_steps=40)
    interrupted(tmp_path, settings, 25)
    records = train(network(settings), stream, VALIDATION, settings, out=tmp_path)
    assert [r.step for r in records] == [line["step"] for line in lines(tmp_path)] == list(range(5, 45, 5))
    expected = train(network(settings), stream, VALIDATION, settings)
    assert [reproducible(r) for r in records] == [reproducible(r) for r in expected]


def test_resume_with_nothing_saved_starts_at_the_first_step(tmp_path: Path) -> None:
    settings = config(n_train_steps=15)
    interrupted(tmp_path, settings, 5)
    assert not (tmp_path / STATE).exists()
    records = train(network(settings), stream, VALIDATION, settings, out=tmp_path, resume=True)
    assert [line["step"] for line in lines(tmp_path)] == [r.step for r in records] == [5, 10, 15]


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    """A quarter of the noise range in which no cell fell has no mean; NaN is not JSON."""
    settings = config(n_train_steps=6, log_every_steps=1)

    def tiny(first: int) -> Any:
        numbers = iter(range(first, 10**9))
        return lambda: batch(next(numbers), n=2)

    train(network(settings), tiny, VALIDATION, settings, out=tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / METRICS).read_text(encoding="utf-8")
    assert "null" in text
    for line in text.splitlines():
        json.loads(line, parse_constant=refuse)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
