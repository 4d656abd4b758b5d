"""squidiff convert, squidiff export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from squidiff.cli.options import SchemaOptions, given
from squidiff.cli.show import refuse_inside, say
from squidiff.config import PRESETS, Schema
from squidiff.files import require_writable


def convert(
    checkpoint: Annotated[Path, Parameter(help="a checkpoint of upstream's Squidiff: model.pt, model_0.9999.pt")],
    /,
    *,
    genes: Annotated[Path, Parameter(help="names of its genes, in their order: a text file, one a line, or an .h5ad")],
    out: Annotated[Path, Parameter(help="the run folder to write")],
    n_diffusion_steps: Annotated[int | None, Parameter(help="of its training, if not 1,000")] = None,
    noise_schedule: Annotated[
        Literal["linear", "cosine"] | None, Parameter(help="of its training, if not linear")
    ] = None,
    schema: SchemaOptions = Schema(),
) -> None:
    """Turn a checkpoint of upstream's Squidiff into a run, for every command that takes one.

    Without schema options a model with drugs has upstream's columns (SMILES, dose), another is for plain generation.
    """
    from squidiff.legacy.convert import convert as read

    levels = {"n_diffusion_steps": n_diffusion_steps, "noise_schedule": noise_schedule}
    model = read(checkpoint, genes, given(schema), **levels)
    model.save(out)
    sizes = model.fitted.network.sizes
    variant = f"with drug structure ({sizes.n_fingerprint:,} bits)" if sizes.n_fingerprint else "without drugs"
    say(f"{sizes.n_genes:,} genes, width {sizes.width:,}, {sizes.n_blocks} blocks, {variant}")
    say(f"run: {out}")


def export(
    run: Annotated[Path, Parameter(help="a run folder of upstream's architecture")],
    /,
    *,
    upstream: Annotated[Path, Parameter(help="the checkpoint to write, such as model.pt")],
) -> None:
    """Write a run of upstream's architecture as a checkpoint that upstream's Squidiff loads."""
    from squidiff.estimator import Squidiff
    from squidiff.legacy.convert import export as write

    refuse_inside(run, upstream)
    require_writable(upstream)
    model = Squidiff.load(run, "cpu")
    write(model, upstream)
    say(f"checkpoint: {upstream}")
    levels, usual = (
        f"{config.n_diffusion_steps:,} {config.noise_schedule} steps" for config in (model.config, PRESETS["upstream"])
    )
    if levels != usual:
        say(f"it was trained with {levels}: a checkpoint does not tell, and upstream's sampler takes {usual}")
