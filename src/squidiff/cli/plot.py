"""squidiff plot."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from squidiff.cli.options import SchemaOptions, given
from squidiff.cli.show import refuse_overwriting, say
from squidiff.config import InputError, Schema, flag
from squidiff.files import require_writable

Kind = Literal[
    *("loss", "quality", "violins", "embedding", "response", "scores", "compared", "dose", "trajectory", "latent")
]


def plot(
    kind: Annotated[Kind, Parameter(help="what to draw")],
    files: Annotated[
        tuple[Path, ...],
        Parameter(
            help="loss: RUN; latent: RUN CELLS; scores, compared: the folder or metrics.csv that evaluate or compare "
            "wrote; quality, violins, embedding: PRED TRUTH; response, dose, trajectory: PRED, and TRUTH if it is known"
        ),
    ],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(help="FILE.png, .pdf or .svg; without an ending both FILE.png and FILE.pdf", show_default=False),
    ] = None,
    train: Annotated[Path | None, Parameter(help="the .h5ad file of training cells, which hold the control")] = None,
    population: Annotated[
        tuple[str, ...],
        Parameter(help="the population, as evaluate names it; of response and embedding, may be repeated"),
    ] = (),
    gene: Annotated[tuple[str, ...], Parameter(help="a gene to show (default: the data choose); may be repeated")] = (),
    metric: Annotated[
        tuple[str, ...], Parameter(help="a metric to show (default: the main ones); may be repeated")
    ] = (),
    method: Annotated[
        tuple[str, ...], Parameter(help="pca or umap (embedding); a prediction or baseline (scores, compared)")
    ] = (),
    color: Annotated[str | None, Parameter(help="the obs column to colour by (latent)")] = None,
    seed: Annotated[int | None, Parameter(help="seed of the choice of cells and of UMAP (embedding, latent)")] = None,
    schema: SchemaOptions = Schema(),
) -> None:
    """Draw one picture of a run, of a prediction or of a table of scores, as PNG and vector files."""
    from squidiff.report.plots import save
    from squidiff.workflows.pictures import KINDS

    picture = KINDS[kind]
    out = Path(kind) if out is None else out
    paths = [out] if out.suffix else [out.with_name(f"{out.name}{suffix}") for suffix in (".png", ".pdf")]
    for path in paths:
        for file in (*files, train):  # one may be read twice
            refuse_overwriting(file, path)
        require_writable(path)
    options = {
        "train": train,
        "population": population,
        "gene": gene,
        "metric": metric,
        "method": method,
        "color": color,
        "seed": seed,
        "schema": given(schema),
    }
    save(picture(*_files(kind, picture, files), **_options(kind, picture, options)), *paths)
    say(f"{', '.join(map(str, paths))}")


def _files(kind: str, picture: Callable[..., object], files: tuple[Path, ...]) -> tuple[Path, ...]:
    """The files, as many as the picture takes. Raises InputError for too few or too many."""
    parameters = [p for p in inspect.signature(picture).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    least = sum(p.default is p.empty for p in parameters)
    if not least <= len(files) <= len(parameters):
        names = " ".join(p.name.upper() if p.default is p.empty else f"[{p.name.upper()}]" for p in parameters)
        raise InputError(f"plot {kind} takes {names}: {len(files)} file{'s are' if len(files) != 1 else ' is'} named")
    return files


def _options(kind: str, picture: Callable[..., object], options: dict[str, Any]) -> dict[str, Any]:
    """What was given, by the picture's names: several genes are its `genes`, one population its `population`.

    Raises InputError for an option that has no use with it, or is given too often or not at all.
    """
    parameters = inspect.signature(picture).parameters
    chosen: dict[str, Any] = {}
    for option, value in options.items():
        if value in (None, ()):
            continue
        if f"{option}s" in parameters:
            chosen[f"{option}s"] = value
        elif option not in parameters:
            raise InputError(f"{flag(option)} has no use with plot {kind}: leave it out")
        elif isinstance(value, tuple) and len(value) > 1:
            raise InputError(f"{flag(option)} is given {len(value)} times: plot {kind} takes one")
        else:
            chosen[option] = value[0] if isinstance(value, tuple) else value
    needed = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    for name in needed:
        if name not in chosen:
            raise InputError(f"plot {kind} needs {flag(name)}")
    return chosen
