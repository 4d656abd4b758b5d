"""Options that several commands share; each is a settings dataclass, whose fields become the flags."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import App, Argument, ArgumentCollection, Group, Parameter, Token

from squidiff.config import PRESETS, Compute, Config, InputError, Preparation, Sampling, Schema, flag, settings_to_json

SchemaOptions = Annotated[Schema, Parameter(name="*", group=Group("Schema: which obs column means what", sort_key=1))]
ConfigOptions = Annotated[Config, Parameter(name="*", group=Group("Model and training", sort_key=2))]
ComputeOptions = Annotated[Compute, Parameter(name="*", group=Group("Machines and precision", sort_key=3))]
PreparationOptions = Annotated[Preparation, Parameter(name="*", group=Group("Preparation", sort_key=2))]
SamplingOptions = Annotated[Sampling, Parameter(name="*", group=Group("Sampling", sort_key=2))]

_HELP = {field.name: field.metadata["help"] for field in fields(Compute)}
Device = Annotated[str, Parameter(help=_HELP["device"])]
Devices = Annotated[int, Parameter(help=_HELP["devices"])]
Nodes = Annotated[int, Parameter(help=_HELP["nodes"])]
OnDisk = Annotated[
    bool | None,
    Parameter(
        negative="--in-memory",
        help="read cells from their .h5ad file or zarr store as they are needed, or load them all: the result is the "
        "same (neither: those whose X takes more than 2 GB stay on disk)",
        show_default=False,
    ),
]

Source = Annotated[Path, Parameter(help="the .h5ad file of the cells to start from, such as the training file")]
Queries = Annotated[Path | None, Parameter(help="CSV of populations: obs columns, and n_cells if wanted")]
OneQuery = Annotated[tuple[str, ...], Parameter(help="a population, as COLUMN=VALUE,COLUMN=VALUE; may be repeated")]

PRESET, SETTINGS = "--preset", "--settings"


def take_preset(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Gives the settings of --preset to every option of it that was not given itself."""
    by_flag = {argument.name: argument for argument in arguments}
    preset = by_flag.get(PRESET)
    if preset is None or not preset.tokens or preset.tokens[0].value not in PRESETS:
        return
    usual = settings_to_json(Config())
    for name, value in settings_to_json(PRESETS[preset.tokens[0].value]).items():
        if value != usual[name]:
            _give(by_flag[flag(name)], value, "preset")


def take_settings(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Gives the settings of the file of --settings to every option of it that was not given itself."""
    by_flag = {argument.name: argument for argument in arguments}
    file = by_flag.get(SETTINGS)
    if file is None or not file.tokens:
        return
    from squidiff.workflows.settings_file import part, read_toml, refuse_others

    path = Path(file.tokens[0].value)
    said = read_toml(path)
    refuse_others(said, {"config"}, str(path))
    config, given = part(Config, said, "config", str(path)), said.get("config", {})
    for name in given:
        _give(by_flag[flag(name)], getattr(config, name), str(path))


def _give(argument: Argument, value: object, source: str) -> None:
    """Gives an option a value, or several, unless it was given itself."""
    if not argument.tokens:
        for each in value if isinstance(value, (list, tuple)) else (value,):
            argument.append(Token(keyword=argument.name, value=str(each), source=source))


def refuse_fractions(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raises InputError for a number that is to be whole and is not; the library would round it."""
    for argument in arguments:
        if argument.hint in (int, int | None):
            for token in argument.tokens:
                try:
                    is_whole = float(token.value).is_integer()
                except ValueError:
                    continue  # a word, of which the library speaks
                if not is_whole:
                    raise InputError(f"{argument.name} is {token.value}: it must be a whole number")


def given(schema: Schema) -> Schema | None:
    """The schema, or None when no option of it was given."""
    return None if schema == Schema() else schema
