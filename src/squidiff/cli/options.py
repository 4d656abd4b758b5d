"""Options that several commands share; each is a settings dataclass, whose fields become the flags."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Group, Parameter

from squidiff.config import Config, Preparation, Sampling, Schema

SchemaOptions = Annotated[Schema, Parameter(name="*", group=Group("Schema: which obs column means what", sort_key=1))]
ConfigOptions = Annotated[Config, Parameter(name="*", group=Group("Model and training", sort_key=2))]
PreparationOptions = Annotated[Preparation, Parameter(name="*", group=Group("Preparation", sort_key=2))]
SamplingOptions = Annotated[Sampling, Parameter(name="*", group=Group("Sampling", sort_key=2))]

Device = Annotated[str, Parameter(help="auto (an accelerator if there is one), cpu, or a name that torch knows")]


def given(schema: Schema) -> Schema | None:
    """The schema, or None when no option of it was given."""
    return None if schema == Schema() else schema
