"""Settings and small value objects that every other unit may import.

Owns: every setting with its range and one-line help, the Schema (which obs column means what), the value objects of
the diffusion, and the one exception that stands for bad input. Must not know: AnnData, files, torch (annotations only).
"""

from __future__ import annotations

import dataclasses
import numbers
import shlex
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

if TYPE_CHECKING:
    import torch


class InputError(ValueError):
    """Input that cannot be used. The message is one sentence: what was found, where, and what to do."""

    is_shared = False
    """Whether it is raised in all of several processes, of which one then says it."""


def require_kind(value: object, kinds: type | tuple[type, ...], what: str, give: str) -> None:
    """Raises InputError where a value is of another kind; `what` it is and what to `give` instead are said."""
    if not isinstance(value, kinds):
        raise InputError(f"{what} is of type {type(value).__name__}: give {give}")


class Stopped(KeyboardInterrupt):
    """A signal ended the work, after it was saved. The message is one sentence."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        """Of the signal."""


CONTEXT_SEPARATOR = " | "
"""Joins the values of a context's keys; a '|' within one is doubled."""
PART_SEPARATOR = " + "
"""Joins the parts of a condition's canonical spelling; a bare '+' may stand inside a part's name."""
DOSE_SEPARATOR = " @ "
"""Stands between a part's name and its dose there."""


def _setting(default: Any, help: str, *, low: float | None = None, high: float | None = None) -> Any:
    """A dataclass field with its help and its closed range [low, high]."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


def flag(name: str) -> str:
    """The command-line flag of a setting: `n_train_steps` -> `--n-train-steps`, `context_keys` -> `--context-key`."""
    return "--" + ("context_key" if name == "context_keys" else name).replace("_", "-")


def as_flags(settings: Any) -> str:
    """The settings that are not the default ones, as options of a command, quoted for a shell."""
    words = []
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if value != setting.default:
            values = value if isinstance(value, tuple) else (value,)
            words += [shlex.join([flag(setting.name), *([] if v is True else [str(v)])]) for v in values]
    return " ".join(words)


def is_finite(number: Any) -> bool:
    """Whether a float can hold a number, which may be whole and have any number of digits."""
    return bool(abs(number) <= sys.float_info.max)


MAX_SEED = 2**31 - 1


def check_seed(seed: int) -> None:
    """Raises InputError when the number cannot be a seed."""
    if not 0 <= seed <= MAX_SEED:
        raise InputError(f"--seed is {seed}: it must be from 0 to {MAX_SEED}")


class _Checked:
    """Checks every field of a settings dataclass against the range and the choices that it declares."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _coerce(f.name, hints[f.name], getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            low, high = f.metadata.get("low"), f.metadata.get("high")
            if value is None:
                continue
            for number in value if isinstance(value, tuple) else (value,):
                if low is not None and not number >= low:
                    raise InputError(f"{flag(f.name)} is {number}: it must be at least {low}")
                if high is not None and not number <= high:
                    raise InputError(f"{flag(f.name)} is {number}: it must be at most {high}")
            if typing.get_origin(hints[f.name]) is Literal and value not in typing.get_args(hints[f.name]):
                raise InputError(
                    f"{flag(f.name)} is {value!r}: choose one of {', '.join(typing.get_args(hints[f.name]))}"
                )


