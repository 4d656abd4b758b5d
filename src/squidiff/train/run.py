"""One training run: the steps, with validation, a log, and a state on disk from which it can be resumed."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import torch
from torch import nn

from squidiff.config import Config, InputError
from squidiff.diffusion.loss import Losses, loss_by_quartile
from squidiff.files import saying_where, write_atomically
from squidiff.train.checkpoint import load_state, save_state
from squidiff.train.loop import RECIPE, AnyBatch, Recipe, Step, TrainState, training_steps, validation_loss

METRICS = "metrics.jsonl"
STATE = Path("resume", "state.safetensors")


@dataclass(frozen=True)
class Record:
    """One line of metrics.jsonl. Losses are means over the steps since the line before."""

    step: int
    loss: float
    validation_loss: float | None
    loss_q1: float | None
    """Least noise; None where no cell fell into the quartile."""
    loss_q2: float | None
    loss_q3: float | None
    loss_q4: float | None
    learning_rate: float
    cells_per_s: float
    memory_mb: float | None
    """Peak memory of the process so far; None where the system does not tell."""
    device_memory_mb: float | None
    """Peak memory of tensors on the accelerator so far; None on a CPU, and where the device does not tell."""
    gradient_norm: float | None = None
    """Mean before clipping; None in runs of before it was logged."""

    def __str__(self) -> str:
        validation = "" if self.validation_loss is None else f", validation {self.validation_loss:.3f}"
        return f"loss {self.loss:.3f}{validation}"


@dataclass
class Best:
    """The averaged weights of the lowest validation loss so far; none where the recipe keeps the newest weights."""

    weights: dict[str, torch.Tensor]
    validation_loss: float = float("inf")


def train(
    network: nn.Module,
    stream: Callable[[int], Callable[[], AnyBatch]],
    validation: Sequence[AnyBatch],
    config: Config,
    recipe: Recipe[AnyBatch] = RECIPE,
    *,
    out: Path | None = None,
    resume: bool = False,
    on_record: Callable[[Record], None] | None = None,
    on_save: Callable[[TrainState], None] | None = None,
) -> list[Record]:
    """Trains the network in place; it ends with the averaged weights of the lowest validation loss.

    Where the recipe keeps the newest weights, it ends with those. `on_save` is called at every save and at the end.

    `stream(n)` gives the function that draws batches from the n-th on. With `out`, metrics.jsonl and the resumable
    state are written there; with `resume`, training goes on from that state if there is one. Returns all records,
    those before a resumption included.
    """
    state = TrainState.start(network, config)
    best = Best(_to_keep(state, recipe))
    if resume and out is not None and (out / STATE).exists():
        best = Best(*load_state(out / STATE, state, config.n_train_steps))
    kept = read_records(out / METRICS) if out is not None and state.step > 0 else []
    records = [record for record in kept if record.step <= state.step]
    log = _Log(out, records)
    window = _Window(config)
    saved = state.step
    with log:
        for step in training_steps(state, stream(state.step), config, recipe):
            window.add(step)
            is_last = step.step == config.n_train_steps
            loss = None
            if is_last or step.step % config.validate_every_steps == 0:
                loss = _keep_best(state, best, validation, config, recipe)
            if not (is_last or loss is not None or step.step % config.log_every_steps == 0):
                continue
            record = window.record(loss)
            if not all(math.isfinite(x) for x in (record.loss, record.loss if loss is None else loss)):
                raise InputError(f"training diverged at step {record.step}: lower --learning-rate, in another folder")
            log.write(record)
            if on_record is not None:
                on_record(record)
            # only where a record ends, so that the records of a resumed run are those of an uninterrupted one
            if out is not None and not is_last and step.step - saved >= config.save_every_steps:
                save_state(out / STATE, state, best.weights, best.validation_loss)
                if on_save is not None:
                    on_save(state)
                saved = step.step
    if on_save is not None:
        on_save(state)
    if recipe.keeps_average:
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(best.weights[name])
    network.eval()
    return records


def _keep_best(
    state: TrainState, best: Best, validation: Sequence[AnyBatch], config: Config, recipe: Recipe[AnyBatch]
) -> float | None:
    """The validation loss of the averaged weights; without validation cells the newest weights are the best."""
    loss = validation_loss(state, validation, config.seed, recipe) if validation else None
    if loss is None or loss < best.validation_loss:
        best.weights = _to_keep(state, recipe)
        best.validation_loss = float("inf") if loss is None else loss
    return loss


def _to_keep(state: TrainState, recipe: Recipe[AnyBatch]) -> dict[str, torch.Tensor]:
    """A copy of the averaged weights; none where the recipe keeps the newest."""
    return {name: t.clone() for name, t in state.average.items()} if recipe.keeps_average else {}


class _Window:
    """Gathers steps between two records, without asking the device for a number at every step."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.steps: list[Step] = []
        self.started = time.perf_counter()

    def add(self, step: Step) -> None:
        self.steps.append(step)

    def record(self, validation: float | None) -> Record:
        losses = Losses(*(torch.cat(part) for part in zip(*(s.losses for s in self.steps), strict=True)))
        mean_loss = losses.loss.mean().item()  # waits for the device, so it comes before the clock
        now = time.perf_counter()
        record = Record(
            self.steps[-1].step,
            mean_loss,
            validation,
            *(None if math.isnan(q) else q for q in loss_by_quartile(losses)),
            self.steps[-1].learning_rate,
            len(losses.loss) / (now - self.started),
            peak_memory_mb(),
            peak_device_memory_mb(losses.loss.device),
            torch.stack([s.gradient_norm for s in self.steps]).mean().item(),
        )
        self.steps, self.started = [], now
        return record


class _Log:
    """Keeps records and appends them to metrics.jsonl, a whole line at a time."""

    def __init__(self, out: Path | None, records: list[Record]) -> None:
        self.out, self.records = out, records
        self.file: IO[str] | None = None

    def __enter__(self) -> _Log:
        if self.out is not None:
            write_records(self.out / METRICS, self.records)
            self.file = (self.out / METRICS).open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, record: Record) -> None:
        self.records.append(record)
        if self.file is not None:
            with saying_where(Path(self.file.name)):
                self.file.write(_line(record))
                self.file.flush()


def _line(record: Record) -> str:
    return json.dumps(asdict(record), allow_nan=False) + "\n"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes metrics.jsonl atomically."""
    write_atomically(path, lambda temporary: temporary.write_text("".join(map(_line, records)), encoding="utf-8"))


def read_records(path: Path) -> list[Record]:
    """The records of metrics.jsonl; a last line that was cut is left out. Raises InputError when another is damaged."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [Record(**json.loads(line)) for line in lines if line.endswith("\n")]
        if not all(isinstance(record.step, int) for record in records):
            raise ValueError("a step is not a whole number")
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; it was damaged, or changed by hand") from error
    return records


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process, in MB (10^6 bytes); None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def peak_device_memory_mb(device: torch.device) -> float | None:
    """Peak memory of the tensors on an accelerator, in MB (10^6 bytes); None on a CPU and where torch does not tell."""
    if device.type == "cpu":
        return None
    tell = getattr(torch.get_device_module(device), "max_memory_allocated", None)
    return None if tell is None else tell(device) / 1e6
