"""Upstream's flags of training, and the settings that they ask for."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from math import gcd, isfinite
from typing import Any, NamedTuple

from squidiff.config import PRESETS, Config, InputError, flag

Say = Callable[[str], None]


class Flag(NamedTuple):
    """One of upstream's flags."""

    default: Any
    help: str
    refusal: str | None = None
    """Why another value than the default is refused; None where it is not."""
    notice: str | None = None
    """What is said when it is given; None where it does what it says."""


NO_EFFECT = "has no effect, as in upstream: it is ignored"
_BOUND = "upstream's samplers cannot use such a model"
FLAGS = {
    "data_path": Flag("", "the .h5ad file of training cells; obs has Group and, with drugs, SMILES and dose"),
    "control_data_path": Flag("", "with drugs: the .h5ad file of control cells, paired by row"),
    "logger_path": Flag("", "the folder of log.txt and progress.csv, and of the model without --resume_checkpoint"),
    "resume_checkpoint": Flag("", "the folder of the model; one that holds an unfinished run is gone on with"),
    "gene_size": Flag(100, "number of genes"),
    "output_dim": Flag(100, "number of genes, again"),
    "num_layers": Flag(3, "blocks of the denoiser"),
    "use_drug_structure": Flag(False, "show the encoder control cells and drugs"),
    "comb_num": Flag(1, "nothing", notice="is not needed: drugs are told apart at '+' whatever it says"),
    "batch_size": Flag(64, "cells a step"),
    "lr": Flag(1e-4, "first learning rate"),
    "lr_anneal_steps": Flag(1e5, "optimiser steps, over which the learning rate falls to 0"),
    "weight_decay": Flag(0.0, "AdamW's weight decay"),
    "ema_rate": Flag("0.9999", "decays of the weights' moving averages, separated by commas"),
    "log_interval": Flag(1e4, "steps between two rows of the log"),
    "save_interval": Flag(1e4, "steps between two saves"),
    "diffusion_steps": Flag(1000, "steps of the diffusion"),
    "noise_schedule": Flag("linear", "linear or cosine"),
    "schedule_sampler": Flag("uniform", "how steps are drawn", "it crashes upstream with any numpy since 1.24"),
    "microbatch": Flag(-1, "cells a backward pass, where a batch does not fit the memory; -1: all at once"),
    "learn_sigma": Flag(False, "learn variances", f"DDIM does not use them, and {_BOUND}"),
    "predict_xstart": Flag(False, "predict x0 in place of eps", _BOUND),
    "use_kl": Flag(False, "train on the variational bound", _BOUND),
    "rescale_learned_sigmas": Flag(False, "weigh the variational bound", _BOUND),
    "rescale_timesteps": Flag(False, "scale steps to 1,000", f"{_BOUND}; with 1,000 steps it changes nothing"),
    "timestep_respacing": Flag("", "train on some steps", "give --steps to sample_squidiff.py instead"),
    "use_encoder": Flag(True, "condition on z_sem", "a model without an encoder has nothing to condition on"),
    "class_cond": Flag(False, "condition on Group", "it crashes upstream wherever it is used"),
    "drug_dimension": Flag(1024, "bits of a fingerprint", "upstream encodes drugs in 1,024 bits, whatever it says"),
    "use_fp16": Flag(False, "half precision", "it crashes upstream at its first step"),
    "fp16_scale_growth": Flag(1e-3, "loss scaling", notice=NO_EFFECT),
    "num_channels": Flag(128, "nothing", notice=NO_EFFECT),
    "dropout": Flag(0.0, "nothing", notice=NO_EFFECT),
    "use_checkpoint": Flag(False, "nothing", notice=NO_EFFECT),
    "use_scale_shift_norm": Flag(True, "nothing", notice=NO_EFFECT),
    "use_ddim": Flag(True, "nothing in training", notice=NO_EFFECT),
}
"""Every flag that upstream's newest commit declares, with its default."""


_FLAG_OF = {
    "n_blocks": "num_layers",
    "n_train_steps": "lr_anneal_steps",
    "batch_size": "batch_size",
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "ema_decay": "ema_rate",
    "further_ema_decays": "ema_rate",
    "micro_batch_size": "microbatch",
    "n_diffusion_steps": "diffusion_steps",
    "noise_schedule": "noise_schedule",
    "log_every_steps": "log_interval",
    "save_every_steps": "save_interval",
}
"""Upstream's flag for each of our settings."""


def settings(values: Mapping[str, Any], given: Sequence[str], say: Say, *, seed: int) -> Config:
    """The configuration that upstream's flags ask for. Raises InputError for one that is refused.

    `given` names the flags that were given; those without effect are told with `say`. A setting out of its range is
    called as ours; see `in_upstreams_flags`.
    """
    for name in given:
        known = FLAGS[name]
        if name == "rescale_timesteps" and values["diffusion_steps"] == 1000:
            known = known._replace(refusal=None, notice=NO_EFFECT)
        if known.refusal is not None and values[name] != known.default:
            raise InputError(f"--{name} {values[name]} is refused: {known.refusal}")
        if known.notice is not None:
            say(f"--{name} {known.notice}")
    if values["output_dim"] != values["gene_size"]:
        raise InputError(
            f"--output_dim is {values['output_dim']}, --gene_size {values['gene_size']}: both are the number of genes"
        )
    try:
        ema_decay, *further = (float(rate) for rate in str(values["ema_rate"]).split(","))
    except ValueError:
        raise InputError(f"--ema_rate is {values['ema_rate']!r}: it must be numbers such as 0.9999,0.999") from None
    n_steps, log, save = (whole(name, values[name]) for name in ("lr_anneal_steps", "log_interval", "save_interval"))
    return dataclasses.replace(
        PRESETS["upstream"],
        n_blocks=values["num_layers"],
        n_train_steps=n_steps,
        batch_size=values["batch_size"],
        learning_rate=values["lr"],
        weight_decay=values["weight_decay"],
        ema_decay=ema_decay,
        further_ema_decays=tuple(further),
        micro_batch_size=values["microbatch"] if values["microbatch"] > 0 else None,
        log_every_steps=_steps_of_a_record(n_steps, gcd(log, save)),
        save_every_steps=save,
        n_diffusion_steps=values["diffusion_steps"],
        noise_schedule=values["noise_schedule"],
        seed=seed,
    )


def in_upstreams_flags(error: InputError) -> InputError:
    """The same, with our flags called as upstream's."""
    theirs = {flag(field): f"--{name}" for field, name in _FLAG_OF.items()}
    return InputError(re.sub(r"--[a-z-]+", lambda ours: theirs.get(ours[0], ours[0]), str(error)))


def _steps_of_a_record(n_steps: int, interval: int) -> int:
    """The most steps that divide the interval, so that it ends with a record, for a thousand records or more."""
    return next(n for n in range(max(1, min(interval, n_steps // 1000)), 0, -1) if interval % n == 0)


def whole(name: str, value: float) -> int:
    """A flag's number, which upstream reads as 1e5. Raises InputError when it is not whole or less than 1."""
    if not (isfinite(value) and value >= 1 and value == int(value)):
        raise InputError(f"--{name} is {value:g}: it must be a whole number of 1 or more")
    return int(value)
