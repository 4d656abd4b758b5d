"""squidiff predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from squidiff.cli.options import (
    Device,
    Devices,
    Nodes,
    OnDisk,
    OneQuery,
    Queries,
    SamplingOptions,
    SchemaOptions,
    Source,
    given,
)
from squidiff.cli.show import progress, refuse_inside, refuse_overwriting, require_ending, say, say_far, say_where
from squidiff.config import Compute, InputError, Sampling, Schema
from squidiff.files import require_writable

if TYPE_CHECKING:
    import anndata as ad

    from squidiff.estimator import Squidiff


def predict(
    run: Annotated[Path | None, Parameter(help="a run folder; none with --baseline")] = None,
    /,
    *,
    source: Source,
    out: Annotated[
        Path, Parameter(help="the .h5ad file of predicted cells to write, or a new folder with --cells-per-shard")
    ],
    queries: Queries = None,
    query: OneQuery = (),
    baseline: Annotated[
        str | None,
        Parameter(
            help="predict by a simple baseline, such as 'mean shift' or 'weighted shift, zeros kept'; needs no run"
        ),
    ] = None,
    schema: SchemaOptions = Schema(),
    sampling: SamplingOptions = Sampling(),
    paired: Annotated[
        bool, Parameter(help="each source cell's own future, by inversion: one predicted cell for each, no noise drawn")
    ] = False,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    on_disk: OnDisk = None,
    cells_per_shard: Annotated[
        int | None,
        Parameter(help="write a folder of .h5ad files of so many cells each, as they are made: more than memory holds"),
    ] = None,
) -> None:
    """Generate the cells of each query.

    The schema options are only for --baseline, and not needed if `squidiff prepare` wrote the source: a run knows its
    own, and so does such a file.
    """
    from squidiff.data.shards import join, write_shards
    from squidiff.data.table import write_cells

    refuse_overwriting(source, out, queries)
    refuse_inside(run, out)
    _require_writable(out, cells_per_shard)
    if (run is None) == (baseline is None):
        raise InputError("give a run folder, or --baseline and a name: one of the two")
    asked = read_asked(queries, query)
    if baseline is not None:
        from squidiff.workflows.baseline import predict_baseline

        if on_disk is not None or cells_per_shard is not None:
            raise InputError("--on-disk and --cells-per-shard go with a run: a baseline holds all cells in memory")
        if paired or sampling != Sampling(seed=sampling.seed):
            raise InputError("of how cells are generated --seed alone goes with --baseline: it has no diffusion")
        if devices * nodes != 1:
            raise InputError("--devices and --nodes go with a run: a baseline is predicted by one process")
        predicted = predict_baseline(baseline, asked, source, given(schema), seed=sampling.seed)
        write_cells(out, predicted)
        say(f"{predicted.n_obs:,} predicted cells of {predicted.n_vars:,} genes: {out}")
        return

    from squidiff.data.queries import FAR
    from squidiff.estimator import Squidiff

    if given(schema) is not None:
        raise InputError("schema options go with --baseline only: the run knows its own")
    model = Squidiff.load(Path(str(run)), Compute(device, devices, nodes))
    n_queries = count_known(model, asked, queries)
    model.processes.by_main(lambda: say_where(source, on_disk))
    anchors, far = set[str](), set[str]()

    def noted(part: ad.AnnData) -> ad.AnnData:
        anchors.update(part.obs["anchor"])
        far.update(part.obs.get(FAR, ()))  # upstream's architecture does not tell
        return part

    with progress("predicting", n_queries) as advance:
        parts = model.predict_parts(
            asked, source, sampling, paired=paired, on_query=lambda i, n: advance(i), on_disk=on_disk
        )
        if not model.processes.is_main:
            for _ in parts:  # nothing comes: what this process makes, the main one is given
                pass
            return
        if cells_per_shard is None:
            predicted = join(map(noted, parts))
            n_cells = predicted.n_obs
        else:
            n_cells = write_shards(out, map(noted, parts), cells_per_shard)
    if cells_per_shard is None:
        write_cells(out, predicted)
    say(f"the mean response is from: {', or '.join(sorted(anchors))}")
    say_far(far)
    say(f"{n_cells:,} predicted cells of {len(model.fitted.genes):,} genes: {out}")


def read_asked(queries: Path | None, query: tuple[str, ...]) -> Any:
    """What --queries or --query asks for: the file, or a table."""
    import pandas as pd

    from squidiff.data.splits import parse_rule

    if (queries is None) == (not query):
        raise InputError("give populations to predict by --queries FILE.csv or by --query COLUMN=VALUE: one of the two")
    return queries if queries is not None else pd.DataFrame([parse_rule(q) for q in query])


def count_known(model: Squidiff, asked: Any, queries: Path | None) -> int:
    """How many populations are asked for.

    Raises InputError for a column of --query that the model knows nothing of; a file may have such notes, and says so.
    """
    from squidiff.data.queries import read_queries, require_known

    if queries is None:
        model.processes.together(lambda: require_known(asked, model.schema))
    found = read_queries(asked, model.schema)
    notes = [name for name in found[0].columns if name not in model.schema.columns]
    if notes:
        told = f"{queries} has columns that the model does not use, which are kept as notes: {', '.join(notes)}"
        model.processes.by_main(lambda: say(told))
    return len(found)


def _require_writable(out: Path, cells_per_shard: int | None) -> None:
    if cells_per_shard is None:
        require_ending(out, ".h5ad")
        require_writable(out)
        return

    from squidiff.data.shards import SHARDS, require_empty

    if cells_per_shard < 1:
        raise InputError(f"--cells-per-shard is {cells_per_shard}: it must be at least 1")
    require_empty(out)
    require_writable(out / SHARDS)
