"""One training run: the steps, with validation, a log, and a state on disk from which it can be resumed."""

from __future__ import annotations

import copy
import functools
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import nn

from squidiff.config import Compute, Config, InputError, Stopped
from squidiff.diffusion.loss import Losses, loss_by_quartile
from squidiff.files import saying_where, write_atomically
from squidiff.train import memory
from squidiff.train.checkpoint import Saved, foreign, load_state
from squidiff.train.loop import RECIPE, AnyBatch, Recipe, Step, TrainState, Weights, training_steps, validation_loss
from squidiff.train.processes import Processes, as_held, whole
from squidiff.train.saving import Saves, has_state, newest_state, told_to_stop

METRICS = "metrics.jsonl"
N_AVERAGED = 10
"""Records that the moving average of the loss is of, about."""
EXPLODED = 100.0
"""Times the first record's loss."""


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
    loss_average: float | None = None
    """Moving average of the losses of this record and those before it; None in runs of before it was logged."""
    micro_batch_size: int | None = None
    """Cells a backward pass, where a batch is taken in parts: as was asked for, or because memory did not hold it."""

    @property
    def live(self) -> str:
        """What a progress bar says."""
        memory = self.device_memory_mb or self.memory_mb
        parts = (
            str(self),
            f"average {self.loss_average:.3f}",
            f"{self.cells_per_s:,.0f} cells/s",
            "" if memory is None else f"peak {memory / 1000:.1f} GB",
            "" if self.micro_batch_size is None else f"in parts of {self.micro_batch_size} cells",
        )
        return ", ".join(filter(None, parts))

    def __str__(self) -> str:
        validation = "" if self.validation_loss is None else f", validation {self.validation_loss:.3f}"
        return f"loss {self.loss:.3f}{validation}"


class Diverged(InputError):
    """The loss was no number any more, or exploded."""

    is_shared = True  # all look at the losses of all
    has_weights = False
    """Whether the network was given the best weights before that."""
    records: list[Record]
    """Those before that."""


