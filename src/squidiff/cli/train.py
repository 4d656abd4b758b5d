"""squidiff train."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from squidiff.cli.options import ComputeOptions, ConfigOptions, OnDisk, SchemaOptions, given
from squidiff.cli.show import progress, refuse_inside, say, say_unused, say_warnings, say_where
from squidiff.config import Compute, Config, InputError, Schema, flag, require_even

if TYPE_CHECKING:
    from squidiff.train.run import Record

KEPT = (
    *("n_latent", "width", "n_blocks", "n_axes", "normalize"),
    *("target_sum", "total_counts_key", "architecture", "n_diffusion_steps", "noise_schedule"),
)
"""Settings that a run keeps that is trained further."""


def train(
    data: Annotated[Path, Parameter(help="an .h5ad file of training cells")],
    /,
    *,
    out: Annotated[Path, Parameter(help="the run folder to write")],
    resume: Annotated[bool, Parameter(help="go on with the run in --out where it stopped")] = False,
    start: Annotated[
        Path | None,
        Parameter(
            name="--from",
            help="a finished run to train further on these cells; its schema, network and normalisation are kept",
        ),
    ] = None,
    preset: Annotated[
        Literal["squidiff", "upstream"],
        Parameter(help="settings that go together; upstream: those of Squidiff 1.0.8. Options given beside it win"),
    ] = "squidiff",
    settings: Annotated[
        Path | None,
        Parameter(
            help="a TOML file with a table [config] of settings, as `squidiff tune` writes; options take precedence"
        ),
    ] = None,
    schema: SchemaOptions = Schema(),
    config: ConfigOptions = Config(),
    compute: ComputeOptions = Compute(),
    on_disk: OnDisk = None,
    logger: Annotated[
        Literal["tensorboard"] | None,
        Parameter(help="log into OUT/tensorboard too, beside metrics.jsonl (needs the extra 'tensorboard')"),
    ] = None,
) -> None:
    """Train a model and save it in a run folder.

    Without schema options the file's own are taken, if squidiff prepare wrote it with some.
    """
    require_even(config, compute.devices * compute.nodes)  # before torch is loaded and the processes are started
    from squidiff.estimator import Squidiff
    from squidiff.estimator.run_folder import WEIGHTS
    from squidiff.report.plots import save, training_loss
    from squidiff.report.tables import training_metrics
    from squidiff.train.saving import has_state
    from squidiff.train.tensorboard import to_tensorboard

    earlier = None
    if start is not None:
        if given(schema) is not None:
            raise InputError("schema options have no use with --from: the run knows its own")
        if preset != "squidiff":
            raise InputError("--preset has no use with --from: the run knows its own")
        refuse_inside(start, out)
        earlier = Squidiff.load(start, compute)
        for name in KEPT:
            if getattr(config, name) not in (getattr(Config(), name), getattr(earlier.config, name)):
                raise InputError(f"{flag(name)} has no use with --from: the run's is kept")
        kept = {name: getattr(earlier.config, name) for name in KEPT}
        schema, config = earlier.schema, dataclasses.replace(config, **kept)
    model = Squidiff(given(schema), config, compute)
    if resume and not has_state(out) and not (out / WEIGHTS).exists():
        say(f"{out} holds no saved state: training starts at its first step")
    model.processes.by_main(lambda: say_where(data, on_disk))
    if start is None:
        model.processes.by_main(lambda: say_unused(schema, data))
    with (
        progress("training", config.n_train_steps) as advance,
        to_tensorboard(out / logger) if logger is not None and model.processes.is_main else nullcontext(None) as log,
    ):

        def on_record(record: Record) -> None:
            advance(record.step, record.live)
            if log is not None:
                log(record)

        model.fit(
            data,
            out=out,
            resume=resume,
            on_record=on_record,
            on_disk=on_disk,
            on_check=say_warnings,
            on_note=say,
            start=earlier,
        )
    if not model.processes.is_main:
        return
    is_upstream = config.architecture == "upstream"
    figure = training_loss(training_metrics(out), "eps" if is_upstream else "v")
    save(figure, out / "training_loss.png")
    if is_upstream:
        save(figure, out / "loss_plot.pdf")
    last = model.history[-1]
    say(f"trained on {model.device} in {model.provenance['seconds']:g} s: {last}")
    say(f"run: {out}")
