"""squidiff check, squidiff prepare."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from squidiff.cli.options import PreparationOptions, SchemaOptions, given
from squidiff.cli.show import refuse_overwriting, require_ending, say, say_unused, say_warnings, show_table
from squidiff.config import InputError, Preparation, Schema, as_flags
from squidiff.files import require_writable, sweep


def _remembered(files: Sequence[Path]) -> Schema | None:
    """What files that are joined remember, None without. Raises InputError where they differ."""
    from squidiff.data.table import remembered_schema

    known = {file: schema for file in files if (schema := remembered_schema(file)) is not None}
    if len(set(known.values())) > 1:
        told = "; ".join(f"{file}: {as_flags(schema)}" for file, schema in known.items())
        raise InputError(f"the files remember different columns ({told}): name those of all by options")
    return next(iter(known.values()), None)


def check(
    data: Annotated[Path, Parameter(help="an .h5ad file")],
    /,
    *,
    schema: SchemaOptions = Schema(),
    normalize: Annotated[bool, Parameter(help="X is meant to hold raw counts")] = False,
    held_out: Annotated[Path | None, Parameter(help="an .h5ad file of held-out cells, to find what both share")] = None,
    as_json: Annotated[bool, Parameter(name="--json", help="print the findings as JSON")] = False,
) -> None:
    """Find what is wrong with a data set, and say what to do. Exit code 2 when there is an error."""
    from squidiff.data.check import check as examine

    if not as_json:
        say_unused(schema, data)
    report = examine(data, given(schema), normalize=normalize, held_out=held_out)
    if as_json:
        say(json.dumps(report.to_json()))
    else:
        say(f"{data}: {report.n_cells:,} cells, {report.n_genes:,} genes")
        say(f"X holds: {report.unit}; genes have: {report.gene_names}")
        if report.findings:
            rows = [(f.severity, f.what, f.where, f.count, f.remedy) for f in report.findings]
            show_table(("", "what", "where", "how many", "what to do"), rows)
            for finding in report.findings:
                if finding.command:
                    say(f"{finding.what}:\n    {finding.command}")
        else:
            say("nothing to complain of")
    if report.errors:
        sys.exit(2)


def prepare(
    *raw: Annotated[Path, Parameter(help="a file of cells, or several to join: .h5ad, .zarr, 10x, .loom, tables")],
    out: Annotated[Path, Parameter(help="the .h5ad file of training cells to write")],
    held_out: Annotated[Path | None, Parameter(help="the .h5ad file of held-out cells to write")] = None,
    join: Annotated[
        Literal["inner", "outer"], Parameter(help="of several files: the genes that all have, or all genes")
    ] = "inner",
    obs: Annotated[
        Path | None, Parameter(help="a table of the cells' labels to join (.csv, .tsv), whose first column names them")
    ] = None,
    schema: SchemaOptions = Schema(),
    preparation: PreparationOptions = Preparation(),
) -> None:
    """Normalise, hold cells out, and choose genes on the training cells only.

    Beside --out it writes a manifest, what was done and what both parts hold, as OUT.manifest.json.
    """
    from squidiff.data.check import check as examine
    from squidiff.data.check_values import FEWER_COUNTS
    from squidiff.data.preprocess import prepare_values
    from squidiff.data.readers import TOTALS, read_files, with_annotations
    from squidiff.data.splits import follow_any
    from squidiff.data.table import schema_of, write_all_cells

    if not raw:
        raise InputError("give the file of cells to prepare, or several")
    manifest = out.with_suffix(".manifest.json")
    refuse_overwriting(*raw, obs, out, held_out, manifest)
    for file in (out, held_out, manifest) if preparation.genes is not None else ():
        refuse_overwriting(Path(preparation.genes), file)
    holds_out = bool(preparation.hold_out) or preparation.test_fraction > 0
    if holds_out != (held_out is not None):
        raise InputError("cells to hold out (--hold-out, --test-fraction) and a file for them (--held-out) go together")
    for file in (out, held_out):
        if file is not None:
            require_ending(file, ".h5ad")
            require_writable(file)
    adata, joined = read_files(raw, join, preparation.layer, preparation.use_raw)
    described = ""
    if obs is not None:
        adata, described = with_annotations(adata, obs)
    say_unused(schema, *raw)
    told = given(schema)
    if told is None and len(raw) > 1 and (told := _remembered(raw)) is not None:
        say(f"columns, as the files remember them: {as_flags(told)}")
    schema = schema_of(adata, told, say, str(raw[0]))
    if preparation.normalize and preparation.total_counts_key is None and len(raw) > 1 and TOTALS in adata.obs:
        preparation = dataclasses.replace(preparation, total_counts_key=TOTALS)
    kept = ~follow_any(adata.obs, preparation.drop)
    if kept.any():  # else no cell is left, which is said below
        report = examine(adata[kept], schema, normalize=preparation.normalize)
        report.raise_errors()
        say_warnings(report if preparation.total_counts_key is None else report.without(FEWER_COUNTS))
    prepared = prepare_values(adata, schema, preparation)
    files = {out: prepared.train}
    if held_out is not None and prepared.test is not None:
        files[held_out] = prepared.test
    sweep([*files, manifest])
    read = {"files": [str(path) for path in raw]} | ({} if obs is None else {"obs": str(obs)})
    write_all_cells(files, {manifest: prepared.manifest | read})
    say("\n".join(text for text in (joined, described, *prepared.report) if text))
    for what, file in zip(("training", "held-out"), files, strict=False):
        say(f"{what} cells: {file}")