def train(
    network: nn.Module,
    stream: Callable[[int], Callable[[], AnyBatch]],
    validation: Sequence[AnyBatch],
    config: Config,
    recipe: Recipe[AnyBatch] = RECIPE,
    *,
    processes: Processes | None = None,
    out: Path | None = None,
    resume: bool = False,
    on_record: Callable[[Record], None] | None = None,
    on_save: Callable[[Weights, Sequence[Weights]], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> list[Record]:
    """Trains the network in place; it ends with the averaged weights of the lowest validation loss.

    Where the recipe keeps the newest weights, it ends with those. `on_save` is given the newest weights
    and their averages at every save and at the end.
    It ends early where the validation loss has not fallen `config.patience` times in a row.

    `stream(n)` gives the function that draws batches from the n-th on. With `out`, metrics.jsonl and the resumable
    state are written there; with `resume`, training goes on from that state if there is one. `on_note` is told where
    that is not the newest, and where training ends early. Returns all records, those before a resumption included.
    Of several `processes`, `stream` gives each its share, and the main one alone writes and calls what is to be called.
    Raises Stopped at SIGINT and SIGTERM, with the state saved (without `out` they act at once), and Diverged, with the
    best weights so far.
    """
    processes = processes or Processes.start(Compute(device="cpu"))
    # a network that processes have shares of is another one than that which is to be given back whole
    trained = copy.deepcopy(network) if processes.compute.strategy == "fsdp" else network
    state, best, window, note = TrainState.start(trained, config, recipe, processes), Best(), _Window(processes), ""
    if resume and out is not None and has_state(out):
        best, window, note = _taken_up(out, state, config)
    say = on_note if on_note is not None and processes.is_main else lambda text: None
    if note:
        say(note)
    kept = read_records(out / METRICS) if out is not None and state.step > 0 else []
    records = [record for record in kept if record.step <= state.step]
    saves = None if out is None else Saves(out, config, state.step, newest_is_whole=not note)

    def save() -> None:
        """Nothing of a step that went wrong is written over a state that is good."""
        window.require_finite(records)
        assert saves is not None
        saves.write(state, best.tensors() | window.tensors(), best.note())
        hand_out()

    def hand_out() -> None:
        if on_save is not None:
            newest, *averages = state.weights()
            processes.by_main(lambda: on_save(newest, averages))

    def stop_and_save(step: int, asked: list[int]) -> tuple[bool, bool]:
        """Whether to stop, and to save: what one of several processes is told, all do at the next record's step."""
        if saves is None or (processes.n > 1 and step % config.log_every_steps > 0):
            return False, False
        stop, is_due = map(any, zip(*processes.gathered((bool(asked), saves.is_due(step))), strict=True))
        return stop, is_due

    is_written = out is not None and processes.is_main
    with (
        _Log(out if is_written else None, records) as log,
        told_to_stop() if saves is not None else nullcontext([]) as asked,
        processes.others(),
        memory.reused(),
    ):
        try:
            for step in () if best.is_stale(config) else training_steps(state, stream(state.step), config):
                window.add(step)
                loss, is_last = None, step.step == config.n_train_steps
                if is_last or step.step % config.validate_every_steps == 0:
                    window.require_finite(records)
                    loss = validation_loss(state, validation, config.seed) if validation else None
                    loss = processes.gathered(loss)[0]  # one decides for all, whatever rounding gave the others
                    window.require_finite(records, loss)
                    best.offer(loss, state)
                    is_last = is_last or best.is_stale(config)
                if is_last or loss is not None or step.step % config.log_every_steps == 0:
                    record = window.record(loss, records)
                    processes.together(functools.partial(log.write, record))
                    if on_record is not None and processes.is_main:
                        on_record(record)
                stop, is_due = stop_and_save(step.step, asked)
                if stop or (is_due and not is_last):
                    save()
                if stop:
                    number = asked[0] if asked else signal.SIGTERM
                    raise Stopped(f"stopped at step {step.step}, which is saved", number)
                if is_last:
                    break
        except Diverged as error:
            best.give(network, state)
            error.has_weights, error.records = bool(best.weights), records
            raise
    if best.is_stale(config):
        say(f"ended at step {state.step}: the validation loss did not fall {best.n_worse} times in a row (--patience)")
    hand_out()
    best.give(network, state)
    return records


def _taken_up(out: Path, state: TrainState, config: Config) -> tuple[Best, _Window, str]:
    """Fills the state with the newest that was saved, which is let go of; what was kept beside it, and what to say."""
    saved, note = newest_state(out)
    load_state(saved, state, config.n_train_steps)
    return Best.of(saved, state), _Window.of(saved, state), note


@dataclass
class Best:
    """The averaged weights of the lowest validation loss so far, or the newest where there are no validation cells.

    Without weights: before the first validation, and where the recipe keeps the newest weights.
    """

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    validation_loss: float = math.inf
    n_worse: int = 0
    """Validations in a row since then."""

    @classmethod
    def of(cls, saved: Saved, state: TrainState) -> Best:
        """Raises InputError when a part is missing."""
        try:
            weights = saved.kept("best.")
            if weights.keys() not in (set(), state.average.keys()) or saved.note["keeps_best"] != bool(weights):
                raise KeyError("best")
            weights = {name: as_held(t, state.average[name]) for name, t in weights.items()}
            return cls(weights, float(saved.note["validation_loss"]), int(saved.note["n_worse"]))
        except (KeyError, TypeError, ValueError) as error:
            raise foreign(saved, error) from error

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"best.{name}": whole(t) for name, t in self.weights.items()}

    def note(self) -> dict[str, object]:
        return {"keeps_best": bool(self.weights), "validation_loss": self.validation_loss, "n_worse": self.n_worse}

    def offer(self, loss: float | None, state: TrainState) -> None:
        """Keeps the averaged weights if their validation loss is the lowest, or is not known."""
        self.n_worse += 1
        if loss is None or loss < self.validation_loss:
            self.n_worse = 0
            self.validation_loss = math.inf if loss is None else loss
            if state.recipe.keeps_average:
                self.weights = {name: t.clone() for name, t in state.average.items()}

    def is_stale(self, config: Config) -> bool:
        """Whether training is to end."""
        return bool(self.weights) and config.patience is not None and self.n_worse >= config.patience

    def give(self, network: nn.Module, state: TrainState) -> None:
        """Ends training: the network has the weights, if any were kept, else the newest."""
        newest, trained = dict(state.network.named_parameters()), dict(state.network.named_buffers())
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(whole(self.weights.get(name, newest[name])))
            for name, buffer in network.named_buffers():
                buffer.copy_(trained[name])
        network.eval()


class _Window:
    """Gathers steps between two records, without asking the device for a number at every step.

    Of several processes each gathers its own cells' losses; what is told of them is told of all.
    """

    def __init__(self, processes: Processes, losses: Losses | None = None, norms: torch.Tensor | None = None) -> None:
        self.processes = processes
        self.losses = [] if losses is None else [losses]
        self.norms = [] if norms is None else [norms]
        self.n_before = 0 if losses is None else len(losses.loss)
        """Cells of before a resumption, which took none of the time."""
        self.started = time.perf_counter()

    @classmethod
    def of(cls, saved: Saved, state: TrainState) -> _Window:
        """What was gathered when a state was saved: by all, so that one takes it up again."""
        found = {name: t.to(state.device) for name, t in saved.kept("window.").items()}
        try:
            if not found:
                return cls(state.processes)
            losses = Losses(found["loss"], found["position"])
            return cls(state.processes, losses if state.processes.is_main else None, found["norm"])
        except KeyError as error:
            raise foreign(saved, error) from error

    def tensors(self) -> dict[str, torch.Tensor]:
        if not self.norms:
            return {}
        parts = (*self._all(), torch.cat(self.norms))
        return {f"window.{name}": t for name, t in zip(("loss", "position", "norm"), parts, strict=True)}

    def add(self, step: Step) -> None:
        self.step = step
        self.losses.append(step.losses)
        self.norms.append(step.gradient_norm.reshape(1))

    def _all(self) -> Losses:
        own = Losses(*(torch.cat(part) for part in zip(*self.losses, strict=True)))
        return Losses(*map(self.processes.joined, own))

    def require_finite(self, records: Sequence[Record], validation: float | None = None) -> None:
        """Raises Diverged when a loss or a gradient is no number, or a loss many times the first record's."""
        if self.norms:
            self._finite(records, validation)

    def _finite(self, records: Sequence[Record], validation: float | None = None) -> tuple[Losses, float, float]:
        """The losses of all, their mean, and the norm. Raises Diverged as `require_finite`."""
        losses, norm = self._all(), self._norm()
        loss = losses.loss.mean().item()
        first = records[0].loss if records else loss
        worst = float(np.max([loss, loss if validation is None else validation]))  # NaN if one is
        if not (math.isfinite(worst) and math.isfinite(norm)) or worst > EXPLODED * first:
            is_loss = math.isfinite(norm) or not math.isfinite(worst)
            what = f"loss is {worst:.3g}" if is_loss else f"gradient is {norm:.3g}"
            raise Diverged(
                f"training diverged at step {self.step.step}, its {what}: lower --learning-rate, or raise "
                "--n-warmup-steps, in another folder"
            )
        return losses, loss, norm

    def _norm(self) -> float:
        """Mean norm of the gradients; of float16, where a step without numbers is taken anew, of those that were."""
        norms = torch.cat(self.norms)
        if self.processes.scaler:
            norms = norms[norms.isfinite()]
        return norms.mean().item() if len(norms) else 0.0

    def record(self, validation: float | None, records: Sequence[Record]) -> Record:
        """What was gathered, after the records before it; the window is then empty."""
        losses, loss, norm = self._finite(records)  # waits for the device, so it comes before the clock
        now, before = time.perf_counter(), records[-1].loss_average if records else None
        record = Record(
            self.step.step,
            loss,
            validation,
            *(None if math.isnan(q) else q for q in loss_by_quartile(losses)),
            self.step.learning_rate,
            (len(losses.loss) - self.n_before) / (now - self.started),
            peak_memory_mb(),
            peak_device_memory_mb(losses.loss.device),
            norm,
            loss if before is None else before + (loss - before) / N_AVERAGED,
            self.step.micro_batch_size,
        )
        self.losses, self.norms, self.n_before, self.started = [], [], 0, now
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
