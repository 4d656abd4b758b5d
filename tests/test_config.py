"""Settings keep their ranges, survive JSON, and refuse what they do not know."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from squidiff.config import (
    Config,
    InputError,
    Preparation,
    Sampling,
    Schema,
    flag,
    settings_from_json,
    settings_to_json,
)

KINDS = (Config, Sampling, Preparation)
BOUNDS = [
    (kind, field, side)
    for kind in KINDS
    for field in dataclasses.fields(kind)
    for side in ("low", "high")
    if field.metadata[side] is not None
]
EXAMPLES = [
    Schema(),
    Schema(
        condition_key="drug",
        control="DMSO",
        context_keys=("line", "donor"),
        time_key="h",
        dose_key="uM",
        smiles_key="s",
    ),
    Config(),
    Config(n_latent=7, learning_rate=0.25, normalize=True, total_counts_key="n", seed=3),
    Sampling(sampler="ddim", strength=1.0),
    Preparation(n_genes=50, drop=("a=b",), hold_out=("c=d,e=f", "g=h"), max_cells=9),
]


@pytest.mark.parametrize(("kind", "field", "side"), BOUNDS, ids=lambda v: getattr(v, "name", getattr(v, "__name__", v)))
def test_a_bound_is_allowed_and_what_is_beyond_it_is_refused(
    kind: type, field: dataclasses.Field[Any], side: str
) -> None:
    bound = field.metadata[side]
    is_int = field.type.startswith("int")
    wrap = (lambda value: (value,)) if field.type.startswith("tuple") else (lambda value: value)
    only = {"architecture": "upstream"} if field.name in ("n_diffusion_steps", "further_ema_decays") else {}
    kind(**{field.name: wrap(int(bound) if is_int else bound)}, **only)
    outwards = -1 if side == "low" else 1
    beyond = bound + outwards if is_int else math.nextafter(bound, outwards * math.inf)
    must = "at least" if side == "low" else "at most"
    with pytest.raises(InputError, match=rf"^{flag(field.name)} is .*: it must be {must} {bound}$".replace("+", r"\+")):
        kind(**{field.name: wrap(beyond)})


@pytest.mark.parametrize("name", ["learning_rate", "ema_decay", "target_sum"])
def test_nan_lies_in_no_range(name: str) -> None:
    with pytest.raises(InputError, match=f"{flag(name)} is nan"):
        Config(**{name: math.nan})


def test_a_choice_is_one_of_those_there_are() -> None:
    with pytest.raises(InputError, match=r"^--sampler is 'euler': choose one of dpmpp_2m, ddim$"):
        Sampling(sampler="euler")


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda s: type(s).__name__)
def test_json_there_and_back(settings: Any) -> None:
    values = settings_to_json(settings)
    read = json.loads(json.dumps(values, allow_nan=False))
    assert read == values  # lists, not tuples: what is written is what is read
    assert settings_from_json(type(settings), read) == settings


def test_json_that_leaves_a_setting_out_means_its_default() -> None:
    assert settings_from_json(Config, {"seed": 5}) == Config(seed=5)


def test_a_whole_number_in_json_will_do_for_a_real_one() -> None:
    found = settings_from_json(Config, {"learning_rate": 1}).learning_rate
    assert isinstance(found, float)
    assert found == 1.0


def test_an_unknown_name_is_refused_and_named() -> None:
    with pytest.raises(InputError, match=r"^unknown setting dropout, n_layer in Config: "):
        settings_from_json(Config, {"n_layer": 3, "width": 16, "dropout": 0.1})


@pytest.mark.parametrize(
    ("kind", "name", "value", "wanted"),
    [
        (Config, "n_latent", "64", "of type int"),
        (Config, "n_latent", 64.0, "of type int"),
        (Config, "n_latent", True, "of type int"),
        (Config, "n_latent", None, "of type int"),
        (Config, "learning_rate", "fast", "of type float"),
        (Config, "learning_rate", False, "of type float"),
        (Config, "normalize", 1, "of type bool"),
        (Config, "total_counts_key", 3, "of type str"),
        (Preparation, "n_genes", [3], "of type int"),
        (Schema, "context_keys", "line", "a tuple of texts"),
        (Schema, "context_keys", ["line", 3], "a tuple of texts"),
    ],
)
def test_a_value_of_another_type_is_refused(kind: type, name: str, value: object, wanted: str) -> None:
    with pytest.raises(InputError, match=rf"^{flag(name)} is .*: it must be {wanted}$"):
        settings_from_json(kind, {name: value})


def test_json_is_held_to_the_ranges_too() -> None:
    with pytest.raises(InputError, match="--width is 0: it must be at least 1"):
        settings_from_json(Config, {"width": 0})
    with pytest.raises(InputError, match="--sampler is 'euler'"):
        settings_from_json(Sampling, {"sampler": "euler"})


@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda s: type(s).__name__)
def test_settings_cannot_be_changed(settings: Any) -> None:
    name = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, getattr(settings, name))


def test_every_setting_has_a_line_of_help_that_no_other_of_its_kind_has() -> None:
    for kind in (*KINDS, Schema):
        helps = [field.metadata["help"] for field in dataclasses.fields(kind)]
        assert len(set(helps)) == len(helps)
        assert all(text.strip() == text and text and "\n" not in text for text in helps)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"control": "ctrl"}, "^--control is given without --condition-key: "),
        ({"condition_key": "c"}, "^--condition-key is given without --control: "),
        ({"smiles_key": "s"}, "^--smiles-key is given without --condition-key: "),
        ({"dose_key": "d"}, "^--dose-key is given without --condition-key: "),
        ({"direction_key": "d"}, "^--direction-key is given without --condition-key: "),
        ({"embeddings": "e.csv"}, "^--embeddings is given without --condition-key: "),
        (
            {"condition_key": "c", "control": "ctrl", "embeddings": "e.csv", "smiles_key": "s"},
            "^--embeddings and --smiles-key are both given: ",
        ),
        ({"context_keys": "line"}, r"^--context-key is 'line': it must be a tuple of texts$"),
    ],
)
def test_a_schema_that_does_not_make_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schema(**values)


def test_the_columns_of_a_schema_each_once_and_in_order() -> None:
    schema = Schema(
        direction_key="dir",
        condition_key="cond",
        control="ctrl",
        context_keys=("line", "donor", "line"),
        time_key="h",
        smiles_key="smi",
        dose_key="dose",
    )
    assert schema.columns == ("cond", "line", "donor", "h", "smi", "dose", "dir")
    assert Schema().columns == ()


def test_a_list_of_contexts_is_kept_as_a_tuple() -> None:
    assert Schema(context_keys=["line", "donor"]) == Schema(context_keys=("line", "donor"))


def test_flags_are_singular_where_they_may_be_repeated() -> None:
    assert (flag("n_train_steps"), flag("context_keys")) == ("--n-train-steps", "--context-key")