@dataclass(frozen=True)
class Schema(_Checked):
    """Which obs column means what. Only what the task has is given.

    A condition and its control is a perturbation; time alone is a differentiation; contexts alone, or nothing, is
    plain generation.
    """

    condition_key: str | None = _setting(None, "obs column of the condition; parts of a combination are joined by '+'")
    control: str | None = _setting(None, "value of the condition column that marks control cells")
    context_keys: tuple[str, ...] = _setting((), "obs column of a context (cell type, donor, line); may be repeated")
    time_key: str | None = _setting(None, "obs column of the time, a number")
    smiles_key: str | None = _setting(None, "obs column of the drugs' SMILES (needs the extra 'drug')")
    dose_key: str | None = _setting(None, "obs column of the dose: one number, or one a part, joined by '+'")
    direction_key: str | None = _setting(None, "obs column of the direction: knock-out, knock-down or activation")
    embeddings: str | None = _setting(
        None,
        "the parts' own vectors: a CSV file (name, then numbers), FILE.npz (arrays names and vectors, or one a name) "
        "or FILE.h5ad:KEY (of uns)",
    )
    fingerprint: Literal["feature-morgan", "morgan"] = _setting(
        "feature-morgan", "what SMILES are turned into: upstream's fingerprint of features, or of atoms"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control is not None and self.condition_key is None:
            raise InputError("--control is given without --condition-key: name the obs column that holds it")
        if self.condition_key is not None and self.control is None:
            raise InputError(
                "--condition-key is given without --control: name the value that marks control cells, or pass the "
                "column as --context-key if there are none"
            )
        for name in ("smiles_key", "dose_key", "direction_key", "embeddings"):
            if getattr(self, name) is not None and self.condition_key is None:
                raise InputError(
                    f"{flag(name)} is given without --condition-key: it describes a condition (name the columns too, "
                    "also where a file remembers them: options replace what it says)"
                )
        twice = [key for key in self.context_keys if key in (self.condition_key, self.time_key)]
        if twice:
            of = "--condition-key" if twice[0] == self.condition_key else "--time-key"
            raise InputError(f"--context-key and {of} both name {twice[0]!r}: a column has one meaning")
        if self.embeddings is not None and self.smiles_key is not None:
            raise InputError(
                "--embeddings and --smiles-key are both given: a condition part is described by one of them"
            )
        if self.fingerprint != "feature-morgan" and self.smiles_key is None:
            raise InputError("--fingerprint is given without --smiles-key: it describes drugs")

    @property
    def columns(self) -> tuple[str, ...]:
        """The obs columns that a data set must have, and a query may have, in a fixed order."""
        keys = (
            self.condition_key,
            *self.context_keys,
            self.time_key,
            self.smiles_key,
            self.dose_key,
            self.direction_key,
        )
        return tuple(dict.fromkeys(k for k in keys if k is not None))


@dataclass(frozen=True)
class Config(_Checked):
    """Settings of the model and of its training, saved in the run's config.json."""

    n_latent: int = _setting(64, "size Z of the semantic latent", low=1)
    width: int = _setting(512, "width of the denoiser", low=1)
    n_blocks: int = _setting(3, "residual blocks of the denoiser", low=1)
    n_axes: int = _setting(32, "axes of the cells' covariance that the denoiser starts from", low=1)
    n_train_steps: int = _setting(1000, "optimiser steps", low=1)
    batch_size: int = _setting(256, "cells a step", low=2)
    micro_batch_size: int | None = _setting(
        None, "cells a backward pass, where a whole batch does not fit the memory (None: all at once)", low=2
    )
    learning_rate: float = _setting(1e-3, "highest learning rate, after the warm-up", low=0.0)
    n_warmup_steps: int = _setting(100, "steps over which the learning rate rises from 0", low=0)
    weight_decay: float = _setting(0.01, "AdamW's weight decay", low=0.0)
    max_grad_norm: float | None = _setting(1.0, "the gradient's norm is clipped here (None: not at all)", low=1e-6)
    ema_decay: float = _setting(
        0.995,
        "decay of the weights' moving average, which is what is saved (upstream's: beside the newest)",
        low=0.0,
        high=0.9999999,
    )
    further_ema_decays: tuple[float, ...] = _setting(
        (), "further averages to keep, as model_DECAY.pt (upstream's only)", low=0.0, high=0.9999999
    )
    validation_fraction: float = _setting(
        0.1, "share of the training cells kept for the validation loss", low=0.0, high=0.5
    )
    validate_every_steps: int = _setting(100, "steps between two validation losses", low=1)
    log_every_steps: int = _setting(20, "steps between two lines of metrics.jsonl", low=1)
    save_every_steps: int = _setting(200, "steps between two saves of the resumable state, at most", low=1)
    save_every_minutes: float = _setting(10.0, "minutes between two saves of the resumable state, at most", low=0.0)
    patience: int | None = _setting(
        5,
        "stop when the validation loss has not fallen this many times in a row (None: never; this project's "
        "architecture only)",
        low=1,
    )
    pairing: Literal["random", "optimal-transport"] = _setting(
        "random",
        "how a batch's treated cells meet source cells of their context: at random, or so that the squared distances "
        "are least (this project's architecture only)",
    )
    normalize: bool = _setting(False, "X holds raw counts: scale each cell to --target-sum and take log1p")
    target_sum: float = _setting(1e4, "counts a cell after --normalize", low=1.0, high=1e9)
    total_counts_key: str | None = _setting(
        None, "obs column of each cell's total counts, where X holds only some of the genes (used by --normalize)"
    )
    architecture: Literal["squidiff", "upstream"] = _setting(
        "squidiff", "this project's network, or upstream's with its loss and its schedules"
    )
    n_diffusion_steps: int = _setting(1000, "steps of the diffusion (upstream's only)", low=2, high=100_000)
    noise_schedule: Literal["linear", "cosine"] = _setting("linear", "how noise grows over the steps (upstream's only)")
    seed: int = _setting(0, "seed of weights, batches and noise", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {
            "squidiff": ("n_axes", "pairing"),
            "upstream": ("n_diffusion_steps", "noise_schedule", "further_ema_decays"),
        }
        others = (name for architecture, names in own.items() if architecture != self.architecture for name in names)
        for name in others:
            if getattr(self, name) != getattr(Config, name):
                raise InputError(f"{flag(name)} has no use with --architecture {self.architecture}: leave it out")


@dataclass(frozen=True)
class Compute(_Checked):
    """Where work is done, by how many processes, and in which precision: what comes out is the same but for rounding.

    torchrun starts the processes itself, and `devices` and `nodes` are then what it says; of SLURM's srun they are the
    tasks of a machine and the machines.
    """

    device: str = _setting("auto", "auto (an accelerator if there is one), cpu, or a name that torch knows")
    devices: int = _setting(
        1, "devices of each machine, a process each; on a CPU, processes that share its cores", low=1
    )
    nodes: int = _setting(1, "machines, on each of which the command is started", low=1)
    precision: Literal["32", "bf16-mixed", "16-mixed"] = _setting(
        "32", "of the training's products: float32, or a half-width type where weights stay float32"
    )
    strategy: Literal["ddp", "fsdp"] = _setting(
        "ddp", "of several processes: each holds the whole network (ddp), or its share of it (fsdp)"
    )


def require_even(config: Config, n_processes: int) -> None:
    """Raises InputError where a batch cannot be shared evenly."""
    if config.batch_size % n_processes:
        raise InputError(f"--batch-size {config.batch_size} cannot be shared evenly by {n_processes} processes")


@dataclass(frozen=True)
class Sampling(_Checked):
    """Settings of a prediction."""

    sampler: Literal["dpmpp_2m", "ddim"] = _setting("dpmpp_2m", "how the noise is removed")
    n_sample_steps: int = _setting(20, "network evaluations a cell", low=1, high=10_000)
    strength: float = _setting(
        0.4,
        "how far source cells are noised before they are generated anew: near 0 keeps them, 1 starts from pure "
        "noise, as upstream's architecture always does; plain generation takes 0.9 or more, and few "
        "source cells that are used many times up to 0.75",
        low=0.01,
        high=1.0,
    )
    first_level: bool = _setting(
        False, "leave out the diffusion: source cells moved to the predicted mean, to see what each level gains"
    )
    cells_per_batch: int = _setting(1024, "cells generated at once", low=1)
    seed: int = _setting(0, "seed of the noise and of the choice of source cells", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sampler", "n_sample_steps", "strength") if self.first_level else ():
            if getattr(self, name) != getattr(Sampling, name):
                raise InputError(f"{flag(name)} has no use with --first-level, which leaves out the diffusion")


@dataclass(frozen=True)
class Preparation(_Checked):
    """Settings of `squidiff prepare`."""

    normalize: bool = _setting(False, "X holds raw counts: scale each cell to --target-sum and take log1p")
    target_sum: float = _setting(1e4, "counts a cell after --normalize", low=1.0, high=1e9)
    total_counts_key: str | None = _setting(
        None, "obs column of each cell's total counts, where X holds only some of the genes (used by --normalize)"
    )
    layer: str | None = _setting(None, "take X from this layer")
    use_raw: bool = _setting(False, "take X and the genes from .raw")
    n_genes: int | None = _setting(
        None, "keep this many of the most variable genes, chosen on training cells only", low=1
    )
    genes_by: Literal["variance", "dispersion"] = _setting(
        "variance",
        "how --n-genes chooses: by the variance of log values, or by scanpy's default, the dispersion among genes of "
        "like means, which takes many that hardly a cell shows",
    )
    genes: str | None = _setting(None, "keep the genes of this file, one name a line")
    keep: tuple[str, ...] = _setting((), "genes that --n-genes keeps in any case, separated by ','; may be repeated")
    drop: tuple[str, ...] = _setting((), "leave out cells: COLUMN=VALUE (COLUMN= for an empty value); may be repeated")
    hold_out: tuple[str, ...] = _setting(
        (),
        "cells to hold out: COLUMN=VALUE, or several that must all hold, separated by ','; put a backslash "
        "before a comma in a value; may be repeated",
    )
    test_fraction: float = _setting(0.0, "share to hold out at random, of what --split names", low=0.0, high=0.9)
    split: Literal["random", "condition", "context", "drug", "scaffold", "combination", "time"] = _setting(
        "random",
        "what --test-fraction is a share of: each population's cells (random), or whole conditions, contexts (their "
        "control cells stay), drugs in any combination, drugs of one scaffold, combinations, times but the first",
    )
    max_cells: int | None = _setting(None, "keep at most this many cells a population, drawn at random", low=1)
    seed: int = _setting(0, "seed of the random choices", low=0, high=MAX_SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(
            self, "keep", tuple(gene.strip() for text in self.keep for gene in text.split(",") if gene.strip())
        )
        if self.keep and self.n_genes is None:
            raise InputError("--keep is given without --n-genes: it names genes that are kept besides the chosen ones")
        if self.genes_by != "variance" and self.n_genes is None:
            raise InputError("--genes-by is given without --n-genes: it says how these are chosen")
        if self.genes is not None and self.n_genes is not None:
            raise InputError("--genes and --n-genes are both given: genes are named or chosen")
        if self.layer is not None and self.use_raw:
            raise InputError("--layer and --use-raw are both given: X can be taken from one of them")
        if self.split != "random" and self.test_fraction == 0:
            raise InputError(f"--split {self.split} is given without --test-fraction: name the share to hold out")


Settings = TypeVar("Settings", Schema, Config, Compute, Sampling, Preparation)


def settings_to_json(settings: Schema | Config | Compute | Sampling | Preparation) -> dict[str, Any]:
    """The settings as a JSON-able dictionary (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


def settings_from_json(kind: type[Settings], values: dict[str, Any]) -> Settings:
    """The inverse of `settings_to_json`. Raises InputError on an unknown name or a value of another type."""
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(kind)})
    if unknown:
        raise InputError(f"unknown setting {', '.join(unknown)} in {kind.__name__}: it was written by another version")
    return kind(**values)


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """The value as its declared type. Raises InputError when it is of another, or not finite."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(h for h in typing.get_args(hint) if h is not types.NoneType)
    if typing.get_origin(hint) is Literal:
        return value
    if typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)) or (kind is str and not all(isinstance(v, str) for v in value)):
            raise InputError(
                f"{flag(name)} is {value!r}: it must be a tuple of {'texts' if kind is str else 'numbers'}"
            )
        return tuple(_coerce(name, kind, v) for v in value)
    wanted = {int: numbers.Integral, float: numbers.Real}.get(hint, hint)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{flag(name)} is {value!r}: it must be of type {hint.__name__}")
    if hint is float and not is_finite(value):
        raise InputError(f"{flag(name)} is {value}: it must be finite")
    return hint(value)


class NoiseLevel(NamedTuple):
    """x_t = alpha x0 + sigma eps, with alpha^2 + sigma^2 = 1. Scalars, or tensors of shape (B, 1)."""

    alpha: torch.Tensor
    sigma: torch.Tensor


class Prediction(NamedTuple):
    """What a denoiser says of x_t (B x G): the clean cell and the noise; x_t = alpha x0 + sigma eps holds exactly."""

    x0: torch.Tensor
    eps: torch.Tensor


class Batch(NamedTuple):
    """The tensors of one training step, in the unit of the data: B cells, G genes, C condition features."""

    target: torch.Tensor
    """B x G, the cells to generate."""
    source: torch.Tensor
    """B x G, a cell of the population that the prediction starts from."""
    anchor: torch.Tensor
    """B x G, the mean of the target's population."""
    condition: torch.Tensor
    """B x C"""


class ShownBatch(NamedTuple):
    """The tensors of one training step of upstream's architecture, in the unit of the data."""

    target: torch.Tensor
    """B x G, the cells to generate."""
    shown: torch.Tensor
    """What the encoder is shown: the target itself (B x G), or a control cell and a drug encoding (B x (G + D))."""


PRESETS = {
    "squidiff": Config(),
    "upstream": Config(
        architecture="upstream",
        n_latent=60,
        width=2048,
        n_train_steps=100_000,
        batch_size=64,
        learning_rate=1e-4,
        n_warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=None,
        ema_decay=0.9999,
        validation_fraction=0.0,
        log_every_steps=100,
        save_every_steps=10_000,
    ),
}
"""Settings that go together, by name: this project's, and those that upstream trains with."""
